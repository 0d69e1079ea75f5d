"""How many tensors of the state's size a program needs at the least: those alive at one time."""

from __future__ import annotations

from diffast.lowering.program import X0, Program, Stage
from diffast.lowering.slots import slot_name
from diffast.plans.registers import X, Y


def fewest_tensors(program: Program) -> int:
    """Returns how many state tensors are alive at one time, at most, in a run of the program.

    A tensor is alive from the call that writes it to the last call or network that reads it. A call
    may write its output over an input that is read for the last time. No run can hold fewer
    tensors. What the network's input needs beyond x, and given or estimated tensors, come on top.
    """
    held: dict[str, int] = {X: 0, Y: 0}  # the value that stands under each name
    held |= {slot_name(slot): k for k, slot in enumerate(program.given, 1) if slot >= 0}
    first, values = {*held.values()}, 1 + len(program.given)
    needs, afterwards = [], []
    for stage in program.stages:
        read = {held[name] for name in _read(stage) if name in held}
        needs.append(read)
        kept = {name: held[name] for name in held if _stays(name, stage)}
        for name in _written(stage):
            kept[name] = values
            values += 1
        if stage.joined:
            kept[Y] = kept[X]
        held = kept
        afterwards.append(set(held.values()))
    alive = {held[X]}  # the sample
    most = len(alive)
    for i in reversed(range(len(needs))):
        most = max(most, len(alive))
        before = afterwards[i - 1] if i else first
        alive = (alive & before) | needs[i]
    return max(most, len(alive))


def _read(stage: Stage) -> set[str]:
    """Returns the names that the stage's calls read, and the inputs of its network call."""
    inputs = {"x", *(f"x{e}" for e in range(2, len(stage.times) + 1))}
    return inputs.union(*(call.columns for call in stage.calls))


def _written(stage: Stage) -> list[str]:
    names = (name for call in stage.calls for name in call.targets)
    return [name for name in names if not name.startswith((X0, "copy"))]


def _stays(name: str, stage: Stage) -> bool:
    """Returns whether what stands under a name outlives the stage, unless it is written anew."""
    return name in stage.keeps or name.startswith("slot")
