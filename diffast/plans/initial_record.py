"""The start law of a plan as a record of a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffast._files import leaf_types, shown
from diffast.plans.gaussian import Gaussian
from diffast.plans.initial import Initial, StartLaw

_OF_ONE = ("mean", "basis", "variances", "rest", "shape", "count")


def to_record(initial: Initial) -> dict[str, Any]:
    """Returns nested dicts and lists with arrays at their ends."""
    law = initial.law
    laws = {
        str(k): {
            "mean": one.mean,
            "basis": one.basis,
            "variances": one.variances,
            "rest": one.rest,
            "shape": list(one.shape or ()),
            "count": one.count,
        }
        for k, one in enumerate(law.laws)
    }
    known = {} if law.rho is None else {"rho": law.rho, "kl": law.kl}
    return {
        "law": {"laws": laws, "by": law.by, **known},
        "levels": initial.levels,
        "states": initial.states,
        "estimates": initial.estimates,
    }


def from_record(record: Any) -> Initial:
    """Returns what `to_record` was given.

    Raises:
        ValueError: other fields, or numbers that the classes refuse.
    """
    record = _fields("initial", record, ("law", "levels", "states", "estimates"))
    law = _fields("initial/law", record["law"], ("laws", "by"), ("rho", "kl"))
    names = [str(k) for k in range(len(law["laws"]))] if isinstance(law["laws"], dict) else None
    laws = _fields("initial/law/laws", law["laws"], names or ("0",))
    made = StartLaw(
        tuple(_law(f"initial/law/laws/{k}", one) for k, one in laws.items()),
        law["by"],
        *(None if law.get(name) is None else _array(name, law[name], 1) for name in ("rho", "kl")),
    )
    return Initial(made, *(_array(name, record[name], 2) for name in (*record,)[1:]))


def _law(where: str, record: Any) -> Gaussian:
    one = _fields(where, record, _OF_ONE)
    shape, count = one["shape"], one["count"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in [*shape, count]):
        raise ValueError(
            f"{where}: shape = {shown(shape)} and count = {shown(count)}, but they must hold whole "
            "numbers"
        )
    if type(one["rest"]) not in (int, float):
        raise ValueError(f"{where}: rest = {shown(one['rest'])}, but it must be a number")
    mean, basis, variances = (_array(n, one[n], 1 + (n == "basis")) for n in _OF_ONE[:3])
    return Gaussian(mean, basis, variances, float(one["rest"]), tuple(shape), count)


def _fields(where: str, record: Any, names: Any, more: Any = ()) -> dict[str, Any]:
    """Returns the fields of a record in the order of names; refuses other ones."""
    if not isinstance(record, Mapping) or {*names} - {*record} or {*record} - {*names, *more}:
        held = sorted(record) if isinstance(record, Mapping) else record
        raise ValueError(f"{where} holds {shown(held)}, but it must hold {shown([*names])}")
    return {name: record[name] for name in (*names, *more) if name in record}


def _array(name: str, value: Any, axes: int) -> np.ndarray:
    """Returns numbers as float64; an empty list has any number of axes."""
    if not isinstance(value, np.ndarray):
        if leaf_types(value) - {int, float}:
            raise ValueError(f"initial: {name} = {shown(value)}, but it must hold numbers")
        value = np.asarray(value)
    if value.dtype.kind not in "iuf" or (value.ndim != axes and value.size):
        raise ValueError(
            f"initial: {name} is {value.dtype} {list(value.shape)}, but it must hold numbers on "
            f"{axes} axes"
        )
    return value.astype(np.float64)
