"""Parallel rounds whose samples have exactly the law of the plan, whatever the guesses were worth.

Step n of a one-step stochastic plan is x_{n+1} = F_n(x_n) = m_n(x_n) + s_n z_n. A sweep has guessed
x_{n+1} = q_n + s_n z_n, with the same z_n and a mean q_n that follows from z_0 .. z_{n-1} alone.
Once x_n is settled the network's answer there gives m_n. With r = F_n(x_n) - x_{n+1} = m_n - q_n
the guess is taken with the probability by which m_n makes it more likely than q_n,

    min(1, exp(<z_n, r> / s_n - |r|^2 / (2 s_n^2))),

and reflected otherwise, x_{n+1} = F_n(x_n) - 2 (s_n <z_n, r> / |r|^2) r. Either way x_{n+1} is a
draw from N(m_n, s_n^2): the reflection-maximal coupling of both normals (De Bortoli et al. 2025,
"Accelerated diffusion models via speculative sampling", section 3). A reflection ends the round's
settled stages; it settles one itself, so there are never more rounds than stages. Each step is
decided once, with a uniform number of its own.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from diffast import ops
from diffast.executors.parallel.rounds import Round, Run


def check_plan(plan, tables, clamp) -> None:
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


class SpeculativeRun(Run):
    """Rounds of `Run` that accept by coupling instead of by size."""

    def __init__(self, *args):
        """Draws the uniform number of every step."""
        super().__init__(*args)
        stages = self.plan.nfe
        z = torch.empty((self.samples, stages), dtype=torch.float32)
        ops.normal_out(self.ids.cpu(), self.seed, ops.COUPLING_NOISE, 1.0, z)
        # Of a normal number its distribution function is uniform.
        self.log_uniform = torch.special.log_ndtr(z.double()).numpy()
        self.tested = self.accepted = 0
        self.host_ids = self.ids.cpu().numpy()

    def round(self, rule) -> np.ndarray:
        """Runs one round; returns how many stages each sample has left behind, [B].

        Args:
            rule: says limits.

        Raises:
            FloatingPointError: if a point that follows from settled ones alone is not finite.
        """
        windows = self.windows
        outputs = self.ask()
        self.gains = self.measure(outputs)
        rows, sample, stage = windows.pairs()
        windows.age[rows] += 1
        made, guess, sums = self._residuals(outputs, rows, sample, stage)
        strides, reflected = self._decide(rows, sample, stage, sums)
        error = np.zeros(self.samples)
        np.maximum.at(error, sample, np.sqrt(np.nan_to_num(sums[rows, 0]) / self.numel))
        self._settle(made, guess, strides, reflected)
        windows.advance(strides)
        self.last = outputs
        self._guess(rule, outputs)
        self.x, self.other = self.other, self.x
        self.rounds.append(Round(windows.start.copy(), len(rows), error))
        self.shrink()
        return strides

    def _residuals(self, outputs, rows, sample, stage):
        """Returns F(x) and the guesses of its points, [size, ...], and <r, r>, <r, z>, <z, z>."""
        size = self.windows.size
        stages, streams = np.zeros(size, dtype=np.int64), np.zeros((size, 3), dtype=np.int64)
        stages[rows] = stage
        streams[rows, 0], streams[rows, 1], streams[rows, 2] = (
            self.seed,
            self.host_ids[sample],
            stage,
        )
        table = self.on_device[0].index_select(0, self._put(stages))[:, -1:]
        streams = self._put(streams)
        xs = [self.x, *outputs]
        made, z, guess = (torch.empty_like(self.x) for _ in range(3))
        ops.combine_table_out(
            xs,
            table[:, :, : len(xs)].contiguous(),
            table[:, :, len(xs) :].contiguous(),
            streams,
            [],
            [made],
            None,
        )
        one = torch.ones((size, 1, 1), dtype=torch.float64, device=self.device)
        ops.combine_table_out([self.x], one * 0.0, one, streams, [], [z], None)
        following = np.zeros(size, dtype=np.int64)
        same = np.append(sample[1:] == sample[:-1], False) if len(sample) else []
        following[rows[:-1]] = rows[1:]
        torch.index_select(self.x, 0, self._put(following), out=guess)
        last = rows[~same]
        ends = self.states[:, 0].index_select(0, self._put(self.samples + sample[~same]))
        guess.index_copy_(0, self._put(last.astype(np.int64)), ends)
        weights = torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        weights = weights.to(self.device).expand(size, 2, 3).contiguous()
        sums = torch.empty((size, 3), dtype=torch.float64, device=self.device)
        ops.gram([made, guess, z], weights, sums)
        return made, guess, sums.cpu().numpy()

    def _decide(self, rows, sample, stage, sums):
        """Returns the strides [B], and for those that end in a reflection (sample, row, weight)."""
        noise = self.tables.weights[stage, -1, -1]
        square, product = sums[rows, 0], sums[rows, 1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            log_ratio = product / noise - square / (2.0 * noise**2)
            weight = np.where(square > 0.0, 2.0 * noise * product / square, 0.0)
        taken = self.log_uniform[sample, stage] <= log_ratio
        taken = np.where(square == 0.0, True, taken & (noise > 0.0))
        strides = np.zeros(self.samples, dtype=np.int64)
        reflected = []
        place = 0
        for b in np.flatnonzero(self.windows.count):
            count = int(self.windows.count[b])
            here = slice(place, place + count)
            place += count
            failed = np.flatnonzero(~taken[here])
            strides[b] = int(failed[0]) + 1 if failed.size else count
            self.tested += int(strides[b])
            self.accepted += int(strides[b]) - bool(failed.size)
            if failed.size:
                at = here.start + int(failed[0])
                if not math.isfinite(square[at]):
                    self.windows.start[b] = stage[at]
                    raise FloatingPointError(self._complaint(b))
                reflected.append((int(b), int(rows[at]), float(weight[at])))
        return strides, reflected

    def _settle(self, made, guess, strides, reflected) -> None:
        """Puts the points that the samples have come to where their windows start."""
        windows, whose = self.windows, {b for b, _, _ in reflected}
        moved = np.array([b for b in np.flatnonzero(strides) if b not in whose], dtype=np.int64)
        whole = strides[moved] == windows.count[moved]
        ends, inside = moved[whole], moved[~whole]
        starts = self.states[:, 0]
        if ends.size:
            points = starts.index_select(0, self._put(ends + self.samples))
            starts.index_copy_(0, self._put(ends), points)
        if inside.size:
            rows = windows.rows[inside, strides[inside]].astype(np.int64)
            starts.index_copy_(0, self._put(inside), self.x.index_select(0, self._put(rows)))
        if not reflected:
            return
        index = self._put(np.array([row for _, row, _ in reflected], dtype=np.int64))
        table = np.array([[[1.0 - c, c]] for _, _, c in reflected])
        xs = [made.index_select(0, index), guess.index_select(0, index)]
        out = torch.empty_like(xs[0])
        ops.combine_table_out(xs, self._put(table), None, None, [], [out], None)
        into = self._put(np.array([b for b, _, _ in reflected], dtype=np.int64))
        starts.index_copy_(0, into, out)
        # Where nothing follows, that is the sample.
        starts.index_copy_(0, into + self.samples, out)

    def _guess(self, rule, outputs) -> None:
        """Walks from the settled points through the answers at hand, and on into new rows."""
        windows, samples = self.windows, self.samples
        count = windows.count.copy()
        got = windows.grow(rule.limits(windows.start))
        jobs, walks = [], []
        for b in np.flatnonzero(windows.count):
            first, real, tail = int(windows.start[b]), int(count[b]), int(got[b])
            jobs.append((b, -1, b, samples + b, first, real, tail, 1))
            walks.append(windows.rows[b, : real + tail])
        if jobs:
            self._sweep(self.x, outputs, self.gains, jobs, walks, self.other, None)
