"""Schedules: values against 50-digit arithmetic, inverses, derivatives, equality, refusals."""

import json

import numpy as np
import pytest

from diffast import schedules

mp = pytest.importorskip("mpmath").mp  # comes with torch, by way of sympy

BETAS = np.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2
ZERO_SNR = np.append(BETAS[:-1], 1.0)
ALL = {
    "vp_linear": schedules.vp_linear(),
    "vp_linear_flat": schedules.vp_linear(5.0, 5.0),
    "vp_cosine": schedules.vp_cosine(),
    "vp_cosine_s0": schedules.vp_cosine(s=0.0),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
    "from_betas": schedules.from_betas(BETAS),
    "zero_snr": schedules.from_betas(ZERO_SNR),
}
each = pytest.mark.parametrize("schedule", ALL.values(), ids=ALL)


def times(schedule, count=300):
    """Times over the whole range, dense at both ends."""
    u = np.concatenate([np.geomspace(1e-9, 0.5, count), 1 - np.geomspace(1e-9, 0.5, count)[::-1]])
    return schedule.t_end + u * (schedule.t_start - schedule.t_end)


def exact(name, t):
    """alpha and sigma in 50 digits, from the textbook formulas as they stand."""
    mp.dps = 50
    t = mp.mpf(t)
    if name in ("vp_linear", "sub_vp"):
        low, high = mp.mpf(0.1), mp.mpf(20)
        alpha = mp.exp(-(low * t + (high - low) * t * t / 2) / 2)
        return alpha, mp.sqrt(1 - alpha**2) if name == "vp_linear" else 1 - alpha**2
    if name == "trig":
        return mp.cos(t), mp.sin(t)
    s = mp.mpf(0.008)
    alpha = mp.cos((t + s) / (1 + s) * mp.pi / 2) / mp.cos(s / (1 + s) * mp.pi / 2)
    return alpha, mp.sqrt(1 - alpha**2)


@pytest.mark.parametrize("name", ["vp_linear", "sub_vp", "vp_cosine", "trig"])
def test_values_to_the_last_digits(name):
    schedule = ALL[name]
    last = 0.9996 if name == "vp_cosine" else 1.0
    for t in (1e-12, 1e-6, 1e-3, 0.1, 0.3, 0.5, 0.9, 0.999, last):
        alpha, sigma = exact(name, t)
        assert abs(schedule.alpha(t) / alpha - 1) < 1e-14
        assert abs(schedule.sigma(t) / sigma - 1) < 1e-14
        assert abs(schedule.lam(t) - mp.log(alpha / sigma)) < 1e-14 * max(1, abs(schedule.lam(t)))


@each
def test_ends(schedule):
    start, end = schedule.t_start, schedule.t_end
    assert schedule.alpha(end) == 1.0
    assert schedule.sigma(end) == 0.0
    assert schedule.lam(end) == np.inf
    assert schedule.time(np.inf) == end
    assert abs(schedule.time(schedule.lam(start)) - start) <= 2e-13 * max(1, abs(start))
    assert start > schedule.t_min > end


@each
def test_monotone(schedule):
    t = np.unique(times(schedule))
    assert (np.diff(schedule.sigma(t)) >= 0).all()
    assert (np.diff(schedule.alpha(t)) <= 0).all()
    assert (np.diff(schedule.lam(t)) < 0).all()


@each
def test_lam_is_the_log_of_the_ratio(schedule):
    t = times(schedule)
    want = np.log(schedule.alpha(t)) - np.log(schedule.sigma(t))
    np.testing.assert_allclose(schedule.lam(t), want, rtol=0, atol=4e-14)


@each
def test_time_inverts_lam(schedule):
    t = times(schedule)
    lam = schedule.lam(t)
    back = schedule.time(lam)
    # one rounding of lam moves t by eps |lam| / |dlam/dt|: nothing can be closer than that
    dalpha, dsigma = schedule.derivatives(t)
    slope = np.abs(dalpha / schedule.alpha(t) - dsigma / schedule.sigma(t))
    np.testing.assert_array_less(
        np.abs(back - t), 1e-13 * np.maximum(1, np.abs(t)) + 3e-15 * (1 + np.abs(lam)) / slope
    )
    # and two roundings of t move lam by this much, near an end with alpha = 0 by 1e-7 of t = 1
    rounding = 2.0 * np.spacing(np.abs(t)) * slope
    np.testing.assert_array_less(
        np.abs(schedule.lam(back) - lam), 1e-9 + 1e-12 * np.abs(lam) + rounding
    )


@pytest.mark.parametrize("name", ["vp_linear", "vp_cosine", "sub_vp", "edm", "flow", "trig"])
def test_time_is_relatively_precise_near_the_clean_end(name):
    schedule = ALL[name]
    t = np.geomspace(1e-9, 1e-2, 40)
    np.testing.assert_allclose(schedule.time(schedule.lam(t)), t, rtol=3e-14)


