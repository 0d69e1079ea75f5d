"""Plans with a second normal, velocities and blocks: their meaning, checks, files and executors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from numpy_executor import run as run_numpy
from stepwise_runs import IDS, VP, guided, network, noise_of, pair, run, staggered
from test_plan_file import assert_equal

import diffast as df
from diffast import grids, ops, solvers
from diffast.executors.stepwise import Stepper
from diffast.lowering import program
from diffast.plan import Plan, unroll
from diffast.plan.unroll import unroll_noise

EDM = df.schedules.edm()


def corrected(steps=8, inner=3, **options):
    grid = grids.ou_early(VP, steps, sigma_min=0.2)
    return solvers.piadm_ode(VP, grid, block=3.0, corrector=(0.6, inner), **options)


def split_noise():
    """Ancestral steps whose noise is shared out to two normals, the same for point and anchor."""
    plan = solvers.euler_ancestral(EDM, grids.karras(EDM, 5, to_zero=False))
    up, rows = plan.point[:, 1], np.array(plan.point)
    rows[:, 1] = 0.6 * up
    second = np.tile(0.8 * up[:, None], (1, 2))
    return dataclasses.replace(plan, point=rows, anchor=rows, second=second, name="split")


def velocity():
    """A point's noise and a velocity turned into each other, of exact levels: check "full"."""
    t = 2.0
    turn, left = 0.6, 0.8
    return Plan(
        schedule=EDM,
        times=[4.0, t, t],
        end=t,
        read=[[0.0, 1.0], [-1.0 / t, 1.0 / t], [-1.0 / t, 1.0 / t]],
        point=[[0.5, 0.0, 0.5], [left * t, 0.0, -turn * t], [left * t, 0.0, -turn * t]],
        anchor=[[0.0, 0.0, 0.0], [turn, 0.0, left], [left * t, 0.0, -turn * t]],
        anchor_at=[-2, -2, 3],
        direct=[np.zeros((2, 2)), [[0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]],
        second=[[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]],
        steps=1,
        name="velocity",
        blocks=[0, 1],
    )


def parted():
    """Rows that part by their second normal alone, and an anchor that is kept but for it."""
    plan = solvers.euler_ancestral(EDM, grids.karras(EDM, 5, to_zero=False))
    anchor, second = np.array(plan.point), np.zeros((5, 2))
    anchor[2] = 1.0, 0.0, 0.0
    second[[0, 2, 3]] = [[0.3, -0.4], [0.0, 0.5], [0.2, 0.2]]
    read = np.tile([0.2, 0.8], (5, 1))  # so that input and anchor are told apart
    fields = {"read": read, "anchor": anchor, "second": second, "check": "finite"}
    return dataclasses.replace(plan, **fields, name="parted")


PLANS = {
    "corrected": corrected(),
    "split": split_noise(),
    "velocity": velocity(),
    "parted": parted(),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


# --- meaning and checks ---------------------------------------------------------------------------


@each_plan
def test_unroll_is_the_run(plan):
    random = np.random.default_rng(2)
    x, z, z2 = random.normal(size=4), *random.normal(size=(2, plan.stages, 4))
    seen = []

    def denoise(x, t):
        seen.append(np.tanh(3 * x) + t)
        return seen[-1]

    points = run_numpy(plan, denoise, x, lambda i: z[i], lambda i: z2[i])
    rows, stages = unroll(plan), plan.stages
    assert rows.point.shape == rows.anchor.shape == (stages, 1 + 3 * stages)
    everything = np.concatenate([points[:1], seen, z, z2])
    np.testing.assert_allclose(rows.point @ everything, points[1:], rtol=1e-12, atol=1e-13)
    noise = unroll_noise(plan)
    for field in ("point", "anchor"):
        table = getattr(rows, field)
        np.testing.assert_allclose(getattr(noise, field), np.delete(table, range(1, 1 + stages), 1))
        for block in range(3):
            assert (np.triu(table[:, 1 + block * stages :][:, :stages], 1) == 0).all()


@pytest.mark.parametrize("name", ["split", "velocity"])
def test_every_wrong_number_is_refused(name):
    plan = PLANS[name]
    assert plan.check == "full"
    for field in ("read", "point", "anchor", "direct", "second"):
        table = getattr(plan, field)
        for index in np.ndindex(np.shape(table)) if table is not None else ():
            for sign in (1, -1):
                wrong = np.array(table)
                wrong[index] = wrong[index] * (1 + sign * 1e-6) or sign * 1e-6
                with pytest.raises(ValueError, match=f"Plan {name}"):
                    dataclasses.replace(plan, **{field: wrong})
                    pytest.fail(f"{field}{index}")


def changed(plan, field, index, value):
    table = np.array(getattr(plan, field))
    table[index] = value
    return dataclasses.replace(plan, **{field: table})


@pytest.mark.parametrize(
    ("field", "index", "value", "facts"),
    [
        (
            "anchor",
            (1, 0),
            0.7,
            "stage 2: point holds noise of level 2.15.*, but it must be sigma = 2.0",
        ),
        (
            "second",
            (0, 1),
            2.0,
            "stage 1: point holds noise of level 3.4.*, but it must be sigma = 2.0",
        ),
        ("second", (2, 0), 1e-6, "stage 2: point holds fresh noise of weight"),
        ("second", (0, 1), np.nan, r"stage 0: second\[1\] = nan"),
        ("direct", (0, 1, 0), 0.5, "stage 0: anchor holds x0 with weight 0.5, .* alpha = 0.0"),
        ("anchor_at", (0,), -3, "stage 0: anchor_at = -3, but -2 to 3"),
        (
            "anchor_at",
            (0,),
            -1,
            "stage 1: point holds x0 with weight 2.6, but it must be alpha = 1.0",
        ),
        ("blocks", (0,), 1, r"blocks = \[1, 1\], but they must start with 0 and rise"),
        ("blocks", (1,), 0, r"blocks = \[0, 0\], but"),
        ("blocks", (1,), 3, "a block begins at stage 3, but there are 3"),
    ],
)
def test_refusals(field, index, value, facts):
    with pytest.raises(ValueError, match=facts):
        changed(velocity(), field, index, value)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"second": np.zeros((2, 2))}, r"second has shape \[2, 2\], but it must be \[3, 2\]"),
        ({"second": np.zeros(3)}, r"second has shape \[3\]"),
        ({"blocks": [[0, 1]]}, r"blocks has shape \[1, 2\], but it must be \[B\]"),
        ({"blocks": [0.0, 1.0]}, "blocks holds float64, but it must be int"),
        ({"blocks": np.zeros(0, int)}, r"blocks = \[\], but they must start with 0"),
    ],
)
def test_shapes_are_refused(changes, facts):
    with pytest.raises(ValueError, match=facts):
        dataclasses.replace(velocity(), **changes)


