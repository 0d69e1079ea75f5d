"""The part "ops": every op against a copy of its bytes, and against plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from diffast.bench import op_calls
from diffast.bench.op_calls import OpCall
from diffast.bench.ratios import slower, spread_of, timed
from diffast.bench.settings import Settings
from diffast.bench.table import Section

KIB, MIB = 2**10, 2**20
COLUMNS = ("op", "call", "state", "threads", "us", "MB", "GB/s", "of copy", "ns a normal")
COLUMNS += ("torch us", "times torch", "spread")
ABOUT = (
    "One call that writes into given tensors. MB: the bytes that it has to read and write at "
    "least. Share of copy: the time of torch.copy_ of as many bytes over the call's time; 1 is "
    "the speed of the copy. Torch: the same work in plain torch operations (for `normal`: "
    "torch.randn; for `accept`: torch.where of its planes alone; for `evaluate`: one operation an "
    "instruction)."
)

Case = tuple[str, str, Callable[[], OpCall]]


def _shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    if settings.tiny:
        return {"2x3x8x8": (2, 3, 8, 8)}
    shapes = {"1x4x64x64": (1, 4, 64, 64), "64x3x64x64": (64, 3, 64, 64)}
    if not settings.quick:
        shapes |= {"8x4x128x128": (8, 4, 128, 128), "16x16x256x256": (16, 16, 256, 256)}
    if settings.device.type == "cuda":  # beyond the L2 cache of any card
        shapes["256x16x128x128"] = (256, 16, 128, 128)
    return shapes


def _cases(settings: Settings) -> Iterator[Case]:
    device = settings.device
    for name, shape in _shapes(settings).items():
        make = partial(op_calls.combine, shape, device)
        yield "4 inputs, 1 row", name, make
        yield "4 inputs, 2 rows", name, partial(make, rows=2)
        yield "2 inputs + noise", name, partial(make, inputs=2, noise=True)
        if not settings.quick:
            yield "3 inputs, one bfloat16", name, partial(make, inputs=3, half=True)
            yield "4 inputs, table", name, partial(op_calls.combine_table, shape, device)
        yield "3 inputs, 2 rows, scalar", name, partial(op_calls.combine_error, shape, device)
        if not settings.quick:
            error = partial(op_calls.combine_error, shape, device)
            yield "6 inputs, 2 rows, max", name, partial(error, inputs=6, form=1)
        yield "normals", name, partial(op_calls.normal, shape, device)
        yield "depth 11", name, partial(op_calls.brownian, shape, device)
    window, batch, elements = (5, 2, 37) if settings.tiny else (op_calls.WINDOW, 8, 3072)
    sweep = partial(op_calls.sweep, batch, elements, device, window=window)
    name = f"{window} stages of {batch}x{elements}"
    yield "no noise", name, sweep
    yield "noise", name, partial(sweep, noise=True)
    rows = window * batch
    yield "4 inputs, 2 rows", f"{rows}x{elements}", partial(op_calls.gram, rows, elements, device)
    samples, elements = (2, 37) if settings.tiny else (64, 3 * 64 * 64)
    yield (
        "0.995, 1 input",
        f"{samples}x{elements}",
        partial(op_calls.quantile, samples, elements, device),
    )
    accept = partial(op_calls.accept, samples, elements, device)
    yield f"{samples} accepted, 2 planes", f"{samples}x{elements}", accept
    for samples in (2,) if settings.tiny else (1, 64) if settings.quick else (1, 64, 512):
        evaluate = partial(op_calls.evaluate, samples, device)
        state = f"{samples} sample{'s' * (samples > 1)}"
        yield f"{op_calls.LENGTH} instructions", state, evaluate


def run(settings: Settings) -> list[Section]:
    """Returns one section: a row for each call and number of threads."""
    section = Section("ops", "Ops", ABOUT, COLUMNS, plot={"kind": "ops"})
    refused = set()
    for threads in settings.threads:
        with settings.using(threads), torch.inference_mode():
            for about, state, make in _cases(settings):
                row = _row(about, state, make(), threads, settings)
                if "refused" not in row:
                    section.rows.append(row)
                elif row["op"] not in refused:  # one line an op
                    refused.add(row["op"])
                    section.rows.append(row)
    return [section]


def _row(about: str, state: str, call: OpCall, threads: int, settings: Settings) -> dict:
    row = {"op": call.op, "call": about, "state": state, "threads": threads} | settings.marks()
    refusal = settings.refusal(call.op)
    if refusal:
        return row | {"refused": refusal}
    source = torch.randn(call.touched // 8, device=settings.device)
    target = torch.randn_like(source)
    functions: dict[str, Callable[[], object]] = {
        "op": call,
        "copy": lambda: target.copy_(source),
    }
    if call.eager:
        functions["torch"] = call.eager
    timings = timed(functions, settings.budget, settings.device)
    seconds = timings["op"].median
    row |= {
        "us": seconds * 1e6,
        "MB": call.touched / 1e6,
        "GB/s": call.touched / seconds / 1e9,
        "of copy": timings["copy"].median / seconds,
        "spread": spread_of(*timings.values()),
        "rounds": timings["op"].rounds,
    }
    if call.normals:
        row["ns a normal"] = seconds / call.normals * 1e9
    if "torch" in timings:
        row["torch us"] = timings["torch"].median * 1e6
        row["times torch"] = timings["torch"].median / seconds
        row["loss"] = slower(timings["op"], timings["torch"])
    return row
