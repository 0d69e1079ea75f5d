"""Solvers against the published formulas, written out step by step, and the methods they equal."""

from functools import partial

import numpy as np
import pytest
from numpy_executor import run

from diffast import grids, schedules, solvers

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
INDEXED = schedules.from_betas(BETAS)


def walk(step, schedule, grid, seed=6):
    """Runs a published step x, x0, state -> x over a grid; returns start, noises, points."""
    random = np.random.default_rng(seed)
    steps = len(grid) - 1
    x, z = random.normal(size=5) * schedule.sigma(grid[0]), random.normal(size=(steps, 5))
    denoise, points, memory = wavy(schedule), [x], {}
    for i in range(steps):
        points.append(step(points[-1], denoise(points[-1], grid[i]), i, z[i], memory))
    return x, z, np.stack(points)


def wavy(schedule):
    """Some nonlinear x0 estimate; the formulas must agree for any."""
    return lambda x, t: np.sin(2 * x / (schedule.alpha(t) + schedule.sigma(t))) + 0.1


def agree(plan, schedule, walked):
    x, z, points = walked
    got = run(plan, wavy(schedule), x, lambda i: z[i])
    assert (np.abs(got - points).max(axis=1) <= 1e-12 * np.abs(points).max(axis=1)).all()


SIGMA_GRIDS = {
    "to_zero": grids.karras(schedules.edm(), 12),
    "open": grids.karras(schedules.edm(), 12, to_zero=False),
    "even": grids.uniform_time(schedules.edm(), 12),
}
each_sigmas = pytest.mark.parametrize("sigmas", SIGMA_GRIDS.values(), ids=SIGMA_GRIDS)


@each_sigmas
def test_k_diffusion_euler(sigmas):
    def step(x, x0, i, z, memory):
        return x + (x - x0) / sigmas[i] * (sigmas[i + 1] - sigmas[i])

    edm = schedules.edm()
    agree(solvers.euler(edm, sigmas), edm, walk(step, edm, sigmas))


@each_sigmas
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_k_diffusion_euler_ancestral(sigmas, eta):
    def step(x, x0, i, z, memory):
        a, b = sigmas[i], sigmas[i + 1]
        up = min(b, eta * np.sqrt(b**2 * (a**2 - b**2) / a**2))
        down = np.sqrt(b**2 - up**2)
        return x + (x - x0) / a * (down - a) + up * z

    edm = schedules.edm()
    if eta == 1.0 and sigmas is SIGMA_GRIDS["even"]:
        sigmas = grids.uniform_logsnr(edm, 12)
    agree(solvers.euler_ancestral(edm, sigmas, eta=eta), edm, walk(step, edm, sigmas))
    agree(solvers.ddim(edm, sigmas, eta=eta), edm, walk(step, edm, sigmas))


@each_sigmas
def test_k_diffusion_heun(sigmas):
    edm = schedules.edm()
    denoise = wavy(edm)

    def step(x, x0, i, z, memory):
        a, b = sigmas[i], sigmas[i + 1]
        slope = (x - x0) / a
        euler = x + (b - a) * slope
        return euler if b == 0 else x + (b - a) * (slope + (euler - denoise(euler, b)) / b) / 2

    plan = solvers.heun(edm, sigmas)
    x, _, points = walk(step, edm, sigmas)
    got = run(plan, denoise, x)
    got = np.concatenate([got[::2], got[-1:]]) if plan.stages % 2 else got[::2]
    assert (np.abs(got - points).max(axis=1) <= 1e-12 * np.abs(points).max(axis=1)).all()


@each_sigmas
def test_k_diffusion_dpmpp_2m(sigmas):
    def step(x, x0, i, z, memory):
        a, b = sigmas[i], sigmas[i + 1]
        lam = [-np.log(s) if s else np.inf for s in (sigmas[i - 1], a, b)]
        h, old = lam[2] - lam[1], memory.get("x0")
        memory["x0"] = x0
        if old is not None and b > 0:
            r = (lam[1] - lam[0]) / h
            x0 = (1 + 1 / (2 * r)) * x0 - old / (2 * r)
        return b / a * x - np.expm1(-h) * x0

    edm = schedules.edm()
    agree(solvers.dpmpp_2m(edm, sigmas), edm, walk(step, edm, sigmas))


def vp_levels(schedule, grid, i):
    return (*schedule.alpha(grid[i : i + 2]), *schedule.sigma(grid[i : i + 2]))


VP_GRIDS = {
    "trailing": grids.trailing(INDEXED, 20),
    "leading": grids.leading(INDEXED, 20, steps_offset=1),
    "linspace": grids.linspace(INDEXED, 20),
    "karras": grids.karras(INDEXED, 20),
}
each_vp = pytest.mark.parametrize("grid", VP_GRIDS.values(), ids=VP_GRIDS)


@each_vp
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_paper(grid, eta):
    # Song et al. 2021 eq. 12 and 16 in cumulative alphas, from the betas themselves
    schedule, bar = INDEXED, np.cumprod(1 - BETAS)

    def step(x, x0, i, z, memory):
        whole = float(grid[i]).is_integer() and float(grid[i + 1]).is_integer()
        here, there = (
            (bar[int(s)] if s >= 0 else 1.0) if whole else schedule.alpha(s) ** 2
            for s in grid[i : i + 2]
        )
        eps = (x - np.sqrt(here) * x0) / np.sqrt(1 - here)
        up = eta * np.sqrt((1 - there) / (1 - here)) * np.sqrt(1 - here / there)
        return np.sqrt(there) * x0 + np.sqrt(1 - there - up**2) * eps + up * z

    x, z, points = walk(step, schedule, grid)
    got = run(solvers.ddim(schedule, grid, eta=eta), wavy(schedule), x, lambda i: z[i])
    np.testing.assert_allclose(got, points, rtol=0, atol=3e-12)


