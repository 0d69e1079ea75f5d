"""Plans that start late: `Plan.late_start`, its law, its entries, in every executor."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import diffast as df
from diffast.executors.context import place_of
from diffast.executors.replay import ReplayableRun
from diffast.plans.initial import StartLaw

COVARIANCE = np.array([[1.0, 0.5], [0.5, 0.4]])
MEAN = np.array([1.0, -2.0])
EXACT = df.thermo.GaussianMixture(None, [MEAN], COVARIANCE[None])
VALUES, VECTORS = np.linalg.eigh(COVARIANCE)
LAW = df.thermo.Gaussian(MEAN, VECTORS.T, VALUES)
SHAPE = (6, 2)
SCHEDULES = {
    "edm": df.schedules.edm(),
    "vp": df.schedules.vp_linear(),
    "flow": df.schedules.flow(),
}


def full(build, schedule, steps=100, **options):
    return build(schedule, df.grids.default(schedule, steps), **options)


ORDERS = {"ddim": 1, "dpmpp_2m": 2, "dpmpp_3m": 3, "adams": 3, "ipndm": 2, "deis": 3, "heun": 2}


def noisy(build, schedule, steps):
    """A plan that ends at noise, where the solvers have their orders."""
    return build(schedule, df.grids.even(schedule, steps, sigma_min=0.1, to_zero=False))


@cache
def fine_samples(name):
    schedule = SCHEDULES[name]
    start = {} if name == "flow" else {"x": top(schedule)}
    plan = noisy(df.solvers.adams, schedule, 400)
    return df.sample(EXACT.denoiser(schedule), plan, SHAPE, seed=3, **start).x


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("solver", ORDERS)
def test_gaussian_data_start_on_their_own_flow(name, solver):
    """What is left out was exact: the rest converges to the whole flow, in the solver's order."""
    schedule, errors = SCHEDULES[name], []
    for steps in (10, 20, 40):
        plan = noisy(df.solvers.get(solver), schedule, steps)
        late = plan.late_start(LAW, level=1.5)
        made = df.sample(EXACT.denoiser(schedule), late, SHAPE, seed=3)
        assert made.nfe.tolist() == [late.nfe] * 6 and late.nfe < 0.7 * plan.nfe
        errors.append(float((made.x - fine_samples(name)).abs().max()))
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert fine < max(coarse / 2 ** (ORDERS[solver] - 0.5), 1e-5), errors  # float32


def top(schedule):
    """States of the law at the schedule's start, of the noise of seed 3."""
    alpha, sigma = float(schedule.alpha(schedule.t_start)), float(schedule.sigma(schedule.t_start))
    z = df.ops.normal(SHAPE, seed=3, stage=df.ops.INITIAL_NOISE, ids=torch.arange(6)).double()
    root = VECTORS @ np.diag(np.sqrt(alpha**2 * VALUES + sigma**2)) @ VECTORS.T
    return (z @ torch.tensor(root) + alpha * torch.tensor(MEAN)).float()


def test_filled_entries_keep_the_order_of_the_first_step():
    """Adams of order 3: a cold start loses its order at the cut, filled entries keep it."""
    schedule = df.schedules.flow()
    denoiser = EXACT.denoiser(schedule)
    fine = df.sample(denoiser, full(df.solvers.adams, schedule, 500), SHAPE, seed=3).x
    warm, cold = [], []
    for steps in (10, 20, 40):
        plan = full(df.solvers.adams, schedule, steps)
        late = plan.late_start(LAW, level=1.0)
        again = df.solvers.adams(schedule, df.grids.default(schedule, steps)[-late.nfe - 1 :])
        for made, errors in ((late, warm), (again.late_start(LAW), cold)):
            x = df.sample(denoiser, made, SHAPE, seed=3).x
            errors.append(float((x - fine).abs().max()))
    assert all(w < 0.6 * c for w, c in zip(warm, cold, strict=True)), (warm, cold)


