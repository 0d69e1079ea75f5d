"""Recorded arrays: the instructions say what numpy says, and what has none is refused."""

import math

import numpy as np
import pytest

from diffast import schedules
from diffast.executors.adaptive.nodes import can_be_recorded
from diffast.executors.adaptive.time_variable import TimeInterval
from diffast.lowering.recorder import FUNCTIONS, NotRecordedError, Recorded, Recording, replay
from diffast.ops.schema import OPERANDS

NUMBERS = np.array([[0.3, 1.7], [-0.4, 0.2], [2.5, 2.5], [0.0, -3.0], [math.inf, 1.0], [0.7, 0.0]])


def recorded(function, inputs=NUMBERS):
    """Returns what a function of two numbers makes of the inputs, by its record."""
    recording = Recording()
    value = function(recording.input(0), recording.input(1))
    if not isinstance(value, Recorded):
        return np.full(len(inputs), value)
    return replay(recording.instructions, [value.number], inputs)[0]


def test_every_instruction_is_the_ops():
    known = {name for name in OPERANDS if name not in ("store", "piece", "lookup")}
    assert set(FUNCTIONS) | {"constant", "input"} == known
    for name, function in FUNCTIONS.items():
        assert getattr(function, "nin", 3) == len(OPERANDS[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numpy_functions_are_recorded(name):
    function, count = FUNCTIONS[name], getattr(FUNCTIONS[name], "nin", 3)

    def on_numbers(a, b):
        if name in ("and", "or", "not"):
            a, b = a > 0.5, b > 0.5
        return function(*(a, b, a)[:count]) if name != "where" else function(a > b, a, b)

    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(recorded(on_numbers), on_numbers(*NUMBERS.T))


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (2.0 - a) / (1.0 + b) * -a + +b,
        lambda a, b: a**2 + b**2,
        lambda a, b: np.power(np.abs(a), 0.5) + np.square(b),
        lambda a, b: np.clip(a, -0.1, 1.0) + np.round(b),
        lambda a, b: np.where((a > 0.0) & ~(b != 1.7) | (a <= b), a, 7.0),
        lambda a, b: np.float64(2.0) * a - np.ones_like(a) + np.zeros_like(b)[()],
        lambda a, b: np.full_like(a, 3.0) + b * 1.0 + 0.0,
        lambda a, b: np.where(a > 0.0, b, b),
    ],
)
def test_arithmetic_is_exact(function):
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(recorded(function), function(*NUMBERS.T))


def test_logaddexp():
    numbers = np.array([[0.0, x] for x in (-800.0, -3.0, 0.0, 1e-9, 5.0, 900.0, np.inf, -np.inf)])
    found = recorded(np.logaddexp, numbers)
    np.testing.assert_allclose(found, np.logaddexp(*numbers.T), rtol=3e-16)


def test_constants_are_folded_and_equal_instructions_are_one():
    recording = Recording()
    x = recording.input(0)
    assert float(np.exp(recording.constant(2.0)) * 3.0) == float(np.exp(2.0) * 3.0)
    for same in (x + 0.0, 0.0 + x, x - 0.0, x * 1.0, 1.0 * x, x / 1.0, +x):
        assert same.number == x.number
    one, other = np.exp(x) * 2.0, np.exp(x) * 2.0
    assert one.number == other.number
    names = [name for name, *_ in recording.instructions if name != "constant"]
    assert names == ["input", "exp", "mul"]
    assert bool(recording.constant(1.0) > 0.0)
    assert (recording.constant(-0.0).number, recording.constant(math.nan).number) != (
        recording.constant(0.0).number,
        recording.constant(1.0).number,
    )
    assert recording.constant(math.nan).number == recording.constant(math.nan).number


@pytest.mark.parametrize(
    ("what", "why"),
    [
        (lambda x: 1 if x > 0.0 else 2, "a branch on a recorded value"),
        (float, "the number of a recorded value"),
        (lambda x: np.asarray(x, dtype=np.float64), "no numpy array"),
        (lambda x: np.interp(x, [0.0, 1.0], [2.0, 3.0]), "np.interp has no instruction"),
        (lambda x: np.cosh(x), "np.cosh has no instruction"),
        (lambda x: x**3, "a power of 3"),
        (lambda x: 2.0**x, "only 2 and 0.5 are recorded"),
        (lambda x: np.add.reduce(x), "reduce or options"),
        (lambda x: np.add(x, 1.0, where=True), "options is not recorded"),
        (lambda x: np.round(x, 2), "rounded to decimals"),
        (lambda x: x[0], "element 0 of a recorded value"),
    ],
)
def test_what_has_no_instruction_is_refused(what, why):
    with pytest.raises(NotRecordedError, match=why):
        what(Recording().input(0))


BETAS = np.linspace(1e-4, 0.02, 50)
FORMULAS = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
}


@pytest.mark.parametrize("kind", ["lam", "rho", "flow", "time"])
@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_are_recorded(name, kind):
    schedule = FORMULAS[name]
    assert can_be_recorded(TimeInterval(schedule, kind, schedule.t_min, slopes=True))


class Branching(schedules.SigmaSpace):
    """Asks for the number of a time."""

    def alpha(self, t):
        return super().alpha(t) if np.max(t) > 0.0 else super().alpha(t)


class Concealed(schedules.SigmaSpace):
    """Takes one of two formulas by `all`, which a record cannot follow."""

    def alpha(self, t):
        return super().alpha(t) if (t > 1.0).all() else 0.5 * super().alpha(t)


@pytest.mark.parametrize(
    "schedule",
    [schedules.from_betas(BETAS), Branching(0.01, 50.0), Concealed(0.01, 50.0)],
    ids=["from_betas", "branching", "concealed"],
)
def test_schedules_that_cannot_be_recorded(schedule):
    assert not can_be_recorded(TimeInterval(schedule, "lam", schedule.t_min))
