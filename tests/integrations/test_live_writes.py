"""Whatever other code writes to a drop-in, and when: the latents are those of the original.

Original and drop-in take the same loop with the same writes in it. What is compared is the
network's input, the latents and the x0 estimate of every step, and their dtypes.
"""

import inspect
import itertools

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers  # noqa: E402
from diffusers_cases import LEADING, SD, Case  # noqa: E402
from live_cases import (  # noqa: E402
    CASES,
    FEW,
    FIRST,
    TOLERANCE,
    assert_same,
    of,
)
from live_loop import Writes, both, gap, trace  # noqa: E402
from live_roundings import misses  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
# other values of every option that any of the originals has
VALUES = {
    "timestep_spacing": ["leading", "trailing", "linspace"],
    "prediction_type": ["epsilon", "v_prediction", "sample", "flow_prediction"],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "clip_sample": [True, False],
    "clip_sample_range": [0.3],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.7],
    "sample_max_value": [1.5],
    "steps_offset": [1],
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver", "sde-dpmsolver++", "noise_prediction"],
    "solver_type": ["midpoint", "heun", "bh1"],
    "lower_order_final": [True, False],
    "euler_at_final": [True],
    "lambda_min_clipped": [-3.0],
    "variance_type": ["fixed_small", "fixed_large", "fixed_small_log", "learned_range"],
    "final_sigmas_type": ["sigma_min", "zero"],
    "sigma_min": [0.05],
    "sigma_max": [20.0],
    "rho": [4.0],
    "sigma_data": [0.7],
    "sigma_schedule": ["exponential"],
    "shift": [5.0],
    "use_dynamic_shifting": [True],
    "invert_sigmas": [True],
    "stochastic_sampling": [True],
    "shift_terminal": [0.2],
    "timestep_type": ["continuous"],
    "interpolation_type": ["log_linear"],
    "predict_x0": [False],
    "disable_corrector": [[1, 2]],
    "use_flow_sigmas": [True],
    "flow_shift": [4.0],
    "original_inference_steps": [30],
    "timestep_scaling": [3.0],
    "skip_prk_steps": [True, False],
    "predictor_order": [1, 3],
    "corrector_order": [1, 3],
    "use_lu_lambdas": [True],
    "num_train_timesteps": [500],
    "beta_end": [0.015],
    "set_alpha_to_one": [False, True],
    "rescale_betas_zero_snr": [True],
}


def check_options(case, moments):
    known = inspect.signature(case.original().__init__).parameters
    for name in known.keys() & VALUES.keys():
        for value in VALUES[name]:

            def write(scheduler, name=name, value=value):
                setattr(scheduler.config, name, value)

            for writes in moments(write):
                want, got, _ = both(case, writes)
                apart, where = gap(want, got)
                assert apart <= TOLERANCE, (name, value, apart, where)


@pytest.mark.slow
@of(FIRST)
def test_options_written_by_attribute(case):
    moments = itertools.cycle(("before", 3))
    check_options(case, lambda write: [at(next(moments), write)])


@of(FEW)
def test_options_written_between_two_steps(case):
    check_options(case, lambda write: [Writes(between={3: write})])


def patch(name, how):
    def write(scheduler):
        if isinstance(getattr(scheduler, name, None), torch.Tensor):
            how(scheduler, getattr(scheduler, name))

    return write


def one_entry(scheduler, numbers):
    """Writes an entry that steps in the middle of the run read."""
    times = scheduler.timesteps
    whole = len(numbers) > 50  # by training step
    at = -4 if not whole else 300 if times is None else int(times[-3])
    numbers[at] *= 0.97


HOW = {
    "replaced": lambda name: patch(name, lambda s, v: setattr(s, name, v * 0.98)),
    "in_place": lambda name: patch(name, lambda s, v: v.mul_(0.98)),
    "one_entry": lambda name: patch(name, lambda s, v: one_entry(s, v)),
    "data": lambda name: patch(name, lambda s, v: one_entry(s, v.data)),
    "numpy": lambda name: patch(name, lambda s, v: one_entry(s, v.numpy())),
}
TENSORS = ("sigmas", "alphas_cumprod", "betas", "sigmas_interpol")


