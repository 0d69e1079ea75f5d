"""The parallel executor's engine: rounds of one network call and one sweep for all samples."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import Place, blame, unlike
from diffast.executors.cuda_graph import backend_of
from diffast.executors.device import Readback, Upload, on_host, sent
from diffast.executors.parallel.batched_network import BatchedNetwork, KeptOutputs
from diffast.executors.parallel.graph_calls import GraphCalls
from diffast.executors.parallel.methods import Method, copying_tails
from diffast.executors.parallel.mixing import Mixing
from diffast.executors.parallel.slopes import Slopes
from diffast.executors.parallel.windows import Windows
from diffast.executors.results import FINE, Progress, what_failed
from diffast.lowering.sweep_tables import Tables
from diffast.plans import Plan

# Relative difference between two places of a batch that is still rounding: kernels are chosen by
# the batch's size.
_ROUNDING = 1e-3

# A job of `sweep` that reads and writes nothing; see the op for its columns.
_IDLE = np.array([0, -1, 0, -1, 0, 0, 0, 0], dtype=np.int32)
_NO_JOBS = np.empty((0, 0), dtype=np.int32)


@dataclass(frozen=True)
class Round:
    """What one round did; kept for the result and for pictures.

    Attributes:
        settled: [B] how many stages are settled after it.
        rows: pairs (sample, stage) that the network was called on, without rows that only fill up
            the batch.
        error: [B] estimated relative error of each sample before the round.
    """

    settled: np.ndarray
    rows: int
    error: np.ndarray


class Verdict(NamedTuple):
    """What a rule says after a network call.

    Attributes:
        settled: [B] how many stages of each window are settled.
        error: [B] estimated relative error of each sample.
        failed: samples whose next settled point is not finite.
    """

    settled: np.ndarray
    error: np.ndarray
    failed: list[int]


class Rule(Protocol):
    """Tells settled stages, and makes the points of the next round.

    A rule works on the host in `orders` and `leave`, which return arrays for the device, and on the
    device in `judge` and `follow`. All arrays of a round are sent in one copy.
    """

    def orders(self) -> dict[str, np.ndarray]:
        """Returns the arrays that `judge` needs after the next network call."""
        ...

    def judge(self, outputs: list[torch.Tensor]) -> Verdict:
        """Returns how many stages are settled, after the network's outputs [size, ...]."""
        ...

    def leave(self, settled: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Gives free rows to the windows; returns the arrays that `follow` needs.

        The windows have just left settled [B] of what were their rows [B, window].
        """
        ...

    def follow(self, sent: dict[str, torch.Tensor]) -> None:
        """Makes the next points, by the arrays of `leave`."""

    def moved(self, came: np.ndarray, index: torch.Tensor) -> None:
        """Called after row i came from row came[i]; `index` is the same on the device."""

    def clear(self, rows: torch.Tensor) -> None:
        """Called when rows of a failed sample are set to zero."""


class ParallelRun:
    """The buffers of one run. Tensors of rows are [size, ...], states [2 B, 4 + entries, ...].

    State b is where sample b's window starts, state B + b where it ends. Where x is all that a
    sweep carries, the window's first row takes the place of state b.
    """

    rule: Rule
    windows: Windows

    def __init__(
        self,
        method: Method,
        plan: Plan,
        tables: Tables,
        network: BatchedNetwork,
        place: Place,
        static: bool,
        graphs: bool = False,
    ):
        """Makes the states and puts the plan's tables on the device."""
        self.method, self.plan, self.tables, self.network = method, plan, tables, network
        shape, self.dtype, self.device, self.ids, self.seed, self.clamp = place
        self.ask = network
        if graphs:
            self.ask = GraphCalls(network, backend_of("sample_parallel", self.ids.device))
        self.place, self.static = place, static
        self.samples, self.elements = shape[0], shape[1:]
        self.numel = int(np.prod(self.elements))
        self.rounds: list[Round] = []
        self.calls = np.zeros(self.samples, dtype=np.int64)
        self.status = np.full(self.samples, FINE, dtype=np.int64)
        self.reasons: dict[int, str] = {}  # what failed, by sample
        self.batch_difference: float | None = None
        self.mixing = Mixing(method.memory, self.device) if method.memory else None
        self.states = self._zeros(2 * self.samples, 4 + tables.entries)
        tails = copying_tails(tables) if method.copies else tables.tails
        tables_there = (tables.weights, tables.changes, tails, tables.line)
        self.plan_tables = sent(self.device, *map(np.ascontiguousarray, tables_there))
        self.slopes = Slopes(method, tables, plan.name, place)
        self.upload, self.readback = Upload(self.device), Readback(self.device)
        self.sent: dict[str, torch.Tensor] = {}  # this round's arrays
        # On a device jobs are filled up to one number: the arrays of all rounds then have the same
        # shapes, and `upload` finds their places ready. With a fixed number of rows even rounds
        # without jobs send some, so that all rounds are the same device work on the same memory,
        # in turns of two. Such a round could be replayed.
        self.padded = not on_host(self.device)
        self.repeats = self.padded and static

    @property
    def doubled(self) -> bool:
        """Returns whether new points need a buffer of their own."""
        return self.method.secant or self.method.memory > 0 or not self.tables.simple

    @property
    def planes(self) -> int:
        """Returns how many tensors of all rows the run holds at most, outputs included."""
        branches = len(self.tables.outputs)
        cast = self.network.denoiser.dtype not in (None, self.dtype)
        network_input = 2 if branches == 2 else int(cast)
        more = 2 * self.method.memory + 1 if self.method.memory else 0
        more += 3 if self.method.exact else 0  # points made and guessed, and their noise
        more += len(self.network.denoiser.guides)
        return (1 + self.doubled) + more + branches * (1 + self.method.secant) + network_input

    def open(self, windows: Windows, rule: Rule) -> None:
        """Makes the rows and fills every window with guesses; `states` holds the initial states."""
        self.windows, self.rule = windows, rule
        # Rows without a pair go through the network too, so they are filled with zeros.
        self.x = self._zeros(windows.size)
        self.made = self._zeros(windows.size) if self.doubled else self.x  # the next points
        self.outputs: list[torch.Tensor] = []  # of the round before
        self.kept = KeptOutputs(self.method.secant)
        self.row_slopes: torch.Tensor | None = None  # of this round
        self.checked = False  # whether two places of a batch were compared
        self.twin: tuple[int, int] | None = None  # rows that hold one pair, to be compared
        self.compared: torch.Tensor | None = None  # what `_differences` returned
        self.slopes.open(windows.size)
        self.numbers = torch.empty(0, dtype=torch.float64, device=self.device)
        self.waiting = np.ones(self.samples, dtype=bool)  # whether there is no state at the end
        if self.numel and self.samples:
            orders = self.filling(np.zeros(self.samples, dtype=np.int64), windows.rows)
            self.sent = self.upload.send(orders | self._call_orders())
            self.fill(self.sent)
            self.x, self.made = self.made, self.x

    @torch.inference_mode(False)  # see Place.empty
    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros((*shape, *self.elements), dtype=self.dtype, device=self.device)

    def filling(self, settled: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Gives free rows to the windows; returns the jobs that continue sweeps into these rows.

        The windows have just left `settled` [B] of what were their rows [B, window].
        """
        windows, samples = self.windows, self.samples
        left = np.zeros(0, dtype=np.int64)
        if not self.tables.simple:  # their states have to follow to where windows now start
            left = np.flatnonzero(settled)
        count = windows.count.copy()
        got = windows.grow()
        new = np.flatnonzero(got)
        if not len(left) and not len(new):
            return self.jobs("fill", _NO_JOBS, _NO_JOBS, samples * (1 if self.tables.simple else 2))
        waiting = self.waiting[new]
        begin, stop = count[new], windows.count[new]
        state, first = np.where(waiting, new, samples + new), windows.start[left] - settled[left]
        jobs = np.append(
            jobs_of(left, -1, left, left, first, settled[left], 0, 0),
            jobs_of(new, -1, state, samples + new, windows.start[new] + begin, 0, got[new], 1),
            axis=0,
        )
        walk = _walk(
            np.concatenate([rows[left], windows.rows[new]]),
            np.append(0 * left, begin),
            np.append(settled[left], stop),
        )
        self.waiting[new] = False
        return self.jobs("fill", jobs, walk, samples * (1 if self.tables.simple else 2))

    def jobs(
        self, name: str, jobs: np.ndarray, walk: np.ndarray, most: int
    ) -> dict[str, np.ndarray]:
        """Returns jobs for `sweep` and their walk as arrays to send; nothing where there is none.

        On a device they are filled up to `most` jobs and the longest walk.
        """
        if not len(jobs) and not self.repeats:
            return {}
        if self.padded:
            whole = np.empty((most, len(_IDLE)), dtype=np.int32)
            whole[: len(jobs)] = jobs.reshape(-1, len(_IDLE))
            whole[len(jobs) :] = _IDLE
            longest = np.full((most, self.windows.window), -1, dtype=np.int32)
            longest[: len(walk), : walk.shape[1]] = walk
            jobs, walk = whole, longest
        return {f"{name} jobs": jobs, f"{name} walk": walk}

    def fill(self, sent: dict[str, torch.Tensor]) -> None:
        """Continues the windows' sweeps into new rows, by the jobs of `filling`."""
        if "fill jobs" in sent:
            x = self.made if self.tables.simple else self.x
            self.sweep(x, self.outputs, sent["fill jobs"], sent["fill walk"])

    def sweep(
        self,
        x: torch.Tensor,
        outputs: list[torch.Tensor],
        jobs: torch.Tensor,
        walk: torch.Tensor,
        norms: torch.Tensor | None = None,
    ) -> None:
        """Sweeps from the points x and their outputs into the next points and the states.

        The walk is the rows of each job, int32 [J, W]. The squared changes of the points are
        written to `norms`, [J, W + 1] float64.
        """
        if len(outputs) != len(self.tables.outputs):  # before the first call: not read
            outputs = [torch.empty_like(x)] * len(self.tables.outputs)
        tables = *self.plan_tables, jobs, walk
        noise = self.ids, self.seed, self.tables.noises
        outs = self.made, self.states, norms
        ops.sweep(
            x, outputs, self.row_slopes, *tables, *noise, self.tables.parts, self.clamp, *outs
        )

    def sums(self, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        """Returns float64 tensors of these shapes, for sums that `read` reads."""
        self.sizes = [math.prod(shape) for shape in shapes]
        count = sum(self.sizes)
        room = count + 2 * len(self.tables.outputs)
        if room > len(self.numbers):
            self.numbers = torch.empty(room, dtype=torch.float64, device=self.device)
        parts = self.numbers[:count].split(self.sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def read(self) -> list[np.ndarray]:
        """Returns what is in the tensors of `sums`, flat; the one wait of a round."""
        count = sum(self.sizes)
        if self.compared is not None:
            self.numbers[count : count + len(self.compared)].copy_(self.compared)
            count += len(self.compared)
        found = self.readback.take(self.numbers[:count])
        parts, at = [], 0
        for size in self.sizes:
            parts.append(found[at : at + size])
            at += size
        if self.compared is not None:
            self._compare(found[at:])
        return parts

    def round(self) -> int:
        """Runs one round; returns how many stages it settled."""
        windows = self.windows
        outputs, where = self._call_network(), f"sample_parallel: round {len(self.rounds)}"
        pairs = windows.pairs()[0]
        windows.age[pairs] += 1
        try:
            points = self.x, self.made
            self.row_slopes = self.slopes.of(self.sent, points, outputs, self.outputs)
            verdict = self.rule.judge(outputs)
        except (RuntimeError, ValueError) as error:
            blame(error, where, self.x, {"the network's output": outputs[0]})
            raise
        for b in verdict.failed:
            outputs = self._drop(b, outputs)
        rows = windows.rows.copy()
        windows.advance(verdict.settled)
        self.outputs = outputs
        self._go_on(verdict.settled, rows)
        settled = np.where(self.status == FINE, windows.start, self.status)
        self.rounds.append(Round(settled, len(pairs), verdict.error))
        return int(verdict.settled.sum())

    def _go_on(self, settled: np.ndarray, rows: np.ndarray) -> None:
        """Sends all that the device needs until the next wait, and makes the next points."""
        orders = self.rule.leave(settled, rows)
        size = self._smaller()
        came = None if size is None else self.windows.compact(size)
        if came is not None:
            orders["came"] = came
        self.sent = self.upload.send(orders | self._call_orders())
        self.rule.follow(self.sent)
        if came is not None:
            self._moved(came)

    def _call_orders(self) -> dict[str, np.ndarray]:
        """Returns the arrays that the next network call and what follows it need."""
        windows = self.windows
        rows, sample, stage = windows.pairs()
        if not len(rows):
            return {}
        table = np.zeros((2, windows.size), dtype=np.int64)
        table[0, rows], table[1, rows] = stage, sample
        self.twin = None
        if not self.checked and len(windows.free):
            self.twin = one, two = int(rows[0]), int(windows.free[-1])
            table[:, two] = table[:, one]
        orders = self.network.orders(table[0], table[1])
        return orders | self.slopes.orders(table[0], windows.age) | self.rule.orders()

    def _call_network(self) -> list[torch.Tensor]:
        """Calls the network on all rows; returns its outputs."""
        while True:
            if self.twin is not None:
                one, two = self.twin
                self.x[two] = self.x[one]
            try:
                self.network.beside = (self.made,) if self.made is not self.x else ()
                outputs = self.ask(self.x, self.sent)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or self.windows.size == 1:
                    raise
                self._halve(error)
                continue
            for output in outputs:
                complaint = unlike("the network's output", output, self.x)
                if complaint is not None:
                    raise ValueError(f"sample_parallel: round {len(self.rounds)}: {complaint}")
            if self.ask is self.network:  # graphs have memory of their own, two in turns
                outputs = self.kept(outputs, (self.x, self.made))
            if self.twin is not None:
                self.compared = _differences(outputs, *self.twin)
            self.calls += self.windows.count
            return outputs

    def _compare(self, numbers: np.ndarray) -> None:
        """Compares, once a run, the network's answers to one input at two places of its batch."""
        self.compared = None
        size, apart = numbers[::2].max(), numbers[1::2].max()
        if not np.isfinite([size, apart]).all():
            return
        self.checked = True
        self.batch_difference = float(apart / size if size > 0 else apart)
        if self.batch_difference > _ROUNDING:
            _warn(
                f"the network's answer to one input differs by {self.batch_difference:.1e} between "
                "two places of its batch, which is more than rounding: a sample then depends on "
                "what it is batched with"
            )

    def _halve(self, error: Exception) -> None:
        """Goes on with half as many rows, after the network ran out of memory."""
        size = max(1, self.windows.size // 2)
        _warn(
            f"out of memory with {self.windows.size} rows a network call: going on with {size} "
            f"({str(error).splitlines()[0] if str(error) else 'no message'})"
        )
        before, first = self.windows.count.copy(), self.windows.rows[:, 0].copy()
        self.windows.cut(size)
        lost = np.flatnonzero((before > 0) & (self.windows.count == 0))
        if lost.size:  # these wait, and later begin again from their settled point
            self.waiting[lost] = True
            if self.tables.simple:
                for b in lost:
                    self.states[b, 0] = self.x[int(first[b])]
        came = self.windows.compact(size)
        self.sent = self.upload.send({"came": came} | self._call_orders())
        self._moved(came)

    def _moved(self, came: np.ndarray) -> None:
        """Moves the rows into a smaller pool, where row i came from row came[i]."""
        index = self.sent["came"]
        with torch.inference_mode(False):  # see Place.empty
            self.x = self.x.index_select(0, index)
            self.made = self.made.index_select(0, index) if self.doubled else self.x
        self.slopes.moved(index)
        self.outputs = [output.index_select(0, index) for output in self.outputs]
        self.rule.moved(came, index)

    def _smaller(self) -> int | None:
        """Returns half as many rows, or a quarter, ..., where they are enough for all pairs."""
        size, wanted = self.windows.size, self.windows.wanted
        if self.static or not wanted:
            return None
        step = self.network.batch_size or 1
        while (size // 2) >= wanted and size // 2 >= step and (size // 2) % step == 0:
            size //= 2
        return size if size < self.windows.size else None

    def is_broken(
        self, b: int, place: int, point: torch.Tensor, outputs: list[torch.Tensor]
    ) -> bool:
        """Returns whether a settled point is not finite, and if so, notes why sample b failed.

        The stage at that place of its window leads to the point; those before are settled.
        """
        if bool(point.isfinite().all()):
            return False
        row = int(self.windows.rows[b, place])
        self.reasons[b] = what_failed(output[row] for output in outputs)
        if self.network.denoiser.guides:  # they are part of the outputs
            self.reasons[b] += " or the gradient of a guidance term"
        self.status[b] = self.windows.start[b] + place
        return True

    def _drop(self, b: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Ends a failed sample; returns the outputs with zeros in its rows."""
        (rows,) = sent(self.device, self.windows.drop(b))
        self.states[self.samples + b] = torch.nan
        self.waiting[b] = False
        for points in (self.x, self.made):
            points.index_fill_(0, rows, 0.0)
        self.rule.clear(rows)
        return [output.index_fill(0, rows, 0.0) for output in outputs]

    def settled_states(self) -> torch.Tensor:
        """Returns each sample's settled point, [B, ...]: the sample itself where it is finished."""
        windows, order = self.windows, np.arange(self.samples)
        inside = windows.count > 0
        ends = ~inside & ~self.waiting
        arrays = order + self.samples * ends, order[inside], windows.rows[inside, 0]
        index, into, rows = sent(self.device, *(array.astype(np.int64) for array in arrays))
        x = self.states[:, 0].index_select(0, index)
        if self.tables.simple and inside.any():
            x.index_copy_(0, into, self.x.index_select(0, rows))
        return x

    def progress(self) -> Progress:
        """Returns what the callback sees: each sample's settled point and its model time."""
        times = np.append(self.plan.call_times, self.plan.end)[self.rounds[-1].settled]
        (times,) = sent(self.device, times.astype(self.network.times.dtype))
        return Progress(len(self.rounds) - 1, None, times, None, self.settled_states())


def _warn(what: str) -> None:
    warnings.warn(f"sample_parallel: {what}", RuntimeWarning, stacklevel=3)


def _differences(outputs: list[torch.Tensor], one: int, two: int) -> torch.Tensor:
    """Returns the largest number of row `one`, and of its difference from row `two`, by output."""
    numbers = []
    for output in outputs:
        numbers += [output[one].abs().max(), (output[one] - output[two]).abs().max()]
    return torch.stack(numbers)


def jobs_of(*columns: np.ndarray | int) -> np.ndarray:
    """Returns jobs for the op `sweep`, int32 [J, 8]; a column is a number or an array [J].

    The first column, the samples, is an array.
    """
    jobs = np.empty((np.size(columns[0]), len(columns)), dtype=np.int32)
    for k, column in enumerate(columns):
        jobs[:, k] = column
    return jobs


def _walk(rows: np.ndarray, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Returns rows[j, begin[j] : stop[j]] of each j, filled up with -1, int32 [J, at least 1]."""
    place = begin[:, None] + np.arange(max(int((stop - begin).max(initial=0)), 1))
    found = rows[np.arange(len(rows))[:, None], np.minimum(place, rows.shape[1] - 1)]
    return np.where(place < stop[:, None], found, np.int32(-1))


def _is_out_of_memory(error: Exception) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
