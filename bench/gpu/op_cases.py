"""The calls that are measured on a GPU, at any size: random data, bytes that have to be moved."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from diffast import ops

KIB, MIB = 2**10, 2**20
BATCH, WINDOW = 8, 100
WEIGHTS = (0.5, -0.3, 0.2, 0.7, -0.1, 0.4, 0.15, -0.6)


class Pair(NamedTuple):
    """The op on tensors of its own, and the same map in eager torch or None."""

    op: Callable[[], object]
    eager: Callable[[], object] | None = None


@dataclass(frozen=True)
class OpCase:
    """One case.

    Attributes:
        op: the op's name.
        label: what kind of call.
        dtype: "fp32" or "bf16".
        tensor: bytes of one of its tensors.
        bytes: what has to be read and written at least.
        noise: whether it draws normals.
        make: returns a `Pair` over fresh random tensors.
    """

    op: str
    label: str
    dtype: str
    tensor: int
    bytes: int
    noise: bool = False
    make: Callable[[], Pair] = field(default=lambda: Pair(lambda: None), repr=False)

    @property
    def name(self) -> str:
        """Returns the case's name in tables."""
        size = f"{self.tensor // MIB} MiB" if self.tensor >= MIB else f"{self.tensor // KIB} KiB"
        return f"{self.op} {self.label} {self.dtype} {size}"


