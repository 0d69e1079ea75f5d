"""diffusers' schedulers on a problem: every class, order and sigma option that is deterministic.

A schedule of any kind is given to diffusers as 1,000 betas whose noise levels are even in the
problem's own training times; flows by use_flow_sigmas and the FlowMatch classes. The network is
asked at the exact level that the scheduler's state has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import torch

from bench.networks.problems import Problem
from diffast.bench import peers

Run = Callable[[Problem, int], tuple[torch.Tensor, int]]


@cache
def _betas(kind: str, first: float, last: float) -> list[float]:
    if kind == "vp":
        return []
    rho = np.array([first / (1 - first), max(last, 1e-4) / (1 - max(last, 1e-4))])
    levels = np.exp(np.linspace(np.log(rho[1]), np.log(rho[0]), 1000))
    bars = 1 / (1 + levels**2)
    return (1 - bars / np.concatenate([[1.0], bars[:-1]])).tolist()


def _given(problem: Problem) -> dict:
    if problem.kind == "vp":
        made = np.asarray(problem.schedule.betas, dtype=np.float64)
        return {"trained_betas": made.tolist()}
    if problem.kind == "ve":
        return {"trained_betas": _betas("ve", problem.first, problem.last)}
    return {}


SPACINGS = {
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "linspace": {"timestep_spacing": "linspace"},
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
}
FLOWS = {
    f"flow, shift {s:g}": {"use_flow_sigmas": True, "flow_shift": s, "prediction_type": "flow"}
    for s in (1.0, 0.5, 2.0, 3.0)
}

_DPM = [
    (f"DPMSolverMultistep-{order} {algorithm} {kind}{' lower' if low else ''}",
     "DPMSolverMultistep",
     {"solver_order": order, "algorithm_type": algorithm, "solver_type": kind,
      "lower_order_final": low, **last,
      **({} if "++" in algorithm else {"final_sigmas_type": "sigma_min"})})
    for order in (1, 2, 3)
    for algorithm in ("dpmsolver++", "dpmsolver")
    for kind in (("midpoint", "heun") if order == 2 else ("midpoint",))
    for low, last in ((True, {}), (False, {}), (False, {"euler_at_final": True}))
    if order > 1 or low
]  # fmt: skip
_UNIPC = [
    (f"UniPC-{order} {kind}{'' if low else ' full'}{'' if x0 else ' eps'}{' P' if off else ''}",
     "UniPCMultistep",
     {"solver_order": order, "solver_type": kind, "lower_order_final": low, "predict_x0": x0,
      "disable_corrector": off})
    for order in (1, 2, 3)
    for kind in ("bh1", "bh2")
    for low in (True, False)
    for x0 in (True, False)
    for off in ([], list(range(100)))
    if (order > 1 or low) and (x0 or not off)
]  # fmt: skip
_DEIS = [
    (f"DEIS-{order}{' lower' if low else ''}", "DEISMultistep",
     {"solver_order": order, "lower_order_final": low})
    for order in (1, 2, 3) for low in (True, False)
]  # fmt: skip
_SINGLE = [
    (f"DPMSolverSinglestep-{order}", "DPMSolverSinglestep", {"solver_order": order})
    for order in (2, 3)
]
_RHO = [
    ("Euler", "EulerDiscrete", {}),
    ("Heun", "HeunDiscrete", {}),
    ("KDPM2", "KDPM2Discrete", {}),
    ("LMS", "LMSDiscrete", {}),
]
SCALED = _DPM + _UNIPC + _DEIS + _SINGLE


def runs(problem: Problem) -> Iterator[tuple[str, Run]]:
    """Yields (name, run); run(problem, calls) returns y at the end and the calls that it took."""
    flow = problem.kind == "flow"
    for name, kind, options in SCALED:
        for spacing, extra in (FLOWS if flow else SPACINGS).items():
            if not _takes(kind, options, spacing):
                continue
            # a network of pictures takes long: without what was never near the best elsewhere
            if len(problem.shape) > 2 and (
                options["solver_order"] == 1
                or options.get("algorithm_type") == "dpmsolver"
                or options.get("predict_x0") is False
                or options.get("euler_at_final")
            ):
                continue
            yield f"{name}, {spacing}", _scheduler(kind, {**options, **extra}, True)
    if flow:
        for shift in (1.0, 0.5, 2.0, 3.0):
            for extra in ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True},
                          {"use_beta_sigmas": True}):  # fmt: skip
                name = f"FlowMatchEuler {extra or ''} shift {shift:g}"
                yield name, _scheduler("FlowMatchEulerDiscrete", {"shift": shift, **extra}, None)
            made = _scheduler("FlowMatchHeunDiscrete", {"shift": shift}, None)
            yield f"FlowMatchHeun shift {shift:g}", made
        return
    for name, kind, options in _RHO:
        for spacing, extra in SPACINGS.items():
            if spacing != "lu":
                yield f"{name}, {spacing}", _scheduler(kind, {**options, **extra}, False)
    if problem.kind == "ve":
        for kind in ("EDMEuler", "EDMDPMSolverMultistep"):
            for spacing in ("karras", "exponential"):
                for order in (1, 2, 3) if "DPM" in kind else (0,):
                    given = {"sigma_schedule": spacing} | ({"solver_order": order} if order else {})
                    yield f"{kind}-{order}, {spacing}", _edm(kind, given)


def _takes(kind: str, options: dict, spacing: str) -> bool:
    """Whether a class has this spacing."""
    if spacing == "lu":
        return kind == "DPMSolverMultistep"
    if kind == "DPMSolverSinglestep":
        return spacing not in ("trailing", "leading")
    return not (spacing.startswith("flow") and options.get("predict_x0") is False)


def _scheduler(kind: str, options: dict, scaled: bool | None) -> Run:
    """A scheduler whose state is alpha x on alpha^2 + sigma^2 = 1, x, or (None) a flow's."""
    flowing = options.get("prediction_type") == "flow"
    if flowing:
        options = {**options, "prediction_type": "flow_prediction"}
    each = 2 if kind in ("HeunDiscrete", "KDPM2Discrete", "FlowMatchHeunDiscrete") else 1

    def run(problem: Problem, calls: int) -> tuple[torch.Tensor, int]:
        module = peers.diffusers()
        if kind == "DPMSolverSinglestep":
            options.pop("timestep_spacing", None)
        given = {} if scaled is None or flowing else _given(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = getattr(module, f"{kind}Scheduler")(**given, **options)
            made.set_timesteps((calls + 1) // 2 if each > 1 else calls)  # the last step is one call
        if hasattr(made, "set_begin_index"):
            made.set_begin_index(0)
        made.is_scale_input_called = True
        levels = made.sigmas.double().tolist()
        times = made.timesteps
        flow = scaled is None or flowing

        def tau(level: float) -> float:
            return level if flow else level / (1 + level)

        def factor(level: float) -> float:  # the scheduler's state over y
            if flow:
                return 1.0
            return (1 + level) / ((1 + level * level) ** 0.5 if scaled else 1.0)

        first = tau(levels[0])
        if not 0.8 < first / problem.first < 1.03:
            raise ValueError("another start")
        x = (problem.start.float() * (first / problem.first)) * factor(levels[0])
        asked = 0
        for i, t in enumerate(times):
            level = levels[i]
            if level <= 0:
                raise ValueError("asked at 0")
            y, at = x / factor(level), tau(level)
            v = problem.velocity(y, at)
            asked += 1
            output = v if flow else y + (1 - at) * v  # eps = y + (1 - tau) v
            x = made.step(output, t, x, return_dict=False)[0]
        end = levels[len(times)] if len(levels) > len(times) else 0.0
        return x / factor(end), asked

    return run


def _edm(kind: str, options: dict) -> Run:
    def run(problem: Problem, calls: int) -> tuple[torch.Tensor, int]:
        module = peers.diffusers()
        low = problem.last / (1 - problem.last)
        high = problem.first / (1 - problem.first)
        made = getattr(module, f"{kind}Scheduler")(sigma_min=low, sigma_max=high, **options)
        made.set_timesteps(calls)
        levels = made.sigmas.double().tolist()
        x = problem.start.float() / (1 - problem.first)
        for level, t in zip(levels, made.timesteps, strict=False):
            y, tau = x / (1 + level), level / (1 + level)
            x0 = problem.x0(y, tau)
            made.scale_model_input(x, t)  # settles the index of the step
            d2, s2 = made.config.sigma_data**2, level**2
            out = (x0 - d2 / (d2 + s2) * x) / (level * (d2 / (d2 + s2)) ** 0.5)
            x = made.step(out, t, x, return_dict=False)[0]
        return x, calls

    return run
