"""Critical levels: the pitchfork, the saddle-node, four criteria, mean-field exponents."""

import math

import numpy as np
import pytest
import torch

import diffast as df

EDM, FLOW = df.schedules.edm(), df.schedules.flow()
critical_levels = df.thermo.critical_levels


def two(mu, s, weight=0.5):
    return df.thermo.GaussianMixture([1.0 - weight, weight], [-mu, mu], s * s)


@pytest.mark.parametrize(
    ("mu", "s", "wanted"),
    [
        (1.0, 0.0, (0.440687, 0.346574, 0.0, math.inf)),
        (1.0, 0.5, (0.405465, 0.279808, 0.111572, math.inf)),
        (2.0, 0.8, (1.04073, 0.736236, 0.767357, math.inf)),
    ],
)
def test_four_criteria_of_two_modes(mu, s, wanted):
    assert df.thermo.bimodal_times(mu, s) == pytest.approx(wanted, abs=5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["auto", "jvp", "difference"])
def test_directions_that_are_alike_close_the_space_early(dtype, method):
    """Equal variances in all directions but one: two products say all that there is to say."""
    means = np.zeros((2, 4))
    means[:, 0] = -1.0, 1.0
    mixture = df.thermo.GaussianMixture([0.5, 0.5], means, 0.1 * np.eye(4)[None].repeat(2, 0))
    found = df.thermo.critical_levels(
        mixture.denoiser(df.schedules.edm()), shape=(1, 4), dtype=dtype, method=method
    )
    assert found.levels == pytest.approx([0.9**0.5], rel=1e-3)
    assert float(found.directions[0].abs()[0]) == pytest.approx(1.0, abs=1e-3)


def test_the_criteria_hold_of_the_mixture_itself():
    """Each time is where the slope it speaks of changes its sign, by autograd on the density."""
    mu, s = 0.6, 0.6  # mu^2 + s^2 < 1: the flow's centre turns too
    times, mixture = df.thermo.bimodal_times(mu, s), two(mu, s)

    def slope(t):
        x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        alpha, sigma = math.exp(-t), math.sqrt(-math.expm1(-2 * t))
        return float(torch.autograd.grad(mixture.score(x, alpha, sigma).sum(), x)[0])

    assert slope(times.drift) == pytest.approx(-0.5, abs=1e-12)  # x + 2 score
    assert times.flow > 0 and slope(times.flow) == pytest.approx(-1.0, abs=1e-12)
    assert times.convexity == 0.0  # mu < s: one mode at all levels
    mixed = df.thermo.bimodal_times(1.0, 0.6).convexity
    mixture = two(1.0, 0.6)
    assert slope(mixed) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("schedule", [EDM, FLOW])
@pytest.mark.parametrize(("mu", "s"), [(1.0, 0.5), (2.0, 0.8)])
def test_the_centre_of_two_equal_modes(mu, s, schedule):
    found = critical_levels(
        two(mu, s).denoiser(schedule), shape=(1, 1), dtype=torch.float64, tolerance=1e-6
    )
    assert found.kinds == ["crossing"] and found.method == "jvp"
    assert found.levels[0] ** 2 == pytest.approx(mu * mu - s * s, abs=1e-8)
    assert found.directions.abs().item() == pytest.approx(1.0)


def test_a_small_mode_vanishes_in_a_saddle_node():
    start = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = critical_levels(
        two(1.0, 0.0, 0.2).denoiser(EDM), start, low=0.3, high=3.0, count=8, tolerance=1e-8
    )
    assert found.kinds == ["fold"] and found.rows.tolist() == [1]
    assert found.levels[0] == pytest.approx(0.6709, abs=1e-4)
    assert found.levels[0] == pytest.approx(0.6709888771452, abs=1e-7)
    # it falls to the mode of the others, which its centre is followed to without any crossing
    assert found.states.item() > 0.7 and found.after.item() < -0.9
    centre = critical_levels(two(1.0, 0.0, 0.2).denoiser(EDM), shape=(1, 1), dtype=torch.float64)
    assert not len(centre.levels) and centre.peak[1] < 0.2
    assert "no critical level between rho = 0.08 and 80" in str(centre)


def test_equal_modes_merge():
    start = torch.tensor([[1.0]], dtype=torch.float64)
    found = critical_levels(
        two(1.0, 0.2).denoiser(FLOW), start, low=0.4, high=3.0, count=8, tolerance=1e-5
    )
    assert found.kinds == ["fold"]
    assert found.levels[0] ** 2 == pytest.approx(0.96, abs=1e-4)


def test_mean_field_exponents():
    """Two points: m = sqrt(3 (1 - sigma^2)) below the level, and 1 / (sigma^2 - 1) above it."""
    gaps = np.array([2e-5, 8e-5])
    order = []
    for gap in gaps:
        level = math.sqrt(1.0 - gap)
        found = critical_levels(
            two(1.0, 0.0).denoiser(EDM),
            torch.ones(1, 1, dtype=torch.float64),
            low=0.5,
            high=level,
            count=6,
            tolerance=1e-7,
        )
        order.append(found.ends.item())
    beta = math.log(order[1] / order[0]) / math.log(gaps[1] / gaps[0])
    assert beta == pytest.approx(0.499984, abs=1e-5)
    assert order[0] / math.sqrt(3 * gaps[0]) == pytest.approx(1.0, abs=5e-4)
    # chi = 1 / (1 - slope) - 1 / ... of x = tanh((x + h) / sigma^2): slope / (1 - slope)
    high = critical_levels(
        two(1.0, 0.0).denoiser(EDM), shape=(1, 1), low=1.1, dtype=torch.float64, count=12
    )
    slope = high.curve[:, 0]
    assert slope / (1.0 - slope) == pytest.approx(1.0 / (high.curve_levels**2 - 1.0), rel=1e-8)


