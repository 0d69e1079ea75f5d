"""Direct weights, openings and given noise: the rows made of them, and the runs that follow."""

import dataclasses

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network
from numpy_executor import run as run_numpy

import diffast as df
from diffast import ops, solvers
from diffast.lowering import program

VP, EDM = df.schedules.vp_linear(), df.schedules.edm()
MEANS = np.array([[0.8, -0.5, 0.1], [-0.9, 0.4, 0.3]])
LIMITS = (-0.35, 0.3)
TRUTH = Mixture(VP, MEANS)


def churn(schedule, grid):
    return solvers.churn(schedule, grid, s_churn=3.0)


def with_direct(plan):
    """The plan with direct weights of its own in point and anchor at every stage."""
    random = np.random.default_rng(1)
    direct = random.normal(size=(plan.stages, 2, 2)) * 0.2
    return dataclasses.replace(plan, direct=direct, check="finite", name=plan.name + "+direct")


def with_opening(plan):
    """The plan begun at a lower noise level."""
    start = 0.9 * float(plan.times[0])
    alpha, sigma = (f(np.array([plan.times[0], start])) for f in (VP.alpha, VP.sigma))
    keep = alpha[0] / alpha[1]
    opening = (keep, np.sqrt(sigma[0] ** 2 - (keep * sigma[1]) ** 2))
    return dataclasses.replace(plan, opening=opening, start=start)


GRID = df.grids.karras(VP, 6)
PLANS = {
    "churn": churn(VP, df.grids.uniform_time(VP, 6, start=0.8)),
    "euler+opening": with_opening(solvers.euler(VP, GRID)),
    "unipc+opening": with_opening(solvers.unipc(VP, GRID)),
    "euler+direct": with_direct(solvers.euler(VP, GRID)),
    "heun+direct": with_direct(solvers.heun(VP, GRID)),
    "3m+direct": with_direct(solvers.dpmpp_3m(VP, GRID)),
    "ancestral+both": with_opening(with_direct(solvers.euler_ancestral(VP, GRID))),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def noise_of(plan, batch=4):
    sigma = float(plan.schedule.sigma(plan.start))
    return ops.normal((batch, 3), seed=3, dtype=torch.float64) * sigma


def package_noise(shape, seed=0, ids=None):
    """The package's own normals, as `draw` and as the numpy executor ask for them."""
    ids = torch.arange(shape[0]) if ids is None else torch.as_tensor(ids)

    def fresh(i):
        word = ops.OPENING_NOISE if i == -1 else i
        return ops.normal(shape, seed=seed, stage=word, ids=ids, dtype=torch.float64)

    return fresh


def reference(plan, x0, noise, change=None, fresh=None):
    """The numpy executor's last point; `change` (a clamp) acts on what the history holds alone."""
    fresh = package_noise(noise.shape) if fresh is None else fresh
    if change is None:
        return run_numpy(plan, x0, noise.numpy(), lambda i: fresh(i).numpy())[-1]
    # Written out, since that executor knows nothing of changed estimates.
    x = plan.opening[0] * noise.numpy()
    if plan.opening[1]:
        x = x + plan.opening[1] * fresh(-1).numpy()
    anchor, history = x, []
    for i in range(plan.stages):
        raw = x0(x, plan.times[i])
        entry = plan.read[i, 0] * x + plan.read[i, 1] * change(raw)
        history = [entry, *history][: plan.history]
        inputs = [anchor, fresh(i).numpy(), *history]
        beside = np.zeros((2, 2)) if plan.direct is None else plan.direct[i]
        x, anchor = (
            sum(w * v for w, v in zip(table[i], inputs, strict=False)) + more[0] * x + more[1] * raw
            for table, more in ((plan.point, beside[0]), (plan.anchor, beside[1]))
        )
    return x


def close(got, wanted):
    np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=1e-11 * np.abs(wanted).max())


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("how", ["plain", "clamp", "hook", "both"])
@each_plan
def test_runs_equal_the_numpy_executor(plan, how, guided):
    shift = torch.full((4, 3), 0.2, dtype=torch.float64)
    options = {"predicts": "v"}
    if guided:
        options |= {"conditions": {"shift": shift}, "unconditional": {"shift": shift * 0}}
        options |= {"guidance": 2.0}
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, **options)

    def x0(x, t):
        return TRUTH.x0(x, t) + (0.4 if guided else 0.0)

    keywords, change = {}, None
    if how in ("clamp", "both"):
        keywords["clamp"] = LIMITS
    if how in ("hook", "both"):
        keywords["on_x0"] = lambda x0, stage: x0 * 0.5
    if how != "plain":

        def change(raw):
            raw = np.clip(raw, *LIMITS) if "clamp" in keywords else raw
            return raw * 0.5 if "on_x0" in keywords else raw

    noise = noise_of(plan)
    out = df.sample(denoiser, plan, noise=noise, **keywords)
    close(out.x, reference(plan, x0, noise, change))


