"""Stochastic solvers: orders the shared tests cannot ask for, clean ends, refusals."""

from functools import partial

import numpy as np
import pytest
from given_noise import (
    ALPHA_SIGMA,
    BETAS,
    EDM,
    INDEXED,
)
from numpy_executor import run
from plan_tables import rows_of_x, table

from diffast import grids, schedules
from diffast.solvers.few_step.consistency import lcm, tcd
from diffast.solvers.sde.ancestral import (
    dpm_2_ancestral,
    dpmpp_2s_ancestral,
    dpmpp_sde,
    flow_ancestral,
    flow_sde,
)
from diffast.solvers.sde.churn import churn, restart
from diffast.solvers.sde.er_sde import er_sde
from diffast.solvers.sde.exponential import ddpm, dpm_solver_2m_sde, dpmpp_2m_sde, dpmpp_3m_sde
from diffast.solvers.sde.sa_solver import sa_solver
from diffast.solvers.sde.seeds import seeds_2, seeds_3


def test_third_orders():
    # seeds_3 as it is; the multistep ones once their first two steps are of length h^2
    schedule, v, counts = schedules.vp_linear(), 0.4, (80, 160, 320)

    def error(build, lam):
        grid = schedule.time(lam)
        level = np.sqrt(schedule.alpha(grid) ** 2 * v + schedule.sigma(grid) ** 2)

        def denoise(x, t):
            return schedule.alpha(t) * v / (schedule.alpha(t) ** 2 * v + schedule.sigma(t) ** 2) * x

        return abs(run(build(schedule, grid), denoise, 1.0)[-1] - level[-1] / level[0])

    builds = (
        partial(seeds_3, eta=0.0),
        partial(dpmpp_3m_sde, eta=0.0, form="exact"),
        partial(sa_solver, predictor_order=3, corrector_order=0, tau=0.0),
        partial(sa_solver, predictor_order=2, corrector_order=3, tau=0.0),
    )
    for build in builds:
        errors = []
        for n in counts:
            lam = np.linspace(-2.0, 2.0, n + 1)
            h = lam[1] - lam[0]
            lam = np.concatenate([[-2.0, -2.0 + h**2 / 2], lam[1:] if n else lam])
            lam = np.insert(lam, 2, -2.0 + h**2)
            errors.append(error(build, lam))
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert abs(slope - 3) <= 0.2, (build, errors)


@pytest.mark.parametrize("kind", ["few_steps", "more_steps"])
def test_variance_of_the_default_sa_solver(kind):
    # 2.2 on time grids, where its third-order error is the larger one up to 1,000 steps; with the
    # integrals that is so on every grid (2.9 falling to 2.5 at 1,280 steps, a seventh of the error)
    schedule, v, counts = schedules.vp_linear(), 0.4, (80, 160, 320)
    for form in ("data", "noise"):
        errors = []
        for n in counts:
            grid = grids.uniform_logsnr(schedule, n, 0.1, 10.0, to_zero=False)
            level = schedule.alpha(grid) ** 2 * v + schedule.sigma(grid) ** 2
            unit = np.eye(n + 1)

            def denoise(x, t):
                alpha, sigma = schedule.alpha(t), schedule.sigma(t)
                return alpha * v / (alpha**2 * v + sigma**2) * x

            plan, start = (
                sa_solver(schedule, grid, form=form, kind=kind),
                np.sqrt(level[0]) * unit[0],
            )
            x = run(plan, denoise, start, lambda i, unit=unit: unit[1 + i])[-1]
            errors.append(abs((x**2).sum() - level[-1]))
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        if kind == "few_steps" or form == "noise":
            assert abs(slope - 2) <= 0.15, (form, errors)
        else:
            assert slope >= 2 - 0.15 and errors[-1] < 1e-5, (form, errors)


def test_order_of_sa_solver_without_noise():
    # at tau = 0 the corrector adds an order: predictor 1, corrector 2
    early, late = (80, 160, 320), (640, 1280, 2560)
    cases = (
        (1, 2, "data", "few_steps", 2, early),
        (1, 1, "data", "few_steps", 1, early),
        (1, 2, "noise", "few_steps", 2, early),
        (2, 2, "data", "few_steps", 2, early),
        (2, 2, "data", "more_steps", 2, late),
    )
    schedule, v = schedules.vp_linear(), 0.4
    for p, c, form, kind, order, counts in cases:
        errors = []
        for n in counts:
            grid = schedule.time(np.linspace(-2.0, 2.0, n + 1))
            level = np.sqrt(schedule.alpha(grid) ** 2 * v + schedule.sigma(grid) ** 2)

            def denoise(x, t):
                alpha, sigma = schedule.alpha(t), schedule.sigma(t)
                return alpha * v / (alpha**2 * v + sigma**2) * x

            plan = sa_solver(schedule, grid, p, c, 0.0, form, kind)
            errors.append(abs(run(plan, denoise, 1.0)[-1] - level[-1] / level[0]))
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert abs(slope - order) <= 0.15, (p, c, form, errors)


ZERO_SNR = schedules.from_betas(np.append(BETAS[:-1], 1.0))
EVERY = {name: getattr(schedules, name)() for name in ALPHA_SIGMA} | {
    "indexed": INDEXED,
    "zero_snr": ZERO_SNR,
}


