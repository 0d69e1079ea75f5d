"""`df.sample_adaptive(control="batch")`: all samples take the same steps, as in torchdiffeq.

The whole batch [B, ...] is run as one sample of a larger state [1, B, ...], so that its scaled
error is the root mean square over all elements of all samples. A deterministic method with this
error and the tolerances rtol and atol decides as torchdiffeq's `odeint` does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast.executors.adaptive.options import AdaptiveOptions
from diffast.executors.adaptive.time_variable import TimeInterval
from diffast.executors.context import Place, put_initial, refuse, unlike
from diffast.executors.terms import normals_of
from diffast.guidance.guide import Guide, Point
from diffast.model.denoiser import Denoiser
from diffast.model.times import time_dtype, told_time
from diffast.solvers.embedded import EmbeddedSolver, Node
from diffast.solvers.embedded.runge_kutta import RungeKutta

WHO = "sample_adaptive"
# A step is at most so many times the one before, as in torchdiffeq.
MOST_GROWTH = 10.0


def check_shared(options: AdaptiveOptions, solver: EmbeddedSolver) -> None:
    """Raises ValueError for a method or options that shared steps cannot have."""
    if solver.noise != "none":
        raise ValueError(
            f"{WHO}: control is 'batch' but {solver.name} draws noise for each sample: control="
            "'batch' is for methods of the probability-flow ODE"
        )
    why = "control is 'batch', where all samples are one state"
    refuse(
        WHO,
        on_x0=(options.on_x0, why),
        callback=(options.callback, why),
        trace=(options.trace, why),
        executor=(options.executor != "sequential", why),
    )


class SharedNetwork:
    """A network called on [1, B, ...] or, for both cfg branches, [2, B, ...].

    Args:
        denoiser: of the network, with conditions for B samples.
        place: of the batch [B, ...].
    """

    def __init__(self, denoiser: Denoiser, place: Place):
        """No call yet."""
        self.denoiser, self.place = denoiser, place
        constant = None if callable(denoiser.guidance) else float(denoiser.guidance)
        self.single = "uncond" if constant == 0.0 else "cond"
        self.arguments: dict[str, dict[str, Any]] = {}
        self.branches = getattr(denoiser.network, "branches", 1)
        self.first: torch.Tensor | None = None  # the answer to the next call, if it is known

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns the network's output, shaped as x."""
        if self.first is not None:
            known, self.first = self.first, None
            return known
        branch = "both" if len(x) == 2 else self.single
        if branch not in self.arguments:
            batch, device = self.place.shape[0], self.place.device
            self.arguments[branch] = self.denoiser.arguments(batch, device, branch)
        times = t.repeat_interleave(self.place.shape[0])
        output = self.denoiser.call(x.flatten(0, 1), times, self.arguments[branch]).view(x.shape)
        complaint = unlike("the network's output", output, x)
        if complaint is not None:
            raise ValueError(f"{WHO}: {complaint}")
        return output


def shared_denoiser(network: SharedNetwork) -> Denoiser:
    """Returns the denoiser of a state [1, B, ...]."""
    denoiser = network.denoiser
    return Denoiser(
        network,
        denoiser.schedule,
        denoiser.predicts,
        unconditional=None if denoiser.unconditional is None else {},
        guidance=denoiser.guidance,
        dtype=denoiser.dtype,
        guides=[_shared_term(term, network.place) for term in denoiser.guides],
    )


def _shared_term(term: Guide, place: Place) -> Guide:
    """Returns the term of a state [1, B, ...]; its function is given the samples [B, ...].

    Raises:
        ValueError: a term that is taken through the network.
    """
    if term.through == "network":
        raise ValueError(
            f"{WHO}: control is 'batch', but guidance term {term.name} is taken through the "
            "network, and the answer to a shared first step has no graph: leave control out"
        )
    batch = place.shape[0]

    def samples(at: Point) -> torch.Tensor:
        inner = Point(
            at.x[0],
            at.time.expand(batch),
            at.alpha[0].expand(batch, *at.alpha.shape[2:]),
            at.sigma[0].expand(batch, *at.sigma.shape[2:]),
            place.ids,
            int(at.stage) if isinstance(at.stage, int) else at.stage.expand(batch),
            None if at.x0 is None else at.x0[0],
        )
        return term.function(inner._replace(normals=normals_of(inner, place.seed)))[None]

    return replace(term, function=samples)


