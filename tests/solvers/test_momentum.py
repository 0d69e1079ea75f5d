"""Momentum for multistep methods: GHVB and the heavy ball against their published forms."""

from functools import partial

import numpy as np
import pytest
from test_splitting import VP, Published, cases, each_schedule, problem, sampled

import diffast as df
from diffast import grids
from diffast.solvers import ghvb, heavy_ball, ipndm


def test_ghvb():
    model, z = problem(VP)
    b, v = 0.8, []
    c = {
        1: [1.0],
        2: np.array([2 + b, -(2 - b)]) / (2 * b),
        3: np.array([18 + 5 * b, -(24 - 8 * b), 6 - b]) / (12 * b),
        4: np.array([46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)]) / (24 * b),
    }

    def step(one, y, s, t, h):
        new = one.eps(y, s)
        if not one.rho(t):
            return y - h * new
        v.insert(0, (1 - b) * v[0] + b * new if v else new)
        weights = c[min(len(v), 4)]
        return y - h * sum(w * e for w, e in zip(weights, v, strict=False))

    for grid in cases(VP, 7):
        v.clear()
        x = VP.sigma(grid[0]) * z
        want = Published(VP, model).run(step, grid, x)
        got = sampled(ghvb(VP, grid, 4, b), model, x)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@each_schedule
def test_no_damping_is_the_method_without_momentum(schedule, order):
    model, z = problem(schedule)
    for grid in (*cases(schedule, 8), grids.default(schedule, 8)):
        x = schedule.sigma(grid[0]) * z
        want = sampled(ipndm(schedule, grid, order), model, x)
        pairs = (ghvb(schedule, grid, order, 1.0), heavy_ball(schedule, grid, "plms", order, 1.0))
        for plan in pairs:
            assert np.abs(sampled(plan, model, x) - want).max() <= 1e-11 * np.abs(want).max()


@pytest.mark.parametrize("name", ["adams", "lms", "deis", "exponential_adams", "dpmpp_2m", "euler"])
@each_schedule
def test_a_heavy_ball_without_damping_is_its_inner_solver(schedule, name):
    model, z = problem(schedule)
    order = None if name in ("dpmpp_2m", "euler") else 3
    own = df.solvers.get(name) if order is None else partial(df.solvers.get(name), order=order)
    for grid in (*cases(schedule, 8), grids.default(schedule, 8)):
        x = schedule.sigma(grid[0]) * z
        want = sampled(own(schedule, grid), model, x)
        got = sampled(heavy_ball(schedule, grid, name, order, 1.0), model, x)
        assert np.abs(got - want).max() <= 1e-11 * np.abs(want).max()
        damped = sampled(heavy_ball(schedule, grid, name, order, 0.5), model, x)
        assert np.abs(damped - want).max() > 1e-3 * np.abs(want).max()


def test_a_heavy_ball_on_2m_damps_a_mean_of_estimates():
    model, z = problem(VP)
    b, memory = 0.8, {}

    def step(one, y, s, t, h):
        x0 = model.mean(y, one.rho(s))
        if not one.rho(t):
            return x0
        k = np.log(one.rho(s) / one.rho(t))
        mean = x0 if "x0" not in memory else x0 + k / (2 * memory["k"]) * (x0 - memory["x0"])
        v = mean if "v" not in memory else (1 - b) * memory["v"] + b * mean
        memory.update(x0=x0, k=k, v=v)
        return np.exp(-k) * y + (1 - np.exp(-k)) * v

    for grid in cases(VP, 7):
        memory.clear()
        x = VP.sigma(grid[0]) * z
        want = Published(VP, model).run(step, grid, x)
        got = sampled(heavy_ball(VP, grid, "dpmpp_2m", damping=b), model, x)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
