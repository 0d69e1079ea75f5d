"""Runge-Kutta methods on the probability-flow ODE: checked Butcher tableaus and one engine.

With q, y = x / s and the time variables of `one_step`, and Delta = q_t - q_s:

    y_i = y_s + Delta sum_j a_ij f_j,    f_i = (y_i - x0(x_i)) / q_i    at q_i = q_s + c_i Delta
    y_t = y_s + Delta sum_j b_j f_j

The step into sigma_t = 0 is Euler's, one call: the sample is then the last x0 estimate. Its error
is of the order of the square of the last sigma above 0, so orders hold for grids that end above 0.
Steps with q_s / q_t of 10 and more are too large for these methods, since dy/dq is stiff at low
noise: its rate is 1/q. Exponential methods have no such bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diffast.grids.checks import check_share
from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import Clock, builder
from diffast.solvers.core.one_step import from_slopes, one_step

# Largest rounding of a row sum; the entries go up to 30.
TOLERANCE = 2e-14


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Args:
        nodes: c_i of the stages after the first.
        rows: a_ij, one row a stage after the first, one number longer each.
        weights: b_j.
        order: of the method; 0 where nothing needs it.
        errors: b_j - b^_j, the weights of the slopes in an embedded error estimate. The last one is
            that of the slope at the new state. Empty without an estimate.

    Raises:
        ValueError: wrong lengths; a row that does not add up to its node, weights not to 1, or
            errors not to 0.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int = 0
    errors: tuple[float, ...] = ()

    def __post_init__(self):
        """Checks lengths and sums."""
        lengths = [len(row) for row in (*self.rows, self.weights)]
        wanted = list(range(1, len(self.nodes) + 2))
        if lengths != wanted:
            raise ValueError(f"Tableau: rows have {lengths} numbers, but it must be {wanted}")
        sums = zip((*self.rows, self.weights), (*self.nodes, 1.0), strict=True)
        for i, (row, node) in enumerate(sums):
            if not abs(sum(row) - node) <= TOLERANCE:
                raise ValueError(
                    f"Tableau: row {i} adds up to {sum(row)}, but it must be its node {node}"
                )
        if self.errors and len(self.errors) != len(self.weights) + 1:
            raise ValueError(
                f"Tableau: {len(self.errors)} errors, but it must be {len(self.weights) + 1}"
            )
        if not abs(sum(self.errors)) <= TOLERANCE:
            raise ValueError(f"Tableau: errors add up to {sum(self.errors)}, but it must be 0")

    def __call__(self, ratio):
        """Returns (nodes, gain) of steps with q_t / q_s = ratio [N], see `one_step`."""
        c = np.array(self.nodes)
        weights = np.zeros((len(c) + 1, len(c)))
        for i, row in enumerate((*self.rows, self.weights)):
            weights[i, :i] = row[1:]
        nodes = (1.0 - c) + c * ratio[:, None]
        return nodes, from_slopes((ratio - 1.0)[:, None, None] * weights, nodes)


RK4 = Tableau(
    nodes=(1 / 2, 1 / 2, 1.0),
    rows=((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)
BOSH3 = Tableau(
    nodes=(1 / 2, 3 / 4),
    rows=((1 / 2,), (0.0, 3 / 4)),
    weights=(2 / 9, 1 / 3, 4 / 9),
    order=3,
    # Bogacki & Shampine 1989, the pair 3(2)
    errors=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
)
DOPRI5 = Tableau(
    nodes=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
    rows=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    order=5,
    # Dormand & Prince 1980, the pair 5(4)
    errors=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
TSIT5 = Tableau(
    nodes=(0.161, 0.327, 0.9, 0.9800255409045097, 1.0),
    rows=(
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
    ),
    weights=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
    ),
    order=5,
    # Tsitouras 2011, the pair 5(4), table 1
    errors=(
        0.00178001105222577714,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -1.0 / 66.0,
    ),
)


# Those with an error estimate, by the names of the embedded solvers that use them.
TABLEAUS = {"bosh3": BOSH3, "dopri5": DOPRI5, "tsit5": TSIT5}


@builder
def midpoint(schedule: Schedule, grid: ArrayLike, r: float = 0.5, clock: Clock = None) -> Plan:
    """Returns the two-stage method with its second call at q_s + r Delta. Order 2, 2 calls a step.

    b = (1 - 1/(2r), 1/(2r)), all there are of order 2 with two stages: r = 1/2 is the midpoint
    rule, 2/3 Ralston's, 1 Heun's. On Gaussian data the midpoint rule has order 3: the two terms of
    its leading error cancel there. Which q and y: see `one_step`; out of alpha_s = 0 the step goes
    by the clock "flow", into sigma_t = 0 it is Euler's, one call.

    Args:
        r: place of the second call, as a share of the step in the time variable; in (0, 1].
    """
    return one_step("midpoint", schedule, grid, _two_stages(check_share("midpoint", "r", r)), clock)


@builder
def bosh3(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns Bogacki and Shampine's method with fixed steps. Order 3, 3 calls a step.

    Bogacki & Shampine 1989, "A 3(2) pair of Runge-Kutta formulas"; its fourth stage serves the
    error estimate only and is not called. Out of alpha_s = 0 and into sigma_t = 0: see `midpoint`.
    """
    return one_step("bosh3", schedule, grid, BOSH3, clock)


@builder
def rk4(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns the classical Runge-Kutta method. Order 4, 4 calls a step.

    Kutta 1901. Two calls in the middle, one at the end of the step. Out of alpha_s = 0 and into
    sigma_t = 0: see `midpoint`.
    """
    return one_step("rk4", schedule, grid, RK4, clock)


@builder
def dopri5(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns Dormand and Prince's method with fixed steps. Order 5, 6 calls a step.

    Dormand & Prince 1980, "A family of embedded Runge-Kutta formulae", RK5(4)7M; its seventh stage
    serves the error estimate only and is not called. Out of alpha_s = 0 and into sigma_t = 0: see
    `midpoint`.
    """
    return one_step("dopri5", schedule, grid, DOPRI5, clock)


@builder
def tsit5(schedule: Schedule, grid: ArrayLike, clock: Clock = None) -> Plan:
    """Returns Tsitouras' method with fixed steps. Order 5, 6 calls a step.

    Tsitouras 2011, "Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying
    assumption", table 1; its seventh stage serves the error estimate only and is not called. Out of
    alpha_s = 0 and into sigma_t = 0: see `midpoint`.
    """
    return one_step("tsit5", schedule, grid, TSIT5, clock)


def _two_stages(r):
    return Tableau(nodes=(r,), rows=((r,),), weights=(1.0 - 0.5 / r, 0.5 / r))
