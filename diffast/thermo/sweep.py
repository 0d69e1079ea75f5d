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
# A Gaussian of more elements keeps so many directions. Means and covariances are taken over at most
# so many samples, with few and with many elements.
DENSE, DIRECTIONS = 1024, 256
MOST = (16384, 2048)


@dataclass(frozen=True)
class Means:
    """Means over a law of data, from numbers of n measured samples and of all N known ones.

    The mean is that of `own` plus that of `known`. With a linear estimate subtracted from the
    measured numbers and its own numbers known for all samples, little noise is left.

    Attributes:
        own: [M, n] of the measured samples.
        known: [M, N] of all samples; the first n are the measured ones.
    """

    own: np.ndarray
    known: np.ndarray

    def value(self, left_out: int = 0, groups: int = 1) -> np.ndarray:
        """Returns the means [M]; with groups > 1 of the samples i with i % groups != left_out."""
        if groups == 1:
            return self.own.mean(1) + self.known.mean(1)
        own, known = (
            part[:, np.arange(part.shape[1]) % groups != left_out].mean(1)
            for part in (self.own, self.known)
        )
        return own + known

    def error(self) -> np.ndarray:
        """Returns the standard errors [M] of the means, as estimates for the law of the data."""
        n, total = self.own.shape[1], self.known.shape[1]
        own = self.own - self.own.mean(1, keepdims=True)
        known = self.known - self.known.mean(1, keepdims=True)
        shared = (own * known[:, :n]).sum(1) / (n - 1)
        square = own.var(1, ddof=1) / n + known.var(1, ddof=1) / total + 2.0 * shared / total
        return np.sqrt(np.maximum(square, 0.0))