def at(when, write):
    return Writes(**{when: write}) if isinstance(when, str) else Writes(between={when: write})


MOMENTS = [
    *(("replaced", "before"), ("replaced", 3), ("in_place", "before"), ("in_place", "ready")),
    *(("one_entry", "ready"), ("one_entry", 3), ("data", 3), ("numpy", 3)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "when"), MOMENTS)
@of(FIRST)
def test_tensors_written_at_any_time(case, how, when):
    original = case.original()
    original.set_timesteps(4, **case.timing)
    for name in TENSORS:
        write = HOW[how](name)
        if hasattr(original, name) and getattr(original, name).dim():
            assert_same(case, at(when, write))


@pytest.mark.parametrize("how", HOW)
@of(FEW)
def test_tensors_written_after_set_timesteps(case, how):
    assert_same(case, Writes(ready=HOW[how]("sigmas")))
    assert_same(case, Writes(between={3: HOW[how]("sigmas")}))
    assert_same(case, Writes(before=HOW[how]("alphas_cumprod")))


PAIRS = [
    *(Case("heun", "HeunDiscrete", SD), Case("flow", "FlowMatchHeunDiscrete")),
    *(Case("kdpm2", "KDPM2Discrete", SD), Case("ancestral", "KDPM2AncestralDiscrete", SD)),
]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.kind[:2] == "KD")) for c in PAIRS],
)
def test_one_of_a_pair_of_sigmas(case):
    """Inner levels stand there twice; the original reads either at another place."""
    for entry in (3, 4):
        for name in ("sigmas", "sigmas_interpol"):

            def write(scheduler, name=name, entry=entry):
                if hasattr(scheduler, name):
                    getattr(scheduler, name).numpy()[entry] *= 1.001

            for when in ("ready", 2):
                want, got, _ = both(case, at(when, write))
                assert gap(want, got)[0] <= 1e-5


def ends_at(value):
    return Writes(ready=lambda s: hasattr(s, "sigmas") and s.sigmas.__setitem__(-1, value))


def both_cut(scheduler):
    scheduler.timesteps = scheduler.timesteps[2:]
    scheduler.sigmas = scheduler.sigmas[2:]


@of(CASES)
def test_noise_levels_of_the_callers(case):
    assert_same(case, Writes(ready=lambda s: setattr(s, "timesteps", s.timesteps[2:])))
    if case.kind not in ("DDIM", "DDPM", "PNDM", "LCM"):
        assert_same(case, ends_at(0.1))
        assert_same(case, Writes(ready=both_cut))


@pytest.mark.parametrize(
    "sigmas",
    [[0.9, 0.6, 0.3, 0.0], [0.9, 0.6, 0.6, 0.3], [0.1, 0.4, 0.9], [30.0, 4.0, 0.5]],
    ids=["to zero", "repeated", "rising", "above one"],
)
@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"invert_sigmas": True}], ids=str)
def test_custom_sigmas_of_a_flow(sigmas, config):
    case = Case("flow", "FlowMatchEulerDiscrete", config)
    assert_same(case, Writes(timing={"sigmas": sigmas}))
    rising = Case("euler", "EulerDiscrete", SD)
    assert_same(rising, Writes(timing={"sigmas": [*filter(None, sigmas), 0.0]}))


def test_shift_before_and_after():
    case = Case("flow", "FlowMatchEulerDiscrete", {})
    for when in ("before", "after", "again"):
        assert_same(case, Writes(**{when: lambda s: s.set_shift(5.0)}))


def test_inverted_and_stochastic():
    config = {"invert_sigmas": True, "stochastic_sampling": True}
    assert_same(Case("flow", "FlowMatchEulerDiscrete", config), Writes())
    # set_begin_index, a dynamic shift and one step to the terminal value
    assert_same(
        Case("", "FlowMatchEulerDiscrete", {"shift_terminal": 0.1}),
        Writes(timing={"num_inference_steps": 1}),
    )


