"""Writes results/conditions_peers.json: MMPS here and in azula, each at its best, at equal calls.

    python bench/measure_conditions_peers.py        # needs azula >= 0.11

The problem is that of measure_conditions.py. The rule is the same in both: moment matching with 6
iterations, which is exact on it, so that samplers, grids and schedules make the difference. Each
side has the best of its own at every number of network calls: azula five schedules and its
deterministic samplers of orders 1 to 3, this package nine solvers on three grids of three
schedules, and the plans of `df.plan`.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
from azula import noise, sample
from azula.denoise import Denoiser, DiracPosterior
from azula.guidance.mmps import MMPSDenoiser
from azula.linalg.covariance import IsotropicCovariance
from measure_conditions import (
    COVARIANCE,
    DIMENSION,
    F64,
    MEAN,
    NOISE,
    SAMPLES,
    Y,
    distance,
    measure,
    network,
    numbers,
)

import diffast as df

WRITTEN = Path(__file__).parent / "results" / "conditions_peers.json"
SCHEDULES = ("VPSchedule", "CosineSchedule", "RectifiedSchedule", "DecaySchedule", "VESchedule")
MULTISTEP = ("zABSampler", "vABSampler", "zEABSampler", "xEABSampler", "REABSampler")
VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)


class Exact(Denoiser):
    """E[x0 | x] of the data, in azula's interface."""

    def __init__(self, schedule: noise.Schedule):
        """Takes the schedule."""
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, **_) -> DiracPosterior:
        """Returns the estimate."""
        a, s = self.schedule(t)
        gain = a * VALUES / (a * a * VALUES + s * s)
        return DiracPosterior(MEAN + ((x_t - a * MEAN) @ VECTORS * gain) @ VECTORS.T)


def azula(calls: int, iterations: int) -> tuple[float, str]:
    """Returns the least distance of azula's samplers, and which one has it."""
    found = []
    for name in SCHEDULES:
        schedule = getattr(noise, name)()
        noisy = IsotropicCovariance(torch.tensor(NOISE**2, dtype=F64))
        guided = MMPSDenoiser(Exact(schedule), Y, measure, noisy, "cg", iterations)
        options = {"steps": calls, "silent": True, "dtype": F64}
        kinds = [("DDIMSampler", {})]
        kinds += [(kind, {"order": order}) for kind, order in product(MULTISTEP, (2, 3))]
        if not calls % 2:
            kinds.append(("HeunSampler", {"steps": calls // 2}))
        for kind, more in kinds:
            sampler = getattr(sample, kind)(guided, **(options | more))
            start = float(schedule.sigma(torch.ones((), dtype=F64)))
            try:
                made = sampler(start * numbers(SAMPLES, DIMENSION, seed=7))
            except (RuntimeError, ValueError):
                continue
            found.append((distance(made), f"{name}, {kind} {more or ''}".strip()))
    return min(found)


def ours(calls: int, iterations: int) -> tuple[float, str]:
    """Returns the least distance of this package's solvers, and which one has it."""
    term = df.guidance.mmps(measure, Y, NOISE, iterations=iterations)
    found = []
    for name in ("vp_linear", "trig", "flow"):
        schedule = getattr(df.schedules, name)()
        denoiser = df.Denoiser(network(MEAN, COVARIANCE, schedule), schedule, "x0", guides=[term])
        plans = {"df.plan": df.plan(denoiser, calls)}
        for grid in ("uniform_time", "uniform_flow", "default"):
            times = getattr(df.grids, grid)(schedule, calls)
            for solver in ("euler", "dpmpp_2m", "dpmpp_3m", "unipc", "deis"):
                plans[f"{solver}, {grid}"] = getattr(df.solvers, solver)(schedule, times)
            for order, clock in product((2, 3), ("flow", "arctan")):
                made = df.solvers.adams(schedule, times, order=order, clock=clock)
                plans[f"adams {order} {clock}, {grid}"] = made
        x = numbers(SAMPLES, DIMENSION, seed=7)
        for shown, plan in plans.items():
            start = plan.initial_scale * x
            made = df.sample(denoiser, plan, x=start, throw=False).x
            found.append((distance(made), f"{name}, {shown}"))
    return min(found)


def main() -> None:
    """Measures and writes."""
    torch.set_num_threads(1)
    rows = {}
    for iterations, calls in product((6, 1), (5, 10)):
        (a, theirs), (b, own) = azula(calls, iterations), ours(calls, iterations)
        row = {"azula": a, "azula's": theirs, "diffast": b, "diffast's": own}
        rows[f"{calls} calls, {iterations} iterations"] = row
        print(calls, iterations, f"azula {a:.3f} ({theirs})  diffast {b:.3f} ({own})", flush=True)
        WRITTEN.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
