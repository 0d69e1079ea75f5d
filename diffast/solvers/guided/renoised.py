"""First-order steps that draw a fixed share of their noise anew."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from diffast.plans import Plan
from diffast.schedules import Schedule
from diffast.solvers.core.noise_split import first_order_plan, shared


def renoised(schedule: Schedule, grid: ArrayLike, zeta: float = 0.3) -> Plan:
    """Returns first-order steps with a share of fresh noise: the sampler of DiffPIR. 1 call a step.

    Zhu et al. 2023, "Denoising diffusion models for plug-and-play image restoration", algorithm 1:
    with eps = (x - alpha d) / sigma for the x0 estimate d,

        x' = alpha' d + sigma' (sqrt(1 - zeta) eps + sqrt(zeta) z)

    zeta = 0 is `ddim`, 1 forgets the noise of the state. The share does not fall with the step, so
    the samples of an unchanged network do not converge to the data's spread in more steps: it is
    for estimates that are changed by a condition.

    Args:
        schedule: any schedule.
        grid: [N+1] model times from noisy to clean.
        zeta: 0 to 1.

    Raises:
        ValueError: zeta out of range; a grid that `check_grid` refuses.
    """
    if not 0.0 <= zeta <= 1.0:
        raise ValueError(f"renoised: zeta = {zeta}, but it must lie in [0, 1]")
    kept = float(np.sqrt(1.0 - zeta))
    name = f"renoised(zeta={zeta:g})"
    return first_order_plan(name, schedule, grid, lambda a, b, s, sigma_t: shared(sigma_t, kept))
