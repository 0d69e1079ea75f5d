"""Guidance rules in runs: against the estimate in plain torch, rows, replays, types, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffast as df
from diffast.executors import context
from diffast.executors.replay import ReplayableRun
from diffast.guidance.reducing import guided
from diffast.guidance.rule import Measured, Rule
from diffast.lowering.recorder import replay
from diffast.lowering.reductions import Reduction

G = df.guidance
VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 5)
CONDITIONS = {"shift": torch.linspace(0.2, 1.0, 4).reshape(4, 1, 1, 1)}
BLANK = {"shift": torch.zeros(1, 1, 1, 1)}


def network(x, t, shift):
    t = t.reshape(-1, 1, 1, 1).to(x.dtype)
    bent = shift.to(x.dtype) * torch.sin(3 * x + shift.to(x.dtype))
    return (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t) + bent


def initial(dtype=torch.float64):
    made = torch.randn(4, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return made.to(dtype)


def weak(x, t, shift):
    return 0.5 * network(x, t, shift)


RULES = {
    "cfg": lambda: G.cfg(2.5),
    "interval": lambda: G.interval(2.5, 0.3, 30.0),
    "autoguidance": lambda: G.autoguidance(weak, 2.0),
    "perturbed": lambda: G.perturbed(
        0.6, conditions={"shift": torch.full((1, 1, 1, 1), -0.3)}, scale=2.0
    ),
    "zero star": lambda: G.cfg_zero_star(2.5, zero_init_steps=0),
    "tcfg": lambda: G.tcfg(2.5),
    "tcfg, x0": lambda: G.tcfg(2.5, space="x0"),
    "mambo, flat": lambda: G.mambo(2.5, 0.0),
    "mambo": lambda: G.mambo(lambda t: 2.0 + t),
    "apg": lambda: G.apg(2.5, eta=0.3, norm_threshold=2.0, space="x0"),
    "rescale": lambda: G.rescale(0.7, 2.5),
    "fdg": lambda: G.rescale(0.2, G.fdg((3.0, 1.5))),
    "threshold": lambda: G.dynamic_threshold(0.9, 1.5, 2.5),
    "all": lambda: G.dynamic_threshold(0.9, 1.5, G.rescale(0.4, G.apg(2.5, eta=0.2))),
}


def denoiser(rule, predicts="epsilon", **options):
    return df.Denoiser(
        network,
        VP,
        predicts,
        conditions=CONDITIONS,
        unconditional=BLANK,
        guidance=rule,
        **options,
    )


HOW = {
    "plain": {},
    "clamp": {"clamp": (-0.5, 0.6)},
    "hook": {"on_x0": lambda x0, info: 0.9 * x0},
}


@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("name", list(RULES))
def test_runs_are_those_of_the_estimate_in_plain_torch(name, how):
    """A network that returns the guided estimate, made by torch, gives the same samples."""
    own, plan = denoiser(RULES[name]()), df.solvers.dpmpp_2m(VP, GRID)
    other = df.Denoiser(lambda x, t: own.x0(x, float(t[0])), VP, "x0")
    got, want = (df.sample(d, plan, x=initial(), **HOW[how]).x for d in (own, other))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_rows_and_calls_that_rules_save():
    plan = df.solvers.euler(VP, GRID)

    def counted(rule):
        made = df.sample(denoiser(rule), plan, x=initial())
        return int(made.nfe[0]), int(made.network_rows[0])

    levels = np.asarray(VP.sigma(GRID[:-1])) / np.asarray(VP.alpha(GRID[:-1]))
    low, high = float(levels[3]), float(levels[1])
    assert counted(2.0) == (5, 10)
    assert counted(1.0) == counted(0.0) == (5, 5)
    assert counted(G.interval(2.0, low, high)) == (5, 7)  # the lower end is outside
    assert counted(G.interval(G.apg(2.0), low, high)) == (5, 7)
    assert counted(G.cfg_zero_star(2.0, zero_init_steps=2)) == (3, 6)
    shift = {"shift": torch.zeros(1, 1, 1, 1)}
    assert counted(G.perturbed(0.5, conditions=shift)) == (5, 10)
    assert counted(G.perturbed(0.5, conditions=shift, scale=2.0)) == (5, 15)
    assert counted(G.autoguidance(weak, 2.0)) == (5, 10)
    assert counted(G.dynamic_threshold(0.9)) == (5, 5)


def test_linear_rules_add_no_call_and_no_tensor():
    """The call of a step, its tensors and their number are those without guidance but for u."""
    from diffast.lowering.program import Constraints, lower

    plan = df.solvers.dpmpp_2m(VP, GRID)
    for rule, branches in (
        (G.cfg(2.5), ("cond", "uncond")),
        (RULES["autoguidance"](), ("cond", "uncond")),
        (RULES["perturbed"](), ("cond", "uncond", "extra")),
    ):
        program = lower(plan, denoiser(rule), Constraints())
        for stage in program.stages:
            (call,) = stage.calls
            assert not call.reduced
            assert [c for c in call.columns if c in branches] == list(branches)
            assert set(call.columns) <= {"x", *branches, "slot0", "slot1"}


@pytest.mark.parametrize("name", ["perturbed", "autoguidance", "mambo", "fdg", "all"])
def test_replayed_runs_have_the_bits_of_sample(name):
    own = denoiser(RULES[name]())
    plan = df.solvers.dpmpp_2m_sde(VP, GRID)
    place = context.place_of("sample", own, initial().shape, None, "cpu", 3, None, None)
    run = ReplayableRun(own, plan, place)
    for seed in (3, 8):
        run.load(seed=seed)
        run.run()
        want = df.sample(own, plan, initial().shape, seed=seed)
        assert torch.equal(run.samples().x, want.x)
        assert torch.equal(run.samples().network_rows, want.network_rows)
    with pytest.raises(ValueError, match="make another one"):
        run.load(denoiser(G.tcfg(1.5)))


def test_momentum_is_of_the_run():
    """Two runs in a row are the same: the first call remembers nothing."""
    own = denoiser(G.apg(2.5, momentum=-0.5))
    plan = df.solvers.euler(VP, GRID)
    first, second = (df.sample(own, plan, x=initial()).x for _ in range(2))
    assert torch.equal(first, second)
    forgetful = df.sample(denoiser(G.apg(2.5)), plan, x=initial()).x
    assert float((first - forgetful).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["perturbed", "apg", "rescale", "threshold", "fdg"])
def test_half_outputs(name, dtype):
    plan = df.solvers.euler(VP, df.grids.uniform_logsnr(VP, 3))
    x = initial(torch.float32)
    got = df.sample(denoiser(RULES[name](), "v", dtype=dtype), plan, x=x).x
    want = df.sample(denoiser(RULES[name](), "v"), plan, x=x).x
    assert 0 < float((got - want).abs().max()) < (0.1 if dtype == torch.float16 else 0.6)


@pytest.mark.parametrize("name", ["apg", "rescale", "all"])
def test_samples_do_not_depend_on_their_batch(name):
    plan = df.solvers.euler(VP, GRID)

    def rows(which):
        own = df.Denoiser(
            network,
            VP,
            "epsilon",
            conditions={"shift": CONDITIONS["shift"][which]},
            unconditional=BLANK,
            guidance=RULES[name](),
        )
        return df.sample(own, plan, x=initial()[which]).x

    assert torch.equal(rows([0, 1, 2, 3])[[3, 1]], rows([3, 1]))


@pytest.mark.parametrize("name", ["apg", "rescale", "tcfg", "mambo", "threshold", "zero star"])
def test_a_sample_that_is_not_finite_fails_alone(name):
    def broken(x, t, shift):
        made = network(x, t, shift)
        made[1] = torch.nan
        return made

    own = df.Denoiser(
        broken, VP, "v", conditions=CONDITIONS, unconditional=BLANK, guidance=RULES[name]()
    )
    made = df.sample(own, df.solvers.euler(VP, GRID), x=initial(), throw=False)
    assert made.fine.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "name", ["apg", "rescale", "tcfg", "mambo", "mambo, flat", "zero star", "all"]
)
def test_outputs_of_zero_stay_finite(name):
    own = df.Denoiser(
        lambda x, t, shift: torch.zeros_like(x),
        VP,
        "v",
        conditions=CONDITIONS,
        unconditional=BLANK,
        guidance=RULES[name](),
    )
    assert df.sample(own, df.solvers.euler(VP, GRID), x=initial()).x.isfinite().all()


@pytest.mark.parametrize("name", ["zero star", "tcfg", "mambo", "apg", "rescale", "all"])
def test_the_recorded_program_is_the_formula(name):
    rule = RULES[name]()
    (at,) = denoiser(rule).rules_at(np.array([0.5]))
    reduction = Reduction(at, (0.9, -0.3), False)
    values = np.random.default_rng(0).uniform(1.0, 2.0, (7, reduction.width))
    values[:, [0, 2]] += 3.0  # squares: a Gram matrix has no negative eigenvalue
    columns = ("x", "cond", "uncond")
    instructions, stores = reduction.program(50, columns)
    got = replay(instructions, [number for *_, number in stores], values)
    want = reduction.estimate(np, list(values.T), 50)
    for k, column in enumerate(columns):
        np.testing.assert_array_equal(got[k], np.broadcast_to(want.get(column, 0.0), 7))


def test_a_rule_of_ones_own():
    """Ten lines: a scale that falls with the angle between the branches."""

    class Angle(Rule):
        name = "angle"
        linear = False

        def weights(self, xp, numbers, scale, time):
            c, u = {"cond": 1.0}, {"uncond": 1.0}
            cosine = numbers.dot(c, u) / xp.sqrt(numbers.dot(c, c) * numbers.dot(u, u))
            w = 1.0 + (scale - 1.0) * cosine
            return {"cond": w, "uncond": 1.0 - w}

    own, plan = denoiser(Angle(scale=3.0)), df.solvers.euler(VP, GRID)
    other = df.Denoiser(lambda x, t: own.x0(x, float(t[0])), VP, "x0")
    got, want = (df.sample(d, plan, x=initial()).x for d in (own, other))
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    (at,) = own.rules_at(np.array([0.5]))
    weights = guided(np, at, Measured(("cond", "uncond"), [4.0, 2.0, 1.0, 0.0, 0.0], 9))
    assert weights == {"cond": 3.0, "uncond": -2.0}  # cosine 1


BAD = {
    "scale is inf": lambda: G.cfg(float("inf")),
    "scale is nan": lambda: G.apg(float("nan")),
    "scale is a str": lambda: G.tcfg("7"),
    "must be in ascending order": lambda: G.interval(2.0, 3.0, 1.0),
    "has an interval already": lambda: G.interval(G.interval(2.0, 1.0, 3.0), 1.0, 2.0),
    r"p is 0.0 but must be in \(0, 1\]": lambda: G.dynamic_threshold(0.0),
    r"p is 1.5 but must be in \(0, 1\]": lambda: G.dynamic_threshold(1.5),
    "maximum is 0.5 but": lambda: G.dynamic_threshold(0.9, 0.5),
    r"phi is -0.1 but must be in \[0, 1\]": lambda: G.rescale(-0.1, 2.0),
    "norm_threshold is -1": lambda: G.apg(2.0, norm_threshold=-1.0),
    "space is 'latent'": lambda: G.mambo(2.0, space="latent"),
    "base is 'both'": lambda: G.apg(2.0, base="both"),
    "zero_init_steps is -1": lambda: G.cfg_zero_star(2.0, zero_init_steps=-1),
    "alpha is -1": lambda: G.mambo(2.0, -1.0),
    "2 numbers or more": lambda: G.fdg((3.0,)),
    "weak is a float": lambda: G.autoguidance(2.0, weak),
    "neither a network nor conditions": lambda: G.perturbed(2.0),
    "guidance is a str": lambda: denoiser("apg"),
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_input_is_refused_in_words(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_rules_that_do_not_fit_a_run_are_refused():
    plan = df.solvers.euler(VP, GRID)
    alone = df.Denoiser(network, VP, "v", conditions=CONDITIONS, guidance=G.apg(2.0))
    with pytest.raises(ValueError, match=r"guidance.apg of scale 2 but there are no unconditional"):
        df.sample(alone, plan, x=initial())
    alone = df.Denoiser(network, VP, "v", conditions=CONDITIONS, guidance=G.interval(2.0, 0, 9))
    with pytest.raises(ValueError, match="there are no unconditional conditions"):
        df.sample(alone, plan, x=initial())
    with pytest.raises(ValueError, match=r"clamp is \(2, 3\) but guidance.dynamic_threshold"):
        df.sample(denoiser(G.dynamic_threshold(0.9)), plan, x=initial(), clamp=(2.0, 3.0))
    with pytest.raises(ValueError, match=r"images of 6 x 6 but 3 levels need sides of 12"):
        df.sample(denoiser(G.fdg((3.0, 2.0, 1.0))), plan, x=initial())
    with pytest.raises(ValueError, match="scale is inf at t = "):
        df.sample(denoiser(G.apg(lambda t: np.inf)), plan, x=initial())
    term = G.loss(lambda x0, t: x0.flatten(1).sum(1), through="network")
    with pytest.raises(ValueError, match="guidance.apg has weights that depend on the outputs"):
        df.sample(denoiser(G.apg(2.0), guides=[term]), plan, x=initial())


def test_what_takes_scales_alone_refuses_rules():
    own = denoiser(G.apg(2.0))
    with pytest.raises(ValueError, match="guidance.apg"):
        df.tune(own, calls=4, shape=(4, 2, 6, 6))
    with pytest.raises(ValueError, match="guidance.apg, a rule over the outputs"):
        own.scales(np.array([0.5]))


def test_a_plan_made_for_a_scale_warns_of_a_rule():
    plan = replace(df.solvers.euler(VP, GRID), made_for={"predicts": "v", "guidance": 3.0})
    with pytest.warns(UserWarning, match="guidance 3, but the denoiser's guidance is guidance.apg"):
        df.sample(denoiser(G.apg(3.0), "v"), plan, x=initial())


def test_rules_of_a_scale_run_everywhere():
    """cfg and interval are a scale, so that executors without rules take them."""
    assert denoiser(G.cfg(2.5)).guidance == 2.5
    own = denoiser(G.interval(2.5, 0.3, 30.0))
    other = denoiser(lambda t: 2.5 if 0.3 < float(VP.sigma(t) / VP.alpha(t)) <= 30.0 else 1.0)
    got, want = (df.sample_adaptive(d, "dpm_12", x=initial()).x for d in (own, other))
    assert torch.equal(got, want)


def test_plans_for_rules_and_other_makers():
    own = denoiser(G.apg(3.0))
    assert df.plan(own, 8).nfe == 8
    flow = df.Denoiser.from_velocity(
        lambda x, t, shift: network(x, t, shift),
        conditions=CONDITIONS,
        unconditional=BLANK,
        guidance=G.cfg_zero_star(2.0),
    )
    made = df.sample(flow, df.solvers.euler(flow.schedule, np.linspace(1, 0, 5)), x=initial())
    assert made.nfe.tolist() == [3] * 4


def effective(own, plan, **how):
    """Returns samples of a network that returns the guided estimates, made by torch."""
    other = df.Denoiser(lambda x, t: own.x0(x, float(t[0])), VP, "x0")
    return df.sample(other, plan, x=initial(), **how).x


@pytest.mark.parametrize("name", ["autoguidance", "perturbed", "apg", "fdg", "threshold"])
def test_channels_last(name):
    """The states of a run lie in the network's format; the numbers are the same."""
    plan = df.solvers.dpmpp_2m(VP, GRID)
    own = denoiser(RULES[name](), memory_format=torch.channels_last)
    np.testing.assert_allclose(
        df.sample(own, plan, x=initial()).x, effective(own, plan), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("name", ["autoguidance", "perturbed", "apg", "all"])
@pytest.mark.parametrize("solver", ["heun", "unipc", "dpmpp_3m", "rk4"])
def test_solvers_of_other_kinds(solver, name):
    """Several calls a step, a state beside x, a corrector."""
    own, plan = denoiser(RULES[name](), "v"), df.solvers.get(solver)(VP, GRID)
    np.testing.assert_allclose(
        df.sample(own, plan, x=initial()).x, effective(own, plan), rtol=1e-10, atol=1e-10
    )


def test_branches_with_networks_of_their_own_in_half_precision():
    plan = df.solvers.euler(VP, df.grids.uniform_logsnr(VP, 3))
    told = []

    def half(x, t, shift):
        told.append((x.dtype, len(x)))
        return weak(x, t, shift)

    own = denoiser(G.autoguidance(half, 2.0), "v", dtype=torch.float16)
    got = df.sample(own, plan, x=initial()).x
    want = df.sample(denoiser(G.autoguidance(weak, 2.0), "v"), plan, x=initial()).x
    assert told == [(torch.float16, 4)] * 3
    assert 0 < float((got - want).abs().max()) < 0.1


def test_a_plans_scales_replace_that_of_a_rule():
    plan = df.solvers.euler(VP, GRID)
    scales = np.array([1.0, 2.0, 3.0, 2.0, 1.0])
    planned = replace(plan, guidance=scales)
    at = dict(zip(plan.call_times.tolist(), scales, strict=True))
    for make in (G.apg, G.tcfg, lambda w: G.rescale(0.5, w)):
        got = df.sample(denoiser(make(7.0)), planned, x=initial()).x
        want = df.sample(denoiser(make(lambda t: at[t])), plan, x=initial()).x
        assert torch.equal(got, want)


def test_rules_and_terms_add_up():
    """A term's gradient joins the estimate that the rule made."""
    plan = df.solvers.euler(VP, GRID)

    def pull(x, t):
        return 0.1 * (0.5 - x)

    for through in ("x", "x0"):
        if through == "x":
            term = G.gradient(pull)
        else:
            term = G.loss(lambda x0, t: (x0**2).flatten(1).sum(1), 0.1, through="x0")
        own = denoiser(G.apg(2.5), guides=[term])
        ruled = denoiser(G.apg(2.5))
        other = df.Denoiser(
            lambda x, t, ruled=ruled: ruled.x0(x, float(t[0])), VP, "x0", guides=[term]
        )
        got, want = (df.sample(d, plan, x=initial()).x for d in (own, other))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


def test_plans_of_the_branches_take_rules():
    """CFG++ of a rule: the renoising is by the plain unconditional estimate."""
    plan = df.solvers.cfg_plus_plus(df.solvers.euler(VP, GRID))
    own, x = denoiser(G.apg(0.8)), initial()
    blank = denoiser(0.0)
    got = df.sample(own, plan, x=x).x
    alpha, sigma = np.asarray(VP.alpha(GRID)), np.asarray(VP.sigma(GRID))
    for i, t in enumerate(GRID[:-1]):
        keep = sigma[i + 1] / sigma[i]
        x = keep * (x - alpha[i] * blank.x0(x, t)) + alpha[i + 1] * own.x0(x, t)
    np.testing.assert_allclose(got, x, rtol=1e-9, atol=1e-9)


def test_several_inputs_at_once_are_refused_for_rules_that_reduce():
    from diffast.plans.registers import Stages

    start, middle, end = (float(t) for t in (GRID[0], GRID[2], GRID[-1]))
    (a, b, c), (r, s, u) = (np.asarray(f([start, middle, end])) for f in (VP.alpha, VP.sigma))
    stages = Stages(VP, start)
    stages.add(
        start,
        middle,
        {"x": s / r, "d": b - a * s / r},
        x2={"x": s / r, "d": b - a * s / r},
        x2_at=middle,
    )
    half = {"d": 0.5 * (c - b * u / s), "d2": 0.5 * (c - b * u / s)}
    stages.add((middle, middle), end, {"x": u / s, **half})
    plan = stages.plan("two inputs", 2)
    with pytest.raises(
        ValueError, match=r"guidance.apg needs numbers of the outputs for one input"
    ):
        df.sample(denoiser(G.apg(2.0)), plan, x=initial())
    for rule in (RULES["autoguidance"](), RULES["perturbed"]()):  # linear: by inputs and branches
        got = df.sample(denoiser(rule), plan, x=initial()).x
        x0 = denoiser(rule).x0
        x = s / r * initial() + (b - a * s / r) * x0(initial(), start)
        want = u / s * x + (c - b * u / s) * x0(x, middle)
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-8)


