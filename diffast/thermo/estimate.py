"""`Estimate`: a mean over samples with its standard error, and the warning for too few of them."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch


class FewSamplesWarning(UserWarning):
    """An estimate whose standard error is too large for what it is used for."""


class Estimate(NamedTuple):
    """An estimated number.

    Attributes:
        value: the estimate.
        error: its standard error, in the same unit; NaN where one sample alone was measured.
        count: independent samples behind it.
    """

    value: float
    error: float
    count: int

    def __str__(self) -> str:
        """Returns "value +- error"."""
        return f"{self.value:.4g} +- {self.error:.1g}"


def mean_of(values: torch.Tensor | np.ndarray) -> Estimate:
    """Returns the mean of independent values [N] with its standard error.

    Raises:
        ValueError: no values; values that are not finite.
    """
    found = torch.as_tensor(values).detach().double().reshape(-1).cpu().numpy()
    if not found.size:
        raise ValueError("mean_of: no values")
    if not np.isfinite(found).all():
        raise ValueError(f"mean_of: {int((~np.isfinite(found)).sum())} values are not finite")
    error = float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else float("nan")
    return Estimate(float(found.mean()), error, found.size)


def warn_if_few(who: str, what: str, estimate: Estimate, share: float = 0.2) -> Estimate:
    """Returns the estimate; warns where its standard error is above a share of its size.

    Args:
        who: the public function, which the message begins with.
        what: the name of the estimated number.
        estimate: the number.
        share: largest standard error over |value|.
    """
    value, error, count = estimate
    if not error <= share * abs(value):  # NaN too
        warnings.warn(
            f"{who}: {what} = {value:.4g} with a standard error of {error:.2g} from {count} "
            f"samples, which is more than {share:g} of it: give more samples",
            FewSamplesWarning,
            stacklevel=3,
        )
    return estimate
