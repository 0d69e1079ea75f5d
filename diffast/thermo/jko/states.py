"""The states of a sampler at the ends of its steps: of a plan's run, or stored by the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.executors.initial import initial_state
from diffast.executors.results import Progress
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.plans.places import Place, places
from diffast.plans.registers import Z1, Z2, X, Y, levels_of

# Fewest samples for standard errors that a normal law describes.
FEWEST = 50

Level = tuple[float, float]


class Run(NamedTuple):
    """States of a run, from noise to data.

    Attributes:
        states: K+1 tensors [n, ...].
        times: [K+1] falling model times.
        levels: K+1 pairs (alpha, sigma).
        higher_order: whether a step may read more than the estimate at its start.
    """

    states: list[torch.Tensor]
    times: np.ndarray
    levels: list[Level]
    higher_order: bool


def states_of(
    who: str,
    denoiser: Denoiser,
    plan: Plan | None,
    shape: Sequence[int] | None,
    x: torch.Tensor | None,
    seed: int,
    batches: Sequence[torch.Tensor] | None,
    times: Sequence[float] | None,
    eta: float,
) -> Run:
    """Returns the states of a plan's run, or the given ones; see `audit` for the arguments.

    Raises:
        TypeError: a plan and batches together, or neither; batches without times.
        ValueError: eta <= 0; plans that `audit` refuses; times that do not fall, or do not count
            the batches.
    """
    if (plan is None) == (batches is None):
        raise TypeError(f"{who}: give a plan, or batches and times")
    if not 0 < eta < float("inf"):
        raise ValueError(f"{who}: eta = {eta}, but only a sampler with noise has a temperature")
    if plan is not None:
        return _run(who, denoiser, plan, shape, x, seed)
    if times is None:
        raise TypeError(f"{who}: batches are given, but not their times")
    at, given = np.asarray(times, dtype=np.float64), list(() if batches is None else batches)
    if len(given) != at.size or at.size < 2:
        raise ValueError(
            f"{who}: {len(given)} batches and {at.size} times, but one time a batch is needed, and "
            "2 batches or more"
        )
    if not (np.diff(at) < 0).all():
        k = int(np.argmin(np.diff(at) < 0))
        raise ValueError(
            f"{who}: times[{k}] = {at[k]:g} is followed by {at[k + 1]:g}, but falling times are "
            "needed, from noise to data"
        )
    schedule = denoiser.schedule
    levels = [(float(schedule.alpha(t)), float(schedule.sigma(t))) for t in at.tolist()]
    return Run([torch.as_tensor(state) for state in given], at, levels, True)


def is_step(level: Level, after: Level) -> bool:
    """Returns whether noise is taken away between two levels, and some is left."""
    return after[1] > 0 and after[0] * level[1] > level[0] * after[1] * (1 + 1e-12)


def check_states(who: str, states: list[torch.Tensor], same: bool = True) -> None:
    """Refuses states that are too few, not finite, or not those of the same particles.

    Raises:
        ValueError: naming the batch.
    """
    first = states[0].shape
    for k, state in enumerate(states):
        if state.shape[1:] != first[1:] or (same and state.shape != first):
            raise ValueError(
                f"{who}: batch {k} has shape {list(state.shape)}, but batch 0 {list(first)}: "
                + ("the same particles are" if same else "the same shape of a sample is")
                + " needed in all"
            )
        if not bool(state.isfinite().all()):
            raise ValueError(f"{who}: batch {k} is not finite")
        if len(state) < FEWEST:
            raise ValueError(
                f"{who}: {len(state)} samples, but {FEWEST} are needed for standard errors that "
                "mean something"
            )


def _run(who: str, denoiser: Denoiser, plan: Plan, shape: Any, x: Any, seed: int) -> Run:
    if not plan.stochastic:
        raise ValueError(f"{who}: {plan.name} draws no noise: a plan of an ODE has no temperature")
    if len(plan.evaluations) != plan.stages or _puts_noise_back(plan):
        raise ValueError(
            f"{who}: {plan.name} puts noise back between its steps, which is no step of the "
            "reverse process"
        )
    if x is None:
        if shape is None:
            raise ValueError(f"{who}: a plan needs the shape [n, ...] of the state, or x")
        x = initial_state(denoiser, plan, tuple(shape), seed=seed)
    held = {0: x}

    def keep(progress: Progress) -> None:
        held[progress.stage + 1] = progress.x.clone()

    ends = _with_visits(plan, places(who, plan))
    sample(denoiser, plan, x=x, seed=seed, callback=keep)
    return Run(
        [held[place.before] * place.scale for place in ends],
        np.array([place.time for place in ends]),
        [place.level for place in ends],
        plan.history > 0 or len(plan.step_starts()) < plan.nfe or "v" in plan.rows,
    )


def _puts_noise_back(plan: Plan) -> bool:
    """Returns whether a stage's fresh noise leads to a higher noise level, as that of churn."""
    draws = np.zeros(plan.stages, dtype=bool)
    for row in plan.rows:
        draws |= (plan.weights(row, Z1) != 0.0) | (plan.weights(row, Z2) != 0.0)
    begin, end = np.moveaxis(levels_of(plan.schedule, plan.spans), 1, 0)  # (alpha, sigma) each
    rises = end[:, 1] * begin[:, 0] > begin[:, 1] * end[:, 0] * (1.0 + 1e-9)
    return bool((draws & rises).any())


def _with_visits(plan: Plan, ends: list[Place]) -> list[Place]:
    """Returns the places, and those at which a corrector begins a visit at a level.

    `places` names the end of a visit alone. A step ends where the visit begins.
    """
    x = plan.matrix[:, plan.rows.index(X)]
    level = plan.levels[:, plan.rows.index(X)]
    joined = np.ones(plan.stages, dtype=bool)
    if Y in plan.rows:
        joined = np.all(plan.matrix[:, plan.rows.index(Y)] == x, axis=1)
    found = ends[:1]
    for before, end in pairwise(ends):
        for i in range(before.before, end.before - 1):
            if joined[i] and np.allclose(level[i] * end.scale, end.level, rtol=1e-9, atol=0.0):
                found.append(replace(end, before=i + 1))
                break
        found.append(end)
    return found