@each_vp
def test_ancestral_is_ddpm(grid):
    # posterior q(x_t | x_s, x0) of Ho et al. 2020 eq. 7 ("fixed small"), and SDE-DPM-Solver++-1
    schedule = INDEXED

    def posterior(x, x0, i, z, memory):
        alpha_s, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        a = (alpha_s / alpha_t) ** 2
        beta = 1 - a
        mean = (alpha_t * beta * x0 + np.sqrt(a) * sigma_t**2 * x) / sigma_s**2
        return mean + np.sqrt(sigma_t**2 / sigma_s**2 * beta) * z

    def sde(x, x0, i, z, memory):
        alpha_s, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        h = np.diff(schedule.lam(grid[i : i + 2]))[0]
        gone = -np.expm1(-2 * h)
        return (
            sigma_t / sigma_s * np.exp(-h) * x + alpha_t * gone * x0 + sigma_t * np.sqrt(gone) * z
        )

    for step in (posterior, sde):
        for build in (solvers.euler_ancestral, partial(solvers.ddim, eta=1.0)):
            agree(build(schedule, grid), schedule, walk(step, schedule, grid))


@each_vp
def test_first_order_class(grid):
    # DPM-Solver-1, DPM-Solver++-1 and DEIS-1 (= Euler in rho of x/alpha) are one map
    schedule = INDEXED
    grid = grid[:-1]

    def dpm(x, x0, i, z, memory):
        alpha_s, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        h = np.diff(schedule.lam(grid[i : i + 2]))[0]
        return alpha_t / alpha_s * x - sigma_t * np.expm1(h) * (x - alpha_s * x0) / sigma_s

    def dpmpp(x, x0, i, z, memory):
        _, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        h = np.diff(schedule.lam(grid[i : i + 2]))[0]
        return sigma_t / sigma_s * x - alpha_t * np.expm1(-h) * x0

    def rho_space(x, x0, i, z, memory):
        alpha_s, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        slope = (x - alpha_s * x0) / sigma_s
        return alpha_t * (x / alpha_s + slope * (sigma_t / alpha_t - sigma_s / alpha_s))

    for step in (dpm, dpmpp, rho_space):
        agree(solvers.euler(schedule, grid), schedule, walk(step, schedule, grid))


def test_euler_on_flow_is_euler_on_the_velocity():
    schedule = schedules.flow()
    grid = grids.uniform_time(schedule, 15)

    def step(x, x0, i, z, memory):
        return x + (grid[i + 1] - grid[i]) * (x - x0) / grid[i]

    agree(solvers.euler(schedule, grid), schedule, walk(step, schedule, grid))


@each_vp
def test_midpoint_2m_is_unip_2(grid):
    # Zhao et al. 2023 (UniPC), predictor of order 2 with B(h) = exp(h) - 1, in x0 prediction
    schedule = INDEXED
    grid = grid[:-1]

    def step(x, x0, i, z, memory):
        _, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        lam = schedule.lam(grid[max(i - 1, 0) : i + 2])
        h, old = lam[-1] - lam[-2], memory.get("x0")
        memory["x0"] = x0
        x = sigma_t / sigma_s * x - alpha_t * np.expm1(-h) * x0
        if old is None:
            return x
        r = (lam[0] - lam[1]) / h
        return x - alpha_t * np.expm1(-h) * 0.5 * (old - x0) / r

    agree(solvers.dpmpp_2m(schedule, grid), schedule, walk(step, schedule, grid))


@each_vp
def test_heun_2m_is_exponential_adams(grid):
    # the integral of exp(lam) times the line through the last two estimates, by quadrature
    schedule = INDEXED
    grid = grid[:-1]
    nodes, weights = np.polynomial.legendre.leggauss(30)

    def step(x, x0, i, z, memory):
        _, alpha_t, sigma_s, sigma_t = vp_levels(schedule, grid, i)
        before, here, there = schedule.lam(grid[[max(i - 1, 0), i, i + 1]])
        h, old = there - here, memory.get("x0", x0)
        memory["x0"] = x0
        tau = 0.5 * h * (nodes + 1)
        line = x0 + tau[:, None] * (x0 - old) / (here - before if i else 1.0)
        integral = 0.5 * h * (weights * np.exp(tau - h)) @ line
        return sigma_t / sigma_s * x + alpha_t * integral

    agree(solvers.dpmpp_2m(schedule, grid, kind="heun"), schedule, walk(step, schedule, grid))


@pytest.mark.parametrize(
    "schedule",
    [schedules.vp_linear(), schedules.vp_cosine(), schedules.sub_vp(), schedules.flow(), INDEXED],
)
def test_heun_in_x_over_alpha(schedule):
    # the same step as the trapezoid written out in y = x/alpha and rho, for a general alpha
    grid = grids.karras(schedule, 10, sigma_max=10.0, to_zero=False)
    denoise = wavy(schedule)

    def slope(y, t):
        return (y - denoise(schedule.alpha(t) * y, t)) * schedule.alpha(t) / schedule.sigma(t)

    def step(x, x0, i, z, memory):
        (s, t), alpha_s, alpha_t = grid[i : i + 2], *schedule.alpha(grid[i : i + 2])
        move = schedule.sigma(t) / alpha_t - schedule.sigma(s) / alpha_s
        first = slope(x / alpha_s, s)
        second = slope(x / alpha_s + move * first, t)
        return alpha_t * (x / alpha_s + move * (first + second) / 2)

    x, _, points = walk(step, schedule, grid)
    got = run(solvers.heun(schedule, grid), denoise, x)[::2]
    np.testing.assert_allclose(got, points, rtol=0, atol=1e-12 * np.abs(points).max())
