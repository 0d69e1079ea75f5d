"""Rules as guiders of diffusers: the outputs of diffusers' own guiders."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

import diffusers  # noqa: E402
from diffusers import guiders  # noqa: E402

import diffast as df  # noqa: E402
from diffast.integrations.diffusers import guider  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
G = df.guidance
STEPS = 6


def outputs(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.randn(2, 3, 8, 8, generator=generator).to(dtype) for _ in range(2))


def run(made, dtype=torch.float32):
    """What a pipeline's loop gets at each step."""
    found = []
    for step in range(STEPS):
        made.set_state(step, STEPS, torch.tensor(900 - 100 * step))
        cond, uncond = outputs(step, dtype)
        data = made.prepare_inputs({"x": (cond, uncond)})
        assert len(data) == made.num_conditions
        for part in data:
            part.noise_pred = part.x
        found.append(made(data).pred)
    return torch.stack(found)


THEIRS = {
    "cfg": (G.cfg(4.0), lambda: guiders.ClassifierFreeGuidance(4.0)),
    "rescale": (G.rescale(0.7, 4.0), lambda: guiders.ClassifierFreeGuidance(4.0, 0.7)),
    "zero": (
        G.cfg_zero_star(4.0, zero_init_steps=1),
        lambda: guiders.ClassifierFreeZeroStarGuidance(4.0, zero_init_steps=1),
    ),
    "apg": (
        G.apg(4.0, eta=0.5, norm_threshold=7.0, momentum=-0.5, base="uncond"),
        lambda: guiders.AdaptiveProjectedGuidance(
            4.0,
            adaptive_projected_guidance_momentum=-0.5,
            adaptive_projected_guidance_rescale=7.0,
            eta=0.5,
        ),
    ),
    "tcfg": (G.tcfg(4.0), lambda: guiders.TangentialClassifierFreeGuidance(4.0)),
}


@pytest.mark.parametrize("name", THEIRS)
def test_a_rule_is_diffusers_guider(name):
    rule, theirs = THEIRS[name]
    got, want = run(guider(rule)), run(theirs())
    assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())
    torch.testing.assert_close(run(guider(rule).new()), got, rtol=0, atol=0)


def test_a_second_run_forgets_the_momentum():
    made = guider(THEIRS["apg"][0])
    first = run(made)
    torch.testing.assert_close(run(made), first, rtol=0, atol=0)


def test_outside_of_start_and_stop_one_branch_is_called():
    made, theirs = (
        guider(G.cfg(4.0), 0.2, 0.7),
        guiders.ClassifierFreeGuidance(4.0, start=0.2, stop=0.7),
    )
    torch.testing.assert_close(run(made), run(theirs), rtol=1e-5, atol=1e-5)
    counts = []
    for step in range(STEPS):
        made.set_state(step, STEPS, torch.tensor(0))
        counts.append(made.num_conditions)
    assert counts == [1, 2, 2, 2, 1, 1]


def test_half_precision_and_scales_of_the_timestep():
    got = run(guider(G.cfg(lambda t: 2.0 if t > 500 else 1.0)), torch.bfloat16)
    assert got.dtype == torch.bfloat16
    for step in range(STEPS):
        cond, uncond = outputs(step, torch.bfloat16)
        want = cond if step > 3 else (2.0 * cond.float() - uncond.float()).bfloat16()
        torch.testing.assert_close(got[step], want, rtol=0, atol=0)


def test_a_modular_pipeline_takes_it():
    """The class check and the configuration of a component."""
    made = guider(G.apg(3.0))
    assert isinstance(made, guiders.BaseGuidance)
    assert made.config.rule == "guidance.apg"
    made.disable()
    assert made.num_conditions == 1


@pytest.mark.parametrize(
    ("rule", "facts"),
    [
        (lambda: G.perturbed(1.0, conditions={"a": 1}), "perturbed has a branch or a network of"),
        (
            lambda: G.dynamic_threshold(0.9, rule=2.0),
            "dynamic_threshold needs x0 estimates, but the",
        ),
        (lambda: G.tcfg(2.0, space="x0"), "guidance.tcfg needs x0 estimates, but the network"),
        (lambda: G.interval(2.0, 0.2, 5.0), "has an interval of noise levels, which is not"),
    ],
)
def test_rules_that_a_guider_cannot_run(rule, facts):
    with pytest.raises(ValueError, match=facts):
        guider(rule())


def test_branches_of_different_shapes():
    made = guider(G.cfg(2.0))
    with pytest.raises(ValueError, match=r"branches are \[2, 3\] and \[1, 3\], but they must be"):
        made.forward(torch.ones(2, 3), torch.ones(1, 3))
