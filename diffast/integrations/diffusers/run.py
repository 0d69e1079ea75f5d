"""One run of a drop-in scheduler: prepared calls, and the tensors kept between steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch

from diffast import ops
from diffast.integrations.diffusers.guides import NO_TERMS, GuidedOutputs
from diffast.integrations.diffusers.held import Holder, held_after
from diffast.lowering.program import Constraints, check_one_input, lower
from diffast.lowering.step_table import (
    AT_COND,
    AT_TERM,
    AT_X,
    AT_X0,
    AT_Y,
    FIXED,
    StepCall,
    numbered,
)
from diffast.plans import Plan
from diffast.plans.registers import V, Y

_below_autograd = torch._C._AutoDispatchBelowAutograd
_combine, _empty_like = ops.combine_out, torch.empty_like
_grad_enabled = torch.is_grad_enabled

# Registers between the output and the noise that a drop-in does not have.
NO_RULES = (None,) * (AT_X0 - AT_COND)


@dataclass(frozen=True)
class Recipe:
    """A scheduler's configuration and timesteps as a plan.

    Attributes:
        plan: the solver's tables, one stage for each entry of `timesteps` from `begin` on.
        reads: `affine(times)` and `scales(times)`: what the network's output says of x0; a
            `GuidedOutputs` where guidance terms join it.
        clamp: limit of the x0 estimate's magnitude; None: none.
        hook: x0 -> x0, something else that is done to the estimate; None: nothing.
        draws: [S] how often the original draws noise at the stage: False, True or a number. The
            last draw is the stage's noise, used or not.
        noise_dtype: of those draws; None: the network output's; "sample": the sample's;
            "promoted": the wider of both.
        wide: dtype of a traced step's result: True: the network output's; False: promoted with the
            sample's; "sample": the sample's. Other steps ask the original.
        begin: index into `timesteps` of the first stage.
        estimates: [S] weights (sample, output, noise) of the x0 estimate that is shown, where it
            is not the one that the plan is given.
        boundary: [S] weights (sample, x0 estimate) of what is shown in the estimate's place, after
            a clamp or hook.
        deviations: what a network's predicted variance needs, see `learned_deviation`.
        given: whether the caller gives each step the plan's y, see `diffast.solvers.compat.given`.
            The plan then has a stage more at either end, and `begin` is one less.
        intervals: [S] pairs of noise levels between which a Brownian path gives the stage's noise;
            empty: fresh noise.
    """

    plan: Plan
    reads: Any
    clamp: float | None = None
    hook: Callable[[torch.Tensor], torch.Tensor] | None = None
    draws: tuple[int, ...] = ()
    noise_dtype: torch.dtype | str | None = None
    wide: bool | str = False
    begin: int = 0
    estimates: tuple | None = None
    boundary: tuple | None = None
    deviations: tuple | None = None
    given: bool = False

    def dtype_of_noise(self, sample: torch.dtype, output: torch.dtype) -> torch.dtype:
        """Returns the dtype in which the original draws, for those of sample and output."""
        kind = self.noise_dtype
        if kind is None:
            return output
        if isinstance(kind, str):
            return sample if kind == "sample" else torch.promote_types(sample, output)
        return kind

    intervals: tuple = ()


class Prepared:
    """A recipe multiplied out, for any number of runs: nothing here changes."""

    def __init__(
        self, recipe: Recipe, options: tuple, counter: bool, kept: int = 0, holds: bool = False
    ):
        """Multiplies the plan out.

        Args:
            recipe: what to run.
            options: the arguments of `step` that the plan was made for.
            counter: whether the noise is the package's own.
            kept: how many of the newest entries stay remembered, read by a later step or not.
            holds: whether the original remembers the very tensors that steps were given.
        """
        self.entries = kept
        self.recipe, self.options = recipe, options
        self.limits = [] if recipe.clamp is None else [-recipe.clamp, recipe.clamp]
        self.given = not counter or recipe.deviations is not None or bool(recipe.intervals)
        self.terms = recipe.reads if isinstance(recipe.reads, GuidedOutputs) else None
        reads_x0 = self.terms is not None and self.terms.reads_x0
        how = Constraints(
            bool(self.limits),
            recipe.hook is not None or reads_x0,
            given_noise=self.given,
            entries=self.entries,
        )
        check_one_input("step", recipe.plan)
        program = lower(recipe.plan, recipe.reads, how)
        if V in program.carried or program.opening:
            raise ValueError(
                f"step: {recipe.plan.name} holds a momentum or begins without a network call, but "
                "a drop-in scheduler's step has neither"
            )
        self.calls, self.slots = numbered(program), program.slots
        self.holds = [held_after(call) for call in self.calls] if holds else []
        self._soft = None
        # picks each call's tensors, the fastest way in Python
        self.picks = [_picker(call.columns) for call in self.calls]
        # whether a step needs tensors of earlier steps
        parts = any(call.parts for call in self.calls) and not recipe.given
        self.remembers = bool(self.slots) or parts
        # Whether steps may be made on tensors whose axes are in the order of channels_last: noise
        # is numbered by the order of the shape, and a hook or a state beside the sample has it too.
        apart = any(AT_Y in c.columns or Y in (*c.writes, *c.keeps) for c in self.calls)
        noisy = any(recipe.draws or ()) or any(call.noise for call in self.calls)
        self.turns = not (apart or noisy or recipe.hook is not None or self.terms is not None)

    def soft_calls(self):
        """Returns the calls with the x0 estimate as a tensor of its own, as gradients need it."""
        if not self.limits:
            return self.calls
        if self._soft is None:
            how = Constraints(hook=True, given_noise=self.given, entries=self.entries)
            self._soft = numbered(lower(self.recipe.plan, self.recipe.reads, how))
        return self._soft


class Run(Holder):
    """One run: the tensors that it remembers. Nothing is shared with another one."""

    def __init__(self, prepared: Prepared, dtypes: dict | None = None):
        """Starts with nothing to remember.

        Args:
            prepared: the calls.
            dtypes: what the original returns for dtypes of (sample, output).
        """
        recipe = prepared.recipe
        self.dtypes = {} if dtypes is None else dtypes
        # as of the scheduler, see there
        self.searches = self.reads_time = self.plain = self.places = False
        self.time_dtype: Any = None
        self.ended = False  # whether the last step was taken
        self.prepared, self.graph = prepared, False  # whether what is remembered has a gradient
        self.recipe, self.options, self.begin = recipe, prepared.options, recipe.begin
        self.calls, self.limits, self.hook = prepared.calls, prepared.limits, recipe.hook
        self.picks, self.terms = prepared.picks, prepared.terms
        self.draws = recipe.draws if any(recipe.draws) else ()
        self.wide, self.remembers = recipe.wide, prepared.remembers
        self.slots: list[torch.Tensor | None] = [None] * prepared.slots
        self.y: torch.Tensor | None = None
        self.past: torch.Tensor | None = None  # the state from which the last step began
        self.anchored = False  # whether that is held after a step of one call too
        self.away: torch.Tensor | None = None
        self.ids: torch.Tensor | None = None
        self.path: Any = None  # BrownianPath, where the noise is the package's own along a path
        self.turned = False  # whether what is remembered lies [B, H, W, C]
        self._dtype = torch.float32
        self.last: Any = None  # noise of the last step, where the original needs it
        self.holds = prepared.holds
        self.next = -1  # index of the step that goes on from the last one; -1: none was taken

    def starts_at(self, i: int) -> bool:
        """Returns whether stage i needs no tensor of an earlier stage."""
        columns = self.calls[i].columns
        of_y = AT_Y in columns and not self.recipe.given
        return not of_y and max(columns) < len(FIXED)

    def give(self, y: torch.Tensor) -> None:
        """Sets y [B, ...] for the next step, which makes a new tensor of its own y."""
        self.y, self.away = y.contiguous(), None

    def step(self, i: int, sample, output, noise, dtype: torch.dtype) -> torch.Tensor:
        """Returns the next sample [B, ...] after stage i.

        Args:
            i: the stage.
            sample: what the network was called on, before any input scaling, [B, ...].
            output: what it returned, [B, ...].
            noise: fresh normals [B, ...]; None: none, or the package's own.
            dtype: of the result.
        """
        call, self._dtype = self.calls[i], dtype
        if self.turned or (self.prepared.turns and not output.is_contiguous()):
            turns = _is_channels_last(output) and output.shape == sample.shape
            needed = _grad_enabled() and (output.requires_grad or sample.requires_grad)
            self._turn(turns and not (needed or self.graph))
            if self.turned:  # the result has the output's format: no step transposes anything
                x, output = sample.permute(_LAST).contiguous(), output.permute(_LAST)
                return self._fused(i, call, x, output, noise, dtype).permute(_FIRST)
        x = sample.contiguous()
        output = output.contiguous()
        if _grad_enabled() and (output.requires_grad or x.requires_grad or self.graph):
            return self._with_gradient(i, x, output, noise, dtype)
        return self._fused(i, call, x, output, noise, dtype)

    @property
    def seen_dtype(self) -> torch.dtype:
        """Returns the dtype in which the original remembers: that of its latents."""
        return self._dtype

    def holds_another(self, shape: torch.Size) -> bool:
        """Returns whether what is remembered is of another shape than that of a sample."""
        held = (*self.slots, self.y)
        if self.turned:
            return any(s is not None and s.permute(_FIRST).shape != shape for s in self.slots)
        return any(each is not None and each.shape != shape for each in held)

    def kept(self, slot: int) -> torch.Tensor:
        """Returns a remembered entry [B, ...] in the order of the shape."""
        entry: Any = self.slots[slot]
        return (entry.permute(_FIRST) if self.turned else entry).clone()

    def anchor(self) -> torch.Tensor | None:
        """Returns the step's state [B, ...], where it is another tensor than the sample."""
        return None if self.y is None else self.y.to(self._dtype, copy=True)

    def ended_from(self) -> torch.Tensor | None:
        """Returns the state [B, ...] from which the last step was taken; None: it is not held."""
        return None if self.past is None else self.past.to(self._dtype, copy=True)

    def _turn(self, turned: bool) -> None:
        """Puts what is remembered into that order of axes."""
        if turned != self.turned:
            order = _LAST if turned else _FIRST
            self.slots = [s if s is None else s.permute(order).contiguous() for s in self.slots]
            self.turned = turned

    def _fused(self, i, call, x, output, noise, dtype) -> torch.Tensor:
        """Returns the next sample; x and the output are contiguous, in one order of axes."""
        tensors = (self.y, None, x, output, *NO_RULES, noise, *NO_TERMS, *self.slots)
        # usually of the sample's dtype; then this is the cheapest way to make a tensor
        point = _empty_like(x) if x.dtype is dtype else _empty_like(x, dtype=dtype)
        outs = [point]
        if Y in call.writes:
            if self.away is None:
                self.away = _new(x)
            outs = [self.away, point]
        if call.slot >= 0:
            kept = self.slots[call.slot]
            if kept is None:
                kept = self.slots[call.slot] = _new(x)
            outs.insert(0, kept)
        with _below_autograd():
            if call.alone:
                x0 = self._changed(self._x0(call, tensors, _wide(x.dtype))).contiguous()
                tensors = (*tensors[:AT_X0], x0, *tensors[AT_X0 + 1 :])
            if call.gradients:
                tensors = self._with_terms(i, call, list(tensors))
            xs = self.picks[i](tensors)
            try:
                if call.noise or call.clamped:
                    limits = self.limits if call.clamped else []
                    rest = (call.noise, _SEED, self.ids, limits)
                    _combine(xs, call.weights, outs, None, i, *rest)
                else:
                    _combine(xs, call.weights, outs)
            except RuntimeError as error:
                if not self._left_inference():
                    raise ValueError(_complaint(x, output, noise, error)) from None
                return self._fused(i, call, x, output, noise, dtype)
        if Y in call.writes:
            self.y = self.away
        elif Y not in call.keeps:
            if self.y is not None:
                self.past = self.y
            elif self.anchored:
                self.past = None if self.turned else x
            self.y = None
        elif self.y is None:
            self.y = x
        return point

    def _left_inference(self) -> bool:
        """Replaces tensors of torch.inference_mode, which cannot be written to outside of it.

        Returns whether there were any.
        """
        if torch.is_inference_mode_enabled():
            return False
        held = (*self.slots, self.y, self.away)
        if not any(each is not None and each.is_inference() for each in held):
            return False
        *self.slots, self.y, self.away = (None if t is None else t.clone() for t in held)
        return True

    def _with_terms(self, i: int, call: StepCall, tensors: list) -> list:
        """Returns a step's tensors with the gradients of its guidance terms."""
        x0 = tensors[AT_X0]
        x0 = x0 if x0 is None else x0.detach()
        terms: Any = self.terms
        made = terms.gradients(i, call.gradients, tensors[AT_X], x0, self.ids)
        tensors[AT_TERM : AT_TERM + len(made)] = made
        return tensors

    def _with_gradient(self, i, x, output, noise, dtype):
        """Returns the same as `step`, as a function that torch can differentiate."""
        call, self.graph = self.prepared.soft_calls()[i], True
        tensors = [self.y, None, x, output, *NO_RULES, noise, *NO_TERMS, *self.slots]
        if self.hook is not None or self.limits or call.alone:
            xs = [tensors[k] for k in call.x0_columns]
            (x0,) = ops.combine(xs, call.x0_weights)
            tensors[AT_X0] = self._changed(x0).contiguous()
        if call.gradients:
            tensors = self._with_terms(i, call, tensors)
        xs = [tensors[k] for k in call.columns]
        fresh = {"noise": call.noise, "ids": self.ids, "seed": _SEED} if call.noise else {}
        try:
            rows = list(ops.combine(xs, call.weights, stage=i, **fresh))
        except RuntimeError as error:
            raise ValueError(_complaint(x, output, noise, error)) from None
        if call.slot >= 0:
            self.slots[call.slot] = rows.pop(0)
        if Y in call.writes:
            self.y = rows.pop(0)
        elif Y not in call.keeps:
            if self.y is not None:
                self.past = self.y
            elif self.anchored:
                self.past = None if self.turned else x
            self.y = None
        elif self.y is None:
            self.y = x
        return rows[0].to(dtype)

    def x0(self, i: int, sample, output, noise, dtype: torch.dtype) -> torch.Tensor:
        """Returns the x0 estimate [B, ...] of stage i, clamped or changed as the step's was."""
        if self.turned and _is_channels_last(output):
            sample, output = sample.permute(_LAST).contiguous(), output.permute(_LAST)
            return self._estimate(i, sample, output, noise, dtype).permute(_FIRST)
        sample, output = sample.contiguous(), output.contiguous()
        return self._estimate(i, sample, output, noise, dtype)

    def _estimate(self, i, sample, output, noise, dtype) -> torch.Tensor:
        """Returns the x0 estimate; sample and output are contiguous, in one order of axes."""
        if _grad_enabled() and (output.requires_grad or sample.requires_grad):
            return self._x0_with_gradient(i, sample, output, noise).to(dtype)
        with _below_autograd():
            if self.recipe.estimates is not None:
                return self._shown(i, sample, output, noise, dtype)
            tensors = (self.y, None, sample, output)
            return self._finished(i, sample, self._x0(self.calls[i], tensors, dtype)).to(dtype)

    def _x0_with_gradient(self, i, sample, output, noise):
        if self.recipe.estimates is not None and noise is not None:
            weights = list(map(float, self.recipe.estimates[i]))
            return ops.combine([sample, output, noise], weights)[0]
        call = self.prepared.soft_calls()[i]
        tensors = (self.y, None, sample, output)
        (x0,) = ops.combine([tensors[k] for k in call.x0_columns], call.x0_weights)
        return self._finished(i, sample, x0)

    def _finished(self, i, sample, x0):
        """Returns the estimate as the step changes it, for the output."""
        x0 = self._changed(x0)
        if self.recipe.boundary is None:
            return x0
        return ops.combine([sample, x0.contiguous()], list(self.recipe.boundary[i]))[0]

    def _changed(self, x0):
        if self.hook is not None:
            return self.hook(x0)
        return x0.clamp(*self.limits) if self.limits else x0

    def _shown(self, i, sample, output, noise, dtype):
        x0 = torch.empty(sample.shape, dtype=dtype, device=sample.device)
        estimates: Any = self.recipe.estimates
        *weights, of_noise = map(float, estimates[i])
        if noise is not None:
            ops.combine_out([sample, output, noise], [*weights, of_noise], [x0])
        else:
            fresh = [of_noise] if of_noise else []
            ops.combine_out([sample, output], weights, [x0], None, i, fresh, _SEED, self.ids)
        return x0

    def _x0(self, call, tensors, dtype):
        sample = tensors[AT_X]
        x0 = torch.empty(sample.shape, dtype=dtype, device=sample.device)
        ops.combine_out([tensors[k] for k in call.x0_columns], call.x0_weights, [x0])
        return x0


