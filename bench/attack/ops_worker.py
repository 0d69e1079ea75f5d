"""Makes the calls of an attack on the ops: seeds come on stdin, outcomes go to stdout as JSON.

A call is a good one of `tests/helpers/op_calls.py`, in memory of its own, with up to three changes.
The op gets it, and the reference gets a copy in which tensors share memory as they do there. Then
all bytes of all memory are compared, guards included.
"""

import json
import math
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

HELPERS = Path(__file__).resolve().parents[2] / "tests" / "helpers"
sys.path.append(str(HELPERS))

from op_calls import CALLS, CLOSE, TRITON_CALLS, specification  # noqa: E402

from diffast.ops.explain import CHECKS, REFUSAL, explained  # noqa: E402
from diffast.ops.memory import flat, parameters_of  # noqa: E402
from diffast.ops.schema import SCHEMAS  # noqa: E402

ALL_CALLS = (*CALLS, *TRITON_CALLS)
FUNCTIONS = {name: explained(name) for name in SCHEMAS}
SIZES = (0, 1, 7, 63, 64, 1000, 4097)
SAMPLES = (0, 1, 2, 3, 7)
PAD = 256  # bytes around every tensor
FILL = 0xAB  # an odd number in every type
HUGE = (0, -1, 1, 2**26, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63))
ODD = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e308, -1e308, 5e-324, 3e38, 1e-45)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
DTYPES += (torch.bool, torch.uint8, torch.complex64)


