"""The protocol of noise schedules."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike


@runtime_checkable
class Schedule(Protocol):
    """A noise schedule x_t = alpha(t) x0 + sigma(t) eps; any object with these members is one.

    Methods take a float64 scalar or array of model times (`time`: of log-SNRs) and return float64
    of its shape; for a scalar a NumPy scalar. A time outside `domain`, or a lam that no time of the
    domain has, raises ValueError.

    Some parts look for more: `kinks`, the times at which a derivative jumps (the time variable of
    adaptive samples); `timesteps`, the number of training indices (grids and solvers that count
    in them); `to_dict()` (`Plan.save`).
    """

    @property
    def domain(self) -> tuple[float, float]:
        """Returns (lowest t, highest t) at which the formulas hold."""
        ...

    @property
    def t_start(self) -> float:
        """Returns the noisiest time, where sampling starts."""
        ...

    @property
    def t_end(self) -> float:
        """Returns the clean end."""
        ...

    @property
    def t_min(self) -> float:
        """Returns the least noisy time at which grids in log-SNR call the network."""
        ...

    def alpha(self, t: ArrayLike) -> np.ndarray:
        """Returns the signal level."""
        ...

    def sigma(self, t: ArrayLike) -> np.ndarray:
        """Returns the noise level, in the unit of the data."""
        ...

    def derivatives(self, t: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Returns (dalpha/dt, dsigma/dt)."""
        ...

    def lam(self, t: ArrayLike) -> np.ndarray:
        """Returns log(alpha / sigma): inf where sigma = 0, -inf where alpha = 0."""
        ...

    def time(self, lam: ArrayLike) -> np.ndarray:
        """Returns the inverse of `lam`."""
        ...
