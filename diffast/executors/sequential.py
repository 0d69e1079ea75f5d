"""The sequential executor: one network call and one fused `combine` a stage, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast import ops
from diffast.lowering.program import (
    COND,
    NOISE,
    UNCOND,
    X0,
    Call,
    Constraints,
    Stage,
    branches_of,
    lower,
)
from diffast.model.denoiser import Denoiser, time_dtype
from diffast.noise.brownian import path_noise
from diffast.plan import Plan
from diffast.plan.registers import X, Y


@dataclass(frozen=True)
class Samples:
    """What a run returns.

    Attributes:
        x: the samples [B, ...], of the state's dtype. After an interruption: the last x0 estimate.
        nfe: network calls per sample, [B] int64. A guided call of 2B rows counts once.
        completed: False if the callback stopped the run.
    """

    x: torch.Tensor
    nfe: torch.Tensor
    completed: bool = True


class Progress(NamedTuple):
    """What a callback sees after each stage. The tensors are live buffers: clone what you keep.

    Attributes:
        stage: number of this network call, from 0.
        stages: how many there are.
        time: model time of the call.
        x0: the clean estimate [B, ...] after any clamp or hook.
        x: the next model input [B, ...]; after the last stage the samples.
    """

    stage: int
    stages: int
    time: float
    x0: torch.Tensor
    x: torch.Tensor


def sample(
    denoiser: Denoiser,
    plan: Plan,
    shape: Sequence[int] | None = None,
    *,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    noise: torch.Tensor | str | None = None,
    device: torch.device | str | None = None,
    clamp: tuple[float, float] | None = None,
    on_x0: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    draw: Callable[[int], torch.Tensor] | None = None,
    path: bool = False,
    callback: Callable[[Progress], bool | None] | None = None,
    progress: bool = False,
) -> Samples:
    """Returns samples of the denoiser's distribution by running the plan.

    Sample b's noise depends on (seed, ids[b]) and the stage alone: it is the same picture in a
    batch of 1 or 1,000, in any order, on any device. The state is float32, float64 if `noise` is.

    Args:
        denoiser: the network and what it predicts.
        plan: a solver's tables, for the denoiser's schedule.
        shape: [B, ...] of the state; not needed with `noise`.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        noise: the initial state itself, alpha x0 + sigma eps at the plan's first time, in place of
            the package's noise (scaled by sigma). Not written to. Or "path", for `path=True`.
        device: where to run; default: `noise`'s, else the network's.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, stage)` with the estimate [B, ...] (clamped, if so wished);
            what it returns is used instead. Costs one more kernel a stage.
        draw: called as `draw(stage)` at every stage that uses fresh noise (-1: the plan's opening);
            the [B, ...] it returns is used in place of the package's own normals. For noise that
            has to equal another program's; slower, and whatever its batches make of it. Not for
            plans that draw two normals a stage.
        path: takes fresh noise from one Brownian path a sample, in the log-SNR clock: pictures
            change little with the number of steps. Up to 12 normals for one.
        callback: called after every stage with a `Progress`; a true answer stops the run.
        progress: whether to show a progress bar on stderr.

    Raises:
        ValueError: for arguments that disagree; the message names the two facts. With `path` also
            for plans that put noise back (churn, restart), with `path` and `draw` for those that
            draw two normals a stage (Langevin correctors).
        FloatingPointError: if the network's output or a state is not finite; the message names the
            stage and the samples.
    """
    preview = callback is not None
    if isinstance(noise, str):
        if noise != "path":
            raise ValueError(f"sample: noise is {noise!r} but must be a tensor or 'path'")
        noise, path = None, True
    if path and draw is not None:
        raise ValueError("sample: draw is given and path is true, but noise comes from one of them")
    run = _Run(denoiser, plan, shape, noise, device, seed, ids, clamp, on_x0, draw, path, preview)
    calls = 0
    with torch.inference_mode(), progress_bar(plan.nfe, plan.name, "call", progress) as bar:
        run.start(noise)
        while calls < plan.nfe and run.batch:
            run.stage(calls)
            calls += 1
            bar.update()
            if callback is not None and callback(run.progress(calls - 1)):
                break
        run.check_end()
    completed = calls == plan.nfe or not run.batch
    nfe = torch.full((run.batch,), calls, dtype=torch.int64, device=run.device)
    return Samples(run.points[-1] if completed else run.x0, nfe, completed)


class _NoBar:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, count=1):
        return None


def progress_bar(total: int, name: str, unit: str, wanted: bool):
    """Returns tqdm's bar on stderr, or something with its `update` that shows nothing."""
    if not wanted:
        return _NoBar()
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit=unit)


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

    def __init__(
        self, denoiser, plan, shape, noise, device, seed, ids, clamp, on_x0, draw, path, preview
    ):
        if plan.schedule != denoiser.schedule:
            raise ValueError(
                f"sample: the plan is for {plan.schedule} but the denoiser for {denoiser.schedule}"
            )
        self.denoiser, self.plan, self.on_x0, self.draw = denoiser, plan, on_x0, draw
        self.shape, self.device, self.dtype = state_like(denoiser, shape, noise, device)
        self.batch = self.shape[0]
        self.seed = ops.fold_seed(seed)
        self.ids = ids_of(ids, self.batch, self.device)
        if path:
            self.draw = path_noise(plan, self.shape, self.seed, self.ids, self.dtype)
        self.limits = limits_of(clamp)
        guided = "both" in branches_of(plan, denoiser)
        self._make_network_input(guided)
        self.program = lower(plan, denoiser, self._constraints(guided, preview))
        self.stages = self.program.stages
        self.x0 = self._new() if preview or on_x0 is not None else None
        self.status = torch.full((self.batch,), -1, dtype=torch.int64, device=self.device)
        # Looked at after every stage on the CPU, where that is free; on a device it would wait for
        # the queue, so there once, at the end.
        self.seen = self.status.numpy() if self.device.type == "cpu" else None
        self.unseen = b"\xff" * (8 * self.batch)  # the status as bytes while nothing is wrong
        self._prepare_network()
        self._bind()

    def _new(self, batch: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        rows = self.batch if batch is None else batch
        return torch.empty((rows, *self.shape[1:]), dtype=dtype or self.dtype, device=self.device)

    def _make_network_input(self, guided: bool) -> None:
        """Makes the tensor that the network reads where that is not the state itself."""
        dtype = self.denoiser.dtype or self.dtype
        self.network_input = None
        if guided or dtype != self.dtype:
            self.network_input = self._new((1 + guided) * self.batch, dtype)
        # Of the state's dtype, its front half can be x and save a copy.
        shared = self.network_input is not None and dtype == self.dtype
        self.front = self.network_input[: self.batch] if shared else None

    def _constraints(self, guided: bool, preview: bool) -> Constraints:
        """Returns what this run asks of the lowered plan."""
        apart, shared = self.network_input is not None, self.front is not None
        copies = {"cond": 1 - shared, "uncond": 1 - shared, "both": 2 - shared} if apart else {}
        return Constraints(
            clamp=bool(self.limits),
            hook=self.on_x0 is not None,
            preview=preview,
            given_noise=self.draw is not None,
            copies=tuple(copies.items()),
            x_stays=shared,
        )

    def _prepare_network(self) -> None:
        self.arguments = {
            kind: self.denoiser.arguments(self.batch, self.device, kind)
            for kind in self.program.branches
        }
        times = torch.tensor(
            [stage.time for stage in self.stages],
            dtype=time_dtype(self.dtype),
            device=self.device,
        )
        self.times = [times[i].expand(self._rows(s)) for i, s in enumerate(self.stages)]

    def _rows(self, stage: Stage) -> int:
        return (2 if stage.branches == "both" else 1) * self.batch

    def _bind(self) -> None:
        """Gives every name of the program its tensor, stage by stage.

        While x and y are one tensor it is `home`. When they part, one of them moves. The network
        reads x from its input tensor: where `home` is the front of that one, y moves, else x does.
        """
        home = self._new() if self.front is None else self.front
        spare: dict[str, torch.Tensor] = {}  # tensors beside `home`, made when first needed
        at = {X: home, Y: home}
        self.state = home
        self.inputs, self.points, self.calls = [], [], []
        for i, stage in enumerate(self.stages):
            last = i + 1 == len(self.stages)
            self.inputs.append(self._network_reads(stage, at[X]))
            to = dict(at)
            if stage.joined:
                to[X] = to[Y] = self._new() if last and self.front is not None else home
            else:
                moves = X if self.front is None else Y
                to[X] = to[Y] = home
                to[moves] = self._spare(spare, "away")
            for call in stage.calls:
                for name in call.targets:
                    if name not in to and name != X0 and not name.startswith("copy"):
                        to[name] = self._spare(spare, name)
            to |= {f"copy{k}": copy for k, copy in enumerate(self._copies(i + 1))}
            self.points.append(to[X])
            self.calls.append([self._bound(call, at, to) for call in stage.calls])
            at = {name: tensor for name, tensor in to.items() if not name.startswith("copy")}

    def _spare(self, spare: dict, name: str) -> torch.Tensor:
        if name not in spare:
            spare[name] = self._new()
        return spare[name]

    def _bound(self, call: Call, at: dict, to: dict) -> _Call:
        outs = [self.x0 if name == X0 else to[name] for name in call.targets]
        return _Call(
            [at.get(name, name) for name in call.columns],
            call.weights,
            call.noise,
            self.limits if call.clamped else [],
            [out for out in outs if out is not None],
            NOISE in call.columns,
        )

    def _network_reads(self, stage: Stage, x: torch.Tensor) -> torch.Tensor:
        return x if self.network_input is None else self.network_input[: self._rows(stage)]

    def _copies(self, i: int) -> list[torch.Tensor]:
        """Returns where else x has to be for network call i."""
        if self.network_input is None or i == len(self.stages):
            return []
        parts = self.network_input[: self._rows(self.stages[i])].split(self.batch)
        return list(parts if self.front is None else parts[1:])

    def start(self, noise: torch.Tensor | None) -> None:
        """Puts the initial state where the network reads it."""
        if noise is None:
            scale = float(self.plan.schedule.sigma(self.plan.start))
            ops.normal_out(self.ids, self.seed, ops.INITIAL_NOISE, scale, self.state)
        else:
            self.state.copy_(noise)
        self._open()
        for copy in self._copies(0):
            copy.copy_(self.state)

    def _open(self) -> None:
        """Moves the initial state to where the first network call stands."""
        if self.program.opening is None:
            return
        keep, fresh = self.program.opening
        if fresh and self.draw is not None:
            xs = [self.state, self._drawn(-1)]
            ops.combine_out(xs, [keep, fresh], [self.state])
        else:
            word, noise = ops.OPENING_NOISE, [fresh] if fresh else []
            ops.combine_out(
                [self.state], [keep], [self.state], None, word, noise, self.seed, self.ids
            )

    def _drawn(self, i: int) -> torch.Tensor:
        z = self.draw(i)
        if not isinstance(z, torch.Tensor) or z.shape != self.state.shape:
            got = list(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
            raise ValueError(
                f"sample: draw returned {got} at stage {i}, but the state is "
                f"{list(self.state.shape)}"
            )
        return z.contiguous()

    def stage(self, i: int) -> None:
        """Runs one stage: the network, then the prepared calls."""
        x = self.inputs[i]
        halves = self.stages[i].branches
        before = None if x.is_inference() else x._version
        output = self.denoiser.call(x, self.times[i], self.arguments[halves])
        if before is not None and x._version != before:
            raise ValueError(
                f"sample: the network wrote into its input at stage {i}, but the solver still "
                "needs it: give it a copy"
            )
        filled = {COND: output, UNCOND: output, X0: self.x0}
        if halves == "both":
            filled |= {COND: output[: self.batch], UNCOND: output[self.batch :]}
        for number, call in enumerate(self.calls[i]):
            if number == 1:
                filled[X0] = self._hooked(i)
            if call.draws and NOISE not in filled:
                filled[NOISE] = self._drawn(i)
            xs = [filled[x] if isinstance(x, str) else x for x in call.columns]
            # What a stage does not need is left out: every argument costs its way in.
            rest = (call.noise, self.seed, self.ids, call.clamp)
            rest = rest if call.noise or call.clamp else ()
            ops.combine_out(xs, call.weights, call.outs, self.status, i, *rest)
        if self.seen is not None and self.seen.tobytes() != self.unseen:
            raise FloatingPointError(self._complaint(i, output))

    def _hooked(self, i: int) -> torch.Tensor:
        x0 = self.on_x0(self.x0, i)
        if not isinstance(x0, torch.Tensor) or x0.shape != self.x0.shape:
            got = list(x0.shape) if isinstance(x0, torch.Tensor) else type(x0).__name__
            raise ValueError(
                f"sample: on_x0 was given {list(self.x0.shape)} but returned {got} at stage {i}"
            )
        if x0 is not self.x0:
            self.x0.copy_(x0)
        return self.x0

    def progress(self, i: int) -> Progress:
        """Returns what the callback sees after stage i."""
        return Progress(i, len(self.stages), self.stages[i].time, self.x0, self.points[i])

    def check_end(self) -> None:
        """Raises if a device run met a value that is not finite; the one wait of the run."""
        if self.seen is None and bool((self.status >= 0).any()):
            raise FloatingPointError(self._complaint(None, None))

    def _complaint(self, i: int | None, output: torch.Tensor | None) -> str:
        status = self.status.tolist()
        i = min(stage for stage in status if stage >= 0) if i is None else i
        bad = [b for b, stage in enumerate(status) if stage == i]
        what = "the network's output or the state made of it"
        if output is not None:
            rows = output.reshape(-1, self.batch, *self.shape[1:]).transpose(0, 1)
            fine = bool(rows[bad].isfinite().all())
            what = "the state made of a finite network output" if fine else "the network's output"
        where = ", ".join(f"{b} (id {int(self.ids[b])})" for b in bad[:8])
        more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
        return (
            f"sample: {what} is not finite at stage {i} (t = {self.stages[i].time:g}) for sample "
            f"{where}{more}"
        )


def state_like(denoiser, shape, noise, device) -> tuple[tuple[int, ...], torch.device, Any]:
    """Returns shape, device and dtype of the state, from what a run was given.

    Raises:
        ValueError: what disagrees.
    """
    if noise is None:
        if shape is None:
            raise ValueError("sample: neither shape nor noise is given, but one is needed")
        shape = tuple(int(n) for n in shape)
        if len(shape) < 1 or min(shape) < 0:
            raise ValueError(f"sample: shape is {list(shape)} but [B, ...] is needed")
        place = denoiser.device() if device is None else torch.device(device)
        return shape, place, torch.float32
    if noise.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"sample: noise is {noise.dtype} but the state is float32 or float64")
    if noise.dim() < 1:
        raise ValueError("sample: noise has no batch dimension, but [B, ...] is needed")
    if shape is not None and tuple(shape) != tuple(noise.shape):
        raise ValueError(f"sample: shape is {list(shape)} but noise has {list(noise.shape)}")
    if not bool(noise.isfinite().all()):
        bad = int((~noise.isfinite()).nonzero()[0, 0])
        raise ValueError(f"sample: noise must be finite but sample {bad} is not")
    place = noise.device if device is None else torch.device(device)
    return tuple(noise.shape), place, noise.dtype


def ids_of(ids, batch: int, device: torch.device) -> torch.Tensor:
    """Returns the ids as int64 [B] on the device.

    Raises:
        ValueError: what disagrees.
    """
    if ids is None:
        return torch.arange(batch, dtype=torch.int64, device=device)
    try:
        given = torch.as_tensor(ids)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"sample: ids must be integers of 64 bits, signed: {error}") from None
    whole = not given.dtype.is_floating_point and not given.dtype.is_complex
    if given.numel() and not (whole and given.dtype != torch.bool):
        raise ValueError(f"sample: ids are {given.dtype} but integers are needed")
    if tuple(given.shape) != (batch,):
        raise ValueError(f"sample: ids are {list(given.shape)} but there are {batch} samples")
    return given.to(device=device, dtype=torch.int64).contiguous()


def limits_of(clamp) -> list[float]:
    """Returns the clamp as the ops take it.

    Raises:
        ValueError: what disagrees.
    """
    if clamp is None:
        return []
    low, high = (float(limit) for limit in clamp)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"sample: clamp is ({low:g}, {high:g}) but must be finite and in order")
    return [low, high]
