"""The part of a profile that runs the sampler: what a wrong start costs, how far samples are."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch

from diffast.executors.sequential import sample
from diffast.plans import Plan
from diffast.plans.gaussian import Gaussian
from diffast.thermo.bound import speed_accuracy
from diffast.thermo.distances import wasserstein1
from diffast.thermo.estimate import Estimate, FewSamplesWarning
from diffast.tuning.pilots import Pilots, pieces

# How far the wrong start lies, in deviations of the noise: chi-square e - 1.
MOVED = 1.0
# Groups of the jackknife of W1.
GROUPS = 8


def most_samples(d: int) -> int:
    """Returns how many samples of d elements a run is made of: 128, up to 2,048 of few elements."""
    return max(128, min(2048, (1 << 16) // d))


def wrong_start(
    pilots: Pilots,
    plan: Plan,
    law: Gaussian,
    places: torch.Tensor,
    rows: int,
    dtype: torch.dtype,
    c_2: float,
    notes: list[str],
) -> tuple[dict[str, Any], torch.Tensor]:
    """Returns (eta, c_1 and chi_square as fields, the samples of the right start on the CPU).

    Two runs from the same normals, one of them moved by one deviation of the noise along the
    direction in which the data vary most. The path is the network's own, so its errors cancel.

    Args:
        pilots: the network, and the conditions of each sample.
        plan: a plan without fresh noise.
        law: mean and covariance of the data.
        places: [n] int64, rows of the conditions, and ids.
        rows: most rows of a network call.
        dtype: of the states.
        c_2: of the schedule's path.
        notes: told what was left out.

    Raises:
        ValueError: a plan with fresh noise, or one that starts from a Gaussian law of the data.
    """
    if plan.stochastic:
        raise ValueError(
            f"The plan {plan.name} draws noise, but the relation is that of the probability flow."
        )
    if plan.initial is not None:
        raise ValueError(
            f"The plan {plan.name} starts from a Gaussian law of the data, but the relation is for "
            "a start from noise."
        )
    sigma = float(plan.schedule.sigma(plan.start))
    axis = law.basis[0] if len(law.basis) else np.eye(1, law.d)[0]
    shift = MOVED * sigma * torch.as_tensor(axis.copy()).reshape(pilots.shape)
    true, made = [], []
    for part in pieces(len(places), rows):
        ids = places[part]
        start = sigma * pilots.noise(ids, 1.0).to(dtype)
        own = pilots.rows(ids)
        true.append(_states(own, plan, start, ids, pilots))
        made.append(_states(own, plan, start + shift.to(start), ids, pilots))
    right, wrong = (
        [torch.cat(parts) for parts in zip(*runs, strict=True)] for runs in (true, made)
    )
    ends = right[-1]
    times = _times(plan)
    if times is None or len(times) != len(right):
        notes.append(
            f"The states of {plan.name} between its ends lie on no path of the schedule: c_1 is "
            "taken between start and end alone, where it is eta."
        )
        right, wrong = [right[0], right[-1]], [wrong[0], wrong[-1]]
        times = np.array([plan.start, plan.end], dtype=np.float64)
    chi_square = math.expm1(MOVED**2)
    word = pilots.seed & 0x7FFFFFFF
    with warnings.catch_warnings():  # the profile warns itself
        warnings.simplefilter("ignore", FewSamplesWarning)
        found = speed_accuracy(right, wrong, times, chi_square, c_2, seed=word)
    fields = {
        "eta": found.eta,
        "c_1": found.c_1,
        "chi_square": Estimate(chi_square, 0.0, 0),
    }
    return fields, ends


def distances(made: torch.Tensor, data: torch.Tensor, seed: int) -> dict[str, Estimate]:
    """Returns W1 of samples to data, and of data to other data, as fields.

    Both have as many samples on each side, because W1 of few samples is too large. Exact for one
    element, else sqrt(d) times the sliced W1.

    Args:
        made: generated samples [n, ...].
        data: [N, ...]; the first n belong to the same conditions.
        seed: of the directions.
    """
    n = min(len(made), len(data) // 2)
    if n < GROUPS:
        return {}
    word = seed & 0x7FFFFFFF
    first, other = data[:n], data[n : 2 * n]
    return {"w1_end": _w1(made[:n], first, word), "w1_floor": _w1(first, other, word)}


def _w1(a: torch.Tensor, b: torch.Tensor, seed: int) -> Estimate:
    scale = math.sqrt(a[0].numel())
    group = torch.arange(len(a)) % GROUPS
    whole = scale * wasserstein1(a, b, seed=seed)
    left = [scale * wasserstein1(a[group != k], b[group != k], seed=seed) for k in range(GROUPS)]
    spread = float(np.square(np.array(left) - np.mean(left)).sum())
    return Estimate(whole, math.sqrt((GROUPS - 1) / GROUPS * spread), len(a))


def _states(own, plan, start, ids, pilots) -> list[torch.Tensor]:
    """Returns the states of a run, from its start to its samples, on the CPU."""
    kept = [start.cpu()]
    run = sample(
        own,
        plan,
        x=start,
        ids=ids,
        seed=pilots.seed,
        device=pilots.device,
        callback=lambda progress: kept.append(progress.x.detach().cpu().clone()),
    )
    return [*kept[:-1], run.x.cpu()]


def _times(plan: Plan) -> np.ndarray | None:
    """Returns the model times of a run's states; None where they are not on the schedule's path."""
    level = plan.levels[:, list(plan.rows).index("x")]
    with np.errstate(divide="ignore"):
        lam = np.log(level[:, 0]) - np.log(level[:, 1])
    try:
        times = np.asarray(plan.schedule.time(lam), dtype=np.float64)
    except ValueError:
        return None
    times = np.concatenate([np.array([plan.start], dtype=np.float64), times])
    wanted = np.stack([plan.schedule.alpha(times[1:]), plan.schedule.sigma(times[1:])], 1)
    on_path = np.allclose(wanted, level, rtol=1e-6, atol=1e-9)
    return times if on_path and (np.diff(times) < 0).all() else None
