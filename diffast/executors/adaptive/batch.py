"""The samples of an adaptive run that are still on their way, and how the others leave.

Every tensor has room for all samples; the first `size` rows are in the batch. A sample that is done
hands over its results, and the last running one takes its row. On the CPU that happens at once: the
move costs less than a call of the network. On a device the statuses come by a copy that is not
waited for, and samples leave when an eighth of the batch is done, because some 20 launches go with
them. A sample that is done may therefore stay for a while, unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffast.executors.context import Place
from diffast.executors.device import host_buffer, new_event, on_host, sent
from diffast.ops.schema import FINISHED, RUNNING

# On a device the statuses are copied to the host once in so many rounds.
POLL = 4
# Samples leave a device's batch when one in so many is done.
SHARE = 8


class Batch:
    """Tensors by name, and the control of each row.

    Tensors that are held go with a sample from trial step to trial step, and are zero at first.
    Those that are passing are made anew in every round. Records are "control" [B, C] float64 and
    "counts" [B, N] int64, see `CONTROLS` and `COUNTS` of `diffast.ops.schema`, and "streams" [B, 3]
    int64. With `compact` samples leave before all are done: `leave` is called with (rows, samples,
    finished), tensors on the device, before their rows are reused, and `moved` with the samples
    that are left after rows were removed or moved.
    """

    def __init__(
        self,
        place: Place,
        held: Sequence[str],
        passing: Sequence[str],
        records: dict[str, torch.Tensor],
        compact: bool,
        leave: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None],
        moved: Callable[[torch.Tensor], None],
    ):
        """Makes the tensors; all samples are in the batch."""
        device, count = place.device, place.shape[0]
        self.device, self.on_host, self.compact = device, on_host(device), compact
        self.held, self.leave, self.moved = held, leave, moved
        self.tensors = {name: place.empty() for name in (*held, *passing)}
        for name in held:
            self.tensors[name].zero_()
        self.records = records | {
            "norms": torch.zeros((count, 2), dtype=torch.float64, device=device),
            "status": torch.full((count,), -1, dtype=torch.int64, device=device),
        }
        self.samples = np.arange(count)  # which sample each row is
        self.waiting = None
        self.look(count)

    def look(self, size: int) -> None:
        """Makes the views of the first rows that the rounds work on."""
        self.size = size
        self.view = {name: tensor[:size] for name, tensor in self.tensors.items()}
        self.now = {name: record[:size] for name, record in self.records.items()}
        # On the host numpy sees the same memory; its small operations cost half of torch's.
        told = self.now["control"], self.now["counts"]
        self.control: Any
        self.counts: Any
        self.control, self.counts = (t.numpy() if self.on_host else t for t in told)

    def poll(self, rounds: int) -> None:
        """Lets samples leave that are known to be done."""
        if self.on_host:
            if self.counts[:, 0].any():
                self.retire(self.counts[:, 0].copy())
        elif self.waiting is not None:
            statuses, event = self.waiting
            if event.query():
                self.waiting = None
                self.retire(statuses.numpy())
        elif rounds % POLL == 0:
            statuses = host_buffer(self.size, torch.int64, self.device)
            statuses.copy_(self.now["counts"][:, 0], non_blocking=True)
            self.waiting = statuses, new_event(self.device)

    def retire(self, statuses: np.ndarray) -> None:
        """Lets the rows leave whose status [size] is not "running", if they are enough."""
        done = np.flatnonzero(statuses != RUNNING)
        share = 1 if not self.compact else self.size if self.on_host else SHARE
        if done.size == 0 or done.size * share < self.size:
            return
        self.remove(done, statuses[done] == FINISHED)

    def remove(self, done: np.ndarray, finished: np.ndarray) -> None:
        """Lets rows leave; the last ones take their places."""
        left = self.size - done.size
        holes = done[done < left]
        movers = np.setdiff1d(np.arange(left, self.size), done)
        leaving = self.samples[done]
        self.samples[holes] = self.samples[movers]
        rows = done, leaving, finished, holes, movers, self.samples[:left].copy()
        start, samples, fine, to, moving, kept = sent(self.device, *rows)
        self.leave(start, samples, fine)
        if holes.size:
            tensors = [self.tensors[name] for name in self.held]
            for tensor in (*tensors, *(self.records[n] for n in ("control", "counts", "streams"))):
                tensor[to] = tensor[moving]
        self.records["status"].fill_(-1)
        self.look(left)
        self.moved(kept)
