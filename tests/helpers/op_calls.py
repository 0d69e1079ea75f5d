"""One call of every op at any size on any device, beside the reference, with guarded outputs.

`CALLS` has a call for each schema and each kind of kernel behind it. `TRITON_CALLS` are the few
that take every compile-time value of the Triton kernels at least once. Both serve tests of streams,
graphs, devices and memory, and the sanitizer's script: they ask what is the same for all ops.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accept_cases import Problem
from brownian_cases import nodes_of, streams_of
from error_cases import ErrorCase
from op_cases import CLAMPS, FLOATS, Case, assert_same_bits, into, random_tensor
from quantile_cases import quantile_case
from walk_cases import Walks, gram_case

from diffast.ops.load import modules
from diffast.ops.schema import SCHEMAS, overload_of

F32, F16, BF16, F64 = FLOATS
GUARD = 512  # bytes before and after an output: more than a warp's widest store reaches
# Sums in float64, whose order the backends choose; control numbers, made by pow and atan.
CLOSE = {"norms": 1e-12, "control": 1e-12, "sums": 1e-9}


@dataclass(frozen=True)
class OpCall:
    """One call: the schema's name, and a function (rng, samples, size) -> arguments on the CPU."""

    name: str
    label: str
    arguments: Callable

    def __str__(self):
        return f"{self.name} {self.label}"

    def make(self, samples=3, size=1028, seed=0):
        """Returns the arguments, on the CPU; those that are written hold what they begin with."""
        with torch.random.fork_rng(devices=[]):
            return self.arguments(np.random.default_rng([seed, samples, size]), samples, size)

    @property
    def parameters(self):
        return overload_of(self.name)._schema.arguments

    @property
    def written(self) -> list[bool]:
        """Returns which arguments the op writes."""
        infos = (parameter.alias_info for parameter in self.parameters)
        return [info is not None and info.is_write for info in infos]


def _each(value, function):
    """Returns `value` with every tensor of it replaced."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return [_each(item, function) for item in value]
    return value


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in _tensors(item)]
    return []


class Placed:
    """The arguments of one call on a device, every written tensor between two guards.

    Only copies move them: under a sanitizer the op's kernels are the only ones that run.

    Args:
        call: which op.
        arguments: from `call.make`.
        device: where to.
        offset: elements that written tensors start past a 64-byte boundary.
    """

    def __init__(self, call: OpCall, arguments, device="cpu", offset=0):
        self.call, self.device, self.offset = call, torch.device(device), offset
        self.buffers, self.arguments = [], []
        pairs = list(zip(call.written, arguments, strict=False))  # later arguments have defaults
        guarded = {}  # by id: a tensor that is read and written stays one tensor
        for tensor in (t for written, value in pairs if written for t in _tensors(value)):
            guarded.setdefault(id(tensor), self._guarded(tensor))

        def move(tensor):
            placed = guarded.get(id(tensor))
            return tensor.to(self.device, copy=True) if placed is None else placed

        self.arguments = [_each(value, move) for _, value in pairs]
        self.outputs = [
            t
            for (written, _), v in zip(pairs, self.arguments, strict=True)
            if written
            for t in _tensors(v)
        ]
        own = {id(t) for t in self.outputs}
        self.inputs = [t for t in _tensors(self.arguments) if id(t) not in own]
        self.begun = [t.to("cpu", copy=True) for t in self.outputs]
        self.returned = []

    def _guarded(self, tensor):
        """Returns the tensor between its guards; torch's allocations are aligned to 64 bytes."""
        size = tensor.numel() * tensor.element_size()
        start = GUARD + self.offset * tensor.element_size()

        def part(buffer):
            return buffer[start : start + size].view(tensor.dtype).view(tensor.shape)

        filled = torch.full((size + 2 * GUARD + 64,), 0xFF, dtype=torch.uint8)
        part(filled).copy_(tensor)
        buffer = filled.to(self.device)
        assert buffer.data_ptr() % 64 == 0
        self.buffers.append((buffer, start, start + size))
        return part(buffer)

    def run(self, function=None) -> "Placed":
        """Calls the op, or a function in its place, and keeps what it returns."""
        made = (function or overload_of(self.call.name))(*self.arguments)
        self.returned = _tensors(made)
        return self

    def reset(self) -> None:
        """Gives written tensors what they held at the beginning."""
        for tensor, begun in zip(self.outputs, self.begun, strict=True):
            tensor.copy_(begun)

    def results(self) -> list[torch.Tensor]:
        """Returns what was written and what was returned, on the CPU."""
        return [t.cpu() for t in (*self.outputs, *self.returned)]

    def assert_guards(self, label="") -> None:
        """Checks that no byte around a written tensor was written."""
        for buffer, start, end in self.buffers:
            held = buffer.cpu()
            around = torch.cat([held[:start], held[end:]])
            wrong = int((around != 0xFF).sum())
            assert wrong == 0, f"{self.call} {label}: {wrong} bytes written around an output"