@dataclass(frozen=True)
class Sweep:
    """What `sweep` returns: numbers of each level and sample, float64, summed over the elements.

    The first axis: |y - D|^2 (loss), rho eps . D (Stein), y . (y - D) (projection).

    Attributes:
        times: model times [M], from noisy to clean.
        rho: noise levels sigma / alpha there [M].
        own: the network's numbers less a share of the linear estimate's, [3, M, n].
        known: that share of what the linear estimate has on average over the normals, [3, M, N].
    """

    times: np.ndarray
    rho: np.ndarray
    own: np.ndarray
    known: np.ndarray

    def loss(self) -> Means:
        """Returns E|y - D|^2."""
        return self._weighed(1.0, 0.0, 0.0)

    def speed_form(self, schedule: Any) -> Means:
        """Returns the mmse that the speed of the model's flow stands for.

        E|v|^2 of the velocity v of the model on the schedule's path, solved for the mmse. In the
        variance-exploding scaling it is rho^2 (d - E|eps estimate|^2).
        """
        c = weight(schedule, self.times)
        return self._weighed(-1.0, -2.0 * c, 2.0 + 2.0 * c)

    def gap(self, schedule: Any) -> Means:
        """Returns the loss less the speed form: 0 for an exact network."""
        c = weight(schedule, self.times)
        return self._weighed(2.0, 2.0 * c, -2.0 - 2.0 * c)

    def error_floor(self, d: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns what E|D - E[y|u]|^2 is at least [M], and its standard errors [M].

        For any w(u), E[(D - y) . w] is E[(D - E[y|u]) . w], so that its square over E|w|^2 is a
        lower bound (Cauchy and Schwarz). w = D - u, the direction of the flow: the numerator is the
        loss less the Stein form. Its own variance is taken off, and the bound is not below 0.
        """
        gap = self._weighed(1.0, -1.0, 0.0)
        size = self.rho**2 * d + self._weighed(1.0, -2.0, 0.0).value()
        value, error = gap.value(), gap.error()
        bound = np.maximum(value**2 - error**2, 0.0) / np.maximum(size, 1e-300)
        return bound, 2.0 * np.abs(value) * error / np.maximum(size, 1e-300)

    def _weighed(self, *weights: Any) -> Means:
        column = [np.broadcast_to(w, self.rho.shape)[:, None] for w in weights]
        own, known = (
            column[0] * part[0] + column[1] * part[1] + column[2] * part[2]
            for part in (self.own, self.known)
        )
        return Means(own, known)


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

    With more than 1,024 elements it keeps 256 directions at most. Where there are fewer samples
    than twice the elements, a quarter of them is the number of directions, and all others share one
    variance: the smallest eigenvalues of so few samples mean nothing.
    """
    count, d = len(data), data[0].numel()
    few = min(d, count // 4)
    return Gaussian.of(data, None if d <= DENSE and count >= 2 * d else min(few, DIRECTIONS))


def taken(data: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Returns places [N] int64 of samples in random order: all, or as many as means are taken of.

    The first `count` of them are measured.
    """
    drawn = torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
    most = MOST[data[0].numel() > DENSE]
    return torch.randperm(len(data), generator=drawn)[: max(count, most)]


def check_rows(denoiser: Denoiser, count: int) -> None:
    """Raises ValueError where conditions by rows do not belong to `count` data samples."""
    for given in (denoiser.conditions, denoiser.unconditional or {}):
        for name, value in given.items():
            if has_rows(value) and value.shape[0] not in (1, count):
                raise ValueError(
                    f"profile: data has {count} samples, but the condition {name!r} has "
                    f"{value.shape[0]} rows: give one row a sample of the data, or one for all"
                )


@torch.no_grad()
def sweep(
    denoiser: Denoiser,
    data: torch.Tensor,
    places: torch.Tensor,
    gaussian: Gaussian,
    levels: int,
    count: int,
    *,
    rows: int,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
    done: Callable[[int], Any] = lambda count: None,
) -> Sweep:
    """Returns the sweep over `levels` noise levels, even in log(rho).

    Network calls: levels times count, in batches of at most `rows`.

    Args:
        denoiser: the network, with its conditions and guidance.
        data: samples [N, ...] that means are taken over.
        places: [N] int64; sample i has the conditions of row places[i], and normals of its own.
        gaussian: mean and covariance of these samples.
        levels: how many; fewer are made where whole times fall together.
        count: the first so many samples are measured.
        rows: most rows of a network call.
        seed: of the normals.
        dtype: of the states.
        device: where to run.
        done: told 1 when a level of a batch is made.

    Raises:
        ValueError: x0 estimates that are not finite, with the noise level.
    """
    schedule = denoiser.schedule
    times, rho = Levels.of(denoiser).even(levels)
    pilots = Pilots(denoiser, tuple(data.shape[1:]), seed, device)
    own, other = np.empty((2, 3, len(times), count))
    for part in pieces(count, rows):
        which = places[part]
        here = pilots.rows(which)
        y = data[part].to(device, dtype)
        noise = ops.normal(
            y.shape,
            seed=seed,
            stage=ops.INITIAL_NOISE,
            ids=(which + NOISES).to(device),
            dtype=dtype,
        )
        linear = _Linear(gaussian, y, noise)
        for k, time in enumerate(times.tolist()):
            alpha, sigma = (float(f(time)) for f in (schedule.alpha, schedule.sigma))
            made = here.x0(alpha * y + sigma * noise, time)
            if not bool(torch.isfinite(made).all()):
                lost = int((~torch.isfinite(made).flatten(1).all(1)).sum())
                raise ValueError(
                    f"profile: the x0 estimate is not finite for {lost} of {len(y)} samples at "
                    f"the noise level sigma / alpha = {rho[k]:.4g} (model time {time:.6g})"
                )
            error = made.double().flatten(1) - linear.y
            raw = (
                error.square().sum(1),
                rho[k] * (linear.noise * (error + linear.y)).sum(1),
                -(linear.y * error).sum(1),
            )
            level = float(rho[k])
            own[:, k, part] = torch.stack(raw).cpu().numpy()
            other[:, k, part] = linear.varies(level) + linear.known(level)
            done(1)
    linear = _Linear(gaussian, data, None)
    known = np.stack([linear.known(level) for level in rho.tolist()], axis=1)
    share = _share(own, other)
    return Sweep(times, rho, own - share * other, share * known)


def _share(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns how much of the linear estimate's numbers to subtract, [3, M, 1] in [0, 1].

    The regression coefficient: least variance is left. It is 0 where a network knows what the
    linear estimate does not (a label).
    """
    apart = other - other.mean(2, keepdims=True)
    square = np.square(apart).sum(2, keepdims=True)
    product = ((own - own.mean(2, keepdims=True)) * apart).sum(2, keepdims=True)
    return np.clip(product / np.maximum(square, 1e-300), 0.0, 1.0)


class _Linear:
    """Loss, Stein form and projection of the best estimate for Gaussian data, sample by sample.

    It is linear, so what the normals add to the numbers and what is left on average over them are
    known. A share of both is subtracted from the network's numbers, and that of the second is added
    again as a mean over all samples. At high and at low noise a network's estimate is nearly
    this one.
    """

    def __init__(self, gaussian: Gaussian, y: torch.Tensor, noise: torch.Tensor | None):
        self.y = y.double().flatten(1)
        self.d, self.others = gaussian.d, gaussian.d - len(gaussian.basis)
        mean, basis = (
            torch.as_tensor(part.copy()).to(y.device) for part in (gaussian.mean, gaussian.basis)
        )
        apart = self.y - mean
        along, offset = apart @ basis.T, basis @ mean
        # The last column is all directions without a variance of their own together.
        self.spread = self._columns(along.square(), apart.square().sum(1))
        self.across = self._columns(along * offset, apart @ mean)
        self.variances = np.append(gaussian.variances, gaussian.rest)
        self.counts = np.append(np.ones(len(basis)), float(self.others))
        if noise is None:
            return
        self.noise = noise.double().flatten(1)
        own = self.noise @ basis.T
        self.square = self._columns(own.square() - 1.0, self.noise.square().sum(1) - self.d)
        self.product = self._columns(own * along, (self.noise * apart).sum(1))
        self.mean = self._columns(own * offset, self.noise @ mean)

    def _columns(self, parts: torch.Tensor, whole: torch.Tensor) -> np.ndarray:
        """Returns [B, r + 1]: each direction, and what all the others have of the whole."""
        rest = whole - parts.sum(1) if self.others else torch.zeros_like(whole)  # rounding
        return torch.cat([parts, rest[:, None]], 1).cpu().numpy()

    def known(self, rho: float) -> np.ndarray:
        """Returns the numbers [3, B] on average over the normals."""
        gain = self.variances / (self.variances + rho**2)
        left = 1.0 - gain
        loss = self.spread @ left**2 + rho**2 * (self.counts @ gain**2)
        stein = np.full_like(loss, rho**2 * (self.counts @ gain))
        return np.stack([loss, stein, (self.spread + self.across) @ left])

    def varies(self, rho: float) -> np.ndarray:
        """Returns what the normals add to them, [3, B]."""
        gain = self.variances / (self.variances + rho**2)
        loss = rho**2 * self.square @ gain**2 - 2.0 * rho * self.product @ (gain * (1.0 - gain))
        stein = rho**2 * self.square @ gain + rho * (self.product @ gain + self.mean.sum(1))
        return np.stack([loss, stein, -rho * ((self.product + self.mean) @ gain)])
