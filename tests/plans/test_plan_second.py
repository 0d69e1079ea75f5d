"""Plans with a second normal, momenta and blocks: their meaning, checks, files and executors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from numpy_executor import run as run_numpy
from plan_tables import changed, standing, table, weighed
from stepwise_runs import IDS, VP, guided, network, noise_of, pair, run, staggered
from test_plan_file import assert_equal
from unrolled_runs import check_unrolled

import diffast as df
from diffast import grids, ops, solvers
from diffast.executors.stepwise import Stepper
from diffast.lowering.program import lower
from diffast.plans import Plan, Stages

EDM = df.schedules.edm()


def corrected(steps=8, inner=3, **options):
    grid = grids.ou_early(VP, steps, sigma_min=0.2)
    return solvers.piadm_ode(VP, grid, block=3.0, corrector=(0.6, inner), **options)


def split_noise():
    """Ancestral steps whose noise is shared out to two normals."""
    plan = solvers.euler_ancestral(EDM, grids.karras(EDM, 5, to_zero=False))
    up = plan.weights("x", "z1")
    return plan.with_weights({("x", "z1"): 0.6 * up, ("x", "z2"): 0.8 * up}, name="split")


def momentum(**options):
    """The noise of x and a momentum turned into each other, of exact levels: check "full"."""
    t = 2.0
    turn, left = 0.6, 0.8
    score, kick = {"x": -1.0 / t, "d": 1.0 / t}, {"v": left * t, "h0": -turn * t, "d": 1.0}
    stages = Stages(EDM, 4.0)
    stages.add(4.0, t, {"x": 0.5, "d": 0.5}, h={"d": 1.0}, v={"z2": 1.0})
    stages.add(t, t, kick, h=score, v={"v": turn, "h0": left})
    stages.add(t, t, kick, h=score)
    return stages.plan("momentum", 1, **({"blocks": [0, 1]} | options))


def parted():
    """x and y part by their second normal alone; y is kept but for it."""
    plan = solvers.euler_ancestral(EDM, grids.karras(EDM, 5, to_zero=False))
    second = np.zeros((5, 2))
    second[[0, 2, 3]] = [[0.3, -0.4], [0.0, 0.5], [0.2, 0.2]]
    stages = Stages(EDM, plan.start)
    ends = [*plan.times[1:], plan.end]
    for i, (keep, new, up) in enumerate(table(plan, "x", "x", "d", "z1").tolist()):
        row = {"y": keep, "h0": new, "z1": up}
        y = ({"y": 1.0} if i == 2 else row) | {"z2": second[i, 1]}
        row |= {"z2": second[i, 0]}
        entry = {"x": 0.2, "d": 0.8}  # so that x and y are told apart
        stages.add(plan.times[i], ends[i], row, y=y, y_at=ends[i], h=entry)
    return stages.plan("parted", 5, check="finite")


PLANS = {
    "corrected": corrected(),
    "split": split_noise(),
    "momentum": momentum(),
    "parted": parted(),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


# --- meaning and checks ---------------------------------------------------------------------------


@each_plan
def test_unroll_is_the_run(plan):
    check_unrolled(plan)


@pytest.mark.parametrize("name", ["split", "momentum"])
def test_every_wrong_number_is_refused(name):
    plan = PLANS[name]
    assert plan.check == "full"
    for field in ("matrix", "levels"):
        numbers = getattr(plan, field)
        for index in np.ndindex(numbers.shape):
            i, r = index[:2]
            if field == "levels" and not (plan.rows[r] != "h" and plan.matrix[i, r].any()):
                continue
            if plan.rows[r] == "h" and i == 0:  # an entry that nobody reads
                continue
            for sign in (1, -1):
                value = numbers[index] * (1 + sign * 1e-6) or sign * 1e-6
                with pytest.raises(ValueError, match=f"Plan {name}"):
                    changed(plan, field, index, value)
                    pytest.fail(f"{field}{index}")


@pytest.mark.parametrize(
    ("weight", "value", "facts"),
    [
        (("v", "v", 1), 0.7, "stage 1: v holds noise of level 1.0.*, but it must be sigma = 1.0"),
        (("x", "v", 1), 2.0, "stage 1: x holds noise of level 2.3.*, but it must be sigma = 2.0"),
        (("v", "z2", 0), 2.0, "stage 0: v holds noise of level 2.0, but it must be sigma = 1.0"),
        (("x", "z2", 2), 1e-6, "stage 2: x holds (noise of level|fresh noise of weight)"),
        (("v", "z2", 0), np.nan, "stage 0: weight of z2 in v = nan"),
        (("v", "x", 1), 0.5, "stage 1: v holds x0 with weight 0.5, but it must be alpha = 0.0"),
        (("v", "v", 0), 0.5, "stage 0: v has weight 0.5 on v, but it holds nothing"),
        (("v", "z2", 0), 0.0, "stage 1: v has weight 0.6 on v, but it holds nothing|x has weight"),
    ],
)
def test_wrong_weights_are_refused(weight, value, facts):
    with pytest.raises(ValueError, match=facts):
        weighed(momentum(), *weight, value)


@pytest.mark.parametrize("level", [(1.0, 0.0), (0.0, 1.1), (0.1, 1.0)])
def test_wrong_levels_are_refused(level):
    plan = momentum()
    with pytest.raises(ValueError, match="stage 0: v holds (x0 with weight|noise of level)"):
        changed(plan, "levels", (0, plan.rows.index("v")), level)


def test_a_momentum_without_x0_is_asked_for_even_where_noise_is_not():
    plan = corrected()
    assert plan.check == "x0"
    i = int(np.flatnonzero(plan.weights("h", "x") * plan.weights("v", "h0"))[1])
    entry = plan.weights("h", "d") * np.where(np.arange(plan.stages) == i, 1.001, 1.0)
    with pytest.raises(ValueError, match=f"stage {i}: [vx] holds x0 with weight"):
        plan.with_weights({("h", "d"): entry})  # a score that does not vanish at the true x0


def test_blocks_are_frozen_and_say_nothing_about_noise():
    plan = momentum()
    with pytest.raises(ValueError, match="read-only"):
        plan.blocks[0] = 1
    assert plan.blocks.dtype == np.int64
    plain = solvers.euler(EDM, [8.0, 1.0])
    assert plain.blocks is None
    assert not dataclasses.replace(plain, blocks=[0]).stochastic


def test_text_names_the_second_normal():
    text = str(momentum())
    assert "momentum: 1 steps, 3 calls, history 0, stochastic" in text
    assert "v = +1 z2" in text
    assert "v = +0.6 v +0.8 h0" in text
    only = solvers.euler(EDM, [8.0, 1.0]).with_weights({("x", "z2"): [1.0]}, check="x0")
    assert only.stochastic and str(only).endswith(" d +1 z2")


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [".json", ".npz"])
@each_plan
def test_files_come_back_to_the_last_bit(plan, kind, tmp_path):
    path = tmp_path / f"plan{kind}"
    plan.save(path)
    assert_equal(Plan.load(path), plan)
    blocks = dataclasses.replace(solvers.euler(EDM, [8.0, 2.0, 1.0]), blocks=[0, 1])
    blocks.save(path)
    assert_equal(Plan.load(path), blocks)


def test_blocks_are_in_the_file_where_there_are_some(tmp_path):
    path = tmp_path / "plan.json"

    def written(plan):
        plan.save(path)
        return json.loads(path.read_text())

    assert {written(plan)["version"] for plan in PLANS.values()} == {6}
    assert written(momentum())["blocks"] == [0, 1]
    assert "blocks" not in written(momentum(blocks=None))
    plain = solvers.pec(EDM, [8.0, 2.0, 1.0])
    assert (standing(plain, "y")[:-1] == [1.0, 0.0]).all()  # an x0 estimate
    assert "blocks" not in written(plain)
    assert_equal(Plan.load(path), plain)


# --- executors ------------------------------------------------------------------------------------


def normals(shape, seed, stage, slot):
    """The kernel's own normals of one slot, float64: a row that weighs nothing else."""
    weights = [[1.0, 0.0]] if slot == 0 else [[0.0, 1.0]]
    zeros = torch.zeros(shape, dtype=torch.float64)
    return ops.combine([zeros], [[0.0]], noise=weights, seed=seed, stage=stage)[0].numpy()


