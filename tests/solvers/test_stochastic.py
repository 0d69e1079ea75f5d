"""Ancestral, churned and few-step solvers against the published formulas with given noise."""

from functools import partial

import numpy as np
import pytest
from given_noise import (
    ALPHA_SIGMA,
    BETAS,
    EDM,
    INDEXED,
    SIGMAS,
    agree,
    ancestral_step,
    each_sigmas,
    each_vp,
    slope,
)
from numpy_executor import run
from plan_tables import rows_of_x

from diffast import grids, schedules
from diffast.solvers.aliases import euler_ancestral
from diffast.solvers.few_step.consistency import lcm, tcd
from diffast.solvers.ode.euler import ddim, euler, heun
from diffast.solvers.sde.ancestral import (
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    flow_ancestral,
    flow_sde,
)
from diffast.solvers.sde.churn import churn, restart
from diffast.solvers.sde.er_sde import er_sde
from diffast.solvers.sde.exponential import ddpm, dpmpp_2m_sde, dpmpp_3m_sde
from diffast.solvers.sde.sa_solver import sa_solver
from diffast.solvers.sde.seeds import seeds_1

# k-diffusion, in sigma


@each_sigmas
@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (0.4, 1.0), (1.0, 1.0), (1.0, 1.1)])
def test_k_diffusion_two_stage_ancestral(sigmas, eta, s_noise):
    def published(kind, model, x, z):
        stage = 0
        for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
            d = model(x, a)
            down, up = ancestral_step(a, b, eta)
            if down == 0:
                x = x + slope(x, a, d) * (down - a)
                stage += 1
                continue
            mid = np.exp(0.5 * (np.log(a) + np.log(down)))
            middle = x + slope(x, a, d) * (mid - a)
            d_mid = model(middle, mid)
            if kind == "dpm_2":
                x = x + slope(middle, mid, d_mid) * (down - a)
            else:
                x = down / a * x + (1 - down / a) * d_mid
            x = x + z[stage + 1] * s_noise * up
            stage += 2
        return x

    for kind, build in (("dpm_2", dpm_2_ancestral), ("2s", dpmpp_2s_ancestral)):
        agree(build(EDM, sigmas, eta=eta, s_noise=s_noise), partial(published, kind), 3e-12)


@each_sigmas
@pytest.mark.parametrize(
    ("eta", "s_noise", "r"), [(0.0, 1.0, 0.5), (1.0, 1.0, 0.5), (0.7, 1.1, 0.4)]
)
def test_k_diffusion_dpmpp_sde(sigmas, eta, s_noise, r):
    def published(model, x, z):
        stage = 0
        for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
            d = model(x, a)
            if b == 0:
                return d
            m = np.exp(np.log(a) + r * (np.log(b) - np.log(a)))
            down, up = ancestral_step(a, m, eta)
            inner = down / a * x + (1 - down / a) * d + z[stage] * s_noise * up
            mixed = (1 - 1 / (2 * r)) * d + model(inner, m) / (2 * r)
            down, up = ancestral_step(a, b, eta)
            x = down / a * x + (1 - down / a) * mixed + z[stage + 1] * s_noise * up
            stage += 2
        return x

    plan = dpmpp_sde(EDM, sigmas, r=r, eta=eta, s_noise=s_noise)
    agree(plan, published)
    # the pairs its noise_sampler is asked for
    count = plan.stages // 2
    pairs = plan.spans[: 2 * count].reshape(count, 4)
    np.testing.assert_array_equal(pairs[:, 0], sigmas[:count])
    np.testing.assert_array_equal(pairs[:, 1], plan.times[1 : 2 * count : 2])
    np.testing.assert_array_equal(pairs[:, 2:], np.stack([sigmas[:-1], sigmas[1:]], 1)[:count])


