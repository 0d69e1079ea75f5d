"""Certificates of late starts against closed forms; laws of few samples and of classes."""

import json
import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo import Certificate, Gaussian, GaussianMixture, certificate, start_law
from diffast.thermo.start_law import _held_out

TWO = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.0)
SKEWED = GaussianMixture([0.8, 0.2], [-1.0, 2.0], 0.09)
LEVELS = (2.0, 1.0, 0.5)
WIDE = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)
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
    made = Certificate.of_loss(mixture.mmse, law_of(mixture), np.geomspace(40.0, 0.4, 240))
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


GAINS = {4: (0.2002, 0.1124, 0.0951, 0.0821, 0.0722), 16: (0.0519, 0.0246, 0.0206, 0.0211, 0.0296)}


@pytest.mark.parametrize("calls", GAINS)
def test_the_gain_on_two_narrow_modes_is_the_known_one(calls):
    """DDIM from the Gaussian at 80, 3, 1.5, 1 and 0.7: rms distance to the exact quantiles."""
    mixture = GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.01)
    schedule, found = df.schedules.edm(), []
    share = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    z = torch.distributions.Normal(0.0, 1.0).icdf(share)[:, None]
    for level in (80.0, 3.0, 1.5, 1.0, 0.7):
        grid = df.grids.karras(schedule, calls, sigma_max=level, to_zero=False)
        plan = df.solvers.ddim(schedule, grid)
        x = (float(mixture.covariance) + level**2) ** 0.5 * z
        made = df.sample(mixture.denoiser(schedule), plan, x=x, check=False).x[:, 0]
        # The flow keeps quantiles: the exact ends are those of the law at the grid's end.
        points = torch.linspace(-2.0, 2.0, 40_001, dtype=torch.float64)
        density = mixture.log_density(points[:, None], 1.0, float(grid[-1])).exp()
        below = (density.cumsum(0) - 0.5 * density) * (points[1] - points[0])
        exact = np.interp(share.numpy(), below.numpy(), points.numpy())
        found.append(float(np.sqrt(((made.numpy() - exact) ** 2).mean())))
    assert found == pytest.approx(GAINS[calls], abs=1e-4)


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
    sampled = certificate(TWO.denoiser(df.schedules.flow()), law_of(TWO), TWO.sample(50), levels=5)
    for one in (made, sampled):
        one.save(tmp_path / "one.json")
        again = Certificate.load(tmp_path / "one.json")
        assert again.to_dict() == one.to_dict()
        assert str(again) == str(one)


def test_files_that_hold_no_certificate_are_named(tmp_path):
    path = tmp_path / "one.json"
    made = Certificate.of_loss(TWO.mmse, law_of(TWO), np.geomspace(10.0, 0.4, 5)).to_dict()
    bodies = [[1], made | {"rho": [1.0]}, made | {"rho": None}, made | {"power": "x"}]
    bodies += [made | {"loss": "x"}, {k: v for k, v in made.items() if k != "tail"}]
    for text in ["", "[" * 100_000, *map(json.dumps, bodies)]:
        path.write_text(text)
        with pytest.raises(ValueError, match="one.json"):
            Certificate.load(path)
    with pytest.raises(FileNotFoundError):
        Certificate.load(tmp_path / "two.json")


@pytest.mark.parametrize("mixture, most", [(WIDE, 0.6), (SKEWED, 2.0)], ids=["wide", "skewed"])
def test_the_error_of_a_start_has_the_scale_that_is_said(mixture, most):
    """Between uneven modes the flow of the data pulls apart more than the Gaussian's does."""
    schedule = df.schedules.edm()
    known = Certificate.of_loss(mixture.mmse, law_of(mixture), np.geomspace(40.0, 0.4, 60))
    plan = df.solvers.dpmpp_3m(schedule, df.grids.karras(schedule, 40))
    denoiser, spread = mixture.denoiser(schedule), float(mixture.covariance) ** 0.5
    exact = df.sample(denoiser, plan.late_start(law_of(mixture)), (400, 1)).x
    found = []
    for level in (3.0, 2.0, 1.0, 0.6):
        late = plan.late_start(law_of(mixture), level=level)
        gap = (df.sample(denoiser, late, (400, 1)).x - exact).square().mean().sqrt() / spread
        found.append(float(gap))
        at = float(np.exp(-schedule.lam(late.start)))
        assert 0.02 * known.error(at) < float(gap) < most * known.error(at)
    assert found == sorted(found)
    assert known.error(known.level_for(0.1)) == pytest.approx(0.1, rel=0.01)


