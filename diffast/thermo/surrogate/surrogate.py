"""`Surrogate`: independent coordinates with the same loss curve as a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch

from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.plans.initial import check_plain_start
from diffast.thermo.surrogate.curve import Curve
from diffast.thermo.surrogate.laws import FAMILIES, NORMAL, Law, mmse_of
from diffast.thermo.surrogate.nonnegative import nonnegative_least_squares
from diffast.thermo.surrogate.product import Product
from diffast.tuning.teacher import teacher_plan

# Scales of the dictionary, a factor of 10^(1 / _SCALES) apart, and how far they reach beyond the
# measured levels. Smaller coordinates are finished only below the last level.
_SCALES, _BEYOND = 6, 2.0
# Starting noises of one coordinate, and steps of the flow that plans are compared with.
_ROWS, _STEPS = 512, 256


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Independent coordinates, a mixture of Gaussians each, whose losses add up to a given curve.

    Their flow is known exactly, so the error of a plan is computed in milliseconds and without
    the network. Part k stands for `counts[k]` equal coordinates, a number that need not be whole.

        surrogate = df.thermo.Surrogate.fit(profile)
        print(surrogate)                                   the parts, and how well the curve is met
        surrogate.error(df.plan(denoiser, 8))              rms distance to the flow over the spread

    The loss curve does not settle the data: other data have the same curve. What a plan's error on
    the surrogate says of its error with the network is a matter of measurement.

    Attributes:
        laws, scales, counts: [K] shape, deviation and number of coordinates of each part.
        d: elements of one sample of the data; those beyond the sum of the counts do not vary.
        own_error: levels and rms errors of the estimate of one element, where the network's is seen
            to be off; None: the estimate is exact.
        misfit: rms of (surrogate's loss / given loss - 1) over the given levels; NaN where no
            curve was fitted.
        worst: the largest of these in size, and the level rho where it is.
    """

    laws: tuple[Law, ...]
    scales: np.ndarray
    counts: np.ndarray
    d: int
    own_error: tuple[np.ndarray, np.ndarray] | None = None
    misfit: float = float("nan")
    worst: tuple[float, float] = (float("nan"), float("nan"))
    _known: dict = field(default_factory=dict, repr=False, init=False)

    @classmethod
    def fit(cls, profile: Any, families: Sequence[Sequence[Law]] | None = None) -> Surrogate:
        """Returns the coordinates whose summed loss is nearest to a measured curve.

        The counts are those of least squares of the relative misfit over all levels, over a
        dictionary of shapes and scales, none negative. Each family of shapes is fitted alone, and
        the result is their mean: parts of every family, with 1 / (number of families) of the
        counts. So no plan is chosen for one kind of data that the curve does not settle.

        Where the loss lies above the variance of the data the network's own error is seen. There
        the surrogate's estimate is off by as much (`own_error`), and plans are compared with the
        flow of the imperfect estimate, as with a network.

        Args:
            profile: a `df.thermo.Profile`, anything with `rho`, `mmse` and `d`, or a tuple
                (rho, mmse, d) or (rho, mmse, d, spectrum).
            families: shapes of the dictionary; None: `FAMILIES`. `[[NORMAL]]` gives Gaussian data.

        Raises:
            TypeError, ValueError: as `Curve.of`.
        """
        curve = Curve.of(profile)
        found: dict[tuple[Law, float], float] = {}
        for family in FAMILIES if families is None else families:
            for pair, count in _fitted(curve, family):
                found[pair] = found.get(pair, 0.0) + count
        number = len(FAMILIES if families is None else families)
        pairs = [*found]
        scales, counts = np.array([c for _, c in pairs]), np.array([*found.values()]) / number
        own_error = (curve.rho, curve.own_error) if curve.own_error.any() else None
        made = cls(tuple(law for law, _ in pairs), scales, counts, curve.d, own_error)
        gap = made.mmse(curve.rho) / curve.mmse - 1.0
        at = int(np.abs(gap).argmax())
        misfit = float(np.sqrt(np.mean(gap**2)))
        return replace(made, misfit=misfit, worst=(float(gap[at]), float(curve.rho[at])))

    @classmethod
    def gaussian(cls, spectrum: Any, parts: int = 48) -> Surrogate:
        """Returns Gaussian data of a spectrum, near eigenvalues joined.

        Args:
            spectrum: eigenvalues of the covariance, [d].
            parts: most different values that are kept.

        Raises:
            ValueError: no eigenvalue above 0, or values that are not finite.
        """
        values = np.asarray(spectrum, dtype=np.float64).reshape(-1)
        if not np.isfinite(values).all() or (values < 0).any() or not values.any():
            raise ValueError("Surrogate: the spectrum has no value above 0, or some that are below")
        varied = values[values > 1e-10 * values.max()]
        edges = np.geomspace(varied.min() * 0.999, varied.max() * 1.001, parts + 1)
        which = np.digitize(varied, edges)
        groups = [varied[which == k] for k in np.unique(which)]
        scales = np.sqrt([group.mean() for group in groups])
        counts = np.array([float(len(group)) for group in groups])
        return cls((NORMAL,) * len(groups), scales, counts, values.size)

    def mmse(self, rho: Any) -> np.ndarray:
        """Returns the loss of the exact x0 estimate, summed over the elements, at levels rho."""
        levels = np.asarray(rho, dtype=np.float64)
        parts = zip(self.laws, self.scales, self.counts, strict=True)
        return np.sum([n * mmse_of(law, c, levels) for law, c, n in parts], axis=0)

    def denoiser(
        self, schedule: Any, time_dtype: torch.dtype | None = None, round_times: bool = False
    ) -> Denoiser:
        """Returns the exact denoiser of the parts, states [B, K]: one coordinate of each part.

        Args:
            schedule: of the noise.
            time_dtype: an integer dtype, for plans of a network that takes whole times alone.
            round_times: as for `df.Denoiser`.
        """
        network = Product(self.laws, self.scales, schedule, self.own_error)
        return Denoiser(
            network, schedule, predicts="x0", time_dtype=time_dtype, round_times=round_times
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Returns states [B, K] times the root of the counts, so that a sum of squares is over d.

        For `df.tune(surrogate.denoiser(schedule), features=surrogate.features)`.
        """
        return x * torch.from_numpy(np.sqrt(self.counts)).to(x)

    def error(self, plan: Plan) -> float:
        """Returns the rms distance of a plan's samples to the exact flow's, over their spread.

        Both start from the same noises, quantiles of the normal law; a plan that starts late
        starts from them at its own level. Infinity where samples are not finite.

        Raises:
            ValueError: a plan of `Plan.late_start`, whose law is that of other data.
        """
        check_plain_start("Surrogate.error", plan, "the surrogate has other data")
        denoiser, noise, ends = self._flow(plan.schedule)
        made = sample(denoiser, plan, x=plan.initial_scale * noise, throw=False, check=False).x
        weight = torch.from_numpy(self.counts)
        found = ((made - ends).square().mean(0) * weight).sum().sqrt()
        spread = ((ends - ends.mean(0)).square().mean(0) * weight).sum().sqrt()
        value = float(found / spread)
        return value if np.isfinite(value) else float("inf")

    def _flow(self, schedule: Any) -> tuple[Denoiser, torch.Tensor, torch.Tensor]:
        """Returns (denoiser, noises [B, K], ends of their flow [B, K]) on a schedule; kept."""
        known = self._known.get(id(schedule))
        if known is None or known[0] is not schedule:
            denoiser, normal = self.denoiser(schedule), NormalDist()
            z = [normal.inv_cdf((i + 0.5) / _ROWS) for i in range(_ROWS)]
            noise = torch.tensor(z, dtype=torch.float64)[:, None].repeat(1, len(self.laws))
            fine = teacher_plan(denoiser, _STEPS)
            ends = sample(denoiser, fine, x=fine.initial_scale * noise).x
            known = self._known[id(schedule)] = schedule, denoiser, noise, ends
        return known[1:]

    def __str__(self) -> str:
        """Returns the parts, largest share of the variance first, and the misfit."""
        share = self.counts * self.scales**2
        lines = [
            f"Surrogate of {self.d} elements, {len(self.laws)} parts; loss off by "
            f"{self.misfit:.2g} (rms), {self.worst[0]:+.2g} at rho = {self.worst[1]:.3g}"
        ]
        for k in np.argsort(-share):
            lines.append(
                f"{self.counts[k]:10.4g} coordinates of deviation {self.scales[k]:.3g}, "
                f"{self.laws[k].name}: {share[k] / share.sum():.1%} of the variance"
            )
        return "\n".join(lines)


def _fitted(curve: Curve, laws: Sequence[Law]) -> list[tuple[tuple[Law, float], float]]:
    """Returns ((law, scale), count) of the parts that fit a curve with these shapes."""
    high = min(_BEYOND * curve.rho[-1], max(10.0 * curve.deviation, curve.rho[0]))
    low = curve.rho[0] / _BEYOND
    number = max(2, int(np.ceil(_SCALES * np.log10(high / low))) + 1)
    pairs = [(law, float(c)) for law in laws for c in np.geomspace(low, high, number)]
    columns = np.stack([mmse_of(law, c, curve.rho) for law, c in pairs], axis=1)
    counts = nonnegative_least_squares(columns / curve.mmse[:, None], np.ones(len(curve.rho)))
    return [(pairs[k], float(counts[k])) for k in np.flatnonzero(counts > 0.0)]
