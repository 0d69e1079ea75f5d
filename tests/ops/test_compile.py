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


def compile_cuda(name, arch, tmp_path_factory, source="cuda"):
    """Returns what the CUDA build made of csrc/ops/<name>/<source>.cu for an architecture.

    That is (object file, its architecture, by kernel the numbers of `resources`).
    """
    folder = cuda_build(tmp_path_factory)
    (built,) = folder.glob(f"temp/**/csrc/ops/{name}/{source}.o")
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


def check_opcodes(kernel, opcodes, *, loads, stores, blocks=0, elements=0):
    """Asserts what a kernel's SASS has of the opcodes that speed and equal bits rest on.

    Args:
        kernel: its name, for messages.
        opcodes: of all its instructions.
        loads: of 16 bytes.
        stores: of 16 bytes, at least: compilers may copy the code of a row.
        blocks: of Philox that a thread draws, at least: two quotients (4 fused operations) and two
            roots (5) each.
        elements: of a thread. Each copy of a row's code multiplies as many by 0, by which sums that
            are not finite are found. That nothing else is fused is seen in the PTX.
    """
    assert not {"LDL", "STL"} & {opcode.split(".")[0] for opcode in opcodes}, kernel
    quotients = opcodes.count("MUFU.RCP")
    assert opcodes.count("MUFU.RSQ") == quotients == opcodes.count("FFMA.RP"), kernel
    assert quotients >= 2 * blocks and (quotients == 0) == (blocks == 0), kernel
    fused = [opcode for opcode in opcodes if re.match("[FD]FMA", opcode)]
    probes = len(fused) - 9 * quotients
    assert probes == 0 if elements == 0 else probes > 0 and probes % elements == 0, (kernel, fused)
    if loads is not None:
        assert opcodes.count("LDG.E.128") == loads, kernel
        assert opcodes.count("STG.E.128") >= stores, kernel
        assert "STG.E" not in opcodes, kernel


def check_combine(arch, tmp_path_factory):
    cubin, report = compile_cuda("combine", arch, tmp_path_factory)
    check_no_spills(report, 54)
    for kernel, opcodes in instructions(cubin).items():
        # Mangled template arguments: of AnyTypes, then columns and noise.
        found = re.search(r"(host|combine)_kernelINS\w*AnyTypesI(.)Lb(\d)EEELi(\d+)ELb(\d)", kernel)
        form, kind, aligned, columns, noise = found.groups()
        wide = 3 if kind == "d" else 1  # a double column: two parts, or one of float32
        rows = 2 if form == "host" else 1  # the first row has code of its own
        loads, stores = (wide * int(columns), wide * rows) if aligned == "1" else (None, None)
        check_opcodes(kernel, opcodes, loads=loads, stores=stores, blocks=int(noise), elements=4)


def check_halves(arch, tmp_path_factory):
    cubin, report = compile_cuda("combine", arch, tmp_path_factory, "cuda_half")
    check_no_spills(report, 36)
    for kernel, opcodes in instructions(cubin).items():
        found = re.search(r"(host|combine)_kernelINS\w*OneTypeIL\w+?EEELi(\d+)ELb(\d)", kernel)
        form, columns, noise = found.groups()
        rows = 2 if form == "host" else 1
        check_opcodes(
            kernel,
            opcodes,
            loads=int(columns),
            stores=rows,
            blocks=2 * int(noise),  # eight elements
            elements=8,
        )


def check_normal(arch, tmp_path_factory):
    cubin, report = compile_cuda("normal", arch, tmp_path_factory)
    check_no_spills(report, 4)
    for kernel, opcodes in instructions(cubin).items():
        check_opcodes(kernel, opcodes, loads=None, stores=None, blocks=1)
        if "Lb1" in kernel:
            assert "STG.E.128" in opcodes, kernel


@pytest.mark.slow
@pytest.mark.parametrize("check", (check_combine, check_halves, check_normal))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_cuda_kernels_have_wide_accesses_and_no_spills(arch, check, tmp_path_factory):
    check(arch, tmp_path_factory)


def floats_of_ptx(name, folder, source="cuda"):
    """Returns the kinds of float operations in an op's PTX, after a look at how they round."""
    if not NVCC.exists():
        pytest.skip(f"{NVCC} is missing: nothing to compile CUDA with")
    ptx = folder / "kernel.ptx"
    path = ROOT / "csrc" / "ops" / name / f"{source}.cu"
    command = [str(NVCC), *FLAGS, "-arch=sm_90", "-ptx", "-o", str(ptx), str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = set()
    for kernel in ptx.read_text().split(".entry")[1:]:
        found |= _floats_of_kernel(kernel)
    return found


def _floats_of_kernel(text):
    lines = re.findall(r"^\s*(?:@%\w+ )?([a-z]+(?:\.\w+)+)\s+(.*);", text, re.M)
    lines = [(op, rest.split(", ")) for op, rest in lines]
    floats = [(op, rest) for op, rest in lines if op.endswith((".f32", ".f64"))]
    # Explicit fused operations: those of quotients and roots, and products with 0.
    quotients = sum(op == "rcp.approx.ftz.f32" for op, _ in floats)
    roots = sum(op == "rsqrt.approx.ftz.f32" for op, _ in floats)
    zeros = {"0f00000000", "0d0000000000000000"}
    zeros |= {rest[0] for op, rest in lines if op.startswith("mov") and rest[1] in zeros}
    fused = [op for op, rest in floats if op.startswith("fma") and rest[2] not in zeros]
    assert fused.count("fma.rn.f32") == 3 * quotients + 5 * roots
    assert fused.count("fma.rp.f32") == quotients
    assert set(fused) <= {"fma.rn.f32", "fma.rp.f32"}
    for op, _ in floats:
        # Without .rn the assembler would be free to fuse a product with a sum.
        assert not re.match(r"(mul|add|sub|div|sqrt)\.", op) or ".rn" in op, op
        assert not op.startswith(("mad", "atom", "red")), op
        if op not in ("rcp.approx.ftz.f32", "rsqrt.approx.ftz.f32"):
            assert not {"ftz", "approx", "full"} & set(op.split(".")), op
    return {op for op, _ in floats}


@pytest.mark.parametrize("name", ("combine", "normal"))
def test_cuda_arithmetic_is_rounded_as_written(name, tmp_path):
    """Nothing is fused, flushed or approximate but what says so; nvcc takes two seconds."""
    floats = floats_of_ptx(name, tmp_path)
    assert {"rcp.approx.ftz.f32", "rsqrt.approx.ftz.f32", "mul.rn.f32", "add.rn.f32"} <= floats


def test_cuda_arithmetic_of_halves_is_rounded_as_written(tmp_path):
    floats = floats_of_ptx("combine", tmp_path, "cuda_half")
    assert {"rcp.approx.ftz.f32", "rsqrt.approx.ftz.f32", "mul.rn.f32", "add.rn.f32"} <= floats


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
