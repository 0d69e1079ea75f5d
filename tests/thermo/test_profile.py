"""`df.thermo.profile` on data with a closed form: every number against quadrature."""

import dataclasses

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.curve import Curve
from diffast.thermo.sweep import gaussian_of, sweep

RMS = 1.09**0.5
# Mixture .5 N(+-1, .09), divided by its root mean square.
MIXTURE = df.thermo.GaussianMixture([0.5, 0.5], [-1.0 / RMS, 1.0 / RMS], 0.09 / 1.09)
DATA = MIXTURE.sample(8000, seed=3)
SCHEDULES = {
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "trig": df.schedules.trig(),
    "vp": df.schedules.vp_linear(),
}


def measured(name, denoiser=None, data=DATA, **options):
    made = denoiser or MIXTURE.denoiser(SCHEDULES[name])
    options = {"count": 8000, "levels": 24, "measure": (), "seed": 1} | options
    return df.thermo.profile(made, data, **options)


@pytest.fixture(scope="module")
def profiles():
    return {name: measured(name) for name in SCHEDULES}


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_forms_of_the_mmse_meet_quadrature(profiles, name):
    made = profiles[name]
    exact = MIXTURE.mmse(made.rho)
    for value, error in ((made.mmse, made.mmse_se), (made.mmse_speed, made.mmse_speed_se)):
        assert (np.abs(value - exact) < 4.5 * error).all()
        middle = (made.rho > 0.1) & (made.rho < 10)
        assert (error[middle] < 0.05 * exact[middle]).all()
    assert (np.abs(made.model_error) < 4.5 * made.model_error_se).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_speeds_are_those_of_the_exact_flow(profiles, name):
    made, schedule = profiles[name], SCHEDULES[name]
    exact = MIXTURE.mmse(made.rho)
    wanted = df.thermo.w2_speed_squared(schedule, made.times, exact, 1.0, 1)
    shares = np.abs(made.model_speed / wanted - 1.0), np.abs(made.w2_speed / wanted - 1.0)
    seen = wanted > 0.05 * wanted.max()  # where almost nothing moves, a share means little
    assert shares[0][seen].max() < 0.1 and shares[1][seen].max() < 0.1


def test_one_angle_on_all_schedules(profiles):
    for made in profiles.values():
        assert abs(made.angle.value - 0.399977) < 4 * made.angle.error + 5e-4
        assert made.angle.error < 0.02
    levels = np.geomspace(1e-3, 100, 60)
    exact = Curve(levels, MIXTURE.mmse(levels), 1.0)
    assert df.thermo.angle(exact, 1, 1.0) == pytest.approx(0.399977, abs=3e-5)


def test_action_and_length_of_the_paths(profiles):
    for name, wanted in (("trig", 0.283146), ("flow", 0.609458)):
        made = profiles[name]
        assert abs(made.c_2.value - wanted) < 4 * made.c_2.error + 1e-3
        assert abs(made.c_2_model.value - wanted) < 4 * made.c_2_model.error + 1e-3
        assert made.c_2.error < 0.05 * wanted
        assert made.c_2_constant.value <= made.c_2.value
    # both preserve the variance: the same path at another speed
    assert profiles["vp"].w2_length.value == pytest.approx(
        profiles["trig"].w2_length.value, abs=3e-3
    )
    # the variance-exploding path ends at sigma = 80: its length is nearly that of the noise
    assert profiles["edm"].w2_length.value == pytest.approx(80.0, rel=0.02)


def test_errors_are_those_of_repeated_measurements():
    made = [
        measured("flow", data=MIXTURE.sample(1000, seed=s), count=500, levels=8, seed=s)
        for s in range(30)
    ]
    for name in ("mmse", "mmse_speed"):
        found = np.std([getattr(one, name) for one in made], axis=0, ddof=1)
        said = np.mean([getattr(one, f"{name}_se") for one in made], axis=0)
        assert (found / said).max() < 1.6 and (found / said).min() > 0.6
    spread = np.std([one.c_2.value for one in made], ddof=1)
    assert spread == pytest.approx(np.mean([one.c_2.error for one in made]), rel=0.4)


