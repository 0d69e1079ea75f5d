"""The probability-flow ODE in u = x / alpha and log(rho), in plain torch, and its network calls."""

from __future__ import annotations

import numpy as np
import torch

from diffast import ops
from diffast.model.denoiser import Denoiser
from diffast.tuning.grids.levels import Levels


class FlowPath:
    """Moves states of a batch along the flow, and counts the network calls.

    Args:
        denoiser: the network, with its conditions and guidance.
        shape: [B, ...] of the state.
        seed: of the initial noise.
        dtype: of the state: torch.float32 or float64.
        device: where to run; None: where the network is.

    Attributes:
        calls: network calls so far, each of all B rows. A guided call of both branches is one.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        seed: int,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ):
        """Nothing is called yet."""
        self.denoiser, self.shape, self.seed, self.dtype = denoiser, shape, seed, dtype
        self.device = denoiser.device() if device is None else torch.device(device)
        self.levels = Levels.of(denoiser)
        self.calls = 0

    def noise(self) -> torch.Tensor:
        """Returns the normals [B, ...] that `df.sample` starts from, given the seed."""
        ids = torch.arange(self.shape[0], dtype=torch.int64, device=self.device)
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        ops.normal_out(ids, self.seed, ops.INITIAL_NOISE, 1.0, made)
        return made

    def estimate(self, u: torch.Tensor, time: float) -> torch.Tensor:
        """Returns the guided x0 estimate for u at a model time.

        Raises:
            ValueError: an estimate that is not finite.
        """
        self.calls += 1
        made = self.denoiser.x0(u * float(self.denoiser.schedule.alpha(time)), time)
        if not bool(torch.isfinite(made).all()):
            raise ValueError(f"Pilot: the x0 estimate at t = {time:g} is not finite")
        return made

    @torch.no_grad()
    def start(self) -> torch.Tensor:
        """Returns u at the highest level, of the initial noise of `df.sample`.

        From noise alone, where rho is infinite, x0 estimates are taken to differ from the first one
        by a multiple of 1/rho: u(rho) = (D_inf + D(rho)) / 2 + rho eps.
        """
        levels, noise = self.levels, self.noise()
        if not levels.capped:
            return noise * levels.high
        time = float(levels.schedule.t_start)
        self.calls += 1
        first = self.denoiser.x0(noise * float(levels.schedule.sigma(time)), time)
        u = first + levels.high * noise
        return 0.5 * (first + self.estimate(u, levels.start)) + levels.high * noise

    @torch.no_grad()
    def heun(self, u: torch.Tensor, times: np.ndarray, first: torch.Tensor | None = None) -> tuple:
        """Returns (states, estimates) at all times: two lists, the last estimate left out.

        An exponential Heun method: the x0 estimate is linear in log(rho) between the ends of a
        step. The network is called at the given times alone.

        Args:
            u: state at the first time.
            times: model times from noisy to clean.
            first: the estimate at the first time, if it is known.
        """
        rho = self.levels.at(times)
        states, estimates = [u], []
        for n in range(len(times) - 1):
            d = self.estimate(u, times[n]) if n or first is None else first
            keep, length = rho[n + 1] / rho[n], np.log(rho[n] / rho[n + 1])
            ahead = keep * u + (1.0 - keep) * d
            late = 1.0 - (1.0 - keep) / length
            slope = self.estimate(ahead, times[n + 1]) - d
            u = ahead + late * slope
            states.append(u)
            estimates.append(d)
        return states, estimates
