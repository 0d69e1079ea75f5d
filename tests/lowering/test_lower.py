"""Unchanged estimates, openings and given noise: the rows made of them, and the runs."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network
from numpy_executor import run as run_numpy
from plan_tables import inserted, weighed, with_y

import diffast as df
from diffast import ops, solvers
from diffast.lowering.program import COND, NOISE, UNCOND, X0, Constraints, lower

VP, EDM = df.schedules.vp_linear(), df.schedules.edm()
MEANS = np.array([[0.8, -0.5, 0.1], [-0.9, 0.4, 0.3]])
LIMITS = (-0.35, 0.3)
TRUTH = Mixture(VP, MEANS)


def churn(schedule, grid):
    return solvers.churn(schedule, grid, s_churn=3.0)


def with_raw(plan):
    """The plan with weights of x and of the unchanged estimate besides, others for x and for y."""
    random = np.random.default_rng(1)
    plan = plan if "y" in plan.rows else with_y(plan)
    places = [(row, column) for row in ("x", "y") for column in ("x", "d_raw")]
    more = random.normal(size=(len(places), plan.stages)) * 0.2
    weights = {p: plan.weights(*p) + w for p, w in zip(places, more, strict=True)}
    return plan.with_weights(weights, check="finite", name=plan.name + "+raw")


def with_opening(plan):
    """The plan begun at a lower noise level."""
    start = 0.9 * float(plan.times[0])
    alpha, sigma = (f(np.array([plan.times[0], start])) for f in (VP.alpha, VP.sigma))
    keep = alpha[0] / alpha[1]
    row = {"x": keep, "z1": np.sqrt(sigma[0] ** 2 - (keep * sigma[1]) ** 2)}
    return inserted(plan, 0, {"x": row}, plan.times[0], start=start)


GRID = df.grids.karras(VP, 6)
PLANS = {
    "churn": churn(VP, df.grids.uniform_time(VP, 6, start=0.8)),
    "euler+opening": with_opening(solvers.euler(VP, GRID)),
    "unipc+opening": with_opening(solvers.unipc(VP, GRID)),
    "euler+raw": with_raw(solvers.euler(VP, GRID)),
    "heun+raw": with_raw(solvers.heun(VP, GRID)),
    "3m+raw": with_raw(solvers.dpmpp_3m(VP, GRID)),
    "ancestral+both": with_opening(with_raw(solvers.euler_ancestral(VP, GRID))),
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
    """The numpy executor's sample; `change` is what a clamp or a hook does."""
    fresh = package_noise(noise.shape) if fresh is None else fresh
    return run_numpy(plan, x0, noise.numpy(), lambda i: fresh(i).numpy(), change=change)[-1]


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
    out = df.sample(denoiser, plan, x=noise, **keywords)
    close(out.x, reference(plan, x0, noise, change))


@each_plan
def test_previews_do_not_change_a_run(plan):
    denoiser, noise = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v"), noise_of(plan)
    for options in ({}, {"clamp": LIMITS}, {"on_x0": lambda x0, i: x0 * 0.5}):
        plain = df.sample(denoiser, plan, x=noise, **options)
        seen = df.sample(denoiser, plan, x=noise, callback=lambda p: None, **options)
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
    out = df.sample(denoiser, plan, x=noise, noise=draw, **keywords)
    drawn = plan.weights("x", "z1") + plan.weights("y", "z1") != 0
    used = np.flatnonzero(drawn[plan.calls]).tolist()
    assert drawn[0] and np.isnan(plan.times[0])
    assert asked == [-1, *used]
    assert (name == "euler+opening") == (not used)
    close(out.x, reference(plan, TRUTH.x0, noise, change, fresh.__getitem__))


@each_plan
def test_drawing_the_packages_own_noise_changes_no_sample(plan):
    denoiser, noise = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v"), noise_of(plan)
    own = df.sample(denoiser, plan, x=noise, seed=6)
    drawn = df.sample(denoiser, plan, x=noise, noise=package_noise(noise.shape, seed=6))
    np.testing.assert_allclose(own.x.numpy(), drawn.x.numpy(), rtol=0, atol=1e-12)


