"""`gram`: inner products of rows that are never stored, against the reference and exact sums."""

import math

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_guards, assert_same_bits, guarded, random_tensor, random_weights
from refusals import check_refused
from torch._dynamo.utils import counters
from torch.library import opcheck

from diffast import ops
from diffast.ops.gram import reference as reference_gram

pytestmark = pytest.mark.usefixtures("nan_memory")

SIZES = (0, 1, 7, 63, 1000, 4097)


def problem(rng, shape, dtypes, rows):
    """Returns inputs and a table of weights."""
    xs = [random_tensor(rng, shape, dtype) for dtype in dtypes]
    return xs, torch.from_numpy(random_weights(rng, shape[0], rows, len(xs)))


def made(xs, weights, overload=ops.gram, totals=False):
    """Returns the sums of the op, with `totals` those of the rows too; nothing else is written."""
    rows = weights.shape[1]
    width = rows * (rows + 1) // 2 + totals * rows
    sums, buffer = guarded((len(weights), width), torch.float64)
    before = [x.clone() for x in xs]
    overload(xs, weights, sums)
    assert_guards(sums, buffer)
    for x, copy in zip(xs, before, strict=True):
        assert_same_bits(x, copy, "an input was written")
    return sums


def check_totals(got, xs, weights, label):
    """Sums of rows equal those of the reference, to 1e-12 of the sum of the elements' sizes."""
    pairs = weights.shape[1] * (weights.shape[1] + 1) // 2
    wanted = made(xs, weights, reference_gram.gram, totals=True)[:, pairs:]
    sizes = [x.double().abs() for x in xs]
    sizes = made(sizes, weights.abs(), reference_gram.gram, totals=True)[:, pairs:]
    assert ((got - wanted).abs() <= 1e-12 * sizes).all(), label


def check(xs, weights, label):
    """The op's sums equal the reference's but for the order; returns them.

    Sums may cancel: errors are measured against the lengths of the two rows. The products have the
    same bits with and without the sums of the rows.
    """
    got, wanted = made(xs, weights), made(xs, weights, reference_gram.gram)
    both = made(xs, weights, totals=True)
    assert_same_bits(both[:, : got.shape[1]], got, label)
    check_totals(both[:, got.shape[1] :], xs, weights, label)
    rows = weights.shape[1]
    pairs = [(i, j) for i in range(rows) for j in range(i, rows)]
    squares = [pairs.index((i, i)) for i in range(rows)]
    for column, (i, j) in enumerate(pairs):
        scale = (wanted[:, squares[i]] * wanted[:, squares[j]]).sqrt()
        error = (got[:, column] - wanted[:, column]).abs()
        assert (error <= 1e-12 * scale).all(), (label, i, j)
    return got


@pytest.mark.parametrize("rows", range(1, 5))
@pytest.mark.parametrize("inputs", range(1, 9))
def test_every_number_of_inputs_and_rows(inputs, rows):
    rng = np.random.default_rng((inputs, rows))
    for i, size in enumerate(SIZES):
        position = (inputs + i) % inputs
        for dtype in FLOATS:
            dtypes = [torch.float32] * inputs
            dtypes[position] = dtype
            check(*problem(rng, ((0, 1, 3)[i % 3], size), dtypes, rows), (size, dtype))
            check(*problem(rng, (2, size), [dtype] * inputs, rows), (size, dtype))


def test_rows_are_those_of_combine_table():
    """Exact sums (fsum) of products of what `combine.table` writes in the arithmetic type."""
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.float64):
        xs, weights = problem(rng, (2, 3, 37), [dtype] * 3, 3)
        stored = ops.combine_table(xs, weights, None, None, [])
        flat = [row.reshape(2, -1).double() for row in stored]
        got = made(xs, weights)
        pairs = [(i, j) for i in range(3) for j in range(i, 3)]
        for column, (i, j) in enumerate(pairs):
            for b in range(2):
                products = (flat[i][b] * flat[j][b]).tolist()
                bound = 1e-13 * sum(abs(p) for p in products)
                assert abs(got[b, column].item() - math.fsum(products)) <= bound


def test_sums_of_rows_are_exact_where_numbers_are_whole():
    """Means and variances of what `combine.table` writes, against numpy's."""
    rng = np.random.default_rng(5)
    for size in (1, 100, 1024, 5001):
        xs = [torch.from_numpy(rng.integers(-99, 99, (3, size))).float() for _ in range(2)]
        weights = torch.from_numpy(rng.integers(-5, 6, (3, 4, 2))).double()
        stored = ops.combine_table(xs, weights, None, None, [])
        sums = made(xs, weights, totals=True)
        for j, row in enumerate(stored):
            assert torch.equal(sums[:, 10 + j], row.double().sum(dim=1))
            square = sums[:, (0, 4, 7, 9)[j]]
            variance = square / size - (sums[:, 10 + j] / size) ** 2
            wanted = row.double().var(dim=1, correction=0)
            torch.testing.assert_close(variance, wanted, rtol=1e-12, atol=1e-12)