def test_bad_input_of_a_certificate_is_named():
    denoiser, law, data = TWO.denoiser(df.schedules.edm()), law_of(TWO), TWO.sample(10)
    with pytest.raises(ValueError, match="guidance"):
        certificate(_guided(denoiser), law, data)
    with pytest.raises(ValueError, match=r"\[10, 2\].*\[1\]"):
        certificate(denoiser, law, data.expand(10, 2))
    with pytest.raises(ValueError, match="100 to .*80"):
        certificate(denoiser, law, data, levels=[100.0, 10.0, 1.0])
    known = Certificate.of_loss(TWO.mmse, law, [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="error = 0"):
        known.level_for(0)
    with pytest.raises(ValueError, match="no score form"):
        known.kl(1.0, "score")
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


def data_of(count: int, d: int = 60, seed: int = 0) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, d + 1, dtype=torch.float64) ** -0.5
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
    assert likelihood(shrunk, held_out, 0.1) > likelihood(plain, held_out, 0.1) + 1.0
    shares = [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8]
    tried = [df.thermo.shrunk_gaussian(few, shrink=a) for a in shares]
    best = max(likelihood(law, held_out, 0.1) for law in tried)
    assert likelihood(shrunk, held_out, 0.1) > best - 0.5
    assert shrunk.spectrum.sum() == pytest.approx(plain.spectrum.sum())  # the trace stays
    many = df.thermo.shrunk_gaussian(data_of(5000))
    assert many.spectrum[0] == pytest.approx(Gaussian.of(data_of(5000)).spectrum[0], rel=0.02)


class Classes(torch.nn.Module):
    """Three classes in two dimensions, each a Gaussian: E[y | x, class]."""

    def forward(self, x, t, label):
        mean = 2.0 * label.to(x)[:, None] - 1.0
        return mean + 0.04 / (0.04 + t[:, None] ** 2) * (x - mean)


def classes(count: int = 600) -> tuple[df.Denoiser, torch.Tensor, torch.Tensor]:
    """Returns the denoiser of three classes, data of it, and their labels."""
    label = torch.arange(count) % 3
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)).double()
    y = 2.0 * label[:, None].double() - 1.0 + 0.2 * noise
    conditions = {"label": torch.arange(3)}
    return df.Denoiser(Classes(), df.schedules.edm(), "x0", conditions=conditions), y, label


def test_a_class_needs_its_own_law():
    denoiser, y, label = classes()
    levels = np.geomspace(8.0, 0.5, 8)
    alone = start_law(denoiser, y, levels=levels)
    own = start_law(denoiser, y, by="label", labels=label, levels=levels)
    assert f"{own.kl[-1]:.2g} at {own.rho[-1]:.3g}" in str(own) and len(str(own)) < 200
    assert len(own.laws) == 3 and own.by == "label"
    assert own.kl_at(1.0) < 0.02 * alone.kl_at(1.0)
    for k, law in enumerate(own.laws):
        assert law.mean == pytest.approx([2.0 * k - 1.0] * 2, abs=0.06)
    # labels from the denoiser's own rows: the same laws
    again = start_law(denoiser, y, by="label", levels=levels)
    assert all((a.mean == b.mean).all() for a, b in zip(own.laws, again.laws, strict=True))


def test_classes_in_turn_are_all_held_out_and_all_kept():
    """Ten classes in turn: every fifth sample would be of two classes alone."""
    label = torch.arange(100) % 10
    y = 2.0 * label[:, None].double() - 1.0 + torch.zeros(100, 2).uniform_(-0.1, 0.1)
    denoiser = df.Denoiser(Classes(), df.schedules.edm(), "x0", conditions={"label": label})
    law = start_law(denoiser, y, by="label", levels=4)
    assert [one.count for one in law.laws] == [8] * 10


