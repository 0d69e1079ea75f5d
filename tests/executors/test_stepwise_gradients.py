"""Guidance terms on the Stepper: the bits of `df.sample`, together and each at its own stage."""

import math

import pytest
import torch

import diffast as df
from diffast import ops
from diffast.executors.stepwise import Stepper
from diffast.plans.registers import Stages

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 5)
IDS = [5, -3, 2**61, 0]
SHAPE = (4, 6)


def network(x, t, shift=0.0):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def pull(x, t):
    return (0.5 - x) * (1 + t.reshape(-1, 1))


def far(x0, t):
    return (x0 - 0.3).square().sum(1)


TERMS = {
    "x": [df.guidance.gradient(pull, 0.2)],
    "x0": [df.guidance.loss(far, 0.05, through="x0")],
    "network": [df.guidance.loss(far, lambda t: 0.05 * (1 + t))],
    "all": [
        df.guidance.gradient(pull, 0.2),
        df.guidance.loss(far, lambda t: 0.05 * (t < 0.7), through="x0"),
        df.guidance.loss(far, 0.02),
    ],
}
HOWS = {"plain": {}, "clamp": {"clamp": (-0.4, 0.4)}, "hook": {"on_x0": lambda x0, info: 0.9 * x0}}


def split():
    """Euler; after each step the gradients at the new state."""
    stages = Stages(VP, GRID[0])
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        a, s, b, r = (float(f(t)) for t in (start, end) for f in (VP.alpha, VP.sigma))
        stages.add(start, end, {"x": r / s, "d": b - a * r / s})
        stages.add(None, end, {"x": 1.0, "g1": 0.1}, gradient=end)
    return stages.plan("split", len(GRID) - 1)


def advance(stepper, state, x, t, steps=None, shift=None):
    """The state after `steps`, or at the end of all samples."""
    count = 0
    while count != steps:
        done = stepper.done(state)
        if bool(done) if isinstance(done, bool) else bool(done.all()):
            break
        needs, output, leaf = stepper.needs(state), None, None
        with torch.enable_grad():
            if needs.network:
                leaf = x.detach().requires_grad_() if needs.graph else x
                if shift is None:
                    output = network(leaf, t)
                else:
                    cond, uncond = network(torch.cat([leaf] * 2), t.repeat(2)).split(len(x))
                    output = cond + shift, uncond
        gradients = stepper.gradients(state, output, leaf)
        state, x, t = stepper.step(state, output, gradients=gradients)
        count += 1
    return state, x, t


def staggered(stepper, noise):
    parts = []
    for b in range(len(noise)):
        begun = stepper.start(noise[b : b + 1], seed=7, ids=IDS[b : b + 1])
        parts.append(advance(stepper, *begun, steps=b)[0])
    state = stepper.join(*parts)
    return state, state.x, stepper.time(state)


PLANS = {
    "euler": df.solvers.euler(VP, GRID),
    "dpmpp_3m_sde": df.solvers.dpmpp_3m_sde(VP, GRID),
    "heun": df.solvers.heun(VP, GRID),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("name", PLANS)
def test_terms_give_the_bits_of_sample(name, kind, how):
    plan, noise = PLANS[name], ops.normal(SHAPE, seed=4)
    denoiser = df.Denoiser(network, VP, "v", guides=TERMS[kind])
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS, **HOWS[how])
    stepper = Stepper(plan, denoiser, **HOWS[how])
    state, *_ = advance(stepper, *stepper.start(noise, seed=7, ids=IDS))
    assert torch.equal(state.x, wanted.x)
    ragged, *_ = advance(stepper, *staggered(stepper, noise))
    assert torch.equal(ragged.x, wanted.x)
    for made in (state, ragged):
        result = stepper.result(made)
        assert result.nfe.tolist() == wanted.nfe.tolist()
        assert result.network_rows.tolist() == wanted.network_rows.tolist()


@pytest.mark.parametrize("kind", ["x", "network"])
def test_stages_of_gradients_alone(kind):
    """The caller is told that no network call is needed, and nfe counts none."""
    plan, noise = split(), ops.normal(SHAPE, seed=4)
    denoiser = df.Denoiser(network, VP, "x0", guides=TERMS[kind])
    wanted = df.sample(denoiser, plan, x=noise)
    stepper = Stepper(plan, denoiser)
    state, x, t = stepper.start(noise)
    assert stepper.needs(state) == (True, (), False)
    state, x, t = advance(stepper, state, x, t, steps=1)
    assert stepper.needs(state) == (kind == "network", (1,), kind == "network")
    state, *_ = advance(stepper, state, x, t)
    assert torch.equal(state.x, wanted.x)
    assert wanted.nfe.tolist() == [5 if kind == "x" else 10] * 4
    assert stepper.result(state).nfe.tolist() == wanted.nfe.tolist()
    ragged, *_ = advance(stepper, *staggered(stepper, noise))
    assert torch.equal(ragged.x, wanted.x)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("build", ["ltsp", "stsp", "additive_multistep"])