@each_sigmas
@pytest.mark.parametrize(("eta", "s_noise"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 1.1)])
def test_k_diffusion_multistep_sde(sigmas, eta, s_noise):
    def published(kind, model, x, z):
        old = []
        for i, (a, b) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
            d = model(x, a)
            if b == 0:
                return d
            h = np.log(a) - np.log(b)
            total = (1 + eta) * h
            x = b / a * np.exp(-eta * h) * x - np.expm1(-total) * d
            phi_2 = np.expm1(-total) / total + 1
            if len(old) > 1 and kind == "3m":
                r0, r1 = (np.log(sigmas[i - k - 1] / sigmas[i - k]) / h for k in (0, 1))
                first, before = (d - old[-1]) / r0, (old[-1] - old[-2]) / r1
                d1 = first + (first - before) * r0 / (r0 + r1)
                d2 = (first - before) / (r0 + r1)
                x = x + phi_2 * d1 - (phi_2 / total - 0.5) * d2
            elif old:
                r = np.log(sigmas[i - 1] / a) / h
                gain = -0.5 * np.expm1(-total) if kind == "midpoint" else phi_2
                x = x + gain * (d - old[-1]) / r
            x = x + z[i] * b * np.sqrt(-np.expm1(-2 * eta * h)) * s_noise
            old.append(d)
        return x

    for kind in ("midpoint", "heun"):
        agree(dpmpp_2m_sde(EDM, sigmas, eta, kind, s_noise), partial(published, kind))
    agree(dpmpp_3m_sde(EDM, sigmas, eta, s_noise), partial(published, "3m"))


@each_sigmas
@pytest.mark.parametrize(
    ("s_churn", "s_tmin", "s_tmax", "s_noise"),
    [(4.0, 0.0, np.inf, 1.0), (100.0, 0.05, 50.0, 1.003), (0.0, 0.0, np.inf, 1.0)],
)
@pytest.mark.parametrize("base", ["euler", "heun", "dpm_2"])
def test_edm_churn(sigmas, s_churn, s_tmin, s_tmax, s_noise, base):
    # Karras et al. 2022, algorithm 2; noise of step n falls on the last stage of step n - 1
    plan = churn(EDM, sigmas, s_churn, s_tmin, s_tmax, s_noise, base)

    def published(model, x, z):
        stage, steps = 0, len(sigmas) - 1
        for a, b in zip(sigmas[:-1], sigmas[1:], strict=True):
            gamma = min(s_churn / steps, np.sqrt(2) - 1) if s_tmin <= a <= s_tmax else 0
            hat = a * (1 + gamma)
            x = x + np.sqrt(hat**2 - a**2) * s_noise * z[stage - 1]
            first = slope(x, hat, model(x, hat))
            if base == "euler" or b == 0:
                x = x + (b - hat) * first
                stage += 1
                continue
            stage += 2
            if base == "heun":
                second = slope(x + (b - hat) * first, b, model(x + (b - hat) * first, b))
                x = x + (b - hat) * (first + second) / 2
            else:
                mid = np.sqrt(hat * b)
                middle = x + (mid - hat) * first
                x = x + (b - hat) * slope(middle, mid, model(middle, mid))
        return x

    agree(plan, published, 1e-11)
    assert plan.start == sigmas[0]
    if s_churn == 4.0:
        assert plan.calls[0] == 1
        assert plan.times[1] == pytest.approx(sigmas[0] * (1 + 1 / 3), rel=1e-15)
        fresh = plan.weights("x", "z1")[0]
        assert fresh == pytest.approx(sigmas[0] * np.sqrt((4 / 3) ** 2 - 1), rel=1e-12)
    if s_churn == 0.0:
        assert not plan.stochastic
        if base == "heun":
            np.testing.assert_array_equal(rows_of_x(plan), rows_of_x(heun(EDM, sigmas)))


def test_churn_stays_on_the_schedule():
    # vp_linear has no time above t_start, and alpha = 0 has nothing to be raised
    vp, flow = schedules.vp_linear(), schedules.flow()
    plan = churn(vp, grids.uniform_time(vp, 6), s_churn=1e3)
    assert plan.times[0] == 1.0
    assert plan.nfe == plan.stages
    plan = churn(flow, grids.uniform_time(flow, 6), s_churn=1e3)
    assert plan.times[0] == 1.0
    assert plan.stochastic
    # rho_hat = 1.41 rho at every later step, in units of sigma/alpha
    at = np.flatnonzero(plan.weights("x", "z1"))
    raised, t = np.append(plan.times, plan.end)[at + 1], grids.uniform_time(flow, 6)[1:-1]
    np.testing.assert_allclose(raised / (1 - raised), np.sqrt(2) * t / (1 - t), rtol=1e-13)
    np.testing.assert_allclose(plan.spans[at], np.stack([t, raised], axis=1), rtol=0, atol=0)


