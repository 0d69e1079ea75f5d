"""What users meet when they look around: dir, help, misspelt names, signatures, aliases."""

import ast
import inspect
import pydoc
import re
import subprocess
import sys

import numpy as np
import pytest
from places import ROOT

import diffast as df
from diffast.solvers import aliases
from diffast.solvers.correctors.parse import CORRECTORS

NAMESPACES = {
    "df.solvers": (df.solvers, df.solvers.SOLVERS),
    "df.grids": (df.grids, df.grids.__all__),
    "df.schedules": (df.schedules, df.schedules.__all__),
    "df.embedded": (df.embedded, df.embedded.EMBEDDED),
    "df.correctors": (df.correctors, CORRECTORS),
}
each_namespace = pytest.mark.parametrize("name", NAMESPACES)


@each_namespace
def test_dir_is_what_is_public(name):
    module, _ = NAMESPACES[name]
    assert dir(module) == sorted(module.__all__)
    assert all(callable(getattr(module, public)) for public in dir(module))


def test_dir_of_the_package_and_of_the_solvers():
    assert dir(df) == sorted(df.__all__)
    assert dir(df.solvers) == sorted(df.solvers.__all__)
    libraries = ["azula", "diffusers", "lucidrains", "monai", "sbi"]
    assert dir(df.integrations) == [
        *("comfyui", "diffusers", "edm"),
        *(f"from_{library}" for library in libraries),
        "k_diffusion",
    ]


def test_an_interface_whose_tool_is_missing_is_no_attribute(monkeypatch):
    """So hasattr, help and inspect go on; the message says what is missing."""

    def missing(name):
        raise ModuleNotFoundError("No module named 'comfy'", name="comfy")

    monkeypatch.setattr(df.integrations, "import_module", missing)
    monkeypatch.delattr(df.integrations, "comfyui", raising=False)
    assert not hasattr(df.integrations, "comfyui")
    with pytest.raises(AttributeError, match="comfyui needs comfy, which is not installed"):
        _ = df.integrations.comfyui


@each_namespace
def test_help_has_a_line_for_each(name):
    module, names = NAMESPACES[name]
    text = pydoc.plain(pydoc.render_doc(module))
    head = text[: text.index("PACKAGE CONTENTS")]
    for one in names:
        assert re.search(rf"^ +{one} +\S", head, re.M), one


@pytest.mark.parametrize(
    ("module", "wrong", "near"),
    [
        (df, "solver", "solvers"),
        (df, "Denoizer", "Denoiser"),
        (df.solvers, "dpmp_2m", "dpmpp_2m or dpm_2 or dpmpp_3m"),
        (df.solvers, "Euler", "euler"),
        (df.grids, "karas", "karras"),
        (df.schedules, "vp_lin", "vp_linear"),
        (df.embedded, "RungeKuta", "RungeKutta"),
        (df.integrations, "diffuser", "diffusers"),
    ],
)
def test_a_misspelt_attribute_names_the_nearest(module, wrong, near):
    name = module.__name__
    with pytest.raises(AttributeError) as caught:
        getattr(module, wrong)
    said = re.escape(f"module '{name}' has no attribute '{wrong}' (did you mean {near}")
    assert re.match(said, str(caught.value)), caught.value


def test_nothing_near_names_nothing():
    with pytest.raises(AttributeError, match=r"^module 'diffast' has no attribute 'xyzzy'$"):
        df.xyzzy  # noqa: B018


def test_get_names_the_nearest_and_all():
    with pytest.raises(ValueError, match=r"'dpmp_2m' is not known \(did you mean dpmpp_2m or"):
        df.solvers.get("dpmp_2m")
    with pytest.raises(ValueError, match=r"'dopri' is not known \(did you mean dopri5\?\), but"):
        df.embedded.get("dopri")
    assert df.solvers.get("euler") is df.solvers.euler


def test_the_old_name_of_the_embedded_solvers():
    assert df.pairs is df.embedded


