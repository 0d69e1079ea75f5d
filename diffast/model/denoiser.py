"""The user's network as affine weights: what it predicts, its guidance, its conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from diffast.schedules import flow

# x0 = a x + b output, from alpha, sigma and their time derivatives at the network's time.
# With x = alpha x0 + sigma eps each is that equation solved for x0.
_PREDICTIONS: dict[str, Callable] = {
    "x0": lambda alpha, sigma, dalpha, dsigma: (0.0 * alpha, 1.0 + 0.0 * alpha),
    # output = eps
    "epsilon": lambda alpha, sigma, dalpha, dsigma: (1.0 / alpha, -sigma / alpha),
    # output = alpha eps - sigma x0 (Salimans and Ho 2022, section 4, for any alpha and sigma)
    "v": lambda alpha, sigma, dalpha, dsigma: (
        alpha / (alpha**2 + sigma**2),
        -sigma / (alpha**2 + sigma**2),
    ),
    # output = dx/dt along x = alpha x0 + sigma eps (flow matching; eps - x0 for alpha = 1 - t)
    "flow": lambda alpha, sigma, dalpha, dsigma: (
        dsigma / (alpha * dsigma - sigma * dalpha),
        -sigma / (alpha * dsigma - sigma * dalpha),
    ),
    # output = gradient of log p_t(x) = -eps / sigma
    "score": lambda alpha, sigma, dalpha, dsigma: (1.0 / alpha, sigma**2 / alpha),
    # output = -dx/dt, the flow seen by a time that runs from noise to data
    "reverse_flow": lambda alpha, sigma, dalpha, dsigma: (
        dsigma / (alpha * dsigma - sigma * dalpha),
        sigma / (alpha * dsigma - sigma * dalpha),
    ),
}


@dataclass(frozen=True)
class Prediction:
    """What a network's output says of x0, without the network: for loops that others own.

    Args:
        schedule: the noise schedule it was trained for (`df.schedules`).
        predicts: "x0", "epsilon", "v", "flow" or "score".

    Raises:
        ValueError: for an unknown prediction type.
    """

    schedule: Any
    predicts: str = "x0"

    def __post_init__(self):
        """Refuses an unknown prediction type."""
        if self.predicts not in _PREDICTIONS:
            raise ValueError(
                f"Denoiser: predicts {self.predicts!r} but the known predictions are "
                f"{', '.join(_PREDICTIONS)}"
            )

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output at each model time, [S] float64 each.

        Raises:
            ValueError: where the prediction does not determine x0 (epsilon or score at alpha = 0).
        """
        times = np.asarray(times, dtype=np.float64)
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        # Only a velocity needs the derivatives, which some schedules do not have everywhere.
        slopes = self.schedule.derivatives(times) if self.sloped else (0.0, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = _PREDICTIONS[self.predicts](alpha, sigma, *slopes)
        a, b = np.broadcast_to(a, times.shape), np.broadcast_to(b, times.shape)
        bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(b)))
        if bad.size:
            i = bad[0]
            raise ValueError(
                f"Denoiser: predicts {self.predicts!r} but at t = {times[i]:g} alpha is "
                f"{alpha[i]:g} and sigma {sigma[i]:g}, where that does not determine x0"
            )
        return a, b

    @property
    def sloped(self) -> bool:
        """Returns whether the prediction needs the derivatives of alpha and sigma."""
        return self.predicts in ("flow", "reverse_flow")

    def weights(self, alpha, sigma, dalpha=None, dsigma=None):
        """Returns (a, b) with x0 = a x + b output, unchecked, for arrays of any array module.

        Args:
            alpha: of the schedule at the network's times.
            sigma: of the schedule there.
            dalpha: its derivative, only looked at if `sloped`.
            dsigma: its derivative, only looked at if `sloped`.
        """
        return _PREDICTIONS[self.predicts](alpha, sigma, dalpha, dsigma)

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns 1 at each time, [S]: whoever owns the loop has applied the guidance."""
        return np.ones(len(times))


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network that answers for the clean data x0, whatever it was trained to predict.

    The network is called as `network(x, t, **conditions)` with x [B, ...] and t [B], the
    schedule's model time, and returns one tensor shaped as x (or an object with `.sample`, or a
    tuple whose first item it is). With guidance it is called once a stage on 2B rows, conditional
    ones first.

    Args:
        network: the callable; a torch module should be in eval mode.
        schedule: the noise schedule it was trained for (`df.schedules`).
        predicts: "x0", "epsilon", "v", "flow", "score" or "reverse_flow" (see `from_velocity`).
        conditions: named extra arguments. A tensor whose first axis is the batch is one row a
            sample; anything else is passed on as it is.
        unconditional: the same names, for the unconditional half of classifier-free guidance
            (tensors [B, ...] or [1, ...], repeated). Needed unless guidance is 1 throughout.
        guidance: scale w of x0 = x0_uncond + w (x0_cond - x0_uncond), or a function of the model
            time that returns it. Stages where it is 1 (or 0) call the network on B rows only.
        dtype: what dtype the network wants x in; None: the state's.

    Raises:
        ValueError: for an unknown prediction type, or conditions and guidance that disagree.
    """

    network: Callable[..., Any]
    schedule: Any
    predicts: str = "x0"
    conditions: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] | None = None
    guidance: float | Callable[[float], float] = 1.0
    dtype: torch.dtype | None = None

    def __post_init__(self):
        """Checks what can be checked before the first call."""
        Prediction(self.schedule, self.predicts)
        if not callable(self.network):
            raise ValueError(
                f"Denoiser: network is a {type(self.network).__name__} but must be callable"
            )
        if self.unconditional is not None and set(self.unconditional) != set(self.conditions):
            raise ValueError(
                f"Denoiser: conditions are {sorted(self.conditions)} but unconditional ones are "
                f"{sorted(self.unconditional)}"
            )
        if not callable(self.guidance) and not math.isfinite(self.guidance):
            raise ValueError(f"Denoiser: guidance is {self.guidance} but must be finite")

    @classmethod
    def from_velocity(
        cls,
        velocity: Callable[..., Any],
        schedule: Any = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        unconditional: Mapping[str, Any] | None = None,
        guidance: float | Callable[[float], float] = 1.0,
        dtype: torch.dtype | None = None,
    ) -> Denoiser:
        """Returns a denoiser of a velocity field whose time s runs from 0 (noise) to 1 (data).

        The convention of flow_matching's ODESolver and of what people give to torchdiffeq:
        dx/ds = velocity(x=x, t=s, **conditions). With the model time t = 1 - s it is -dx/dt; the
        sign is folded into the step, so it costs no pass over the output. For a field written as
        func(s, x) give `lambda x, t: func(t, x)`.

        Args:
            velocity: called by keyword, x [B, ...] and t [B], plus the conditions.
            schedule: of the path x = alpha x0 + sigma eps, its model time t from 1 to 0; default
                `df.schedules.flow()`, where the field is x0 - eps.
            conditions: as for `Denoiser`.
            unconditional: as for `Denoiser`.
            guidance: as for `Denoiser`.
            dtype: as for `Denoiser`.

        Raises:
            ValueError: for a schedule whose time does not run from 1 to 0; what `Denoiser` raises.
        """
        schedule = flow() if schedule is None else schedule
        start, end = schedule.t_start, schedule.t_end
        if (start, end) != (1.0, 0.0):
            raise ValueError(
                f"Denoiser: from_velocity needs a schedule whose time runs from 1 to 0, but that "
                f"of {schedule} runs from {start:g} to {end:g}"
            )
        if not callable(velocity):
            raise ValueError(
                f"Denoiser: velocity is a {type(velocity).__name__} but must be callable"
            )
        return cls(
            _Velocity(velocity),
            schedule,
            "reverse_flow",
            {} if conditions is None else conditions,
            unconditional,
            guidance,
            dtype,
        )

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output at each model time, [S] float64 each.

        Raises:
            ValueError: where the prediction does not determine x0 (epsilon or score at alpha = 0).
        """
        return self.prediction.affine(times)

    @property
    def prediction(self) -> Prediction:
        """Returns what the network's output says of x0."""
        return Prediction(self.schedule, self.predicts)

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the guidance scale at each model time, [S] float64.

        Raises:
            ValueError: if a scale is not finite, or asks for unconditional calls that no
                conditions were given for.
        """
        if callable(self.guidance):
            scales = np.array([float(self.guidance(float(t))) for t in times], dtype=np.float64)
        else:
            scales = np.full(len(times), float(self.guidance))
        if not np.isfinite(scales).all():
            i = int(np.argmin(np.isfinite(scales)))
            raise ValueError(f"Denoiser: guidance is {scales[i]} at t = {times[i]:g}")
        if self.unconditional is None and (scales != 1.0).any():
            scale = scales[scales != 1.0][0]
            raise ValueError(
                f"Denoiser: guidance is {scale:g} but there are no unconditional conditions"
            )
        return scales

    def device(self) -> torch.device:
        """Returns where the network's parameters are; the CPU if it has none."""
        parameters = getattr(self.network, "parameters", None)
        first = next(iter(parameters()), None) if callable(parameters) else None
        return torch.device("cpu") if first is None else first.device

    def arguments(self, batch: int, device: torch.device, halves: str) -> dict[str, Any]:
        """Returns the conditions for one kind of call, made once a run.

        Args:
            batch: number of samples B.
            device: where the state is.
            halves: "cond" or "uncond" for B rows, "both" for 2B rows, conditional first.

        Raises:
            ValueError: for a tensor whose first axis is neither the batch nor 1, or a condition
                that is no tensor and differs between the halves.
        """
        if halves == "cond":
            return {k: _rows(k, v, batch, device) for k, v in self.conditions.items()}
        blank = {k: _rows(k, v, batch, device) for k, v in (self.unconditional or {}).items()}
        if halves == "uncond":
            return blank
        both = {}
        for name, value in self.conditions.items():
            value, other = _rows(name, value, batch, device), blank[name]
            if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor):
                if value.shape[1:] != other.shape[1:]:
                    raise ValueError(
                        f"Denoiser: condition {name!r} has shape {list(value.shape)} but "
                        f"{list(other.shape)} for the unconditional half"
                    )
                both[name] = torch.cat([value, other.to(value.dtype)])
            elif value is other or (type(value) is type(other) and value == other):
                both[name] = value
            else:
                raise ValueError(
                    f"Denoiser: condition {name!r} differs between the halves of one batched call "
                    "but is no tensor"
                )
        return both

    def call(self, x: torch.Tensor, t: torch.Tensor, arguments: Mapping[str, Any]) -> torch.Tensor:
        """Returns the network's raw output, contiguous, shaped as x [B, ...].

        Raises:
            ValueError: if the network returns something else.
        """
        output = self.network(x, t, **arguments)
        if not isinstance(output, torch.Tensor):
            output = output[0] if isinstance(output, (tuple, list)) else output.sample
        if output.shape != x.shape:
            raise ValueError(
                f"Denoiser: the network was given x of shape {list(x.shape)} but returned "
                f"{list(output.shape)}"
            )
        if not output.is_floating_point():
            raise ValueError(
                f"Denoiser: the network was given {x.dtype} but returned {output.dtype}, which is "
                "no floating-point type"
            )
        return output.contiguous()

    def x0(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """Returns the guided x0 estimate [B, ...] at one model time, in plain torch.

        For looking and testing; executors fold the same numbers into their fused steps.
        """
        a, b = (float(w[0]) for w in self.affine(np.array([t])))
        scale = float(self.scales(np.array([t]))[0])
        x_in = x.to(self.dtype or x.dtype)
        times = torch.full((len(x),), t, dtype=time_dtype(x.dtype), device=x.device)

        def half(which):
            return self.call(x_in, times, self.arguments(len(x), x.device, which)).to(x.dtype)

        output = half("uncond" if scale == 0.0 else "cond")
        if scale not in (0.0, 1.0):
            output = half("uncond").lerp(output, scale)
        return a * x + b * output


class _Velocity:
    """A velocity field of s = 1 - t, called by keyword, as a network."""

    def __init__(self, velocity):
        self.velocity = velocity
        self.parameters = getattr(velocity, "parameters", None)

    def __call__(self, x, t, **conditions):
        return self.velocity(x=x, t=1.0 - t, **conditions)


def time_dtype(state: torch.dtype) -> torch.dtype:
    """Returns the dtype of the time tensor that goes with a state of that dtype."""
    return torch.float64 if state == torch.float64 else torch.float32


def _rows(name: str, value: Any, batch: int, device: torch.device) -> Any:
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return value
    if value.shape[0] not in (1, batch):
        raise ValueError(
            f"Denoiser: condition {name!r} has {value.shape[0]} rows but there are {batch} samples"
        )
    return value.to(device).expand(batch, *value.shape[1:])
