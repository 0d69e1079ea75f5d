"""The CUDA kernels' own source, run on the host thread by thread, equals the reference.

emulate_cuda.cpp compiles csrc/ops/*/cuda.cu with the host's compiler and a small stand-in for the
CUDA runtime. What nvcc makes of the same source is looked at in test_compile.py.
"""

import ctypes
import itertools
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from once import made_once
from op_cases import (
    CLAMPS,
    FLOATS,
    Case,
    assert_guards,
    assert_same_bits,
    check_out,
    check_returning,
    every_half,
    guarded,
    into,
    placed,
    random_tensor,
)
from places import HELPERS

from diffast.ops.combine import reference
from diffast.ops.normal import reference as reference_normal
from diffast.ops.schema import SCHEMAS

CUDA = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
VARIANTS = list(itertools.product(range(1, 9), range(3), CLAMPS))


def build(tmp_path_factory, source):
    """Compiles the emulator with some kernels; it checks the alignment of every access."""
    if shutil.which("g++") is None or not (CUDA / "include" / "cuda_runtime_api.h").exists():
        pytest.skip("the emulator needs g++ and CUDA's headers")
    name = source.removesuffix(".cpp")
    folder = made_once(tmp_path_factory, name, lambda folder: _compile(source, folder))
    return folder / "libemulated.so"


