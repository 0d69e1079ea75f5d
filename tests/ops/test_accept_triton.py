"""`accept` in Triton, in its interpreter on CPU tensors, does what is specified."""

import os

import numpy as np
import pytest
import torch
from accept_cases import INF, Problem, flags, random_state, rule
from op_cases import FLOATS
from test_accept import plain_call
from test_accept_errors import REFUSED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="kernels are compiled: see test_accept_gpu.py"
)


@pytest.fixture(scope="module")
def op():
    from diffast.ops.accept import triton as triton_accept

    def call(*arguments):
        with np.errstate(all="ignore"):  # errors of 0, infinite and none are part of the tests
            triton_accept.accept(*arguments)

    return call


@pytest.mark.parametrize("slots", range(5))
def test_random_problems(op, slots):
    rng = np.random.default_rng(200 + slots)
    for i in range(12):
        problem = Problem(rng, 300, slots=slots, moves=0)
        problem.memory = []
        problem.sources, problem.targets, problem.buffers = [], [], []
        problem.control = problem.control[:, :6].contiguous()
        problem.check(op, (slots, i))
        Problem(rng, 12, slots=slots, moves=i % 3).check(op, (slots, i))


@pytest.mark.parametrize("slots", (0, 1, 4))
def test_every_combination_of_flags(op, slots):
    rng = np.random.default_rng(7)
    for switches in range(32):
        bits = [switches >> k & 1 for k in range(5)]
        problem = Problem(rng, 100, slots=slots, moves=0, shape=(0,))
        problem.flags = [1 + switches % 3, switches % 2, *bits, (1000, 3)[switches % 2]]
        state = random_state(rng, 100, slots, problem.flags[0])
        problem.norms, problem.status, problem.control, problem.counts, problem.streams = state
        problem.check(op, (slots, switches))


@pytest.mark.parametrize("size", (0, 1, 7, 63, 128, 1000, 4097))
def test_every_shape(op, size):
    for batch in (0, 1, 3):
        rng = np.random.default_rng(size + batch)
        Problem(rng, batch, (size,), 2, FLOATS[batch : batch + 1], moves=3).check(op, (batch, size))


def test_dtypes_side_by_side_and_more_samples_than_a_block(op):
    rng = np.random.default_rng(2)
    Problem(rng, 130, (3,), 3, FLOATS, moves=8).check(op, "dtypes")


def test_powers_and_arctangents_are_those_of_the_library(op):
    """Through the controller by factor: errors from 1e-30 to 1e30 and the step they lead to."""
    for power, numbers in ((0.81, {}), (-0.7, {}), (0.0, {}), (1e-3, {"safety": 0.3})):
        errors = torch.logspace(-30, 30, 601, dtype=torch.float64)
        for switches in ({}, {"by_factor": 1}):
            problem = Problem(np.random.default_rng(1), 601, moves=0)
            call = plain_call(601)
            call["norms"][:, 0] = errors
            call["control"][:, 2] = 1e300
            call["rule"] = rule(
                error_power=power, least=0, most=INF, reject_least=0, reject_most=INF, **numbers
            )
            call["flags"] = flags(always=1, **switches)
            for name, value in call.items():
                setattr(problem, name, value)
            problem.buffers = []
            problem.check(op, (power, switches))


def test_moves_are_made_in_their_order(op):
    state, previous, new = (torch.full((3, 5), value) for value in (1.0, 0.0, 2.0))
    call = plain_call(3, moves=[1, 0, 1, 1, 1, 0])
    call |= {"sources": [state, new], "targets": [state, previous]}
    call["counts"][1, 0] = 1
    op(*call.values())
    assert previous[:, 0].tolist() == [1, 0, 1]
    assert state[:, 0].tolist() == [2, 1, 2]


def test_a_call_is_refused_in_the_words_of_the_other_backends(op):
    for arguments, text in REFUSED[::5]:
        with pytest.raises(RuntimeError) as error:
            op(*arguments)
        assert str(error.value) == text
