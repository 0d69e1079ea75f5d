"""Grids measured on a network, against closed forms and reference errors of analytic problems."""

import itertools

import numpy as np
import pytest
import torch

import diffast as df
from diffast.tuning import grids as measured
from diffast.tuning.grids import densities, error_kernel, levels, shortest_path, simplex
from diffast.tuning.pilots import Pilots


def mixture(schedule, means, variance, dtype=torch.float64):
    """Returns the x0 estimate of equal Gaussians on a line, for x = alpha x0 + sigma n."""
    centres = torch.tensor(means, dtype=torch.float64)

    def network(x, t):
        told = np.clip(t.double().numpy(), *sorted(schedule.domain))
        alpha = torch.from_numpy(np.atleast_1d(schedule.alpha(told))).reshape(-1, 1)
        noise = torch.from_numpy(np.atleast_1d(schedule.sigma(told))).reshape(-1, 1) ** 2
        y, whole = x.double(), alpha**2 * variance + noise
        likely = torch.softmax(-((y - alpha * centres) ** 2) / (2 * whole), dim=1)
        made = (likely * (variance * alpha * y + noise * centres) / whole).sum(1, keepdim=True)
        return made.to(x.dtype)

    return network


def spectrum(size=256):
    """Returns the x0 estimate of Gaussian data of deviation .5 whose variances fall as k^-2."""
    variance = torch.arange(1, size + 1, dtype=torch.float64) ** -2
    variance *= 0.25 / variance.mean()
    return lambda x, t: variance * x / (variance + t.reshape(-1, 1) ** 2)


class Problem:
    """A denoiser in sigma space, and states to start from with the ends of their flow."""

    def __init__(self, network, size, least, most, rows, count):
        self.schedule = df.schedules.edm(least, most)
        self.denoiser = df.Denoiser(network, self.schedule, predicts="x0")
        self.pilot = measured.Pilot(self.denoiser, (rows, size), dtype=torch.float64)
        draw = torch.Generator().manual_seed(5)
        self.x = most * torch.randn(count, size, generator=draw, dtype=torch.float64)
        fine = df.grids.karras(self.schedule, 80, to_zero=False)
        self.ends = df.sample(self.denoiser, df.solvers.dopri5(self.schedule, fine), x=self.x).x

    def error(self, solver, grid, steps):
        if grid in measured.NAMES:
            times = self.pilot.grid(grid, steps, to_zero=False)
        else:
            times = getattr(df.grids, grid)(self.schedule, steps, to_zero=False)
        plan = df.solvers.get(solver)(self.schedule, times)
        gap = df.sample(self.denoiser, plan, x=self.x).x - self.ends
        return float(gap.square().mean().sqrt())


@pytest.fixture(scope="module")
def two_modes():
    schedule = df.schedules.edm(0.01, 40.0)
    return Problem(mixture(schedule, [-1.0, 1.0], 0.04), 1, 0.01, 40.0, 256, 4096)


@pytest.fixture(scope="module")
def gaussian():
    return Problem(spectrum(), 256, 0.002, 80.0, 64, 512)


# Errors of independent implementations of the same criteria, at 5 and 10 steps.
TWO_MODES = {
    ("ddim", "karras"): (0.246, 0.111),
    ("ddim", "arctan"): (0.118, 0.0542),
    ("ddim", "rescaled_entropic"): (0.163, 0.0734),
    ("ddim", "accel"): (0.1016, 0.0516),
    ("ddim", "kernel_1"): (0.105, 0.0533),
    ("dpmpp_2m", "uniform_logsnr"): (0.129, 0.0449),
    ("heun", "rescaled_entropic"): (0.197, 0.0367),
    ("heun", "kernel_heun"): (0.127, 0.0200),
}
GAUSSIAN = {
    ("ddim", "karras"): (0.175, 0.0979),
    ("ddim", "score_optimal"): (0.157, 0.0863),
    ("ddim", "equal_ep"): (0.158, 0.0866),
    ("ddim", "gits"): (0.151, 0.103),
    ("ddim", "accel"): (0.217, 0.116),
    ("ddim", "kernel_1"): (0.141, 0.0760),
    ("heun", "equal_ep"): (0.207, 0.0430),
    ("heun", "score_optimal"): (0.205, 0.0435),
    ("heun", "kernel_heun"): (0.192, 0.0378),
}


