"""What `evaluate` refuses, in clear words, before anything is written."""

import pytest
import torch
from refusals import can_be_faked, check_fake_refuses, check_refused

from diffast import ops
from diffast.ops.evaluate import reference as reference_evaluate
from diffast.ops.schema import INSTRUCTIONS

READS = "is not contiguous but the kernel reads it in row-major order"
OPCODE = {name: opcode for opcode, name in enumerate(INSTRUCTIONS)}


def doubles(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


def words(*lines):
    """Returns code: (name, target, operands...) a line."""
    rows = [[OPCODE.get(line[0], line[0]), *line[1:], *[0] * (5 - len(line))] for line in lines]
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, 5)


GOOD = (("input", 0, 0), ("constant", 1, 0), ("add", 2, 0, 1), ("store", 0, 0, 3, 2))


def call(*lines, **changed):
    """Returns a good call of 3 samples but for the lines of its program and what is given."""
    good = {
        "code": words(*(lines or GOOD)),
        "constants": doubles(2),
        "starts": torch.tensor([0, len(lines or GOOD)], dtype=torch.int32),
        "program": 0,
        "inputs": doubles(3, 2),
        "counts": None,
        "column": 0,
        "edges": doubles(4),
        "pieces": doubles(2, 3, 4),
        "registers": 3,
        "outs": [doubles(3, 2, 2), torch.zeros(3, dtype=torch.int64)],
    }
    assert set(changed) <= set(good)
    return tuple({**good, **changed}.values())


def longs(*values):
    return torch.tensor(values, dtype=torch.int64)


def shared(name):
    """Returns a call whose first out shares memory with another tensor."""
    memory = doubles(40)
    out = memory[4:16].view(3, 2, 2)
    if name == "inputs":
        return call(inputs=memory[:6].view(3, 2), outs=[out])
    if name == "code":
        code = memory.view(torch.int32)[:20].view(4, 5).copy_(words(*GOOD))
        return call(code=code, outs=[out])
    if name == "pieces":
        return call(pieces=memory[15:39].view(2, 3, 4), outs=[out])
    if name == "edges":
        return call(edges=memory[1:5], outs=[out])
    if name == "counts":
        counts = memory.view(torch.int64)[3:6].view(3, 1).zero_()
        return call(counts=counts, outs=[out])
    if name == "edge":
        return call(edges=memory[5:6], pieces=doubles(2, 0, 4), outs=[out])
    return call(outs=[out, memory.view(torch.int64)[15:18]])


