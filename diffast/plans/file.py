"""Plans as files: JSON or npz, both equal to the last bit."""

from __future__ import annotations

import io
import json
import os
from inspect import signature
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from diffast import schedules
from diffast._files import (
    check_json,
    leaf_types,
    load_arrays,
    load_json,
    parse_json,
    shortened,
    shown,
)
from diffast.plans import initial_record
from diffast.plans.older_files import FIELDS as OLDER
from diffast.plans.older_files import OPTIONAL, convert
from diffast.plans.plan import Plan

FORMAT = "diffast plan"
VERSION = 6
# Fields of version 6, and how each is read. Version 5 has no initial, version 4 no gradients
# either, version 3 neither these nor guidance and made_for.
_ARRAYS = ("times", "matrix", "levels", "spans", "blocks", "guidance", "gradients")
_NUMBERS = ("rows", "columns", "end", "start", "steps", "name", "check", "made_for")
_NUMBERS += ("initial",)
_OPTIONAL = ("blocks", "guidance", "gradients", "made_for", "initial")

# Files of these versions are read as those of today's, which only have further fields.
_SAME = (3, 4, 5)
_SINCE = {4: ("guidance", "made_for"), 5: ("gradients",), 6: ("initial",)}

# Fields of one type, and the type in words.
_KINDS = (
    ("steps", int, "a whole number"),
    ("name", str, "text"),
    ("check", str, "text"),
)

# Stages of a file, ten times as many as models are trained on, and their product with the columns
# or the age of an entry: what the checks of a plan that draws noise take, 80 MB and some seconds.
MOST_STAGES, MOST_PLACES = 10_000, 10_000_000

# What a plan, a schedule or a law that is made of a file may raise: to the reader all is one thing.
_MADE_WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, MemoryError)


def save(plan: Plan, path: str | PathLike) -> None:
    """Writes a plan to `.json` or `.npz`; see `Plan.save`."""
    path = Path(path)
    _check_size(plan.times, plan.columns, f"plan {plan.name}")
    if _kind(path) == ".json":
        data = (json.dumps(to_record(plan), allow_nan=False, indent=1) + "\n").encode()
        check_json(data, f"plan file {path}: as JSON the plan is too large, save it as .npz")
    else:
        head, arrays = _parts(plan)
        if plan.initial is not None:
            head["initial"], own = _apart(head["initial"], "initial")
            arrays |= own
        held: dict[str, Any] = {"head": np.array(json.dumps(head, allow_nan=False)), **arrays}
        made = io.BytesIO()
        np.savez(made, **held)
        data = made.getvalue()
    # A full disk or a kill leaves the file that was there before.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_record(plan: Plan) -> dict[str, Any]:
    """Returns the plan as a dict of what JSON holds, `from_record` reads it.

    Raises:
        ValueError: a schedule that is not one of `df.schedules`.
    """
    head, arrays = _parts(plan)
    if plan.initial is not None:
        head["initial"] = _listed(head["initial"])
    return head | {field: _with_null(array) for field, array in arrays.items()}


