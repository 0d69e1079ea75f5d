"""The closed forms of `GaussianMixture` and `Gaussian` against each other and against autograd."""

import numpy as np
import pytest
import torch

import diffast as df

COVS = np.array([np.eye(2) * 0.1, [[0.3, 0.1], [0.1, 0.2]], np.eye(2)])
THREE = df.thermo.GaussianMixture([1.0, 2.0, 1.0], [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], COVS)
X = torch.linspace(-2, 2, 8, dtype=torch.float64).reshape(4, 2)


@pytest.mark.parametrize("level", [(1.0, 0.7), (0.6, 0.8), (0.1, 1.0)])
def test_score_is_the_gradient_and_tweedie_holds(level):
    alpha, sigma = level
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(THREE.log_density(x, alpha, sigma).sum(), x)
    assert (THREE.score(X, alpha, sigma) - gradient).abs().max() < 1e-13
    tweedie = (X + sigma**2 * THREE.score(X, alpha, sigma)) / alpha
    assert (THREE.x0(X, alpha, sigma) - tweedie).abs().max() < 1e-12


def test_the_jacobian_of_x0_is_the_posterior_covariance():
    for x in X:
        jacobian = torch.func.jacrev(lambda v: THREE.x0(v[None], 0.7, 0.5)[0])(x)
        covariance = THREE.posterior_covariance(x[None], 0.7, 0.5)[0]
        assert (jacobian - 0.7 / 0.25 * covariance).abs().max() < 1e-13


def test_the_quadrature_of_mmse_meets_the_sampled_one():
    mixture = df.thermo.GaussianMixture([0.8, 0.2], [-1.0, 2.0], 0.09)
    y = mixture.sample(200_000, 1)
    for rho in (0.3, 1.0, 4.0):
        noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
        sampled = (mixture.x0(y + rho * noise, 1.0, rho) - y).square()
        gap = float(sampled.mean()) - float(mixture.mmse(rho))
        assert abs(gap) < 5 * float(sampled.std()) / len(y) ** 0.5
    assert mixture.mmse(1e3) == pytest.approx(float(mixture.covariance), rel=1e-4)


def test_a_float32_time_may_round_beyond_the_start():
    schedule = df.schedules.trig()
    mixture = df.thermo.GaussianMixture(None, [[1.0]], 0.25)
    start = torch.full((2,), float(schedule.t_start), dtype=torch.float32)
    assert float(start[0]) > float(schedule.t_start)  # pi / 2, rounded up
    made = mixture.denoiser(schedule).network(torch.zeros(2, 1), start)
    assert made.flatten().tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="lies outside"):
        mixture.denoiser(schedule).network(torch.zeros(2, 1), start + 0.1)


def test_samples_have_the_mean_and_the_covariance():
    y = THREE.sample(100_000)
    assert (y.mean(0) - THREE.mean).abs().max() < 0.02
    assert (torch.cov(y.T) - THREE.covariance).abs().max() < 0.03
    assert y.square().sum(1).mean() == pytest.approx(THREE.energy, rel=0.01)


@pytest.mark.parametrize("schedule", [df.schedules.edm(), df.schedules.flow()])
def test_a_sampler_reaches_the_mixture(schedule):
    mixture = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.04)
    plan = df.solvers.dpmpp_2m(schedule, df.grids.default(schedule, 40))
    x = df.sample(mixture.denoiser(schedule), plan, (2000, 1)).x.double()
    assert x.square().mean() == pytest.approx(mixture.energy, rel=0.02)


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(weights=[1.0, -1.0], means=[0.0, 1.0], variances=1.0), "positive"),
        (dict(weights=[1.0], means=[0.0, 1.0], variances=1.0), "one a mean"),
        (dict(weights=None, means=[0.0, 1.0], variances=[-1.0, 1.0]), "0 or more"),
        (dict(weights=None, means=[[0.0, 1.0]], variances=[1.0, 2.0, 3.0]), "1 means of 2"),
    ],
)
def test_bad_mixtures_are_refused(bad, words):
    with pytest.raises(ValueError, match=words):
        df.thermo.GaussianMixture(**bad)


@pytest.mark.parametrize("count, rank", [(500, None), (500, 2), (5, None), (5, 0)])
def test_a_gaussian_of_samples(count, rank):
    data = torch.randn(count, 2, 4, generator=torch.Generator().manual_seed(3)) * 2 + 1
    law = df.thermo.Gaussian.of(data, rank)
    flat = data.double().reshape(count, 8)
    full = torch.linalg.eigvalsh(torch.cov(flat.T)).flip(0)
    kept = len(law.variances)
    assert np.allclose(law.variances, full[:kept], atol=1e-10)
    assert law.spectrum.sum() == pytest.approx(float(full.sum()))
    assert law.mmse(1e6) == pytest.approx(float(full.sum()), rel=1e-6)
    rho = 0.7
    wanted = sum(s * rho**2 / (s + rho**2) for s in law.spectrum)
    assert law.mmse([rho])[0] == pytest.approx(wanted)
    assert law.shape == (2, 4) and law.count == count


@pytest.mark.parametrize(
    "data, words",
    [
        (torch.zeros(1, 3), "at least 2 samples"),
        (torch.full((3, 2), float("nan")), "not finite"),
    ],
)
def test_bad_data_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        df.thermo.Gaussian.of(data)
