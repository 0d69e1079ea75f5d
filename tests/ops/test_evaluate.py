"""`evaluate` on the CPU: what numpy makes of the recorded programs, instruction by instruction."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from evaluate_cases import EXACT, LIBRARY, NUMPY, OWN, SPECIAL, Problem, in_numpy, whole
from op_cases import assert_same_bits
from torch.library import opcheck

import diffast as df
from diffast import ops
from diffast.executors.adaptive import time_variable
from diffast.ops.evaluate import reference as reference_evaluate
from diffast.ops.evaluate.encode import encode
from diffast.ops.schema import INSTRUCTIONS, KNOT_SCALES, KNOTS, MAX_REGISTERS, OPERANDS

pytestmark = pytest.mark.usefixtures("nan_memory")
BOTH = pytest.mark.parametrize(
    "function", (ops.evaluate, reference_evaluate.evaluate), ids=("c++", "reference")
)
NO_TABLE = (torch.zeros(0, dtype=torch.float64), torch.zeros(0, 0, 4, dtype=torch.float64))
SIZES = (0, 1, 2, 7, 63, 64, 65, 1000)


def run(function, programs, inputs, outs, edges=NO_TABLE[0], pieces=NO_TABLE[1], counts=None):
    """Runs recorded programs; sample b has program counts[b, 0], the first one without counts."""
    code = encode(programs)
    table = (edges, pieces, code.registers)
    function(*code[:3], 0, torch.as_tensor(inputs), counts, 0, *table, outs)


def numbers(function, program, inputs, **table):
    """Returns the numbers [B, N] of all instructions of a program."""
    out = torch.full((len(inputs), len(program)), torch.nan, dtype=torch.float64)
    stores = [(0, place, place) for place in range(len(program))]
    run(function, [(program, stores)], inputs, [out], **table)
    return out


@BOTH
def test_random_programs(function):
    for seed, (size, by_counts) in enumerate(itertools.product(SIZES, (True, False))):
        rng = np.random.default_rng(seed)
        for columns, table, programs in ((5, True, 4), (0, False, 1), (1, True, 2)):
            problem = Problem(rng, size, 50, programs, by_counts, EXACT, table, columns)
            problem.check(function, (seed, columns), offset=8 * columns)


def test_random_programs_with_the_functions_of_the_library():
    """The kernels call the platform's library and nothing else: the same bits."""
    for seed, size in enumerate((1, 7, 63, 300)):
        rng = np.random.default_rng(100 + seed)
        Problem(rng, size, 60, names=(*EXACT, *LIBRARY)).check(ops.evaluate, seed)


def test_the_samples_are_the_same_for_any_number_of_threads():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for by_counts in (True, False):
                rng = np.random.default_rng(11)
                Problem(rng, 3000, 100, 3, by_counts).check(ops.evaluate, threads)
    finally:
        torch.set_num_threads(before)


def operands_of(name, rng):
    """Returns numbers [B, operands]: all pairs of special ones, and others."""
    count = len(OPERANDS[name])
    special = np.array(list(itertools.product(SPECIAL, repeat=min(count, 2))))
    if count == 3:
        special = np.concatenate([special, special[::-1, :1]], axis=1)
    moderate = rng.standard_normal((500, count)) * 10.0 ** rng.integers(-4, 3, size=(500, 1))
    return np.concatenate([special, moderate])


@BOTH
@pytest.mark.parametrize("name", (*NUMPY,))
def test_every_instruction_is_that_of_numpy(function, name):
    x = operands_of(name, np.random.default_rng(1))
    program = [("input", k) for k in range(x.shape[1])]
    program.append((name, *range(x.shape[1])))
    got = numbers(function, program, x)[:, -1]
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy({**NUMPY, **OWN}[name](*x.T))
    if name not in LIBRARY:
        assert_same_bits(got, wanted, name)
        return
    # A few ulp; numbers below the smallest normal one have fewer digits.
    torch.testing.assert_close(got, wanted, rtol=1e-15, atol=1e-320, equal_nan=True)


@BOTH
def test_constants_keep_every_bit(function):
    values = (0.1, -0.0, 0.0, np.nan, np.inf, 5e-324, 1e308)
    program = [("constant", value) for value in values]
    got = numbers(function, program, torch.zeros(3, 0, dtype=torch.float64))
    assert_same_bits(got, torch.tensor([values] * 3, dtype=torch.float64))


@BOTH
def test_whole_numbers_are_rounded_and_kept_in_their_range(function):
    x = np.array([0.5, 1.5, -0.5, -2.5, 2.4999, 2.0**53 + 2, 2.0**63, -(2.0**63), -(2.0**64)])
    x = np.concatenate([x, [2.0**63 - 1024, np.inf, -np.inf, np.nan, -7.0]])
    out = torch.full((len(x), 2), -1)
    run(function, [([("input", 0)], [(0, 1, 0)])], x[:, None], [out])
    assert out[:, 1].tolist() == whole(x)
    assert out[:4, 1].tolist() == [0, 2, 0, -2] and out[-2, 1].item() == -(2**63)
    assert (out[:, 0] == -1).all()


