"""Reference numbers about grids and loss curves, in closed form or by sampling."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.plans.gaussian import Gaussian
from diffast.tuning.grids import densities
from diffast.tuning.grids.levels import levels_by_density
from diffast.tuning.grids.shortest_path import klub, shortest_path
from diffast.tuning.grids.simplex import simplex_search

TWO = df.thermo.GaussianMixture(None, [-1.0, 1.0], 0.04)
C = 0.5  # deviation of Gaussian data


def ddim_error(sigma):
    """The deviation that DDIM misses at the end, from the exact flow's state at sigma[0]."""
    ratio = np.prod((C**2 + sigma[:-1] * sigma[1:]) / (C**2 + sigma[:-1] ** 2))
    return np.sqrt(C**2 + sigma[-1] ** 2) - ratio * np.sqrt(C**2 + sigma[0] ** 2)


def test_arctan_is_the_best_grid_of_ddim_for_gaussian_data():
    schedule = df.schedules.edm(0.002, 80.0)
    rho = np.geomspace(80.0, 0.002, 4000)
    density = densities.arctan(rho, C)
    arctan = levels_by_density(np.log(rho), density, 8, points=200_001)
    karras = df.grids.karras(schedule, 8, to_zero=False)
    assert ddim_error(arctan) == pytest.approx(0.0710137, abs=2e-7)
    assert ddim_error(karras) == pytest.approx(0.1505, abs=5e-5)
    turn = (np.arctan(80.0 / C) - np.arctan(0.002 / C)) / 8
    exact = np.sqrt(C**2 + 0.002**2)
    assert ddim_error(arctan) == pytest.approx(exact * (1.0 - np.cos(turn) ** 8), rel=1e-5)

    def error(inner):  # logarithms of the inner levels
        return ddim_error(np.exp([np.log(80.0), *inner, np.log(0.002)]))

    found, least = simplex_search(error, np.log(karras[1:-1]), 0.3, 6000, 1e-12)
    assert least == pytest.approx(0.0710137, abs=2e-7)
    assert np.exp(found) == pytest.approx(arctan[1:-1], rel=0.01)


def test_that_grid_is_what_df_sample_runs():
    schedule = df.schedules.edm(0.002, 80.0)
    mixture = df.thermo.GaussianMixture(None, [0.0], C**2)
    times = C * np.tan(np.linspace(np.arctan(80.0 / C), np.arctan(0.002 / C), 9))
    x = torch.full((1, 1), float(np.hypot(80.0, C)), dtype=torch.float64)
    plan = df.solvers.ddim(schedule, times)
    made = float(df.sample(mixture.denoiser(schedule), plan, x=x).x)
    assert np.hypot(C, 0.002) - made == pytest.approx(0.0710137, abs=2e-7)


def test_x0_estimates_are_a_martingale():
    """E|D_t - D_s|^2 = mmse(s) - mmse(t): between the levels .9 and .4 that is .342627."""
    exact = float(TWO.mmse(0.9) - TWO.mmse(0.4))
    assert exact == pytest.approx(0.342627, abs=1e-6)
    draw = torch.Generator().manual_seed(0)
    y = TWO.sample(100_000, 1)
    near = y + 0.4 * torch.randn(y.shape, generator=draw, dtype=torch.float64)
    far = near + (0.9**2 - 0.4**2) ** 0.5 * torch.randn(
        y.shape, generator=draw, dtype=torch.float64
    )
    changes = (TWO.x0(near, 1.0, 0.4) - TWO.x0(far, 1.0, 0.9)).square()[:, 0]
    found = df.thermo.Estimate(float(changes.mean()), float(changes.std()) / len(y) ** 0.5, len(y))
    assert abs(found.value - exact) < 4 * found.error < 0.02
    assert abs(found.value - 0.34148) < 6 * found.error  # a sampled value of another program