@pytest.mark.parametrize("case", TWO_MODES, ids=", ".join)
def test_errors_on_two_modes_are_the_reference(two_modes, case):
    found = [two_modes.error(*case, steps) for steps in (5, 10)]
    assert found == pytest.approx(TWO_MODES[case], rel=0.06)


@pytest.mark.parametrize("case", GAUSSIAN, ids=", ".join)
def test_errors_on_a_gaussian_spectrum_are_the_reference(gaussian, case):
    found = [gaussian.error(*case, steps) for steps in (5, 10)]
    assert found == pytest.approx(GAUSSIAN[case], rel=0.06)


@pytest.mark.parametrize(
    "problem, steps, bound", [("two_modes", 10, 0.0253), ("gaussian", 10, 0.0189)]
)
def test_the_second_order_kernel_is_better_than_the_fixed_point(request, problem, steps, bound):
    """The bounds are the reference errors of a fixed-point iteration on the same kernel."""
    found = request.getfixturevalue(problem)
    assert found.error("dpmpp_2m", "kernel_2", steps) < 0.8 * bound
    assert found.error("dpmpp_2m", "kernel_2", steps) < found.error("dpmpp_2m", "karras", steps) / 3


def test_entropic_and_klub_answer_another_question(two_modes):
    """They bound the SDE's path; for the ODE they lose to Karras' grid, as the documents say."""
    for grid in ("entropic", "klub"):
        assert two_modes.error("ddim", grid, 10) > two_modes.error("ddim", "karras", 10)


# Against closed forms: Gaussian data of deviation c, where D = c^2 x / (c^2 + sigma^2).

C = 0.7


@pytest.fixture(scope="module")
def one_gaussian():
    schedule = df.schedules.edm(0.01, 40.0)
    network = lambda x, t: C**2 * x / (C**2 + t.reshape(-1, 1) ** 2)  # noqa: E731
    denoiser = df.Denoiser(network, schedule, predicts="x0")
    data = C * torch.randn(4096, 8, generator=torch.Generator().manual_seed(2)).double()
    return measured.Pilot(denoiser, (4096, 8), data=data, dtype=torch.float64)


def test_the_flow_and_the_loss_are_the_closed_forms(one_gaussian):
    pilot = one_gaussian
    states, estimates = pilot.path
    keep = np.sqrt((C**2 + pilot.rho[-1] ** 2) / (C**2 + pilot.rho[0] ** 2))
    assert torch.allclose(states[-1], states[0] * keep, rtol=2e-3)
    assert torch.allclose(estimates[-1], C**2 * states[-1] / (C**2 + pilot.rho[-1] ** 2))
    rho = pilot.rho[pilot.coarse]
    assert pilot.loss == pytest.approx(8 * C**2 * rho**2 / (C**2 + rho**2), rel=0.05)
    assert pilot.deviation == pytest.approx(C, rel=0.02)


def test_all_first_order_criteria_are_arctan_for_one_gaussian(one_gaussian):
    """Rescaled entropy, DDIM's local error and its signed kernel have one closed form there."""
    pilot = one_gaussian
    ends = np.arctan(np.array([pilot.rho[0], pilot.rho[-1]]) / C)
    angles = np.linspace(*ends, 9)[1:-1]
    for name, tolerance in (("arctan", 0.02), ("rescaled_entropic", 0.04), ("accel", 0.04)):
        found = np.arctan(pilot.levels(name, 8)[1:-1] / C)
        assert found == pytest.approx(angles, abs=tolerance), name
    found = np.arctan(pilot.levels("kernel_1", 8)[1:-1] / C)
    assert found == pytest.approx(angles, abs=0.15)


