"""When a sampler on finite data falls into single samples, and when decisions are made."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.thermo.estimate import Estimate, mean_of


class Level(NamedTuple):
    """A noise level in its two common units.

    Attributes:
        rho: sigma / alpha, in the unit of the data.
        time: of the Ornstein-Uhlenbeck process dx = -x dt + sqrt(2) dB, log(1 + rho^2) / 2.
    """

    rho: float
    time: float

    @classmethod
    def of(cls, rho: float) -> Level:
        """Returns the level of a ratio sigma / alpha."""
        return cls(float(rho), 0.5 * math.log1p(float(rho) ** 2))


def collapse_time(variance: Any, count: int, d: int | None = None) -> Level:
    """Returns the noise level below which `count` samples of Gaussian data are told apart.

    Below it the exact denoiser of the samples returns the nearest one: a sampler that has learned
    it repeats its data. The argument counts volumes. Around each sample lies noise, and the law of
    the noised data has the volume of `count` such clouds where the information that a noised state
    holds on its sample, sum_i log(1 + v_i / rho^2) / 2, equals log(count). For one variance v in d
    dimensions that is t = log(1 + v / (count^(2/d) - 1)) / 2 (Biroli et al. 2024,
    arXiv:2402.18491).

    Assumed: Gaussian data with independent samples, and d large, so that log densities are near
    their means. Fluctuations widen the change around the level; they do not vanish for small d.

    Args:
        variance: v, one number, which needs d; or the spectrum of the data's covariance [d], as
            `df.thermo.Gaussian.of(data).spectrum`.
        count: number of samples, 2 or more.
        d: dimension of the data where `variance` is one number.

    Raises:
        ValueError: fewer than 2 samples, a variance that is negative or not finite, no positive
            one, or a dimension that is missing or disagrees.
    """
    who, spectrum = "collapse_time", np.asarray(variance, dtype=np.float64).reshape(-1)
    if count < 2:
        raise ValueError(f"{who}: count is {count}, but at least 2 samples are needed")
    if np.ndim(variance) == 0:
        if d is None or d < 1:
            raise ValueError(f"{who}: one variance needs the dimension d, but d is {d}")
        spectrum = np.full(int(d), spectrum[0])
    elif d is not None and d != spectrum.size:
        raise ValueError(f"{who}: d is {d}, but the spectrum has {spectrum.size} variances")
    if not (np.isfinite(spectrum).all() and (spectrum >= 0.0).all() and spectrum.any()):
        raise ValueError(f"{who}: variances must be finite, 0 or more, and not all 0")
    if np.ptp(spectrum) == 0.0:
        return Level.of(math.sqrt(spectrum[0] / math.expm1(2.0 / spectrum.size * math.log(count))))
    wanted = math.log(count)
    # rho^2 lies between those of the largest variance alone, and of all variances as large as it.
    top = float(spectrum.max())
    low = math.log(top) - 2.0 * wanted - 1.0
    high = math.log(top) - math.log(math.expm1(2.0 / spectrum.size * wanted))
    for _ in range(200):
        middle = 0.5 * (low + high)
        if 0.5 * np.log1p(spectrum * math.exp(-middle)).sum() > wanted:
            low = middle
        else:
            high = middle
    return Level.of(math.exp(0.25 * (low + high)))


def own_weights(data: torch.Tensor, rho: float, probes: int = 256, seed: int = 0) -> Estimate:
    """Returns the mean weight of a sample in the exact denoiser of all samples, in [1/N, 1].

    Sample j is noised to x = y_j + rho eps. The exact denoiser of the N samples is their average
    weighted by exp(-|x - y_i|^2 / (2 rho^2)); the weight of i = j is averaged over samples and
    noises. Near 1 the states at this level are memories of single samples.

    Args:
        data: samples [N, ...], N >= 2.
        rho: noise level sigma / alpha.
        probes: noised samples; each is a sample of the data in turn, with fresh noise.
        seed: of the noises.

    Raises:
        ValueError: fewer than 2 samples, values that are not finite, a level that is not above 0.
    """
    who, rows = "own_weights", data.detach().double().flatten(1) if data.dim() > 1 else None
    if rows is None:
        rows = data.detach().double().reshape(-1, 1)
    if len(rows) < 2:
        raise ValueError(f"{who}: data has {len(rows)} samples, but at least 2 are needed")
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{who}: data holds values that are not finite")
    if not (rho > 0.0 and math.isfinite(rho)):
        raise ValueError(f"{who}: rho is {rho}, but it must be above 0 and finite")
    if probes < 1:
        raise ValueError(f"{who}: probes is {probes}, but at least 1 is needed")
    generator = torch.Generator().manual_seed(seed)
    found = []
    order = torch.randperm(len(rows), generator=generator)
    for first in range(0, probes, 256):
        which = order[torch.arange(first, min(first + 256, probes)) % len(rows)]
        own = rows[which.to(rows.device)]
        noise = torch.randn(own.shape, generator=generator, dtype=own.dtype).to(own.device)
        x = own + rho * noise
        # |x - y|^2 from products: exact enough in float64
        squares = x.square().sum(1)[:, None] + rows.square().sum(1) - 2.0 * x @ rows.T
        logs = (-0.5 / rho**2 * squares).log_softmax(1)
        found.append(logs.gather(1, which.to(rows.device)[:, None])[:, 0].exp())
    return mean_of(torch.cat(found))


class DecisionWindow(NamedTuple):
    """Where the x0 estimate gains most, and how it differs from that of a Gaussian.

    Attributes:
        peaks: levels rho [P] of the local maxima of -d mmse / d lam, largest first; lam =
            log(alpha / sigma).
        low, high: levels [P] between which the rate is above half of the peak's.
        rate: -d mmse / d lam [L] at the given levels.
        ratio: mmse / mmse of the Gaussian with the same covariance [L]; empty without one. 1 above
            all decisions: the network then sees mean and covariance alone.
    """

    peaks: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rate: np.ndarray
    ratio: np.ndarray


def decision_window(levels: Any, mmse: Any, gaussian: Any = None) -> DecisionWindow:
    """Returns the windows of noise levels in which a sample's features are decided.

    The mean square error of the x0 estimate falls fastest where the posterior changes shape: a peak
    of -d mmse / d log-SNR for each such scale of the data (Ambrogioni 2023, arXiv:2310.17467, on
    the free-energy reading). Data of one scale v have their peak at rho^2 = v whether or not
    anything is decided, so the ratio to the Gaussian's is returned beside it.

    Args:
        levels: rho = sigma / alpha [L], L >= 5, strictly rising or falling.
        mmse: E|y - D|^2 at these levels [L].
        gaussian: `df.thermo.Gaussian` of the data, or its mmse at these levels [L]; None: no ratio.

    Raises:
        ValueError: fewer than 5 levels, arrays that disagree, values that are not finite.
    """
    who = "decision_window"
    rho, curve = (np.asarray(a, dtype=np.float64).reshape(-1) for a in (levels, mmse))
    if rho.size < 5 or rho.size != curve.size:
        raise ValueError(
            f"{who}: {rho.size} levels and {curve.size} values of mmse, but at least 5 of each are "
            "needed"
        )
    if not (np.isfinite(rho).all() and np.isfinite(curve).all() and (rho > 0.0).all()):
        raise ValueError(f"{who}: levels must be above 0 and finite, and mmse finite")
    steps = np.diff(rho)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"{who}: levels must rise or fall strictly")
    order = np.argsort(rho)
    log_rho = np.log(rho[order])
    rising = np.gradient(curve[order], log_rho)  # = -d mmse / d lam
    inside = np.flatnonzero((rising[1:-1] > rising[:-2]) & (rising[1:-1] >= rising[2:])) + 1
    inside = inside[rising[inside] > 0.0]
    inside = inside[np.argsort(-rising[inside], kind="stable")]
    ends = [_half(log_rho, rising, int(i)) for i in inside]
    ratio = np.zeros(0)
    if gaussian is not None:
        other = gaussian.mmse(rho) if hasattr(gaussian, "mmse") else gaussian
        other = np.asarray(other, dtype=np.float64).reshape(-1)
        if other.size != rho.size or not (other > 0.0).all():
            raise ValueError(f"{who}: the Gaussian's mmse must be [{rho.size}] and above 0")
        ratio = curve / other
    rate = np.empty_like(rising)
    rate[order] = rising
    return DecisionWindow(
        np.exp(log_rho[inside]),
        np.exp([low for low, _ in ends]),
        np.exp([high for _, high in ends]),
        rate,
        ratio,
    )


def _half(log_rho: np.ndarray, rate: np.ndarray, peak: int) -> tuple[float, float]:
    """Returns the logarithms of the levels where the rate falls to half of a peak's."""
    ends = []
    for step, last in ((-1, 0), (1, len(rate) - 1)):
        i = peak
        while i != last and rate[i] > 0.5 * rate[peak]:
            i += step
        if rate[i] > 0.5 * rate[peak]:
            ends.append(float(log_rho[i]))
            continue
        share = (rate[i - step] - 0.5 * rate[peak]) / (rate[i - step] - rate[i])
        ends.append(float(log_rho[i - step] + share * (log_rho[i] - log_rho[i - step])))
    return ends[0], ends[1]
