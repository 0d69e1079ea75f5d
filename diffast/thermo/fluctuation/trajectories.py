"""Stored trajectories of an SDE sampler and the dynamics that its author believes it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from diffast.schedules import Schedule

Drift = Callable[[torch.Tensor, float], torch.Tensor]


class Dynamics(NamedTuple):
    """An SDE dx = f(x, t) ds + sqrt(2 T(t)) dB; s is the time that has passed, s = |t - t_first|.

    Attributes:
        drift: f by parts, {name: function of (x, t)}; their sum is the drift.
        temperature: T as a function of the model time t.
    """

    drift: Mapping[str, Drift]
    temperature: Callable[[float], float]


def noising_dynamics(schedule: Schedule) -> Dynamics:
    """Returns the SDE of the noising process, for trajectories whose model time rises.

    f = (alpha' / alpha) x and T = sigma sigma' - sigma^2 alpha' / alpha (Ikeda et al. 2025, eq. 23
    and 24): x_t = alpha y + sigma eps holds at every t.

    Args:
        schedule: with `derivatives`.
    """

    def linear(x: torch.Tensor, t: float) -> torch.Tensor:
        return x * _rates(schedule, t)[0]

    return Dynamics({"linear": linear}, lambda t: _rates(schedule, t)[1])


def sampling_dynamics(
    schedule: Schedule, score: Callable[[torch.Tensor, float, float], torch.Tensor]
) -> Dynamics:
    """Returns the reverse SDE of a schedule, for trajectories whose model time falls.

    f = -(alpha' / alpha) x + 2 T score, for the time s that has passed, ds = -dt > 0 (Anderson
    1982). Its two parts are fitted one by one, so a wrong factor of the score is told from a wrong
    linear part.

    Args:
        schedule: with `derivatives`.
        score: grad log p as score(x, alpha, sigma) [B, ...], such as `GaussianMixture.score`.
    """

    def linear(x: torch.Tensor, t: float) -> torch.Tensor:
        return x * -_rates(schedule, t)[0]

    def pull(x: torch.Tensor, t: float) -> torch.Tensor:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return 2.0 * _rates(schedule, t)[1] * score(x, alpha, sigma)

    return Dynamics({"linear": linear, "score": pull}, lambda t: _rates(schedule, t)[1])


def _rates(schedule: Schedule, t: float) -> tuple[float, float]:
    """Returns (alpha' / alpha, T)."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    if alpha == 0.0:
        raise ValueError(
            f"dynamics: alpha = 0 at t = {t:.6g}, where the drift (alpha' / alpha) x is infinite: "
            "end the trajectories before it"
        )
    slopes = schedule.derivatives(np.array([t, t]))
    rate, rise = float(slopes[0][0]) / alpha, float(slopes[1][0])
    # sigma sigma' is finite at sigma = 0, where sigma' alone may be infinite
    if sigma == 0.0 or not np.isfinite(rise):
        near = t + 1e-6 * (schedule.t_start - schedule.t_end)
        own = float(schedule.sigma(near)) ** 2 - sigma**2
        return rate, own / (2.0 * (near - t)) - sigma**2 * rate
    return rate, sigma * rise - sigma**2 * rate


class Trajectories:
    """Checked trajectories: states [K+1, B, ...], times [K+1] in the order in which they were run.

    Raises:
        ValueError: shapes that disagree, states that are not finite, fewer than 2 paths, times that
            neither rise nor fall throughout, a temperature that is no positive number of t.
    """

    def __init__(self, who: str, x: Any, times: Any, drift: Any, temperature: Any):
        """Checks everything that can be checked before the drift is called."""
        self.who = who
        self.x = _states(who, x)
        self.steps, self.count = len(self.x) - 1, self.x.shape[1]
        self.d = self.x[0, 0].numel()
        self.times = np.asarray(times, dtype=np.float64)
        if self.times.shape != (len(self.x),):
            raise ValueError(
                f"{who}: times are {list(self.times.shape)}, but x holds {len(self.x)} states of "
                "each path: one time a state is needed"
            )
        rise = np.diff(self.times)
        if not np.isfinite(self.times).all() or not ((rise > 0).all() or (rise < 0).all()):
            wrong = int(np.argmax(rise * np.sign(rise[0]) <= 0)) if np.isfinite(rise).all() else 0
            raise ValueError(
                f"{who}: times must rise or fall throughout, in the order of the run, but after "
                f"{self.times[wrong]:.6g} comes {self.times[wrong + 1]:.6g}"
            )
        self.h = np.abs(rise)
        self.parts = _parts(who, drift)
        self._temperature = temperature

    def forces(self, x: torch.Tensor, t: float) -> list[torch.Tensor]:
        """Returns the parts of the drift [B, ...] float64 at states and a model time."""
        made = []
        for name, part in self.parts.items():
            with torch.no_grad():
                force = torch.as_tensor(part(x, t)).double()
            if force.shape != x.shape:
                raise ValueError(
                    f"{self.who}: drift {name!r} is {list(force.shape)}, but the states are "
                    f"{list(x.shape)}"
                )
            if not bool(force.isfinite().all()):
                raise ValueError(f"{self.who}: drift {name!r} is not finite at t = {t:.6g}")
            made.append(force)
        return made

    def temperature(self, t: float) -> float:
        """Returns T at a model time.

        Raises:
            ValueError: for one that is not a positive number.
        """
        given = self._temperature
        try:
            found: Any = given(t) if callable(given) else given
        except TypeError as error:
            raise ValueError(
                f"{self.who}: temperature is called with the time alone ({error}), but one that "
                "depends on the position adds a drift of its own, which this test does not have"
            ) from None
        found = torch.as_tensor(found).detach().double().cpu().numpy()
        if found.size != 1:
            raise ValueError(
                f"{self.who}: temperature at t = {t:.6g} has shape {list(found.shape)}, but one "
                "number for all states is needed: a matrix, or a temperature of each state, adds a "
                "drift of its own, which this test does not have"
            )
        value = float(found.reshape(()))
        if not 0.0 < value < np.inf:
            raise ValueError(
                f"{self.who}: temperature at t = {t:.6g} is {value:g}, but it must be positive and "
                "finite: a path without noise has no density"
            )
        return value


def _states(who: str, x: Any) -> torch.Tensor:
    if isinstance(x, Sequence):
        x = torch.stack([torch.as_tensor(each) for each in x]) if len(x) else torch.empty(0)
    x = torch.as_tensor(x)
    if x.dim() < 2 or len(x) < 2:
        raise ValueError(
            f"{who}: x is {list(x.shape)}, but [K+1, B, ...] with K >= 1 steps of B paths is needed"
        )
    x = x[:, :, None] if x.dim() == 2 else x
    if x.shape[1] < 2:
        raise ValueError(f"{who}: {x.shape[1]} path, but a mean over paths needs 2 or more")
    bad = ~x.isfinite().flatten(2).all(2)
    if bool(bad.any()):
        k, b = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{who}: {int(bad.any(0).sum())} of {x.shape[1]} paths are not finite, the first is "
            f"path {b} at state {k}"
        )
    return x


def _parts(who: str, drift: Any) -> dict[str, Drift]:
    if callable(drift):
        return {"drift": cast(Drift, drift)}
    if isinstance(drift, Mapping) and drift and all(callable(part) for part in drift.values()):
        return {str(name): cast(Drift, part) for name, part in drift.items()}
    raise ValueError(
        f"{who}: drift is a {type(drift).__name__}, but a function of (x, t) is needed, or a "
        "mapping of names to such functions, whose sum is the drift"
    )
