"""Parts of all recipes: a scheduler's levels and options in this package's terms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from diffast import schedules
from diffast.integrations.diffusers.live import setting


@dataclass(frozen=True)
class Host:
    """A scheduler's numbers, read once from its tensors while those are on the CPU.

    Attributes:
        times: the timesteps.
        sigmas: float64, empty where it has none.
        products: alphas_cumprod as float64, empty where it has none.
        betas: likewise.
        clean: final_alpha_cumprod, 1 where it has none.
    """

    times: list
    sigmas: np.ndarray
    products: np.ndarray
    betas: np.ndarray
    clean: float


def read(scheduler) -> Host:
    """Returns the numbers as they are now.

    A tensor that an original's own method has moved to a device is read there once for each write.
    """
    seen = vars(scheduler).setdefault("_numbers", {})

    def array(name):
        tensor = getattr(scheduler, name, None)
        if not isinstance(tensor, torch.Tensor):
            return np.empty(0) if tensor is None else np.array(tensor, dtype=np.float64)
        if tensor.device.type == "cpu" or tensor.is_inference():
            return tensor.detach().cpu().to(torch.float64, copy=True).numpy()
        known = seen.get(name)
        if known is None or known[0] is not tensor or known[1] != tensor._version:
            read = tensor.detach().cpu().to(torch.float64).numpy()
            known = seen[name] = (tensor, tensor._version, read)
        return known[2]

    clean = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    fixed = array("alphas_cumprod"), array("betas"), clean
    return Host(scheduler.timesteps.tolist(), array("sigmas"), *fixed)


PREDICTIONS = {
    "epsilon": "epsilon",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def predicts(config) -> str:
    """Returns this package's name of the prediction type; ValueError for an unknown one."""
    kind = config.prediction_type
    if kind not in PREDICTIONS:
        raise ValueError(
            f"prediction_type is {kind!r}, but it must be one of {', '.join(PREDICTIONS)}"
        )
    return PREDICTIONS[kind]


def falling(grid: np.ndarray) -> np.ndarray:
    """Returns the levels, a last step of length zero changed into a very short one.

    Some of diffusers' lists repeat their last sigma.

    Raises:
        ValueError: sigmas that repeat elsewhere, or rise.
    """
    grid = np.array(grid, dtype=np.float64)
    if len(grid) > 1 and grid[-2] > 0 and abs(grid[-1] / grid[-2] - 1.0) <= 1e-6:
        grid[-1] = grid[-2] * (1.0 - 1e-10)
    falls = np.diff(grid) < 0.0
    if not falls.all():
        i = int(np.argmin(falls))
        raise ValueError(
            f"sigmas[{i}] = {grid[i]:g} is followed by sigmas[{i + 1}] = {grid[i + 1]:g}, but a "
            "plan is for sigmas that fall at every step"
        )
    return grid


def flow_sigmas(config) -> bool:
    """Returns whether the levels are those of a flow.

    Raises:
        ValueError: a prediction type that has no meaning at these levels. diffusers' own formulas
            for it then agree with no x0.
    """
    flow, kind = bool(setting(config, "use_flow_sigmas")), config.prediction_type
    if kind == "flow_prediction" and not flow:
        raise ValueError(
            "prediction_type is 'flow_prediction' and use_flow_sigmas is False, but a flow's "
            "network needs a flow's sigmas"
        )
    if kind == "v_prediction" and flow:
        raise ValueError(
            "prediction_type is 'v_prediction' and use_flow_sigmas is True, but v is of a path "
            "with alpha^2 + sigma^2 = 1"
        )
    return flow


def clamp_of(config) -> float | None:
    """Returns the limit of the x0 estimate, if the config clips it and nothing else is done."""
    if setting(config, "clip_sample") and not setting(config, "thresholding"):
        return float(config.clip_sample_range)
    return None


def hook_of(scheduler):
    """Returns dynamic thresholding as a function of the x0 estimate, if the config wants it."""
    return scheduler._threshold_sample if setting(scheduler.config, "thresholding") else None


def levels(scheduler) -> np.ndarray:
    """Returns scheduler.sigmas as float64, without entries at which no step ends."""
    return scheduler.host.sigmas[: len(scheduler.host.times) + 1]


def ends_of_steps(sigmas: np.ndarray) -> np.ndarray:
    """Returns the levels [N + 1] of N steps of two calls, of a list that holds inner ones twice.

    diffusers begins a step at the second entry of a pair and ends the step before at the first.

    Args:
        sigmas: first, second, second, third, third ... [2 N], or one more that no step reads.

    Raises:
        ValueError: a pair of two different entries, which no list of one level each can hold.
    """
    ends, starts = sigmas[1:-1:2], sigmas[2::2][: len(sigmas[1:-1:2])]
    apart = ends != starts
    if apart.any():
        i = 2 * int(np.argmax(apart)) + 1
        raise ValueError(
            f"a step ends at sigmas[{i}] = {sigmas[i]:g}, but the next one starts at "
            f"sigmas[{i + 1}] = {sigmas[i + 1]:g}"
        )
    return np.append(sigmas[:1], sigmas[1::2])


def sigma_space(sigmas):
    """Returns the schedule of a list of sigmas with alpha = 1."""
    return schedules.edm(sigma_min=1e-6 * float(sigmas[0]), sigma_max=float(sigmas[0]))


def scale(sigmas, data: float = 1.0) -> list[float]:
    """Returns 1 / sqrt(sigma^2 + data^2) for each noise level."""
    return [1.0 / math.sqrt(s * s + data * data) for s in sigmas.tolist()]


def without_variance(config, output):
    """Returns the first three channels of a network that predicts its variance too."""
    if setting(config, "variance_type") in ("learned", "learned_range"):
        return output[:, :3]
    return output
