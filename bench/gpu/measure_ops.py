"""Ops on a GPU: bandwidth against a copy in the same turns, and times of small calls.

    python -m gpu.measure_ops --device cuda

`of copy` is the time of torch.copy_ moving as many bytes over the time of the op, in turns. Small
calls have three figures more: `host us`, how long a call takes to return; `graph us`, what it costs
in a graph, without its host; `of eager`, its device time over that of the same map in torch.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from diffast import ops
from gpu.op_cases import KIB, MIB, OpCase, op_cases
from gpu.runner import Figures
from gpu.timing import host_seconds, interleaved, replay_seconds, ring

LARGEST_COPY = 2**31  # bytes: a larger copy has the same bandwidth
LARGE = 256 * MIB
SMALL = 64 * KIB
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sizes:
    """Bytes of one tensor: those with targets first, so that a run that is cut off has them."""

    on_device: tuple[int, ...] = (LARGE, SMALL, 8 * MIB)
    tried_out: tuple[int, ...] = (16 * KIB,)


class Bench:
    """Measures cases on one device.

    Args:
        device: where to.
        figures: what is kept.
    """

    def __init__(self, device: torch.device, figures: Figures):
        """Begins with no case."""
        self.device, self.figures = device, figures
        self.rounds = 9 if device.type == "cuda" else 2
        self.kept: dict[tuple, dict] = {}

    def copying(self, size: int) -> tuple[Callable[[int], object], int]:
        """Returns a copy that moves so many bytes, or as many as are enough, and how many."""
        moved = min(size, LARGEST_COPY) // 8 * 8
        count = max(1, moved // 8)

        def make():
            return [torch.randn(count, device=self.device) for _ in range(2)]

        sets = ring(make, moved, self.device)
        return lambda k: sets[k % len(sets)][1].copy_(sets[k % len(sets)][0]), 8 * count

    def measure(self, case: OpCase) -> None:
        """Measures one case and keeps its figures."""
        sets = ring(case.make, case.bytes, self.device)
        copy, copied = self.copying(case.bytes)
        calls = {"op": lambda k: sets[k % len(sets)].op(), "copy": copy}
        if sets[0].eager is not None:
            calls["eager"] = lambda k: sets[k % len(sets)].eager()
        times = interleaved(calls, self.rounds, self.device)
        seconds, copied_rate = times["op"].median, copied / times["copy"].median
        numbers = {
            "op": case.op,
            "dtype": case.dtype,
            "tensor": case.tensor,
            "bytes": case.bytes,
            "us": seconds * 1e6,
            "GB/s": case.bytes / seconds * 1e-9,
            "copy GB/s": copied_rate * 1e-9,
            "of copy": case.bytes / seconds / copied_rate,
            "spread": times["op"].spread,
        }
        if "eager" in times:
            numbers["of eager"] = seconds / times["eager"].median
        if case.tensor <= SMALL:
            numbers["host us"] = host_seconds(calls["op"], self.device).median * 1e6
            numbers["graph us"] = replay_seconds(calls["op"], self.device).median * 1e6
        self.figures.add(case.name, **numbers)
        self.kept[case.name, case.dtype, case.tensor] = numbers

    def targets(self, backend: str, card: str, size: int) -> None:
        """Evaluates what must be reached at the size of the largest tensors."""
        bound = 0.85 if backend == "triton" else 0.9
        for op in ("combine", "combine_error", "sweep"):
            for dtype in DTYPES:
                self._target(f"{op} {dtype}", bound, size, lambda c: not c.noise, op, dtype)
        reason = "" if "H100" in card else f"the bound is for an H100, this is {card}"
        for op in ("combine", "sweep"):
            for dtype in DTYPES:
                self._target(
                    f"{op} {dtype}, noise", 0.75, size, lambda c: c.noise, op, dtype, reason
                )

    def _target(self, name, bound, size, wanted, op, dtype, reason=""):
        found = [
            numbers["of copy"]
            for case in op_cases(self.device, size, DTYPES)
            if case.op == op and case.dtype == dtype and wanted(case)
            for numbers in [self.kept.get((case.name, dtype, size))]
            if numbers is not None
        ]
        value = min(found, default=None)
        reason = reason or ("" if found else "not measured")
        if self.device.type == "cpu":
            reason = "tried out on the CPU"
        self.figures.target(f"{name}, of copy, least of {len(found)}", value, ">=", bound, reason)


def chosen(cases: Iterator[OpCase], targets_only: bool) -> Iterator[OpCase]:
    """Yields the cases; those of the targets alone if so wanted."""
    for case in cases:
        if not targets_only or case.op in ("combine", "combine_error", "sweep"):
            yield case


def main() -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--targets-only", action="store_true", help="the largest size alone")
    options = parser.parse_args()
    device, figures = torch.device(options.device), Figures()
    backend = ops.backends()[device.type]["backend"]
    card = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    figures.note(backend=backend)
    bench = Bench(device, figures)
    sizes = Sizes().on_device if device.type == "cuda" else Sizes().tried_out
    with torch.inference_mode():
        for size in sizes[: 1 if options.targets_only else None]:
            for case in chosen(op_cases(device, size, DTYPES), options.targets_only):
                bench.measure(case)
                if device.type == "cuda" and size == LARGE:
                    torch.cuda.empty_cache()
            if size == sizes[0]:
                bench.targets(backend, card, size)
    return 0


if __name__ == "__main__":
    sys.exit(main())
