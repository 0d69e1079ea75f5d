"""No executor drops guidance terms or rules in silence: it runs them, or refuses in a sentence."""

import numpy as np
import pytest
import torch

import diffast as df

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 4)
PLAN = df.solvers.euler(VP, GRID)
SHIFT = torch.tensor([[0.25, -0.5, 0.5, 0.0]])  # elements that differ, exact in every dtype


def network(x, t, shift=0.0):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def far(x0, t):
    return (x0 - 0.3).square().sum(1)


def start():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ruled(rule, **more):
    shift = {"shift": SHIFT}, {"shift": torch.zeros(1, 4)}
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
THRESHOLD = df.guidance.dynamic_threshold(0.9, rule=2.0)
INTERVAL = df.guidance.interval(df.guidance.tcfg(2.0), 0.1, 2.0)
MOMENTUM = df.guidance.apg(2.0, momentum=-0.5)


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
        "Stepper, threshold at stages of their own": (
            lambda: stepper(PLAN, ruled(THRESHOLD)).start(start(), each=True),
            "dynamic_threshold, which takes a quantile of the x0 estimate, whose weights depend",
        ),
        "adaptive, threshold": (
            lambda: df.sample_adaptive(ruled(THRESHOLD), "bosh3", x=start()),
            "dynamic_threshold, which needs x0 estimates, which every row has at a noise level",
        ),
        "adaptive together, interval": (
            lambda: df.sample_adaptive(ruled(INTERVAL), "bosh3", x=start(), control="batch"),
            "guidance is guidance.tcfg, which depends on the time, and every row has its own",
        ),
        "parallel, momentum": (
            lambda: df.sample_parallel(ruled(MOMENTUM), PLAN, x=start()),
            "guidance is guidance.apg, which depends on the calls before, which are not the same",
        ),
        "parallel, a term through the network": (
            lambda: df.sample_parallel(ruled(RESCALED, guides=[TERMS["network"]]), PLAN, x=start()),
            "rescale, which has no derivative, and a guidance term is taken through the network",
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
        outputs = tuple(network(x, t, shift) for shift in (SHIFT, 0.0, -0.5))
        state, x, t = stepper.step(state, outputs)
    want = df.sample(denoiser, PLAN, x=start()).x
    np.testing.assert_allclose(state.x, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", [RESCALED, THIRD])
def test_a_number_of_calls_finds_a_plan_for_a_rule(rule):
    made = df.sample(ruled(rule), calls=6, x=start())
    assert made.nfe.tolist() == [6] * 3
    assert df.plan(ruled(rule), 6).name == df.plan(ruled(2.0), 6).name


def weak(x, t, shift):
    return 0.9 * network(x, t, shift) - 0.05


RULES = {
    "rescale": RESCALED,
    "apg": df.guidance.apg(3.0, eta=0.3, norm_threshold=0.5),
    "third": THIRD,
    "auto": df.guidance.autoguidance(weak, 2.0),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("terms", [(), ("x", "x0")])
def test_rules_in_parallel_runs(name, terms):
    """The samples of df.sample; rows of every branch are counted."""
    denoiser = ruled(RULES[name], guides=[TERMS[kind] for kind in terms])
    want = df.sample(denoiser, PLAN, x=start())
    got = df.sample_parallel(denoiser, PLAN, x=start(), tol=0)
    np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-10)
    branches = 3 if name == "third" else 2
    assert got.network_rows.tolist() == (branches * got.nfe).tolist()


@pytest.mark.parametrize("name", RULES)
def test_rules_in_adaptive_runs(name):
    """A network that returns the guided output by itself; samples leave the batch one by one."""
    shifts = torch.linspace(-0.5, 0.5, 12, dtype=torch.float64).reshape(3, 4)
    more = {"conditions": {"shift": shifts}, "unconditional": {"shift": torch.zeros(1, 4)}}
    own = df.Denoiser(network, VP, "x0", guidance=RULES[name], **more)
    whole = df.sample_adaptive(own, "pec", x=start(), seed=3)
    for b in range(3):
        row = more | {"conditions": {"shift": shifts[b : b + 1]}}
        alone = df.Denoiser(network, VP, "x0", guidance=RULES[name], **row)

        def guided(x, t, alone=alone):
            made = [alone.x0(x[i : i + 1], float(t[i])) for i in range(len(x))]
            return torch.cat(made)

        x = start()[b : b + 1]
        got = df.sample_adaptive(df.Denoiser(guided, VP, "x0"), "pec", x=x, seed=3, ids=[b])
        np.testing.assert_allclose(whole.x[b : b + 1], got.x, rtol=0, atol=1e-9)
    branches = 3 if name == "third" else 2
    assert whole.network_rows.tolist() == (branches * whole.nfe).tolist()


def test_a_rule_with_shared_steps():
    denoiser = ruled(RESCALED)
    other = df.Denoiser(lambda x, t: denoiser.x0(x, float(t[0])), VP, "x0")
    got, want = (
        df.sample_adaptive(d, "bosh3", x=start(), control="batch") for d in (denoiser, other)
    )
    np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-9)
    assert got.network_rows.tolist() == (2 * got.nfe).tolist()


@pytest.mark.parametrize("make", [df.solvers.euler, df.solvers.dpmpp_2m])
def test_plans_that_weigh_one_branch_on_the_stepper(make):
    """CFG++: together, and each sample at a stage of its own."""
    plan, denoiser = df.solvers.cfg_plus_plus(make(VP, GRID)), ruled(0.6)
    want = df.sample(denoiser, plan, x=start()).x
    stepper = df.Stepper(plan, denoiser)
    for each in (False, True):
        state, x, t = stepper.start(start(), each=each)
        for _ in range(plan.nfe):
            state, x, t = stepper.step(state, (network(x, t, SHIFT), network(x, t)))
        np.testing.assert_allclose(stepper.result(state).x, want, rtol=0, atol=1e-12)
