"""What nvcc and Triton make of `quantile`, on a machine without a GPU; see test_compile.py."""

import re

import pytest
from test_compile import (
    ARCHITECTURES,
    check_no_spills,
    compile_cuda,
    floats_of_ptx,
    instructions,
    what_triton_makes,
)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_kernels_have_wide_loads_and_no_spills(arch, tmp_path_factory):
    cubin, report = compile_cuda("quantile", arch, tmp_path_factory)
    check_no_spills(report, 15)
    counting = 0
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        arguments = re.search(r"count_kernelI(.)Li(\d+)ELb1", kernel)
        if arguments:
            loads = (3 if arguments[1] == "d" else 1) * int(arguments[2])
            assert opcodes.count("LDG.E.128") == loads, kernel
            assert any(opcode.startswith("ATOMS") for opcode in opcodes), kernel
            counting += 1
    assert counting == 6


def test_cuda_arithmetic_is_rounded_as_written(tmp_path):
    floats = floats_of_ptx("quantile", tmp_path)
    assert {"mul.rn.f32", "add.rn.f32", "mul.rn.f64", "add.rn.f64", "sub.rn.f64"} <= floats


@pytest.fixture(scope="module")
def triton_report(tmp_path_factory):
    """What compile_triton_quantile.py found, from a process of its own."""
    return what_triton_makes("compile_triton_quantile", tmp_path_factory)


@pytest.mark.parametrize("arch", ("80", "90", "100"))
def test_triton_kernels_are_exact_and_vectorised(triton_report, arch):
    cases = triton_report["kernels"][arch]
    assert len(cases) == 3 * 3 * 8
    for name, case in cases.items():
        for word in ("fused", "approximate", "float atomics", "spills"):
            assert case[word] == 0, (name, word)
        if "count_kernel" in name:
            assert case["wide loads"] == int(name.split()[0]), name


def test_triton_compiles_one_kernel_for_all_passes(triton_report):
    """Counting once; finding in the middle and at the end. The share p is no part of a kernel."""
    assert triton_report["launches"] == [3] * 9
