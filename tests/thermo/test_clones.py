"""Agreement of completions against closed forms; collapse and decision levels."""

import json
import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.clones import BINS

TWO = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.04)
LEVELS = [0.3, 0.6, 1.0, 1.5, 3.0]
SAME = [0.9957, 0.9156, 0.7690, 0.6585, 0.5501]
EDM, FLOW = df.schedules.edm(), df.schedules.flow()


def sign_of(x):
    return (x[:, 0] > 0).long()


def test_agreement_of_a_mixture_in_closed_form():
    assert df.thermo.mixture_agreement(TWO, LEVELS) == pytest.approx(SAME, abs=6e-5)
    with pytest.raises(ValueError, match="needs d = 1, but d = 2"):
        df.thermo.mixture_agreement(df.thermo.GaussianMixture(None, [[0.0, 1.0]], 1.0), 1.0)


@pytest.mark.parametrize("schedule", [EDM, FLOW])
def test_two_clones_agree_as_the_posterior_says(schedule):
    found = df.thermo.clone_agreement(
        TWO.denoiser(schedule), TWO.sample(2000, 3), LEVELS, classes=sign_of, steps=96
    )
    for one, wanted in zip(found.same, SAME, strict=True):
        assert abs(one.value - wanted) < 4.0 * one.error + 2e-3, (one, wanted)
        assert one.error < 0.012 and one.count == 2000
    # half the mean squared distance of two draws of the posterior is the mmse
    for one, wanted in zip(found.mse, TWO.mmse(LEVELS), strict=True):
        assert abs(one.value - wanted) < 4.0 * one.error + 0.03 * wanted
    settled = 1.0 - TWO.mmse(LEVELS) / 1.04
    assert found.correlation == pytest.approx(settled, abs=0.06)
    assert found.histogram.shape == (5, BINS) and (found.histogram.sum(1) == 2000).all()
    assert found.rows == sum(found.steps) * 2 * 2000
    json.dumps(found.to_dict(), allow_nan=False)
    lines = str(found).splitlines()
    assert len(lines) == 6 and lines[3].startswith("          1  ")
    assert lines[3].endswith(str(found.same[2]))


def test_samples_of_the_same_seed_do_not_meet_their_own_noise():
    # an added noise that a sample was made from makes completions agree too often
    x = df.sample(TWO.denoiser(EDM), calls=18, shape=(2000, 1), seed=0).x
    found = df.thermo.clone_agreement(TWO.denoiser(EDM), x, [1.0], classes=sign_of, steps=96)
    assert abs(found.same[0].value - SAME[2]) < 4.0 * found.same[0].error


def test_more_completions_a_plan_and_a_function_of_ones_own():
    def planner(schedule, time):
        levels = np.append(np.geomspace(schedule.sigma(time), 0.02, 24), 0.0)
        return df.solvers.euler_ancestral(schedule, df.grids.from_sigmas(schedule, levels))

    found = df.thermo.clone_agreement(
        TWO.denoiser(EDM),
        TWO.sample(300, 3),
        [1.0],
        completions=3,
        plan=planner,
        agreement=lambda a, b: (a * b)[:, 0],
        keep=True,
    )
    assert found.samples.shape == (1, 3, 300, 1) and found.histogram.sum() == 3 * 300
    a, b, c = found.samples[0, :, :, 0]
    by_hand = float(((a * b + a * c + b * c) / 3).mean())
    assert found.agreement[0].value == pytest.approx(by_hand, rel=1e-12)
    assert found.agreement[0].value == pytest.approx(float(1.04 - TWO.mmse(1.0)), abs=0.2)
    assert not (a == b).any()


def test_rows_keep_their_conditions():
    mus = torch.linspace(1.0, 8.0, 8)[:, None]
    den = df.Denoiser(
        lambda x, t, mu: mu * (x * mu / t[:, None] ** 2).tanh(), EDM, "x0", conditions={"mu": mus}
    )
    found = df.thermo.clone_agreement(den, mus, [2.0], steps=12, keep=True)
    assert torch.allclose(found.samples[0].abs(), mus.expand(2, 8, 1), rtol=1e-4)


def test_whole_times():
    schedule = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))

    def network(x, t):
        assert t.dtype == torch.long
        alpha, sigma = (torch.as_tensor(f(t.numpy())) for f in (schedule.alpha, schedule.sigma))
        return TWO.x0(x.double(), alpha, sigma).to(x.dtype)

    den = df.Denoiser(network, schedule, "x0", time_dtype=torch.long)
    found = df.thermo.clone_agreement(
        den, TWO.sample(400), [0.3, 1.0, 3.0], classes=sign_of, steps=40
    )
    for one, wanted in zip(found.same, (0.9957, 0.7690, 0.5501), strict=True):
        # the true error: that of the samples is 0 where all 400 pairs agree
        assert abs(one.value - wanted) < 4.0 * math.sqrt(wanted * (1.0 - wanted) / 400) + 2e-3


