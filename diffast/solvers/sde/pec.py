"""PEC on a fixed grid: the adaptive method of diffast/solvers/embedded/pec.py as a plan."""

from __future__ import annotations

from numpy.typing import ArrayLike

from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.docs import plain_builder
from diffast.solvers.embedded.grid import on_grid
from diffast.solvers.embedded.pec import PEC


@plain_builder
def pec(schedule: Schedule, grid: ArrayLike) -> Plan:
    """Returns predict-evaluate-correct for the reverse SDE. Weak order 2, 1 call a step.

    With h = lam_t - lam_s, d the estimate at the model input, m_0 = d_0 and kappa of the step that
    led to a model input,

        x_i  = input_i + alpha kappa (d_i - m_{i-1}),   m_i = d_i + kappa (d_i - m_{i-1})
        input_{i+1} = (sigma_t / sigma_s) e^-h x_i + alpha_t (1 - e^-2h) m_i
                      + sigma_t sqrt(1 - e^-2h) z

    The plan's y is m, an x0 estimate. The state x_i is never stored. A step out of alpha_s = 0,
    where the state tells nothing of the data, is not corrected. The step into sigma_t = 0 ends at
    d.
    """
    return on_grid(PEC(), schedule, grid)
