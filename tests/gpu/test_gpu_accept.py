"""On a real GPU: the loaded CUDA `accept` and Triton's do what is specified on the CPU.

    pytest tests/gpu

Nothing here runs on a machine without CUDA.
"""

import numpy as np
import pytest
import torch
from accept_cases import Problem, assert_equal_state
from device_watch import no_waits
from op_cases import FLOATS
from test_accept import plain_call

from diffast import ops
from diffast.ops.accept import reference as reference_accept

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRITON = pytest.param("triton", marks=pytest.mark.triton_variants)


@pytest.fixture(params=("loaded", TRITON))
def op(request):
    if request.param == "loaded":
        return ops.accept
    pytest.importorskip("triton")
    from diffast.ops.accept import triton as triton_accept

    return triton_accept.accept


def on_gpu(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, (list, tuple)):
        return [on_gpu(item) for item in value]
    return value


def check(op, problem, label):
    """Decisions that hang on a power's last bits are not among the random problems."""
    wanted, call = problem.copy(), on_gpu(problem.call)
    reference_accept.accept(*wanted.call)
    op(*call)
    got = problem.copy()
    got.control, got.counts, got.streams = (t.cpu() for t in call[7:10])
    got.targets = [t.cpu() for t in call[10]]
    assert_equal_state(got, wanted, label)


@pytest.mark.parametrize("slots", range(5))
def test_random_problems(op, slots):
    rng = np.random.default_rng(300 + slots)
    for i in range(60):
        check(op, Problem(rng, 200, slots=slots), (slots, i))


@pytest.mark.parametrize("size", (0, 1, 2, 3, 4, 7, 63, 1000, 4097, 65536))
def test_every_shape_and_dtype(op, size):
    rng = np.random.default_rng(size)
    for batch in (0, 1, 3, 70):
        for dtypes in [(d,) for d in FLOATS] + [FLOATS]:
            check(op, Problem(rng, batch, (size,), batch % 4, dtypes, moves=6), (batch, dtypes))


def test_moves_are_made_in_their_order(op):
    state, previous, new = (torch.full((64, 4097), v, device="cuda") for v in (1.0, 0.0, 2.0))
    for _ in range(10):
        state.fill_(1.0)
        previous.fill_(0.0)
        call = {k: on_gpu(v) for k, v in plain_call(64, moves=[1, 0, 1, 1, 1, 0]).items()}
        call |= {"sources": [state, new], "targets": [state, previous]}
        op(*call.values())
        assert (state == 2).all() and (previous == 1).all()


def test_it_never_waits_for_the_device_and_can_be_captured(op):
    call = on_gpu(list(plain_call(64).values()))
    op(*call)  # the first call with a rule may put it on the device
    with no_waits():
        op(*call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(*call)
    before = call[8][:, 2].clone()
    graph.replay()
    torch.cuda.synchronize()
    assert (call[8][:, 2] == before + 1).all()


def test_it_runs_on_the_current_stream(op):
    call = on_gpu(list(plain_call(64).values()))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        call[0][:, 0].fill_(9.0)  # a rejection, if the op waits for it
        op(*call)
    stream.synchronize()
    assert (call[8][:, 4] == 1).all()