def _compile(source, folder):
    home = Path(torch.__file__).parent
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", "-w", "-ffp-contract=off"]
    command += ["-fsanitize=alignment", "-fno-sanitize-recover=alignment"]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += ["-isystem", str(home / "include"), "-isystem", str(CUDA / "include")]
    command += [str(HELPERS / source), f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run([*command, "-o", str(folder / "libemulated.so")], check=True)


def load(tmp_path_factory, emulator, names):
    """Returns the ops `names` of an emulator, `reset(seed)`, and what keeps the ops defined.

    `reset` returns the counts of launches, blocks, threads and barriers, and sets another order of
    threads.
    """
    library = build(tmp_path_factory, f"{emulator}.cpp")
    space = "diffast_" + emulator.replace("emulate", "emulated").removesuffix("_cuda")
    definitions = torch.library.Library(space, "DEF")
    for name in names:
        definitions.define(name + SCHEMAS[name])
    torch.ops.load_library(str(library))
    counts = np.zeros(4, dtype=np.int64)
    pointer = counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    function = ctypes.CDLL(str(library)).emulated_reset

    def reset(seed=0):
        function(ctypes.c_uint64(seed), pointer)
        return counts.tolist()

    return getattr(torch.ops, space), reset, definitions


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """The ops of the emulated CUDA backend, and `reset(seed)` for another order of threads."""
    ops, reset, definitions = load(tmp_path_factory, "emulate_cuda", SCHEMAS)
    forms = (
        (ops.combine.default, reference.combine),
        (ops.combine.table, reference.combine_table),
        (ops.combine.out, reference.combine_out),
        (ops.combine.table_out, reference.combine_table_out),
    )
    yield SimpleNamespace(forms=forms, normal=ops.normal.out, reset=reset, library=definitions)


def check(emulated, case, label, dtypes=FLOATS[:1], offset=0, forms=(2, 3)):
    stored = case.rows - case.hidden
    dtypes = [dtypes[r % len(dtypes)] for r in range(stored)]
    calls = (case.host_call, case.table_call)
    for form in forms:
        overload, specification = emulated.forms[form]
        if form < 2:
            check_returning(overload, specification, calls[form], (label, form))
        else:
            check_out(overload, specification, calls[form - 2], dtypes, (label, form), offset)


def tensors(rng, dtypes, shape, offset=0):
    return [placed(random_tensor(rng, shape, dtype), offset) for dtype in dtypes]


@pytest.mark.parametrize("size", (68, 67))
@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_number_of_inputs_with_every_variant(emulated, inputs, size):
    rng = np.random.default_rng(inputs)
    for i, (rows, noises, clamp) in enumerate(VARIANTS):
        wide = torch.float64 if i % 3 == 0 else torch.float32
        case = Case(rng, tensors(rng, [wide] * inputs, (2, size)), rows, noises, clamp)
        label = (inputs, rows, noises, clamp, wide)
        check(emulated, case, label, (wide, FLOATS[i % 4]), forms=(2 + i % 2,))


@pytest.mark.parametrize("size", (68, 67))
@pytest.mark.parametrize("inputs", range(1, 17))
def test_every_position_carries_every_dtype(emulated, inputs, size):
    rng = np.random.default_rng(100 + inputs)
    for i, (position, dtype) in enumerate(itertools.product(range(inputs), FLOATS)):
        rows, noises, clamp = VARIANTS[(i * 29 + inputs * 7) % len(VARIANTS)]
        dtypes = [FLOATS[(k + i) % 3] for k in range(inputs)]
        dtypes[position] = dtype
        case = Case(rng, tensors(rng, dtypes, (3, size)), rows, noises, clamp)
        outs = [FLOATS[(r + i) % (4 if i % 2 else 3)] for r in range(rows)]
        check(emulated, case, (dtypes, rows, noises, clamp), outs, forms=(2 + i % 2, i % 2))


HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("inputs", range(1, 10))
def test_halves_alone_are_taken_eight_at_a_time(emulated, inputs):
    rng = np.random.default_rng(200 + inputs)
    for i, (rows, noises, clamp) in enumerate(VARIANTS[inputs % 4 :: 4]):
        dtype = HALVES[i % 2]
        case = Case(rng, tensors(rng, [dtype] * inputs, (3, 72)), rows, noises, clamp)
        emulated.reset()
        check(emulated, case, (inputs, rows, noises, clamp, dtype), [dtype], forms=(2 + i % 2,))
        launches, _, threads, _ = emulated.reset()
        assert launches == 1
        # Nine inputs go the way of all types: 18 threads a sample, and none is idle.
        assert threads == (3 * 18 if inputs > 8 else 3 * 9)


@pytest.mark.parametrize("kind", ("another input", "another output", "address", "size"))
def test_halves_that_are_not_alone_are_taken_four_at_a_time(emulated, kind):
    rng = np.random.default_rng(13)
    for dtype, noises in itertools.product(HALVES, range(3)):
        size = 68 if kind == "size" else 72
        other = HALVES[dtype == HALVES[0]]
        dtypes = [dtype, other if kind == "another input" else dtype]
        offset = 8 if kind == "address" else 0
        outs = [other if kind == "another output" else dtype]
        case = Case(rng, tensors(rng, dtypes, (3, size), offset), 1, noises)
        emulated.reset()
        check(emulated, case, (kind, dtype, noises), outs, offset, forms=(2, 3))
        assert emulated.reset()[2] == 2 * 3 * size // 4


def test_every_half_survives_eight_at_a_time(emulated):
    """Every number of both types as an input, and every tie between two numbers as a sum."""
    for dtype in HALVES:
        case = Case(np.random.default_rng(14), [every_half(dtype).repeat(2, 1)], 1)
        for weight in (1.0, 1.001, 1 + 2.0**-9):
            case.weights = [weight]
            check(emulated, case, (dtype, weight), [dtype], forms=(2,))


@pytest.mark.parametrize("size", (0, 1, 2, 3, 4, 7, 63, 64, 512, 516, 1000, 1028, 1032, 4097))
def test_every_shape(emulated, size):
    for batch in (0, 1, 2, 3) + (70,) * (size <= 64):  # 70 samples share blocks if they are small
        check_shape(emulated, batch, size)


def check_shape(emulated, batch, size):
    rng = np.random.default_rng(size + batch)
    for i, (offset, noises) in enumerate(itertools.product((0, 4, 16), range(3))):
        dtypes = (torch.float32, FLOATS[i % 3])
        case = Case(rng, tensors(rng, dtypes, (batch, size), offset), 1 + i % 3, noises, CLAMPS[0])
        check(emulated, case, (batch, size, offset, noises), dtypes, offset, forms=(2, 3))


def test_blocks_walk_over_many_samples_and_groups(emulated):
    """More samples, and more groups, than one grid has blocks."""
    rng = np.random.default_rng(5)
    for shape in ((4099 * 256, 1), (4101, 516), (1, (4096 * 256 + 37) * 4)):
        emulated.reset()
        case = Case(rng, tensors(rng, FLOATS[:1], shape), 1, int(shape[0] == 4101))
        check(emulated, case, shape, forms=(3 if shape[0] == 4101 else 2,))
        launches, blocks, _, _ = emulated.reset()
        assert launches == 1
        assert blocks <= 4096


def test_small_samples_share_a_block(emulated):
    rng = np.random.default_rng(6)
    emulated.reset()
    check(emulated, Case(rng, tensors(rng, FLOATS[:2], (300, 2)), 2, 1), "points", forms=(2,))
    assert emulated.reset()[1:3] == [2, 512]
    check(emulated, Case(rng, tensors(rng, FLOATS[:2], (300, 2)), 2, 1), "points", forms=(3,))
    assert emulated.reset()[1] <= 4  # the table's weights have to fit into shared memory


def test_many_weights_limit_the_samples_of_a_block(emulated):
    """The emulator refuses more shared memory than a block has."""
    rng = np.random.default_rng(10)
    case = Case(rng, tensors(rng, [torch.float64] * 16, (300, 2)), 8, 2)
    check(emulated, case, "most weights", FLOATS, forms=(3,))


def test_one_misaligned_tensor_is_enough_for_the_unaligned_kernels(emulated):
    """The emulator stops at an access that a GPU would not make."""
    rng = np.random.default_rng(11)
    for dtype, name in itertools.product(FLOATS, ("input", "output")):
        itemsize = dtype.itemsize
        case = Case(rng, tensors(rng, [dtype] * 2, (2, 64)), 2)
        if name == "input":
            case.xs[1] = placed(case.xs[1], itemsize)
        check(emulated, case, (dtype, name), [dtype], offset=itemsize * (name == "output"))


def test_elements_behind_the_end_do_not_count_as_not_finite(emulated):
    """Of four normals, those that no element takes may well overflow."""
    rng = np.random.default_rng(12)
    case = Case(rng, tensors(rng, FLOATS[:1], (100, 1)), 1, 1)
    case.weights, case.noise, case.ids = [1.0], [2.5e38], torch.arange(100)
    z = reference_normal.draw(case.seed, case.ids, case.stage, 4).abs()
    assert ((z[:, 0] < 1.3) & (z[:, 1:].max(dim=1).values > 1.4)).any()
    check(emulated, case, "overflow", forms=(2,))


@pytest.mark.parametrize("size", (68, 67))
def test_an_output_may_be_an_input_whatever_the_order_of_threads(emulated, size):
    rng = np.random.default_rng(7)
    for i, (rows, noises, clamp) in enumerate(VARIANTS):
        case = Case(rng, tensors(rng, FLOATS[: 2 + i % 2] * 3, (3, size)), rows, noises, clamp)
        order = rng.permutation(len(case.xs))
        stored = rows - case.hidden
        extra = [torch.full_like(case.xs[0], torch.nan) for _ in range(stored)]
        form = 2 + i % 2
        call = (case.host_call, case.table_call)[i % 2]
        overload, specification = emulated.forms[form]
        results = []
        for seed in range(3):
            xs = [x.clone() for x in case.xs]
            outs = [xs[k] for k in order[:stored]] + [e.clone() for e in extra]
            emulated.reset(seed)
            overload(*into((xs, *call[1:]), outs[:stored], None))
            results.append(outs[:stored])
        wanted = [torch.full_like(out, torch.nan) for out in results[0]]
        specification(*into(call, wanted, None))
        for outs, r in itertools.product(results, range(stored)):
            assert_same_bits(outs[r], wanted[r], (rows, noises, clamp, "row", r))


@pytest.mark.parametrize("size", (64, 63, 1))
def test_status_keeps_the_first_stage(emulated, size):
    rng = np.random.default_rng(8)
    for bad, row, value in itertools.product(range(3), range(2), (np.nan, np.inf, 3e38)):
        case = Case(rng, tensors(rng, FLOATS[:1] * 3, (3, size)), 2, 1, CLAMPS[0])
        case.weights = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
        case.xs[2 * row][bad, size // 2] = value
        case.xs[1][bad, size // 2] = value
        check(emulated, case, (size, bad, row, value))
        overload, specification = emulated.forms[2]
        for before in (-1, -7, 0, 5):
            status = torch.full((2, 3), before)
            for function, flags in ((overload, status[0]), (specification, status[1])):
                outs = [torch.empty_like(case.xs[0]) for _ in range(2)]
                function(*into(case.host_call, outs, flags))
            assert torch.equal(status[0], status[1])
            assert (status[0] != before).sum() == (before < 0)


def test_signs_of_zero_and_extreme_values(emulated):
    """Columns that a kernel has too many of must not turn -0 into +0."""
    values = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3.4e38, torch.inf, -torch.inf, torch.nan])
    grid = torch.cartesian_prod(values, values).reshape(2, -1, 2)
    for count, dtype in itertools.product((1, 2, 3, 5, 9, 16), (torch.float32, torch.float64)):
        for size in (32, 31):
            xs = [grid[:, :size, k % 2].to(dtype).contiguous() for k in range(count)]
            case = Case(np.random.default_rng(count), xs, 2)
            for weights in ([-0.0] * 2 * count, [0.0] * 2 * count, [1.0, -1.0] * count):
                case.weights = weights
                check(emulated, case, (count, dtype, size, weights[:2]), FLOATS, forms=(2,))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", (0, 1, 3, 4, 63, 1000, 4097))
def test_normal_equals_the_reference(emulated, dtype, size):
    batches = (0, 1, 3) + (300,) * (size < 64)
    cases = itertools.product(batches, (0, 8), (1.0, -2.5, 1e-40))
    for i, (batch, offset, scale) in enumerate(cases):
        ids = torch.arange(batch) * -(2**40) + i
        out, buffer = guarded((batch, size), dtype, offset)
        wanted = torch.full((batch, size), torch.nan, dtype=dtype)
        seed, stage = (i - 12) * 2**59 + 12345, i % 16 << 28 | 77
        emulated.normal(ids, seed, stage, scale, out)
        reference_normal.normal_out(ids, seed, stage, scale, wanted)
        assert_same_bits(out, wanted, (batch, size, dtype, offset, scale))
        assert_guards(out, buffer)
