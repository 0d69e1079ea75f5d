"""What nvcc and Triton make of `combine_error`, on a machine without a GPU; see test_compile.py."""

import re
import subprocess

import pytest
from test_compile import (
    ARCHITECTURES,
    FLAGS,
    NVCC,
    ROOT,
    check_no_spills,
    compile_cuda,
    instructions,
    what_triton_makes,
)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_kernels_have_wide_accesses_and_no_spills(arch, tmp_path_factory):
    cubin, report = compile_cuda("combine_error", arch, tmp_path_factory)
    check_no_spills(report, 39)
    seen = 0
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        arguments = re.search(r"error_kernelI(.)Li(\d+)ELb(\d)ELb(\d)", kernel)
        if arguments is None or arguments[3] == "0":
            continue
        wide = 3 if arguments[1] == "d" else 1  # a double column: two parts, or one of float32
        assert opcodes.count("LDG.E.128") == wide * int(arguments[2]), kernel
        assert opcodes.count("STG.E.128") == wide, kernel
        seen += 1
    assert seen == 22


def test_cuda_arithmetic_is_rounded_as_written(tmp_path):
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    ptx = tmp_path / "kernel.ptx"
    source = ROOT / "csrc" / "ops" / "combine_error" / "cuda.cu"
    command = [str(NVCC), *FLAGS, "-arch=sm_90", "-ptx", "-o", str(ptx), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    operations = set(re.findall(r"^\s*(?:@%\w+ )?([a-z]+(?:\.\w+)+)", ptx.read_text(), re.M))
    floats = {op for op in operations if op.endswith((".f32", ".f64"))}
    assert {"div.rn.f32", "div.rn.f64", "sqrt.rn.f64", "mul.rn.f64", "add.rn.f64"} <= floats
    for op in floats:
        assert not re.match(r"(mul|add|sub|div|sqrt)\.", op) or ".rn" in op, op
        assert not op.startswith(("fma", "mad", "atom", "red")), op
        assert not {"ftz", "approx", "full"} & set(op.split(".")), op


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