def test_the_reference_here_is_the_numpy_executor_where_nothing_changes():
    for plan in PLANS.values():
        noise = noise_of(plan)
        one = reference(plan, TRUTH.x0, noise)
        two = reference(plan, TRUTH.x0, noise, change=lambda raw: raw)
        np.testing.assert_allclose(one, two, rtol=1e-14)


@each_plan
def test_previews_do_not_change_a_run(plan):
    denoiser, noise = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v"), noise_of(plan)
    for options in ({}, {"clamp": LIMITS}, {"on_x0": lambda x0, i: x0 * 0.5}):
        plain = df.sample(denoiser, plan, noise=noise, **options)
        seen = df.sample(denoiser, plan, noise=noise, callback=lambda p: None, **options)
        assert torch.equal(plain.x, seen.x)


# --- draw -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["plain", "clamp", "hook"])
@pytest.mark.parametrize("name", ["churn", "ancestral+both", "euler+opening"])
def test_draw_is_asked_once_for_each_noise_and_used(name, how):
    plan, asked = PLANS[name], []
    fresh = {i: ops.normal((4, 3), seed=50 + i, dtype=torch.float64) for i in range(-1, 20)}

    def draw(stage):
        asked.append(stage)
        return fresh[stage]

    keywords = {"clamp": {"clamp": LIMITS}, "hook": {"on_x0": lambda x0, i: x0 * 0.5}}.get(how, {})
    change = {"clamp": lambda raw: np.clip(raw, *LIMITS), "hook": lambda raw: raw * 0.5}.get(how)
    noise = noise_of(plan)
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v")
    out = df.sample(denoiser, plan, noise=noise, draw=draw, **keywords)
    used = np.flatnonzero(plan.point[:, 1] + plan.anchor[:, 1]).tolist()
    assert asked == [-1] * bool(plan.opening[1]) + used
    assert (name == "euler+opening") == (not used)
    close(out.x, reference(plan, TRUTH.x0, noise, change, fresh.__getitem__))


@each_plan
def test_drawing_the_packages_own_noise_changes_no_sample(plan):
    denoiser, noise = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v"), noise_of(plan)
    own = df.sample(denoiser, plan, noise=noise, seed=6)
    drawn = df.sample(denoiser, plan, noise=noise, draw=package_noise(noise.shape, seed=6))
    np.testing.assert_allclose(own.x.numpy(), drawn.x.numpy(), rtol=0, atol=1e-12)


def test_draw_is_not_asked_by_a_deterministic_plan():
    plan = solvers.heun(VP, GRID)
    denoiser = df.Denoiser(Network(TRUTH), VP, predicts="x0")
    df.sample(denoiser, plan, (2, 3), draw=lambda i: pytest.fail("asked"))


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        (torch.zeros(4, 2), r"draw returned \[4, 2\] at stage -1, but the state is \[4, 3\]"),
        (torch.zeros(3), r"draw returned \[3\]"),
        (None, "draw returned NoneType"),
        (np.zeros((4, 3)), "draw returned ndarray"),
    ],
)
def test_draws_of_another_shape_are_refused(value, facts):
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v")
    with pytest.raises(ValueError, match=facts):
        df.sample(denoiser, PLANS["churn"], (4, 3), draw=lambda i: value)


def test_draws_may_be_strided():
    plan = PLANS["churn"]
    denoiser, noise = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v"), noise_of(plan)
    fresh = package_noise((3, 4))
    one = df.sample(denoiser, plan, noise=noise, draw=lambda i: fresh(i).T)
    two = df.sample(denoiser, plan, noise=noise, draw=lambda i: fresh(i).T.contiguous())
    assert torch.equal(one.x, two.x)


# --- opening ----------------------------------------------------------------------------------


def first_inputs(plan, batch=1, size=3, **options):
    """What the network is called on first, and the initial state's own normals."""
    seen = []

    def network(x, t):
        seen.append(x.clone())
        return x * 0

    df.sample(df.Denoiser(network, plan.schedule, predicts="x0"), plan, (batch, size), **options)
    return seen[0]