@pytest.mark.parametrize("schedule", EVERY.values(), ids=EVERY)
def test_finite_and_clean_at_the_end(schedule):
    # the builders that the shared tests do not walk, since they are checked for less or stochastic
    # only on some grids
    builds = (
        partial(ddpm, variance="large"),
        dpm_solver_2m_sde,
        partial(dpm_solver_2m_sde, kind="heun"),
        partial(sa_solver, form="noise"),
        partial(sa_solver, predictor_order=4, corrector_order=4),
        tcd,
        partial(seeds_3, eta=0.0),
        *(partial(churn, s_churn=40.0, base=base) for base in ("heun", "euler", "dpm_2")),
    )
    for steps in (1, 2, 3, 9):
        for grid in (
            grids.uniform_time(schedule, steps),
            grids.karras(schedule, steps, sigma_max=10.0),
            grids.karras(schedule, steps, sigma_max=10.0, to_zero=False),
        ):
            for build in builds:
                plan = build(schedule, grid)
                assert plan.steps == steps
                assert (plan.start, plan.end) == (grid[0], grid[-1])
                if schedule.sigma(plan.end) == 0:
                    last = rows_of_x(plan)[-1]
                    np.testing.assert_array_equal(last, np.eye(len(last))[2])
                    if plan.weights("x", "h0")[-1]:
                        assert table(plan, "h", "x", "d")[-1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda g: ddpm(EDM, g, "learned"), "ddpm: variance = 'learned'"),
        (lambda g: dpmpp_2m_sde(EDM, g, eta=-1), "dpmpp_2m_sde: eta = -1, but it must be finite"),
        (lambda g: dpmpp_2m_sde(EDM, g, kind="best"), "dpmpp_2m_sde: kind = 'best'"),
        (lambda g: dpmpp_2m_sde(EDM, g, s_noise=np.nan), "dpmpp_2m_sde: s_noise = nan"),
        (lambda g: dpmpp_2m_sde(EDM, g, orders=[1, 2]), r"orders has shape \[2\], but .* \[3\]"),
        (lambda g: dpmpp_2m_sde(EDM, g, orders=[2, 2, 1]), r"orders\[0\] = 2, but it must be 1"),
        (lambda g: dpmpp_3m_sde(EDM, g, orders=[1, 2, 4]), r"orders\[2\] = 4, but .* 1 to 3"),
        (lambda g: dpmpp_3m_sde(EDM, g, form="best"), "dpmpp_3m_sde: form = 'best'"),
        (lambda g: dpm_solver_2m_sde(EDM, g, kind=3), "dpm_solver_2m_sde: kind = 3"),
        (lambda g: dpmpp_sde(EDM, g, r=0), "dpmpp_sde: r = 0"),
        (lambda g: dpmpp_sde(EDM, g, eta=1.5), "dpmpp_sde: eta = 1.5"),
        (lambda g: dpm_2_ancestral(EDM, g, eta=2), "dpm_2_ancestral: eta = 2"),
        (lambda g: dpmpp_2s_ancestral(EDM, g, s_noise=-1), "dpmpp_2s_ancestral: s_noise = -1"),
        (lambda g: flow_ancestral(EDM, g, eta=1.1), "flow_ancestral: eta = 1.1"),
        (lambda g: flow_sde(EDM, g, -0.5), "flow_sde: strength = -0.5"),
        (lambda g: sa_solver(EDM, g, 0), "predictor_order = 0, but .* from 1"),
        (lambda g: sa_solver(EDM, g, [1, 3, 1]), r"predictor_order\[1\] = 3, but only 2"),
        (lambda g: sa_solver(EDM, g, 2, 5), "corrector_order = 5, but .* 4"),
        (lambda g: sa_solver(EDM, g, tau=lambda t: -t), "sa_solver: tau = -80.0"),
        (lambda g: sa_solver(EDM, g, form="v"), "sa_solver: form = 'v'"),
        (lambda g: sa_solver(EDM, g, kind="many"), "sa_solver: kind = 'many'"),
        (lambda g: seeds_2(EDM, g, r=1.0), "seeds_2: r = 1.0"),
        (lambda g: seeds_2(EDM, g, kind="phi_3"), "seeds_2: kind = 'phi_3'"),
        (lambda g: seeds_3(EDM, g, r_1=0.5, r_2=0.4), "seeds_3: r_2 = 0.4, .* between 0.5 and 1"),
        (lambda g: er_sde(EDM, g, order=4), "er_sde: order = 4"),
        (lambda g: er_sde(EDM, g, noise_scale=np.sqrt), "er_sde: noise_scale / rho = .* rise"),
        (lambda g: er_sde(EDM, g, noise_scale=lambda x: 0 * x), "noise_scale = 0.0 .* positive"),
        (lambda g: churn(EDM, g, s_churn=-1), "churn: s_churn = -1"),
        (lambda g: churn(EDM, g, s_tmin=2, s_tmax=1), "s_tmin = 2 and s_tmax = 1"),
        (lambda g: churn(EDM, g, base="rk4"), "churn: base = 'rk4'"),
        (lambda g: restart(EDM, g, [(2.0, 1.0, 1, 3)]), "low = 2.0 and high = 1.0"),
        (lambda g: restart(EDM, g, [(9.0, 9.5, 1, 3)]), "high = 9.5, but it must be above .* 10"),
        (lambda g: restart(EDM, g, [(1.0, 50.0, 0, 3)]), "restart: repeats = 0"),
        (lambda g: restart(EDM, g, [(1.0, 50.0, 1, 2.5)]), "restart: steps = 2.5"),
        (lambda g: restart(EDM, g, [(9.0, 50.0, 1, 2)] * 2), "two intervals begin at .* 10.0"),
        (lambda g: restart(EDM, [80.0, 0.0], [(9.0, 50.0, 1, 2)]), "no step of the grid ends"),
        (lambda g: tcd(EDM, g, 1.2), "tcd: gamma = 1.2"),
        (lambda g: lcm(EDM, g[::-1]), "strictly from noisy to clean"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make(np.array([80.0, 10.0, 1.0, 0.0]))
