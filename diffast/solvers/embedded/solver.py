"""What an embedded solver is: rows of weights as functions of a step's start and end.

A solver walks a time variable from noise to data. A step from `start` to `end` makes the network
calls 1 .. calls, each at a node of its own. Call 0 is the call at the state itself, at `start`. It
comes before the first step. A solver with `reuses_last_call` never makes it again, because its last
call stands at the new state. The others make it again after each accepted step.

A row is a dict {column: weight}. These registers are the columns that rows read:

    x             the network input of the call
    d             the x0 estimate of the call
    y             the state at the start of the step
    h0, h1, ...   entries, one a call: h{k} is made of the answer of call k
    z1            the step's N(0, 1) noise
    prev          a further register that a solver may carry from step to step

`rows_before(step, call)` writes x. `rows_after(step, call)` writes the entry of that call; after
the last call it writes what an accepted step changes (y, h0 with `reuses_last_call`, the carried
registers), and the rows that judge the step:

    error            the error estimate
    size, new_size   the tolerance is relative to the larger of the two; not for the form "scalar"
    drawn            the step's noise z1 as a row: the error is divided by its size. May be absent

Every row reads the registers as they were before any row of the same dict is written.

Weights are Python floats or arrays in the array module `step.xp`. Rows use only arithmetic,
ROW_COMPARISONS and ARRAY_FUNCTIONS. They never branch on a value of an array, and they look nothing
up beside the step. So one description serves every sample's own step, a fixed grid, and recorded
values, of which a program is made.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from diffast.plans.registers import ERROR, D, X, Y
from diffast.solvers.core.noise_split import check_eta

# The functions of the array module that rows, `reach` and the bridge may call, and the comparisons
# of rows and `reach`. The bridge also uses <=, == and &.
ARRAY_FUNCTIONS = ("exp", "expm1", "log1p", "sqrt", "where")
ROW_COMPARISONS = ("lt", "gt")

SIZE, NEW_SIZE, DRAWN = "size", "new_size", "drawn"
JUDGED = (ERROR, SIZE, NEW_SIZE, DRAWN)

Row = dict[str, Any]


class Node(NamedTuple):
    """A point of a time variable: arrays [B] of numbers of the schedule.

    `dalpha` and `dsigma` are derivatives by the model time. `rate` is -d(model time)/d(position):
    positions increase while the noise falls. They are None where nobody asked for derivatives.
    """

    position: Any
    time: Any
    lam: Any
    alpha: Any
    sigma: Any
    dalpha: Any = None
    dsigma: Any = None
    rate: Any = None


class Step:
    """A step as rows see it: its nodes, and the numbers that depend on both ends.

    This class computes the numbers from log-SNRs. `GridStep` computes them from levels, which
    stay finite at alpha = 0 and sigma = 0.

    Args:
        xp: the array module.
        start: node of the state.
        end: node that the step leads to.
        call: node of the network call. For `rows_before` and `rows_after` of call k it is that of
            call k.
    """

    def __init__(self, xp: Any, start: Node, end: Any, call: Any):
        """Keeps the nodes."""
        self.xp, self.start, self.end, self.call = xp, start, end, call

    @cached_property
    def h(self) -> Any:
        """Returns the step in log-SNR."""
        return self.end.lam - self.start.lam

    @cached_property
    def sde_split(self) -> tuple[Any, Any, Any]:
        """Returns the weights (keep, pull, fresh) of the reverse SDE's exact step.

        x_end = keep x_start + pull m + fresh z for an x0 estimate m that is constant over the step:
        keep = (sigma'/sigma) e^-h, pull = alpha' (1 - e^-2h), fresh = sigma' sqrt(1 - e^-2h).
        """
        xp, start, end = self.xp, self.start, self.end
        lost = -xp.expm1(-2.0 * self.h)
        keep = end.sigma / start.sigma * xp.exp(-self.h)
        return keep, end.alpha * lost, end.sigma * xp.sqrt(lost)


class EmbeddedSolver:
    """The base class of embedded solvers. A subclass has rows and the data below.

    Attributes:
        name: what people call it.
        time_variable: the kind of positions that steps are measured in, see `TimeVariable`.
        fractions: where the calls 1 .. calls stand, as parts of the way from start to `reach`.
        reuses_last_call: whether the last call stands at the new state and replaces call 0.
        starts_at_noise: whether rows on a grid are finite for a step out of alpha = 0. Otherwise
            that step is Euler's.
        consistent: whether rows keep the exact levels alpha and sigma, as a plan's check asks.
        error_form, error_norm: see `diffast.ops` ("scalar", "max", "sum"; "l2", "linf").
        noise: "input" (z1 is in a network input), "state" (z1 is added to the state after the
            decision, which does not depend on it) or "none".
        carried: registers beside y and the entries that go from step to step. Each holds the state
            at the start.
        rejected_points: how many rejected points a sample remembers.
        allows_redraw: whether noise may be drawn anew after a rejection, which changes the law.
        needs_slopes: whether nodes need derivatives.
        controller: the numbers of the step-size rule, see `controllers`.
        step: the first step, in units of the time variable.
    """

    name = "embedded"
    time_variable = "lam"
    fractions: tuple[float, ...] = (1.0,)
    reuses_last_call = False
    starts_at_noise = False
    consistent = True
    error_form, error_norm = "max", "l2"
    noise = "none"
    carried: tuple[str, ...] = ()
    rejected_points = 2
    allows_redraw = False
    needs_slopes = False
    controller: dict[str, float]
    step = 0.1
    atol: Any
    rtol: Any

    def _keep(self, name: str, rtol: Any, atol: Any, step: float, norm: str, **more: float):
        """Checks and keeps numbers that most solvers have; more of them have to be above 0.

        Raises:
            ValueError: a tolerance negative or endless, or both 0; another number not above 0.
        """
        check_eta(name, rtol, "rtol")
        check_eta(name, atol, "atol")
        if rtol == 0.0 == atol:
            raise ValueError(f"{name}: rtol = 0 and atol = 0, but no step has an error of 0")
        check_positive(name, **more, step=step)
        self.rtol, self.atol, self.step, self.error_norm = rtol, atol, step, norm

    @property
    def calls(self) -> int:
        """Returns the number of network calls of a step beside call 0."""
        return len(self.fractions)

    @property
    def entries(self) -> tuple[str, ...]:
        """Returns the names of the entries: the last call's is held only under the name h0."""
        return tuple(f"h{k}" for k in range(self.calls))

    def entry(self, node: Node) -> Row:
        """Returns the row over x and d of the entry that a call at the node makes."""
        return {D: 1.0}

    def reach(self, xp: Any, start: Any, end: Any) -> Any:
        """Returns the positions that `fractions` are parts of the way to."""
        return end

    def position(self, xp: Any, call: int, start: Any, end: Any) -> Any:
        """Returns the positions at which call 0 .. calls is made."""
        if call == 0:
            return start
        reach, part = self.reach(xp, start, end), self.fractions[call - 1]
        return reach if part == 1.0 else start + part * (reach - start)

    def rows_before(self, step: Step, call: int) -> dict[str, Row]:
        """Returns the row of x, the network input of call 0 .. calls."""
        return {X: {Y: 1.0} if call == 0 else self.input_row(step, call)}

    def rows_after(self, step: Step, call: int) -> dict[str, Row]:
        """Returns the rows of all that is written after call 0 .. calls."""
        if call == self.calls:
            return self.new_rows(step)
        return {f"h{call}": self.entry(step.call)}

    def input_row(self, step: Step, call: int) -> Row:
        """Returns the row of the network input of call 1 .. calls."""
        raise NotImplementedError

    def new_rows(self, step: Step) -> dict[str, Row]:
        """Returns the rows of what an accepted step changes and of what judges the step."""
        raise NotImplementedError

    def tolerance(self, step: Step) -> tuple[Any, Any]:
        """Returns (atol, rtol), numbers or arrays [B]."""
        return self.atol, self.rtol

    def estimate(self, node: Node) -> Row:
        """Returns the row over y and h0 of the x0 estimate for the state at the node."""
        return {"h0": 1.0}


def check_positive(name: str, **numbers: float) -> None:
    """Raises ValueError for a number that is not above 0."""
    for option, value in numbers.items():
        if not value > 0.0:
            raise ValueError(f"{name}: {option} = {value}, but it must be above 0")