def test_the_opening_is_the_state_at_the_start_and_noise_of_its_own():
    plan = PLANS["churn"]
    keep, fresh = plan.opening
    assert fresh > 0
    initial = ops.normal((4, 7), seed=9, scale=float(VP.sigma(plan.start)))
    z = ops.normal((4, 7), seed=9, stage=ops.OPENING_NOISE)
    wanted = keep * initial.double() + fresh * z.double()
    got = first_inputs(plan, 4, 7, seed=9)
    np.testing.assert_allclose(got.double().numpy(), wanted.numpy(), rtol=0, atol=1e-6)


def test_the_openings_noise_is_independent_of_all_others_and_of_the_batch():
    plan, size = PLANS["churn"], 40_000
    words = [ops.INITIAL_NOISE, ops.OPENING_NOISE, *range(plan.stages)]
    assert len(set(words)) == len(words)
    z = np.stack([ops.normal((1, size), seed=2, stage=word).numpy()[0] for word in words])
    correlation = np.corrcoef(z) - np.eye(len(words))
    assert np.abs(correlation).max() < 5 / np.sqrt(size)
    together = first_inputs(plan, 4, 5, seed=3, ids=[7, -3, 2**62, 0])
    for row, i in enumerate([7, -3, 2**62, 0]):
        assert torch.equal(first_inputs(plan, 1, 5, seed=3, ids=[i])[0], together[row])
    assert not torch.equal(together, first_inputs(plan, 4, 5, seed=4, ids=[7, -3, 2**62, 0]))


def test_an_opening_without_noise_scales_the_state():
    plan = solvers.euler(EDM, [80.0, 1.0, 0.0])
    half = dataclasses.replace(plan, opening=(0.5, 0.0), check="finite")
    noise = torch.full((2, 3), 8.0)
    seen = []

    def network(x, t):
        seen.append(x.clone())
        return x * 0

    df.sample(df.Denoiser(network, EDM, predicts="x0"), half, noise=noise)
    assert torch.equal(seen[0], noise * 0.5)
    assert torch.equal(noise, torch.full((2, 3), 8.0))


# --- rows -------------------------------------------------------------------------------------


def test_raw_estimates_are_weighed_unclamped():
    plan = PLANS["euler+direct"]
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v")
    a, b = denoiser.affine(plan.times)
    for i, stage in enumerate(program.build(plan, denoiser, fold=False)):
        weights = stage.point.weights
        # the changed estimate, as the history holds it, and the network's own output beside it
        assert weights[program.X0] == plan.point[i, 2]
        assert weights[program.COND] == pytest.approx(plan.direct[i, 0, 1] * b[i], abs=1e-15)
        inputs = weights.get(program.INPUT, 0.0) + weights.get(program.ANCHOR, 0.0)
        wanted = plan.point[i, 0] + plan.direct[i, 0, 0] + plan.direct[i, 0, 1] * a[i]
        assert inputs == pytest.approx(wanted, abs=1e-14)
    for i, stage in enumerate(program.build(plan, denoiser)):
        weights = stage.point.weights
        assert program.X0 not in weights
        wanted = (plan.point[i, 2] + plan.direct[i, 0, 1]) * b[i]
        assert weights[program.COND] == pytest.approx(wanted, abs=1e-14)


def test_point_and_anchor_are_one_only_if_their_direct_weights_are():
    plan = solvers.euler(VP, GRID)
    denoiser = df.Denoiser(Network(TRUTH), VP, predicts="x0")
    assert all(stage.anchor == stage.point for stage in program.build(plan, denoiser))
    direct = np.zeros((6, 2, 2))
    direct[2, 1] = [0.1, -0.1]
    apart = dataclasses.replace(plan, direct=direct, check="finite")
    stages = program.build(apart, denoiser)
    assert [stage.anchor == stage.point for stage in stages] == [i != 2 for i in range(6)]


def test_programs_are_kept_by_plan_and_numbers():
    plan = solvers.euler(VP, GRID)
    one, two = (df.Denoiser(Network(TRUTH, p), VP, predicts=p) for p in ("v", "x0"))
    assert program.build(plan, one) is program.build(plan, one)
    assert program.build(plan, one) is not program.build(plan, two)
    assert program.build(plan, one) is not program.build(plan, one, fold=False)
    other = solvers.euler(VP, GRID)
    assert program.build(other, one) is not program.build(plan, one)
    assert program.build(other, one) == program.build(plan, one)
