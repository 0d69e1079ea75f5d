"""Drop-ins whose step is called in a way of its own: CogVideoX-DPM, UnCLIP, Wuerstchen, ..."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers  # noqa: E402
from diffusers_loop import difference, network  # noqa: E402
from diffusers_odd_steps import (  # noqa: E402
    ODD,
    ONE_ODD,
    Odd,
    known,
    noisy,
    run,
    shape_of,
    start,
    take,
    times_of,
)

from diffast.integrations.diffusers import KINDS, DiffastScheduler  # noqa: E402
from diffast.integrations.diffusers.convention import convention_of  # noqa: E402
from diffast.integrations.handed_over import HandedOverWarning  # noqa: E402

TOLERANCE = 1e-5
diffusers.utils.logging.set_verbosity_error()


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


each_case, each_kind = each(ODD), each(ONE_ODD)


def assert_same(found, wanted, tolerance=TOLERANCE):
    assert len(found) == len(wanted)
    for k, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        # an estimate is a state over alpha, which enlarges its roundings
        for mine, right, bound in zip(ours, theirs, (tolerance, 10 * tolerance), strict=True):
            assert (mine is None) == (right is None)
            if right is not None:
                assert mine.dtype == right.dtype
                assert difference(mine, right) <= bound, (k, difference(mine, right))


@pytest.mark.parametrize("steps", [2, 5, 20])
@each_case
def test_the_same_latents_and_estimates(case, steps):
    ours, original = case.drop_in(), case.original()
    found, wanted = run(case, ours, steps), run(case, original, steps)
    assert ours._handed is None
    assert torch.equal(ours.timesteps, original.timesteps)
    assert_same(found, wanted)


@each_kind
def test_from_the_middle_and_another_shape(case):
    shape = (3, *shape_of(case)[1:2], 5, 7)
    for begin in (0, 3):
        found, wanted = (
            run(case, s, 8, begin=begin, shape=shape) for s in (case.drop_in(), case.original())
        )
        assert_same(found, wanted)


@each_kind
def test_a_generator_for_each_sample(case):
    found, wanted = (run(case, s, 5, [11, 12]) for s in (case.drop_in(), case.original()))
    assert_same(found, wanted)


@each_kind
def test_noise_by_counter(case):
    one, again, two = (run(case, case.drop_in("counter"), 6, seed)[-2] for seed in (1, 1, 2))
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], two[0])
    theirs = run(case, case.original(), 6)[-2][0]
    assert float(one[0].std() / theirs.std()) == pytest.approx(1.0, abs=0.15)


KINDS_OF_NUMBERS = [
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),  # CogVideoX: latents of the network's type, float32 outputs
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.float64),
]


@pytest.mark.parametrize("kinds", KINDS_OF_NUMBERS, ids=lambda k: f"{k[0]}-{k[1]}"[6:])
@each_kind
def test_other_dtypes(case, kinds):
    # One step at a time from the same tensors: the original's result in float32 may be missed by
    # four roundings, or as far as the original itself misses it.
    of_sample, of_output = kinds
    original, ours = case.original(), case.drop_in()
    for scheduler in (original, ours):
        start(case, scheduler, 5)
    times, x, beside = times_of(case, original), noisy(case, dtype=of_sample), None
    for k in range(len(times)):
        output = network(x, times[k], case.learned).to(of_output)
        theirs, mine = (
            take(case, s, output, times, k, x, beside, generator=torch.Generator().manual_seed(k))
            for s in (original, ours)
        )
        for got, right in zip(mine, theirs, strict=True):
            assert (got is None) == (right is None)
            if right is not None:
                assert got.dtype == right.dtype
                eps = max(torch.finfo(d).eps for d in (of_sample, of_output, right.dtype))
                assert difference(got, right) <= max(8 * eps, 1e-6), (k, difference(got, right))
        x, beside = theirs[0].to(of_sample), theirs[1]
    assert ours._handed is None


@each_kind
def test_copies_and_pickles_go_on(case):
    wanted = run(case, case.drop_in(), 6)
    for passed_on in (copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
        ours = case.drop_in()
        start(case, ours, 6)
        times, x, beside = times_of(case, ours), noisy(case), None
        generator = torch.Generator().manual_seed(1)
        for k in range(len(times)):
            if k == 3:
                ours = passed_on(ours)
            output = network(x, times[k], case.learned)
            x, beside = take(case, ours, output, times, k, x, beside, generator=generator)
            assert difference(x, wanted[k][0]) <= TOLERANCE


@each_kind
def test_saved_and_loaded(case, tmp_path):
    ours = case.drop_in()
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert type(again) is type(ours) and isinstance(again, type(case.original()))
    assert_same(run(case, again, 4), run(case, ours, 4), 0.0)


@each_kind
def test_results_are_not_changed_by_later_steps(case):
    ours = case.drop_in()
    start(case, ours, 5)
    times, x, beside, kept = times_of(case, ours), noisy(case), None, []
    for k in range(len(times)):
        output = network(x, times[k], case.learned)
        given = [t.clone() for t in (x, output)]
        after = take(case, ours, output, times, k, x, beside)
        assert torch.equal(x, given[0]) and torch.equal(output, given[1])
        kept += [(t, t.clone()) for t in after if t is not None]
        x, beside = after
    assert all(torch.equal(now, then) for now, then in kept)


# those of the two that clip saturate
SMOOTH = [
    *[case for case in ONE_ODD if case.kind not in ("UnCLIP", "RePaint")],
    Odd("UnCLIP-open", "UnCLIP", {"clip_sample": False, "prediction_type": "sample"}),
    Odd("RePaint-open", "RePaint", {"clip_sample": False, "beta_end": 0.002}, {"jump_length": 2}),
]


@each(SMOOTH)
def test_gradients(case):
    grads = []
    for scheduler in (case.original(), case.drop_in()):
        start(case, scheduler, 4)
        times = times_of(case, scheduler)
        x = noisy(case).requires_grad_()
        y, beside = x, None
        for k in range(len(times)):
            output = network(y, times[k], case.learned)
            seed = torch.Generator().manual_seed(k)
            y, beside = take(case, scheduler, output, times, k, y, beside, generator=seed)
        loss = y.square().sum() + (0.0 if beside is None else beside.sin().sum())
        grads.append(torch.autograd.grad(loss, x)[0])
    assert difference(grads[1], grads[0]) <= 1e-4


@pytest.mark.slow
@each_kind
def test_traced_steps_leave_the_graph_or_are_the_same(case):
    torch._dynamo.reset()
    ours = case.drop_in("counter")
    wanted = run(case, case.drop_in("counter"), 4)
    start(case, ours, 4)
    traced = torch.compile(lambda *a: take(case, ours, *a), backend="eager")
    times, x, beside = times_of(case, ours), noisy(case), None
    for k in range(len(times)):
        x, beside = traced(network(x, times[k], case.learned), times, k, x, beside)
    assert x.isfinite().all() and x.shape == wanted[-1][0].shape


# --- what other code writes to the live scheduler -----------------------------------------------


def write_config(name, value):
    def write(scheduler):
        setattr(scheduler.config, name, value)

    return write


def write(name, change):
    def written(scheduler):
        setattr(scheduler, name, change(getattr(scheduler, name)))

    return written


def in_place(name, factor):
    def written(scheduler):
        getattr(scheduler, name).mul_(factor)

    return written


WRITES = [
    (Odd("cogvideo-x0", "CogVideoXDPM"), write_config("prediction_type", "sample")),
    (Odd("cogvideo-levels", "CogVideoXDPM"), in_place("alphas_cumprod", 0.9)),
    (Odd("unclip-clip", "UnCLIP"), write_config("clip_sample", False)),
    (Odd("unclip-betas", "UnCLIP"), in_place("betas", 0.5)),
    (Odd("unclip-variance", "UnCLIP"), write_config("clip_sample_range", 0.3)),
    (Odd("wuerstchen-scaler", "DDPMWuerstchen"), write("scaler", lambda s: 3.0)),
    (Odd("wuerstchen-s", "DDPMWuerstchen"), in_place("s", 5.0)),
    (Odd("wuerstchen-times", "DDPMWuerstchen"), in_place("timesteps", 0.9)),
    (Odd("repaint-eta", "RePaint", {}, {"jump_length": 2}), write("eta", lambda e: 0.7)),
    (Odd("repaint-clip", "RePaint", {}, {"jump_length": 2}), write_config("clip_sample", False)),
    (Odd("scm-data", "SCM", {}, {"intermediate_timesteps": None}), write_config("sigma_data", 2.0)),
    (Odd("scm-times", "SCM", {}, {"intermediate_timesteps": None}), in_place("timesteps", 0.8)),
]


@pytest.mark.filterwarnings("ignore::diffast.integrations.handed_over.HandedOverWarning")
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(("case", "change"), WRITES, ids=[case.id for case, _ in WRITES])
def test_writes_are_followed(case, change, place):
    results = []
    for scheduler in (case.drop_in(), case.original()):

        def touch(k, scheduler=scheduler):
            if k == place:
                change(scheduler)

        results.append(run(case, scheduler, 5, touch=touch))
    assert_same(*results)
    plain = run(case, case.original(), 5)
    assert difference(results[0][-1][0], plain[-1][0]) > 1e-4  # the write mattered


# --- what is handed over ------------------------------------------------------------------------


def handed(ours, original, call):
    """Both results of a call that no plan does."""
    with pytest.warns(HandedOverWarning):
        found = call(ours)
    return found, call(original)


def pair(case, steps=5):
    both = case.drop_in(), case.original()
    for scheduler in both:
        start(case, scheduler, steps)
    return *both, noisy(case)


def test_cogvideo_from_another_time_is_the_original_s():
    ours, original, x = pair(ODD[0])
    t = original.timesteps

    def call(s):
        seed = torch.Generator().manual_seed(0)
        return s.step(x, x.flip(0), t[3], t[1], x, generator=seed)

    found, wanted = handed(ours, original, call)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    # the next step is fused again
    found, wanted = (
        s.step(x, None, t[0], None, x, generator=torch.Generator()) for s in (ours, original)
    )
    assert difference(found[0], wanted[0]) <= TOLERANCE and ours._handed is None


def test_unclip_to_another_time_is_the_original_s():
    ours, original, x = pair(Odd("", "UnCLIP"))
    t = original.timesteps

    def call(s):
        seed = torch.Generator().manual_seed(0)
        return s.step(x, t[0], x, prev_timestep=t[2], generator=seed, return_dict=False)

    found, wanted = handed(ours, original, call)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_repaint_with_one_picture_for_all_is_the_original_s():
    ours, original, x = pair(Odd("", "RePaint", {}, {"jump_length": 2}))
    picture, mask = known(x)

    def call(s):
        seed = torch.Generator().manual_seed(0)
        return s.step(x, 400, x, picture[:1], mask, seed, return_dict=False)

    found, wanted = handed(ours, original, call)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_repaint_goes_back_as_the_original_does():
    ours, original, x = pair(Odd("", "RePaint", {}, {"jump_length": 2}))
    found, wanted = (
        s.undo_step(x, 200, torch.Generator().manual_seed(0)) for s in (ours, original)
    )
    assert torch.equal(found, wanted)


def test_wuerstchen_with_a_time_for_each_sample_is_the_original_s():
    ours, original, x = pair(Odd("", "DDPMWuerstchen"))
    t = torch.stack([original.timesteps[1], original.timesteps[2]])

    def call(s):
        return s.step(x, t, x, torch.Generator().manual_seed(0), return_dict=False)

    found, wanted = handed(ours, original, call)
    assert torch.equal(found[0], wanted[0])


@pytest.mark.parametrize("kind", ["DDIMParallel", "DDPMParallel"])
def test_steps_of_many_times_at_once(kind):
    case = Odd("", kind)
    ours, original, x = pair(case)
    times = original.timesteps[1:3]
    wanted = original.batch_step_no_noise(x.flip(0), times, x)
    assert torch.equal(ours.batch_step_no_noise(x.flip(0), times, x), wanted)
    again = ours.step(x, times[0], x, generator=torch.Generator().manual_seed(0)).prev_sample
    theirs = original.step(x, times[0], x, generator=torch.Generator().manual_seed(0)).prev_sample
    assert difference(again, theirs) <= TOLERANCE and ours._handed is None


def test_bad_arguments_are_told():
    ours, _, x = pair(Odd("", "TCD"))
    with pytest.raises(ValueError, match="eta is 1.5, but it must be from 0 to 1"):
        ours.step(x, ours.timesteps[0], x, eta=1.5)
    scheduler = Odd("", "DDIMInverse", {"prediction_type": "sample"}).drop_in()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="starts without noise, where x0 does not tell the noise"):
        scheduler.step(x, 0, x)
    scheduler = Odd("", "UnCLIP", {"prediction_type": "v_prediction"}).drop_in()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="UnCLIP's is 'epsilon' or 'sample'"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="1 steps, but a whole number from 2 is needed"):
        scheduler.set_timesteps(1)


def test_configs_without_a_name_mean_the_plain_class():
    for kind in ("DDIM", "DDPM"):
        config = getattr(diffusers, f"{kind}Scheduler")().config
        made = DiffastScheduler.from_config(config)
        assert type(made).__name__ == f"Diffast{kind}Scheduler"
    with pytest.raises(ValueError, match="its keys fit 2 schedulers"):
        DiffastScheduler.from_config(diffusers.TCDScheduler().config)


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "DDIMInverse", "CogVideoXDDIM", "UnCLIP"])
def test_steps_in_any_order(kind):
    # these look at nothing but the time step, which may be a plain number
    case = Odd(kind, kind)
    ours, original, _ = pair(case, 20)
    for t in map(int, original.timesteps[[9, 0, 19, 14]]):
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(t))
        seeds = [{"generator": torch.Generator().manual_seed(0)} for _ in range(2)]
        if kind == "DDIMInverse":  # which takes none
            seeds = [{}, {}]
        want, got = (
            s.step(network(x, t), t, x, **seed).prev_sample
            for s, seed in zip((original, ours), seeds, strict=True)
        )
        assert difference(got, want) <= TOLERANCE, t


@pytest.mark.parametrize("kind", ["UnCLIP", "CogVideoXDPM"])
def test_replaced_timesteps_are_read_before_the_step_s_end_is(kind):
    case = Odd("", kind)
    ours, original, x = pair(case, 10)
    times = original.timesteps.clone()
    ends = []
    for scheduler in (ours, original):
        seed = torch.Generator().manual_seed(0)
        scheduler.timesteps = times[[0, 3, 5, 9]]  # without every other one
        if kind == "UnCLIP":
            ends.append(scheduler.step(x, times[3], x, times[5], seed, return_dict=False)[0])
        else:
            ends.append(scheduler.step(x, x.flip(0), times[3], times[0], x, generator=seed)[0])
    assert difference(*ends) <= TOLERANCE


@pytest.mark.parametrize("kind", ["RePaint", "DDIMInverse", "SCM", "TCD"])
def test_no_plan_of_another_kind_runs_in_their_place(kind):
    with pytest.raises(ValueError, match="inverts pictures or completes them|distilled"):
        convention_of(Odd("", kind).original())


def test_the_table_of_all_schedulers_is_true():
    page = Path(__file__).parents[2] / "docs" / "diffusers-schedulers.md"
    rows = dict(re.findall(r"^\| (\w+Scheduler) \| (.*?) \|", page.read_text(), re.M))
    assert {name for name, step in rows.items() if step.startswith("served")} == set(KINDS)
    assert [*rows] == sorted(rows)
