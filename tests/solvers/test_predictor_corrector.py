"""`predictor_corrector`: visits in any plan, its history, what runs it, and refusals."""

from functools import partial

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network
from gaussian_law import law, level
from numpy_executor import walk
from plan_tables import standing

import diffast as df
from diffast.plans import Plan, Stages

EDM, FLOW, VP = df.schedules.edm(), df.schedules.flow(), df.schedules.vp_linear()
composed = df.solvers.predictor_corrector
TEXTS = ("olmc:n=2", "lm:n=2", "ulmc:n=2", "baoab:n=2", "snr:n=2", "ulmc")
NEEDED = {"restart": {"intervals": [(0.1, 10.0, 2, 2)]}}
# They carry another state beside x from step to step.
CARRY = ("unipc", "pec")


def plan_of(name, schedule=EDM, steps=5, **options):
    grid = df.grids.karras(schedule, steps, sigma_max=10.0)
    return df.solvers.get(name)(schedule, grid, **(NEEDED.get(name, {}) | options))


EACH = [name for name in df.solvers.SOLVERS if name not in CARRY]


@pytest.mark.parametrize("name", EACH)
def test_every_solver_takes_a_corrector(name):
    plan = plan_of(name, VP)
    visits = len(df.solvers.predictor_corrector(plan, "olmc").calls) - plan.nfe
    assert visits >= 1
    for text in TEXTS:
        if name == "heavy_ball" and text not in ("olmc:n=2", "snr:n=2", "ulmc"):
            with pytest.raises(ValueError, match="heavy_ball.* holds a momentum after stage 0"):
                composed(plan, text)
            continue
        made = composed(plan, text)
        n = 1 if text == "ulmc" else 2
        assert made.nfe == plan.nfe + n * visits
        assert (made.steps, made.start, made.end) == (plan.steps, plan.start, plan.end)
        assert made.check == "x0" and made.stochastic
        assert made.name.startswith(f"{plan.name} + ")


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "adams", "dpm_2_ancestral", "churn"])
@pytest.mark.parametrize("schedule", [EDM, FLOW, VP, df.schedules.sub_vp()], ids=str)
def test_a_point_mass_stays_where_it_is(name, schedule):
    """x0 is the network's answer, so x is alpha x0 + sigma times some noise, and x0 at the end."""
    plan = composed(plan_of(name, schedule), "ulmc:n=2")
    random = np.random.default_rng(0)
    x0 = np.array([0.3, -1.2, 2.0])
    x = schedule.alpha(plan.start) * x0 + schedule.sigma(plan.start) * random.normal(size=3)
    stages = walk(plan, lambda x, t: x0, x, lambda i, z: random.normal(size=3))
    np.testing.assert_allclose(stages[-1]["x"], x0, atol=1e-12)
    assert all(np.isfinite(row).all() for rows in stages for row in rows.values())


def test_with_no_calls_the_plan_comes_back():
    plan = plan_of("dpmpp_2m")
    assert composed(plan, "ulmc", n=0) is plan
    assert composed(plan, "ulmc:n=0") is plan
    assert composed(plan, "ulmc", where=[]) is plan
    assert composed(plan, "ulmc", where=lambda t: False) is plan


def visited(plan, made):
    """The model times of the calls that the new plan has more, one a visit of one call."""
    more = made.call_times.tolist()
    for t in plan.call_times.tolist():
        more.remove(t)
    return more


def test_where():
    grid = df.grids.karras(EDM, 5, sigma_max=10.0)
    plan = df.solvers.euler(EDM, grid)
    noisy = grid[1:-1].tolist()
    assert visited(plan, composed(plan, "olmc")) == noisy
    assert visited(plan, composed(plan, "olmc", where="all")) == noisy
    assert visited(plan, composed(plan, "olmc", where="last")) == noisy[-1:]
    assert visited(plan, composed(plan, "olmc", where=[0, 2])) == grid[[0, 2]].tolist()
    assert visited(plan, composed(plan, "olmc", where=np.array([-2]))) == grid[[-2]].tolist()
    assert visited(plan, composed(plan, "olmc", where=lambda t: t > 1)) == [
        t for t in noisy if t > 1
    ]
    early = df.solvers.heun(EDM, grid[:-1])
    made = composed(early, "olmc", where="last")
    assert visited(early, made) == [grid[-2]]
    assert made.call_times[-1] == made.end == grid[-2]