@pytest.mark.parametrize(("base", "order"), [("heun", 2), ("dpm_2", 2), ("euler", 1)])
def test_order_of_the_variance_with_churn_and_restart(base, order):
    # variance of the sample for Gaussian data, all noises apart, the opening's too
    v, schedule, counts = 0.4, schedules.vp_linear(), (40, 80, 160, 320)

    def errors(build):
        for n in counts:
            grid = grids.uniform_logsnr(schedule, n, sigma_max=10.0, sigma_min=0.1, to_zero=False)
            plan = build(schedule, grid)
            unit = np.eye(plan.stages + 2)

            def level(t):
                return schedule.alpha(t) ** 2 * v + schedule.sigma(t) ** 2

            def denoise(x, t):
                return schedule.alpha(t) * v / level(t) * x

            start = np.sqrt(level(grid[0])) * unit[0]
            x = run(plan, denoise, start, lambda i, unit=unit: unit[2 + i])[-1]
            yield abs((x**2).sum() - level(grid[-1]))

    builds = {
        "churn": partial(churn, s_churn=8.0, base=base),
        "restart": lambda s, g: restart(s, g, [(0.5, 2.0, 2, len(g) - 1)], base),
    }
    for name, build in builds.items():
        slope = -np.polyfit(np.log(counts), np.log(list(errors(build))), 1)[0]
        assert abs(slope - order) <= 0.15, (name, slope)


@pytest.mark.parametrize("base", ["heun", "euler"])
def test_restart_paper(base):
    # Xu et al. 2023, algorithm 1, in sigma
    sigmas, low, high, repeats, steps = SIGMAS["to_zero"], 0.3, 2.0, 3, 4
    begin = int(np.argmin(np.abs(sigmas - low)))
    ramp = np.linspace(0, 1, steps + 1)
    down = ((1 - ramp) * high ** (1 / 7) + ramp * sigmas[begin] ** (1 / 7)) ** 7
    plan = restart(EDM, sigmas, [(low, high, repeats, steps)], base)

    def published(model, x, z):
        stage = 0

        def walk(x, levels):
            nonlocal stage
            for a, b in zip(levels[:-1], levels[1:], strict=True):
                first = slope(x, a, model(x, a))
                end = x + (b - a) * first
                stage += 1
                if base == "heun" and b:
                    end = x + (b - a) * (first + slope(end, b, model(end, b))) / 2
                    stage += 1
                x = end
            return x

        x = walk(x, sigmas[: begin + 1])
        for _ in range(repeats):
            x = x + np.sqrt(high**2 - sigmas[begin] ** 2) * z[stage - 1]
            x = walk(x, down)
        return walk(x, sigmas[begin:])

    agree(plan, published)
    assert plan.steps == len(sigmas) - 1
    assert (np.diff(plan.times) > 0).sum() == repeats


# first-order identities


@each_vp
def test_one_map_by_several_names(grid):
    first = rows_of_x(ddim(INDEXED, grid, eta=1.0))
    for plan in (
        ddpm(INDEXED, grid),
        seeds_1(INDEXED, grid),
        flow_sde(INDEXED, grid, np.sqrt(2.0)),
        dpmpp_2m_sde(INDEXED, grid, orders=np.ones(len(grid) - 1, int)),
        sa_solver(INDEXED, grid, 1, 0),
        er_sde(INDEXED, grid, 1, noise_scale=lambda rho: rho**2),
    ):
        row = rows_of_x(plan)
        np.testing.assert_allclose(row[:, :3], first, rtol=2e-10, atol=1e-14)
        assert not row[:, 3:].any()
    none = rows_of_x(euler(INDEXED, grid))
    for plan in (
        flow_ancestral(INDEXED, grid, 0.0),
        flow_sde(INDEXED, grid, 0.0),
        sa_solver(INDEXED, grid, 1, 0, tau=0.0),
        seeds_1(INDEXED, grid, 0.0),
        er_sde(INDEXED, grid, 1, noise_scale=lambda rho: rho),
    ):
        np.testing.assert_allclose(rows_of_x(plan)[:, :3], none, rtol=1e-12, atol=1e-14)


@each_vp
def test_ddpm_variances(grid):
    # Ho et al. 2020, section 3.2, in cumulative alphas
    bar = INDEXED.alpha(grid) ** 2
    beta = 1 - bar[:-1] / bar[1:]
    large = ddpm(INDEXED, grid, "large")
    np.testing.assert_allclose(large.weights("x", "z1") ** 2, beta, rtol=1e-9)
    assert large.check == "x0"
    small = rows_of_x(ddpm(INDEXED, grid))
    np.testing.assert_allclose(small[:, 1] ** 2, beta * (1 - bar[1:]) / (1 - bar[:-1]), rtol=1e-9)
    np.testing.assert_array_equal(small[:, 0], large.weights("x", "x"))
    last = rows_of_x(ddpm(INDEXED, grids.trailing(INDEXED, 10), "large"))[-1]
    np.testing.assert_array_equal(last, [0, 0, 1])


