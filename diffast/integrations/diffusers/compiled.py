"""The step as torch.compile sees it: one graph for every step, since a device table holds them all.

The run's stage is a number on the device here, so nothing that changes from step to step is a
constant of the graph: a run takes two graphs, for the first step and for the others.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from diffast.executors.stepwise import State, Stepper
from diffast.integrations.diffusers.run import Prepared, Recipe, ids_of


def stepper_of(recipe: Recipe, counter: bool, device) -> Stepper:
    """Returns the recipe's stages as a table on the device, for any number of runs."""
    stepper = Stepper(
        recipe.plan,
        recipe.reads,
        device=device,
        noise="counter" if counter else "given",
        clamp=None if recipe.clamp is None else (-recipe.clamp, recipe.clamp),
        on_x0=None if recipe.hook is None else _ignoring_info(recipe.hook),
    )
    stepper.table()
    return stepper


def _ignoring_info(hook):
    return lambda x0, info: hook(x0)


class CompiledRun:
    """A run for tracing; made before anything is traced."""

    def __init__(self, prepared: Prepared, stepper: Stepper, counter: bool):
        """Starts with no state."""
        self.recipe, self.options = prepared.recipe, prepared.options
        self.stepper, self.counter = stepper, counter
        self.draws = any(self.recipe.draws)
        self.boundary = None
        if self.recipe.boundary is not None:
            self.boundary = torch.tensor(self.recipe.boundary, device=stepper.device)
        self.factors: Any = None  # a tensor, where the network's input is scaled
        self.state: Any = None  # State, after the first step

    def step(self, sample, output, row, generator, noise):
        """Returns (next sample, x0 estimate), [B, ...] each, of the sample's promoted dtype.

        Args:
            sample: what the network was called on, [B, ...].
            output: what it returned.
            row: the stage, a number or a 0-d tensor; None: the one after the last.
            generator: for the noise.
            noise: normals [B, ...], or None.
        """
        if self.recipe.deviations is not None:
            raise ValueError("step: a learned variance is not traced, but everything else is")
        if self.stepper.terms.union.terms:
            raise ValueError(
                "step: gradients of guidance terms are not traced: leave the scheduler's step out "
                "of torch.compile"
            )
        dtype = output.dtype
        if self.recipe.wide == "sample":
            dtype = sample.dtype
        elif not self.recipe.wide and sample.dtype != dtype:
            dtype = torch.promote_types(dtype, sample.dtype)
        state: Any = self._state(sample, row, generator)
        if noise is not None and self.counter:
            raise ValueError("step: variance_noise is given, but noise is 'counter'")
        if not self.draws:
            noise = None
        elif noise is None and not self.counter:
            kind = self.recipe.dtype_of_noise(sample.dtype, output.dtype)
            noise = randn_tensor(
                sample.shape, generator=generator, device=output.device, dtype=kind
            )
        x0 = self.stepper.estimate(state, output)
        if self.boundary is not None:
            of_sample, of_x0 = self.boundary[state.row[:1]].to(x0.dtype).unbind(1)
            x0 = of_sample * sample + of_x0 * x0
        self.state, x, _ = self.stepper.step(state, output, noise)
        return x.to(dtype), x0.to(dtype)

    def scaled(self, sample, row):
        """Returns the network's input: the sample times the factor of the stage."""
        if self.state is not None and row is None:
            return sample * self.factors[self.state.row[:1]].to(sample.dtype)
        return sample * self.factors[0 if row is None else row].to(sample.dtype)

    def _state(self, sample, row, generator) -> State:
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32)).contiguous()
        state = self.state
        if state is None:
            if self.draws and self.counter:
                ids = ids_of(generator, len(sample), sample.device)
            else:
                ids = torch.arange(len(sample), device=sample.device)
            slots = (torch.zeros_like(wide),) * self.stepper.slots
            row, seed, status = torch.zeros_like(ids), torch.zeros_like(ids), ids - ids - 1
            state = State(row, wide, wide, None, slots, seed, ids, status)
        if row is not None:
            state = state._replace(row=torch.zeros_like(state.ids) + row)
        return state._replace(x=wide)
