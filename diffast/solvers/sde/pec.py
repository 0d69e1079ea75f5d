"""PEC on a fixed grid: the adaptive method of diffast/solvers/embedded/pec.py as a plan."""

from __future__ import annotations

import numpy as np

from diffast.grids import check_grid
from diffast.plan import Plan, one_call_plan
from diffast.solvers.core.noise_split import diffusive
from diffast.solvers.embedded.pec import share


def pec(schedule, grid) -> Plan:
    """Returns predict-evaluate-correct for the reverse SDE. Weak order 2, 1 call a step.

    With h = lam_t - lam_s, d the estimate at the model input, m_0 = d_0 and kappa of the step that
    led to a model input,

        x_i  = input_i + alpha kappa (d_i - m_{i-1}),   m_i = d_i + kappa (d_i - m_{i-1})
        input_{i+1} = (sigma_t / sigma_s) e^-h x_i + alpha_t (1 - e^-2h) m_i
                      + sigma_t sqrt(1 - e^-2h) z

    The anchor is m, an x0 estimate; the state x is never stored. A step out of alpha_s = 0, where
    the state tells nothing of the data, is not corrected. The step into sigma_t = 0 ends at d.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.

    Raises:
        ValueError: a grid that `check_grid` refuses.
    """
    grid = check_grid(schedule, grid)
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    down, up = diffusive(alpha[:-1], alpha[1:], sigma[:-1], sigma[1:], 1.0)
    keep = down / sigma[:-1]
    pull = alpha[1:] - alpha[:-1] * keep
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        h = np.log(alpha[1:] / alpha[:-1]) - np.log(sigma[1:] / sigma[:-1])
        kappa = np.where(np.isfinite(h), share(np, h), 0.0)
    kappa = np.append(0.0, kappa[:-1])  # of the step that led here
    size = alpha[:-1] * kappa
    kappa[0] = 0.0
    clean = sigma[1:] == 0.0  # ends at d
    x = {
        "y": np.where(clean, 0.0, -(keep * size + pull * kappa)),
        "x": np.where(clean, 0.0, keep),
        "d": np.where(clean, 1.0, keep * size + pull * (1.0 + kappa)),
        "z1": np.where(clean, 0.0, up),
    }
    return one_call_plan(
        "pec", schedule, grid, x, y={"y": -kappa, "d": 1.0 + kappa}, y_at=(1.0, 0.0)
    )
