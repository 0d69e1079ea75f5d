"""The initial state of a run: normals at the plan's level, or a draw from its Gaussian law.

A law's draw and its entries are matrix products in float64, a few for each run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from diffast import ops
from diffast.executors import context
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.plans.gaussian import Gaussian
from diffast.plans.initial import Initial, deviations
from diffast.plans.registers import levels_of

# Means and bases on the device, by law: they are as large as d^2.
_on_device: WeakKeyDictionary[Gaussian, dict[str, tuple[torch.Tensor, torch.Tensor]]] = (
    WeakKeyDictionary()
)


_NO_LEVEL = (float("nan"), float("nan"))


class Origin(NamedTuple):
    """Where the runs of a plan start: what is kept of the plan, and who picks each sample's law.

    Attributes:
        name: of the plan.
        scale: deviation of the initial noise.
        level: (alpha, sigma) at the start; not looked up for plans without a law.
        initial: the plan's Gaussian law, or None.
        picked: the condition that picks each sample's law; None where there is one law.
    """

    name: str
    scale: float
    level: tuple[float, float]
    initial: Initial | None
    picked: Any


def origin_of(plan: Plan, conditions: Mapping[str, Any]) -> Origin:
    """Returns where the runs of a plan start, given the denoiser's conditions."""
    if plan.initial is None:
        return Origin(plan.name, plan.initial_scale, _NO_LEVEL, None, None)
    alpha, sigma = levels_of(plan.schedule, plan.start).tolist()
    by = plan.initial.law.by
    picked = None if by is None else conditions.get(by)
    return Origin(plan.name, plan.initial_scale, (alpha, sigma), plan.initial, picked)


def initial_state(
    denoiser: Denoiser,
    plan: Plan,
    shape: Sequence[int],
    *,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Returns the states that `df.sample` starts from, [B, ...] float32.

    They are noise of deviation sigma at the plan's start; or, for a plan of `Plan.late_start`,
    states of its Gaussian law made of the same noise. For loops of your own around `df.Stepper`.

    Args:
        denoiser: of the run; its conditions may pick each sample's law.
        plan: the plan that will be run.
        shape: [B, ...].
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        device: where to make them; default: the network's.

    Raises:
        ValueError: a plan for another schedule; samples of another shape than the law's; a
            condition that picks no law.
    """
    context.check_fits("initial_state", plan, denoiser)
    place = context.place_of("initial_state", denoiser, shape, None, device, seed, ids, None)
    state = place.empty()
    put_start("initial_state", state, None, origin_of(plan, denoiser.conditions), place)
    return state


def put_start(
    who: str, state: torch.Tensor, x: torch.Tensor | None, origin: Origin, place: context.Place
) -> None:
    """Writes the initial state [B, ...]: x, or noise, or the law's states for the same noise.

    Args:
        who: the public function, which messages begin with.
        state: is written to.
        x: the caller's state.
        origin: of the plan.
        place: shape, seed and ids of the run.

    Raises:
        ValueError: samples of another shape than the law's; a condition that picks no law.
    """
    if x is not None or origin.initial is None:
        context.put_initial(state, x, origin.scale, place)
        return
    ops.normal_out(place.ids, place.seed, ops.INITIAL_NOISE, 1.0, state)
    for law, rows in _samples(who, origin, tuple(state.shape), state.device):
        sizes = deviations(law, origin.level)
        noise = state[rows].double().reshape(-1, law.d)
        made = _product(law, noise, sizes[:-1], float(sizes[-1]))
        made += origin.level[0] * _parts(law, state.device)[0]
        state[rows] = made.reshape(state[rows].shape).to(state.dtype)


def entries_of(who: str, x: torch.Tensor, origin: Origin) -> list[torch.Tensor]:
    """Returns the entries [B, ...] that a plan starts with, the oldest first, given its states x.

    Raises:
        ValueError: as `put_start`.
    """
    initial = origin.initial
    if initial is None or not initial.entries:
        return []
    found = [torch.empty_like(x) for _ in range(initial.entries)]
    for law, rows in _samples(who, origin, tuple(x.shape), x.device):
        mean = _parts(law, x.device)[0]
        apart = x[rows].double().reshape(-1, law.d) - origin.level[0] * mean
        for entry, (offset, along, rest) in zip(
            found, initial.gains(law, origin.level), strict=True
        ):
            made = _product(law, apart, along, float(rest)) + offset * mean
            entry[rows] = made.reshape(x[rows].shape).to(x.dtype)
    return found


def _product(law: Gaussian, v: torch.Tensor, along: np.ndarray, rest: float) -> torch.Tensor:
    """Returns rows v [B, d] times the symmetric matrix of the law's axes with these eigenvalues."""
    _, basis = _parts(law, v.device)
    gains = torch.as_tensor(along - rest, device=v.device)
    return rest * v + ((v @ basis.T) * gains) @ basis


def _parts(law: Gaussian, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and basis of a law on a device, float64."""
    kept = _on_device.setdefault(law, {})
    if str(device) not in kept:
        kept[str(device)] = (
            torch.tensor(law.mean, device=device),
            torch.tensor(law.basis, device=device),
        )
    return kept[str(device)]


def _samples(
    who: str, origin: Origin, shape: tuple[int, ...], device: torch.device
) -> list[tuple[Gaussian, torch.Tensor | slice]]:
    """Returns (law, which samples are its own) for each law that a batch needs."""
    assert origin.initial is not None
    law, batch = origin.initial.law, shape[0]
    if shape[1:] != law.shape and not (law.shape == (1,) and shape[1:] == ()):
        raise ValueError(
            f"{who}: the plan starts from a law of samples {list(law.shape)}, but the samples are "
            f"{list(shape[1:])}"
        )
    if law.by is None:  # a view of all samples, not a gathered copy
        return [(law.laws[0], slice(None))] if batch else []
    picked = origin.picked
    if not isinstance(picked, torch.Tensor) or picked.is_floating_point() or picked.is_complex():
        kind = f"a tensor of {picked.dtype}" if isinstance(picked, torch.Tensor) else repr(picked)
        raise ValueError(
            f"{who}: the plan's law is picked by the condition {law.by!r}, a tensor of whole "
            f"numbers, but it is {kind}"
        )
    values = picked.reshape(-1).cpu()
    if values.numel() not in (1, batch):
        raise ValueError(
            f"{who}: the plan's law is picked by the condition {law.by!r}, but it has "
            f"{values.numel()} values for {batch} samples"
        )
    values = values.expand(batch)
    wrong = [v for v in values.unique().tolist() if not 0 <= v < len(law.laws)]
    if wrong:
        raise ValueError(
            f"{who}: {law.by} = {wrong[0]}, but the plan has laws for 0 to {len(law.laws) - 1}"
        )
    return [
        (law.laws[v], (values == v).nonzero()[:, 0].to(device)) for v in values.unique().tolist()
    ]
