"""The loss curve that a surrogate is fitted to, read from a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffast.tuning.grids.densities import rising

# A loss is above what the best estimate can have where it is so many times that. Less may be the
# noise of a few hundred samples.
_SEEN = 1.15


@dataclass(frozen=True, eq=False)
class Curve:
    """A loss curve: E|x0 - D|^2 summed over d elements, at noise levels rho = sigma / alpha.

    Attributes:
        rho: [M], rising.
        own_error: [M], rms of what a network's x0 estimate is off by in one element, as far as the
            loss shows it: sqrt of what the loss lies above the most that the best estimate can
            have, over d. 0 where it is not clearly above.
        mmse: [M], not falling, above 0 and at most that of the estimates D = x and D = mean.
        d: elements of one sample.
        spectrum: eigenvalues of the data's covariance, [<= d]; None: not known.
    """

    rho: np.ndarray
    mmse: np.ndarray
    d: int
    own_error: np.ndarray
    spectrum: np.ndarray | None = None

    @classmethod
    def of(cls, profile: Any) -> Curve:
        """Returns the curve of a profile.

        Args:
            profile: an object or a mapping with `rho` [M], `mmse` [M], `d` and, where it is known,
                `spectrum`; or a tuple (rho, mmse, d) or (rho, mmse, d, spectrum).

        Raises:
            TypeError: what has no such parts.
            ValueError: fewer than 4 levels; levels or values that are not positive and finite;
                lengths that disagree.
        """
        if isinstance(profile, tuple) and len(profile) in (3, 4):
            rho, mmse, d = profile[:3]
            spectrum = profile[3] if len(profile) == 4 else None
        else:
            rho, mmse, d = (_part(profile, name) for name in ("rho", "mmse", "d"))
            spectrum = _part(profile, "spectrum", needed=False)
        rho, mmse = (np.asarray(part, dtype=np.float64).reshape(-1) for part in (rho, mmse))
        if rho.size != mmse.size or rho.size < 4:
            raise ValueError(
                f"Surrogate: {rho.size} levels and {mmse.size} values of the loss, but at least 4 "
                "of both are needed, one value a level"
            )
        for name, part in (("levels rho", rho), ("values of the loss", mmse)):
            if not (np.isfinite(part).all() and (part > 0).all()):
                raise ValueError(f"Surrogate: some {name} are not finite and above 0")
        if int(d) < 1:
            raise ValueError(f"Surrogate: d = {d}, but a sample has at least 1 element")
        order = np.argsort(rho)
        rho, mmse = rho[order], mmse[order]
        # The estimate D = x alone has the loss d rho^2, and the mean of the data has the variance.
        # What a network's loss lies above these is its own error.
        most = int(d) * rho**2
        if spectrum is not None:
            spectrum = np.asarray(spectrum, dtype=np.float64).reshape(-1)
            if not (np.isfinite(spectrum).all() and (spectrum >= 0).all() and spectrum.any()):
                raise ValueError("Surrogate: the spectrum has values that are not finite and >= 0")
            most = np.minimum(most, spectrum.sum())
        seen = (mmse > _SEEN * most) & (rho**2 * int(d) > most)  # at high levels alone
        own_error = np.sqrt(np.where(seen, np.maximum(mmse - most, 0.0), 0.0) / int(d))
        return cls(rho, rising(np.minimum(mmse, most)), int(d), own_error, spectrum)

    def at(self, rho: Any) -> np.ndarray:
        """Returns the loss at any levels: lines in log(mmse) over log(rho).

        Below the measured levels it falls as rho^2, above them it stays.
        """
        asked = np.asarray(rho, dtype=np.float64)
        found = np.interp(np.log(asked), np.log(self.rho), np.log(self.mmse))
        below = np.minimum(asked / self.rho[0], 1.0) ** 2
        return np.exp(found) * below

    @property
    def deviation(self) -> float:
        """Returns the deviation of one element of the data, as the noisiest level shows it."""
        if self.spectrum is not None:
            return float(np.sqrt(self.spectrum.sum() / self.d))
        return float(np.sqrt(self.mmse[-1] / self.d))


def _part(profile: Any, name: str, needed: bool = True) -> Any:
    found = profile.get(name) if isinstance(profile, Mapping) else getattr(profile, name, None)
    if found is None and needed:
        raise TypeError(
            f"Surrogate: a {type(profile).__name__} has no {name!r}; a profile, or "
            "(rho, mmse, d, spectrum), is needed"
        )
    return found
