"""`brownian` on the CPU: the reference's bits from every build, its tree, its constants, errors."""

import hashlib
import json
import os
import re
import subprocess
import sys
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from brownian_cases import (
    DTYPES,
    LAST,
    SIZES,
    calls,
    check_call,
    nodes_of,
    streams_of,
    weights_of,
)
from op_cases import assert_same_bits
from places import HELPERS, ROOT
from refusals import can_be_faked, check_fake_refuses, check_refused
from torch._dynamo.utils import counters
from torch.library import opcheck

from diffast import ops
from diffast.ops.brownian import reference as reference_brownian
from diffast.ops.normal import reference as reference_normal
from diffast.ops.schema import MAX_DEPTH

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.fixture(params=(1, 2), ids=("1 thread", "2 threads"))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def draw(nodes, depth, size, streams=None, weights=None, last=None, dtype=torch.float32):
    """Returns [increment, value] of the op for nodes [B, 2]."""
    nodes = torch.as_tensor(nodes)
    streams = streams_of(len(nodes)) if streams is None else streams
    weights = torch.ones(len(nodes), 2, dtype=torch.float64) if weights is None else weights
    return torch.ops.diffast.brownian(streams, nodes, weights, depth, last, [size], dtype)


def values(nodes, depth, size, stream=(3, 4), dtype=torch.float32):
    """Returns V [N, size] of one path at N nodes."""
    nodes = torch.as_tensor(nodes).reshape(-1, 1).repeat(1, 2)
    streams = torch.tensor([[*stream, 0]] * len(nodes))
    return draw(nodes, depth, size, streams, dtype=dtype)[1]


def test_every_shape_is_the_reference(threads):
    for call in calls(SIZES, (0, 1, 3), (0, 8, 16)):
        check_call(ops.brownian_out, *call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", LAST)
def test_every_depth_and_kind_of_node_is_the_reference(dtype, last):
    for depth in range(1, MAX_DEPTH + 1):
        check_call(ops.brownian_out, (7, 9), dtype, depth, last, bool(depth % 2), depth)


def test_states_of_more_dimensions_and_pieces():
    for shape in ((2, 3, 5, 7), (1, 4, 33, 33), (3,)):
        check_call(ops.brownian_out, shape, torch.float32, 11, "last", True, 1)


def test_the_returning_form_is_the_out_form():
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        nodes, streams = nodes_of(9, 4, rng), streams_of(4)
        weights = torch.from_numpy(rng.standard_normal((4, 2)))
        outs = torch.empty(2, 4, 3, 5, dtype=dtype)
        ops.brownian_out(streams, nodes, weights, 9, None, *outs)
        new = torch.ops.diffast.brownian(streams, nodes, weights, 9, None, [3, 5], dtype)
        for a, b in zip(new, outs, strict=True):
            assert_same_bits(a, b)


HASHES = """
import hashlib, json, torch
from brownian_cases import nodes_of, streams_of
from diffast import ops
import numpy as np
found = {}
for dtype in (torch.float32, torch.float64):
    for size in (1, 7, 64, 1003, 4097):
        rng = np.random.default_rng(size)
        outs = torch.empty(2, 40, size, dtype=dtype)
        weights = torch.from_numpy(rng.standard_normal((40, 2)))
        ops.brownian_out(streams_of(40), nodes_of(13, 40, rng), weights, 13, None, *outs)
        found[f"{dtype} {size}"] = hashlib.sha256(outs.numpy().tobytes()).hexdigest()
print(json.dumps([ops.backends()["cpu"]["backend"], found]))
"""


@pytest.mark.parametrize(
    ("variable", "value", "backend"),
    [
        ("DIFFAST_CPU_ISA", "base", "c++ (base)"),
        ("DIFFAST_BACKEND", "reference", "reference"),
    ],
)
def test_the_baseline_build_and_the_reference_give_the_same_bits(variable, value, backend):
    def run(**environment):
        done = subprocess.run(
            [sys.executable, "-c", HASHES],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{HELPERS}", **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    there, found = run(**{variable: value})
    assert there == backend
    assert found == run()[1] and len({*found.values()}) == len(found)


def test_the_constants_are_the_exact_ones_rounded_once():
    with localcontext() as context:
        context.prec = 60
        wanted = [(float(Decimal(-8).exp()), float((1 - Decimal(-16).exp()).sqrt()))]
        for level in range(2, MAX_DEPTH + 1):
            up = (Decimal(16) / 2**level).exp()
            down = 1 / up
            keep, square = 1 / (up + down), (up - down) / (up + down)
            wanted.append((float(keep), float(square.sqrt())))
    assert [reference_brownian.END, *reference_brownian.LEVELS] == wanted
    header = (ROOT / "csrc" / "ops" / "brownian" / "tree.h").read_text()
    numbers = re.findall(r"\{([\d.e-]+), ([\d.e-]+)\},", header)
    pairs = [(float(a), float(b)) for a, b in numbers]
    assert pairs == [wanted[0], (0.0, 0.0), *wanted[1:]]


def test_the_tree_is_the_one_that_is_written_down():
    """All nodes of a tree of depth 5 by the recursion itself, from the normals of the words."""
    depth, last = 5, 32

    def z(k):
        word = ops.BROWNIAN_NOISE + k
        return reference_normal.draw(3, torch.tensor([4]), word, 5)[0]

    path = {16: z(1)}
    keep, fresh = (np.float32(number).item() for number in reference_brownian.END)
    path[0] = path[16] * keep + z(0) * fresh
    path[32] = path[16] * keep + z(2**26 - 1) * fresh
    for level in range(2, depth + 1):
        keep, fresh = (np.float32(c).item() for c in reference_brownian.LEVELS[level - 2])
        half = last >> level
        for p in range(1 << (level - 1)):
            node = (2 * p + 1) * half
            between = path[node - half] + path[node + half]
            path[node] = between * keep + z((1 << (level - 1)) + p) * fresh
    assert_same_bits(values(range(33), depth, 5), torch.stack([path[n] for n in range(33)]))


def test_a_deeper_tree_has_the_same_values_at_shared_nodes():
    for dtype in DTYPES:
        coarse = values(range(-1, 9), 3, 70, dtype=dtype)
        for depth in (4, 11, 24):
            finer = [n << (depth - 3) if n > 0 else n for n in range(-1, 9)]
            assert_same_bits(values(finer, depth, 70, dtype=dtype), coarse, depth)


def test_what_is_known_at_the_start_gives_the_bits_of_what_is_made_anew():
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        nodes, streams = nodes_of(11, 30, rng), streams_of(30)
        weights = torch.from_numpy(rng.standard_normal((30, 2)))
        call = (nodes, 11, 70, streams, weights)
        known = draw(nodes.flip(1), 11, 70, streams, weights, dtype=dtype)[1]
        anew, again = draw(*call, dtype=dtype), draw(*call, last=known, dtype=dtype)
        for a, b in zip(anew, again, strict=True):
            assert_same_bits(a, b)


def test_a_sample_is_the_same_in_every_batch():
    ids = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1, 2**32, 2**31, *range(100, 156)])
    streams = torch.stack([torch.full_like(ids, -7), ids, torch.arange(len(ids))], dim=1)
    rng = np.random.default_rng(0)
    order = torch.from_numpy(rng.permutation(len(ids)))
    nodes = nodes_of(11, len(ids), rng)
    weights = torch.from_numpy(rng.standard_normal((len(ids), 2)))
    for size in (5, 1030):
        whole = draw(nodes, 11, size, streams, weights)
        shuffled = (nodes[order], 11, size, streams[order], weights[order])
        for a, b in zip(draw(*shuffled), whole, strict=True):
            assert_same_bits(a, b[order], "permuted")
        for b in range(len(ids)):
            one = slice(b, b + 1)
            alone = draw(nodes[one], 11, size, streams[one], weights[one])
            assert_same_bits(alone[0], whole[0][one], b)
        longer = draw(nodes, 11, size + 3, streams, weights)
        assert_same_bits(longer[0][:, :size].contiguous(), whole[0], "prefix")
    assert len(draw(nodes * 0 + 5, 11, 64, streams)[1].unique(dim=0)) == len(ids)


