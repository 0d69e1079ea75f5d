"""A replayable run: a bound run in which everything that changes between runs lies in tensors.

    run = ReplayableRun(denoiser, plan, place)
    run.load(seed=1, ids=ids)        # into static tensors: seed, ids, initial state, weights
    run.run()                        # the whole run; device work alone
    samples = run.samples()

`run` reads nothing from the device and uses no number of the host that changes between runs: the
calls' weights are one float64 tensor, the noise's (seed, id, stage) another, conditions and given
normals have tensors of their own. The bits are those of `df.sample`. A CUDA graph of `run`
(cuda_graph.py) therefore serves every seed, initial state, condition and guidance scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast import ops
from diffast.executors import context
from diffast.executors.device import pinned
from diffast.executors.results import FINE, Samples
from diffast.executors.table_run import TableRun, numbers_of, same_value
from diffast.lowering.liveness import fewest_tensors
from diffast.lowering.program import Program, lower
from diffast.model.denoiser import Denoiser
from diffast.noise.brownian import PathNoise
from diffast.plans import Plan

# How many programs' weights are kept on the host, as guidance scales come back.
_KEPT = 8


class Memory(NamedTuple):
    """What a replayable run holds.

    Attributes:
        states: tensors of the state's size, in units of one state [B, ...] (the second half of a
            guided network's input is one more; an input in a half type is half a one).
        fewest: how many states are alive at one time in the plan itself: no run can do with fewer.
        bytes: of all static tensors.
        pool: bytes that the CUDA graph's own memory pool took for the network; 0 without a graph.
    """

    states: float
    fewest: int
    bytes: int
    pool: int = 0


class ReplayableRun:
    """A run of one shape that is loaded and run again and again; see the module.

    Args:
        denoiser: the network; its conditions are copied.
        plan: a plan for its schedule.
        place: what the tensors are, see `context.place_of`.
        noise: "counter", "path" or a callable, which is called when normals are loaded.
        on_x0: the hook. A graph holds the kernels that it launched, not its Python.
        who: the public function, for messages.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        plan: Plan,
        place: context.Place,
        *,
        noise: str | Callable[[int], torch.Tensor] = "counter",
        on_x0: context.OnX0 | None = None,
        who: str = "sample",
    ):
        """Makes every tensor; nothing is loaded yet."""
        self.who, self.name, self.guidance = who, plan.name, denoiser.guidance
        with torch.inference_mode(False):
            self.bound = TableRun(
                denoiser, plan, place._replace(ids=place.ids.clone()), on_x0, noise
            )
            stages = self.bound.stages
            if self.bound.guides is not None:
                self.bound.guides.draws = False
            calls = self.bound.evaluations(len(stages))
            self.nfe = torch.full_like(self.bound.ids, calls)
            self.rows = torch.full_like(self.bound.ids, self.bound.rows(len(stages)))
        self.loaded, self._scale = self.bound.program, denoiser.guidance
        self._weights: list[tuple[Program, torch.Tensor]] = []
        self._put_weights(self.loaded)

    def load(
        self,
        denoiser: Denoiser | None = None,
        *,
        seed: int = 0,
        ids: torch.Tensor | None = None,
        x: torch.Tensor | None = None,
        noise: Callable[[int], torch.Tensor] | None = None,
        program: Program | None = None,
    ) -> None:
        """Puts what changes into the static tensors; nothing waits for the device.

        Args:
            denoiser: with other conditions or another guidance than the run's, and otherwise the
                same; None: those loaded before.
            seed: any integer of 64 bits.
            ids: [B] int64 on the run's device; None: those loaded before.
            x: the initial state [B, ...] of the run's dtype; None: the package's noise.
            noise: the normals of each stage, where the run was made with a callable.
            program: the run's plan, lowered for the denoiser, where the run has let go of the
                plan.

        Raises:
            ValueError: for what the run was not made for; the message names the two facts.
        """
        bound = self.bound
        self._check(ids, x)
        with torch.inference_mode():
            if denoiser is not None:
                self._adopt(denoiser, program)
            bound.reseed(ops.fold_seed(seed), ids)
            if noise is not None:
                bound.draw = noise
            bound.start(x)
            bound.put_normals()

    def load_anything(self) -> None:
        """Loads some numbers, for work that is only to be captured: no noise of the caller's."""
        given = self.bound.draw is not None and not isinstance(self.bound.draw, PathNoise)
        self.load(noise=(lambda _: torch.zeros_like(self.bound.state)) if given else None)

    def _check(self, ids: torch.Tensor | None, x: torch.Tensor | None) -> None:
        """Refuses a state or ids of another kind than the run's."""
        if x is not None:
            for name, given, own in (
                ("x has shape", list(x.shape), list(self.bound.shape)),
                ("x is", x.dtype, self.bound.dtype),
                ("x is on", x.device, self.bound.ids.device),
            ):
                if given != own:
                    raise ValueError(f"{self.who}: {name} {given} but the run was made for {own}")
        if ids is not None:
            own = self.bound.ids
            if ids.device != own.device:
                raise ValueError(
                    f"{self.who}: ids are on {ids.device} but the run is on {own.device}"
                )
            if ids.shape != own.shape or ids.dtype != own.dtype:
                raise ValueError(
                    f"{self.who}: ids are {list(ids.shape)} of {ids.dtype} but the run was made "
                    f"for {list(own.shape)} of {own.dtype}"
                )

    def _adopt(self, denoiser: Denoiser, program: Program | None) -> None:
        """Takes another guidance and other conditions."""
        # A function may return something else than it did.
        plain = isinstance(denoiser.guidance, int | float)
        anew = not plain or not same_value(denoiser.guidance, self._scale)
        anew = anew or any(callable(term.scale) for term in denoiser.guides)
        if program is not None or anew:
            program = program or lower(self.bound.plan, denoiser, self.bound.constraints)
            if program.structure != self.bound.program.structure:
                raise ValueError(
                    f"{self.who}: guidance is {denoiser.guidance} but the run was made for "
                    f"{self.guidance}, and the two call the network on different cfg branches or "
                    "weigh different tensors: make another one"
                )
            if program is not self.loaded:
                self._put_weights(program)
            self._scale = denoiser.guidance
        self.bound.put_conditions(self.who, denoiser)
        self.bound.pick_laws(denoiser)

    def _put_weights(self, program: Program) -> None:
        """Puts a program's weights into the tables: one copy."""
        found = next((numbers for kept, numbers in self._weights if kept is program), None)
        if found is None:
            numbers = numbers_of(program, self.bound.batch)
            if not np.isfinite(numbers).all():
                raise ValueError(f"{self.who}: the weights of {self.name} are not finite")
            found = pinned(torch.from_numpy(numbers), self.bound.device)
            self._weights = [*self._weights[1 - _KEPT :], (program, found)]
        self.bound.numbers.copy_(found, non_blocking=True)
        self.loaded = program

    def release(self) -> None:
        """Lets go of network, plan and hook, where a graph replays the run."""
        del self.bound.denoiser, self.bound.plan, self.bound.on_x0, self.bound.guides
        del self.bound.kinds

    def run(self) -> None:
        """Runs all stages on what was loaded: device work alone."""
        bound = self.bound
        with torch.inference_mode():
            bound.status.fill_(FINE)
            if isinstance(bound.draw, PathNoise):
                bound.draw.path.forget()
            for i in range(len(bound.stages) if bound.batch else 0):
                bound.stage(i)

    @torch.inference_mode(False)
    def samples(self, donate: bool = False) -> Samples:
        """Returns the samples of the last run; nothing waits for the device.

        Args:
            donate: whether `x` and `status` are the run's own tensors, which the next run
                overwrites, in place of copies.
        """
        x, status = self.bound.points[-1], self.bound.status
        if not donate:
            x, status = x.clone(), status.clone()
        return Samples(x, self.nfe.clone(), status, True, network_rows=self.rows.clone())

    @property
    def memory(self) -> Memory:
        """Returns what the run holds, without what the network takes."""
        bound = self.bound
        held = {t.data_ptr(): t.numel() * t.element_size() for t in bound.tensors()}
        state = math.prod(bound.shape) * bound.dtype.itemsize
        states = sum(t.numel() * t.element_size() for t in bound.buffers) / max(state, 1)
        return Memory(states, fewest_tensors(bound.program), sum(held.values()))


def changed(
    denoiser: Denoiser,
    conditions: Mapping[str, Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    guidance: float | Callable[[float], float] | None = None,
) -> Denoiser:
    """Returns a denoiser with other conditions or guidance; the names that are given change."""
    new = copy.copy(denoiser)
    if conditions is not None:
        object.__setattr__(new, "conditions", {**denoiser.conditions, **conditions})
    if unconditional is not None:
        object.__setattr__(
            new, "unconditional", {**(denoiser.unconditional or {}), **unconditional}
        )
    if guidance is not None:
        object.__setattr__(new, "guidance", guidance)
    new.__post_init__()
    return new