def test_equal_entropy_production_of_one_gaussian(one_gaussian):
    """d - mmse / rho^2 is d rho^2 / (c^2 + rho^2), whose integral is log(c^2 + rho^2) d / 2."""
    rho = one_gaussian.levels("equal_ep", 6)
    falls = np.diff(np.log(C**2 + rho**2))
    assert falls == pytest.approx(np.full(6, falls.mean()), rel=0.1)


def test_klub_is_the_integral_that_it_bounds():
    """The cost less the difference of entropies is the integral of (mmse(b) - mmse(t)) / t^3."""

    def mmse(t):
        return C**2 * t**2 / (C**2 + t**2)

    rho = np.array([2.0, 0.9, 0.4])
    cost = shortest_path.klub(rho, mmse(rho))
    for i, j in ((0, 1), (1, 2), (0, 2)):
        t = np.linspace(rho[j], rho[i], 20001)
        value = (mmse(rho[i]) - mmse(t)) / t**3
        integral = float(np.sum(0.5 * (value[1:] + value[:-1]) * np.diff(t)))
        entropies = 0.5 * (np.log(1 + C**2 / rho[j] ** 2) - np.log(1 + C**2 / rho[i] ** 2))
        assert cost[i, j] - entropies == pytest.approx(integral, rel=1e-5)


# The parts.


def test_shortest_path_is_the_best_of_all_paths():
    draw = np.random.default_rng(0)
    cost = draw.random((9, 9))
    for steps in (1, 2, 4, 8):
        for future in (1.0, 1.15):

            def total(path, future=future):
                pairs = zip(path[:-1], path[1:], strict=True)
                return sum(future**k * cost[i, j] for k, (i, j) in enumerate(pairs))

            paths = ((0, *middle, 8) for middle in itertools.combinations(range(1, 8), steps - 1))
            found = shortest_path.shortest_path(cost, steps, future)
            assert tuple(found) == min(paths, key=total)
    with pytest.raises(ValueError, match="9 steps, but the pilot run has 8 intervals"):
        shortest_path.shortest_path(cost, 9)


@pytest.mark.parametrize("order", [1, 2])
def test_the_kernels_minimum_is_the_closed_form_of_a_diagonal_one(order):
    """Where errors do not interfere, h^(2p+1) is proportional to 1 / (K_jj width_j)."""
    widths, diagonal = np.array([0.5, 1.0, 0.7, 0.4]), np.array([1.0, 8.0, 0.2, 3.0])
    made = error_kernel.minimise(np.diag(diagonal), widths, order, 7, caution=0.0, uniform=0.0)
    h = (diagonal * widths) ** (-1.0 / (2 * order + 1))
    wanted = 7 / (h * (widths / h).sum())
    assert made.density == pytest.approx(wanted, rel=1e-3)
    assert (made.density * widths).sum() == pytest.approx(7)
    moved = widths * made.density**-order
    assert made.predicted == pytest.approx(np.sqrt(moved**2 @ diagonal))


def test_the_kernel_lets_errors_cancel():
    """Two levels whose errors are opposite need no steps of their own; norms cannot know."""
    widths, g = np.ones(3), np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    signed = error_kernel.minimise(g @ g.T, widths, 1, 6, caution=0.0)
    norms = error_kernel.minimise(abs(g @ g.T), widths, 1, 6, caution=0.0)
    assert signed.density[2] > 1.5 * norms.density[2]
    assert signed.predicted < 0.5 * norms.predicted


