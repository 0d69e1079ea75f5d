"""Guidance rules that depend on each sample's outputs, on the Stepper."""

import pytest
import torch

import diffast as df

G = df.guidance
VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 6)  # with fewer steps Heun's method multiplies rounding
IDS = [5, -3, 2**61, 0]
SHAPE = (4, 2, 8, 8)
SOLVERS = {
    "euler": df.solvers.euler,
    "dpmpp_2m": df.solvers.dpmpp_2m,
    "heun": df.solvers.heun,
    "ddpm": df.solvers.ddpm,
}
RULES = {
    "rescale": lambda: G.rescale(0.7, 2.0),
    "apg": lambda: G.apg(2.5, eta=0.3, norm_threshold=4.0),
    "momentum": lambda: G.apg(2.5, eta=0.3, norm_threshold=4.0, momentum=-0.5),
    "cfg_zero_star": lambda: G.cfg_zero_star(2.0),
    "tcfg": lambda: G.tcfg(2.0),
    "mambo": lambda: G.mambo(2.0, alpha=1.0),
    "interval": lambda: G.interval(G.apg(2.5, momentum=-0.5), 0.1, 3.0),
    "third": lambda: G.rescale(0.6, G.perturbed(0.5, conditions={"shift": SHIFTS[2]}, scale=2.0)),
    "fdg": lambda: G.fdg((3.0, 2.0)),
    "fdg, rescale": lambda: G.rescale(0.7, G.fdg((3.0, 2.0))),
    "time": lambda: G.tcfg(lambda t: 1.5 + t),
    "threshold": lambda: G.dynamic_threshold(0.9, 3.0, 2.0),
    "threshold, mambo": lambda: G.dynamic_threshold(0.9, 3.0, G.mambo(2.0)),
    "space": lambda: G.apg(2.5, norm_threshold=4.0, momentum=-0.5, space="x0"),
}
EACH = [*RULES][:10]
HOWS = {"plain": {}, "clamp": {"clamp": (-0.9, 0.8)}, "hook": {"on_x0": lambda x0, info: 0.9 * x0}}
SHIFTS = [torch.full((1, 1, 1, 1), shift) for shift in (0.25, 0.0, -0.125)]  # exact


def network(x, t, shift):
    t = t.reshape(-1, 1, 1, 1).to(x.dtype)
    return (0.8 * x.flip(-1) + 0.1 - t + shift * x.abs()) / (1 + 0.3 * x * x + t * t)


def denoiser(rule, predicts="v", **more):
    return df.Denoiser(
        *(network, VP, predicts),
        conditions={"shift": SHIFTS[0]},
        unconditional={"shift": SHIFTS[1]},
        guidance=rule,
        **more,
    )


def noise_of(dtype=torch.float32):
    return torch.randn(SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(1))


def advance(stepper, state, x, t, steps=None):
    count = 0
    while count != steps:
        done = stepper.done(state)
        if bool(done) if isinstance(done, bool) else bool(done.all()):
            break
        outputs = tuple(network(x, t, shift) for shift in SHIFTS)
        gradients = stepper.gradients(state, outputs)
        state, x, t = stepper.step(state, outputs, gradients=gradients)
        count += 1
    return state, x, t


def staggered(stepper, noise):
    """Samples that began one after the other."""
    parts = []
    for b in range(len(noise)):
        begun = stepper.start(noise[b : b + 1], seed=7, ids=IDS[b : b + 1])
        parts.append(advance(stepper, *begun, steps=b)[0])
    state = stepper.join(*parts)
    return state, state.x, stepper.time(state)


def check_close(got, want, dtype):
    room = 1e-6 if dtype == torch.float32 else 1e-14
    assert float((got - want).abs().max()) <= room * float(want.abs().max())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rule_gives_the_bits_of_sample(dtype, rule):
    own, noise = denoiser(RULES[rule]()), noise_of(dtype)
    for solver, how in zip(SOLVERS, ("plain", "clamp", "hook", "clamp"), strict=True):
        plan = SOLVERS[solver](VP, GRID)
        want = df.sample(own, plan, x=noise, seed=7, ids=IDS, **HOWS[how]).x
        stepper = df.Stepper(plan, own, **HOWS[how])
        state = advance(stepper, *stepper.start(noise, seed=7, ids=IDS))[0]
        assert torch.equal(stepper.result(state).x, want)


