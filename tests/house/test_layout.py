"""The house rules: import-linter's contracts, forbidden words, loading on demand, short files."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from places import ROOT

import diffast

PACKAGE = ROOT / "diffast"
MODULES = sorted(PACKAGE.rglob("*.py"))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS = PROJECT["tool"]["importlinter"]["contracts"]
(LAYERS,) = (contract["layers"] for contract in CONTRACTS if contract["id"] == "layers")
ROOMS = {room.strip() for layer in LAYERS for room in layer.split("|")}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def lint_imports(root: Path) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
    ]
    config = str(ROOT / "pyproject.toml")
    return subprocess.run(
        [*command, "--no-cache", "--no-logo", config],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_imports_follow_the_contracts():
    run = lint_imports(ROOT)
    assert run.returncode == 0, run.stdout + run.stderr


# A module of the package, a line that it must not hold, and the contract that says so.
FORBIDDEN = (
    (
        "solvers/ode/euler.py",
        "import torch",
        "schedules, grids, plans, solvers and planning know numpy alone",
    ),
    (
        "plans/file.py",
        "import torch",
        "schedules, grids, plans, solvers and planning know numpy alone",
    ),
    ("ops/noise.py", "import numpy", "ops know torch and triton alone"),
    (
        "model/denoiser.py",
        "import tqdm",
        "guidance, ops, model, noise and lowering know torch and numpy alone",
    ),
    ("model/denoiser.py", "import triton", "triton stays in ops"),
    ("noise/brownian.py", "import diffast.plans", "who imports plans"),
    ("lowering/program.py", "import diffast.solvers.ode.euler", "who imports solvers"),
    ("executors/stepwise.py", "import diffast.solvers.sde.pec", "who imports solvers"),
    ("lowering/program.py", "import diffast.ops", "who imports ops"),
    ("lowering/program.py", "import diffast.executors.stepwise", "who imports executors"),
    (
        "lowering/program.py",
        "import diffast.model.denoiser",
        "who imports model, noise and lowering",
    ),
    ("executors/stepwise.py", "import diffast.cli", "nothing imports integrations, cli or digits"),
    ("new_room/__init__.py", "import os", "rooms, from the top down"),
)


def test_the_contracts_can_fail(tmp_path):
    skip = shutil.ignore_patterns("*.so", "weights", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "diffast", ignore=skip)
    (tmp_path / "diffast" / "new_room").mkdir()
    for path, line, _ in FORBIDDEN:
        with (tmp_path / "diffast" / path).open("a") as file:
            file.write(f"\n{line}\n")
    run = lint_imports(tmp_path)
    assert run.returncode == 1, run.stderr
    broken = set(re.findall(r"^(.*) BROKEN\b", run.stdout, re.M))
    assert {contract for *_, contract in FORBIDDEN} <= broken
    for path, line, _ in FORBIDDEN:
        module = "diffast." + path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        assert re.search(rf"{module} -> {line.split()[-1]} |- {module}$", run.stdout, re.M), path


def test_every_third_party_is_in_a_contract():
    """A contract forbids by name, so that a third party no contract names would slip through."""
    named = set()
    for contract in CONTRACTS:
        named |= set(contract.get("forbidden_modules", ()))
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    assert found - sys.stdlib_module_names - {"diffast"} <= named


def code_only(path: Path) -> str:
    """The source without docstrings and comments."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                body[0] = ast.Pass()
    return ast.unparse(tree)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_words_stay_where_they_belong(path):
    code = code_only(path)
    part = part_of(path)
    if part != "ops":
        assert "torch.ops" not in code
        assert not re.search(r"\bimport triton|from triton", code)
    if part not in ("model", "__init__", "integrations"):
        assert "epsilon" not in code
    for word in ("pickle", "torch.load", "urllib", "requests", "huggingface_hub"):
        assert word not in code


def test_plans_are_made_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import diffast as df\n"
        "s = df.schedules.edm(); print(df.solvers.heun(s, df.grids.karras(s, 4)).stages)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "7\n", run.stderr


def test_every_public_name_resolves():
    assert set(diffast.__all__) <= set(dir(diffast))
    for name in diffast.__all__:
        assert getattr(diffast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        diffast.nothing  # noqa: B018


def test_files_stay_short():
    files = [
        *MODULES,
        *ROOT.glob("csrc/**/*.*"),
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("bench/*.py"),
    ]
    long = {
        str(f.relative_to(ROOT)): n for f in files if (n := len(f.read_text().splitlines())) > 500
    }
    assert not long


def test_cuda_sources_include_no_torch_header():
    for path in (ROOT / "csrc").rglob("*.cu*"):
        assert "torch/" not in path.read_text(), path


def test_interfaces_are_loaded_when_asked_for():
    program = (
        "import sys, diffast as df\n"
        "assert df.integrations.k_diffusion.sample_heun and df.integrations.edm.edm_sampler\n"
        "assert not {'diffusers', 'k_diffusion', 'transformers'} & {*sys.modules}\n"
        "try:\n    df.integrations.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "module 'diffast.integrations' has no attribute 'nothing'\n", run.stderr


def test_slow_tests_exist():
    """A name in slow.txt that matches nothing would slow `make test` down without a word."""
    defined = [
        f"{path.name}::{name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    ]
    for line in (ROOT / "tests" / "slow.txt").read_text().splitlines():
        line = line.split("#")[0].lstrip("-").strip()
        if line:
            pattern = re.escape(line.partition("[")[0]).replace(r"\*", ".*")
            assert any(re.fullmatch(pattern, name) for name in defined), line