REFUSED = [
    (
        call(inputs=doubles(3)),
        "evaluate: inputs have shape [3] but [samples, columns] is needed",
    ),
    (
        call(inputs=doubles(3, 2).float()),
        "evaluate: inputs is float32 [3, 2] but float64 [3, 2] is needed",
    ),
    (call(inputs=doubles(2, 3).T), f"evaluate: inputs of shape [3, 2] {READS}"),
    (
        call(code=words(*GOOD).long()),
        "evaluate: code is int64 [4, 5] but int32 [4, 5] is needed",
    ),
    (
        call(code=words(*GOOD)[:, :4].contiguous()),
        "evaluate: code is int32 [4, 4] but int32 [4, 5] is needed",
    ),
    (
        call(constants=doubles(2, 1)),
        "evaluate: constants is float64 [2, 1] but float64 [2] is needed",
    ),
    (call(constants=doubles(4)[::2]), f"evaluate: constants of shape [2] {READS}"),
    (
        call(constants=doubles(2, device="meta")),
        "evaluate: constants is on meta but inputs is on cpu",
    ),
    (
        call(starts=torch.zeros(1, 2, dtype=torch.int32)),
        "evaluate: starts has shape [1, 2] but one dimension is needed",
    ),
    (
        call(starts=torch.zeros(1, dtype=torch.int32)),
        "evaluate: starts has 1 numbers but 2 at least are needed",
    ),
    (call(starts=longs(0, 4)), "evaluate: starts is int64 [2] but int32 [2] is needed"),
    (call(program=1), "evaluate: program 1 but there are 1 programs"),
    (call(program=-1), "evaluate: program -1 but there are 1 programs"),
    (
        call(edges=doubles(2, 2)),
        "evaluate: edges has shape [2, 2] but one dimension is needed",
    ),
    (
        call(pieces=doubles(2, 4, 4)),
        "evaluate: pieces is float64 [2, 4, 4] but float64 [2, 3, 4] is needed",
    ),
    (
        call(edges=doubles(0)),
        "evaluate: pieces is float64 [2, 3, 4] but float64 [2, 0, 4] is needed",
    ),
    (call(registers=0), "evaluate: 0 registers but 1 to 256 are supported"),
    (call(registers=257), "evaluate: 257 registers but 1 to 256 are supported"),
    (
        call(counts=longs(0, 0, 0)),
        "evaluate: column 0 of counts of shape [3] but [samples, columns] with that column is "
        "needed",
    ),
    (
        call(counts=longs(0, 0, 0).view(3, 1), column=1),
        "evaluate: column 1 of counts of shape [3, 1] but",
    ),
    (
        call(counts=longs(0, 0).view(2, 1)),
        "evaluate: counts is int64 [2, 1] but int64 [3, 1] is needed",
    ),
    (
        call(counts=doubles(3, 1)),
        "evaluate: counts is float64 [3, 1] but int64 [3, 1] is needed",
    ),
    (call(counts=longs(*range(9)).view(3, 3).T), f"evaluate: counts of shape [3, 3] {READS}"),
    (call(outs=[doubles(3)] * 17), "evaluate: 17 outs but at most 16 are supported"),
    (
        call(outs=[doubles(3).float()]),
        "evaluate: outs[0] has dtype float32 but float64 or int64 is needed",
    ),
    (
        call(outs=[doubles(3), doubles(2)]),
        "evaluate: outs[1] has shape [2] but there are 3 samples",
    ),
    (call(outs=[doubles(1)[0]]), "evaluate: outs[0] has shape [] but there are 3 samples"),
    (
        call(outs=[doubles(4, 3).T]),
        "evaluate: outs[0] of shape [3, 4] is not contiguous but the kernel writes it",
    ),
    (
        call(outs=[doubles(3, 4, device="meta")]),
        "evaluate: outs[0] is on meta but inputs is on cpu",
    ),
    *[
        (shared(name), f"evaluate: outs[0] overlaps {name} but is written while that is read")
        for name in ("inputs", "code", "pieces", "edges", "counts")
    ],
    (shared("edge"), "evaluate: outs[0] overlaps edges but is written while that is read"),
    (shared("out"), "evaluate: outs[1] overlaps outs[0]"),
]

