"""Each name of ComfyUI gives the numbers of its formula, on both kinds of model."""

import sys

import comfy_runs
import pytest
import torch
from comfy_formulas import as_generator
from comfy_stand_in import Const, Eps

KINDS = [Eps, Const]


def names_of(comfy):
    table = sys.modules["diffast.integrations.comfyui.table"].SAMPLERS
    return [name for name, entry in table.items() if entry.original != ""]


def ours(comfy, name, model, x, sigmas, noise="torch", seed=3, **options):
    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler
    extra_args = {"model_options": {}, "seed": seed}
    return make(name, noise, **options)(model, x, sigmas, extra_args=extra_args, disable=True)


def compared(comfy, name, kind, levels, dtype=torch.float64, **options):
    """Returns how far the sampler of a name is from its formula, and the model that it called."""
    model, x = comfy_runs.Model(kind()), comfy_runs.start(levels, dtype=dtype)
    sigmas = torch.tensor(levels, dtype=dtype)
    made = ours(comfy, name, model, x, sigmas, **options)
    normal = as_generator(3, x.shape, dtype)
    wanted = comfy_runs.formula(name, model, x, sigmas, normal, kind is Const, **options)
    assert made.dtype == dtype and made.shape == x.shape
    return comfy_runs.relative(made, wanted), model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["full", "open", "short"])
def test_every_name_gives_its_formulas_numbers(comfy, kind, what):
    levels = comfy_runs.LEVELS[kind is Const][what]
    for name in names_of(comfy):
        if not name.endswith("_gpu"):
            error, _ = compared(comfy, name, kind, levels)
            assert error < 1e-10, name


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_levels_far_from_the_models_give_the_formulas_numbers(comfy, kind):
    for name in names_of(comfy):
        what = "cut" if kind is Const else "far"
        levels = comfy_runs.LEVELS[kind is Const][what]
        error, _ = compared(comfy, name, kind, levels, torch.float32)
        assert error < 2e-5, name


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("kind", KINDS)
def test_options_are_those_of_comfyui(comfy, kind, eta):
    levels = comfy_runs.LEVELS[kind is Const]["cut"]
    table = sys.modules["diffast.integrations.comfyui.table"].SAMPLERS
    for name, entry in table.items():
        if entry.stochastic and entry.original is None:
            error, _ = compared(comfy, name, kind, levels, eta=eta)
            assert error < 1e-10, name
    error, _ = compared(comfy, "gradient_estimation_cfg_pp", kind, levels, ge_gamma=1.5)
    assert error < 1e-10


def test_a_step_calls_the_model_where_the_formula_does(comfy):
    calls = {}
    for name in ("heunpp2", "sa_solver_pece", "dpmpp_2s_ancestral_cfg_pp", "exp_heun_2_x0"):
        levels = comfy_runs.LEVELS[False]["short"]
        model = compared(comfy, name, Eps, levels)[1]
        calls[name] = [round(call, 4) for call in model.calls]
    assert calls["heunpp2"] == [14.6, 1.0, 1.0]
    assert calls["sa_solver_pece"] == [14.6, 1.0, 1.0]
    assert calls["exp_heun_2_x0"] == [14.6, 1.0, 1.0]
    assert len(calls["dpmpp_2s_ancestral_cfg_pp"]) == 3


def test_names_of_the_log_snr_are_other_maps_on_flow_models_alone(comfy):
    levels = comfy_runs.LEVELS[True]["full"]
    sigmas = torch.tensor(levels, dtype=torch.float64)
    for name in ("dpmpp_2m", "res_multistep"):
        model, x = comfy_runs.Model(Const()), comfy_runs.start(levels)
        apart = ours(comfy, name, model, x, sigmas) - ours(
            comfy, f"{name}_logsnr", model, x, sigmas
        )
        assert float(apart.abs().max()) > 1e-3
        model, sigma = comfy_runs.Model(Eps()), 14.6 * sigmas
        a, b = (ours(comfy, each, model, x, sigma) for each in (name, f"{name}_logsnr"))
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_guider_without_an_unconditional_branch_gets_a_sentence(comfy):
    model, x = comfy_runs.Model(Eps()), comfy_runs.start([2.0])
    model.both = lambda x, sigma: (x, None)
    with pytest.raises(ValueError, match="euler_cfg_pp: this sampler needs an unconditional"):
        ours(comfy, "euler_cfg_pp", model, x, torch.tensor([2.0, 1.0, 0.0]))