def test_looking_around_loads_no_torch():
    program = (
        "import sys; sys.modules['torch'] = None\nimport diffast as df\n"
        "dir(df); df.embedded, df.solvers.__doc__\n"
        "try:\n    df.solver\nexcept AttributeError as error:\n    print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "module 'diffast' has no attribute 'solver' (did you mean solvers?)\n"


def test_the_stub_has_every_public_name_from_where_it_lives():
    tree = ast.parse((ROOT / "diffast" / "__init__.pyi").read_text())
    homes, listed = {}, []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                is_module = (ROOT / below.replace(".", "/")).is_dir()
                homes[alias.asname] = below if is_module else node.module
        elif isinstance(node, ast.Assign):
            listed = ast.literal_eval(node.value)
    assert homes == df._HOMES
    assert listed == df.__all__
    assert (ROOT / "diffast" / "py.typed").exists()


PUBLIC = [(m, name) for m in (df.solvers, df.grids, df.schedules) for name in m.__all__]


@pytest.mark.parametrize(
    ("module", "name"), PUBLIC, ids=lambda x: x if isinstance(x, str) else x.__name__
)
def test_public_functions_are_annotated(module, name):
    function = getattr(module, name)
    if inspect.isclass(function):
        return
    signature = inspect.signature(function)
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize(
    "schedule",
    [
        df.schedules.edm(),
        df.schedules.vp_linear(),
        df.schedules.sub_vp(),
        df.schedules.vp_cosine(),
        df.schedules.flow(),
        df.schedules.trig(),
        df.schedules.from_betas(np.linspace(1e-4, 0.02, 10)),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_keep_the_protocol(schedule):
    assert isinstance(schedule, df.schedules.Schedule)


def test_another_object_does_not_keep_the_protocol():
    assert not isinstance(np.zeros(3), df.schedules.Schedule)


ALIASES = {
    "euler_ancestral": ("ddim", {"eta": 1.0}),
    "ralston": ("midpoint", {"r": 2 / 3}),
    "dpm_2": ("dpm_solver_2s", {}),
    "etdrk2": ("res_2s", {"c2": 1.0}),
    "res_2m": ("exponential_adams", {"order": 2}),
    "res_3m": ("exponential_adams", {"order": 3}),
}


def test_aliases_are_all_here():
    assert {n for n in df.solvers.SOLVERS if hasattr(aliases, n)} - {
        "ddim",
        "midpoint",
        "dpm_solver_2s",
        "res_2s",
        "exponential_adams",
    } == set(ALIASES)


@pytest.mark.parametrize("name", ALIASES)
def test_an_alias_is_the_same_map_by_its_own_name(name):
    of, options = ALIASES[name]
    schedule = df.schedules.vp_linear()
    grid = df.grids.karras(schedule, 6)
    build = df.solvers.get(name)
    plan, same = build(schedule, grid), df.solvers.get(of)(schedule, grid, **options)
    for table in ("times", "matrix", "levels"):
        assert np.array_equal(getattr(plan, table), getattr(same, table), equal_nan=True)
    assert plan.name.startswith(name)
    assert build.__name__ == name
    assert not set(inspect.signature(build).parameters) & (set(options) - {"eta"})
    doc = inspect.cleandoc(build.__doc__)
    assert doc.startswith("Returns ") and "\nRaises:\n" in doc
    described = re.findall(
        r"^ {4}(\w+): ", doc.partition("\nArgs:")[2].partition("\nRaises:")[0], re.M
    )
    assert set(described) == set(inspect.signature(build).parameters)


def test_an_alias_refuses_in_its_own_name():
    schedule = df.schedules.vp_linear()
    grid = df.grids.karras(schedule, 6)
    with pytest.raises(ValueError, match=r"^dpm_2: r = 2, but it must lie in"):
        df.solvers.dpm_2(schedule, grid, r=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'r'"):
        df.solvers.ralston(schedule, grid, r=0.5)
    assert inspect.signature(df.solvers.euler_ancestral).parameters["eta"].default == 1.0
