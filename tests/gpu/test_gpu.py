"""On a real GPU: the loaded CUDA ops and the Triton ops equal the reference on the CPU.

    pytest tests/gpu

Nothing here runs on a machine without CUDA.
"""

import itertools
import os

import numpy as np
import pytest
import torch
from op_cases import CLAMPS, FLOATS, Case, assert_same_bits, into, random_tensor

from diffast import ops
from diffast.ops.combine import reference
from diffast.ops.normal import reference as reference_normal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRITON = pytest.param("triton", marks=pytest.mark.triton_variants)

SIZES = (1, 2, 3, 4, 7, 63, 64, 512, 1000, 1028, 4097, 65536)
LOADED = {
    "combine": ops.combine_host,
    "combine.table": ops.combine_table,
    "combine.out": ops.combine_out,
    "combine.table_out": ops.combine_table_out,
    "normal.out": ops.normal_out,
}
SPECIFICATION = {
    "combine": reference.combine,
    "combine.table": reference.combine_table,
    "combine.out": reference.combine_out,
    "combine.table_out": reference.combine_table_out,
    "normal.out": reference_normal.normal_out,
}


@pytest.fixture(params=("loaded", TRITON))
def backend(request):
    """The ops by name: those that the dispatcher has for CUDA, or Triton's."""
    if request.param == "loaded":
        return LOADED
    pytest.importorskip("triton")
    from diffast.ops.combine import triton as combine
    from diffast.ops.normal import triton as normal

    return combine.IMPLEMENTATIONS | normal.IMPLEMENTATIONS


def on_gpu(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, (list, tuple)):
        return [on_gpu(item) for item in value]
    return value


def random_case(rng, shape, inputs=None, dtypes=None):
    inputs = inputs or int(rng.integers(1, 17))
    dtypes = dtypes or [FLOATS[i] for i in rng.integers(0, 3 + (rng.random() < 0.2), size=inputs)]
    xs = [random_tensor(rng, shape, dtype) for dtype in dtypes]
    clamp = CLAMPS[rng.integers(0, 3)]
    return Case(rng, xs, int(rng.integers(1, 9)), int(rng.integers(0, 3)), clamp)


def poisoned(shape, dtypes, offset=0):
    """Returns NaN outputs on the GPU, `offset` elements past an aligned address."""
    size = int(np.prod(shape))
    return [
        torch.full((size + 8,), torch.nan, dtype=dtype, device="cuda")[offset : offset + size].view(
            shape
        )
        for dtype in dtypes
    ]


def check_case(backend, case, dtypes, table, offset=0, label=""):
    """Compares outputs and status of one call with the reference's on the CPU."""
    name = "combine.table_out" if table else "combine.out"
    call = case.table_call if table else case.host_call
    shape = case.xs[0].shape
    dtypes = [dtypes[r % len(dtypes)] for r in range(case.rows - case.hidden)]
    outs = poisoned(shape, dtypes, offset)
    wanted = [torch.full(shape, torch.nan, dtype=dtype) for dtype in dtypes]
    status, flags = torch.full((shape[0],), -1, device="cuda"), torch.full((shape[0],), -1)
    backend[name](*into(on_gpu(call), outs, status))
    SPECIFICATION[name](*into(call, wanted, flags))
    for r, (out, row) in enumerate(zip(outs, wanted, strict=True)):
        assert_same_bits(out.cpu(), row, (label, r))
    assert torch.equal(status.cpu(), flags), label


def test_the_dispatcher_has_kernels_for_cuda():
    """A build that failed must not pass for one: Triton would serve CUDA in its place."""
    assert ops.backends()["cuda"]["backend"] == os.environ.get("DIFFAST_BACKEND", "cuda")


@pytest.mark.parametrize("size", SIZES)
def test_random_calls(backend, size):
    rng = np.random.default_rng(size)
    for turn in range(8):
        shape = (int(rng.integers(1, 5)), size)
        case = random_case(rng, shape)
        dtypes = [FLOATS[i] for i in rng.integers(0, 3 + (turn % 4 == 0), size=8)]
        label = (shape, [x.dtype for x in case.xs], case.rows, dtypes)
        check_case(backend, case, dtypes, turn % 2, turn % 3, label)


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs(backend, inputs):
    rng = np.random.default_rng(inputs)
    for shape, table in itertools.product(((2, 4096), (3, 1001)), (False, True)):
        case = random_case(rng, shape, inputs, [torch.float32] * inputs)
        check_case(backend, case, FLOATS[:1], table, label=(inputs, shape, table))


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (70000, 2), (5000, 516), (1, 4300000)))
def test_empty_many_and_long_samples(backend, shape):
    rng = np.random.default_rng(3)
    xs = [random_tensor(rng, shape), random_tensor(rng, shape, torch.bfloat16)]
    for table in (False, True):
        check_case(backend, Case(rng, xs, 2, 1), FLOATS[:1], table, label=(shape, table))


