"""On a real GPU: `combine_error` of the loaded CUDA ops and of Triton against the reference."""

import itertools

import numpy as np
import pytest
import torch
from error_cases import VARIANTS, ErrorCase, assert_close_norms, tensors
from op_cases import FLOATS, assert_same_bits
from test_gpu import on_gpu, poisoned

from diffast import ops
from diffast.ops.combine_error import reference as reference_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRITON = pytest.param("triton", marks=pytest.mark.triton_variants)

LOADED = {
    "combine_error": torch.ops.diffast.combine_error.default,
    "combine_error.out": ops.combine_error_out,
}


@pytest.fixture(params=("loaded", TRITON))
def backend(request):
    """Both forms of the op: those that the dispatcher has for CUDA, or Triton's."""
    if request.param == "loaded":
        return LOADED
    pytest.importorskip("triton")
    from diffast.ops.combine_error import triton as triton_error

    return triton_error.IMPLEMENTATIONS


def check(backend, case, dtypes, label, offset=0):
    """Compares outputs, norms and status with the reference's on the CPU; returns the norms."""
    shape = case.xs[0].shape
    dtypes = [dtypes[r % len(dtypes)] for r in range(case.stored)]
    outs = poisoned(shape, dtypes, offset)
    wanted = [torch.full(shape, torch.nan, dtype=dtype) for dtype in dtypes]
    norms = torch.full((shape[0], 2), torch.nan, dtype=torch.float64)
    found, status, flags = norms.cuda(), torch.full((shape[0],), -1), torch.full((shape[0],), -1)
    status = status.cuda()
    backend["combine_error.out"](*on_gpu(case.call), outs, found, status)
    reference_error.combine_error_out(*case.call, wanted, norms, flags)
    for r, (out, row) in enumerate(zip(outs, wanted, strict=True)):
        assert_same_bits(out.cpu(), row, (label, r))
    assert_close_norms(found.cpu(), norms, label)
    assert torch.equal(status.cpu(), flags), label
    return found.cpu()


@pytest.mark.parametrize("size", (1, 2, 3, 4, 7, 63, 64, 512, 1000, 1024, 1028, 4097, 65536))
def test_random_calls(backend, size):
    rng = np.random.default_rng(size)
    for turn in range(12):
        variant = VARIANTS[int(rng.integers(len(VARIANTS)))]
        inputs = int(rng.integers(1, 17))
        dtypes = [FLOATS[i] for i in rng.integers(0, 3 + (turn % 4 == 0), size=inputs)]
        case = ErrorCase(rng, tensors(rng, dtypes, (1 + turn % 4, size)), *variant)
        outs = [FLOATS[i] for i in rng.integers(0, 3 + (turn % 5 == 0), size=8)]
        check(backend, case, outs, (size, variant, dtypes), turn % 3)


@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs(backend, inputs):
    rng = np.random.default_rng(inputs)
    for shape, form in itertools.product(((2, 4096), (3, 1001)), range(3)):
        xs = tensors(rng, FLOATS[:1] * inputs, shape)
        case = ErrorCase(rng, xs, 2, form, form % 2, True, form, form == 2)
        check(backend, case, FLOATS[:1], (inputs, shape, form))


@pytest.mark.parametrize("shape", ((0, 4), (3, 0), (70000, 2), (5000, 516), (1, 4300000)))
def test_empty_many_and_long_samples(backend, shape):
    rng = np.random.default_rng(3)
    for variant in ((2, 0, 0, True), (1, 1, 1, False, 1)):
        case = ErrorCase(rng, tensors(rng, (FLOATS[0], FLOATS[2]), shape), *variant)
        check(backend, case, FLOATS[:1], (shape, variant))


def test_a_sample_has_the_same_norms_in_any_batch_and_every_time(backend):
    rng = np.random.default_rng(4)
    for size in (2, 700, 1024, 50_000):
        xs = tensors(rng, FLOATS[:2], (300 if size < 1000 else 9, size))
        case = ErrorCase(rng, xs, 1, 1, 0, True)
        wanted = backend["combine_error"](*on_gpu(case.call))[-1]
        for _ in range(10):
            again = backend["combine_error"](*on_gpu(case.call))[-1]
            assert_same_bits(again.cpu(), wanted.cpu(), size)
        for b in (0, 1, len(wanted) - 1):
            alone = backend["combine_error"](*on_gpu(case.samples(slice(b, b + 1))))[-1]
            assert_same_bits(alone.cpu(), wanted[b : b + 1].cpu(), (size, b))


def test_an_output_may_be_an_input(backend):
    rng = np.random.default_rng(5)
    for size in (3, 1000, 2**20):
        case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 3, (2, size)), 2, 1, 0, True)
        wanted = reference_error.combine_error(*case.call)
        call = on_gpu(case.call)
        norms = torch.empty(2, 2, dtype=torch.float64, device="cuda")
        backend["combine_error.out"](*call, call[0][1:], norms, None)
        for out, row in zip(call[0][1:], wanted[:-1], strict=True):
            assert_same_bits(out.cpu(), row, size)
        assert_close_norms(norms.cpu(), wanted[-1], size)


def test_a_bad_element_spoils_its_own_sample_only(backend):
    rng = np.random.default_rng(6)
    for value, form, norm in itertools.product((np.nan, np.inf), range(3), range(2)):
        case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 2, (3, 5000)), 1, form, norm, True)
        case.xs[0][1, 4999] = value
        norms = check(backend, case, FLOATS[:1], (value, form, norm))
        assert norms.isfinite().all(dim=1).tolist() == [True, False, True]


def test_capture_in_a_graph(backend):
    """The scratch of the partial sums belongs to the graph's memory."""
    rng = np.random.default_rng(7)
    case = ErrorCase(rng, tensors(rng, FLOATS[:1] * 3, (2, 5000)), 1, 1)
    call = on_gpu(case.call)
    outs, norms = poisoned((2, 5000), FLOATS[:1]), torch.zeros(2, 2, device="cuda").double()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        backend["combine_error.out"](*call, outs, norms, None)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend["combine_error.out"](*call, outs, norms, None)
    for _ in range(3):
        case.xs = tensors(rng, FLOATS[:1] * 3, (2, 5000))
        for x, new in zip(call[0], case.xs, strict=True):
            x.copy_(new)
        norms.fill_(torch.nan)
        graph.replay()
        wanted = reference_error.combine_error(*case.call)
        assert_same_bits(outs[0].cpu(), wanted[0])
        assert_close_norms(norms.cpu(), wanted[-1], "graph")