def test_splitting_solvers_clamp_the_estimates_that_they_make(build, how):
    """A sub-step along gradients alone has no x0 estimate, also beside samples that have one."""
    plan, noise = getattr(df.solvers, build)(VP, GRID), ops.normal(SHAPE, seed=4)
    denoiser = df.Denoiser(network, VP, "x0", guides=TERMS["x"])
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS, **HOWS[how]).x
    stepper = Stepper(plan, denoiser, **HOWS[how])
    assert torch.equal(advance(stepper, *stepper.start(noise, seed=7, ids=IDS))[0].x, wanted)
    assert torch.equal(advance(stepper, *staggered(stepper, noise))[0].x, wanted)


def test_with_classifier_free_guidance():
    noise, shift = ops.normal(SHAPE, seed=4), torch.linspace(-1, 1, 6)[None]
    options = {"conditions": {"shift": shift}, "unconditional": {"shift": torch.zeros(1, 6)}}

    def shifted(x, t, shift):
        return network(x, t) + shift

    denoiser = df.Denoiser(shifted, VP, "v", guidance=1.7, guides=TERMS["all"], **options)
    wanted = df.sample(denoiser, PLANS["euler"], x=noise).x
    stepper = Stepper(PLANS["euler"], denoiser)
    state, *_ = advance(stepper, *stepper.start(noise), shift=shift)
    assert torch.equal(state.x, wanted)


def test_a_gradient_counts_only_where_it_is_weighed():
    """Samples at different stages share a table; zero times NaN would spread."""

    def broken(x, t):
        late = t.reshape(-1, 1) < GRID[2]
        return torch.where(late, math.nan, pull(x, t))

    term = df.guidance.gradient(broken, lambda t: 0.2 * (t >= GRID[2]))
    denoiser, noise = df.Denoiser(network, VP, "x0", guides=[term]), ops.normal(SHAPE, seed=4)
    stepper = Stepper(PLANS["euler"], denoiser)
    state, *_ = advance(stepper, *staggered(stepper, noise))
    assert torch.equal(state.x, df.sample(denoiser, PLANS["euler"], x=noise).x)


def test_a_gradient_that_is_not_finite_fails_its_sample_alone():
    def broken(x, t):
        return torch.where(torch.arange(4)[:, None] == 2, math.nan, pull(x, t))

    denoiser = df.Denoiser(network, VP, "x0", guides=[df.guidance.gradient(broken)])
    stepper = Stepper(PLANS["euler"], denoiser)
    state, *_ = advance(stepper, *stepper.start(ops.normal(SHAPE, seed=4)))
    assert stepper.result(state, throw=False).fine.tolist() == [True, True, False, True]


def test_what_is_missing_or_wrong():
    plan, noise = PLANS["euler"], ops.normal(SHAPE, seed=4)
    one = df.Denoiser(network, VP, "x0", guides=TERMS["x"])
    stepper = Stepper(plan, one)
    state, x, t = stepper.start(noise)
    with pytest.raises(ValueError, match="0 gradients are given, but the step weighs those of 1"):
        stepper.step(state, network(x, t))
    with pytest.raises(ValueError, match=r"term 1 is \[2, 6\] but the state is \[4, 6\]"):
        stepper.step(state, network(x, t), gradients=[noise[:2]])
    with pytest.raises(ValueError, match="output is a NoneType but the network's tensor is needed"):
        stepper.step(state, None, gradients=[noise])
    through = Stepper(plan, df.Denoiser(network, VP, "x0", guides=TERMS["network"]))
    with pytest.raises(ValueError, match="through the network, but the output has no graph from x"):
        through.gradients(through.start(noise)[0], network(x, t), x)
    other = df.Denoiser(network, VP, "x0", guides=TERMS["x0"])
    with pytest.raises(ValueError, match="plan euler comes with other guidance terms than a plan "):
        Stepper([(plan, one), (plan, other)])


def test_plans_with_and_without_terms_in_one_batch():
    plan, noise = PLANS["euler"], ops.normal(SHAPE, seed=4)
    pairs = [(plan, df.Denoiser(network, VP, "x0", guides=g)) for g in (TERMS["x"], ())]
    stepper = Stepper(pairs)
    state, *_ = advance(stepper, *stepper.start(noise, plan=[0, 1, 1, 0]))
    guided, plain = (df.sample(denoiser, plan, x=noise).x for _, denoiser in pairs)
    assert torch.equal(state.x[[0, 3]], guided[[0, 3]])
    assert torch.equal(state.x[[1, 2]], plain[[1, 2]])
