"""No op writes into memory of another argument: every written tensor of the schemas, every other.

The pairs come from the schemas, so that a new op or argument is tested without being named here.
"""

import pytest
import torch
from op_calls import CALLS, OpCall, Placed, judging, specification
from refusals import REFUSAL, by_the_kernel, said_of

from diffast import ops
from diffast.ops.explain import explained
from diffast.ops.memory import IN_PLACE, WRITING, flat, parameters_of
from diffast.ops.schema import overload_of

# A call of every writing op in which as many arguments as possible are tensors.
LABELS = {
    "combine.out": "noise",
    "combine.table_out": "noise",
    "sweep": "all",
    "gram": "totals",
    "quantile": "K=8",
    "accept": "slots",
    "evaluate": "by counts",
    "brownian.out": "f32",
    "normal.out": "f32",
}
FULL = {call.name: call for call in CALLS if LABELS.get(call.name) == call.label}
FULL["combine_error.out"] = OpCall(
    "combine_error.out", "noise", judging("combine_error.out", 2, 2, 1, 0, True, noises=1)
)


def places(name, arguments):
    """Returns (argument, item or None, whether it is written); two tensors of each list."""
    found = []
    for (argument, written), value in zip(parameters_of(name), arguments, strict=False):
        if isinstance(value, torch.Tensor):
            found.append((argument, None, written))
        elif isinstance(value, list):
            found += [
                (argument, k, written)
                for k, t in enumerate(value[:2])
                if isinstance(t, torch.Tensor)
            ]
    return found


def at(name, arguments, place):
    argument, k, _ = place
    value = arguments[[p for p, _ in parameters_of(name)].index(argument)]
    return value if k is None else value[k]


def put(name, arguments, place, tensor):
    argument, k, _ = place
    i = [p for p, _ in parameters_of(name)].index(argument)
    if k is None:
        arguments[i] = tensor
    else:
        arguments[i] = [*arguments[i][:k], tensor, *arguments[i][k + 1 :]]


def inside(t, memory, start):
    """Returns a tensor with the shape and dtype of `t` and its numbers, in memory at a byte."""
    part = memory[start : start + t.numel() * t.element_size()]
    return part.view(t.dtype).view(t.shape).copy_(t)


def sharing(name, out, other, same, device="cpu"):
    """Returns a call in which two tensors share memory: their first bytes, or one's last bytes."""
    arguments = Placed(FULL[name], FULL[name].make(2, 12), device).arguments
    a, b = at(name, arguments, out), at(name, arguments, other)
    size_a, size_b = (t.numel() * t.element_size() for t in (a, b))
    memory = torch.zeros(size_a + size_b + 64, dtype=torch.uint8, device=device)
    start = -memory.data_ptr() % 16
    # Otherwise b begins in the last 16 bytes of a.
    start_b = start if same else start + (size_a - 1) // 16 * 16
    put(name, arguments, out, inside(a, memory, start))
    put(name, arguments, other, inside(b, memory, start_b))
    return arguments


def pairs():
    for name in WRITING:
        every = places(name, Placed(FULL[name], FULL[name].make(2, 12)).arguments)
        for out in every:
            for other in every:
                if out[2] and out[:2] != other[:2]:
                    yield name, out, other


PAIRS = list(pairs())


def test_every_writing_op_and_every_argument_is_tried():
    assert FULL.keys() == set(WRITING)
    for name in WRITING:
        tried = {place[0] for op, *two in PAIRS if op == name for place in two}
        for argument in overload_of(name)._schema.arguments:
            assert ("Tensor" in str(argument.type)) == (argument.name in tried), (name, argument)


def same_bits(a, b):
    return torch.equal(a.view(torch.uint8), b.contiguous().view(torch.uint8))


def allowed(name, out, other, a, b):
    both = out[0] in IN_PLACE.get(name, ()) and other[0] in IN_PLACE.get(name, ())
    return both and not other[2] and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("same", (True, False), ids=("one start", "one word"))
@pytest.mark.parametrize("name", WRITING)
def test_shared_memory_is_refused_in_the_same_words_by_all(name, same):
    for op, out, other in PAIRS[:: 1 if same else 3]:
        if op != name:
            continue
        arguments = sharing(name, out, other, same)
        a, b = at(name, arguments, out), at(name, arguments, other)
        if same and allowed(name, out, other, a, b):
            continue
        before = [t.clone() for t in flat(arguments)]
        text = said_of(specification(name), arguments)
        assert "overlaps" in text and out[0] in text and other[0] in text, (out, other, text)
        assert said_of(explained(name), arguments) == text
        assert by_the_kernel(name, arguments) == f"diffast::{name.partition('.')[0]}: {REFUSAL}"
        after = flat(arguments)
        assert all(map(same_bits, before, after)), (out, other)


def test_an_output_that_is_an_input_is_written_where_an_op_says_so():
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    wanted = 2 * x + 3 * y
    ops.combine([x, y], [2.0, 3.0], outs=[x])
    assert torch.equal(x, wanted)


def test_points_over_jobs_was_a_crash():
    memory = torch.zeros(4096, dtype=torch.uint8)
    call = next(call for call in CALLS if str(call) == "sweep ODE")
    arguments = Placed(call, call.make(2, 12)).arguments
    jobs, points = arguments[7], arguments[14]
    arguments[7] = memory[: jobs.numel() * 4].view(torch.int32).view(jobs.shape).copy_(jobs)
    size = points.numel() * 4
    arguments[14] = memory[:size].view(torch.float32).view(points.shape)
    with pytest.raises(RuntimeError, match="^sweep: points overlaps jobs but is written while"):
        ops.sweep(*arguments)


def test_tensors_without_elements_share_nothing():
    memory = torch.zeros(8)
    empty = memory[4:4].view(0, 3)
    ops.combine([empty], [1.0], outs=[memory[:0].view(0, 3)])
    status = torch.full((0,), -1)
    ops.combine_out([empty], [1.0], [empty], status)


def test_expanded_outputs_are_refused():
    out = torch.zeros(1, 4).expand(3, 4)
    with pytest.raises(RuntimeError, match="is not contiguous"):
        ops.combine([torch.ones(3, 4)], [1.0], outs=[out])


def test_counts_of_no_samples_name_no_program():
    """Their memory is a null pointer, which stood for a call without counts."""
    call = next(call for call in CALLS if str(call) == "evaluate by counts")
    arguments = Placed(call, call.make(2, 0)).arguments
    arguments[3] = 1 << 26
    ops.evaluate(*arguments)
