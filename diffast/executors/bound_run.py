"""A run bound to tensors: the buffers of a program's names and the calls on them.

`BoundRun` knows what is called on which tensors. The sequential executor goes through its stages
with weights as numbers of the host; a replayable run (replay.py) issues the same calls with all
numbers in tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from diffast import ops
from diffast.executors import context
from diffast.executors.device import on_host
from diffast.executors.guided import Guides
from diffast.executors.initial import entries_of, origin_of, put_start
from diffast.executors.reduced import limits_of, reductions_of
from diffast.executors.results import FINE, Info, Progress, what_failed
from diffast.executors.told_times import times_of
from diffast.lowering.evaluations import branch_names, output_names
from diffast.lowering.program import (
    NOISE,
    X0,
    Call,
    Constraints,
    Program,
    estimate_name,
    lower,
)
from diffast.lowering.slots import slot_name
from diffast.model.denoiser import Denoiser, time_dtype
from diffast.model.input_watch import InputWritten, watches_of
from diffast.noise.brownian import path_noise
from diffast.plans import Plan
from diffast.plans.registers import X, Y


class BoundCall(NamedTuple):
    """A `combine_out` bound to tensors; a name among the columns is filled in when it is made."""

    columns: list
    weights: list[float]
    noise: list[float]
    clamp: list[float]
    outs: list[torch.Tensor]
    draws: bool
    table: Any = None  # (weights, noise, streams) on the device: of a replayed run, and of rules
    reduced: bool = False


def constraints_of(
    denoiser: Denoiser, place: context.Place, on_x0: Any, given_noise: bool, preview: bool = False
) -> Constraints:
    """Returns what a bound run asks of the lowered plan."""
    return Constraints(
        clamp=bool(place.limits),
        hook=on_x0 is not None,
        preview=preview,
        given_noise=given_noise,
        fills_input=True,
        casts=(denoiser.dtype or place.dtype) != place.dtype,
    )


class BoundRun:
    """The buffers of one run and its calls, all prepared before the first stage.

    Buffers are made outside inference mode, so that the samples are ordinary tensors.

    Args:
        denoiser: the network, its conditions and guidance.
        plan: a plan for its schedule.
        place: what the tensors are.
        on_x0: the hook, or None.
        noise: "counter", "path" or a callable.
        preview: whether an x0 estimate is made at every stage, for a callback.
        looks: whether failures are looked for after every stage, which is free on the CPU alone.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        plan: Plan,
        place: context.Place,
        on_x0: context.OnX0 | None,
        noise: str | Callable[[int], torch.Tensor],
        preview: bool = False,
        looks: bool = True,
    ):
        """Binds every name of the program."""
        self.denoiser, self.plan, self.place, self.on_x0 = denoiser, plan, place, on_x0
        self.origin = origin_of(plan, denoiser.conditions)
        self.shape, self.dtype, self.device, self.ids, self.seed, self.limits = place
        self.batch = self.shape[0]
        self.draw = noise if callable(noise) else None
        if noise == "path":
            self.draw = path_noise(plan, self.shape, self.seed, self.ids, self.dtype)
        self.constraints = constraints_of(denoiser, place, on_x0, self.draw is not None, preview)
        self.program: Program = lower(plan, denoiser, self.constraints)
        self.buffers: list[torch.Tensor] = []  # all tensors of the state's size
        self.format, self.order = self._layout()
        self._make_network_input(denoiser.dtype or self.dtype)
        self.stages = self.program.stages
        self.guides = Guides(denoiser, self.stages, place) if self.program.gradients else None
        self.reductions = reductions_of(self.stages, place)
        inputs = self.program.inputs
        self.x0s: list[torch.Tensor | None] = [None] * inputs
        # A call of its own makes the estimate for a hook, or for a term that reads it.
        alone = any(len(stage.calls) > 1 for stage in self.stages)
        if preview or alone or (self.limits and inputs > 1):
            self.x0s = [self._empty() for _ in range(inputs)]
        self.estimates = {estimate_name(e): x0 for e, x0 in enumerate(self.x0s)}
        self.x0 = None if self.x0s[0] is None else self._seen(self.x0s[0])
        self.status = torch.full((self.batch,), FINE, dtype=torch.int64, device=self.device)
        # Looked at after every stage on the CPU, where that is free; on a device it would wait for
        # the queue.
        looks = looks and on_host(self.device)
        self.seen = self.status.numpy() if looks else None
        self.known = self.status.numpy().tobytes() if self.seen is not None else b""
        self.reasons: dict[int, str] = {}  # what failed, by row
        self.lost = False  # whether every sample has failed
        self._prepare_network()
        self._bind()
        self.watches = watches_of(self.inputs)

    def _layout(self) -> tuple[torch.memory_format, tuple[int, ...] | None]:
        """Returns the format of the network's input and output, and a state's axes in memory.

        Ops read rows of neighbouring elements, so buffers are contiguous tensors whose axes are in
        the order of the format: [B, H, W, C]. The network and hooks see them as [B, C, H, W]. None:
        the order is that of the shape. Fresh noise is numbered in the order of the shape, and so
        are states of plans that draw some.
        """
        wanted, dims = self.denoiser.memory_format, len(self.shape)
        if wanted == torch.contiguous_format:
            return wanted, None
        calls = [call for stage in self.program.stages for call in stage.calls]
        if any(call.noise or NOISE in call.columns for call in calls):
            return torch.contiguous_format, None
        return wanted, (0, *range(2, dims), 1)

    def _empty(self, rows: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Returns a new tensor like the state, or with other rows or another dtype."""
        self.buffers.append(self._held(self.place.empty(rows, dtype), made=True))
        return self.buffers[-1]

    def _held(self, tensor: torch.Tensor, made: bool = False) -> torch.Tensor:
        """Returns a tensor [B, ...] with its axes in the order of memory, contiguous.

        `made`: the tensor is new and holds nothing, so only its memory is taken.
        """
        if self.order is None:
            return tensor if made else tensor.contiguous()
        if made:
            return tensor.view([tensor.shape[axis] for axis in self.order])
        return tensor.contiguous(memory_format=self.format).permute(self.order)

    def _seen(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a view of a buffer as the network and the caller see it."""
        return tensor if self.order is None else tensor.movedim(-1, 1)

    def _make_network_input(self, dtype: torch.dtype) -> None:
        """Makes the tensor that the network reads where that is not the state itself."""
        program, self.network_input, self.front = self.program, None, None
        if program.batched:
            parts = max(len(branch_names(b)) for b in program.branches) * program.inputs
            self.network_input = self._empty(parts * self.batch, dtype)
        if program.shared:
            self.front = self.network_input[: self.batch]

    def _prepare_network(self) -> None:
        # Of each stage: its calls, (branches, inputs, network), and the rows of all of them.
        made: dict[tuple[str, int], tuple[list, int]] = {}
        stages = [(stage.branches, len(stage.times)) for stage in self.stages]
        for branches, inputs in dict.fromkeys(stages):
            rows = len(branch_names(branches)) * inputs * self.batch
            made[branches, inputs] = self._kinds(branches, inputs), rows
        self.kinds = [made[kind][0] for kind in stages]
        self.row_counts = [made[kind][1] for kind in stages]
        kinds = {(branches, inputs) for calls in self.kinds for branches, inputs, _ in calls}
        if self.guides is not None and self.guides.calls():
            kinds |= {(branches, 1) for _, branches in self._groups(self._own_branches())}
        self.arguments = {kind: self._arguments(*kind) for kind in sorted(kinds)}
        about = self.row_counts, time_dtype(self.dtype), self.device
        self.times = times_of(self.plan, self.stages, *about)
        if self.on_x0 is not None:
            for i, stage in enumerate(self.stages):
                if not stage.times and stage.gradient_time is not None:
                    self.times[i] = self._told(stage.gradient_time)

    @torch.inference_mode(False)
    def _told(self, time: float) -> torch.Tensor:
        """Returns a model time for each sample, for hooks of stages without a network call."""
        return torch.full((self.batch,), time, dtype=time_dtype(self.dtype), device=self.device)

    def _own_branches(self) -> str:
        """Returns the branches of network calls that are made for guidance terms alone."""
        return max(self.program.branches, key=lambda b: len(branch_names(b)))

    def _kinds(self, branches: str, inputs: int) -> list[tuple[str, int, Any]]:
        """Returns (branches, inputs, network) of the network calls of a stage on so many inputs.

        One call, unless branches have networks of their own.
        """
        groups = self.denoiser.groups(branches) if inputs else []
        if len(groups) == 1:
            return [(branches, inputs, groups[0][0])]
        return [(own, 1, network) for network, own in groups] * inputs

    def _arguments(self, branches: str, inputs: int) -> dict[str, Any]:
        return self.arguments_of(self.denoiser, branches, inputs)

    def arguments_of(self, denoiser: Denoiser, branches: str, inputs: int) -> dict[str, Any]:
        """Returns a denoiser's conditions for one kind of network call."""
        found = denoiser.arguments(self.batch, self.device, branches)
        return found if inputs == 1 else context.on_rows(found, lambda v: torch.cat([v] * inputs))

    def _bind(self) -> None:
        """Gives every name of the program its tensor, stage by stage.

        While x and y are one tensor it is `home`. When they part, one of them moves. The network
        reads x from its input tensor: where `home` is the front of that one, y moves, else x does.
        """
        home = self._empty() if self.front is None else self.front
        spare: dict[str, torch.Tensor] = {}  # tensors beside `home`, made when first needed
        at = {X: home, Y: home}
        names = [slot_name(slot) for slot in self.program.given if slot >= 0]
        at = self.first = at | {name: self._spare(spare, name) for name in names}
        self.state = home
        self.inputs, self.states, self.points, self.calls = [], [], [], []
        for i, stage in enumerate(self.stages):
            last = i + 1 == len(self.stages)
            whole = self.network_input
            read = at[X] if whole is None else whole[: self.row_counts[i]]
            self.inputs.append(read if self.order is None else self._seen(read))
            self.states.append(at[X] if self.order is None else self._seen(at[X]))
            to = at | {X: home, Y: home}
            if not stage.joined:
                to[X if self.front is None else Y] = self._spare(spare, "away")
            elif last and self.front is not None:
                to[X] = to[Y] = self._empty()
            for name in (name for call in stage.calls for name in call.targets):
                if name not in to and not name.startswith((X0, "copy")):
                    to[name] = self._spare(spare, name)
            self.points.append(to[X] if self.order is None else self._seen(to[X]))
            ends = to
            if whole is not None:
                ends = to | {f"copy{k}": copy for k, copy in enumerate(self._copies(i + 1))}
            self.calls.append([self._bound(call, at, ends, i) for call in stage.calls])
            at = to

    def _spare(self, spare: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        if name not in spare:
            spare[name] = self._empty()
        return spare[name]

    def _bound(self, call: Call, at: dict, to: dict, i: int) -> BoundCall:
        outs = [to[name] if name in to else self.estimates[name] for name in call.targets]
        bound = BoundCall(
            [at.get(name, name) for name in call.columns],
            call.weights,
            call.noise,
            self.limits if call.clamped else [],
            [out for out in outs if out is not None],
            NOISE in call.columns,
            reduced=call.reduced,
        )
        if call.reduced:
            at_rule = self.stages[i].reduction.at
            bound = bound._replace(
                clamp=limits_of(self.limits, at_rule) if call.clamped else [],
                table=self.reductions.table(i, call),
            )
            columns = [at.get(name, name) for name in self.stages[i].reduction.columns]
            self.reductions.bind(i, call, bound.columns, columns)
        return bound

    def _copies(self, i: int) -> list[torch.Tensor]:
        """Returns where else x has to be for network call i."""
        if self.network_input is None or i == len(self.stages) or not self.stages[i].times:
            return []
        stage, whole = self.stages[i], self.network_input
        count = len(branch_names(stage.branches)) * len(stage.times)
        parts = [whole[k * self.batch : (k + 1) * self.batch] for k in range(count)]
        return parts if self.front is None else parts[1:]

    def start(self, x: torch.Tensor | None) -> None:
        """Puts the initial state where the network reads it."""
        state = self.state if self.order is None else self.place.empty()
        put_start("sample", state, x, self.origin, self.place)
        self._fill_entries(entries_of("sample", state, self.origin))
        given = None if self.draw is None else lambda: self._drawn(-1)
        context.put_opening(state, self.program.opening, self.place, given)
        if self.order is not None:  # its noise is numbered in the order of the shape
            self.state.copy_(state.permute(self.order))
        for copy in self._copies(0):
            copy.copy_(self.state)

    def _fill_entries(self, entries: list[torch.Tensor]) -> None:
        for slot, entry in zip(self.program.given, entries, strict=True):
            if slot >= 0:
                self.first[slot_name(slot)].copy_(self._held(entry))

    def _drawn(self, i: int) -> torch.Tensor:
        z = self.draw(i)
        complaint = context.unlike("what noise returned", z, self._seen(self.state))
        if complaint is not None:
            raise ValueError(f"sample: stage {i}: {complaint}")
        return z.contiguous()

    def stage(self, i: int) -> None:
        """Runs one stage: the network and the gradients, then the prepared calls."""
        pulled = None
        if self.guides is not None and self.guides.through_network(i):
            pulled = self._pulled(i)
        filled = self._network(i, pulled) if self.stages[i].times else {}
        if self.stages[i].low is not None:
            filled["low"] = self._low(i, filled)
        *estimates, main = self.calls[i]
        for number, call in enumerate(estimates):
            self._make(i, call, filled)
            filled[estimate_name(number)] = self._hooked(i, number)
        if self.stages[i].gradients:
            filled |= self._gradients(i, filled, pulled)
        if main.draws:
            filled[NOISE] = self._drawn(i)
        self._make(i, main, filled)
        if self.seen is not None and self.seen.tobytes() != self.known:
            self._note_failures(i, filled)

    def _low(self, i: int, filled: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the low-passed difference of the two branches."""
        cond, uncond = (self._seen(filled[name]) for name in ("cond", "uncond"))
        with torch.inference_mode(False), torch.no_grad():
            return self._held(self.stages[i].low.low_pass(cond - uncond))

    def _network(self, i: int, pulled: Any) -> dict[str, torch.Tensor]:
        """Returns the outputs of stage i's network call by name."""
        branches, times = self.stages[i].branches, self.stages[i].times
        if pulled is not None:
            return self._outputs(pulled.outputs, branches, 1)
        x, calls = self.inputs[i], self.kinds[i]
        if len(calls) == 1:
            return self._outputs(self._call(i, x, self.times[i], calls[0]), branches, len(times))
        filled, start, outputs = {}, 0, []
        for number, call in enumerate(calls):  # one for each network and input
            rows = slice(start, start + len(branch_names(call[0])) * self.batch)
            outputs.append(output := self._call(i, x[rows], self.times[i][rows], call))
            filled |= self._outputs(output, call[0], 1, number * len(times) // len(calls))
            start = rows.stop
        context.check_apart(f"sample: stage {i}", outputs)
        return filled

    def _call(self, i: int, x: torch.Tensor, times: torch.Tensor, call: tuple) -> torch.Tensor:
        """Returns the raw output of one network call at stage i."""
        branches, inputs, network = call
        arguments, watch = self.arguments[branches, inputs], self.watches[i]
        try:
            return self.denoiser.call(x, times, arguments, self.format, network, watch)
        except InputWritten:
            raise InputWritten("sample", f" at stage {i}") from None

    def _pulled(self, i: int) -> Any:
        """Returns the network call of stage i through which vectors are pulled back to x."""
        branches = self.stages[i].branches or self._own_branches()
        calls = [(net, b, self.arguments[b, 1]) for net, b in self._groups(branches)]
        return self.guides.pulled(i, self.states[i], calls, branches, self.format)

    def _groups(self, branches: str) -> list[tuple[Any, str]]:
        """Returns (network, branches) of the calls on one input: one a network."""
        groups = self.denoiser.groups(branches)
        return groups if len(groups) > 1 else [(groups[0][0], branches)]

    def _gradients(self, i: int, filled: dict, pulled: Any) -> dict[str, torch.Tensor]:
        x0 = self.x0s[0]
        seen = self._seen(x0) if x0 is not None and X0 in filled else None
        made = self.guides.gradients(i, self.states[i], seen, pulled, self.format)
        return {name: self._held(g) for name, g in made.items()}

    def _outputs(
        self, output: torch.Tensor, branches: str, inputs: int, first: int = 0
    ) -> dict[str, torch.Tensor]:
        """Returns the network's outputs by name; those for one input stand together."""
        if self.order is not None:
            output = output.permute(self.order)
        names = branch_names(branches)
        if inputs == 1 and len(names) == 1 and not first:
            return {names[0]: output}
        parts = iter(output.split(self.batch))
        filled = {}
        for e in range(first, first + inputs):
            named = dict(zip(branch_names("cond+uncond+extra"), output_names(e), strict=True))
            filled |= {named[name]: next(parts) for name in names}
        return filled

    def _make(self, i: int, call: BoundCall, filled: dict[str, torch.Tensor]) -> None:
        xs = [filled[x] if isinstance(x, str) else x for x in call.columns]
        if call.reduced:
            self._make_reduced(i, call, xs, filled)
            return
        # What a stage does not need is left out: every argument costs its way in.
        rest = (call.noise, self.seed, self.ids, call.clamp)
        rest = rest if call.noise or call.clamp else ()
        try:
            ops.combine_out(xs, call.weights, call.outs, self.status, i, *rest)
        except (RuntimeError, ValueError) as error:
            self._blame(error, i, filled)
            raise

    def _make_reduced(self, i: int, call: BoundCall, xs: list, filled: dict) -> None:
        """Makes a call whose row 0 has weights of its own for each sample."""
        try:
            self.reductions.write(i, xs, filled, call.table[0])
            ops.combine_table_out(xs, *call.table, call.clamp, call.outs, self.status)
        except (RuntimeError, ValueError) as error:
            self._blame(error, i, filled)
            raise

    def _blame(self, error: Exception, i: int, filled: dict[str, torch.Tensor]) -> None:
        """Raises an op's error in the caller's words, if the network's tensors are why."""
        outputs = [filled[name] for name in output_names(0) if name in filled]
        named = {"the network's output": outputs[0]} if outputs else {}
        context.blame(error, f"sample: stage {i}", self.state, named)

    def _hooked(self, i: int, number: int) -> torch.Tensor:
        """Returns the x0 estimate for one input, after the hook if there is one."""
        buffer = self.x0s[number]
        if self.on_x0 is None:
            return buffer
        x0 = self._seen(buffer)
        rows = self.row_counts[i] // max(len(self.stages[i].times), 1)
        times = self.times[i][number * rows :][: self.batch]
        changed = context.hooked("sample", self.on_x0, x0, Info(i, times, self.ids))
        if changed is not x0:
            x0.copy_(changed)
        return buffer

    def _note_failures(self, i: int, filled: dict[str, torch.Tensor]) -> None:
        """Keeps why samples failed at stage i."""
        own = [NOISE, *(estimate_name(e) for e in range(len(self.x0s)))]
        outputs = [v for name, v in filled.items() if name[0] != "g" and name not in own]
        gradients = {name: v for name, v in filled.items() if name[0] == "g"}
        for b in (self.status == i).nonzero()[:, 0].tolist():
            bad = [n for n, g in gradients.items() if not bool(g[b].isfinite().all())]
            fine = all(bool(output[b].isfinite().all()) for output in outputs)
            if bad and fine:
                self.reasons[b] = f"the gradient of guidance term {bad[0][1:]}"
            else:
                self.reasons[b] = what_failed([output[b] for output in outputs])
        self.known = self.seen.tobytes()
        self.lost = bool((self.status != FINE).all())

    def made(self, calls: int, completed: bool) -> torch.Tensor:
        """Returns the samples; after an interruption the last x0 estimate."""
        return self.points[calls - 1 if self.lost else -1] if completed else self.x0

    def evaluations(self, stages: int) -> int:
        """Returns the network calls of a sample in so many stages."""
        count = sum(len(stage.times) for stage in self.stages[:stages])
        return count + (self.guides.calls(stages) if self.guides is not None else 0)

    def rows(self, stages: int) -> int:
        """Returns the network rows of a sample in so many stages: its calls on all branches."""
        count = sum(self.row_counts[:stages]) // max(self.batch, 1)
        calls = self.guides.calls(stages) if self.guides is not None else 0
        return count + (calls * len(branch_names(self._own_branches())) if calls else 0)

    def progress(self, i: int) -> Progress:
        """Returns what the callback sees after stage i."""
        return Progress(i, len(self.stages), self.stages[i].time, self.x0, self.points[i])

    def what_failed(self, b: int, i: int) -> str:
        """Returns why sample b failed, at stage i."""
        what = self.reasons.get(b, "the network's output or the state made of it")
        return f"{what} is not finite at stage {i} (t = {self.stages[i].time:g})"
