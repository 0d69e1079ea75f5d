"""The table against new measurements: its rows on closed forms, beside standard plans."""

import importlib
import sys

import numpy as np
import pytest
from places import ROOT

import diffast as df
from diffast.planning.table import table

# Kind -> numbers of calls that are measured again.
AGAIN = {"flow": (5, 10), "ve": (5, 10), "vp": (5, 10)}


@pytest.fixture(scope="module")
def problems():
    """The closed forms of the programs that made the table."""
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module("bench.networks.problems")
    finally:
        sys.path.remove(str(ROOT))


def error_of(problem, plan):
    schedule, start = problem.schedule, np.float64(problem.schedule.t_start)
    whole = float(schedule.alpha(start) + schedule.sigma(start))
    return problem.error(df.sample(problem.denoiser, plan, x=(problem.start * whole).float()).x)


@pytest.mark.parametrize("kind", AGAIN)
def test_rows_have_the_errors_that_the_table_says(problems, kind):
    closed = problems.closed_forms(kind)
    for calls in AGAIN[kind]:
        row = table()["rows"][kind][str(calls)]["measured"]
        for problem in closed:
            plan = df.plan(problem.denoiser, calls)
            assert "learned" in plan.name
            assert plan.nfe == calls
            # float32 in another order of sums, and weights of seven digits
            assert error_of(problem, plan) == pytest.approx(row[problem.name][0], rel=0.02)


@pytest.mark.parametrize("kind", AGAIN)
def test_rows_beat_usual_plans_on_problems_they_were_not_learned_on(problems, kind):
    """Other mixtures: five Gaussians in 3 dimensions, other samples."""
    import torch

    generator = torch.Generator().manual_seed(77)
    means = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    field = problems.mixture(means, torch.tensor([0.04, 0.09, 0.02], dtype=torch.float64))
    schedule = {"flow": problems.FLOW, "ve": problems.VE, "vp": problems.VP}[kind]
    new = problems.Problem("new", kind, schedule, field, (256, 3), seed=8)
    for calls in (5, 10):
        usual = [
            df.solvers.dpmpp_2m(schedule, df.grids.default(schedule, calls)),
            df.solvers.unipc(schedule, df.grids.default(schedule, calls)),
            df.solvers.euler(schedule, df.grids.default(schedule, calls)),
        ]
        least = min(error_of(new, plan) for plan in usual)
        assert error_of(new, df.plan(new.denoiser, calls)) < least
