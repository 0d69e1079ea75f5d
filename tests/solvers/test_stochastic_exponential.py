"""SDE-DPM-Solver, SA-Solver, SEEDS and ER-SDE against the published formulas with given noise."""

from functools import partial

import numpy as np
import pytest
from given_noise import (
    BETAS,
    INDEXED,
    agree,
    each_vp,
)
from scipy.integrate import quad

from diffast import grids
from diffast.solvers.sde.er_sde import er_sde
from diffast.solvers.sde.exponential import dpm_solver_2m_sde
from diffast.solvers.sde.sa_solver import sa_solver
from diffast.solvers.sde.seeds import seeds_2, seeds_3

# exponential methods, in alpha and sigma


@each_vp
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_sde_dpm_solver_in_noise(grid, kind):
    alpha, sigma, lam = INDEXED.alpha(grid), INDEXED.sigma(grid), INDEXED.lam(grid)

    def published(model, x, z):
        old = None
        for i in range(len(grid) - 1):
            e = (x - alpha[i] * model(x, grid[i])) / sigma[i]
            h, s = lam[i + 1] - lam[i], sigma[i + 1]
            x = alpha[i + 1] / alpha[i] * x - 2 * s * np.expm1(h) * e
            if old is not None:
                d1 = (e - old) * h / (lam[i] - lam[i - 1])
                both = {"midpoint": np.expm1(h), "heun": 2 * (np.expm1(h) / h - 1)}
                x = x - s * both[kind] * d1
            x = x + s * np.sqrt(np.expm1(2 * h)) * z[i]
            old = e
        return x

    agree(dpm_solver_2m_sde(INDEXED, grid, kind), published, 1e-11)


def lagrange(nodes, j, lam):
    others = [k for k in range(len(nodes)) if k != j]
    return np.prod([(lam - nodes[k]) / (nodes[j] - nodes[k]) for k in others])


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("kind", ["few_steps", "more_steps"])
@pytest.mark.parametrize(("p", "c"), [(1, 0), (1, 2), (2, 0), (2, 2), (3, 3), (2, 4), (3, 1)])
def test_sa_solver_paper(form, kind, p, c):
    # Xue et al. 2023, algorithm 1: Adams integrals by adaptive quadrature, the predictor's noise
    # in the corrector, order-2 weights of "few_steps" as in the published code
    grid = grids.karras(INDEXED, 7, to_zero=False)
    alpha, sigma, lam = INDEXED.alpha(grid), INDEXED.sigma(grid), INDEXED.lam(grid)

    def tau(t):
        return 0.8 if 200 <= t <= 800 else 0.3

    def weights(a, b, nodes, total):
        def integrand(v, j):
            kernel = np.exp(-total * (b - v)) if form == "data" else -np.exp(b - v)
            return total * kernel * lagrange(nodes, j, v)

        found = [
            quad(integrand, a, b, args=(j,), epsabs=1e-14, epsrel=1e-13)[0]
            for j in range(len(nodes))
        ]
        if form == "data" and kind == "few_steps" and len(nodes) == 2:
            h = b - a
            extra = total * (h**2 / 2 - (total * h - 1 + np.exp(-total * h)) / total**2)
            gap = nodes[0] - nodes[1]
            found = [found[0] + extra / gap, found[1] - extra / gap]
        return found

    def published(model, x, z):
        estimates, last = [], None
        for i in range(len(grid) - 1):
            d = model(x, grid[i])
            m = d if form == "data" else (x - alpha[i] * d) / sigma[i]
            estimates.insert(0, m)
            if last is not None and c:
                base, n = last, i - 1
                order = min(c, i + 1)
                nodes = lam[n + 1 :: -1][:order]
                total = 1 + tau(grid[n]) ** 2
                scale = alpha[i] if form == "data" else sigma[i]
                x = base + scale * sum(
                    w * e
                    for w, e in zip(weights(lam[n], lam[i], nodes, total), estimates, strict=False)
                )
            strength, h = tau(grid[i]), lam[i + 1] - lam[i]
            if form == "data":
                keep = np.exp(-(strength**2) * h) * sigma[i + 1] / sigma[i]
                up = np.sqrt(-np.expm1(-2 * strength**2 * h))
            else:
                keep, up = alpha[i + 1] / alpha[i], strength * np.sqrt(np.expm1(2 * h))
            last = keep * x + sigma[i + 1] * up * z[i]
            nodes = lam[i::-1][: min(p, i + 1)]
            scale = alpha[i + 1] if form == "data" else sigma[i + 1]
            found = weights(lam[i], lam[i + 1], nodes, 1 + strength**2)
            x = last + scale * sum(w * e for w, e in zip(found, estimates, strict=False))
        return x

    agree(sa_solver(INDEXED, grid, p, c, tau, form, kind), published, 3e-11)


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize(("p", "c"), [(1, 1), (2, 2), (3, 4), (3, 1)])
@pytest.mark.parametrize("final", [True, False])
def test_sa_solver_is_that_of_diffusers(form, p, c, final):
    # in float64, which its sigmas are not by themselves
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    steps, kinds = 8, {"data": "data_prediction", "noise": "noise_prediction"}

    def tau(t):
        return 1.0 if 200 <= t <= 800 else 0.0

    scheduler = diffusers.SASolverScheduler(
        trained_betas=BETAS,
        predictor_order=p,
        corrector_order=c,
        algorithm_type=kinds[form],
        prediction_type="sample",
        tau_func=tau,
        lower_order_final=final,
    )
    scheduler.set_timesteps(steps)
    grid = np.append(scheduler.timesteps.numpy().astype(float), 0.0)
    scheduler.sigmas = torch.from_numpy(INDEXED.sigma(grid) / INDEXED.alpha(grid))
    n = np.arange(steps)
    predictor, corrector = np.minimum(p, n + 1), np.minimum(c, n + 2)
    if final:
        predictor = np.minimum(predictor, steps - n)
        corrector = np.minimum(corrector, steps - n + 1)

    def published(model, x, z):
        generator = torch.Generator().manual_seed(0)
        for i in range(steps):
            z[i] = torch.randn(5, generator=generator, dtype=torch.float64).numpy()
        generator.manual_seed(0)
        x = torch.from_numpy(x)
        for t in scheduler.timesteps:
            d = torch.from_numpy(model(x.numpy(), float(t)))
            x = scheduler.step(d, t, x, generator=generator).prev_sample
        return x.numpy()

    agree(sa_solver(INDEXED, grid, predictor, corrector, tau, form, "few_steps"), published, 1e-11)


