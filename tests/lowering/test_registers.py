"""Plans that weigh guidance gradients, and plans that carry a state and a momentum beside x."""

import numpy as np
import pytest
import torch
from numpy_executor import run as run_numpy
from plan_tables import weighed
from stepwise_runs import run as step_through
from stepwise_runs import staggered
from unrolled_runs import check_unrolled

import diffast as df
from diffast import ops
from diffast.executors.stepwise import Stepper
from diffast.lowering.program import COND, Constraints, lower
from diffast.lowering.sweep_tables import tables_of
from diffast.plans import Stages

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 5, sigma_min=0.1, to_zero=False)
IDS = [5, -3, 2**61, 0]
LIMITS = (-0.3, 0.25)


def ddim(start, end):
    """Weights (keep, new) of a step without noise."""
    (alpha_s, alpha_t), (sigma_s, sigma_t) = (
        f(np.array([start, end])) for f in (VP.alpha, VP.sigma)
    )
    keep = sigma_t / sigma_s
    return float(keep), float(alpha_t - alpha_s * keep)


def estimate(x, t):
    """Sums, products and quotients alone: the same bits in torch, whatever the batch."""
    return (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t)


def network(x, t):
    return estimate(x, t.reshape(-1, 1).to(x.dtype))


def denoiser_of(call=network, **options):
    return df.Denoiser(call, VP, predicts="x0", **options)


def initial(dtype=torch.float64):
    return ops.normal((4, 5), seed=4, dtype=dtype)


def fresh(slot, seed=7):
    """The kernel's own normals of one slot of a call, float64."""

    def normal(i):
        zeros = torch.zeros((4, 5), dtype=torch.float64)
        weights = [[1.0, 0.0]] if slot == 0 else [[0.0, 1.0]]
        options = {"noise": weights, "seed": seed, "stage": i, "ids": torch.tensor(IDS)}
        return ops.combine([zeros], [[0.0]], **options)[0].numpy()

    return normal


# --- gradients of guidance terms ------------------------------------------------------------------


def pulled(strength=0.1, second=0.0):
    """Euler, with a multiple of one gradient or two added after each step."""
    stages = Stages(VP, GRID[0])
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        keep, new = ddim(start, end)
        more = {"g2": second} if second else {}
        stages.add(start, end, {"x": keep, "d": new, "g1": strength * end} | more)
    return stages.plan("pulled", len(GRID) - 1)


def pull(x, t):
    return (0.5 - x) * (1 + t)


def push(x, t):
    return 0.1 * x * x


def guided(count=2, predicts="x0"):
    """A denoiser with so many guidance terms."""
    terms = [
        df.guidance.gradient(lambda x, t, f=f: f(x, t.reshape(-1, 1))) for f in (pull, push)[:count]
    ]
    return df.Denoiser(network, VP, predicts=predicts, guides=terms)


@pytest.mark.parametrize("second", [0.0, -0.2])
def test_gradients_add_to_a_run_what_a_loop_by_hand_adds(second):
    plan, x = pulled(second=second), initial().numpy()
    want = x
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        keep, new = ddim(start, end)
        more = 0.1 * end * pull(want, start) + second * push(want, start)
        want = keep * want + new * estimate(want, start) + more
    got = run_numpy(plan, estimate, x, gradients={"g1": pull, "g2": push})[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)
    denoiser = guided(1 + bool(second))
    sampled = df.sample(denoiser, plan, x=initial()).x
    np.testing.assert_allclose(sampled.numpy(), want, rtol=0, atol=1e-13)
    hooked = {"clamp": LIMITS}
    sampled = df.sample(denoiser, plan, x=initial(), **hooked).x
    gradients = {"g1": pull, "g2": push}
    want = run_numpy(plan, estimate, x, change=lambda d: d.clip(*LIMITS), gradients=gradients)[-1]
    np.testing.assert_allclose(sampled.numpy(), want, rtol=0, atol=1e-13)