class Call:
    """One call whose tensors can be changed: arguments, with every tensor in padded memory."""

    def __init__(self, rng: np.random.Generator):
        """Makes a good call."""
        self.rng, self.changes = rng, []
        self.call = ALL_CALLS[int(rng.integers(len(ALL_CALLS)))]
        self.name = self.call.name
        samples, size = int(rng.choice(SAMPLES)), int(rng.choice(SIZES))
        if self.name in ("sweep", "combine_error.out") and rng.random() < 0.5:
            size = min(size, 64)  # the reference takes a while
        try:
            made = self.call.make(samples, size, int(rng.integers(1 << 31)))
        except (ValueError, IndexError, RuntimeError):  # a builder without samples or elements
            made = self.call.make(2, 7, int(rng.integers(1 << 31)))
        self.typed = True  # whether the reference understands the arguments
        self.reordered = False  # whether instructions or the order of jobs were changed
        moved = {}

        def own(value):
            if isinstance(value, torch.Tensor):
                if id(value) not in moved:
                    moved[id(value)] = self.padded(value)
                return moved[id(value)]
            return [own(item) for item in value] if isinstance(value, (list, tuple)) else value

        self.arguments = [own(value) for value in made]

    def padded(self, value: torch.Tensor) -> torch.Tensor:
        """Returns a copy between guards, now and then one that is not aligned to 64 bytes."""
        size = value.numel() * value.element_size()
        shift = value.element_size() * int(self.rng.integers(0, 3))
        buffer = torch.full((size + 2 * PAD,), FILL, dtype=torch.uint8)
        part = buffer[PAD + shift : PAD + shift + size].view(value.dtype).view(value.shape)
        return part.copy_(value)

    def places(self) -> list[tuple[int, int | None, bool]]:
        """Returns (argument, item of its list or None, whether it is written) of all tensors."""
        found = []
        parameters = parameters_of(self.name)
        for i, value in enumerate(self.arguments):
            written = parameters[i][1]
            if isinstance(value, torch.Tensor):
                found.append((i, None, written))
            elif isinstance(value, list):
                found += [(i, k, written) for k, t in enumerate(value) if torch.is_tensor(t)]
        return found

    def at(self, place):
        """Returns the tensor at a place."""
        i, k, _ = place
        return self.arguments[i] if k is None else self.arguments[i][k]

    def put(self, place, value, what: str) -> None:
        """Puts a value at a place and notes the change."""
        i, k, _ = place
        if k is None:
            self.arguments[i] = value
        else:
            self.arguments[i] = [*self.arguments[i][:k], value, *self.arguments[i][k + 1 :]]
        text = parameters_of(self.name)[i][0] + ("" if k is None else f"[{k}]")
        self.changes.append(f"{what} {text}")

    def change(self) -> None:
        """Makes one change."""
        kinds = (self.share, self.share, self.share, self.values, self.values, self.shape)
        kinds += (self.dtype, self.layout, self.number, self.number, self.length, self.kind)
        kinds[int(self.rng.integers(len(kinds)))]()

    def pick(self, places):
        """Returns one of them, None if there is none."""
        return places[int(self.rng.integers(len(places)))] if places else None

    def share(self) -> None:
        """Puts a tensor into the memory of another one, one of the two is written."""
        places = self.places()
        out = self.pick([p for p in places if p[2]] or places)
        other = self.pick([p for p in places if p[:2] != out[:2]])
        if out is None or other is None:
            return
        if self.rng.random() < 0.5:
            out, other = other, out  # `out` moves into the memory of `other`
        t, into = self.at(out), self.at(other)
        if not _is_plain(t) or not _is_plain(into):
            return
        if t.shape == into.shape and t.dtype == into.dtype and self.rng.random() < 0.5:
            self.put(out, into, "same")
            return
        size = t.numel() * t.element_size()
        memory = into.untyped_storage()
        buffer = torch.empty(0, dtype=torch.uint8).set_(memory)
        if len(buffer) < size + 16:
            return
        start = (into.data_ptr() - memory.data_ptr()) + int(self.rng.integers(-size - 8, size + 8))
        start = min(max(start, 0), len(buffer) - size) // t.element_size() * t.element_size()
        view = buffer[start : start + size]
        if (memory.data_ptr() + start) % t.element_size():
            return
        view = view.view(t.dtype).view(t.shape)
        if self.rng.random() < 0.5:
            view.copy_(t.clone())
        self.put(out, view, "shared")

    def values(self) -> None:
        """Puts odd numbers into a tensor."""
        place = self.pick(self.places())
        if place is None:
            return
        t = self.at(place)
        if t.numel() == 0 or not _is_plain(t):
            return
        name = parameters_of(self.name)[place[0]][0]
        odd: tuple = ODD if t.dtype.is_floating_point or t.dtype.is_complex else HUGE
        if t.dtype == torch.int32:
            odd = (*range(-2, 6), 2**31 - 1, -(2**31))
        if t.dtype in (torch.uint8, torch.bool):
            odd = (0, 1)
        copy = self.padded(t.contiguous())
        many = int(self.rng.integers(1, 4))
        for _ in range(many):
            at = int(self.rng.integers(copy.numel()))
            number = torch.tensor(
                odd[int(self.rng.integers(len(odd)))], dtype=torch.float64 if odd is ODD else None
            )
            copy.view(-1)[at] = number.to(copy.dtype)  # beyond its range: infinity
        self.reordered |= name in ("jobs", "walk", "code", "starts", "counts", "pieces", "edges")
        self.put(place, copy, "values")

    def shape(self) -> None:
        """Gives a tensor another shape."""
        place = self.pick(self.places())
        if place is None:
            return
        t = self.at(place)
        if not _is_plain(t):
            return
        way = int(self.rng.integers(6))
        if way == 0:
            t = t[None]
        elif way == 1 and t.dim():
            t = t[0] if t.shape[0] else t.reshape(-1)
        elif way == 2:
            t = t.reshape(-1)
        elif way == 3 and t.dim():
            t = torch.cat([t, t[:1]])
        elif way == 4 and t.dim():
            t = t[: max(t.shape[0] - 1, 0)]
        elif t.dim():
            t = torch.cat([t, t[..., :1]], -1)
        self.put(place, self.padded(t.contiguous()), "shape")

    def dtype(self) -> None:
        """Gives a tensor another dtype."""
        place = self.pick(self.places())
        if place is None or not _is_plain(self.at(place)):
            return
        dtype = DTYPES[int(self.rng.integers(len(DTYPES)))]
        t = self.at(place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # complex to real
            t = t.nan_to_num() if t.is_floating_point() else t
            self.put(place, self.padded(t.to(dtype)), "dtype")

    def layout(self) -> None:
        """Gives a tensor strides, or another device or kind of memory."""
        place = self.pick(self.places())
        if place is None or not _is_plain(self.at(place)):
            return
        t, way = self.at(place), int(self.rng.integers(5))
        if way == 0 and t.dim() > 1:
            t = self.padded(t.transpose(0, -1).contiguous()).transpose(0, -1)
        elif way == 1 and t.dim():
            t = self.padded(torch.stack([t, t], -1)).select(-1, 0)
        elif way == 2 and t.dim():
            t = t[:1].expand(t.shape) if t.shape[0] else t
        elif way == 3:
            self.typed = False
            t = t.to("meta")
        elif t.dim() and t.numel():
            self.typed = False
            t = t.to_sparse()
        self.put(place, t, "layout")

    def number(self) -> None:
        """Changes a number, or one of a list of numbers."""
        numbers = [
            (i, k)
            for i, value in enumerate(self.arguments)
            for k in (range(len(value)) if isinstance(value, list) else [None])
            if isinstance(value if k is None else value[k], (int, float))
        ]
        if not numbers:
            return
        i, k = numbers[int(self.rng.integers(len(numbers)))]
        value = self.arguments[i] if k is None else self.arguments[i][k]
        if isinstance(value, bool):
            new = not value
        elif isinstance(value, int):
            near = (value - 1, value + 1, *range(-1, 5), *HUGE)
            new = near[int(self.rng.integers(len(near)))]
            new = min(max(new, -(2**63)), 2**63 - 1)
        else:
            new = ODD[int(self.rng.integers(len(ODD)))]
        if self.name.startswith(("normal", "brownian")) and isinstance(self.arguments[i], list):
            new = min(max(new, -2), 5000)  # a shape: of memory that there is
        self.put((i, k, False), new, "number")

    def length(self) -> None:
        """Makes a list longer or shorter."""
        lists = [i for i, value in enumerate(self.arguments) if isinstance(value, list)]
        if not lists:
            return
        i = lists[int(self.rng.integers(len(lists)))]
        value = self.arguments[i]
        if value and self.rng.random() < 0.5:
            value = value[:-1]
        else:
            value = [*value, *((value[:1] if self.holds_tensors(i) else None) or [1])]
            self.typed &= len(value) > 1 or not self.holds_tensors(i)
        self.put((i, None, False), value, "length")

    def holds_tensors(self, i: int) -> bool:
        """Returns whether argument i is a list of tensors."""
        return parameters_of(self.name)[i][0] in ("xs", "outs", "outputs", "sources", "targets")

    def kind(self) -> None:
        """Replaces an argument by a value of another kind."""
        i = int(self.rng.integers(len(self.arguments)))
        values = (None, "text", 3, 2.5, [], [None], torch.ones(2), 1 << 70, np.ones(3))
        self.typed = False
        self.put((i, None, False), values[int(self.rng.integers(len(values)))], "kind")

    def copy(self) -> tuple[list, dict]:
        """Returns the arguments in memory of their own, shared as here, and that memory."""
        memory: dict = {}

        def twin(value):
            if isinstance(value, torch.Tensor):
                if value.layout != torch.strided or value.is_meta:
                    return value
                storage = value.untyped_storage()
                key = storage.data_ptr() if len(storage) else id(value)
                if key not in memory:
                    memory[key] = storage.clone()
                empty = torch.empty(0, dtype=value.dtype)
                return empty.set_(memory[key], value.storage_offset(), value.shape, value.stride())
            return [twin(item) for item in value] if isinstance(value, (list, tuple)) else value

        return [twin(value) for value in self.arguments], memory


def _is_plain(t: torch.Tensor) -> bool:
    """Returns whether a tensor has memory as numpy's arrays have."""
    return t.layout == torch.strided and not t.is_meta


def run(function, arguments) -> tuple[list, str | None]:
    """Returns the tensors that a call returned, and what it raised, if it did."""
    try:
        with np.errstate(all="ignore"):
            return flat([function(*arguments)]), None
    except RuntimeError as error:
        return [], str(error)


def reference(name: str):
    """Returns the op's reference, which refuses as the op does."""
    if name not in ("normal", "brownian"):
        return specification(name)

    def call(*arguments):
        CHECKS[name](*arguments)
        return specification(name)(*arguments)

    return call


def is_sentence(text: str) -> bool:
    """Returns whether a refusal is one sentence in the caller's words."""
    path = re.search(r"[\w.]+/[\w.]+|\.(cpp|h|py)\b|Exception raised", text)
    return "\n" not in text and path is None and REFUSAL not in text and "diffast::" not in text


def same(a: torch.Tensor, b: torch.Tensor, close: float) -> bool:
    """Equality to the last bit, NaN beside NaN; sums in float64 to their last digits."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return torch.equal(a, b)
    if close:
        return torch.allclose(a, b, rtol=close, atol=close, equal_nan=True)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    nan = a.isnan() & b.isnan()
    return bool((nan | (a.contiguous().view(bits) == b.contiguous().view(bits))).all())


def tolerance(call: Call, name: str) -> float:
    """Returns how far the numbers of an argument may be apart."""
    if call.name == "evaluate":  # changed instructions may be those of a math library
        return 1e-9 if call.reordered else 0.0
    return CLOSE.get(name, 0.0)


def compare(call: Call, mine: list, theirs: list) -> str | None:
    """Returns what differs between the written tensors of the two calls, None if nothing does."""
    for (name, written), a, b in zip(parameters_of(call.name), mine, theirs, strict=False):
        for k, (x, y) in enumerate(zip(flat([a]), flat([b]), strict=True)):
            if written and not same(x, y, tolerance(call, name)):
                return f"{name}[{k}] is {x.flatten()[:6].tolist()} but {y.flatten()[:6].tolist()}"
    return None


def guards(call: Call, mine: list, memory: dict, before: dict) -> str | None:
    """Returns which memory was written that no written tensor has, None if none was."""
    free = {key: torch.ones(len(storage), dtype=torch.bool) for key, storage in memory.items()}
    starts = {storage.data_ptr(): key for key, storage in memory.items() if len(storage)}
    for (_, written), value in zip(parameters_of(call.name), mine, strict=False):
        for t in flat([value]) if written else ():
            storage = t.untyped_storage()
            if t.numel() and storage.data_ptr() in starts:
                start = t.data_ptr() - storage.data_ptr()
                size = t.numel() * t.element_size()
                free[starts[storage.data_ptr()]][start : start + size] = False
    for key, untouched in free.items():
        now, then = (torch.empty(0, dtype=torch.uint8).set_(s[key]) for s in (memory, before))
        if not torch.equal(now[untouched], then[untouched]):
            return "memory was written that belongs to no output"
    return None


def unordered(call: Call) -> bool:
    """Returns whether jobs of a `sweep` read or write what others write, or have a row twice."""
    if call.name != "sweep" or not call.reordered:
        return False
    jobs, walk = call.arguments[7].tolist(), call.arguments[8].tolist()
    seen, states = set(), set()
    for (_, begin, state_in, state_out, _, real, tail, _), row in zip(jobs, walk, strict=True):
        rows = [*row[: real + tail], *([begin] if begin >= 0 and begin != row[0] else [])]
        if len(set(rows)) < len(rows) or seen & set(rows):
            return True
        seen |= set(rows)
        used = {state for state in (state_in, state_out) if state >= 0}
        if states & used:
            return True
        states |= used
    return False


def outcome(seed: int) -> dict:
    """Makes the call of a seed and says what became of it."""
    rng = np.random.default_rng(seed)
    call = Call(rng)
    for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3]))):
        call.change()
    told = {"seed": seed, "call": str(call.call), "changes": call.changes}
    mine, memory = call.copy()
    _, before = call.copy()
    made, refusal = run(FUNCTIONS[call.name], mine)
    if refusal is not None:
        wrote = any(not _same_bytes(memory[key], before[key]) for key in memory)
        told |= {"said": refusal}
        if wrote:
            return {**told, "kind": "refused after writing"}
        if not is_sentence(refusal):
            return {**told, "kind": "unclear"}
    if not call.typed:
        return {**told, "kind": "refused" if refusal is not None else "equal"}
    theirs, _ = call.copy()
    wanted, reason = run(reference(call.name), theirs)
    if refusal is not None or reason is not None:
        agree = refusal == reason
        return {**told, "kind": "refused" if agree else "disagree", "reference": reason}
    if unordered(call):
        return {**told, "kind": "unordered"}
    difference = compare(call, mine, theirs) or guards(call, mine, memory, before)
    for k, (a, b) in enumerate(zip(made, wanted, strict=True)):
        close = CLOSE["norms"] if call.name == "combine_error" and k == len(made) - 1 else 0.0
        if not same(a, b, close):
            difference = f"result {k} is {a.flatten()[:6].tolist()}, {b.flatten()[:6].tolist()}"
    return (
        {**told, "kind": "equal"}
        if difference is None
        else {
            **told,
            "kind": "differing",
            "said": difference,
        }
    )


def _same_bytes(a, b) -> bool:
    views = (torch.empty(0, dtype=torch.uint8).set_(storage) for storage in (a, b))
    return torch.equal(*views)


def main() -> None:
    """Answers every line of seeds with a line of JSON for each."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        for seed in map(int, line.split()):
            print(json.dumps(outcome(seed)), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