@each
def test_derivatives(schedule):
    t = times(schedule)
    if hasattr(schedule, "timesteps"):
        t = np.concatenate([np.linspace(-0.95, -0.05, 7), np.arange(0, 999, 37) + 0.5, [998.25]])
    if isinstance(schedule, schedules.VPCosine):
        t = np.append(t[t < 0.999], 0.9999)  # one in the clipped tail, none near the join
    low, high = schedule.domain
    t = t[np.minimum(t - low, high - t) > 1e-5]
    step = 1e-3 * np.minimum(np.minimum(t - low, high - t), 1.0)
    for derivative, level in zip(
        schedule.derivatives(t), (schedule.alpha, schedule.sigma), strict=True
    ):
        near, far = (level(t + k * step) - level(t - k * step) for k in (0.5, 1.0))
        slope = (8 * near - far) / (6 * step)
        rounding = 4 * np.finfo(float).eps * np.maximum(1e-9, level(t)) / step
        np.testing.assert_array_less(
            np.abs(derivative - slope), 1e-7 * np.abs(derivative) + rounding + 1e-12
        )


def test_zero_snr_derivatives_at_the_last_index():
    schedule = ALL["zero_snr"]
    t = np.array([999.0, 999.0 - 1e-7])
    dalpha, dsigma = schedule.derivatives(t)
    assert np.isfinite(dalpha).all()
    np.testing.assert_allclose(dalpha[0], dalpha[1], rtol=1e-6)
    assert dsigma[0] == 0.0


def test_cosine_is_clipped_smoothly():
    schedule = schedules.vp_cosine()
    assert 1e-4 < schedule.alpha(1.0) < 3e-4
    join = schedule._t_clip
    assert 0.999 < join < 1.0
    below, above = schedule.derivatives(np.array([join - 1e-9, join + 1e-9]))[0]
    assert abs(below / above - 1) < 1e-4
    # the same product of clipped betas as the paper's 1,000 steps, to the coarseness of its steps
    bar = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    assert abs(np.log(schedule.alpha(1.0)) - 0.5 * np.log(np.prod(1 - betas))) < 1.5


@each
def test_scalars_and_shapes(schedule):
    middle = 0.5 * (schedule.t_start + schedule.t_end)
    grid = np.full((2, 3), middle)
    for answer in (schedule.alpha, schedule.sigma, schedule.lam):
        assert isinstance(answer(middle), float)
        assert answer(middle).dtype == np.float64
        assert answer(grid).shape == (2, 3)
        assert answer(grid)[1, 2] == answer(middle)
    assert isinstance(schedule.time(1.0), float)
    assert schedule.time(np.ones((2, 3))).shape == (2, 3)
    assert all(isinstance(d, float) for d in schedule.derivatives(middle))
    assert schedule.alpha(np.float32(middle)).dtype == np.float64


def test_from_betas_at_the_indices():
    for betas in (BETAS, ZERO_SNR):
        schedule = schedules.from_betas(betas)
        bar = np.cumprod(1 - betas)
        t = np.arange(1000)
        np.testing.assert_allclose(schedule.alpha(t), np.sqrt(bar), rtol=1e-13)
        np.testing.assert_allclose(schedule.sigma(t), np.sqrt(1 - bar), rtol=1e-12)
    assert schedule.alpha(999) == 0.0
    assert schedule.sigma(999) == 1.0
    assert schedule.sigma(-0.75) ** 2 == pytest.approx(0.25 * BETAS[0], rel=1e-14)


def test_trig_is_the_angle_of_the_noise_levels():
    schedule = schedules.trig()
    assert schedule.alpha(np.pi / 2) == 0.0
    assert schedule.sigma(np.pi / 2) == 1.0
    assert schedule.lam(np.pi / 2) == -np.inf
    assert schedule.time(-np.inf) == np.pi / 2
    assert schedule.time(-1e6) == np.pi / 2
    assert 0.0 < schedule.time(600.0) < 1e-260
    t = np.linspace(0.0, np.pi / 2, 2001)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, rtol=0, atol=3e-16)
    vp = schedules.vp_linear()
    with np.errstate(divide="ignore"):
        angle = np.arctan(vp.sigma(t / 2) / vp.alpha(t / 2))
    np.testing.assert_allclose(schedule.alpha(angle), vp.alpha(t / 2), rtol=0, atol=3e-16)
    np.testing.assert_allclose(schedule.sigma(angle), vp.sigma(t / 2), rtol=1e-14)


