"""The phi functions, and the exponential Runge-Kutta methods made of them."""

from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial
from math import factorial

import numpy as np
import pytest
from numpy_executor import run
from one_step import EDM, FLOW, OTHERS, agree, same
from plan_tables import rows_of_x

from diffast import grids, solvers
from diffast.solvers.core.phi import phi
from diffast.solvers.ode import exponential, runge_kutta


def exact_phi(k, z):
    """phi_k(z) by 150 terms in 60 digits; the largest term is 1e10 for |z| <= 25."""
    with localcontext(prec=60):
        total, z = Decimal(0), Decimal(z)
        for j in reversed(range(150)):
            total = total * z + Decimal(1) / factorial(j + k)
        return float(total)


@pytest.mark.parametrize("k", range(6))
def test_phi_against_60_digits(k):
    steps = [0.0, 1e-300, 1e-9, 1e-3, 0.1, 0.7, 1.0, 1.999, 2.0, 2.001, 3.3, 9.0, 25.0]
    h = np.array([sign * step for step in steps for sign in (1.0, -1.0)])
    wanted = np.array([exact_phi(k, -x) for x in h])
    np.testing.assert_allclose(phi(k, h), wanted, rtol=1e-14, atol=0)
    assert [float(phi(k, x)) for x in h] == phi(k, h).tolist()


def test_phi_far_out():
    # exp(-h) is nothing there, and the recurrence exact
    wanted = Fraction(0)
    for k in range(5):
        np.testing.assert_allclose(phi(k, 2000.0), float(wanted), rtol=1e-14, atol=0)
        assert phi(k, np.inf) == 0.0
        wanted = (Fraction(1, factorial(k)) - wanted) / 2000
    with pytest.raises(ValueError, match="phi: k = -1, but it must not be negative"):
        phi(-1, 1.0)


def test_phi_backwards():
    h = np.array([1e-6, 0.3, 2.0, 7.0])
    for k in (1, 2, 3, 4):
        terms = [(-1.0) ** i * phi(i + 1, h) / factorial(k - 1 - i) for i in range(k)]
        np.testing.assert_allclose(sum(terms), np.exp(-h) * phi(k, -h), rtol=1e-13)


def test_identities():
    for schedule, grid in OTHERS.values():
        same(
            exponential.res_3s(schedule, grid),
            solvers.dpmpp_3s(schedule, grid, kind="midpoint"),
        )
        same(exponential.res_2s(schedule, grid, c2=1.0), solvers.etdrk2(schedule, grid))


def cox_matthews(x, s, t, denoise):
    """ETD4RK, where alpha = 1, as its paper writes it with L = -1."""
    h = np.log(s / t)
    half, whole = np.exp(-h / 2), np.exp(-h)
    mid = s * half
    n = denoise(x, s)
    a = half * x + (1 - half) * n
    n_a = denoise(a, mid)
    b = half * x + (1 - half) * n_a
    n_b = denoise(b, mid)
    n_c = denoise(half * a + (1 - half) * (2 * n_b - n), t)
    z = -h
    return whole * x + (h / z**3) * (
        n * (-4 - z + whole * (4 - 3 * z + z**2))
        + 2 * (n_a + n_b) * (2 + z + whole * (-2 + z))
        + n_c * (-4 - 3 * z - z**2 + whole * (4 - z))
    )


def test_etdrk4_is_cox_and_matthews():
    grid = grids.uniform_logsnr(EDM, 4, sigma_max=20.0, sigma_min=0.2, to_zero=False)
    agree(exponential.etdrk4(EDM, grid), cox_matthews, EDM, grid)


DEGREES = {
    "res_2s": 1,
    "res_3s": 1,
    "etdrk2": 1,
    "etdrk3": 2,
    "etdrk4": 2,
    "krogstad4": 2,
}


@pytest.mark.parametrize(("name", "degree"), DEGREES.items())
@pytest.mark.parametrize("clock", ["rho", "flow"])
def test_estimates_polynomial_in_h_are_integrated_exactly(name, degree, clock):
    # dy = (v^k - y) dv: v^k - k v^(k-1) + ... solves it
    grid = grids.uniform_logsnr(EDM, 3, sigma_max=8.0, sigma_min=0.05, to_zero=False)

    def v(t):
        return -np.log(t / (1 + t) if clock == "flow" else t)

    def solution(k, t):
        terms = [
            (-1) ** i * factorial(k) / factorial(k - i) * v(t) ** (k - i) for i in range(k + 1)
        ]
        return sum(terms)

    def error(k):
        scale = 1 + grid[[0, -1]] if clock == "flow" else np.ones(2)
        plan = getattr(solvers, name)(EDM, grid, clock=clock)
        got = run(plan, lambda x, t: v(t) ** k, scale[0] * solution(k, grid[0]))[-1]
        return abs(got - scale[1] * solution(k, grid[-1]))

    for k in range(degree + 1):
        assert error(k) <= 1e-13
    assert error(degree + 1) > 1e-3


def test_exponential_methods_stay_bounded_where_runge_kutta_does_not():
    grid = np.array([80.0, 0.01])
    for name in DEGREES:
        plan = getattr(solvers, name)(EDM, grid)
        assert np.abs(rows_of_x(plan)).sum(axis=1).max() < 10
    assert np.abs(rows_of_x(runge_kutta.rk4(EDM, grid))).max() > 1e3


def test_third_order_in_lam_falls_to_second_from_pure_noise():
    # as the docstring says: the first steps in lam do not get smaller as they get more
    errors = {"rho": [], "flow": []}
    x, counts = np.array([-1.0, 0.3, 1.2]), (320, 640, 1280)

    def denoise(x, t):
        return np.tanh(x / (0.2 + t))

    def end_of(build, n):
        return run(build(FLOW, grids.uniform_time(FLOW, n, end=0.2)), denoise, x)[-1]

    truth = end_of(runge_kutta.dopri5, 200)
    for clock, found in errors.items():
        for n in counts:
            got = end_of(partial(exponential.res_3s, clock=clock), n)
            found.append(np.abs(got - truth).max())
    slopes = {c: -np.polyfit(np.log(counts), np.log(e), 1)[0] for c, e in errors.items()}
    assert abs(slopes["flow"] - 3) <= 0.15
    assert abs(slopes["rho"] - 2) <= 0.15, slopes
