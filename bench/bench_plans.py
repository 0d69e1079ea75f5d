"""Making a plan and lowering it, as a drop-in scheduler does when its number of steps is set.

A plan is built, checked, unrolled for its noise and frozen; lowered, it is multiplied out for a
network. Floor: what no builder can do without, alpha and sigma at the grid points and at the
stages' ends.
"""

import pytest

import diffast as df
from diffast.lowering import program

SCHEDULE = df.schedules.vp_linear()
READS = df.Prediction(SCHEDULE, "epsilon")
CASES = {
    "euler": 20,
    "dpmpp_2m": 20,
    "heun": 20,
    "unipc": 50,
    "dpmpp_sde": 20,
    "euler_ancestral": 50,
    "dopri5": 20,
    "lms": 1000,
    "dpmpp_2m_sde": 1000,
}


@pytest.mark.parametrize("name", CASES)
def test_plan(benchmark, measure, report, name):
    """Building and lowering, in turns."""
    grid = df.grids.karras(SCHEDULE, CASES[name])
    build = df.solvers.get(name)
    plan = build(SCHEDULE, grid)

    def lowered():
        program._lowered.clear()  # or the second time would be a look-up
        return program.lower(plan, READS)

    def levels():
        for times in (grid, grid):
            SCHEDULE.alpha(times), SCHEDULE.sigma(times)

    functions = {"build": lambda: build(SCHEDULE, grid), "lower": lowered, "levels": levels}
    timings = measure(functions)
    benchmark.pedantic(functions["build"], rounds=1, iterations=1)
    for kind in ("build", "lower"):
        microseconds = timings[kind].median * 1e6
        report(
            f"{kind} {name}, {CASES[name]} steps",
            {key: timings[key] for key in (kind, "levels")},
            **{"us": microseconds, "us a call": microseconds / plan.nfe},
        )
