"""Splitting solvers in runs by `df.sample`: classifier-free guidance, terms, files."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy_executor import walk
from test_splitting import VP, each_schedule

import diffast as df
from diffast import grids
from diffast.solvers import additive_multistep, ltsp, stsp


def cfg_problem(schedule, scale=3.0):
    """A denoiser of two branches, and its closed forms: x0 of either branch."""

    def network(x, t, shift):
        t = t.reshape(-1, 1, 1)
        return (0.8 * x + shift) / (1 + 0.3 * x * x + t * t)

    one, other = torch.full((1, 3, 4), 0.5), torch.full((1, 3, 4), -0.2)
    denoiser = df.Denoiser(
        network,
        schedule,
        "x0",
        conditions={"shift": one.double()},
        unconditional={"shift": other.double()},
        guidance=scale,
    )

    def branch(shift):
        return lambda x, t: network(
            x, torch.full((len(x),), float(t), dtype=torch.float64), shift.double()
        )

    return denoiser, branch(one), branch(other)


def initial(schedule, grid):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator)
    return x * float(schedule.sigma(grid[0]))


@each_schedule
def test_cfg_by_euler_is_euler(schedule):
    denoiser, _, _ = cfg_problem(schedule)
    for grid in (grids.karras(schedule, 6, sigma_max=9.0), grids.default(schedule, 6)):
        x = initial(schedule, grid)
        plan = additive_multistep(schedule, grid, "euler", guidance="euler", guided="cfg")
        want = df.sample(denoiser, df.solvers.euler(schedule, grid), x=x)
        got = df.sample(denoiser, plan, x=x)
        np.testing.assert_allclose(got.x, want.x, rtol=1e-10, atol=1e-11)
        assert got.nfe.tolist() == want.nfe.tolist()


@pytest.mark.parametrize("guidance", ["euler", "heavy_ball", "adams"])
def test_cfg_split(guidance):
    """eps of the unconditional branch by its method, w (eps_cond - eps_uncond) by another."""
    denoiser, cond, uncond = cfg_problem(VP)
    grid, w, b = grids.karras(VP, 6, sigma_max=9.0), 3.0, 0.8
    x = initial(VP, grid)
    plan = additive_multistep(VP, grid, "plms", 2, guidance, b, "cfg")
    got = df.sample(denoiser, plan, x=x).x
    alpha, sigma = VP.alpha(grid), VP.sigma(grid)
    rho = sigma / alpha
    y, before, v = x / alpha[0], None, None
    for n, t in enumerate(grid[:-1]):
        h = rho[n + 1] - rho[n]
        eps, other = ((y - f(alpha[n] * y, t)) / rho[n] for f in (uncond, cond))
        pull = w * (other - eps)
        mean = eps if before is None or n + 2 == len(grid) else 1.5 * eps - 0.5 * before[0]
        slope = pull
        if guidance == "heavy_ball":
            slope = v = pull if v is None else (1 - b) * v + b * pull
        elif guidance == "adams" and before is not None:
            share = h / (2 * (rho[n] - rho[n - 1]))
            slope = pull + share * (pull - before[1])
        y, before = y + h * (mean + slope), (eps, pull)
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("how", [{}, {"clamp": (-0.5, 0.5)}])
@pytest.mark.parametrize(
    "build",
    [
        ltsp,
        partial(stsp, inner="heun", guidance="rk2"),
        partial(stsp, merged=True, guidance="ghvb"),
        additive_multistep,
        partial(additive_multistep, guidance="heavy_ball"),
    ],
)
@each_schedule
def test_df_sample_runs_them(schedule, build, how):
    """Of two terms each with a scale of its own; the clamp is for the unguided x0 estimate."""

    def network(x, t):
        return 0.8 * x / (1 + 0.3 * x * x + t.reshape(-1, 1, 1) ** 2)

    def pull(x, t):
        return (0.5 - x) / (1 + x * x + t.reshape(-1, 1, 1))

    guides = [df.guidance.gradient(pull, 0.3), df.guidance.gradient(lambda x, t: -x, lambda t: t)]
    denoiser = df.Denoiser(network, schedule, "x0", guides=guides)
    grid = grids.default(schedule, 6)
    x, told = (
        initial(schedule, grid),
        lambda x, t: torch.full((len(x),), float(t), dtype=torch.float64),
    )
    plan = build(schedule, grid)
    got = df.sample(denoiser, plan, x=x, **how).x

    def estimate(x, t):
        made = network(torch.from_numpy(x), told(x, t))
        return (made.clamp(*how["clamp"]) if how else made).numpy()

    def gradient(x, t):
        return 0.3 * pull(torch.from_numpy(x), told(x, t)).numpy() - t * x

    want = walk(plan, estimate, x.numpy(), gradients={"g1": gradient})[-1]["x"]
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_a_plan_with_gradients_needs_a_guide(tmp_path):
    grid = grids.karras(VP, 4)
    plan = ltsp(VP, grid)
    plain = df.Denoiser(lambda x, t: 0.5 * x, VP, "x0")
    with pytest.raises(ValueError, match="weighs g1, .* the denoiser has none"):
        df.sample(plain, plan, x=initial(VP, grid))
    for name in ("plan.json", "plan.npz"):
        for build in (stsp, additive_multistep, partial(ltsp, inner="rk4", guidance="rk2")):
            plan = build(VP, grid)
            plan.save(tmp_path / name)
            again = df.Plan.load(tmp_path / name)
            np.testing.assert_array_equal(again.matrix, plan.matrix)
            np.testing.assert_array_equal(again.gradients, plan.gradients)