@pytest.mark.parametrize("steps", [2, 3, 1000])
def test_zero_terminal_snr(steps):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2
    new = schedules.zero_terminal_snr(betas)
    # algorithm 1 of the paper, as it stands, in 50 digits
    mp.dps = 50
    bar, bars = mp.mpf(1), []
    for beta in betas.tolist():
        bar *= 1 - mp.mpf(beta)
        bars.append(mp.sqrt(bar))
    scaled = [(a - bars[-1]) * bars[0] / (bars[0] - bars[-1]) for a in bars]
    ratios = [bars[0], *(b / a for a, b in zip(scaled, scaled[1:], strict=False))]
    want = [1 - ratio**2 for ratio in ratios]
    assert max(abs(n / w - 1) for n, w in zip(new.tolist(), want, strict=True)) < 1e-12
    assert new[-1] == 1.0
    schedule = schedules.from_betas(new)
    assert schedule.alpha(steps - 1) == 0.0
    assert new[0] == betas[0]
    again = schedules.zero_terminal_snr(new)
    np.testing.assert_allclose(again, new, rtol=1e-11)
    assert betas[-1] < 1.0


def test_zero_terminal_snr_as_diffusers_rescales():
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch = pytest.importorskip("torch")
    theirs = ddim.rescale_zero_terminal_snr(torch.from_numpy(betas)).numpy()
    np.testing.assert_allclose(schedules.zero_terminal_snr(betas), theirs, rtol=1e-10)


@each
def test_dicts_give_the_equal_schedule_back(schedule):
    record = json.loads(json.dumps(schedule.to_dict(), allow_nan=False))
    back = schedules.from_dict(record)
    assert back == schedule
    assert type(back) is type(schedule)
    assert back.to_dict() == schedule.to_dict()
    middle = 0.3 * schedule.t_start + 0.7 * schedule.t_end
    assert back.lam(middle) == schedule.lam(middle)


def test_dicts_hold_every_number():
    odd = schedules.vp_linear(0.1 + 2e-17, 1 / 3 + 20, 1e-3 / 3)
    assert odd.to_dict() == {
        "name": "vp_linear",
        "beta_min": odd.beta_min,
        "beta_max": odd.beta_max,
        "t_min": odd.t_min,
    }
    assert schedules.from_dict(json.loads(json.dumps(odd.to_dict()))) == odd
    assert schedules.ve().to_dict()["name"] == schedules.edm().to_dict()["name"] == "sigma_space"


def test_equality_and_hash():
    assert schedules.vp_linear() == schedules.vp_linear()
    assert schedules.vp_linear() != schedules.vp_linear(beta_max=19)
    assert schedules.vp_linear() != schedules.sub_vp()
    assert schedules.from_betas(BETAS) == schedules.from_betas(BETAS.tolist())
    assert schedules.from_betas(BETAS) != schedules.from_betas(BETAS * 0.5)
    assert len(set(ALL.values())) == len(ALL)
    assert repr(schedules.from_betas(BETAS)) == "FromBetas(timesteps=1000)"


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: schedules.vp_linear(beta_min=2, beta_max=1), "beta_min = 2 and beta_max = 1"),
        (lambda: schedules.sub_vp(beta_min=0), "beta_min = 0 and beta_max = 20"),
        (lambda: schedules.vp_linear(t_min=1.5), "t_min = 1.5"),
        (lambda: schedules.vp_cosine(s=-1), "s = -1"),
        (lambda: schedules.edm(sigma_min=90), "sigma_min = 90 and sigma_max = 80"),
        (lambda: schedules.ve(sigma_max=np.nan), "sigma_max = nan"),
        (lambda: schedules.flow(t_min=0), "t_min = 0"),
        (lambda: schedules.trig(t_min=1), "trig: t_min = 1"),
        (lambda: schedules.zero_terminal_snr([0.1, 2.0]), r"zero_terminal_snr: betas\[1\] = 2.0"),
        (lambda: schedules.zero_terminal_snr([0.1]), r"shape \(1,\)"),
        (lambda: schedules.from_dict({"name": "vq"}), "name = 'vq', but it must be one of vp_li"),
        (lambda: schedules.from_dict(["flow"]), r"name = \['flow'\], but"),
        (lambda: schedules.from_dict({"name": "flow"}), r"flow with \[\], .* \['t_min'\]"),
        (lambda: schedules.from_dict({"name": "flow", "t_min": 2.0}), "flow: t_min = 2.0"),
        (lambda: schedules.from_betas([0.1, 1.0, 0.1]), r"betas\[1\] = 1.0"),
        (lambda: schedules.from_betas([0.1, np.nan]), r"betas\[1\] = nan"),
        (lambda: schedules.from_betas([[0.1]]), r"shape \(1, 1\)"),
    ],
)
def test_bad_parameters(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()


@each
def test_outside(schedule):
    with pytest.raises(ValueError, match="lies outside"):
        schedule.alpha(schedule.t_end - 0.1)
    with pytest.raises(ValueError, match="nan lies outside"):
        schedule.sigma(np.nan)
    if schedule.lam(schedule.t_start) > -np.inf and schedule.domain[1] < np.inf:
        with pytest.raises(ValueError, match="lies below"):
            schedule.time(-50.0)
