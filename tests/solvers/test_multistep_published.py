"""Multistep solvers against the published formulas and against the schedulers of diffusers."""

from functools import partial

import numpy as np
import pytest
import torch
from multistep_runs import (
    BETAS,
    EDM,
    SD,
    assert_same,
    each_grid,
    levels,
    open_grids,
    states,
    walked,
)
from numpy_executor import run
from plan_tables import rows_of_x
from scipy import integrate
from test_published import wavy

from diffast import grids
from diffast.solvers.ode.adams import deis, gradient_estimation, ipndm, ipndm_v, lms, plms
from diffast.solvers.ode.dpm_multistep import dpm_solver_2m, dpm_solver_3m, dpmpp_2m, dpmpp_3m
from diffast.solvers.ode.unipc import unipc

# Published formulas.


def paper_unipc(schedule, grid, order, variant, data, corrector):
    """Zhao et al. 2023, algorithms 1 to 4 and appendix on x0, with their matrix R and vector b."""
    alpha, sigma, lam = levels(schedule, grid)
    denoise = wavy(schedule)
    x = np.random.default_rng(0).normal(size=6) * sigma[0]
    outputs, before, used, points = [], None, 0, [x]

    def update(x, n, p, current=None):
        h = lam[n + 1] - lam[n]
        hh = -h if data else h
        b_h = hh if variant == "bh1" else np.expm1(hh)
        r = [(lam[n - j] - lam[n]) / h for j in range(1, p)]
        differences = [outputs[n - j] - outputs[n] for j in range(1, p)]
        slopes = [d / rj for d, rj in zip(differences, r, strict=True)]
        if current is not None:
            r, slopes = [*r, 1.0], [*slopes, current - outputs[n]]
        count = len(r)
        moments, value, factorial = [], np.expm1(hh) / hh - 1, 1
        for k in range(1, count + 1):
            moments.append(value * factorial / b_h)
            factorial *= k + 1
            value = value / hh - 1 / factorial
        if count == 1:
            weights = [0.5]
        else:
            weights = np.linalg.solve(np.vander(r, increasing=True).T, moments) if count else []
        total = sum(w * s for w, s in zip(weights, slopes, strict=True))
        if data:
            base = sigma[n + 1] / sigma[n] * x - alpha[n + 1] * np.expm1(-h) * outputs[n]
            return base - alpha[n + 1] * b_h * total
        base = alpha[n + 1] / alpha[n] * x - sigma[n + 1] * np.expm1(h) * outputs[n]
        return base - sigma[n + 1] * b_h * total

    for n in range(len(grid) - 1):
        d = denoise(x, grid[n])
        output = d if data else (x - alpha[n] * d) / sigma[n]
        if n and corrector[n - 1]:
            x = update(before, n - 1, used, output)
        outputs.append(output)
        used = min(order, n + 1)
        before, x = x, update(x, n, used)
        points.append(x)
    return np.stack(points)


@open_grids
@pytest.mark.parametrize("corrector", ["all", "none", "some"])
@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_paper(schedule, grid, order, variant, form, corrector):
    mask = {"all": np.ones(12, bool), "none": np.zeros(12, bool), "some": np.arange(12) % 3 > 0}
    mask = mask[corrector]
    want = paper_unipc(schedule, grid, order, variant, form == "data", mask)
    plan = unipc(schedule, grid, order, variant, form, mask)
    assert_same(states(plan, schedule), want, 1e-11)
    if corrector != "some":
        plan = unipc(schedule, grid, order, variant, form, corrector == "all")
        assert_same(states(plan, schedule), want, 1e-11)


@each_grid
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_3m_as_published(schedule, grid, kind):
    alpha, sigma, lam = levels(schedule, grid)

    def step(x, denoise, n, memory):
        d = denoise(x, grid[n])
        memory[n] = d
        if sigma[n + 1] == 0:
            return d
        h = lam[n + 1] - lam[n]
        out = sigma[n + 1] / sigma[n] * x - alpha[n + 1] * np.expm1(-h) * d
        known = int(np.isfinite(lam[:n]).sum())
        if not np.isfinite(h) or known == 0:
            return out
        phi_2 = np.expm1(-h) / h + 1
        phi_3 = phi_2 / h - 0.5
        r0 = (lam[n] - lam[n - 1]) / h
        d10 = (d - memory[n - 1]) / r0
        if known == 1:
            middle = -0.5 * np.expm1(-h)
            return out + alpha[n + 1] * (phi_2 if kind == "heun" else middle) * d10
        r1 = (lam[n - 1] - lam[n - 2]) / h
        d11 = (memory[n - 1] - memory[n - 2]) / r1
        d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
        return out + alpha[n + 1] * (phi_2 * d1 - phi_3 * d2)

    with np.errstate(invalid="ignore"):
        want = walked(step, schedule, grid)
    assert_same(states(dpmpp_3m(schedule, grid, "compat", kind), schedule), want)
    exact = states(dpmpp_3m(schedule, grid, "exact", kind), schedule)
    assert np.abs(exact - want).max() > 1e-6


