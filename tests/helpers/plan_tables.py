"""What a plan's rows weigh, as arrays for tests."""

import dataclasses

import numpy as np


def table(plan, register, *columns):
    """Returns the weights of some columns in one row, [S, columns]; zeros where it has none."""
    return np.stack([plan.weights(register, column) for column in columns], axis=1)


def calls(plan):
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


def apart(plan):
    """Returns whether y is another tensor than x after each stage, [S]."""
    if "y" not in plan.rows:
        return np.zeros(plan.stages, dtype=bool)
    x, y = (plan.matrix[:, plan.rows.index(name)] for name in "xy")
    return (x != y).any(axis=1)


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
