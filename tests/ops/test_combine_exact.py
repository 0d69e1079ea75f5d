"""`combine` against arithmetic that shares no line with it, and the same bits on each backend."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import shared_arithmetic as shared
import torch
from op_cases import Case, assert_same_bits, random_tensor
from output_hashes import hashes
from places import HELPERS, ROOT

from diffast import ops

DIGITS = {torch.float64: (53, -1074), torch.float32: (24, -149)}  # significand, last exponent


def rounded(value: Fraction, dtype: torch.dtype) -> Fraction:
    """Returns the float nearest to an exact number, ties to even (nothing here overflows)."""
    digits, last = DIGITS[dtype]
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - digits
    step = Fraction(2) ** max(exponent, last)
    # bit_length bounds the size to a factor of two: one step more where the quotient has a bit
    # too many. Fraction rounds to even.
    if abs(value) >= step * 2**digits:
        step *= 2
    return round(value / step) * step


def test_rounding_by_fractions_is_rounding():
    rng = np.random.default_rng(0)
    for x, y in rng.standard_normal((200, 2)) * 10.0 ** rng.integers(-160, 140, (200, 2)):
        exact = Fraction(float(x)) * Fraction(float(y))
        assert float(rounded(exact, torch.float64)) == float(x) * float(y)
    for x, y in rng.standard_normal((200, 2)).astype(np.float32):
        for scale in (np.float32(1), np.float32(1e-20)):
            product = (x * scale) * (y * scale)
            exact = Fraction(float(x * scale)) * Fraction(float(y * scale))
            assert float(rounded(exact, torch.float32)) == float(product)


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize("inputs", (1, 2, 3, 5, 8, 9, 16))
def test_every_rounding_is_the_exact_one(dtype, inputs):
    """Products and sums of exact rationals, each rounded once, in column order."""
    rng = np.random.default_rng(inputs)
    xs = [random_tensor(rng, (1, 19), dtype) for _ in range(inputs)]
    xs[0][0, :5] *= 1e-38 if dtype == torch.float32 else 1e-307
    weights = rng.standard_normal((2, inputs))
    rows = ops.combine(xs, weights.tolist())
    arithmetic = weights.astype(np.float32) if dtype == torch.float32 else weights
    for r, element in np.ndindex(2, 19):
        products = [
            rounded(Fraction(float(w)) * Fraction(x[0, element].item()), dtype)
            for w, x in zip(arithmetic[r], xs, strict=True)
        ]
        total = products[0]
        for product in products[1:]:
            total = rounded(total + product, dtype)
        assert rows[r][0, element].item() == float(total), (r, element)


def numpy_rows(xs, weights, clamp, noises, arithmetic):
    """Returns the rows by numpy: one float32 or float64 operation at a time."""
    columns = [x.numpy().astype(arithmetic) for x in xs]
    rows = []
    for r, row in enumerate(weights):
        inputs = columns + ([rows[0]] if clamp and r else []) + noises
        total = None
        for weight, column in zip(row, inputs, strict=True):
            product = np.multiply(arithmetic(weight), column, dtype=arithmetic)
            total = product if total is None else np.add(total, product, dtype=arithmetic)
        if clamp and r == 0:
            total = np.minimum(np.maximum(total, arithmetic(clamp[0])), arithmetic(clamp[1]))
        rows.append(total)
    return rows


@pytest.mark.parametrize("inputs", range(1, 17))
@pytest.mark.parametrize("wide", (False, True))
def test_numpy_agrees(inputs, wide):
    arithmetic = np.float64 if wide else np.float32
    rng = np.random.default_rng(inputs)
    shape = (3, 1031)
    xs = [
        random_tensor(rng, shape, torch.float64 if wide else torch.float32) for _ in range(inputs)
    ]
    ids = [5, -(2**40), 2**62]
    for rows, slots, clamp in ((1, 0, None), (2, 1, None), (4, 2, (-0.3, 0.9)), (8, 0, (0.0, 1.0))):
        noises = [
            np.stack(
                [shared.normals(seed=9, id=i, word=4 + (m << 26), count=shape[1]) for i in ids]
            ).astype(arithmetic)
            for m in range(slots)
        ]
        weights = rng.standard_normal((rows, inputs + bool(clamp)))
        noise = rng.standard_normal((rows, slots))
        if clamp:
            weights[0, -1] = 0
        got = ops.combine(
            xs, weights, noise=noise, seed=9, stage=4, ids=torch.tensor(ids), clamp=clamp
        )
        per_row = [
            [*(w[:inputs] if r == 0 else w), *n]
            for r, (w, n) in enumerate(zip(weights, noise, strict=True))
        ]
        wanted = numpy_rows(xs, per_row, clamp, noises, arithmetic)
        for r, (a, b) in enumerate(zip(got, wanted, strict=True)):
            assert_same_bits(a, torch.from_numpy(b), (inputs, rows, r))


def test_a_table_of_equal_weights_is_host_weights():
    rng = np.random.default_rng(3)
    case = Case(rng, [random_tensor(rng, (4, 333)) for _ in range(3)], rows=2, noises=2)
    table = torch.tensor(case.weights, dtype=torch.float64).reshape(1, 2, 3).repeat(4, 1, 1)
    noise = torch.tensor(case.noise, dtype=torch.float64).reshape(1, 2, 2).repeat(4, 1, 1)
    words = torch.full((4,), case.stage)
    streams = torch.stack([torch.full((4,), case.seed), case.ids, words], dim=1)
    host = ops.combine_host(*case.host_call)
    for a, b in zip(ops.combine(case.xs, table, noise=noise, streams=streams), host, strict=True):
        assert_same_bits(a, b)


@cache
def hashes_here():
    return hashes()


@pytest.mark.parametrize(
    ("variable", "value", "backend"),
    [("DIFFAST_CPU_ISA", "base", "c++ (base)"), ("DIFFAST_BACKEND", "reference", "reference")],
)
def test_the_same_bits_on_every_instruction_set_and_in_the_reference(variable, value, backend):
    """A process with baseline vectors, one without kernels, and this one (AVX2 where it runs)."""
    if ops.backends()["cpu"]["backend"] == backend:
        pytest.skip(f"this process runs {backend} itself: nothing to compare")
    run = subprocess.run(
        [sys.executable, (HELPERS / "output_hashes.py")],
        env={**os.environ, variable: value, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    there = json.loads(run.stdout)
    assert there["backend"] == backend
    here = hashes_here()
    assert there["hashes"].keys() == here.keys()
    differ = [call for call, value in here.items() if there["hashes"][call] != value]
    assert not differ
    assert len(set(here.values())) == len(here) > 400, "two calls gave the same numbers"
