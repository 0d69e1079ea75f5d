"""Networks that predict the variance of their step beside its mean (improved DDPM, ADM, DiT).

    network = df.LearnedVariance(my_network, schedule, plan)      # 2 C channels out for C in
    denoiser = df.Denoiser(network, schedule, predicts="epsilon", conditions=...)
    out = df.sample(denoiser, network.plan, shape=..., noise=network.draw(shape[0], seed=0))

The deviation of such a step's noise differs from element to element, so it is no weight of a plan.
The plan's noise has weight 1, and the noise is multiplied by the predicted deviation beforehand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.model.outputs import tensor_of
from diffast.plans import Plan
from diffast.solvers.compat import with_noise_weights

KINDS = ("range", "variance")


def deviation(predicted: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Returns exp((1 - v) low + v high), v = (predicted + 1) / 2, [B, ...].

    Nichol and Dhariwal 2021, eq. 15, halved: the variance lies between the posterior's and the
    forward step's, linearly in the logarithm.

    Args:
        predicted: the network's channels for the variance, about -1 to 1, [B, C, ...].
        low: log of the deviation at -1.
        high: log of the deviation at 1.
    """
    return torch.exp((predicted + 1.0) * (0.5 * (high - low)) + low)


def bounds(schedule: Any, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logs of the least and the largest deviation of ancestral steps, [S] each.

    The posterior's, sqrt(beta) sigma_t / sigma_s, and the forward step's, sqrt(beta), with
    beta = sigma_s^2 - (alpha_s / alpha_t)^2 sigma_t^2. The least one is at least 1e-10, since the
    last step into sigma_t = 0 has none.

    Args:
        schedule: any schedule.
        starts: [S] model times.
        ends: [S] model times, less noisy.
    """
    alpha_s, alpha_t = schedule.alpha(starts), schedule.alpha(ends)
    sigma_s, sigma_t = schedule.sigma(starts), schedule.sigma(ends)
    shrink = alpha_s * sigma_t / (alpha_t * sigma_s)
    large = sigma_s * np.sqrt((1.0 - shrink) * (1.0 + shrink))
    small = np.maximum(large * sigma_t / sigma_s, 1e-10)
    return np.log(small), np.log(large)


class _Last(threading.local):
    """The variance of the last network call, in each thread its own."""

    predicted: torch.Tensor | None = None

    def __reduce__(self) -> tuple:
        """A copy, or what another process gets, knows of no call yet."""
        return (_Last, ())


class LearnedVariance:
    """A network of 2 C output channels as one of C, and the noise that the other C scale.

    Threads may share one: the noise of a run is scaled by what the network said in the same thread.

    Args:
        network: called as `network(x, t, **conditions)` with x [B, C, ...]; returns the prediction
            and the variance, [B, 2 C, ...].
        schedule: the noise schedule it was trained for.
        plan: `df.solvers.ddpm`, or another plan of one call a step and one noise.
        kind: "range": v in [-1, 1] between two variances (see `deviation`); "variance": the
            variance itself.

    Attributes:
        plan: the plan with weight 1 on its noise, to be run with the noise of `draw`.

    Raises:
        ValueError: another kind; a plan without noise, with more calls than steps or with stages
            that call nothing.
    """

    def __init__(self, network: Callable[..., Any], schedule: Any, plan: Plan, kind: str = "range"):
        """Prepares the plan; see the class."""
        if kind not in KINDS:
            raise ValueError(f"LearnedVariance: kind = {kind!r}, but it must be one of {KINDS}")
        if not plan.nfe == plan.stages == plan.steps or not plan.stochastic:
            raise ValueError(
                f"LearnedVariance: {plan!r}, but a plan of one call a step with noise is needed"
            )
        self.network, self.kind = network, kind
        ends = np.append(plan.times[1:], plan.end)
        self.low, self.high = bounds(schedule, plan.times, ends)
        self.plan = with_noise_weights(plan, (plan.weights("x", "z1") != 0.0).astype(np.float64))
        self._last = _Last()

    def parameters(self) -> Iterator[torch.Tensor]:
        """Yields the network's parameters. The samples are made on their device."""
        parameters = getattr(self.network, "parameters", None)
        return iter(()) if parameters is None else parameters()

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """Returns the prediction [B, C, ...], and keeps the variance for `draw`.

        Raises:
            ValueError: an output without twice the channels of x.
        """
        output = self.network(x, t, **conditions)
        if not isinstance(output, torch.Tensor):
            output = tensor_of(output, who="LearnedVariance")
        channels = x.shape[1]
        if output.shape != (len(x), 2 * channels, *x.shape[2:]):
            raise ValueError(
                f"LearnedVariance: x is {list(x.shape)} but the network returned "
                f"{list(output.shape)}, and twice the channels are needed"
            )
        prediction, predicted = output.split(channels, dim=1)
        self._last.predicted = predicted.detach()  # a guidance term may ask for the graph
        return prediction

    def draw(
        self, batch: int, seed: int = 0, ids: torch.Tensor | None = None
    ) -> Callable[[int], torch.Tensor]:
        """Returns the `noise=` of `df.sample`: the package's own, times the deviation.

        With guidance the conditional branch's variance is used.

        Args:
            batch: number of samples B.
            seed: any integer of 64 bits.
            ids: [B] int64 that fix each sample's noise; None: 0 .. B-1.
        """

        def noise(stage: int) -> torch.Tensor:
            predicted = self._last.predicted
            if predicted is None:
                raise ValueError(
                    f"LearnedVariance: the noise of stage {stage} is asked for, but the network "
                    "was not called yet, so its deviation is not known"
                )
            predicted = predicted[:batch]
            scale = predicted.sqrt()
            if self.kind == "range":
                scale = deviation(predicted, float(self.low[stage]), float(self.high[stage]))
            known = None if ids is None else ids.to(predicted.device)
            z = ops.normal(
                predicted.shape, seed=seed, stage=stage, ids=known, device=predicted.device
            )
            return z * scale

        return noise
