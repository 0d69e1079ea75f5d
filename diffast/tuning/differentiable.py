"""Functions of a schedule and of a prediction, with their derivatives, for torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class _Pointwise(torch.autograd.Function):
    """Numpy functions of a float64 vector, with the derivatives that come along."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, function: Callable) -> tuple[torch.Tensor, ...]:
        made, slopes = function(values.detach().numpy())
        ctx.slopes = [torch.from_numpy(np.array(s, dtype=np.float64)) for s in slopes]
        return tuple(torch.from_numpy(np.array(m, dtype=np.float64)) for m in made)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return sum(slope * grad for slope, grad in zip(ctx.slopes, grads, strict=True)), None


class ScheduleAt:
    """A schedule by its log-SNR: model time, alpha and sigma, differentiable.

    Args:
        schedule: the schedule.
        start: noisiest model time; log-SNRs below its own are put on it.
    """

    def __init__(self, schedule: Any, start: float):
        """Works out the bounds of the log-SNR."""
        self.schedule = schedule
        self.least = float(schedule.lam(start))  # -inf where alpha is 0
        self.most = float(schedule.lam(schedule.t_min))
        # Slopes are divided differences in the log-SNR. A time that is -inf there has no slope.
        self.step = 1e-5

    def __call__(self, lam: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns (t, alpha, sigma) at log-SNRs [N], clipped to the schedule's."""
        return _Pointwise.apply(lam, self._made)  # pyright: ignore[reportReturnType]

    def _made(self, lam: np.ndarray) -> tuple:
        middle = np.clip(lam, self.least, self.most)
        low, high = np.maximum(middle - self.step, self.least), middle + self.step
        high = np.minimum(high, self.most)
        inside = (lam >= self.least) & (lam <= self.most)
        own, below, above = (self._values(at) for at in (middle, low, high))
        width = np.where(high > low, high - low, 1.0)
        return own, [
            np.where(inside, (b - a) / width, 0.0) for a, b in zip(below, above, strict=True)
        ]

    def _values(self, lam: np.ndarray) -> tuple:
        t = np.asarray(self.schedule.time(lam), dtype=np.float64)
        return t, self.schedule.alpha(t), self.schedule.sigma(t)


class AffineAt:
    """What a network's output says of x0, differentiable in the time: x0 = a x + b output."""

    def __init__(self, denoiser: Any):
        """Keeps the denoiser, whose `affine` is asked."""
        self.denoiser = denoiser
        low, high = getattr(denoiser.schedule, "domain", (-np.inf, np.inf))
        self.low = max(low, min(denoiser.schedule.t_end, denoiser.schedule.t_start))
        self.high = min(high, max(denoiser.schedule.t_end, denoiser.schedule.t_start))
        self.smooth = not denoiser.whole_times

    def __call__(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (a, b) at model times [N]."""
        return _Pointwise.apply(times, self._made)  # pyright: ignore[reportReturnType]

    def _made(self, times: np.ndarray) -> tuple:
        own = self.denoiser.affine(times)
        if not self.smooth:
            return own, [np.zeros_like(times)] * 2
        gap = 1e-5 * np.minimum(np.abs(times) + 1e-6, 1.0 + np.abs(times))
        low, high = np.maximum(times - gap, self.low), np.minimum(times + gap, self.high)
        width = np.where(high > low, high - low, 1.0)
        try:
            below, above = self.denoiser.affine(low), self.denoiser.affine(high)
        except ValueError:  # next to a time at which the output does not determine x0
            return own, [np.zeros_like(times)] * 2
        return own, [(b - a) / width for a, b in zip(below, above, strict=True)]