def test_a_velocity_without_x0_is_asked_for_even_where_noise_is_not():
    plan = corrected()
    i = int(np.flatnonzero(plan.anchor_at == -2)[1])
    read = np.array(plan.read)
    read[i, 1] *= 1.001  # a score that does not vanish at the true x0
    with pytest.raises(ValueError, match=f"stage {i}: (point|anchor) holds x0 with weight"):
        dataclasses.replace(plan, read=read)


def test_fields_are_frozen_and_default_to_none():
    plan = velocity()
    for array in (plan.second, plan.blocks):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert plan.blocks.dtype == np.int64
    plain = solvers.euler(EDM, [8.0, 1.0])
    assert plain.second is plain.blocks is None
    assert dataclasses.replace(plain, second=np.zeros((1, 2))).second is None
    assert not dataclasses.replace(plain, blocks=[0]).stochastic


def test_text_names_the_second_normal():
    text = str(velocity())
    assert "velocity: 1 steps, 3 calls, history 1, stochastic" in text
    assert "anchor = +1 z2" in text
    assert "+0.6 anchor +0.8 h[1]" in text
    only = dataclasses.replace(solvers.euler(EDM, [8.0, 1.0]), second=[[1.0, 1.0]], check="x0")
    assert only.stochastic and str(only).endswith("d[0] +1 z2")


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


def test_the_version_says_what_a_reader_has_to_know(tmp_path):
    path = tmp_path / "plan.json"

    def written(plan):
        plan.save(path)
        return json.loads(path.read_text())

    assert {written(plan)["version"] for plan in PLANS.values()} == {2}
    pushed = np.array(velocity().anchor)
    pushed[0, 1] = 1.0  # a velocity that is the first normal
    alone = dataclasses.replace(velocity(), anchor=pushed, second=None, blocks=None)
    assert written(alone)["version"] == 2
    plain = solvers.pec(EDM, [8.0, 2.0, 1.0])
    assert -1 in plain.anchor_at
    body = written(plain)
    assert body["version"] == 1
    assert not {"second", "blocks"} & {*body}
    path.write_text(json.dumps(body | {"version": 2}))
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
    if how != "plain" and plan.direct is not None and plan.direct[:, :, 1].any():
        return  # `direct` weighs the unchanged estimate, which the numpy run does not know
    x = ops.normal((3, 7), seed=1, dtype=torch.float64) * float(schedule.sigma(plan.start))
    denoiser = df.Denoiser(lambda x, t: torch.sin(x) * 0.7, schedule, predicts="x0")
    got = df.sample(denoiser, plan, noise=x, seed=5, **options).x
    want = run_numpy(
        plan,
        lambda x, t: change[how](0.7 * np.sin(x)),
        x.numpy(),
        lambda i: normals(x.shape, 5, i, 0),
        lambda i: normals(x.shape, 5, i, 1),
    )[-1]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plan", [*PLANS.values(), corrected(inner=1)], ids=[*PLANS, "one"])
