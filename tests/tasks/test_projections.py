"""Projections on a measurement: against the published loops, written out here."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast import ops
from diffast.solvers import resampled
from diffast.tasks import (
    Setup,
    blur,
    colour,
    gaussian_kernel,
    inpainting,
    opponent_basis,
    range_null,
    replacement,
    super_resolution,
)
from diffast.tasks.setup import _TASK_NOISE

SCHEDULE = df.schedules.vp_linear()
SHAPE = (3, 1, 8, 8)
MASK = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.6


def network(x, t):
    """Some smooth estimate of x0; nothing that a projection could rely on."""
    return torch.tanh(x + 0.3 * x.roll(1, -1)) * (1 - 0.2 * t.view(-1, 1, 1, 1).to(x.dtype))


DENOISER = df.Denoiser(network, SCHEDULE, predicts="x0")


def truth():
    return (
        torch.rand(SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    )


def start(plan):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return noise * plan.initial_scale


def ddim(steps, eta=1.0):
    return df.solvers.ddim(SCHEDULE, df.grids.default(SCHEDULE, steps), eta=eta)


def published(plan, operator, y, x, seed, project_estimate=False):
    """RePaint's and ILVR's loop: after every step the state's range part is replaced."""
    alpha, sigma = SCHEDULE.alpha(plan.times), SCHEDULE.sigma(plan.times)
    ids = torch.arange(len(x))
    for i, t in enumerate(plan.times):
        normals = ops.normal(x.shape, seed=seed, stage=_TASK_NOISE + i, ids=ids, dtype=x.dtype)
        noisy = alpha[i] * operator.pseudo_inverse(y) + sigma[i] * operator.project(normals)
        x = x - operator.project(x) + noisy
        d = network(x, torch.full((len(x),), t))
        fresh = ops.normal(x.shape, seed=seed, stage=i, ids=ids, dtype=x.dtype)
        keep = plan.weights("x", "x")[i]
        x = keep * x + plan.weights("x", "d")[i] * d + plan.weights("x", "z1")[i] * fresh
    return x - operator.project(x) + operator.pseudo_inverse(y)