def test_bad_input_is_one_sentence():
    den, x = TWO.denoiser(EDM), TWO.sample(4)
    with pytest.raises(ValueError, match="completions is 1, but pairs need"):
        df.thermo.clone_agreement(den, x, [1.0], completions=1)
    with pytest.raises(ValueError, match=r"level 100 given.*0\.002 to 80"):
        df.thermo.clone_agreement(den, x, [1.0, 100.0])
    with pytest.raises(ValueError, match="draws no noise"):
        df.thermo.clone_agreement(
            den, x, [1.0], plan=lambda s, t: df.solvers.ddim(s, np.array([t, 0.5 * t, 0.0]))
        )
    with pytest.raises(ValueError, match=r"starts at t = 80, but it was asked for t = 1"):
        grid = df.grids.karras(EDM, 5)
        df.thermo.clone_agreement(den, x, [1.0], plan=lambda s, t: df.solvers.seeds_1(s, grid))
    with pytest.warns(
        df.thermo.FewSamplesWarning, match=r"P\(same class\) at 3 = .* from 4 samples"
    ):
        df.thermo.clone_agreement(den, x, [3.0], classes=sign_of, steps=8, seed=0)


def test_collapse_time_of_one_variance_and_of_a_spectrum():
    one = df.thermo.collapse_time(1.0, 2000, 64)
    wanted = 0.5 * math.log1p(1.0 / (2000 ** (2 / 64) - 1.0))
    assert one.time == pytest.approx(wanted, rel=1e-12)
    assert one.rho == pytest.approx(math.sqrt(math.expm1(2.0 * one.time)), rel=1e-12)
    spectrum = np.geomspace(10.0, 1e-3, 64)
    found = df.thermo.collapse_time(spectrum, 2000)
    assert 0.5 * np.log1p(spectrum / found.rho**2).sum() == pytest.approx(math.log(2000))
    nearly = np.ones(64)
    nearly[0] += 1e-9
    assert df.thermo.collapse_time(nearly, 2000).time == pytest.approx(one.time, rel=1e-9)
    # directions without variance tell nothing apart
    assert df.thermo.collapse_time(np.append(spectrum, np.zeros(99)), 2000).rho == pytest.approx(
        found.rho, rel=1e-12
    )


def test_own_weights_change_at_the_collapse_time():
    """d = 64, n = 2000, at 0.6, 1 and 1.6 collapse times.

    The values of six draws of the data: 0.98, 0.55 to 0.59, 0.05.
    """
    data = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time = df.thermo.collapse_time(1.0, 2000, 64).time
    for share, wanted, near in ((0.6, 0.98, 0.02), (1.0, 0.57, 0.05), (1.6, 0.05, 0.02)):
        level = math.sqrt(math.expm1(2.0 * share * time))
        found = df.thermo.own_weights(data, level, probes=1000)
        assert found.count == 1000 and abs(found.value - wanted) < near
    by_hand = (-torch.cdist(data[:3], data[:3]).square() / 2e-4).softmax(1).diagonal()
    assert df.thermo.own_weights(data[:3], 1e-2).value == pytest.approx(float(by_hand.mean()))


def test_decision_windows():
    rho = np.geomspace(1e-3, 1e2, 200)
    small = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 1e-4)
    found = df.thermo.decision_window(
        rho[::-1], small.mmse(rho)[::-1], rho[::-1] ** 2 / (1 + rho[::-1] ** 2)
    )
    assert len(found.peaks) == 2  # which mode, then where in it
    assert found.peaks == pytest.approx([0.91, 0.01], rel=0.05)
    assert (found.low < found.peaks).all() and (found.peaks < found.high).all()
    assert found.ratio[0] == pytest.approx(1.0, abs=1e-3) and found.ratio[100] < 0.5
    one = df.thermo.decision_window(rho, 4.0 * rho**2 / (4.0 + rho**2))
    assert one.peaks == pytest.approx([2.0], rel=0.03) and not one.ratio.size
    # -d mmse / d lam = 2 v^2 rho^2 / (v + rho^2)^2: half of its peak at rho^2 = v (3 +- 8^(1/2))
    assert one.low[0] == pytest.approx(2.0 * math.sqrt(3.0 - math.sqrt(8.0)), rel=0.02)
    assert one.high[0] == pytest.approx(2.0 * math.sqrt(3.0 + math.sqrt(8.0)), rel=0.02)


def test_bad_numbers_of_levels():
    with pytest.raises(ValueError, match="count is 1, but at least 2"):
        df.thermo.collapse_time(1.0, 1, 4)
    with pytest.raises(ValueError, match="needs the dimension d"):
        df.thermo.collapse_time(1.0, 10)
    with pytest.raises(ValueError, match="d is 3, but the spectrum has 2"):
        df.thermo.collapse_time([1.0, 2.0], 10, 3)
    with pytest.raises(ValueError, match="rho is 0"):
        df.thermo.own_weights(torch.zeros(3, 2), 0.0)
    with pytest.raises(ValueError, match="1 samples, but at least 2"):
        df.thermo.own_weights(torch.zeros(1, 2), 1.0)
    with pytest.raises(ValueError, match="3 levels and 3 values"):
        df.thermo.decision_window([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="rise or fall strictly"):
        df.thermo.decision_window([1.0, 2.0, 2.0, 3.0, 4.0], np.ones(5))