def test_the_bound_of_align_your_steps_is_a_sum_over_the_loss_curve():
    """(1/2) mmse(b) (a^-2 - b^-2) less the fall of the entropy H is .629137 for .9 to .4."""
    rho = np.array([0.9, 0.4])
    cost = klub(rho, TWO.mmse(rho))[0, 1]
    fine = np.geomspace(0.4, 0.9, 201)
    values = TWO.mmse(fine, points=1001) / fine**3
    entropies = float(np.sum(0.5 * (values[1:] + values[:-1]) * np.diff(fine)))
    assert cost - entropies == pytest.approx(0.629137, abs=1e-5)
    # The divergence of the paths, by sampling: the estimate is frozen at the level .9.
    draw, count = torch.Generator().manual_seed(3), 4000
    y, levels = TWO.sample(count, 2), np.geomspace(0.4, 0.9, 81)
    z = torch.randn(count, len(levels), generator=draw, dtype=torch.float64)
    jumps = np.sqrt(np.diff(np.concatenate([[0.0], levels**2])))
    paths = y + torch.cumsum(z * torch.from_numpy(jumps), 1)  # level after level, rising
    frozen = TWO.x0(paths[:, -1:], 1.0, 0.9)[:, 0]
    gaps = [
        (TWO.x0(paths[:, [k]], 1.0, float(s))[:, 0] - frozen).square() / s**3
        for k, s in enumerate(levels)
    ]
    step = torch.from_numpy(np.diff(levels))
    stacked = torch.stack(gaps, 1)
    sampled = (0.5 * (stacked[:, 1:] + stacked[:, :-1]) * step).sum(1)
    error = float(sampled.std()) / count**0.5
    assert abs(float(sampled.mean()) - 0.629137) < 4 * error < 0.1


def test_the_geometric_mean_of_entropy_production_and_information_is_arctan():
    """sqrt(mmse (d - mmse / sigma^2)) / sigma^2 is c / (c^2 + sigma^2) a coordinate."""
    sigma = np.geomspace(1e-2, 50.0, 60)
    law = Gaussian(np.zeros(3), np.zeros((0, 3)), np.zeros(0), C**2)
    mmse = law.mmse(sigma)
    # d - mmse / sigma^2 cancels at low levels, so the other form of it is the reference there
    rest = densities.equal_entropy_production(sigma, mmse, 3)
    assert rest == pytest.approx(3 * sigma**2 / (C**2 + sigma**2), rel=1e-11)
    found = np.sqrt(mmse * rest) / sigma  # over log(sigma)
    assert found == pytest.approx(3 * densities.arctan(sigma, C), rel=1e-11)
    high = sigma > C
    assert found[high] == pytest.approx(3 * densities.arctan(sigma, C)[high], rel=1e-14)


def test_the_path_bound_is_no_guide_to_the_final_error():
    """DDPM, 10 steps on N(0, .25), sigma 20 to .02: KL of the end .0847, .0920 and .0307."""
    fine = np.geomspace(20.0, 0.02, 200)  # the path's levels; others move .0847 by .002
    mmse = C**2 * fine**2 / (C**2 + fine**2)
    grids = {
        "klub": fine[shortest_path(klub(fine, mmse), 10)],
        "karras": np.linspace(20.0 ** (1 / 7), 0.02 ** (1 / 7), 11) ** 7,
        "arctan": C * np.tan(np.linspace(np.arctan(20.0 / C), np.arctan(0.02 / C), 11)),
    }
    found = {}
    for name, sigma in grids.items():
        variance, wanted = C**2 + sigma[0] ** 2, C**2 + sigma[-1] ** 2
        for a, b in zip(sigma[:-1], sigma[1:], strict=True):
            kept = (b / a) ** 2
            gain = kept + (1.0 - kept) * C**2 / (C**2 + a**2)
            variance = variance * gain**2 + b**2 * (1.0 - kept)
        ratio = variance / wanted
        found[name] = 0.5 * (ratio - 1.0 - np.log(ratio))
    assert found["karras"] == pytest.approx(0.0920, abs=1e-4)
    assert found["arctan"] == pytest.approx(0.0307, abs=1e-4)
    assert found["klub"] == pytest.approx(0.0847, abs=1e-4)
