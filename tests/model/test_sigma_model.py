"""Networks of a noise level, against the formulas of k-diffusion's and EDM's wrappers."""

import warnings

import pytest
import torch

import diffast as df
from diffast.integrations import k_diffusion

SIGMAS = (0.01, 0.7, 20.0)


def inner(x, level, shift=0.0):
    return torch.tanh(x + level.reshape(-1, *[1] * (x.dim() - 1))) + shift


def noise(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*(shape or (4, 3)), dtype=torch.float64, generator=generator)


def scales(sigma, data):
    total = sigma**2 + data**2
    return data**2 / total, sigma * data / total**0.5, total**-0.5


@pytest.mark.parametrize("sigma", SIGMAS)
def test_edm_preconditioning(sigma):
    denoiser = df.Denoiser.from_sigma_model(
        inner, predicts="edm", scaled_input=True, sigma_data=0.5, level="log(sigma)/4"
    )
    skip, out, scale = scales(sigma, 0.5)
    x = noise()
    level = torch.full((4,), sigma, dtype=torch.float64).log() / 4
    wanted = skip * x + out * inner(scale * x, level)
    torch.testing.assert_close(denoiser.x0(x, sigma), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_wrapper_of_v_diffusion(sigma):
    """VDenoiser of k_diffusion.external: c_in, c_out = -sigma c_in and c_skip = c_in^2."""
    x, level = noise(2, 1, 4, 4), torch.full((2,), sigma, dtype=torch.float64)

    def wrapped(x, sigma):
        sigma = sigma.reshape(-1, 1, 1, 1)
        scale = (sigma**2 + 1) ** -0.5
        told = sigma.reshape(-1).atan() / torch.pi * 2
        return scale**2 * x - sigma * scale * inner(scale * x, told)

    whole = df.Denoiser.from_sigma_model(wrapped, predicts="x0")
    alone = df.Denoiser.from_sigma_model(
        inner, predicts="v", scaled_input=True, level="2/pi atan(sigma)"
    )
    wanted = wrapped(x, level)
    for denoiser in (whole, alone):
        torch.testing.assert_close(denoiser.x0(x, sigma), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
def test_epsilon_networks_with_conditions(scaled):
    """smalldiffusion's convention with a scaled input; a function of sigma as the level."""
    denoiser = df.Denoiser.from_sigma_model(
        inner,
        0.01,
        10.0,
        predicts="epsilon",
        scaled_input=scaled,
        level=lambda sigma: sigma / 2,
        conditions={"shift": torch.full((1, 1), 0.25)},
    )
    assert denoiser.schedule == df.schedules.edm(0.01, 10.0)
    x, sigma = noise(), 3.0
    given = x / 10**0.5 if scaled else x
    half = torch.full((4,), 1.5, dtype=torch.float64)
    wanted = x - sigma * inner(given, half, 0.25)
    torch.testing.assert_close(denoiser.x0(x, sigma), wanted, rtol=1e-12, atol=1e-12)


def test_half_networks_keep_the_state_in_float32():
    """At sigma = 80 a state in bfloat16 would lose the data."""
    seen = []

    def half(x, level):
        seen.append((x.dtype, level.dtype))
        return torch.zeros_like(x)

    denoiser = df.Denoiser.from_sigma_model(
        half,
        predicts="edm",
        scaled_input=True,
        dtype=torch.bfloat16,
        time_dtype=torch.bfloat16,
    )
    x = noise().float()
    plan = df.solvers.euler(denoiser.schedule, df.grids.karras(denoiser.schedule, 3))
    df.sample(denoiser, plan, x=80 * x)
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 3
    torch.testing.assert_close(denoiser.x0(80 * x, 80.0), 80 * x / 6401)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, TypeError, "predicts is missing"),
        ({"predicts": "flow"}, ValueError, "predicts 'flow' but a network of a noise level"),
        ({"predicts": "x0", "level": "log"}, ValueError, "level is 'log' but must be"),
        ({"predicts": "x0", "sigma_data": 0.0}, ValueError, "sigma_data is 0.0"),
        ({"predicts": "x0", "sigma_max": 0.001}, ValueError, "sigma_min = 0.002 and sigma_max"),
    ],
)
def test_what_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        df.Denoiser.from_sigma_model(inner, **given)
    with pytest.raises(ValueError, match="must be callable"):
        df.Denoiser.from_sigma_model(3, predicts="x0")


# A start whose spread is not sigma


def zero(x, t):
    return torch.zeros_like(x)


@pytest.mark.parametrize("factor", [1 / 80, 80.0])
def test_a_start_of_another_spread_warns(factor):
    schedule = df.schedules.edm()
    denoiser = df.Denoiser(zero, schedule, "x0")
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3))
    x = 80.0 * factor * noise(8, 8)
    with pytest.warns(UserWarning, match="sample: x has root mean square .* sigma = 80"):
        df.sample(denoiser, plan, x=x)
    with pytest.warns(UserWarning, match="sample_adaptive: x has root mean square"):
        df.sample_adaptive(denoiser, "bosh3", x=x)
    with pytest.warns(UserWarning, match="sample_parallel: x has root mean square"):
        df.sample_parallel(denoiser, plan, x=x)


@pytest.mark.parametrize("deviation", [1.0, 80.0])
def test_noise_of_another_level_for_a_late_start_warns(deviation):
    """Unit noise, and noise of the schedule's sigma, for a plan that starts at sigma = 5."""
    schedule = df.schedules.edm()
    denoiser = df.Denoiser(zero, schedule, "x0")
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3, sigma_max=5.0))
    x = noise(8, 64)
    fine, wrong = 5.0 * x, deviation * x
    named = "root mean square .* t = 5 it should be noise of deviation sigma = 5"
    for run in (df.sample, df.sample_parallel):
        run(denoiser, plan, x=fine)  # warnings are errors
        with pytest.warns(UserWarning, match=named):
            run(denoiser, plan, x=wrong)
    late = df.Stepper(plan, denoiser)
    late.start(fine)
    with pytest.warns(UserWarning, match=named):
        late.start(wrong)
    highest = df.solvers.euler(schedule, df.grids.karras(schedule, 3))
    both = df.Stepper([(plan, denoiser), (highest, denoiser)])
    numbers = torch.arange(8) % 2
    both.start(x * torch.where(numbers == 0, 5.0, 80.0)[:, None], plan=numbers)
    with pytest.warns(UserWarning, match=named):
        both.start(80.0 * x, plan=numbers)
    sigmas = k_diffusion.get_sigmas_plan(plan)
    k_diffusion.sample_plan(zero, sigmas[0] * x, plan, disable=True)
    for factor in (deviation, 10.0):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            k_diffusion.sample_plan(zero, factor * x, plan, disable=True)
        assert "get_sigmas_plan(plan)" in str(said[0].message)


def test_right_starts_and_small_ones_are_silent():
    """So are starts part-way, which hold data, and those that nothing looks at."""
    schedule = df.schedules.edm()
    denoiser = df.Denoiser(zero, schedule, "x0")
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3))
    df.sample(denoiser, plan, x=80 * noise(8, 8))
    df.sample(denoiser, plan, x=noise(2, 3))
    df.sample(denoiser, plan, x=noise(8, 8), check=False)
    part = df.solvers.euler(schedule, [2.0, 1.0, 0.0])
    df.sample(denoiser, part, x=noise(8, 8) / 4)