def test_arctan_with_deviation_1_is_kl_optimal():
    rho = np.geomspace(30.0, 0.02, 400)
    found = levels.levels_by_density(np.log(rho), densities.arctan(rho, 1.0), 7, points=20001)
    schedule = df.schedules.edm(0.02, 30.0)
    assert found == pytest.approx(df.grids.kl_optimal(schedule, 7, to_zero=False), rel=1e-3)


def test_pooling_makes_a_curve_rise():
    assert densities.rising([1.0, 3.0, 2.0, 2.5, 4.0]).tolist() == [1.0, 2.5, 2.5, 2.5, 4.0]
    assert densities.rising([3.0, 2.0, 1.0]).tolist() == [2.0, 2.0, 2.0]


def test_simplex_search_finds_minima():
    def valley(p):
        return (1 - p[0]) ** 2 + 20 * (p[1] - p[0] ** 2) ** 2

    point, value = simplex.simplex_search(valley, np.array([-0.5, 0.5]), 0.3, 400, 1e-9)
    assert point == pytest.approx([1.0, 1.0], abs=1e-3)
    assert value == valley(point)
    point, _ = simplex.simplex_search(lambda p: abs(p[0] - 2.0), np.zeros(1), 0.3, 200, 1e-9)
    assert point == pytest.approx([2.0], abs=1e-3)
    point, _ = simplex.simplex_search(
        lambda p: np.nan if p[0] > 0.5 else -p[0], np.zeros(1), 0.3, 60
    )
    assert 0.3 <= point[0] <= 0.5


