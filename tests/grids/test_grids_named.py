"""Named grids: the numbers of k-diffusion, diffusers and ComfyUI, every schedule, refusals."""

import importlib
import importlib.util
import sys
import types
from functools import partial

import numpy as np
import pytest
from test_grids import ALL, BETAS, INDEXED, check, each

from diffast import grids, schedules

EDM, FLOW = schedules.edm(), schedules.flow()
LEVELS = np.sqrt(1 / np.cumprod(1 - BETAS) - 1)  # sigma/alpha at the indices

BY_LEVEL = {
    "exponential": grids.exponential,
    "lu": grids.lu,
    "polyexponential": partial(grids.polyexponential, rho=2.0),
    "laplace": grids.laplace,
    "kl_optimal": grids.kl_optimal,
    "beta_sigmas": grids.beta_sigmas,
    "ou_early": partial(grids.ou_early, to_zero=True),
}
BY_TABLE = {
    "simple": grids.simple,
    "normal": grids.normal,
    "sgm_uniform": grids.sgm_uniform,
    "ddim_uniform": grids.ddim_uniform,
    "beta": grids.beta,
}


def ratio(schedule, times):
    with np.errstate(divide="ignore", over="ignore"):
        return np.exp(-schedule.lam(times))


@each
@pytest.mark.parametrize("make", BY_LEVEL.values(), ids=BY_LEVEL)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 100])
def test_level_grids_on_every_schedule(schedule, make, steps):
    pure = not np.isfinite(schedule.lam(schedule.t_start))
    top = 200.0 if pure and make is not grids.kl_optimal else None
    grid = make(schedule, steps, sigma_max=top)
    check(schedule, grid, steps, schedule.t_end)
    assert grid[0] == schedule.t_start or top
    if steps > 1:
        assert grid[-2] == schedule.t_min
    check(schedule, make(schedule, steps, sigma_max=top, to_zero=False), steps, schedule.t_min)
    if make is grids.laplace and steps > 10:
        return  # cuts more than one level at sigma/alpha = 5
    inner = make(schedule, steps, sigma_min=0.1, sigma_max=5.0, to_zero=False)
    np.testing.assert_allclose(ratio(schedule, inner[[0, -1]]), [5.0, 0.1], rtol=1e-12)


@each
@pytest.mark.parametrize("make", BY_TABLE.values(), ids=BY_TABLE)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30, 250])
def test_table_grids_on_every_schedule(schedule, make, steps):
    grid = make(schedule, steps)
    check(schedule, grid, len(grid) - 1, schedule.t_end)
    if make is not grids.ddim_uniform:
        assert grid[0] == schedule.t_start
    if make not in (grids.ddim_uniform, grids.beta) or steps <= 10:
        assert len(grid) == steps + 1


@each
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 101])
def test_other_grids_on_every_schedule(schedule, steps):
    top = 10.0
    given = np.geomspace(top, 0.05, steps + 1)
    grid = grids.from_sigmas(schedule, given)
    np.testing.assert_allclose(ratio(schedule, grid), given, rtol=1e-12)
    check(schedule, grids.from_sigmas(schedule, given, to_zero=True), steps + 1, schedule.t_end)
    check(schedule, grids.from_times(schedule, grid), steps, grid[-1])
    check(schedule, grids.ays(schedule, steps), steps, schedule.t_end)
    open_end = grids.ays(schedule, steps, to_zero=False)
    check(schedule, open_end, steps, open_end[-1])
    assert abs(ratio(schedule, open_end[-1]) - 0.029) < 6e-4
    first = None if schedule == FLOW else top
    grid = grids.linear_quadratic(schedule, steps, sigma_max=first)
    check(schedule, grid, steps, schedule.t_end)


@pytest.fixture
def k_sampling(monkeypatch):
    """k_diffusion.sampling without the rest of the package, which wants image libraries."""
    spec = importlib.util.find_spec("k_diffusion")
    for name in ("scipy", "torchdiffeq", "torchsde"):
        pytest.importorskip(name)
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    package.utils = types.ModuleType("k_diffusion.utils")
    for module in (package, package.utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "k_diffusion.sampling", raising=False)
    sampling = importlib.import_module("k_diffusion.sampling")
    yield sampling
    sys.modules.pop("k_diffusion.sampling", None)


