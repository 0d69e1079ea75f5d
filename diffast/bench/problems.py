"""Denoisers to sample from: a Gaussian mixture in closed form, and the embedded digit network.

Both are posed in sigma space: x = x0 + sigma n, and the probability-flow ODE dx/dsigma = (x - D(x,
sigma)) / sigma is followed from SIGMA_MAX to 0. These noise levels are those of diffusers' latent
betas, since its schedulers choose their levels from a table of betas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

import diffast as df
from diffast import grids, schedules, solvers

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_BETAS = np.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000) ** 2
_TABLE = schedules.from_betas(_BETAS)
SIGMA_MIN, SIGMA_MAX = (
    float(_TABLE.sigma(t) / _TABLE.alpha(t)) for t in np.array([0.0, len(_BETAS) - 1.0])
)
SCHEDULE = schedules.edm(SIGMA_MIN, SIGMA_MAX)


@dataclass
class Problem:
    """A denoiser and states to start from.

    Attributes:
        name: "mixture" or "digits".
        denoise: the x0 estimate [B, ...] of (x [B, ...], sigma [B]).
        start: states at SIGMA_MAX, [B, ...].
        fine: the samples [B, ...] that the exact flow would give, made in a fine grid.
        conditions: named arguments of the denoiser, a row a sample.
        rows: how many rows the denoiser has been called on since `reset`.
    """

    name: str
    denoise: Callable[..., torch.Tensor]
    start: torch.Tensor
    fine: torch.Tensor
    conditions: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: int = field(default=0, init=False)

    def __call__(
        self, x: torch.Tensor, sigma: torch.Tensor, **conditions: torch.Tensor
    ) -> torch.Tensor:
        """Returns the x0 estimate, and counts."""
        self.rows += x.shape[0]
        return self.denoise(x, sigma, **conditions)

    def at(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """Returns the x0 estimate of all samples at one noise level."""
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
        return self(x, level.expand(len(x)), **self.conditions)

    def reset(self) -> None:
        """Starts counting anew."""
        self.rows = 0

    @property
    def calls(self) -> float:
        """Returns network evaluations of a sample since `reset`."""
        return self.rows / len(self.start)

    @cached_property
    def denoiser(self) -> df.Denoiser:
        """Returns the denoiser in the package's form."""
        return df.Denoiser(self, SCHEDULE, predicts="x0", conditions=self.conditions)

    def error(self, x: torch.Tensor) -> float:
        """Returns the error of samples: the rms of x - fine over the standard deviation of fine.

        Infinite for samples that are not finite.
        """
        difference = x.detach().double() - self.fine
        value = float(difference.square().mean().sqrt() / self.fine.std())
        return value if np.isfinite(value) else float("inf")


def _finely(
    denoise: Callable, start: torch.Tensor, steps: int, solver: str, **conditions: torch.Tensor
) -> torch.Tensor:
    """Returns the end of the flow from `start`, in many steps, in float64."""
    # Far below the least level of the runs, so that the last jump to 0 is exact too.
    schedule = schedules.edm(1e-4, SIGMA_MAX)
    plan = getattr(solvers, solver)(schedule, grids.karras(schedule, steps))
    denoiser = df.Denoiser(denoise, schedule, predicts="x0", conditions=conditions)
    return df.sample(denoiser, plan, x=start.double()).x


def components() -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns the mixture's means [8, 16], logarithms of weights [8], and deviation in each."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(8, 16, dtype=torch.float64, generator=generator)
    return means, torch.randn(8, dtype=torch.float64, generator=generator), 0.25


def mixture(device: torch.device, count: int = 64, steps: int = 120) -> Problem:
    """Returns the posterior mean of a mixture of 8 Gaussians in 16 dimensions.

    With x = x0 + sigma n and x0 from component k with probability w_k, mean m_k and deviation s:
    D(x, sigma) = sum_k p_k(x) (s^2 x + sigma^2 m_k) / (s^2 + sigma^2), with p_k(x) proportional
    to w_k exp(-|x - m_k|^2 / (2 (s^2 + sigma^2))).

    Args:
        device: where the samples are.
        count: how many samples.
        steps: of the fine reference, by dopri5 (6 calls a step).
    """
    means, logits, deviation = components()
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(count, 1, 4, 4, dtype=torch.float64, generator=generator)
    start = (SIGMA_MAX * noise).to(device)
    held = {dtype: (means.to(device, dtype), logits.to(device, dtype)) for dtype in _FLOATS}

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        means, logits = held[x.dtype]
        flat = x.flatten(1)  # [B, 16]
        noise = sigma.to(x.dtype).square().reshape(-1, 1)  # [B, 1]
        whole = deviation**2 + noise
        distances = torch.cdist(flat, means, compute_mode="donot_use_mm_for_euclid_dist")
        of_component = torch.softmax(logits - distances.square() / (2 * whole), dim=1)  # [B, 8]
        x0 = (deviation**2 * flat + noise * (of_component @ means)) / whole
        return x0.reshape(x.shape)

    return Problem("mixture", denoise, start.float(), _finely(denoise, start, steps, "dopri5"))


_FLOATS = (torch.float32, torch.float64)


def digits(device: torch.device, count: int = 2, steps: int = 64) -> Problem:
    """Returns the embedded digit network, which was trained in this very sigma space.

    Args:
        device: where the samples are.
        count: how many samples.
        steps: of the fine reference, by the third-order dpm_solver_3s (3 calls a step). The network
            works in float32.
    """
    unet = df.digits.load_unet().eval().to(device)
    labels = torch.arange(count, device=device) % 10
    generator = torch.Generator().manual_seed(2)
    start = SIGMA_MAX * torch.randn(count, 1, 28, 28, generator=generator).to(device)

    def denoise(x: torch.Tensor, sigma: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return unet(x.float(), sigma.float(), labels).to(x.dtype)

    fine = _finely(denoise, start, steps, "dpm_solver_3s", labels=labels)
    return Problem("digits", denoise, start, fine, {"labels": labels})
