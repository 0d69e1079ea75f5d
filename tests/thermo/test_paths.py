"""Paths of least action: re-timed schedules, the best scalar schedule, optimal transport."""

import functools
import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo import speed

ROOT = math.sqrt(1.09)
FLOW = df.schedules.flow()
TWO = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)
STANDARD = df.thermo.GaussianMixture([0.5, 0.5], [-1.0 / ROOT, 1.0 / ROOT], 0.09 / 1.09)


@functools.cache
def law(name):
    """Returns (mmse, energy, d), with the mmse in a table that is fine enough for 1e-7."""
    mixture = {"two": TWO, "standard": STANDARD}[name]
    lam = np.linspace(-19.0, 19.0, 1521)
    known = mixture.mmse(np.exp(-lam), points=101)
    ratio = known * (1.0 + np.exp(2.0 * lam))

    def mmse(rho):
        at = -np.log(np.clip(rho, 1e-8, 1e8))
        return np.interp(at, lam, ratio) / (1.0 + np.exp(2.0 * at))

    return mmse, mixture.energy, 1


def cdf(mixture):
    root = mixture.variances[:, 0].sqrt()
    return lambda x: torch.special.ndtr((x[:, None] - mixture.means[:, 0]) / root) @ mixture.weights


@pytest.mark.parametrize("name", ["two", "standard"])
def test_a_retimed_schedule_has_constant_speed_and_the_same_levels(name):
    for schedule in (df.schedules.trig(), df.schedules.flow(), df.schedules.edm(0.002, 20.0)):
        made = df.thermo.retime(schedule, *law(name))
        length = speed.w2_length(schedule, *law(name))
        assert speed.action(made, *law(name)) == pytest.approx(length**2, rel=1e-3)
        t = np.linspace(0.05, 0.9, 7)
        squared = speed.w2_speed_squared(made, t, *law(name))
        assert squared == pytest.approx(np.full(7, length**2), rel=0.01)
        same = schedule.time(made.lam(t))
        assert made.alpha(t) == pytest.approx(schedule.alpha(same), abs=1e-7)
        assert df.schedules.from_dict(made.to_dict()) == made


def test_the_best_scalar_schedule_is_the_chord():
    psi = speed.angle(*law("standard")[::2])
    made = df.thermo.best_scalar(*law("standard"))
    assert speed.action(made, *law("standard")) == pytest.approx(0.15786, abs=2e-5)
    # psi(t) and the radius of the closed form, which knows standardised data alone
    t = np.array([0.2, 0.5, 0.8])
    plane = speed.Plane("test", law("standard")[0], 1.0, 1)
    at = plane.psi_at(made.alpha(t), made.sigma(t))
    assert at == pytest.approx(psi / 2 + np.arctan((2 * t - 1) * math.tan(psi / 2)), abs=2e-4)
    radius = np.hypot(made.alpha(t), made.sigma(t))
    assert radius == pytest.approx(math.cos(psi / 2) / np.cos(at - psi / 2), abs=1e-6)


def test_the_best_scalar_schedule_of_other_data_lies_between_w2_and_all_others():
    mmse, energy, d = law("two")
    for start in (0.5, 1.0, 3.0):
        made = df.thermo.best_scalar(mmse, energy, d, start)
        cost, rms = speed.action(made, mmse, energy, d), math.sqrt(energy)
        psi = speed.angle(mmse, d, energy)
        chord = energy + start**2 - 2 * rms * start * math.cos(psi)
        assert cost == pytest.approx(chord, rel=2e-3)
        assert df.thermo.MonotoneTransport(cdf(TWO), -8.0, 8.0, start).action < chord
    for schedule in (df.schedules.trig(), df.schedules.flow()):
        assert speed.action(df.thermo.best_scalar(*law("two")), *law("two")) < speed.action(
            df.thermo.retime(schedule, *law("two")), *law("two")
        )


@pytest.mark.parametrize("build", ["retime", "best_scalar"])
def test_every_solver_and_grid_runs_the_made_schedules(build):
    schedule = (
        df.thermo.best_scalar(*law("two"))
        if build == "best_scalar"
        else df.thermo.retime(df.schedules.trig(), *law("two"))
    )
    noise = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for grid in (df.grids.default(schedule, 12), df.grids.uniform_time(schedule, 12)):
        same = FLOW.time(schedule.lam(grid))  # the same levels on the straight path
        for solver in (df.solvers.ddim, df.solvers.dpmpp_2m, df.solvers.heun, df.solvers.unipc):
            made = df.sample(TWO.denoiser(schedule), solver(schedule, grid), x=noise).x
            plain = df.sample(TWO.denoiser(FLOW), solver(FLOW, same), x=noise).x
            assert float((made - plain).abs().max()) < 1e-6
            assert float(made.abs().mean()) == pytest.approx(0.95, abs=0.25)