def test_the_third_word_of_a_stream_does_not_matter():
    nodes, streams = torch.tensor([[5, 9]]), streams_of(1)
    other = streams.clone()
    other[:, 2] += 1
    for a, b in zip(draw(nodes, 4, 9, streams), draw(nodes, 4, 9, other), strict=True):
        assert_same_bits(a, b)
    for column in (0, 1):
        other = streams.clone()
        other[:, column] += 1
        assert not torch.equal(draw(nodes, 4, 9, other)[0], draw(nodes, 4, 9, streams)[0])


def test_a_step_from_pure_noise_is_the_value_itself():
    nodes = torch.tensor([[-1, 700]])
    increment, value = draw(nodes, 11, 50, weights=weights_of([np.inf]))
    assert_same_bits(increment, value)


def test_opcheck():
    streams, nodes = streams_of(2), torch.tensor([[3, 4], [-1, 8]])
    weights = weights_of([1.0, 2.0])
    for dtype in DTYPES:
        state = torch.zeros(2, 3, 5, dtype=dtype)
        for last in (None, state):
            call = (streams, nodes, weights, 4, last)
            opcheck(torch.ops.diffast.brownian.default, (*call, [3, 5], dtype))
            for value in (None, state + 2):
                opcheck(torch.ops.diffast.brownian.out, (*call, state + 1, value))


@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_one_graph_serves_all_nodes(compiler):
    def steps(streams, nodes, weights, last):
        increment, value = torch.empty_like(last), torch.empty_like(last)
        ops.brownian_out(streams, nodes, weights, 11, last, increment, value)
        new, _ = torch.ops.diffast.brownian(
            streams, nodes.flip(1), weights, 11, None, list(last.shape[1:]), last.dtype
        )
        ops.brownian_out(streams, nodes, weights, 11, value, increment, value)  # last is value
        return increment * 2, value + 1, new

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(steps, fullgraph=True, backend=compiler)
        for nodes in ([[1, 2], [3, 4]], [[1024, 700], [-1, 2048]]):
            call = (streams_of(2), torch.tensor(nodes), weights_of([0.1, 0.2]), torch.ones(2, 9))
            for a, b in zip(compiled(*call), steps(*call), strict=True):
                assert_same_bits(a, b)
        assert counters["stats"]["unique_graphs"] == 1
        torch._dynamo.reset()


