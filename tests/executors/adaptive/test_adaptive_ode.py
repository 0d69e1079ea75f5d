"""`sample_adaptive` on the probability-flow ODE: it converges to the exact solution with rtol."""

from functools import cache

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network
from scipy.integrate import solve_ivp

import diffast as df
from diffast import schedules

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
MEANS = [[1.0, 0.3], [-0.8, 0.9], [-0.1, -1.1]]
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
    "from_betas": schedules.from_betas(BETAS),
    "zero_snr": schedules.from_betas(schedules.zero_terminal_snr(BETAS)),
}
SAMPLES = 12


@cache
def exact(name):
    """States at the start, and the ODE's solution at t_min, to 1e-12.

    By q = sigma / (alpha + sigma) and y = x / (alpha + sigma) it is dy/dq = (y - x0) / q, on every
    schedule and from alpha = 0 on.
    """
    schedule = SCHEDULES[name]
    truth = Mixture(schedule, MEANS)
    start = schedule.sigma(schedule.t_start) * np.random.default_rng(3).normal(size=(SAMPLES, 2))

    def slope(q, y):
        y = y.reshape(-1, 2)
        t = schedule.time(np.log1p(-q) - np.log(q))
        scale = schedule.alpha(t) + schedule.sigma(t)
        return ((y - truth.x0(scale * y, float(t))) / q).ravel()

    ends = np.array([schedule.t_start, schedule.t_min])
    scale = schedule.alpha(ends) + schedule.sigma(ends)
    q = schedule.sigma(ends) / scale
    q[0] = min(q[0], 1.0 - 1e-15)
    y = (start / scale[0]).ravel()
    found = solve_ivp(slope, q, y, method="DOP853", rtol=1e-12, atol=1e-14)
    end = scale[1] * found.y[:, -1].reshape(-1, 2)
    return start, end, truth.x0(end, schedule.t_min)


def samples(name, method, rtol, predicts="x0", **options):
    schedule = SCHEDULES[name]
    network = Network(Mixture(schedule, MEANS), predicts)
    denoiser = df.Denoiser(network, schedule, predicts=predicts)
    state = torch.from_numpy(exact(name)[0])
    options = {"denoise": False, "atol": rtol, "rtol": rtol} | options
    return df.sample_adaptive(denoiser, method, x=state, max_calls=10**6, **options)


def error_of(out, wanted):
    assert out.fine.all()
    assert out.x.dtype == torch.float64
    return np.sqrt(np.mean((out.x.numpy() - wanted) ** 2))


# Tolerances that the tests walk, and how much more than its tolerance a sample may be wrong: errors
# of single steps add up, and states near a ridge between modes amplify them.
TOLERANCES = {
    "dpm_12": (1e-2, 1e-3, 1e-4),
    "dpm_23": (1e-2, 1e-3, 1e-4, 1e-5),
    "bosh3": (1e-2, 1e-3, 1e-4, 1e-5),
    "dopri5": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
    "tsit5": (1e-3, 1e-4, 1e-5, 1e-6, 1e-7),
}
MOST = 40.0
each_method = pytest.mark.parametrize("method", TOLERANCES)
each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def starts_alone(name):
    schedule = SCHEDULES[name]
    return schedule.alpha(schedule.t_start) == 0.0


@each_method
@each_schedule
def test_error_falls_with_the_tolerance(name, method):
    tolerances, wanted = TOLERANCES[method], exact(name)[1]
    if method == "dpm_23" and starts_alone(name):
        tolerances = tolerances[:-1]  # see test_the_opening_of_the_clock_lam
    errors, calls = [], []
    for rtol in tolerances:
        out = samples(name, method, rtol)
        errors.append(error_of(out, wanted))
        calls.append(float(out.nfe.double().mean()))
        assert errors[-1] <= MOST * rtol, (errors, calls)
    # an error of a step that is rtol makes h rtol^(1/p), and the solution's error h^p
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert 0.7 <= slope <= 1.3, (errors, calls)
    assert calls[-1] > 1.5 * calls[0]


