"""Embedded solvers on a fixed grid: PEC's published numbers bit for bit, the plans, the orders."""

import numpy as np
import pytest
from embedded_walk import positions_of, run_plan, walk
from test_embedded import BUILDS, EXACT, SCHEDULES, drift_reference, even, is_drift, levels
from test_solvers import fitted_slope, mixture, reference

import diffast as df
from diffast import schedules
from diffast.solvers import embedded

each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each_solver = pytest.mark.parametrize("name", BUILDS)


def follow(calls, denoise, x, noise=None):
    """Returns the network inputs and the sample [S+1, ...] of the calls of `on_grid_rows`."""
    held, entries, seen = {"x": np.asarray(x, np.float64)}, [], []
    for i, call in enumerate(calls):
        seen.append(held["x"])
        held["d"] = denoise(held["x"], call.time)
        held["z1"] = 0.0 if noise is None else noise(i)
        held |= {f"h{b}": entry for b, entry in enumerate(reversed(entries), 1)}
        made = {r: sum(w * held[c] for c, w in row.items()) for r, row in call.rows.items()}
        entries += [made.pop("h")] if "h" in made else []
        held |= made
    return np.stack([*seen, held["x"]])


def pec_as_published(schedule, grid):
    """The tables (times, point, anchor, direct) of PEC on a grid; columns (m before, z, d)."""
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    ratio = alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])
    with np.errstate(all="ignore"):
        decay = np.where(np.equal(1.0, 0.0), 0.0, 1.0 * np.log(ratio))
        up = sigma[1:] * np.sqrt(0.0 - np.expm1(2.0 * decay))
        keep = sigma[1:] * ratio**1.0 / sigma[:-1]
        pull = alpha[1:] - alpha[:-1] * keep
        h = np.log(alpha[1:] / alpha[:-1]) - np.log(sigma[1:] / sigma[:-1])
        kappa = np.where(np.isfinite(h), 1.0 - 2.0 * h / np.expm1(2.0 * h), 0.0)
    kappa = np.append(0.0, kappa[:-1])
    size = alpha[:-1] * kappa
    point = np.stack(
        [-(keep * size + pull * kappa), up, keep * size + pull * (1.0 + kappa)], axis=1
    )
    anchor = np.stack([-kappa, np.zeros(len(keep)), 1.0 + kappa], axis=1)
    point[sigma[1:] == 0.0] = (0.0, 0.0, 1.0)
    point[0, 0] = anchor[0, 0] = 0.0
    return grid[:-1], point, anchor, keep


def same_bits(one, other):
    return np.asarray(one, np.float64).tobytes() == np.asarray(other, np.float64).tobytes()


@pytest.mark.parametrize("steps", [2, 3, 8, 20, 50])
@pytest.mark.parametrize("ending", ["t_end", "t_min"])
@each_schedule
def test_pec_bit_for_bit(schedule, ending, steps):
    high = {"sigma_max": 9.0, "to_zero": ending == "t_end"}
    grids = [
        np.linspace(schedule.t_start, getattr(schedule, ending), steps + 1),
        df.grids.uniform_logsnr(schedule, steps, **high),
    ]
    for grid in grids:
        calls = list(embedded.on_grid_rows(embedded.PEC(), schedule, grid))
        times, point, anchor, direct = pec_as_published(schedule, grid)
        assert same_bits([call.time for call in calls], times)
        found = [[call.rows["x"].get(c, 0.0) for c in ("h1", "z1", "d")] for call in calls]
        assert same_bits(found, point)
        assert same_bits([call.rows["x"].get("x", 0.0) for call in calls], direct)
        entry = [[call.rows["h"].get(c, 0.0) for c in ("h1", "z1", "d")] for call in calls]
        assert same_bits(entry, anchor)
        for n, call in enumerate(calls):
            assert set(call.rows) == {"x", "h"}
            last = ending == "t_end" and n == steps - 1
            assert call.span == (None if last else (grid[n], grid[n + 1]))


def test_pec_in_one_step():
    (call,) = embedded.on_grid_rows(embedded.PEC(), SCHEDULES["flow"], np.array([1.0, 0.0]))
    assert call == (1.0, {"x": {"d": 1.0}}, None)


def compare(solver, build, schedule, **options):
    for to_zero in (False, True):
        grid = df.grids.uniform_logsnr(schedule, 9, sigma_max=4.0, sigma_min=0.4, to_zero=to_zero)
        plan, denoise = build(schedule, grid, **options), mixture(schedule)
        x = np.random.default_rng(9).normal(size=(5, 2)) * schedule.sigma(grid[0])
        calls = list(embedded.on_grid_rows(solver, schedule, grid))
        np.testing.assert_allclose([call.time for call in calls], plan.times, rtol=1e-12)
        wanted = run_plan(plan, denoise, x)
        scale = np.abs(wanted).max() * max(1.0, np.abs(plan.matrix).max())
        assert np.abs(follow(calls, denoise, x) - wanted).max() <= 1e-12 * scale


