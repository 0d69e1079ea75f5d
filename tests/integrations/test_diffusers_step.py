"""Drop-in schedulers against the originals of diffusers: the same latents after every step."""

import copy
import sys

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # algorithm_type "dpmsolver"
    pytest.mark.filterwarnings("ignore:Should have:UserWarning:torchsde"),  # a tree's ends
]

import diffusers  # noqa: E402
from diffusers_all_cases import (  # noqa: E402
    CASES,
    LEARNED,
    ON_A_PATH,
    ONE_OF_EACH,
    WITH_X0,
    WITHOUT_ADD_NOISE,
    each,
    stochastic,
)
from diffusers_cases import SD, ZERO_SNR, Case, replaced  # noqa: E402
from diffusers_loop import (  # noqa: E402
    difference,
    model_input,
    network,
    noisy,
    run,
    step_options,
    takes,
    uncertainty,
    walk,
)

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402

TOLERANCE = 1e-4
NO_SPARE_STEPS = {"PNDM-default": 4, "PNDM-trailing_prk": 4}  # fewer fail in diffusers
diffusers.utils.logging.set_verbosity_error()
each_case, each_kind = each(CASES), each(ONE_OF_EACH)


def both(case):
    return case.original(), case.drop_in()


def assert_same(got, want, tolerance=TOLERANCE):
    assert len(got) == len(want)
    gaps = [difference(g, w) for g, w in zip(got, want, strict=True)]
    assert max(gaps) <= tolerance, gaps


@pytest.mark.parametrize("steps", [2, 5, 20])
@each_case
def test_the_same_latents(case, steps):
    steps = max(steps, NO_SPARE_STEPS.get(case.id, 1))
    original, ours = both(case)
    want, got = run(original, case, steps), run(ours, case, steps)
    torch.testing.assert_close(ours.timesteps, original.timesteps, rtol=1e-6, atol=0)
    assert ours.timesteps.dtype == original.timesteps.dtype
    assert float(getattr(ours, "init_noise_sigma", 1)) == pytest.approx(
        float(getattr(original, "init_noise_sigma", 1)), rel=1e-6
    )
    if hasattr(original, "sigmas"):
        torch.testing.assert_close(ours.sigmas, original.sigmas, rtol=1e-5, atol=1e-7)
    assert ours.order == getattr(original, "order", 1)  # some have none
    gaps = [difference(g, w) for g, w in zip(got, want, strict=True)]
    if max(gaps) > TOLERANCE:
        bounds = [max(TOLERANCE, u) for u in uncertainty(case, steps)]
        assert all(g <= b for g, b in zip(gaps, bounds, strict=True)), (gaps, bounds)


@each_kind
def test_an_odd_shape(case):
    original, ours = both(case)
    shape = (3, case.shape[1], 5, 7)
    assert_same(run(ours, case, 7, shape), run(original, case, 7, shape))


@each_kind
def test_return_forms(case):
    original, ours = both(case)
    x, fields = noisy(original, case.shape), []
    for scheduler in (original, ours):
        scheduler.set_timesteps(6, **case.timing)
        t = scheduler.timesteps[0]
        out = network(model_input(scheduler, x, t), t, case.learned)
        once = step_options(case, scheduler)
        as_tuple = scheduler.step(out, t, x, **once, return_dict=False)
        scheduler.set_timesteps(6, **case.timing)
        named = scheduler.step(out, t, x, **step_options(case, scheduler))
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], named.prev_sample)
        fields.append((as_tuple, dict(named)))
    (want_tuple, want), (got_tuple, got) = fields
    assert len(got_tuple) == len(want_tuple)
    assert got.keys() == want.keys()
    for name in want:
        assert difference(got[name], want[name]) <= TOLERANCE, name
    for a, b in zip(got_tuple, want_tuple, strict=True):
        assert difference(a, b) <= TOLERANCE


@each([case for case in CASES if case.kind in WITH_X0])
def test_x0_estimates(case):
    original, ours = both(case)
    estimates = []
    for scheduler in (original, ours):
        scheduler.set_timesteps(5, **case.timing)
        x, kept = noisy(scheduler, case.shape), []
        options = step_options(case, scheduler)
        for t in scheduler.timesteps:
            out = network(model_input(scheduler, x, t), t, case.learned)
            result = scheduler.step(out, t, x, **options)
            x = result.prev_sample
            kept.append(tuple(result.values())[1])
        estimates.append(kept)
    want, got = estimates
    assert_same(got, want)


