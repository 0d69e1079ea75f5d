"""Late starts on mixtures of one dimension: the level that serves best, and the certificate there.

    python bench/late_start_mixtures.py --out bench/results/late_start_mixtures.jsonl

The error is the rms distance to the exact flow, over the deviation of the data. In one dimension
the flow keeps quantiles, so that it is exact. "cold" starts with nothing remembered. "warm" is a
plan with three more steps in front, cut by `Plan.late_start`: the Gaussian fills in what it
remembers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffast as df
from diffast import ops
from diffast.thermo import Certificate, Gaussian, GaussianMixture

MIXTURES = {
    "two narrow modes": GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.01),
    "two modes": GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09),
    "skewed": GaussianMixture([0.8, 0.2], [-1.0, 2.0], 0.09),
}
SOLVERS: dict[str, Callable[..., df.Plan]] = {
    "ddim": df.solvers.ddim,
    "dpmpp_2m": df.solvers.dpmpp_2m,
    "adams(2)": lambda s, g: df.solvers.adams(s, g, order=2),
}
GRIDS = {"karras": df.grids.karras, "even": df.grids.even}
LEVELS = np.geomspace(20.0, 0.4, 12)
CALLS = (3, 5, 8, 16)
COUNT = 400


def law_of(mixture: GaussianMixture) -> Gaussian:
    return Gaussian(mixture.mean.numpy(), np.zeros((0, 1)), [], float(mixture.covariance))


def exact(mixture: GaussianMixture, share: np.ndarray) -> np.ndarray:
    """Returns the quantiles of the data."""
    x = torch.linspace(-5.0, 6.0, 220_001, dtype=torch.float64)
    density = mixture.log_density(x[:, None]).exp()
    below = (density.cumsum(0) - 0.5 * density) * (x[1] - x[0])
    return np.interp(share, below.numpy(), x.numpy())


def with_history(schedule: df.schedules.Schedule, grid: np.ndarray) -> np.ndarray:
    """Returns the grid (sigma) with three levels in front, of the first step's ratio."""
    ratio = min(grid[0] / grid[1], 4.0) if grid[1] > 0 else 2.0
    front = grid[0] * ratio ** np.arange(3, 0, -1)
    return np.append(front[front < schedule.t_start], grid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    schedule = df.schedules.edm(sigma_max=2000.0)
    z = ops.normal((COUNT, 1), seed=0, stage=ops.INITIAL_NOISE, ids=torch.arange(COUNT)).double()
    share = torch.distributions.Normal(0.0, 1.0).cdf(z)[:, 0].numpy()
    rows = []
    for name, mixture in MIXTURES.items():
        law, wanted = law_of(mixture), exact(mixture, share)
        known = Certificate.of_loss(mixture.mmse, law, np.geomspace(40.0, 0.3, 120))
        denoiser, spread = mixture.denoiser(schedule), float(mixture.covariance) ** 0.5

        def error(plan: df.Plan, level: float) -> float:
            x = float(law.mean[0]) + (law.rest + level**2) ** 0.5 * z  # noqa: B023
            given: dict[str, Any] = {} if plan.initial is not None else {"x": x.float()}
            made = df.sample(denoiser, plan, (COUNT, 1), check=False, **given).x[:, 0]  # noqa: B023
            gap = made.double().numpy() - wanted  # noqa: B023
            return float(np.sqrt((gap**2).mean())) / spread  # noqa: B023

        for solver, build in SOLVERS.items():
            for grid, times in GRIDS.items():
                for calls in CALLS:
                    full = build(schedule, times(schedule, calls, sigma_max=80.0))
                    row = {"mixture": name, "solver": solver, "grid": grid, "calls": calls}
                    row |= {"full": error(full, 80.0), "late": []}
                    for level in LEVELS.tolist():
                        some = times(schedule, calls, sigma_max=level)
                        cold = error(build(schedule, some), level)
                        warm = build(schedule, with_history(schedule, some))
                        warm = warm.late_start(law, level=level)
                        row["late"].append(
                            {"level": level, "kl": known.kl(level).value, "cold": cold}
                            | {"warm": error(warm, level)}
                        )
                    rows.append(row)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    best = min(row["late"], key=lambda one: one["warm"])
                    print(name, solver, grid, calls, f"{row['full']:.4f}", best, flush=True)


if __name__ == "__main__":
    main()
