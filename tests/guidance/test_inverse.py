"""Guidance by a measurement against closed forms: normal data, a linear measurement."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import (
    FULL,
    MATRIX,
    MEAN,
    NOISE,
    SIZE,
    VP,
    Linear,
    Y,
    network,
    numbers,
    posterior,
)

import diffast as df

GRID = df.grids.uniform_logsnr(VP, 8)
EULER = df.solvers.euler(VP, GRID)
ROUND = 0.7**2 * torch.eye(SIZE, dtype=torch.float64)
EXACT = Linear()


def plain(x):
    """The measurement as a function of torch alone."""
    return x @ MATRIX.T


def run(guides, covariance=FULL, plan=EULER, rows=3, **options):
    denoiser = df.Denoiser(network(MEAN, covariance), VP, "x0", guides=guides)
    return df.sample(denoiser, plan, x=numbers(rows, SIZE, seed=9), **options).x


def wanted(covariance, plan=EULER, rows=3, noise=NOISE):
    """What the network of the conditioned data makes of the same noise."""
    denoiser = df.Denoiser(network(*posterior(covariance, noise=noise)), VP, "x0")
    return df.sample(denoiser, plan, x=numbers(rows, SIZE, seed=9)).x


each_operator = pytest.mark.parametrize("operator", [EXACT, plain], ids=["closed", "by torch"])


@each_operator
@pytest.mark.parametrize("noise", [NOISE, 1e-3])
@pytest.mark.parametrize("make", [df.solvers.euler, df.solvers.dpmpp_2m, df.solvers.heun])
def test_mmps_is_exact_for_normal_data(operator, noise, make):
    """With as many iterations as measurements the run is that of the conditioned network."""
    plan = make(VP, GRID)
    got = run(df.guidance.mmps(operator, Y, noise, iterations=4), plan=plan)
    torch.testing.assert_close(got, wanted(FULL, plan, noise=noise), rtol=0, atol=1e-8)


@each_operator
@pytest.mark.parametrize("noise", [NOISE, 0.0])
def test_pigdm_is_exact_where_all_directions_have_one_variance(operator, noise):
    term = df.guidance.pigdm(operator, Y, noise, spread=0.7)
    got, want = run(term, ROUND), wanted(ROUND, noise=noise)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    variance = df.guidance.pigdm(
        operator, Y, noise, spread=lambda a, s: (0.7 * s) ** 2 / ((0.7 * a) ** 2 + s**2)
    )
    torch.testing.assert_close(run(variance, ROUND), want, rtol=0, atol=1e-9)
    if noise:  # without, y is met at the end in any case
        other = run(df.guidance.pigdm(operator, Y, noise), ROUND)  # r^2 of unit variance
        assert float((other - want).abs().max()) > 1e-2


@each_operator
def test_tmpd_is_exact_where_measurements_are_independent(operator):
    """With A A^T diagonal and one variance the row sums of A C A^T are its diagonal."""
    rows = torch.linalg.qr(MATRIX.T)[0].T * torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    operator = Linear(rows) if operator is EXACT else lambda x: x @ rows.T
    want = df.sample(
        df.Denoiser(network(*posterior(ROUND, rows)), VP, "x0"), EULER, x=numbers(3, SIZE, seed=9)
    ).x
    got = run(df.guidance.tmpd(operator, Y, NOISE), ROUND)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    assert float((run(df.guidance.tmpd(operator, Y, NOISE), FULL) - got).abs().max()) > 1e-2


def by_hand(step, plan=EULER, covariance=FULL, rows=3):
    """A run whose x0 estimate is changed by step(x0, J, a, s), one sample after another."""
    estimate = network(MEAN, covariance)
    made = []
    for x in numbers(rows, SIZE, seed=9):
        for start, end in zip(GRID[:-1], GRID[1:], strict=True):
            (a, s), (b, r) = (
                (float(VP.alpha(np.array(t))), float(VP.sigma(np.array(t)))) for t in (start, end)
            )
            t = torch.tensor([start], dtype=torch.float64)
            jacobian = torch.autograd.functional.jacobian(lambda x, t=t: estimate(x[None], t)[0], x)
            x0, extra = step(estimate(x[None], t)[0], jacobian, a, s)
            x = r / s * x + (b - a * r / s) * x0 + extra
        made.append(x)
    return torch.stack(made)


@each_operator
def test_dps_steps_on_the_state_or_as_a_score(operator):
    def pulled(x0, jacobian):
        residual = Y[0] - MATRIX @ x0
        return jacobian.T @ MATRIX.T @ residual / residual.norm()

    term = df.guidance.dps(operator, Y, 0.2)
    on_state = df.solvers.on_state(EULER)
    want = by_hand(lambda x0, j, a, s: (x0, 0.2 * pulled(x0, j)))
    torch.testing.assert_close(run(term, plan=on_state), want, rtol=0, atol=1e-10)
    want = by_hand(lambda x0, j, a, s: (x0 + 0.2 * s * s / a * pulled(x0, j), 0.0))
    torch.testing.assert_close(run(term), want, rtol=1e-9, atol=1e-9)


def test_dps_has_no_direction_at_its_goal():
    still = df.Denoiser(lambda x, t: torch.ones_like(x) + 0 * x, VP, "x0")
    term = df.guidance.dps(plain, plain(torch.ones(1, SIZE, dtype=torch.float64)), 1.0)
    x = numbers(2, SIZE)
    plan = df.solvers.on_state(EULER)
    got = df.sample(df.Denoiser(still.network, VP, "x0", guides=[term]), plan, x=x).x
    torch.testing.assert_close(got, torch.ones_like(x), rtol=0, atol=1e-12)


@each_operator
def test_mcg(operator):
    inverse = torch.linalg.pinv(MATRIX) if operator is EXACT else torch.eye(2, dtype=torch.float64)
    weigh = MATRIX.T @ inverse.T @ inverse

    def step(x0, jacobian, a, s):
        return x0, 0.1 * 2 * jacobian.T @ weigh @ (Y[0] - MATRIX @ x0)

    got = run(df.guidance.mcg(operator, Y, 0.1), plan=df.solvers.on_state(EULER))
    torch.testing.assert_close(got, by_hand(step), rtol=0, atol=1e-10)


@each_operator
def test_mpgd(operator):
    want = by_hand(lambda x0, j, a, s: (x0 + 0.05 * MATRIX.T @ (Y[0] - MATRIX @ x0), 0.0))
    torch.testing.assert_close(run(df.guidance.mpgd(operator, Y, 0.05)), want, rtol=0, atol=1e-10)


@each_operator
@pytest.mark.parametrize("noise", [NOISE, 0.0])
def test_diffpir_and_its_fresh_noise(operator, noise):
    def step(x0, jacobian, a, s):
        rho = 3.0 * noise**2 / (s / a) ** 2
        ridge = rho * torch.eye(2, dtype=torch.float64)
        residual = Y[0] - MATRIX @ x0
        return x0 + MATRIX.T @ torch.linalg.solve(MATRIX @ MATRIX.T + ridge, residual), 0.0

    got = run(df.guidance.diffpir(operator, Y, noise, strength=3.0))
    torch.testing.assert_close(got, by_hand(step), rtol=0, atol=1e-9)
    plan = df.solvers.renoised(VP, GRID, 0.4)
    for i in range(plan.stages - 1):
        a, s, b, r = (float(f(np.array(t))) for t in GRID[i : i + 2] for f in (VP.alpha, VP.sigma))
        x, d, z = (plan.weights("x", column)[i] for column in ("x", "d", "z1"))
        np.testing.assert_allclose(
            [x, d, z], [r * 0.6**0.5 / s, b - a * r * 0.6**0.5 / s, r * 0.4**0.5]
        )
    if noise == 0.0:  # the last estimate is the sample
        residual = run(df.guidance.diffpir(operator, Y), plan=plan) @ MATRIX.T - Y
        assert float(residual.abs().max()) < 1e-9


def test_a_measurement_that_is_not_linear():
    """MMPS at a nonlinear operator: A is its Jacobian at the estimate."""

    def bent(x):
        return torch.tanh(x[:, :2]) * x[:, 2:4]

    estimate = network(MEAN, FULL)
    x = numbers(1, SIZE, seed=9)
    a, s = (float(f(np.array(0.5))) for f in (VP.alpha, VP.sigma))
    t = torch.tensor([0.5], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: estimate(x[None], t)[0], x[0])
    x0 = estimate(x, t)
    at = torch.autograd.functional.jacobian(lambda x: bent(x[None])[0], x0[0])
    seen = at @ (s * s / a * jacobian) @ at.T + NOISE**2 * torch.eye(2, dtype=torch.float64)
    want = jacobian.T @ at.T @ torch.linalg.solve(seen, (Y - bent(x0))[0])
    level = (torch.full((1, 1), v, dtype=torch.float64) for v in (a, s))
    point = df.guidance.Point(
        x, t, *level, torch.zeros(1, dtype=torch.int64), 0, x0, lambda v: v @ jacobian
    )
    got = df.guidance.mmps(bent, Y, NOISE).gradient(point)
    torch.testing.assert_close(got[0], want, rtol=1e-9, atol=1e-12)


@each_operator
@pytest.mark.parametrize("noise", [NOISE, 0.0])
def test_terms_are_finite_at_both_ends(operator, noise):
    """From alpha = 0 to sigma = 0, where plans take gradients of their own at either."""
    schedule = df.schedules.flow()
    grid = df.grids.uniform_time(schedule, 6)
    assert grid[0] == 1.0
    assert grid[-1] == 0.0
    euler = df.solvers.euler(schedule, grid)
    plans = [euler, df.solvers.on_state(euler), df.solvers.ltsp(schedule, grid)]
    estimate = network(MEAN, FULL, schedule)
    for make in (df.guidance.pigdm, df.guidance.mmps, df.guidance.tmpd):
        # on the state, small: there the scale is not weighed by the noise level
        denoiser = df.Denoiser(estimate, schedule, "x0", guides=[make(operator, Y, noise, 1e-3)])
        for plan in plans:
            made = df.sample(denoiser, plan, x=numbers(3, SIZE, seed=9))
            assert float(made.x.abs().max()) < 1e3
    denoiser = df.Denoiser(
        estimate, schedule, "x0", guides=[df.guidance.diffpir(operator, Y, noise)]
    )
    for plan in plans[:2]:
        assert float(df.sample(denoiser, plan, x=numbers(3, SIZE, seed=9)).x.abs().max()) < 1e3


def test_each_sample_has_its_own_measurement():
    y = numbers(3, 2, seed=6)
    for make in (df.guidance.pigdm, df.guidance.mmps, df.guidance.tmpd, df.guidance.diffpir):
        for operator in (EXACT, plain):
            got = run(make(operator, y, NOISE))
            x = numbers(3, SIZE, seed=9)
            for b in range(3):
                alone = df.Denoiser(
                    network(MEAN, FULL), VP, "x0", guides=[make(operator, y[b : b + 1], NOISE)]
                )
                one = df.sample(alone, EULER, x=x[b : b + 1]).x
                torch.testing.assert_close(got[b : b + 1], one, rtol=0, atol=1e-9)


def test_a_sample_that_fails_fails_alone():
    """Of three networks' outputs one is NaN: the others' solutions do not see it."""
    y = numbers(3, 2, seed=6)

    def broken(x, t):
        made = network(MEAN, FULL)(x, t)
        mark = torch.zeros_like(made)
        mark[1, 0] = math.nan
        return made + mark

    for make in (df.guidance.mmps, df.guidance.pigdm, df.guidance.diffpir):
        denoiser = df.Denoiser(broken, VP, "x0", guides=[make(plain, y, NOISE)])
        made = df.sample(denoiser, EULER, x=numbers(3, SIZE, seed=9), throw=False)
        assert made.fine.tolist() == [True, False, True]
        whole = run(make(plain, y, NOISE))
        torch.testing.assert_close(made.x[made.fine], whole[made.fine], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: df.guidance.dps(3, Y), "dps: operator is a int, but a function"),
        (lambda: df.guidance.mmps(plain, [1.0]), "mmps: y is list, but floating-point"),
        (lambda: df.guidance.mmps(plain, Y.long()), r"y is torch.int64 \[1, 2\], but floating"),
        (lambda: df.guidance.mmps(plain, Y * math.inf), "y must be finite"),
        (lambda: df.guidance.pigdm(plain, Y, -1.0), "noise is -1.0, but it must be 0 or more"),
        (lambda: df.guidance.pigdm(plain, Y, spread=0.0), "spread is 0.0, but it must be finite"),
        (lambda: df.guidance.mmps(plain, Y, iterations=0), "iterations is 0, but it must be 1"),
        (lambda: df.guidance.diffpir(plain, Y, strength=0.0), "strength is 0.0, but"),
        (lambda: df.guidance.dps(plain, Y, math.inf), "dps: scale is inf but must be finite"),
        (lambda: df.solvers.on_state(EULER, "step"), "on_state: terms = 'step', but 1 to 9 names"),
        (lambda: df.solvers.on_state(EULER, ["up"]), r"terms = \['up'\], but 1 to 9 names among"),
        (
            lambda: df.solvers.on_state(df.solvers.heun(VP, GRID)),
            "plan heun carries y beside the state, but a plan with one network call a step",
        ),
        (
            lambda: df.solvers.on_state(df.solvers.on_state(EULER)),
            "has weights for gradients already",
        ),
        (lambda: df.solvers.renoised(VP, GRID, 1.5), r"zeta = 1.5, but it must lie in \[0, 1\]"),
    ],
)
def test_what_no_term_can_be_made_of(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


@pytest.mark.parametrize(
    ("operator", "y", "facts"),
    [
        (plain, numbers(1, 3), r"y is \[1, 3\], but the operator makes \[3, 2\] of estimates"),
        (plain, numbers(2, 2), "2 rows of y but 3 samples"),
        (plain, Y.to("meta"), "the rows of y are on meta but the state is on cpu"),
        (lambda x: Y.expand(3, 2), Y, "does not depend on its input by operations"),
        (lambda x: 3.0, Y, r"but the operator makes float of estimates \[3, 5\]"),
    ],
)
def test_operators_and_measurements_that_disagree(operator, y, facts):
    for make in (df.guidance.dps, df.guidance.mmps, df.guidance.mpgd):
        with pytest.raises(ValueError, match=facts):
            run(make(operator, y))
