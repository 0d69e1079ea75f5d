"""The sequential executor: one network call and one fused `combine` a stage, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from diffast import ops
from diffast.executors import context
from diffast.executors.results import FINE, Info, Progress, Samples, what_failed
from diffast.lowering.program import (
    COND,
    NOISE,
    UNCOND,
    X0,
    Call,
    Constraints,
    Program,
    Stage,
    estimate_name,
    lower,
    output_names,
)
from diffast.model.denoiser import Denoiser, time_dtype
from diffast.noise.brownian import path_noise
from diffast.plan import Plan
from diffast.plan.registers import X, Y

# Why a source of noise cannot be had here.
_SOURCES = {
    "bridge": "nothing is rejected on a fixed grid, which a bridge is for: use 'counter' or 'path'",
    "redraw": "nothing is rejected on a fixed grid: use 'counter'",
}


def sample(
    denoiser: Denoiser,
    plan: Plan,
    shape: Sequence[int] | None = None,
    *,
    x: torch.Tensor | None = None,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    noise: str | Callable[[int], torch.Tensor] = "counter",
    device: torch.device | str | None = None,
    clamp: context.Clamp | None = None,
    on_x0: context.OnX0 | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Samples:
    """Returns samples of the denoiser's distribution by running the plan.

    Sample b's noise depends on (seed, ids[b]) and the stage alone: it is the same picture in a
    batch of 1 or 1,000, in any order, on any device. The state is float32, float64 if `x` is.

    Args:
        denoiser: the network and what it predicts.
        plan: a solver's matrices, for the denoiser's schedule.
        shape: [B, ...] of the state; not needed with `x`.
        x: the initial state, alpha x0 + sigma eps at the plan's start, [B, ...]; None: the
            package's noise, scaled by sigma. Not written to.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        noise: where fresh noise comes from. "counter": a normal for each (seed, id, stage,
            element). "path": one Brownian path a sample, in the log-SNR, so that pictures change
            little with the number of steps; up to 12 normals for one. A callable is called as
            `noise(stage)` at every stage that draws (-1: before the first call) and returns
            normals [B, ...]: for noise that has to equal another program's.
        device: where to run; default: that of `x`, else the network's.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, info)` with the estimate [B, ...] (after the clamp, if any) and
            an `Info`; what it returns is used instead. Costs one more kernel a stage.
        callback: called after every stage with a `Progress`; a true answer stops the run.
        progress: whether to show a progress bar on stderr.
        throw: whether failed samples raise; otherwise `status` says which failed.

    Raises:
        ValueError: for arguments that disagree; the message names the two facts. With "path" also
            for plans that put noise back (churn, restart), and with "path" or a callable for plans
            that draw two normals a stage (Langevin correctors).
        NonFiniteError: at the end of the run, if samples are not finite; its `result` holds the
            others.
    """
    context.check_schedules("sample", plan, denoiser)
    context.check_noise("sample", noise, _SOURCES)
    place = context.place_of("sample", denoiser, shape, x, device, seed, ids, clamp)
    run = _Run(denoiser, plan, place, on_x0, noise, callback is not None)
    calls, total = 0, len(run.stages)
    with torch.inference_mode(), context.progress_bar(total, plan.name, "call", progress) as bar:
        run.start(x)
        while calls < total and run.batch and not run.lost:
            run.stage(calls)
            calls += 1
            bar.update()
            if callback is not None and callback(run.progress(calls - 1)):
                break
    completed = calls == total or not run.batch or run.lost
    evaluations = sum(len(stage.times) for stage in run.stages[:calls])
    nfe = torch.full((run.batch,), evaluations, dtype=torch.int64, device=run.device)
    x = run.points[calls - 1 if run.lost else -1] if completed else run.x0
    result = Samples(x, nfe, run.status, completed)
    return result.or_raise("sample", run.ids, throw, run.what_failed)


class _Call(NamedTuple):
    """A `combine_out` bound to tensors; a name among the columns is filled in when it is made."""

    columns: list
    weights: list[float]
    noise: list[float]
    clamp: list[float]
    outs: list[torch.Tensor]
    draws: bool


class _Run:
    """The buffers of one run and its calls, all prepared before the first stage.

    Buffers are made outside inference mode, so that the samples are ordinary tensors.
    """

    def __init__(self, denoiser: Denoiser, plan: Plan, place: context.Place, on_x0, noise, preview):
        self.denoiser, self.plan, self.place, self.on_x0 = denoiser, plan, place, on_x0
        self.shape, self.dtype, self.device, self.ids, self.seed, self.limits = place
        self.batch = self.shape[0]
        self.draw = noise if callable(noise) else None
        if noise == "path":
            self.draw = path_noise(plan, self.shape, self.seed, self.ids, self.dtype)
        network_dtype = denoiser.dtype or self.dtype
        constraints = Constraints(
            clamp=bool(self.limits),
            hook=on_x0 is not None,
            preview=preview,
            given_noise=self.draw is not None,
            fills_input=True,
            casts=network_dtype != self.dtype,
        )
        self.program: Program = lower(plan, denoiser, constraints)
        self._make_network_input(network_dtype)
        self.gradients = self._gradients()
        self.stages = self.program.stages
        inputs = self.program.inputs
        self.x0s: list[torch.Tensor | None] = [None] * inputs
        if preview or on_x0 is not None or (self.limits and inputs > 1):
            self.x0s = [place.empty() for _ in range(inputs)]
        self.x0 = self.x0s[0]
        self.status = torch.full((self.batch,), FINE, dtype=torch.int64, device=self.device)
        # Looked at after every stage on the CPU, where that is free; on a device it would wait for
        # the queue.
        self.seen = self.status.numpy() if self.device.type == "cpu" else None
        self.known = self.status.numpy().tobytes() if self.seen is not None else b""
        self.reasons: dict[int, str] = {}  # what failed, by row
        self.lost = False  # whether every sample has failed
        self._prepare_network()
        self._bind()

    def _make_network_input(self, dtype: torch.dtype) -> None:
        """Makes the tensor that the network reads where that is not the state itself."""
        program, self.network_input, self.front = self.program, None, None
        if program.batched:
            parts = (1 + ("both" in program.branches)) * program.inputs
            self.network_input = self.place.empty(parts * self.batch, dtype)
        if program.shared:
            self.front = self.network_input[: self.batch]

    def _gradients(self) -> Callable[..., Sequence[torch.Tensor]] | None:
        if not self.program.gradients:
            return None
        found = getattr(self.denoiser, "gradients", None)
        if found is None:
            raise ValueError(
                f"sample: plan {self.plan.name} weighs {self.program.gradients} gradients of "
                "guidance terms, but the denoiser has no `gradients`"
            )
        return found

    def _prepare_network(self) -> None:
        kinds = {(stage.branches, len(stage.times)) for stage in self.stages}
        self.arguments = {kind: self._arguments(*kind) for kind in kinds}
        told = [time for stage in self.stages for time in stage.times]
        times = iter(torch.tensor(told, dtype=time_dtype(self.dtype), device=self.device))
        self.times = []
        for stage in self.stages:
            rows = self._rows(stage) // len(stage.times)
            parts = [next(times).expand(rows) for _ in stage.times]
            self.times.append(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _arguments(self, branches: str, inputs: int) -> dict[str, Any]:
        found = self.denoiser.arguments(self.batch, self.device, branches)
        return found if inputs == 1 else context.on_rows(found, lambda v: torch.cat([v] * inputs))

    def _rows(self, stage: Stage) -> int:
        return (2 if stage.branches == "both" else 1) * len(stage.times) * self.batch

    def _bind(self) -> None:
        """Gives every name of the program its tensor, stage by stage.

        While x and y are one tensor it is `home`. When they part, one of them moves. The network
        reads x from its input tensor: where `home` is the front of that one, y moves, else x does.
        """
        home = self.place.empty() if self.front is None else self.front
        spare: dict[str, torch.Tensor] = {}  # tensors beside `home`, made when first needed
        at = {X: home, Y: home}
        self.state = home
        self.inputs, self.points, self.calls = [], [], []
        for i, stage in enumerate(self.stages):
            last = i + 1 == len(self.stages)
            whole = self.network_input
            self.inputs.append(at[X] if whole is None else whole[: self._rows(stage)])
            to = at | {X: home, Y: home}
            if not stage.joined:
                to[X if self.front is None else Y] = self._spare(spare, "away")
            elif last and self.front is not None:
                to[X] = to[Y] = self.place.empty()
            for name in (name for call in stage.calls for name in call.targets):
                if name not in to and not name.startswith((X0, "copy")):
                    to[name] = self._spare(spare, name)
            self.points.append(to[X])
            copies = {f"copy{k}": copy for k, copy in enumerate(self._copies(i + 1))}
            self.calls.append([self._bound(call, at, to | copies) for call in stage.calls])
            at = to

    def _spare(self, spare: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        if name not in spare:
            spare[name] = self.place.empty()
        return spare[name]

    def _bound(self, call: Call, at: dict, to: dict) -> _Call:
        to = {estimate_name(e): x0 for e, x0 in enumerate(self.x0s)} | to
        outs = [to[name] for name in call.targets]
        return _Call(
            [at.get(name, name) for name in call.columns],
            call.weights,
            call.noise,
            self.limits if call.clamped else [],
            [out for out in outs if out is not None],
            NOISE in call.columns,
        )

    def _copies(self, i: int) -> list[torch.Tensor]:
        """Returns where else x has to be for network call i."""
        if self.network_input is None or i == len(self.stages):
            return []
        parts = self.network_input[: self._rows(self.stages[i])].split(self.batch)
        return list(parts if self.front is None else parts[1:])

    def start(self, x: torch.Tensor | None) -> None:
        """Puts the initial state where the network reads it."""
        context.put_initial(self.state, x, self.plan.initial_scale, self.place)
        given = None if self.draw is None else lambda: self._drawn(-1)
        context.put_opening(self.state, self.program.opening, self.place, given)
        for copy in self._copies(0):
            copy.copy_(self.state)

    def _drawn(self, i: int) -> torch.Tensor:
        z = self.draw(i)
        complaint = context.unlike("what noise returned", z, self.state)
        if complaint is not None:
            raise ValueError(f"sample: stage {i}: {complaint}")
        return z.contiguous()

    def stage(self, i: int) -> None:
        """Runs one stage: the network, then the prepared calls."""
        x = self.inputs[i]
        branches, times = self.stages[i].branches, self.stages[i].times
        before = x._version
        output = self.denoiser.call(x, self.times[i], self.arguments[branches, len(times)])
        if x._version != before:
            raise context.written("sample", f" at stage {i}")
        filled = self._outputs(output, branches, len(times))
        if self.gradients is not None:
            made = self.gradients(x[: self.batch], self.times[i][: self.batch])
            filled |= {f"g{k}": g.contiguous() for k, g in enumerate(made, 1)}
        *estimates, main = self.calls[i]
        for number, call in enumerate(estimates):
            self._make(i, call, filled)
            filled[estimate_name(number)] = self._hooked(i, number)
        if main.draws:
            filled[NOISE] = self._drawn(i)
        self._make(i, main, filled)
        if self.seen is not None and self.seen.tobytes() != self.known:
            self._note_failures(i, output)

    def _outputs(self, output: torch.Tensor, branches: str, inputs: int) -> dict[str, torch.Tensor]:
        """Returns the network's outputs by name; those for one input stand together."""
        if inputs == 1 and branches != "both":
            return {COND: output, UNCOND: output}
        each = 1 + (branches == "both")
        parts = output.split(self.batch)
        filled = {}
        for e in range(inputs):
            own = parts[e * each : (e + 1) * each]
            cond, uncond = output_names(e)
            filled[cond], filled[uncond] = own[0], own[-1]
        return filled

    def _make(self, i: int, call: _Call, filled: dict[str, torch.Tensor]) -> None:
        xs = [filled[x] if isinstance(x, str) else x for x in call.columns]
        # What a stage does not need is left out: every argument costs its way in.
        rest = (call.noise, self.seed, self.ids, call.clamp)
        rest = rest if call.noise or call.clamp else ()
        try:
            ops.combine_out(xs, call.weights, call.outs, self.status, i, *rest)
        except (RuntimeError, ValueError) as error:
            named = {f"gradient {name[1:]}": g for name, g in filled.items() if name[0] == "g"}
            named = {"the network's output": filled[COND]} | named
            context.blame(error, f"sample: stage {i}", self.state, named)
            raise

    def _hooked(self, i: int, number: int) -> torch.Tensor:
        """Returns the x0 estimate for one input, after the hook if there is one."""
        x0 = self.x0s[number]
        if self.on_x0 is None:
            return x0
        rows = self._rows(self.stages[i]) // len(self.stages[i].times)
        times = self.times[i][number * rows :][: self.batch]
        changed = context.hooked("sample", self.on_x0, x0, Info(i, times, self.ids))
        if changed is not x0:
            x0.copy_(changed)
        return x0

    def _note_failures(self, i: int, output: torch.Tensor) -> None:
        """Keeps why samples failed at stage i."""
        rows = output.reshape(-1, self.batch, *self.shape[1:]).transpose(0, 1)
        for b in (self.status == i).nonzero()[:, 0].tolist():
            self.reasons[b] = what_failed([rows[b]])
        self.known = self.seen.tobytes()
        self.lost = bool((self.status != FINE).all())

    def progress(self, i: int) -> Progress:
        """Returns what the callback sees after stage i."""
        return Progress(i, len(self.stages), self.stages[i].time, self.x0, self.points[i])

    def what_failed(self, b: int, i: int) -> str:
        """Returns why sample b failed, at stage i."""
        what = self.reasons.get(b, "the network's output or the state made of it")
        return f"{what} is not finite at stage {i} (t = {self.stages[i].time:g})"