def test_a_tuned_plan_may_be_cut():
    """Its x stands off the schedule's levels: the cut begins with a scale."""
    schedule = df.schedules.edm()
    denoiser = EXACT.denoiser(schedule)
    plan = df.digits.load_plan(10)
    whole = plan.late_start(LAW)
    cut = plan.late_start(LAW, calls=8)
    assert (cut.nfe, cut.initial.entries) == (8, 2) and np.isnan(cut.times[0])
    fine = full(df.solvers.adams, schedule, 400).late_start(LAW)
    fine, whole, cut = (df.sample(denoiser, p, (200, 2)).x for p in (fine, whole, cut))
    error, allowed = ((x - fine).square().mean().sqrt() for x in (cut, whole))
    assert error < 1.1 * allowed


def test_the_law_s_draws_have_its_moments():
    schedule = df.schedules.vp_linear()
    plan = full(df.solvers.ddim, schedule).late_start(LAW, level=0.8)
    alpha, sigma = float(schedule.alpha(plan.start)), float(schedule.sigma(plan.start))
    x = df.initial_state(EXACT.denoiser(schedule), plan, (40_000, 2)).double()
    assert (x.mean(0) - alpha * torch.tensor(MEAN)).abs().max() < 0.02
    wanted = alpha**2 * torch.tensor(COVARIANCE) + sigma**2 * torch.eye(2)
    assert (torch.cov(x.T) - wanted).abs().max() < 0.03


def test_a_low_rank_law_is_the_full_one_with_a_shared_rest():
    schedule = df.schedules.vp_linear()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(200, 3, 4, generator=generator) * torch.arange(1, 5)
    low = df.thermo.Gaussian.of(data, rank=4)
    spread = np.diag(low.variances - low.rest)
    dense = low.basis.T @ spread @ low.basis + low.rest * np.eye(12)
    values, vectors = np.linalg.eigh(dense)
    whole = df.thermo.Gaussian(low.mean, vectors.T, values, shape=(3, 4))
    denoiser = df.Denoiser(lambda x, t: x, schedule, predicts="x0")
    plan = full(df.solvers.ddim, schedule, 10)
    a, b = (
        df.initial_state(denoiser, plan.late_start(law, level=2.0), (5, 3, 4), seed=1)
        for law in (low, whole)
    )
    assert (a - b).abs().max() < 1e-6


def test_a_sample_is_the_same_in_any_batch():
    schedule = df.schedules.vp_linear()
    denoiser = EXACT.denoiser(schedule)
    plan = full(df.solvers.dpmpp_2m, schedule, 10).late_start(LAW, calls=6)
    whole = df.sample(denoiser, plan, SHAPE, seed=5).x
    for b in range(6):
        assert torch.equal(df.sample(denoiser, plan, (1, 2), seed=5, ids=[b]).x, whole[b : b + 1])


@pytest.mark.parametrize("solver", ["dpmpp_2m", "adams", "dpmpp_2m_sde", "heun"])
@pytest.mark.parametrize("each", [False, True])
def test_a_stepper_has_the_bits_of_df_sample(solver, each):
    schedule = df.schedules.vp_linear()
    denoiser = EXACT.denoiser(schedule)
    plan = full(df.solvers.get(solver), schedule, 10).late_start(LAW, level=2.0)
    wanted = df.sample(denoiser, plan, SHAPE, seed=5).x
    stepper = df.Stepper(plan, denoiser)
    x = df.initial_state(denoiser, plan, SHAPE, seed=5)
    state, x, t = stepper.start(x, seed=5, each=each)
    for _ in range(plan.nfe):
        state, x, t = stepper.step(state, denoiser.network(x, t))
    assert torch.equal(stepper.result(state).x, wanted)


def test_a_parallel_run_reaches_the_sequential_one():
    schedule = df.schedules.vp_linear()
    denoiser = EXACT.denoiser(schedule)
    grid = df.grids.even(schedule, 12, sigma_max=float(schedule.sigma(0.5)))
    plan = df.solvers.ddim(schedule, grid).late_start(LAW)
    wanted = df.sample(denoiser, plan, SHAPE, seed=5).x
    made = df.sample_parallel(denoiser, plan, SHAPE, seed=5, tol=1e-6).x
    assert (made - wanted).abs().max() < 1e-4
    with pytest.raises(ValueError, match="a sweep begins with none"):
        late = full(df.solvers.dpmpp_2m, schedule, 10).late_start(LAW, level=2.0)
        df.sample_parallel(denoiser, late, SHAPE)


