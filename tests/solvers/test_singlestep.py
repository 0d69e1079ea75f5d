"""DPM-Solver and DPM-Solver++ singlestep against their published formulas and implementations."""

from functools import partial

import numpy as np
import pytest
from numpy_executor import run
from one_step import EDM, VP, agree, each_other, each_sigmas, same, start, wavy

from diffast import grids, solvers
from diffast.solvers.ode import exponential, runge_kutta
from diffast.solvers.ode.singlestep import fast_orders


def dpm_solver(order, r1, r2, kind="midpoint"):
    """Lu et al.'s noise form as k-diffusion writes it, alpha = 1."""

    def step(x, s, t, denoise):
        h, first = np.log(s / t) if t else np.inf, (x - denoise(x, s)) / s
        if t == 0 or order == 1:
            return x - (s - t) * first
        mid = s * np.exp(-r1 * h)
        u = x - mid * np.expm1(r1 * h) * first
        change = (u - denoise(u, mid)) / mid - first
        euler = x - t * np.expm1(h) * first
        if order == 2:
            return euler - t / (2 * r1) * np.expm1(h) * change
        late = s * np.exp(-r2 * h)
        u = x - late * np.expm1(r2 * h) * first
        u -= late * (r2 / r1) * (np.expm1(r2 * h) / (r2 * h) - 1) * change
        last = (u - denoise(u, late)) / late - first
        if kind == "midpoint":
            return euler - t / r2 * (np.expm1(h) / h - 1) * last
        d1 = (r2 * change / r1 - r1 * last / r2) / (r2 - r1)
        d2 = 2 * (last / r2 - change / r1) / (r2 - r1)
        euler -= t * (np.expm1(h) / h - 1) * d1
        return euler - t * ((np.expm1(h) - h) / h**2 - 0.5) * d2

    return step


def dpm_solver_pp(schedule, order, r1, r2, kind="midpoint"):
    """The data form, for any schedule."""

    def step(x, s, t, denoise):
        def to(h):
            at = schedule.time(schedule.lam(s) + h) if h < whole else t
            return at, schedule.alpha(at), schedule.sigma(at) / schedule.sigma(s)

        first = denoise(x, s)
        if schedule.sigma(t) == 0:
            return first
        whole = schedule.lam(t) - schedule.lam(s)
        at, alpha, keep = to(r1 * whole)
        change = denoise(keep * x - alpha * np.expm1(-r1 * whole) * first, at) - first
        _, alpha_t, keep_t = to(whole)
        euler = keep_t * x - alpha_t * np.expm1(-whole) * first
        if order == 2:
            return euler - alpha_t * np.expm1(-whole) / (2 * r1) * change
        h = r2 * whole
        at, alpha, keep = to(h)
        u = keep * x - alpha * np.expm1(-h) * first
        u += r2 / r1 * alpha * (np.expm1(-h) / h + 1) * change
        last, h = denoise(u, at) - first, whole
        if kind == "midpoint":
            return euler + alpha_t / r2 * (np.expm1(-h) / h + 1) * last
        d1 = (r2 * change / r1 - r1 * last / r2) / (r2 - r1)
        d2 = 2 * (last / r2 - change / r1) / (r2 - r1)
        euler += alpha_t * (np.expm1(-h) / h + 1) * d1
        return euler - alpha_t * ((np.expm1(-h) + h) / h**2 - 0.5) * d2

    return step


@each_sigmas
def test_k_diffusion_dpm_2(sigmas):
    def step(x, s, t, denoise):
        slope = (x - denoise(x, s)) / s
        if t == 0:
            return x + slope * (t - s)
        mid = np.exp(0.5 * np.log(s) + 0.5 * np.log(t))
        moved = x + slope * (mid - s)
        return x + (moved - denoise(moved, mid)) / mid * (t - s)

    agree(solvers.dpm_2(EDM, sigmas), step, EDM, sigmas)
    same(solvers.dpm_2(EDM, sigmas, r=0.4), solvers.dpm_solver_2s(EDM, sigmas, r=0.4))


@each_sigmas
def test_k_diffusion_dpm_solver(sigmas):
    agree(solvers.dpm_solver_2s(EDM, sigmas), dpm_solver(2, 0.5, None), EDM, sigmas)
    agree(solvers.dpm_solver_2s(EDM, sigmas, r=0.7), dpm_solver(2, 0.7, None), EDM, sigmas)
    agree(solvers.dpm_solver_3s(EDM, sigmas), dpm_solver(3, 1 / 3, 2 / 3), EDM, sigmas)
    plan = solvers.dpm_solver_3s(EDM, sigmas, r1=0.2, r2=0.9, kind="heun")
    agree(plan, dpm_solver(3, 0.2, 0.9, "heun"), EDM, sigmas)


@each_other
def test_published_dpm_solver_pp(schedule, grid):
    def check(build, order, r1=0.5, r2=None, **options):
        plan = build(schedule, grid, clock="rho", **options)
        kind = options.get("kind", "midpoint")
        agree(plan, dpm_solver_pp(schedule, order, r1, r2, kind), schedule, grid)

    check(solvers.dpmpp_2s, 2)
    check(solvers.dpmpp_2s, 2, 0.8, r=0.8)
    check(solvers.dpmpp_3s, 3, 1 / 3, 2 / 3)
    check(solvers.dpmpp_3s, 3, 1 / 3, 2 / 3, kind="heun")


