"""Certificates of late starts against closed forms; laws of few samples, classes and guidance."""

import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo import Certificate, Gaussian, GaussianMixture, StartLaw, certificate, start_law

TWO = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.0)
SKEWED = GaussianMixture([0.8, 0.2], [-1.0, 2.0], 0.09)
LEVELS = (2.0, 1.0, 0.5)
KNOWN = {
    "two": (TWO, (0.000150293, 0.00974274, 0.171998)),
    "skewed": (SKEWED, (0.0037534, 0.0625309, 0.338293)),
}


def law_of(mixture: GaussianMixture) -> Gaussian:
    """Returns the Gaussian with the mixture's mean and variance, d = 1."""
    return Gaussian(mixture.mean.numpy(), np.zeros((0, 1)), [], float(mixture.covariance))


def densities(mixture: GaussianMixture, sigma: float):
    """Returns (log p, log G, widths) by a fine grid."""
    x = torch.linspace(-12.0 - 8 * sigma, 12.0 + 8 * sigma, 40_001, dtype=torch.float64)
    p = mixture.log_density(x[:, None], 1.0, sigma)
    law = law_of(mixture)
    g = torch.distributions.Normal(float(law.mean[0]), math.sqrt(law.rest + sigma**2)).log_prob(x)
    return p, g, float(x[1] - x[0])


@pytest.mark.parametrize("name", KNOWN)
def test_kl_of_a_loss_curve_is_the_known_one_and_the_direct_one(name):
    mixture, known = KNOWN[name]
    made = Certificate.of_loss(mixture.mmse, law_of(mixture), np.geomspace(40.0, 0.4, 120))
    for sigma, wanted in zip(LEVELS, known, strict=True):
        p, g, width = densities(mixture, sigma)
        direct = float((p.exp() * (p - g)).sum()) * width
        assert made.kl(sigma).value == pytest.approx(direct, abs=1e-6)
        # The known ones have six digits.
        assert made.kl(sigma).value == pytest.approx(wanted, rel=2e-5)


def test_total_variation_is_below_its_bound():
    made = Certificate.of_loss(TWO.mmse, law_of(TWO), np.geomspace(40.0, 0.4, 60))
    for sigma, known in zip(LEVELS, (0.00587, 0.0558, 0.251), strict=True):
        p, g, width = densities(TWO, sigma)
        distance = 0.5 * float((p.exp() - g.exp()).abs().sum()) * width
        assert distance == pytest.approx(known, rel=2e-3)
        assert distance < made.tv(sigma) < 2.0 * distance


def test_the_tail_follows_the_power_of_the_first_cumulant_that_differs():
    # third cumulant: KL falls as rho^-6; fourth alone: rho^-8
    for mixture, power in ((SKEWED, 6.0), (TWO, 8.0)):
        made = Certificate.of_loss(mixture.mmse, law_of(mixture), np.geomspace(10.0, 0.4, 80))
        assert made.power == pytest.approx(power, abs=0.25)
        far = Certificate.of_loss(mixture.mmse, law_of(mixture), np.geomspace(40.0, 0.4, 120))
        assert made.kl(20.0).value == pytest.approx(far.kl(20.0).value, rel=0.2)