def _combine(device, size, name, dtype, inputs, noise):
    shape = (BATCH, size // dtype.itemsize // BATCH)
    weights = WEIGHTS[:inputs]
    ids = torch.arange(BATCH, device=device)

    def make():
        xs = [torch.randn(shape, device=device).to(dtype) for _ in range(inputs)]
        out = torch.empty_like(xs[0])
        rest = (None, 3, [0.4], 7, ids) if noise else ()

        def eager():
            total = weights[0] * xs[0]
            for w, x in zip(weights[1:], xs[1:], strict=True):
                total = total + w * x
            return total + 0.4 * torch.randn_like(total) if noise else total

        return Pair(lambda: ops.combine_out(xs, weights, [out], *rest), eager)

    label = f"{inputs} to 1{' + noise' if noise else ''}"
    return OpCase("combine", label, name, size, (inputs + 1) * size, noise, make)


def _error(device, size, name, dtype):
    shape = (BATCH, size // dtype.itemsize // BATCH)

    def make():
        xs = [torch.randn(shape, device=device).to(dtype) for _ in range(3)]
        outs = [torch.empty_like(xs[0]) for _ in range(2)]
        table = torch.randn(BATCH, 3, 3, dtype=torch.float64, device=device)
        tolerance = torch.full((BATCH, 2), 0.1, dtype=torch.float64, device=device)
        norms = torch.empty(BATCH, 2, dtype=torch.float64, device=device)
        status = torch.full((BATCH,), -1, device=device)
        streams = torch.zeros(BATCH, 3, dtype=torch.int64, device=device)
        call = (xs, table, None, streams, [], tolerance, 0, 0, False, outs, norms, status)
        return Pair(lambda: ops.combine_error_out(*call))

    return OpCase("combine_error", "3 to 2", name, size, 5 * size, False, make)


def _gram(device, size, name, dtype):
    shape = (BATCH, size // dtype.itemsize // BATCH)

    def make():
        xs = [torch.randn(shape, device=device).to(dtype) for _ in range(4)]
        weights = torch.randn(BATCH, 2, 4, dtype=torch.float64, device=device)
        sums = torch.empty(BATCH, 3, dtype=torch.float64, device=device)
        return Pair(lambda: ops.gram(xs, weights, sums))

    return OpCase("gram", "4 inputs", name, size, 4 * size, False, make)


def _quantile(device, size, name, dtype):
    shape = (BATCH, max(1, size // dtype.itemsize // BATCH))

    def make():
        x = torch.randn(shape, device=device).to(dtype)
        weights = torch.ones(BATCH, 1, 1, dtype=torch.float64, device=device)
        out = torch.empty(BATCH, dtype=torch.float64, device=device)
        # torch.quantile, which takes 16 million elements at most, sorts them.
        return Pair(
            lambda: ops.quantile([x], weights, 0.995, out), lambda: x.float().abs().sort(dim=1)
        )

    # A pass reads the tensor once, and there are three.
    return OpCase("quantile", "0.995", name, size, 3 * size, False, make)


def _sweep(device, size, name, dtype, noise):
    """A window of 100 stages of 8 samples; points are float32, the network's outputs `dtype`."""
    rows = WINDOW * BATCH
    elements = max(4, size // 4 // rows)

    def make():
        x, points = (torch.randn(rows, elements, device=device) for _ in range(2))
        output = torch.randn(rows, elements, device=device).to(dtype)
        weights = torch.full((WINDOW, 2, 2 + noise), 0.9 / (2 + noise), dtype=torch.float64)
        changes = torch.full((WINDOW, 2), 0.1, dtype=torch.float64)
        tails = torch.zeros(WINDOW, 1, 2 + noise, dtype=torch.float64)
        line = torch.ones(WINDOW, 4, dtype=torch.float64)
        slopes = torch.rand(rows, dtype=torch.float64)
        jobs = [[b, b, -1, b, 0, WINDOW, 0, 1] for b in range(BATCH)]
        walk = torch.arange(rows, dtype=torch.int32).reshape(WINDOW, BATCH).T.contiguous()
        tables = [slopes, weights, changes, tails, line]
        tables += [torch.tensor(jobs, dtype=torch.int32), walk, torch.arange(BATCH)]
        states = torch.randn(BATCH, 4, elements, device=device)
        norms = torch.empty(BATCH, WINDOW + 1, dtype=torch.float64, device=device)
        moved = (t.to(device) for t in tables)
        call = (x, [output], *moved, 0, int(noise), False, [], points, states, norms)
        return Pair(lambda: ops.sweep(*call))

    moved = rows * elements * (8 + dtype.itemsize)
    label = "100 stages" + (" + noise" if noise else "")
    return OpCase("sweep", label, name, size, moved, bool(noise), make)


def _normal(device, size, name, dtype):
    shape = (BATCH, size // dtype.itemsize // BATCH)
    ids = torch.arange(BATCH, device=device)

    def make():
        out = torch.empty(shape, dtype=dtype, device=device)
        return Pair(
            lambda: ops.normal_out(ids, 7, 3, 1.0, out),
            lambda: torch.randn(shape, dtype=dtype, device=device),
        )

    return OpCase("normal", "", name, size, size, True, make)


def _brownian(device, size):
    shape = (BATCH, size // 4 // BATCH)

    def make():
        ids = torch.arange(BATCH, device=device)
        streams = torch.stack([ids * 0 + 7, ids, ids * 0], dim=1)
        nodes = torch.tensor([[1001, 1013]] * BATCH, device=device)
        weights = torch.ones(BATCH, 2, dtype=torch.float64, device=device)
        last, out, value = (torch.randn(shape, device=device) for _ in range(3))
        call = (streams, nodes, weights, 11, last, out, value)
        return Pair(lambda: ops.brownian_out(*call))

    return OpCase("brownian", "depth 11", "fp32", size, 3 * size, True, make)


# Steps stay at a thousandth, every trial step is accepted, and no sample ends.
RULE = [2, 0.9, 0.467, 0.267, 0, 0.2, 2, 0.9, 0.667, 0.2, 0.9, 0.01, 0.5, 1e-3, 1e-3, 0]
FLAGS = [1, 1, 0, 0, 0, 1, 0, 2**62]
SAMPLES = 64


def _accept(device, size, planes):
    shape = (SAMPLES, max(1, size // 4 // SAMPLES))

    def make():
        sources, targets = (
            [torch.randn(shape, device=device) for _ in range(planes)] for _ in range(2)
        )
        counts = torch.zeros(SAMPLES, 7, dtype=torch.int64)
        counts[:, 1] = 1
        row = [0.0, 1e-3, 1e300, math.nan, math.nan, math.nan]
        control = torch.tensor([row] * SAMPLES, dtype=torch.float64, device=device)
        norms = torch.full((SAMPLES, 2), 0.7, dtype=torch.float64, device=device)
        status = torch.full((SAMPLES,), -1, device=device)
        pairs = [number for k in range(planes) for number in (1, k, k)]
        streams = torch.zeros(SAMPLES, 3, dtype=torch.int64, device=device)
        rest = (RULE, FLAGS, pairs, [], sources, control, counts.to(device), streams, targets)
        return Pair(lambda: ops.accept(norms, status, *rest))

    return OpCase("accept", f"{planes} planes", "fp32", size, 2 * planes * size or 64, False, make)


def op_cases(device: torch.device, size: int, dtypes: dict[str, torch.dtype]) -> Iterator[OpCase]:
    """Yields the cases whose tensors have so many bytes.

    Args:
        device: where their tensors are made.
        size: bytes of one tensor.
        dtypes: by name.
    """
    for name, dtype in dtypes.items():
        for inputs in (1, 2, 3, 4, 8):
            yield _combine(device, size, name, dtype, inputs, False)
        yield _error(device, size, name, dtype)
        yield _sweep(device, size, name, dtype, 0)
        for inputs in (1, 2, 3, 4, 8):
            yield _combine(device, size, name, dtype, inputs, True)
        yield _sweep(device, size, name, dtype, 1)
        yield _gram(device, size, name, dtype)
        yield _quantile(device, size, name, dtype)
        yield _normal(device, size, name, dtype)
    yield _brownian(device, size)
    for planes in (0, 2):
        yield _accept(device, size, planes)