def test_particles_take_rules_that_remember_nothing():
    plan, how = df.solvers.ddim(VP, GRID, eta=1.0), {"shape": (4, 2, 6, 6), "seed": 4}

    def reward(x0, t):
        return -x0.flatten(1).square().sum(1)

    for name in ("apg", "perturbed", "autoguidance", "all"):
        own = denoiser(RULES[name](), "v")
        got = df.sample_particles(own, plan, reward=reward, particles=1, **how).x[:, 0]
        torch.testing.assert_close(got, df.sample(own, plan, **how).x, rtol=1e-4, atol=1e-4)
    for rule in (G.apg(2.0, momentum=-0.5), G.cfg_zero_star(2.0)):
        with pytest.raises(ValueError, match=f"guidance is {rule.name}, which depends on"):
            df.sample_particles(denoiser(rule), plan, reward=reward, particles=2, **how)
    rule = G.perturbed(0.5, conditions={"shift": torch.ones(4, 1, 1, 1)})
    with pytest.raises(ValueError, match="condition 'shift' of a branch of guidance.perturbed"):
        df.sample_particles(denoiser(rule), plan, reward=reward, particles=2, **how)


def test_no_samples():
    for rule in (2.0, RULES["all"](), G.fdg((3.0, 2.0))):
        own = df.Denoiser(lambda x, t: x, VP, "v", unconditional={}, guidance=rule)
        made = df.sample(own, df.solvers.dpmpp_2m(VP, GRID), shape=(0, 2, 6, 6))
        assert made.x.shape == (0, 2, 6, 6)
        assert own.x0(torch.zeros(0, 2, 6, 6), 0.5).shape == (0, 2, 6, 6)


