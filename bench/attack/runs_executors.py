"""Every executor as one function of a network: samples [B, ...] of one small problem."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import diffast as df
from diffast import ops
from diffast.executors import context
from diffast.executors.replay import ReplayableRun

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

SHAPE = (3, 2, 4, 4)
VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 6)
HEUN = df.solvers.heun(VP, GRID)
MULTISTEP = df.solvers.dpmpp_2m(VP, GRID)
DDIM = df.solvers.ddim(VP, GRID)
NOISY = df.solvers.ddim(VP, GRID, eta=1.0)
CONDITION = torch.linspace(-1, 1, 96).reshape(SHAPE)


def initial() -> torch.Tensor:
    """The initial state of all runs."""
    return ops.normal(SHAPE, seed=4)


def denoiser(network: Callable[..., Any], guided: bool = False, **options: Any) -> df.Denoiser:
    """The denoiser of all runs."""
    if guided:
        blank = torch.zeros(1, *SHAPE[1:], device="cpu")
        options |= {"conditions": {"c": CONDITION}, "unconditional": {"c": blank}, "guidance": 2.5}
    return df.Denoiser(network, VP, "x0", **options)


def _sample(plan: Any = HEUN, guided: bool = False, **options: Any) -> Callable:
    made = {name: options.pop(name) for name in ("dtype", "guides") if name in options}
    return lambda net: df.sample(denoiser(net, guided, **made), plan, x=initial(), **options).x


def _stepper(each: bool) -> Callable:
    def run(network: Callable) -> torch.Tensor:
        stepper = df.Stepper(MULTISTEP, denoiser(network))
        state, x, t = stepper.start(initial(), each=each)
        for _ in range(MULTISTEP.nfe):
            state, x, t = stepper.step(state, network(x, t))
        return stepper.result(state).x

    return run


def _replay(network: Callable) -> torch.Tensor:
    one = denoiser(network)
    place = context.place_of("sample", one, None, initial(), None, 0, None, None, looks=False)
    run = ReplayableRun(one, HEUN, place)
    run.load(seed=0, ids=torch.arange(SHAPE[0], device="cpu"), x=initial())
    with torch.inference_mode():
        run.run()
    made = run.samples()
    return made.or_raise("sample", place.ids, True, run.bound.what_failed).x


def _adaptive(method: str, guided: bool = False, **options: Any) -> Callable:
    return lambda net: (
        df.sample_adaptive(denoiser(net, guided), method, x=initial(), max_calls=400, **options).x
    )


def _parallel(method: str, plan: Any = HEUN, guided: bool = False, **options: Any) -> Callable:
    def run(network: Callable) -> torch.Tensor:
        one = denoiser(network, guided)
        return df.sample_parallel(one, plan, x=initial(), method=method, **options).x

    return run


def _reward(x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -x0.flatten(1).square().mean(1)


def _particles(network: Callable) -> torch.Tensor:
    made = df.sample_particles(denoiser(network), NOISY, reward=_reward, particles=2, shape=SHAPE)
    failed = int((made.status != -1).sum())
    if failed:
        raise df.NonFiniteError(f"sample_particles: {failed} particles failed", made)
    return made.x.flatten(0, 1)


def _energy(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.double().flatten(1).square().sum(1)


def _metropolis(proposal: str) -> Callable:
    return lambda net: (
        df.sample_metropolis(
            denoiser(net), DDIM, _energy, x=initial(), proposal=proposal, n=2, step=0.1
        ).x
    )


def _estimate(guided: bool) -> Callable:
    return lambda net: denoiser(net, guided).x0(initial(), 0.5)


def _two_inputs(network: Callable) -> torch.Tensor:
    from replay_cases import twin

    return df.sample(denoiser(network), twin(), x=initial()).x


def _pull(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.1 * (0.5 - x)


def _corrected(network: Callable) -> torch.Tensor:
    plan = df.solvers.predictor_corrector(DDIM, df.correctors.overdamped(), n=1)
    return df.sample(denoiser(network), plan, x=initial()).x


EXECUTORS: dict[str, Callable[[Callable], torch.Tensor]] = {
    "sample": _sample(),
    "sample, multistep": _sample(MULTISTEP),
    "sample, guided": _sample(MULTISTEP, True),
    "sample, float16 network": _sample(dtype=torch.float16),
    "sample, clamp and hook": _sample(clamp=(-1, 1), on_x0=lambda x0, info: x0 * 0.9),
    "sample, path noise": _sample(NOISY, noise="path"),
    "sample, two inputs": _two_inputs,
    "sample, corrector": _corrected,
    "graph's run": _replay,
    "Stepper": _stepper(False),
    "Stepper, each": _stepper(True),
    "adaptive pec": _adaptive("pec"),
    "adaptive dpm_12, guided": _adaptive("dpm_12", True),
    "adaptive dopri5, batch": _adaptive("dopri5", control="batch"),
    "parallel secant": _parallel("secant", tol=1e-6),
    "parallel secant, multistep": _parallel("secant", MULTISTEP, tol=1e-6),
    "parallel prior": _parallel("prior", tol=1e-6),
    "parallel anderson, guided": _parallel("anderson", MULTISTEP, True, tol=1e-6),
    "parallel paradigms": _parallel("paradigms", NOISY, tol=1e-6),
    "parallel speculative": _parallel("speculative", NOISY),
    "parallel, batches of 2": _parallel("secant", tol=1e-6, batch_size=2),
    "particles": _particles,
    "metropolis mala": _metropolis("mala"),
    "metropolis ghmc": _metropolis("ghmc"),
    "Denoiser.x0": _estimate(False),
    "Denoiser.x0, guided": _estimate(True),
}