def test_a_sample_has_the_same_bits_alone_and_for_any_threads():
    rng = np.random.default_rng(1)
    before = torch.get_num_threads()
    for size, rows in ((17, 1), (1000, 2), (4097, 3), (30_001, 4)):
        xs, weights = problem(rng, (5, size), FLOATS[:1] * 4, rows)
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(made(xs, weights, totals=True))
            alone = [([x[b : b + 1] for x in xs], weights[b : b + 1]) for b in range(5)]
            found.append(torch.cat([made(*sample, totals=True) for sample in alone]))
        torch.set_num_threads(before)
        for other in found[1:]:
            assert_same_bits(other, found[0], (size, rows))


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_bad_element_spoils_its_own_sample_only(value):
    rng = np.random.default_rng(2)
    for element in (0, 8, 1023, 1024, 1030):
        xs, weights = problem(rng, (3, 1031), FLOATS[:1] * 2, 2)
        weights[weights == 0] = 1
        good = made(xs, weights, totals=True)
        xs[1][1, element] = value
        got = made(xs, weights, totals=True)
        assert_same_bits(got[::2], good[::2], element)
        assert not got[1].isfinite().any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_are_inputs(dtype):
    """No row is made for them, but where an element is not finite: 0 times infinity is NaN."""
    rng = np.random.default_rng(6)
    for inputs, order in ((1, [0]), (2, [1, 0]), (2, [0, 1, 0]), (3, [2, 0, 1]), (3, [0, 2])):
        for size in (1, 9, 1031):
            xs, _ = problem(rng, (3, size), [dtype] * inputs, 1)
            weights = torch.eye(inputs).double()[order].repeat(3, 1, 1)
            weights[0] *= -0.5  # a sample of other weights
            check(xs, weights, (order, size))
            for value in (math.nan, math.inf):
                xs[-1][1, size - 1] = value
                got, wanted = made(xs, weights), made(xs, weights, reference_gram.gram)
                assert torch.equal(got.isnan(), wanted.isnan()), (order, size, value)
                assert got[::2].isfinite().all()
                assert_same_bits(got[1][~got[1].isnan()], wanted[1][~wanted[1].isnan()])


@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_a_bad_weight_spoils_its_own_sample_only(value):
    """Of elements that are not 0: zeros fill up the last vectors, and 0 times infinity is NaN."""
    rng = np.random.default_rng(3)
    for size, inputs in ((5, 2), (1031, 4), (9, 6)):
        xs, weights = problem(rng, (3, size), FLOATS[:1] * inputs, 2)
        weights[1, 0, 1] = value
        xs[1] = xs[1].abs() + 1
        got, wanted = made(xs, weights), made(xs, weights, reference_gram.gram)
        assert (got[1].isnan() == wanted[1].isnan()).all(), (got, wanted)
        assert got[1, 2].isfinite() and not got[1, :2].isfinite().any()
        assert got[::2].isfinite().all()


def test_opcheck():
    xs, weights = problem(np.random.default_rng(0), (2, 5), FLOATS[:2], 2)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(
        torch.ops.diffast.gram.default, (xs, weights, torch.zeros(2, 3).double()), test_utils=tests
    )


@pytest.mark.parametrize("backend", ("eager", "aot_eager", "inductor"))
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_it_compiles_into_one_graph(backend):
    torch._dynamo.reset()
    counters.clear()
    xs, weights = problem(np.random.default_rng(0), (2, 50), FLOATS[:1] * 2, 2)

    def step(xs, weights, sums):
        ops.gram(xs, weights, sums)
        return sums + 1

    results = []
    for function in (step, torch.compile(step, backend=backend, fullgraph=True)):
        sums = torch.full((2, 3), torch.nan).double()
        results.append([function(xs, weights, sums), sums])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b, backend)
    assert counters["stats"]["unique_graphs"] == 1


def doubles(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


GOOD = [torch.ones(3, 4)]
LAYOUT = "is not contiguous but the kernel reads it in row-major order"
REFUSED = [
    (
        (GOOD * 9, doubles(3, 2, 9), doubles(3, 3)),
        "gram: 9 inputs and 2 rows but at most 8 and 4 are supported",
    ),
    (
        (GOOD, doubles(3, 5, 1), doubles(3, 15)),
        "gram: 1 inputs and 5 rows but at most 8 and 4 are supported",
    ),
    (
        (GOOD, doubles(3, 2, 1), doubles(3, 4)),
        "gram: sums is float64 [3, 4] but float64 [3, 3] is needed",
    ),
    (
        (GOOD, doubles(3, 2, 1), doubles(3, 6)),
        "gram: sums is float64 [3, 6] but float64 [3, 3] is needed",
    ),
    (
        (GOOD, doubles(3, 2, 1), torch.ones(3, 5)),
        "gram: sums is float32 [3, 5] but float64 [3, 5] is needed",
    ),
    (
        (GOOD, doubles(3, 2, 1), torch.ones(3, 3)),
        "gram: sums is float32 [3, 3] but float64 [3, 3] is needed",
    ),
    ((GOOD, doubles(3, 2, 1), doubles(3, 3).T), f"gram: sums of shape [3, 3] {LAYOUT}"),
    (
        (GOOD, doubles(3, 2, 1), doubles(3, 3, device="meta")),
        "gram: sums is on meta but xs[0] is on cpu",
    ),
    (([], doubles(3, 2, 1), doubles(3, 3)), "combine: xs is empty but at least 1 input is needed"),
    ((GOOD, doubles(3, 2), doubles(3, 3)), "combine: weights has shape [3, 2] but [samples, row"),
    (
        (GOOD, doubles(3, 0, 1), doubles(3, 0)),
        "combine: weights has shape [3, 0, 1] but at least",
    ),
    ((GOOD, doubles(3, 9, 1), doubles(3, 3)), "combine: 9 rows but at most 8 are supported"),
    (
        (GOOD, doubles(2, 2, 1), doubles(3, 3)),
        "combine: weights is float64 [2, 2, 1] but float64 [3, 2, 1] is needed",
    ),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_it_is_refused_in_clear_words_and_nothing_is_written(call, text):
    check_refused("gram", ops.gram, reference_gram.gram, call, text)
