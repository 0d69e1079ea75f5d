"""The part of a profile that looks at single samples: rotation, decisions, clones, collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import has_rows
from diffast.thermo.clones import clone_agreement
from diffast.thermo.collapse import collapse_time
from diffast.thermo.critical import critical_levels
from diffast.thermo.jacobian import nonconservativity
from diffast.thermo.sweep import NOISES, Sweep
from diffast.tuning.pilots import Pilots

# What is measured in few samples, and the sizes of it.
ROTATION_LEVELS, CLONE_LEVELS, CLONE_STEPS = 8, 6, 12
SWEEP_LEVELS, FOLLOWED, TOLERANCE, KRYLOV = 8, 2, 0.1, 4


class LocalPart:
    """Measures on the first `count` samples; what fails becomes a note.

    Args:
        pilots: the network, and the conditions of each sample.
        data: the samples [count, ...] on the CPU.
        places: [count] int64, rows of the conditions.
        found: the sweep.
        dtype: of the states.
        notes: told what was left out and how derivatives were made.
    """

    def __init__(
        self,
        pilots: Pilots,
        data: torch.Tensor,
        places: torch.Tensor,
        found: Sweep,
        dtype: torch.dtype,
        notes: list[str],
    ):
        """Nothing is called yet."""
        self.pilots, self.places, self.found, self.notes = pilots, places, found, notes
        self.data = data.to(pilots.device, dtype)
        self.dtype, self.rows = dtype, 0

    def tried(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the fields that `work` makes; none, and a note, where it cannot."""
        try:
            return work()
        except (ValueError, NotImplementedError) as error:
            self.notes.append(f"{name} was not measured. {error}")
            return {}

    def rotation(self) -> dict[str, Any]:
        """Returns the antisymmetric share of the Jacobian at some of the levels."""
        schedule, every = self.pilots.denoiser.schedule, len(self.found.times) - 1
        which = np.unique(np.linspace(0, every, ROTATION_LEVELS).round().astype(int))
        ids = (self.places + NOISES).to(self.pilots.device)
        word = {"seed": self.pilots.seed, "stage": ops.INITIAL_NOISE, "dtype": self.dtype}
        noise = ops.normal(self.data.shape, ids=ids, **word)
        own = self.pilots.rows(self.places)
        rho, shares, methods = [], [], set()
        for k in which.tolist():
            time = float(self.found.times[k])
            alpha, sigma = (float(f(time)) for f in (schedule.alpha, schedule.sigma))
            x = alpha * self.data + sigma * noise
            try:
                made = nonconservativity(own, x, time, seed=self.pilots.seed)
            except ValueError as error:
                if "probes" not in str(error):
                    raise
                # without a gradient pairs of probes are compared
                made = nonconservativity(own, x, time, probes=8, seed=self.pilots.seed)
            self.rows += made.rows
            methods.add(made.method)
            rho.append(float(self.found.rho[k]))
            shares.append(made)
        if methods - {"jvp"}:
            self.notes.append(
                f"Products with the Jacobian were made by {' and '.join(sorted(methods))}, because "
                "the network has no forward derivative."
            )
        return {
            "local_rho": np.array(rho),
            "nonconservativity": np.array([share.value for share in shares]),
            "nonconservativity_se": np.array([share.error for share in shares]),
        }

    def decisions(self) -> dict[str, Any]:
        """Returns critical levels along the centre, and those where the modes of samples end."""
        if any(has_rows(v) and len(v) > 1 for v in self.pilots.denoiser.conditions.values()):
            self.notes.append(
                "The centre that is followed is that of the first sample's conditions."
            )
        own, shape = self.pilots.rows(self.places[:1]), (1, *self.data.shape[1:])
        options: dict[str, Any] = {
            "count": SWEEP_LEVELS,
            "tolerance": TOLERANCE,
            "krylov": KRYLOV,
        }
        # no decision is made where nearly nothing or nearly all is known
        high, low = self._known_at(0.98), self._known_at(0.03)
        place = {"dtype": self.dtype, "device": self.pilots.device}
        centre = critical_levels(own, shape=shape, low=low, high=high, **options, **place)
        count = min(FOLLOWED, len(self.data))
        here = self.pilots.rows(self.places[:count])
        high, low = self._known_at(0.7), self._known_at(0.005)
        samples = critical_levels(here, self.data[:count], low=low, high=high, **options)
        self.rows += centre.network_rows + samples.network_rows
        ends = np.full(count, math.nan)
        for row in range(count):
            folds = samples.levels[samples.rows == row]
            ends[row] = folds.min() if folds.size else math.nan
        if not len(centre.levels):
            self.notes.append(f"Along the centre: {centre}.")
        level, value = centre.peak
        return {
            "critical_rho": np.sort(centre.levels)[::-1].copy(),
            "merging_rho": ends,
            "peak_rho": level,
            "peak_eigenvalue": value,
        }

    def _known_at(self, share: float) -> float:
        """Returns the level at which the loss is a share of that at the highest noise."""
        curve, rho = self.found.loss().value(), self.found.rho
        shares = np.minimum.accumulate(np.maximum(curve, 0.0)) / curve[0]
        return float(np.exp(np.interp(-share, -shares, np.log(rho))))

    def clones(self) -> dict[str, Any]:
        """Returns how far two stochastic completions agree, at levels where the mmse falls."""
        rho = self.found.rho
        levels = np.array([self._known_at(w) for w in np.linspace(0.97, 0.03, CLONE_LEVELS)])
        levels = np.unique(np.clip(levels, rho.min(), rho.max()))[::-1]
        made = clone_agreement(
            self.pilots.rows(self.places),
            self.data,
            levels,
            steps=CLONE_STEPS,
            seed=self.pilots.seed,
        )
        self.rows += made.rows
        agreement = np.array(made.correlation)
        # the error of the distance, over the variance that the correlation is relative to
        error = [(1.0 - c) * e.error / max(e.value, 1e-300) for c, e in zip(agreement, made.mse,
                 strict=True)]  # fmt: skip
        return {
            "clone_rho": np.asarray(made.levels),
            "clone_agreement": agreement,
            "clone_agreement_se": np.array(error),
        }


def collapse(spectrum: np.ndarray, count: int) -> dict[str, Any]:
    """Returns the level below which `count` training samples would be told apart."""
    return {"collapse_rho": collapse_time(spectrum, count).rho}
