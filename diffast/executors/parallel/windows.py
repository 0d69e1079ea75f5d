"""Which stages of which samples share a network call: one window a sample, rows of a pool."""

from __future__ import annotations

import numpy as np


class Windows:
    """Every sample's window of stages and the rows that hold them.

    A row is one pair (sample, stage) of a network call. Sample b waits for the network at stages
    start[b] .. start[b] + count[b] - 1; row rows[b, k] holds the k-th of them. Rows that a sample
    leaves go to the samples with the shortest windows, so no sample waits for the slowest.

    The pool has `size` rows, a sample at most `window` of them at a time. Windows do not cross
    `ends`: increasing stages, the last one S; None: S alone.
    """

    def __init__(
        self, samples: int, stages: int, window: int, size: int, ends: np.ndarray | None = None
    ):
        """Begins with empty windows and all rows free."""
        self.stages, self.window, self.size = stages, window, size
        self.ends = np.array([stages]) if ends is None else ends
        self.start = np.zeros(samples, dtype=np.int64)
        self.count = np.zeros(samples, dtype=np.int64)
        self.rows = np.full((samples, window), -1, dtype=np.int32)
        self.free = np.arange(size, dtype=np.int32)
        # How many rounds each row has been at its pair: 0 where the pair has no earlier answer.
        self.age = np.zeros(size, dtype=np.int64)

    @property
    def running(self) -> np.ndarray:
        """Returns the samples that have stages left, in order."""
        return np.flatnonzero(self.start < self.stages)

    @property
    def used(self) -> int:
        """Returns how many rows hold a pair."""
        return int(self.count.sum())

    @property
    def wanted(self) -> int:
        """Returns how many rows all windows could take at once from here on."""
        return int(np.minimum(self.window, self.stages - self.start).sum())

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns (rows, their samples, their stages) of all pairs."""
        sample = np.repeat(np.arange(len(self.count)), self.count)
        before = np.repeat(np.cumsum(self.count) - self.count, self.count)
        place = np.arange(len(sample)) - before
        return self.rows[sample, place], sample, self.start[sample] + place

    def advance(self, settled: np.ndarray) -> None:
        """Leaves the first settled[b] stages of every window."""
        if not settled.any():
            return
        place = np.arange(self.window)
        left = place < settled[:, None]
        self.free = np.append(self.free, self.rows[left])
        shifted = np.minimum(place + settled[:, None], self.window - 1)
        rows = self.rows[np.arange(len(shifted))[:, None], shifted]
        self.start += settled
        self.count -= settled
        self.rows = np.where(place < self.count[:, None], rows, np.int32(-1))

    def drop(self, b: int) -> np.ndarray:
        """Ends sample b, which failed; returns the rows that it held."""
        rows = self.rows[b, : self.count[b]].astype(np.int64)
        self.free = np.append(self.free, rows.astype(np.int32))
        self.rows[b] = -1
        self.start[b], self.count[b] = self.stages, 0
        return rows

    def grow(self) -> np.ndarray:
        """Gives free rows to windows; returns how many each got, [B]."""
        got = np.zeros_like(self.count)
        if not len(self.free):
            return got
        block = np.searchsorted(self.ends, self.start, side="right")
        limits = self.ends[np.minimum(block, len(self.ends) - 1)]
        room = np.minimum(self.window, limits - self.start) - self.count
        room[self.start >= self.stages] = 0
        room = np.maximum(room, 0)
        left = len(self.free)
        while left and room.any():
            # The shortest windows get rows first, level by level, until all have one length.
            wanting = np.flatnonzero(room)
            wanting = wanting[np.argsort((self.count + got)[wanting], kind="stable")]
            height = (self.count + got)[wanting]
            lowest = wanting[height == height[0]]
            higher = height[height > height[0]]
            step = int(higher[0] - height[0]) if higher.size else self.window
            step = min(step, int(room[lowest].min()), max(1, left // len(lowest)))
            lowest = lowest[: left // step]
            got[lowest] += step
            room[lowest] -= step
            left -= step * len(lowest)
        self.free.sort()
        if not got.any():
            return got
        new, self.free = np.split(self.free, [int(got.sum())])
        place = np.arange(self.window) - self.count[:, None]
        self.rows[(place >= 0) & (place < got[:, None])] = new
        self.age[new] = 0
        self.count += got
        return got

    def cut(self, size: int) -> None:
        """Frees the ends of windows until `size` rows are enough for the rest."""
        level = int(self.count.max())
        while np.minimum(self.count, level).sum() > size and level > 1:
            level -= 1
        kept = np.minimum(self.count, level)
        over = int(kept.sum()) - size
        if over > 0:  # there is not even one row each, so the last samples wait
            kept[np.flatnonzero(kept)[-over:]] = 0
        cut = (np.arange(self.window) >= kept[:, None]) & (self.rows >= 0)
        self.free = np.append(self.free, self.rows[cut])
        self.rows[cut] = -1
        self.count = kept

    def compact(self, size: int) -> np.ndarray:
        """Moves all pairs into a pool of `size` rows; returns where each came from, [size]."""
        rows, sample, stage = self.pairs()
        came = np.zeros(size, dtype=np.int64)
        came[: len(rows)] = rows
        age = np.zeros(size, dtype=np.int64)
        age[: len(rows)] = self.age[rows]
        self.rows[sample, stage - self.start[sample]] = np.arange(len(rows), dtype=np.int32)
        self.free = np.arange(len(rows), size, dtype=np.int32)
        self.size, self.age = size, age
        return came