def test_the_criteria_of_a_followed_centre_are_those_of_the_closed_form():
    mu, s = 1.0, 0.5
    found = critical_levels(
        two(mu, s).denoiser(FLOW),
        shape=(1, 1),
        dtype=torch.float64,
        low=0.3,
        high=30.0,
        count=60,
        tolerance=1e-4,
    )
    made = df.thermo.centre_criteria(found, 0, mu * mu + s * s)
    for level, time in zip(made, df.thermo.bimodal_times(mu, s), strict=True):
        assert 0.5 * math.log1p(level**2) == pytest.approx(time, abs=2e-3)
    skew = critical_levels(two(1.0, 0.0, 0.2).denoiser(EDM), shape=(1, 1), dtype=torch.float64)
    assert df.thermo.centre_criteria(skew)[:3] == (None, None, None)
    with pytest.raises(ValueError, match="row is 1, but there are 1"):
        df.thermo.centre_criteria(skew, 1)


def test_directions_point_from_mode_to_mode():
    mean = np.array([1.0, -2.0, 0.5])
    data = df.thermo.GaussianMixture(None, np.stack([mean, -mean]), 0.3)
    found = critical_levels(data.denoiser(EDM), shape=(1, 3), dtype=torch.float64, tolerance=1e-6)
    assert found.levels[0] ** 2 == pytest.approx(mean @ mean - 0.3, abs=1e-8)
    along = found.directions[0].numpy() @ mean / np.linalg.norm(mean)
    assert abs(along) == pytest.approx(1.0, abs=1e-8)


def test_differences_serve_a_network_without_a_derivative():
    exact = two(1.0, 0.5)

    def numpy_like(x, t):
        return exact.x0(x.detach().double(), 1.0, t.double()).to(x.dtype)

    found = critical_levels(
        df.Denoiser(numpy_like, EDM, "x0"), shape=(1, 1), dtype=torch.float64, tolerance=1e-8
    )
    assert found.method == "difference"
    assert found.levels[0] ** 2 == pytest.approx(0.75, abs=1e-6)
    coarse = critical_levels(df.Denoiser(numpy_like, EDM, "x0"), shape=(1, 1))
    assert coarse.levels[0] ** 2 == pytest.approx(0.75, rel=2e-2)


def test_rows_have_their_own_conditions():
    """Row b has modes at +-mu_b: one critical level each."""
    mus = torch.tensor([[1.0], [3.0]], dtype=torch.float64)

    def network(x, t, mu):
        return mu * (x * mu / t[:, None] ** 2).tanh()

    den = df.Denoiser(network, EDM, "x0", conditions={"mu": mus})
    found = critical_levels(den, shape=(2, 1), dtype=torch.float64, tolerance=1e-9)
    assert dict(zip(found.rows.tolist(), found.levels.tolist(), strict=True)) == pytest.approx(
        {0: 1.0, 1: 3.0}, abs=1e-7
    )
    assert found.to_dict()["kinds"] == ["crossing", "crossing"]


def test_whole_times_end_the_search():
    betas = np.linspace(1e-4, 0.02, 1000)
    schedule = df.schedules.from_betas(betas)
    exact = two(1.0, 0.5)

    def network(x, t):
        assert t.dtype == torch.long
        alpha, sigma = (torch.as_tensor(f(t.numpy())) for f in (schedule.alpha, schedule.sigma))
        return exact.x0(x.double(), alpha, sigma).to(x.dtype)

    den = df.Denoiser(network, schedule, "x0", time_dtype=torch.long)
    found = critical_levels(den, shape=(1, 1), dtype=torch.float64, tolerance=1e-9)
    at = schedule.time(-np.log(found.levels[0]))
    assert at == pytest.approx(np.rint(at), abs=1e-6)
    assert found.levels[0] ** 2 == pytest.approx(0.75, rel=0.02)


def test_bad_input_is_one_sentence():
    den = two(1.0, 0.5).denoiser(EDM)
    with pytest.raises(ValueError, match="give final samples x, or the shape"):
        critical_levels(den)
    with pytest.raises(ValueError, match=r"levels are 0\.5 to 0\.1, but they must rise"):
        critical_levels(den, shape=(1, 1), low=0.5, high=0.1)
    with pytest.raises(ValueError, match="mu = 0"):
        df.thermo.bimodal_times(0.0, 1.0)
    broken = df.Denoiser(lambda x, t: x * math.nan, EDM, "x0")
    with pytest.raises(ValueError, match="critical_levels: the x0 estimate .* not finite"):
        critical_levels(broken, shape=(1, 1))
