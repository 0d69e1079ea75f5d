"""`Audit`: what the steps of a sampler did, against what they were designed to do."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from diffast.thermo.estimate import Estimate
from diffast.thermo.jko.transitions import NAMES, Measured

# What each number is where a sampler does what it should.
DESIGNED = np.array([1.0, 1.0, 0.0])


@dataclass(frozen=True, eq=False)
class Audit:
    """Drift, temperature and shift of a sampler's steps, measured on its batches.

    Attributes:
        steps: one `Measured` an interval: value, error and allowance of (drift, temperature,
            shift), [3] each, and its times.
        whole: the same over all intervals.
        count: samples of the batches.
        numbers: elements of a sample that were looked at.
        level: share of sound samplers that may be called unsound.
        freedom: degrees of freedom of the standard errors; None: they are known.
    """

    steps: tuple[Measured, ...]
    whole: Measured
    count: int
    numbers: int
    level: float
    freedom: int | None = None

    @property
    def drift(self) -> Estimate:
        """Returns the size of the drift over the designed one; 1 where it is right."""
        return self._whole(0)

    @property
    def temperature(self) -> Estimate:
        """Returns the temperature over the designed one; 1 where it is right."""
        return self._whole(1)

    @property
    def shift(self) -> Estimate:
        """Returns by how much the log(alpha / sigma) that the network is told is off; 0 if right.

        NaN where it was not asked for.
        """
        return self._whole(2)

    @property
    def sound(self) -> bool:
        """Returns whether nothing was found."""
        return not self.findings

    @property
    def findings(self) -> list[str]:
        """Returns a sentence for each number that is off by more than its error and allowance.

        Half of `level` is shared by the three numbers over all intervals, half by those of single
        intervals. A fault of one kind mostly shows in several numbers: that with the largest
        deviation is named first. Where standard errors are estimated, by the jackknife, single
        intervals are not judged.
        """
        found = []
        known = int(np.isfinite([step.null for step in self.steps]).sum())
        singles = [(step, k, known) for k, step in enumerate(self.steps)]
        for which, place, share in [(self.whole, None, 3), *singles]:
            if place is not None and self.freedom is not None:
                break
            limit = NormalDist().inv_cdf(1.0 - 0.25 * self.level / max(share, 1))
            for k, name in enumerate(NAMES):
                far = self._deviate(which, k)
                if not far > limit:  # NaN: not measured
                    continue
                value, error, allowed = (
                    float(part[k]) for part in (which.value, which.error, which.allowance)
                )
                where = "" if place is None else f" in interval {place} of {len(self.steps)}"
                allowance = f", allowance {allowed:.2g}" if allowed else ""
                text = (
                    f"{name}{where} is {value:.4g} +- {error:.1g} where it should be "
                    f"{DESIGNED[k]:g}{allowance}"
                )
                found.append((place is not None, -far, text))
        return [text for *_, text in sorted(found)]

    def _deviate(self, which: Measured, k: int) -> float:
        """Returns how far a number is off beyond its allowance, as a normal deviate."""
        value, null, allowed = (float(p[k]) for p in (which.value, which.null, which.allowance))
        away = value - DESIGNED[k]
        beyond = max(abs(away) - allowed, 0.0)
        if self.freedom is not None:
            # a Student t as a normal deviate (Wallace 1959)
            n = self.freedom
            share = np.log1p((beyond / null) ** 2 / n)
            return float((8 * n + 1) / (8 * n + 3) * np.sqrt(n * share))
        if k != NAMES.index("temperature"):
            return beyond / null
        # Of a sum of N squares the cube root is nearly normal (Wilson and Hilferty 1931).
        ninth = null**2 / 9.0  # 2 / (9 N)
        root = np.cbrt(max(1.0 + np.copysign(beyond, away), 0.0))
        return float(abs(root - (1.0 - ninth)) / np.sqrt(ninth)) if beyond else 0.0

    def samples_for(self, difference: float, what: str = "temperature", power: float = 0.9) -> int:
        """Returns how many samples show such a difference over all intervals with that probability.

        The standard error falls as 1 / sqrt(samples). The intervals stay as they are.

        Args:
            difference: in the measured number, such as 0.1 for a temperature of 1.1.
            what: "drift", "temperature" or "shift".
            power: probability that it is found.

        Raises:
            ValueError: another name; a difference that is not above the allowance.
        """
        if what not in NAMES:
            raise ValueError(f"Audit: {what!r} is none of {', '.join(NAMES)}")
        k = NAMES.index(what)
        null, allowed = float(self.whole.null[k]), float(self.whole.allowance[k])
        if not difference > allowed:
            raise ValueError(
                f"Audit: a difference of {difference:g} in the {what} is not above the allowance "
                f"of {allowed:.2g} for steps of this length: take more steps"
            )
        normal = NormalDist()
        needed = normal.inv_cdf(1.0 - 0.25 * self.level / 3) + normal.inv_cdf(power)
        return int(np.ceil(self.count * (needed * null / (difference - allowed)) ** 2))

    def to_dict(self) -> dict:
        """Returns the numbers as JSON can hold them."""

        def plain(one: Measured) -> dict:
            rows = {
                name: {
                    part: None if np.isnan(getattr(one, part)[k]) else float(getattr(one, part)[k])
                    for part in ("value", "error", "allowance")
                }
                for k, name in enumerate(NAMES)
            }
            return {"times": [float(t) for t in one.times], **rows}

        return {
            "sound": self.sound,
            "findings": self.findings,
            "whole": plain(self.whole),
            "steps": [plain(step) for step in self.steps],
            "samples": self.count,
            "numbers": self.numbers,
            "level": self.level,
        }

    def __str__(self) -> str:
        """Returns the verdict, the three numbers over all intervals, and what was found."""
        lines = [
            f"Audit of {len(self.steps)} intervals, {self.count} samples of {self.numbers} "
            f"numbers: {'sound' if self.sound else 'NOT sound'}"
        ]
        for k, name in enumerate(NAMES):
            value, error, allowed = (
                float(p[k]) for p in (self.whole.value, self.whole.error, self.whole.allowance)
            )
            if not np.isnan(value):
                lines.append(
                    f"  {name:<12} {value:.4f} +- {error:.4f}  (designed {DESIGNED[k]:g}, "
                    f"allowance {allowed:.2g})"
                )
        shown = self.findings
        lines += [f"  - {text}" for text in shown[:8]]
        if len(shown) > 8:
            lines.append(f"  and {len(shown) - 8} more")
        return "\n".join(lines)

    def _whole(self, k: int) -> Estimate:
        return Estimate(float(self.whole.value[k]), float(self.whole.error[k]), self.count)
