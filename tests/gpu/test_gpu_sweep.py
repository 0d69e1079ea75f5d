"""On a real GPU: `sweep` and `gram` of the loaded CUDA ops and of Triton against the reference."""

import itertools

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits
from test_gpu import on_gpu
from walk_cases import Walks, assert_close_sums, check_gram, check_negative_zeros, gram_case

from diffast import ops
from diffast.ops.sweep import reference as reference_sweep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
TRITON = pytest.param("triton", marks=pytest.mark.triton_variants)


@pytest.fixture(params=("loaded", TRITON))
def backend(request):
    """Both ops: those that the dispatcher has for CUDA, or Triton's."""
    if request.param == "loaded":
        return {"sweep": ops.sweep, "gram": ops.gram}
    pytest.importorskip("triton")
    from diffast.ops.gram import triton as triton_gram
    from diffast.ops.sweep import triton as triton_sweep

    return triton_gram.IMPLEMENTATIONS | triton_sweep.IMPLEMENTATIONS


@pytest.mark.parametrize("entries", range(8))
def test_every_option(backend, entries):
    rng = np.random.default_rng(entries)
    flags = (False, True)
    for i, (parts, clamp, outputs, noises) in enumerate(
        itertools.product(flags, flags, range(3), range(3))
    ):
        options = {"parts": parts, "clamp": clamp, "noises": noises, "in_place": i % 4 == 1}
        options |= {"slopes": i % 7 != 3, "norms": i % 5 != 2}
        options |= {"outputs": [FLOATS[(entries + i + k) % 3] for k in range(outputs)]}
        if i % 6 == 5:
            options["dtype"] = torch.float64
        case = Walks(rng, (1028, 1001)[i % 2], 2, entries=entries, **options)
        case.check(backend["sweep"], options, "cuda")


@pytest.mark.parametrize("size", (0, 1, 3, 4, 7, 63, 64, 128, 132, 1000, 4097, 65536, 65540))
def test_every_size(backend, size):
    rng = np.random.default_rng(1)
    for jobs, length in ((0, 3), (1, 0), (1, 5), (9, 3), (2, 7)):
        for outputs in (FLOATS[:1], FLOATS[1:2]):
            case = Walks(rng, size, jobs, length, noises=1, outputs=outputs)
            case.check(backend["sweep"], (size, jobs, length), "cuda")


def test_walks_of_every_length(backend):
    """Around the stages requested ahead, and around those whose weights are together in a block."""
    rng = np.random.default_rng(2)
    for length, entries, noises in itertools.product(
        (1, 2, 4, 5, 32, 33, 65, 300), (0, 1, 2), (0, 1)
    ):
        case = Walks(rng, 516, 3, length, entries=entries, noises=noises)
        case.check(backend["sweep"], (length, entries, noises), "cuda")


def test_many_jobs(backend):
    case = Walks(np.random.default_rng(3), 5, 5000, 2)
    case.check(backend["sweep"], "jobs", "cuda")


def test_missing_columns_add_nothing(backend):
    check_negative_zeros(backend["sweep"], "cuda")


def test_limits_beyond_float32(backend):
    case = Walks(np.random.default_rng(4), 35, clamp=True)
    for limits in ([-1e300, 0.1], [-0.0, np.inf], [0.3, 0.3]):
        case.clamp = limits
        case.check(backend["sweep"], limits, "cuda")


def test_where_nothing_moves_no_change_is_seen(backend):
    rng = np.random.default_rng(5)
    for entries in (0, 2):
        options = {"entries": entries, "noises": 1, "full": True}
        case = Walks(rng, 1000, 2, 5, **options).settled()
        case.slopes[:] = np.nan
        points, states, norms = case.check(backend["sweep"], entries, "cuda")
        assert (norms[:, :-1] == 0).all()
        case.slopes = None
        wanted = case.run(reference_sweep.sweep)
        assert_same_bits(points, wanted[0])
        assert_same_bits(states, wanted[1])


def test_norms_are_the_same_in_any_call_and_every_time(backend):
    rng = np.random.default_rng(6)
    for size in (2, 700, 70_000):
        case = Walks(rng, size, 3, 5)
        wanted = case.run(backend["sweep"], "cuda")[2]
        for _ in range(5):
            assert_same_bits(case.run(backend["sweep"], "cuda")[2], wanted, size)
        for j in range(3):
            alone = case.job(j).run(backend["sweep"], "cuda")[2]
            assert_same_bits(alone, wanted[j : j + 1], (size, j))


def test_capture_in_a_graph(backend):
    """The scratch belongs to the graph's memory, and nothing waits for the device."""
    case = Walks(np.random.default_rng(7), 5000, 3, 7)
    wanted = case.run(reference_sweep.sweep)
    (x, points, states, norms), _ = case.fresh("cuda")
    call, begun = case.call(x, points, states, norms, "cuda"), states.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        backend["sweep"](*call)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend["sweep"](*call)
    for _ in range(3):
        states.copy_(begun)
        points.fill_(torch.nan)
        norms.fill_(torch.nan)
        graph.replay()
        assert_same_bits(points.cpu(), wanted[0])
        assert_same_bits(states.cpu(), wanted[1])
        assert_close_sums(norms.cpu(), wanted[2], "graph")


@pytest.mark.parametrize("inputs", range(1, 9))
def test_gram_of_every_number_of_inputs(backend, inputs):
    rng = np.random.default_rng(inputs)
    for rows, dtypes, size in itertools.product(range(1, 5), (FLOATS[:3], FLOATS), (1028, 1001)):
        kinds = [dtypes[(k + rows) % len(dtypes)] for k in range(inputs)]
        xs, weights = gram_case(rng, kinds, (3, size), rows)
        check_gram(backend["gram"], xs, weights, (inputs, rows, dtypes), "cuda")


@pytest.mark.parametrize(
    "shape", ((0, 4), (3, 0), (1, 1), (3, 63), (20, 132), (70_000, 2), (4099, 516), (1, 4_300_000))
)
def test_gram_of_every_shape(backend, shape):
    xs, weights = gram_case(np.random.default_rng(8), FLOATS[:2], shape, 2)
    check_gram(backend["gram"], xs, weights, shape, "cuda")


def test_gram_of_a_sample_is_the_same_in_any_batch_and_every_time(backend):
    rng = np.random.default_rng(9)
    for size in (2, 700, 50_000):
        xs, weights = gram_case(rng, FLOATS[:2], (40, size), 3)
        sums = check_gram(backend["gram"], xs, weights, size, "cuda")
        for low, high in ((0, 1), (3, 17), (39, 40), (0, 40)):
            part = torch.empty(high - low, 6, dtype=torch.float64, device="cuda")
            backend["gram"](on_gpu([x[low:high] for x in xs]), weights[low:high].cuda(), part)
            assert_same_bits(part.cpu(), sums[low:high], (size, low))