def specification(name: str) -> Callable:
    """Returns the reference of the op that SCHEMAS calls so."""
    found = {k: v for module in modules("reference") for k, v in module.IMPLEMENTATIONS.items()}

    def normal(ids, shape, seed, stage, scale, dtype):
        out = torch.empty([len(ids), *shape], dtype=dtype)
        found["normal.out"](ids, seed, stage, scale, out)
        return out

    def brownian(streams, nodes, weights, depth, last, shape, dtype):
        outs = torch.empty([2, len(streams), *shape], dtype=dtype)
        found["brownian.out"](streams, nodes, weights, depth, last, *outs)
        return list(outs)

    return {"normal": normal, "brownian": brownian, **found}[name]


def assert_results(call: OpCall, got: Placed, wanted: Placed, label="") -> None:
    """Equality to the last bit; sums and control numbers to their last digits."""
    kinds = []
    for written, parameter, value in zip(
        got.call.written, got.call.parameters, got.arguments, strict=False
    ):
        if written:
            kinds += [parameter.name] * len(_tensors(value))
    last = "norms" if call.name == "combine_error" else ""
    kinds += [""] * (len(got.returned) - 1) + [last] * bool(got.returned)
    results = zip(kinds, got.results(), wanted.results(), strict=True)
    for k, (kind, a, b) in enumerate(results):
        where = f"{call} {label}, result {k}"
        if kind in CLOSE and a.dtype == torch.float64:
            tolerance = {"rtol": CLOSE[kind], "atol": CLOSE[kind] if kind == "sums" else 0.0}
            torch.testing.assert_close(
                a, b, equal_nan=True, msg=lambda m, w=where: f"{w}: {m}", **tolerance
            )
        elif a.is_floating_point():
            assert_same_bits(a, b, where)
        else:
            assert torch.equal(a, b), where


def expected(call: OpCall, arguments) -> Placed:
    """Returns the call as the reference makes it on the CPU."""
    with np.errstate(all="ignore"):
        return Placed(call, arguments).run(specification(call.name))


def check(call: OpCall, arguments, device, label="", function=None, offset=0) -> Placed:
    """Runs a call on a device; compares it with the reference and looks at its guards."""
    got = Placed(call, arguments, device, offset).run(function)
    got.assert_guards(label)
    before = Placed(call, arguments)
    for k, (a, b) in enumerate(zip(got.inputs, before.inputs, strict=True)):
        assert torch.equal(a.cpu().view(torch.uint8), b.view(torch.uint8)), (call, label, k)
    assert_results(call, got, expected(call, arguments), label)
    return got


def combining(name, inputs, rows, noises=0, clamp=CLAMPS[0], dtypes=(F32,), outs=(F32,), **less):
    """Returns a builder for `combine` in any form. `less`: status or ids left out."""

    def arguments(rng, samples, size):
        kinds = [dtypes[k % len(dtypes)] for k in range(inputs)]
        case = Case(
            rng, [random_tensor(rng, (samples, size), t) for t in kinds], rows, noises, clamp
        )
        if less.get("ids") is False:
            case.ids = None
        call = case.table_call if "table" in name else case.host_call
        if "out" not in name:
            return call
        made = [torch.full((samples, size), torch.nan) for _ in range(rows - case.hidden)]
        made = [t.to(outs[r % len(outs)]) for r, t in enumerate(made)]
        status = None if less.get("status") is False else torch.full((samples,), -1)
        return into(call, made, status)

    return arguments


def judging(name, inputs, stored, form, norm, measure, noises=0, clamp=False, dtypes=(F32,)):
    """Returns a builder for `combine_error` in both forms."""

    def arguments(rng, samples, size):
        xs = [random_tensor(rng, (samples, size), dtypes[k % len(dtypes)]) for k in range(inputs)]
        case = ErrorCase(rng, xs, stored, form, norm, measure, noises, clamp)
        if "out" not in name:
            return case.call
        outs = [torch.full((samples, size), torch.nan) for _ in range(stored)]
        norms = torch.full((samples, 2), torch.nan, dtype=torch.float64)
        return (*case.call, outs, norms, torch.full((samples,), -1))

    return arguments


def sweeping(**options):
    """Returns a builder for `sweep`: `samples` jobs."""

    def arguments(rng, samples, size):
        case = Walks(rng, size, samples, **options)
        points = torch.full(case.shape, torch.nan, dtype=case.x.dtype)
        points = case.x if case.in_place else points
        norms = torch.full((samples, case.walk.shape[1] + 1), torch.nan, dtype=torch.float64)
        return case.call(case.x, points, case.states, norms if case.norms else None)

    return arguments


