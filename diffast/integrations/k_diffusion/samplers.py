"""k-diffusion's samplers except the adaptive one, and its noise sampler; see the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

import numpy as np
import torch

from diffast import grids, schedules
from diffast.integrations.k_diffusion.calls import MANNERS, Call, Unused, check_state, reason
from diffast.integrations.k_diffusion.handing import handed_over
from diffast.integrations.k_diffusion.noise_levels import ends_of, level_of
from diffast.integrations.k_diffusion.noise_levels import (
    get_sigmas_exponential as get_sigmas_exponential,
)
from diffast.integrations.k_diffusion.noise_levels import get_sigmas_karras as get_sigmas_karras
from diffast.integrations.k_diffusion.noise_levels import (
    get_sigmas_polyexponential as get_sigmas_polyexponential,
)
from diffast.integrations.k_diffusion.noise_levels import get_sigmas_vp as get_sigmas_vp
from diffast.integrations.sigma_model import DrawnEachStep, drawn_by, run, sigma_plan
from diffast.noise.brownian import BrownianPath
from diffast.solvers.ode.singlestep import fast_orders


def _plain(solver, options, given):
    """Returns the samples of a deterministic plan; x where there is no step."""
    call = Call(solver, given, options)
    if len(call.levels) < 2:
        return call.x
    if solver == "lms" and call.ends_at_zero and isinstance(options["order"], int):
        steps = range(1, len(call.levels))
        options = options | {"orders": tuple(min(i, options["order"]) for i in steps)}
    plan, made = call.plan(solver, **options)
    return made if plan is None else call.run(plan)


def _noised(solver, options, given):
    """Returns the samples of a plan with `noise_sampler`, by default torch's generator."""
    call = Call(solver, given, options)
    options = dict(options)
    drawn = options.pop("noise_sampler")
    if len(call.levels) < 2:
        return call.x
    if solver.endswith("ancestral") and _falls_to_zero(call.sigmas, options["eta"]):
        why = f"sigma_down rounds to 0 in {call.sigmas.dtype}, where k-diffusion takes Euler's step"
        return call.over(why, "rounding")
    plan, made = call.plan(solver, **options)
    if plan is None:
        return made
    return _with_noise(call, plan, drawn or (lambda sigma, sigma_next: torch.randn_like(call.x)))


def _falls_to_zero(sigmas, eta):
    """Returns whether an ancestral step has no noise level left below it, in the sigmas' dtype."""
    if not eta or not isinstance(eta, (int, float)):
        return False
    sigmas = sigmas.detach().cpu()
    start, end = sigmas[:-1], sigmas[1:]
    up = torch.minimum(end, eta * (end**2 * (start**2 - end**2) / start**2) ** 0.5)
    return bool((((end**2 - up**2) ** 0.5 == 0.0) & (end > 0.0)).any())


def _with_noise(call, plan, drawn):
    """Returns the samples of a plan, with a noise sampler that is asked as k-diffusion asks it."""
    if plan.stochastic:
        return call.run(plan, drawn_by(drawn, plan, call.sigmas))
    if call.solver in ("dpmpp_2m_sde", "dpmpp_3m_sde") and not call.options["eta"]:
        return call.run(plan)  # the one case in which it is not asked
    middle = call.options.get("r") if call.solver == "dpmpp_sde" else None
    unused = Unused(drawn, call.sigmas, call.levels, middle)
    return unused.finished(call.run(plan, begin=unused.begin))


def _on_path(solver, options, given):
    """Returns the samples of a plan with `noise_sampler`, by default on the package's paths."""
    if options["noise_sampler"] is not None:
        return _noised(solver, options, given)
    call = Call(solver, given, options)
    own = {name: value for name, value in options.items() if name != "noise_sampler"}
    if len(call.levels) < 2:
        return call.x
    plan, made = call.plan(solver, **own)
    if plan is None:
        return made
    drawn = int(torch.randint(2**63 - 1, ()))  # as in k-diffusion, whose tree has this seed
    seed = (given["extra_args"] or {}).get("seed")
    return call.run(plan, seed=drawn if seed is None else seed, path=True)


def _churned(base, options, given):
    """Returns the samples of a churned plan, or of the plain one where s_churn is 0."""
    call = Call(base, given, options)
    if len(call.levels) < 2:
        return call.x
    try:
        options = {name: float(number) for name, number in options.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample_{base}: {error}") from None
    churn = {"base": base, **options} if options["s_churn"] else {}
    plan, made = call.plan("churn" if churn else base, **churn)
    if plan is None:
        return made
    noise = DrawnEachStep(
        lambda dtype: torch.randn_like(call.x, dtype=dtype), call.x.dtype, plan, call.levels
    )
    return call.run(plan, noise if churn else None, noise.begin)


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
        given = dict(bound.arguments)
        own = {_BUILDERS.get(name, name): given[name] for name in options}
        return samples(solver, own, given)

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
        ValueError: levels that are not positive.
    """
    given, name = dict(locals()), "sample_dpm_fast"
    check_state(name, x)
    low, high = (level_of(name, which, of, 0.0) for which, of in ends_of(sigma_min, sigma_max))
    if eta != 0.0:
        return handed_over(name, f"eta is {eta}, but there is a plan for 0 alone", "eta", given)
    if low >= high:
        why = f"sigma_min = {low:g} is not below sigma_max = {high:g}"
        return handed_over(name, why, "sigmas", given)
    try:
        orders = tuple(fast_orders(n))
        space = schedules.edm(low, high)
        levels = tuple(grids.uniform_logsnr(space, len(orders), to_zero=False).tolist())
        plan = sigma_plan("dpm_fast", levels, orders=orders)
    except (TypeError, ValueError) as error:
        return handed_over(name, reason(name, error), "options", given)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    sigmas = torch.tensor(levels, dtype=dtype, device=x.device)

    def with_times(info):
        assert callback is not None  # see below
        callback(info | {"t": -info["sigma"].log(), "t_up": -info["sigma_hat"].log()})

    seen = None if callback is None else with_times
    drawn = noise_sampler or (lambda sigma, sigma_next: torch.randn_like(x))
    unused = Unused(drawn, sigmas, levels)
    how: Any = {"begin": unused.begin, "manner": MANNERS["dpm_fast"]}
    made = run(model, x, plan, levels, sigmas, extra_args, seen, disable, **how)
    return unused.finished(made)


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