# What tensors hold is refused on the CPU alone.
HELD = [
    (
        call(counts=longs(0, 0, 3).view(3, 1)),
        "evaluate: counts[2, 0] is program 3 but there are 1 programs",
    ),
    (
        call(counts=longs(0, -1, 0).view(3, 1)),
        "evaluate: counts[1, 0] is program -1 but there are 1 programs",
    ),
    (
        call(starts=torch.tensor([0, 5], dtype=torch.int32)),
        "evaluate: program 0 is instructions 0 to 5 but there are 4",
    ),
    (
        call(starts=torch.tensor([3, 2], dtype=torch.int32)),
        "evaluate: program 0 is instructions 3 to 2 but there are 4",
    ),
    (
        call(starts=torch.tensor([-1, 2], dtype=torch.int32)),
        "evaluate: program 0 is instructions -1 to 2 but there are 4",
    ),
    (call((36, 0)), "evaluate: instruction 0 has opcode 36 but opcodes are 0 to 35"),
    (call((-1, 0)), "evaluate: instruction 0 has opcode -1 but opcodes are 0 to 35"),
    (
        call(("input", 3, 0)),
        "evaluate: instruction 0 (input) writes register 3 but there are 3",
    ),
    (
        call(("input", -1, 0)),
        "evaluate: instruction 0 (input) writes register -1 but there are 3",
    ),
    (
        call(("input", 0, 2)),
        "evaluate: instruction 0 (input) has column 2 but there are 2 columns of inputs",
    ),
    (
        call(("constant", 0, -2)),
        "evaluate: instruction 0 (constant) has constant -2 but there are 2 constants",
    ),
    (
        call(("input", 0, 0), ("add", 1, 0, 1)),
        "evaluate: instruction 1 (add) reads register 1 but nothing was written there",
    ),
    (
        call(("input", 0, 0), ("where", 1, 0, 0, 300)),
        "evaluate: instruction 1 (where) reads register 300 but nothing was written there",
    ),
    (
        call(("input", 0, 0), ("neg", 1, -1)),
        "evaluate: instruction 1 (neg) reads register -1 but nothing was written there",
    ),
    (
        call(("input", 0, 0), ("lookup", 1, 2, 0, 0)),
        "evaluate: instruction 1 (lookup) has row 2 but there are 2 rows of pieces",
    ),
    (
        call(("input", 0, 0), ("piece", 1, 0), edges=doubles(1), pieces=doubles(2, 0, 4)),
        "evaluate: instruction 1 (piece) needs a piece but there are 0 pieces",
    ),
    (
        call(("input", 0, 0), ("lookup", 1, 0, 0, 0), edges=doubles(0), pieces=doubles(2, 0, 4)),
        "evaluate: instruction 1 (lookup) has row 0 but there are 0 rows of pieces",
    ),
    (
        call(("input", 0, 0), ("store", 0, 2, 0, 0)),
        "evaluate: instruction 1 (store) has out 2 but there are 2 outs",
    ),
    (
        call(("input", 0, 0), ("store", 0, 0, 4, 0)),
        "evaluate: instruction 1 (store) has element 4 but there are 4 elements a sample in "
        "outs[0]",
    ),
    (
        call(("input", 0, 0), ("store", 0, 1, -1, 0)),
        "evaluate: instruction 1 (store) has element -1 but there are 1 elements a sample in "
        "outs[1]",
    ),
    (
        call(("store", 0, 1, 0, 0)),
        "evaluate: instruction 0 (store) reads register 0 but nothing was written there",
    ),
]


def names(cases):
    return [text.removeprefix("evaluate: ") for _, text in cases]


@pytest.mark.parametrize(("arguments", "text"), REFUSED + HELD, ids=names(REFUSED + HELD))
def test_it_is_refused_in_clear_words_and_nothing_is_written(arguments, text):
    check_refused("evaluate", ops.evaluate, reference_evaluate.evaluate, arguments, text)


FAKED = [case for case in REFUSED if can_be_faked(case[1])]


@pytest.mark.parametrize(("arguments", "text"), FAKED, ids=names(FAKED))
def test_the_fake_refuses_it_too(arguments, text):
    check_fake_refuses("evaluate", arguments, text)


@pytest.mark.parametrize(
    "function", (ops.evaluate, reference_evaluate.evaluate), ids=("c++", "reference")
)
def test_what_is_not_refused(function):
    """Bad programs that no sample runs, one edge, and memory that ends where another begins."""
    memory = doubles(30)
    function(*call(inputs=memory[:6].view(3, 2), outs=[memory[6:18].view(3, 2, 2)]))
    assert memory[6:18].view(3, 4)[:, 3].tolist() == [2.0] * 3
    starts = torch.tensor([0, 4, 99], dtype=torch.int32)
    function(*call(starts=starts, counts=longs(0, 0, 0).view(3, 1)))
    function(*call(starts=starts))
    function(*call(edges=doubles(1), pieces=doubles(2, 0, 4)))
    function(*call(inputs=doubles(0, 2), outs=[doubles(0, 7)]))
    function(*call(("constant", 0, 0), inputs=doubles(3, 0), outs=[]))
