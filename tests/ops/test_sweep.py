"""`sweep`: points and states are those of the reference to the bit, norms in a fixed order."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits
from places import HELPERS, ROOT
from sweep_cases import NAMES, SweepCase, assert_close_norms, check_sweep, random_options
from sweep_hashes import hashes
from torch._dynamo.utils import counters
from torch.library import opcheck

from diffast import ops
from diffast.ops.schema import JOB

pytestmark = pytest.mark.usefixtures("nan_memory")

SIZES = (0, 1, 7, 63, 1000, 4097)


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(12))
def test_random_calls(seed):
    for i, size in enumerate(SIZES):
        rng = np.random.default_rng((seed, i))
        options = random_options(rng)
        check_sweep(SweepCase(rng, (size,), **options), (size, options))


@pytest.mark.parametrize("entries", (0, 1, 2, 3, 4, 7))
def test_every_number_of_columns_and_rows(entries):
    rng = np.random.default_rng(entries)
    for outputs, parts, clamp, noises in itertools.product(
        range(3), (False, True), (False, True), range(3)
    ):
        options = {"outputs": FLOATS[:1] * outputs, "parts": parts, "clamp": clamp}
        options |= {"noises": noises, "entries": entries, "slopes": (outputs + noises) % 2 == 0}
        case = SweepCase(rng, (37,), ((entries + 2, 2), (0, 1)), **options)
        check_sweep(case, options)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("kind", FLOATS)
def test_every_dtype_of_an_output(kind, dtype):
    if kind == torch.float64 and dtype == torch.float32:
        return
    rng = np.random.default_rng(1)
    for outputs, size in (([kind], 4097), ([kind, dtype], 1000), ([dtype, kind], 70)):
        case = SweepCase(rng, (size,), ((3, 1),), outputs, 1, 1, dtype=dtype, clamp=size < 999)
        check_sweep(case, (outputs, size))


@pytest.mark.parametrize("chunk", (1, 2, 3, 5, 6, 7, 100))
@pytest.mark.parametrize("in_place", (False, True))
def test_chunks(chunk, in_place):
    rng = np.random.default_rng(chunk)
    for slopes, noises, dtype in (
        (True, 0, FLOATS[0]),
        (True, 1, FLOATS[3]),
        (False, 2, FLOATS[0]),
    ):
        options = {"chunk": chunk, "slopes": slopes, "noises": noises, "dtype": dtype}
        counts = ((7, 0), (6, 2), (0, 0), (1, 1))
        case = SweepCase(rng, (1029,), counts, (dtype,), in_place=in_place, **options)
        check_sweep(case, options)


def test_a_shape_of_several_dimensions_and_rows_without_elements():
    rng = np.random.default_rng(0)
    for shape in ((), (3, 5), (2, 3, 4), (3, 0)):
        check_sweep(SweepCase(rng, shape, ((3, 1), (2, 0)), noises=1), shape)


def test_no_jobs_write_nothing():
    case = SweepCase(np.random.default_rng(0), (9,), ())
    before = case.copy()
    ops.sweep(*case.call())
    assert_same_bits(case.states, before.states)
    assert case.points.isnan().all()


def straight(rng, size, counts, **options):
    """A case whose jobs begin at their first row of x, where the network was called."""
    case = SweepCase(rng, (size,), counts, **options)
    for j, (real, _) in enumerate(counts):
        case.jobs[j, JOB.index("from")] = case.walk[j, 0]
        case.jobs[j, JOB.index("write")] = 1
        case.jobs[j, JOB.index("state_out")] = 2 + j
        case.jobs[j, JOB.index("real")] = real
    return case


@pytest.mark.parametrize("in_place", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_a_walk_that_does_not_move_is_a_sequential_run(dtype, in_place):
    """The points of stage after stage of `combine`, slopes or not: norms are 0, bits the same."""
    for parts, entries, clamp, noises in itertools.product(
        (False, True), (0, 2), (False, True), (0, 1)
    ):
        options = {"parts": parts, "entries": entries, "clamp": clamp, "noises": noises}
        rng = np.random.default_rng(5)
        kinds = (dtype, torch.float32)
        case = straight(
            rng, 1030, ((6, 0),), outputs=kinds, in_place=in_place, dtype=dtype, **options
        )
        rows = case.walk[0].tolist()[:6]
        job = dict(zip(JOB, case.jobs[0].tolist(), strict=True))
        ids = case.ids[job["sample"]][None]
        p = anchor = case.x[rows[0]].clone()
        history = [torch.zeros_like(p)] * entries
        wanted = []
        for k, q in enumerate(rows):
            case.x[q] = p  # the network was called at the sequential points
            wanted.append(p)
            weights = case.weights[job["first"] + k]
            columns = [anchor, p] if parts else [p]
            columns += [o[q].to(dtype) for o in case.outputs] + history[::-1]
            inputs = len(columns)
            table = weights[:, :inputs]
            if clamp:
                table = weights[:, : inputs + 1].clone()
                table[0, inputs] = 0
            noise = weights[:, inputs + clamp :].clone()
            noise[0] = 0
            outs = [torch.empty_like(p)[None] for _ in range(len(weights))]
            ops.combine(
                [c[None] for c in columns],
                table.numpy(),
                noise=noise.numpy() if noises else None,
                seed=case.seed,
                stage=job["first"] + k,
                ids=ids,
                clamp=case.clamp or None,
                outs=outs[1:] if clamp else outs,
            )
            made = [out[0] for out in outs[1:]]
            if entries:
                history = [made[0], *history[:-1]]
            p = made[-1]
            anchor = made[-2] if parts else p
        ops.sweep(*case.call())
        for k, q in enumerate(rows):
            assert_same_bits(case.points[q], wanted[k], (options, k))
        planes = [p, anchor, *history]
        for plane, value in zip(case.states[2][: len(planes)], planes, strict=True):
            assert_same_bits(plane, value, options)
        assert (case.norms[0, :6] == 0).all()


def test_a_distance_that_is_not_a_number_spreads():
    rng = np.random.default_rng(2)
    for value, size in itertools.product((np.inf, -np.inf, np.nan), (40, 1025)):
        case = straight(rng, size, ((4, 1), (4, 0)), noises=1)
        case.x[case.walk[0, 1].item(), size - 3] = value
        wanted = check_sweep(case, (value, size))
        assert not wanted.norms[0, 1].isfinite()
        assert wanted.norms[1].isfinite().all()


@pytest.mark.parametrize("value", (np.inf, np.nan))
def test_a_slope_that_is_not_a_number_hurts_only_what_moved(value):
    case = straight(np.random.default_rng(3), 50, ((3, 0),))
    case.slopes[case.walk[0, 0].item()] = value  # p is x there
    wanted = check_sweep(case, value)
    assert wanted.points[case.walk[0, :3].long()].isfinite().all()


def test_norms_and_points_do_not_depend_on_threads_or_the_batch(thread_count):
    rng = np.random.default_rng(4)
    for size, noises, chunk in ((17, 0, 0), (4097, 1, 0), (30_001, 0, 0), (9000, 0, 2)):
        counts = ((5, 0), (3, 1), (4, 0))
        case = SweepCase(rng, (size,), counts, noises=noises, chunk=chunk)
        found = []
        for threads, alone in itertools.product((1, 2), (False, True)):
            thread_count(threads)
            mine = case.copy()
            mine.norms.fill_(torch.nan)
            for j in range(3) if alone else (slice(None),):
                which = slice(j, j + 1) if alone else j
                names = {"jobs": case.jobs[which], "walk": case.walk[which]}
                ops.sweep(*mine.call(**names, norms=mine.norms[which]))
            found.append(mine)
        for other in found[1:]:
            for name in ("points", "states", "norms"):
                wanted = getattr(found[0], name)
                assert_same_bits(getattr(other, name), wanted, (size, name))
        assert_close_norms(found[0].norms, check_sweep(case, size).norms, size)


def test_points_that_bypass_the_caches(thread_count):
    """From 16 MiB a call on, wherever the rows begin."""
    rng = np.random.default_rng(6)
    for threads, offset, size in ((1, 0, 160_000), (2, 4, 160_003)):
        thread_count(threads)
        case = SweepCase(rng, (size,), ((6, 0), (3, 0)), offset=offset)
        check_sweep(case, (threads, offset, size))


@pytest.mark.parametrize(
    ("variable", "value", "backend"), [("DIFFAST_CPU_ISA", "base", "c++ (base)")]
)
def test_the_same_bits_on_every_instruction_set(variable, value, backend):
    """A process with baseline vectors and this one: norms and inner products included."""
    if ops.backends()["cpu"]["backend"] == backend:
        pytest.skip(f"this process runs {backend} itself: nothing to compare")
    run = subprocess.run(
        [sys.executable, (HELPERS / "sweep_hashes.py")],
        env={**os.environ, variable: value, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    there, here = json.loads(run.stdout), hashes()
    assert there["backend"] == backend
    assert there["hashes"].keys() == here.keys()
    assert not [call for call, digest in here.items() if there["hashes"][call] != digest]
    assert len(set(here.values())) == len(here) > 100


@pytest.mark.parametrize("options", ({}, {"noises": 1, "entries": 2, "clamp": True}))
def test_opcheck(options):
    case = SweepCase(np.random.default_rng(0), (5,), ((3, 1), (2, 0)), **options)
    points = torch.zeros_like(case.points)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(
        torch.ops.diffast.sweep.default,
        tuple(case.call(points=points, norms=torch.zeros_like(case.norms))),
        test_utils=tests,
    )


@pytest.mark.parametrize("backend", ("eager", "aot_eager", "inductor"))
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_it_compiles_into_one_graph(backend):
    torch._dynamo.reset()
    counters.clear()
    case = SweepCase(np.random.default_rng(0), (50,), ((3, 1), (2, 0)), noises=1)
    fixed = dict(zip(NAMES, case.call(), strict=True))

    def step(points, states, norms):
        ops.sweep(*{**fixed, "points": points, "states": states, "norms": norms}.values())
        return points * 2, norms + 1

    results = []
    for function in (step, torch.compile(step, backend=backend, fullgraph=True)):
        mine = case.copy()
        made = function(mine.points, mine.states, mine.norms)
        results.append([*made, mine.points, mine.states, mine.norms])
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b, backend)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_tensor_that_requires_grad_is_refused():
    case = SweepCase(np.random.default_rng(0), (5,))
    with pytest.raises(RuntimeError, match="has no gradient"):
        ops.sweep(*case.call(x=case.x.clone().requires_grad_()))