def accepting(slots=0, dtypes=(F32,), moves=4):
    """Returns a builder for `accept`."""

    def arguments(rng, samples, size):
        return Problem(rng, samples, (size,), slots, dtypes, moves=moves).call

    return arguments


def grams(inputs, rows, dtypes=(F32,), totals=False):
    """Returns a builder for `gram`."""

    def arguments(rng, samples, size):
        kinds = [dtypes[k % len(dtypes)] for k in range(inputs)]
        xs, weights = gram_case(rng, kinds, (samples, size), rows)
        width = rows * (rows + 1) // 2 + totals * rows
        return xs, weights, torch.full((samples, width), torch.nan).double()

    return arguments


def quantiles(inputs, p, dtypes=(F32,)):
    """Returns a builder for `quantile`."""

    def arguments(rng, samples, size):
        kinds = [dtypes[k % len(dtypes)] for k in range(inputs)]
        xs, weights = quantile_case(rng, kinds, (samples, size))
        return xs, weights, p, torch.full((samples,), torch.nan).double()

    return arguments


def paths(name, depth, dtype=F32, last=True, value=True):
    """Returns a builder for `brownian` in both forms."""

    def arguments(rng, samples, size):
        weights = torch.from_numpy(rng.standard_normal((samples, 2)))
        known = random_tensor(rng, (samples, size), dtype) if last else None
        call = (streams_of(samples), nodes_of(depth, samples, rng), weights, depth, known)
        if "out" not in name:
            return (*call, [size], dtype)
        outs = [torch.full((samples, size), torch.nan, dtype=dtype) for _ in range(2)]
        return (*call, outs[0], outs[1] if value else None)

    return arguments


def normals(name, dtype=F32):
    """Returns a builder for `normal` in both forms."""

    def arguments(rng, samples, size):
        ids = torch.from_numpy(rng.integers(-(2**63), 2**63, size=samples))
        call = (ids, int(rng.integers(-(2**63), 2**63)), int(rng.integers(2**26)), -2.5)
        if "out" not in name:
            return (ids, [size], *call[1:], dtype)
        return (*call, torch.full((samples, size), torch.nan, dtype=dtype))

    return arguments


# Two recorded programs of `evaluate`, of exact instructions alone: the bits of every backend.
PROGRAMS = (
    (
        [("input", 0), ("constant", 2.5), ("mul", 0, 1), ("input", 1), ("add", 2, 3)]
        + [("piece", 3), ("lookup", 0, 5, 3), ("round", 4)],
        [(0, 0, 4), (0, 1, 6), (1, 0, 7)],
    ),
    (
        [("input", 1), ("abs", 0), ("sqrt", 1), ("constant", 1.0), ("lt", 0, 3), ("neg", 2)]
        + [("where", 4, 2, 5), ("div", 6, 3), ("floor", 7)],
        [(0, 0, 6), (0, 1, 7), (1, 0, 8)],
    ),
)


def evaluating(counted):
    """Returns a builder for `evaluate`: `size` samples, a program each or one for all."""

    def arguments(rng, samples, size):
        from diffast.ops.evaluate.encode import encode

        code, constants, starts, registers = encode(PROGRAMS)
        inputs = torch.from_numpy(rng.standard_normal((size, 2)))
        counts = torch.from_numpy(rng.integers(0, 2, size=(size, samples)))
        edges = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
        pieces = torch.from_numpy(rng.standard_normal((1, 8, 4)))
        outs = [torch.full((size, 2), torch.nan).double(), torch.full((size, 1), -9)]
        table = (edges, pieces, registers, outs)
        return code, constants, starts, 1, inputs, counts if counted else None, 0, *table

    return arguments