@each_vp
@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (0.6, 1.0), (1.0, 1.1)])
def test_seeds(grid, eta, s_noise):
    # the stages as they stand on their own: each holds all noise so far, faded
    lam = INDEXED.lam(grid)

    def walk(shares, tableau, model, x, z):
        stage = 0
        for i in range(len(grid) - 1):
            h = lam[i + 1] - lam[i]
            total, start = (1 + eta) * h, x
            spots = [0.0, *shares, 1.0]
            times = [INDEXED.time(lam[i] + r * h) for r in spots]
            estimates, noise = [], 0.0
            for m in range(len(spots) - 1):
                estimates.append(model(x, times[m]))
                there, gone = spots[m + 1], spots[m + 1] - spots[m]
                noise = noise * np.exp(-eta * gone * h)
                noise = noise + np.sqrt(-np.expm1(-2 * eta * gone * h)) * z[stage]
                a, s = INDEXED.alpha(times[m + 1]), INDEXED.sigma(times[m + 1])
                keep = s / INDEXED.sigma(grid[i]) * np.exp(-eta * there * h)
                x = keep * start + s * s_noise * noise
                x = x + a * sum(w * e for w, e in zip(tableau(m, total), estimates, strict=True))
                stage += 1
        return x

    def p1(y):
        return -np.expm1(-y)

    def p2(y):
        return 1 + np.expm1(-y) / y

    def two(kind, r, m, total):
        if m == 0:
            return (p1(r * total),)
        late = p1(total) / (2 * r) if kind == "phi_1" else p2(total) / r
        return p1(total) - late, late

    def three(m, total, r1=1 / 3, r2=2 / 3):
        if m == 0:
            return (p1(r1 * total),)
        if m == 1:
            inner = r2 / r1 * p2(r2 * total)
            return p1(r2 * total) - inner, inner
        return p1(total) - p2(total) / r2, 0.0, p2(total) / r2

    for kind, r in (("phi_1", 0.5), ("phi_2", 0.5), ("phi_2", 0.3)):
        plan = seeds_2(INDEXED, grid, eta, s_noise, r, kind)
        agree(plan, partial(walk, (r,), partial(two, kind, r)))
    agree(seeds_3(INDEXED, grid, eta, s_noise), partial(walk, (1 / 3, 2 / 3), three))
    plan = seeds_3(INDEXED, grid, eta)
    np.testing.assert_array_equal(plan.spans[:, 0], plan.times)
    np.testing.assert_array_equal(plan.spans[:, 1], np.append(plan.times[1:], grid[-1]))


@each_vp
@pytest.mark.parametrize("scale", [None, lambda rho: rho**1.5, lambda rho: rho])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_paper(grid, scale, order):
    # Cui et al. 2023, with the integrals over rho by adaptive quadrature
    alpha, rho = INDEXED.alpha(grid), INDEXED.sigma(grid) / INDEXED.alpha(grid)

    def phi(x):
        return x * (np.exp(x**0.3) + 10) if scale is None else scale(x)

    def published(model, x, z):
        old, old_slope = None, None
        for i in range(len(grid) - 1):
            d = model(x, grid[i])
            a, b = rho[i], rho[i + 1]
            r = phi(b) / phi(a)
            x = alpha[i + 1] / alpha[i] * r * x + alpha[i + 1] * (1 - r) * d
            if i and order > 1:
                first = (d - old) / (a - rho[i - 1])
                whole = quad(lambda v: 1 / phi(v), b, a, epsrel=1e-13)[0]
                x = x + alpha[i + 1] * (b - a + whole * phi(b)) * first
                if i > 1 and order > 2:
                    second = 2 * (first - old_slope) / (a - rho[i - 2])
                    part = quad(lambda v, a=a: (v - a) / phi(v), b, a, epsrel=1e-13)[0]
                    x = x + alpha[i + 1] * ((b - a) ** 2 / 2 + part * phi(b)) * second
                old_slope = first
            if r < b / a * (1 - 1e-12):  # else rounding of the ODE's scale would be noise of 1e-8
                x = x + alpha[i + 1] * np.sqrt(b**2 - a**2 * r**2) * z[i]
            old = d
        return x

    agree(er_sde(INDEXED, grid, order, scale), published, 1e-11)