@pytest.mark.parametrize("calls", range(1, 14))
def test_k_diffusion_dpm_fast(calls):
    # m + 1 levels; 3 ... 3, then 2, 1 or the rest
    m = calls // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if calls % 3 == 0 else [3] * (m - 1) + [calls % 3]
    assert fast_orders(calls) == tuple(orders)
    levels = np.exp(np.linspace(np.log(20.0), np.log(0.05), m + 1))
    levels[[0, -1]] = 20.0, 0.05
    grid = grids.uniform_logsnr(EDM, m, sigma_max=20.0, sigma_min=0.05, to_zero=False)
    np.testing.assert_allclose(grid, levels, rtol=1e-14)
    plan = solvers.dpm_fast(EDM, grid, orders)
    assert plan.stages == calls
    count = iter(orders)

    def step(x, s, t, denoise):
        order = next(count)
        r = (1 / 3, 2 / 3) if order == 3 else (1 / 2, None)
        return dpm_solver(order, *r)(x, s, t, denoise)

    agree(plan, step, EDM, grid)
    if calls % 3 == 0:
        same(solvers.dpm_fast(EDM, grid), plan)


def test_dpm_fast_without_a_first_order_step_has_order_3():
    def denoise(x, t):
        return np.tanh(x / (0.5 + t))

    def end_of(n, build):
        grid = grids.uniform_logsnr(EDM, n, sigma_max=4.0, sigma_min=0.5, to_zero=False)
        return run(build(EDM, grid), denoise, np.array([2.0, -1.0, 5.0]))[-1]

    truth, errors = end_of(160, runge_kutta.dopri5), []
    for n in (40, 80, 160):
        orders = fast_orders(3 * n - 1)
        got = end_of(n, partial(solvers.dpm_fast, orders=orders))
        errors.append(np.abs(got - truth).max())
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 3, atol=0.15)


BLOCKS = {"2": (2, 2, 2, 2, 1), "3": (3, 3, 3), "mixed": (1, 3, 2, 1, 2)}


def partial_orders(blocks):
    return [i + 1 for block in blocks for i in range(block)]


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize(
    ("form", "to_zero"),
    [("data", True), ("data", False), ("noise", False)],  # theirs is nan for noise to zero
)
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning")
def test_singlestep_is_the_scheduler_of_diffusers(blocks, form, kind, to_zero):
    torch = pytest.importorskip("torch")
    scheduler = pytest.importorskip("diffusers").DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver++" if form == "data" else "dpmsolver",
        final_sigmas_type="sigma_min",
        solver_type=kind,
        solver_order=3,
        prediction_type="sample",
    )
    grid = grids.karras(VP, 9, sigma_max=10.0, to_zero=to_zero)
    if to_zero:
        blocks = (*blocks[:-1], *singlestep_tail(blocks[-1]))
    with np.errstate(divide="ignore"):
        levels = VP.sigma(grid) / VP.alpha(grid)
    scheduler.set_timesteps(9)
    scheduler.sigmas = torch.from_numpy(levels)
    scheduler.order_list = partial_orders(blocks)
    x, denoise = start(VP, grid), wavy(VP)
    points = run(solvers.singlestep(VP, grid, blocks, form, kind), denoise, x)
    x = torch.from_numpy(x)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(torch.from_numpy(denoise(x.numpy(), grid[i])), t, x).prev_sample
        np.testing.assert_allclose(points[i + 1], x.numpy(), rtol=0, atol=1e-12)


def singlestep_tail(block):
    """A last block as diffusers cuts it before sigma = 0."""
    return (block,) if block == 1 else (block - 1, 1)


def test_singlestep_into_zero_is_a_block_of_1_wherever_it_is():
    grid = grids.karras(VP, 6)
    x, denoise = start(VP, grid), wavy(VP)
    for orders, cut in ((3, (3, 2, 1)), (2, (2, 2, 1, 1))):
        one, other = (run(solvers.singlestep(VP, grid, o), denoise, x) for o in (orders, cut))
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-14 * np.abs(one).max())
    same(solvers.singlestep(VP, grid, 1), solvers.euler(VP, grid))


def test_singlestep_on_midpoints_is_dpmpp_2s():
    lam = np.linspace(-2.0, 2.5, 5)
    outer, fine = VP.time(lam), VP.time(np.interp(np.arange(9) / 2, np.arange(5), lam))
    one, other = solvers.singlestep(VP, fine), solvers.dpmpp_2s(VP, outer)
    same(one, other)
    assert (one.steps, other.steps) == (8, 4)
    one = solvers.singlestep(VP, fine, form="noise")
    same(one, solvers.dpm_solver_2s(VP, outer))
    same(solvers.singlestep(VP, fine, kind="heun"), exponential.res_2s(VP, outer))