@torch.inference_mode(False)
def shared_start(denoiser: Denoiser, place: Place, x: torch.Tensor | None) -> torch.Tensor:
    """Returns the initial state [1, B, ...]."""
    state = place.empty()
    schedule = denoiser.schedule
    put_initial(state, x, float(schedule.sigma(float(schedule.t_start))), place)
    return state[None]


@torch.inference_mode()
def first_step(
    network: SharedNetwork, shared: Denoiser, solver: RungeKutta, interval: TimeInterval, x: Any
) -> float:
    """Returns a first step for x [1, B, ...], in the method's time variable; one call more.

    Hairer, Norsett & Wanner, "Solving ODEs I", section II.4: a hundredth of the state's size over
    that of its slope, then the step at which the error of an Euler step, from the change of the
    slope, would be a hundredth. The first answer of the network is kept for the run.
    """
    start = interval.nodes(np.array([interval.start]))

    def answer(state: torch.Tensor, node: Node) -> tuple[torch.Tensor, torch.Tensor]:
        time = float(np.asarray(node.time).flat[0])
        kind = time_dtype(state.dtype)
        inside = told_time(shared.schedule, time, kind)
        told = torch.full((1,), inside, dtype=kind, device=state.device)
        given = state.to(shared.dtype or state.dtype)
        scale = float(shared.scales(np.array([time]))[0])
        both = scale not in (0.0, 1.0) or callable(shared.guidance)
        output = network(given.expand(1 + both, *given.shape[1:]), told.expand(1 + both))
        raw = output.clone()  # the network may write its next answer into the same memory
        if both:
            output = output[1:].lerp(output[:1], scale)
        a, b = (float(weight[0]) for weight in shared.affine(np.array([time])))
        row = {name: float(np.asarray(w).flat[0]) for name, w in solver.entry(node).items()}
        return row["x"] * state + row["d"] * (a * state + b * output.to(state.dtype)), raw

    def size(values: torch.Tensor) -> float:
        return float((values / tolerance).double().square().mean().sqrt())

    tolerance = solver.atol + solver.rtol * x.abs()
    slope, raw = answer(x, start)
    level, slope_size = size(x), size(slope)
    if not np.isfinite(slope_size):  # the run says which samples failed
        network.first = raw
        return solver.step
    rest = interval.end - interval.start
    step = 0.01 * level / slope_size if min(level, slope_size) > 1e-5 else 1e-6
    step = min(step, rest)
    after = interval.nodes(np.array([interval.start + step]))
    row = {name: float(np.asarray(w).flat[0]) for name, w in _euler(solver, start, after).items()}
    moved, _ = answer(row["y"] * x + row["h0"] * slope, after)
    network.first = raw
    bend = size(moved - slope) / step
    largest = max(slope_size, bend)
    if not np.isfinite(largest):
        return solver.step
    if largest <= 1e-15:
        return min(max(1e-6, 1e-3 * step), rest)
    return min(100.0 * step, (0.01 / largest) ** (1.0 / solver.tableau.order), rest)


def _euler(solver: RungeKutta, start: Node, end: Node) -> dict[str, Any]:
    """Returns the row over y and the slope h0 of an Euler step."""
    scale, level = solver.level(start)
    new_scale, new_level = solver.level(end)
    return {"y": new_scale / scale, "h0": new_scale * (new_level - level)}


def for_each(result: Any, count: int) -> Any:
    """Returns the result of one shared run as that of `count` samples."""

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.expand(count).clone()

    names = ("nfe", "network_rows", "status", "accepted", "rejected", "forgotten")
    fields = {name: spread(getattr(result, name)) for name in names}
    return replace(result, x=result.x[0], outcomes=result.outcomes * count, **fields)