def test_draw_is_not_asked_by_a_deterministic_plan():
    plan = solvers.heun(VP, GRID)
    denoiser = df.Denoiser(Network(TRUTH), VP, predicts="x0")
    df.sample(denoiser, plan, (2, 3), noise=lambda i: pytest.fail("asked"))


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        (torch.zeros(4, 2), r"stage -1: what noise returned is \[4, 2\] but the state is \[4, 3\]"),
        (torch.zeros(3), r"noise returned is \[3\]"),
        (None, "noise returned is a NoneType"),
        (np.zeros((4, 3)), "noise returned is a ndarray"),
    ],
)
def test_draws_of_another_shape_are_refused(value, facts):
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v")
    with pytest.raises(ValueError, match=facts):
        df.sample(denoiser, PLANS["churn"], (4, 3), noise=lambda i: value)


def test_draws_may_be_strided():
    plan = PLANS["churn"]
    denoiser, noise = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v"), noise_of(plan)
    fresh = package_noise((3, 4))
    one = df.sample(denoiser, plan, x=noise, noise=lambda i: fresh(i).T)
    two = df.sample(denoiser, plan, x=noise, noise=lambda i: fresh(i).T.contiguous())
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
    keep, fresh = (plan.weights("x", name)[0] for name in ("y", "z1"))
    assert fresh > 0
    assert lower(plan, df.Prediction(VP, "x0")).opening == (keep, fresh)
    initial = ops.normal((4, 7), seed=9, scale=float(VP.sigma(plan.start)))
    z = ops.normal((4, 7), seed=9, stage=ops.OPENING_NOISE)
    wanted = keep * initial.double() + fresh * z.double()
    got = first_inputs(plan, 4, 7, seed=9)
    np.testing.assert_allclose(got.double().numpy(), wanted.numpy(), rtol=0, atol=1e-6)


def test_the_openings_noise_is_independent_of_all_others_and_of_the_batch():
    plan, size = PLANS["churn"], 40_000
    words = [ops.INITIAL_NOISE, ops.OPENING_NOISE, *range(plan.nfe)]
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
    half = inserted(plan, 0, {"x": {"x": 0.5}}, 80.0, check="finite")
    noise = torch.full((2, 3), 8.0)
    seen = []

    def network(x, t):
        seen.append(x.clone())
        return x * 0

    df.sample(df.Denoiser(network, EDM, predicts="x0"), half, x=noise)
    assert torch.equal(seen[0], noise * 0.5)
    assert torch.equal(noise, torch.full((2, 3), 8.0))


# --- rows -------------------------------------------------------------------------------------


def test_unchanged_estimates_are_weighed_unclamped():
    plan = PLANS["euler+raw"]
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v")
    a, b = denoiser.affine(plan.times)
    keep, of_x, new, raw = (plan.weights("x", name) for name in ("y", "x", "d", "d_raw"))
    for how in (Constraints(clamp=True), Constraints(hook=True)):
        for i, stage in enumerate(lower(plan, denoiser, how).stages):
            weights = stage.rows["x"].weights
            # the changed estimate, and the network's own output beside it
            assert weights[X0] == new[i]
            assert weights[COND] == pytest.approx(raw[i] * b[i], abs=1e-15)
            wanted = keep[i] + of_x[i] + raw[i] * a[i]
            assert weights.get("x", 0.0) + weights.get("y", 0.0) == pytest.approx(wanted, abs=1e-14)
            assert stage.x0.weights == {"x": a[i], COND: b[i]}
            first = stage.calls[0]
            assert (first.targets[0], first.clamped) == (X0, how.clamp)
            assert len(stage.calls) == 1 + how.hook
            assert (X0 in stage.calls[-1].columns) == how.hook  # a clamped row is no tensor
    for i, stage in enumerate(lower(plan, denoiser).stages):
        weights = stage.rows["x"].weights
        assert X0 not in weights
        assert weights[COND] == pytest.approx((new[i] + raw[i]) * b[i], abs=1e-14)
        assert stage.calls[-1].targets[-1] == "x"


