"""`evaluate` in Triton, in its interpreter on CPU tensors, equals numpy."""

import os

import numpy as np
import pytest
import torch
from evaluate_cases import LIBRARY, NUMPY, OWN, Problem
from op_cases import assert_same_bits
from test_evaluate import numbers, operands_of, run
from test_evaluate_errors import REFUSED

from diffast.ops.schema import OPERANDS

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled: see tests/gpu"
)


@pytest.fixture(scope="module")
def op():
    from diffast.ops.evaluate import triton as triton_evaluate

    def call(*arguments):
        with np.errstate(all="ignore"):  # NaN and infinite numbers are part of the tests
            triton_evaluate.evaluate(*arguments)

    return call


def test_random_programs(op):
    sizes = ((0, True), (1, False), (7, True), (40, True), (33, False))
    for seed, (size, by_counts) in enumerate(sizes):
        rng = np.random.default_rng(seed)
        problem = Problem(rng, size, 25, 3, by_counts, table=seed != 1, columns=1 + seed)
        problem.check(op, seed)


@pytest.mark.parametrize("every", (9, 2))
def test_every_instruction_is_that_of_numpy(op, every):
    """All of them are in one program: the interpreter's time goes by lines and blocks."""
    x = operands_of("where", np.random.default_rng(1))
    x = np.ascontiguousarray(x[::every])
    program = [("input", k) for k in range(3)]
    program += [(name, *range(len(OPERANDS[name]))) for name in NUMPY]
    got = numbers(op, program, x)[:, 3:]
    functions = {**NUMPY, **OWN}
    for name, made in zip(NUMPY, got.T, strict=True):
        with np.errstate(all="ignore"):
            wanted = torch.from_numpy(functions[name](*x.T[: len(OPERANDS[name])]))
        if name in LIBRARY:
            torch.testing.assert_close(made, wanted, rtol=1e-13, atol=1e-320, equal_nan=True)
        else:
            assert_same_bits(made.contiguous(), wanted, name)


def test_whole_numbers_are_rounded_and_kept_in_their_range(op):
    x = np.array([0.5, 1.5, -2.5, 2.0**53 + 2, 2.0**63, -(2.0**63), -(2.0**64), np.nan, np.inf])
    out = torch.full((len(x),), 9)
    run(op, [([("input", 0)], [(0, 0, 0)])], x[:, None], [out])
    highest, lowest = 2**63 - 1, -(2**63)
    assert out.tolist() == [0, 2, -2, 2**53 + 2, highest, lowest, lowest, lowest, highest]


def test_a_call_is_refused_in_the_words_of_the_other_backends(op):
    for arguments, text in REFUSED[::4]:
        with pytest.raises(RuntimeError) as error:
            op(*arguments)
        assert str(error.value).startswith(text)
