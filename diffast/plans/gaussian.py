"""`Gaussian`: mean and covariance of data, and what they say of every noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal law N(mean, C) of data [d], with C = U diag(variances) U^T + rest (1 - U U^T).

    U has r orthonormal columns. All other directions share one variance, `rest`. Arrays are copied
    to float64 and made read-only.

    Args:
        mean: [d], the data as a row.
        basis: [r, d], U^T: orthonormal rows; r = 0 for an isotropic law.
        variances: [r] along the rows of the basis.
        rest: variance along all other directions.
        shape: of one sample, d = product; None: (d,).
        count: samples that it was estimated from; 0: none, the numbers are given.

    Raises:
        ValueError: for shapes that disagree, rows that are not orthonormal, a negative variance, or
            numbers that are not finite.
    """

    mean: np.ndarray
    basis: np.ndarray
    variances: np.ndarray
    rest: float = 0.0
    shape: tuple[int, ...] | None = None
    count: int = 0

    def __post_init__(self):
        """Converts, freezes and checks every number."""
        mean = _frozen(np.reshape(self.mean, -1))
        shape = (mean.size,) if self.shape is None else tuple(int(n) for n in self.shape)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "basis", _frozen(np.reshape(self.basis, (-1, mean.size))))
        object.__setattr__(self, "variances", _frozen(np.reshape(self.variances, -1)))
        object.__setattr__(self, "rest", float(self.rest))
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "count", int(self.count))
        rank, d = self.basis.shape
        if int(np.prod(shape)) != d:
            raise ValueError(f"Gaussian: shape = {shape}, but the mean has {d} elements")
        if self.variances.size != rank or rank > d:
            raise ValueError(
                f"Gaussian: {self.variances.size} variances, but the basis has {rank} rows of {d}"
            )
        numbers = np.concatenate([mean, self.basis.ravel(), self.variances, [self.rest]])
        if not np.isfinite(numbers).all():
            raise ValueError("Gaussian: a mean, basis or variance is not finite")
        least = min([self.rest, *self.variances.tolist()])
        if least < 0.0:
            raise ValueError(f"Gaussian: a variance is {least:g}, but it must be 0 or more")
        gap = np.abs(self.basis @ self.basis.T - np.eye(rank)).max(initial=0.0)
        if gap > 1e-6:
            raise ValueError(
                f"Gaussian: the rows of the basis are orthonormal only within {gap:.2g}"
            )

    @classmethod
    def of(cls, data: Any, rank: int | None = None) -> Gaussian:
        """Returns the law with the mean and the covariance of samples.

        Args:
            data: [N, ...], N >= 2; an array or a tensor on the CPU.
            rank: directions that keep a variance of their own; None: as many as the samples allow.
                The others get their mean variance.

        Raises:
            ValueError: fewer than 2 samples; values that are not finite; a rank that the samples do
                not have.
        """
        rows = _numbers(data)
        if rows.ndim < 1 or rows.shape[0] < 2:
            raise ValueError(
                f"Gaussian: data of shape {list(rows.shape)}, but at least 2 samples are needed"
            )
        if not rows.size:
            raise ValueError(f"Gaussian: data of shape {list(rows.shape)} have no elements")
        count, shape = rows.shape[0], rows.shape[1:] or (1,)
        rows = rows.reshape(count, -1)
        if not np.isfinite(rows).all():
            raise ValueError("Gaussian: data hold values that are not finite")
        d = rows.shape[1]
        most = min(d, count - 1)
        if rank is not None and (rank != int(rank) or not 0 <= rank <= most):
            raise ValueError(
                f"Gaussian: rank = {rank}, but {count} samples of {d} elements allow 0 to {most}"
            )
        rank = most if rank is None else int(rank)
        mean = rows.mean(axis=0)
        values, basis = _principal(rows - mean)
        kept = values[:rank]
        left = max(float(values.sum() - kept.sum()), 0.0)
        rest = left / (d - rank) if d > rank else 0.0
        return cls(mean, basis[:rank], kept, rest, shape, count)

    @property
    def d(self) -> int:
        """Returns the number of elements of one sample."""
        return self.mean.size

    @property
    def spectrum(self) -> np.ndarray:
        """Returns the d eigenvalues of the covariance, [d], those of the basis first."""
        return np.append(self.variances, np.full(self.d - self.variances.size, self.rest))

    @property
    def energy(self) -> float:
        """Returns E|y|^2, summed over the elements."""
        return float((self.mean**2).sum() + self.spectrum.sum())

    def mmse(self, rho: Any) -> np.ndarray:
        """Returns E|y - E[y|x]|^2 summed over elements, at noise levels rho = sigma / alpha.

        sum_i l_i rho^2 / (l_i + rho^2) over the eigenvalues l_i.
        """
        rho = np.asarray(rho, dtype=np.float64)
        square = rho[..., None] ** 2
        own = self.variances * square / np.maximum(self.variances + square, 1e-300)
        other = self.rest * rho**2 / np.maximum(self.rest + rho**2, 1e-300)
        return own.sum(axis=-1) + (self.d - self.variances.size) * other


def _principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (eigenvalues [m], orthonormal rows [m, d]) of centred samples, largest first."""
    count, d = rows.shape
    if d <= count:
        values, vectors = np.linalg.eigh(rows.T @ rows / (count - 1))
        return np.maximum(values[::-1], 0.0), np.ascontiguousarray(vectors[:, ::-1].T)
    # The covariance has rank N - 1 at most: the svd of the samples is smaller than [d, d].
    _, sizes, vectors = np.linalg.svd(rows, full_matrices=False)
    return sizes[: count - 1] ** 2 / (count - 1), vectors[: count - 1]


def _numbers(data: Any) -> np.ndarray:
    """Returns data as float64; raises ValueError for what are no real numbers."""
    if hasattr(data, "detach"):  # a tensor, perhaps of a type that numpy does not have
        data = data.detach().cpu()
        data = data.double() if data.is_floating_point() else data
    try:
        rows = np.asarray(data)
        if rows.dtype.kind not in "biuf":
            raise TypeError(f"they are {rows.dtype}")
        return rows.astype(np.float64, copy=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Gaussian: data must be real numbers [N, ...], but {error}") from None


def _frozen(array: Any) -> np.ndarray:
    array = np.array(array, dtype=np.float64, order="C")
    array.flags.writeable = False
    return array
