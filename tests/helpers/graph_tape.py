"""A CUDA graph played on the CPU: ops are recorded with their tensors, and done again as they were.

As in a real graph, a replay knows no Python of the work: it repeats the ops on the same memory with
the host numbers of the capture. What would read from the device is refused in capture, with CUDA's
words. A capture computes nothing: what it has written is taken back, and new tensors become NaN.
"""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Ops that wait for the device, or would.
READS = ("aten.item", "_local_scalar_dense", "nonzero", "aten.equal", "masked_select")
REFUSED = (
    "CUDA error: operation not permitted when stream is capturing\n"
    "Search for `cudaErrorStreamCaptureUnsupported' in the runtime's documentation."
)


class Tape(TorchDispatchMode):
    """Records the ops of some work."""

    def __init__(self, most: int | None):
        super().__init__()
        self.most, self.made, self.ops = most, 0, []
        self.before, self.fresh = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = "index" in str(func) and any(t.dtype == torch.bool for t in _tensors(args[1:]))
        if mask or any(word in str(func) for word in READS):
            raise RuntimeError(REFUSED)
        written = _written(func, args, kwargs or {})
        self.before += [(tensor, tensor.clone()) for tensor in written]
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self.made += tensor.nbytes
        if self.most is not None and self.made > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.ops.append((func, args, kwargs or {}, out))
        if not written and not func.is_view:
            self.fresh += [t for t in _tensors(out) if t.is_floating_point()]
        return out

    def undo(self):
        """Takes back what the capture computed: written tensors are as before, new ones NaN."""
        with torch.inference_mode():
            for tensor in self.fresh:
                tensor.fill_(torch.nan)
            for tensor, value in reversed(self.before):
                tensor.copy_(value)

    def replay(self):
        with torch.inference_mode():
            for func, args, kwargs, out in self.ops:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(out), _tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():  # else a view, or written in place
                        old.copy_(new)


def _written(func, args, kwargs):
    """Returns the tensors that an op writes to, by its schema."""
    named = zip(func._schema.arguments, args, strict=False)
    given = [(a, value) for a, value in named]
    given += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
    writes = [v for a, v in given if a.alias_info is not None and a.alias_info.is_write]
    return _tensors(writes)


def _tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


class TapeBackend:
    """A backend of `cuda_graph` on the CPU. Counts what it is asked for."""

    def __init__(self, device, most=None):
        self.device, self.most, self.log = device, most, []
        self._bytes, self._loose = 0, 2**30  # loose: what nobody uses any more

    def aside(self, work):
        self.log.append("aside")
        work()

    def tidy(self):
        self._loose = 0

    def capture(self, work):
        self.log.append("capture")
        tape = Tape(self.most)
        try:
            with tape:
                work()
        except BaseException:
            tape.undo()
            raise
        self._bytes += tape.made
        tape.undo()
        return tape

    def reserved(self):
        return self._bytes + self._loose

    def fetch(self, tensor):
        self.log.append("fetch")
        kept = tensor.clone()
        return kept.numpy

    def follow(self):
        self.log.append("follow")

    def mark(self):
        self.log.append("mark")
