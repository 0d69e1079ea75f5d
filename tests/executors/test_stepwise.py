"""The stepwise executor: the bits of `df.sample`, however the batch is put together."""

import pytest
import torch
from stepwise_runs import (
    BUILDERS,
    EDM,
    FLOW,
    IDS,
    VP,
    guided,
    network,
    noise_of,
    pair,
    plan_of,
    run,
    some,
    staggered,
)

import diffast as df
from diffast import ops
from diffast.executors.stepwise import Stepper


@pytest.mark.parametrize("name", BUILDERS)
def test_every_solver_gives_the_bits_of_sample(name):
    plan, noise = plan_of(name), noise_of()
    denoiser = df.Denoiser(network, VP, predicts="v")
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser)
    together = run(stepper, *stepper.start(noise, seed=7, ids=IDS))
    assert torch.equal(together.x, wanted)
    assert together.row == plan.nfe
    each = run(stepper, *stepper.start(noise, seed=7, ids=IDS, each=True))
    ragged = run(stepper, *staggered(stepper, noise), extra=2)
    for state in (each, ragged):
        assert torch.equal(state.x, wanted)
        assert (state.status == -1).all()
        assert stepper.stage(state).tolist() == [plan.nfe] * 4


@pytest.mark.parametrize("schedule", [EDM, FLOW], ids=["edm", "flow"])
@some
def test_other_schedules_give_the_bits_of_sample(schedule, name):
    plan = BUILDERS[name](schedule, df.grids.uniform_time(schedule, 5))
    noise = noise_of() * float(schedule.sigma(plan.start))
    denoiser = df.Denoiser(lambda x, t: network(x, t * 0.1), schedule, predicts="x0")
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper, call = Stepper(plan, denoiser), denoiser.network
    assert torch.equal(run(stepper, *stepper.start(noise, seed=7, ids=IDS), call=call).x, wanted)
    assert torch.equal(run(stepper, *staggered(stepper, noise, call=call), call=call).x, wanted)


@pytest.mark.parametrize(
    ("state", "half"),
    [
        (torch.float64, None),
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.bfloat16),
    ],
)
@some
def test_dtypes_give_the_bits_of_sample(name, state, half):
    seen = set()

    def call(x, t):
        seen.add((x.dtype, t.dtype))
        return network(x, t)

    plan, noise = plan_of(name), noise_of(dtype=state)
    denoiser = df.Denoiser(call, VP, predicts="v", dtype=half)
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser, dtype=half)
    for begin in (stepper.start(noise, seed=7, ids=IDS), staggered(stepper, noise, call=call)):
        ended = run(stepper, *begin, call=call)
        assert ended.x.dtype == state
        assert torch.equal(ended.x, wanted)
    assert seen == {(half or state, torch.float64 if state == torch.float64 else torch.float32)}


@pytest.mark.parametrize(
    "scale", [2.5, lambda t: 2.5 if 0.3 < t < 0.7 else 1.0, lambda t: 3.0 * (t > 0.5)]
)
@some
def test_guidance_takes_pairs_and_gives_the_bits_of_sample(name, scale):
    plan, noise, denoiser = plan_of(name), noise_of(), guided(scale)
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser)
    for begin in (stepper.start(noise, seed=7, ids=IDS), staggered(stepper, noise, call=pair)):
        assert torch.equal(run(stepper, *begin, call=pair).x, wanted)


@some
def test_clamp_and_hook_give_the_bits_of_sample(name):
    plan, noise = plan_of(name), noise_of()
    denoiser = df.Denoiser(network, VP, predicts="v")
    clamped = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS, clamp=(-0.3, 0.25)).x
    assert not torch.equal(clamped, df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x)

    def hook(x0, info):
        shape, stage = (-1, *[1] * (x0.dim() - 1)), info.stage
        stage = stage.view(shape) if isinstance(stage, torch.Tensor) else stage
        return x0 * 0.5 + 0.125 * stage

    limits, run_of = {"clamp": (-0.3, 0.25)}, {"x": noise, "seed": 7, "ids": IDS}
    hooked = df.sample(denoiser, plan, **run_of, on_x0=hook).x
    both = df.sample(denoiser, plan, **run_of, **limits, on_x0=hook).x
    for options, wanted in (
        (limits, clamped),
        ({"on_x0": hook}, hooked),
        ({**limits, "on_x0": hook}, both),
    ):
        stepper = Stepper(plan, denoiser, **options)
        for begin in (stepper.start(noise, seed=7, ids=IDS), staggered(stepper, noise)):
            assert torch.equal(run(stepper, *begin).x, wanted)


@pytest.mark.parametrize("name", ["churn_heun", "dpmpp_3m_sde", "seeds_3", "euler"])
def test_given_noise_gives_the_bits_of_sample_with_draw(name):
    plan, noise = plan_of(name), noise_of()
    fresh = {i: ops.normal((4, 5), seed=100 + i) for i in range(-1, plan.nfe)}
    denoiser = df.Denoiser(network, VP, predicts="v")
    wanted = df.sample(denoiser, plan, x=noise, noise=fresh.__getitem__).x
    stepper = Stepper(plan, denoiser, noise="given")
    for each in (False, True):
        state, x, t = stepper.start(noise, z=fresh[-1], each=each)
        for i in range(plan.nfe):
            z = fresh[i] if stepper.draws else None
            state, x, t = stepper.step(state, network(x, t), z)
        assert torch.equal(state.x, wanted)