@pytest.mark.parametrize("method", ["bosh3", "dopri5", "tsit5"])
@each_schedule
def test_by_the_clock_flow_all_schedules_are_one(name, method):
    """By "flow" a schedule is another time and unit of the same ODE: as many calls, the same error.

    The tolerance is measured in x, which is why it is not quite the same.
    """
    out = samples(name, method, 1e-5, clock="flow")
    assert error_of(out, exact(name)[1]) <= 4.0 * 1e-5
    most = {"bosh3": 140, "dopri5": 80, "tsit5": 85}
    assert 50 < float(out.nfe.double().mean()) < most[method]


@pytest.mark.parametrize("name", ["flow", "trig", "zero_snr"])
def test_the_opening_of_the_clock_lam(name):
    """From noise alone dpm enters at lam = -5 by a step of order 1: an error that stays."""
    for rtol in (1e-6, 1e-7):
        assert 1e-6 < error_of(samples(name, "dpm_23", rtol), exact(name)[1]) < 2e-5


@pytest.mark.parametrize("method", ["dpm_23", "tsit5"])
@pytest.mark.parametrize("predicts", ["x0", "epsilon", "v", "flow", "score"])
@pytest.mark.parametrize("name", ["vp_linear", "edm", "flow", "from_betas", "zero_snr"])
def test_predictions(name, predicts, method):
    rtol = 1e-5
    if starts_alone(name) and predicts in ("epsilon", "score"):
        with pytest.raises(ValueError, match="where that does not determine x0"):
            samples(name, method, rtol, predicts)
        return
    out = samples(name, method, rtol, predicts)
    assert error_of(out, exact(name)[1]) <= MOST * rtol
    wanted = samples(name, method, rtol)
    # rounding in the answers changes errors of 1e-8, and steps with them
    np.testing.assert_allclose(out.x, wanted.x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(out.nfe, wanted.nfe, rtol=0, atol=3)


@each_method
@each_schedule
def test_the_last_estimate(name, method):
    """`denoise` ends at x0 of the last state, the ODE's answer to a last step into sigma = 0."""
    rtol = 1e-4
    out = samples(name, method, rtol, denoise=True)
    assert error_of(out, exact(name)[2]) <= MOST * rtol


@pytest.mark.parametrize("method", ["dpm_23", "bosh3", "tsit5"])
def test_single_precision(method):
    name, rtol = "vp_linear", 1e-3
    schedule = SCHEDULES[name]
    denoiser = df.Denoiser(Network(Mixture(schedule, MEANS)), schedule, predicts="x0")
    state = torch.from_numpy(exact(name)[0]).float()
    out = df.sample_adaptive(denoiser, method, x=state, denoise=False, rtol=rtol, atol=rtol)
    assert out.fine.all()
    assert out.x.dtype == torch.float32
    assert np.sqrt(np.mean((out.x.numpy() - exact(name)[1]) ** 2)) <= MOST * rtol


def test_a_maximal_norm_is_stricter():
    loose, strict = (samples("edm", "bosh3", 1e-3, norm=norm) for norm in ("l2", "linf"))
    assert strict.nfe.double().mean() > loose.nfe.double().mean()
    assert error_of(strict, exact("edm")[1]) <= MOST * 1e-3


def test_until_an_earlier_time():
    """The last state may stand anywhere: compare with the states of a longer run's own ODE."""
    name, until = "vp_linear", 0.3
    schedule, truth = SCHEDULES[name], Mixture(SCHEDULES[name], MEANS)
    start = exact(name)[0]

    def slope(lam, y):
        t = float(schedule.time(lam))
        y = y.reshape(-1, 2)
        return (truth.x0(schedule.alpha(t) * y, t) - y).ravel()

    ends = np.array([1.0, until])
    alpha = schedule.alpha(ends)
    y = (start / alpha[0]).ravel()
    found = solve_ivp(slope, schedule.lam(ends), y, method="DOP853", rtol=1e-12, atol=1e-14)
    wanted = alpha[1] * found.y[:, -1].reshape(-1, 2)
    for method in ("dpm_23", "tsit5"):
        out = samples(name, method, 1e-6, until=until)
        assert error_of(out, wanted) <= MOST * 1e-6