@pytest.mark.parametrize(
    "operator", [inpainting(MASK), super_resolution(2)], ids=["repaint", "ilvr"]
)
@pytest.mark.parametrize("times", [1, 3])
def test_replacement_is_the_published_loop(operator, times):
    plan = resampled(ddim(6), jump=1, times=times)
    y, x = operator(truth()), start(plan)
    made = replacement(Setup(DENOISER, plan), operator, y).sample(x=x, seed=5).x
    torch.testing.assert_close(made, published(plan, operator, y, x, 5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(operator(made), y, rtol=1e-5, atol=1e-5)


def test_replacement_depends_on_the_ids_alone():
    plan, operator = ddim(4), inpainting(MASK)
    setup = Setup(DENOISER, plan)
    y = operator(truth())
    whole = replacement(setup, operator, y).sample(SHAPE, seed=7, ids=[4, 9, 6]).x
    one = replacement(setup, operator, y[1:2]).sample((1, *SHAPE[1:]), seed=7, ids=[9]).x
    torch.testing.assert_close(whole[1:2], one)
    again = replacement(setup, operator, y).sample(SHAPE, seed=7, ids=[4, 9, 6]).x
    torch.testing.assert_close(whole, again, rtol=0, atol=0)
    other = replacement(setup, operator, y).sample(SHAPE, seed=8, ids=[4, 9, 6]).x
    assert (whole - other).abs().max() > 0.01


def test_both_branches_of_guidance_see_the_same_input():
    seen = []

    def guided(x, t, label):
        seen.append(x)
        return network(x, t) * label.view(-1, 1, 1, 1)

    denoiser = df.Denoiser(
        guided,
        SCHEDULE,
        predicts="x0",
        conditions={"label": torch.ones(3)},
        unconditional={"label": torch.full((1,), 0.5)},
        guidance=2.0,
    )
    operator = inpainting(MASK)
    y = operator(truth().float())
    replacement(Setup(denoiser, ddim(3)), operator, y).sample(SHAPE)
    assert len(seen) == 3 and all(len(x) == 6 for x in seen)
    for x in seen:
        torch.testing.assert_close(x[:3], x[3:], rtol=0, atol=0)


def test_below_until_nothing_is_replaced():
    operator, plan = super_resolution(2), ddim(8)
    y = operator(truth().float())
    free = replacement(Setup(DENOISER, plan), operator, y, until=0.5).sample(SHAPE, seed=1).x
    bound = replacement(Setup(DENOISER, plan), operator, y).sample(SHAPE, seed=1).x
    assert (operator(bound) - y).abs().max() < 1e-5 < 0.05 < (operator(free) - y).abs().max()
    never = replacement(Setup(DENOISER, plan), operator, y, until=1e9).sample(SHAPE, seed=1).x
    torch.testing.assert_close(never, df.sample(DENOISER, plan, SHAPE, seed=1).x)


@pytest.mark.parametrize(
    "operator",
    [inpainting(MASK), super_resolution(4), blur(gaussian_kernel(0.8))],
    ids=["inpainting", "super_resolution", "blur"],
)
def test_range_null_agrees_with_the_measurement_and_keeps_the_rest(operator):
    plan = ddim(5)
    y, x = operator(truth()), start(plan)
    made = range_null(Setup(DENOISER, plan), operator, y).sample(x=x, seed=2).x
    torch.testing.assert_close(operator(made), y, rtol=1e-4, atol=1e-4)

    def hook(x0, info):
        return x0 - operator.project(x0) + operator.pseudo_inverse(y)

    wanted = df.sample(DENOISER, plan, x=x, seed=2, on_x0=hook).x
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("factor", [1, 2])
def test_with_noise_in_the_measurement_the_state_keeps_its_level(noise, factor):
    """Where the estimate is right, the state's error is noise of the planned deviation."""
    shape = (1, 1, 128, 128)
    x0 = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    operator = inpainting(torch.ones(128, 128)) if factor == 1 else super_resolution(factor)
    clean = operator(x0)
    error = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=x0.dtype)
    denoiser = df.Denoiser(lambda x, t: x0.to(x), SCHEDULE, predicts="x0")
    plan = ddim(12)
    setup = range_null(Setup(denoiser, plan), operator, clean + noise * error, noise)
    ends = np.append(plan.times, plan.end)[1:]
    ratios = []

    def look(progress):
        alpha, sigma = SCHEDULE.alpha(ends[progress.stage]), SCHEDULE.sigma(ends[progress.stage])
        left = operator.project(progress.x - alpha * x0)
        if sigma:
            ratios.append(float(left.square().sum().sqrt() * factor / 128 / sigma))

    start_at = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=x0.dtype)
    setup.sample(x=start_at, seed=4, callback=look)
    assert len(ratios) == 11
    np.testing.assert_allclose(ratios, 1.0, atol=0.03)


def test_projections_can_be_chained():
    """In an orthogonal colour basis: grey of all pixels by one, colour of some by another."""
    grey, plan = colour(opponent_basis()[0]), ddim(4)
    shape = (2, 3, 8, 8)
    x0 = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = inpainting(MASK)
    setup = range_null(Setup(DENOISER, plan, clamp=(-1, 1)), known, known(x0))
    setup = range_null(setup, grey, grey(x0))
    made = setup.sample(shape).x
    torch.testing.assert_close(grey(made), grey(x0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(known(made), known(x0), rtol=1e-5, atol=1e-5)


WRONG = {
    "negative noise": (
        lambda s, o, y: range_null(s, o, y, noise=-1.0),
        "noise is -1.0, but it must be 0 or more",
    ),
    "noise and a plan without": (
        lambda s, o, y: range_null(Setup(DENOISER, ddim(3, eta=0.0)), o, y, noise=0.1),
        "noise is 0.1, but plan .* is not one call and one normal",
    ),
    "noise and blur": (
        lambda s, o, y: range_null(s, blur(gaussian_kernel(1.0)), y, noise=0.1),
        "noise is 0.1, but blur amplifies it unevenly",
    ),
    "until": (
        lambda s, o, y: replacement(s, o, y, until=-1.0),
        "until is -1.0, but it must be 0 or more",
    ),
    "graph": (
        lambda s, o, y: replacement(s, o, y).sample(SHAPE, executor="graph"),
        "executor is 'graph', but this task draws noise",
    ),
    "measurement of another size": (
        lambda s, o, y: range_null(s, o, y[..., :4]).sample(SHAPE),
        r"inpainting: y is \[3, 1, 8, 4\], but the measurement of x .* is \[3, 1, 8, 8\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_in_words(name):
    act, said = WRONG[name]
    operator = inpainting(MASK)
    with pytest.raises(ValueError, match=said):
        act(Setup(DENOISER, ddim(3)), operator, operator(truth().float()))
