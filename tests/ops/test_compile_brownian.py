"""What nvcc and Triton make of `brownian`, on a machine without a GPU; see test_compile.py."""

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
    cubin, report = compile_cuda("brownian", arch, tmp_path_factory)
    check_no_spills(report, 4)
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        # Those inside division and root of one Philox block, as many as in `normal`: one copy.
        assert sum(opcode.startswith("FFMA") for opcode in opcodes) == 29, kernel
        assert not any(opcode.startswith("DFMA") for opcode in opcodes), kernel
        kind, aligned = re.search(r"kernelI(.)Lb(\d)", kernel).groups()
        if aligned == "1":
            parts = 2 if kind == "d" else 1
            assert opcodes.count("LDG.E.128") == parts, kernel
            assert opcodes.count("STG.E.128") == 2 * parts, kernel
            assert "STG.E" not in opcodes, kernel


def test_cuda_arithmetic_is_rounded_as_written(tmp_path):
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    ptx = tmp_path / "kernel.ptx"
    source = ROOT / "csrc" / "ops" / "brownian" / "cuda.cu"
    command = [str(NVCC), *FLAGS, "-arch=sm_90", "-ptx", "-o", str(ptx), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    operations = set(re.findall(r"^\s*(?:@%\w+ )?([a-z]+(?:\.\w+)+)", ptx.read_text(), re.M))
    floats = {op for op in operations if op.endswith((".f32", ".f64"))}
    assert {"div.rn.f32", "sqrt.rn.f32", "mul.rn.f64", "add.rn.f64"} <= floats
    for op in floats:
        assert not re.match(r"(mul|add|sub|div|sqrt)\.", op) or ".rn" in op, op
        assert not op.startswith(("fma", "mad")), op
        assert not {"ftz", "approx", "full"} & set(op.split(".")), op


@pytest.fixture(scope="module")
def triton_report(tmp_path_factory):
    """What compile_triton_brownian.py found, from a process of its own."""
    return what_triton_makes("compile_triton_brownian", tmp_path_factory)


@pytest.mark.parametrize("arch", ("80", "90", "100"))
def test_triton_kernels_are_exact_and_vectorised(triton_report, arch):
    for name, case in triton_report["kernels"][arch].items():
        for word in ("fused", "approximate", "spills"):
            assert case[word] == 0, (name, word)
        # In a descent one Philox block serves four elements: two radii. A known start needs none.
        assert case["div.rn"] == case["sqrt.rn"] == (2 if case["wide loads"] else 4), name
        assert case["ld.global.v4"] == case["wide loads"], (name, case)
        assert case["st.global.v4"] == case["wide stores"], (name, case)


def test_one_triton_kernel_serves_every_depth(triton_report):
    assert triton_report["launches"] == 1
