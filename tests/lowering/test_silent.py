"""Stages that call no network: joined to the calls before them, the same for every executor."""

import numpy as np
import pytest
import torch
from numpy_executor import normals_of
from numpy_executor import run as run_numpy
from plan_tables import inserted
from stepwise_runs import run as step_through
from stepwise_runs import staggered
from test_registers import (
    GRID,
    IDS,
    LIMITS,
    VP,
    ddim,
    denoiser_of,
    estimate,
    fresh,
    initial,
    network,
)
from unrolled_runs import check_unrolled

import diffast as df
from diffast import ops, solvers
from diffast.executors.stepwise import Stepper
from diffast.lowering.program import Constraints, lower
from diffast.plans import Stages

READS = df.Prediction(VP, "x0")


def raised(start, end):
    """Weights (keep, fresh) that put noise back from one time to a noisier one."""
    times = np.array([start, end])
    (alpha_s, alpha_t), (sigma_s, sigma_t) = VP.alpha(times), VP.sigma(times)
    keep = alpha_t / alpha_s
    return float(keep), float(np.sqrt(sigma_t**2 - (keep * sigma_s) ** 2))


def noisier(t, by=0.1):
    return float(VP.time(VP.lam(t) - by))


def opened(*rows):
    """A multistep plan behind stages without a call, which need not keep its level."""
    plan = solvers.dpmpp_2m(VP, GRID)
    for row in reversed(rows):
        plan = inserted(plan, 0, {"x": row}, GRID[0], check="finite", start=GRID[0])
    return plan


def churned(reuse=False):
    """Multistep steps of three entries; after each step noise is put back without a call.

    Where `reuse`, the stage without a call weighs the entry of the call before it and an older one.
    """
    stages, at = Stages(VP, GRID[0]), float(GRID[0])
    for n, end in enumerate(GRID[1:]):
        keep, new = ddim(at, end)
        row = {"x": keep, "d": 1.3 * new, "h1": -0.2 * new, "h2": -0.1 * new}
        row = row if n > 1 else {"x": keep, "d": new}
        stages.add(at, end, row)
        up = noisier(end)
        more, up_noise = raised(end, up)
        row = {"x": more, "z1": up_noise}
        if reuse and n:
            row |= {"h1": 0.05, "h2": -0.05}  # the call's own entry, and the one before
        stages.add(None, up, row)
        at = up
    stages.add(at, GRID[-1], dict(zip(("x", "d"), ddim(at, GRID[-1]), strict=True)))
    return stages.plan("churned", len(GRID) - 1)


def between(plan, rows, **options):
    """A plan with a stage without a call after its third."""
    return inserted(plan, 3, rows, GRID[3], check="finite", **options)