@pytest.mark.parametrize("rule", EACH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_at_stages_of_their_own(dtype, rule):
    own, noise = denoiser(RULES[rule]()), noise_of(dtype)
    for solver, how in (("dpmpp_2m", "hook"), ("heun", "plain"), ("ddpm", "clamp")):
        plan = SOLVERS[solver](VP, GRID)
        want = df.sample(own, plan, x=noise, seed=7, ids=IDS, **HOWS[how]).x
        stepper = df.Stepper(plan, own, **HOWS[how])
        got = stepper.result(advance(stepper, *staggered(stepper, noise))[0])
        check_close(got.x, want, dtype)
        assert got.completed


def test_a_step_changes_nothing_that_it_is_given():
    """The momentum is in the state: a state that is stepped twice gives the same bits."""
    stepper = df.Stepper(SOLVERS["euler"](VP, GRID), denoiser(RULES["momentum"]()))
    state, x, t = advance(stepper, *stepper.start(noise_of(), seed=7, ids=IDS), steps=2)
    outputs = network(x, t, SHIFTS[0]), network(x, t, SHIFTS[1])
    kept = [v.clone() for v in (state.x, state.momentum, state.status)]
    first, second = (stepper.step(state, outputs)[0] for _ in range(2))
    for before, after in zip(kept, (state.x, state.momentum, state.status), strict=True):
        assert torch.equal(before, after)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.momentum, second.momentum)
    assert not torch.equal(first.momentum, state.momentum)


def test_momenta_go_with_their_samples():
    plan, own, noise = SOLVERS["euler"](VP, GRID), denoiser(RULES["momentum"]()), noise_of()
    want = df.sample(own, plan, x=noise, seed=7, ids=IDS).x
    stepper = df.Stepper(plan, own)
    state = advance(stepper, *stepper.start(noise, seed=7, ids=IDS), steps=2)[0]
    order = torch.tensor([2, 0, 3])
    taken = stepper.select(state, order)
    assert torch.equal(taken.momentum, state.momentum[order])
    fresh = stepper.start(noise[1:2], seed=7, ids=IDS[1:2])[0]
    both = stepper.join(taken, fresh)
    assert not both.momentum[3:].any()
    got = advance(stepper, both, both.x, stepper.time(both))[0]
    check_close(got.x, want[[2, 0, 3, 1]], torch.float32)
    assert got.ids.tolist() == [IDS[b] for b in (2, 0, 3, 1)]
    plain = df.Stepper(plan, denoiser(RULES["tcfg"]()))
    assert advance(plain, *plain.start(noise), steps=2)[0].momentum is None


@pytest.mark.parametrize("rule", ["momentum", "fdg, rescale", "space", "threshold"])
@pytest.mark.parametrize("clamp", [None, (-0.9, 0.8)])
def test_the_estimate_is_that_of_the_step(rule, clamp):
    """The last step of Euler to sigma = 0 returns the x0 estimate."""
    stepper = df.Stepper(SOLVERS["euler"](VP, GRID), denoiser(RULES[rule]()), clamp=clamp)
    state, x, t = advance(stepper, *stepper.start(noise_of()), steps=5)
    outputs = tuple(network(x, t, shift) for shift in SHIFTS)
    want = torch.empty_like(x)
    after = stepper.step(state, outputs)[0].x
    estimate = stepper.estimate(state, outputs)
    last = SOLVERS["euler"](VP, GRID).end
    a, s, b, r = (float(f(u)) for u in (float(t[0]), last) for f in (VP.alpha, VP.sigma))
    want = (after.double() - r / s * x.double()) / (b - a * r / s)
    check_close(estimate.double(), want, torch.float32)


@pytest.mark.parametrize("rule", ["tcfg", "momentum", "fdg"])
def test_terms_join_the_estimate_of_a_rule(rule):
    terms = [
        G.gradient(lambda x, t: 0.5 - x, 0.2),
        G.loss(lambda x0, t: (x0 - 0.3).square().sum((1, 2, 3)), 0.05, through="x0"),
    ]
    plan, own = SOLVERS["dpmpp_2m"](VP, GRID), denoiser(RULES[rule](), guides=terms)
    want = df.sample(own, plan, x=noise_of(), seed=7, ids=IDS).x
    stepper = df.Stepper(plan, own)
    state = advance(stepper, *stepper.start(noise_of(), seed=7, ids=IDS))[0]
    assert torch.equal(state.x, want)
    check_close(advance(stepper, *staggered(stepper, noise_of()))[0].x, want, torch.float32)


def test_a_momentum_waits_where_the_rule_does_not_act():
    """A plan that goes back to larger times leaves the interval and enters it again."""
    plan = df.solvers.resampled(SOLVERS["ddpm"](VP, GRID), jump=3, times=2)
    own = denoiser(G.interval(G.apg(2.5, momentum=-0.7), 0.0, 10.0))
    used = [at.weights is None for at in own.rules_at(plan.times.ravel()[plan.evaluations])]
    first, last = used.index(True), len(used) - used[::-1].index(True)
    assert not all(used[first:last])
    want = df.sample(own, plan, x=noise_of(torch.float64), seed=7, ids=IDS).x
    stepper = df.Stepper(plan, own)
    begun = stepper.start(noise_of(torch.float64), seed=7, ids=IDS)
    assert torch.equal(advance(stepper, *begun)[0].x, want)
    got = advance(stepper, *staggered(stepper, noise_of(torch.float64)))[0].x
    check_close(got, want, torch.float64)


