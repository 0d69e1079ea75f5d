"""Plans as files: JSON for people (floats come back exactly), npz for arrays."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from diffast import schedules
from diffast.plan import Plan

FORMAT = "diffast plan"
# Version 2 is for plans with what version 1 has no room for: velocities, second normals, blocks.
# Others are written as version 1, which every release reads.
VERSIONS = (1, 2)
_ARRAYS = ("times", "read", "point", "anchor", "anchor_at", "error", "direct", "opening", "spans")
_ARRAYS_2 = (*_ARRAYS, "second", "blocks")
_NUMBERS = ("end", "start", "steps", "name", "check")
_OPTIONAL = ("error", "direct", "second", "blocks")

# What numpy, zipfile and zlib raise for a file that is no archive of arrays, or is cut or damaged.
_BROKEN = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(NotImplementedError, zipfile.BadZipFile, zlib.error),
)


def save(plan: Plan, path) -> None:
    """Writes a plan to `.json` or `.npz`; see `Plan.save`."""
    path = Path(path)
    kind = _kind(path)
    to_dict = getattr(plan.schedule, "to_dict", None)
    if to_dict is None:
        raise ValueError(
            f"plan {plan.name}: its schedule {plan.schedule} has no to_dict, but it is needed to "
            "save the plan"
        )
    head = {"format": FORMAT, "version": _version(plan), "schedule": to_dict()}
    head |= {field: getattr(plan, field) for field in _NUMBERS}
    arrays = {field: getattr(plan, field) for field in _ARRAYS_2}
    arrays = {field: array for field, array in arrays.items() if array is not None}
    if kind == ".json":
        body = head | {field: array.tolist() for field, array in arrays.items()}
        path.write_text(json.dumps(body, allow_nan=False, indent=1) + "\n")
    else:
        np.savez(path, head=np.array(json.dumps(head, allow_nan=False)), **arrays)


def load(path) -> Plan:
    """Returns the plan in a `.json` or `.npz` file; see `Plan.load`."""
    path = Path(path)
    body = _read_json(path) if _kind(path) == ".json" else _read_npz(path)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"{path}: no {FORMAT}, but Plan.save writes one")
    version = body.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise ValueError(f"{path}: version {version}, but 1 and 2 are known")
    names = _ARRAYS if version == 1 else _ARRAYS_2
    wanted = {"format", "version", "schedule", *names, *_NUMBERS}
    missing = sorted(wanted - {*body} - {*_OPTIONAL})
    unknown = sorted({*body} - wanted)
    if missing or unknown:
        raise ValueError(f"{path}: fields missing: {missing}, unknown: {unknown}")
    fields = {field: body.get(field) for field in (*names, *_NUMBERS)}
    for field, kind, what in (("steps", int, "a whole number"), ("name", str, "text")):
        if type(fields[field]) is not kind:
            raise ValueError(f"{path}: {field} = {fields[field]!r}, but it must be {what}")
    schedule = schedules.from_dict(body["schedule"])
    try:
        fields = {field: _numbers(fields[field]) for field in names} | {
            field: fields[field] for field in _NUMBERS
        }
        fields["end"] = float(fields["end"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the numbers of a plan: {error}") from None
    return Plan(schedule=schedule, **fields)


def _version(plan: Plan) -> int:
    more = plan.second is not None or plan.blocks is not None
    return 2 if more or (plan.anchor_at == -2).any() else 1


def _numbers(array):
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
