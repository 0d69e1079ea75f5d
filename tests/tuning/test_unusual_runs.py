"""Unusual runs of `df.tune`: resumed with something else, noisy, long, of whole times."""

import json
import warnings

import numpy as np
import pytest
import torch
from tuning_problems import denoiser, labelled

import diffast as df
from diffast.model.fingerprint import fingerprint
from diffast.tuning.candidates import whole_grid

SMALL = {"progress": False, "compare": (), "measured_grids": False, "iterations": 1, "starts": 1}


def tune(network, calls=3, shape=(8, 5), **options):
    return df.tune(network, calls, shape, **(SMALL | options))


def told(share):
    """A network without parameters, so that nothing tells it from another one."""
    return df.Denoiser(lambda x, t: share * torch.tanh(x), df.schedules.edm(), "x0")


GUIDED = {
    "conditions": {"labels": torch.tensor([0])},
    "unconditional": {"labels": torch.tensor([3])},
}


def guided(scale):
    network = labelled().network
    return df.Denoiser(network, df.schedules.edm(), "x0", guidance=scale, **GUIDED)


def custom(power):
    schedule = df.schedules.from_functions(lambda t: 1 - t**power, lambda t: t**power)
    return df.Denoiser(lambda x, t: 0.5 * torch.tanh(x), schedule, "x0")


@pytest.mark.parametrize(
    ("before", "now", "fact"),
    [
        pytest.param((told(0.5), {}), (told(0.6), {}), "network, conditions", id="network"),
        pytest.param(
            (labelled(), {"conditions": lambda ids: {"labels": ids % 4}}),
            (labelled(), {"conditions": lambda ids: {"labels": (ids + 1) % 4}}),
            "network, conditions",
            id="conditions",
        ),
        pytest.param(
            (labelled(), {"features": lambda x: x}),
            (labelled(), {"features": lambda x: x**3}),
            "features gave other numbers",
            id="features",
        ),
        pytest.param(
            (guided(lambda t: 2.0 if t < 5 else 1.0), {}),
            (guided(lambda t: 2.0 if t < 9 else 1.0), {}),
            "guidance = ",
            id="guidance",
        ),
        pytest.param((custom(1), {}), (custom(2), {}), "schedule = ", id="schedule"),
    ],
)
def test_a_run_is_not_resumed_with_something_else(before, now, fact, tmp_path):
    file = tmp_path / "run.json"
    tune(before[0], resume=file, **before[1])
    tune(before[0], resume=file, **before[1])
    with pytest.raises(ValueError, match=fact):
        tune(now[0], resume=file, **now[1])


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda body: body["results"].popitem(), "was changed after it was written"),
        (lambda body: _any(body).pop("calls"), "has calls = None, but they are counted"),
        (lambda body: _any(body).update(calls="many"), "has calls = 'many', but they are counted"),
        (lambda body: (body.pop("digest"), _any(body, "error").pop("error")), "has no 'error'"),
        (lambda body: body.pop("arguments"), "no file of a tuning run .'arguments'."),
        (lambda body: body.update(results=[1]), "no file of a tuning run"),
    ],
    ids=["gone", "calls", "text", "missing", "arguments", "list"],
)
def test_a_file_that_was_changed_is_not_resumed(change, fact, tmp_path):
    file = tmp_path / "run.json"
    tune(labelled(), resume=file)
    body = json.loads(file.read_text())
    change(body)
    file.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=fact) as error:
        tune(labelled(), resume=file)
    assert str(file) in str(error.value)


def _any(body, name="calls"):
    return next(found for found in body["results"].values() if name in found)


def test_tensors_of_a_run_whose_file_was_removed_are_not_taken(tmp_path):
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    tune(labelled(), seed=1, resume=other)
    wanted = tune(labelled(), resume=own)
    beside = own.with_name("own.json.safetensors")
    beside.write_bytes(other.with_name("other.json.safetensors").read_bytes())
    made = tune(labelled(), resume=own)
    assert np.array_equal(made.plan.matrix, wanted.plan.matrix)


def test_a_file_in_a_folder_that_is_not_there_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="no folder for it"):
        tune(labelled(), resume=tmp_path / "no" / "run.json")


def test_a_fingerprint_follows_the_weights():
    network = labelled().network
    first = fingerprint(network)
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict({name: value + 0.5 for name, value in kept.items()})
    assert fingerprint(network) != first
    network.load_state_dict(kept)
    assert fingerprint(network) == first


