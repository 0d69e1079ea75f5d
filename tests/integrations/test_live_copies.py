"""Who gets a drop-in; copies and pickles of one; what it says."""

import copy
import multiprocessing
import pickle
import types
import warnings

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

import diffusers  # noqa: E402
import numpy as np  # noqa: E402
from diffusers_cases import SD, Case  # noqa: E402
from live_cases import CASES, FIRST, TOLERANCE, assert_same, of  # noqa: E402
from live_loop import STEPS, Writes, both, gap, trace  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler, accelerate  # noqa: E402
from diffast.integrations.handed_over import HandedOverWarning  # noqa: E402

diffusers.utils.logging.set_verbosity_error()


def test_foreign_classes_and_patched_methods():
    class EulerDiscreteScheduler(diffusers.EulerDiscreteScheduler):
        def step(self, *args, **kwargs):
            raise NotImplementedError

    with pytest.raises(ValueError, match="is a class of"):
        DiffastScheduler.from_scheduler(EulerDiscreteScheduler())
    patched = diffusers.EulerDiscreteScheduler()
    patched.step = types.MethodType(lambda self, output, t, x: (x,), patched)
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler.step was replaced"):
        accelerate(types.SimpleNamespace(scheduler=patched))


def test_a_method_that_is_patched_later():
    case = Case("Euler", "EulerDiscrete", SD)

    def patched(scheduler):
        step = scheduler.step
        scheduler.step = lambda output, *a, **k: step(0.5 * output, *a, **k)

    assert_same(case, Writes(after=patched))


def public_names(scheduler):
    return {name for name in dir(scheduler) if name[0] != "_" and hasattr(scheduler, name)}


@of(FIRST)
def test_public_names_are_the_original_s(case):
    """At any time; to look for what is remembered hands the run over, as reading it does."""
    seen = []
    note = lambda scheduler: seen.append(public_names(scheduler))  # noqa: E731
    both(case, Writes(after=note))
    both(case, Writes(ready=note))
    for i in (1, 2, 5):
        both(case, Writes(between={i: note}))
    for at, (theirs, mine) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        more = {"from_scheduler", "host"}
        if case.kind == "LCM" and at == 1:  # a constant, which the original sets in its first step
            more.add("sigma_data")
        assert mine == theirs | more


# --- copies ---------------------------------------------------------------------------------


def _finish(scheduler, case):
    return trace(scheduler, case, Writes(timing=None, loop=lambda s: s.timesteps[3:]))


@of(CASES)
def test_pickles_and_copies_go_on(case):
    results = []
    for copied in (copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))):
        original, ours = case.original(), case.drop_in()
        for scheduler in (original, ours):
            scheduler.set_timesteps(STEPS, **case.timing)
        if case.kind != "SASolver":  # the original has a lambda
            ours = copied(ours)
        first = Writes(timing=None, loop=lambda s: s.timesteps[:3])
        results.append((trace(original, case, first), trace(ours, case, first)))
        if case.kind != "SASolver":
            ours = copied(ours)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HandedOverWarning)
            results.append((_finish(original, case), _finish(ours, case)))
    for want, got in results:
        assert gap(want, got)[0] <= TOLERANCE, gap(want, got)


def _in_a_process(scheduler, queue):
    case = Case("Euler", "EulerDiscrete", SD)
    seen = trace(scheduler, case, Writes(timing=None))
    queue.put(np.array([step[1].numpy() for step in seen]))


@pytest.mark.slow
def test_another_process():
    case = Case("Euler", "EulerDiscrete", SD)
    original, ours = case.original(), case.drop_in()
    for scheduler in (original, ours):
        scheduler.set_timesteps(STEPS)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_in_a_process, args=(ours, queue))
    process.start()
    got = queue.get(timeout=60)
    process.join()
    want = np.array([step[1].numpy() for step in trace(original, case, Writes(timing=None))])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


# --- what is said ---------------------------------------------------------------------------


def test_it_is_said_once_and_strict_raises():
    case = Case("UniPC", "UniPCMultistep", SD)
    ours = case.drop_in()
    with pytest.warns(HandedOverWarning) as said:
        for _ in range(2):
            trace(ours, case, Writes(between={2: lambda s: s.model_outputs}))
    said = [one for one in said if one.category is HandedOverWarning]
    assert len(said) == 1
    assert "its model_outputs was read between two steps" in str(said[0].message)
    assert "UniPCMultistepScheduler's own code goes on" in str(said[0].message)
    strict = DiffastScheduler.from_scheduler(case.original(), strict=True)
    (*_, error) = trace(strict, case, Writes(between={2: lambda s: s.model_outputs}))
    assert isinstance(error, ValueError)
    assert "strict=True lets nothing be handed over" in str(error)


@of(FIRST)
def test_messages_are_in_the_callers_terms(case):
    ours = case.drop_in()
    ours.set_timesteps(STEPS, **case.timing)
    x = torch.zeros(2, 3, 4, 4)
    for output, sample in ((x[:, :, 1:], x), (x.long(), x), (x.tolist(), x), (x, None)):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            ours.step(output, ours.timesteps[0], sample)
        for word in ("combine", "csrc", ".cpp", "xs[", "outs["):
            assert word not in str(caught.value), caught.value
