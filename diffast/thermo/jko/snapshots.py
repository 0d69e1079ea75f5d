"""The samples that a fit is given: checked, as float64 [n, d], with their times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Snapshots(NamedTuple):
    """Samples at rising times.

    Attributes:
        samples: K+1 arrays [n, d] float64; n may differ.
        times: [K+1].
        shape: of one sample.
    """

    samples: tuple[np.ndarray, ...]
    times: np.ndarray
    shape: tuple[int, ...]

    @property
    def d(self) -> int:
        """Returns the number of elements of a sample."""
        return self.samples[0].shape[1]

    @property
    def count(self) -> int:
        """Returns the samples of the smallest snapshot."""
        return min(map(len, self.samples))

    def without(self, group: int, groups: int) -> Snapshots:
        """Returns the snapshots without the samples whose number is `group` modulo `groups`."""
        kept = tuple(x[np.arange(len(x)) % groups != group] for x in self.samples)
        return self._replace(samples=kept)


def snapshots_of(who: str, given: Any, times: Any, tau: Any) -> Snapshots:
    """Returns the samples, checked.

    Args:
        who: the public function, for messages.
        given: a sequence of arrays or tensors [n, ...]; [n] for numbers.
        times: [K+1] rising times; None: 0, tau, 2 tau ...
        tau: the time between two snapshots, a number or [K]; None: by `times`.

    Raises:
        TypeError: times and tau together, or neither.
        ValueError: fewer than 2 snapshots; samples that are not finite, or of another shape than
            those of the first; times that do not rise, or do not count the snapshots.
    """
    if not isinstance(given, Sequence) and not hasattr(given, "__len__"):
        raise TypeError(f"{who}: snapshots is a {type(given).__name__}, but a list is needed")
    if len(given) < 2:
        raise ValueError(f"{who}: {len(given)} snapshots, but 2 or more are needed")
    found, shape = [], None
    for k, one in enumerate(given):
        x = one.detach().cpu().numpy() if hasattr(one, "detach") else one
        x = np.asarray(x, dtype=np.float64)
        if not x.ndim or not x.size:
            raise ValueError(f"{who}: snapshot {k} has shape {list(x.shape)}, but holds no samples")
        shape = x.shape[1:] if shape is None else shape
        if x.shape[1:] != shape:
            raise ValueError(
                f"{who}: snapshot {k} has samples of shape {list(x.shape[1:])}, but those of "
                f"snapshot 0 are {list(shape)}"
            )
        if not np.isfinite(x).all():
            bad = int(np.argwhere(~np.isfinite(x))[0][0])
            raise ValueError(f"{who}: sample {bad} of snapshot {k} is not finite")
        found.append(x.reshape(len(x), -1))
    return Snapshots(tuple(found), _times(who, len(found), times, tau), shape or ())


def _times(who: str, count: int, times: Any, tau: Any) -> np.ndarray:
    if (times is None) == (tau is None):
        raise TypeError(f"{who}: give times= or tau=, one of them")
    if times is None:
        steps = np.asarray(tau, dtype=np.float64)
        if steps.shape not in ((), (count - 1,)) or not (np.isfinite(steps) & (steps > 0)).all():
            raise ValueError(
                f"{who}: tau = {tau}, but {count} snapshots need one positive number, or "
                f"{count - 1} of them"
            )
        return np.concatenate([[0.0], np.cumsum(np.broadcast_to(steps, count - 1))])
    found = np.asarray(times, dtype=np.float64)
    if found.shape != (count,):
        raise ValueError(f"{who}: {found.size} times, but there are {count} snapshots")
    if not np.isfinite(found).all() or not (np.diff(found) > 0).all():
        raise ValueError(
            f"{who}: times = {found.tolist()}, but they must rise. For a sampler, which walks to "
            "t = 0, give times that rise along its run, such as log(alpha / sigma)"
        )
    return found
