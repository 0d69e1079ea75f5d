"""Guidance terms in runs: estimates, stages without a network call, gradients through it."""

import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.lowering.program import Constraints, lower
from diffast.plans.registers import Stages

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 6)
IDS = [3, 1, 4, 1, 5]


def initial():
    return torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def network(x, t):
    t = t.reshape(-1, 1, 1)
    return (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t)


def pull(x, t):
    return (0.5 - x) * (1 + t.reshape(-1, 1, 1))


def levels(t):
    return float(VP.alpha(np.array(t))), float(VP.sigma(np.array(t)))


def ddim(x, x0, start, end):
    (a, s), (b, r) = levels(start), levels(end)
    return r / s * x + (b - a * r / s) * x0


def told(t, x):
    return torch.full((len(x),), float(t), dtype=x.dtype)


def test_a_term_joins_the_x0_estimate_of_every_solver():
    """x0 + scale sigma^2 / alpha g, whatever the solver: the network could have returned it."""

    def guided_network(x, t):
        a, s = (torch.tensor(f(t.numpy())).reshape(-1, 1, 1) for f in (VP.alpha, VP.sigma))
        return network(x, t) + 0.3 * s * s / a * pull(x, t)

    term = df.guidance.gradient(pull, 0.3)
    own = df.Denoiser(network, VP, "x0", guides=[term])
    other = df.Denoiser(guided_network, VP, "x0")
    for make in (df.solvers.euler, df.solvers.dpmpp_2m, df.solvers.heun, df.solvers.unipc):
        plan = make(VP, GRID)
        got, want = (df.sample(d, plan, x=initial()).x for d in (own, other))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_a_clamp_comes_before_the_gradient():
    """Dhariwal and Nichol's order: the unguided estimate is clamped, the term is added to it."""
    plan, x = df.solvers.euler(VP, GRID), initial()
    own = df.Denoiser(network, VP, "x0", guides=[df.guidance.gradient(pull, 0.3)])
    got = df.sample(own, plan, x=x, clamp=(-0.2, 0.3)).x
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        a, s = levels(start)
        t = told(start, x)
        x0 = network(x, t).clamp(-0.2, 0.3) + 0.3 * s * s / a * pull(x, t)
        x = ddim(x, x0, start, end)
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)


def split():
    """Euler; after each step the gradient at the new state, told the new time."""
    stages = Stages(VP, GRID[0])
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        (a, s), (b, r) = levels(start), levels(end)
        stages.add(start, end, {"x": r / s, "d": b - a * r / s})
        stages.add(None, end, {"x": 1.0, "g1": 0.2}, gradient=end)
    return stages.plan("split", len(GRID) - 1)


@pytest.mark.parametrize("how", [{}, {"clamp": (-0.2, 0.3)}, {"on_x0": lambda x0, info: 0.9 * x0}])
def test_a_stage_may_evaluate_gradients_alone(how):
    plan, x = split(), initial()
    assert plan.nfe == 6
    assert plan.gradient_evaluations == 6
    assert len(plan.evaluations) == 12
    term = df.guidance.gradient(pull, lambda t: 1.0 + t)
    made = df.sample(df.Denoiser(network, VP, "x0", guides=[term]), plan, x=x, **how)
    assert made.nfe.tolist() == [6] * 5
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        x0 = network(x, told(start, x))
        x0 = x0.clamp(*how["clamp"]) if "clamp" in how else x0
        x0 = 0.9 * x0 if "on_x0" in how else x0
        x = ddim(x, x0, start, end)
        x = x + 0.2 * (1.0 + end) * pull(x, told(end, x))
    np.testing.assert_allclose(made.x, x, rtol=0, atol=1e-12)


def test_such_a_plan_with_guidance_and_in_half_precision():
    """The network's input is then a tensor of its own, which the gradient must not be taken at."""
    term = df.guidance.gradient(pull, 0.5)

    def shifted(x, t, shift):
        return network(x.double(), t) + shift.to(x.dtype)

    shift = {"shift": torch.ones(1, 3, 4)}, {"shift": torch.zeros(1, 3, 4)}
    options = {"conditions": shift[0], "unconditional": shift[1], "guidance": 1.5}
    denoiser = df.Denoiser(shifted, VP, "x0", guides=[term], **options)
    got = df.sample(denoiser, split(), x=initial()).x
    x = initial()
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        x = ddim(x, network(x, told(start, x)) + 1.5, start, end)
        x = x + 0.2 * 0.5 * pull(x, told(end, x))
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
    half = df.Denoiser(shifted, VP, "x0", guides=[term], dtype=torch.float16, **options)
    near = df.sample(half, split(), x=initial()).x
    assert 0 < float((near - got).abs().max()) < 1e-2


def test_plans_with_gradients_are_saved(tmp_path):
    plan = split()
    for name in ("plan.json", "plan.npz"):
        plan.save(tmp_path / name)
        again = df.Plan.load(tmp_path / name)
        np.testing.assert_array_equal(again.gradients, plan.gradients)
        np.testing.assert_array_equal(again.matrix, plan.matrix)


def test_a_loss_through_the_network_or_not():
    """DPS's gradient of |x0(x) - target|^2 is J^T of that in x0."""
    target = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4)

    def far(x0, t):
        return (x0 - target).square().flatten(1).sum(1)

    plan, start = df.solvers.euler(VP, GRID), initial()
    for through in ("network", "x0"):
        term = df.guidance.loss(far, 0.05, through=through)
        own = df.Denoiser(network, VP, "x0", guides=[term])
        got, x = df.sample(own, plan, x=start).x, start
        for time, end in zip(GRID[:-1], GRID[1:], strict=True):
            at = x.clone().requires_grad_()
            x0 = network(at, told(time, x))
            place = at if through == "network" else x0
            (g,) = torch.autograd.grad(far(x0, None).sum(), place)
            a, s = levels(time)
            weight = 0.05 * (s * s / a if through == "network" else 1.0)
            x = ddim(x, (x0 - weight * g).detach(), time, end)
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)