def test_a_text_may_limit_the_levels():
    for schedule in (EDM, FLOW):
        grid = df.grids.karras(schedule, 12, sigma_max=10.0)
        plan = df.solvers.dpmpp_2m(schedule, grid)
        ratio = schedule.sigma(grid[1:-1]) / schedule.alpha(grid[1:-1])
        for text, low, high in (("low=0.8", 0.8, 99), ("high=2", 0, 2), ("low=0.8,high=2", 0.8, 2)):
            wanted = grid[1:-1][(low <= ratio) & (ratio <= high)].tolist()
            assert len(wanted) not in (0, len(ratio))
            assert visited(plan, composed(plan, f"baoab:n=1,{text}")) == wanted
        with pytest.raises(
            ValueError, match="sigma/alpha of 0.8 to 0.81, but the steps of dpmpp_2m"
        ):
            composed(plan, "baoab:low=0.8,high=0.81")


def test_a_corrector_before_the_first_step():
    plan = plan_of("heun")
    made = composed(plan, "ulmc:n=3", where=[0])
    assert (made.call_times[:4] == plan.start).all()
    np.testing.assert_allclose(standing(made, "x")[:3], [[1.0, 10.0]] * 3)


# --- the plan's own history ---


def errors(build, corrector, counts=(10, 20, 40)):
    """Relative errors of the variance of N(0, 0.3) data; visits at every step but the last."""
    found = []
    for count in counts:
        grid = df.grids.karras(EDM, count, sigma_max=10.0, sigma_min=0.1, to_zero=False)
        plan = build(EDM, grid)
        if corrector is not None:
            plan = composed(plan, corrector, where=range(1, count))
        found.append(law(plan, 0.0, 0.3)[1] / level(plan, plan.end, 0.0, 0.3)[1] - 1)
    return np.array(found)


@pytest.mark.parametrize(
    "build",
    [df.solvers.dpmpp_2m, df.solvers.deis, partial(df.solvers.adams, order=2), df.solvers.lms],
    ids=["dpmpp_2m", "deis", "adams", "lms"],
)
def test_the_history_goes_along_with_the_state(build):
    """With visits of the exact law, a multistep plan is as good as Heun, at half the calls."""
    text = "baoab:n=4,step=0.6"
    multistep, heun = errors(build, text), errors(df.solvers.heun, text)
    assert np.abs(multistep).max() < 0.03
    assert np.abs(multistep[1:]).max() < 1.5 * np.abs(heun[1:]).max() + 0.002
    # with entries of the path before the visit it would be ten times as much
    assert np.abs(errors(df.solvers.euler, text)).max() > 0.05


def test_entries_are_read_as_moved_along():
    """Stage by stage: the new plan reads h1 + (new - old), as the file says."""
    grid = df.grids.karras(EDM, 4, sigma_max=10.0)
    plan = df.solvers.dpmpp_2m(EDM, grid)
    made = composed(plan, "olmc", where=[2])
    random = np.random.default_rng(1)
    answers = {}

    def denoise(x, t):
        answers.setdefault(t, []).append(0.3 * x + np.sin(x + t))
        return answers[t][-1]

    x = 10 * random.normal(size=5)
    stages = walk(made, denoise, x, lambda i, z: random.normal(size=5))
    old, new = answers[grid[2]]
    before, after = answers[grid[1]][0], stages[3]["x"]
    at = stages[2]["x"]  # after the visit
    want = plan.weights("x", "x")[2] * at + plan.weights("x", "d")[2] * new
    h = {"d": plan.weights("h", "d")[2]}
    want += plan.weights("x", "h0")[2] * h["d"] * new
    want += plan.weights("x", "h1")[2] * plan.weights("h", "d")[1] * (before + new - old)
    np.testing.assert_allclose(after, want, rtol=1e-12)
    # and what follows reads the entry of the call after the visit as it is
    want = plan.weights("x", "x")[3] * after + plan.weights("x", "d")[3] * answers[grid[3]][0]
    np.testing.assert_allclose(stages[4]["x"], want, rtol=1e-12)


