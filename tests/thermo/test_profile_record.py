"""`Profile` as JSON, text, picture and page; what single samples and runs add to it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.record import Profile

MIXTURE = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)
FLOW = df.schedules.flow()


@pytest.fixture(scope="module")
def whole():
    return df.thermo.profile(
        MIXTURE.denoiser(FLOW), MIXTURE.sample(3000), count=2000, levels=16, local=64
    )


def test_single_samples_say_what_is_known_in_closed_form(whole):
    assert whole.critical_rho == pytest.approx([math.sqrt(1 - 0.09)], rel=0.1)
    assert whole.nonconservativity.max() < 1e-20  # a gradient
    assert whole.local_rho.size == 8
    # Two completions share the variance that the posterior mean has. Their few steps make them more
    # alike by up to 0.18 (512 samples); 64 samples have an error besides.
    apart = whole.clone_agreement - (1.0 - MIXTURE.mmse(whole.clone_rho) / 1.09)
    assert (np.abs(apart) < 0.2 + 4.0 * whole.clone_agreement_se).all()
    assert whole.collapse_rho == pytest.approx(
        df.thermo.collapse_time(whole.spectrum, 3000).rho, rel=1e-9
    )


def test_the_bound_holds_and_is_reported(whole):
    eta, c_1, c_2 = whole.eta, whole.c_1, whole.c_2
    assert 0 < eta.value <= c_1.value <= c_2.value
    assert whole.chi_square.value == pytest.approx(math.e - 1)
    # a shifted start moves samples between the modes: by far less than the bound allows
    assert whole.w1_end.value < 0.2 and whole.w1_floor.value < 0.2
    assert "Speed-accuracy" in str(whole) and "c_2" in str(whole)


def test_a_profile_is_saved_to_the_last_bit(whole, tmp_path):
    path = tmp_path / "p.json"
    whole.save(path)
    again = Profile.load(path)
    assert json.dumps(again.to_dict()) == json.dumps(whole.to_dict())
    for field in dataclasses.fields(Profile):
        a, b = getattr(whole, field.name), getattr(again, field.name)
        assert type(a) is type(b)
        if isinstance(a, np.ndarray):
            assert np.array_equal(a, b, equal_nan=True)
    assert (again.mmse_at([0.1, 1.0]) == whole.mmse_at([0.1, 1.0])).all()
    assert str(again) == str(whole)


def test_mmse_between_and_beyond_the_levels(whole):
    assert whole.mmse_at(whole.rho) == pytest.approx(np.maximum(whole.mmse, 0), rel=1e-9)
    assert whole.mmse_at(1e6) == pytest.approx(whole.mmse[0], rel=1e-3)
    low = whole.rho[-1]
    assert whole.mmse_at(low / 10) == pytest.approx(whole.mmse[-1] / 100, rel=1e-3)
    assert whole.mmse_at(np.inf) == pytest.approx(whole.mmse_at(1e6), rel=1e-9)
    assert whole.mmse_at(0.0) == 0.0
    for wrong in (-1.0, np.nan):
        with pytest.raises(ValueError, match="a noise level is 0 or more"):
            whole.mmse_at([1.0, wrong])
    rho = np.geomspace(0.01, 10, 50)
    assert whole.mmse_at(rho) == pytest.approx(MIXTURE.mmse(rho), rel=0.15)


def test_pictures_and_pages(whole, tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    picture, page = tmp_path / "p.png", tmp_path / "p.html"
    whole.save(picture)
    with Image.open(picture) as image:
        assert image.width >= 900 and np.asarray(image.convert("L")).std() > 10
    assert picture.stat().st_size < 300_000
    whole.save(page)
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 8 and "://" not in text
    for line in str(whole).splitlines():
        assert line.split(":")[0] in text
    # the sweep alone has fewer panels
    few = df.thermo.profile(MIXTURE.denoiser(FLOW), MIXTURE.sample(400), levels=6, measure=())
    few.save(page)
    assert page.read_text().count("data:image/png;base64,") == 6


def test_a_speed_that_is_not_positive_is_left_out(whole, tmp_path):
    speed = whole.model_speed.copy()
    speed[3:5] = 0.0, -1.0
    few = dataclasses.replace(whole, model_speed=speed)
    wrong, error = few.speed_error
    assert np.flatnonzero(~np.isfinite(wrong)).tolist() == [3, 4]
    assert np.isfinite(np.delete(error, [3, 4])).all()
    assert "e+" not in str(few).split("Model error")[1].splitlines()[0] and "nan" not in str(few)
    pytest.importorskip("matplotlib")
    few.save(tmp_path / "few.png")


@pytest.mark.parametrize("count", [1, 10])
def test_the_summary_is_short(whole, count):
    lines = str(whole).splitlines()
    assert 5 <= len(lines) <= 11 and all(len(line) < 260 for line in lines)


def test_files_that_are_none(tmp_path, whole):
    path = tmp_path / "p.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="no 'diffast profile'"):
        Profile.load(path)
    path.write_text("nonsense")
    with pytest.raises(ValueError, match="is no JSON file"):
        Profile.load(path)
    record = whole.to_dict()
    path.write_text(json.dumps(record | {"version": 99}))
    with pytest.raises(ValueError, match="version 99"):
        Profile.load(path)
    path.write_text(json.dumps({k: v for k, v in record.items() if k != "rho"}))
    with pytest.raises(ValueError, match="fields rho"):
        Profile.load(path)
    with pytest.raises(ValueError, match="mmse_se has 1 numbers, but there are"):
        Profile.from_dict(record | {"mmse_se": [1.0]})
    path.write_text(json.dumps(record | {"rho": "far"}))
    with pytest.raises(ValueError, match="another form"):
        Profile.load(path)
    for odd in ({"notes": 3}, {"mmse": [1e308, None]}, {"loss": {}}, {"rho": [10**400]}):
        if odd.keys() <= record.keys():
            path.write_text(json.dumps(record | odd))
            with pytest.raises(ValueError, match=f"Profile: {path}: "):
                Profile.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is no JSON file"):
        Profile.load(path)
    with pytest.raises(ValueError, match="must end in .json, .png or .html"):
        whole.save(tmp_path / "p.npz")
    with pytest.raises(ValueError, match="there is no folder"):
        whole.save(tmp_path / "none" / "p.json")


def test_a_network_without_derivatives_is_measured_by_differences():
    exact = MIXTURE.denoiser(FLOW).network

    def network(x, t):
        return torch.from_numpy(exact(x.detach(), t.detach()).numpy().copy())  # no graph

    made = df.thermo.profile(
        df.Denoiser(network, FLOW, predicts="x0"),
        MIXTURE.sample(200),
        levels=6,
        measure=("rotation", "decisions"),
        local=32,
    )
    assert made.local_rho.size == 6 and made.critical_rho.size == 1
    assert any("differences" in note for note in made.notes)


def test_what_fails_becomes_a_note():
    """A plan with noise has no probability flow: the rest is measured all the same."""
    plan = df.solvers.dpmpp_2m_sde(FLOW, df.grids.default(FLOW, 8))
    made = df.thermo.profile(
        MIXTURE.denoiser(FLOW), MIXTURE.sample(200), levels=6, measure="samples", plan=plan
    )
    assert math.isnan(made.eta.value) and made.mmse.size == 6
    assert any("draws noise" in note for note in made.notes)


@pytest.mark.slow
def test_the_digit_network():
    """What the page of the digit network shows, on its own samples."""
    denoiser = df.Denoiser(
        df.digits.load_unet(),
        df.schedules.edm(),
        predicts="x0",
        conditions={"labels": torch.arange(10)},
    )
    made = df.thermo.profile(
        denoiser, shape=(48, 1, 28, 28), levels=10, measure=("rotation", "clones"), local=12
    )
    assert made.data == "generated" and made.d == 784
    assert (np.diff(made.mmse) < 0).all()
    wrong, _ = made.speed_error
    assert np.abs(wrong[(made.rho > 0.05) & (made.rho < 30)]).max() < 0.03
    # rotation at noise alone, a gradient field near the data
    assert made.nonconservativity[0] > 0.03 > 0.01 > made.nonconservativity[-1]
    assert made.clone_agreement[-1] > 0.9 > 0.6 > made.clone_agreement[0]