def test_s_noise_scales_the_fresh_noise_alone():
    grid = SIGMAS["to_zero"]
    for build in (ddim, euler_ancestral, flow_ancestral, er_sde, dpmpp_2m_sde, dpmpp_3m_sde):
        options = {"eta": 1.0} if build is ddim else {}
        plain, scaled = build(EDM, grid, **options), build(EDM, grid, s_noise=1.5, **options)
        one, two = rows_of_x(plain), rows_of_x(scaled)
        np.testing.assert_allclose(two[:, 1], 1.5 * one[:, 1], rtol=1e-15)
        np.testing.assert_array_equal(two[:, 2:], one[:, 2:])
        assert (plain.check, scaled.check) == ("full", "x0")


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_flow_ancestral_renoises(eta):
    schedule = schedules.flow()
    grid = grids.uniform_time(schedule, 9)

    def published(model, x, z):
        for i, (a, b) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
            d = model(x, a)
            down = b * (1 + (b / a - 1) * eta)
            x = down / a * x + (1 - down / a) * d
            scale = (1 - b) / (1 - down)
            x = scale * x + np.sqrt(max(b**2 - down**2 * scale**2, 0)) * z[i]
        return x

    agree(flow_ancestral(schedule, grid, eta), published)


def test_flow_sde_is_flow_grpo_for_small_steps():
    # Euler-Maruyama of Liu et al. 2025, eq. 12, at a = 0.7: the rows part at order dt^2 (dt^1.5
    # in the noise)
    schedule, a, gaps = schedules.flow(), 0.7, []
    for dt in (1e-2, 1e-3):
        t = 0.6
        row = rows_of_x(flow_sde(schedule, [t, t - dt], a))[0]
        # x + dx with v = (x - d) / t and e = x + (1 - t) v, time going down by dt
        g2 = a**2 * t / (1 - t)
        x = 1 - dt * (1 / t + g2 / (2 * t) * (1 + (1 - t) / t))
        d = dt * (1 / t + g2 / (2 * t) * (1 - t) / t)
        gaps.append(np.abs(row - [x, np.sqrt(g2 * dt), d]))
    assert (gaps[1][[0, 2]] < 0.012 * gaps[0][[0, 2]]).all()
    assert gaps[1][1] < 0.04 * gaps[0][1]


# few steps


@each_vp
def test_lcm(grid):
    bar = INDEXED.alpha(grid) ** 2

    def published(model, x, z):
        for i in range(len(grid) - 1):
            x = np.sqrt(bar[i + 1]) * model(x, grid[i]) + np.sqrt(1 - bar[i + 1]) * z[i]
        return x

    agree(lcm(INDEXED, grid), published)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(gamma):
    # Zheng et al. 2024, algorithm 4, on indices; the grid ends at index 0, without noise
    bar, grid = np.cumprod(1 - BETAS), np.array([999.0, 759.0, 499.0, 259.0, 0.0])

    def published(model, x, z):
        for i, (s, t) in enumerate(zip(grid[:-1].astype(int), grid[1:].astype(int), strict=True)):
            m = int(np.floor((1 - gamma) * t))
            d = model(x, s)
            e = (x - np.sqrt(bar[s]) * d) / np.sqrt(1 - bar[s])
            x = np.sqrt(bar[m]) * d + np.sqrt(1 - bar[m]) * e
            x = np.sqrt(bar[t] / bar[m]) * x + np.sqrt(1 - bar[t] / bar[m]) * z[i]
        return x

    plan = tcd(INDEXED, grid, gamma)
    agree(plan, published)
    assert plan.weights("x", "z1")[-1] == 0.0


@pytest.mark.parametrize("name", ALPHA_SIGMA)
def test_tcd_ends_are_euler_and_lcm(name):
    schedule = getattr(schedules, name)()
    for steps in (1, 2, 5):
        grid = grids.uniform_time(schedule, steps)
        for gamma, same in ((0.0, euler), (1.0, lcm)):
            one, two = (rows_of_x(p) for p in (tcd(schedule, grid, gamma), same(schedule, grid)))
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-13)