@pytest.mark.parametrize("how", ["plain", "clamp", "hook"])
@each_plan
def test_sample_is_the_run_in_numpy(plan, how):
    schedule = plan.schedule
    change = {"plain": lambda d: d, "clamp": lambda d: d.clip(-0.4, 0.5), "hook": lambda d: 0.5 * d}
    options = {
        "clamp": {"clamp": (-0.4, 0.5)},
        "hook": {"on_x0": lambda x0, stage: 0.5 * x0},
    }.get(how, {})
    x = ops.normal((3, 7), seed=1, dtype=torch.float64) * float(schedule.sigma(plan.start))
    denoiser = df.Denoiser(lambda x, t: torch.sin(x) * 0.7, schedule, predicts="x0")
    got = df.sample(denoiser, plan, x=x, seed=5, **options).x
    want = run_numpy(
        plan,
        lambda x, t: 0.7 * np.sin(x),
        x.numpy(),
        lambda i: normals(x.shape, 5, i, 0),
        lambda i: normals(x.shape, 5, i, 1),
        change[how],
    )[-1]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plan", [*PLANS.values(), corrected(inner=1)], ids=[*PLANS, "one"])
def test_stepper_gives_the_bits_of_sample(plan, dtype):
    noise = noise_of(dtype=dtype)
    denoiser = df.Denoiser(network, plan.schedule, predicts="v" if plan.schedule == VP else "x0")
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser)
    together = run(stepper, *stepper.start(noise, seed=7, ids=IDS))
    each = run(stepper, *stepper.start(noise, seed=7, ids=IDS, each=True))
    ragged = run(stepper, *staggered(stepper, noise), extra=2)
    for state in (together, each, ragged):
        assert torch.equal(state.x, wanted)
        assert (state.status == -1).all()


