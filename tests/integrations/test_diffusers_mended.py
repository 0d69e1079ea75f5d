"""Where diffusers fails or errs: the drop-in answers, or says at once which option is to blame."""

import pytest
import torch

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # algorithm_type "dpmsolver"
    pytest.mark.filterwarnings("ignore:Should have:UserWarning:torchsde"),  # a tree's ends
]

import diffusers  # noqa: E402
from diffusers_cases import BROKEN as USUAL_BROKEN  # noqa: E402
from diffusers_cases import DIFFERENT, SD, Case  # noqa: E402
from diffusers_loop import difference, noisy, run, walk  # noqa: E402
from diffusers_more_cases import BROKEN_MORE  # noqa: E402

from diffast.integrations.handed_over import AnotherPictureWarning, HandedOverWarning  # noqa: E402

BROKEN = [*USUAL_BROKEN, *BROKEN_MORE]

diffusers.utils.logging.set_verbosity_error()


@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, n) for case, counts in BROKEN for n in counts],
    ids=[f"{case.id}-{n}" for case, counts in BROKEN for n in counts],
)
def test_where_diffusers_fails(case, steps):
    # a finite answer, or a ValueError that names the option: in the first step, as until then other
    # code may write to the scheduler
    try:
        ours = case.drop_in()
        ours.set_timesteps(steps, **case.timing)
        states = walk(ours, case, noisy(ours, case.shape))
    except ValueError as error:
        assert "but" in str(error), error
        return
    assert all(torch.isfinite(x).all() for x in states)


@pytest.mark.parametrize(
    ("case", "steps"),
    [(case, counts[-1]) for case, counts in BROKEN],
    ids=[case.id for case, _ in BROKEN],
)
def test_they_are_still_broken_there(case, steps):
    # when this fails, diffusers was mended and the case belongs with the others
    try:
        original = case.original()
        states = run(original, case, steps)
    except Exception:
        return
    assert not all(torch.isfinite(x).all() for x in states)


@pytest.mark.parametrize("case", DIFFERENT, ids=[case.id for case in DIFFERENT])
def test_where_diffusers_errs(case):
    want = run(case.original(), case, 20)
    with pytest.warns(AnotherPictureWarning, match="the pictures differ"):
        got = run(case.drop_in(), case, 20)
    gaps = [difference(g, w) for g, w in zip(got, want, strict=True)]
    assert max(gaps[:2]) <= 1e-4
    assert max(gaps) > 1e-2  # when this fails, diffusers was mended
    assert torch.isfinite(got[-1]).all()


def test_lms_from_the_middle():
    # diffusers takes fourth-order weights with the one slope that it has: its own code does that
    case = Case("LMS", "LMSDiscrete", SD)
    original, ours = case.original(), case.drop_in()
    for scheduler in (original, ours):
        scheduler.set_timesteps(12)
    original.set_begin_index(6)
    with pytest.warns(HandedOverWarning, match="the run starts at 6, where diffusers weighs"):
        ours.set_begin_index(6)
    times = original.timesteps[6:]
    start = original.add_noise(torch.zeros(case.shape), noisy(original, case.shape), times[:1])
    want = walk(original, case, start, times)
    got = walk(ours, case, start, times)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