def test_plans_of_different_solvers_lengths_and_guidance_share_a_batch():
    pairs = [
        (plan_of("unipc_3", steps=3), guided(2.5)),
        (plan_of("churn_heun", steps=4), guided(1.0)),
        (plan_of("lms_4", steps=7), guided(lambda t: 4.0 * (t > 0.4))),
        (plan_of("seeds_3", steps=2), guided(0.0)),
    ]
    stepper, noise = Stepper(pairs), noise_of()
    wanted = [
        df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x[b]
        for b, (plan, denoiser) in enumerate(pairs)
    ]
    at_once = stepper.start(noise, plan=[0, 1, 2, 3], seed=7, ids=IDS)
    late = staggered(stepper, noise, call=pair, plans=[0, 1, 2, 3])
    for begin in (at_once, late):
        ended = run(stepper, *begin, call=pair, extra=3)
        assert stepper.stage(ended).tolist() == [plan.nfe for plan, _ in pairs]
        for b in range(4):
            assert torch.equal(ended.x[b], wanted[b]), pairs[b][0].name
    # one plan of several, all together
    state = run(stepper, *stepper.start(noise, plan=2, seed=7, ids=IDS), call=pair)
    assert torch.equal(state.x[2], wanted[2])
    # `sample` halves the call where the scale is 0 or 1; what is not asked for does not matter
    assert stepper.guided


@some
def test_samples_join_and_leave_mid_run(name):
    plan, noise = plan_of(name), noise_of()
    denoiser = df.Denoiser(network, VP, predicts="v")
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser)
    state = run(stepper, *stepper.start(noise, seed=7, ids=IDS), steps=3)
    first = stepper.select(state, torch.tensor([2, 0]))
    rest = stepper.select(state, torch.tensor([False, True, False, True]))
    first = run(stepper, first, first.x, stepper.time(first), steps=1)
    state = stepper.join(first, rest)
    state = run(stepper, state, state.x, stepper.time(state))
    assert torch.equal(state.x, wanted[[2, 0, 1, 3]])
    assert state.ids.tolist() == [IDS[2], IDS[0], IDS[1], IDS[3]]
    # every run keeps its seed
    other = df.sample(denoiser, plan, x=noise, seed=8, ids=IDS).x
    one, two = (run(stepper, *stepper.start(noise, seed=s, ids=IDS), steps=2) for s in (7, 8))
    both = stepper.join(one, two)
    both = run(stepper, both, both.x, stepper.time(both))
    assert torch.equal(both.x, torch.cat([wanted, other]))


@some
def test_an_ended_sample_stays_whatever_finite_output_comes(name):
    plan = plan_of(name)
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    noise = noise_of()
    short = run(stepper, *stepper.start(noise[:2], ids=IDS[:2], each=True))
    state = stepper.join(short, stepper.start(noise[2:], ids=IDS[2:])[0])
    assert stepper.done(state).tolist() == [True, True, False, False]
    assert stepper.time(state)[:2].tolist() == [pytest.approx(plan.times[-1])] * 2
    for value in (3e38, -3e38, 0.0, 7.5):
        output = network(state.x, stepper.time(state))
        output[:2] = value
        state, _, _ = stepper.step(state, output)
        assert torch.equal(state.x[:2], short.x)
        assert (state.status == -1).all()
        assert stepper.stage(state).tolist()[:2] == [plan.nfe] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("each", [False, True])
@some
def test_a_bad_output_touches_its_own_sample_alone(name, each, value):
    plan, noise = plan_of(name), noise_of()
    denoiser = df.Denoiser(network, VP, predicts="v")
    wanted = df.sample(denoiser, plan, x=noise, seed=7, ids=IDS).x
    stepper = Stepper(plan, denoiser)
    state, x, t = stepper.start(noise, seed=7, ids=IDS, each=each)
    for i in range(plan.nfe):
        output = network(x, t)
        if i == 3:
            output[1, 2] = value
        before, kept = state, state.status.clone()
        state, x, t = stepper.step(before, output)
        assert state.status.tolist() == [-1, 3 if i >= 3 else -1, -1, -1]
        assert torch.equal(before.status, kept)
    fine = [0, 2, 3]
    assert torch.equal(state.x[fine], wanted[fine])
    assert not state.x[1].isfinite().all()


def test_status_counts_each_samples_own_stages():
    plan, noise = plan_of("dpmpp_2m_midpoint"), noise_of()
    stepper = Stepper(plan, df.Denoiser(network, VP, predicts="v"))
    state, x, t = staggered(stepper, noise, calls=(0, 2, 4, 1))
    output = network(x, t)
    output[:] = float("nan")
    state, _, _ = stepper.step(state, output)
    assert state.status.tolist() == [0, 2, 4, 1]
