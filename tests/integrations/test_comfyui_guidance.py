"""A guidance rule as ComfyUI's cfg function: the rule on the denoised latents."""

import importlib
from types import SimpleNamespace

import pytest
import torch

import diffast as df


def args(step, scale=4.0, sigma=None):
    generator = torch.Generator().manual_seed(step)
    x, cond, uncond = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    sigma = torch.full((2,), float(10 - step) if sigma is None else sigma)
    given = {"cond_denoised": cond, "uncond_denoised": uncond, "cond_scale": scale, "sigma": sigma}
    return given | {"cond": x - cond, "uncond": x - uncond, "input": x}


def apg(given, momentum, eta=0.5, factor=-0.5, scale=4.0):
    """Sadat et al. 2024 on the denoised latents."""
    cond, uncond = given["cond_denoised"].double(), given["uncond_denoised"].double()
    d = cond - uncond if momentum is None else cond - uncond + factor * momentum
    along = (d * cond).flatten(1).sum(1) / cond.flatten(1).square().sum(1)
    part = along[:, None, None, None] * cond
    return cond + (scale - 1.0) * (d - part + eta * part), d


def test_a_rule_with_momentum_and_a_second_run(comfy):
    function = comfy_guidance().cfg_function("apg:eta=0.5,momentum=-0.5")
    for _ in range(2):  # the level rises where the second run begins
        momentum = None
        for step in range(4):
            given = args(step)
            want, momentum = apg(given, momentum)
            got = given["input"] - function(given)
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_a_run_after_one_that_was_ended_at_its_first_step(comfy):
    """The level does not rise between the two, but the run's levels are another tensor."""
    function = comfy_guidance().cfg_function("apg:eta=0.5,momentum=-0.5")
    for _ in range(2):
        levels = {"transformer_options": {"sample_sigmas": torch.ones(4)}}
        given = args(0) | {"model_options": levels}
        want, _ = apg(given, None)
        got = given["input"] - function(given)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def comfy_guidance():
    return importlib.import_module("diffast.integrations.comfyui.guidance")


def test_the_node_patches_a_copy_and_a_scale_of_1_is_the_conditional(comfy):
    nodes = importlib.import_module("diffast.integrations.comfyui.nodes")
    patched = []
    model = SimpleNamespace(
        clone=lambda: SimpleNamespace(set_model_sampler_cfg_function=patched.append)
    )
    node = nodes.NODE_CLASS_MAPPINGS["DiffastGuidance"]
    (made,) = getattr(node(), node.FUNCTION)(model, "tcfg")
    assert made is not model and len(patched) == 1
    given = args(0, scale=1.0)
    torch.testing.assert_close(patched[0](given), given["cond"])


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("apgg", "guidance rule 'apgg' is not known"),
        ("interval:low=1,high=2", "has an interval of noise levels"),
        ("dynamic_threshold", "needs x0 estimates"),
    ],
)
def test_rules_that_comfyui_cannot_have(text, facts, comfy):
    with pytest.raises(ValueError, match=facts):
        comfy_guidance().cfg_function(text)


def test_a_text_is_a_rule():
    assert df.guidance.parse("apg:eta=0.5", 3.0) == df.guidance.apg(3.0, eta=0.5)
