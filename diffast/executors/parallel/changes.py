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
from diffast.plans.registers import levels_of


class ByChange(Rule):
    """Tells settled stages by the changes of their points."""

    def __init__(self, run: ParallelRun, convergence: Convergence, size: int):
        """Notes that none of the run's `size` rows has a change yet."""
        self.run, self.convergence, self.mixing = run, convergence, run.mixing
        self.changed = np.full(size, np.nan)  # of the round before, by row
        self.gammas: np.ndarray | None = None  # [size, rounds mixed in]
        self.patched = False  # whether points that are not mixed have to be copied
        self.alpha, self.sigma = levels_of(run.plan.schedule, [run.plan.end])[0].tolist()
        planes = run.samples * run.states.shape[1]
        self.one = torch.ones((planes, 1, 1), dtype=torch.float64, device=run.device)
        if self.mixing is not None:
            self.mixing.open(size)

    def orders(self) -> dict[str, np.ndarray]:
        """Returns one job a window, from its first row or from the state where it starts."""
        run, windows = self.run, self.run.windows
        self.running = running = np.flatnonzero(windows.count)
        start, count = windows.start[running], windows.count[running]
        self.rows = np.ascontiguousarray(windows.rows[running, : int(count.max())])
        row, state = (windows.rows[running, 0], -1) if run.tables.simple else (-1, running)
        jobs = jobs_of(running, row, state, run.samples + running, start, count, 0, 1)
        return run.jobs("window", jobs, self.rows, run.samples)

    def judge(self, outputs: list[torch.Tensor]) -> Verdict:
        """Sweeps all windows; returns how many stages of each are settled."""
        run, windows = self.run, self.run.windows
        running, rows, count = self.running, self.rows, windows.count[self.running]
        change, scale, sums = self._measured(outputs)
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

    def _measured(
        self, outputs: list[torch.Tensor]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Sweeps; returns changes [J, W + 1], samples' root mean squares [B], inner products."""
        run, size = self.run, self.run.windows.size
        jobs, walk = run.sent["window jobs"], run.sent["window walk"]
        pairs = 0 if self.mixing is None else self.mixing.note(run.x, run.made)
        planes = run.states.shape[1]
        shapes = (len(walk), walk.shape[1] + 1), (run.samples * planes, 1), (size, pairs)
        norms, squares, sums = run.sums(*shapes)
        run.sweep(run.x, outputs, jobs, walk, norms)
        # The x0 estimates are one plane of the states. The squares of the other planes are made
        # too, and not used: a copy of the estimates would be one more launch.
        states = run.states[run.samples :]
        ops.gram([states.view(-1, *states.shape[2:])], self.one, squares)
        if self.mixing is not None and pairs:
            self.mixing.measure(sums)
        norms, squares, sums = run.read()
        norms = norms.reshape(shapes[0])[: len(self.running), : self.rows.shape[1] + 1]
        change = np.sqrt(norms / run.numel)
        mean = squares.reshape(run.samples, planes)[:, -2] / run.numel
        scale = np.sqrt(self.alpha**2 * mean + self.sigma**2)
        scale = np.where(np.isfinite(scale), np.maximum(scale, 1e-30), 1.0)
        return change, scale, sums.reshape(shapes[2]) if pairs else None

    def _gammas(self, mixing: Mixing, sums: np.ndarray, running: np.ndarray) -> np.ndarray:
        """Returns how much of each earlier round every row takes, [size, rounds - 1]."""
        windows = self.run.windows
        gammas = np.zeros((windows.size, len(mixing.rounds) - 1))
        if len(running):
            rows = windows.rows[running, : int(windows.count[running].max())]
            inside = rows >= 0
            known = np.where(inside, windows.age[rows], 0)
            gammas[rows[inside]] = mixing.gammas(sums[rows], known)[inside]
        self.patched = not np.isfinite(sums).all()
        return gammas

    def leave(self, settled: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Gives free rows to the windows; returns the jobs and the weights of `follow`."""
        run, windows = self.run, self.run.windows
        orders = run.filling(settled, rows)
        self.changed[windows.age == 0] = np.nan
        if self.mixing is None or self.gammas is None:
            return orders
        # New rows have no earlier rounds, and the first point of a window is settled.
        rows = windows.pairs()[0]
        kept = np.zeros_like(self.gammas)
        kept[rows] = self.gammas[rows] * (windows.age[rows] > 0)[:, None]
        kept[windows.rows[windows.count > 0, 0]] = 0.0
        orders["mix"] = self.mixing.table(kept)
        if self.patched:  # a weight of 0 times an infinite point is not a number
            orders["plain"] = np.flatnonzero(~kept.any(axis=1))
        return orders

    def follow(self, sent: dict[str, torch.Tensor]) -> None:
        """Continues windows into free rows, and makes the new points those of the next round."""
        run = self.run
        run.fill(sent)
        if not run.method.secant:  # not needed again: the next ones take their memory
            run.outputs = []
        if self.mixing is None:
            run.x, run.made = run.made, run.x
            return
        run.x = self.mixing.mix(sent["mix"]) if "mix" in sent else run.made
        if "plain" in sent:
            plain = sent["plain"]
            run.x.index_copy_(0, plain, run.made.index_select(0, plain))
        run.made = self.mixing.take(run.x)

    def moved(self, came: np.ndarray, index: torch.Tensor) -> None:
        """Moves what is kept by row."""
        self.changed = self.changed[came]
        if self.mixing is not None:
            self.mixing.select(index)

    def clear(self, rows: torch.Tensor) -> None:
        """Clears the rounds that are mixed in."""
        if self.mixing is not None:
            self.mixing.clear(rows)