# Axes of [B, C, H, W] as channels_last has them in memory, and back.
_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def _is_channels_last(output: torch.Tensor) -> bool:
    """Returns whether the tensor lies in memory as channels_last, and not as its shape says."""
    return (
        output.dim() == 4
        and not output.is_contiguous()
        and output.is_contiguous(memory_format=torch.channels_last)
    )


# The seed of the counter noise. A generator's own seed is part of the ids, so that a sample with a
# generator of its own is the same in any batch.
_SEED = 0


def _picker(columns: tuple[int, ...]):
    if len(columns) == 1:
        return itemgetter(slice(columns[0], columns[0] + 1))
    return itemgetter(*columns)


def _complaint(sample, output, noise, error) -> str:
    """Returns why a step was refused, in the terms of diffusers."""
    given = (("model_output", output), ("sample", sample), ("noise", noise))
    for name, tensor in given:
        if tensor is not None and not tensor.dtype.is_floating_point:
            return f"step: {name} holds {tensor.dtype}, but floating-point numbers are needed"
    for name, tensor in given:
        if tensor is None:
            continue
        if tensor.shape != sample.shape:
            return f"step: {name} is {list(tensor.shape)} but sample is {list(sample.shape)}"
        if tensor.device != sample.device:
            return f"step: {name} is on {tensor.device} but sample on {sample.device}"
    said = "; ".join(
        f"{name} is {list(t.shape)} of {t.dtype} on {t.device}"
        for name, t in given
        if t is not None
    )
    return f"step: no step can be made: {said}"