def test_a_condition_picks_each_sample_s_law():
    schedule = df.schedules.vp_linear()
    other = df.thermo.Gaussian(-5 * MEAN, VECTORS.T, VALUES)
    both = StartLaw((LAW, other), by="labels")
    assert "laws 2, by labels" in str(both) and "unknown" in str(both)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])

    def network(x, t, labels):
        return x

    denoiser = df.Denoiser(network, schedule, "x0", conditions={"labels": labels})
    plan = full(df.solvers.ddim, schedule, 10)
    mixed = df.initial_state(denoiser, plan.late_start(both, level=1.0), SHAPE, seed=1)
    for k, law in enumerate((LAW, other)):
        alone = df.initial_state(denoiser, plan.late_start(law, level=1.0), SHAPE, seed=1)
        assert torch.equal(mixed[labels == k], alone[labels == k])
    late = plan.late_start(both, level=1.0)
    for wrong, words in (
        ({"labels": labels + 1}, "labels = 2, but the plan has laws for 0 to 1"),
        ({"labels": labels.float()}, "a tensor of whole numbers"),
        ({"labels": labels[:3]}, "3 values for 6 samples"),
        ({}, "but it is None"),
    ):
        with pytest.raises(ValueError, match=words):
            df.initial_state(
                df.Denoiser(network, schedule, "x0", conditions=wrong), late, SHAPE, seed=1
            )


def test_a_replayed_run_has_the_same_bits():
    schedule = df.schedules.vp_linear()
    denoiser = EXACT.denoiser(schedule)
    plan = full(df.solvers.dpmpp_2m, schedule, 10).late_start(LAW, level=2.0)
    wanted = df.sample(denoiser, plan, SHAPE, seed=5).x
    run = ReplayableRun(
        denoiser, plan, place_of("sample", denoiser, SHAPE, None, None, 0, None, None)
    )
    run.load(seed=5)
    run.run()
    assert torch.equal(run.samples().x, wanted)


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_files_keep_the_law(ending, tmp_path):
    schedule = df.schedules.vp_linear()
    denoiser = EXACT.denoiser(schedule)
    plan = full(df.solvers.adams, schedule, 10).late_start(LAW, level=2.0)
    plan.save(tmp_path / f"late.{ending}")
    again = df.Plan.load(tmp_path / f"late.{ending}")
    wanted = df.sample(denoiser, plan, SHAPE, seed=5).x
    assert torch.equal(df.sample(denoiser, again, SHAPE, seed=5).x, wanted)


