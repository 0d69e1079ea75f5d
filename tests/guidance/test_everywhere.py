"""No executor drops guidance terms or rules in silence: it runs them, or refuses in a sentence."""

import numpy as np
import pytest
import torch

import diffast as df

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 4)
PLAN = df.solvers.euler(VP, GRID)


def network(x, t, shift=0.0):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def far(x0, t):
    return (x0 - 0.3).square().sum(1)


def start():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ruled(rule, **more):
    shift = {"shift": torch.full((1, 4), 0.25)}, {"shift": torch.zeros(1, 4)}
    return df.Denoiser(
        network, VP, "x0", conditions=shift[0], unconditional=shift[1], guidance=rule, **more
    )


TERMS = {
    "x": df.guidance.gradient(lambda x, t: 0.5 - x, 0.3),
    "x0": df.guidance.loss(far, 0.1, through="x0"),
    "network": df.guidance.loss(far, 0.1),
}
RESCALED = df.guidance.rescale(0.7, 2.0)
THIRD = df.guidance.perturbed(1.0, conditions={"shift": torch.full((1, 4), -0.5)}, scale=2.0)


@pytest.mark.parametrize("kind", TERMS)
def test_the_estimate_for_inspection_has_the_terms(kind):
    """One step of Euler to sigma = 0 is the x0 estimate itself."""
    one = df.solvers.euler(VP, np.array([0.7, VP.t_end]))
    for denoiser in (
        df.Denoiser(network, VP, "x0", guides=[TERMS[kind]]),
        ruled(1.7, guides=[TERMS[kind]]),
    ):
        want = df.sample(denoiser, one, x=start()).x
        got = denoiser.x0(start(), 0.7)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        assert float((got - df.Denoiser(network, VP, "x0").x0(start(), 0.7)).abs().max()) > 1e-3


def refusals():
    stepper = df.Stepper
    return {
        "Stepper, rescale": (
            lambda: stepper(PLAN, ruled(RESCALED)),
            "guidance is guidance.cfg with guidance.rescale, which needs",
        ),
        "adaptive, rescale": (
            lambda: df.sample_adaptive(ruled(RESCALED), "bosh3", x=start()),
            "guidance is guidance.* but the tables of its steps have the two branches",
        ),
        "adaptive together, third": (
            lambda: df.sample_adaptive(ruled(THIRD), "bosh3", x=start(), control="batch"),
            "guidance is guidance.perturbed, but the tables",
        ),
        "parallel, rescale": (
            lambda: df.sample_parallel(ruled(RESCALED), PLAN, x=start()),
            "guidance is guidance.*only df.sample runs such rules",
        ),
        "parallel, third": (
            lambda: df.sample_parallel(ruled(THIRD), PLAN, x=start()),
            "a third branch of the network, but a sweep weighs two outputs",
        ),
        "tune, terms": (
            lambda: df.tune(df.Denoiser(network, VP, "x0", guides=[TERMS["x"]]), 4, (8, 4)),
            "1 guidance terms, but a plan is tuned",
        ),
        "tune, rule": (
            lambda: df.tune(ruled(RESCALED), 4, (8, 4)),
            "tune: guidance is guidance.*, but a plan is tuned with classifier-free guidance alone",
        ),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_be_had_is_refused(name):
    call, facts = refusals()[name]
    with pytest.raises(ValueError, match=facts):
        call()


def test_a_third_branch_on_the_stepper():
    denoiser = ruled(THIRD)
    stepper = df.Stepper(PLAN, denoiser)
    state, x, t = stepper.start(start())
    with pytest.raises(ValueError, match="third branch, but its output is not given"):
        stepper.step(state, (network(x, t), network(x, t)))
    while not stepper.done(state):
        outputs = tuple(network(x, t, shift) for shift in (0.25, 0.0, -0.5))
        state, x, t = stepper.step(state, outputs)
    want = df.sample(denoiser, PLAN, x=start()).x
    np.testing.assert_allclose(state.x, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [RESCALED, THIRD])
def test_a_number_of_calls_finds_a_plan_for_a_rule(rule):
    made = df.sample(ruled(rule), calls=6, x=start())
    assert made.nfe.tolist() == [6] * 3
    assert df.plan(ruled(rule), 6).name == df.plan(ruled(2.0), 6).name
