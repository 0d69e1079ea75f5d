"""`StartLaw`: Gaussians that stand for noisy data at high noise, one for all or one a condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from diffast.plans.gaussian import Gaussian
from diffast.thermo.shrinkage import shrunk_gaussian

# Steps of the flow of a law that has no closed form. No network is called.
_STEPS = 48

# Tensors of laws, by dtype and device, as long as the laws live.
_KEPT: WeakKeyDictionary[Gaussian, dict] = WeakKeyDictionary()


class StartLaw:
    """What noisy data are taken to be at high noise: Gaussians with their exact x0 estimates.

    With one law a sample, x = alpha y + sigma eps is N(alpha mean, alpha^2 C + sigma^2). With
    `guidance` the estimates are D = D_blank + w (D_law - D_blank), what classifier-free guidance
    makes of two Gaussians. With `mixture`, all laws together are the law of every sample.

    Args:
        laws: one Gaussian or several, of one shape.
        which: [N] indices into `laws`, one a row of the conditions; counted around its end. None:
            the first law for all rows.
        blank: the Gaussian of the unconditional branch, with guidance.
        guidance: scale w, or a function of the noise level rho = sigma / alpha that returns it.
        mixture: weights [K] of the laws, positive: every sample has the mixture of all laws.

    Raises:
        ValueError: for laws of several shapes, indices that are none of theirs, guidance without
            `blank`, a mixture together with `which` or `blank`.
    """

    def __init__(
        self,
        laws: Gaussian | Sequence[Gaussian],
        which: Any = None,
        *,
        blank: Gaussian | None = None,
        guidance: float | Callable[[float], float] = 1.0,
        mixture: Any = None,
    ):
        """Checks the arguments."""
        self.laws = (laws,) if isinstance(laws, Gaussian) else tuple(laws)
        if not self.laws:
            raise ValueError("StartLaw: no law, but at least one Gaussian is needed")
        shapes = sorted({law.shape for law in (*self.laws, *((blank,) if blank else ()))})
        if len(shapes) > 1:
            raise ValueError(f"StartLaw: laws of shapes {shapes[0]} and {shapes[1]}, not of one")
        self.which = np.zeros(1, dtype=np.int64) if which is None else np.array(which).reshape(-1)
        if self.which.dtype.kind not in "iu" or not self.which.size:
            raise ValueError("StartLaw: which must be indices, one a row of the conditions")
        low, high = int(self.which.min()), int(self.which.max())
        if low < 0 or high >= len(self.laws):
            raise ValueError(
                f"StartLaw: which runs from {low} to {high}, but there are {len(self.laws)} laws"
            )
        plain = not callable(guidance) and float(guidance) == 1.0
        if blank is None and not plain:
            raise ValueError("StartLaw: guidance needs blank, the law of the unconditional branch")
        self.blank, self.guidance = (None if plain else blank), guidance
        self.mixture = None
        if mixture is not None:
            weights = np.asarray(mixture, dtype=np.float64).reshape(-1)
            if len(weights) != len(self.laws) or not (weights > 0).all():
                raise ValueError(
                    f"StartLaw: mixture = {weights.tolist()}, but {len(self.laws)} positive "
                    "weights are needed"
                )
            if which is not None or self.blank is not None:
                raise ValueError("StartLaw: a mixture has neither which nor guidance")
            self.mixture = weights / weights.sum()

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one sample."""
        return self.laws[0].shape or (self.laws[0].d,)

    @property
    def closed(self) -> bool:
        """Returns whether the states have a closed form: no guidance and no mixture."""
        return self.blank is None and self.mixture is None

    @property
    def deviation(self) -> float:
        """Returns a bound of the largest deviation of all laws together along any direction."""
        middle = np.mean([law.mean for law in self.laws], axis=0)
        apart = max(float(((law.mean - middle) ** 2).sum()) for law in self.laws)
        return float(np.sqrt(max(law.spectrum.max() for law in self.laws) + apart))

    def of_row(self, row: int) -> Gaussian:
        """Returns the Gaussian of a row of the conditions."""
        return self.laws[int(self.which[row % len(self.which)])]

    def x0(self, u: torch.Tensor, rho: float, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the x0 estimates [B, ...] of u = x / alpha at a noise level rho = sigma / alpha.

        Args:
            u: states [B, ...].
            rho: noise level, > 0.
            rows: [B] rows of the conditions; None: 0 .. B-1.
        """
        flat = u.reshape(len(u), -1)
        if self.mixture is not None:
            return self._mixed(flat, rho).reshape(u.shape)
        made = self._each(flat, rows, lambda law, part: _x0(law, part, rho))
        if self.blank is not None:
            scale = float(self.guidance(rho)) if callable(self.guidance) else float(self.guidance)
            base = _x0(self.blank, flat, rho)
            made = base + scale * (made - base)
        return made.reshape(u.shape)

    def state(
        self,
        z: torch.Tensor,
        rho: float,
        rows: torch.Tensor | None = None,
        high: float | None = None,
    ) -> torch.Tensor:
        """Returns u = x / alpha [B, ...] at a noise level, where the flow of the law takes noises.

        For one Gaussian a sample this is mean + (C + rho^2)^(1/2) z in closed form: the solution of
        du / d log(rho) = u - D(u) that starts as rho z from rho = infinity. With guidance and for a
        mixture the same equation is solved from `high` by Heun's exponential method, 48 steps even
        in log(rho). The law of u is then that of the flow, and not of noisy data.

        Args:
            z: standard normals [B, ...].
            rho: noise level, > 0.
            rows: as for `x0`.
            high: where the flow starts from; None: 20 times `deviation`, at least 20 rho. Used by guidance and mixtures alone.
        """
        flat = z.reshape(len(z), -1)
        if self.closed:
            made = self._each(flat, rows, lambda law, part: _state(law, part, rho))
            return made.reshape(z.shape)
        high = 20.0 * max(self.deviation, rho) if high is None else float(high)
        # One Gaussian is exact at the start: what follows corrects it.
        u = self._first(flat, high, rows)
        levels = np.geomspace(high, rho, _STEPS + 1).tolist()
        for level, after in zip(levels[:-1], levels[1:], strict=True):
            d = self.x0(u, level, rows)
            keep, length = after / level, float(np.log(level / after))
            ahead = keep * u + (1.0 - keep) * d
            u = ahead + (1.0 - (1.0 - keep) / length) * (self.x0(ahead, after, rows) - d)
        return u.reshape(z.shape)

    def mmse(self, rho: Any) -> np.ndarray:
        """Returns the mean over the rows of E|y - E[y|x]|^2, summed over elements.

        Raises:
            ValueError: with guidance or a mixture, where there is no closed form.
        """
        if not self.closed:
            raise ValueError("StartLaw: mmse has no closed form with guidance or a mixture")
        counts = np.bincount(self.which, minlength=len(self.laws)) / len(self.which)
        return sum(
            share * law.mmse(rho) for share, law in zip(counts, self.laws, strict=True) if share
        )

    def _each(self, flat, rows, function):
        """Returns function(law, part) of the rows of each law, put together."""
        if len(self.laws) == 1:
            return function(self.laws[0], flat)
        rows = torch.arange(len(flat)) if rows is None else rows.cpu()
        own = torch.as_tensor(self.which)[rows % len(self.which)]
        made = torch.empty_like(flat)
        for k in own.unique().tolist():
            place = (own == k).nonzero()[:, 0].to(flat.device)
            made[place] = function(self.laws[k], flat[place])
        return made

    def _first(self, flat, high, rows):
        if self.blank is not None:
            # mean of the guided estimate: the part of D that does not vanish at high noise
            zero = torch.zeros_like(flat)
            return self.x0(zero, high, rows) + high * flat
        weights, means = np.asarray(self.mixture), np.stack([law.mean for law in self.laws])
        return torch.as_tensor(weights @ means).to(flat) + high * flat

    def _mixed(self, flat, rho):
        logs, own = [], []
        for weight, law in zip(np.asarray(self.mixture), self.laws, strict=True):
            basis, mean, variances = _tensors(law, flat)
            apart = flat - mean
            turned = apart @ basis.T
            left = apart.square().sum(1) - turned.square().sum(1)
            total, rest = variances + rho**2, law.rest + rho**2
            log = (turned.square() / total + total.log()).sum(1) + left / rest
            log = log + (law.d - len(variances)) * float(np.log(rest))
            logs.append(float(np.log(weight)) - 0.5 * log)
            own.append(_x0(law, flat, rho))
        share = torch.stack(logs, 1).softmax(1)  # [B, K]
        return torch.einsum("bk,bkd->bd", share, torch.stack(own, 1))


def start_law(
    data: Any,
    by: Any = None,
    *,
    conditions: Any = None,
    guidance: float | Callable[[float], float] = 1.0,
    mixture: bool = False,
    rank: int | None = None,
    shrink: float | None = None,
) -> Gaussian | StartLaw:
    """Returns the law that a late start draws from, of data.

        start_law(data)                                     a network without conditions
        start_law(data, labels, conditions=wanted)          one law a class: samples of `wanted`
        start_law(data, labels, conditions=wanted, guidance=3.0)    the same, with guidance
        start_law(data, labels, mixture=True)               no conditions, but data with classes

    Covariances are shrunk, see `shrunk_gaussian`: classes of few samples have laws too.

    Args:
        data: samples [N, ...].
        by: [N] labels of the data: numbers or strings. None: one law.
        conditions: [B] the labels of the samples that will be made; None: those of `by`.
        guidance: scale of classifier-free guidance, as for `StartLaw`. The unconditional branch has
            the law of all data.
        mixture: whether the law of every sample is the mixture of the classes' laws.
        rank: as for `shrunk_gaussian`.
        shrink: as for `shrunk_gaussian`.

    Raises:
        ValueError: labels that are not one a sample, a class with fewer than 2 samples, a condition
            that no sample has.
    """
    rows = np.asarray(data, dtype=np.float64)
    if by is None:
        if conditions is not None or mixture or callable(guidance) or guidance != 1.0:
            raise ValueError("start_law: conditions, guidance or a mixture need `by`, the labels")
        return shrunk_gaussian(rows, rank, shrink)
    labels = np.asarray(by).reshape(-1)
    if len(labels) != len(rows):
        raise ValueError(f"start_law: {len(labels)} labels, but {len(rows)} samples")
    known, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if counts.min() < 2:
        few = known[counts.argmin()]
        raise ValueError(f"start_law: class {few!r} has 1 sample, but at least 2 are needed")
    laws = [shrunk_gaussian(rows[place == k], rank, shrink) for k in range(len(known))]
    if mixture:
        if conditions is not None:
            raise ValueError("start_law: a mixture is for samples without conditions")
        return StartLaw(laws, mixture=counts)
    wanted = labels if conditions is None else np.asarray(conditions).reshape(-1)
    missing = sorted(set(wanted.tolist()) - set(known.tolist()))
    if missing:
        raise ValueError(f"start_law: condition {missing[0]!r} is the label of no sample")
    plain = not callable(guidance) and float(guidance) == 1.0
    blank = None if plain else shrunk_gaussian(rows, rank, shrink)
    return StartLaw(laws, np.searchsorted(known, wanted), blank=blank, guidance=guidance)


def _tensors(law: Gaussian, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns (basis [r, d], mean [d], variances [r]) as tensors of one's dtype and device."""
    kept, kind = _KEPT.setdefault(law, {}), (like.dtype, like.device)
    if kind not in kept:
        arrays = (law.basis, law.mean, law.variances)
        kept[kind] = tuple(torch.tensor(array).to(like) for array in arrays)
    return kept[kind]


def _x0(law: Gaussian, flat: torch.Tensor, rho: float) -> torch.Tensor:
    """Returns mean + C (C + rho^2)^-1 (u - mean)."""
    basis, mean, variances = _tensors(law, flat)
    apart, rest = flat - mean, law.rest / (law.rest + rho**2)
    gain = variances / (variances + rho**2) - rest
    return mean + rest * apart + (gain * (apart @ basis.T)) @ basis


def _state(law: Gaussian, flat: torch.Tensor, rho: float) -> torch.Tensor:
    """Returns mean + (C + rho^2)^(1/2) z."""
    basis, mean, variances = _tensors(law, flat)
    rest = float(np.sqrt(law.rest + rho**2))
    gain = (variances + rho**2).sqrt() - rest
    return mean + rest * flat + (gain * (flat @ basis.T)) @ basis
