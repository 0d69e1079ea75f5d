"""What the compilers make of the GPU kernels, on a machine without a GPU.

Triton's kernels and nvcc's are compiled for real architectures; their PTX and SASS are read for
what the promise of equal bits rests on (no fused multiply-add, correctly rounded division and root)
and for what speed rests on (16-byte loads and stores, no spills).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from once import made_once
from places import HELPERS, ROOT

NVCC = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc"
# The others of setup.py are compiled by the CUDA build; each costs about 15 s here.
ARCHITECTURES = ("8.0", "9.0", "10.0")
# As setup.py has them; test_nvcc_flags_are_those_of_the_build compares.
FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-lineinfo", "--expt-relaxed-constexpr"]


def cuobjdump():
    """Returns the path of the disassembler in triton's wheel; the toolkit may come without."""
    triton = pytest.importorskip("triton")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not path.exists():
        pytest.skip("triton's wheel has no cuobjdump")
    return path


def what_triton_makes(script, tmp_path_factory):
    """Returns what a script of this folder found of Triton's kernels, in a process of its own."""
    pytest.importorskip("triton")
    folder = made_once(tmp_path_factory, script, lambda folder: _look_at_triton(script, folder))
    return json.loads((folder / "report.json").read_text())


def _look_at_triton(script, folder):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "ops")])
    done = subprocess.run(
        [sys.executable, str(HELPERS / f"{script}.py")],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    (folder / "report.json").write_text(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def triton_report(tmp_path_factory):
    """What compile_triton.py found, by architecture and case, from a process of its own."""
    return what_triton_makes("compile_triton", tmp_path_factory)


@pytest.mark.parametrize("arch", ("80", "90", "100"))
def test_triton_kernels_are_exact_and_vectorised(triton_report, arch):
    cases = triton_report["kernels"][arch]
    assert len(cases) > 5
    for name, case in cases.items():
        assert case["fused"] == 0, name
        assert case["approximate"] == 0, name
        # One Philox block serves four elements: of the four of a thread, two radii a noise.
        assert case["div.rn"] == 2 * case["noises"], name
        assert case["sqrt.rn"] == 2 * case["noises"], name
        assert case["ld.global.v4"] == case["wide loads"], name
        assert case["ld.global.v2"] == case["half loads"], name
        assert case["st.global.v4"] == case["wide stores"], name
        assert case["st.global.v2"] == case["half stores"], name
        assert case["spills"] == 0, name


def test_triton_launches_do_not_compile_for_every_seed_and_weight(triton_report):
    """The launchers' own arguments, with a stand-in for the driver that launches nothing."""
    launches = triton_report["launches"]
    assert launches["combine, other weights, seeds and stages"] == 1
    assert launches["combine, sizes 1, 2, 16, 1024 and 2048"] <= 5
    assert launches["combine, nothing but a status"] == 1
    assert launches["normal, other seeds, stages and scales"] == 1


def compile_cuda(name, arch, tmp_path_factory):
    """Returns what the CUDA build made of csrc/ops/<name>/cuda.cu for an architecture.

    That is (object file, its architecture, by kernel the numbers of `resources`).
    """
    folder = cuda_build(tmp_path_factory)
    (built,) = folder.glob(f"temp/**/csrc/ops/{name}/cuda.o")
    target = "sm_" + arch.replace(".", "")
    return (built, target), resources(built, target)


def cuda_build(tmp_path_factory):
    """Returns the folder of the whole CUDA build, outside the package; nothing of it is loaded."""
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    return made_once(tmp_path_factory, "cuda_build", _build_cuda)


def _build_cuda(folder):
    environment = {
        **os.environ,
        "DIFFAST_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": ";".join(ARCHITECTURES),
    }
    program = (
        "import setuptools, sys; sys.argv = ['setup.py', 'build_ext', '--build-lib', "
        f"{str(folder / 'lib')!r}, '--build-temp', {str(folder / 'temp')!r}]\n"
        "original = setuptools.setup\n"
        "def setup(**options):\n"
        "    only = [e for e in options['ext_modules'] if e.name == 'diffast._cuda']\n"
        "    original(**{**options, 'ext_modules': only})\n"
        "setuptools.setup = setup\n"
        "exec(open('setup.py').read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert not re.search(r"\.(cu|cuh|h)\(\d+\): warning", done.stdout + done.stderr)


def _dump(built, target, what):
    command = [str(cuobjdump()), "-arch", target, what, str(built)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(built, target):
    """Returns by kernel [bytes of stack, bytes of local memory, registers]: spills are stack."""
    found = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)",
        _dump(built, target, "--dump-resource-usage"),
    )
    return {kernel: [int(stack), int(local), int(regs)] for kernel, regs, stack, local in found}


def instructions(compiled):
    """Returns the SASS opcodes by kernel: {mangled name: [opcode, ...]}."""
    text = _dump(*compiled, "--dump-sass")
    found = {}
    for part in text.split("Function : ")[1:]:
        opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", part)
        found[part.split()[0]] = opcodes
    return found


def check_no_spills(report, kernels):
    assert len(report) == kernels
    for kernel, (stack, local, registers) in report.items():
        assert (stack, local) == (0, 0), kernel
        assert registers <= 255, kernel


def check_cuda(arch, tmp_path_factory):
    cubin, report = compile_cuda("combine", arch, tmp_path_factory)
    check_no_spills(report, 42)
    for kernel, opcodes in instructions(cubin).items():
        assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
        # Mangled template arguments: type, columns, aligned, noise.
        arguments = re.search(r"kernelI(.)Li(\d+)ELb(\d)ELb(\d)", kernel).groups()
        kind, columns, aligned, noise = arguments
        # With noise there are those inside division and root, as many as in `normal`.
        fused = [opcode for opcode in opcodes if re.match("[FD]FMA", opcode)]
        assert len(fused) == (29 if noise == "1" else 0), kernel
        if aligned == "1":
            wide = 3 if kind == "d" else 1  # a double column: two parts, or one of float32
            assert opcodes.count("LDG.E.128") == wide * int(columns), kernel
            assert opcodes.count("STG.E.128") == wide, kernel
            assert "STG.E" not in opcodes, kernel
    cubin, report = compile_cuda("normal", arch, tmp_path_factory)
    check_no_spills(report, 4)
    for kernel, opcodes in instructions(cubin).items():
        assert sum(opcode.startswith("FFMA") for opcode in opcodes) == 29, kernel
        if "Lb1" in kernel:
            assert "STG.E.128" in opcodes, kernel


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_kernels_have_wide_accesses_and_no_spills(arch, tmp_path_factory):
    check_cuda(arch, tmp_path_factory)


@pytest.mark.parametrize("name", ("combine", "normal"))
def test_cuda_arithmetic_is_rounded_as_written(name, tmp_path):
    """The PTX has no fused, flushed or approximate operation; nvcc makes it in two seconds."""
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    ptx = tmp_path / "kernel.ptx"
    source = ROOT / "csrc" / "ops" / name / "cuda.cu"
    command = [str(NVCC), *FLAGS, "-arch=sm_90", "-ptx", "-o", str(ptx), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    operations = set(re.findall(r"^\s*(?:@%\w+ )?([a-z]+(?:\.\w+)+)", ptx.read_text(), re.M))
    floats = {op for op in operations if op.endswith((".f32", ".f64"))}
    assert {"div.rn.f32", "sqrt.rn.f32", "mul.rn.f32", "add.rn.f32"} <= floats
    for op in floats:
        # Without .rn the assembler would be free to fuse a product with a sum.
        assert not re.match(r"(mul|add|sub|div|sqrt)\.", op) or ".rn" in op, op
        assert not op.startswith(("fma", "mad")), op
        assert not {"ftz", "approx", "full"} & set(op.split(".")), op


def test_nvcc_flags_are_those_of_the_build():
    setup = (ROOT / "setup.py").read_text()
    listed = re.search(r"NVCC_FLAGS = (\[.*?\])", setup, re.S)[1]
    assert json.loads(listed) == FLAGS


def test_cuda_sources_include_no_torch_header():
    """They know a call by its args.h; the checks alone, csrc/*/checks.h, speak of tensors."""
    sources = (ROOT / "csrc").rglob("*")
    files = [f for f in sources if f.suffix in (".cu", ".cuh", ".h") and f.parent.name != "cpu"]
    files = [f for f in files if f.name != "checks.h"]
    assert len(files) >= 20
    for file in files:
        assert not re.search(r'#include\s+[<"](torch|ATen|c10)/', file.read_text()), file
        assert not re.search(r'#include.*checks\.h"', file.read_text()), file


@pytest.mark.slow
def test_the_cuda_library_uses_the_stable_abi_only(tmp_path_factory):
    if shutil.which("nm") is None:
        pytest.skip("nm is missing: nothing to look at the library with")
    (library,) = cuda_build(tmp_path_factory).glob("lib/diffast/_cuda*.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "--demangle", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [line.split(maxsplit=1)[1].removeprefix("U ").strip() for line in listed.splitlines()]
    assert not [name for name in names if re.match(r"(at|c10|torch|caffe2)::|cuda|cu[A-Z]", name)]
    assert "aoti_torch_get_current_cuda_stream" in names