def test_gradients_are_refused():
    state = torch.zeros(2, 3, requires_grad=True)
    call = (streams_of(2), torch.tensor([[1, 2], [1, 2]]), weights_of([1.0, 1.0]), 3)
    with pytest.raises(RuntimeError, match="brownian.out: a tensor requires grad"):
        ops.brownian_out(*call, state, torch.zeros(2, 3))
    with torch.no_grad():
        ops.brownian_out(*call, state, torch.zeros(2, 3))


def bad_call(
    streams=None, nodes=None, weights=None, depth=3, last=None, increment=None, value=None
):
    """Returns the arguments of `brownian.out` for 2 samples, good but for what is given."""
    return (
        torch.zeros(2, 3, dtype=torch.int64) if streams is None else streams,
        torch.zeros(2, 2, dtype=torch.int64) if nodes is None else nodes,
        torch.zeros(2, 2, dtype=torch.float64) if weights is None else weights,
        depth,
        last,
        torch.zeros(2, 4) if increment is None else increment,
        value,
    )


MEMORY = torch.zeros(20)
X, SHIFTED = MEMORY[:8].view(2, 4), MEMORY[4:12].view(2, 4)
LONGS, META = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, device="meta")
READS = "is not contiguous but the kernel reads it in row-major order"
WALKS = "is not contiguous but the kernel walks it in row-major order"
REFUSED = [
    (dict(depth=0), "brownian: depth 0 but 1 to 24 are supported"),
    (dict(depth=25), "brownian: depth 25 but 1 to 24 are supported"),
    (
        dict(increment=torch.zeros(2, 4, dtype=torch.float16)),
        "brownian: increment has dtype float16 but float32 or float64 is needed",
    ),
    (
        dict(increment=torch.zeros(())),
        "brownian: increment has no batch dimension but [samples, ...] is needed",
    ),
    (dict(streams=LONGS), "brownian: streams is int64 [2, 4] but int64 [2, 3] is needed"),
    (
        dict(streams=torch.zeros(6, dtype=torch.int64)),
        "brownian: streams is int64 [6] but int64 [2, 3] is needed",
    ),
    (dict(nodes=X[:, :2]), "brownian: nodes is float32 [2, 2] but int64 [2, 2] is needed"),
    (
        dict(weights=torch.zeros(3, 2, dtype=torch.float64)),
        "brownian: weights is float64 [3, 2] but float64 [2, 2] is needed",
    ),
    (
        dict(nodes=torch.zeros(2, 2, dtype=torch.int64, device="meta")),
        "brownian: nodes is on meta but increment is on cpu",
    ),
    (dict(nodes=LONGS[:, ::2]), f"brownian: nodes of shape [2, 2] {READS}"),
    (dict(increment=torch.zeros(4, 2).T), f"brownian: increment of shape [2, 4] {WALKS}"),
    (
        dict(last=torch.zeros(2, 5)),
        "brownian: last is float32 [2, 5] but increment is float32 [2, 4]",
    ),
    (
        dict(value=X.double()),
        "brownian: value is float64 [2, 4] but increment is float32 [2, 4]",
    ),
    (dict(last=META), "brownian: last is on meta but increment is on cpu"),
    (dict(value=torch.zeros(4, 2).T), f"brownian: value of shape [2, 4] {WALKS}"),
    (
        dict(increment=X, value=SHIFTED),
        "brownian: value overlaps increment but both are written",
    ),
    (dict(increment=X, value=X), "brownian: value overlaps increment but both are written"),
    (
        dict(increment=X, last=SHIFTED),
        "brownian: increment overlaps last without being the same tensor",
    ),
    (dict(value=X, last=SHIFTED), "brownian: value overlaps last without being the same tensor"),
]


@pytest.mark.parametrize(("given", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_it_is_refused_in_clear_words_and_nothing_is_written(given, text):
    call, functions = bad_call(**given), (ops.brownian_out, reference_brownian.brownian_out)
    check_refused("brownian.out", *functions, call, text)
    if can_be_faked(text):
        check_fake_refuses("brownian.out", call, text)


def test_a_hash_of_one_path_that_must_never_change():
    """Pictures made with a seed have to stay the same in every version."""
    nodes = torch.tensor([[-1, 100], [100, 1024], [1024, 1999], [1999, 2048]])
    weights = weights_of([np.inf, 1.0, 2.0, 3.0])
    increment, value = draw(nodes, 11, 257, torch.tensor([[5, 6, 0]] * 4), weights)
    digest = hashlib.sha256(torch.stack([increment, value]).numpy().tobytes()).hexdigest()
    assert digest[:16] == "043fa4ad93e5c5be"
