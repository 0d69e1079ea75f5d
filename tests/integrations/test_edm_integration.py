"""EDM's sampler by its own signature against algorithm 2 written out in torch."""

import math

import pytest
import torch

from diffast.integrations.edm import edm_sampler


class Net:
    """Stands in for EDM's networks: net(x, sigma, class_labels), bounds and rounding."""

    def __init__(self, sigma_min=0.0, sigma_max=float("inf"), levels=None, dtype=None):
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.levels, self.dtype, self.sigmas = levels, dtype, []

    def round_sigma(self, sigma):
        sigma = torch.as_tensor(sigma)
        if self.levels is None:
            return sigma
        nearest = (sigma.reshape(-1, 1) - self.levels).abs().argmin(1)
        return self.levels[nearest].reshape(sigma.shape)

    def __call__(self, x, sigma, class_labels=None):
        assert x.dtype == torch.float64 and sigma.dtype == torch.float64 and sigma.dim() == 0
        self.sigmas.append(float(sigma))
        shift = 0.0 if class_labels is None else 0.1 * class_labels.reshape(-1, 1, 1)
        denoised = torch.tanh(0.7 * x / (0.3 + sigma**2)) + 0.2 * x / (1 + sigma**2) + shift
        return denoised if self.dtype is None else denoised.to(self.dtype)


class Stacked:
    """EDM's StackedRandomGenerator: one generator a sample."""

    def __init__(self, seeds):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def randn_like(self, like):
        assert like.dtype == torch.float64
        rows = [torch.randn(like.shape[1:], dtype=like.dtype, generator=g) for g in self.generators]
        return torch.stack(rows)


def algorithm_2(net, latents, labels, randn_like, n=18, low=0.002, high=80.0, rho=7.0, churn=None):
    """Karras et al. 2022, algorithm 2, line by line, with a normal drawn at every step."""
    low, high = max(low, net.sigma_min), min(high, net.sigma_max)
    i = torch.arange(n, dtype=torch.float64)
    t = (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    t = torch.cat([net.round_sigma(t), torch.zeros(1, dtype=torch.float64)])
    amount, at_least, at_most, scale = churn or (0.0, 0.0, math.inf, 1.0)
    x = latents.double() * t[0]
    for i in range(n):
        gamma = min(amount / n, math.sqrt(2) - 1) if at_least <= t[i] <= at_most else 0.0
        hat = t[i] + gamma * t[i]
        x = x + (hat**2 - t[i] ** 2).sqrt() * scale * randn_like(x)
        slope = (x - net(x, hat, labels)) / hat
        guess = x + (t[i + 1] - hat) * slope
        if t[i + 1] > 0:
            other = (guess - net(guess, t[i + 1], labels)) / t[i + 1]
            guess = x + (t[i + 1] - hat) * (slope + other) / 2
        x = guess
    return x


def latents(rows=3):
    return torch.randn(rows, 2, 4, generator=torch.Generator().manual_seed(1))


def churned(churn):
    return dict(zip(("S_churn", "S_min", "S_max", "S_noise"), churn, strict=True))


@pytest.mark.parametrize("labels", [None, torch.tensor([0.0, 1.0, 2.0])])
@pytest.mark.parametrize("n", [2, 5, 18])  # from 80 to 0.002 at once the corrector weighs 20,000
def test_heun_is_algorithm_2_without_churn(n, labels):
    wanted_net, net = Net(), Net()
    wanted = algorithm_2(wanted_net, latents(), labels, torch.zeros_like, n)
    got = edm_sampler(net, latents(), labels, num_steps=n)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12 if n > 2 else 1e-12 * 2e4)
    assert net.sigmas == pytest.approx(wanted_net.sigmas, rel=1e-13)
    assert len(net.sigmas) == 2 * n - 1


@pytest.mark.parametrize(
    "churn", [(40.0, 0.05, 50.0, 1.003), (5.0, 0.0, math.inf, 1.0), (1e3, 0.0, math.inf, 1.0)]
)
def test_churn_uses_the_same_numbers_of_one_generator_a_sample(churn):
    net = Net()
    wanted = algorithm_2(net, latents(), None, Stacked([4, 5, 6]).randn_like, churn=churn)
    got = edm_sampler(Net(), latents(), None, Stacked([4, 5, 6]).randn_like, **churned(churn))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_a_sample_does_not_depend_on_its_neighbours():
    churn = churned((40.0, 0.05, 50.0, 1.003))
    full = edm_sampler(Net(), latents(), None, Stacked([4, 5, 6]).randn_like, **churn)
    alone = edm_sampler(Net(), latents()[1:2], None, Stacked([5]).randn_like, **churn)
    torch.testing.assert_close(full[1:2], alone, rtol=0, atol=0)


def test_bounds_and_rounding_of_the_network():
    levels = torch.linspace(0.01, 20.0, 800, dtype=torch.float64)
    nets = [Net(0.01, 20.0, levels), Net(0.01, 20.0, levels)]
    wanted = algorithm_2(nets[0], latents(), None, torch.zeros_like, n=7)
    got = edm_sampler(nets[1], latents(), num_steps=7)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    assert nets[1].sigmas == pytest.approx(nets[0].sigmas, rel=1e-13)
    assert set(nets[1].sigmas) <= set(levels.tolist())


def test_churn_to_a_level_the_network_does_not_have_is_refused():
    levels = torch.linspace(0.01, 20.0, 800, dtype=torch.float64)
    with pytest.raises(ValueError, match="S_churn raises the noise to .*, but the net's"):
        edm_sampler(Net(0.01, 20.0, levels), latents(), num_steps=7, S_churn=5.0)


def test_levels_that_round_together_are_refused():
    levels = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="is followed by"):
        edm_sampler(Net(0.01, 20.0, levels), latents(), num_steps=7)


def test_a_float32_network_gets_a_float64_state():
    got = edm_sampler(Net(dtype=torch.float32), latents(), num_steps=6)
    wanted = algorithm_2(Net(dtype=torch.float32), latents(), None, torch.zeros_like, n=6)
    assert got.dtype == torch.float64 and not got.is_inference()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
