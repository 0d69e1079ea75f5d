"""The CUDA source of `accept`, run on the host thread by thread, does what is specified."""

import ctypes
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import test_cuda_emulated
import torch
from accept_cases import Problem
from op_cases import FLOATS
from test_accept import plain_call

from diffast.ops.schema import SCHEMAS


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The op, and `reset(seed)`: launches and bytes a copy moved at a time, another order."""
    library = test_cuda_emulated.build(tmp_path_factory, "emulate_accept.cpp")
    definitions = torch.library.Library("diffast_emulated_accept", "DEF")
    definitions.define("accept" + SCHEMAS["accept"])
    torch.ops.load_library(str(library))
    counts = (ctypes.c_int64 * 2)()
    function = ctypes.CDLL(str(library)).emulated_accept_reset

    def reset(seed=0):
        function(ctypes.c_uint64(seed), counts)
        return list(counts)

    op = torch.ops.diffast_emulated_accept.accept.default
    yield SimpleNamespace(op=op, reset=reset, library=definitions)


@pytest.mark.parametrize("slots", range(5))
def test_random_problems(emulated, slots):
    """The same libm, so even the control numbers are the same bits."""
    rng = np.random.default_rng(100 + slots)
    for i in range(60):
        emulated.reset(i)
        Problem(rng, 50, slots=slots, moves=i % 6).check(emulated.op, (slots, i), tolerance=0)


@pytest.mark.parametrize("size", (0, 1, 2, 3, 4, 7, 63, 64, 1000, 4097))
def test_every_shape(emulated, size):
    for batch, offset, dtypes in itertools.product(
        (0, 3, 70), (0, 8), [(d,) for d in FLOATS] + [FLOATS]
    ):
        rng = np.random.default_rng(size + batch)
        problem = Problem(rng, batch, (size,), batch % 4, dtypes, offset, moves=6)
        problem.check(emulated.op, (batch, size, offset, dtypes))


@pytest.mark.parametrize(
    ("dtype", "size", "offset", "bytes_at_a_time"),
    (
        (torch.float32, 4, 0, 16),
        (torch.float32, 4, 16, 16),
        (torch.float32, 4, 4, 4),
        (torch.float32, 6, 0, 4),
        (torch.float64, 6, 0, 16),
        (torch.float64, 3, 0, 4),
        (torch.bfloat16, 8, 0, 16),
        (torch.bfloat16, 8, 2, 2),
        (torch.float16, 6, 0, 4),
        (torch.float16, 5, 0, 2),
    ),
)
def test_loads_are_as_wide_as_all_rows_allow(emulated, dtype, size, offset, bytes_at_a_time):
    """The emulator stops at an access that a GPU would not make."""
    emulated.reset()
    problem = Problem(np.random.default_rng(3), 5, (size,), 1, (dtype,), offset)
    problem.check(emulated.op, dtype)
    assert emulated.reset() == [2, bytes_at_a_time]


def test_nothing_to_copy_is_one_launch_and_no_samples_are_none(emulated):
    emulated.reset()
    Problem(np.random.default_rng(4), 9, moves=0).check(emulated.op)
    assert emulated.reset() == [1, 0]
    Problem(np.random.default_rng(4), 9, (0,), slots=2).check(emulated.op)
    assert emulated.reset() == [1, 0]
    Problem(np.random.default_rng(4), 0, slots=2).check(emulated.op)
    assert emulated.reset() == [0, 0]


def test_many_samples_and_long_rows(emulated):
    """More samples, and more units, than one grid has blocks."""
    Problem(np.random.default_rng(5), 70_001, (1,), slots=1).check(emulated.op, "samples")
    Problem(np.random.default_rng(6), 4100, (1030,), slots=1).check(emulated.op, "rows")
    Problem(np.random.default_rng(7), 1, (4096 * 256 + 37,), slots=1).check(emulated.op, "units")


def test_moves_are_made_in_their_order_whatever_the_order_of_threads(emulated):
    for seed, size in itertools.product(range(4), (5, 64)):
        emulated.reset(seed)
        state, previous, new = (torch.full((3, size), value) for value in (1.0, 0.0, 2.0))
        call = plain_call(3, moves=[1, 0, 1, 1, 1, 0])
        call |= {"sources": [state, new], "targets": [state, previous]}
        call["counts"][1, 0] = 1
        emulated.op(*call.values())
        assert (previous == torch.tensor([[1.0], [0.0], [1.0]])).all()
        assert (state == torch.tensor([[2.0], [1.0], [2.0]])).all()
