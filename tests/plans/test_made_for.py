"""Plans with a guidance scale of each call, and with what they were made for."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

import diffast as df
from diffast.lowering.program import lower
from diffast.model.fingerprint import fingerprint

SCHEDULE = df.schedules.vp_linear()
PLAN = df.solvers.dpmpp_2m(SCHEDULE, df.grids.uniform_time(SCHEDULE, 4, start=0.9))
SHIFT = torch.full((3, 1), 0.3)


def network(x, t, shift=0.0):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def guided(guidance=1.7, call=network):
    both = {"conditions": {"shift": SHIFT}, "unconditional": {"shift": -SHIFT}}
    return df.Denoiser(call, SCHEDULE, predicts="v", guidance=guidance, **both)


def planned(scales, **fields):
    return dataclasses.replace(PLAN, guidance=scales, **fields)


def tuned(call=None, guidance=1.0, predicts="epsilon"):
    made = {"predicts": predicts, "network": fingerprint(call), "guidance": guidance}
    return dataclasses.replace(PLAN, made_for=made)


@pytest.mark.parametrize("clamp", [None, (-0.4, 0.5)])
def test_a_plans_scales_replace_the_denoisers(clamp):
    by_time = dict(zip(PLAN.call_times.tolist(), [0.5, 1.0, 2.5, 0.0], strict=True))
    one = df.sample(guided(9.0), planned([*by_time.values()]), (3, 1), clamp=clamp).x
    two = df.sample(guided(by_time.get), PLAN, (3, 1), clamp=clamp).x
    assert torch.equal(one, two)
    assert not torch.equal(one, df.sample(guided(9.0), PLAN, (3, 1), clamp=clamp).x)


def test_a_scale_of_one_saves_the_unconditional_call():
    program = lower(planned([3.0, 1.0, 1.0, 0.0]), guided())
    assert [stage.branches for stage in program.stages] == ["both", "cond", "cond", "uncond"]


def test_other_executors_read_the_scales_too():
    plan, denoiser = planned([0.5, 1.0, 2.5, 3.0]), guided(9.0)
    wanted = df.sample(denoiser, plan, (3, 1), seed=5).x
    found = df.sample_parallel(denoiser, plan, (3, 1), seed=5, tol=0.0).x
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    start = df.ops.normal((3, 1), seed=5, scale=plan.initial_scale)
    wanted = df.sample(denoiser, plan, x=start).x
    stepper = df.Stepper(plan, denoiser)
    state, x, t = stepper.start(start)
    while not stepper.done(state):
        outputs = network(x, t, SHIFT), network(x, t, -SHIFT)
        state, x, t = stepper.step(state, outputs)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("scales", "facts"),
    [
        ([1.0, 2.0], r"guidance has shape \[2\], but it must be \[4\]"),
        ([1.0, 2.0, np.nan, 1.0], "stage 2: guidance = nan for x, but it must be finite"),
        ([1.0, 2.0, np.inf, 1.0], "stage 2: guidance = inf for x, but it must be finite"),
    ],
)
def test_scales_that_do_not_fit_are_refused(scales, facts):
    with pytest.raises(ValueError, match=facts):
        planned(scales)


def test_a_scale_where_no_call_is_made_is_refused():
    plan = df.solvers.churn(df.schedules.edm(), [70.0, 1.0, 0.0], s_churn=0.2, base="euler")
    assert plan.nfe < plan.stages
    with pytest.raises(ValueError, match="the stage does not call the network"):
        dataclasses.replace(plan, guidance=np.ones(plan.stages))


def test_scales_need_an_unconditional_branch():
    plain = df.Denoiser(network, SCHEDULE, predicts="v")
    with pytest.raises(ValueError, match="the plan gives a guidance scale of 2, but there are no"):
        df.sample(plain, planned([1.0, 2.0, 1.0, 1.0]), (3, 1))
    df.sample(plain, planned([1.0] * 4), (3, 1))


def test_a_loop_that_applies_guidance_itself_is_refused():
    with pytest.raises(ValueError, match="guidance scale of its own for each call"):
        df.Stepper(planned([1.0, 2.0, 1.0, 1.0]), df.Prediction(SCHEDULE, "v"))


@pytest.mark.parametrize("kind", [".json", ".npz"])
def test_the_fields_come_back_from_a_file(kind, tmp_path):
    plan = planned([1.0, 2.0, 1.5, 0.0], made_for={"predicts": "v", "measured": {"a": [1 / 3]}})
    plan.save(tmp_path / f"plan{kind}")
    loaded = df.Plan.load(tmp_path / f"plan{kind}")
    assert loaded.guidance.tobytes() == plan.guidance.tobytes()
    assert loaded.made_for == plan.made_for
    assert plan.made_for["digest"]


def test_a_consistent_edit_of_a_tuned_file_is_refused(tmp_path):
    """The self-check cannot see an edit that keeps the sums; the digest can."""
    path = tmp_path / "plan.json"
    dataclasses.replace(PLAN, made_for={"predicts": "v"}).save(path)
    body = json.loads(path.read_text())
    body["times"][1] += 1e-9  # told times are free
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="made_for was written for numbers with the digest"):
        df.Plan.load(path)
    del body["made_for"]
    path.write_text(json.dumps(body))
    assert df.Plan.load(path).made_for is None


def test_a_file_of_version_3_is_read(tmp_path):
    path = tmp_path / "plan.json"
    PLAN.save(path)
    body = json.loads(path.read_text()) | {"version": 3}
    path.write_text(json.dumps(body))
    assert df.Plan.load(path).matrix.tobytes() == PLAN.matrix.tobytes()


@pytest.mark.parametrize("made_for", ["text", {"a": float("nan")}, {"a": object()}])
def test_provenance_that_json_cannot_hold_is_refused(made_for):
    with pytest.raises(ValueError, match="made_for"):
        dataclasses.replace(PLAN, made_for=made_for)


# --- plan and denoiser ----------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self, weight=0.3, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((7, 5), weight, dtype=dtype))
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, x, t):
        return self.weight[0, 0] * x


def test_another_prediction_type_is_refused():
    net = Net()
    with pytest.raises(ValueError, match="predicts 'epsilon', but the denoiser's predicts 'v'"):
        df.sample(df.Denoiser(net, SCHEDULE, predicts="v"), tuned(net), (2, 3))


def test_another_network_is_warned_of_once():
    plan, net, other = tuned(Net()), Net(), Net(0.31)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.sample(df.Denoiser(net, SCHEDULE, predicts="epsilon"), plan, (2, 3))
        df.sample(df.Denoiser(lambda x, t: x, SCHEDULE, predicts="epsilon"), plan, (2, 3))
    denoiser = df.Denoiser(other, SCHEDULE, predicts="epsilon")
    with pytest.warns(UserWarning, match="was made for a network with the fingerprint"):
        df.sample(denoiser, plan, (2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.sample(denoiser, plan, (2, 3))


def test_another_guidance_is_warned_of():
    plan = dataclasses.replace(PLAN, made_for={"predicts": "v", "guidance": 1.3})
    with pytest.warns(UserWarning, match="made for guidance 1.3, but the denoiser's guidance is 2"):
        df.sample(guided(2.0), plan, (3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.sample(guided(1.3), plan, (3, 1))


def test_another_guidance_is_warned_of_where_the_plan_has_its_own_scales():
    plan = planned([1.0, 2.0, 2.0, 1.0], made_for={"predicts": "v", "guidance": 1.3})
    with pytest.warns(UserWarning, match="scale of its own .*, and the denoiser's is not used"):
        df.sample(guided(7.5), plan, (3, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.sample(guided(1.3), plan, (3, 1))


def test_a_file_whose_digest_was_taken_out_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    dataclasses.replace(PLAN, made_for={"predicts": "v"}).save(path)
    body = json.loads(path.read_text())
    del body["made_for"]["digest"]
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match="made_for has no digest"):
        df.Plan.load(path)


def test_the_fingerprint_sees_values_shapes_and_dtypes():
    own = fingerprint(Net())
    assert own == fingerprint(Net())
    assert own == fingerprint(df.Denoiser.from_velocity(Net()).network)
    assert len({own, fingerprint(Net(0.31)), fingerprint(Net(0.3, torch.bfloat16))}) == 3
    transposed = Net()
    transposed.weight = torch.nn.Parameter(torch.full((5, 7), 0.3).T)
    assert fingerprint(transposed) == own
    assert fingerprint(lambda x, t: x) is None
    assert fingerprint(torch.nn.Identity()) is None


def test_the_fingerprint_of_a_network_without_memory_is_that_of_its_shapes():
    assert fingerprint(Net().to("meta")) != fingerprint(Net())