def test_networks_of_x0_have_one_space():
    """There an x0 estimate is the output, so that its weights do not depend on the stage."""
    own, plan = denoiser(RULES["space"](), "x0"), SOLVERS["dpmpp_2m"](VP, GRID)
    want = df.sample(own, plan, x=noise_of(), seed=7, ids=IDS).x
    stepper = df.Stepper(plan, own)
    check_close(advance(stepper, *staggered(stepper, noise_of()))[0].x, want, torch.float32)


def test_plans_with_rules_and_without():
    """Each sample follows its own plan and guidance."""
    plans = SOLVERS["euler"](VP, GRID), SOLVERS["heun"](VP, GRID)
    owns = denoiser(RULES["momentum"]()), denoiser(2.0)
    stepper = df.Stepper(list(zip(plans, owns, strict=True)))
    begun = stepper.start(noise_of(), plan=[0, 1, 1, 0], seed=7, ids=IDS)
    got = advance(stepper, *begun)[0].x
    want = [
        df.sample(own, plan, x=noise_of(), seed=7, ids=IDS).x
        for plan, own in zip(plans, owns, strict=True)
    ]
    check_close(got[[0, 3]], want[0][[0, 3]], torch.float32)
    check_close(got[[1, 2]], want[1][[1, 2]], torch.float32)


def test_given_noise():
    plan, own, noise = SOLVERS["ddpm"](VP, GRID), denoiser(RULES["rescale"]()), noise_of()
    fresh = [noise.roll(k, 0) for k in range(1, plan.nfe + 1)]
    want = df.sample(own, plan, x=noise, noise=lambda i: fresh[i]).x
    stepper = df.Stepper(plan, own, noise="given")
    state, x, t = stepper.start(noise)
    for z in fresh:
        state, x, t = stepper.step(state, (network(x, t, SHIFTS[0]), network(x, t, SHIFTS[1])), z=z)
    assert torch.equal(state.x, want)


REFUSED = {
    "time": "guidance is guidance.tcfg, which has weights that depend on the stage, but samples",
    "threshold": "dynamic_threshold, which takes a quantile of the x0 estimate, whose weights",
    "space": "guidance is guidance.apg, which needs x0 estimates, whose weights depend on the",
}


@pytest.mark.parametrize("rule", REFUSED)
def test_weights_that_depend_on_the_stage_are_for_samples_together(rule):
    stepper = df.Stepper(SOLVERS["euler"](VP, GRID), denoiser(RULES[rule]()))
    state = stepper.start(noise_of())[0]
    for call in (
        lambda: stepper.start(noise_of(), each=True),
        lambda: stepper.select(state, torch.tensor([0])),
        lambda: stepper.join(state, state),
    ):
        with pytest.raises(ValueError, match=REFUSED[rule]):
            call()


def test_what_contradicts_a_rule_is_refused():
    plan = SOLVERS["euler"](VP, GRID)
    with pytest.raises(ValueError, match=r"Stepper: clamp is \(2, 3\) but guidance.dynamic"):
        df.Stepper(plan, denoiser(RULES["threshold"]()), clamp=(2.0, 3.0))
    term = G.loss(lambda x0, t: x0.square().sum((1, 2, 3)), 0.1)
    with pytest.raises(ValueError, match=r"guidance.tcfg has weights that depend on the outputs"):
        df.Stepper(plan, denoiser(G.tcfg(2.0), guides=[term]))
    pairs = [(plan, denoiser(G.fdg(scales))) for scales in ((3.0, 2.0), (4.0, 2.0))]
    with pytest.raises(ValueError, match="guidance.fdg, which is not the same for all plans"):
        df.Stepper(pairs).start(noise_of(), each=True)
    stepper = df.Stepper(plan, denoiser(G.tcfg(2.0)))
    state, x, t = stepper.start(noise_of())
    with pytest.raises(ValueError, match="a plan is guided, but one output is given"):
        stepper.step(state, network(x, t, SHIFTS[1]))


@pytest.mark.parametrize("each", [False, True])
def test_a_sample_that_fails_leaves_the_others_as_they_are(each):
    plan, own, noise = SOLVERS["euler"](VP, GRID), denoiser(RULES["momentum"]()), noise_of()
    stepper = df.Stepper(plan, own, clamp=(-0.9, 0.8))
    want = advance(stepper, *stepper.start(noise, each=each))[0].x
    state, x, t = stepper.start(noise, each=each)
    bad = network(x, t, SHIFTS[0])
    bad[2, 0, 0, 0] = float("nan")
    state, x, t = stepper.step(state, (bad, network(x, t, SHIFTS[1])))
    state = advance(stepper, state, x, t)[0]
    assert state.status.tolist() == [-1, -1, 0, -1]
    assert torch.equal(state.x[[0, 1, 3]], want[[0, 1, 3]])
    with pytest.raises(df.NonFiniteError):
        stepper.result(state)
