"""`quantile`: against numpy and torch, and the kernels against the reference."""

import json
import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits, random_weights
from quantile_cases import SHARES, check_quantile, quantile_case, special_rows
from refusals import check_refused
from torch._dynamo.utils import counters
from torch.library import opcheck

from diffast import ops
from diffast.ops.quantile import reference

pytestmark = pytest.mark.usefixtures("nan_memory")

SIZES = (1, 2, 7, 63, 1000, 2049, 4097)
check = partial(check_quantile, ops.quantile)
ONE = torch.ones(1, 1, 1, dtype=torch.float64)


def of_row(row, p):
    """Returns the quantile of one row's magnitudes."""
    out = torch.full((1,), torch.nan, dtype=torch.float64)
    ops.quantile([torch.as_tensor(row)[None]], ONE, p, out)
    return out.item()


@pytest.mark.parametrize("size", SIZES)
def test_it_is_numpys_quantile_of_the_row_in_float64(size):
    rng = np.random.default_rng(size)
    for dtype in FLOATS:
        row = torch.from_numpy(rng.standard_normal(size)).to(dtype)
        magnitudes = row.double().abs().numpy()
        for p in (*SHARES, *rng.random(5)):
            assert of_row(row, p) == np.quantile(magnitudes, p), (dtype, p)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_torchs_quantile(size):
    """In float64 to the last bits of the interpolation; the order statistics to the last bit."""
    rng = np.random.default_rng(size)
    row = torch.from_numpy(rng.standard_normal(size)).float()
    for p in (*SHARES, *rng.random(5)):
        wanted = torch.quantile(row.double().abs(), p).item()
        assert abs(of_row(row, p) - wanted) <= 4e-16 * wanted
        assert math.isclose(of_row(row, p), torch.quantile(row.abs(), p).item(), rel_tol=2e-3)
    for rank in {0, size // 2, size - 1}:
        p = rank / max(size - 1, 1)
        if p * (size - 1) == rank:
            assert of_row(row, p) == torch.kthvalue(row.abs(), rank + 1).values.item()


@pytest.mark.parametrize("inputs", range(1, 9))
def test_every_input_at_every_place(inputs):
    rng = np.random.default_rng(inputs)
    for i, size in enumerate(SIZES):
        for position, dtype in enumerate(FLOATS[: 1 + inputs]):
            dtypes = [torch.float32] * inputs
            dtypes[(position + i) % inputs] = dtype
            xs, weights = quantile_case(rng, dtypes, ((0, 1, 3)[i % 3], size))
            check(xs, weights, SHARES[(i + position) % 6], (size, dtype))
            xs, weights = quantile_case(rng, [dtype] * inputs, (2, size), 2 * dtype.itemsize)
            check(xs, weights, 0.995, (size, dtype))


def test_the_row_is_that_of_combine_table():
    rng = np.random.default_rng(0)
    for dtype in (torch.float32, torch.float64):
        xs = [torch.from_numpy(rng.standard_normal((4, 3, 937))).to(dtype) for _ in range(3)]
        weights = torch.from_numpy(random_weights(rng, 4, 1, 3))
        (row,) = ops.combine_table(xs, weights, None, None, [])
        got = check(xs, weights, 0.7)
        wanted = np.quantile(row.double().abs().reshape(4, -1).numpy(), 0.7, axis=1)
        assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize("size", (1, 9, 2048, 5000))
def test_numbers_that_crowd(size):
    rng = np.random.default_rng(size)
    for label, row in special_rows(rng, size):
        for dtype in (torch.float32, torch.float64):
            x = torch.from_numpy(np.stack([row, row[::-1]])).to(dtype)
            for p in (*SHARES, 0.5 + 0.2 / size):
                got = check([x], torch.ones(2, 1, 1, dtype=torch.float64), p, (label, size))
                assert not got.isnan().any(), (label, p)
                if np.isfinite(row).all():
                    assert got[0].item() == np.quantile(np.abs(row.astype(float)), p), label


def test_float64_numbers_that_differ_in_their_last_bits():
    rng = np.random.default_rng(1)
    row = (1.0 + rng.integers(0, 4096, size=(1, 9000)) * 2.0**-52) * rng.choice([-1, 1], 9000)
    for p in SHARES:
        check([torch.from_numpy(row)], ONE, p)
        check([torch.from_numpy(row * 2.0**-1000)], ONE, p)
        check([torch.from_numpy(row * 2.0**-1030)], ONE, p)  # subnormal


def test_an_infinite_neighbour_makes_infinity_and_no_nan():
    row = [1.0, 2.0, math.inf, -math.inf]
    assert [of_row(row, p) for p in (0, 1 / 3, 0.35, 0.6, 2 / 3, 0.9, 1)] == [
        *(1.0, 2.0, *[math.inf] * 5)
    ]


@pytest.mark.parametrize("size", (5, 2047, 3000, 140_001))
def test_nan_spoils_its_own_sample_only(size):
    rng = np.random.default_rng(size)
    for dtype in (torch.float32, torch.float64):
        for element in (0, size // 2, size - 1):
            xs, weights = quantile_case(rng, [dtype] * 2, (3, size))
            weights[weights == 0] = 0.5
            good = check(xs, weights, 0.9)
            xs[1][1, element] = math.nan
            xs[0][2, element] = math.inf
            got = check(xs, weights, 0.9)
            assert got.isnan().tolist() == [False, True, False]
            assert got[0] == good[0] and got[2] >= good[2]


def test_a_bad_weight_spoils_its_own_sample_only():
    xs, weights = quantile_case(np.random.default_rng(2), FLOATS[:2], (3, 700))
    weights[1, 0, 1] = math.nan
    assert check(xs, weights, 0.3).isnan().tolist() == [False, True, False]


def test_a_sample_has_the_same_bits_alone_and_for_any_threads():
    rng = np.random.default_rng(3)
    before = torch.get_num_threads()
    for size in (17, 2500, 40_000, 300_001):
        xs, weights = quantile_case(rng, FLOATS[:2], (3, size))
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            got = check(xs, weights, 0.995)
            for b in range(3):
                alone = check([x[b : b + 1] for x in xs], weights[b : b + 1], 0.995)
                assert_same_bits(alone, got[b : b + 1], (size, threads))
        torch.set_num_threads(before)


SCRIPT = """
import json, numpy as np, torch
from quantile_cases import quantile_case, special_rows
from diffast import ops
assert "base" in ops.backends()["cpu"]["backend"]
rng, found = np.random.default_rng(4), []
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for size in (5, 3001, 140_000):
        xs, weights = quantile_case(rng, [dtype] * 2, (2, size))
        out = torch.empty(2, dtype=torch.float64)
        ops.quantile(xs, weights, 0.97, out)
        found.append(out.tolist())
print(json.dumps(found))
"""


def test_the_baseline_instructions_give_the_same_bits():
    environment = {**os.environ, "DIFFAST_CPU_ISA": "base"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, text=True
    )
    rng, wanted = np.random.default_rng(4), []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for size in (5, 3001, 140_000):
            xs, weights = quantile_case(rng, [dtype] * 2, (2, size))
            wanted.append(check(xs, weights, 0.97).tolist())
    assert json.loads(run.stdout) == wanted


def test_opcheck():
    xs, weights = quantile_case(np.random.default_rng(0), FLOATS[:2], (2, 5))
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    out = torch.zeros(2, dtype=torch.float64)
    opcheck(torch.ops.diffast.quantile.default, (xs, weights, 0.3, out), test_utils=tests)


@pytest.mark.parametrize("backend", ("eager", "aot_eager", "inductor"))
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_it_compiles_into_one_graph(backend):
    torch._dynamo.reset()
    counters.clear()
    xs, weights = quantile_case(np.random.default_rng(0), FLOATS[:1] * 2, (2, 50))

    def step(xs, weights, out):
        ops.quantile(xs, weights, 0.9, out)
        return out + 1

    results = []
    for function in (step, torch.compile(step, backend=backend, fullgraph=True)):
        out = torch.full((2,), torch.nan).double()
        results.append([function(xs, weights, out), out])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b, backend)
    assert counters["stats"]["unique_graphs"] == 1


def doubles(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


GOOD = [torch.ones(3, 4)]
TABLE = doubles(3, 1, 1)
REFUSED = [
    (
        (GOOD * 9, doubles(3, 1, 9), 0.5, doubles(3)),
        "quantile: 9 inputs and 1 rows but at most 8 inputs and exactly 1 row are supported",
    ),
    (
        (GOOD, doubles(3, 2, 1), 0.5, doubles(3)),
        "quantile: 1 inputs and 2 rows but at most 8 inputs and exactly 1 row are supported",
    ),
    ((GOOD, TABLE, 1.5, doubles(3)), "quantile: p is 1.5 but must be from 0 to 1"),
    ((GOOD, TABLE, -0.1, doubles(3)), "quantile: p is -0.1 but must be from 0 to 1"),
    ((GOOD, TABLE, math.nan, doubles(3)), "quantile: p is nan but must be from 0 to 1"),
    (
        ([torch.ones(3, 0, 2)], TABLE, 0.5, doubles(3)),
        "quantile: xs[0] has shape [3, 0, 2] but a quantile needs at least 1 element a sample",
    ),
    (
        (GOOD, TABLE, 0.5, doubles(3, 1)),
        "quantile: out is float64 [3, 1] but float64 [3] is needed",
    ),
    (
        (GOOD, TABLE, 0.5, torch.ones(3)),
        "quantile: out is float32 [3] but float64 [3] is needed",
    ),
    (
        (GOOD, TABLE, 0.5, doubles(6)[::2]),
        "quantile: out of shape [3] is not contiguous but the kernel reads it in row-major order",
    ),
    (
        (GOOD, TABLE, 0.5, doubles(3, device="meta")),
        "quantile: out is on meta but xs[0] is on cpu",
    ),
    (([], TABLE, 0.5, doubles(3)), "combine: xs is empty but at least 1 input is needed"),
    (
        (GOOD, doubles(2, 1, 1), 0.5, doubles(3)),
        "combine: weights is float64 [2, 1, 1] but float64 [3, 1, 1] is needed",
    ),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_it_is_refused_in_clear_words_and_nothing_is_written(call, text):
    check_refused("quantile", ops.quantile, reference.quantile, call, text)


def test_more_elements_than_can_be_counted_are_refused():
    """On meta tensors, which have no memory."""
    x = torch.empty(1, 1 << 31, dtype=torch.float16, device="meta")
    table, out = doubles(1, 1, 1, device="meta"), doubles(1, device="meta")
    with pytest.raises(RuntimeError, match="a sample has 2147483648 elements but at most 21474836"):
        ops.quantile([x], table, 0.5, out)