def test_an_error_of_the_network_is_found():
    exact = MIXTURE.denoiser(SCHEDULES["edm"])
    biased = dataclasses.replace(exact, network=lambda x, t: exact.network(x, t) + 0.1)
    made = measured("edm", biased, levels=8)
    low = made.rho < 0.3
    # the forms differ by twice the squared bias, and the bound is nearly the squared bias
    assert (np.abs(made.model_error - 0.02) < 4.5 * made.model_error_se)[low].all()
    assert (made.model_error > 10 * made.model_error_se)[low].all()
    assert (made.error_floor <= 0.01 + 4 * made.error_floor_se).all()
    assert made.error_floor[-1] == pytest.approx(0.01, rel=0.05)

    shrunk = dataclasses.replace(exact, network=lambda x, t: 0.9 * exact.network(x, t))
    made = measured("edm", shrunk, levels=8)
    mmse = MIXTURE.mmse(made.rho)
    wanted = 2 * 0.01 * (1.0 - mmse) + 2 * 0.1 * mmse
    assert (np.abs(made.model_error - wanted) < 4.5 * made.model_error_se).all()
    assert (np.abs(made.mmse - mmse - 0.01 * (1.0 - mmse)) < 4.5 * made.mmse_se).all()


def test_gaussian_data_are_known_from_their_covariance():
    law = df.thermo.GaussianMixture([1.0], [[0.3, -0.2, 0.0]], np.diag([1.0, 0.2, 0.01])[None])
    data = law.sample(4000)
    made = measured("flow", law.denoiser(SCHEDULES["flow"]), data, count=64)
    # 64 samples are enough: what is left after the linear estimate is nearly nothing
    assert np.abs(made.ratio - 1.0).max() < 0.02
    assert (made.mmse_se / made.mmse < 0.06).all()
    assert made.energy == pytest.approx(law.energy, rel=0.05)
    assert made.spectrum == pytest.approx([1.0, 0.2, 0.01], rel=0.1)


@pytest.mark.parametrize("predicts", ["epsilon", "v", "flow", "score"])
def test_predictions_of_any_kind_give_the_same_numbers(profiles, predicts):
    name = "flow" if predicts == "flow" else "trig"
    exact, schedule = MIXTURE.denoiser(SCHEDULES[name]), SCHEDULES[name]

    def network(x, t):
        a, b = (
            torch.tensor(w)[:, None]
            for w in df.Prediction(schedule, predicts).affine(t.double().numpy())
        )
        return (exact.network(x, t) - a * x) / b

    made = measured(name, df.Denoiser(network, schedule, predicts=predicts))
    assert made.mmse == pytest.approx(profiles[name].mmse, rel=1e-5)
    assert made.model_error == pytest.approx(profiles[name].model_error, rel=1e-4, abs=1e-6)


def test_batches_and_conditions_follow_their_samples():
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    labels = torch.arange(300) % 2
    data = means[labels][:, None] + 0.1 * torch.randn(
        300, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    schedule = SCHEDULES["flow"]

    def network(x, t, labels):
        # exact for data N(mean, .01) given the label
        alpha, sigma = (
            torch.as_tensor(f(t.numpy()))[:, None] for f in (schedule.alpha, schedule.sigma)
        )
        mean = means[labels][:, None]
        gain = 0.01 * alpha / (0.01 * alpha**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    denoiser = df.Denoiser(network, schedule, predicts="x0", conditions={"labels": labels})
    options = {"count": 200, "levels": 6, "measure": (), "seed": 2}
    one = df.thermo.profile(denoiser, data, rows=7, **options)
    assert one.mmse[0] == pytest.approx(0.01, rel=0.4)  # not 1: the label is known
    assert any("told conditions" in note for note in one.notes)
    whole = df.thermo.profile(denoiser, data, **options)
    assert (one.mmse == whole.mmse).all() and one.rows_called == whole.rows_called == 1200
    with pytest.raises(ValueError, match="data has 50 samples, but the condition 'labels' has 300"):
        df.thermo.profile(denoiser, data[:50], **options)


def test_without_data_samples_are_generated():
    denoiser = MIXTURE.denoiser(SCHEDULES["flow"])
    options = {"levels": 6, "measure": (), "dtype": torch.float64}
    made = df.thermo.profile(denoiser, shape=(512, 1), **options)
    assert made.data == "generated" and made.count == 512
    assert made.energy == pytest.approx(1.0, abs=0.1)
    assert "No data were given" in made.notes[0] and "consistent" in made.notes[0]
    again = df.thermo.profile(denoiser, shape=(512, 1), **options)
    assert made.to_dict() == again.to_dict()


def test_whole_times_and_half_networks():
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))

        def forward(self, x, t):
            assert x.dtype == torch.float16 and t.dtype == torch.int64
            return self.scale * x

    betas = np.linspace(1e-4, 0.02, 100)
    schedule = df.schedules.from_betas(betas)
    options = {"dtype": torch.float16, "time_dtype": torch.long}
    denoiser = df.Denoiser(Half(), schedule, predicts="epsilon", **options)
    made = df.thermo.profile(denoiser, torch.randn(32, 3, 2), levels=150, measure=())
    assert (made.times == np.rint(made.times)).all() and made.rho.size < 101
    assert any("whole times" in note for note in made.notes)


