"""Plans as tuning makes them in every executor: free levels, weights and told times."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stepwise_runs import run
from tuned_plans import tuned, two_inputs

import diffast as df

VP = df.schedules.vp_linear()
FLOW = df.schedules.flow()
EDM = df.schedules.edm(0.02, 20.0)
SHAPE = (3, 2, 4)


def network(x, t, label=None):
    out = torch.tanh(x * (1.0 + 0.3 * t.reshape(-1, 1, 1))) + 0.1 * x.roll(1, -1)
    return out if label is None else out + 0.2 * label.reshape(-1, 1, 1)


def denoiser_of(schedule, **options):
    return df.Denoiser(network, schedule, "flow" if schedule == FLOW else "v", **options)


def by_hand(plan, denoiser, x):
    """The plan's matrices in numpy, the network told the plan's times."""
    held, older = {"x": x.double().numpy()}, []
    for i in range(plan.stages):
        told = float(plan.times[i])
        columns = {"x": held["x"], **{f"h{k + 1}": entry for k, entry in enumerate(older)}}
        columns["d"] = denoiser.x0(torch.from_numpy(held["x"]), told).numpy()
        rows = {
            row: sum(w * columns[c] for c, w in zip(plan.columns, weights, strict=True) if w)
            for row, weights in zip(plan.rows, plan.matrix[i], strict=True)
        }
        older.insert(0, rows.get("h", 0.0))
        held["x"] = rows["x"]
    return torch.from_numpy(np.asarray(held["x"]))


@pytest.mark.parametrize("schedule", [VP, FLOW, EDM], ids=["vp", "flow", "edm"])
def test_every_executor_gives_the_samples_of_the_matrices(schedule, made):
    plan, denoiser = tuned(schedule), denoiser_of(schedule)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = noise * plan.initial_scale
    want = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(want, by_hand(plan, denoiser, x), rtol=1e-10, atol=1e-10)
    stepper = df.Stepper(plan, denoiser)
    assert torch.equal(run(stepper, *stepper.start(x), call=network).x, want)
    sampler = df.GraphSampler(denoiser, plan, SHAPE, dtype=torch.float64)
    assert torch.equal(sampler(x=x).x, want)
    parallel = df.sample_parallel(denoiser, plan, x=x, tol=0.0).x
    torch.testing.assert_close(parallel, want, rtol=1e-10, atol=1e-10)


def test_guidance_of_each_call_in_every_executor(made):
    scales = [1.0, 4.0, 0.0, 2.5, 3.0]
    plan = tuned(VP, guidance=scales)
    options = {"conditions": {"label": torch.ones(3)}, "unconditional": {"label": torch.zeros(3)}}
    denoiser = denoiser_of(VP, **options)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * plan.initial_scale
    want = df.sample(denoiser, plan, x=x).x
    # the same by a function of the time that the network is told
    by_time = dict(zip(plan.call_times.tolist(), scales, strict=True))
    other = denoiser_of(VP, **options, guidance=lambda t: by_time[t])
    assert torch.equal(df.sample(other, tuned(VP), x=x).x, want)
    assert torch.equal(df.GraphSampler(denoiser, plan, SHAPE)(x=x).x, want)
    parallel = df.sample_parallel(denoiser, plan, x=x, tol=0.0).x
    torch.testing.assert_close(parallel, want, rtol=1e-5, atol=1e-5)


def test_two_inputs_a_stage_run_in_df_sample_alone():
    plan, denoiser = two_inputs(VP), denoiser_of(VP)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)) * plan.initial_scale
    assert df.sample(denoiser, plan, x=x).x.isfinite().all()
    with pytest.raises(ValueError, match="Stepper: two inputs calls the network on 2 inputs at"):
        df.Stepper(plan, denoiser)


@pytest.mark.parametrize("name", ["sample", "sample_parallel", "GraphSampler", "Stepper"])
def test_a_path_where_a_plan_belongs_is_refused_with_the_call_that_loads_it(name):
    denoiser, made = denoiser_of(VP), getattr(df, name)
    call = {
        "GraphSampler": lambda plan: made(denoiser, plan, SHAPE),
        "Stepper": lambda plan: made(plan, denoiser),
    }.get(name, lambda plan: made(denoiser, plan, shape=SHAPE))
    sentence = rf"{name}: plan is the path 'plan.json', but .*df.Plan.load\('plan.json'\)"
    with pytest.raises(ValueError, match=sentence):
        call("plan.json")
    with pytest.raises(ValueError, match=f"{name}: plan is a dict, but a df.Plan is needed"):
        call({"format": "diffast plan"})
    with pytest.raises(ValueError, match=f"{name}: plan is a SimpleNamespace, .*: give its .plan"):
        call(SimpleNamespace(plan=tuned(VP)))  # what df.tune returns has one