def test_gradients_of_guidance_are_part_of_the_score():
    """Of a plan that weighs them: the visit ends where score and gradient are in balance."""
    weight, variance = 0.7, 0.3
    plan = df.solvers.ltsp(EDM, [2.0, 1.0, 0.5])
    made = composed(plan, "baoab:n=120", where=[1])

    def run(guided):
        gradients = {"g1": lambda x, t: -weight * (x - 1.0) * guided}
        stages = walk(
            made,
            lambda x, t: x * variance / (variance + t**2),
            np.array([1.7]),
            None,
            None,
            gradients,
        )
        at = int(np.flatnonzero(made.times == 1.0)[-1])  # the plan's call after the visit
        return stages[at - 1]["x"]

    wanted = weight / (weight + 1 / (variance + 1.0))
    np.testing.assert_allclose(run(1.0), wanted, rtol=1e-9)
    np.testing.assert_allclose(run(0.0), 0.0, atol=1e-9)
    # remembered gradients stay what they are
    additive = composed(df.solvers.additive_multistep(EDM, [4.0, 2.0, 1.0, 0.5]), "olmc", where=[1])
    assert np.isfinite(additive.matrix).all()


@pytest.mark.parametrize("calls", [8, 10])
def test_tuned_plans_are_scaled_to_the_schedules_level_and_back(calls):
    """They have x at levels of their own, and tell the network other times."""
    plan = df.digits.load_plan(calls)
    levels = standing(plan, "x")[:-1]
    assert (np.abs(levels[:, 0] - 1.0) > 0.01).any()
    made = composed(plan, "baoab:n=4")
    assert made.made_for is None
    first = [k for k, t in enumerate(made.call_times[:-1]) if made.call_times[k + 1] == t]
    visit = np.array(first)[np.isin(np.array(first) - 1, first, invert=True)]
    np.testing.assert_allclose(standing(made, "x")[visit, 0], 1.0, rtol=1e-12)  # on the schedule
    np.testing.assert_allclose(standing(made, "x")[visit + 3], levels, rtol=1e-12)  # and back
    ratio = levels[:, 1] / levels[:, 0]
    np.testing.assert_allclose(made.call_times[visit], ratio, rtol=1e-12)
    error = law(made, 0.0, 0.3)[1] / level(made, made.end, 0.0, 0.3)[1] - 1
    assert abs(error) < 0.05
    x0 = np.array([0.3, -1.2])
    random = np.random.default_rng(0)
    x = plan.initial_scale * random.normal(size=2) + x0
    found = walk(made, lambda x, t: x0, x, lambda i, z: random.normal(size=2))
    np.testing.assert_allclose(found[-1]["x"], x0, atol=1e-12)


# --- executors ---

SHAPE, IDS = (3, 4), [5, 1, 8]


def network(x, t):
    t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return torch.tanh(x) * 0.5 + x * 0.3 / (0.3 + t**2)


def denoiser(**options):
    return df.Denoiser(network, EDM, "x0", **options)