@pytest.mark.parametrize("told", [True, False], ids=["begin_index", "searched"])
# LMS: see test_diffusers_mended; DDIMInverse has no add_noise
@each([case for case in ONE_OF_EACH if case.kind not in ("LMSDiscrete", "DDIMInverse")])
def test_from_the_middle(case, told):
    # as image to image does it
    original, ours = both(case)
    if told and not hasattr(original, "set_begin_index"):
        pytest.skip("the original has no set_begin_index")
    results = []
    for scheduler in (original, ours):
        scheduler.set_timesteps(12, **case.timing)
        first = 6 * case.drop_in().order
        timesteps = scheduler.timesteps[first:]
        clean = torch.tanh(noisy(original, case.shape, seed=5))
        noise = torch.randn(case.shape, generator=torch.Generator().manual_seed(6))
        if told:
            scheduler.set_begin_index(first)
        t = timesteps[:1].repeat(len(clean))
        if case.kind in WITHOUT_ADD_NOISE:
            x = noise
        elif case.kind == "FlowMatchHeunDiscrete":
            x = scheduler.scale_noise(clean, t[0], noise)  # takes one time step for all
        elif hasattr(scheduler, "scale_noise"):
            x = scheduler.scale_noise(clean, t, noise)
        else:
            x = scheduler.add_noise(clean, noise, t)
        results.append([x, *walk(scheduler, case, x, timesteps)])
    assert_same(results[1], results[0])


@each([case for case in ONE_OF_EACH if case.kind not in WITHOUT_ADD_NOISE])
def test_add_noise(case):
    original, ours = both(case)
    clean, noise = noisy(original, case.shape, 5), noisy(original, case.shape, 6)
    for scheduler in (original, ours):
        scheduler.set_timesteps(8, **case.timing)
    t = original.timesteps[5 if case.kind == "FlowMatchHeunDiscrete" else [1, 5]]
    name = "scale_noise" if hasattr(original, "scale_noise") else "add_noise"
    arguments = (clean, t, noise) if name == "scale_noise" else (clean, noise, t)
    assert difference(getattr(ours, name)(*arguments), getattr(original, name)(*arguments)) <= 1e-6
    if hasattr(original, "get_velocity"):
        t = t if case.kind == "EulerDiscrete" else torch.tensor([700, 30])
        gap = difference(ours.get_velocity(clean, noise, t), original.get_velocity(clean, noise, t))
        assert gap <= 1e-6


