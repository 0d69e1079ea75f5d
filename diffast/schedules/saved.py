"""Schedules from the dicts that their `to_dict` makes."""

from __future__ import annotations

from inspect import signature

from diffast.schedules.cosine import vp_cosine
from diffast.schedules.discrete import from_betas
from diffast.schedules.functions import from_table
from diffast.schedules.interpolants import flow, trig
from diffast.schedules.protocol import Schedule
from diffast.schedules.sigma_space import edm
from diffast.schedules.vp import sub_vp, vp_linear

BUILDERS = {
    "vp_linear": vp_linear,
    "vp_cosine": vp_cosine,
    "sub_vp": sub_vp,
    "sigma_space": edm,
    "flow": flow,
    "trig": trig,
    "from_betas": from_betas,
    "from_table": from_table,
}


def from_dict(record: dict) -> Schedule:
    """Returns the schedule whose `to_dict()` is record; equal to the one that made it.

    A schedule's dict holds its name and its numbers and nothing else, so that JSON holds it to the
    last bit of every number. `ve` and `edm` are one family, "sigma_space".

    Args:
        record: {"name": one of BUILDERS, and every argument of that builder}.

    Raises:
        ValueError: another name; numbers missing or too many; numbers the builder refuses.
    """
    if not isinstance(record, dict) or record.get("name") not in BUILDERS:
        name = record.get("name") if isinstance(record, dict) else record
        raise ValueError(f"from_dict: name = {name!r}, but it must be one of {', '.join(BUILDERS)}")
    numbers = {key: value for key, value in record.items() if key != "name"}
    build = BUILDERS[record["name"]]
    wanted = list(signature(build).parameters)
    if set(numbers) != set(wanted):
        raise ValueError(
            f"from_dict: {record['name']} with {sorted(numbers)}, but it must have {sorted(wanted)}"
        )
    return build(**numbers)
