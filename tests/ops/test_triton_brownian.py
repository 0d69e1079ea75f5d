"""`brownian` in the interpreter of Triton equals the reference; see test_triton.py."""

import itertools
import os

import pytest
import torch
from brownian_cases import LAST, calls, check_call

from diffast.ops.schema import MAX_DEPTH

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="kernels are compiled: see test_gpu_brownian.py",
)


@pytest.fixture(scope="module")
def ops():
    from diffast.ops.brownian import triton as triton_brownian

    return triton_brownian


def test_every_shape(ops):
    for call in calls((0, 1, 7, 63, 129, 1000), (0, 1, 3)):
        check_call(ops.brownian_out, *call)


@pytest.mark.parametrize("last", LAST)
def test_every_depth_and_kind_of_node(ops, last):
    for depth in (1, 2, 3, 5, 11, MAX_DEPTH):
        check_call(ops.brownian_out, (4, 5), torch.float32, depth, last, bool(depth % 2), depth)


def test_float64_is_served_by_the_reference(ops):
    for last, with_value in itertools.product(LAST, (True, False)):
        check_call(ops.brownian_out, (3, 9), torch.float64, 11, last, with_value, 5)


def test_a_call_is_refused_in_the_words_of_the_other_backends(ops):
    x = torch.zeros(1, 4)
    nodes = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="brownian: streams is int64 .* is needed"):
        ops.brownian_out(nodes, nodes, nodes.double(), 11, None, x)


def test_implementations_are_those_that_have_a_kernel(ops):
    assert set(ops.IMPLEMENTATIONS) == {"brownian.out"}
