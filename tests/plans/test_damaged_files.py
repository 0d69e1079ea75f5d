"""Plan files that were cut, overwritten or edited: one error that names the file, or the plan."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
from tuned_plans import tuned, two_inputs

import diffast as df
from diffast.plans.file import from_record, to_record

VP = df.schedules.vp_linear()
BETAS = df.schedules.from_betas(np.linspace(1e-3, 0.05, 20))
MADE_FOR = {"predicts": "v", "network": "0" * 16, "measured": [["heun", 8, 0.1]]}
PLANS = {
    "tuned": replace(tuned(VP, 3, guidance=[1.0, 2.0, 3.0]), made_for=MADE_FOR),
    "betas": tuned(BETAS, 3),
    "two inputs": two_inputs(VP),
}
# What stands in a field in place of what belongs there.
WRONG = [
    *(None, True, False, "", "x", "nan", [], {}, [[]], [None], ["x"], {"a": 1}, {"0": [1.0]}),
    *(float("nan"), float("inf"), -1, 0, 3, 1.5, 10**400, [10**400], [[1.0], [1.0, 2.0]], [True]),
]


def loads(record, tmp_path):
    """Whether a file of that record loads; it may be refused in one way only."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(record))
    try:
        assert isinstance(df.Plan.load(path), df.Plan)
    except ValueError as error:
        assert str(error).startswith(str(path)), error
        assert "\n" not in str(error), error
        return False
    return True


def places(record):
    """Every field, and some numbers inside of arrays, as paths of keys."""
    for field, value in record.items():
        yield (field,)
        while isinstance(value, (list, dict)) and value:
            keys = list(value) if isinstance(value, dict) else [len(value) - 1]
            for key in keys:
                yield (field, *_down(record[field], value), key)
            value = value[keys[-1]]


def _down(top, value):
    """The keys that lead to a value by the last of each."""
    path = []
    while top is not value:
        key = list(top)[-1] if isinstance(top, dict) else len(top) - 1
        path.append(key)
        top = top[key]
    return path


@pytest.mark.parametrize(
    "name",
    ["tuned", *(pytest.param(name, marks=pytest.mark.slow) for name in ("betas", "two inputs"))],
)
def test_every_wrong_value_in_every_place_is_refused_in_one_way(name, tmp_path):
    record = to_record(PLANS[name])
    assert loads(record, tmp_path)
    refused = 0
    for place in places(record):
        for wrong in WRONG:
            edited = copy.deepcopy(record)
            at = edited
            for key in place[:-1]:
                at = at[key]
            if at[place[-1]] == wrong:
                continue
            at[place[-1]] = wrong
            refused += not loads(edited, tmp_path)
    assert refused > 300


@pytest.mark.parametrize("ending", ["json", "npz"])
def test_cut_files_are_refused(ending, tmp_path):
    path = tmp_path / f"plan.{ending}"
    PLANS["tuned"].save(path)
    whole = path.read_bytes()
    for length in [0, 1, 2, *np.linspace(3, len(whole) - 3, 40).astype(int)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"plan.{ending}: "):
            df.Plan.load(path)


def test_bytes_written_over_are_refused_or_change_nothing(tmp_path):
    path, plan = tmp_path / "plan.npz", PLANS["tuned"]
    plan.save(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        edited = bytearray(whole)
        edited[random.integers(len(whole))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(edited))
        try:
            loaded = df.Plan.load(path)
        except ValueError as error:
            assert str(error).startswith(str(path)), error
        else:  # the zip format has bytes that mean nothing here
            assert np.array_equal(loaded.matrix, plan.matrix)
            assert np.array_equal(loaded.times, plan.times, equal_nan=True)


def test_a_record_is_the_plan_to_the_last_bit():
    for plan in PLANS.values():
        again = from_record(json.loads(json.dumps(to_record(plan))), "record")
        for field in ("times", "matrix", "levels", "spans"):
            ours, theirs = getattr(plan, field), getattr(again, field)
            assert np.array_equal(ours, theirs, equal_nan=True)
        assert again.schedule == plan.schedule and again.made_for == plan.made_for