@pytest.mark.parametrize("part", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(5)])
def test_a_network_in_train_mode_is_warned_of(part):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x, t):
            return self.part(0.5 * torch.tanh(x))

    network = Net()
    with pytest.warns(UserWarning, match="it is in train mode"):
        result = tune(df.Denoiser(network.train(), df.schedules.edm(), "x0"))
    assert "eval mode" in result.notes[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tune(df.Denoiser(network.eval(), df.schedules.edm(), "x0"))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_many_calls_remember_what_a_step_can_take(scale):
    """A step takes 16 tensors: x, one output or two, and so many remembered ones."""
    network = told(0.5) if scale == 1.0 else guided(scale)
    found = tune(network, calls=20, freedom=("weights",), start=df.plan(network, 20))
    assert df.sample(network, found.plan, (2, 5)).nfe.tolist() == [20, 20]
    assert found.history


def test_directions_of_more_stages_than_a_step_remembers_are_refused():
    with pytest.raises(ValueError, match="at most 25 calls"):
        tune(told(0.5), calls=26, freedom=("weights", "directions"))


def test_a_network_of_whole_times_is_told_whole_times(all_candidates):
    schedule = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    network = denoiser(schedule, "epsilon").network
    whole = df.Denoiser(network, schedule, "epsilon", time_dtype=torch.long)
    plan = tune(whole, calls=3, shape=(8, 2), iterations=2).plan
    assert (plan.times == np.round(plan.times)).all()


def test_times_that_round_to_the_clean_end_are_no_calls():
    """Betas of zero terminal SNR: fine grids have fractional times below the index 0."""
    betas = df.schedules.zero_terminal_snr(np.linspace(1e-3, 0.2, 100))
    schedule = df.schedules.from_betas(betas)
    network = df.Denoiser(lambda x, t: 0.1 * x, schedule, "v", time_dtype=torch.long)
    grid = whole_grid(network, df.grids.uniform_flow(schedule, 90))
    assert (grid == np.round(grid)).all() and (np.diff(grid) < 0).all()
    assert grid[0] == 99 and grid[-2] == 0 and grid[-1] == -1
    plan = tune(network, calls=3, shape=(8, 2)).plan
    assert (plan.times == np.round(plan.times)).all()


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"calls": True}, "calls is True"),
        ({"shape": 5}, "shape is 5"),
        ({"compare": (float("nan"),)}, "compare is nan"),
        ({"compare": (0,)}, "compare is 0"),
        ({"tolerance": "x"}, "tolerance is 'x'"),
        ({"memory_limit": "1G"}, "memory_limit is '1G'"),
        ({"features": 3}, "features is a int"),
        ({"conditions": 3}, "conditions is a int"),
        ({"features": lambda x: x[:1]}, "were given 4 samples, but returned .1, 5."),
        ({"features": lambda x: x.sum()}, "one row a sample"),
        ({"features": lambda x: x > 0}, "tensor of floats"),
        ({"conditions": lambda ids: {"label": ids}}, "returned .'label'., but .'labels'. are"),
    ],
)
def test_what_makes_no_sense_is_refused(options, fact):
    with pytest.raises(ValueError, match=fact):
        tune(labelled(), **options)


def test_without_the_freedom_of_the_start_no_plan_starts_late(all_candidates):
    flow = df.schedules.flow()
    network = denoiser(flow, "flow")
    free = tune(network, calls=2, shape=(16, 2))
    kept = tune(network, calls=2, shape=(16, 2), freedom=("weights", "levels"))
    assert free.best_standard.name.endswith((" from 5", " from 10", " from 20"))
    assert kept.plan.initial_scale == 1.0
    assert " from " not in kept.best_standard.name


def test_a_field_that_takes_one_time_for_all_samples_is_tuned():
    def field(t, x):
        return torch.tanh(x) * (1.0 + t.reshape(-1, 1))

    both = [
        tune(df.Denoiser.from_velocity(field, call="t, x", time_shape=shape), iterations=2)
        for shape in ("scalar", "batch")
    ]
    assert both[0].error < 0.8 * both[0].best_standard.error
    assert both[0].error == pytest.approx(both[1].error, rel=0.05)
    scalar = df.Denoiser.from_velocity(field, call="t, x", time_shape="scalar")
    with pytest.raises(ValueError, match="'directions', which tells a batch two times"):
        tune(scalar, freedom=("directions",))