def test_columns_of_one_branch_need_that_branch_alone():
    """CFG++ weighs the unconditional estimate beside the guided one."""

    def shifted(x, t, shift):
        calls.append(len(x))
        return network(x, t) + shift

    shift = {"shift": torch.ones(1, 3, 4)}, {"shift": torch.zeros(1, 3, 4)}
    denoiser = df.Denoiser(shifted, VP, "x0", conditions=shift[0], unconditional=shift[1])
    stages = Stages(VP, GRID[0])
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        (a, s), (b, r) = levels(start), levels(end)
        stages.add(start, end, {"x": r / s, "d": b, "d_uncond": -a * r / s})
    plan, x, calls = stages.plan("renoised", 6), initial(), []
    got = df.sample(denoiser, plan, x=x).x
    assert calls == [10] * 5 + [5]  # the last step ends at sigma = 0, where nothing is renoised
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        (a, s), (b, r) = levels(start), levels(end)
        x0 = network(x, told(start, x))
        x = r / s * x + b * (x0 + 1) - a * r / s * x0
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
    assert lower(plan, denoiser, Constraints()).branches == {"both", "cond"}


def test_a_gradient_that_is_not_finite_fails_its_sample_alone():
    def broken(x, t):
        made = pull(x, t).clone()
        if float(t[0]) < GRID[2]:
            made[3, 0, 0] = math.nan
        return made

    denoiser = df.Denoiser(network, VP, "x0", guides=[df.guidance.gradient(broken)])
    with pytest.raises(df.NonFiniteError, match=r"3 \(id 1\): the gradient of guidance term 1 is "):
        df.sample(denoiser, df.solvers.euler(VP, GRID), x=initial(), ids=IDS)
    made = df.sample(denoiser, split(), x=initial(), ids=IDS, throw=False)
    assert made.fine.tolist() == [True, True, True, False, True]
    good = df.sample(
        df.Denoiser(network, VP, "x0", guides=[df.guidance.gradient(pull)]), split(), x=initial()
    )
    np.testing.assert_array_equal(made.x[made.fine], good.x[made.fine])


def changes_the_state(x, t):
    return x.add_(1.0)


@pytest.mark.parametrize(
    ("function", "facts"),
    [
        (lambda x, t: x[:2], r"stage 0: .*term 1 .* is \[2, 3, 4\] but the state is \[5, 3, 4\]"),
        (lambda x, t: x.to("meta"), "stage 0: .*is on meta but the state is on cpu"),
        (lambda x, t: 3.0, "stage 0: .*is a float but a tensor is needed"),
        (lambda x, t: x.long(), "stage 0: .*is torch.int64 but must be one of"),
        (changes_the_state, "stage 0: a guidance term wrote into the state"),
    ],
)
def test_a_gradient_of_another_kind_is_refused(function, facts):
    denoiser = df.Denoiser(network, VP, "x0", guides=[df.guidance.gradient(function)])
    with pytest.raises(ValueError, match=facts):
        df.sample(denoiser, df.solvers.euler(VP, GRID), x=initial())


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: df.guidance.gradient(pull, math.inf), "scale is inf but must be finite"),
        (lambda: df.guidance.gradient(pull, "3"), "scale is a str but must be a number"),
        (lambda: df.guidance.gradient(pull, torch.ones(5)), "scale is a Tensor but must be a num"),
        (lambda: df.guidance.classifier(pull, None), "labels is None, not an int"),
        (lambda: df.guidance.classifier(pull, [True, False]), "labels are torch.bool"),
        (lambda: df.guidance.gradient(3), "function is a int but must be callable"),
        (lambda: df.guidance.loss(pull, through="x1"), "through is 'x1' but must be one of x, x0"),
        (lambda: df.Denoiser(network, VP, "x0", guides=[pull]), "guides holds a function"),
        (
            lambda: df.guidance.gradient(pull, lambda t: math.nan).scales(np.ones(1)),
            "scale is nan at t = 1",
        ),
    ],
)
def test_what_no_term_can_be_made_of(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


@pytest.mark.parametrize(("labels", "facts"), [([0, 1, 9, 2, 3], "hold 9"), (-1, "hold -1")])
def test_a_label_that_is_no_class_is_refused(labels, facts):
    term = df.guidance.classifier(lambda x, t: x.flatten(1)[:, :7], labels)
    with pytest.raises(ValueError, match=facts + " but the classifier has 7 classes, from 0"):
        df.sample(
            df.Denoiser(network, VP, "x0", guides=[term]), df.solvers.euler(VP, GRID), x=initial()
        )


def test_a_classifier_pulls_towards_its_label():
    """With logits linear in x the gradient of the label's log-probability is known."""
    lines = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    term = df.guidance.classifier(lambda x, t: x.flatten(1) @ lines.T, torch.arange(5), 1.0)
    x = initial()
    weights = torch.softmax(x.flatten(1) @ lines.T, 1)
    want = (lines[:5] - weights @ lines).reshape(x.shape)
    point = df.guidance.Point(x, told(0.5, x), *[None] * 3, 0)
    np.testing.assert_allclose(term.gradient(point), want, atol=1e-13)
    for labels, facts in (([1, 2], "2 labels but 5 samples"), ([0.5] * 5, "not int64")):
        with pytest.raises(ValueError, match=facts):
            df.guidance.classifier(lambda x, t: x.flatten(1), labels).gradient(point)
