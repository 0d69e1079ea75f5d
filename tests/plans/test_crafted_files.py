"""Plan files that were made to do harm: one sentence, little memory, and never another meaning."""

import io
import json
import os
import struct
import sys
import zipfile

import numpy as np
import pytest
from places import ROOT

import diffast as df
from diffast import _files
from diffast.plans.file import MOST_STAGES, to_record

sys.path.insert(0, str(ROOT / "bench" / "attack"))

import files as attack  # noqa: E402

VP = df.schedules.vp_linear()
PLAN = df.solvers.dpmpp_2m(VP, df.grids.uniform_time(VP, 3))


def says(path, facts):
    with pytest.raises(ValueError, match=facts) as error:
        df.Plan.load(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def written(tmp_path, change=None, text=None):
    path = tmp_path / "plan.json"
    body = to_record(PLAN) | (change or {})
    path.write_text(json.dumps(body) if text is None else text(json.dumps(body)))
    return path


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (lambda t: t[:-1] + ', "steps": 2}', "'steps' stands twice"),
        (lambda t: t[:-1] + ', "made_for": ' + "[" * 100_000 + "}", "not JSON"),
        (lambda t: t[:-1] + ', "made_for": ' + "[" * 40 + "]" * 40 + "}", "more than 32 lists"),
        (lambda t: t.replace('"steps": 3', '"steps": ' + "9" * 5000), "not JSON: .*digits"),
        (lambda t: t.replace('"end": 0.0', '"end": 1e999'), "too large for float64"),
        (lambda t: t.replace('"end": 0.0', '"end": Infinity'), "Infinity is no number of JSON"),
        (lambda t: "[" + "0," * 3_000_000 + "0]", "more than 2,097,152 values"),
        (lambda t: t.replace("dpmpp", "\u4e00" * 3_000_000), "longer than 8 MiB"),
    ],
    ids=["twice", "deep", "nested", "digits", "huge", "infinite", "many", "wide"],
)
def test_json_is_bounded_before_it_is_read(text, facts, tmp_path):
    says(written(tmp_path, text=text), facts)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"times": [1.0, True, 0.3]}, "times holds True, but it must hold numbers"),
        ({"version": 5, "initial": None}, r"\['initial'\], but files of version 5 have none"),
        ({"version": 3, "gradients": None}, r"\['gradients'\], but files of version 3 have none"),
        ({"columns": ["x", "h1000000", "d"]}, "a column is h1000000, but with 3 stages"),
        ({"columns": ["x", "h01", "d"]}, "a row weighs 'h01'"),
        ({"name": "n" * 100_000, "steps": 9}, r"9 steps|\.\.\.$"),
        ({"schedule": {"name": "vp_linear", "beta_min": True, "beta_max": 20.0}}, "numbers alone"),
        ({"times": [0.5] * (MOST_STAGES + 1)}, "files hold at most 10000 stages"),
    ],
)
def test_what_a_file_says_is_taken_by_its_word(change, facts, tmp_path):
    says(written(tmp_path, change), facts)


