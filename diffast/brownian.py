"""Brownian paths by counter: noise that stays nearly the same when the number of steps changes.

Fresh normals at every step are another noise for every number of steps. On a path the noise of a
step is the increment between its two times, so finer steps see more of the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from diffast import ops
from diffast.ops.schema import MAX_DEPTH

# Nodes lie 16 / 2^depth apart in log-SNR: at depth 11, 0.008.
LEAST_DEPTH = 11
_HALF_RANGE = 8.0
# An interval has so many nodes at least: rounding its ends then changes its length by 1/16 at most,
# and the path's share of the noise by 1/32. At 5 nodes a step runs of more steps stop converging.
_CELLS = 16
# Times nearer than this in log-SNR are one time, written twice with other roundings.
_SAME = 1e-9


class BrownianPath:
    """One Brownian path a sample, whose clock is a schedule's log-SNR lam.

    A path is a function of (seed, id, element, lam) alone: neither the order of the questions nor
    the batch nor the device enters. Times go to the nearest node of a dyadic tree over lam in
    [-8, 8], beyond it to its ends (alpha = 0, lam = -inf, is exact). The law is exact whatever the
    rounding: increments between nodes are N(0, 1), independent over disjoint intervals.

    An increment costs one normal a level and element where its first time was one of the two of the
    increment before, else two.

    Args:
        schedule: any schedule, with lam(t).
        shape: [B, ...] of the increments.
        seed: any integer of 64 bits, or B of them, one a sample.
        ids: [B] integers of 64 bits, tensor or sequence; default 0 .. B-1, with B seeds all 0.
        device: where the increments are made.
        dtype: float32, or float64 (the same normals, sums in float64).
        depth: of the tree; None: 11, and more where two times would share a node.
        spans: [N, 2] model times of increments to come, from noise to data: the depth is chosen
            for all of them, and what they need is put on the device now.

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
        if depth is not None and not 1 <= depth <= MAX_DEPTH:
            raise ValueError(f"BrownianPath: depth is {depth} but 1 to {MAX_DEPTH} are supported")
        self.schedule, self.shape = schedule, tuple(shape)
        self.device, self.dtype = torch.device(device), dtype
        self._fixed, self.depth = depth is not None, LEAST_DEPTH if depth is None else depth
        self._streams = _streams(seed, ids, self.shape[0]).to(self.device)
        # The values at the ends of the last increments, [B, ...], and the times [B] of those ends.
        self._values = [torch.empty(self.shape, dtype=dtype, device=self.device) for _ in range(2)]
        self._times: list[np.ndarray | None] = [None, None]
        self._nodes = [np.zeros(self.shape[0], np.int64)] * 2
        self._tables: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        if spans is not None and len(spans):
            self._prepare(np.asarray(spans, dtype=np.float64))

    def increment(self, times_from, times_to, out: torch.Tensor | None = None) -> torch.Tensor:
        """Returns the N(0, 1) numbers [B, ...] of the path between two times.

        Args:
            times_from: model time at which the increment starts, the noisier one: a number or [B].
            times_to: model time at which it ends.
            out: where to write; None: a new tensor.

        Raises:
            ValueError: a time without a log-SNR or with sigma = 0, where no noise falls; times
                that go towards more noise, or that even the deepest tree does not tell apart.
        """
        start, end = (self._batched(times) for times in (times_from, times_to))
        lams = self._lam(start), self._lam(end)
        self._check(start, end, *lams)
        nodes = self._find(start, lams[0]), self._find(end, lams[1])
        # A start that was put onto a coarser node before the tree grew may have passed the end.
        nodes = nodes[0], np.maximum(nodes[1], nodes[0] + 1)
        out = torch.empty_like(self._values[0]) if out is None else out
        held = next((k for k in (0, 1) if self._holds(k, nodes[0])), None)
        last, new = (None, 0) if held is None else (self._values[held], 1 - held)
        call = (self._streams, *self._table(*nodes), self.depth, last, out, self._values[new])
        ops.brownian_out(*call)
        self._times[new], self._nodes[new] = end, nodes[1]
        return out

    def _batched(self, times) -> np.ndarray:
        if isinstance(times, torch.Tensor):
            times = times.detach().double().cpu().numpy()
        return np.broadcast_to(np.asarray(times, dtype=np.float64), self.shape[:1])

    def _lam(self, times: np.ndarray) -> np.ndarray:
        """Returns log-SNRs of model times, in [-8, 8] or -inf."""
        lam = np.asarray(self.schedule.lam(times), dtype=np.float64)
        bad = ~(lam < np.inf)
        if bad.any():
            t = np.broadcast_to(times, lam.shape)[bad][0]
            raise ValueError(f"BrownianPath: sigma = 0 at t = {t:g}, and no noise falls there")
        return np.where(np.isneginf(lam), lam, np.clip(lam, -_HALF_RANGE, _HALF_RANGE))

    def _near(self, lam: np.ndarray) -> np.ndarray:
        """Returns the nearest nodes, -1 for lam = -inf."""
        known = np.maximum(lam, -_HALF_RANGE)
        nodes = np.rint((known + _HALF_RANGE) * (2.0**self.depth / (2 * _HALF_RANGE)))
        return np.where(np.isneginf(lam), -1, nodes).astype(np.int64)

    def _find(self, times: np.ndarray, lam: np.ndarray) -> np.ndarray:
        """Returns the nodes where these times were put before, else the nearest."""
        for k in (0, 1):
            if self._times[k] is not None and np.array_equal(times, self._times[k]):
                return self._nodes[k]
        return self._near(lam)

    def _holds(self, k: int, nodes: np.ndarray) -> bool:
        return self._times[k] is not None and np.array_equal(nodes, self._nodes[k])

    def _check(self, start, end, lam_start, lam_end) -> None:
        """Refuses intervals that do not go towards data, and grows the tree for short ones."""
        back = lam_start > lam_end
        if back.any():
            t, to = start[back][0], end[back][0]
            raise ValueError(
                f"BrownianPath: from t = {t:g} to t = {to:g} noise is put back, but a path goes "
                "from noise to data"
            )
        gaps = lam_end - np.maximum(lam_start, -_HALF_RANGE - 1.0)
        self._grow(gaps, _CELLS)
        same = self._near(lam_start) == self._near(lam_end)
        if same.any():
            t, to = start[same][0], end[same][0]
            raise ValueError(
                f"BrownianPath: t = {t:.9g} and t = {to:.9g} are one node of the tree of depth "
                f"{self.depth} over log-SNRs from -8 to 8"
            )

    def _grow(self, gaps: np.ndarray, cells: int) -> None:
        """Doubles the nodes until gaps in lam have so many, or there are as many as can be."""
        least = gaps.min(initial=np.inf)
        while (
            not self._fixed
            and self.depth < MAX_DEPTH
            and _SAME < least < cells * 2 * _HALF_RANGE / 2.0**self.depth
        ):
            self.depth += 1
            self._nodes = [np.where(nodes > 0, 2 * nodes, nodes) for nodes in self._nodes]
            self._tables.clear()

    def _table(self, start: np.ndarray, end: np.ndarray):
        """Returns nodes [B, 2] and weights [B, 2] on the device."""
        nodes = np.stack([start, end], axis=1)
        if not (nodes == nodes[:1]).all():
            return self._on_device(nodes)
        pair = tuple(nodes[0].tolist()) if len(nodes) else (-1, 0)
        if pair not in self._tables:
            self._tables[pair] = self._on_device(np.array([pair]))
        return tuple(t.expand(len(nodes), 2).contiguous() for t in self._tables[pair])

    def _on_device(self, nodes: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns pairs of nodes [N, 2] and their weights [N, 2]."""
        tables = nodes, self._weights(nodes)
        return tuple(torch.from_numpy(table).to(self.device) for table in tables)

    def _weights(self, nodes: np.ndarray) -> np.ndarray:
        """Returns the weights (of the end, of the start) that make increments N(0, 1)."""
        h = (nodes[:, 1] - nodes[:, 0]) * (2 * _HALF_RANGE / 2.0**self.depth)
        h = np.where(nodes[:, 0] < 0, np.inf, h)
        size = np.sqrt(-np.expm1(-2.0 * h))
        return np.stack([1.0 / size, -np.exp(-h) / size], axis=-1)

    def _prepare(self, spans: np.ndarray) -> None:
        """Chooses the depth for all spans and puts their tables on the device at once."""
        lams = self._lam(spans)
        self._check(*spans.T, *lams.T)
        gaps = np.diff(np.unique(lams[np.isfinite(lams)]))
        self._grow(gaps[gaps > _SAME], 1)
        nodes = self._near(lams)
        tables = zip(*(table.split(1) for table in self._on_device(nodes)), strict=True)
        self._tables = dict(zip(map(tuple, nodes.tolist()), tables, strict=True))


def path_noise(
    plan, shape: Sequence[int], seed: int, ids: torch.Tensor, dtype: torch.dtype
) -> Callable[[int], torch.Tensor] | None:
    """Returns `draw(stage)` that gives a plan's fresh noise as increments of one path a sample.

    Args:
        plan: its `spans` say which increment a stage's noise stands for.
        shape: [B, ...] of the state.
        seed: any integer of 64 bits.
        ids: int64 [B] on the device of the state.
        dtype: of the state.

    Returns:
        The function, whose tensor is overwritten by its next call; None for a plan without noise.

    Raises:
        ValueError: if the plan puts noise back, as churn and restarts do.
    """
    if plan.opening[1]:
        raise ValueError(
            f"sample: {plan.name} puts noise back before its first call, but a path goes from "
            "noise to data"
        )
    drawn = np.flatnonzero((plan.point[:, 1] != 0.0) | (plan.anchor[:, 1] != 0.0))
    if not drawn.size:
        return None
    lam = plan.schedule.lam(plan.spans[drawn])
    back = drawn[lam[:, 0] > lam[:, 1]]
    if back.size:
        start, end = plan.spans[back[0]]
        raise ValueError(
            f"sample: {plan.name} puts noise back at stage {back[0]}, from t = {start:g} to t = "
            f"{end:g}, but a path goes from noise to data"
        )
    path = BrownianPath(
        plan.schedule,
        shape,
        seed,
        ids,
        device=ids.device,
        dtype=dtype,
        spans=plan.spans[drawn],
    )
    z = torch.empty(tuple(shape), dtype=dtype, device=ids.device)
    spans = plan.spans.tolist()
    return lambda stage: path.increment(*spans[stage], out=z)


def _streams(seed, ids, batch: int) -> torch.Tensor:
    """Returns (seed, id, 0) of every sample, int64 [B, 3]."""
    if np.ndim(seed) == 0:
        seeds = [ops.fold_seed(seed)] * batch
        ids = range(batch) if ids is None else ids
    else:
        seeds = [ops.fold_seed(one) for one in seed]
        ids = [0] * batch if ids is None else ids
    if len(seeds) != batch or len(ids) != batch:
        raise ValueError(f"BrownianPath: {len(seeds)} seeds and {len(ids)} ids for {batch} samples")
    ids = torch.as_tensor(ids, dtype=torch.int64).reshape(batch, 1)
    seeds = torch.tensor(seeds, dtype=torch.int64, device=ids.device).reshape(batch, 1)
    return torch.cat([seeds, ids, torch.zeros_like(ids)], dim=1)