def test_as_k_diffusion(k_sampling):
    k = k_sampling
    for n in (2, 7, 30):
        pairs = [
            (grids.karras(EDM, n), k.get_sigmas_karras(n, 0.002, 80)),
            (grids.exponential(EDM, n), k.get_sigmas_exponential(n, 0.002, 80)),
            (
                grids.polyexponential(EDM, n, rho=1.7),
                k.get_sigmas_polyexponential(n, 0.002, 80, rho=1.7),
            ),
            (grids.vp(schedules.ve(0.01, 200.0), n), k.get_sigmas_vp(n)),
        ]
        for ours, theirs in pairs:
            # float32, and get_sigmas_vp subtracts 1 from exp(1.1e-4) there
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=6e-4, atol=0)
            np.testing.assert_allclose(ours[:-2], theirs.numpy()[:-2], rtol=3e-5)


def test_vp_is_even_in_the_time_of_vp_linear():
    schedule = schedules.vp_linear()
    grid = grids.vp(schedule, 12)
    np.testing.assert_allclose(grid[:-1], np.linspace(1, 1e-3, 12), rtol=1e-11)
    assert grid[0] == 1.0
    assert grid[-1] == 0.0
    np.testing.assert_allclose(
        grids.vp(schedule, 12, to_zero=False), np.linspace(1, 1e-3, 13), rtol=1e-11
    )


