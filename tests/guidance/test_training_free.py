"""Guidance by a loss: smoothed (LGD-MC), in several steps (UGD), both with recurrence (TFG)."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import FULL, MATRIX, MEAN, SIZE, VP, Y, network, numbers

import diffast as df
from diffast import ops
from diffast.executors.context import place_of
from diffast.executors.replay import ReplayableRun
from diffast.solvers.sde.resampled import resampled

GRID = df.grids.uniform_logsnr(VP, 6)
EULER = df.solvers.euler(VP, GRID)
EXACT = network(MEAN, FULL)


def loss(x0, t):
    return 0.5 * (torch.tanh(x0) @ MATRIX.T - Y).square().sum(dim=1)


def slope(x0):
    x0 = x0.detach().requires_grad_()
    return -torch.autograd.grad(loss(x0, None).sum(), x0)[0]


def run(guides, plan=EULER, rows=3, **options):
    denoiser = df.Denoiser(EXACT, VP, "x0", guides=guides)
    return df.sample(denoiser, plan, x=numbers(rows, SIZE, seed=9), **options).x


def by_hand(step, rows=3, seed=0):
    """A run of step(x0, J^T, normals of k, a, s, a') -> (x0, what is added to the state)."""
    x = numbers(rows, SIZE, seed=9)
    for i, (start, end) in enumerate(zip(GRID[:-1], GRID[1:], strict=True)):
        (a, s), (b, r) = (
            (float(VP.alpha(np.array(t))), float(VP.sigma(np.array(t)))) for t in (start, end)
        )
        at = x.clone().requires_grad_()
        x0 = EXACT(at, torch.full((rows,), start, dtype=torch.float64))

        def pull(v, at=at, x0=x0):
            return torch.autograd.grad(x0, at, v, retain_graph=True)[0]

        def normals(k, i=i):
            word = ops.GUIDANCE_NOISE + 256 * i + k
            return ops.normal((rows, SIZE), seed=seed, stage=word, dtype=torch.float64)

        changed, extra = step(x0.detach(), pull, normals, a, s, b)
        x = r / s * x + (b - a * r / s) * changed + extra
    return x.detach()


def smoothed(x0, normals, deviation, draws):
    places = [x0 + deviation * normals(k) for k in range(draws)]
    values = torch.stack([-loss(place, None) for place in places])
    return sum(
        w[:, None] * slope(place)
        for w, place in zip(torch.softmax(values, dim=0), places, strict=True)
    )


def test_lgd_mc_averages_the_likelihood():
    def step(x0, pull, normals, a, s, b):
        spread = 0.8 * s / math.sqrt((0.8 * a) ** 2 + s * s)
        return x0 + 0.3 * s * s / a * pull(smoothed(x0, normals, spread, 3)), 0.0

    term = df.guidance.lgd_mc(loss, 0.3, draws=3, spread=0.8)
    torch.testing.assert_close(run(term, seed=4), by_hand(step, seed=4), rtol=1e-9, atol=1e-9)
    assert float((run(term, seed=4) - run(term, seed=5)).abs().max()) > 1e-3


def test_the_noise_of_terms_belongs_to_the_sample():
    term = df.guidance.lgd_mc(loss, 0.3, draws=2)
    whole = run(term, ids=[5, 8, 2], seed=1)
    denoiser = df.Denoiser(EXACT, VP, "x0", guides=[term])
    one = df.sample(denoiser, EULER, x=numbers(3, SIZE, seed=9)[1:2], ids=[8], seed=1).x
    torch.testing.assert_close(one, whole[1:2], rtol=0, atol=1e-12)


def test_freedom_steps_on_the_state():
    def step(x0, pull, normals, a, s, b):
        return x0, 0.2 * pull(slope(x0))

    plan = df.solvers.on_state(EULER)
    got = run(df.guidance.freedom(loss, 0.2), plan)
    torch.testing.assert_close(got, by_hand(step), rtol=0, atol=1e-10)


def test_time_travel_runs_parts_again():
    """FreeDoM's algorithm 2: fresh noise lifts the state, gradients on it included."""
    plan = resampled(df.solvers.on_state(df.solvers.ddim(VP, GRID, eta=1.0)), times=2)
    again = df.solvers.on_state(df.solvers.ddim(VP, GRID, eta=1.0))
    assert plan.nfe == 2 * again.nfe
    assert plan.gradient_evaluations == plan.nfe
    term = df.guidance.freedom(loss, 0.2)
    far, near = (loss(run(term, p, rows=200), None).mean() for p in (again, plan))
    none = loss(run((), df.solvers.ddim(VP, GRID, eta=1.0), rows=200), None).mean()
    assert float(near) < float(far) < float(none)


def test_universal_guidance_is_forward_and_backward():
    def step(x0, pull, normals, a, s, b):
        moved = x0
        for _ in range(3):
            moved = moved + 0.2 * slope(moved)
        return x0 + 0.1 * s * s / a * pull(slope(x0)) + moved - x0, 0.0

    terms = df.guidance.ugd(loss, 0.1, rate=0.2, steps=3)
    torch.testing.assert_close(run(terms), by_hand(step), rtol=1e-9, atol=1e-9)
    rate = df.guidance.descent(loss, lambda t: 0.2 * t, steps=1)
    got = run(rate)
    want = by_hand(lambda x0, pull, normals, a, s, b: (x0 + 0.2 * time_of(a) * slope(x0), 0.0))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def time_of(a):
    return min(GRID, key=lambda t: abs(float(VP.alpha(np.array(t))) - a))


@pytest.mark.parametrize(
    ("rho", "mu", "smoothing"), [(0.2, 0.3, 0.5), (0.2, 0.0, 0.0), (0.0, 0.3, 0.5)]
)
def test_tfg(rho, mu, smoothing):
    """Ye et al.'s algorithm 1 without recurrence, both of its terms on the state."""

    def step(x0, pull, normals, a, s, b):
        def made(place):
            return smoothed(place, normals, smoothing * s, 2) if smoothing else slope(place)

        moved = x0
        for _ in range(3):
            moved = moved + mu * made(moved)
        return x0, rho * pull(made(x0)) * b / a + b * (moved - x0)

    terms = df.guidance.tfg(loss, rho, mu, iterations=3, draws=2, smoothing=smoothing)
    plan = df.solvers.on_state(EULER, ["variance", "mean"])
    torch.testing.assert_close(run(terms, plan), by_hand(step), rtol=1e-9, atol=1e-9)


def test_terms_of_scale_zero_are_not_computed():
    def never(x0, t):
        raise AssertionError("computed")

    plan = df.solvers.on_state(EULER, ["variance", "mean"])
    seen = run(df.guidance.tfg(never, 0.0, 0.0), plan)
    torch.testing.assert_close(seen, run((), EULER), rtol=0, atol=1e-12)


def test_a_stepper_gives_terms_the_same_noise():
    for guides in (df.guidance.ugd(loss, 0.1), [df.guidance.lgd_mc(loss, 0.3, draws=2)]):
        denoiser = df.Denoiser(EXACT, VP, "x0", guides=guides)
        stepper = df.Stepper(EULER, denoiser)
        for each in (False, True):
            start = numbers(3, SIZE, seed=9)
            state, x, t = stepper.start(start, seed=4, ids=[3, 1, 7], each=each)
            for _ in range(EULER.nfe):
                with torch.enable_grad():
                    given = x.detach().requires_grad_()
                    output = EXACT(given, t)
                terms = stepper.gradients(state, output, given)
                state, x, t = stepper.step(state, output, gradients=terms)
            want = run(guides, ids=[3, 1, 7], seed=4)
            torch.testing.assert_close(stepper.result(state).x, want, rtol=0, atol=1e-9)


def test_a_run_that_is_replayed_gives_terms_no_noise():
    """A graph would hold the seed that it was captured with."""
    x = numbers(3, SIZE, seed=9)
    for term, works in ((df.guidance.lgd_mc(loss, 0.3), False), (df.guidance.freedom(loss), True)):
        denoiser = df.Denoiser(EXACT, VP, "x0", guides=[term])
        place = place_of("sample", denoiser, None, x, None, 0, None, None)
        run = ReplayableRun(denoiser, EULER, place)
        run.load(x=x)
        if works:
            run.run()
            continue
        with pytest.raises(ValueError, match="lgd_mc: the term draws noise, but this executor"):
            run.run()


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: df.guidance.lgd_mc(loss, draws=0), "draws is 0, but it must be a whole number"),
        (lambda: df.guidance.lgd_mc(loss, draws=300), "draws is 300, .* from 1 to 255"),
        (lambda: df.guidance.lgd_mc(loss, spread=-1.0), "spread is -1.0, but"),
        (lambda: df.guidance.descent(loss, steps=True), "steps is True, but"),
        (lambda: df.guidance.descent(loss, math.inf), "rate is inf, but it must be finite"),
        (lambda: df.guidance.tfg(loss, mu=math.nan), "mu is nan, but it must be finite"),
        (lambda: df.guidance.tfg(loss, smoothing=-1.0), "smoothing is -1.0, but"),
        (lambda: df.guidance.freedom(3), "function is a int but must be callable"),
        (lambda: run(df.guidance.lgd_mc(lambda x0, t: x0)), r"the function returned \[3, 5\], not"),
    ],
)
def test_what_is_refused(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()
