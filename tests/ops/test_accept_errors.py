"""What `accept` refuses, in clear words, before anything is written."""

import pytest
import torch
from accept_cases import NAN, flags, rule
from refusals import can_be_faked, check_fake_refuses, check_refused

from diffast import ops
from diffast.ops.accept import reference as reference_accept

LAYOUT = "is not contiguous but the kernel reads it in row-major order"
DTYPES = "but only float32, float16, bfloat16 and float64 are supported"


def doubles(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


def longs(*shape, device="cpu"):
    return torch.full(shape, -1, dtype=torch.int64, device=device)


def plane(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape or (3, 4), dtype=dtype, device=device)


def call(slots=0, **changed):
    """Returns a good call of 3 samples but for what is given."""
    good = {
        "norms": doubles(3, 2),
        "status": longs(3),
        "rule": rule(),
        "flags": flags(),
        "moves": [1, 0, 0],
        "memory": [0, *range(slots)] if slots else [],
        "sources": [plane(), plane()],
        "control": doubles(3, 6 + slots),
        "counts": longs(3, 7),
        "streams": longs(3, 3),
        "targets": [plane(), plane()],
    }
    assert set(changed) <= set(good)
    return tuple({**good, **changed}.values())


def overlapping(kind):
    memory = torch.ones(64)
    x, shifted = memory[:12].view(3, 4), memory[4:16].view(3, 4)
    if kind == "source":
        return call(sources=[plane(), x], targets=[shifted, plane()])
    if kind == "behind":
        return call(sources=[plane(), shifted], targets=[x, plane()])
    if kind == "dtype":
        halves = memory[:6].view(torch.float16).view(3, 4)
        sources, targets = [plane(dtype=torch.float16), x], [halves]
        return call(sources=sources, targets=targets)
    if kind == "twice":
        return call(targets=[x, plane(), x])
    return call(targets=[x, shifted])


def reordered(moves, stages=2):
    """Returns moves among four tensors of which the first two are sources and targets."""
    a, b, c, d = (plane() for _ in range(4))
    return call(sources=[a, b, c], targets=[a, b, d], moves=moves, flags=flags(last=stages))


REFUSED = [
    (call(norms=doubles(3)), "accept: norms have shape [3] but [samples, 2] is needed"),
    (call(norms=doubles(3, 3)), "accept: norms is float64 [3, 3] but float64 [3, 2] is needed"),
    (call(norms=plane(3, 2)), "accept: norms is float32 [3, 2] but float64 [3, 2] is needed"),
    (call(norms=doubles(2, 3).T), f"accept: norms of shape [3, 2] {LAYOUT}"),
    (call(rule=rule()[:-1]), "accept: rule has 15 numbers but 16 are needed"),
    (call(rule=[]), "accept: rule has 0 numbers but 16 are needed"),
    (call(flags=flags()[1:]), "accept: flags has 7 numbers but 8 are needed"),
    (call(rule=rule(most=NAN)), "accept: a number of the rule is NaN but rules are numbers"),
    (call(rule=rule(noise_floor=0)), "accept: noise_floor is 0 but errors are divided by it"),
    (
        call(rule=rule(noise_floor=-1234567.8)),
        "accept: noise_floor is -1.23457e+06 but errors are divided by it",
    ),
    (call(flags=flags(last=0)), "accept: the last stage is 0 but 1 to 2147483647 is needed"),
    (
        call(flags=flags(last=2**31)),
        "accept: the last stage is 2147483648 but 1 to 2147483647 is needed",
    ),
    (call(flags=flags(restart=2)), "accept: restart is stage 2 but stages are 0 to 1"),
    (call(flags=flags(restart=-1)), "accept: restart is stage -1 but stages are 0 to 1"),
    (
        call(moves=[1, 0]),
        "accept: moves has 2 numbers but (stage, source, target) are three each",
    ),
    (call(moves=[1, 0, 0] * 49), "accept: 49 moves but at most 48 are supported"),
    (call(memory=[0]), "accept: memory names 0 targets but 1 to 8 are supported"),
    (call(memory=[0] * 10), "accept: memory names 9 targets but 1 to 8 are supported"),
    (
        call(2, control=doubles(3, 7)),
        "accept: control is float64 [3, 7] but float64 [3, 8] is needed",
    ),
    (call(control=doubles(3)), "accept: control is float64 [3] but float64 [3, 6] is needed"),
    (call(counts=longs(3, 6)), "accept: counts is int64 [3, 6] but int64 [3, 7] is needed"),
    (call(counts=doubles(3, 7)), "accept: counts is float64 [3, 7] but int64 [3, 7] is needed"),
    (call(counts=longs(7, 3).T), f"accept: counts of shape [3, 7] {LAYOUT}"),
    (call(streams=longs(2, 3)), "accept: streams is int64 [2, 3] but int64 [3, 3] is needed"),
    (call(status=longs(3, 1)), "accept: status is int64 [3, 1] but int64 [3] is needed"),
    (call(status=longs(6)[::2]), f"accept: status of shape [3] {LAYOUT}"),
    (call(status=longs(3, device="meta")), "accept: status is on meta but norms is on cpu"),
    (call(sources=[plane()] * 17), "accept: 17 sources but at most 16 are supported"),
    (
        call(targets=[plane() for _ in range(17)]),
        "accept: 17 targets but at most 16 are supported",
    ),
    (call(sources=[longs(3, 4)]), f"accept: sources[0] has dtype int64 {DTYPES}"),
    (
        call(targets=[plane(), plane(dtype=torch.bool)]),
        f"accept: targets[1] has dtype bool {DTYPES}",
    ),
    (
        call(sources=[plane(), plane(3, 5)]),
        "accept: sources[1] has shape [3, 5] but the first plane has shape [3, 4] and there are 3 "
        "samples",
    ),
    (
        call(sources=[plane(2, 4)]),
        "accept: sources[0] has shape [2, 4] but the first plane has shape [2, 4] and there are 3 "
        "samples",
    ),
    (
        call(moves=[], sources=[], targets=[plane(), plane(12)]),
        "accept: targets[1] has shape [12] but the first plane has shape [3, 4] and there are 3 "
        "samples",
    ),
    (
        call(sources=[plane(1)[0]]),
        "accept: sources[0] has shape [] but the first plane has shape [] and there are 3 samples",
    ),
    (
        call(sources=[plane(device="meta")]),
        "accept: sources[0] is on meta but norms is on cpu",
    ),
    (call(targets=[plane(4, 3).T]), f"accept: targets[0] of shape [3, 4] {LAYOUT}"),
    (call(moves=[2, 0, 0]), "accept: a move at stage 2 but stages are 0 to 1"),
    (call(moves=[-1, 0, 0]), "accept: a move at stage -1 but stages are 0 to 1"),
    *[
        (
            call(moves=[0, 0, 0, 1, *pair]),
            f"accept: a move from source {pair[0]} to target {pair[1]} but there are 2 sources "
            "and 2 targets",
        )
        for pair in ((2, 0), (0, 2), (-1, 0), (0, -1), (2**40, 0))
    ],
    (
        call(2, memory=[0, 1, 2]),
        "accept: a move from source 0 to target 2 but there are 2 sources and 2 targets",
    ),
    (
        call(targets=[plane(dtype=torch.float64)]),
        "accept: source 0 is float32 but target 0 is float64",
    ),
    (
        call(1, memory=[1, 1], targets=[plane(), plane(dtype=torch.bfloat16)]),
        "accept: source 1 is float32 but target 1 is bfloat16",
    ),
    (overlapping("source"), "accept: targets[0] overlaps sources[1] without being the same tensor"),
    (overlapping("behind"), "accept: targets[0] overlaps sources[1] without being the same tensor"),
    (overlapping("dtype"), "accept: targets[0] overlaps sources[1] without being the same tensor"),
    (overlapping("twice"), "accept: targets[2] overlaps targets[0] but both are written"),
    (overlapping("targets"), "accept: targets[1] overlaps targets[0] but both are written"),
    (
        reordered([1, 2, 0, 1, 0, 2]),
        "accept: at stage 1 source 0 is read after it was written as target 0",
    ),
    (
        reordered([2, 0, 1, 1, 2, 0, 2, 2, 2, 2, 1, 1]),
        "accept: at stage 2 source 1 is read after it was written as target 1",
    ),
]


def names(cases):
    return [text.removeprefix("accept: ") for _, text in cases]


@pytest.mark.parametrize(("arguments", "text"), REFUSED, ids=names(REFUSED))
def test_it_is_refused_in_clear_words_and_nothing_is_written(arguments, text):
    check_refused("accept", ops.accept, reference_accept.accept, arguments, text)


FAKED = [case for case in REFUSED if can_be_faked(case[1])]


@pytest.mark.parametrize(("arguments", "text"), FAKED, ids=names(FAKED))
def test_the_fake_refuses_it_too(arguments, text):
    check_fake_refuses("accept", arguments, text)


@pytest.mark.parametrize("op", (ops.accept, reference_accept.accept), ids=("c++", "reference"))
def test_what_is_not_refused(op):
    """Other stages may read what was written, memory that ends where another begins, nothing."""
    memory = torch.ones(24)
    op(*call(sources=[memory[:12].view(3, 4)], targets=[memory[12:].view(3, 4)]))
    op(*reordered([0, 2, 0, 1, 0, 2]))
    op(*reordered([1, 0, 2, 1, 2, 0]))
    op(*reordered([1, 0, 0, 1, 0, 2]))
    op(*call(moves=[], sources=[], targets=[]))
    op(*call(sources=[plane(3, 0)] * 2, targets=[plane(3, 0)] * 2, moves=[1, 0, 0, 1, 1, 1]))
    op(*call(4, targets=[plane() for _ in range(16)], sources=[plane()] * 16))
    op(*call(moves=[1, 0, 0] * 48))
