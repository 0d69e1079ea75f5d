"""The parallel-in-time executor's rounds: one network call and one sweep for all samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch

from diffast import ops
from diffast.executors.parallel.anderson import Mixing
from diffast.executors.parallel.methods import copying, limits, slopes
from diffast.executors.parallel.windows import Windows
from diffast.lowering.sweep_tables import ALPHA, SIGMA

# A secant is not measured over a shorter way than this, relative to the points: rounding errors of
# the network would be what it sees. The slope of the round before stays.
_SHORTEST = 3e-5

# Relative difference between two places of a batch that kernels chosen by size may make.
_ROUNDING = 1e-3


@dataclass
class Round:
    """What a round came to; kept for the result and for pictures.

    Attributes:
        start: [B] stages that are settled after it.
        rows: pairs the network was called on, those that only fill up the batch not counted.
        error: [B] estimated relative error of the sample before it.
    """

    start: np.ndarray
    rows: int
    error: np.ndarray


class Run:
    """The buffers of one run. Tensors of rows are [size, ...], states [2 B, 4 + entries, ...].

    State b is where sample b's window starts, state B + b where it ends.
    """

    def __init__(self, method, plan, tables, network, ids, seed, shape, dtype, device, clamp):
        """Makes the states and puts the plan's tables where the rows are."""
        self.method, self.plan, self.tables, self.network = method, plan, tables, network
        self.ids, self.seed, self.device, self.dtype = ids, seed, device, dtype
        self.samples, self.elements = shape[0], shape[1:]
        self.numel = int(np.prod(shape[1:]))
        self.clamp = clamp
        self.rounds: list[Round] = []
        self.calls = np.zeros(shape[0], dtype=np.int64)
        self.batch_difference: float | None = None
        self.static = False
        self.chunk = 0
        planes = 4 + tables.entries
        self.states = torch.zeros(
            (2 * self.samples, planes, *self.elements), dtype=dtype, device=device
        )
        tails = copying(tables) if method.copies else tables.tails
        base = slopes(method.slope, tables, plan.name)
        self.on_device = [
            torch.from_numpy(np.ascontiguousarray(table)).to(device)
            for table in (tables.weights, tables.changes, tails, tables.line)
        ]
        self.base = torch.from_numpy(base).to(device)
        if method.secant:
            self._prepare_secant()
        self.mixing = Mixing(method.memory) if method.memory else None

    def _prepare_secant(self) -> None:
        tables, device = self.tables, self.device
        stages, halves = tables.slope.shape
        weights = np.zeros((stages, 2, 2 + 2 * halves))
        weights[:, 0, :2] = 1.0, -1.0
        weights[:, 1, 2::2] = tables.slope
        weights[:, 1, 3::2] = -tables.slope
        least, most = limits(tables)
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
        """Returns how many tensors of all rows a run holds at its most, outputs included."""
        halves = len(self.tables.outputs)
        cast = self.network.denoiser.dtype not in (None, self.dtype)
        given = 2 if halves == 2 else int(cast)
        mixed = 2 * self.method.memory + 1 if self.method.memory else 0
        mixed += 3 if self.method.exact else 0  # points made and guessed, and their noise
        return (1 + self.doubled) + mixed + halves * (1 + self.method.secant) + given

    def open(self, windows: Windows) -> None:
        """Makes the rows and fills every window; the initial states stand in `states`."""
        self.windows = windows
        self.x = self._rows(windows.size)
        self.other = self._rows(windows.size) if self.doubled else self.x
        self.last: list[torch.Tensor] = []  # the outputs of the round before
        self.gains: torch.Tensor | None = None  # slopes of this round
        self.checked = False
        self.slopes = torch.zeros(windows.size, dtype=torch.float64, device=self.device)
        self.changed = np.full(windows.size, np.nan)
        self.stale = np.ones(self.samples, dtype=bool)  # whether there is no state at the end

    def begin(self, rule) -> None:
        """Fills every window with guesses.

        Args:
            rule: says how far windows may go.
        """
        if self.numel:
            self.fill(rule.limits(self.windows.start), None, None)
            self.x, self.other = self.other, self.x

    def _rows(self, size: int) -> torch.Tensor:
        # Rows that hold no pair are given to the network all the same: not with garbage.
        return torch.zeros((size, *self.elements), dtype=self.dtype, device=self.device)

    def fill(self, limit: np.ndarray, strides: np.ndarray | None, rows_before) -> None:
        """Hands free rows to the windows and continues their walks into them.

        Args:
            limit: [B] stage that no window may go beyond.
            strides: [B] stages just left behind, or None at the beginning.
            rows_before: the rows of the windows before they were left, [B, window].
        """
        windows, samples = self.windows, self.samples
        jobs, walks = [], []
        if strides is not None and not self.tables.simple:
            for b in np.flatnonzero(strides):
                first = int(windows.start[b] - strides[b])
                jobs.append((b, -1, b, b, first, int(strides[b]), 0, 0))
                walks.append(rows_before[b, : strides[b]])
        count = windows.count.copy()
        got = windows.grow(limit)
        for b in np.flatnonzero(got):
            if self.stale[b]:
                state, first, new = b, windows.start[b], windows.rows[b, : windows.count[b]]
            else:
                state, first = samples + b, windows.start[b] + count[b]
                new = windows.rows[b, count[b] : count[b] + got[b]]
            jobs.append((b, -1, state, samples + b, int(first), 0, len(new), 1))
            walks.append(new)
            self.stale[b] = False
            self.changed[new] = np.nan
        if jobs:
            x = self.other if self.tables.simple else self.x
            self._sweep(x, self.last, self.gains, jobs, walks, self.other, None)

    def _sweep(self, x, outputs, slopes, jobs, walks, points, norms) -> None:
        length = max((len(walk) for walk in walks), default=0)
        walk = np.full((len(jobs), max(length, 1)), -1, dtype=np.int32)
        for j, rows in enumerate(walks):
            walk[j, : len(rows)] = rows
        if len(outputs) != len(self.tables.outputs):  # before the first call: not read
            outputs = [torch.empty_like(x)] * len(self.tables.outputs)
        ops.sweep(
            x,
            outputs,
            slopes,
            *self.on_device,
            self._put(np.array(jobs, dtype=np.int32).reshape(-1, 8)),
            self._put(walk),
            self.ids,
            self.seed,
            self.tables.noises,
            self.tables.parts,
            self.clamp,
            self.chunk,
            points,
            self.states,
            norms,
        )

    def _put(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def ask(self) -> list[torch.Tensor]:
        """Calls the network on all rows; returns its outputs."""
        while True:
            rows, sample, stage = self.windows.pairs()
            stages = np.zeros(self.windows.size, dtype=np.int64)
            samples = np.zeros_like(stages)
            stages[rows], samples[rows] = stage, sample
            twin = self._twin(rows, stages, samples)
            try:
                outputs = self.network(self.x, self._put(stages), self._put(samples))
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or self.windows.size == 1:
                    raise
                self._halve(error)
                continue
            self.stage = stages
            if twin is not None:
                self._compare(outputs, *twin)
            np.add.at(self.calls, sample, 1)
            return outputs

    def _twin(self, rows, stages, samples):
        """Puts one pair into a second, free row; returns both rows, or None."""
        if self.checked or not self.windows.free or not len(rows):
            return None
        one, two = int(rows[0]), self.windows.free[-1]
        self.x[two] = self.x[one]
        stages[two], samples[two] = stages[one], samples[one]
        return one, two

    def _compare(self, outputs, one: int, two: int) -> None:
        """Looks once whether a row's place in the batch changes the network's answer."""
        self.checked = True
        size = max(float(output[one].abs().max()) for output in outputs)
        apart = max(float((output[one] - output[two]).abs().max()) for output in outputs)
        self.batch_difference = apart / size if size > 0 else apart
        if self.batch_difference > _ROUNDING:
            warnings.warn(
                f"sample_parallel: the network's answer to one input differs by "
                f"{self.batch_difference:.1e} between two places of its batch, which is more than "
                f"rounding: a sample then depends on what it is batched with",
                RuntimeWarning,
                stacklevel=2,
            )

    def _halve(self, error) -> None:
        size = max(1, self.windows.size // 2)
        warnings.warn(
            f"sample_parallel: out of memory with {self.windows.size} rows a network call: going "
            f"on with {size} ({str(error).splitlines()[0] if str(error) else 'no message'})",
            RuntimeWarning,
            stacklevel=2,
        )
        before = self.windows.count.copy()
        first = self.windows.rows[:, 0].copy()
        self.windows.cut(size)
        lost = np.flatnonzero((before > 0) & (self.windows.count == 0))
        if lost.size:  # they wait, and begin anew from where they are
            self.stale[lost] = True
            if self.tables.simple:
                for b in lost:
                    self.states[b, 0] = self.x[int(first[b])]
        self._compact(size)

    def _compact(self, size: int) -> None:
        came = self.windows.compact(size)
        self.changed = self.changed[came]
        index = self._put(came)
        self.x = self.x.index_select(0, index)
        self.other = self.other.index_select(0, index) if self.doubled else self.x
        self.slopes = self.slopes.index_select(0, index)
        self.last = [output.index_select(0, index) for output in self.last]
        if self.mixing is not None:
            self.mixing.select(index)

    def shrink(self) -> None:
        """Halves the pool while half of it is enough for all pairs."""
        size, wanted = self.windows.size, self.windows.wanted
        if self.static or not wanted:
            return
        step = self.network.batch_size or 1
        while (size // 2) >= wanted and size // 2 >= step and (size // 2) % step == 0:
            size //= 2
        if size < self.windows.size:
            self._compact(size)

    def measure(self, outputs) -> torch.Tensor:
        """Returns the slopes of all rows, [size]."""
        stage = self._put(self.stage)
        base = self.base.index_select(0, stage)
        if not self.method.secant:
            return base
        fresh = self._put(self.windows.age == 0)
        self.slopes = torch.where(fresh, base, self.slopes)
        if self.last:
            xs = [self.x, self.other]
            for now, then in zip(outputs, self.last, strict=True):
                xs += [now, then]
            sums = torch.empty((len(self.x), 3), dtype=torch.float64, device=self.device)
            ops.gram(xs, self.secant_weights.index_select(0, stage), sums)
            bounds = self.secant_bounds.index_select(0, stage)
            slope = torch.minimum(
                torch.maximum(sums[:, 1] / sums[:, 0], bounds[:, 0]), bounds[:, 1]
            )
            known = ~fresh & (sums[:, 0] > bounds[:, 2])
            self.slopes = torch.where(known, slope, self.slopes)
        return self.slopes

    def round(self, rule) -> np.ndarray:
        """Runs one round; returns how many stages each sample has left behind, [B].

        Args:
            rule: says strides and limits.

        Raises:
            FloatingPointError: if a point that follows from settled ones alone is not finite.
        """
        windows, samples = self.windows, self.samples
        outputs = self.ask()
        self.gains = self.measure(outputs)
        running = np.flatnonzero(windows.count)
        jobs, walks = [], []
        for b in running:
            count = int(windows.count[b])
            first = int(windows.start[b])
            begin = (int(windows.rows[b, 0]), -1) if self.tables.simple else (-1, b)
            jobs.append((b, *begin, samples + b, first, count, 0, 1))
            walks.append(windows.rows[b, :count])
        length = int(windows.count.max())
        norms = torch.empty((len(jobs), length + 1), dtype=torch.float64, device=self.device)
        self._sweep(self.x, outputs, self.gains, jobs, walks, self.other, norms)
        sums = None if self.mixing is None else self.mixing.note(self.x, self.other)
        change, scale, sums = self._read(norms, sums)
        strides = np.zeros(samples, dtype=np.int64)
        error = np.zeros(samples)
        windows.age[windows.pairs()[0]] += 1
        for j, b in enumerate(running):
            count, rows = int(windows.count[b]), windows.rows[b, : windows.count[b]]
            if not np.isfinite(change[j, min(1, count)]):
                raise FloatingPointError(self._complaint(b))
            size = max(float(scale[b]), 1e-30) if np.isfinite(scale[b]) else 1.0
            strides[b], error[b] = rule.stride(
                b, int(windows.start[b]), change[j, : count + 1], self.changed[rows], size
            )
            self.changed[rows] = change[j, :count]
        gammas = None if sums is None else self._gammas(sums, running)
        strides = rule.together(strides, running)
        rows_before = windows.rows.copy() if not self.tables.simple else None
        windows.advance(strides)
        self.last = outputs
        self.fill(rule.limits(windows.start), strides, rows_before)
        if not self.method.secant:  # or they would live on beside the next ones
            self.last = []
        self._turn(gammas)
        self.rounds.append(
            Round(windows.start.copy(), int(len(walks) and sum(map(len, walks))), error)
        )
        self.shrink()
        return strides

    def _gammas(self, sums: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Returns how much of each earlier round every row takes, [size, rounds - 1]."""
        gammas = np.zeros((self.windows.size, len(self.mixing.rounds) - 1))
        for b in running:
            rows = self.windows.rows[b, : self.windows.count[b]]
            gammas[rows] = self.mixing.gammas(sums[rows], self.windows.age[rows])
        return gammas

    def _turn(self, gammas: np.ndarray | None) -> None:
        """Makes the new points the points of the next round."""
        if self.mixing is None:
            self.x, self.other = self.other, self.x
            return
        if gammas is None:
            self.x = self.other
        else:
            # Rows that are new have no earlier rounds, and a window starts at a settled point.
            rows, _, _ = self.windows.pairs()
            kept = np.zeros_like(gammas)
            kept[rows] = gammas[rows] * (self.windows.age[rows] > 0)[:, None]
            kept[self.windows.rows[self.windows.count > 0, 0]] = 0.0
            self.x = self.mixing.mix(kept, self.other)
        self.other = self.mixing.take(self.x)

    def _read(self, norms, sums) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns the rms changes [jobs, length + 1], that of the samples [B] and the sums.

        It is the one wait of a round.
        """
        estimate = self.states[self.samples :, -2].contiguous()
        one = torch.ones((self.samples, 1, 1), dtype=torch.float64, device=self.device)
        squares = torch.empty((self.samples, 1), dtype=torch.float64, device=self.device)
        ops.gram([estimate], one, squares)
        parts = [norms, squares] if sums is None else [norms, squares, sums]
        read = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
        first, second = norms.numel(), norms.numel() + self.samples
        alpha = float(self.plan.schedule.alpha(np.array([self.plan.end]))[0])
        sigma = float(self.plan.schedule.sigma(np.array([self.plan.end]))[0])
        mean = read[first:second] / self.numel
        change = np.sqrt(read[:first] / self.numel).reshape(norms.shape)
        rest = None if sums is None else read[second:].reshape(sums.shape)
        return change, np.sqrt(alpha**2 * mean + sigma**2), rest

    def _complaint(self, b: int) -> str:
        stage = int(self.windows.start[b])
        return (
            f"sample_parallel: the network's output or the state made of it is not finite at stage "
            f"{stage} (t = {self.plan.call_times[stage]:g}) for sample {b} (id {int(self.ids[b])})"
        )


def _is_out_of_memory(error) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error).lower()