ANCESTRAL = solvers.euler_ancestral(VP, GRID)
PLANS = {
    "scaled first": opened({"x": 0.7}),
    "scaled, then noise": opened({"x": 0.7}, {"x": 0.9, "z1": 0.4}),
    "noise, then scaled": opened({"x": 0.9, "z1": 0.4}, {"x": 0.7}),
    "churned": churned(),
    "reuses entries": churned(reuse=True),
    "second normal": between(ANCESTRAL, {"x": {"x": 0.8, "z1": 0.3}}),
    "of two steps": between(solvers.heun(VP, GRID), {"x": {"x": 0.8, "z1": 0.3, "h1": 0.1}}),
    "y stays": between(solvers.heun(VP, GRID), {"x": {"x": 0.8, "y": 0.2}, "y": {"y": 1.0}}),
    "y from x": between(solvers.unipc(VP, GRID), {"x": {"y": 1.1, "z1": 0.2}, "y": {"x": 0.9}}),
    "y is x again": between(solvers.unipc(VP, GRID), {"x": {"x": 0.8, "h2": 0.1}}),
    "at last": inserted(
        solvers.heun(VP, GRID), 10, {"x": {"x": 0.8, "z1": 0.3}}, GRID[-1], check="finite"
    ),
    "two in a row": between(
        between(solvers.heun(VP, GRID), {"x": {"x": 0.8, "z1": 0.3}}), {"x": {"x": 1.1, "z1": 0.2}}
    ),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def wanted_of(plan, change=None, noise=None, second=None):
    """The sample of the numpy executor, on the package's normals if no others are given."""
    if noise is None:
        slots = {"noise": fresh(0), "second": fresh(1)}

        def noise(i):
            return opening() if i == -1 else slots["noise"](i)

        second = slots["second"]
    return run_numpy(plan, estimate, initial().numpy(), noise, second, change)[-1]


def opening(seed=7):
    options = {"seed": seed, "stage": ops.OPENING_NOISE, "ids": torch.tensor(IDS)}
    return ops.normal((4, 5), dtype=torch.float64, **options).numpy()


@each_plan
def test_unrolled_they_are_stages_like_others(plan):
    assert plan.nfe < plan.stages
    check_unrolled(plan)


@pytest.mark.parametrize("how", ["plain", "clamp"])
@each_plan
def test_samples_are_those_of_the_numpy_executor(plan, how):
    options = {"clamp": LIMITS} if how == "clamp" else {}
    change = (lambda d: d.clip(*LIMITS)) if how == "clamp" else None
    got = df.sample(denoiser_of(), plan, x=initial(), seed=7, ids=IDS, **options)
    np.testing.assert_allclose(got.x.numpy(), wanted_of(plan, change), rtol=0, atol=1e-12)
    assert got.nfe.tolist() == [plan.nfe] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_plan
def test_executors_agree_to_the_bit(plan, dtype):
    x, denoiser = initial(dtype), denoiser_of()
    wanted = df.sample(denoiser, plan, x=x, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser)
    for each in (False, True):
        begin = stepper.start(x, seed=7, ids=IDS, each=each)
        assert torch.equal(step_through(stepper, *begin, call=network).x, wanted)
    ragged = staggered(stepper, x, call=network, calls=(0, 3, 1, 4))
    assert torch.equal(step_through(stepper, *ragged, call=network, extra=2).x, wanted)
    swept = df.sample_parallel(denoiser, plan, x=x, seed=7, ids=IDS, tol=0.0)
    assert torch.equal(swept.x, wanted)


def test_given_noise_is_asked_for_once_a_call():
    plan = churned(reuse=True)
    drawn, asked = {i: fresh(0, seed=50)(i) for i in range(plan.nfe)}, []

    def noise(stage):
        asked.append(stage)
        return torch.from_numpy(drawn[stage])

    got = df.sample(denoiser_of(), plan, x=initial(), noise=noise).x
    np.testing.assert_allclose(got, wanted_of(plan, None, drawn.get), rtol=0, atol=1e-12)
    assert asked == [0, 1, 2, 3, 4]  # the last call adds none


def test_noise_of_a_silent_stage_takes_what_is_left_of_the_call_s_two():
    assert set(normals_of(PLANS["second normal"]).values()) == {0, 1}
    for name, first in (("second normal", 3), ("churned", None)):
        plan = PLANS[name]
        program = lower(plan, READS)
        seconds = [i for i, stage in enumerate(program.stages) if stage.rows["x"].second]
        assert seconds == ([] if first is None else [2])
    assert lower(PLANS["second normal"], READS).stages[2].calls[-1].noise == pytest.approx(
        [0.8 * ANCESTRAL.weights("x", "z1")[2], 0.3], rel=1e-15
    )


def test_a_stage_without_a_call_is_multiplied_into_the_call_before_it():
    plan = churned(reuse=True)
    program = lower(plan, READS)
    assert len(program.stages) == plan.nfe == 6
    assert program.opening is None
    for i in (1, 3):
        call, silent = (
            {column: plan.weights("x", column)[2 * i + k] for column in plan.columns}
            for k in (0, 1)
        )
        row = program.stages[i].rows["x"]
        keep = silent["x"]
        assert row.noise == silent["z1"]
        # the call's own entry is its estimate, h1 for the stage behind it
        made = keep * call["d"] + silent["h1"]
        assert row.weights["cond"] == pytest.approx(made, rel=1e-14)
        # its h2 is what the call's rows call h1
        older = keep * call["h1"] + silent["h2"]
        held = {name: w for name, w in row.weights.items() if name.startswith("slot")}
        newest = f"slot{program.stages[i].held[-1]}"
        assert held[newest] == pytest.approx(older, rel=1e-14)
        assert len(held) == (2 if call["h2"] else 1)


def test_openings_are_products():
    assert lower(PLANS["scaled first"], READS).opening == (0.7, 0.0)
    assert lower(PLANS["scaled, then noise"], READS).opening == (0.9 * 0.7, 0.4)
    assert lower(PLANS["noise, then scaled"], READS).opening == (0.7 * 0.9, 0.7 * 0.4)
    joined = inserted(
        solvers.heun(VP, GRID),
        0,
        {"x": {"y": 0.5, "x": 0.2}},
        GRID[0],
        check="finite",
        start=GRID[0],
    )
    assert lower(joined, READS).opening == (0.7, 0.0)


def momentum():
    """A momentum drawn after the first call, then turned in a stage without a call."""
    stages = Stages(VP, GRID[0])
    keep, new = ddim(GRID[0], GRID[1])
    stages.add(GRID[0], GRID[1], {"x": keep, "d": new}, v={"z1": 1.0})
    stages.add(None, GRID[1], {"x": 1.0}, v={"v": 0.6, "z1": 0.8})
    keep, new = ddim(GRID[1], GRID[2])
    stages.add(GRID[1], GRID[2], {"x": keep, "d": new, "v": 0.1})
    return stages.plan("momentum", 2, check="x0")


def test_momenta_pass_through_stages_without_a_call():
    plan = momentum()
    row = lower(plan, READS).stages[0].rows["v"]
    assert (row.noise, row.second, dict(row.weights)) == (0.6, 0.8, {})
    got = df.sample(denoiser_of(), plan, x=initial(), seed=7, ids=IDS).x
    np.testing.assert_allclose(got.numpy(), wanted_of(plan), rtol=0, atol=1e-13)


def entry_of_its_own():
    stages = Stages(VP, GRID[0])
    keep, new = ddim(GRID[0], GRID[1])
    stages.add(GRID[0], GRID[1], {"x": keep, "h0": new}, h={"d": 1.0})
    stages.add(None, GRID[1], {"x": 1.0}, h={"x": 1.0})
    stages.add(GRID[1], GRID[2], {"x": 0.5, "d": 0.1, "h1": 0.1})
    return stages.plan("entry", 2, check="finite")


def two_entries_before_a_call():
    plan = opened({"x": 1.0})
    matrix = np.array(plan.matrix)
    matrix[0, plan.rows.index("h"), plan.columns.index("x")] = 1.0
    return df.Plan(**{f: getattr(plan, f) for f in plan.__dataclass_fields__} | {"matrix": matrix})


BOTH = {"x": {"x": 0.8, "z1": 0.3, "z2": 0.2}}


@pytest.mark.parametrize(
    ("plan", "facts"),
    [
        (
            between(ANCESTRAL, BOTH),
            "stage 3 calls no network and draws 2 normals, but of the 2 of the call .* 1 are",
        ),
        (
            between(between(ANCESTRAL, {"x": {"x": 0.8, "z1": 0.3}}), {"x": {"x": 0.8, "z1": 0.3}}),
            "stage 4 calls no network and draws 1 normals, but of the 2 of the call .* 0 are",
        ),
        (entry_of_its_own(), "entry: stage 1 calls no network but makes an entry"),
        (two_entries_before_a_call(), "stages before the first network call do more than scale"),
        (opened({"x": 0.9, "z1": 0.4}, {"x": 0.9, "z1": 0.3}), "the stages before the first"),
        (opened({"x": 0.9, "z2": 0.4}), "the stages before the first network call do more"),
        (
            inserted(
                solvers.heun(VP, GRID),
                0,
                {"x": {"x": 0.9}, "y": {"y": 1.0}},
                GRID[0],
                check="finite",
                start=GRID[0],
            ),
            "the stages before the first network call do more",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused(plan, facts):
    for act in (
        lambda: lower(plan, READS),
        lambda: df.sample(denoiser_of(), plan, x=initial()),
        lambda: Stepper(plan, denoiser_of()),
        lambda: df.sample_parallel(denoiser_of(), plan, x=initial()),
    ):
        with pytest.raises(ValueError, match=facts):
            act()


def test_two_normals_of_a_call_cannot_be_given():
    plan = PLANS["second normal"]
    with pytest.raises(
        ValueError, match="given noise: .* draws 2 normals at stage 2, but 1 a stage"
    ):
        lower(plan, READS, Constraints(given_noise=True))
    with pytest.raises(ValueError, match="draws 2 normals at stage 2"):
        df.sample(denoiser_of(), plan, x=initial(), noise=lambda i: pytest.fail("asked"))
