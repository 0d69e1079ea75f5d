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

    _in_trials = {"noise_sampler": None, "noise_sampler_seed": 0, "_tree_made": None}
    _sampler: Any  # the original's class of a tree
    _span: Any  # (self) -> the levels (low, high) of the tree
    _seed: Any  # (self, generator) -> seed of the path: int, a list of them, or None

    def _after_set_timesteps(self, device=None) -> None:
        """Reads the new timesteps and makes their plan."""
        vars(self)["_tree_made"] = None
        super()._after_set_timesteps(device)

    def _along_a_path(self, run, stage, sample, output, generator):
        """Returns the normals [B, ...] of a stage."""
        start, end = run.recipe.intervals[stage]
        if not self._counter:
            own = vars(self)
            if own.get("_tree_made") is None:
                dtype = self._tree_dtype(sample, output)
                seed = self._settled_seed(generator)
                own["_tree_made"] = sample.shape, dtype, sample.device, *self._span(), seed
            return self._tree()(start, end).to(output.device).contiguous()
        if run.path is None:
            wide = torch.promote_types(sample.dtype, torch.float32)
            seed = self._settled_seed(generator)
            run.path = BrownianPath(
                schedules.edm(), sample.shape, seed, device=sample.device, dtype=wide
            )
        return run.path.increment(start, end)

    def _tree_dtype(self, sample, output) -> torch.dtype:
        return sample.dtype

    def _settled_seed(self, generator):
        seed = self._seed(generator)
        return int(torch.randint(0, 2**63 - 1, [])) if seed is None else seed

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy starts with; a tree cannot be copied, but grows again the same."""
        own = super().__getstate__()
        if own.get("_tree_made") is not None:
            own["noise_sampler"] = None
        return own

    def _tree(self) -> Any:
        """Returns the tree of a run that has drawn noise; a copy's grows again."""
        own = vars(self)
        if own.get("noise_sampler") is None:
            shape, dtype, device, low, high, seed = own["_tree_made"]
            like = torch.empty((), dtype=dtype, device=device).expand(shape)
            own["noise_sampler"] = self._sampler(like, low, high, seed)
        return own["noise_sampler"]
