"""Programs as they are recorded, and the tensors that `evaluate` runs.

A recorded program is a pair (instructions, stores). `instructions` is a list of tuples

    (name, operand, ...)

each of which makes one number, and is called by its place in the list from then on. The operands of
an instruction, as many as `schema.OPERANDS` says, are places of earlier instructions, but for

    ("constant", number)           a Python float
    ("input", column)              a column of `inputs`
    ("lookup", row, piece, position)    a row of `pieces`; piece and position are places

`stores` is a list of tuples (out, element, place): that number is written to this element of the
sample's part of outs[out]. The order of stores matters only where two write the same element: the
later one counts, and the earlier one is left out.

For example ([("input", 0), ("constant", 2.0), ("mul", 0, 1)], [(0, 3, 2)]) writes
2 inputs[b, 0] to outs[0][b, 3].
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from diffast.ops.schema import INSTRUCTIONS, MAX_REGISTERS, OPERANDS

Instruction = tuple[Any, ...]
Program = tuple[Sequence[Instruction], Sequence[tuple[int, int, int]]]

_COMMUTE = ("add", "mul", "eq", "and", "or")
_OPCODES = {name: opcode for opcode, name in enumerate(INSTRUCTIONS)}


class Encoded(NamedTuple):
    """Programs as `evaluate` takes them, on the CPU.

    Attributes:
        code: int32 [N, 5] of (opcode, target, a, b, c).
        constants: float64 [K].
        starts: int32 [P + 1].
        registers: how many numbers the largest of the programs holds at a time, 1 at least.
    """

    code: torch.Tensor
    constants: torch.Tensor
    starts: torch.Tensor
    registers: int

    def to(self, device: torch.device | str) -> Encoded:
        """Returns the programs on another device."""
        return Encoded(
            self.code.to(device), self.constants.to(device), self.starts.to(device), self.registers
        )


def encode(programs: Sequence[Program]) -> Encoded:
    """Returns the tensors of recorded programs.

    What no store needs is left out, equal instructions are made once, negations go into sums and
    differences, and numbers that are no longer needed leave their register to others. None of this
    changes a bit of what is stored.

    Args:
        programs: pairs (instructions, stores), see the module's docstring.

    Raises:
        ValueError: an instruction that is not known, or has other operands than it needs, or reads
            a place that is not before it; a program that holds more than 256 numbers at a time.
    """
    if not programs:
        raise ValueError("evaluate: there are 0 programs but at least one is needed")
    code: list[list[int]] = []
    constants: dict[bytes, tuple[int, float]] = {}  # (place, number) by the number's bits
    starts, registers = [0], 1
    for number, (instructions, stores) in enumerate(programs):
        for place, instruction in enumerate(instructions):
            _check(number, place, instruction)
        stores = list({(out, element): place for out, element, place in stores}.items())
        for (out, element), place in stores:
            _check_store(number, out, element, place, len(instructions))
        unique, places = _merged(instructions)
        targets = [(*to, places[place]) for to, place in stores]
        lines = _in_order(unique, targets)
        used = _allocate(number, unique, lines, constants, code)
        registers = max(registers, used)
        starts.append(len(code))
    return Encoded(
        torch.tensor(code, dtype=torch.int32, device="cpu").reshape(-1, 5),
        torch.tensor([value for _, value in constants.values()], dtype=torch.float64, device="cpu"),
        torch.tensor(starts, dtype=torch.int32, device="cpu"),
        registers,
    )


def _check(number: int, place: int, instruction: Instruction) -> None:
    name, *operands = instruction
    where = f"evaluate: program {number}, instruction {place}"
    if name not in OPERANDS or name == "store":
        raise ValueError(f"{where} is {name!r} but {', '.join(INSTRUCTIONS[:-1])} are known")
    kinds = OPERANDS[name]
    if len(operands) != len(kinds):
        raise ValueError(
            f"{where} ({name}) has {len(operands)} operands but {len(kinds)} are needed"
        )
    for kind, operand in zip(kinds, operands, strict=True):
        if kind == "constant":
            if not isinstance(operand, float | int):
                raise ValueError(f"{where} is the constant {operand!r} but a float is needed")
            continue
        if not isinstance(operand, int) or operand < 0:
            raise ValueError(f"{where} ({name}) has {kind} {operand!r} but 0 or more is needed")
        if kind == "register" and operand >= place:
            raise ValueError(
                f"{where} ({name}) reads instruction {operand}, but only earlier ones can be read"
            )


def _check_store(number: int, out: int, element: int, place: int, length: int) -> None:
    if out < 0 or element < 0 or not 0 <= place < length:
        raise ValueError(
            f"evaluate: program {number} stores instruction {place} in element {element} of out "
            f"{out} but there are {length} instructions, and elements and outs count from 0"
        )


def _bits(value: float) -> bytes:
    """Returns what tells numbers apart: 0 is not -0, and NaN is NaN."""
    return struct.pack("<d", value)


def _operands(instruction: Instruction) -> list[int]:
    """Returns the places that an instruction reads."""
    name, *values = instruction
    return [v for kind, v in zip(OPERANDS[name], values, strict=True) if kind == "register"]


def _without_negation(
    name: str, values: list[Any], unique: list[Instruction]
) -> tuple[str, list[Any]]:
    """Returns a sum or difference that reads no negated number: a + -b is a - b, bit for bit."""
    if name not in ("add", "sub"):
        return name, values
    first, second = (unique[v] for v in values)
    if second[0] == "neg":
        return ("sub" if name == "add" else "add"), [values[0], second[1]]
    if first[0] == "neg" and name == "add":
        return "sub", [values[1], first[1]]
    return name, values


def _merged(instructions: Sequence[Instruction]) -> tuple[list[Instruction], list[int]]:
    """Returns the different instructions, and where each given one is among them."""
    unique: list[Instruction] = []
    known: dict[Instruction, int] = {}
    places: list[int] = []
    for name, *values in instructions:
        if name == "constant":
            values = [float(values[0])]
            key = (name, _bits(values[0]))
        else:
            pairs = zip(OPERANDS[name], values, strict=True)
            values = [places[v] if kind == "register" else v for kind, v in pairs]
            name, values = _without_negation(name, values, unique)
            if name in _COMMUTE:
                values.sort()
            key = (name, *values)
        if key not in known:
            known[key] = len(unique)
            unique.append((name, *values))
        places.append(known[key])
    return unique, places


def _in_order(
    unique: list[Instruction], stores: list[tuple[int, int, int]]
) -> list[tuple[int, tuple[int, int] | None]]:
    """Returns what is run in order: (place, None), or (place, (out, element)) for a store.

    Instructions keep their order, but constants and inputs are made right before their first use
    and stores right after their number is: both hold fewer registers.
    """
    needed, waiting = set(), [place for *_, place in stores]
    while waiting:
        place = waiting.pop()
        if place not in needed:
            needed.add(place)
            waiting += _operands(unique[place])
    targets: dict[int, list[tuple[int, int]]] = {}
    for out, element, place in stores:
        targets.setdefault(place, []).append((out, element))
    made: set[int] = set()
    lines: list[tuple[int, tuple[int, int] | None]] = []

    def make(place: int) -> None:
        if place in made:
            return
        made.add(place)
        lines.append((place, None))
        lines.extend((place, target) for target in targets.get(place, ()))

    for place in sorted(needed):
        if unique[place][0] not in ("constant", "input"):
            for operand in _operands(unique[place]):
                make(operand)
            make(place)
    for place in sorted(needed):  # constants and inputs that are stored, and nothing else
        make(place)
    return lines


def _allocate(
    number: int,
    unique: list[Instruction],
    lines: list[tuple[int, tuple[int, int] | None]],
    constants: dict[bytes, tuple[int, float]],
    code: list[list[int]],
) -> int:
    """Appends a program to the code. Returns how many registers it has."""
    last: dict[int, int] = {}
    for at, (place, target) in enumerate(lines):
        for operand in [place] if target else _operands(unique[place]):
            last[operand] = at
    held: dict[int, int] = {}  # registers by place
    free: list[int] = []
    used = 0
    for at, (place, target) in enumerate(lines):
        if target is not None:
            code.append([_OPCODES["store"], 0, *target, held[place]])
            if last[place] == at:
                heapq.heappush(free, held.pop(place))
            continue
        name, *values = unique[place]
        if name == "constant":
            index, _ = constants.setdefault(_bits(values[0]), (len(constants), values[0]))
            values = [index]
        operands = [
            held[v] if kind == "register" else v
            for kind, v in zip(OPERANDS[name], values, strict=True)
        ]
        for operand in {*_operands(unique[place])}:
            if last[operand] == at:
                heapq.heappush(free, held.pop(operand))
        if not free:
            heapq.heappush(free, used)
            used += 1
        held[place] = heapq.heappop(free)
        code.append([_OPCODES[name], held[place], *operands, *[0] * (3 - len(operands))])
    if used > MAX_REGISTERS:
        raise ValueError(
            f"evaluate: program {number} holds {used} numbers at a time but {MAX_REGISTERS} are "
            "supported"
        )
    return used
