"""The exact rule: samples have the law of the plan, whatever the guesses were worth.

Step n of a one-step stochastic plan is x_{n+1} = F_n(x_n) = m_n(x_n) + s_n z_n. A sweep has guessed
x_{n+1} = q_n + s_n z_n, with the same z_n and a mean q_n that follows from z_0 .. z_{n-1} alone.
Once x_n is settled, the network's output there gives m_n. Let r = F_n(x_n) - x_{n+1} = m_n - q_n.
The guess is taken with the probability

    min(1, exp(<z_n, r> / s_n - |r|^2 / (2 s_n^2))),

by which m_n makes it more likely than q_n does, and reflected otherwise, x_{n+1} = F_n(x_n) -
2 (s_n <z_n, r> / |r|^2) r. In both cases x_{n+1} is a draw from N(m_n, s_n^2): the
reflection-maximal coupling of the two normals (De Bortoli et al. 2025, "Accelerated diffusion
models via speculative sampling", section 3). A reflection settles its stage and ends the round's
settled stages, so there are at most as many rounds as stages. Each step is decided once, with a
uniform number of its own.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast import ops
from diffast.executors.parallel.rounds import ParallelRun, Rule, Verdict, jobs_of
from diffast.lowering.sweep_tables import Tables
from diffast.plan import Plan

# Rows whose inner products decide: r = made - guess, and z.
_ROWS = ((1.0, -1.0, 0.0), (0.0, 0.0, 1.0))


def check_plan(plan: Plan, tables: Tables, clamp: list[float]) -> None:
    """Raises ValueError for a plan whose steps are not one normal each around a settled point."""
    if not tables.simple or tables.noises != 1:
        what = "draws no noise" if tables.noises == 0 else "carries more than its point along"
        raise ValueError(
            f"sample_parallel: method 'speculative' couples the noise of one-step stochastic "
            f"plans, but plan {plan.name} {what}"
        )
    if clamp:
        raise ValueError(
            "sample_parallel: method 'speculative' needs means that are linear in the network's "
            f"output, but clamp is {tuple(clamp)}"
        )


class ByCoupling(Rule):
    """Tells settled stages by accepting guesses, and draws the point where one was refused."""

    def __init__(self, run: ParallelRun):
        """Draws the uniform number of every step."""
        self.run = run
        self.host_ids = run.ids.cpu().numpy()
        normals = torch.empty((run.samples, run.plan.nfe), dtype=torch.float32)
        ops.normal_out(run.ids.cpu(), run.seed, ops.COUPLING_NOISE, 1.0, normals)
        # The distribution function of a normal number is a uniform number.
        self.log_uniform = torch.special.log_ndtr(normals.double()).numpy()
        self.noise = run.tables.weights[:, -1, -1]  # [S] deviation s of each step
        self.tested = self.accepted = 0  # guesses that were decided on, and taken
        self.constants: tuple[torch.Tensor, ...] = ()  # of the present number of rows
        self.reflected: list[tuple[int, int, float]] = []  # (sample, row, weight of its guess)

    def judge(self, outputs: list[torch.Tensor]) -> Verdict:
        """Decides on the guesses of all windows; returns how many stages of each are settled."""
        run = self.run
        rows, sample, stage = run.windows.pairs()
        self.points, self.guesses, sums = self._residuals(outputs, rows, sample, stage)
        settled, failed = self._decide(outputs, rows, sample, stage, sums)
        error = np.zeros(run.samples)
        np.maximum.at(error, sample, np.sqrt(np.nan_to_num(sums[rows, 0]) / run.numel))
        return Verdict(settled, error, failed)

    def _residuals(
        self, outputs: list[torch.Tensor], rows: np.ndarray, sample: np.ndarray, stage: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Returns F(x) and its guesses, [size, ...], and <r, r>, <r, z>, <z, z> of all rows."""
        run, size = self.run, self.run.windows.size
        last = np.append(sample[1:] != sample[:-1], True)  # of its window
        streams, following = np.zeros((size, 3), dtype=np.int64), np.zeros(size, dtype=np.int64)
        streams[rows] = np.stack([np.full_like(stage, run.seed), self.host_ids[sample], stage], 1)
        following[rows[:-1]] = rows[1:]
        streams, following, ends, final = run.put(
            streams, following, rows[last].astype(np.int64), run.samples + sample[last]
        )
        if not self.constants or len(self.constants[0]) != size:
            one = torch.ones((size, 1, 1), dtype=torch.float64, device=run.device)
            weights = torch.tensor(_ROWS, dtype=torch.float64, device=run.device)
            self.constants = (one, one * 0.0, weights.expand(size, 2, 3).contiguous())
        one, zero, weights = self.constants
        table = run.plan_tables[0].index_select(0, run.stage)[:, -1:]
        xs = [run.x, *outputs]
        points, z, guesses = (torch.empty_like(run.x) for _ in range(3))
        own, noise = table[:, :, : len(xs)].contiguous(), table[:, :, len(xs) :].contiguous()
        ops.combine_table_out(xs, own, noise, streams, [], [points], None)
        ops.combine_table_out([run.x], zero, one, streams, [], [z], None)
        torch.index_select(run.x, 0, following, out=guesses)
        guesses.index_copy_(0, ends, run.states[:, 0].index_select(0, final))
        sums = torch.empty((size, 3), dtype=torch.float64, device=run.device)
        ops.gram([points, guesses, z], weights, sums)
        return points, guesses, sums.cpu().numpy()

    def _decide(
        self,
        outputs: list[torch.Tensor],
        rows: np.ndarray,
        sample: np.ndarray,
        stage: np.ndarray,
        sums: np.ndarray,
    ) -> tuple[np.ndarray, list[int]]:
        """Returns how many stages of each window are settled, [B], and the samples that failed."""
        noise, square, product = self.noise[stage], sums[rows, 0], sums[rows, 1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_ratio = product / noise - square / (2.0 * noise**2)
            weight = np.where(square > 0.0, 2.0 * noise * product / square, 0.0)
        taken = self.log_uniform[sample, stage] <= log_ratio
        taken = np.where(square == 0.0, True, taken & (noise > 0.0))
        settled, failed = np.zeros(self.run.samples, dtype=np.int64), []
        self.reflected = []
        before = 0
        for b in np.flatnonzero(self.run.windows.count):
            count = int(self.run.windows.count[b])
            refused = np.flatnonzero(~taken[before : before + count])
            settled[b] = int(refused[0]) + 1 if refused.size else count
            if refused.size:
                at = before + int(refused[0])
                row = int(rows[at])
                if np.isfinite(square[at]):
                    self.reflected.append((int(b), row, float(weight[at])))
                elif self.run.is_broken(int(b), int(refused[0]), self.points[row], outputs):
                    failed.append(int(b))
                    settled[b] = 0
                else:
                    # The guess is not finite. Its mean follows from earlier noises alone, so F(x)
                    # is a draw from the right law.
                    self.guesses[row] = self.points[row]
                    self.reflected.append((int(b), row, 0.0))
            self.tested += int(settled[b])
            self.accepted += max(int(settled[b]) - bool(refused.size), 0)
            before += count
        return settled, failed

    def follow(self, settled: np.ndarray, rows: np.ndarray) -> None:
        """Moves the samples on to their settled points, and sweeps on from there."""
        run = self.run
        self._settle(settled, rows)
        del self.points, self.guesses
        jobs, walk = self._jobs()
        if len(jobs):
            run.sweep(run.x, run.outputs, jobs, walk)
        run.x, run.made = run.made, run.x

    def _settle(self, settled: np.ndarray, rows: np.ndarray) -> None:
        """Puts the points that the samples have come to where their windows start."""
        run, states = self.run, self.run.states[:, 0]
        moved = settled > 0
        moved[[b for b, _, _ in self.reflected]] = False
        whole = run.windows.count == 0
        ends, inside = np.flatnonzero(moved & whole), np.flatnonzero(moved & ~whole)
        at = rows[inside, settled[inside]].astype(np.int64)
        ends, finals, inside, at = run.put(ends, ends + run.samples, inside, at)
        if len(ends):
            states.index_copy_(0, ends, states.index_select(0, finals))
        if len(inside):
            states.index_copy_(0, inside, run.x.index_select(0, at))
        if not self.reflected:
            return
        into = np.array([b for b, _, _ in self.reflected])
        index = np.array([row for _, row, _ in self.reflected])
        into, finals, index = run.put(into, into + run.samples, index)
        (table,) = run.put(np.array([[[1.0 - weight, weight]] for _, _, weight in self.reflected]))
        xs = [self.points.index_select(0, index), self.guesses.index_select(0, index)]
        out = torch.empty_like(xs[0])
        ops.combine_table_out(xs, table, None, None, [], [out], None)
        states.index_copy_(0, into, out)
        # If no stage follows, this point is the sample.
        states.index_copy_(0, finals, out)

    def _jobs(self) -> tuple[np.ndarray, np.ndarray]:
        """Gives free rows to the windows; returns the jobs that sweep all of each."""
        run, windows = self.run, self.run.windows
        count = windows.count.copy()
        got = windows.grow()
        running = np.flatnonzero(windows.count)
        start, count, got = windows.start[running], count[running], got[running]
        jobs = jobs_of(running, -1, running, run.samples + running, start, count, got, 1)
        length = int(windows.count.max(initial=0))
        return jobs, np.ascontiguousarray(windows.rows[running, :length])
