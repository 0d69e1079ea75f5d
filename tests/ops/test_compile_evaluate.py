"""What the compilers make of the GPU kernels of `evaluate`, on a machine without a GPU."""

import re
import subprocess

import pytest
from test_compile import FLAGS, NVCC, ROOT, cuobjdump, what_triton_makes


def test_the_cuda_kernel_has_jump_tables_and_no_spills(tmp_path):
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    cubin, source = tmp_path / "evaluate.cubin", ROOT / "csrc" / "ops" / "evaluate" / "cuda.cu"
    command = [str(NVCC), *FLAGS, "-arch=sm_90", "-Xptxas", "-v", "-cubin", "-o", str(cubin)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    (found,) = re.findall(
        r"properties for \S*evaluate_kernel\S*\s+(\d+) bytes stack frame, (\d+) bytes spill "
        r"stores, (\d+) bytes spill loads\s+ptxas info\s+: Used (\d+) registers",
        done.stderr,
    )
    stack, stores, loads, registers = (int(number) for number in found)
    # The stack is the library's: where it reduces huge angles of sin, cos and tan, an array of the
    # digits of 2 / pi. Nothing else lies there, so no register is spilled.
    assert (stack, stores, loads) == (40, 0, 0)
    assert registers <= 80
    sass = subprocess.run(
        [str(cuobjdump()), "--dump-sass", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    assert len(re.findall(r"\bBRX\b", sass)) > 0, "opcodes are compared one by one"
    assert len(re.findall(r"\b(?:LDL|STL)\b", sass)) <= 6


def test_triton_compiles_once_and_rounds_sums_and_products_one_by_one(tmp_path_factory):
    report = what_triton_makes("compile_triton_evaluate", tmp_path_factory)
    kernel = report["kernel"]
    assert kernel["in float32"] == kernel["not rounded"] == 0
    # For any numbers of samples, columns and programs, with programs by counts and without.
    assert report["launches"] == [2, 8]
