"""Methods on slopes that extrapolate far: their plans are right, and the check knows it."""

import re
from fractions import Fraction

import numpy as np
import pytest
from test_plan import changed, every_number

from diffast import grids, schedules, solvers
from diffast.plans import checks
from diffast.plans.unroll import noise_of

WIDE, SUB = schedules.edm(1e-4, 700.0), schedules.sub_vp()
# Their own steps multiply rounding; each was refused for the noise level at its end.
REFUSED = {
    "ipndm": lambda: solvers.ipndm(WIDE, grids.karras(WIDE, 15), final="full"),
    "plms": lambda: solvers.plms(SUB, grids.karras(SUB, 15), final="full"),
    "gradient_estimation": lambda: solvers.gradient_estimation(
        WIDE, grids.karras(WIDE, 15), gamma=3.0
    ),
    "deis": lambda: solvers.deis(WIDE, grids.karras(WIDE, 15), final="full"),
    "adams": lambda: solvers.adams(WIDE, grids.karras(WIDE, 3), order=3, clock="lam", form="noise"),
    "unipc": lambda: solvers.unipc(SUB, grids.karras(SUB, 15), 3, form="noise", final="full"),
    "ghvb": lambda: solvers.ghvb(WIDE, grids.karras(WIDE, 15)),
}


def propagated(plan):
    """The largest gap of a noise level to that of a run in float64, over sigma at that stage."""
    made, x = noise_of(plan)["x"][:, 0] * plan.initial_scale, plan.rows.index("x")
    wanted = plan.levels[:, x, 1]
    return np.abs(np.abs(made) - wanted)[wanted > 0].max() / wanted[wanted > 0].min()


@pytest.mark.parametrize("build", REFUSED.values(), ids=REFUSED)
def test_plans_whose_steps_multiply_rounding_are_built(build):
    plan = build()
    if plan.check != "full":  # the builder itself knows that rounding grows there
        plan = plan.with_weights({}, check="full")
    assert propagated(plan) > 1e-12


def exact_gap(plan, i):
    """By exact arithmetic: the noise of row x of stage i, made of its inputs' levels, over sigma.

    Rows of entries are exact fractions of the levels too.
    """
    levels, x = plan.levels, plan.rows.index("x")
    before = [Fraction(plan.initial_scale), *map(Fraction, levels[:-1, x, 1].tolist())]
    entries = []
    for k in range(i + 1):
        weights = {c: Fraction(w) for c, w in zip(plan.columns, plan.matrix[k, 0], strict=True)}
        entries.append(weights.get("x", 0) * before[k])
    held = {"x": before[i], "d": Fraction(0), "h0": entries[i]}
    held |= {f"h{age}": entries[i - age] for age in range(1, i + 1)}
    row = zip(plan.columns, plan.matrix[i, x].tolist(), strict=True)
    terms = [Fraction(w) * held.get(c, Fraction(0)) for c, w in row]
    gap, size = abs(sum(terms) - Fraction(levels[i, x, 1])), sum(map(abs, terms))
    return float(gap / size) if size else float(gap)


@pytest.mark.parametrize("name", ["ipndm", "deis", "gradient_estimation"])
def test_their_rows_are_right_to_the_last_bits(name):
    plan = REFUSED[name]()
    assert plan.rows == ("h", "x")
    assert max(exact_gap(plan, i) for i in range(plan.stages)) < 4e-16


@pytest.mark.parametrize("name", ["ipndm", "deis", "gradient_estimation", "ghvb"])
def test_one_changed_number_is_still_refused(name):
    plan = REFUSED[name]()
    assert plan.check == "full"
    tried = 0
    for field, index in every_number(plan):
        value = getattr(plan, field)[index] if index else getattr(plan, field)
        if index and plan.rows[index[1]] == "h":
            continue
        if field == "matrix":  # what is a millionth of its row changes it by less than rounding
            held = checks._Held(
                plan, np.array([plan.schedule.alpha(plan.start), plan.initial_scale])
            )
            row = np.abs(plan.matrix[index[:2]])
            noise, x0 = row * held.loud[index[0]], row * held.size[index[0]]
            share = max(part[index[2]] / max(part.sum(), 1e-300) for part in (noise, x0))
            if value and share < 1e-5:
                continue
        with pytest.raises(ValueError, match=re.escape(plan.name)):
            changed(plan, field, index, value * (1 + 1e-6) if value else 1e-6)
            pytest.fail(f"{plan}: {field}{list(index)} changed by 1e-6 went through")
        tried += 1
    assert tried > 20


def test_levels_below_zero_are_refused():
    plan = solvers.euler(WIDE, grids.karras(WIDE, 3))
    matrix, levels = np.array(plan.matrix), np.array(plan.levels)
    matrix[0, 0, 0], levels[0, 0, 1] = -matrix[0, 0, 0], -levels[0, 0, 1]
    matrix[0, 0, 1] = 1.0 - matrix[0, 0, 0]
    with pytest.raises(ValueError, match="sigma = -"):
        changed(changed(plan, "matrix", ..., matrix), "levels", ..., levels)
