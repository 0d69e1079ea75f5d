"""What a plan's rows weigh, as arrays for tests."""

import dataclasses

import numpy as np

from diffast.plans.registers import ROWS, levels_of


def table(plan, register, *columns):
    """Returns the weights of some columns in one row, [S, columns]; zeros where it has none."""
    return np.stack([plan.weights(register, column) for column in columns], axis=1)


def rows_of_x(plan):
    """Returns the rows of x after each network call, [nfe, columns]: what it is made of.

    Columns are the step's state (and x where they are one), z1, the stage's own entry or estimate
    and those before it, newest first.
    """
    state = "y" if "y" in plan.rows else "x"
    own = plan.weights("x", "d") + plan.weights("x", "h0")
    assert not (plan.weights("x", "d") * plan.weights("x", "h0")).any()
    before = [plan.weights("x", f"h{age}") for age in range(1, plan.history + 1)]
    found = [plan.weights("x", state), plan.weights("x", "z1"), own, *before]
    return np.stack(found, axis=1)[plan.calls]


def place_of_y(plan):
    """Returns where y stands after each stage: the last of (call times, end) of its level, [S]."""
    places = levels_of(plan.schedule, np.append(plan.call_times, plan.end))
    same = np.isclose(standing(plan, "y")[:, None], places, rtol=1e-12, atol=0).all(axis=2)
    assert same.any(axis=1).all()
    return len(places) - 1 - np.argmax(same[:, ::-1], axis=1)


def standing(plan, register):
    """Returns the levels (alpha, sigma) of a register, [S, 2]."""
    return plan.levels[:, plan.rows.index(register)]


def changed(plan, field, index, value):
    """Returns the plan with one number of a field set; index (): the field is one number."""
    if not index:
        return dataclasses.replace(plan, **{field: value})
    array = np.array(getattr(plan, field))
    array[index] = value
    return dataclasses.replace(plan, **{field: array})


def weighed(plan, register, column, stage, value):
    """Returns the plan with one weight set."""
    weights = np.array(plan.weights(register, column))
    weights[stage] = value
    return plan.with_weights({(register, column): weights})


def with_y(plan):
    """Returns a one-step plan with a row y that equals its row of x; both weigh y."""
    names = tuple(name for name in ROWS if name in ("y", *plan.rows))
    columns = ("y", *plan.columns)
    like = [plan.rows.index("x" if name == "y" else name) for name in names]
    matrix = np.concatenate([np.zeros((plan.stages, len(names), 1)), plan.matrix[:, like]], axis=2)
    at = columns.index("x")
    for r, name in enumerate(names):
        if name in ("x", "y"):
            matrix[:, r, [0, at]] = matrix[:, r, [at, 0]]
    fields = {"matrix": matrix, "levels": plan.levels[:, like]}
    return dataclasses.replace(plan, rows=names, columns=columns, **fields)


def inserted(plan, stage, rows, to, **fields):
    """Returns the plan with a stage more, which calls no network.

    Args:
        plan: any plan.
        stage: where the new stage goes.
        rows: its rows by register. Without one for y: y is x after it.
        to: the model time at which x stands after it.
        fields: other fields of the plan.
    """
    rows = {"y": rows["x"], "v": {"v": 1.0}} | rows
    new = {c for name in plan.rows for c in rows.get(name, {})} - {*plan.columns}
    check = {"check": fields.pop("check", plan.check)}
    plan = plan.with_weights({("x", c): np.zeros(plan.stages) for c in new}, check="finite")
    made = np.zeros(plan.matrix.shape[1:])
    for r, name in enumerate(plan.rows):
        for column, weight in rows.get(name, {}).items():
            made[r, plan.columns.index(column)] = weight
    level = np.array(plan.levels[max(stage - 1, 0)])
    for name in ("x", "y") if rows["y"] == rows["x"] else ("x",):
        if name in plan.rows:
            level[plan.rows.index(name)] = levels_of(plan.schedule, to)
    arrays = {
        "times": np.insert(plan.times, stage, np.nan),
        "matrix": np.insert(plan.matrix, stage, made, axis=0),
        "levels": np.insert(plan.levels, stage, level, axis=0),
        "spans": None,
    }
    return dataclasses.replace(plan, **(arrays | check | fields))
