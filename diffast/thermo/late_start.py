"""`certificate`: how far noisy data are from a Gaussian at every noise level, for late starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffast._files import load_json, shortened
from diffast.model.denoiser import Denoiser
from diffast.plans.gaussian import Gaussian
from diffast.plans.initial import StartLaw, start_law_of
from diffast.thermo.estimate import Estimate
from diffast.tuning.grids.levels import Levels
from diffast.tuning.pilots import Pilots, ids_of, pieces

# The integrand falls as a power of rho at high noise: 2 in d KL / d log(rho) if means differ, 4 if
# covariances do, 6 for a third cumulant, 8 for a fourth.
_LEAST_POWER, _MOST_POWER = 2.0, 8.0


@dataclass(frozen=True, eq=False)
class Certificate:
    """The divergence KL(p || G) of noisy data from a Gaussian, at noise levels rho = sigma / alpha.

    KL(p_rho || G_rho) is the integral of |s_p - s_G|^2 r over r from rho to infinity, s the
    scores. With the x0 estimates D it is the integral of E|D - D_G|^2 / r^2 over log(r) ("score
    form"), and, for a denoiser without error, that of (loss of D_G - loss of D) / r^2 ("loss
    form"). An error e of the network adds E|e|^2 to the first and takes it from the second, so that
    the two bracket the divergence wherever e is not correlated with D - D_G.

    Attributes:
        rho: noise levels [L], falling.
        score: d KL / d log(rho) of the score form [L], never negative; None where only a loss curve
            was given.
        loss: the same of the loss form [L].
        score_kl: KL(p || G) of the score form [L], tail included, in nats.
        loss_kl: the same of the loss form.
        score_error: standard errors of `score_kl` [L]; 0 for curves without sampling error.
        loss_error: standard errors of `loss_kl`.
        tail: what the levels above the highest one add to the score form, in nats; that of the loss
            form where there is no score form.
        power: the power of 1 / rho that the tail falls with.
        count: samples behind it; 0: curves that were given.
        longest: the largest eigenvalue of the law's covariance over its trace; of several laws, the
            mean of these shares. 1 in one dimension.
    """

    rho: np.ndarray
    score: np.ndarray | None
    loss: np.ndarray
    score_kl: np.ndarray | None
    loss_kl: np.ndarray
    score_error: np.ndarray | None
    loss_error: np.ndarray
    tail: float
    power: float
    count: int = 0
    longest: float = 1.0

    @classmethod
    def of_loss(
        cls, mmse: Callable[[np.ndarray], np.ndarray], law: Gaussian, levels: Any
    ) -> Certificate:
        """Returns the loss form, from a loss curve alone: no network call.

        Args:
            mmse: E|y - D|^2 at noise levels, summed over elements, as a function of them.
            law: of the data; its mean and covariance have to be theirs.
            levels: noise levels rho [L], L >= 3.

        Raises:
            ValueError: levels or losses that are not finite.
        """
        rho = _falling(levels)
        loss = (law.mmse(rho) - np.asarray(mmse(rho), dtype=np.float64)) / rho**2
        if not np.isfinite(loss).all():
            raise ValueError("Certificate: the loss curve has values that are not finite")
        total, tail, power = _integral(rho, loss[None])
        nothing = np.zeros(len(rho))
        numbers = (float(tail[0]), power, 0, _longest([law]))
        return cls(rho, None, loss, None, total[0], None, nothing, *numbers)

    def kl(self, rho: float, form: str | None = None) -> Estimate:
        """Returns KL(p || G) at a noise level in nats, between the measured levels.

        Args:
            rho: noise level sigma / alpha.
            form: "score" or "loss"; None: the score form where there is one.

        Raises:
            ValueError: a level below the lowest measured one; an unknown form.
        """
        values, errors = self._form(form)
        rho = float(rho)
        if not rho >= self.rho[-1] * (1.0 - 1e-9):
            raise ValueError(
                f"Certificate: rho = {rho:g}, but the lowest measured level is {self.rho[-1]:g}"
            )
        if rho > self.rho[0]:  # the tail
            scale = (self.rho[0] / rho) ** self.power
            return Estimate(float(values[0]) * scale, float(errors[0]) * scale, self.count)
        where, logs = math.log(rho), np.log(self.rho)
        error = float(np.interp(-where, -logs, errors))
        return Estimate(self._between(where, logs, values, form), error, self.count)

    def tv(self, rho: float, form: str | None = None) -> float:
        """Returns a bound of the total variation distance, sqrt(KL / 2) (Pinsker), at most 1."""
        return min(1.0, math.sqrt(max(self.kl(rho, form).value, 0.0) / 2.0))

    def error(self, rho: float, form: str | None = None) -> float:
        """Returns what a start from the law adds to the samples, as a share of their spread.

        sqrt(2 KL longest). With l the law's largest variance, Talagrand's inequality bounds the
        Wasserstein distance of the two laws of u = x / alpha by sqrt(2 (l + rho^2) KL). The flow of
        the Gaussian takes it to the data with a factor of sqrt(l / (l + rho^2)) at most. The flow
        of the data may do less, or more where it pulls modes apart (up to 1.6 times, on a skewed
        mixture): this is a scale and no proof.
        """
        return math.sqrt(2.0 * max(self.kl(rho, form).value, 0.0) * self.longest)

    def level_for(self, error: float, form: str | None = None) -> float:
        """Returns the lowest noise level whose `error` is at most this, a share of the spread.

        Args:
            error: that of the plan at its calls: the start then adds no more than the steps do.
            form: as for `kl`.

        Raises:
            ValueError: an error that is not above 0.
        """
        if not error > 0.0:
            raise ValueError(f"Certificate: error = {error}, but it must be above 0")
        return self.level(error**2 / (2.0 * self.longest), form)

    def level(self, kl: float, form: str | None = None) -> float:
        """Returns the lowest noise level whose KL is at most so many nats.

        Args:
            kl: nats, > 0.
            form: as for `kl`.

        Raises:
            ValueError: a divergence that is not above 0.
        """
        if not kl > 0.0:
            raise ValueError(f"Certificate: kl = {kl}, but it must be above 0 nats")
        values, _ = self._form(form)
        above = (values > kl).nonzero()[0]
        if not len(above):
            return float(self.rho[-1])
        first = int(above[0])
        if first == 0:
            return float(self.rho[0] * (values[0] / kl) ** (1.0 / self.power))
        high, low = max(values[first - 1], 1e-300), values[first]
        share = math.log(kl / high) / math.log(low / high)
        return float(self.rho[first - 1] * (self.rho[first] / self.rho[first - 1]) ** share)

    def _between(self, where: float, logs: np.ndarray, values: np.ndarray, form: Any) -> float:
        """Returns KL between two levels: Hermite's cubic of log KL in log(rho), or of KL."""
        k = min(max(int(np.searchsorted(-logs, -where)), 1), len(logs) - 1)
        ends, width = values[[k - 1, k]], logs[k] - logs[k - 1]
        slopes = -(self.loss if form == "loss" or self.score is None else self.score)[[k - 1, k]]
        positive = bool((ends > 0).all())
        if positive:
            slopes, ends = slopes / ends, np.log(ends)
        s = (where - logs[k - 1]) / width
        made = (
            (1 + 2 * s) * (1 - s) ** 2 * ends[0]
            + s**2 * (3 - 2 * s) * ends[1]
            + width * s * (1 - s) * ((1 - s) * slopes[0] - s * slopes[1])
        )
        return float(math.exp(made) if positive else made)

    def to_dict(self) -> dict:
        """Returns all numbers as JSON can hold them."""
        made = {name: getattr(self, name) for name in _ARRAYS}
        made = {name: None if v is None else v.tolist() for name, v in made.items()}
        return made | {name: getattr(self, name) for name in _NUMBERS}

    @classmethod
    def from_dict(cls, made: dict) -> Certificate:
        """Returns the certificate of what `to_dict` returned.

        Raises:
            ValueError: a missing number, one that is no number, or arrays of different lengths.
        """
        if not isinstance(made, dict):
            raise ValueError(f"Certificate: a {type(made).__name__}, but it must be a dict")
        missing = sorted({*_ARRAYS, *_NUMBERS} - {*made})
        if missing:
            raise ValueError(f"Certificate: {missing[0]!r} is missing")
        wrong = [name for name in _NUMBERS if type(made[name]) not in (int, float)]
        if wrong:
            raise ValueError(f"Certificate: {wrong[0]} must be a number")
        arrays: dict[str, Any] = {
            n: None if made[n] is None else np.array(made[n], float) for n in _ARRAYS
        }
        lengths = {array.shape for array in arrays.values() if array is not None}
        if len(lengths) != 1 or len(*lengths) != 1 or arrays["rho"] is None:
            raise ValueError("Certificate: its arrays must be [M], of one M")
        return cls(**arrays, **{name: made[name] for name in _NUMBERS})

    def save(self, path: Path | str) -> None:
        """Writes a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> Certificate:
        """Returns the certificate of a file.

        Raises:
            ValueError: a file that holds none, as `from_dict`.
            FileNotFoundError: there is no such file.
        """
        record = load_json(path)
        try:
            return cls.from_dict(record)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: {shortened(error)}") from None

    def __str__(self) -> str:
        """Returns a table: level, both forms, the bound of the total variation."""
        lines = [f"{'sigma/alpha':>11}  {'KL, score':>18}  {'KL, loss':>18}  TV <="]
        for rho in self.rho:
            forms = [None if self.score_kl is None else self.kl(rho, "score"), self.kl(rho, "loss")]
            cells = ["-" if form is None else str(form) for form in forms]
            lines.append(f"{rho:11.4g}  {cells[0]:>18}  {cells[1]:>18}  {self.tv(rho):.3g}")
        return "\n".join(lines)

    def _form(self, form: str | None) -> tuple[np.ndarray, np.ndarray]:
        if form not in (None, "score", "loss"):
            raise ValueError(f"Certificate: form is {form!r}, but it must be 'score' or 'loss'")
        if self.score_kl is None or self.score_error is None:
            if form == "score":
                raise ValueError(
                    "Certificate: there is no score form, a loss curve alone was given"
                )
            return self.loss_kl, self.loss_error
        if form == "loss":
            return self.loss_kl, self.loss_error
        return self.score_kl, self.score_error


_ARRAYS = ("rho", "score", "loss", "score_kl", "loss_kl", "score_error", "loss_error")
_NUMBERS = ("tail", "power", "count", "longest")


def certificate(
    denoiser: Denoiser,
    law: Gaussian | StartLaw,
    data: Any,
    *,
    levels: int | Sequence[float] = 16,
    count: int | None = None,
    seed: int = 0,
    rows: int = 256,
) -> Certificate:
    """Returns how far noisy data are from a Gaussian at noise levels, measured with the network.

    Every sample is noised once at every level, with noises of its own: `count` times the number of
    levels are the rows of all network calls. Both forms come from the same calls.

    The law may be estimated from other samples than `data`, and should be: a law of the same few
    samples looks nearer than it is. The score form holds for any Gaussian, the loss form as well.

    Args:
        denoiser: the network. Sample i has row i of the conditions, counted around their end.
            Guidance is refused: guided samples are not noised data at any level.
        law: what stands for the noisy data: a Gaussian, or one a condition (`df.thermo.start_law`).
        data: samples [N, ...]: data, or what a good sampler made of the network.
        levels: noise levels rho = sigma / alpha, or how many: even in log(rho) from 8 deviations of
            the law along its longest direction down to half the rms deviation of an element, as far
            as the schedule has them.
        count: samples that are used; None: all.
        seed: of the noises.
        rows: samples of one network call, at most.

    Raises:
        ValueError: guidance; data of another shape than the law; levels that the schedule does not
            have; fewer than 2 samples; estimates that are not finite.
    """
    if denoiser.unconditional is not None or denoiser.guides:
        raise ValueError(
            "certificate: the denoiser has guidance, but noisy data of guided samples are not what "
            "its flow passes through: leave guidance out"
        )
    data = torch.as_tensor(data)
    data = data if data.is_floating_point() else data.double()
    data = data[: len(data) if count is None else count]
    laws = start_law_of(law, "certificate")
    if not any(one.spectrum.any() for one in laws.laws):
        raise ValueError(
            "certificate: the law has no variance in any direction, but levels are spread about "
            "its deviation: are all samples equal?"
        )
    if tuple(data.shape[1:]) != laws.shape or len(data) < 2:
        raise ValueError(
            f"certificate: data are {list(data.shape)}, but at least 2 samples of shape "
            f"{list(laws.shape)} are needed, that of the law"
        )
    rho, times = _levels(denoiser, laws, levels)
    bound = [_BoundLaw(one, denoiser.device()) for one in laws.laws]
    pilots = Pilots(denoiser, data.shape[1:], seed, denoiser.device())
    score, loss = np.zeros((len(data), len(rho))), np.zeros((len(data), len(rho)))
    with torch.no_grad():
        for piece in pieces(len(data), rows):
            ids = ids_of(piece.stop - piece.start, piece.start)
            own, y = pilots.rows(ids), data[piece].to(pilots.device)
            which = _which(laws, own, len(ids))
            for k, (level, time) in enumerate(zip(rho.tolist(), times.tolist(), strict=True)):
                noise = pilots.noise(ids, 1.0, stage=k).to(y.dtype)
                u = y + level * noise
                d = own.x0(u * float(denoiser.schedule.alpha(time)), time).double()
                if not bool(torch.isfinite(d).all()):
                    raise ValueError(f"certificate: the x0 estimate at t = {time:g} is not finite")
                g = torch.empty_like(d)
                for one, place in which:
                    g[place] = bound[one].x0(u[place].double(), level)
                score[piece, k] = _squares(d - g) / level**2
                loss[piece, k] = (_squares(y.double() - g) - _squares(y.double() - d)) / level**2
    return _made(rho, score, loss, _longest(laws.laws))


def _longest(laws: Sequence[Gaussian]) -> float:
    shares = [law.spectrum.max() / law.spectrum.sum() for law in laws if law.spectrum.any()]
    return float(np.mean(shares)) if shares else 1.0


def _made(rho: np.ndarray, score: np.ndarray, loss: np.ndarray, longest: float) -> Certificate:
    """Returns the certificate of values of d KL / d log(rho), [N, L] each."""
    count = len(score)
    total, tail, power = _integral(rho, score)
    other, _, _ = _integral(rho, loss, power)
    return Certificate(
        rho,
        score.mean(0),
        loss.mean(0),
        total.mean(0),
        other.mean(0),
        total.std(0, ddof=1) / math.sqrt(count),
        other.std(0, ddof=1) / math.sqrt(count),
        float(tail.mean()),
        power,
        count,
        longest,
    )


def _integral(
    rho: np.ndarray, values: np.ndarray, power: float | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns (integrals [N, L] over log(rho) from each level to infinity, tails [N], power).

    Between levels the integrand is a cubic spline's in log(rho): with the derivatives of a parabola
    through three neighbours, which is exact for cubics (Hermite). Above the highest level it falls
    as rho^-power, the mean slope of the three highest levels.
    """
    logs = np.log(rho)
    if power is None:
        top = values.mean(0)[:3]
        power = _LEAST_POWER
        if (top > 0).all():
            power = float(np.polyfit(logs[:3], np.log(top), 1)[0]) * -1.0
        power = min(max(power, _LEAST_POWER), _MOST_POWER)
    tails = values[:, 0] / power
    widths = logs[:-1] - logs[1:]  # > 0
    slopes = np.gradient(values, logs, axis=1, edge_order=2)
    parts = 0.5 * widths * (values[:, :-1] + values[:, 1:])
    # Hermite's correction: h^2 / 12 times the difference of the slopes in the direction of travel.
    parts += widths**2 / 12.0 * (slopes[:, 1:] - slopes[:, :-1])
    grown = np.concatenate([np.zeros((len(values), 1)), np.cumsum(parts, axis=1)], axis=1)
    return tails[:, None] + grown, tails, power


def _levels(denoiser: Denoiser, laws: StartLaw, levels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rho [L] falling, model times [L]) in the range of the schedule."""
    known = Levels.of(denoiser)
    if isinstance(levels, int):
        if levels < 3:
            raise ValueError(f"certificate: {levels} levels, but at least 3 are needed")
        spectrum = np.concatenate([law.spectrum for law in laws.laws])
        high = min(8.0 * float(np.sqrt(spectrum.max())), known.high)
        low = max(0.5 * float(np.sqrt(spectrum.mean())), known.low, 1e-3 * high)
        wanted = np.geomspace(high, min(low, 0.5 * high), levels)
    else:
        wanted = _falling(levels)
        if wanted[0] > known.high * (1 + 1e-9) or wanted[-1] < known.low * (1 - 1e-9):
            raise ValueError(
                f"certificate: levels run from {wanted[0]:g} to {wanted[-1]:g}, but the schedule "
                f"has {known.high:g} to {known.low:g}"
            )
    times = known.times(wanted)
    # Whole times may be fewer.
    times = times[np.concatenate([[True], np.diff(times) != 0])]
    return known.at(times), times


class _BoundLaw:
    """The x0 estimates of a Gaussian, float64, with its arrays on a device."""

    def __init__(self, law: Gaussian, device: torch.device):
        self.law = law
        arrays = (law.mean, law.basis, law.variances)
        self.mean, self.basis, self.variances = (torch.tensor(a, device=device) for a in arrays)

    def x0(self, u: torch.Tensor, rho: float) -> torch.Tensor:
        """Returns mean + C (C + rho^2)^-1 (u - mean) of u [B, ...]."""
        apart = u.reshape(len(u), -1) - self.mean
        rest = self.law.rest / (self.law.rest + rho**2)
        gain = self.variances / (self.variances + rho**2) - rest
        made = self.mean + rest * apart + (gain * (apart @ self.basis.T)) @ self.basis
        return made.reshape(u.shape)


def _which(laws: StartLaw, denoiser: Denoiser, count: int) -> list[tuple[int, Any]]:
    """Returns (index of a law, its rows) of a batch, by the condition that picks the law."""
    if laws.by is None:
        return [(0, slice(None))]
    picked = denoiser.conditions.get(laws.by)
    if not isinstance(picked, torch.Tensor) or picked.is_floating_point():
        raise ValueError(
            f"certificate: the law is picked by the condition {laws.by!r}, but the denoiser has "
            f"none of whole numbers: its conditions are {sorted(denoiser.conditions)}"
        )
    values = picked.reshape(-1).expand(count)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= len(laws.laws):
        raise ValueError(
            f"certificate: {laws.by} runs from {low} to {high}, but there are {len(laws.laws)} laws"
        )
    return [(v, (values == v).nonzero()[:, 0]) for v in values.unique().tolist()]


def _falling(levels: Any) -> np.ndarray:
    rho = np.sort(np.asarray(levels, dtype=np.float64).reshape(-1))[::-1]
    if len(rho) < 3 or not np.isfinite(rho).all() or not (rho > 0).all():
        raise ValueError(
            f"certificate: {len(rho)} levels, but at least 3 finite ones above 0 are needed"
        )
    if (np.diff(rho) == 0).any():
        raise ValueError("certificate: two levels are equal")
    return rho.copy()


def _squares(x: torch.Tensor) -> np.ndarray:
    return x.reshape(len(x), -1).square().sum(1).cpu().numpy()