def test_gradients_are_columns_of_the_calls_by_their_own_name():
    plan = pulled(second=-0.2)
    assert plan.columns == ("x", "d", "g1", "g2")
    for how in (Constraints(), Constraints(clamp=True), Constraints(hook=True)):
        program = lower(plan, guided(2, "epsilon"), how)
        assert program.gradients == 2
        for i, stage in enumerate(program.stages):
            call = stage.calls[-1]
            rows = np.reshape(call.weights, (len(call.targets), -1))
            row = dict(zip(call.columns, rows[call.targets.index("x")], strict=False))
            assert (row["g1"], row["g2"]) == (plan.weights("x", "g1")[i], -0.2)
            assert COND in stage.calls[0].columns
            assert {"g1", "g2"}.isdisjoint(stage.x0.weights)
    assert lower(pulled(), guided(1)).gradients == 1
    assert lower(pulled(), guided(2)).gradients == 2  # g1 alone stands for all terms
    assert lower(df.solvers.euler(VP, GRID), df.Prediction(VP, "x0")).gradients == 0


def test_a_plan_with_gradients_is_checked_as_if_they_were_zero():
    plan, plain = pulled(), df.solvers.euler(VP, GRID)
    assert plan.check == "full"
    check_unrolled(plan)
    for column in ("x", "d"):
        np.testing.assert_allclose(
            plan.weights("x", column), plain.weights("x", column), rtol=1e-13
        )
        with pytest.raises(ValueError, match="Plan pulled: stage 1: x holds"):
            weighed(plan, "x", column, 1, 0.9)
    assert weighed(plan, "x", "g1", 1, 123.0).nfe == 5  # how strong a term is nobody knows
    assert "+0.1 g1" in str(weighed(plan, "x", "g1", 0, 0.1))


@pytest.mark.parametrize(
    ("act", "facts"),
    [
        (
            lambda p: df.sample(denoiser_of(), p, x=initial()),
            "plan pulled weighs g1, gradients of guidance terms, but the denoiser has none",
        ),
        (
            lambda p: Stepper(p, denoiser_of()),
            "plan pulled weighs g1, gradients of guidance terms, but the denoiser has none",
        ),
        (
            lambda p: df.sample_parallel(denoiser_of(), p, x=initial()),
            "sample_parallel: pulled weighs the gradients g1 of guidance terms, but only df.sample",
        ),
        (lambda p: tables_of(p, denoiser_of()), "sample_parallel: pulled weighs the gradients g1"),
    ],
)
def test_who_makes_no_gradients_says_so(act, facts):
    with pytest.raises(ValueError, match=facts):
        act(pulled())


# --- a state and a momentum beside x --------------------------------------------------------------


def underdamped(turn=0.6, kept=0.9):
    """Two calls a step: a first guess from y; then y's and x's noise and v turned into each other.

    The noise of the second x is cos times the mean noise of y and x plus sin times v; v is what is
    orthogonal to it, partly drawn anew. All levels are exact.
    """
    left, drawn = np.sqrt(1 - turn**2), np.sqrt(1 - kept**2)
    stages = Stages(VP, GRID[0])
    for n, (start, end) in enumerate(zip(GRID[:-1], GRID[1:], strict=True)):
        keep, new = ddim(start, end)
        v = "keep" if n else {"z1": 1.0}
        stages.add(start, end, {"y": keep, "d": new}, y="keep", v=v, h={"d": 1.0})
        (alpha_s, alpha), (sigma_s, sigma) = (
            f(np.array([start, end])) for f in (VP.alpha, VP.sigma)
        )
        noise = {"y": 0.5 / sigma_s, "x": 0.5 / sigma}
        noise |= {"d": -0.5 * alpha_s / sigma_s - 0.5 * alpha / sigma}
        x = {name: sigma * left * weight for name, weight in noise.items()}
        x = x | {"v": sigma * turn, "d": x["d"] + 0.7 * alpha, "h1": 0.3 * alpha}
        v = {name: -kept * turn * weight for name, weight in noise.items()}
        v |= {"v": kept * left, "z2": drawn}
        stages.add(end, end, x, v=v if n + 2 < len(GRID) else None, h={})
    return stages.plan("underdamped", len(GRID) - 1)


