"""What is shipped: the binaries and their symbols, the one clear line, the loader's manners."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest
import setuptools
import torch
from places import ROOT

import diffast as df

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def run_python(program, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd="/"
    )


def test_the_compiled_cpu_kernels_serve_the_cpu():
    entry = df.backends()["cpu"]
    assert entry["backend"].startswith("c++"), entry


def test_the_cpu_library_uses_the_stable_abi_only():
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    (library,) = (ROOT / "diffast").glob("_cpu.abi3.so")
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", "--demangle", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [line.split(maxsplit=1)[1].removeprefix("U ").strip() for line in listed.splitlines()]
    foreign = [name for name in names if re.match(r"(at|c10|torch|caffe2)::", name)]
    assert not foreign
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in names)


def test_backend_override_is_obeyed_and_checked():
    program = "import diffast as df; print(df.backends()['cpu']['backend'])"
    assert run_python(program, DIFFAST_BACKEND="reference").stdout == "reference\n"
    assert run_python(program, DIFFAST_CPU_ISA="base").stdout == "c++ (base)\n"
    wrong = run_python(program, DIFFAST_BACKEND="metal")
    assert "DIFFAST_BACKEND is 'metal' but must be one of cuda, triton, reference" in wrong.stderr


def copy_package(tmp_path):
    package = tmp_path / "diffast"
    skip = shutil.ignore_patterns("*.so", "weights", "__pycache__")
    shutil.copytree(ROOT / "diffast", package, ignore=skip)
    return package


SAMPLE = """
import torch, diffast as df
s = df.schedules.edm()
plan = df.solvers.euler_ancestral(s, df.grids.karras(s, 5))
out = df.sample(df.Denoiser(lambda x, t: x * 0.1, s, "x0"), plan, shape=(2, 3, 5))
print(df.backends()['cpu']['backend'], '|', df.backends()['cpu']['reason'])
print(out.x.view(torch.int32).flatten().tolist())
"""


def test_a_missing_binary_is_remembered_and_the_reference_gives_the_same_bits(tmp_path):
    copy_package(tmp_path)
    bare = run_python(SAMPLE, PYTHONPATH=str(tmp_path))
    built = run_python(SAMPLE)
    assert bare.returncode == built.returncode == 0, bare.stderr + built.stderr
    assert bare.stdout.splitlines()[0].startswith("reference | the compiled _cpu is missing")
    assert built.stdout.splitlines()[0].startswith("c++")
    assert bare.stdout.splitlines()[1] == built.stdout.splitlines()[1]


def test_a_broken_binary_is_loud(tmp_path):
    package = copy_package(tmp_path)
    (package / "_cpu.abi3.so").write_bytes(b"not a library")
    broken = run_python("import diffast as df; df.backends()", PYTHONPATH=str(tmp_path))
    assert broken.returncode != 0
    assert "_cpu.abi3.so" in broken.stderr


def setup(program_before, *arguments, root=ROOT, **environment):
    program = (
        f"{program_before}\nimport sys, os, runpy\nos.chdir({str(root)!r})\n"
        f"sys.argv = ['setup.py', *{arguments}]\nrunpy.run_path('setup.py', run_name='__main__')"
    )
    return run_python(program, **environment)


NO_TORCH = "import sys; sys.modules['torch'] = None"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what git holds: building leaves files behind."""
    root = tmp_path_factory.mktemp("checkout") / "diffast"
    skip = shutil.ignore_patterns(
        *(".git", ".venv", ".*_cache", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    )
    shutil.copytree(ROOT, root, ignore=skip)
    return root


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert setup(NO_TORCH, "--version").stdout.strip() == df.__version__


@pytest.mark.parametrize("command", ["build_ext", "bdist_wheel"])
def test_building_without_torch_says_so_in_one_line(command, checkout):
    refused = setup(NO_TORCH, "-q", command, root=checkout)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1:] == [
        "diffast builds against the torch you already have: install torch, then "
        "pip install --no-build-isolation ."
    ]
    assert "Traceback" not in refused.stderr


def test_the_sdist_is_made_without_torch_and_holds_what_building_and_testing_need(checkout):
    made = setup(NO_TORCH, "-q", "sdist", root=checkout)
    assert made.returncode == 0, made.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
        info = held.extractfile(f"diffast-{df.__version__}/PKG-INFO").read().decode()
    for folder in ("bench", "csrc", "diffast", "docs", "examples", "tests"):
        files = [p for p in (checkout / folder).rglob("*") if p.is_file()]
        assert {str(p.relative_to(checkout)) for p in files} <= names, folder
    assert {"Makefile", "pyproject.toml", "setup.py", ".ci/run", "CHANGELOG.md"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    for field in ("Author: ", "Keywords: ", "License-Expression: Apache-2.0", "Classifier: Typing"):
        assert f"\n{field}" in info


def test_the_cuda_switch_is_checked(tmp_path):
    assert (
        "DIFFAST_CUDA is 'yes' but must be 0 or 1"
        in setup("", "--version", DIFFAST_CUDA="yes").stderr
    )
    if torch.version.cuda is None:
        refused = setup("", "--version", DIFFAST_CUDA="1", CUDA_HOME=str(tmp_path))
        assert f"are not both in {tmp_path}: set CUDA_HOME" in refused.stderr


@pytest.mark.parametrize(
    ("listed", "cards", "wanted"),
    [
        ("9.0", [(8, 0)], "9.0"),
        ("", [(9, 0), (9, 0)], "9.0"),
        ("", [(9, 0), (8, 6)], "8.6;9.0"),
        ("", [], "8.0;9.0;10.0+PTX"),
    ],
)
def test_a_build_is_for_the_cards_at_hand_unless_it_is_told_others(
    listed, cards, wanted, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: cards[device])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("DIFFAST_CUDA", "0")
    monkeypatch.chdir(ROOT)
    assert runpy.run_path(str(ROOT / "setup.py"))["architectures"]() == wanted


def test_base_install_is_small():
    names = {re.match(r"[a-z0-9_-]+", d).group() for d in PROJECT["project"]["dependencies"]}
    assert names == {"torch", "numpy", "safetensors", "tqdm"}


def test_a_png_without_pillow_is_refused_before_the_work(tmp_path):
    program = (
        "import sys; sys.modules['PIL'] = None\n"
        "import diffast.cli.output as output\n"
        "output.find_spec = lambda name: None\n"
        "from diffast.cli import main\n"
        f"sys.exit(main(['sample', '--out', {str(tmp_path / 'a.png')!r}]))"
    )
    refused = run_python(program)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"diffast: output {tmp_path}/a.png needs Pillow, which is not installed: "
        "pip install 'diffast[pictures]', or write .npz or .safetensors\n"
    )


def test_import_is_lean():
    program = (
        "import sys, torch; before = set(sys.modules)\nimport diffast as df; df.sample; df.ops\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'tqdm', 'safetensors', 'PIL', 'scipy', 'triton'}))"
    )
    if torch.version.cuda is not None:
        pytest.skip("a CUDA torch may load triton for its kernels")
    done = run_python(program)
    assert done.stdout == "[]\n", done.stderr
