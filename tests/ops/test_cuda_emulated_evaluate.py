"""The CUDA source of `evaluate`, run on the host thread by thread, equals numpy."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluate_cases import EXACT, LIBRARY, Problem
from test_cuda_emulated import load
from test_evaluate import run

from diffast.ops.schema import MAX_REGISTERS


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The op, and `reset(seed)`: launches, blocks, threads, barriers; another order of threads."""
    ops, reset, definitions = load(tmp_path_factory, "emulate_evaluate", ("evaluate",))
    op = ops.evaluate.default
    yield SimpleNamespace(op=op, reset=reset, library=definitions)


def test_random_programs(emulated):
    """Any order of threads, programs longer than what fits into shared memory at a time."""
    sizes = itertools.product((0, 1, 7, 31, 32, 33, 100), (True, False))
    for seed, (size, by_counts) in enumerate(sizes):
        rng = np.random.default_rng(seed)
        for names in (EXACT, (*EXACT, *LIBRARY)):
            emulated.reset(seed)
            length = (20, 128, 100, 300)[seed % 4]
            problem = Problem(rng, size, length, 4, by_counts, names, seed % 5 > 0, 1 + seed % 6)
            problem.check(emulated.op, (seed, names))


def test_a_block_has_a_sample_a_thread_and_half_of_them_with_many_registers(emulated):
    for registers, blocks in ((64, 4), (160, 4), (161, 7), (MAX_REGISTERS, 7)):
        emulated.reset()
        problem = Problem(np.random.default_rng(registers), 100)

        def op(*call, registers=registers):
            *call, held, outs = call
            assert held <= registers
            emulated.op(*call, registers, outs)

        problem.check(op, registers)
        assert emulated.reset()[:3] == [1, blocks, blocks * 32]


def test_blocks_walk_over_many_samples(emulated):
    """At most 4,096 blocks are launched, which is fewer than there are sixteens of samples."""
    emulated.reset()
    problem = Problem(np.random.default_rng(0), 70_000, 12, 2, columns=2)

    def op(*call):
        *call, _, outs = call
        emulated.op(*call, MAX_REGISTERS, outs)

    problem.check(op)
    launches, blocks, threads, _ = emulated.reset()
    assert launches == 1 and blocks <= 4096 < 70_000 / 16 and threads == 32 * blocks


def test_no_samples_launch_nothing(emulated):
    emulated.reset()
    Problem(np.random.default_rng(0), 0).check(emulated.op)
    assert emulated.reset()[0] == 0


@pytest.mark.parametrize("size", (3, 40))
def test_numbers_of_programs_that_there_are_not_run_nothing(emulated, size):
    """On a device they cannot be refused without a wait."""
    counts = torch.tensor([0, -1, 1, 2, 2**40] * 8)[:size, None].contiguous()
    out = torch.full((size,), -5.0, dtype=torch.float64)
    programs = [([("constant", 7.0)], [(0, 0, 0)]), ([("constant", 8.0)], [(0, 0, 0)])]
    run(emulated.op, programs, torch.zeros(size, 0, dtype=torch.float64), [out], counts=counts)
    assert out.tolist() == [{0: 7.0, 1: 8.0}.get(number, -5.0) for (number,) in counts.tolist()]