PLAN = underdamped()
HOWS = {
    "plain": ({}, None),
    "clamp": ({"clamp": LIMITS}, lambda d: d.clip(*LIMITS)),
    "hook": ({"on_x0": lambda x0, stage, *_: 0.5 * x0}, lambda d: 0.5 * d),
}
each_how = pytest.mark.parametrize("how", HOWS)


def options_of(how):
    """The options of a run, whose hook takes whatever it is told."""
    return {name: value for name, value in HOWS[how][0].items()}


def test_x_y_and_v_are_carried_and_checked():
    assert PLAN.check == "full"
    assert PLAN.rows == ("h", "y", "v", "x")
    program = lower(PLAN, denoiser_of())
    assert program.carried == ("y", "v")
    assert (program.slots, program.buffers) == (1, 4)
    momenta = PLAN.levels[:, PLAN.rows.index("v")]
    assert momenta[:-1].tolist() == [[0.0, 1.0]] * (PLAN.stages - 1)
    assert PLAN.step_starts().tolist() == [0, 2, 4, 6, 8]
    assert [sorted(stage.keeps) for stage in program.stages[:4]] == [["y"], [], ["v", "y"], []]
    assert [*program.stages[1].rows] == ["v", "x"]
    check_unrolled(PLAN)
    for column in ("y", "x", "v", "z2", "d"):
        weight = PLAN.weights("v", column)[1]
        with pytest.raises(ValueError, match="stage (1: v|3: y) holds (noise of level|x0 with)"):
            weighed(PLAN, "v", column, 1, 1.001 * weight)


@each_how
def test_a_run_with_momentum_is_the_run_in_numpy(how):
    change = HOWS[how][1]
    got = df.sample(denoiser_of(), PLAN, x=initial(), seed=7, ids=IDS, **options_of(how)).x
    want = run_numpy(PLAN, estimate, initial().numpy(), fresh(0), fresh(1), change)[-1]
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_how
def test_a_stepper_gives_the_bits_of_sample(how, dtype):
    x, denoiser, options = initial(dtype), denoiser_of(), options_of(how)
    wanted = df.sample(denoiser, PLAN, x=x, seed=7, ids=IDS, **options).x
    stepper = Stepper(PLAN, denoiser, **options)
    assert stepper.carried == ("y", "v")
    for each in (False, True):
        begin = stepper.start(x, seed=7, ids=IDS, each=each)
        assert torch.equal(step_through(stepper, *begin, call=network).x, wanted)
    ragged = staggered(stepper, x, calls=(0, 3, 2, 5), call=network)
    assert torch.equal(step_through(stepper, *ragged, call=network, extra=2).x, wanted)


def test_guidance_and_half_precision_give_the_bits_of_sample():
    shift = torch.full((4, 5), 0.3)

    def shifted(x, t, shift):
        return network(x.float(), t) + shift

    nothing = {"shift": shift[:1] * -0.5}
    for dtype in (None, torch.bfloat16):
        options = {"conditions": {"shift": shift}, "unconditional": nothing, "guidance": 1.7}
        denoiser = denoiser_of(shifted, dtype=dtype, **options)
        x = initial(torch.float32)
        wanted = df.sample(denoiser, PLAN, x=x, seed=7, ids=IDS).x
        stepper = Stepper(PLAN, denoiser, dtype=dtype)

        def pair(x, t):
            return shifted(x, t, 0.3), shifted(x, t, 0.3 * -0.5)

        for each in (False, True):
            begin = stepper.start(x, seed=7, ids=IDS, each=each)
            assert torch.equal(step_through(stepper, *begin, call=pair).x, wanted)


def test_a_sweep_carries_one_register_beside_x():
    for act in (
        lambda: df.sample_parallel(denoiser_of(), PLAN, x=initial()),
        lambda: tables_of(PLAN, denoiser_of()),
    ):
        with pytest.raises(
            ValueError,
            match="plan underdamped carries y and v beside x, but a sweep",
        ):
            act()