def test_returning_forms_and_the_default_ids(backend):
    rng = np.random.default_rng(4)
    for _ in range(8):
        case = random_case(rng, (3, 100), 3)
        case.ids = None
        for name, call in (("combine", case.host_call), ("combine.table", case.table_call)):
            got, wanted = backend[name](*on_gpu(call)), SPECIFICATION[name](*call)
            for a, b in zip(got, wanted, strict=True):
                assert_same_bits(a.cpu(), b, name)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_normal(backend, dtype, size):
    for i, scale in enumerate((1.0, -2.5, 1e-40)):
        ids = torch.tensor([0, -1, 2**40 + i, -(2**63)])
        call = (ids, (i - 1) * 2**62 - 7, i << 28 | 77, scale)
        (out,), wanted = poisoned((4, size), (dtype,), i), torch.empty(4, size, dtype=dtype)
        backend["normal.out"](*on_gpu(call), out)
        reference_normal.normal_out(*call, wanted)
        assert_same_bits(out.cpu(), wanted, (size, scale))


def test_sixteen_million_normals(backend):
    ids = torch.arange(4)
    (out,), wanted = poisoned((4, 2**22), (torch.float32,)), torch.empty(4, 2**22)
    backend["normal.out"](ids.cuda(), 12345, 1 << 28, 1.0, out)
    ops.normal_out(ids, 12345, 1 << 28, 1.0, wanted)  # C++, itself compared with the reference
    assert_same_bits(out.cpu(), wanted)


def test_status_keeps_the_first_stage(backend):
    rng = np.random.default_rng(5)
    for value, sample in itertools.product((torch.nan, torch.inf, 3e38), range(3)):
        case = Case(rng, [random_tensor(rng, (3, 1000)) for _ in range(2)], 1, 1)
        case.weights = [1.0, 1.0]
        for x in case.xs:
            x[sample, 999] = value
        check_case(backend, case, FLOATS[:1], False, label=(value, sample))
        status = torch.tensor([-5, 0, 7], device="cuda")
        outs = poisoned((3, 1000), FLOATS[:1])
        backend["combine.out"](*into(on_gpu(case.host_call), outs, status))
        before = [-5, 0, 7]
        if sample == 0:
            before[0] = case.stage % 2**26
        assert status.tolist() == before


def test_an_output_may_be_an_input(backend):
    rng = np.random.default_rng(6)
    for size in (3, 100, 1000, 2**20 + 1, 2**20):
        xs = [random_tensor(rng, (2, size), dtype) for dtype in FLOATS[:3]]
        case = Case(rng, xs, 3, 1)
        wanted = [torch.empty_like(x) for x in xs]
        ops.combine_out(*into(case.host_call, wanted, None))
        call = on_gpu(case.host_call)
        backend["combine.out"](*into(call, call[0], None))
        for out, row in zip(call[0], wanted, strict=True):
            assert_same_bits(out.cpu(), row, size)


def test_work_goes_to_the_current_stream(backend):
    """What the side stream still computes is what the op reads, and nothing waits for it."""
    stream = torch.cuda.Stream()
    x = torch.zeros(1, 2**22, device="cuda")
    (out,) = poisoned(x.shape, FLOATS[:1])
    backend["combine.out"]([x], [2.0], [out])  # compiled beforehand
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(3.0)
        backend["combine.out"]([x], [2.0], [out])
        assert not stream.query(), "the op waited for the device"
        result = out.clone()
    stream.synchronize()
    assert (result == 6.0).all()


def test_capture_in_a_graph(backend):
    rng = np.random.default_rng(7)
    case = Case(rng, [random_tensor(rng, (2, 1000)) for _ in range(2)], 2, 1, CLAMPS[1])
    call = on_gpu(case.host_call)
    outs, status = poisoned((2, 1000), FLOATS[:2]), torch.full((2,), -1, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        backend["combine.out"](*into(call, outs, status))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend["combine.out"](*into(call, outs, status))
    for _ in range(2):
        case.xs = [random_tensor(rng, (2, 1000)) for _ in range(2)]
        for x, new in zip(call[0], case.xs, strict=True):
            x.copy_(new)
        for out in outs:
            out.fill_(torch.nan)
        graph.replay()
        wanted = [torch.empty(2, 1000, dtype=dtype) for dtype in FLOATS[:2]]
        reference.combine_out(*into(case.host_call, wanted, None))
        for out, row in zip(outs, wanted, strict=True):
            assert_same_bits(out.cpu(), row)


def test_a_call_gives_the_same_bits_every_time(backend):
    rng = np.random.default_rng(8)
    case = Case(rng, [random_tensor(rng, (3, 2**18)) for _ in range(3)], 2, 2)
    call = on_gpu(case.table_call)
    first = backend["combine.table"](*call)
    for _ in range(20):
        for again, once in zip(backend["combine.table"](*call), first, strict=True):
            assert torch.equal(again.view(torch.int32), once.view(torch.int32))


def test_a_sample_is_the_same_alone_and_in_a_batch(backend):
    ids = torch.arange(300, device="cuda")
    (batch,), (alone,) = poisoned((300, 77), FLOATS[:1]), poisoned((1, 77), FLOATS[:1])
    backend["normal.out"](ids, 5, 1 << 28, 1.0, batch)
    for sample in (0, 7, 299):
        backend["normal.out"](ids[sample : sample + 1], 5, 1 << 28, 1.0, alone)
        assert torch.equal(alone[0], batch[sample])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_tensors_of_another_device_than_the_current(backend):
    x = torch.ones(2, 100, device="cuda:1")
    (out,) = backend["combine"]([x], [2.0], [], 0, 0, None, [])
    assert out.device == x.device
    assert (out == 2).all()
    assert torch.cuda.current_device() == 0
