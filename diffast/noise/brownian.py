"""Brownian paths: noise that stays nearly the same when the number of steps changes.

The noise of a step is the increment of the path between the step's two times. Runs with more steps
use more increments of the same path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast import ops
from diffast.ops.schema import MAX_DEPTH, PATH_RANGE

# Nodes lie 16 / 2^depth apart in log-SNR: at depth 11, 0.008.
LEAST_DEPTH = 11
# The least number of nodes of an interval: rounding its ends changes its length by 1/16 at most and
# the path's share of the noise by 1/32. With 5 nodes a step, runs with more steps do not converge.
_CELLS = 16
# Times nearer than this in log-SNR are one time with two roundings.
_SAME = 1e-9


class BrownianPath:
    """One Brownian path a sample; the path's time variable is a schedule's log-SNR lam.

    A path is a function of (seed, id, element, lam) alone. It does not depend on the order of the
    calls, the batch or the device. Times are rounded to the nearest node of a dyadic tree over lam
    in [-8, 8], and to its ends outside (alpha = 0, lam = -inf, is exact). Rounding does not change
    the law: increments between nodes are N(0, 1), independent over disjoint intervals.

    An increment costs one normal a level and element if it starts at a time of the increment
    before, else two.

    Args:
        schedule: any schedule, with lam(t).
        shape: [B, ...] of the increments.
        seed: any integer of 64 bits, or B of them, one a sample.
        ids: [B] integers of 64 bits, tensor or sequence; default 0 .. B-1, with B seeds all 0.
        device: where the increments are made.
        dtype: float32, or float64 (the same normals, sums in float64).
        depth: of the tree; None: 11, and more where an interval would have less than 16 nodes.
        spans: [N, 2] model times of increments to come, from noise to data: the depth is chosen
            for all of them, and their tables are put on the device now.

    Raises:
        ValueError: for arguments that disagree, and for spans that `increment` would refuse.
    """

    def __init__(
        self,
        schedule,
        shape: Sequence[int],
        seed: int | Sequence[int] = 0,
        ids: Sequence[int] | torch.Tensor | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        depth: int | None = None,
        spans: np.ndarray | None = None,
    ):
        """Puts the streams on the device and chooses the depth."""
        who = "BrownianPath"
        if depth is not None:
            depth = arguments.whole(who, "depth", depth, 1, MAX_DEPTH)
        if not hasattr(schedule, "lam"):
            raise TypeError(f"{who}: schedule is {arguments.shown(schedule)} but one is needed")
        self.schedule, self.shape = schedule, arguments.sizes(who, shape)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{who}: dtype is {dtype} but must be float32 or float64")
        self.device, self.dtype = arguments.device(who, device), dtype
        self._fixed, self.depth = depth is not None, LEAST_DEPTH if depth is None else depth
        self._streams = _streams(seed, ids, self.shape[0]).to(self.device)
        # Of the last two ends: the values [B, ...], the times, and the nodes that the times were
        # rounded to (one number for all samples, or B).
        self.values = [torch.empty(self.shape, dtype=dtype, device=self.device) for _ in range(2)]
        self._times: list[tuple[float, ...]] = [(), ()]
        self._nodes: list[tuple[int, ...]] = [(), ()]
        self._lams: dict[float, float] = {}
        self._tables: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows_of: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] | None = None
        if spans is not None:
            self._prepare([tuple(span) for span in np.asarray(spans, np.float64).tolist()])

    def increment(self, times_from, times_to, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the N(0, 1) numbers [B, ...] of the path between two times.

        Args:
            times_from: model time at which the increment starts, the noisier one: a number or [B].
            times_to: model time at which it ends.
            out: where to write; None: a new tensor.

        Raises:
            ValueError: a time without a log-SNR or with sigma = 0; times that go towards more
                noise; times that are one node even of the deepest tree.
        """
        start, end = self._numbers(times_from), self._numbers(times_to)
        count = max(len(start), len(end))
        for t, to in zip(_repeated(start, count), _repeated(end, count), strict=True):
            self._check(t, to)
        first = self._find(start)
        # A start that was rounded before the tree grew may lie behind the end.
        pairs = zip(_repeated(first, count), _repeated(self._find(end), count), strict=True)
        last = tuple(max(to, node + 1) for node, to in pairs)
        out = torch.empty_like(self.values[0]) if out is None else out
        held = self._nodes.index(first) if first in self._nodes else None
        known, new = (None, 0) if held is None else (self.values[held], 1 - held)
        tables = self._table(_repeated(first, count), last)
        ops.brownian_out(self._streams, *tables, self.depth, known, out, self.values[new])
        self._times[new], self._nodes[new] = _repeated(end, count), last
        return out

    def reseed(self, seed: int, ids: torch.Tensor) -> None:
        """Makes this the path of other samples, in place; nothing is read from the device.

        Args:
            seed: folded, for all samples.
            ids: [B] int64 on the path's device.
        """
        self._streams[:, 0].fill_(seed)
        self._streams[:, 1].copy_(ids)
        self.forget()

    def forget(self) -> None:
        """Forgets the last values: the next increment computes both of its ends."""
        self._times, self._nodes = [(), ()], [(), ()]

    def keep_tables(self) -> None:
        """Keeps the tables [B, 2] of every interval from now on: equal runs then allocate none."""
        self._rows_of = {}

    def _numbers(self, times) -> tuple[float, ...]:
        """Returns model times as floats: one for all samples, or B."""
        if np.ndim(times) == 0:
            return (float(times),)
        numbers = tuple(float(t) for t in (times.tolist() if hasattr(times, "tolist") else times))
        if len(numbers) != self.shape[0]:
            raise ValueError(
                f"BrownianPath: {len(numbers)} times, but there are {self.shape[0]} samples"
            )
        return numbers

    def _lam(self, t: float) -> float:
        """Returns the log-SNR of a model time, in [-8, 8] or -inf."""
        if t not in self._lams:
            lam = float(self.schedule.lam(t))
            if not lam < math.inf:
                raise ValueError(f"BrownianPath: sigma = 0 at t = {t:g}, and no noise falls there")
            clamped = min(max(lam, -PATH_RANGE), PATH_RANGE)
            self._lams[t] = lam if lam == -math.inf else clamped
        return self._lams[t]

    def _near(self, t: float) -> int:
        """Returns the nearest node, -1 for lam = -inf."""
        lam = self._lam(t)
        return -1 if lam == -math.inf else round((lam + PATH_RANGE) / self._cell)

    @property
    def _cell(self) -> float:
        return 2 * PATH_RANGE / 2.0**self.depth

    def _find(self, times: tuple[float, ...]) -> tuple[int, ...]:
        """Returns the nodes that these times were rounded to before, else the nearest ones."""
        if times in self._times:
            return self._nodes[self._times.index(times)]
        return tuple(self._near(t) for t in times)

    def _check(self, t: float, to: float) -> None:
        """Refuses an interval that does not go towards data; grows the tree for a short one."""
        start, end = self._lam(t), self._lam(to)
        if start > end:
            raise ValueError(
                f"BrownianPath: from t = {t:g} to t = {to:g} noise is put back, but a path goes "
                "from noise to data"
            )
        self._grow(end - start, _CELLS)
        if self._near(t) == self._near(to):
            raise ValueError(
                f"BrownianPath: t = {t:.9g} and t = {to:.9g} are one node of the tree of depth "
                f"{self.depth} over log-SNRs from -8 to 8"
            )

    def _grow(self, gap: float, cells: int) -> None:
        """Doubles the nodes until a gap in lam has `cells` of them, or the tree is the deepest."""
        while not self._fixed and self.depth < MAX_DEPTH and _SAME < gap < cells * self._cell:
            self.depth += 1
            for k, nodes in enumerate(self._nodes):
                self._nodes[k] = tuple(max(n, 2 * n) for n in nodes)
                if 2**self.depth in self._nodes[k]:  # no node is left above it
                    self._times[k] = self._nodes[k] = ()
            self._tables.clear()
            if self._rows_of is not None:
                self._rows_of.clear()

    def _table(self, start: tuple[int, ...], end: tuple[int, ...]):
        """Returns nodes [B, 2] and weights [B, 2] on the device."""
        if len(start) != 1:
            return self._on_device(list(zip(start, end, strict=True)))
        pair = start[0], end[0]
        if pair not in self._tables:
            self._tables[pair] = self._on_device([pair])
        if self._rows_of is not None and pair in self._rows_of:
            return self._rows_of[pair]
        nodes, weights = (t.expand(self.shape[0], 2).contiguous() for t in self._tables[pair])
        if self._rows_of is not None:
            self._rows_of[pair] = nodes, weights
        return nodes, weights

    def _on_device(self, pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns pairs of nodes [N, 2], and the weights [N, 2] that make increments N(0, 1)."""
        weights = []
        for start, end in pairs:
            h = math.inf if start < 0 else (end - start) * self._cell
            size = math.sqrt(-math.expm1(-2.0 * h))
            weights.append((1.0 / size, -math.exp(-h) / size))
        return (
            torch.tensor(pairs, dtype=torch.int64, device=self.device).reshape(-1, 2),
            torch.tensor(weights, dtype=torch.float64, device=self.device).reshape(-1, 2),
        )

    def _prepare(self, spans: list[tuple[float, float]]) -> None:
        """Chooses the depth for all spans and puts their tables on the device at once."""
        for span in spans:
            self._check(*span)
        lams = sorted(lam for lam in self._lams.values() if lam > -math.inf)
        for lam, following in zip(lams, lams[1:], strict=False):
            self._grow(following - lam, 1)
        pairs = [(self._near(t), self._near(to)) for t, to in spans]
        tables = zip(*(table.split(1) for table in self._on_device(pairs)), strict=True)
        self._tables = dict(zip(pairs, tables, strict=True)) if pairs else {}


def _repeated(numbers: tuple, count: int) -> tuple:
    return numbers * count if len(numbers) == 1 else numbers


class PathNoise:
    """The fresh noise of a plan's stages as increments of one path a sample."""

    def __init__(self, path: BrownianPath, spans: list[list[float]], z: torch.Tensor):
        """Keeps the path, the times of each stage's increment, and where increments go."""
        self.path, self._spans, self._z = path, spans, z

    def __call__(self, stage: int) -> torch.Tensor:
        """Returns the normals of a stage, [B, ...]; the next call overwrites them."""
        return self.path.increment(*self._spans[stage], out=self._z)

    @property
    def buffers(self) -> list[torch.Tensor]:
        """Returns the tensors [B, ...] that the increments and the path's last values lie in."""
        return [self._z, *self.path.values]


def path_noise(
    plan, shape: Sequence[int], seed: int, ids: torch.Tensor, dtype: torch.dtype
) -> PathNoise | None:
    """Returns `noise(stage)`, which gives a plan's fresh noise as increments of a path a sample.

    Its tensor [B, ...] is overwritten by its next call. The plan's `spans` are the times of each
    stage's increment. Returns None for a plan without noise.

    Raises:
        ValueError: if the plan puts noise back, as churn and restarts do, or draws two normals a
            stage, as Langevin correctors do.
    """
    second = np.flatnonzero(sum(np.abs(plan.weights(row, "z2")) for row in plan.rows))
    if second.size:
        raise ValueError(
            f"sample: path: {plan.name} draws 2 normals at stage {second[0]}, but 1 a stage can be "
            "given"
        )
    drawn = np.flatnonzero(sum(np.abs(plan.weights(row, "z1")) for row in plan.rows))
    if not np.isin(drawn, plan.evaluations).all():
        raise ValueError(
            f"sample: {plan.name} puts noise back before a call, but a path goes from noise to data"
        )
    if not drawn.size:
        return None
    lam = plan.schedule.lam(plan.spans[drawn])
    back = drawn[lam[:, 0] >= lam[:, 1]]  # at one time: the noise of a corrector
    if back.size:
        start, end = plan.spans[back[0]]
        raise ValueError(
            f"sample: {plan.name} puts noise back at stage {back[0]}, from t = {start:g} to t = "
            f"{end:g}, but a path goes from noise to data"
        )
    kind = {"device": ids.device, "dtype": dtype}
    path = BrownianPath(plan.schedule, shape, seed, ids, spans=plan.spans[drawn], **kind)
    return PathNoise(path, plan.spans[plan.evaluations].tolist(), torch.empty(tuple(shape), **kind))


def _streams(seed, ids, batch: int) -> torch.Tensor:
    """Returns (seed, id, 0) of every sample, int64 [B, 3]."""
    one = np.ndim(seed) == 0
    try:
        seeds = [ops.fold_seed(n) for n in ([seed] * max(batch, 1) if one else seed)][
            : batch if one else None
        ]
    except (TypeError, ValueError) as error:
        raise type(error)(f"BrownianPath: {error}") from None
    if ids is None:
        ids = range(batch) if one else [0] * batch
    if len(seeds) != batch or (hasattr(ids, "__len__") and len(ids) != batch):
        count = len(ids) if hasattr(ids, "__len__") else batch
        raise ValueError(f"BrownianPath: {len(seeds)} seeds and {count} ids for {batch} samples")
    ids = arguments.ids("BrownianPath", ids, batch).reshape(batch, 1)
    seeds = torch.tensor(seeds, dtype=torch.int64, device=ids.device).reshape(batch, 1)
    return torch.cat([seeds, ids, torch.zeros_like(ids)], dim=1)
