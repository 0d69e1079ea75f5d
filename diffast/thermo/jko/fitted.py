"""`JKOFit`: what `fit_jko` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diffast.executors.results import Samples
from diffast.thermo.estimate import Estimate
from diffast.thermo.jko.dynamics import run
from diffast.thermo.jko.equations import Model, mean_pull


@dataclass(frozen=True, eq=False)
class JKOFit:
    """A fitted energy and temperature.

    Attributes:
        model: what was unknown.
        names: [J] of the unknowns.
        theta: [J] their values.
        covariance: [J, J] of the values, by the jackknife; NaN without.
        condition: condition number of the equations, each unknown scaled to size 1.
        residual: size of what the fit leaves of the measured velocity, over the velocity's size.
            The part of the velocity that transport of finite samples adds is left too.
        times: [K+1] of the snapshots.
        counts: samples of each snapshot.
        shape: of one sample.
        last: the last snapshot [n, d], which the drift of an interaction is taken over by default.
        scheme: of the fit.
        form: of the fit.
    """

    model: Model
    names: tuple[str, ...]
    theta: np.ndarray
    covariance: np.ndarray
    condition: float
    residual: float
    times: np.ndarray
    counts: tuple[int, ...]
    shape: tuple[int, ...]
    last: np.ndarray
    scheme: str
    form: str

    @property
    def errors(self) -> np.ndarray:
        """Returns the standard errors [J]; NaN without a jackknife, 0 of what was known."""
        return np.sqrt(np.diag(self.covariance))

    def __getitem__(self, name: str) -> Estimate:
        """Returns the coefficient of that name.

        Raises:
            KeyError: no such name; the message lists those that there are.
        """
        if name not in self.names:
            raise KeyError(f"JKOFit: no coefficient {name!r}, but {', '.join(self.names)}")
        j = self.names.index(name)
        return Estimate(float(self.theta[j]), float(self.errors[j]), min(self.counts))

    def temperature(self, t: float | None = None) -> Estimate:
        """Returns the temperature beta at a time; 0 where it was no unknown.

        It may come out below 0 where noise is larger than what the data say of it.

        Raises:
            ValueError: no time, where the temperature depends on it.
        """
        functions = self.model.internal
        if t is None and len(functions) > 1:
            raise ValueError("JKOFit: the temperature depends on the time: give t")
        first = len(self.theta) - len(functions)
        weights = np.array([float(f(0.0 if t is None else t)) for f in functions])
        value = float(weights @ self.theta[first:]) if functions else 0.0
        square = float(weights @ self.covariance[first:, first:] @ weights) if functions else 0.0
        return Estimate(value, float(np.sqrt(square)), min(self.counts))

    def drift(self, x: Any, t: float = 0.0, others: Any = None) -> np.ndarray:
        """Returns -grad V - grad (U * rho), [n, ...] float64.

        Args:
            x: points [n, ...].
            t: time.
            others: the particles that the interaction is taken over [m, ...]; None: the last
                snapshot.

        Raises:
            ValueError: points of another shape than the snapshots'.
        """
        points = self._points(x)
        made = np.zeros_like(points)
        first = 0
        if self.model.potential is not None:
            gradient = self.model.potential.gradient(points, t)
            first = gradient.shape[2]
            made -= gradient @ self.theta[:first]
        if self.model.interaction is not None:
            far = self.last if others is None else self._points(others)
            pull = mean_pull(self.model.interaction, points, t, far)[0]
            made -= pull @ self.theta[first : first + pull.shape[2]]
        return made.reshape(len(points), *self.shape)

    def potential(self, x: Any, t: float = 0.0) -> np.ndarray:
        """Returns V(x, t) [n] up to a constant.

        Raises:
            ValueError: points of another shape; no potential in the fit; features that are known by
                their gradients alone.
        """
        if self.model.potential is None:
            raise ValueError("JKOFit: the fit has no potential")
        values = self.model.potential.value(self._points(x), t)
        return values @ self.theta[: values.shape[1]]

    def sample(
        self, x: Any, start: float, end: float, *, steps: int = 100, seed: int = 0
    ) -> Samples:
        """Returns particles that walk from x at time `start` to `end`, run by `df.sample`.

        Euler-Maruyama steps of the fitted dynamics, as a plan (`plan_of_dynamics`). With an
        interaction a particle's path depends on the others of the batch.

        Args:
            x: initial particles, tensor [n, ...].
            start: time of x.
            end: time of the result, above `start`.
            steps: Euler-Maruyama steps.
            seed: of the noise.

        Raises:
            ValueError: times that do not rise; a temperature below 0 within them.
            NonFiniteError: particles that left to infinity, as on a potential that is not bounded
                below.
        """
        return run(self, torch.as_tensor(x), start, end, steps, seed)

    def to_dict(self) -> dict:
        """Returns coefficients, errors and what they were fitted to, as JSON can hold."""
        return {
            "names": list(self.names),
            "theta": self.theta.tolist(),
            "errors": [None if np.isnan(e) else float(e) for e in self.errors],
            "condition": self.condition,
            "residual": self.residual,
            "times": self.times.tolist(),
            "counts": list(self.counts),
            "scheme": self.scheme,
            "form": self.form,
        }

    def __str__(self) -> str:
        """Returns a line for each coefficient."""
        head = (
            f"JKOFit({self.scheme}, {self.form}): {len(self.counts)} snapshots of "
            f"{min(self.counts)} samples or more, condition number {self.condition:.3g}, residual "
            f"{self.residual:.3g}"
        )
        rows = [
            f"  {name:<24} {value: .5g} +- {error:.2g}"
            for name, value, error in zip(self.names, self.theta, self.errors, strict=True)
        ]
        return "\n".join([head, *rows])

    def _points(self, x: Any) -> np.ndarray:
        made = x.detach().cpu().numpy() if hasattr(x, "detach") else x
        made = np.asarray(made, dtype=np.float64)
        if made.shape[1:] != self.shape:
            raise ValueError(
                f"JKOFit: points have shape {list(made.shape[1:])}, but the snapshots' samples "
                f"have {list(self.shape)}"
            )
        return made.reshape(len(made), self.last.shape[1])
