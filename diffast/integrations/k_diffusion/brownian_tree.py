"""k-diffusion's BrownianTreeNoiseSampler on the package's paths, without torchsde."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffast import schedules
from diffast.noise.brownian import BrownianPath


class BrownianTreeNoiseSampler:
    """The noise of one Brownian path a sample, between noise levels.

    For k-diffusion's samplers, or any other that calls noise_sampler(sigma, sigma_next). The
    numbers are those of `BrownianPath` in log sigma, whatever the device, and so another path than
    torchsde's; a step costs 12 normals an element, once.

    Args:
        x: the state [B, ...], whose shape, device and dtype the noise has.
        sigma_min: not needed, there is no interval to stay within; as `sigma_max`.
        sigma_max: see `sigma_min`.
        seed: an integer: sample b's path depends on it and on b. A list of B integers: on its own
            alone. None: a number from torch's generator.
        transform: not used, as increments are N(0, 1) in any time variable.
        cpu: not needed (ComfyUI's), as the CPU's numbers are those of any device.
    """

    def __init__(
        self,
        x: torch.Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable = lambda x: x,
        cpu: bool = False,
    ):
        """Makes the paths; nothing is drawn yet."""
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        if not isinstance(seed, int) and np.ndim(seed):
            seed = [int(one) for one in seed]
        self.dtype = x.dtype
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.path = BrownianPath(schedules.edm(), x.shape, seed, device=x.device, dtype=wide)

    def __call__(self, sigma: Any, sigma_next: Any) -> torch.Tensor:
        """Returns the N(0, 1) increment [B, ...] from one level to the other.

        Args:
            sigma: noise level above 0, a number or a tensor of one.
            sigma_next: another one; above sigma it gives minus the increment down.

        Raises:
            ValueError: levels that are equal, or 0, where no noise falls.
        """
        start, end = float(sigma), float(sigma_next)
        if start < end:
            return -self(end, start)
        return self.path.increment(start, end).to(self.dtype)
