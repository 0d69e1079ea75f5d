"""The grid to start with, whatever the schedule."""

from __future__ import annotations

import numpy as np

from diffast.grids.checks import grid_function
from diffast.grids.clocks import uniform_flow
from diffast.schedules import Schedule


@grid_function
def default(schedule: Schedule, steps: int) -> np.ndarray:
    """Returns the grid to start with: `uniform_flow`, on every schedule; [steps+1] float64.

    It starts at schedule.t_start, pure noise where alpha = 0 there, and ends at the clean end.

    Measured with 9 solvers at 5, 10 and 20 calls on mixtures of narrow Gaussians of spread 0.7
    (error over spread, best solver for each grid): on `vp_cosine`, `trig`, `flow`, and betas with
    zero terminal SNR no other of 7 grids is better (.11, .05, .0074 on `flow`; the angle's .14,
    .064, .026). On `edm`, `ve`, `vp_linear` and betas it is the best at 5 calls, and at 10 and 20
    within a factor of 1.8 of `uniform_logsnr`, the best; `karras` is behind that. For the betas of
    latent models (Stable Diffusion) `uniform_logsnr` is better: .068, .014, .0026 against .091,
    .039, .0069. With `dpmpp_2m` it is the best of all at 5 and 10 calls but for these betas.

    The steps are small where sigma/alpha is near 1. For data whose spread is far from 1 in the unit
    of the schedule (pictures of 0 to 255 on `ve`), take `uniform_logsnr` or `karras`.

    Raises:
        ValueError: steps < 1.
    """
    return uniform_flow(schedule, steps)