def test_y_is_x_only_where_all_their_weights_are():
    plan = with_y(solvers.euler(VP, GRID))
    denoiser = df.Denoiser(Network(TRUTH), VP, predicts="x0")
    program = lower(plan, denoiser)
    assert all(stage.joined and "y" not in stage.rows for stage in program.stages)
    assert (program.carried, program.buffers) == ((), 1)
    apart = weighed(plan.with_weights({}, check="finite"), "y", "d_raw", 2, -0.1)
    program = lower(apart, denoiser)
    assert [stage.joined for stage in program.stages] == [i != 2 for i in range(6)]
    assert [{*stage.rows} for stage in program.stages] == [
        {"y", "x"} if i == 2 else {"x"} for i in range(6)
    ]
    assert (program.carried, program.buffers) == (("y",), 2)
    last = weighed(plan.with_weights({}, check="finite"), "y", "d_raw", 5, -0.1)
    assert lower(last, denoiser).stages[5].joined  # nothing reads y after the last call


def test_guidance_and_given_noise_are_columns():
    plan = PLANS["churn"]
    shift = torch.full((4, 3), 0.2)
    options = {"conditions": {"shift": shift}, "unconditional": {"shift": shift * 0}}
    denoiser = df.Denoiser(Network(TRUTH, "v"), VP, predicts="v", guidance=2.0, **options)
    _, b = denoiser.affine(plan.call_times)
    own, given = (lower(plan, denoiser, Constraints(given_noise=g)) for g in (False, True))
    fresh = (plan.weights("x", "z1"))[plan.calls]
    assert own.branches == {"both"}
    for i, (one, two) in enumerate(zip(own.stages, given.stages, strict=True)):
        assert one.rows == two.rows
        weights = one.x0.weights
        assert [weights[COND], weights[UNCOND]] == pytest.approx([2.0 * b[i], -b[i]], rel=1e-15)
        (plain,), (call,) = one.calls, two.calls
        assert bool(plain.noise) == bool(fresh[i]) and call.noise == []
        assert plain.columns == tuple(name for name in call.columns if name != NOISE)
        assert (call.columns[-1] == NOISE) == bool(fresh[i])
        if fresh[i]:
            rows = np.reshape(call.weights, (len(call.targets), -1))
            assert rows[call.targets.index("x"), -1] == fresh[i]


def test_entries_live_in_as_few_slots_as_are_read():
    for plan, slots in (
        (solvers.euler(VP, GRID), 0),
        (solvers.heun(VP, GRID), 1),
        (solvers.dpmpp_2m(VP, GRID), 1),
        (solvers.dpmpp_3m(VP, GRID), 2),
        (solvers.rk4(VP, GRID), 3),
    ):
        program = lower(plan, df.Prediction(VP, "x0"))
        assert program.slots == slots == plan.history
        for i, stage in enumerate(program.stages):
            assert len(stage.held) == len(set(stage.held)) <= slots
            read = {
                name for row in stage.rows.values() for name in row.weights if name[:4] == "slot"
            }
            assert read <= {f"slot{slot}" for slot in stage.held}, (plan, i)
        # Heun's second estimate is read by nobody, nor is the last one of any plan.
        kept = [stage.slot >= 0 for stage in program.stages]
        assert not kept[-1]
        if plan.name == "heun":
            assert kept[:4] == [True, False, True, False]


def test_programs_are_kept_by_plan_and_numbers():
    plan = solvers.euler(VP, GRID)
    one, two = (df.Denoiser(Network(TRUTH, p), VP, predicts=p) for p in ("v", "x0"))
    assert lower(plan, one) is lower(plan, one)
    assert lower(plan, one) is not lower(plan, two)
    assert lower(plan, one) is not lower(plan, one, Constraints(hook=True))
    other = solvers.euler(VP, GRID)
    assert lower(other, one) is not lower(plan, one)
    assert lower(other, one) == lower(plan, one)
