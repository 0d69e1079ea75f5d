"""EDM's sampler by its own signature against algorithm 2 written out in torch."""

import math
import warnings
from dataclasses import replace

import pytest
import torch

import diffast as df
from diffast.integrations.edm import edm_sampler
from diffast.model.fingerprint import fingerprint


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
        hat = net.round_sigma(t[i] + gamma * t[i])
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


@pytest.mark.parametrize("levels", [800, 3], ids=["churned", "some of them together"])
def test_levels_that_the_network_rounds_while_it_runs(levels):
    levels = torch.linspace(0.01, 20.0, levels, dtype=torch.float64)
    nets, draws = [Net(0.01, 20.0, levels), Net(0.01, 20.0, levels)], ([4, 5, 6], [4, 5, 6])
    churn = (5.0, 0.0, math.inf, 1.003)
    wanted = algorithm_2(nets[0], latents(), None, Stacked(draws[0]).randn_like, 7, churn=churn)
    more = churned(churn) | {"num_steps": 7}
    got = edm_sampler(nets[1], latents(), None, Stacked(draws[1]).randn_like, **more)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-11)
    assert nets[1].sigmas == nets[0].sigmas


def test_attributes_of_the_net_are_read_at_each_call():
    net = Net()
    for low, high in ((0.01, 20.0), (0.3, 5.0)):
        net.sigma_min, net.sigma_max = low, torch.tensor(high)
        wanted = algorithm_2(Net(low, high), latents(), None, torch.zeros_like, n=5)
        got = edm_sampler(net, latents(), num_steps=5)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    net.round_sigma = lambda sigma: torch.as_tensor(sigma).float().double()
    rounding = Net(0.3, 5.0)
    rounding.round_sigma = net.round_sigma
    wanted = algorithm_2(rounding, latents(), None, torch.zeros_like, n=5)
    torch.testing.assert_close(edm_sampler(net, latents(), num_steps=5), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_dtype_make_a_float64_state(dtype):
    start = latents().to(dtype)
    wanted = algorithm_2(Net(), start, None, torch.zeros_like, n=5)
    got = edm_sampler(Net(), start, num_steps=5)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_levels_that_rise_and_the_generator_afterwards():
    wanted = algorithm_2(Net(), latents(), None, torch.zeros_like, n=4, low=3.0, high=0.5)
    got = edm_sampler(Net(), latents(), num_steps=4, sigma_min=3.0, sigma_max=0.5)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    stacks = [Stacked([1, 2, 3]), Stacked([1, 2, 3])]
    algorithm_2(Net(), latents(), None, stacks[0].randn_like, n=6)
    edm_sampler(Net(), latents(), None, stacks[1].randn_like, num_steps=6)
    for mine, their in zip(stacks[1].generators, stacks[0].generators, strict=True):
        assert torch.equal(mine.get_state(), their.get_state())


def test_one_step_goes_from_the_largest_level_to_the_estimate():
    net = Net(0.01, 20.0)
    got = edm_sampler(net, latents(), num_steps=1)
    wanted = net(latents().double() * 20.0, torch.tensor(20.0, dtype=torch.float64))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigma_min": 0.0}, "noise level 5 of 5 is 0, but algorithm 2 divides by it"),
        ({"sigma_min": math.nan}, "sigma_min is nan, but a finite number"),
        ({"sigma_max": "high"}, "sigma_max is 'high', but a number"),
        ({"num_steps": 2.5}, "num_steps is 2.5, but a whole number from 1"),
        ({"num_steps": 0}, "num_steps is 0, but a whole number from 1"),
        ({"rho": 0.0}, "noise levels from 80 to 0.002 with rho = 0, but levels are finite"),
        ({"S_churn": math.nan}, "S_churn is nan"),
        ({"latents": torch.ones(())}, r"latents are \[\], but a tensor \[B, ...\]"),
        ({"latents": torch.ones(2, 3, dtype=torch.int64)}, "latents are torch.int64"),
        ({"net": torch.nn.Identity()}, "net has no sigma_min, but EDM's networks have one"),
    ],
)
def test_numbers_are_checked_at_the_door(given, message):
    call = {"net": Net(), "latents": latents(), "num_steps": 5} | given
    with pytest.raises(ValueError, match=f"edm_sampler: {message}"):
        edm_sampler(**call)


def test_a_net_that_writes_into_its_input_is_told():
    class Writes(Net):
        def __call__(self, x, sigma, class_labels=None):
            return super().__call__(x.mul_(0.9), sigma)

    for churn in (0.0, -1.0):
        with pytest.raises(ValueError, match="wrote into its input"):
            edm_sampler(Writes(), latents(), num_steps=3, S_churn=churn)


def test_a_plan_for_another_network_is_told():
    class Weighted(torch.nn.Module):
        sigma_min, sigma_max = 0.0, math.inf

        def __init__(self, value):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(value))

        def round_sigma(self, sigma):
            return torch.as_tensor(sigma)

        def forward(self, x, sigma, class_labels=None):
            return torch.tanh(x * self.weight.double())

    made_for = {"predicts": "x0", "network": fingerprint(Weighted(0.5))}
    edm = df.schedules.edm()
    plan = replace(df.solvers.euler(edm, df.grids.karras(edm, 4)), made_for=made_for)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edm_sampler(Weighted(0.5), latents(), plan=plan)
    with pytest.warns(UserWarning, match="edm_sampler: plan .* was made for a network with the fi"):
        edm_sampler(Weighted(0.7), latents(), plan=plan)
    other = replace(plan, made_for=made_for | {"predicts": "epsilon"})
    with pytest.raises(ValueError, match="a network that predicts 'epsilon', but this model"):
        edm_sampler(Weighted(0.5), latents(), plan=other)


def test_a_float32_network_gets_a_float64_state():
    got = edm_sampler(Net(dtype=torch.float32), latents(), num_steps=6)
    wanted = algorithm_2(Net(dtype=torch.float32), latents(), None, torch.zeros_like, n=6)
    assert got.dtype == torch.float64 and not got.is_inference()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
