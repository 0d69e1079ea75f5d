"""The convergence test: how many stages of a window are settled after a sweep.

A sweep gave the point of each stage a new value. A stage is left when the changes of all points up
to it were small enough. The test is one for all methods; methods differ in its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.executors.parallel.methods import Method
from diffast.plans import Plan

# The least ratio of two changes in a row that the error estimate uses. With 0.1 one error in ten
# was above the tolerance.
_LEAST_RATIO = 0.3

# The error may be this much larger than its estimate: measured, see docs/parallel.md.
_SAFETY = 4.0


@dataclass(frozen=True)
class Convergence:
    """The numbers of one run's convergence test.

    Point n is settled when its change is at most `changes[n]` and the sample's estimated error from
    it at most `error`. The window's first stage is always left: its network call was on a settled
    point.

    The error of the sample by point n is estimated as follows. The network has not been called on
    the new point, but the sweep followed the network's slope, so only what the slope gets wrong is
    left: the change times its ratio to the change of the round before. That reaches the sample with
    a gain: `gains[n]`, or more where more arrived at the window's end in the same sweep.

    Args:
        changes: [S + 1] allowed root mean square change of the point at each stage; inf: any.
        error: allowed error of the sample relative to its root mean square; inf: any.
        gains: [S + 1] change of the sample per change of the point at each stage.
        ends: increasing stages that windows do not cross, the last one S.
        whole: whether a window is left only when all of its stages are settled.
        most: with `whole`, rounds after which a window is left in any case; None: no such number.
        together: whether all samples leave as many stages as the slowest of them.
    """

    changes: np.ndarray
    error: float
    gains: np.ndarray
    ends: np.ndarray
    whole: bool = False
    most: int | None = None
    together: bool = False

    def test(
        self,
        start: np.ndarray,
        count: np.ndarray,
        change: np.ndarray,
        before: np.ndarray,
        scale: np.ndarray,
        rounds: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns how many stages of each window are settled, and each sample's error, [J] each.

        Args:
            start: [J] first stage of each window.
            count: [J] stages of each window, at least 1.
            change: [J, W + 1] root mean square change of the points of the stages, and of the point
                after the last. What stands after that is not used.
            before: [J, W] changes of the round before; NaN for new stages.
            scale: [J] root mean square of the samples.
            rounds: [J] rounds that each window's first row has been at its stage.
        """
        place = np.arange(before.shape[1])
        inside = place < count[:, None]
        stage = np.minimum(start[:, None] + place, len(self.gains) - 1)
        error = self._errors(start, count, change, before, stage) / scale[:, None]
        settled = (change[:, :-1] <= self.changes[stage]) & (error * _SAFETY <= self.error)
        settled[:, 0] = True
        left = np.cumprod(settled & inside, axis=1).sum(axis=1)
        if self.whole:
            left[(left < count) & (rounds != self.most)] = 0
            left[left > 0] = count[left > 0]
        if self.together and len(left):
            left[:] = left.min()
        return left, np.where(inside, error, 0.0).max(axis=1, initial=0.0)

    def _errors(self, start, count, change, before, stage) -> np.ndarray:
        """Returns the estimated error of the sample by each stage of each window, [J, W]."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = change[:, :-1] / before
            ratio = np.where(np.isnan(ratio), 1.0, np.clip(ratio, _LEAST_RATIO, 1.0))
            last = change[np.arange(len(count)), count][:, None]
            arrived = self.gains[start + count][:, None] * last
            arrived = np.maximum(self.gains[stage] * change[:, :-1], arrived)
            return np.where(np.isnan(arrived), np.inf, arrived * ratio)


def convergence_of(
    method: Method, plan: Plan, gains: np.ndarray, tol: float, sweeps: int | None
) -> Convergence:
    """Returns the numbers of a method's convergence test; gains as for `Convergence`.

    With tol = 0 only points that did not change are settled. A block takes at most `sweeps` rounds.
    """
    changes, error = np.full(plan.nfe + 1, np.inf), tol
    if method.per_step:
        changes, error = tol * _step_noise(plan), np.inf
    elif tol == 0.0:
        changes, error = np.zeros(plan.nfe + 1), np.inf
    ends = np.array([plan.nfe])
    if method.blocks and plan.blocks is not None:
        ends = np.append(plan.blocks[1:], plan.nfe)
    return Convergence(changes, error, gains, ends, method.blocks, sweeps, method.together)


def _step_noise(plan: Plan) -> np.ndarray:
    """Returns the deviation of DDPM's posterior at the step that begins at each point, [S + 1].

    It is 0 at the last point, and at the point before where the plan ends without noise. Those are
    settled only when they do not change, so the last stage usually takes a round of its own.
    """
    times = np.append(plan.call_times, plan.end)
    alpha, sigma = plan.schedule.alpha(times), plan.schedule.sigma(times)
    with np.errstate(divide="ignore", invalid="ignore"):
        fresh = 1.0 - (alpha[:-1] * sigma[1:] / (alpha[1:] * sigma[:-1])) ** 2
    fresh = sigma[1:] * np.sqrt(np.maximum(fresh, 0.0))
    return np.append(np.where(np.isfinite(fresh), fresh, 0.0), 0.0)