@open_grids
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_dpm_solver_multistep_as_published(schedule, grid, kind):
    alpha, sigma, lam = levels(schedule, grid)

    def stepper(most):
        def step(x, denoise, n, memory):
            e = memory[n] = (x - alpha[n] * denoise(x, grid[n])) / sigma[n]
            h = lam[n + 1] - lam[n]
            out = alpha[n + 1] / alpha[n] * x - sigma[n + 1] * np.expm1(h) * e
            if n == 0:
                return out
            r0 = (lam[n] - lam[n - 1]) / h
            d10 = (e - memory[n - 1]) / r0
            phi_2 = np.expm1(h) / h - 1
            if n == 1 or most == 2:
                return out - sigma[n + 1] * (phi_2 if kind == "heun" else 0.5 * np.expm1(h)) * d10
            r1 = (lam[n - 1] - lam[n - 2]) / h
            d11 = (memory[n - 1] - memory[n - 2]) / r1
            d1, d2 = d10 + (d10 - d11) * r0 / (r0 + r1), (d10 - d11) / (r0 + r1)
            phi_3 = (np.expm1(h) - h) / h**2 - 0.5
            return out - sigma[n + 1] * (phi_2 * d1 + phi_3 * d2)

        return step

    two, three = (walked(stepper(most), schedule, grid) for most in (2, 3))
    assert_same(states(dpm_solver_2m(schedule, grid, kind), schedule), two, 1e-11)
    assert_same(states(dpm_solver_3m(schedule, grid, "compat", kind), schedule), three, 1e-11)


@each_grid
@pytest.mark.parametrize("clock", ["logrho", "sigma"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_by_quadrature(schedule, grid, order, clock):
    # eps as Lagrange's polynomial in the clock, integrated in rho by an adaptive rule
    alpha, sigma, _ = levels(schedule, grid)
    with np.errstate(divide="ignore"):
        rho = sigma / alpha
        ticks = np.log(rho) if clock == "logrho" else rho

    def step(x, denoise, n, memory):
        d = denoise(x, grid[n])
        if not sigma[n + 1] or not alpha[n]:
            return sigma[n + 1] / sigma[n] * (x - alpha[n] * d) + alpha[n + 1] * d
        memory[n] = (x - alpha[n] * d) / sigma[n]
        nodes = [j for j in range(n, max(n - order, -1), -1) if np.isfinite(ticks[j])]

        def lagrange(r, j):
            at = np.log(r) if clock == "logrho" else r
            return np.prod([(at - ticks[k]) / (ticks[j] - ticks[k]) for k in nodes if k != j])

        return alpha[n + 1] / alpha[n] * x + alpha[n + 1] * sum(
            integrate.quad(lagrange, rho[n], rho[n + 1], args=(j,), epsabs=1e-13, epsrel=1e-12)[0]
            * memory[j]
            for j in nodes
        )

    want = walked(step, schedule, grid)
    assert_same(states(deis(schedule, grid, order, clock), schedule), want, 1e-10)
    if clock == "sigma":
        assert_same(states(lms(schedule, grid, order), schedule), want, 1e-10)


@open_grids
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_and_gradient_estimation(schedule, grid, order):
    table = [[1], [3 / 2, -1 / 2], [23 / 12, -4 / 3, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -3 / 8]]
    alpha, sigma, _ = levels(schedule, grid)

    def stepper(rows):
        def step(x, denoise, n, memory):
            memory[n] = (x - alpha[n] * denoise(x, grid[n])) / sigma[n]
            row = rows[min(n, len(rows) - 1)]
            e = sum(b * memory[n - j] for j, b in enumerate(row))
            return alpha[n + 1] * (x - sigma[n] * e) / alpha[n] + sigma[n + 1] * e

        return step

    want = walked(stepper(table[:order]), schedule, grid)
    assert_same(states(ipndm(schedule, grid, order), schedule), want, 1e-11)
    assert_same(states(plms(schedule, grid, order), schedule), want, 1e-11)
    gamma = 1.0 + 0.4 * order
    want = walked(stepper([[1], [gamma, 1 - gamma]]), schedule, grid)
    assert_same(states(gradient_estimation(schedule, grid, gamma), schedule), want, 1e-11)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_v_as_published(order):
    grid = grids.karras(EDM, 12)

    def step(x, denoise, n, memory):
        memory[n] = (x - denoise(x, grid[n])) / grid[n]
        p = min(order, n + 1)
        if grid[n + 1] == 0:
            return denoise(x, grid[n])
        h, h1, h2, h3 = (grid[n - j + 1] - grid[n - j] if j <= n else np.nan for j in range(4))
        b = {1: [1.0], 2: [(2 + h / h1) / 2, -h / h1 / 2]}
        first = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
        b[3] = [b[2][0] + first, b[2][1] - (1 + h1 / h2) * first, first * h1 / h2]
        second = (1 - h / (3 * (h + h1))) / 2
        second += (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        second *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        b[4] = [
            b[3][0] + second,
            b[3][1] - (1 + h1 / h2 + q) * second,
            b[3][2] + (h1 / h2 + q * (1 + h2 / h3)) * second,
            -second * q * h1 / h2,
        ]
        return x + h * sum(w * memory[n - j] for j, w in enumerate(b[p]))

    plan = ipndm_v(EDM, grid, order, form="compat")
    assert_same(states(plan, EDM), walked(step, EDM, grid), 1e-11)
    # where steps are even, order 3 is not off
    even = grids.uniform_time(EDM, 12, start=12.0, end=1.0)
    one, two = (states(ipndm_v(EDM, even, order, form), EDM) for form in ("exact", "compat"))
    assert (np.abs(one - two).max() > 1e-4) == (order == 4)
    assert order == 4 or np.abs(one - two).max() < 1e-11
    gap = rows_of_x(plan) - rows_of_x(ipndm_v(EDM, grid, order))
    apart = np.abs(gap).max()
    assert (apart > 1e-3) == (order > 2)


# Schedulers of diffusers, in float32.


def scheduled(scheduler, schedule, output="sample"):
    """Runs a scheduler over its timesteps; returns start and end."""
    denoise = wavy(schedule)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 6))).float()
    start = x.numpy().astype(np.float64)
    for t in scheduler.timesteps:
        at = float(t)
        now = x.double().numpy()
        made = denoise(now, at)
        if output == "epsilon":
            made = (now - schedule.alpha(at) * made) / schedule.sigma(at)
        x = scheduler.step(torch.from_numpy(made).float(), t, x).prev_sample
    return start, x.double().numpy()


