"""What `sweep` refuses, in clear words, before anything is written."""

import pytest
import torch
from refusals import check_refused

from diffast import ops
from diffast.ops.sweep import reference as reference_sweep

LAYOUT = "is not contiguous but the kernel walks it in row-major order"
ROWS, STAGES, JOBS, LENGTH, ENTRIES = 5, 6, 2, 4, 1


def state(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape or (ROWS, 3), dtype=dtype, device=device)


def doubles(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


def ints(*shape, fill=0):
    return torch.full(shape, fill, dtype=torch.int32)


def good():
    """Returns a good call: two jobs of two stages and a tail, one entry, parts, clamp, noise."""
    return {
        "x": state(),
        "outputs": [state(), state(dtype=torch.float16)],
        "slopes": doubles(ROWS),
        "weights": doubles(STAGES, 4, 7),  # a, p, 2 outputs, h_1, x0, z
        "changes": doubles(STAGES, 4),
        "tails": doubles(STAGES, 3, 5),
        "line": doubles(STAGES, 4),
        "jobs": torch.tensor([[0, -1, 0, 0, 0, 2, 1, 1], [1, 4, -1, -1, 3, 2, 1, 1]]).int(),
        "walk": torch.tensor([[0, 1, 2, 9], [3, 4, 2, -1]]).int(),
        "ids": torch.arange(2),
        "seed": 7,
        "noises": 1,
        "parts": True,
        "clamp": [-1.0, 1.0],
        "points": state(),
        "states": state(2, 4 + ENTRIES, 3),
        "norms": doubles(JOBS, LENGTH + 1),
    }


def job(name, value, which=1):
    """Returns the jobs with one number of one job changed."""
    jobs = good()["jobs"]
    names = ("sample", "from", "state_in", "state_out", "first", "real", "tail", "write")
    jobs[which, names.index(name)] = value
    return {"jobs": jobs}


def memory(shape, start, dtype=torch.float32):
    count = torch.Size(shape).numel()
    return MEMORY.view(torch.uint8)[start : start + count * dtype.itemsize].view(dtype).view(shape)


MEMORY = torch.ones(200, dtype=torch.float32)
WALK = good()["walk"]
# What is changed about a good call, and the text that names the two facts.
REFUSED = [
    ({"x": state(dtype=torch.float16)}, "x has dtype float16 but float32 or float64 is needed"),
    ({"x": state().long()}, "x has dtype int64 but float32 or float64 is needed"),
    ({"x": torch.tensor(1.0)}, "x has no dimension of rows but [rows, ...] is needed"),
    ({"outputs": [state()] * 3}, "3 outputs but at most 2 are supported"),
    ({"noises": 3}, "3 noises but at most 2 are supported"),
    ({"noises": -1}, "-1 noises but at most 2 are supported"),
    ({"outputs": [state().long()]}, "outputs[0] has dtype int64 but x has float32"),
    ({"outputs": [state(), state().double()]}, "outputs[1] has dtype float64 but x has float32"),
    ({"outputs": [state(5, 4)]}, "outputs[0] has shape [5, 4] but x has [5, 3]"),
    ({"outputs": [state(device="meta")]}, "outputs[0] is on meta but x is on cpu"),
    ({"outputs": [state(3, 5).T]}, f"outputs[0] of shape [5, 3] {LAYOUT}"),
    ({"x": state(3, 5).T}, f"x of shape [5, 3] {LAYOUT}"),
    ({"points": state().double()}, "points has dtype float64 but x has float32"),
    ({"points": state(5, 4)}, "points has shape [5, 4] but x has [5, 3]"),
    ({"points": state(device="meta")}, "points is on meta but x is on cpu"),
    ({"points": state(3, 5).T}, f"points of shape [5, 3] {LAYOUT}"),
    ({"states": state(5, 3)}, "states has shape [5, 3] but [states, 4 to 11, ...] with the"),
    ({"states": state(2, 3, 3)}, "states has shape [2, 3, 3] but [states, 4 to 11, ...] with the"),
    ({"states": state(2, 12, 3)}, "states has shape [2, 12, 3] but [states, 4 to 11, ...] with"),
    ({"states": state(2, 5, 4)}, "states has shape [2, 5, 4] but [states, 4 to 11, ...] with the"),
    ({"states": state(2, 5, 3).double()}, "states has dtype float64 but x has float32"),
    ({"states": state(3, 5, 2).transpose(0, 2)}, f"states of shape [2, 5, 3] {LAYOUT}"),
    ({"weights": doubles(6, 4, 6)}, "weights is float64 [6, 4, 6] but float64 [6, 4, 7] is needed"),
    ({"weights": doubles(6, 3, 7)}, "weights is float64 [6, 3, 7] but float64 [6, 4, 7] is needed"),
    ({"weights": state(6, 4, 7)}, "weights is float32 [6, 4, 7] but float64 [6, 4, 7] is needed"),
    ({"weights": doubles(7, 4, 6).permute(2, 1, 0)}, f"weights of shape [6, 4, 7] {LAYOUT}"),
    ({"weights": torch.tensor(1.0)}, "weights is float32 [] but float64 [0, 4, 7] is needed"),
    (
        {"weights": doubles(6, 4, 7, device="meta")},
        "weights is on meta but x is on cpu",
    ),
    ({"changes": doubles(6, 3)}, "changes is float64 [6, 3] but float64 [6, 4] is needed"),
    ({"tails": doubles(6, 3, 4)}, "tails is float64 [6, 3, 4] but float64 [6, 3, 5] is needed"),
    ({"line": doubles(5, 4)}, "line is float64 [5, 4] but float64 [6, 4] is needed"),
    ({"slopes": doubles(4)}, "slopes is float64 [4] but float64 [5] is needed"),
    ({"jobs": ints(2, 7)}, "jobs is int32 [2, 7] but int32 [2, 8] is needed"),
    ({"jobs": ints(2, 8).long()}, "jobs is int64 [2, 8] but int32 [2, 8] is needed"),
    ({"walk": ints(3, 4)}, "walk is int32 [3, 4] but int32 [2, 4] is needed"),
    ({"walk": ints(4)}, "walk is int32 [4] but int32 [2, 0] is needed"),
    ({"norms": doubles(2, 4)}, "norms is float64 [2, 4] but float64 [2, 5] is needed"),
    ({"norms": doubles(5, 2).T}, f"norms of shape [2, 5] {LAYOUT}"),
    ({"ids": ints(2)}, "ids is int32 [2] but int64 [samples] is needed"),
    ({"ids": torch.ones(2, 1).long()}, "ids is int64 [2, 1] but int64 [samples] is needed"),
    ({"ids": torch.arange(4)[::2]}, f"ids of shape [2] {LAYOUT}"),
    ({"clamp": [1.0]}, "clamp has 1 numbers but (low, high) is needed"),
    ({"clamp": [1.0, -1.0]}, "clamp low 1 but high -1"),
    ({"clamp": [-0.5, float("nan")]}, "clamp low -0.5 but high nan"),
    (
        {"points": memory((5, 3), 0), "x": memory((5, 3), 8)},
        "points overlaps x without being the same tensor",
    ),
    (
        {"points": memory((5, 3), 0), "outputs": [state(), memory((5, 3), 58, torch.float16)]},
        "points overlaps outputs[1]",
    ),
    (
        {"points": memory((5, 3), 40), "states": memory((2, 5, 3), 40)},
        "states overlaps points but both are written",
    ),
    (
        {"outputs": [memory((5, 3), 120), state()], "states": memory((2, 5, 3), 4)},
        "states overlaps outputs[0]",
    ),
    ({"x": memory((5, 3), 120), "states": memory((2, 5, 3), 4)}, "states overlaps x"),
    (job("sample", 2), "job 1 has sample 2 but 0 to 1 are possible"),
    (job("sample", -1), "job 1 has sample -1 but 0 to 1 are possible"),
    (job("from", 5), "job 1 has from 5 but -1 to 4 are possible"),
    (job("from", -2, 0), "job 0 has from -2 but -1 to 4 are possible"),
    (job("state_in", 2), "job 1 has state_in 2 but -1 to 1 are possible"),
    (job("state_in", -1, 0), "job 0 has state_in -1 but 0 to 1 are possible"),
    (job("state_out", 2), "job 1 has state_out 2 but -1 to 1 are possible"),
    (job("state_out", -2), "job 1 has state_out -2 but -1 to 1 are possible"),
    (job("real", 5), "job 1 has real 5 but 0 to 4 are possible"),
    (job("real", -1), "job 1 has real -1 but 0 to 4 are possible"),
    (job("tail", 3), "job 1 has tail 3 but 0 to 2 are possible"),
    (job("tail", -(2**31)), "job 1 has tail -2147483648 but 0 to 2 are possible"),
    (job("first", 4), "job 1 has first 4 but 0 to 3 are possible"),
    (job("first", -1), "job 1 has first -1 but 0 to 3 are possible"),
    ({"walk": WALK.clamp(max=1) - 1}, "walk[0, 0] is row -1 but x has 5 rows"),
    ({"walk": WALK + 1}, "walk[1, 1] is row 5 but x has 5 rows"),
]


def test_the_call_that_is_changed_is_good():
    for changed in ({}, {"norms": None, "slopes": None}, {"points": good()["x"]}):
        ops.sweep(*{**good(), **changed}.values())
        reference_sweep.sweep(*{**good(), **changed}.values())


@pytest.mark.parametrize(("changed", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_it_is_refused_in_clear_words_and_nothing_is_written(changed, text):
    call = [*{**good(), **changed}.values()]
    check_refused("sweep", ops.sweep, reference_sweep.sweep, call, "sweep: " + text)