def test_plans_with_one_normal_and_with_two_share_a_batch():
    plans = [
        corrected(),
        solvers.piadm_sde(VP, grids.ou_early(VP, 6)),
        solvers.heun(VP, [0.9, 0.1]),
    ]
    denoiser = df.Denoiser(network, VP, predicts="v")
    stepper, noise = Stepper([(plan, denoiser) for plan in plans]), noise_of()
    chosen = [0, 1, 2, 1]
    state = run(stepper, *stepper.start(noise, plan=chosen, seed=7, ids=IDS))
    for b, p in enumerate(chosen):
        alone = df.sample(denoiser, plans[p], x=noise[b : b + 1], seed=7, ids=IDS[b : b + 1])
        assert torch.equal(state.x[b : b + 1], alone.x)


def test_guidance_and_a_clamp_change_no_bit_between_the_executors():
    plan, noise = corrected(), noise_of()
    denoiser = guided(1.7)
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS, clamp=(-0.5, 0.6)).x
    stepper = Stepper(plan, denoiser, clamp=(-0.5, 0.6))
    for each in (False, True):
        state = run(stepper, *stepper.start(noise, seed=7, ids=IDS, each=each), call=pair)
        assert torch.equal(state.x, wanted)


@pytest.mark.filterwarnings("ignore:Stepper. x has root mean square 0 ")
def test_x_and_momentum_have_the_covariance_of_their_weights():
    """A zero estimate and a zero state: what is left after one Langevin step is its noise."""
    plan = corrected()
    i = int(np.flatnonzero(plan.weights("v", "z2"))[0])
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="x0"))
    count = 2**18
    state, _, _ = stepper.start(torch.zeros(1, count), seed=2)
    for _ in range(i + 1):
        state, _, _ = stepper.step(state, torch.zeros(1, count))
    assert not state.x.any()  # the ODE's steps scale 0
    first = state.v.double()
    state, _, _ = stepper.step(state, torch.zeros(1, count))
    rows = np.concatenate([first, state.x.double(), state.v.double()])
    weights = np.array(  # by (momentum drawn before, z1, z2)
        [
            [1.0, 0.0, 0.0],
            table(plan, "x", "v", "z1", "z2")[i + 1],
            table(plan, "v", "v", "z1", "z2")[i + 1],
        ]
    )
    wanted = weights @ weights.T
    size = np.sqrt(np.diag(wanted))
    errors = (rows @ rows.T / count - wanted) / np.outer(size, size)
    assert np.abs(errors).max() < 5 * np.sqrt(2 / count)
    assert wanted[2, 2] == pytest.approx(1.0, rel=1e-12)  # N(0, I), as a momentum is


def test_rows_and_calls_carry_the_second_weight():
    plan = corrected()
    stages = lower(plan, df.Denoiser(network, VP, predicts="v")).stages
    drawn = {name: table(plan, name, "z1", "z2") for name in ("v", "x")}
    for i, stage in enumerate(stages):
        for name in ("v", "x"):
            if name in stage.rows:
                row = stage.rows[name]
                assert [row.noise, row.second] == drawn[name][i].tolist()
        anything = any(drawn[name][i].any() for name in ("v", "x"))
        assert bool(stage.calls[-1].noise) == anything
    both = np.flatnonzero(drawn["v"].all(axis=1) & drawn["x"].any(axis=1))
    i = int(both[0])
    assert stages[i].calls[-1].targets[-2:] == ("v", "x")
    assert stages[i].calls[-1].noise[-4:] == [*drawn["v"][i], *drawn["x"][i]]
    assert drawn["x"][i, 1] == 0.0
    assert stages[0].calls[-1].noise == []


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (
            lambda d, p: df.sample(d, p, (2, 3), noise=lambda i: None),
            "given noise: piadm_ode.* at stage 1,",
        ),
        (lambda d, p: df.sample(d, p, (2, 3), noise="path"), "sample: path: .* at stage 1,"),
        (lambda d, p: df.sample(d, p, (2, 3), noise="path"), "but 1 a stage can be given"),
        (
            lambda d, p: Stepper(p, d, noise="given"),
            r"given noise: piadm_ode\(.*\) draws 2 norm",
        ),
    ],
)
def test_noise_from_outside_is_refused(call, facts):
    plan = corrected()
    assert np.flatnonzero(plan.weights("v", "z2"))[0] == 1
    with pytest.raises(ValueError, match=facts):
        call(df.Denoiser(network, VP, predicts="v"), plan)