# All kinds of schedules.

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
KINDS = {
    "edm": (df.schedules.edm(0.01, 40.0), {}),
    "vp": (df.schedules.vp_linear(), {}),
    "flow": (df.schedules.flow(), {}),
    "trig": (df.schedules.trig(), {}),
    "betas, whole": (df.schedules.from_betas(BETAS), {"time_dtype": torch.long}),
    "zero terminal, whole": (
        df.schedules.from_betas(df.schedules.zero_terminal_snr(BETAS)),
        {"time_dtype": torch.long},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_grids_of_every_kind_of_schedule(kind):
    schedule, options = KINDS[kind]
    calls = 0
    network = mixture(schedule, [-1.0, 1.0], 0.04)

    def counted(x, t):
        nonlocal calls
        calls += 1
        return network(x, t)

    denoiser = df.Denoiser(counted, schedule, predicts="x0", **options)
    pilot = measured.Pilot(denoiser, (16, 1), levels=10, substeps=4)
    for name in measured.NAMES:
        for steps in (1, 2, 6):
            grid = pilot.grid(name, steps)
            assert len(grid) == steps + 1
            assert grid[0] == schedule.t_start and grid[-1] == schedule.t_end
            df.grids.check_grid(schedule, grid)
            if options:
                assert (grid == np.rint(grid)).all()
                df.sample(denoiser, df.solvers.dpmpp_2m(schedule, grid), (2, 1))
    again = measured.Pilot(denoiser, (16, 1), levels=10, substeps=4)
    before = calls
    assert again.grid("kernel_2", 6).tobytes() == pilot.grid("kernel_2", 6).tobytes()
    assert again.calls == calls - before
    # the pilot's ends are those of a fine run from the noise of `df.sample`
    fine = df.grids.uniform_flow(schedule, 400)
    if options:
        fine = pilot.flow.levels.whole_grid(fine)
    plan = df.solvers.adams(schedule, fine, order=3, final="falling")
    ends = df.sample(denoiser, plan, (16, 1)).x
    assert torch.allclose(pilot.ends, ends, atol=0.02)


def test_samples_that_are_numbers():
    """A state [B] without further axes."""
    schedule = df.schedules.edm(0.01, 40.0)
    denoiser = df.Denoiser(lambda x, t: C**2 * x / (C**2 + t**2), schedule, predicts="x0")
    pilot = measured.Pilot(denoiser, (64,), levels=8, substeps=2)
    for name in measured.NAMES:
        assert len(pilot.grid(name, 4)) == 5


def test_predictions_conditions_and_guidance_reach_the_pilot():
    """The same network told as epsilon, with conditions by rows and a guided pair of branches."""
    schedule = df.schedules.vp_linear()
    centres = torch.linspace(-1.0, 1.0, 8).reshape(-1, 1)

    def alpha_of(t):
        return torch.from_numpy(schedule.alpha(t.double().numpy())).reshape(-1, 1)

    def x0(x, t, centre):
        alpha = alpha_of(t).to(x.dtype)
        noise = 1 - alpha**2
        return (0.04 * alpha * x + noise * centre) / (0.04 * alpha**2 + noise)

    def epsilon(x, t, centre):
        alpha = alpha_of(t).to(x.dtype)
        return (x - alpha * x0(x, t, centre)) / (1 - alpha**2).sqrt()

    own, blank = {"centre": centres}, {"centre": torch.zeros(1, 1)}
    more = {"conditions": own, "unconditional": blank, "guidance": 2.0}
    given = df.Denoiser(x0, schedule, predicts="x0", **more)
    told = df.Denoiser(epsilon, schedule, predicts="epsilon", **more)
    first = measured.Pilot(given, (8, 1), levels=8)
    second = measured.Pilot(told, (8, 1), levels=8)
    assert torch.allclose(first.ends, second.ends, atol=1e-3)
    assert (first.ends - 2 * centres).abs().max() < 0.8 and first.ends.std() > 1.5 * centres.std()
    assert second.grid("kernel_2", 6) == pytest.approx(first.grid("kernel_2", 6), rel=0.02)
    wrong = df.Denoiser(x0, schedule, predicts="x0", conditions=own)
    with pytest.raises(ValueError, match="8 rows but there are 5 samples"):
        measured.Pilot(wrong, (5, 1)).grid("arctan", 4)


# The comparison.


@pytest.fixture(scope="module")
def compared():
    schedule = df.schedules.edm(0.01, 40.0)
    denoiser = df.Denoiser(mixture(schedule, [-1.0, 1.0], 0.04), schedule, predicts="x0")
    pilot = measured.Pilot(denoiser, (64, 1))
    held = measured.HeldOut(denoiser, (256, 1))
    return denoiser, pilot, held, measured.rank(denoiser, pilot, 6, held_out=held)


def test_rank_puts_a_measured_grid_first(compared):
    _, _, _, lines = compared
    assert [line.error for line in lines] == sorted(line.error for line in lines)
    assert all(line.plan.nfe <= 6 for line in lines)
    best = next(line for line in lines if line.grid not in measured.NAMES)
    assert lines[0].grid.startswith("kernel") and lines[0].error < 0.8 * best.error
    assert str(lines[0]).endswith(lines[0].name) and "6 calls" in str(lines[0])
    heun = [line for line in lines if line.solver == "heun"]
    assert heun and all(line.plan.steps == 3 for line in heun)


def test_polish_lowers_the_held_out_error(compared):
    denoiser, pilot, held, lines = compared
    better = measured.polish(denoiser, pilot, lines[0], evaluations=150)
    assert held.error(better.plan) < 0.85 * lines[0].error
    assert better.error < 0.7 * lines[0].error  # on the pilot's own noises
    assert better.grid.endswith("polished") and better.plan.nfe == lines[0].plan.nfe


def test_candidates_by_name(compared):
    denoiser, pilot, _, _ = compared
    before = pilot.calls
    made = dict(measured.candidates(denoiser, pilot, 4, solvers=["dpmpp_2m"], grids=["gits"]))
    assert list(made) == ["dpmpp_2m, gits"] and made["dpmpp_2m, gits"].nfe == 4
    named = {"mine": df.solvers.ddim}
    assert dict(measured.candidates(denoiser, pilot, 4, solvers=named, grids=["klub"]))
    assert pilot.calls == before  # all is measured already


def test_published_tables_where_they_fit():
    """Align Your Steps' tables are compared on the schedule of Stable Diffusion alone."""
    schedule = df.schedules.from_betas(BETAS)
    network = mixture(schedule, [-1.0, 1.0], 0.04)
    denoiser = df.Denoiser(network, schedule, predicts="x0", time_dtype=torch.long)
    pilot = df.tuning.grids.Pilot(denoiser, (8, 1), levels=6)
    lines = measured.rank(denoiser, pilot, 10, solvers=["dpmpp_2m"], grids=["arctan"])
    assert {"ays(sd15)", "ays(sdxl)"} == {line.grid for line in lines if "ays" in line.grid}
    table = next(line for line in lines if line.grid == "ays(sd15)")
    wanted = np.rint(df.grids.ays(schedule, 10))
    assert table.times.tolist() == wanted.tolist()
    pilots = Pilots(denoiser, (1,), 0, torch.device("cpu"))
    assert "unipc(3), ays(sdxl)" in measured.measured(denoiser, pilots, 10, most=8)


def test_tune_has_measured_grids_among_its_candidates():
    schedule = df.schedules.edm(0.01, 40.0)
    denoiser = df.Denoiser(mixture(schedule, [-1.0, 1.0], 0.04), schedule, predicts="x0")
    made = df.tune(denoiser, 5, (32, 1), iterations=0, progress=False, compare=())
    assert any(row.name.endswith(tuple(measured.NAMES)) for row in made.table)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"shape": ()}, r"shape is \(\), but it must be"),
        ({"levels": 3}, "levels is 3, but at least 4 are needed"),
        ({"substeps": 0}, "substeps is 0, but at least 1"),
        ({"dtype": torch.float16}, "float16, but it must be float32 or float64"),
        ({"data": torch.zeros(4, 3)}, r"data has rows of shape \[3\], but shape asks for \[1\]"),
    ],
)
def test_bad_arguments_of_a_pilot(arguments, says):
    denoiser = df.Denoiser(lambda x, t: x, df.schedules.edm(), predicts="x0")
    with pytest.raises(ValueError, match=says):
        measured.Pilot(denoiser, **({"shape": (4, 1)} | arguments))


