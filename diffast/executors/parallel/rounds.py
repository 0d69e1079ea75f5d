"""The parallel executor's engine: rounds of one network call and one sweep for all samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import Place, blame
from diffast.executors.parallel.batched_network import BatchedNetwork
from diffast.executors.parallel.methods import Method, copying_tails, secant_limits, slopes_of
from diffast.executors.parallel.mixing import Mixing
from diffast.executors.parallel.windows import Windows
from diffast.executors.results import FINE, Progress, what_failed
from diffast.lowering.sweep_tables import ALPHA, SIGMA, Tables
from diffast.plan import Plan

# A slope is measured only where the point moved further than this, relative to its size. Below it
# the rounding errors of the network would be measured, so the slope of the round before is kept.
_SHORTEST = 3e-5

# Relative difference between two places of a batch that is still rounding: kernels are chosen by
# the batch's size.
_ROUNDING = 1e-3


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
    """Tells settled stages, and makes the points of the next round."""

    def judge(self, outputs: list[torch.Tensor]) -> Verdict:
        """Returns how many stages are settled, after the network's outputs [size, ...]."""
        ...

    def follow(self, settled: np.ndarray, rows: np.ndarray) -> None:
        """Makes the next points, after windows left settled [B] of their rows [B, window]."""

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
    ):
        """Makes the states and puts the plan's tables on the device."""
        self.method, self.plan, self.tables, self.network = method, plan, tables, network
        shape, self.dtype, self.device, self.ids, self.seed, self.clamp = place
        self.place, self.static = place, static
        self.samples, self.elements = shape[0], shape[1:]
        self.numel = int(np.prod(self.elements))
        self.rounds: list[Round] = []
        self.calls = np.zeros(self.samples, dtype=np.int64)
        self.status = np.full(self.samples, FINE, dtype=np.int64)
        self.reasons: dict[int, str] = {}  # what failed, by sample
        self.batch_difference: float | None = None
        self.mixing = Mixing(method.memory) if method.memory else None
        self.states = self._zeros(2 * self.samples, 4 + tables.entries)
        tails = copying_tails(tables) if method.copies else tables.tails
        self.plan_tables = [
            torch.from_numpy(np.ascontiguousarray(table)).to(self.device)
            for table in (tables.weights, tables.changes, tails, tables.line)
        ]
        self.base_slopes = torch.from_numpy(slopes_of(method, tables, plan.name)).to(self.device)
        if method.secant:
            self._prepare_secant()

    def _prepare_secant(self) -> None:
        tables, device = self.tables, self.device
        stages, branches = tables.slope.shape
        weights = np.zeros((stages, 2, 2 + 2 * branches))
        weights[:, 0, :2] = 1.0, -1.0
        weights[:, 1, 2::2] = tables.slope
        weights[:, 1, 3::2] = -tables.slope
        least, most = secant_limits(tables)
        shortest = _SHORTEST**2 * (tables.line[:, ALPHA] ** 2 + tables.line[:, SIGMA] ** 2)
        bounds = np.stack([least, most, shortest * self.numel], axis=1)
        self.secant_weights = torch.from_numpy(weights).to(device)
        self.secant_bounds = torch.from_numpy(bounds).to(device)

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
        return (1 + self.doubled) + more + branches * (1 + self.method.secant) + network_input

    def put(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Returns arrays of one dtype as tensors on the device, after a single copy."""
        if self.device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in arrays]))
        there = flat.pin_memory().to(self.device, non_blocking=True)
        parts = there.split([array.size for array in arrays])
        return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]

    def open(self, windows: Windows, rule: Rule) -> None:
        """Makes the rows and fills every window with guesses; `states` holds the initial states."""
        self.windows, self.rule = windows, rule
        # Rows without a pair go through the network too, so they are filled with zeros.
        self.x = self._zeros(windows.size)
        self.made = self._zeros(windows.size) if self.doubled else self.x  # the next points
        self.outputs: list[torch.Tensor] = []  # of the round before
        self.row_slopes: torch.Tensor | None = None  # of this round
        self.checked = False  # whether two places of a batch were compared
        self.measured = torch.zeros(windows.size, dtype=torch.float64, device=self.device)
        self.waiting = np.ones(self.samples, dtype=bool)  # whether there is no state at the end
        if self.numel:
            self.fill(np.zeros(self.samples, dtype=np.int64), windows.rows)
            self.x, self.made = self.made, self.x

    @torch.inference_mode(False)  # see Place.empty
    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros((*shape, *self.elements), dtype=self.dtype, device=self.device)

    def fill(self, settled: np.ndarray, rows: np.ndarray) -> None:
        """Gives free rows to the windows, and continues their sweeps into these rows.

        The windows have just left `settled` [B] of what were their rows [B, window].
        """
        windows, samples = self.windows, self.samples
        left = np.zeros(0, dtype=np.int64)
        if not self.tables.simple:  # their states have to follow to where windows now start
            left = np.flatnonzero(settled)
        count = windows.count.copy()
        got = windows.grow()
        new = np.flatnonzero(got)
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
        if len(jobs):
            x = self.made if self.tables.simple else self.x
            self.sweep(x, self.outputs, jobs, walk)

    def sweep(
        self,
        x: torch.Tensor,
        outputs: list[torch.Tensor],
        jobs: np.ndarray,
        walk: np.ndarray,
        norms: torch.Tensor | None = None,
    ) -> None:
        """Sweeps from the points x and their outputs into the next points and the states.

        The walk is the rows of each job, int32 [J, W]. The squared changes of the points are
        written to `norms`, [J, W + 1] float64.
        """
        if len(outputs) != len(self.tables.outputs):  # before the first call: not read
            outputs = [torch.empty_like(x)] * len(self.tables.outputs)
        tables = *self.plan_tables, *self.put(jobs, walk)
        noise = self.ids, self.seed, self.tables.noises
        outs = self.made, self.states, norms
        ops.sweep(
            x, outputs, self.row_slopes, *tables, *noise, self.tables.parts, self.clamp, *outs
        )

    def round(self) -> int:
        """Runs one round; returns how many stages it settled."""
        windows = self.windows
        outputs = self._call_network()
        pairs = windows.pairs()[0]
        windows.age[pairs] += 1
        try:
            self.row_slopes = self._slopes(outputs)
            verdict = self.rule.judge(outputs)
        except (RuntimeError, ValueError) as error:
            where = f"sample_parallel: round {len(self.rounds)}"
            blame(error, where, self.x, {"the network's output": outputs[0]})
            raise
        for b in verdict.failed:
            outputs = self._drop(b, outputs)
        rows = windows.rows.copy()
        windows.advance(verdict.settled)
        self.outputs = outputs
        self.rule.follow(verdict.settled, rows)
        settled = np.where(self.status == FINE, windows.start, self.status)
        self.rounds.append(Round(settled, len(pairs), verdict.error))
        self._shrink()
        return int(verdict.settled.sum())

    def _call_network(self) -> list[torch.Tensor]:
        """Calls the network on all rows; returns its outputs."""
        while True:
            rows, sample, stage = self.windows.pairs()
            table = np.zeros((3, self.windows.size), dtype=np.int64)
            table[0, rows], table[1, rows], table[2] = stage, sample, self.windows.age
            twin = self._twin(rows, table)
            (there,) = self.put(table)
            try:
                outputs = self.network(self.x, there[0], there[1])
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or self.windows.size == 1:
                    raise
                self._halve(error)
                continue
            self.stage, self.age = there[0], there[2]
            if twin is not None:
                self._compare(outputs, *twin)
            self.calls += self.windows.count
            return outputs

    def _twin(self, rows: np.ndarray, table: np.ndarray) -> tuple[int, int] | None:
        """Puts one pair into a second, free row; returns both rows, or None."""
        if self.checked or not self.windows.free or not len(rows):
            return None
        one, two = int(rows[0]), self.windows.free[-1]
        self.x[two] = self.x[one]
        table[:2, two] = table[:2, one]
        return one, two

    def _compare(self, outputs: list[torch.Tensor], one: int, two: int) -> None:
        """Compares, once a run, the network's answers to one input at two places of its batch."""
        size = max(float(output[one].abs().max()) for output in outputs)
        apart = max(float((output[one] - output[two]).abs().max()) for output in outputs)
        if not np.isfinite([size, apart]).all():
            return
        self.checked = True
        self.batch_difference = apart / size if size > 0 else apart
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
        self._compact(size)

    def _compact(self, size: int) -> None:
        """Moves all pairs into a pool of `size` rows."""
        came = self.windows.compact(size)
        (index,) = self.put(came)
        with torch.inference_mode(False):  # see Place.empty
            self.x = self.x.index_select(0, index)
            self.made = self.made.index_select(0, index) if self.doubled else self.x
        self.measured = self.measured.index_select(0, index)
        self.outputs = [output.index_select(0, index) for output in self.outputs]
        self.rule.moved(came, index)

    def _shrink(self) -> None:
        """Halves the pool while half of it is enough for all pairs."""
        size, wanted = self.windows.size, self.windows.wanted
        if self.static or not wanted:
            return
        step = self.network.batch_size or 1
        while (size // 2) >= wanted and size // 2 >= step and (size // 2) % step == 0:
            size //= 2
        if size < self.windows.size:
            self._compact(size)

    def _slopes(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Returns the slopes of all rows, [size]."""
        base = self.base_slopes.index_select(0, self.stage)
        if not self.method.secant:
            return base
        fresh = self.age == 0
        self.measured = torch.where(fresh, base, self.measured)
        if self.outputs:
            answers = zip(outputs, self.outputs, strict=True)
            # points and answers of this round and of the one before
            xs = [self.x, self.made, *(output for pair in answers for output in pair)]
            sums = torch.empty((len(self.x), 3), dtype=torch.float64, device=self.device)
            ops.gram(xs, self.secant_weights.index_select(0, self.stage), sums)
            bounds = self.secant_bounds.index_select(0, self.stage)
            slope = sums[:, 1] / sums[:, 0]
            slope = torch.minimum(torch.maximum(slope, bounds[:, 0]), bounds[:, 1])
            # A point or output may be infinite, far from where the network was trained.
            known = ~fresh & (sums[:, 0] > bounds[:, 2]) & slope.isfinite()
            self.measured = torch.where(known, slope, self.measured)
        return self.measured

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
        self.status[b] = self.windows.start[b] + place
        return True

    def _drop(self, b: int, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Ends a failed sample; returns the outputs with zeros in its rows."""
        (rows,) = self.put(self.windows.drop(b))
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
        (index,) = self.put(order + self.samples * ends)
        x = self.states[:, 0].index_select(0, index)
        if self.tables.simple and inside.any():
            into, rows = self.put(order[inside], windows.rows[inside, 0].astype(np.int64))
            x.index_copy_(0, into, self.x.index_select(0, rows))
        return x

    def progress(self) -> Progress:
        """Returns what the callback sees: each sample's settled point and its model time."""
        times = np.append(self.plan.call_times, self.plan.end)[self.rounds[-1].settled]
        times = torch.from_numpy(times).to(dtype=self.network.times.dtype, device=self.device)
        return Progress(len(self.rounds) - 1, None, times, None, self.settled_states())


def _warn(what: str) -> None:
    warnings.warn(f"sample_parallel: {what}", RuntimeWarning, stacklevel=3)


def jobs_of(*columns: np.ndarray | int) -> np.ndarray:
    """Returns jobs for the op `sweep`, int32 [J, 8]; a column is a number or an array [J]."""
    return np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.int32)


def _walk(rows: np.ndarray, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Returns rows[j, begin[j] : stop[j]] of each j, filled up with -1, int32 [J, at least 1]."""
    place = begin[:, None] + np.arange(max(int((stop - begin).max(initial=0)), 1))
    found = np.take_along_axis(rows, np.minimum(place, rows.shape[1] - 1), axis=1)
    return np.where(place < stop[:, None], found, np.int32(-1))


def _is_out_of_memory(error: Exception) -> bool:
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