def assert_like(plan, scheduler, output="sample", tolerance=1e-5):
    start, want = scheduled(scheduler, plan.schedule, output)
    got = run(plan, wavy(plan.schedule), start)[-1]
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def diffusers_scheduler(kind, steps, **options):
    options = {"prediction_type": "sample", "timestep_spacing": "trailing", **options}
    diffusers = pytest.importorskip("diffusers")
    made = getattr(diffusers, kind)(trained_betas=BETAS.tolist(), **options)
    made.set_timesteps(steps)
    return made


def grid_of(scheduler, end):
    return np.append(scheduler.timesteps.numpy().astype(float), end)


def falling(steps, order):
    """The orders of lower_order_final."""
    return [min(order, n + 1, steps - n) for n in range(steps)]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 12])
@pytest.mark.parametrize("corrector", [True, False])
def test_diffusers_unipc(order, steps, corrector):
    disabled = [] if corrector else list(range(steps))
    for variant, data, final in (
        ("bh2", True, "zero"),
        ("bh1", True, "sigma_min"),
        ("bh2", False, "sigma_min"),
    ):
        scheduler = diffusers_scheduler(
            "UniPCMultistepScheduler",
            steps,
            solver_order=order,
            solver_type=variant,
            predict_x0=data,
            final_sigmas_type=final,
            disable_corrector=disabled,
        )
        end = 0.0 if final == "sigma_min" else -1.0
        plan = unipc(
            SD,
            grid_of(scheduler, end),
            order,
            variant,
            "data" if data else "noise",
            corrector,
            orders=falling(steps, order),
        )
        assert_like(plan, scheduler)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_diffusers_deis(order):
    scheduler = diffusers_scheduler("DEISMultistepScheduler", 20, solver_order=order)
    # ends at index 0; fewer than 15 steps would end with lower orders
    assert_like(deis(SD, grid_of(scheduler, 0.0), order), scheduler, tolerance=1e-4)


@pytest.mark.filterwarnings("ignore:.*dpmsolver.* is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize("steps", [9, 20])
def test_diffusers_dpm_solver(kind, steps):
    for algorithm, builders in (
        ("dpmsolver++", (partial(dpmpp_2m, kind=kind), partial(dpmpp_3m, kind=kind))),
        ("dpmsolver", (partial(dpm_solver_2m, kind=kind), partial(dpm_solver_3m, kind=kind))),
    ):
        for order, build in zip((2, 3), builders, strict=True):
            scheduler = diffusers_scheduler(
                "DPMSolverMultistepScheduler",
                steps,
                solver_order=order,
                solver_type=kind,
                algorithm_type=algorithm,
                final_sigmas_type="sigma_min",
            )
            if order == 3:
                build = partial(build, form="compat")
            orders = falling(steps, order) if steps < 15 else None
            assert_like(build(SD, grid_of(scheduler, 0.0), orders=orders), scheduler)


@pytest.mark.parametrize("start", ["repeat", "prk"])
@pytest.mark.parametrize("to_one", [True, False])
def test_diffusers_pndm(start, to_one):
    scheduler = diffusers_scheduler(
        "PNDMScheduler",
        10,
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=0 if to_one else 1,
        skip_prk_steps=start == "repeat",
        set_alpha_to_one=to_one,
    )
    grid = grids.leading(SD, 10, steps_offset=0 if to_one else 1)
    grid[-1] = -1.0 if to_one else 0.0
    plan = plms(SD, grid, start=start, orders=[min(4, n + 1) for n in range(10)])
    assert plan.stages == len(scheduler.timesteps) == 10 + {"repeat": 1, "prk": 9}[start]
    np.testing.assert_array_equal(plan.times, scheduler.timesteps.numpy())
    assert_like(plan, scheduler, "epsilon")