def test_stepper_gives_the_bits_of_sample(plan, dtype):
    noise = noise_of(dtype=dtype)
    denoiser = df.Denoiser(network, plan.schedule, predicts="v" if plan.schedule == VP else "x0")
    wanted = df.sample(denoiser, plan, noise=noise, seed=7, ids=IDS).x
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
        alone = df.sample(denoiser, plans[p], noise=noise[b : b + 1], seed=7, ids=IDS[b : b + 1])
        assert torch.equal(state.x[b : b + 1], alone.x)


def test_guidance_and_a_clamp_change_no_bit_between_the_executors():
    plan, noise = corrected(), noise_of()
    denoiser = guided(1.7)
    wanted = df.sample(denoiser, plan, noise=noise, seed=7, ids=IDS, clamp=(-0.5, 0.6)).x
    stepper = Stepper(plan, denoiser, clamp=(-0.5, 0.6))
    for each in (False, True):
        state = run(stepper, *stepper.start(noise, seed=7, ids=IDS, each=each), call=pair)
        assert torch.equal(state.x, wanted)


def test_point_and_velocity_have_the_covariance_of_their_weights():
    """A zero estimate and a zero state: what is left after one Langevin step is its noise."""
    plan = corrected()
    i = int(np.flatnonzero(plan.second.any(1))[0])
    assert plan.anchor_at[i + 1] == -2
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="x0"))
    count = 2**18
    state, _, _ = stepper.start(torch.zeros(1, count), seed=2)
    for _ in range(i + 1):
        state, _, _ = stepper.step(state, torch.zeros(1, count))
    assert not state.x.any()  # the ODE's steps scale 0
    first = state.anchor.double()
    state, _, _ = stepper.step(state, torch.zeros(1, count))
    rows = np.concatenate([first, state.x.double(), state.anchor.double()])
    weights = np.array(  # by (velocity drawn before, z, z2)
        [
            [1.0, 0.0, 0.0],
            [*plan.point[i + 1, :2], plan.second[i + 1, 0]],
            [*plan.anchor[i + 1, :2], plan.second[i + 1, 1]],
        ]
    )
    wanted = weights @ weights.T
    size = np.sqrt(np.diag(wanted))
    errors = (rows @ rows.T / count - wanted) / np.outer(size, size)
    assert np.abs(errors).max() < 5 * np.sqrt(2 / count)
    assert wanted[2, 2] == pytest.approx(1.0, rel=1e-12)  # N(0, I), as a velocity is


def test_rows_carry_the_second_weight():
    plan = corrected()
    stages = program.build(plan, df.Denoiser(network, VP, predicts="v"))
    for i, stage in enumerate(stages):
        got = [stage.point.second, (stage.anchor or stage.point).second]
        assert got == plan.second[i].tolist()
    i = int(np.flatnonzero(plan.second.any(1))[1])
    columns, _, noise = program.flatten(
        [stages[i].anchor, stages[i].point], dict.fromkeys(["anchor", "input", "cond"], 0)
    )
    assert noise == [plan.anchor[i, 1], plan.second[i, 1], plan.point[i, 1], 0.0]
    _, _, noise = program.flatten([stages[0].point], {"anchor": 0, "cond": 1})
    assert noise == []


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda d, p: df.sample(d, p, (2, 3), draw=lambda i: None), "sample: draw: .* at stage 1,"),
        (lambda d, p: df.sample(d, p, (2, 3), path=True), "sample: path: .* at stage 1,"),
        (lambda d, p: df.sample(d, p, (2, 3), noise="path"), "but 1 a stage can be given"),
        (
            lambda d, p: Stepper(p, d, given_noise=True),
            r"given noise: piadm_ode\(.*\) draws 2 norm",
        ),
    ],
)
def test_noise_from_outside_is_refused(call, facts):
    plan = corrected()
    assert np.flatnonzero(plan.second.any(1))[0] == 1
    with pytest.raises(ValueError, match=facts):
        call(df.Denoiser(network, VP, predicts="v"), plan)
