"""Drop-ins whose noise is that of a Brownian path between noise levels."""

from __future__ import annotations

from typing import Any

import torch

from diffast import schedules
from diffast.integrations.diffusers.scheduler import DiffastScheduler
from diffast.noise.brownian import BrownianPath


class OnPath(DiffastScheduler):
    """A drop-in whose original asks a Brownian tree for its noise.

    With noise="generator" the original's own tree is asked for the very levels that the original
    asks it for, so the noise is the same. With noise="counter" the path is the package's.

    Steps are not traced by torch.compile: a tree is Python code.
    """

    _in_trials = {"noise_sampler": None, "noise_sampler_seed": 0}

    _tree: Any  # (self, sample, output, generator) -> the original's noise sampler
    _seed: Any  # (self, generator) -> seed of the path: int, a list of them, or None

    def _along_a_path(self, run, stage, sample, output, generator):
        """Returns the normals [B, ...] of a stage."""
        start, end = run.recipe.intervals[stage]
        if not self._counter:
            own = self.__dict__
            if own.get("noise_sampler") is None:
                own["noise_sampler"] = self._tree(sample, output, generator)
            noise = own["noise_sampler"](start, end)
            return noise.to(output.device).contiguous()
        if run.path is None:
            seed = self._seed(generator)
            if seed is None:
                seed = int(torch.randint(0, 2**63 - 1, ()))
            wide = torch.promote_types(sample.dtype, torch.float32)
            run.path = BrownianPath(
                schedules.edm(), sample.shape, seed, device=sample.device, dtype=wide
            )
        return run.path.increment(float(start), float(end))
