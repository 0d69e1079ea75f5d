"""What the compilers make of the GPU kernels of `accept`, on a machine without a GPU."""

import re

import pytest
from test_compile import (
    ARCHITECTURES,
    check_no_spills,
    compile_cuda,
    instructions,
    what_triton_makes,
)

UNITS = {"5uint4": "STG.E.128", "j": "STG.E", "t": "STG.E.U16"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_kernels_have_wide_accesses_and_no_spills(arch, tmp_path_factory):
    """Four kernels, of which three copy."""
    cubin, report = compile_cuda("accept", arch, tmp_path_factory)
    check_no_spills(report, 4)
    seen = set()
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        unit = re.search(r"copy_kernelI(\w+?)EE", kernel)
        if unit is None:
            continue
        seen.add(unit[1])
        stores = [opcode for opcode in opcodes if opcode.startswith("STG")]
        assert {*stores} == {UNITS[unit[1]]}, kernel
        assert not [opcode for opcode in opcodes if re.match("[FD](FMA|ADD|MUL)", opcode)], kernel
    assert seen == {*UNITS}


@pytest.fixture(scope="module")
def triton_report(tmp_path_factory):
    """What compile_triton_accept.py found, from a process of its own."""
    return what_triton_makes("compile_triton_accept", tmp_path_factory)


@pytest.mark.parametrize("arch", ("80", "90", "100"))
def test_triton_decides_in_float64_and_copies_wide(triton_report, arch):
    for name, case in triton_report["kernels"][arch]["decide"].items():
        assert case["spills"] == 0, name
        assert case["in float32"] == 0, name
    copies = triton_report["kernels"][arch]["copy"]
    # 1,024 elements over 128 threads: 16 bytes at a time, and the route alone is narrow.
    for name, wide in (("one", 2), ("three", 2 + 1 + 4), ("most", 2 * 52)):
        assert copies[name]["spills"] == 0, name
        assert copies[name]["wide loads"] == wide, name
        assert copies[name]["wide stores"] == wide, name
        assert copies[name]["narrow"] == 1, name


def test_triton_compiles_once_for_every_rule_and_number_of_samples(triton_report):
    assert triton_report["launches"] == [2, 8]