@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
def test_flow_prediction_on_a_schedule_with_betas(kind):
    assert_same(Case("", kind, {**SD, "prediction_type": "flow_prediction"}), Writes())


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True], ids=["", "kept"])
@of(FIRST)
def test_mixed_dtypes(case, keep):
    """The same dtypes; values as near to exact ones as the original's, or near its own."""
    others = [(a, b) for a in DTYPES for b in DTYPES if (a, b) != (torch.float64,) * 2]
    for sample, output in others[:: 1 + keep]:
        for what, apart, ours, theirs in misses(case, sample, output, 4, keep):
            assert apart <= 3e-4 or ours <= 1.5 * theirs, (sample, output, what, apart, ours)


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"])
def test_sigmas_are_where_the_timesteps_are(kind):
    for scheduler in (Case("", kind).original(), Case("", kind).drop_in()):
        scheduler.set_timesteps(4, device="meta")
        assert scheduler.sigmas.device.type == scheduler.timesteps.device.type == "meta"


# --- memory ---------------------------------------------------------------------------------

LISTS = ("model_outputs", "derivatives", "ets")
SINGLE = ("last_sample", "sample", "last_noise", "cur_sample", "prev_derivative")


def cut(scheduler, where):
    for name in LISTS:
        if hasattr(scheduler, name):
            held = getattr(scheduler, name)
            setattr(scheduler, name, [None if x is None else x[where] for x in held])
    for name in SINGLE:
        held = getattr(scheduler, name, None)
        if isinstance(held, torch.Tensor):
            setattr(scheduler, name, held[where])
    return where


def scaled(scheduler):
    for name in LISTS:
        for held in getattr(scheduler, name, None) or ():
            if held is not None:
                held.mul_(1.1)
    if isinstance(getattr(scheduler, "last_sample", None), torch.Tensor):
        scheduler.last_sample = scheduler.last_sample * 1.1


def forgets(scheduler):
    for name in LISTS:
        if hasattr(scheduler, name):
            setattr(scheduler, name, [None] * len(getattr(scheduler, name)))
    if hasattr(scheduler, "lower_order_nums"):
        scheduler.lower_order_nums = 0


WRITTEN = {
    "batch shrinks": lambda s: cut(s, slice(0, 1)),
    "frames dropped": lambda s: cut(s, (slice(None), slice(None), slice(0, 2))),
    "scaled": scaled,
    "reset": forgets,
    "counted": lambda s: hasattr(s, "lower_order_nums") and setattr(s, "lower_order_nums", 1),
    "read": lambda s: [getattr(s, name, None) for name in (*LISTS, *SINGLE)],
}
REMEMBERING = [c for c in CASES if c.kind not in ("DDIM", "DDPM", "LCM")]


@pytest.mark.parametrize("write", WRITTEN)
@of([c for c in REMEMBERING if c.id in ("PNDM-sd", "UniPC-3", "SA-3", "Multistep-3")])
def test_memory_written_between_two_steps(case, write):
    for i in range(1, 5):
        assert_same(case, Writes(between={i: WRITTEN[write]}))


@pytest.mark.slow
@pytest.mark.parametrize("write", WRITTEN)
@of(REMEMBERING)
def test_memory_written_between_any_two_steps(case, write):
    for i in (1, 2, 5):
        assert_same(case, Writes(between={i: WRITTEN[write]}))


@pytest.mark.slow
@of(REMEMBERING)
def test_as_much_is_held_as_the_original_holds(case):
    seen = []

    def note(scheduler):
        lists = [getattr(scheduler, name, None) for name in LISTS]
        single = [getattr(scheduler, name, None) for name in SINGLE]
        seen.append([[x is None for x in held] for held in lists if held is not None])
        seen[-1].append([x is None for x in single])

    for i in (2, 4, 5):
        both(case, Writes(between={i: note}))
    assert seen[::2] == seen[1::2]


@of([case for case in CASES if case.kind == "PNDM"])
def test_the_counter_of_pndm(case):
    for i in (1, 3, 4, 5):
        for by in (-1, 1):
            write = lambda s, by=by: setattr(s, "counter", s.counter + by)  # noqa: E731
            assert_same(case, Writes(between={i: write}))
    for loop in (lambda s: s.timesteps.flip(0), lambda s: [*reversed(s.timesteps)]):
        assert_same(case, Writes(loop=loop))