def _parts(plan: Plan) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns (what JSON holds, arrays) of a plan."""
    to_dict = getattr(plan.schedule, "to_dict", None)
    if to_dict is None:
        raise ValueError(
            f"plan {plan.name}: its schedule {plan.schedule} has no to_dict, but it is needed to "
            "save the plan"
        )
    head = {"format": FORMAT, "version": VERSION, "schedule": _record(plan, to_dict)}
    head |= {field: getattr(plan, field) for field in _NUMBERS}
    if plan.made_for is None:
        del head["made_for"]
    head["initial"] = None if plan.initial is None else initial_record.to_record(plan.initial)
    if plan.initial is None:
        del head["initial"]
    head |= {field: list(head[field]) for field in ("rows", "columns")}
    arrays = {field: getattr(plan, field) for field in _ARRAYS}
    return head, {field: array for field, array in arrays.items() if array is not None}


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
    return from_record(body, str(path))


def from_record(body: Any, where: str) -> Plan:
    """Returns the plan that a file or a record holds, checked anew.

    Args:
        body: from `to_record`, or what a file of any version holds.
        where: begins the messages.

    Raises:
        ValueError: what holds no plan, or one that contradicts itself.
    """
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ValueError(f"{where}: no {FORMAT}, but Plan.save writes one")
    version = body.get("version")
    if type(version) is not int or version not in (*OLDER, *_SAME, VERSION):
        raise ValueError(f"{where}: version {shown(version)}, but 1 to {VERSION} are known")
    try:
        with np.errstate(all="ignore"):  # numbers that overflow are refused in words
            return _made(where, body, version)
    except _MADE_WRONG as error:
        said = shortened(error)
        raise ValueError(said if said.startswith(where) else f"{where}: {said}") from None


def _made(where: str, body: dict, version: int) -> Plan:
    """Returns the plan of a file's fields; `_MADE_WRONG` for others."""
    arrays, numbers = OLDER.get(version, (_ARRAYS, _NUMBERS))
    optional = OPTIONAL if version in OLDER else _OPTIONAL
    later = {name for since, names in _SINCE.items() if version < since for name in names}
    if version not in OLDER and later & {*body}:
        raise ValueError(
            f"fields {sorted(later & {*body})}, but files of version {version} have none of them"
        )
    fields = _fields(body, arrays, numbers, optional)
    schedule = _schedule(where, body["schedule"])
    try:
        fields |= {field: _numbers(field, fields[field]) for field in arrays}
        _check_size(fields["times"], fields.get("columns", ()), "a plan file")
        fields["end"] = _number("end", fields["end"])
        if fields["start"] is not None:
            fields["start"] = _number("start", fields["start"])
        if version in OLDER:
            fields = convert(schedule, fields)
        elif fields["initial"] is not None:
            fields["initial"] = initial_record.from_record(fields["initial"])
    except _MADE_WRONG as error:
        raise ValueError(f"{where}: not the numbers of a plan: {shortened(error)}") from None
    return Plan(schedule=schedule, **fields)


def _schedule(where: str, record: Any) -> Any:
    """Returns the schedule of a file; raises ValueError."""
    try:
        if isinstance(record, dict):
            for name, value in record.items():
                odd = leaf_types(value) - ({str} if name == "name" else {int, float})
                if odd:
                    raise ValueError(f"{name} = {shown(value)}, but it must hold numbers alone")
        return schedules.from_dict(record)
    except _MADE_WRONG as error:
        raise ValueError(f"{where}: not the numbers of a schedule: {shortened(error)}") from None


def _check_size(times: Any, columns: Any, who: str) -> None:
    """Refuses a plan whose checks would take more memory and time than any run of it is worth."""
    stages = len(np.atleast_1d(times))
    ages = [int(name[1:]) for name in columns if name[:1] == "h" and name[1:].isdecimal()]
    widest = max(len(columns), max(ages, default=0))
    if stages > MOST_STAGES or stages * widest > MOST_PLACES:
        raise ValueError(
            f"{who}: {stages} stages with columns or entries up to {widest}, but files hold at "
            f"most {MOST_STAGES} stages, and {MOST_PLACES:,} places in all"
        )