def test_what_cannot_be_done_is_refused():
    schedule = df.schedules.vp_linear()
    plan = full(df.solvers.dpmpp_2m, schedule, 10)
    late = plan.late_start(LAW, level=2.0)
    denoiser = EXACT.denoiser(schedule)
    unipc = full(df.solvers.unipc, schedule, 10)
    for call, words in (
        (lambda: plan.late_start(LAW, level=1.0, calls=3), "level and calls are given"),
        (lambda: plan.late_start(LAW, level=-1.0), "must be positive"),
        (lambda: plan.late_start(LAW, level=1e-9), "the lowest step starts at"),
        (lambda: plan.late_start(LAW, kl=0.1), "has no certificate"),
        (lambda: plan.late_start(LAW, level="1"), "must be positive"),
        (lambda: plan.late_start(LAW, calls=2.5), "must be a whole number"),
        (
            lambda: df.initial_state(EXACT.denoiser(SCHEDULES["edm"]), late, SHAPE),
            "the plan is for VPLinear",
        ),
        (lambda: df.initial_state(denoiser, "late.json", SHAPE), "plan is the path"),
        (lambda: plan.late_start("law"), "a df.thermo.Gaussian"),
        (lambda: full(df.solvers.heavy_ball, schedule, 10).late_start(LAW, calls=5), "momentum"),
        (lambda: df.solvers.cfg_plus_plus(late), "no unconditional estimates"),
        (
            lambda: df.sample_metropolis(
                denoiser, late, lambda x, t: x.square().sum(1), (4, 2), where=[1]
            ),
            "reads the entry of stage 0 after the chain",
        ),
        (lambda: late.late_start(LAW), "already"),
        (lambda: unipc.late_start(LAW, calls=5), "begins at x alone"),
        (lambda: df.sample(denoiser, late, (4, 3)), r"samples \[2\], but the samples are \[3\]"),
        (lambda: df.unroll(late), "entries of a Gaussian law"),
        (lambda: df.solvers.predictor_corrector(late, "olmc"), "add the corrector first"),
        (lambda: df.tune(denoiser, 6, SHAPE, start=late), "tune the plan first"),
        (
            lambda: df.integrations.k_diffusion.get_sigmas_plan(late),
            "starts from a Gaussian law",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_a_law_of_a_condition_fills_in_no_unconditional_estimates():
    schedule = df.schedules.vp_linear()
    plan = df.solvers.cfg_plus_plus(full(df.solvers.dpmpp_2m, schedule, 10))
    assert plan.late_start(LAW, calls=5).initial.entries == 1
    with pytest.raises(ValueError, match="the entry weighs d_uncond"):
        plan.late_start(StartLaw((LAW, LAW), by="labels"), calls=5)


def test_a_cut_leaves_a_call_and_no_more_steps_than_calls():
    schedule = df.schedules.flow()
    single = full(df.solvers.singlestep, schedule, 8).late_start(LAW, level=0.4)
    assert 1 <= single.steps <= single.nfe
    # The plan ends at noise: its end is no place to start at.
    plan = noisy(df.solvers.ddim, schedule, 8)
    law = StartLaw((LAW,), None, [10.0, 1.0, 0.05], [0.01, 0.1, 1.0])
    assert plan.late_start(law, kl=50.0).nfe == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StartLaw(()), "there is no law"),
        (lambda: StartLaw((LAW, 5)), "a int, but"),
        (lambda: StartLaw((LAW, LAW), by=3), "the name of a condition"),
        (lambda: df.thermo.Gaussian.of("abc"), "must be real numbers"),
        (lambda: df.thermo.Gaussian.of(torch.ones(4, 2) * 1j), "must be real numbers"),
        (lambda: df.thermo.Gaussian.of(np.zeros((3, 0))), "no elements"),
        (lambda: df.thermo.Gaussian.of(np.eye(9), rank=1.5), "rank = 1.5"),
    ],
)
def test_bad_laws_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_laws_of_tensors_of_any_real_type():
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = df.thermo.Gaussian.of(data.double().numpy())
    made = df.thermo.Gaussian.of(data.requires_grad_())
    assert (made.variances == wanted.variances).all()
    law = StartLaw((made,), None, [2.0, 1.0], [0.1, 0.2])
    with pytest.raises(ValueError, match="read-only"):
        law.kl[0] = 5.0


def test_noise_of_another_size_than_the_law_s_states_is_warned_of():
    schedule = df.schedules.edm()
    denoiser = EXACT.denoiser(schedule)
    late = full(df.solvers.ddim, schedule, 10).late_start(LAW, level=2.0)
    noise = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="make x by df.initial_state"):
        df.sample(denoiser, late, x=80.0 * noise)
    # The states of a law far from 0 are larger than the noise there, and right.
    far = df.thermo.Gaussian([900.0, 0.0], np.eye(2), [1.0, 1.0])
    late = full(df.solvers.ddim, schedule, 10).late_start(far, level=20.0)
    x = df.initial_state(denoiser, late, (60, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        df.Stepper(late, denoiser).start(x)
        df.sample(denoiser, late, x=x)


def test_a_changed_entry_is_refused():
    """The plan's check knows what the entries hold on a path of known x0 and noise."""
    schedule = df.schedules.vp_linear()
    late = full(df.solvers.adams, schedule, 10).late_start(LAW, level=2.0)
    initial = replace(late.initial, states=late.initial.states * 1.01)
    with pytest.raises(ValueError, match="it must be"):
        replace(late, initial=initial)
