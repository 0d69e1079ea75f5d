"""`evaluate` on a real GPU: the loaded kernel and Triton's equal numpy on the CPU."""

import numpy as np
import pytest
import torch
from evaluate_cases import EXACT, LIBRARY, NUMPY, OWN, Problem
from test_evaluate import numbers, operands_of, run

from diffast import ops
from diffast.ops.schema import OPERANDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def moved(value):
    """Returns what a call is given, on the GPU."""
    if isinstance(value, list):
        return [moved(item) for item in value]
    return value.cuda() if isinstance(value, torch.Tensor) else value


@pytest.fixture(params=("loaded", "triton"))
def evaluate(request):
    """The op on CPU tensors: it moves them, and copies the outs back."""
    function = ops.evaluate
    if request.param == "triton":
        pytest.importorskip("triton")
        from diffast.ops.evaluate import triton as triton_evaluate

        function = triton_evaluate.evaluate

    def call(*arguments):
        there = [moved(argument) for argument in arguments]
        function(*there)
        for here, out in zip(arguments[-1], there[-1], strict=True):
            here.copy_(out)

    call.on_device = function
    return call


def test_random_programs(evaluate):
    for seed, size in enumerate((0, 1, 31, 32, 33, 64, 1000)):
        rng = np.random.default_rng(seed)
        for by_counts in (True, False):
            Problem(rng, size, 100, 4, by_counts, EXACT).check(evaluate, (size, by_counts))


@pytest.mark.parametrize("length", (5, 64, 65, 1500))
def test_long_programs(evaluate, length):
    Problem(np.random.default_rng(length), 70, length).check(evaluate, length)


def test_every_instruction_is_that_of_numpy(evaluate):
    x = operands_of("where", np.random.default_rng(1))
    program = [("input", k) for k in range(3)]
    program += [(name, *range(len(OPERANDS[name]))) for name in NUMPY]
    got = numbers(evaluate, program, x)[:, 3:]
    for name, made in zip(NUMPY, got.T, strict=True):
        with np.errstate(all="ignore"):
            wanted = torch.from_numpy({**NUMPY, **OWN}[name](*x.T[: len(OPERANDS[name])]))
        tolerance = {"rtol": 1e-13, "atol": 1e-320} if name in LIBRARY else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(made, wanted, **tolerance, equal_nan=True, msg=name)


def test_numbers_of_programs_that_there_are_not_run_nothing(evaluate):
    """On the device alone; on the CPU they are refused."""
    counts = torch.tensor([[0], [-1], [1], [2], [2**40]])
    out = torch.full((5,), -5.0, dtype=torch.float64)
    programs = [([("constant", 7.0)], [(0, 0, 0)]), ([("constant", 8.0)], [(0, 0, 0)])]
    run(evaluate, programs, torch.zeros(5, 0, dtype=torch.float64), [out], counts=counts)
    assert out.tolist() == [7.0, -5.0, 8.0, -5.0, -5.0]


def test_capture_in_a_graph(evaluate):
    """New inputs and program numbers in the same memory are a new run of the same graph."""
    first, second = (Problem(np.random.default_rng(seed), 40) for seed in (1, 2))
    second.programs, second.edges, second.pieces = first.programs, first.edges, first.pieces
    call = moved(list(first.call(first.outs()[0])))
    evaluate.on_device(*call)  # compiled beforehand
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        evaluate.on_device(*call)
    for problem in (first, second):
        wanted, _ = problem.outs()
        problem.wanted(wanted)
        for out, blank in zip(call[-1], problem.outs()[0], strict=True):
            out.copy_(blank)
        call[4].copy_(torch.from_numpy(problem.inputs))
        call[5].copy_(torch.from_numpy(problem.counts))
        graph.replay()
        for out, want in zip(call[-1], wanted, strict=True):
            torch.testing.assert_close(out.cpu(), want, rtol=0, atol=0, equal_nan=True)


def test_another_stream_and_no_wait(evaluate):
    problem = Problem(np.random.default_rng(3), 64)
    outs, _ = problem.outs()
    call = moved(list(problem.call(outs)))
    evaluate.on_device(*call)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        evaluate.on_device(*call)
    stream.synchronize()
    wanted, _ = problem.outs()
    problem.wanted(wanted)
    for out, want in zip(call[-1], wanted, strict=True):
        torch.testing.assert_close(out.cpu(), want, rtol=0, atol=0, equal_nan=True)