def _fields(body: dict, arrays, numbers, optional) -> dict[str, Any]:
    """Returns the fields of a file, None for those that are not there; raises ValueError."""
    wanted = {"format", "version", "schedule", *arrays, *numbers}
    missing = sorted(wanted - {*body} - {*optional})
    unknown = sorted(map(str, {*body} - wanted))
    if missing or unknown:
        raise ValueError(f"fields missing: {missing}, unknown: {shown(unknown)}")
    fields = {field: body.get(field) for field in (*arrays, *numbers)}
    for field, kind, what in _KINDS:
        if field in numbers and type(fields[field]) is not kind:
            raise ValueError(f"{field} = {shown(fields[field])}, but it must be {what}")
    for field in ("rows", "columns"):
        names = fields.get(field, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{field} = {shown(names)}, but it must be a list of names")
    for field in arrays:
        if fields[field] is None and field not in optional:
            raise ValueError(f"{field} is null, but it must be a list of numbers")
    made_for = fields.get("made_for")
    if made_for is not None and not isinstance(made_for, dict):
        raise ValueError(f"made_for = {shown(made_for)}, but it must be a mapping")
    if made_for is not None and "digest" not in made_for:
        raise ValueError(
            "made_for has no digest of the numbers, which Plan.save writes: remove "
            "made_for to keep the numbers as a plan without measurements"
        )
    return fields


def _apart(record: Any, name: str) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns nested dicts without their arrays, and the arrays by the path to them."""
    if isinstance(record, np.ndarray):
        return None, {name: record}
    if not isinstance(record, dict):
        return record, {}
    kept, arrays = {}, {}
    for key, value in record.items():
        kept[key], own = _apart(value, f"{name}/{key}")
        arrays |= own
    return kept, arrays


def _joined(record: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    """Returns what `_apart` took apart; takes it out of the arrays."""
    if name in arrays:
        return arrays.pop(name)
    if not isinstance(record, dict):
        return record
    return {key: _joined(value, arrays, f"{name}/{key}") for key, value in record.items()}


def _listed(record: Any) -> Any:
    """Returns nested dicts with their arrays as lists."""
    if isinstance(record, dict):
        return {key: _listed(value) for key, value in record.items()}
    return record.tolist() if isinstance(record, np.ndarray) else record


def _with_null(array: np.ndarray) -> Any:
    """Returns the array as nested lists, None for NaN, which JSON does not know."""
    if not np.isnan(array).any():
        return array.tolist()
    filled = array.astype(object)
    filled[np.isnan(array)] = None
    return filled.tolist()


def _numbers(field: str, array: Any) -> np.ndarray | None:
    """Returns the array of numbers, int if all are; None for None. Raises ValueError."""
    if array is None:
        return None
    if not isinstance(array, np.ndarray) and leaf_types(array) - {int, float, type(None)}:
        raise ValueError(f"{field} holds {shown(_odd(array))}, but it must hold numbers")
    array = np.asarray(array)
    if array.dtype.kind == "i":
        return array
    if array.dtype.kind not in "ufO":
        raise ValueError(f"{field} holds {array.dtype}, but it must hold numbers")
    return array.astype(np.float64)


def _odd(array: Any) -> Any:
    """Returns the first end of nested lists that is no number."""
    if not isinstance(array, list):
        return array
    ends = (_odd(part) for part in array)
    return next((end for end in ends if type(end) not in (int, float, type(None))), None)


def _number(field: str, value: Any) -> float:
    """Returns a number as a float. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{field} is {shown(value)}, but it must be a number")
    return float(value)


def _kind(path: Path) -> str:
    if path.suffix not in (".json", ".npz"):
        raise ValueError(f"plan file {path}: ends in {path.suffix!r}, but .json and .npz are known")
    return path.suffix


def _read_json(path: Path) -> Any:
    try:
        return load_json(path, nan=True)
    except ValueError as error:
        raise ValueError(f"{error}, but Plan.save writes JSON") from None


def _read_npz(path: Path) -> Any:
    try:
        return _from_arrays(dict(load_arrays(path)))
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: no plan in it ({reason}), but Plan.save writes npz") from None


def _from_arrays(body: dict[str, Any]) -> dict[str, Any]:
    """Returns the record that an archive's arrays hold; raises ValueError."""
    text = body.pop("head", None)
    if text is None or text.dtype.kind != "U" or text.ndim:
        raise ValueError("there is no text named head")
    head = parse_json(str(text), "head")
    if not isinstance(head, dict):
        raise ValueError(f"head is {shown(head)}")
    both = sorted(head.keys() & body.keys())
    if both:
        raise ValueError(f"{both[0]} stands in the head and beside it")
    own = {name: body.pop(name) for name in [*body] if name.startswith("initial/")}
    if "initial" in head:
        head["initial"] = _joined(head["initial"], own, "initial")
    if own:
        raise ValueError(f"{shown(min(own))} belongs to nothing in the head")
    return head | body
