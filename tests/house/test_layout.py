"""The house rules that can be checked: who imports whom, forbidden words, the length of files."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import diffast

PACKAGE = ROOT / "diffast"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each part may import besides the standard library. A part ends where the next longer name
# begins; "diffast.x" allows that module and what is below it.
ALLOWED = {
    "schedules": {"numpy", "diffast.schedules"},
    "grids": {"numpy", "diffast.schedules", "diffast.grids"},
    "plan": {"numpy", "diffast.schedules", "diffast.plan"},
    "solvers": {"numpy", "diffast.schedules", "diffast.grids", "diffast.plan", "diffast.solvers"},
    "ops": {"torch", "triton", "diffast.ops"},
    "model": {
        "torch",
        "numpy",
        "diffast.schedules",
        "diffast.plan",
        "diffast.solvers",
        "diffast.ops",
        "diffast.model",
    },
    "noise": {"torch", "numpy", "diffast.ops", "diffast.noise"},
    "lowering": {"torch", "numpy", "diffast.plan", "diffast.solvers", "diffast.lowering"},
    "executors": {
        "torch",
        "numpy",
        "tqdm",
        "diffast.ops",
        "diffast.plan",
        "diffast.solvers",
        "diffast.model",
        "diffast.noise",
        "diffast.lowering",
        "diffast.executors",
    },
    "digits": {"torch", "numpy", "safetensors", "diffast.digits"},
}
# Faces of the package: they may import anything of it, and nothing imports them.
FACES = {"__init__", "__main__", "cli", "integrations"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                file = ROOT / below.replace(".", "/")
                is_module = file.with_suffix(".py").exists() or file.is_dir()
                yield below if is_module else node.module


def standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


def allowed(name: str, rules: set[str]) -> bool:
    return any(name == rule or name.startswith(rule + ".") for rule in rules)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path):
    part = part_of(path)
    if part in FACES:
        return
    assert part in ALLOWED, f"{part} has no import rule: add it to docs/architecture.md and here"
    for name in imports_of(ast.parse(path.read_text())):
        assert standard(name) or allowed(name, ALLOWED[part]), f"{part} imports {name}"


def test_the_rules_can_fail():
    tree = ast.parse("from diffast.executors import sequential\nimport torch.nn")
    assert [n for n in imports_of(tree) if not allowed(n, ALLOWED["plan"])] == [
        "diffast.executors.sequential",
        "torch.nn",
    ]


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
