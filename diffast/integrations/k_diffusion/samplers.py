"""k-diffusion's samplers except the adaptive one, and its noise sampler; see the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
import torch

from diffast import grids, schedules
from diffast.integrations.sigma_model import (
    drawn_by,
    drawn_each_step,
    levels_of,
    run,
    sigma_plan,
)
from diffast.noise.brownian import BrownianPath
from diffast.solvers.ode.singlestep import fast_orders


def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0, device="cpu") -> torch.Tensor:
    """Returns n noise levels evenly spaced in sigma^(1/rho), then 0 (Karras et al. 2022); [n+1]."""
    space = schedules.edm(float(sigma_min), float(sigma_max))
    return _float32(grids.karras(space, n, rho=rho), device)


def get_sigmas_exponential(n, sigma_min, sigma_max, device="cpu") -> torch.Tensor:
    """Returns n noise levels evenly spaced in log sigma, then 0; [n+1]."""
    space = schedules.edm(float(sigma_min), float(sigma_max))
    return _float32(grids.exponential(space, n), device)


def get_sigmas_polyexponential(n, sigma_min, sigma_max, rho=1.0, device="cpu") -> torch.Tensor:
    """Returns n noise levels from sigma_max to sigma_min, then 0; [n+1].

    log sigma = log sigma_min + u^rho log(sigma_max / sigma_min), u from 1 to 0 in even steps.
    """
    space = schedules.edm(float(sigma_min), float(sigma_max))
    return _float32(grids.polyexponential(space, n, rho=rho), device)


def get_sigmas_vp(n, beta_d=19.9, beta_min=0.1, eps_s=1e-3, device="cpu") -> torch.Tensor:
    """Returns sigma/alpha of `df.schedules.vp_linear` at n even times from 1 to eps_s, then 0."""
    space = schedules.vp_linear(beta_min, beta_min + beta_d)
    levels = np.exp(-space.lam(np.linspace(1.0, eps_s, n)))
    return _float32(np.append(levels, 0.0), device)


def _float32(levels, device):
    return torch.tensor(levels, dtype=torch.float32, device=device)


def _plain(solver, options, call, draws=None, **noise):
    """Returns the samples of a plan; x where there is no step."""
    levels = levels_of(f"sample_{solver}", call["sigmas"])
    if len(levels) < 2:
        return call["x"]
    plan = sigma_plan(solver, levels, **options)
    draw = None if draws is None else draws(plan)
    return run(plan=plan, levels=levels, draw=draw, **call, **noise)


def _noised(solver, options, call):
    """Returns the samples of a plan with `noise_sampler`, by default torch's generator."""
    drawn = options.pop("noise_sampler") or (lambda sigma, sigma_next: torch.randn_like(call["x"]))
    return _plain(solver, options, call, lambda plan: drawn_by(drawn, plan, call["sigmas"]))


def _on_path(solver, options, call):
    """Returns the samples of a plan with `noise_sampler`, by default on the package's paths."""
    if options["noise_sampler"] is not None:
        return _noised(solver, options, call)
    del options["noise_sampler"]
    seed = (call["extra_args"] or {}).get("seed")
    seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
    return _plain(solver, options, call, seed=seed, path=True)


def _churned(base, options, call):
    """Returns the samples of a churned plan, or of the plain one where s_churn is 0."""
    options = {name: float(number) for name, number in options.items()}
    levels = levels_of(f"sample_{base}", call["sigmas"])
    if options["s_churn"] == 0.0 or len(levels) < 2:
        return _plain(base, {}, call)
    plan = sigma_plan("churn", levels, base=base, **options)
    draw = drawn_each_step(lambda: torch.randn_like(call["x"]), plan, levels)
    return run(plan=plan, levels=levels, draw=draw, **call)


def _sampler(solver, samples, options, about):
    """Returns the function `sample_<solver>`.

    Args:
        solver: name of the solver.
        samples: (solver, options, the other arguments by name) -> samples.
        options: {name: default} of what the function takes after the arguments of all.
        about: of what it returns samples.
    """
    optional = {"extra_args": None, "callback": None, "disable": None, **options}
    either = Parameter.POSITIONAL_OR_KEYWORD
    shown = [Parameter(name, either) for name in ("model", "x", "sigmas")]
    shown += [Parameter(name, either, default=value) for name, value in optional.items()]
    signature = Signature(shown)

    def sample(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"sample_{solver}: {error}") from None
        bound.apply_defaults()
        own = {_BUILDERS.get(name, name): bound.arguments.pop(name) for name in options}
        return samples(solver, own, bound.arguments)

    sample.__name__ = sample.__qualname__ = f"sample_{solver}"
    sample.__doc__ = f"Returns samples of {about}"
    sample.__dict__["__signature__"] = signature
    return sample


_BUILDERS = {"solver_type": "kind"}  # k-diffusion's name of an option, and the builder's
_CHURN = {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0}
_NOISE = {"eta": 1.0, "s_noise": 1.0, "noise_sampler": None}