@pytest.mark.parametrize("name", ["autoguidance", "perturbed"])
def test_a_stepper_takes_the_outputs_of_all_branches(name):
    """The bits of df.sample; the caller makes the calls."""
    own, plan = denoiser(RULES[name]()), df.solvers.dpmpp_2m(VP, GRID)
    stepper = df.Stepper(plan, own)
    state, x, t = stepper.start(initial())
    while not stepper.done(state):
        outputs = []
        for branch in ("cond", "uncond", "extra")[: 2 + (name == "perturbed")]:
            net, conditions = own.branch(branch)
            outputs.append(net(x, t, **conditions))
        state, x, t = stepper.step(state, tuple(outputs))
    assert torch.equal(stepper.result(state).x, df.sample(own, plan, x=initial()).x)
    with pytest.raises(ValueError, match="Stepper: guidance is guidance.tcfg, which needs each"):
        df.Stepper(plan, denoiser(G.tcfg(2.0)))


@pytest.mark.parametrize("wrap", [lambda f: f, G.cfg, G.apg], ids=["function", "cfg", "apg"])
def test_a_scale_function_of_several_numbers_is_named(wrap):
    own = denoiser(wrap(lambda t: torch.ones(3)))
    with pytest.raises(ValueError, match=r"returned a Tensor of shape \[3\] at t = .* one number"):
        df.sample(own, df.solvers.euler(VP, GRID), x=initial())