def _calls():
    for name in ("combine", "combine.out", "combine.table", "combine.table_out"):
        yield OpCall(name, "K=3", combining(name, 3, 2))
        yield OpCall(name, "noise", combining(name, 2, 2, 1, CLAMPS[1], (F32, BF16)))
    yield OpCall("combine.out", "halves", combining("combine.out", 3, 2, 0, CLAMPS[2], (BF16, F16)))
    yield OpCall(
        "combine.out", "all bf16", combining("combine.out", 3, 1, 0, CLAMPS[0], (BF16,), (BF16,))
    )
    yield OpCall(
        "combine.out", "all f16", combining("combine.out", 2, 2, 1, CLAMPS[0], (F16,), (F16,))
    )
    yield OpCall("combine.out", "K=16", combining("combine.out", 16, 7, 2, CLAMPS[1], FLOATS))
    yield OpCall(
        "combine.table_out", "K=9", combining("combine.table_out", 9, 8, 2, CLAMPS[2], FLOATS)
    )
    for name in ("combine_error", "combine_error.out"):
        yield OpCall(name, "l2", judging(name, 3, 2, 1, 0, True))
        yield OpCall(name, "linf", judging(name, 8, 1, 2, 1, False, 1, True, FLOATS))
    yield OpCall("sweep", "ODE", sweeping())
    yield OpCall("sweep", "SDE", sweeping(noises=1, entries=1, outputs=(BF16,)))
    yield OpCall("sweep", "all", sweeping(noises=2, entries=5, parts=True, clamp=True, dtype=F64))
    yield OpCall("sweep", "in place", sweeping(in_place=True, entries=1))
    yield OpCall("gram", "K=4", grams(4, 2))
    yield OpCall("gram", "K=8", grams(8, 4, FLOATS))
    yield OpCall("gram", "totals", grams(2, 2, totals=True))
    yield OpCall("quantile", "K=1", quantiles(1, 0.995))
    yield OpCall("quantile", "K=8", quantiles(8, 0.5, FLOATS))
    yield OpCall("accept", "no slots", accepting())
    yield OpCall("accept", "slots", accepting(3, FLOATS, 8))
    for counted in (False, True) if "evaluate" in SCHEMAS else ():
        yield OpCall("evaluate", "by counts" if counted else "one", evaluating(counted))
    for name in ("brownian", "brownian.out"):
        yield OpCall(name, "f32", paths(name, 11))
        yield OpCall(name, "f64", paths(name, 24, F64, last=False))
    for name in ("normal", "normal.out"):
        yield OpCall(name, "f32", normals(name))
        yield OpCall(name, "bf16", normals(name, BF16))


CALLS = tuple(_calls())


def _triton_calls():
    """Every value of every compile-time argument, each a few times, pairs as they come."""
    clamps, noises = itertools.cycle(CLAMPS), itertools.cycle((0, 1, 2, 1))
    kinds = itertools.cycle(((F32,), (BF16, F32), (F16,), (F32, F16, BF16)))
    for k in range(1, 17):
        name = ("combine.out", "combine.table_out")[k % 2]
        rows, less = 1 + (3 * k) % 8, {"status": k % 4 < 2, "ids": k % 3 > 0}
        builder = combining(name, k, rows, next(noises), next(clamps), next(kinds), **less)
        yield OpCall(name, f"K={k}", builder)
    for k in range(1, 17):
        form, clamp = k % 3, k % 4 == 1
        rows = (8, 7, 6, 5, 2, 4, 1, 3)[k % 8]
        stored = max(0, rows - (1 + 2 * (form > 0) + k % 2 + clamp))
        numbers = (k, stored, form, (k // 2) % 2, k % 2 == 1, (k // 3) % 3, clamp, (F32, BF16))
        yield OpCall("combine_error.out", f"K={k}", judging("combine_error.out", *numbers))
    for k in range(8):
        options = {"entries": k, "noises": k % 3, "parts": k % 2 == 1, "clamp": k % 4 > 1}
        options["in_place"] = k % 5 == 1
        options |= {"outputs": FLOATS[: (k + 1) % 3], "slopes": k % 4 != 2, "norms": k % 4 != 3}
        yield OpCall("sweep", f"entries={k}", sweeping(**options))
    yield OpCall("sweep", "f64", sweeping(dtype=F64, noises=1))
    for k in range(1, 9):
        kinds = (F32, F64) if k > 6 else (F32, BF16)
        yield OpCall("gram", f"K={k}", grams(k, 1 + k % 4, kinds, totals=k % 2 == 0))
    for k in range(1, 9):
        yield OpCall("quantile", f"K={k}", quantiles(k, 1 / k, (F32, BF16, F16)))
    for slots in range(0, 9):
        yield OpCall("accept", f"slots={slots}", accepting(slots, (F32,), 1 + slots % 4))
    for k, (last, value) in enumerate(itertools.product((False, True), repeat=2)):
        yield OpCall("brownian.out", f"{k}", paths("brownian.out", 5 + 6 * k, F32, last, value))
    for counted in (False, True) if "evaluate" in SCHEMAS else ():
        yield OpCall("evaluate", "by counts" if counted else "one", evaluating(counted))
    for dtype in FLOATS[:3]:
        yield OpCall("normal.out", str(dtype)[6:], normals("normal.out", dtype))


TRITON_CALLS = tuple(_triton_calls())

# Elements of a sample: Triton has a kernel for few and one for many.
TRITON_SIZES = tuple((1028, 100)[k % 2] for k in range(len(TRITON_CALLS)))
