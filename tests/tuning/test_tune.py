"""`df.tune`: better than every standard plan, never worse, the same when it is resumed."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from tuning_problems import denoiser, labelled

import diffast as df
from diffast.tuning.form import form_of
from diffast.tuning.levenberg import Marquardt, Runner
from diffast.tuning.memo import Memo
from diffast.tuning.parameters import Parameters
from diffast.tuning.pilots import Pilots, ids_of

QUIET = {"progress": False, "rows": 4096, "compare": (), "measured_grids": False}
SMALL = QUIET | {"iterations": 4, "batch": 32, "held_out": 32}


def small(network=None, calls=5, shape=(32, 5), **options):
    return df.tune(network or labelled(), calls, shape, **(SMALL | options))


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [
        pytest.param(df.schedules.edm(), "x0", id="edm"),
        pytest.param(df.schedules.flow(), "flow", id="flow", marks=pytest.mark.slow),
        pytest.param(df.schedules.vp_linear(), "epsilon", id="vp", marks=pytest.mark.slow),
        pytest.param(
            df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
            "v",
            id="betas",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_tuned_plan_beats_the_best_standard_one(schedule, predicts, all_candidates):
    network = denoiser(schedule, predicts)
    result = df.tune(network, 6, (256, 2), **(QUIET | {"iterations": 6, "batch": 128}))
    assert result.error < 0.5 * result.best_standard.error
    assert result.plan.nfe == 6
    # measured anew, from other noises, against the same teacher
    fine = df.solvers.dpmpp_2m(schedule, df.grids.kl_optimal(schedule, 400))
    where = {"shape": (256, 2), "seed": 77}
    wanted, made = df.sample(network, fine, **where).x, df.sample(network, result.plan, **where).x
    spread = (wanted - wanted.mean(0)).square().mean().sqrt()
    assert (made - wanted).square().mean().sqrt() / spread < 2.0 * result.error + 0.01


def test_the_plan_says_what_it_was_made_for(tmp_path):
    network = labelled(guidance=1.3)
    result = small(network)
    made_for = result.plan.made_for
    assert (made_for["predicts"], made_for["guidance"], made_for["calls"]) == ("x0", 1.3, 5)
    assert made_for["measured"][0]["error"] == result.table[0].error
    result.save(tmp_path / "plan.json")
    loaded = df.Plan.load(tmp_path / "plan.json")
    assert loaded.made_for == made_for
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.sample(network, loaded, (4, 5))
    other = labelled(guidance=1.3)
    with torch.no_grad():
        other.network.mix.weight += 0.1
    with pytest.warns(UserWarning, match="fingerprint"):
        df.sample(other, loaded, (4, 5))
    text = str(result)
    assert result.best_standard.name in text
    assert f"{result.error:.4f}" in text


def test_it_is_never_worse_than_the_best_standard_plan():
    """With no iteration that helps the best standard plan is the result, and that is said."""
    result = small(iterations=0)
    assert result.error <= result.best_standard.error
    assert result.plan.nfe == result.best_standard.calls


def test_the_same_call_gives_the_same_plan():
    one, two = small(seed=5), small(seed=5)
    assert one.plan.matrix.tobytes() == two.plan.matrix.tobytes()
    assert one.network_calls == two.network_calls
    assert small(seed=6).plan.matrix.tobytes() != one.plan.matrix.tobytes()


class Killed(Exception):
    pass


def test_a_run_killed_at_ten_moments_and_resumed_gives_the_same_plan(tmp_path):
    """The network dies at a random call; each of the ten kills goes on from the file before."""
    wanted = small()
    path = tmp_path / "run.json"
    drawn = np.random.default_rng(0)
    network = labelled()
    inner, left = network.network.forward, [0]

    def dying(x, t, labels):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return inner(x, t, labels)

    network.network.forward = dying
    kills = 0
    while True:
        left[0] = int(drawn.integers(40, 160)) if kills < 10 else 10**9
        try:
            result = small(network, resume=path)
            break
        except Killed:
            kills += 1
    assert kills == 10
    assert result.plan.matrix.tobytes() == wanted.plan.matrix.tobytes()
    assert result.plan.times.tobytes() == wanted.plan.times.tobytes()
    assert result.network_calls == wanted.network_calls
    assert result.history == wanted.history


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.json"
    small(iterations=0, resume=path)
    with pytest.raises(ValueError, match="is of a run with calls = 5, but calls is 4 now"):
        small(calls=4, iterations=0, resume=path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="no file of a tuning run"):
        small(iterations=0, resume=path)


def test_a_half_written_file_never_replaces_the_one_before(tmp_path, monkeypatch):
    memo = Memo(tmp_path / "run.json", {"a": 1})
    assert memo("one", lambda: 1 / 3) == 1 / 3

    def fails(fd):
        raise OSError(28, "no space")  # names no file

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match=r"no space.*run\.json"):
        memo("two", lambda: 2)
    assert json.loads((tmp_path / "run.json").read_text())["results"] == {"one": 1 / 3}


# --- networks -------------------------------------------------------------------------------------


def test_a_network_without_gradient_is_tuned():
    plain = labelled()

    def numpy_network(x, t, labels):
        with torch.no_grad():
            return torch.from_numpy(plain.network(x, t, labels).numpy().copy())

    network = df.Denoiser(numpy_network, plain.schedule, "x0", conditions=plain.conditions)
    result = small(network, polish=20)
    assert "the network has no gradient, so there is no polish" in result.notes
    assert result.error < result.best_standard.error
    assert result.plan.matrix.tobytes() == small().plan.matrix.tobytes()


def test_pilots_that_are_not_finite_are_left_out_and_said():
    network = labelled()
    plan = df.solvers.deis(network.schedule, df.grids.karras(network.schedule, 4))
    parameters = Parameters(form_of(plan), network, ("levels", "weights"))
    runner = Runner(parameters, Pilots(network, (5,), 0, torch.device("cpu")), 4096)
    broken = {3, 7}

    def residual(x, ids):
        bad = torch.tensor([int(i) in broken for i in ids])
        return torch.where(bad[:, None], torch.nan, x - 1.0)

    start, ids = np.zeros(parameters.size), ids_of(32)
    step = Marquardt(runner, residual, 16, ids).iterate(start, 1e-3, ids, ids)
    assert step.note == "2 of 32 pilots were not finite and are left out"
    assert step.after < step.before
    assert np.isfinite(step.vector).all()
    broken.update(range(32))
    step = Marquardt(runner, residual, 16, ids).iterate(start, 1e-3, ids, ids)
    assert "the step is skipped" in step.note
    assert (step.vector == start).all()


def test_a_network_that_is_never_finite_is_refused():
    network = df.Denoiser(lambda x, t: x * torch.nan, df.schedules.edm(), predicts="x0")
    with pytest.raises(ValueError, match="of the teacher's 8 samples are not finite"):
        small(network)


def test_conditions_of_each_pilot_come_from_a_function():
    asked = []

    def conditions(ids):
        asked.extend(ids.tolist())
        return {"labels": ids % 4}

    by_function = small(conditions=conditions)
    assert by_function.plan.matrix.tobytes() == small().plan.matrix.tobytes()
    assert len(set(asked)) == 64
    with pytest.raises(ValueError, match="returned 3 rows of 'labels' for"):
        small(conditions=lambda ids: {"labels": torch.arange(3)})


def test_guidance_of_each_call_is_learned():
    network = labelled(guidance=3.0)
    plain, guided = (
        small(network, freedom=("levels", "weights", *more)) for more in ((), ("guidance",))
    )
    assert plain.plan.guidance is None
    assert guided.plan.guidance.shape == (5,)
    assert guided.error < guided.best_standard.error
    df.sample(network, guided.plan, (4, 5))


@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_polish_goes_on_by_gradient(checkpoint):
    network = labelled()
    plain = small(network, iterations=1, starts=1)
    polished = small(network, iterations=1, starts=1, polish=40, checkpoint=checkpoint)
    assert polished.error < 0.9 * plain.error
    assert len(polished.history) == len(plain.history) + 2


def test_the_polish_skips_what_is_not_finite(monkeypatch):
    network = labelled()
    inner, count = network.network.forward, [0]

    def breaks(x, t, labels):
        count[0] += torch.is_grad_enabled()
        return inner(x, t, labels) * (torch.nan if count[0] == 9 else 1.0)

    network.network.forward = breaks
    result = small(network, iterations=1, starts=1, polish=20)
    assert "polish: 1 iterations without a finite gradient skipped" in result.notes
    assert result.error < result.best_standard.error


def test_features_are_what_is_compared():
    first = small(features=lambda x: x[:, :1])
    assert first.error < first.best_standard.error


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"calls": 0}, "calls is 0, but must be a whole number from 1"),
        ({"calls": 2.5}, "calls is 2.5"),
        ({"shape": (5,)}, r"shape is \[5\], but \[B, ...\] is needed"),
        ({"shape": (1, 5)}, "2 pilots are needed"),
        ({"freedom": ("weights", "speed")}, "freedom holds 'speed', but the freedoms are"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"network": torch.nn.Identity()}, "denoiser is a Identity"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, facts):
    with pytest.raises(ValueError, match=facts):
        small(**options)


def test_a_start_for_another_schedule_is_refused():
    schedule = df.schedules.vp_linear()
    start = df.solvers.ddim(schedule, df.grids.uniform_time(schedule, 4))
    with pytest.raises(ValueError, match="start is a plan for VPLinear"):
        small(start=start)


def test_guidance_needs_an_unconditional_branch():
    with pytest.raises(ValueError, match="no unconditional conditions"):
        small(denoiser(), shape=(32, 2), freedom=("guidance",))


def test_what_it_will_take_is_said_before_it_starts(capsys):
    small(progress=True)
    said = capsys.readouterr().err
    assert "tune: 5 calls: about" in said
    assert "network evaluations of one sample" in said


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    small(compare=(2,)).picture(tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 5000


def test_a_run_may_start_late():
    """Levels above those of the data say little: a plan that begins below them is better."""
    network = labelled()
    options = {"progress": False, "rows": 4096, "compare": (), "measured_grids": False}
    options |= {"iterations": 6, "batch": 32, "held_out": 64}
    freedom = ("levels", "weights", "times", "scale")
    early = df.tune(network, 3, (64, 5), freedom=freedom, **options)
    late = df.tune(network, 3, (64, 5), **options)
    assert late.error < early.error
    assert late.plan.initial_scale < 0.5 * early.plan.initial_scale
    again = df.sample(network, late.plan, (4, 5)).x
    assert torch.isfinite(again).all()


def test_the_difference_of_derivatives_fits_the_networks_noise():
    """A network that rounds to 1e-3, as TF32 does, is differentiated over larger steps."""
    exact, ids = labelled(), ids_of(16)

    def rounded(x, t, **conditions):
        return (exact.network(x, t, **conditions) * 512).round() / 512

    steps = []
    for network in (exact, replace(exact, network=rounded)):
        plan = df.solvers.ddim(network.schedule, df.grids.karras(network.schedule, 4))
        parameters = Parameters(form_of(plan), network, ("levels", "weights"))
        pilots = Pilots(network, (5,), 0, torch.device("cpu"))
        runner = Runner(parameters, pilots, 512)
        steps.append(Marquardt(runner, lambda x, rows: x, 16, ids).difference)
    assert steps[0] <= 1e-2 < steps[1]