CUSTOM = [
    (Case("DDPM", "DDPM"), {"timesteps": [900, 700, 400, 100, 0]}),
    (Case("Euler", "EulerDiscrete", SD), {"timesteps": [999, 700, 400, 100]}),
    (Case("Euler", "EulerDiscrete", SD), {"sigmas": [14.0, 5.0, 1.0, 0.2, 0.0]}),
    (Case("Heun", "HeunDiscrete", SD), {"timesteps": [999, 700, 400, 100]}),
    (Case("Multistep", "DPMSolverMultistep", SD), {"timesteps": [999, 700, 400, 100]}),
    (Case("Singlestep", "DPMSolverSinglestep", SD), {"timesteps": [999, 700, 400, 100]}),
    (Case("LCM", "LCM"), {"timesteps": [999, 699, 399, 99]}),
    (Case("TCD", "TCD"), {"timesteps": [999, 699, 399, 99]}),
    (Case("TCD", "TCD"), {"timesteps": [999, 699, 399, 99], "strength": 0.5}),
    (Case("DDPMParallel", "DDPMParallel"), {"timesteps": [900, 700, 400, 100, 0]}),
    (
        Case("UniPC", "UniPCMultistep", {"use_flow_sigmas": True, "flow_shift": 2.0}),
        {"sigmas": np.array([1.0, 0.8, 0.5, 0.2])},  # a list fails in diffusers
    ),
    # these are places on the ramp from sigma_max to sigma_min, whatever the name says
    (Case("EDM", "EDMEuler"), {"sigmas": torch.tensor([0.0, 0.3, 0.6, 1.0])}),
    (Case("Flow", "FlowMatchEulerDiscrete", {"shift": 3.0}), {"sigmas": [1.0, 0.8, 0.5, 0.2]}),
    (
        Case("Flow", "FlowMatchEulerDiscrete"),
        {"sigmas": [1.0, 0.6, 0.2], "timesteps": [1000.0, 600.0, 200.0]},
    ),
    (
        Case("FlowMu", "FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}),
        {"sigmas": np.linspace(1.0, 0.2, 5), "mu": 0.7},
    ),
]


@pytest.mark.parametrize(
    ("case", "timing"), CUSTOM, ids=[f"{c.id}-{'-'.join(t)}" for c, t in CUSTOM]
)
def test_custom_times(case, timing):
    original, ours = both(case)
    results = []
    for scheduler in (original, ours):
        scheduler.set_timesteps(**timing)
        results.append(walk(scheduler, case, noisy(scheduler, case.shape)))
    torch.testing.assert_close(ours.timesteps, original.timesteps, rtol=1e-6, atol=0)
    assert_same(results[1], results[0])


@each_kind
def test_signatures(case):
    # pipelines look for names of arguments
    original, ours = both(case)
    assert isinstance(ours, type(original))
    lengths = [len(each) for each in (ours, original) if hasattr(type(each), "__len__")]
    assert len(lengths) != 1
    assert len(set(lengths)) <= 1
    for method in ("set_timesteps", "step"):
        for name in ("sigmas", "timesteps", "mu", "eta", "generator", "return_dict", "s_churn"):
            wanted = takes(getattr(original, method), name)
            assert takes(getattr(ours, method), name) == wanted, (method, name)
    for method in ("scale_model_input", "add_noise", "scale_noise", "get_velocity"):
        assert hasattr(ours, method) == hasattr(original, method), method
    for key, value in original.config.items():
        if not key.startswith("_"):
            assert ours.config[key] == value or (key, value) == ("sigma_data", None), key


@each(stochastic)
def test_a_generator_for_each_sample(case):
    original, ours = both(case)
    want, got = (run(s, case, 5, seed=[11, 12]) for s in (original, ours))
    assert_same(got, want)
    alone = run(case.drop_in(), case, 5, (1, *case.shape[1:]), seed=[11])
    assert want[0].shape[0] == 2
    assert alone[0].shape[0] == 1


@each(stochastic)
def test_noise_by_counter(case):
    # other numbers than torch's, of the same size; the generator's seed decides which
    ours = case.drop_in("counter")
    one, again, two = (run(ours, case, 5, seed=s)[-1] for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert one.std() / run(case.original(), case, 5)[-1].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@each_case
def test_half_precision(case, dtype, monkeypatch):
    # All get the very same latents and network outputs: those of the truth, rounded. The truth is
    # the original in float32; the drop-in may miss it by four roundings, or as far as the original
    # in half does.
    draw = diffusers.utils.torch_utils.randn_tensor
    module = sys.modules[type(case.original()).__module__]
    half = lambda *a, dtype=None, **k: draw(*a, dtype=half_type, **k).to(dtype)  # noqa: E731
    half_type = dtype
    original, exact, ours = case.original(), case.original(), case.drop_in()
    for scheduler in (original, exact, ours):
        scheduler.set_timesteps(6, **case.timing)
    options = [step_options(case, s) for s in (original, exact, ours)]
    x = noisy(original, case.shape, dtype=dtype)
    for t in original.timesteps:
        read = model_input(original, x, t)
        assert model_input(ours, x, t).dtype == read.dtype
        model_input(exact, x.float(), t)
        out = network(read.to(dtype), t, case.learned)
        got = ours.step(out, t, x, **options[2], return_dict=False)[0]
        with monkeypatch.context() as patch:
            if hasattr(module, "randn_tensor"):
                patch.setattr(module, "randn_tensor", half)
            truth = exact.step(out.float(), t, x.float(), **options[1], return_dict=False)[0]
        theirs = original.step(out, t, x, **options[0], return_dict=False)[0]
        assert got.dtype == theirs.dtype
        x = truth.to(dtype)
        if not (torch.isfinite(theirs).all() and torch.isfinite(x).all()):
            pytest.skip("beyond what the type holds, in diffusers as well")
        bound = max(4 * torch.finfo(dtype).eps, 1.5 * difference(theirs, truth))
        assert difference(got, truth) <= bound, (t, difference(got, truth), bound)


@each_kind
def test_two_at_once_and_copies(case):
    alone = run(case.drop_in(), case, 8)
    one, two = case.drop_in(), case.drop_in()
    for scheduler in (one, two):
        scheduler.set_timesteps(8, **case.timing)
    options = [step_options(case, one), step_options(case, two)]
    x = y = noisy(one, case.shape)
    for i, t in enumerate(one.timesteps):
        if i == 3:  # a copy in the middle of a run goes on where the run is
            one = copy.deepcopy(one)
        out = network(model_input(one, x, t), t, case.learned)
        other = network(model_input(two, y, t), t, case.learned)
        x = one.step(out, t, x, **options[0], return_dict=False)[0]
        y = two.step(other, t, y, **options[1], return_dict=False)[0]
        assert torch.equal(x, alone[i])
        assert torch.equal(y, alone[i])


@each_kind
def test_a_second_run_is_the_first(case):
    scheduler = case.drop_in()
    first = run(scheduler, case, 7)
    run(scheduler, case, 4 if case.kind == "PNDM" else 3)
    again = run(scheduler, case, 7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@each_kind
def test_inputs_are_left_alone(case):
    scheduler = case.drop_in()
    scheduler.set_timesteps(6, **case.timing)
    options, x = step_options(case, scheduler), noisy(scheduler, case.shape)
    kept = []
    for t in scheduler.timesteps:
        out = network(model_input(scheduler, x, t), t, case.learned)
        before = x.clone(), out.clone()
        y = scheduler.step(out, t, x, **options, return_dict=False)[0]
        assert torch.equal(x, before[0])
        assert torch.equal(out, before[1])
        kept.append((y, y.clone()))  # pictures handed out must not change afterwards
        x = y
    assert all(torch.equal(a, b) for a, b in kept)


@each_kind
def test_saved_and_loaded(case, tmp_path):
    ours = case.drop_in()
    want = run(ours, case, 6)
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    assert type(again) is type(ours)
    assert all(torch.equal(a, b) for a, b in zip(run(again, case, 6), want, strict=True))
    back = type(case.original()).from_config(ours.config)
    assert type(back) is type(case.original())
    assert_same(run(back, case, 6), want)
    assert_same(run(type(ours).from_config(back.config), case, 6), want)
    there = replaced(back)
    assert type(there) is type(ours)


def test_overrides():
    config = {
        **Case("", "EulerDiscrete", SD).original().config,
        "_class_name": "EulerDiscreteScheduler",
    }
    ours = DiffastScheduler.from_config(config, use_karras_sigmas=True)
    case = Case("", "EulerDiscrete", {**SD, "use_karras_sigmas": True})
    assert_same(run(ours, case, 6), run(case.original(), case, 6))


class Ops(TorchDispatchMode):
    """Names of the operators that reach the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


READS = ("_local_scalar_dense", "item", "nonzero", "_to_copy", "aten.copy_", "equal", "is_nonzero")
PLAIN = ("diffast.", "aten.empty", "aten.new_empty", "aten.view", "aten.slice", "aten.split")


def operators(case, noise):
    """What each step of a run dispatches."""
    scheduler = case.drop_in(noise)
    scheduler.set_timesteps(8, **case.timing)
    options, x, found = step_options(case, scheduler), noisy(scheduler, case.shape), []
    for t in scheduler.timesteps:
        out = network(model_input(scheduler, x, t), t, case.learned)
        with Ops() as ops:
            x = scheduler.step(out, t, x, **options, return_dict=False)[0]
        found.append(ops.names)
    return found


@pytest.mark.parametrize("noise", ["generator", "counter"])
@each_kind
def test_steps_read_nothing_from_the_device(case, noise):
    if noise == "generator" and case.kind in ON_A_PATH:
        pytest.skip("diffusers' own tree compares its times, which are tensors on the CPU")
    for names in operators(case, noise):
        assert not [n for n in names if any(read in n for read in READS)]


# thresholds are quantiles, these learned variances are a function of the network's output, and a
# path makes its noise by steps of its own
@each(
    [
        c
        for c in CASES
        if not (c.config.get("thresholding") or c.learned and c.kind in LEARNED)
        and c.kind not in ON_A_PATH
    ]
)
def test_steps_are_fused(case):
    # the learned variances' half is cut off by a copy
    fine = (*PLAIN, "aten.clone") if case.learned else PLAIN
    for names in operators(case, "counter")[1:]:  # the first one makes buffers
        assert not [n for n in names if not n.startswith(fine)]


def test_the_recorder_sees_reads():
    case = Case("DDIM", "DDIM")
    scheduler = case.original()
    scheduler.set_timesteps(8)
    x = noisy(scheduler, case.shape)
    with Ops() as ops:
        scheduler.step(x, scheduler.timesteps[0], x)
    assert any("_local_scalar_dense" in name for name in ops.names)


# the parallel ones take the steps of DDIM and DDPM
TRACED = [case for case in ONE_OF_EACH if not case.kind.endswith("Parallel")]


@each([*TRACED, Case("DDIM-zero_snr", "DDIM", {**ZERO_SNR, "clip_sample": False})])
def test_compiled_steps(case):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    scheduler = case.drop_in("counter")
    scheduler.set_timesteps(20, **case.timing)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    torch._dynamo.reset()
    step = torch.compile(
        lambda out, t, x: scheduler.step(out, t, x, return_dict=False)[0], backend=count
    )
    torch.manual_seed(3)
    x = start = noisy(scheduler, case.shape)
    for i, t in enumerate(scheduler.timesteps):
        x = step(network(model_input(scheduler, x, t), t, case.learned), t, x)
        if hasattr(scheduler, "step_index"):
            assert scheduler.step_index == i + 1
    assert torch.isfinite(x).all()
    eager = case.drop_in("counter")
    eager.set_timesteps(20, **case.timing)
    torch.manual_seed(3)
    noisy(eager, case.shape)
    for t in eager.timesteps:
        out = network(model_input(eager, start, t), t, case.learned)
        start = eager.step(out, t, start, return_dict=False)[0]
    if not (eager._run.draws and any(eager._run.draws)):
        assert difference(x, start) <= 1e-5
    assert len(graphs) <= 2