def _new(sample) -> torch.Tensor:
    """Returns a tensor for an entry: float32, also where the network has a half type."""
    return torch.empty_like(sample, dtype=_wide(sample.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ids_of(generator, batch: int, device) -> torch.Tensor:
    """Returns the ids [B] int64 of the package's noise for a generator, a list of them or None.

    Sample b of a batch drawn with one generator has the id mix(seed) + b, one drawn with its own
    generator the id mix(its seed): the same as alone.
    """
    if isinstance(generator, (list, tuple)):
        if len(generator) != batch:
            raise ValueError(f"step: {len(generator)} generators but {batch} samples")
        ids = [
            torch.full((1,), _mix(each.initial_seed()), dtype=torch.int64, device=device)
            for each in generator
        ]
        return torch.cat(ids) if ids else torch.empty(0, dtype=torch.int64, device=device)
    ids = torch.arange(batch, dtype=torch.int64, device=device)
    if generator is None:  # from torch's own generator, once a run
        return ids + torch.randint(-(1 << 62), 1 << 62, (1,), device=device)
    return ids + _mix(generator.initial_seed())


def _mix(seed: int) -> int:
    """Returns the seed scrambled (splitmix64), far from overflow; near seeds end far apart."""
    z = (seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return ((z ^ (z >> 31)) >> 2) - (1 << 61)
