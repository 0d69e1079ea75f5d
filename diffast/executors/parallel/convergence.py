"""When a window moves on: the rules by which stages count as settled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# How little of its last change a stage may be assumed to change by next: 0.1 let one in ten errors
# be above the tolerance.
_LEAST_RATIO = 0.3

# How much larger than estimated the error may be: measured, see docs/parallel.md.
_SAFETY = 4.0


@dataclass
class FinalError:
    """Moves past stages whose next change would move the sample by less than `tol`.

    After a sweep a stage's point moved by e. The network has not been asked at the new point, but
    the sweep followed the network's slope, so what is left is what the slope gets wrong: about e
    times the ratio of this change to the one before it, as far as that is below 1. To the sample it
    matters by the gain from that stage to the end: the prior's, or what the same sweep showed, the
    change that arrived at the end; whichever is more. With tol = 0 only points that did not move at
    all are settled: then the result is the sequential one.

    Args:
        tol: error of the sample relative to its root mean square.
        gains: [S + 1] change of the sample per change of the point at each stage.
    """

    tol: float
    gains: np.ndarray

    def stride(self, sample, start: int, change, before, scale: float) -> tuple[int, float]:
        """Returns how many stages of a window are settled, and the sample's estimated error.

        Args:
            sample: which sample.
            start: the window's first stage.
            change: [w + 1] root mean square change of the points of its stages, and behind them.
            before: [w] that of the round before; NaN for new stages.
            scale: root mean square of the sample.
        """
        error = self.errors(start, change, before) / scale
        settled = change[:-1] == 0.0 if self.tol == 0.0 else error * _SAFETY <= self.tol
        moved = np.flatnonzero(~settled[1:])
        stride = int(moved[0]) + 1 if moved.size else len(error)
        return stride, float(error.max(initial=0.0))

    def errors(self, start: int, change, before) -> np.ndarray:
        """Returns the estimated errors of the sample by each stage of a window, [w]."""
        count = len(change) - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = change[:-1] / before
        ratio = np.where(np.isnan(ratio), 1.0, np.clip(ratio, _LEAST_RATIO, 1.0))
        behind = self.gains[start + count] * change[-1]
        arrived = np.maximum(self.gains[start : start + count] * change[:-1], behind)
        return np.where(np.isnan(arrived), np.inf, arrived * ratio)

    def together(self, strides: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Returns the strides of all samples, [B]: each its own."""
        return strides

    def limits(self, start: np.ndarray) -> np.ndarray:
        """Returns the stage that each sample's window may not go beyond, [B]."""
        return np.full_like(start, len(self.gains) - 1)


@dataclass
class PerStep(FinalError):
    """The rule of ParaDiGMS: changes are compared with the noise that DDPM would add at that step.

    All samples move on together, by the stride of the slowest (Shih et al. 2023, algorithm 1). The
    last point has no noise to be compared with, so a run ends with a round of its last stage.

    Args:
        tol: change of a point relative to that noise.
        gains: [S + 1].
        noise: [S + 1] standard deviation of DDPM's noise at the step that begins at each point; 0
            at the last.
    """

    noise: np.ndarray = None

    def stride(self, sample, start: int, change, before, scale: float) -> tuple[int, float]:
        """Returns how many stages of a window are settled, and the sample's estimated error."""
        _, error = super().stride(sample, start, change, before, scale)
        settled = change[1:] <= self.tol * self.noise[start + 1 : start + len(change)]
        # The last of the window moves on at least: its network call was on a settled point.
        moved = np.flatnonzero(~settled)
        stride = int(moved[0]) + 1 if moved.size else len(change) - 1
        return stride, error

    def together(self, strides: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Returns the strides of all samples, [B]: the smallest."""
        strides[running] = strides[running].min()
        return strides


@dataclass
class Barriers(FinalError):
    """The rule of PIADM: a block of stages is swept a number of times and left as a whole.

    Args:
        tol: error of the sample relative to its root mean square; ends a block early.
        gains: [S + 1].
        blocks: first stage of each block.
        sweeps: rounds a block gets at most; None: as many as `tol` needs.
    """

    blocks: np.ndarray = None
    sweeps: int | None = None

    def __post_init__(self):
        """Begins to count."""
        self.ends = np.append(self.blocks[1:], len(self.gains) - 1)
        self.done: dict[int, int] = {}

    def stride(self, sample, start: int, change, before, scale: float) -> tuple[int, float]:
        """Returns the whole window once it is settled or has had its sweeps, and else 0."""
        stride, error = super().stride(sample, start, change, before, scale)
        count = len(change) - 1
        self.done[sample] = self.done.get(sample, 0) + 1
        if stride < count and self.done[sample] != self.sweeps:
            return 0, error
        self.done[sample] = 0
        return count, error

    def limits(self, start: np.ndarray) -> np.ndarray:
        """Returns the end of the block that each sample's window begins in, [B]."""
        block = np.searchsorted(self.blocks, start, side="right") - 1
        return self.ends[np.clip(block, 0, len(self.ends) - 1)]
