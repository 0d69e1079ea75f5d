"""Rows are recorded by an array module that has nothing but the functions they may use."""

import operator
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from embedded_walk import interval_of
from test_embedded import BUILDS, SCHEDULES

from diffast.solvers import embedded
from diffast.solvers.embedded import Node, Step
from diffast.solvers.embedded.bridge import bridge
from diffast.solvers.embedded.solver import ARRAY_FUNCTIONS, ROW_COMPARISONS

ARITHMETIC = ("add", "sub", "mul", "truediv", "pow")
BRIDGE_COMPARISONS = ("le", "gt", "lt", "eq", "and_")


class Recorded:
    """A value that is known only when the recording is replayed."""

    __hash__ = None

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __bool__(self):
        raise AssertionError("a branch on a value")

    def __neg__(self):
        return Recorded(operator.neg, self)

    def replay(self):
        found = [a.replay() if isinstance(a, Recorded) else a for a in self.arguments]
        return self.function(*found)


def make(operators):
    """Returns a class of recorded values with these operators alone."""
    members = {}
    for name in operators:
        function, plain = getattr(operator, name), name.removesuffix("_")
        members[f"__{plain}__"] = lambda a, b, f=function: kind(f, a, b)
        if name in ARITHMETIC:
            members[f"__r{plain}__"] = lambda a, b, f=function: kind(f, b, a)
    members["__neg__"] = lambda a: kind(operator.neg, a)
    kind = type("Kind", (Recorded,), members)
    module = {name: partial(kind, getattr(np, name)) for name in ARRAY_FUNCTIONS}
    return kind, SimpleNamespace(**module)


def value(weight):
    return weight.replay() if isinstance(weight, Recorded) else weight


@pytest.mark.parametrize("schedule", ["vp", "edm", "flow"])
@pytest.mark.parametrize("name", [*BUILDS, "ancestral"])
def test_rows_are_recorded(name, schedule):
    schedule = SCHEDULES[schedule]
    end_lam = float(schedule.lam(schedule.t_min))
    ancestral = name == "ancestral"
    solver = embedded.DPM(3, eta=0.7, lam_end=end_lam) if ancestral else BUILDS[name][0]()
    interval, (kind, module) = interval_of(solver, schedule), make([*ARITHMETIC, *ROW_COMPARISONS])
    positions = interval.positions(np.array([[-0.3, 0.2], [0.4, 0.25], [0.1, 0.22]]))
    found = interval.nodes(positions)

    def nodes(wrap):
        kept = solver.needs_slopes  # what a solver has not asked for is not there
        slopes = ("dalpha", "dsigma", "rate")
        return [
            Node(
                *(
                    None if field is None or (n in slopes and not kept) else wrap(field[k])
                    for n, field in zip(Node._fields, found, strict=True)
                )
            )
            for k in range(3)
        ]

    plain = Step(np, *nodes(lambda a: a))
    recorded = Step(module, *nodes(lambda a: kind(lambda: a)))
    count = 0
    for call in range(solver.calls + 1):
        for rows in (solver.rows_before, solver.rows_after):
            one, other = rows(plain, call), rows(recorded, call)
            assert list(one) == list(other)
            for register in one:
                assert list(one[register]) == list(other[register])
                for column, weight in one[register].items():
                    np.testing.assert_array_equal(value(other[register][column]), weight)
                    count += 1
    assert count > 4
    for one, other in zip(solver.tolerance(plain), solver.tolerance(recorded), strict=True):
        np.testing.assert_array_equal(value(other), one)


@pytest.mark.parametrize("kind_of_path", ["lam", "time"])
def test_the_bridge_is_recorded(kind_of_path):
    kind, module = make([*ARITHMETIC, *BRIDGE_COMPARISONS])
    start, end = np.array([0.1, 0.2, 0.3]), np.array([1.1, 0.4, 0.9])
    places = {"a": np.array([0.7, np.inf, 2.0]), "b": np.array([1.1, 3.0, np.inf])}
    wrapped = {name: kind(lambda p=p: p) for name, p in places.items()}
    with np.errstate(all="ignore"):
        one = bridge(np, kind_of_path, start, end, places)
        other = bridge(module, kind_of_path, kind(lambda: start), kind(lambda: end), wrapped)
        for a, b in ((one.value, other.value), (one.noise, other.noise)):
            for name in a:
                np.testing.assert_array_equal(value(b[name]), a[name])
        np.testing.assert_array_equal(value(other.fresh), one.fresh)
