"""Plans as files: JSON or npz, both equal to the last bit."""

from __future__ import annotations

import json
import zipfile
import zlib
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from diffast import schedules
from diffast.plans.older_files import FIELDS as OLDER
from diffast.plans.older_files import OPTIONAL, convert
from diffast.plans.plan import Plan

FORMAT = "diffast plan"
VERSION = 3
# Fields of version 3, and how each is read.
_ARRAYS = ("times", "matrix", "levels", "spans", "blocks")
_NUMBERS = ("rows", "columns", "end", "start", "steps", "name", "check")
_OPTIONAL = ("blocks",)

# What numpy, zipfile and zlib raise for a file that is no archive of arrays, or is cut or damaged.
_BROKEN = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(NotImplementedError, zipfile.BadZipFile, zlib.error),
)


def save(plan: Plan, path: str | PathLike) -> None:
    """Writes a plan to `.json` or `.npz`; see `Plan.save`."""
    path = Path(path)
    kind = _kind(path)
    to_dict = getattr(plan.schedule, "to_dict", None)
    if to_dict is None:
        raise ValueError(
            f"plan {plan.name}: its schedule {plan.schedule} has no to_dict, but it is needed to "
            "save the plan"
        )
    head = {"format": FORMAT, "version": VERSION, "schedule": _record(plan, to_dict)}
    head |= {field: getattr(plan, field) for field in _NUMBERS}
    arrays = {field: getattr(plan, field) for field in _ARRAYS}
    arrays = {field: array for field, array in arrays.items() if array is not None}
    if kind == ".json":
        body = head | {field: _with_null(array) for field, array in arrays.items()}
        path.write_text(json.dumps(body, allow_nan=False, indent=1) + "\n")
    else:
        np.savez(path, head=np.array(json.dumps(head, allow_nan=False)), **arrays)


def _record(plan: Plan, to_dict: Any) -> dict:
    """Returns the schedule's dict; that of a table holds the plan's own times exactly."""
    if "exact_at" not in signature(to_dict).parameters:
        return to_dict()
    ends: Any = (plan.start, plan.end)
    times = np.append(plan.times, ends)
    return to_dict(exact_at=times[~np.isnan(times)])


def load(path: str | PathLike) -> Plan:
    """Returns the plan in a `.json` or `.npz` file; see `Plan.load`."""
    path = Path(path)
    body = _read_json(path) if _kind(path) == ".json" else _read_npz(path)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"{path}: no {FORMAT}, but Plan.save writes one")
    version = body.get("version")
    if type(version) is not int or version not in (*OLDER, VERSION):
        raise ValueError(f"{path}: version {version}, but 1 to {VERSION} are known")
    arrays, numbers = OLDER.get(version, (_ARRAYS, _NUMBERS))
    fields = _fields(path, body, arrays, numbers, _OPTIONAL if version == VERSION else OPTIONAL)
    schedule = schedules.from_dict(body["schedule"])
    try:
        fields |= {field: _numbers(fields[field]) for field in arrays}
        fields["end"] = float(fields["end"])
        if version != VERSION:
            fields = convert(schedule, fields)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not the numbers of a plan: {error}") from None
    return Plan(schedule=schedule, **fields)


def _fields(path: Path, body: dict, arrays, numbers, optional) -> dict[str, Any]:
    """Returns the fields of a file, None for those that are not there; raises ValueError."""
    wanted = {"format", "version", "schedule", *arrays, *numbers}
    missing = sorted(wanted - {*body} - {*optional})
    unknown = sorted({*body} - wanted)
    if missing or unknown:
        raise ValueError(f"{path}: fields missing: {missing}, unknown: {unknown}")
    fields = {field: body.get(field) for field in (*arrays, *numbers)}
    for field, kind, what in (("steps", int, "a whole number"), ("name", str, "text")):
        if type(fields[field]) is not kind:
            raise ValueError(f"{path}: {field} = {fields[field]!r}, but it must be {what}")
    for field in ("rows", "columns"):
        names = fields.get(field, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path}: {field} = {names!r}, but it must be a list of names")
    return fields


def _with_null(array: np.ndarray) -> Any:
    """Returns the array as nested lists, None for NaN, which JSON does not know."""
    if not np.isnan(array).any():
        return array.tolist()
    filled = array.astype(object)
    filled[np.isnan(array)] = None
    return filled.tolist()


def _numbers(array: Any) -> np.ndarray | None:
    """Returns the array of numbers, int if all are; None for None."""
    if array is None:
        return None
    array = np.asarray(array)
    return array if array.dtype.kind == "i" else array.astype(np.float64)


def _kind(path: Path) -> str:
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"plan file {path}: ends in {path.suffix!r}, but .json and .npz are known")
    return path.suffix


def _read_json(path: Path):
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error}), but Plan.save writes JSON") from None


def _read_npz(path: Path):
    try:
        with path.open("rb") as file, np.load(file) as archive:
            body = {field: archive[field] for field in archive.files}
        return json.loads(str(body.pop("head"))) | body
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"{path}: no plan in it ({error}), but Plan.save writes npz") from None