def test_transport_of_gaussians_is_the_straight_line():
    basis = np.linalg.qr(np.array([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))[0]
    data = df.thermo.Gaussian(np.array([1.0, 0.0, -1.0]), basis[:2], [4.0, 0.25], rest=0.01)
    field = df.thermo.GaussianTransport(data, sigma=2.0)
    z = 2.0 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = np.sqrt(data.rest) * (np.eye(3) - basis[:2].T @ basis[:2])
    root = root + basis[:2].T @ np.diag(np.sqrt(data.variances)) @ basis[:2]
    target = torch.tensor(data.mean) + z @ torch.tensor(root / 2.0)
    for s in (0.0, 0.3, 1.0):
        assert torch.allclose(field((1 - s) * z + s * target, t=s), target - z, atol=1e-12)
    assert field.action == pytest.approx(2.0 + 0.0 + 1.5**2 + 1.9**2)
    schedule = df.schedules.flow()
    denoiser = df.Denoiser.from_velocity(field, schedule)
    made = df.sample(denoiser, df.solvers.ddim(schedule, np.array([1.0, 0.0])), x=z).x
    assert torch.allclose(made, target, atol=1e-10)  # one step


def test_transport_on_the_line_is_the_monotone_map():
    field = df.thermo.MonotoneTransport(cdf(STANDARD), -8.0, 8.0)
    # an earlier check gave .137974; adaptive quadrature over the quantile function gives .1379978
    assert field.action == pytest.approx(0.1379978, abs=1e-6)
    z = torch.linspace(-4, 4, 33, dtype=torch.float64)[:, None]
    assert torch.allclose(cdf(STANDARD)(field.map(z)[:, 0]), torch.special.ndtr(z[:, 0]), atol=1e-7)
    for s in (0.0, 0.5, 1.0):
        x = (1 - s) * z + s * field.map(z)
        assert torch.allclose(field(x, t=s), field.map(z) - z, atol=1e-5)
    mixed = torch.tensor([0.0, 0.5], dtype=torch.float64)
    assert torch.allclose(field(z[:2], t=mixed)[1], field(z[1:2], t=0.5)[0])
    sampled = df.thermo.MonotoneTransport.of(STANDARD.sample(40_000))
    assert sampled.action == pytest.approx(field.action, rel=0.05)


def test_transport_between_samples_pairs_them_best():
    data = df.thermo.GaussianMixture(None, [[3.0, 0.0], [-3.0, 0.0]], 0.01).sample(200)
    field = df.thermo.SampledTransport(data)
    assert bool((field.z[:, 0].sign() == field.y[:, 0].sign()).double().mean() > 0.9)
    assert field.action < float((field.z - field.y.roll(1, 0)).square().sum(1).mean())
    made = field(field.z, t=torch.zeros(200, dtype=torch.float64))
    assert float((made - (field.y - field.z)).norm() / (field.y - field.z).norm()) < 0.2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: df.thermo.retime(df.schedules.flow(), *law("two"), floor=1.0), "floor = 1.0"),
        (
            lambda: df.thermo.retime(df.schedules.trig(), lambda r: 2 * r**2 / (1 + r**2), 2.0, 2),
            "does not move",
        ),
        (lambda: df.thermo.best_scalar(lambda r: 2 * r**2 / (1 + r**2), 2.0, 2), "normal"),
        (lambda: df.thermo.best_scalar(*law("two"), sigma_start=0.0), "sigma_start = 0.0"),
        (lambda: df.thermo.SampledTransport(torch.zeros(1, 2)), "1 samples"),
        (lambda: df.thermo.MonotoneTransport(cdf(TWO), -1.0, 1.0), "must rise from 0 to 1"),
        (lambda: df.thermo.MonotoneTransport.of(torch.zeros(20, 2)), "of 2 elements"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_schedule_that_keeps_some_noise_is_retimed_to_its_own_end():
    kept = df.schedules.from_functions(lambda t: 1.0 - t, lambda t: 0.1 + 0.9 * t)
    made = df.thermo.retime(kept, *law("two"))
    assert (made.alpha(0.0), made.sigma(0.0)) == pytest.approx((1.0, 0.1))
    length = speed.w2_length(kept, *law("two"))
    assert speed.action(made, *law("two")) == pytest.approx(length**2, rel=1e-3)
    assert length < speed.w2_length(FLOW, *law("two"))


def test_plans_of_made_schedules_are_saved(tmp_path):
    schedule = df.thermo.best_scalar(*law("two"))
    plan = df.solvers.dpmpp_2m(schedule, df.grids.default(schedule, 8))
    plan.save(tmp_path / "plan.json")
    loaded = df.Plan.load(tmp_path / "plan.json")
    assert loaded.schedule == schedule
    assert np.array_equal(loaded.matrix, plan.matrix, equal_nan=True)
