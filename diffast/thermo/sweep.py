"""One sweep over noise levels: three estimates of the mmse from every network call.

With a data sample y, a normal eps and u = y + rho eps, an exact network returns D = E[y | u], and

    mmse = E|y - D|^2                the loss
         = E[rho eps . D]            Stein's identity: rho^2 times the mean divergence of D
         = E[y . (y - D)]            D is the projection of y

are one number. A trained network meets all three where its error vanishes, and differs where it
does not. The same normals serve all levels, so that curves are smooth and differences are sharp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import FLOATS, has_rows
from diffast.model.denoiser import Denoiser
from diffast.model.network_errors import first_parameter
from diffast.plans.gaussian import Gaussian
from diffast.tuning.grids.levels import Levels
from diffast.tuning.pilots import Pilots, pieces

# Noises of the sweep have ids from here on: those that samples were made from are others.
NOISES = 3 << 40
# A Gaussian of more elements keeps so many directions, from so many samples.
DENSE, DIRECTIONS, SAMPLES = 1024, 256, 2048


@dataclass(frozen=True)
class Sweep:
    """What `sweep` returns: one number a level and sample, float64, summed over the elements.

    Attributes:
        times: model times [M], from noisy to clean.
        rho: noise levels sigma / alpha there [M].
        loss: |y - D|^2, [M, N].
        stein: rho eps . D, [M, N].
        projection: y . (y - D), [M, N]. All three less a variate of mean 0, see `_Control`.
    """

    times: np.ndarray
    rho: np.ndarray
    loss: np.ndarray
    stein: np.ndarray
    projection: np.ndarray

    def speed_form(self, schedule: Any) -> np.ndarray:
        """Returns the mmse [M, N] that the speed of the model's flow stands for, see `weight`.

        E|v|^2 of the velocity v of the model on the schedule's path, solved for the mmse. In the
        variance-exploding scaling it is rho^2 (d - E|eps estimate|^2).
        """
        c = weight(schedule, self.times)[:, None]
        return (2.0 + 2.0 * c) * self.projection - self.loss - 2.0 * c * self.stein


def weight(schedule: Any, times: np.ndarray) -> np.ndarray:
    """Returns c = -d log(sigma) / d log(rho) at model times [M]: -1 where alpha does not change.

    The velocity of the path is v = a x + b D with a = sigma' / sigma and b = alpha' - alpha a.
    E|v|^2, solved for the mmse, is (2 + 2c) E[y . (y - D)] - E|y - D|^2 - 2c E[rho eps . D] with
    c = alpha a / b, because alpha a rho = sigma'.
    """
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    dalpha, dsigma = schedule.derivatives(times)
    return -(dsigma / sigma) / (dsigma / sigma - dalpha / alpha)


def state_dtype(denoiser: Denoiser, data: torch.Tensor | None, asked: Any) -> torch.dtype:
    """Returns the dtype of the states: float64 for a network of that dtype, else float32.

    A network without parameters has the data's.

    Raises:
        ValueError: something else was asked for.
    """
    if asked is not None:
        if asked not in FLOATS[:2]:
            raise ValueError(f"profile: dtype is {asked}, but it must be float32 or float64")
        return asked
    known = first_parameter(denoiser.network)
    own = denoiser.dtype or (data if known is None else known)
    own = getattr(own, "dtype", own)
    return torch.float64 if own == torch.float64 else torch.float32


def gaussian_of(data: torch.Tensor) -> Gaussian:
    """Returns mean and covariance of samples [N, ...].

    With more than 1,024 elements it keeps 256 directions at most, of 2,048 samples at most. Where
    there are fewer samples than twice the elements, a quarter of them is the number of directions,
    and all others share one variance: the smallest eigenvalues of so few samples mean nothing.
    """
    count, d = len(data), data[0].numel()
    if d > DENSE:
        return Gaussian.of(data[:SAMPLES].cpu(), min(DIRECTIONS, d, len(data[:SAMPLES]) // 4))
    return Gaussian.of(data.cpu(), None if count >= 2 * d else min(d, count // 4))


def check_rows(denoiser: Denoiser, count: int) -> None:
    """Raises ValueError where conditions by rows do not belong to `count` data samples."""
    for given in (denoiser.conditions, denoiser.unconditional or {}):
        for name, value in given.items():
            if has_rows(value) and value.shape[0] not in (1, count):
                raise ValueError(
                    f"profile: data has {count} samples, but the condition {name!r} has "
                    f"{value.shape[0]} rows: give one row a sample of the data, or one for all"
                )


def chosen(total: int, count: int, seed: int) -> torch.Tensor:
    """Returns which of `total` samples are measured: [count] int64, in rising order."""
    drawn = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    return torch.randperm(total, generator=drawn)[:count].sort().values


@torch.no_grad()
def sweep(
    denoiser: Denoiser,
    data: torch.Tensor,
    gaussian: Gaussian,
    levels: int,
    *,
    ids: torch.Tensor,
    rows: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    done: Callable[[int], Any] = lambda count: None,
) -> Sweep:
    """Returns the sweep over `levels` noise levels, even in log(rho).

    Network calls: levels times the number of ids, in batches of at most `rows`.

    Args:
        denoiser: the network, with its conditions and guidance.
        data: all samples [N, ...].
        gaussian: mean and covariance of the data, for the control variate.
        levels: how many; fewer are made where whole times fall together.
        ids: which samples are measured [n] int64. Sample i has row i of the conditions.
        rows: most rows of a network call.
        seed: of the normals.
        dtype: of the states.
        device: where to run.
        done: told the number of levels of a batch that were made.

    Raises:
        ValueError: x0 estimates that are not finite, with the noise level.
    """
    schedule = denoiser.schedule
    times, rho = Levels.of(denoiser).even(levels)
    pilots = Pilots(denoiser, tuple(data.shape[1:]), seed, device)
    found = np.empty((3, len(times), len(ids)))
    for part in pieces(len(ids), rows):
        which = ids[part]
        own = pilots.rows(which)
        y = data[which].to(device, dtype)
        noise = ops.normal(
            y.shape,
            seed=seed,
            stage=ops.INITIAL_NOISE,
            ids=(which + NOISES).to(device),
            dtype=dtype,
        )
        control = _Control(gaussian, y, noise)
        for k, time in enumerate(times.tolist()):
            alpha, sigma = (float(f(time)) for f in (schedule.alpha, schedule.sigma))
            made = own.x0(alpha * y + sigma * noise, time)
            if not bool(torch.isfinite(made).all()):
                lost = int((~torch.isfinite(made).flatten(1).all(1)).sum())
                raise ValueError(
                    f"profile: the x0 estimate is not finite for {lost} of {len(y)} samples at "
                    f"the noise level sigma / alpha = {rho[k]:.4g} (model time {time:.6g})"
                )
            error = made.double().flatten(1) - control.y
            raw = (
                error.square().sum(1),
                rho[k] * (control.noise * (error + control.y)).sum(1),
                -(control.y * error).sum(1),
            )
            found[:, k, part] = torch.stack(raw).cpu().numpy() - control(float(rho[k]))
            done(1)
    return Sweep(times, rho, *found)


class _Control:
    """Variates of mean 0 over the normals, given y: the three numbers of a linear estimate D_G.

    D_G is the best estimate for Gaussian data. What the normals add to its loss, to its Stein form
    and to its projection is known, and is most of what they add to those of the network at high and
    at low noise. Subtracted, it changes no mean, whatever the data are.
    """

    def __init__(self, gaussian: Gaussian, y: torch.Tensor, noise: torch.Tensor):
        self.y, self.noise = y.double().flatten(1), noise.double().flatten(1)
        mean, basis = (
            torch.as_tensor(part.copy()).to(y.device) for part in (gaussian.mean, gaussian.basis)
        )
        apart, others = self.y - mean, gaussian.d - len(basis)
        along, own = apart @ basis.T, self.noise @ basis.T
        square, product, offset = own.square() - 1.0, own * along, own * (basis @ mean)
        # The last column is all directions without a variance of their own together.
        whole = (
            self.noise.square().sum(1) - gaussian.d,
            (self.noise * apart).sum(1),
            self.noise @ mean,
        )
        parts = (square, product, offset)
        if not others:  # what is left is rounding
            whole = tuple(part.sum(1) for part in parts)
        self.square, self.product, self.offset = (
            torch.cat([part, (total - part.sum(1))[:, None]], 1).cpu().numpy()
            for part, total in zip(parts, whole, strict=True)
        )
        self.variances = np.append(gaussian.variances, gaussian.rest)

    def __call__(self, rho: float) -> np.ndarray:
        """Returns the variates [3, B] at a level: of loss, Stein form, projection."""
        gain = self.variances / (self.variances + rho**2)
        ones = np.ones_like(gain)
        loss = rho**2 * self.square @ gain**2 - 2.0 * rho * self.product @ (gain * (1.0 - gain))
        stein = rho**2 * self.square @ gain + rho * (self.product @ gain + self.offset @ ones)
        projection = -rho * ((self.product + self.offset) @ gain)
        return np.stack([loss, stein, projection])
