"""The rule of all methods but the exact one: stages are settled when their points hardly change.

A round sweeps every window through the network's outputs, reads how far each point moved, asks the
convergence test, and continues the windows into the rows that became free.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast import ops
from diffast.executors.parallel.convergence import Convergence
from diffast.executors.parallel.mixing import Mixing
from diffast.executors.parallel.rounds import ParallelRun, Rule, Verdict, jobs_of
from diffast.plan.registers import levels_of


class ByChange(Rule):
    """Tells settled stages by the changes of their points."""

    def __init__(self, run: ParallelRun, convergence: Convergence, size: int):
        """Notes that none of the run's `size` rows has a change yet."""
        self.run, self.convergence, self.mixing = run, convergence, run.mixing
        self.changed = np.full(size, np.nan)  # of the round before, by row
        self.gammas: np.ndarray | None = None  # [size, rounds mixed in]
        self.patched = False  # whether points that are not mixed have to be copied
        self.alpha, self.sigma = levels_of(run.plan.schedule, [run.plan.end])[0].tolist()
        self.one = torch.ones((run.samples, 1, 1), dtype=torch.float64, device=run.device)

    def judge(self, outputs: list[torch.Tensor]) -> Verdict:
        """Sweeps all windows; returns how many stages of each are settled."""
        run, windows = self.run, self.run.windows
        running = np.flatnonzero(windows.count)
        count = windows.count[running]
        rows = np.ascontiguousarray(windows.rows[running, : int(count.max())])
        shape = (len(running), rows.shape[1] + 1)
        norms = torch.empty(shape, dtype=torch.float64, device=run.device)
        run.sweep(run.x, outputs, self._jobs(running), rows, norms)
        sums = None if self.mixing is None else self.mixing.note(run.x, run.made)
        change, scale, sums = self._read(norms, sums)
        failed = [
            int(b) for b in running[~np.isfinite(change[:, 1])] if self._broken(int(b), outputs)
        ]
        alive = ~np.isin(running, failed)
        running, count, rows, change = running[alive], count[alive], rows[alive], change[alive]
        inside = rows >= 0
        before = np.where(inside, self.changed[rows], np.nan)
        settled = np.zeros(run.samples, dtype=np.int64)
        error = np.zeros(run.samples)
        settled[running], error[running] = self.convergence.test(
            windows.start[running], count, change, before, scale[running], windows.age[rows[:, 0]]
        )
        self.changed[rows[inside]] = change[:, :-1][inside]
        self.gammas = None
        if self.mixing is not None and sums is not None:
            self.gammas = self._gammas(self.mixing, sums, running)
        return Verdict(settled, error, failed)

    def _jobs(self, running: np.ndarray) -> np.ndarray:
        """Returns one job a window, from its first row or from the state where it starts."""
        run, windows = self.run, self.run.windows
        row, state = (windows.rows[running, 0], -1) if run.tables.simple else (-1, running)
        start, count = windows.start[running], windows.count[running]
        return jobs_of(running, row, state, run.samples + running, start, count, 0, 1)

    def _broken(self, b: int, outputs: list[torch.Tensor]) -> bool:
        """Returns whether sample b's next settled point is not finite.

        The change is not finite also where only the point's old value was not. Such a value is a
        guess, which the new one replaces.
        """
        run, windows = self.run, self.run.windows
        point = run.states[run.samples + b, 0]
        if windows.count[b] > 1:
            point = run.made[int(windows.rows[b, 1])]
        return run.is_broken(b, 0, point, outputs)

    def _read(
        self, norms: torch.Tensor, sums: torch.Tensor | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns the changes [J, W + 1], the samples' root mean squares [B], and the sums.

        The CPU waits for the device here, once a round.
        """
        run = self.run
        estimate = run.states[run.samples :, -2].contiguous()
        squares = torch.empty((run.samples, 1), dtype=torch.float64, device=run.device)
        ops.gram([estimate], self.one, squares)
        parts = [norms, squares] if sums is None else [norms, squares, sums]
        read = torch.cat([part.reshape(-1) for part in parts]).cpu().numpy()
        first, second = norms.numel(), norms.numel() + run.samples
        change = np.sqrt(read[:first] / run.numel).reshape(norms.shape)
        mean = read[first:second] / run.numel
        scale = np.sqrt(self.alpha**2 * mean + self.sigma**2)
        scale = np.where(np.isfinite(scale), np.maximum(scale, 1e-30), 1.0)
        return change, scale, None if sums is None else read[second:].reshape(sums.shape)

    def _gammas(self, mixing: Mixing, sums: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Returns how much of each earlier round every row takes, [size, rounds - 1]."""
        windows = self.run.windows
        gammas = np.zeros((windows.size, len(mixing.rounds) - 1))
        for b in running:
            rows = windows.rows[b, : windows.count[b]]
            gammas[rows] = mixing.gammas(sums[rows], windows.age[rows])
        self.patched = not np.isfinite(sums).all()
        return gammas

    def follow(self, settled: np.ndarray, rows: np.ndarray) -> None:
        """Continues windows into free rows, and makes the new points those of the next round."""
        run = self.run
        run.fill(settled, rows)
        self.changed[run.windows.age == 0] = np.nan
        if not run.method.secant:  # not needed again: the next ones take their memory
            run.outputs = []
        if self.mixing is None:
            run.x, run.made = run.made, run.x
            return
        run.x = run.made if self.gammas is None else self._mixed(self.mixing, self.gammas)
        run.made = self.mixing.take(run.x)

    def _mixed(self, mixing: Mixing, gammas: np.ndarray) -> torch.Tensor:
        """Returns the next points of all rows."""
        run, windows = self.run, self.run.windows
        # New rows have no earlier rounds, and the first point of a window is settled.
        rows = windows.pairs()[0]
        kept = np.zeros_like(gammas)
        kept[rows] = gammas[rows] * (windows.age[rows] > 0)[:, None]
        kept[windows.rows[windows.count > 0, 0]] = 0.0
        (table,) = run.put(mixing.table(kept))
        mixed = mixing.mix(table)
        if self.patched:  # a weight of 0 times an infinite point is not a number
            (plain,) = run.put(np.flatnonzero(~kept.any(axis=1)))
            mixed.index_copy_(0, plain, run.made.index_select(0, plain))
        return mixed

    def moved(self, came: np.ndarray, index: torch.Tensor) -> None:
        """Moves what is kept by row."""
        self.changed = self.changed[came]
        if self.mixing is not None:
            self.mixing.select(index)

    def clear(self, rows: torch.Tensor) -> None:
        """Clears the rounds that are mixed in."""
        if self.mixing is not None:
            self.mixing.clear(rows)