SCHEDULES = [df.schedules.edm(), df.schedules.flow(), df.schedules.vp_linear()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_sampled_forms_agree_with_the_curve_on_every_schedule(schedule):
    exact = Certificate.of_loss(SKEWED.mmse, law_of(SKEWED), np.geomspace(40.0, 0.4, 120))
    denoiser, data = SKEWED.denoiser(schedule), SKEWED.sample(4000, 3)
    made = certificate(denoiser, law_of(SKEWED), data, levels=np.geomspace(12.0, 0.4, 14))
    assert (made.score >= 0).all()
    for sigma in LEVELS:
        for form in ("score", "loss"):
            found = made.kl(sigma, form)
            assert abs(found.value - exact.kl(sigma).value) < 4.5 * found.error
            assert 0 < found.error < 0.3 * exact.kl(1.0).value
        assert made.kl(sigma, "score").error < made.kl(sigma, "loss").error


class Wrong(torch.nn.Module):
    """The exact estimate plus an error that does not depend on the data."""

    def __init__(self, exact: df.Denoiser, error: float):
        super().__init__()
        self.exact, self.error = exact, error

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.exact.network(x, t) + self.error


def test_an_error_of_the_network_spoils_the_loss_form_and_the_two_bracket():
    schedule = df.schedules.edm()
    denoiser = df.Denoiser(Wrong(TWO.denoiser(schedule), 0.1), schedule, "x0")
    made = certificate(denoiser, law_of(TWO), TWO.sample(4000, 5), levels=np.geomspace(8, 0.5, 14))
    assert (made.score > 0).all()
    assert made.loss_kl[3] < -3 * made.loss_error[3]  # a divergence below 0: the error alone
    exact = Certificate.of_loss(TWO.mmse, law_of(TWO), np.geomspace(40.0, 0.4, 120))
    for sigma in LEVELS:
        score, loss = made.kl(sigma, "score"), made.kl(sigma, "loss")
        assert loss.value < exact.kl(sigma).value < score.value
        # An error that is not correlated with D - D_G: the middle is the divergence.
        middle = 0.5 * (score.value + loss.value)
        assert abs(middle - exact.kl(sigma).value) < 4 * math.hypot(score.error, loss.error)


def test_level_inverts_kl_and_json_keeps_every_number(tmp_path):
    made = Certificate.of_loss(TWO.mmse, law_of(TWO), np.geomspace(10.0, 0.4, 40))
    for kl in (1e-9, 1e-4, 0.01, 0.1):
        assert made.kl(made.level(kl)).value == pytest.approx(kl, rel=0.02)
    assert made.level(100.0) == made.rho[-1]
    sampled = certificate(
        TWO.denoiser(df.schedules.flow()), law_of(TWO), TWO.sample(50), levels=5
    )
    for one in (made, sampled):
        one.save(tmp_path / "one.json")
        again = Certificate.load(tmp_path / "one.json")
        assert again.to_dict() == one.to_dict()
        assert str(again) == str(one)


def test_bad_input_of_a_certificate_is_named():
    denoiser, law, data = TWO.denoiser(df.schedules.edm()), law_of(TWO), TWO.sample(10)
    with pytest.raises(ValueError, match="guidance"):
        certificate(_guided(denoiser), law, data)
    with pytest.raises(ValueError, match=r"\[10, 2\].*\[1\]"):
        certificate(denoiser, law, data.expand(10, 2))
    with pytest.raises(ValueError, match="100 to .*80"):
        certificate(denoiser, law, data, levels=[100.0, 10.0, 1.0])
    with pytest.raises(ValueError, match="2 levels"):
        certificate(denoiser, law, data, levels=[3.0, 1.0])
    with pytest.raises(ValueError, match="lowest measured level"):
        certificate(denoiser, law, data, levels=[3.0, 2.0, 1.0]).kl(0.5)
    broken = df.Denoiser(lambda x, t: x * math.nan, denoiser.schedule, "x0")
    with pytest.raises(ValueError, match="not finite"):
        certificate(broken, law, data)


def _guided(denoiser: df.Denoiser) -> df.Denoiser:
    blank = {"c": torch.zeros(1)}
    return df.Denoiser(
        lambda x, t, c: denoiser.network(x, t),
        denoiser.schedule,
        "x0",
        conditions=blank,
        unconditional=blank,
        guidance=2.0,
    )


# Laws.


def data_of(count: int, d: int = 40, seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, d + 1, dtype=torch.float64) ** -1.0
    return torch.randn(count, d, generator=drawn, dtype=torch.float64) * sizes + 1.0


def likelihood(law: Gaussian, y: torch.Tensor, sigma: float) -> float:
    """Returns the mean log-density of samples at a noise level, constants left out."""
    apart, total = y.numpy() - law.mean, law.spectrum + sigma**2
    turned = apart @ law.basis.T
    left = (apart**2).sum(1) - (turned**2).sum(1)
    size = (turned**2 / total[: turned.shape[1]]).sum(1) + left / (law.rest + sigma**2)
    return float(-0.5 * (size + np.log(total).sum()).mean())


def test_few_samples_have_a_better_law_when_it_is_shrunk():
    few, held_out = data_of(25), data_of(2000, seed=1)
    plain, shrunk = Gaussian.of(few), df.thermo.shrunk_gaussian(few)
    assert likelihood(shrunk, held_out, 0.2) > likelihood(plain, held_out, 0.2) + 1.0
    shares = [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    tried = [df.thermo.shrunk_gaussian(few, shrink=a) for a in shares]
    best = max(likelihood(law, held_out, 0.2) for law in tried)
    assert likelihood(shrunk, held_out, 0.2) > best - 0.5
    assert shrunk.spectrum.sum() == pytest.approx(plain.spectrum.sum())  # the trace stays
    many = df.thermo.shrunk_gaussian(data_of(5000))
    assert many.spectrum[0] == pytest.approx(Gaussian.of(data_of(5000)).spectrum[0], rel=0.02)


def test_the_state_of_a_gaussian_is_the_end_of_its_flow():
    law = StartLaw(df.thermo.shrunk_gaussian(data_of(100)))
    z = torch.randn(6, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, levels = law.state(z, 200.0), np.geomspace(200.0, 0.5, 2001).tolist()
    for level, after in zip(levels[:-1], levels[1:], strict=True):
        middle = math.sqrt(level * after)
        half = law.x0(u, level) + middle / level * (u - law.x0(u, level))
        d = law.x0(half, middle)
        u = d + after / level * (u - d)
    assert (u - law.state(z, 0.5)).abs().max() < 1e-4


def test_a_mixture_of_one_and_guidance_between_equal_laws_are_the_gaussian():
    law = df.thermo.shrunk_gaussian(data_of(100))
    z = torch.randn(5, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = StartLaw(law).state(z, 0.5)
    for made in (StartLaw(law, mixture=[1.0]), StartLaw(law, blank=law, guidance=3.0)):
        assert (made.state(z, 0.5) - wanted).abs().max() < 0.01
        assert (made.x0(wanted, 0.5) - StartLaw(law).x0(wanted, 0.5)).abs().max() < 1e-12


def test_a_mixture_has_the_exact_estimate_and_its_flow_ends_in_the_noisy_data():
    parts = [Gaussian([m], np.zeros((0, 1)), [], 0.09) for m in (-1.0, 2.0)]
    law = StartLaw(parts, mixture=[0.8, 0.2])
    u = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    assert (law.x0(u, 0.7) - SKEWED.x0(u, 1.0, 0.7)).abs().max() < 1e-12
    # In one dimension the flow keeps quantiles.
    share = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    z = torch.distributions.Normal(0.0, 1.0).icdf(share)[:, None]
    ends = law.state(z, 0.6)
    x = torch.linspace(-8, 9, 40_001, dtype=torch.float64)
    density = SKEWED.log_density(x[:, None], 1.0, 0.6).exp() * (x[1] - x[0])
    found = np.interp(ends[:, 0].numpy(), x.numpy(), density.cumsum(0).numpy())
    assert np.abs(found - share.numpy()).max() < 0.005


def test_every_condition_has_its_own_law_in_any_order():
    data, labels = data_of(60), np.arange(60) % 3
    data = data + torch.as_tensor(labels)[:, None]
    wanted = np.array([2, 0, 0, 1])
    law = start_law(data, labels, conditions=wanted)
    z = torch.randn(4, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    made = law.state(z, 1.0)
    for row, label in enumerate(wanted):
        own = StartLaw(df.thermo.shrunk_gaussian(data[labels == label]))
        assert (made[row] - own.state(z[row : row + 1], 1.0)[0]).abs().max() < 1e-12
    back = law.state(z.flip(0), 1.0, torch.arange(4).flip(0))
    assert (back.flip(0) - made).abs().max() == 0.0
    assert law.mmse(1.0) == pytest.approx(
        sum(law.of_row(row).mmse(1.0) for row in range(4)) / 4
    )


def test_a_law_a_class_is_nearer_to_the_class():
    class Classes(torch.nn.Module):
        """Two classes of one dimension, each a Gaussian: E[y | x, class]."""

        def forward(self, x, t, label):
            mean = 2.0 * label.to(x)[:, None] - 1.0
            return mean + 0.04 / (0.04 + t[:, None] ** 2) * (x - mean)

    label = torch.arange(400) % 2
    y = 2.0 * label[:, None].double() - 1.0
    y = y + 0.2 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).double()
    denoiser = df.Denoiser(Classes(), df.schedules.edm(), "x0", conditions={"label": label})
    levels = np.geomspace(8.0, 0.5, 8)
    alone = certificate(denoiser, start_law(y), y, levels=levels)
    own = certificate(denoiser, start_law(y, label), y, levels=levels)
    assert own.kl(1.0).value < 0.02 * alone.kl(1.0).value


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda d: start_law(d, np.arange(5)), "5 labels, but 20 samples"),
        (lambda d: start_law(d, np.arange(20)), "1 sample"),
        (lambda d: start_law(d, np.arange(20) % 2, conditions=[3]), "condition 3"),
        (lambda d: start_law(d, guidance=2.0), "need `by`"),
        (lambda d: StartLaw(df.thermo.shrunk_gaussian(d), [1]), "there are 1 laws"),
        (lambda d: StartLaw(df.thermo.shrunk_gaussian(d), guidance=2.0), "needs blank"),
        (lambda d: StartLaw(df.thermo.shrunk_gaussian(d), mixture=[0.0]), "positive"),
        (lambda d: StartLaw([]), "no law"),
        (lambda d: df.thermo.shrunk_gaussian(d, shrink=2.0), r"\[0, 1\]"),
    ],
)
def test_bad_laws_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(data_of(20))