def test_samples_left_out_keep_the_conditions_of_their_rows():
    """The certificate of few samples is that of their own rows, not of the first ones."""
    generator = torch.Generator().manual_seed(0)
    where = 2.0 * torch.randn(200, 2, generator=generator)
    data = where + 0.3 * torch.randn(200, 2, generator=generator)

    def network(x, t, where):
        return where + 0.09 / (0.09 + t[:, None].to(x.dtype) ** 2) * (x - where)

    denoiser = df.Denoiser(network, df.schedules.edm(), "x0", conditions={"where": where})
    law = start_law(denoiser, data)
    # With its own rows the network is exact, and both forms are the divergence. The rows of other
    # samples would leave an error of the size of the data, which parts the two.
    left = torch.as_tensor(_held_out(200, None).nonzero()[0])
    own = df.Denoiser(network, df.schedules.edm(), "x0", conditions={"where": where[left]})
    made = certificate(own, law, data[left])
    assert np.allclose(law.kl, np.maximum.accumulate(made.score_kl), rtol=1e-6)
    apart = np.abs(made.score_kl - made.loss_kl)
    assert (apart < 4 * np.hypot(made.score_error, made.loss_error)).all()


def test_a_plan_starts_from_what_start_law_returns():
    denoiser, y, label = classes()
    law = start_law(denoiser, y, by="label", labels=label)
    plan = df.solvers.dpmpp_2m(denoiser.schedule, df.grids.even(denoiser.schedule, 10))
    nearest = plan.late_start(law, kl=0.02)
    assert law.kl_at(float(np.exp(-denoiser.schedule.lam(nearest.start)))) <= 0.02
    late = plan.late_start(law, level=1.0)
    assert nearest.nfe <= late.nfe < plan.nfe
    rows = df.Denoiser(
        Classes(), denoiser.schedule, "x0", conditions={"label": torch.arange(30) % 3}
    )
    made = df.sample(rows, late, (30, 2), seed=4).x
    fine = df.solvers.dpmpp_2m(denoiser.schedule, df.grids.even(denoiser.schedule, 60))
    assert (made - df.sample(rows, fine, (30, 2), seed=4).x).square().mean().sqrt() < 0.05


def test_generated_samples_serve_where_there_are_no_data():
    denoiser, y, _ = classes()
    made = start_law(denoiser, by="label", shape=(2,), count=120)
    for k, law in enumerate(made.laws):
        assert law.mean == pytest.approx([2.0 * k - 1.0] * 2, abs=0.15)
    assert made.kl is not None
    blank = {"label": torch.tensor([1])}
    guided = df.Denoiser(
        Classes(),
        denoiser.schedule,
        "x0",
        conditions=denoiser.conditions,
        unconditional=blank,
        guidance=2.0,
    )
    found = start_law(guided, by="label", shape=(2,), count=120)
    # Guidance of 2 between classes at -1 and 1 has its samples near -3.
    assert found.laws[0].mean == pytest.approx([-3.0, -3.0], abs=0.3)
    with pytest.raises(ValueError, match="no certificate"):
        found.kl_at(1.0)


def test_noise_alone_has_a_divergence_too():
    law = df.thermo.shrunk_gaussian(data_of(100))
    total = torch.as_tensor(law.basis.T @ np.diag(law.variances - law.rest) @ law.basis)
    total = total + (law.rest + 9.0) * torch.eye(law.d, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    ours = normal(torch.tensor(law.mean), total)
    noise = normal(torch.zeros(law.d).double(), 9.0 * torch.eye(law.d).double())
    wanted = float(torch.distributions.kl_divergence(ours, noise))
    assert df.thermo.noise_kl(law, 3.0) == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(ValueError, match="above 0"):
        df.thermo.noise_kl(law, 0.0)


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(data=None), "shape is needed"),
        (dict(by="class"), r"no such condition.*\['label'\]"),
        (dict(by="label", labels=np.arange(5)), "5 of int64, but 600"),
        (dict(by="label", labels=np.arange(600)), "needs at least 2"),
        (dict(shrink=2.0), r"\[0, 1\]"),
        (dict(data=torch.zeros(3, 2)), "3 samples"),
        (dict(data=torch.eye(8)[:, :2]), "8 samples leave 1 to measure"),
        (dict(data=torch.ones(20, 2)), "no variance in any direction"),
    ],
)
def test_bad_input_of_a_law_is_named(given, words):
    denoiser, y, _ = classes()
    with pytest.raises(ValueError, match=words):
        start_law(denoiser, **{"data": y} | given)
