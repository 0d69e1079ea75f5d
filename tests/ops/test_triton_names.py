"""A trap of Triton's compiler that its interpreter does not have: names of the same tensor.

Before a loop `before = x` makes two names of one tensor. If the loop then says `before = x` again,
for the x of its own, the compiler sees no change of `before` and does not carry it: after the loop
it is the x from before the loop.
"""

import ast

import pytest
from places import ROOT

KERNELS = sorted((ROOT / "diffast" / "ops").glob("**/*.py"))


def _copies(node: ast.AST) -> set[tuple[str, str]]:
    """Returns the assignments of a name to a name in a node, (target, source)."""
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Assign) and isinstance(part.value, ast.Name):
            for target in part.targets:
                if isinstance(target, ast.Name):
                    found.add((target.id, part.value.id))
    return found


def traps(source: str) -> list[str]:
    """Returns what a loop of a jitted function copies as it was copied before the loop."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        if not any("jit" in ast.unparse(d) for d in function.decorator_list):
            continue
        for loop in ast.walk(function):
            if isinstance(loop, ast.For | ast.While):
                outer = _outside(function, loop)
                found += [
                    f"{function.name}: {a} = {b}" for a, b in _copies(loop) if (a, b) in outer
                ]
    return found


def _outside(function: ast.FunctionDef, loop: ast.For | ast.While) -> set[tuple[str, str]]:
    inner = {id(part) for part in ast.walk(loop)}
    lines = [p for p in ast.walk(function) if isinstance(p, ast.Assign) and id(p) not in inner]
    return {pair for line in lines if line.lineno < loop.lineno for pair in _copies(line)}


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: str(p.relative_to(ROOT / "diffast/ops")))
def test_no_loop_copies_a_name_that_was_copied_before_it(path):
    assert traps(path.read_text()) == []


def test_the_trap_is_seen():
    body = "    for k in range(n):\n        before = x\n        x = x * 2.0\n"
    head = "@triton.jit\ndef kernel(p, n):\n    x = tl.load(p)\n"
    assert traps(f"{head}    before = x\n{body}") == ["kernel: before = x"]
    assert traps(f"{head}    before = tl.zeros_like(x)\n{body}") == []