def test_bad_requests():
    denoiser = df.Denoiser(lambda x, t: 0.5 * x, df.schedules.edm(), predicts="x0")
    pilot = measured.Pilot(denoiser, (4, 1), levels=5, substeps=1)
    with pytest.raises(ValueError, match="grid 'karras' is not known, but arctan"):
        pilot.grid("karras", 5)
    with pytest.raises(ValueError, match="0 steps, but at least 1"):
        pilot.grid("arctan", 0)
    with pytest.raises(ValueError, match="9 steps, but the pilot run has 4 intervals"):
        pilot.grid("gits", 9)
    with pytest.raises(ValueError, match="0 calls, but at least 1"):
        measured.candidates(denoiser, pilot, 0)
    with pytest.raises(ValueError, match="grid 'kernel' is not known"):
        measured.candidates(denoiser, pilot, 5, grids=["kernel"])
    nan = df.Denoiser(lambda x, t: x * torch.nan, df.schedules.edm(), predicts="x0")
    with pytest.raises(ValueError, match="the x0 estimate at t = 80 is not finite"):
        measured.Pilot(nan, (4, 1)).grid("gits", 5)


def test_too_many_steps_of_whole_times():
    schedule = df.schedules.from_betas(np.full(12, 0.3))
    denoiser = df.Denoiser(lambda x, t: 0.5 * x, schedule, predicts="x0", time_dtype=torch.long)
    pilot = measured.Pilot(denoiser, (4, 1), levels=6, substeps=2)
    assert pilot.grid("arctan", 12).tolist() == list(range(11, -2, -1))
    with pytest.raises(ValueError, match="13 steps, but the network takes whole times"):
        pilot.grid("arctan", 13)
