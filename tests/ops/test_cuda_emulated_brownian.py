"""The CUDA source of `brownian`, run on the host thread by thread, equals the reference."""

from types import SimpleNamespace

import pytest
import torch
from brownian_cases import DTYPES, LAST, calls, check_call
from test_cuda_emulated import load

from diffast.ops.schema import MAX_DEPTH


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The op, and `reset(seed)` for another order of threads."""
    ops, reset, definitions = load(tmp_path_factory, "emulate_brownian", ("brownian.out",))
    out = ops.brownian.out
    yield SimpleNamespace(out=out, reset=reset, library=definitions)


@pytest.mark.parametrize("size", (0, 1, 2, 3, 4, 7, 63, 64, 512, 1000, 1028, 4097))
def test_every_shape(emulated, size):
    batches = (0, 1, 3) + (70,) * (size == 7)  # 70 samples share blocks
    for i, call in enumerate(calls((size,), batches, (0, 8, 16))):
        emulated.reset(i)
        check_call(emulated.out, *call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", LAST)
def test_every_depth_and_kind_of_node(emulated, dtype, last):
    for depth in range(1, MAX_DEPTH + 1):
        check_call(emulated.out, (6, 8), dtype, depth, last, bool(depth % 2), depth)


def test_blocks_walk_over_many_samples_and_groups(emulated):
    """More samples, and more groups, than one grid has blocks."""
    for shape in ((1, (4096 * 256 + 37) * 4), (4099 * 256, 1)):
        emulated.reset()
        samples = shape[0]
        nodes = torch.tensor([[-1, 1]]).repeat(samples, 1)
        streams = torch.tensor([[1, 0, 0]]).repeat(samples, 1)
        streams[:, 1] = torch.arange(samples)
        weights = torch.tensor([[2.0, 1.0]], dtype=torch.float64).repeat(samples, 1)
        outs = torch.full((2, *shape), torch.nan)
        emulated.out(streams, nodes, weights, 1, None, *outs)
        launches, blocks, _, _ = emulated.reset()
        assert launches == 1 and blocks <= 4096
        wanted = torch.full((2, *shape), torch.nan)
        torch.ops.diffast.brownian.out(streams, nodes, weights, 1, None, *wanted)
        assert torch.equal(outs, wanted)


def test_small_samples_share_a_block(emulated):
    emulated.reset()
    check_call(emulated.out, (300, 2), torch.float32, 3, "no last", True, 1)
    assert emulated.reset()[1:3] == [2, 512]