def sd_scheduler(name, **options):
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, name)(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options
    )


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("use_karras_sigmas", grids.karras),
        ("use_exponential_sigmas", grids.exponential),
        ("use_beta_sigmas", grids.beta_sigmas),
        ("use_lu_lambdas", grids.lu),
    ],
)
@pytest.mark.parametrize("steps", [5, 20])
def test_as_diffusers_spaces_sigmas(option, make, steps):
    name = "DPMSolverMultistepScheduler" if option == "use_lu_lambdas" else "EulerDiscreteScheduler"
    scheduler = sd_scheduler(name, **{option: True})
    scheduler.set_timesteps(steps)
    ours = ratio(INDEXED, make(INDEXED, steps))
    np.testing.assert_allclose(ours, scheduler.sigmas.numpy(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_as_diffusers_spaces_indices(spacing):
    scheduler = sd_scheduler("EulerDiscreteScheduler", timestep_spacing=spacing, steps_offset=1)
    for steps in (4, 20, 30):
        scheduler.set_timesteps(steps)
        options = {"steps_offset": 1} if spacing == "leading" else {}
        ours = getattr(grids, spacing)(INDEXED, steps, **options)
        np.testing.assert_array_equal(ours[:-1], scheduler.timesteps.numpy())
        np.testing.assert_allclose(ratio(INDEXED, ours), scheduler.sigmas.numpy(), rtol=1e-5)
        if spacing == "leading":
            np.testing.assert_array_equal(grids.ddim_uniform(INDEXED, steps)[-steps - 1 :], ours)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_as_diffusers_flow(shift, steps):
    diffusers = pytest.importorskip("diffusers")
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(steps)
    ours = grids.flow_match(FLOW, steps, shift=shift)
    np.testing.assert_allclose(ours, euler.sigmas.numpy(), atol=2e-7)
    euler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    ours = grids.shifted(FLOW, grids.uniform_time(FLOW, steps), shift)
    np.testing.assert_allclose(ours, euler.sigmas.numpy(), atol=2e-7)
    multistep = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    multistep.set_timesteps(steps)
    ours = grids.flow_sigmas(FLOW, steps, flow_shift=shift)
    np.testing.assert_allclose(ours, multistep.sigmas.numpy(), atol=2e-7)


def test_flow_grids_of_the_documentation():
    grid = grids.flow_match(FLOW, 20, shift=3)
    np.testing.assert_allclose(grid[[0, 1, 2, -2]], [1, 0.9819, 0.9624, 0.0089], atol=6e-5)
    grid = grids.flow_sigmas(FLOW, 20, flow_shift=3)
    np.testing.assert_allclose(grid[[0, 1, 2, -2]], [0.9997, 0.9824, 0.9639, 0.1362], atol=6e-5)


def table_of(schedule):
    """ComfyUI's ascending list of a model's noise levels."""
    if schedule is INDEXED:
        return LEVELS
    if schedule is FLOW:
        return np.arange(1, 1001) / 1000
    return np.exp(np.linspace(np.log(0.002), np.log(80), 1000))


def levels_of(schedule, grid):
    return grid if schedule is FLOW else ratio(schedule, grid)


comfy = pytest.mark.parametrize("schedule", [INDEXED, FLOW, EDM], ids=["sd", "flow", "edm"])


@comfy
@pytest.mark.parametrize("steps", [1, 4, 20, 30, 1000])
def test_as_comfyui_picks_entries(schedule, steps):
    table = table_of(schedule)
    stats = pytest.importorskip("scipy.stats")
    every = [table[len(table) - 1 - int(i * (1000 / steps))] for i in range(steps)]
    ours = levels_of(schedule, grids.simple(schedule, steps))
    np.testing.assert_allclose(ours, [*every, 0.0], rtol=1e-11)
    ours = levels_of(schedule, grids.ddim_uniform(schedule, steps))
    np.testing.assert_allclose(ours, [*table[1 :: 1000 // steps][::-1], 0.0], rtol=1e-11)
    # the middle entry is 499.5 but for rounding errors: scipy's, which rint sends up, are taken out
    places = stats.beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6) * 999
    assert np.sum(np.abs(places % 1 - 0.5) < 1e-9) == (steps % 2 == 0)
    picks = np.floor(places + 0.5 + 1e-9)
    np.testing.assert_array_equal(picks, np.rint(places))
    once = [picks[0], *(b for a, b in zip(picks, picks[1:], strict=False) if a != b)]
    want = [*table[np.array(once, dtype=int)], 0.0]
    ours = levels_of(schedule, grids.beta(schedule, steps))
    np.testing.assert_allclose(ours, want, rtol=1e-11)


@comfy
@pytest.mark.parametrize("steps", [1, 4, 20, 1500])
def test_as_comfyui_walks_the_table(schedule, steps):
    table = table_of(schedule)
    log_even = schedule is not FLOW  # between entries log(sigma) is linear, of a flow the time

    def at(places):
        if log_even:
            return np.exp(np.interp(places, np.arange(1000), np.log(table)))
        return np.interp(places, np.arange(1000), table)

    ours = levels_of(schedule, grids.normal(schedule, steps))
    np.testing.assert_allclose(ours, [*at(np.linspace(999, 0, steps)), 0.0], rtol=1e-10)
    ours = levels_of(schedule, grids.sgm_uniform(schedule, steps))
    np.testing.assert_allclose(ours, [*at(np.linspace(999, 0, steps + 1)[:-1]), 0.0], rtol=1e-10)


def test_as_comfyui_kl_optimal_and_laplace():
    x = np.linspace(0, 1, 12)
    want = np.tan(x * np.arctan(0.05) + (1 - x) * np.arctan(9.0))
    ours = ratio(INDEXED, grids.kl_optimal(INDEXED, 12, sigma_min=0.05, sigma_max=9.0))
    np.testing.assert_allclose(ours, [*want, 0.0], rtol=1e-11)
    trig = schedules.trig()
    even = grids.kl_optimal(trig, 12)
    assert even[0] == trig.t_start
    np.testing.assert_allclose(np.diff(even[:-1]), (1e-3 - np.pi / 2) / 11, rtol=1e-11)

    grid = grids.laplace(INDEXED, 12, mu=0.3, beta=0.4)
    inside = np.abs(0.5 - x[1:-1])
    spread = -0.4 * np.sign(0.5 - x[1:-1]) * np.log(1 - 2 * inside + 1e-5)  # theirs, with the 1e-5
    np.testing.assert_allclose(ratio(INDEXED, grid)[1:-2], np.exp(0.3 + spread), rtol=3e-5)
    # half of the points below the median, and the middle one on it
    assert ratio(EDM, grids.laplace(EDM, 11, mu=0.3))[5] == pytest.approx(np.exp(0.3), rel=1e-14)


@pytest.mark.parametrize("steps", [2, 5, 30, 64])
@pytest.mark.parametrize("threshold", [0.025, 0.1])
def test_linear_quadratic_as_mochi_makes_it(steps, threshold):
    half = steps // 2
    line = [i * threshold / half for i in range(half)]
    gap = half - threshold * steps
    square = gap / (half * (steps - half) ** 2)
    slope = threshold / half - 2 * gap / (steps - half) ** 2
    rest = [square * i**2 + slope * i + square * half**2 for i in range(half, steps)]
    want = 1 - np.array([*line, *rest, 1.0])
    ours = grids.linear_quadratic(FLOW, steps, threshold_noise=threshold)
    np.testing.assert_allclose(ours, want, atol=1e-15)
    scaled = ratio(INDEXED, grids.linear_quadratic(INDEXED, steps, threshold_noise=threshold))
    np.testing.assert_allclose(scaled, want * LEVELS[-1], rtol=1e-11)


def test_linear_quadratic_bends_once():
    grid = grids.linear_quadratic(FLOW, 12, threshold_noise=0.03, linear_steps=4)
    step = -np.diff(grid)
    np.testing.assert_allclose(step[:4], 0.0075, rtol=1e-10)
    np.testing.assert_allclose(np.diff(step[4:]), np.diff(step[4:])[0], rtol=1e-9)
    assert grids.linear_quadratic(FLOW, 1).tolist() == [1.0, 0.0]


def test_ays_tables():
    sd15 = grids.ays(INDEXED, 10)
    assert sd15[0] == 999.0
    assert sd15[-1] == -1.0
    np.testing.assert_allclose(ratio(INDEXED, sd15)[1:4], [6.475, 3.861, 2.697], rtol=1e-12)
    # the indices the authors publish with the levels
    published = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    np.testing.assert_allclose(sd15[:-1], published, atol=1.0)
    sdxl = grids.ays(INDEXED, 10, model="sdxl")
    np.testing.assert_allclose(sdxl[:-1], [999, 845, 730, 587, 443, 310, 193, 116, 53, 13], atol=1)
    assert grids.ays(INDEXED, 10, to_zero=False)[-1] == 0.0  # 0.029 is the level of index 0
    svd = schedules.edm(0.002, 700.0)
    full = grids.ays(svd, 10, model="svd", to_zero=False)
    assert full[0] == 700.0
    assert full[-1] == pytest.approx(0.002, rel=1e-14)
    double = grids.ays(svd, 20, model="svd", to_zero=False)
    np.testing.assert_allclose(double[::2], full, rtol=1e-13)
    np.testing.assert_allclose(double[1::2], np.sqrt(full[1:] * full[:-1]), rtol=1e-13)


@pytest.mark.parametrize("model", ["StableDiffusion", "StableDiffusionXL", "StableDiffusionVideo"])
def test_ays_as_diffusers_holds_them(model):
    tables = pytest.importorskip("diffusers.schedulers").AysSchedules
    name = {"StableDiffusion": "sd15", "StableDiffusionXL": "sdxl"}.get(model, "svd")
    ours = grids.ays(schedules.edm(0.001, 1000.0), 10, model=name)
    np.testing.assert_allclose(ours, tables[model + "Sigmas"], rtol=1e-13)


@each
def test_from_sigmas_at_the_ends(schedule):
    first = ratio(schedule, schedule.t_start)
    grid = grids.from_sigmas(schedule, [first, 0.5, 0.0])
    assert grid[0] == schedule.t_start
    assert grid[-1] == schedule.t_end
    if np.isfinite(first):
        single = grids.from_sigmas(schedule, np.array([first * (1 + 3e-7), 0.5], np.float32))
        assert single[0] == pytest.approx(schedule.t_start, rel=1e-6)
        with pytest.raises(ValueError, match="sigma/alpha of the schedule starts at"):
            grids.from_sigmas(schedule, [first * 1.001, 0.5])
        with pytest.raises(ValueError, match="from_sigmas: sigmas.0. = inf"):
            grids.from_sigmas(schedule, [np.inf, 0.5])


def test_from_times():
    assert grids.from_times(INDEXED, [999, 500, 3], to_zero=True).tolist() == [999, 500, 3, -1]
    assert grids.from_times(FLOW, [1.0, 0.25]).tolist() == [1.0, 0.25]
    levels = grids.karras(schedules.edm(0.001, 1.0), 8)
    assert grids.from_times(FLOW, levels).tolist() == levels.tolist()


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: grids.polyexponential(EDM, 5, rho=-1), "polyexponential: rho = -1, but"),
        (lambda: grids.laplace(EDM, 5, beta=0), "laplace: beta = 0, but"),
        (lambda: grids.laplace(EDM, 5, mu=np.nan), "laplace: mu = nan, but"),
        (lambda: grids.laplace(INDEXED, 1000), "laplace: 1000 steps put 3 levels on sigma_max"),
        (lambda: grids.laplace(EDM, 2000, beta=3), "steps put .* but each end can take one"),
        (lambda: grids.kl_optimal(EDM, 5, sigma_max=np.inf), "kl_optimal: sigma_max = inf"),
        (lambda: grids.beta_sigmas(EDM, 5, alpha=0), "beta_sigmas: alpha = 0"),
        (lambda: grids.beta_sigmas(FLOW, 5), "infinite at t = 1.0, .* grids.default"),
        (lambda: grids.beta(EDM, 5, beta=np.inf), "beta: beta = inf"),
        (lambda: grids.beta(EDM, 5, timesteps=1), "beta: timesteps = 1"),
        (lambda: grids.simple(EDM, 1001), "simple: 1001 steps, but .* 1000"),
        (lambda: grids.simple(EDM, 11, timesteps=10), "simple: 11 steps"),
        (lambda: grids.ddim_uniform(INDEXED, 0), "ddim_uniform: 0 steps"),
        (lambda: grids.normal(INDEXED, 2.5), "normal: steps = 2.5"),
        (lambda: grids.sgm_uniform(INDEXED, -1), "sgm_uniform: -1 steps"),
        (lambda: grids.vp(EDM, 5), r"vp: sigmas\[0\] = 152.* starts at 80"),
        (lambda: grids.vp(EDM, 5, beta_d=0), "vp: beta_d = 0"),
        (lambda: grids.vp(EDM, 5, eps_s=1), "vp: eps_s = 1"),
        (lambda: grids.ays(EDM, 5, model="sd3"), "model = 'sd3', but it must be one of sd15, sdxl"),
        (lambda: grids.ays(EDM, 5, model="svd"), r"ays: sigmas\[0\] = 700, but .* 80"),
        (lambda: grids.flow_sigmas(EDM, 5), "flow_sigmas: schedule = SigmaSpace.* must be flow"),
        (lambda: grids.flow_sigmas(FLOW, 5, flow_shift=0), "flow_sigmas: flow_shift = 0"),
        (lambda: grids.flow_match(FLOW, 5, shift=-3), "flow_match: shift = -3"),
        (lambda: grids.flow_match(FLOW, 5, timesteps=1), "flow_match: timesteps = 1"),
        (lambda: grids.linear_quadratic(FLOW, 5, threshold_noise=1), "threshold_noise = 1, but"),
        (lambda: grids.linear_quadratic(FLOW, 5, linear_steps=5), "linear_steps = 5, but .* 5 st"),
        (lambda: grids.linear_quadratic(FLOW, 5, linear_steps=0), "linear_quadratic: 0 steps"),
        (lambda: grids.linear_quadratic(FLOW, 10, threshold_noise=0.7), "parabola would pass"),
        (lambda: grids.linear_quadratic(FLOW, 5, sigma_max=2), "sigma_max = 2, but flow starts"),
        (lambda: grids.linear_quadratic(EDM, 5, sigma_max=90), r"sigmas\[0\] = 90, but .* 80"),
        (lambda: grids.linear_quadratic(schedules.trig(), 5), "is infinite at t = 1.57"),
        (lambda: grids.from_sigmas(EDM, [[1.0]]), r"sigmas has shape \[1, 1\]"),
        (lambda: grids.from_sigmas(EDM, [1.0, -0.5]), r"sigmas\[1\] = -0.5, but"),
        (lambda: grids.from_sigmas(EDM, [1.0, np.nan]), r"sigmas\[1\] = nan, but"),
        (
            lambda: grids.from_sigmas(EDM, [1.0, 2.0]),
            r"sigmas\[0\] = 1.0 is followed by sigmas\[1\] = 2.0",
        ),
        (lambda: grids.from_sigmas(EDM, [1.0, 0.0], to_zero=True), "0.0 is followed by"),
        (lambda: grids.from_times(EDM, [[1.0]]), r"times has shape \[1, 1\]"),
        (lambda: grids.from_times(FLOW, [1.2, 0.0]), "1.2, but the schedule runs from"),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


def test_every_name_is_public_and_tested_here():
    assert len(ALL) == 9
    assert set(grids.__all__) <= set(dir(grids))
    assert grids.exponential is grids.uniform_logsnr is grids.lu
