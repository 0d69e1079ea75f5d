"""Plans whose stages call the network on two inputs at once."""

import numpy as np
import pytest
import torch
from tuning_problems import labelled

import diffast as df
from diffast.tuning.directions import PairedParameters, stages_of
from diffast.tuning.form import form_of
from diffast.tuning.levenberg import Runner
from diffast.tuning.pilots import Pilots, ids_of
from diffast.tuning.run import Rows, run

FREEDOM = ("levels", "weights", "times", "scale")


def parameters_of(network, calls):
    schedule, stages = network.schedule, len(stages_of(calls))
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, stages))
    return plan, PairedParameters(form_of(plan), network, FREEDOM, calls)


@pytest.mark.parametrize(
    ("calls", "stages"), [(1, [1]), (2, [1, 1]), (5, [1, 2, 2]), (8, [1, 2, 2, 2, 1])]
)
def test_calls_are_paired_after_the_first(calls, stages):
    assert stages_of(calls) == stages


@pytest.mark.parametrize("calls", [2, 3, 5, 6, 8])
@pytest.mark.parametrize("size", [0.0, 0.1])
def test_runs_of_learning_are_those_of_the_plan(calls, size):
    network = labelled(guidance=1.5)
    start, parameters = parameters_of(network, calls)
    drawn = np.random.default_rng(0).standard_normal(parameters.size)
    vector = torch.from_numpy(size * drawn)
    plan = parameters.form_at(vector).plan("paired")
    assert plan.nfe == calls
    ids, pilots = ids_of(4), Pilots(network, (5,), 0, torch.device("cpu"))
    rows, base = pilots.rows(ids), parameters.numbers(vector)
    wanted = df.sample(rows, plan, (4, 5)).x
    runner = Runner(parameters, pilots, 100)
    trace = runner.trace(ids, base)
    torch.testing.assert_close(trace.states[-1], wanted, rtol=0, atol=5e-6)
    if not size:  # the second calls count for nothing yet
        same = df.sample(rows, start, (4, 5)).x
        torch.testing.assert_close(wanted, same, rtol=0, atol=5e-6)
    units = 0.01 * torch.eye(parameters.size, dtype=torch.float64)
    others = [parameters.numbers(vector + unit) for unit in units]
    x = pilots.noise(ids, float(base.levels[0, 1]))
    for other, made in zip(others, runner.changed(ids, trace, base, others), strict=True):
        whole = run(Rows(rows, x), other)
        torch.testing.assert_close(made, whole, rtol=0, atol=5e-6)


def test_two_directions_are_better_than_one_call_a_stage(tmp_path):
    options = {"progress": False, "rows": 4096, "compare": (), "measured_grids": False}
    options |= {"iterations": 5, "batch": 32}
    network = labelled()
    freedom = ("levels", "weights")
    plain = df.tune(network, 3, (64, 5), freedom=freedom, **options)
    paired = df.tune(network, 5, (64, 5), freedom=(*freedom, "directions"), **options)
    assert paired.plan.times.shape == (3, 2)
    assert paired.error < plain.error
    paired.save(tmp_path / "plan.json")
    loaded = df.Plan.load(tmp_path / "plan.json")
    one, two = (df.sample(labelled(), p, (4, 5)).x for p in (paired.plan, loaded))
    assert torch.equal(one, two)


def test_stochastic_plans_have_one_direction():
    with pytest.raises(ValueError, match="'directions', but stochastic is True"):
        df.tune(labelled(), 5, (8, 5), stochastic=True, freedom=("directions",))
