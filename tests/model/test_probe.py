"""The probe of a network's convention: silent for right ones, and it names what is wrong."""

import math
import warnings

import numpy as np
import pytest
import torch

import diffast as df

MEANS = torch.tensor([[1.0, 1.0], [-1.0, 0.5], [0.0, -1.2]])
WIDTH = 0.15
SHAPE = (192, 2)
SCHEDULES = {
    "vp": df.schedules.vp_linear(),
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "trig": df.schedules.trig(),
    "betas": df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
}
slow = pytest.mark.slow
KINDS = ("x0", "epsilon", "v", "flow", "score", "reverse_flow")


def clean(x, alpha, sigma):
    """E[x0 | x] of three wide points."""
    variance = alpha**2 * WIDTH**2 + sigma**2
    gap = x[:, None] - alpha[:, :, None] * MEANS
    share = torch.softmax(-(gap**2).sum(-1) / (2 * variance), 1)
    mean = share @ MEANS
    return mean + alpha * WIDTH**2 / variance * (x - alpha * mean)


def network(kind, schedule, sign=1.0, turned=False, unit=1.0):
    """An exact network; sign, turned and unit are what its user may have got wrong."""

    def column(values):
        return torch.as_tensor(np.asarray(values)).float().reshape(-1, 1)

    def call(x, t):
        t = t.double() / unit
        t = schedule.t_start + schedule.t_end - t if turned else t
        t = t.clamp(schedule.t_end + 1e-4, schedule.t_start).numpy()
        alpha, sigma = column(schedule.alpha(t)), column(schedule.sigma(t))
        x0 = clean(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        if kind in ("flow", "reverse_flow"):
            dalpha, dsigma = (column(slope) for slope in schedule.derivatives(t))
            answer = dalpha * x0 + dsigma * eps
            return sign * (answer if kind == "flow" else -answer)
        v = alpha * eps - sigma * x0
        return sign * {"x0": x0, "epsilon": eps, "score": -eps / sigma, "v": v}[kind]

    return call


def probed(denoiser, shape=SHAPE):
    return denoiser.probe(shape, warn=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param(schedule, id=name, marks=() if name in ("edm", "flow") else slow)
        for name, schedule in SCHEDULES.items()
    ],
)
def test_right_networks_pass_in_silence(schedule, kind):
    denoiser = df.Denoiser(network(kind, schedule), schedule, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = denoiser.probe(SHAPE)
    assert found.fits and found.instead == ()
    assert found.sound and found.score < 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vp", "epsilon"),
        ("flow", "flow"),
        *(
            pytest.param(name, kind, marks=slow)
            for name in ("vp", "flow", "betas")
            for kind in ("epsilon", "v", "flow")
        ),
    ],
)
def test_a_wrong_type_is_named(name, kind):
    schedule = SCHEDULES[name]
    for said in ("x0", "epsilon", "score", "reverse_flow"):
        if said == kind:
            continue
        found = probed(df.Denoiser(network(kind, schedule), schedule, said))
        assert not found.fits, said
        assert any(repr(kind) in other for other in found.instead), (said, found.instead)


@pytest.mark.parametrize("name", ["vp", "flow", "edm"])
def test_a_wrong_sign_is_named(name):
    schedule = SCHEDULES[name]
    found = probed(df.Denoiser(network("epsilon", schedule, sign=-1.0), schedule, "epsilon"))
    assert not found.fits
    assert "the negative of its output as 'epsilon'" in found.instead


def test_the_sign_of_a_velocity():
    """A field from data to noise, taken for one from noise to data."""
    flow = SCHEDULES["flow"]
    field = network("flow", flow)
    right = df.Denoiser.from_velocity(field, times=(1.0, 0.0), call="x, t")
    assert probed(right).fits
    found = probed(df.Denoiser.from_velocity(field, call="x, t"))
    assert not found.fits
    assert any("1 - t" in other for other in found.instead), found


@pytest.mark.parametrize("name", ["vp", pytest.param("betas", marks=slow)])
def test_a_wrong_time_is_named(name):
    schedule = SCHEDULES[name]
    turned = network("epsilon", schedule, turned=True)
    found = probed(df.Denoiser(turned, schedule, "epsilon"))
    assert not found.fits and any("- t" in other for other in found.instead), found
    for unit in (1000.0, 1e-3):
        found = probed(df.Denoiser(network("v", schedule, unit=unit), schedule, "v"))
        assert not found.fits
        assert any(f"{unit:g} t" in other for other in found.instead), (unit, found)


def test_it_warns_once_in_words():
    schedule = SCHEDULES["vp"]
    denoiser = df.Denoiser(network("epsilon", schedule), schedule, "x0")
    with pytest.warns(UserWarning, match="predicts='x0' on VPLinear.*does with predicts='epsilon'"):
        denoiser.probe(SHAPE)


def test_an_untrained_network_is_told_so():
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    schedule = SCHEDULES["vp"]
    denoiser = df.Denoiser(lambda x, t: 30 * layer(x), schedule, "x0")
    found = probed(denoiser)
    assert not found.fits
    assert "is it trained" in str(found) or found.instead


def test_numbers_that_are_not_finite_do_not_pass():
    schedule = SCHEDULES["flow"]
    denoiser = df.Denoiser(lambda x, t: x * math.inf, schedule, "flow")
    found = probed(denoiser)
    assert not found.fits and not found.instead
    constant = df.Denoiser(lambda x, t: torch.zeros_like(x), schedule, "x0")
    assert not probed(constant).fits


def test_whole_times_for_networks_that_index():
    schedule = SCHEDULES["betas"]
    exact = network("epsilon", schedule)

    def indexed(x, t):
        assert t.dtype == torch.long
        return exact(x, t)

    denoiser = df.Denoiser(indexed, schedule, "epsilon", time_dtype=torch.long)
    assert probed(denoiser).fits


def test_conditions_and_half_networks():
    schedule = SCHEDULES["vp"]
    exact = network("epsilon", schedule)

    def half(x, t, shift):
        assert x.dtype == torch.bfloat16 and shift.shape == x.shape
        return exact(x.float(), t).to(torch.bfloat16)

    shift = torch.zeros(1, 2)
    denoiser = df.Denoiser(
        half, schedule, "epsilon", conditions={"shift": shift}, dtype=torch.bfloat16
    )
    assert probed(denoiser).fits


def test_the_digit_network():
    """No false alarm, and no doubt: 18 calls."""
    labels = {"labels": torch.arange(4)}
    given = df.digits.load_unet(), df.schedules.edm()
    found = probed(df.Denoiser(*given, "x0", conditions=labels), (4, 1, 28, 28))
    assert found.fits and found.calls == 18, found


@pytest.mark.parametrize(
    ("shape", "message"),
    [(None, "needs the shape"), ((1, 2), "needs 2 samples or more")],
)
def test_what_cannot_be_probed(shape, message):
    schedule = SCHEDULES["vp"]
    with pytest.raises(ValueError, match=message):
        df.Denoiser(network("v", schedule), schedule, "v").probe(shape)


def test_a_network_that_was_not_trained_at_the_noisiest_level_is_told_so():
    exact = network("x0", SCHEDULES["edm"])

    def call(x, t):
        return exact(x, t) + 0.02 * x * (t.reshape(-1, 1) > 60.0)

    found = probed(df.Denoiser(call, SCHEDULES["edm"], predicts="x0"))
    assert not found.fits
    assert max(found.errors) < 1.2
    assert "was it trained at so much noise" in str(found)
