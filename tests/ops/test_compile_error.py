"""What nvcc and Triton make of `combine_error`, on a machine without a GPU; see test_compile.py."""

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


def check_kernels(cubin, pattern):
    """Returns how many kernels of a pattern have wide accesses only."""
    seen = 0
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        arguments = re.search(pattern, kernel)
        if arguments is None:
            continue
        wide = 3 if arguments[1] == "d" else 1  # a double column: two parts, or one of float32
        assert opcodes.count("LDG.E.128") == wide * int(arguments[2]), kernel
        assert opcodes.count("STG.E.128") == wide, kernel
        # A block adds its sums up by shuffles and waits once for it, beside the two of weights.
        assert opcodes.count("BAR.SYNC") + opcodes.count("BAR.SYNC.DEFER_BLOCKING") == 3, kernel
        assert sum(opcode.startswith("MUFU.RSQ") for opcode in opcodes) >= 2, kernel
        seen += 1
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_kernels_have_wide_accesses_and_no_spills(arch, tmp_path_factory):
    cubin, report = compile_cuda("combine_error", arch, tmp_path_factory)
    check_no_spills(report, 39)
    pattern = r"error_kernelINS\w*AnyTypesI(.)Lb1EEELi(\d+)ELb\d"
    assert check_kernels(cubin, pattern) == 22
    cubin, report = compile_cuda("combine_error", arch, tmp_path_factory, "cuda_half")
    check_no_spills(report, 12)
    pattern = r"error_kernelINS\w*OneTypeI(L)\w+?EEELi(\d+)ELb\d"
    assert check_kernels(cubin, pattern) == 12


def test_cuda_arithmetic_is_rounded_as_written(tmp_path):
    floats = floats_of_ptx("combine_error", tmp_path)
    assert {"div.rn.f32", "div.rn.f64", "sqrt.rn.f64", "mul.rn.f64", "add.rn.f64"} <= floats


@pytest.fixture(scope="module")
def triton_report(tmp_path_factory):
    """What compile_triton_error.py found, from a process of its own."""
    return what_triton_makes("compile_triton_error", tmp_path_factory)


@pytest.mark.parametrize("arch", ("80", "90", "100"))
def test_triton_kernels_are_exact_and_vectorised(triton_report, arch):
    cases = triton_report[arch]
    assert len(cases) > 5
    for name, case in cases.items():
        for word in ("fused", "approximate", "atomic", "spills"):
            assert case[word] == 0, (name, word)
        assert case["ld.global.v4"] == case["wide loads"], (name, case)
        assert case["ld.global.v2"] == case["half loads"], (name, case)
        assert case["st.global.v4"] == case["wide stores"], (name, case)