@BOTH
def test_pieces_are_those_of_a_search(function):
    edges = torch.tensor([-2.0, -1.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    x = [-9.0, -2.0, -1.5, -1.0, -0.999, 0.5, 0.6, 3.0, 4.0, np.inf, -np.inf, np.nan]
    pieces = torch.zeros(1, 4, 4, dtype=torch.float64)
    x = torch.tensor(x, dtype=torch.float64)[:, None]
    got = numbers(function, [("input", 0), ("piece", 0)], x, edges=edges, pieces=pieces)[:, 1]
    assert got.tolist() == [0, 0, 0, 0, 2, 2, 3, 3, 3, 3, 0, 3]
    found = (torch.searchsorted(edges, x[:, 0].contiguous()) - 1).clamp(0, 3)
    assert torch.equal(got, found.to(torch.float64))


@BOTH
@pytest.mark.parametrize("schedule", ("vp_linear", "vp_cosine"))
def test_a_device_table_of_a_schedule_is_looked_up_in_its_own_bits(function, schedule):
    made = getattr(df.schedules, schedule)()
    interval = time_variable.TimeInterval(made, "lam", made.t_min, slopes=True)
    table = time_variable.NodeTable(interval, [np.cos])
    edges, pieces = torch.from_numpy(table.edges), torch.from_numpy(table.pieces)
    x = torch.from_numpy(np.random.default_rng(0).uniform(interval.start, interval.end, 997))
    program = [("input", 0), ("piece", 0)]
    program += [("lookup", row, 1, 0) for row in range(len(pieces))]
    got = numbers(function, program, x[:, None], edges=edges, pieces=pieces)
    wanted = cubics(edges, pieces, x)
    nodes = interval.nodes(x.numpy())
    for row, field in enumerate(table.fields):
        assert_same_bits(got[:, 2 + row], wanted[row], field)
        np.testing.assert_allclose(wanted[row], getattr(nodes, field), rtol=1e-9, atol=1e-12)
    assert_same_bits(got[:, 2 + len(table.fields)], wanted[-1], "scales")


def cubics(edges, pieces, x):
    """Returns the values [F, B] of the table's cubics at positions, by Lagrange's formula."""
    piece = torch.searchsorted(edges, x) - 1
    low, high = edges[piece], edges[piece + 1]
    gaps = [(x - low) / (high - low) - knot for knot in KNOTS]
    weights = []
    for i, scale in enumerate(KNOT_SCALES):
        a, b, c = (gap for j, gap in enumerate(gaps) if j != i)
        weights.append(scale * a * b * c)
    return (pieces[:, piece] * torch.stack(weights, dim=-1)).sum(dim=-1)


def test_knots_are_chebyshevs_and_scales_lagranges():
    knots = 0.5 - 0.5 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)
    np.testing.assert_allclose(knots, KNOTS, rtol=1e-15)
    scales = 1.0 / (knots[:, None] - knots + np.eye(4)).prod(axis=1)
    np.testing.assert_allclose(scales, KNOT_SCALES, rtol=1e-14)


@BOTH
def test_a_program_may_have_all_registers(function):
    """Every number is used after all are made, so none leaves its register."""
    program = [("input", 0), ("sqrt", 0)]
    program += [("add", place, 1) for place in range(1, MAX_REGISTERS - 1)]
    total = program[-1]
    for place in range(2, MAX_REGISTERS):
        program.append(("mul", len(program) - 1, place))
    x = np.random.default_rng(0).uniform(0, 1e-3, size=(70, 1))
    code = encode([(program, [(0, 0, len(program) - 1)])])
    assert total == ("add", MAX_REGISTERS - 2, 1) and code.registers > 200
    assert len(code.code) == len(program) + 1
    with np.errstate(all="ignore"):
        wanted = in_numpy(program, x, None, None)
    assert_same_bits(numbers(function, program[:250], x)[:, -1], torch.from_numpy(wanted[249]))
    out = torch.full((70,), torch.nan, dtype=torch.float64)
    run(function, [(program, [(0, 0, len(program) - 1)])], x, [out])
    assert_same_bits(out, torch.from_numpy(wanted[-1]))


@BOTH
def test_programs_without_instructions_and_calls_without_outs_do_nothing(function):
    x, out = torch.zeros(3, 1, dtype=torch.float64), torch.full((3, 1), 5.0, dtype=torch.float64)
    run(function, [([], []), ([("input", 0)], [(0, 0, 0)])], x, [out])
    run(function, [([], [])], x, [])
    assert (out == 5.0).all()
    counts = torch.tensor([[0], [1], [0]])
    run(function, [([], []), ([("input", 0)], [(0, 0, 0)])], x, [out], counts=counts)
    assert out[:, 0].tolist() == [5.0, 0.0, 5.0]


def test_opcheck():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        for by_counts in (True, False):
            problem = Problem(np.random.default_rng(2), 5, 20, by_counts=by_counts)
            outs = [
                torch.zeros(5, *shape, dtype=dtype)
                for shape, dtype in zip(problem.shapes, problem.dtypes, strict=True)
            ]
            opcheck(torch.ops.diffast.evaluate.default, problem.call(outs))


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_a_compiled_function_has_the_same_bits(compiler):
    def step(*call):
        outs = [torch.zeros(7, 3, 2, dtype=torch.float64), torch.zeros(7, 4, dtype=torch.int64)]
        outs.append(torch.zeros(7, dtype=torch.float64))
        ops.evaluate(*call, outs)
        return outs[0] + 1, outs[1], outs[2] * 2

    call = Problem(np.random.default_rng(3), 7).call([])[:-1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend=compiler)
        for a, b in zip(compiled(*call), step(*call), strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        torch._dynamo.reset()


def test_gradients_are_refused():
    x = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    out = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="diffast.evaluate.default: a tensor requires grad"):
        run(ops.evaluate, [([("input", 0)], [(0, 0, 0)])], x, [out])
    with torch.no_grad():
        run(ops.evaluate, [([("input", 0)], [(0, 0, 0)])], x, [out])


def test_unneeded_and_equal_instructions_are_left_out():
    program = [
        ("input", 0),  # 0
        ("constant", 2.0),  # 1
        ("mul", 0, 1),  # 2
        ("constant", 2.0),  # 3
        ("mul", 3, 0),  # 4: 2 again
        ("exp", 4),  # 5: not needed
        ("input", 0),  # 6
        ("sub", 4, 6),  # 7
        ("constant", -0.0),  # 8
        ("constant", 0.0),  # 9
        ("sub", 8, 9),  # 10
    ]
    code = encode([(program, [(0, 0, 7), (1, 0, 10), (0, 0, 10), (0, 1, 7)])])
    made = [INSTRUCTIONS[line[0]] for line in code.code.tolist()]
    assert sorted(made) == ["constant"] * 3 + ["input", "mul"] + ["store"] * 3 + ["sub"] * 2
    assert code.constants.tolist() == [2.0, -0.0, 0.0]
    assert code.starts.tolist() == [0, len(made)]


def test_negations_go_into_sums_and_differences():
    program = [("input", 0), ("input", 1), ("neg", 0), ("neg", 1)]
    pairs = list(itertools.product(range(4), repeat=2))
    program += [(name, *pair) for name in ("add", "sub") for pair in pairs]
    stores = [(0, k, 4 + k) for k in range(2 * len(pairs))]
    made = [INSTRUCTIONS[line[0]] for line in encode([(program, stores)]).code.tolist()]
    assert made.count("neg") == 2  # of -a - b and -b - a
    assert made.count("add") + made.count("sub") < 2 * len(pairs)  # some are equal now
    x = np.array(list(itertools.product(SPECIAL, repeat=2)))
    with np.errstate(all="ignore"):
        wanted = np.stack(in_numpy(program, x, None, None), axis=1)
    assert_same_bits(numbers(ops.evaluate, program, x), torch.from_numpy(wanted))


def test_few_registers_are_held():
    """Inputs and constants are made where they are used, and stored numbers are let go."""
    program = [("input", k) for k in range(40)]
    for k in range(39):
        program.append(("add", len(program) - 1 if k else 0, k + 1))
    code = encode([(program, [(0, k, 40 + k) for k in range(39)])])
    assert code.registers == 2
    two = encode([(program, [(0, 0, 78)]), ([("constant", 1.0)], [(0, 0, 0)])])
    assert two.starts.tolist() == [0, 80, 82] and two.registers == 2
    assert two.to("cpu").registers == 2


BAD = [
    ([], "evaluate: there are 0 programs but at least one is needed"),
    ([([("inputs", 0)], [])], "program 0, instruction 0 is 'inputs' but constant, input, add"),
    ([([("constant", None)], [])], "instruction 0 is the constant None but a float is needed"),
    ([([("store", 0, 0, 0)], [])], "instruction 0 is 'store' but"),
    ([([("input", 0), ("add", 0)], [])], r"\(add\) has 1 operands but 2 are needed"),
    ([([("input", -1)], [])], r"\(input\) has column -1 but 0 or more is needed"),
    ([([("input", 0), ("neg", 1)], [])], r"\(neg\) reads instruction 1, but only earlier ones"),
    ([([("input", 0), ("neg", 0.0)], [])], r"\(neg\) has register 0.0 but 0 or more is needed"),
    ([([("input", 0)], [(0, 0, 1)])], "stores instruction 1 in element 0 of out 0 but there are 1"),
    ([([("input", 0)], [(0, -1, 0)])], "in element -1 of out 0 but there are 1"),
]


@pytest.mark.parametrize(("programs", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_programs_are_not_encoded(programs, text):
    with pytest.raises(ValueError, match=text):
        encode(programs)


def test_too_many_numbers_at_a_time_are_refused():
    program = [("input", 0)]
    program += [("exp", place) for place in range(MAX_REGISTERS)]
    for place in range(MAX_REGISTERS + 1):
        program.append(("add", len(program) - 1, place))
    with pytest.raises(ValueError, match="program 0 holds 25[78] numbers at a time but 256 are"):
        encode([(program, [(0, 0, len(program) - 1)])])