sample_euler = _sampler(
    "euler", _churned, _CHURN, "Euler's method with churn (algorithm 2 of Karras et al. 2022)."
)
sample_heun = _sampler(
    "heun", _churned, _CHURN, "Heun's method with churn (Karras et al. 2022, algorithm 2)."
)
sample_dpm_2 = _sampler(
    "dpm_2", _churned, _CHURN, "DPM-Solver-2 with churn: the slope at the middle of log sigma."
)
_anew = "steps below each level and fresh noise up to it."
sample_euler_ancestral = _sampler("euler_ancestral", _noised, _NOISE, f"Euler {_anew}")
sample_dpm_2_ancestral = _sampler("dpm_2_ancestral", _noised, _NOISE, f"DPM-Solver-2 {_anew}")
sample_dpmpp_2s_ancestral = _sampler(
    "dpmpp_2s_ancestral", _noised, _NOISE, f"DPM-Solver++(2S) {_anew}"
)
sample_lms = _sampler(
    "lms", _plain, {"order": 4}, "the linear multistep method (Adams-Bashforth in sigma)."
)
sample_dpmpp_2m = _sampler("dpmpp_2m", _plain, {}, "DPM-Solver++(2M).")
sample_dpmpp_sde = _sampler(
    "dpmpp_sde", _on_path, {**_NOISE, "r": 1 / 2}, "DPM-Solver++ (stochastic), two calls a step."
)
sample_dpmpp_2m_sde = _sampler(
    "dpmpp_2m_sde", _on_path, {**_NOISE, "solver_type": "midpoint"}, "DPM-Solver++(2M) SDE."
)
sample_dpmpp_3m_sde = _sampler("dpmpp_3m_sde", _on_path, _NOISE, "DPM-Solver++(3M) SDE.")


def sample_dpm_fast(
    model,
    x,
    sigma_min,
    sigma_max,
    n,
    extra_args=None,
    callback=None,
    disable=None,
    eta=0.0,
    s_noise=1.0,
    noise_sampler=None,
):
    """Returns samples of DPM-Solver-fast: n model calls in steps of order 3, the last ones lower.

    Raises:
        ValueError: for eta > 0, which this has no plan for; levels that are not
            0 < sigma_min < sigma_max.
    """
    if eta != 0.0:
        raise ValueError(f"sample_dpm_fast: eta = {eta}, but it must be 0")
    orders = tuple(fast_orders(n))
    space = schedules.edm(float(sigma_min), float(sigma_max))
    levels = tuple(grids.uniform_logsnr(space, len(orders), to_zero=False).tolist())
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigmas = torch.tensor(levels, dtype=dtype, device=x.device)

    def with_times(info):
        assert callback is not None  # see below
        callback(info | {"t": -info["sigma"].log(), "t_up": -info["sigma_hat"].log()})

    seen = None if callback is None else with_times
    plan = sigma_plan("dpm_fast", levels, orders=orders)
    return run(model, x, plan, levels, sigmas, extra_args, seen, disable)


class BrownianTreeNoiseSampler:
    """The noise of one Brownian path a sample, between noise levels.

    For k-diffusion's samplers, or any other that calls noise_sampler(sigma, sigma_next). The
    numbers are those of `BrownianPath` in log sigma, whatever the device, and so another path than
    torchsde's; a step costs 12 normals an element, once.

    Args:
        x: the state [B, ...], whose shape, device and dtype the noise has.
        sigma_min: not needed, there is no interval to stay within; as `sigma_max`.
        sigma_max: see `sigma_min`.
        seed: an integer: sample b's path depends on it and on b. A list of B integers: on its own
            alone. None: a number from torch's generator.
        transform: not used, as increments are N(0, 1) in any time variable.
        cpu: not needed (ComfyUI's), as the CPU's numbers are those of any device.
    """

    def __init__(
        self,
        x: torch.Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable = lambda x: x,
        cpu: bool = False,
    ):
        """Makes the paths; nothing is drawn yet."""
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        if not isinstance(seed, int) and np.ndim(seed):
            seed = [int(one) for one in seed]
        self.dtype = x.dtype
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.path = BrownianPath(schedules.edm(), x.shape, seed, device=x.device, dtype=wide)

    def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        """Returns the N(0, 1) increment [B, ...] from one level to the other.

        Args:
            sigma: noise level above 0, a number or a tensor of one.
            sigma_next: another one; above sigma it gives minus the increment down.

        Raises:
            ValueError: levels that are equal, or 0, where no noise falls.
        """
        start, end = float(sigma), float(sigma_next)
        if start < end:
            return -self(end, start)
        return self.path.increment(start, end).to(self.dtype)


__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]: k-diffusion's names
    name for name in globals() if name.startswith(("get_sigmas_", "sample_", "BrownianTree"))
]