PLANS = {
    "dpmpp_2m + ulmc": composed(plan_of("dpmpp_2m"), "ulmc:n=2"),
    "heun + lm": composed(plan_of("heun"), "lm:n=2"),
    "euler_ancestral + olmc": composed(plan_of("euler_ancestral"), "olmc:n=2"),
    "churn + baoab": composed(plan_of("churn", s_churn=5.0), "baoab:n=2", where=[1, 3]),
    "dpum": df.solvers.dpum(EDM, df.grids.ou_stages(EDM, 2, start=10.0, to_zero=True)),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@each_plan
@pytest.mark.parametrize("clamp", [None, (-0.8, 0.9)])
def test_the_stepper_has_the_bits_of_sample(plan, clamp):
    x = 10 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    wanted = df.sample(denoiser(), plan, x=x, seed=2, ids=IDS, clamp=clamp).x
    stepper = df.Stepper(plan, denoiser(), clamp=clamp)
    for each in (False, True):
        state, at, t = stepper.start(x, seed=2, ids=IDS, each=each)
        for _ in range(plan.nfe):
            state, at, t = stepper.step(state, network(at, t))
        assert torch.equal(state.x, wanted)


@each_plan
def test_the_parallel_run_has_the_bits_of_sample_or_refuses(plan):
    if {"y", "v"} <= {*plan.rows}:
        with pytest.raises(ValueError, match="carries y and v beside x, but a sweep carries one"):
            df.sample_parallel(denoiser(), plan, SHAPE, seed=2, ids=IDS)
        return
    wanted = df.sample(denoiser(), plan, SHAPE, seed=2, ids=IDS).x
    found = df.sample_parallel(denoiser(), plan, SHAPE, seed=2, ids=IDS, tol=0.0)
    assert torch.equal(found.x, wanted)


def test_dpum_runs_in_blocks():
    plan = PLANS["dpum"]
    wanted = df.sample(denoiser(), plan, SHAPE, seed=2, ids=IDS).x
    found = df.sample_parallel(denoiser(), plan, SHAPE, seed=2, ids=IDS, method="piadm", tol=0.0)
    assert torch.equal(found.x, wanted)


@each_plan
def test_hooks_guidance_and_half_networks(plan):
    seen = []

    def hook(x0, info):
        seen.append(info.stage)
        return x0.clamp(-0.8, 0.9)

    hooked = df.sample(denoiser(), plan, SHAPE, seed=2, ids=IDS, on_x0=hook).x
    clamped = df.sample(denoiser(), plan, SHAPE, seed=2, ids=IDS, clamp=(-0.8, 0.9)).x
    torch.testing.assert_close(hooked, clamped, rtol=1e-5, atol=1e-5)
    assert seen == list(range(plan.nfe))

    def shifted(x, t, shift):
        return network(x, t) + shift.to(x.dtype)[:, None]

    conditions = {"shift": torch.full((3,), 0.2)}, {"shift": torch.zeros(1)}
    guided = df.Denoiser(
        shifted, EDM, "x0", conditions=conditions[0], unconditional=conditions[1], guidance=2.0
    )
    plain = df.Denoiser(lambda x, t: network(x, t) + 0.4, EDM, "x0")
    got, wanted = (df.sample(d, plan, SHAPE, seed=2, ids=IDS).x for d in (guided, plain))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    half = denoiser(dtype=torch.bfloat16)
    assert df.sample(half, plan, SHAPE, seed=2, ids=IDS).x.isfinite().all()


@each_plan
@pytest.mark.parametrize("kind", ["json", "npz"])
def test_files_come_back_to_the_last_bit(plan, kind, tmp_path):
    plan.save(tmp_path / f"plan.{kind}")
    back = Plan.load(tmp_path / f"plan.{kind}")
    for field in ("times", "matrix", "levels", "spans", "blocks"):
        one, two = getattr(plan, field), getattr(back, field)
        assert (one is None and two is None) or np.array_equal(one, two, equal_nan=True), field
    for field in ("rows", "columns", "start", "end", "steps", "name", "check", "schedule"):
        assert getattr(plan, field) == getattr(back, field), field


def test_guidance_of_a_plan_is_that_of_the_next_call():
    plan = plan_of("euler", steps=4)
    scales = np.array([1.0, 2.0, 3.0, 4.0])
    plan = Plan(**{**{f: getattr(plan, f) for f in plan.__dataclass_fields__}, "guidance": scales})
    made = composed(plan, "olmc:n=2", where=[1, 3])
    assert made.guidance.tolist() == [1.0, 2.0, 2.0, 2.0, 3.0, 4.0, 4.0, 4.0]


def test_blocks_go_along():
    grid = df.grids.ou_early(VP, 6)
    plan = df.solvers.piadm_ode(VP, grid, block=3.0)
    made = composed(plan, "ulmc:n=2", where=[1, 6])
    firsts = [first + 2 * (first >= 1) for first in plan.blocks.tolist()]
    assert made.blocks.tolist() == sorted({*firsts, 1, 3, 8})
    assert composed(plan_of("euler"), "olmc").blocks is None


# --- robustness, sampled ---


@pytest.mark.parametrize(
    ("text", "exact", "start"),
    [(None, 0.011, 0.340), ("olmc", 0.015, 0.016), ("ulmc", 0.024, 0.024), ("baoab", 0.013, 0.012)],
)
@pytest.mark.slow
def test_a_mixture_from_an_exact_and_from_a_wrong_start(text, exact, start):
    """W1 of 48 calls on 0.3 N(-1, 0.04) + 0.7 N(1, 0.04); "start" has half of the noise.

    The wanted figures are those of a mixture of these weights whose other numbers are not known.
    """
    truth = Mixture(EDM, [[-1.0]] * 3 + [[1.0]] * 7, 0.2)
    sigma = np.geomspace(20.0, 0.02, (48 if text is None else 24) + 1)
    plan = df.solvers.euler(EDM, sigma)
    if text is not None:
        plan = composed(plan, text, n=3, where=range(3, 25, 3))
    assert plan.nfe == 48
    random = np.random.default_rng(0)
    count = 20_000
    which = np.where(random.random(20 * count) < 0.7, 1.0, -1.0)
    wanted = which + np.hypot(0.2, 0.02) * random.normal(size=20 * count)
    wanted = np.sort(wanted).reshape(count, 20).mean(1)
    network = df.Denoiser(Network(truth), EDM, predicts="x0")
    for spread, figure in ((1.0, exact), (0.5, start)):
        x = df.ops.normal((count, 1), seed=1, scale=20.0 * spread)
        found = np.sort(df.sample(network, plan, x=x, seed=1).x[:, 0].double().numpy())
        assert abs(np.abs(found - wanted).mean() - figure) < 0.012


# --- refusals ---


def momentum_plan():
    """Two steps, the second with a momentum that is drawn in the first."""
    stages = Stages(EDM, 4.0)
    stages.add(4.0, 2.0, {"x": 0.5, "d": 0.5}, v={"z2": 1.0})
    stages.add(2.0, 1.0, {"x": 0.4, "d": 0.6, "v": 0.6})
    return stages.plan("momentum", 2)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: composed(plan_of("unipc"), "ulmc"), "no step of unipc.* begins at x alone"),
        (lambda: composed(plan_of("pec"), "olmc"), "no step of pec begins at x alone"),
        (lambda: composed(plan_of("euler"), 3), "corrector is a int, but one of df.correctors"),
        (lambda: composed(plan_of("euler"), "best"), "corrector 'best' is not known"),
        (lambda: composed(plan_of("euler"), "ulmc:n=2", n=3), "n = 3 is given, but .* says n = 2"),
        (lambda: composed(plan_of("euler"), "ulmc", n=-1), "n = -1, but it must be a whole number"),
        (
            lambda: composed(plan_of("euler"), "ulmc", n=1.5),
            "n = 1.5, but it must be a whole number",
        ),
        (lambda: composed(plan_of("euler"), "ulmc", where=[9]), "where has 9, but euler.* 0 to 5"),
        (lambda: composed(plan_of("euler"), "ulmc", where=[0.5]), "where has 0.5, but"),
        (
            lambda: composed(plan_of("euler"), "ulmc", where=[-1]),
            r"where has -1, but sigma = 0 there",
        ),
        (lambda: composed(plan_of("euler"), "ulmc", where="first"), "where = 'first', but it must"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


def test_a_plans_own_momentum_is_kept_or_the_corrector_refused():
    plan = momentum_plan()
    with pytest.raises(ValueError, match="holds a momentum after stage 0, .*: take 'overdamped'"):
        composed(plan, "ulmc:n=2", where=[1])
    for text in ("olmc:n=2", "ulmc"):  # one call of a momentum's dynamics needs no register
        made = composed(plan, text, where=[1])
        assert made.weights("v", "v")[1] == 1.0
        assert made.weights("x", "v")[-1] == 0.6
    assert composed(plan, "ulmc:n=2", where="last").weights("x", "v").any()


def test_noise_on_a_path_is_refused_in_words():
    with pytest.raises(ValueError, match="puts noise back at stage 1, from t = .* but a path goes"):
        df.sample(denoiser(), composed(plan_of("euler"), "olmc"), SHAPE, noise="path")
    with pytest.raises(ValueError, match="draws 2 normals at stage 1, but 1 a stage can be given"):
        df.sample(denoiser(), composed(plan_of("euler"), "ulmc:n=2"), SHAPE, noise="path")
