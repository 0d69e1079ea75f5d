"""What nvcc and Triton make of `sweep` and `gram`, without a GPU; see test_compile.py."""

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
def test_cuda_walks_have_no_spills(arch, tmp_path_factory):
    cubin, report = compile_cuda("sweep", arch, tmp_path_factory)
    check_no_spills(report, 15)
    wide = 0
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        arguments = re.search(r"sweep_kernelI(.)NS1_4KindI\w+?EEELb(\d)", kernel)
        if arguments is None or arguments[2] == "0":
            continue
        # x and an output, ahead of the walk and in it; a point, and the planes of a state.
        assert opcodes.count("LDG.E.128") >= 4, kernel
        assert opcodes.count("STG.E.128") >= 5, kernel
        wide += 1
    assert wide == 7


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_gram_has_no_spills(arch, tmp_path_factory):
    cubin, report = compile_cuda("gram", arch, tmp_path_factory)
    check_no_spills(report, 13)
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        arguments = re.search(r"gram_kernelI(.)Li(\d+)ELb1", kernel)
        if arguments:
            loads = (3 if arguments[1] == "d" else 1) * int(arguments[2])
            assert opcodes.count("LDG.E.128") == loads, kernel


@pytest.mark.parametrize("name", ("sweep", "gram"))
def test_cuda_arithmetic_is_rounded_as_written(name, tmp_path):
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    ptx = tmp_path / "kernel.ptx"
    source = ROOT / "csrc" / "ops" / name / "cuda.cu"
    command = [str(NVCC), *FLAGS, "-arch=sm_90", "-ptx", "-o", str(ptx), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    operations = set(re.findall(r"^\s*(?:@%\w+ )?([a-z]+(?:\.\w+)+)", ptx.read_text(), re.M))
    floats = {op for op in operations if op.endswith((".f32", ".f64"))}
    assert {"mul.rn.f32", "add.rn.f32", "mul.rn.f64", "add.rn.f64"} <= floats
    for op in floats:
        assert not re.match(r"(mul|add|sub|div|sqrt)\.", op) or ".rn" in op, op
        assert not op.startswith(("fma", "mad", "atom", "red")), op
        assert not {"ftz", "approx", "full"} & set(op.split(".")), op


@pytest.fixture(scope="module")
def triton_report(tmp_path_factory):
    """What compile_triton_sweep.py found, from a process of its own."""
    return what_triton_makes("compile_triton_sweep", tmp_path_factory)


@pytest.mark.parametrize("arch", ("80", "90", "100"))
def test_triton_kernels_are_exact_and_vectorised(triton_report, arch):
    cases = triton_report["kernels"][arch]
    assert len(cases) > 15
    for name, case in cases.items():
        for word in ("fused", "approximate", "atomic", "spills"):
            assert case[word] == 0, (name, word)
    # Loads: where a job begins (x, or p, d and e), x and an output ahead of the walk and in it and,
    # for the norm, what stood where it ends. Stores: points in two loops, four planes of a state.
    assert cases["plain: sweep_kernel"]["wide loads"] == 9
    assert cases["plain: sweep_kernel"]["wide stores"] == 6
    assert cases["most: sweep_kernel"]["wide loads"] == 9 + 8
    assert cases["most: sweep_kernel"]["wide stores"] == 6 + 7


def test_triton_launches_do_not_compile_for_every_walk(triton_report):
    """The launchers' own arguments, with a stand-in for the driver that launches nothing."""
    assert triton_report["launches"] == 1