def test_what_is_left_out_is_said():
    open_end = df.schedules.from_functions(lambda t: 1.0 - 0.9 * t + 0 * t, lambda t: 0.1 + 0.9 * t)
    made = measured("", MIXTURE.denoiser(open_end), levels=8)
    assert any("ends at sigma = 0.1, not at data" in note for note in made.notes)
    assert made.c_2.value > 0 and np.isfinite(made.w2_speed).all()
    made = measured("flow", levels=8)
    assert any("starts at noise alone" in note for note in made.notes)
    guided = dataclasses.replace(
        MIXTURE.denoiser(SCHEDULES["flow"]), unconditional={}, guidance=2.0
    )
    assert any("guided" in note for note in measured("flow", guided, levels=8).notes)


def test_too_few_samples_are_said():
    with pytest.warns(df.thermo.FewSamplesWarning, match="profile: .* from 4 samples"):
        measured("flow", data=DATA[:4], levels=8)


NET = MIXTURE.denoiser(SCHEDULES["flow"])


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"data": None}, TypeError, "neither data nor a shape"),
        ({"data": torch.zeros(3, 1, dtype=torch.uint8)}, ValueError, "data is torch.uint8"),
        ({"data": torch.zeros(1, 1)}, ValueError, "at least 2 samples"),
        ({"data": torch.ones(8, 1)}, ValueError, "all 8 samples of the data are equal"),
        ({"data": torch.full((4, 1), torch.nan)}, ValueError, "4 of 4 samples of the data are not"),
        ({"shape": (4, 2)}, ValueError, r"samples of shape \[1\], but shape asks for \[2\]"),
        ({"levels": 3}, ValueError, "levels = 3, but at least 4"),
        ({"levels": 4.5}, ValueError, "levels = 4.5, but it must be a whole number"),
        ({"count": 2.5}, ValueError, "count = 2.5, but it must be a whole number"),
        ({"data": None, "shape": (8,)}, ValueError, "numbers are .B, 1."),
        ({"plan": "ddim.json"}, ValueError, "plan is the path"),
        ({"plan": df.solvers.ddim(df.schedules.edm(), [80.0, 1.0])}, ValueError, "the plan is for"),
        ({"rows": 0}, ValueError, "rows = 0, but at least 1"),
        ({"local": 1}, ValueError, "local = 1, but at least 2"),
        ({"measure": ("dreams",)}, ValueError, "'dreams', but what can be measured"),
        ({"dtype": torch.float16}, ValueError, "must be float32 or float64"),
    ],
)
def test_bad_input(given, error, words):
    with pytest.raises(error, match=words):
        df.thermo.profile(NET, **({"data": DATA[:100]} | given))
    with pytest.raises(TypeError, match="is a Flow, but a df.Denoiser"):
        df.thermo.profile(SCHEDULES["flow"], DATA)


def test_a_network_that_fails_says_at_which_level():
    def network(x, t):
        found = NET.network(x, t)
        return torch.where((t < 0.1)[:, None], torch.nan, found)

    broken = df.Denoiser(network, SCHEDULES["flow"], predicts="x0")
    with pytest.raises(ValueError, match="not finite for 100 of 100 samples at the noise level"):
        df.thermo.profile(broken, DATA[:100], measure=())


def test_the_linear_estimate_changes_no_mean():
    """What is subtracted and added again leaves the mean of the raw numbers, for any network."""
    data, schedule = DATA[:3000], SCHEDULES["edm"]
    odd = df.Denoiser(lambda x, t: torch.sin(x) + 0.1, schedule, predicts="x0")
    found = sweep(
        odd, data, torch.arange(3000), gaussian_of(data), 6, 3000,
        rows=999, seed=5, dtype=torch.float64, device=torch.device("cpu"),
    )  # fmt: skip
    for k, rho in enumerate(found.rho):
        noise = torch.randn(200, *data.shape, generator=torch.Generator().manual_seed(k))
        u = data + rho * noise.double()
        made = torch.sin(u) + 0.1
        raw = (made - data).square().sum(2).mean()
        loss = found.loss()
        assert abs(loss.value()[k] - float(raw)) < 5 * loss.error()[k] + 0.002 * float(raw)