def archive(tmp_path, header=None, more=(), compression=zipfile.ZIP_STORED, size=24):
    """An npz whose times have that header, and so many bytes."""
    path = tmp_path / "plan.npz"
    PLAN.save(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    if header is not None:
        said = header.encode().ljust(117) + b"\n"
        parts["times.npy"] = (
            b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said + bytes(size)
        )
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in [*parts.items(), *more]:
            file.writestr(name, data)
    return path


def header(shape, kind="<f8"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("made", "facts"),
    [
        ({"header": header("(1000000000000,)")}, "says that its shape is .* but it has 24 bytes"),
        ({"header": header("(3,)", "|O")}, "holds .*O.*, but it must hold numbers"),
        ({"header": header("(3,)", "<f3")}, "f3, which numpy does not know"),
        ({"header": "(" * 4000}, r"times.npy' holds"),
        ({"header": header("(9,)", "<U0"), "size": 0}, "empty texts"),
        ({"more": [("more.txt", b"1")]}, "more.txt' in it is no array"),
        ({"more": [(f"m{n}.npy", b"") for n in range(300)]}, "at most 256 are read"),
        ({"compression": zipfile.ZIP_BZIP2}, "compressed in a way that numpy has not"),
        (
            {"header": header("(8388608,)"), "size": 64 << 20, "compression": zipfile.ZIP_DEFLATED},
            "its arrays take 67,",
        ),
    ],
    ids=["shape", "object", "type", "header", "empty", "text", "many", "packed", "bomb"],
)
def test_archives_are_judged_by_their_headers(made, facts, tmp_path):
    says(archive(tmp_path, **made), facts)


def test_arrays_are_numpys_own(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "arrays.npz"
    arrays = {
        "a": rng.standard_normal((3, 2, 4)),
        "fortran": np.asfortranarray(rng.standard_normal((3, 5))),
        "none": np.zeros((0, 3)),
        "one": np.array(2.5),
        "text": np.array("some"),
        "big": np.arange(5, dtype=">i4"),
        "bool": np.array([True, False]),
    }
    for save in (np.savez, np.savez_compressed):
        save(path, **arrays)
        found = _files.load_arrays(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    np.save(tmp_path / "one.npy", arrays["fortran"])
    assert np.array_equal(_files.load_array(tmp_path / "one.npy"), arrays["fortran"])


def test_a_plan_too_large_for_json_goes_to_npz(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "MOST_VALUES", 20)
    with pytest.raises(ValueError, match="as JSON the plan is too large, save it as .npz"):
        PLAN.save(tmp_path / "plan.json")
    assert not [*tmp_path.iterdir()]
    monkeypatch.undo()
    PLAN.save(tmp_path / "plan.npz")
    assert df.Plan.load(tmp_path / "plan.npz").nfe == 3


def test_what_is_no_file_is_an_oserror_or_named(tmp_path):
    (tmp_path / "plan.json").mkdir()
    with pytest.raises(IsADirectoryError):
        df.Plan.load(tmp_path / "plan.json")
    os.mkfifo(tmp_path / "pipe.json")
    says(tmp_path / "pipe.json", "a pipe, a socket or a device")


def test_the_largest_plan_of_a_file_is_checked_in_bounds(tmp_path):
    stages = 2_000
    grid = df.grids.uniform_time(VP, stages)
    plan = df.solvers.ddim(VP, grid, eta=1.0)
    path = tmp_path / "plan.npz"
    plan.save(path)
    verdict, words, seconds, memory = attack.judged(path)
    # the rows of all stages over all normals alone are 64 MB
    assert (verdict, words) == ("loaded", "") and memory < 40 << 20 and seconds < 20


@pytest.mark.parametrize(
    "count", [60, pytest.param(700, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_damaged_files_of_every_kind(count):
    report = attack.attack(count, seed=count)
    assert report["wrong"] == []
    assert report["counts"]["refused"] > count / 2 and report["counts"]["loaded"] > count / 30


def test_the_attack_sees_what_is_wrong(tmp_path, monkeypatch):
    # a plan that says something else than its file, a foreign error, and an error without a name
    path = tmp_path / "plan.json"
    PLAN.save(path)
    other = df.solvers.euler(VP, df.grids.uniform_time(VP, 3))
    monkeypatch.setattr(df.Plan, "load", staticmethod(lambda path: other))
    assert attack.judged(path)[0] == "another meaning"
    for error, verdict in ((KeyError("x"), "foreign"), (ValueError("no"), "unnamed")):

        def fails(path, error=error):
            raise error

        monkeypatch.setattr(df.Plan, "load", staticmethod(fails))
        assert attack.judged(path)[0] == verdict


def test_text_of_a_head_is_not_taken_from_beside(tmp_path):
    more = [("steps.npy", _npy(np.array(3)))]
    says(archive(tmp_path, more=more), "steps stands in the head and beside it")
    more = [("initial/levels.npy", _npy(np.zeros((1, 2))))]
    says(archive(tmp_path, more=more), "initial/levels' belongs to nothing in the head")


def _npy(array):
    made = io.BytesIO()
    np.save(made, array)
    return made.getvalue()
