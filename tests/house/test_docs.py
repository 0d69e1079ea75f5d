"""docs/solvers.md names every solver, grid and schedule, with the options and orders they have."""

import inspect
import re

import numpy as np
import pytest
from places import ROOT
from solver_cases import ALL_SOLVERS
from test_embedded import BUILDS
from test_layout import PACKAGE, ROOMS

from diffast import grids, schedules, solvers
from diffast.solvers import embedded

DOCS = ROOT / "docs"
TEXT = (DOCS / "solvers.md").read_text()
AT_EMBEDDED, AFTER_EMBEDDED = TEXT.index("\n## Embedded solvers"), TEXT.index("\n## One map")
# name -> (options, columns ...)
ROW = re.compile(r"^\| `(\w+)\(([^`]*)\)` \| (.*) \|$", re.M)


def rows_of(text):
    return {name: (options, *rest.split(" | ")) for name, options, rest in ROW.findall(text)}


# name -> (options, order, calls, words) of the family tables; of the embedded solvers (options,
# time variable, order, the error's order, calls, words)
ROWS = rows_of(TEXT[:AT_EMBEDDED] + TEXT[AFTER_EMBEDDED:])
EMBEDDED_ROWS = rows_of(TEXT[AT_EMBEDDED:AFTER_EMBEDDED])
FRACTIONS = {"1/3": 1 / 3, "2/3": 2 / 3, "inf": np.inf}
each_solver = pytest.mark.parametrize("name", solvers.SOLVERS)


def test_solvers_are_all_there_and_no_others():
    assert set(ROWS) == set(solvers.SOLVERS)


@each_solver
def test_options(name):
    check_options(ROWS[name][0], list(inspect.signature(solvers.get(name)).parameters.values())[2:])


def check_options(text, parameters):
    written = [option for option in text.split(", ") if option]
    assert [option.partition("=")[0] for option in written] == [p.name for p in parameters]
    for option, parameter in zip(written, parameters, strict=True):
        _, given, text = option.partition("=")
        if not given:
            assert parameter.default in (None, inspect.Parameter.empty)
        else:
            value = FRACTIONS.get(text)
            assert (eval(text) if value is None else value) == parameter.default, option


@pytest.mark.parametrize("case", ALL_SOLVERS, ids=lambda case: case.name)
def test_orders_are_those_of_the_tests(case):
    if case.build is solvers.SOLVERS.get(case.name):  # no options
        order = ROWS[case.name][1]
        wanted = str(case.order) if case.order else "none"
        weak = " weak" if case.sense == "weak" and case.order else ""
        assert order == wanted + weak


each_embedded = pytest.mark.parametrize("name", embedded.EMBEDDED)


def test_embedded_solvers_are_all_there_and_no_others():
    assert set(EMBEDDED_ROWS) == set(embedded.EMBEDDED)


@each_embedded
def test_options_of_embedded_solvers(name):
    parameters = list(inspect.signature(embedded.get(name)).parameters.values())
    check_options(EMBEDDED_ROWS[name][0], parameters)


@each_embedded
def test_columns_of_embedded_solvers(name):
    _, variable, order, error, calls, _ = EMBEDDED_ROWS[name]
    solver = embedded.get(name)()
    runge_kutta = isinstance(solver, embedded.RungeKutta)
    assert variable == ("rho, flow" if runge_kutta else solver.time_variable)
    _, solution, of_error = BUILDS[f"{name}_{solver.time_variable}" if runge_kutta else name]
    weak = {case.name: f"{case.order} weak" for case in ALL_SOLVERS if case.sense == "weak"}
    assert order == (str(solution) if solution else weak[name])
    assert error == ("1.5" if solver.noise == "input" else str(of_error))
    assert float(calls) == solver.calls + (not solver.reuses_last_call)


@each_solver
def test_calls(name):
    # of a step in the middle: what one more makes
    options = {"restart": {"intervals": ()}}.get(name, {})
    space = schedules.vp_linear() if name.startswith("piadm") else schedules.edm()
    if name == "dpm_fast":
        calls = 3
        assert solvers.dpm_fast(space, grids.karras(space, 3, to_zero=False)).stages == 3 + 2 + 1
    else:
        few, more = (
            solvers.get(name)(space, grids.karras(space, n, to_zero=False), **options).nfe
            for n in (12, 14)
        )
        calls = (more - few) / 2
    assert float(ROWS[name][2]) == calls


@pytest.mark.parametrize(
    ("module", "prefix"),
    [(grids, "df.grids."), (schedules, "df.schedules.")],
    ids=["grids", "times"],
)
def test_grids_and_schedules_are_all_there(module, prefix):
    section = TEXT[TEXT.index(f"| `{prefix}`") :]
    section = section[: section.index("\n## ")]
    for name in module.__all__:
        if not inspect.isclass(getattr(module, name)):
            assert f"`{name}`" in section or f"`{name}(" in section, name
    # and what is there exists
    first = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")][1:]
    for name in re.findall(r"`(\w+)`", "".join(first)):
        assert hasattr(module, name), name


def test_sources_are_listed():
    keys = set(re.findall(r"\[((?:[A-Z]\w+\d\d[a-z]?(?:, )?)+)\]", TEXT))
    cited = {key for group in keys for key in group.split(", ")}
    listed = set(re.findall(r"\[(\w+)\]", TEXT[TEXT.index("## Sources") :]))
    assert cited == listed
    body = TEXT[: TEXT.index("## Sources")]
    assert all(re.search(rf"\b{key}\b", body) for key in listed)


@pytest.mark.parametrize(
    "path", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda p: p.name
)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    "path", [*DOCS.glob("*.md"), DOCS.parent / "README.md"], ids=lambda p: p.name
)
def test_files_that_are_named_exist(path):
    root = DOCS.parent
    for name in re.findall(r"`((?:tests|diffast|docs|bench|csrc)/[\w/]+\.\w+)`", path.read_text()):
        assert (root / name).exists(), name


def test_the_architecture_names_every_part():
    text = (DOCS / "architecture.md").read_text()
    named = set(re.findall(r"[`\s/](\w+\.py|\w+/)(?=[`\s])", text))
    parts = {part if (PACKAGE / part).is_dir() else f"{part}.py" for part in ROOMS}
    parts = {part if part.endswith(".py") else f"{part}/" for part in parts}
    for folder in ("solvers", "integrations/diffusers"):
        parts |= {path.name for path in (PACKAGE / folder).glob("*.py")} - {"__init__.py"}
    assert parts <= named, parts - named
