"""ComfyUI's callback: what it is given, and what its writes change."""

import sys

import comfy_runs
import pytest
import torch
from comfy_stand_in import Const, Eps

LEVELS = [4.0, 2.0, 1.0, 0.5, 0.0]


def run(name, callback, kind=Eps, levels=LEVELS):
    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler
    x, model = comfy_runs.start(levels, dtype=torch.float32), comfy_runs.Model(kind())
    extra_args = {"model_options": {}, "seed": 3}
    sigmas = torch.tensor(levels)
    return make(name, "torch")(model, x, sigmas, extra_args=extra_args, callback=callback)


def test_every_sampler_calls_it_once_a_step_with_the_steps_estimate(comfy):
    names = sys.modules["diffast.integrations.comfyui.samplers"].SAMPLERS
    for name in names:
        seen = []
        run(name, seen.append)
        assert [info["i"] for info in seen] == [0, 1, 2, 3], name
        assert set(seen[0]) == {"x", "i", "sigma", "sigma_hat", "denoised"}
        model = comfy_runs.Model(Eps())
        for info, level in zip(seen, LEVELS, strict=False):
            assert float(info["sigma"]) == float(info["sigma_hat"]) == level, name
            wanted = model.both(info["x"], torch.full((2,), level))[0]
            torch.testing.assert_close(info["denoised"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 3])
def test_writes_into_the_estimate_count_where_comfyuis_step_reads_it_later(comfy, step):
    """euler and its kin make the slope before they call; lms reads the last estimate after it."""

    def write(info):
        if info["i"] == step:
            info["denoised"].mul_(0.5)

    for name in ("euler", "heun", "heunpp2", "dpm_2", "lms", "gradient_estimation"):
        changed = comfy_runs.relative(run(name, write), run(name, None))
        late = step == 3 and name in ("lms", "gradient_estimation")
        assert changed > 0.1 if late else changed == 0.0, name
    for name in ("dpmpp_2m", "euler_ancestral", "euler_cfg_pp", "res_multistep", "er_sde"):
        assert comfy_runs.relative(run(name, write), run(name, None)) > 0.01, name


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler_ancestral", "euler_cfg_pp"])
def test_a_written_estimate_is_the_one_that_the_step_takes(comfy, name):
    def write(info):
        info["denoised"].clamp_(-0.2, 0.2)

    assert float(run(name, write).abs().max()) <= 0.2 + 1e-6


@pytest.mark.parametrize("write", [lambda x: x.zero_(), lambda x: x.data.zero_()])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m_cfg_pp"])
def test_a_callback_that_writes_into_x_gets_a_sentence(comfy, name, write):
    with pytest.raises(ValueError, match=f"sample_diffast_{name}: the callback wrote into x at"):
        run(name, lambda info: write(info["x"]))


def test_sigmas_written_during_a_run_get_a_sentence(comfy):
    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler
    x, sigmas = comfy_runs.start(LEVELS, dtype=torch.float32), torch.tensor(LEVELS)
    with pytest.raises(ValueError, match="sample_diffast_heun: the callback wrote into sigmas at"):
        make("heun")(comfy_runs.Model(Eps()), x, sigmas, {}, lambda info: sigmas[2:].mul_(0.9))


@pytest.mark.parametrize("name", ["sa_solver_pece", "dpmpp_2s_ancestral_cfg_pp", "dpm_adaptive"])
def test_a_callback_that_raises_ends_the_run(comfy, name):
    class Interrupted(Exception):
        pass

    def stop(info):
        if info["i"] == 1:
            raise Interrupted

    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler
    x = comfy_runs.start([1.0], rows=1, dtype=torch.float32)
    sigmas = torch.tensor([1.0, 0.5, 0.1, 0.0])
    with pytest.raises(Interrupted):
        make(name)(comfy_runs.Model(Const()), x, sigmas, {"seed": 3}, stop, True)


def test_estimates_that_are_not_finite_get_a_sentence(comfy):
    model, x = comfy_runs.Model(Eps()), comfy_runs.start([4.0], dtype=torch.float32)
    model.both = lambda x, sigma: (x / 0.0 if float(sigma[0]) < 2.0 else x, x)
    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler
    with pytest.raises(FloatingPointError, match="sample_diffast_euler.*not finite at sigma = 1"):
        make("euler")(model, x, torch.tensor(LEVELS), disable=True)