@of([c for c in CASES if hasattr(c.original(), "step_index")])
def test_steps_out_of_turn(case):
    def moved(by):
        return lambda s: setattr(s, "_step_index", s._step_index + by)

    for i in (2, 4):
        assert_same(case, Writes(between={i: moved(-1)}))
        assert_same(case, Writes(between={i: moved(1)}))
        assert_same(case, Writes(between={i: lambda s: setattr(s, "_step_index", None)}))


@of(CASES)
def test_latents_changed_between_two_steps(case):
    """As inpainting does: a corrector of the original goes on from latents of its own."""
    assert_same(case, Writes(touched={3: lambda x: 0.9 * x + 0.05}))
    assert_same(case, Writes(touched={2: lambda x: x.mul_(0.9)}))
    assert_same(case, Writes(touched={2: lambda x: x[:1]}))


LOOPS = {
    "cut": lambda s: s.timesteps[2:],
    "skipped": lambda s: s.timesteps[[0, 1, 3, 4]],
    "repeated": lambda s: s.timesteps[[0, 1, 2, 2, 3]],
    "numbers": lambda s: s.timesteps.tolist(),
    "clone": lambda s: s.timesteps.clone(),
    "twice": lambda s: torch.cat([s.timesteps, s.timesteps]),
}


@pytest.mark.parametrize("loop", LOOPS)
@of(FIRST)
def test_loops_over_other_timesteps(case, loop):
    assert_same(case, Writes(loop=LOOPS[loop]))


@pytest.mark.parametrize("kind", ["DDIM", "DDPM", "PNDM", "LCM"])
def test_timesteps_outside_the_set(kind):
    config = {"skip_prk_steps": True} if kind == "PNDM" else {}
    case = Case("", kind, config)
    outside = Writes(loop=lambda s: [*s.timesteps[:2], s.timesteps[2] - 5, *s.timesteps[3:5]])
    assert_same(case, outside)
    assert_same(case, Writes(loop=lambda s: [t - 1 for t in s.timesteps]))


@of(CASES)
def test_without_set_timesteps(case):
    """Training loops, and loops over the default timesteps."""
    if case.original().timesteps is None:
        pytest.skip("the original has no timesteps then")
    assert_same(case, Writes(timing=None, loop=lambda s: s.timesteps[:6]))
    original, ours = case.original(), DiffastScheduler.from_scheduler(case.original())
    x, noise = torch.ones(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    if hasattr(original, "add_noise") and case.kind != "SASolver":  # it has no whole timesteps
        t = original.timesteps[[5, 9]]
        assert torch.equal(ours.add_noise(x, noise, t), original.add_noise(x, noise, t))
    if hasattr(original, "index_for_timestep"):
        t = original.timesteps[7]
        assert ours.index_for_timestep(t) == original.index_for_timestep(t)


@pytest.mark.parametrize("count", [20.0, 1])
@of(FEW)
def test_odd_counts(case, count):
    assert_same(case, Writes(timing={"num_inference_steps": count}))


def test_one_scheduler_of_two_pipelines():
    """PNDM has no begin index: what a pipeline says to others must not stay."""
    case = Case("PNDM-sd", "PNDM", {**LEADING, "skip_prk_steps": True})
    assert not hasattr(case.drop_in(), "set_begin_index")
    seen = []
    for scheduler in (case.original(), case.drop_in()):
        found = []
        for skipped in (3, 0):
            part = Writes(loop=lambda s, skipped=skipped: s.timesteps[skipped:])
            found += trace(scheduler, case, part)
        seen.append(found)
    assert gap(*seen)[0] <= TOLERANCE


@pytest.mark.filterwarnings("ignore::diffast.integrations.handed_over.HandedOverWarning")
def test_options_registered_anew_in_the_middle_of_a_run():
    results = []
    for ours in (False, True):
        scheduler = diffusers.SASolverScheduler()
        scheduler = DiffastScheduler.from_scheduler(scheduler) if ours else scheduler
        scheduler.set_timesteps(6)
        drawn = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, 4, 4, generator=drawn)
        for i, t in enumerate(scheduler.timesteps):
            if i == 3:
                scheduler.register_to_config(lower_order_final=False, steps_offset=1)
            output = torch.randn(2, 3, 4, 4, generator=drawn)
            x = scheduler.step(output, t, x, generator=drawn).prev_sample
        results.append(x)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
