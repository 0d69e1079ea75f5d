"""`brownian` on a real GPU: the loaded kernel and Triton's equal the reference on the CPU."""

import itertools

import numpy as np
import pytest
import torch
from brownian_cases import DEPTHS, DTYPES, nodes_of, streams_of
from op_cases import assert_same_bits

from diffast import ops
from diffast.ops.schema import MAX_DEPTH

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRITON = pytest.param("triton", marks=pytest.mark.triton_variants)


@pytest.fixture(params=("loaded", TRITON))
def brownian_out(request):
    if request.param == "loaded":
        return ops.brownian_out
    pytest.importorskip("triton")
    from diffast.ops.brownian import triton as triton_brownian

    return triton_brownian.brownian_out


def check(brownian_out, shape, dtype, depth, known, with_value, offset=0):
    """Compares with the C++ op on the CPU, itself compared with the reference."""
    rng = np.random.default_rng(depth + shape[1])
    samples, numbers = shape[0], shape[0] * shape[1]
    weights = torch.from_numpy(rng.standard_normal((samples, 2)))
    call = (streams_of(samples, depth), nodes_of(depth, samples, rng), weights)
    last = torch.from_numpy(rng.standard_normal(shape)).to(dtype) if known else None

    def new(device):
        rows = torch.full((2, numbers + 8), torch.nan, dtype=dtype, device=device)
        outs = [row[offset : offset + numbers].view(shape) for row in rows]
        return outs if with_value else [outs[0], None]

    here, there = new("cpu"), new("cuda")
    ops.brownian_out(*call, depth, last, *here)
    moved = [t.cuda() for t in call]
    brownian_out(*moved, depth, None if last is None else last.cuda(), *there)
    for a, b in zip(there, here, strict=True):
        if b is not None:
            assert_same_bits(a.cpu(), b, (shape, dtype, depth, known, offset))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", (1, 3, 4, 7, 64, 1000, 4097, 65536))
def test_shapes(brownian_out, size, dtype):
    for batch, known, with_value, offset in itertools.product(
        (1, 5), (False, True), (False, True), (0, 1)
    ):
        check(brownian_out, (batch, size), dtype, DEPTHS[size % 7], known, with_value, offset)


def test_every_depth(brownian_out):
    for depth in range(1, MAX_DEPTH + 1):
        check(brownian_out, (40, 512), torch.float32, depth, False, True)


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (70000, 2), (1, 4300000)))
def test_empty_many_and_long_samples(brownian_out, shape):
    check(brownian_out, shape, torch.float32, 11, False, True)


def test_capture_in_a_graph(brownian_out):
    """New nodes in the same memory are a new step of the same graph."""
    streams, weights = streams_of(2).cuda(), torch.ones(2, 2, dtype=torch.float64, device="cuda")
    nodes = torch.tensor([[3, 9], [-1, 2000]], device="cuda")
    outs = torch.empty(2, 2, 1000, device="cuda")
    brownian_out(streams, nodes, weights, 11, None, *outs)  # compiled beforehand
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        brownian_out(streams, nodes, weights, 11, None, *outs)
    nodes.copy_(torch.tensor([[9, 1024], [2000, 1]]))
    graph.replay()
    wanted = torch.empty(2, 2, 1000)
    ops.brownian_out(streams.cpu(), nodes.cpu(), weights.cpu(), 11, None, *wanted)
    assert_same_bits(outs.cpu(), wanted)
