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
from diffast.executors.device import sent
from diffast.executors.parallel.rounds import ParallelRun, Rule, Verdict, jobs_of
from diffast.lowering.sweep_tables import Tables
from diffast.plans import Plan

# The weights of (F(x), guess, z) in what decides: r = F(x) - guess, and z.
_DECIDING = ((1.0, -1.0, 0.0), (0.0, 0.0, 1.0))


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

    def __init__(self, run: ParallelRun, size: int):
        """Draws the uniform number of every step, of a run of at most `size` rows."""
        self.run = run
        self.host_ids = run.readback.take(run.ids).copy()
        normals = torch.empty((run.samples, run.plan.nfe), dtype=torch.float32, device="cpu")
        ops.normal_out(torch.from_numpy(self.host_ids), run.seed, ops.COUPLING_NOISE, 1.0, normals)
        # The distribution function of a normal number is a uniform number.
        self.log_uniform = torch.special.log_ndtr(normals.double()).numpy()
        self.noise = run.tables.weights[:, -1, -1]  # [S] deviation s of each step
        self.tested = self.accepted = 0  # guesses that were decided on, and taken
        deciding = np.array(_DECIDING)
        (self.deciding,) = sent(run.device, np.tile(deciding, (size, 1, 1)))
        # [S, 2, columns], [S, 2, 1]: of F(x) and of its normal alone, over x and the outputs
        own = run.tables.weights[:, -1:, :-1]
        self.own = np.concatenate([own, np.zeros_like(own)], axis=1)
        self.fresh = np.stack([self.noise, np.ones_like(self.noise)], axis=1)[..., None]
        # Of the last decision, by sample: the row whose guess or point is the settled point, and
        # the weight of its guess.
        self.row = np.zeros(run.samples, dtype=np.int64)
        self.weight = np.ones(run.samples)

    def orders(self) -> dict[str, np.ndarray]:
        """Returns the arrays that make F(x), its normal and its guess for each row."""
        run, size = self.run, self.run.windows.size
        self.pairs = rows, sample, stage = run.windows.pairs()
        self.last = np.append(sample[1:] != sample[:-1], True)  # of its window
        streams = np.zeros((size, 3), dtype=np.int64)
        streams[rows] = np.stack([np.full_like(stage, run.seed), self.host_ids[sample], stage], 1)
        stages = np.zeros(size, dtype=np.int64)
        stages[rows] = stage
        # A guess is the next point of the window; the last one is the state at the window's end.
        following = np.zeros(size, dtype=np.int64)
        following[rows[:-1]] = rows[1:]
        ends, finals = np.zeros((2, run.samples), dtype=np.int64)
        own = sample[self.last]
        ends[:], finals[:] = rows[self.last][-1], run.samples + own[-1]
        ends[: len(own)], finals[: len(own)] = rows[self.last], run.samples + own
        return {
            "streams": streams,
            "own": self.own[stages],
            "fresh noise": self.fresh[stages],
            "following": following,
            "ends": ends,
            "finals": finals,
        }

    def judge(self, outputs: list[torch.Tensor]) -> Verdict:
        """Decides on the guesses of all windows; returns how many stages of each are settled."""
        run = self.run
        self.points, self.guesses, sums = self._residuals(outputs)
        rows, sample, stage = self.pairs
        settled, failed = self._decide(outputs, rows, sample, stage, sums)
        error = np.zeros(run.samples)
        square = np.nan_to_num(sums[rows, 0], nan=np.inf, posinf=np.inf)
        np.maximum.at(error, sample, np.sqrt(square / run.numel))
        return Verdict(settled, error, failed)

    def _residuals(
        self, outputs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Returns F(x) and its guesses, [size, ...], and <r, r>, <r, z>, <z, z> of all rows."""
        run, sent, size = self.run, self.run.sent, self.run.windows.size
        points, z, guesses = (torch.empty_like(run.x) for _ in range(3))
        ops.combine_table_out(
            [run.x, *outputs], sent["own"], sent["fresh noise"], sent["streams"], [], [points, z],
            None,
        )  # fmt: skip
        torch.index_select(run.x, 0, sent["following"], out=guesses)
        # Two entries may be the same row: they then hold the same state.
        finals = run.states[:, 0].index_select(0, sent["finals"])
        guesses.index_copy_(0, sent["ends"], finals)
        (sums,) = run.sums((size, 3))
        ops.gram([points, guesses, z], self.deciding[:size], sums)
        (found,) = run.read()
        return points, guesses, found.reshape(size, 3)

    def _decide(
        self,
        outputs: list[torch.Tensor],
        rows: np.ndarray,
        sample: np.ndarray,
        stage: np.ndarray,
        sums: np.ndarray,
    ) -> tuple[np.ndarray, list[int]]:
        """Returns how many stages of each window are settled, [B], and the samples that failed."""
        run, noise, square, product = self.run, self.noise[stage], sums[rows, 0], sums[rows, 1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_ratio = product / noise - square / (2.0 * noise**2)
            weight = np.where(square > 0.0, 2.0 * noise * product / square, 0.0)
        taken = self.log_uniform[sample, stage] <= log_ratio
        taken = np.where(square == 0.0, True, taken & (noise > 0.0))
        count = run.windows.count
        begin = np.cumsum(count) - count  # of each window among the pairs
        # The first pair of each window that is refused; where none is, its last pair.
        place = np.arange(len(rows)) - begin[sample]
        first = count.copy()
        np.minimum.at(first, sample[~taken], place[~taken])
        refused, running = first < count, count > 0
        settled = np.minimum(first + 1, count)
        at = (begin + settled - 1)[running]
        self.row[running] = rows[at]
        self.weight[running] = np.where(refused[running], weight[at], 1.0)
        failed = []
        for b in np.flatnonzero(refused)[~np.isfinite(square[(begin + first)[refused]])]:
            row = int(self.row[b])
            if run.is_broken(int(b), int(first[b]), self.points[row], outputs):
                failed.append(int(b))
                settled[b] = 0
            else:
                # The guess is not finite. Its mean follows from earlier noises alone, so F(x) is a
                # draw from the right law.
                self.guesses[row] = self.points[row]
                self.weight[b] = 0.0
        self.tested += int(settled.sum())
        self.accepted += int(np.maximum(settled - refused, 0).sum())
        return settled, failed

    def leave(self, settled: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Gives free rows to the windows; returns the jobs that sweep all of each, and weights."""
        run, windows = self.run, self.run.windows
        count = windows.count.copy()
        got = windows.grow()
        running = np.flatnonzero(windows.count)
        start, count, got = windows.start[running], count[running], got[running]
        jobs = jobs_of(running, -1, running, run.samples + running, start, count, got, 1)
        length = int(windows.count.max(initial=0))
        walk = np.ascontiguousarray(windows.rows[running, :length])
        orders = run.jobs("window", jobs, walk, run.samples)
        moved = np.flatnonzero(settled)
        if len(moved):
            if run.padded:  # one shape in all rounds; a copy is written to the same place
                moved = np.append(moved, np.repeat(moved[:1], run.samples - len(moved)))
            weight = np.tile(self.weight[moved], 2)
            # If no stage follows, the settled point is the sample: the state at the end is it too.
            orders["settled"] = np.append(moved, run.samples + moved)
            orders["settled rows"] = np.tile(self.row[moved], 2)
            orders["settled weights"] = np.stack([1.0 - weight, weight], axis=1)[:, None]
        return orders

    def follow(self, sent: dict[str, torch.Tensor]) -> None:
        """Moves the samples on to their settled points, and sweeps on from there."""
        run = self.run
        if "settled" in sent:
            rows = sent["settled rows"]
            xs = [self.points.index_select(0, rows), self.guesses.index_select(0, rows)]
            settled = torch.empty_like(xs[0])
            weights = sent["settled weights"]
            ops.combine_table_out(xs, weights, None, None, [], [settled], None)
            run.states[:, 0].index_copy_(0, sent["settled"], settled)
        del self.points, self.guesses
        if "window jobs" in sent:
            jobs, walk = sent["window jobs"], sent["window walk"]
            run.sweep(run.x, run.outputs, jobs, walk)
        run.x, run.made = run.made, run.x
