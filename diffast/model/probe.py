"""A probe of a network: does its answer agree with what its `Denoiser` says of it?

A denoiser of the right convention can denoise its own samples. The probe makes a few in first-order
steps, adds noise to them again at six levels and compares the x0 estimates with the samples. The
best linear guess of x0 from x, for data of spread s, has the mean square error

    s^2 rho^2 / (s^2 + rho^2),    rho = sigma / alpha,

and a network that knows its data does better. A wrong sign, a wrong prediction type or a wrong time
gives more than this error at some level, or is no better than it at any level while another
convention is. Two more facts hold at the noisiest level: the estimate hardly follows the noise, and
the samples are small against it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from diffast.model.outputs import tensor_of
from diffast.model.prediction import PREDICTIONS
from diffast.model.times import time_dtype, told_time

# Network calls of the samples.
STEPS = 12
# Noise levels of the comparison, in units of the samples' spread, and the most that the error may
# be there, over that of the linear guess. Few steps leave samples that are a little off.
RATIOS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LIMITS = (4.0, 3.0, 1.7, 1.4, 1.25, 1.15)
# Other conventions are tried where the geometric mean of the errors is above this: right for data
# that are nearly Gaussian and isotropic, and then none of them is better by the second factor.
LINEAR, BETTER = 0.5, 0.92
# The numbers that are compared are at least so many, where conditions do not fix the rows.
NUMBERS = 2048
# The log-SNRs between which the samples are made, where the schedule has them.
NOISIEST, CLEANEST = -4.5, 5.0
# Most that the samples' spread may be of the noise at the start; and how far the first estimate may
# follow the noise, in units of what Gaussian data give, and of the samples' spread.
LARGEST, FOLLOWS, CHANCE = 0.3, 2.0, 0.15
# How wrong an output may be against its size: at much noise a network of epsilon that is wrong by
# 1% gives an x0 that is wrong by 1% of sigma / alpha.
ROUGH = 0.1


@dataclass(frozen=True)
class Probe:
    """What `Denoiser.probe` found.

    Attributes:
        fits: whether the network denoises its own samples as the convention says.
        errors: mean square errors of x0 at noise levels of 0.1, 0.2, 0.5, 1, 2 and 5 times the
            spread, over those of the best linear guess; inf where a number was not finite.
        spread: standard deviation of the samples, in the unit of the data.
        follows: how far the estimate at the noisiest level follows the noise: 0 not at all; at
            most 1 is right.
        share: the samples' spread over that of the noise at the start; at most 0.3 is right.
        instead: conventions under which the network does denoise its samples; asked for only where
            it does not fit.
        calls: how many network calls were made, all conventions together.
    """

    fits: bool
    errors: tuple[float, ...]
    spread: float
    follows: float
    share: float
    instead: tuple[str, ...]
    calls: int

    @property
    def score(self) -> float:
        """Returns the geometric mean of the errors: 1 is a linear guess."""
        return math.exp(sum(math.log(max(error, 1e-6)) for error in self.errors) / len(self.errors))

    @property
    def sound(self) -> bool:
        """Returns whether each of the numbers is one that a right convention can have."""
        within = all(e <= most for e, most in zip(self.errors, LIMITS, strict=True))
        return within and self.follows <= 1.0 and self.share <= LARGEST

    @property
    def _only_follows(self) -> bool:
        """Returns whether the first estimate is all that is wrong, and nothing else fits."""
        if self.instead or self.follows <= 1.0:
            return False
        return replace(self, follows=0.0).sound and self.score < 1.0

    def __str__(self) -> str:
        """Returns the result in a few words."""
        found = ", ".join(f"{error:.2g}" for error in self.errors)
        numbers = (
            f"errors over those of a linear guess {found}; spread of samples {self.spread:.3g}, "
            f"{self.share:.2g} of the noise; first estimate follows the noise {self.follows:.2g}"
        )
        if self.fits:
            return f"the network denoises its own samples ({numbers})"
        if self._only_follows:
            return (
                "the network denoises its own samples, but its estimate at the noisiest level "
                "follows the noise (at most 1 is right): was it trained at so much noise, and is "
                f"the schedule's start right? ({numbers})"
            )
        if self.instead:
            names = " or ".join(self.instead)
            return f"the network does not denoise its own samples; it does with {names} ({numbers})"
        return (
            "the network does not denoise its own samples, nor with any other prediction type, "
            "sign or time: is it trained, and are the schedule, the unit of the time and the scale "
            f"of its input right? ({numbers})"
        )


def probe(
    denoiser: Any,
    shape: Sequence[int],
    seed: int = 0,
    device: torch.device | str | None = None,
    warn: bool = True,
) -> Probe:
    """Returns what a few network calls say of a denoiser's convention; see `Denoiser.probe`."""
    shape = tuple(int(n) for n in shape)
    if len(shape) < 1 or shape[0] < 2:
        raise ValueError(
            f"Denoiser: probe with shape {list(shape)}, but it needs 2 samples or more"
        )
    every = [*denoiser.conditions.values(), *(denoiser.unconditional or {}).values()]
    if not any(isinstance(v, torch.Tensor) and v.dim() and len(v) > 1 for v in every):
        rows = -(-NUMBERS // max(1, math.prod(shape[1:])))
        shape = (max(shape[0], rows), *shape[1:])
    device = denoiser.device() if device is None else torch.device(device)
    with torch.no_grad():
        result = _measured(denoiser, shape, seed, device)
        if not result.sound or result.score > LINEAR:
            result = _with_others(result, denoiser, shape, seed, device)
    if warn and not result.fits:
        warnings.warn(
            f"Denoiser: predicts={denoiser.predicts!r} on {type(denoiser.schedule).__name__}: "
            f"{result}",
            stacklevel=3,
        )
    return result


def _with_others(found, denoiser, shape, seed, device):
    """Returns the result with the names of the conventions that fit better."""
    calls, better = found.calls, []
    most = BETTER * found.score if found.sound else 1.0
    for words, other in _others(denoiser):
        try:
            one = _measured(other, shape, seed, device)
        except ValueError:  # a prediction that does not determine x0 on this schedule
            continue
        calls += one.calls
        if one.sound and one.score <= most:
            better.append((one.score, words))
    names = tuple(words for _, words in sorted(better)[:3])
    return replace(found, fits=found.sound and not names, instead=names, calls=calls)


def _measured(denoiser, shape, seed, device):
    """Returns the numbers of one convention, as a `Probe` that fits."""
    schedule, draw, calls = denoiser.schedule, torch.Generator().manual_seed(seed), 0

    def normals():
        return torch.randn(shape, generator=draw, device="cpu").to(device)

    def estimate(x, t):
        nonlocal calls
        calls += 1
        a, b = denoiser.prediction.affine(np.array([t]))
        given = x if denoiser.dtype is None else x.to(denoiser.dtype)
        kind = time_dtype(x.dtype)
        times = torch.full(shape[:1], told_time(schedule, t, kind), dtype=kind, device=device)
        arguments = denoiser.arguments(shape[0], device, "cond")
        return float(a[0]) * x + float(b[0]) * denoiser.call(given, times, arguments).to(x.dtype)

    times = _times(denoiser)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    eps = normals()
    x, first, data = float(sigma[0]) * eps, eps, eps
    input_share = float(denoiser.prediction.affine(times[:1])[0][0])
    x_first = x
    for k, t in enumerate(times):
        data = estimate(x, float(t))
        first = data if k == 0 else first
        if k + 1 < len(times):
            ratio = float(sigma[k + 1] / sigma[k])
            x = ratio * x + float(alpha[k + 1] - ratio * alpha[k]) * data
    spread = float(data.var(dim=0).mean().sqrt())
    if not 0 < spread < math.inf:
        nothing = (math.inf,) * len(RATIOS)
        return Probe(True, nothing, spread, math.inf, math.inf, (), calls)
    rho = float(sigma[0] / alpha[0])
    answered = float((first - input_share * x_first).square().mean().sqrt())  # |b| of its output
    first, eps = first - first.mean(dim=0), eps - eps.mean(dim=0)
    slope = abs(float((first * eps).mean() / eps.square().mean()))
    follows = slope / (FOLLOWS * spread**2 / rho + CHANCE * spread + ROUGH * answered)
    errors = []
    for ratio in RATIOS:
        t = _time_of(denoiser, -math.log(ratio * spread))
        a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
        found = estimate(a * data + s * normals(), t)
        guess = spread**2 / (1.0 + (a * spread / s) ** 2)
        error = float((found - data).square().mean()) / guess
        errors.append(error if math.isfinite(error) else math.inf)
    return Probe(True, tuple(errors), spread, follows, spread / rho, (), calls)


def _times(denoiser):
    """Returns the model times of the samples' network calls, from noisy to clean."""
    schedule = denoiser.schedule
    first = max(float(schedule.lam(schedule.t_start)), NOISIEST)
    last = min(float(schedule.lam(schedule.t_min)), CLEANEST)
    times = schedule.time(np.linspace(first, last, STEPS))
    return np.unique(_whole(denoiser, times))[::-1]


def _time_of(denoiser, lam):
    """Returns the model time of a log-SNR, moved into what the network is called at."""
    schedule = denoiser.schedule
    first, last = (float(schedule.lam(t)) for t in (schedule.t_start, schedule.t_min))
    t = schedule.time(min(max(lam, first, NOISIEST), last))
    return float(_whole(denoiser, np.array([t]))[0])


def _whole(denoiser, times):
    wanted = denoiser.time_dtype
    indexed = wanted is not None and not wanted.is_floating_point
    return np.round(times) if indexed else times


def _others(denoiser):
    """Returns (what to write instead, denoiser) for the conventions that are taken for this one."""
    network = denoiser.network
    for name in PREDICTIONS:
        if name != denoiser.predicts:
            yield f"predicts={name!r}", replace(denoiser, predicts=name)
    for name in PREDICTIONS:
        # the negatives of flow and of reverse_flow are each other
        if name not in ("flow", "reverse_flow"):
            said = f"the negative of its output as {name!r}"
            yield said, replace(denoiser, network=_changed(network, sign=-1.0), predicts=name)
    schedule = denoiser.schedule
    start, end = float(schedule.t_start), float(schedule.t_end)
    turned = _changed(network, total=start + end)
    if denoiser.time_dtype is None or denoiser.time_dtype.is_floating_point:
        for name in dict.fromkeys((denoiser.predicts, "flow", "reverse_flow")):
            said = f"the time t -> {start + end:g} - t, as {name!r}"
            yield said, replace(denoiser, network=turned, predicts=name)
        for factor in (1000.0, 1e-3):
            scaled = _changed(network, factor=factor)
            yield f"the time t -> {factor:g} t", replace(denoiser, network=scaled)


def _changed(network, sign=1.0, total=None, factor=1.0):
    """Returns a network with another sign or another time."""

    def changed(x, t, **conditions):
        if total is not None:
            t = total - t
        elif factor != 1.0:  # an integer time stays one
            t = factor * t
        output = network(x, t, **conditions)
        return output if sign == 1.0 else sign * tensor_of(output)

    changed.parameters = getattr(network, "parameters", None)  # type: ignore[attr-defined]
    return changed