@each_schedule
@pytest.mark.parametrize("clock", ["rho", "flow"])
@pytest.mark.parametrize("name", ["bosh3", "dopri5", "tsit5"])
def test_runge_kutta_is_the_plan(name, clock, schedule):
    solver = embedded.RungeKutta(name, clock=clock)
    compare(solver, getattr(df.solvers, name), schedule, clock=clock)


@each_schedule
def test_dpm_is_the_plan(schedule):
    compare(embedded.DPM(2), df.solvers.dpm_solver_2s, schedule, r=0.5, clock="rho")
    compare(embedded.DPM(3), df.solvers.dpm_solver_3s, schedule, clock="rho")


@each_schedule
@pytest.mark.parametrize("name", [*BUILDS, "ancestral"])
def test_the_grid_is_the_walk(name, schedule):
    """The same network inputs as a walk that accepts every step, and the same sample."""
    ancestral = name == "ancestral"
    solver = embedded.DPM(3, eta=0.7) if ancestral else BUILDS[name][0]()
    grid, seen, denoise = even(schedule, 5, 4.0, 0.4), [], mixture(schedule)
    z = np.random.default_rng(7).normal(size=(5, 3, 2))
    x = np.random.default_rng(8).normal(size=(3, 2))

    def spy(x, t):
        seen.append(x)
        return denoise(x, t)

    found = walk(solver, schedule, positions_of(solver, schedule, grid), spy, x, z.__getitem__)
    calls = list(embedded.on_grid_rows(solver, schedule, grid))
    steps = {float(t): n for n, t in enumerate(grid[:-1])}
    spans = [call.span for call in calls]
    assert all(span is None or span[1] == grid[steps[span[0]] + 1] for span in spans)
    drawn = [None if span is None else z[steps[span[0]]] for span in spans]
    got = follow(calls, denoise, x, lambda i: 0.0 if drawn[i] is None else drawn[i])
    wanted = np.stack(seen)  # the walk also calls the network at the last state
    scale = np.abs(wanted).max() * max(
        1.0, *(abs(w) for call in calls for w in call.rows["x"].values())
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * scale)
    if not solver.reuses_last_call:
        np.testing.assert_allclose(got[-1], found.states[-1], rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("name", ["dpm_12", "dpm_23", "bosh3_flow", "ggf", "euler_heun"])
def test_order(name):
    build, order, _ = BUILDS[name]
    schedule, counts, errors = SCHEDULES["vp"], (80, 160, 320, 640), []
    ends = even(schedule, 1)
    x, truth = (drift_reference if is_drift(name) else reference)(schedule, *ends)
    for n in counts:
        calls = embedded.on_grid_rows(build(), schedule, even(schedule, n))
        got = follow(calls, mixture(schedule), x)[-1]
        errors.append(np.sqrt(np.mean((got - truth) ** 2)))
    assert abs(fitted_slope(errors, counts) - order) <= 0.15, errors


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("schedule", [schedules.flow(), schedules.trig()], ids=["flow", "trig"])
@each_solver
def test_from_noise_alone_to_the_data(name, schedule, steps):
    """Out of alpha = 0 and into sigma = 0: all rows are finite, a point mass is found."""
    solver = BUILDS[name][0]()
    grid = np.linspace(schedule.t_start, schedule.t_end, steps + 1)
    calls = list(embedded.on_grid_rows(solver, schedule, grid))
    assert calls[0].time == schedule.t_start
    for call in calls:
        assert np.isfinite([w for row in call.rows.values() for w in row.values()]).all()
    assert calls[-1].rows["x"] == {"d": 1.0}
    regular = steps - 1 if solver.starts_at_noise else max(steps - 2, 0)
    opening = int(steps > 1 and not solver.starts_at_noise)
    if solver.reuses_last_call:
        assert len(calls) == opening + regular * solver.calls + 1
    else:
        assert len(calls) == opening + regular * (solver.calls + 1) + 1
    x0 = np.array([[0.3, -1.2]])
    x = follow(calls, lambda x, t: x0 + 0.0 * x, np.ones((1, 2)))
    if name in EXACT:
        np.testing.assert_allclose(x[-1], x0, atol=1e-12)
        alpha, sigma = levels(schedule, np.array([call.time for call in calls]))
        if name != "pec":
            wanted = alpha[:, None, None] * x0 + sigma[:, None, None]
            np.testing.assert_allclose(x[:-1], wanted, atol=1e-11)


def test_on_grid_wants_a_solver():
    grid = df.grids.karras(SCHEDULES["edm"], 3)
    with pytest.raises(ValueError, match="on_grid: solver is a str but must be an EmbeddedSolver"):
        embedded.on_grid("pec", SCHEDULES["edm"], grid)
