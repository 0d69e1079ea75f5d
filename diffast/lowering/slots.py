"""History slots: which slot holds which remembered entry, stage by stage."""

from __future__ import annotations

from diffast.lowering.silent import Rows
from diffast.plans.registers import NEW, H


def slot_name(number: int) -> str:
    """Returns the name of a slot's tensor."""
    return f"slot{number}"


class Slots:
    """Which slot holds the entry of which stage.

    Entries that a run starts with are those of the stages -n .. -1, the oldest first.
    """

    def __init__(self, last_use: dict[int, int], given: int = 0):
        """Begins with `given` entries; `last_use` is what `last_uses` returns."""
        self.last_use, self.count = last_use, 0
        self._holds: dict[int, int] = {}  # stage -> slot, the oldest entry first
        self._free: list[int] = []
        self._numbers: dict[int, int] = {}  # stage -> how many entries there were before its own
        self.given = tuple([self.take(i) for i in range(-given, 0)])  # -1: nobody reads it

    def columns(self) -> dict[int, str]:
        """Returns the tensors' names by the age of their entry."""
        made = len(self._numbers)
        return {made - self._numbers[i]: slot_name(slot) for i, slot in self._holds.items()}

    def held(self) -> tuple[int, ...]:
        """Returns the slots that hold entries, the oldest first."""
        return tuple(self._holds.values())

    def free(self, i: int) -> None:
        """Frees the slots of what stage i reads last: its own call may overwrite them."""
        for stage in [s for s in self._holds if self.last_use[s] == i]:
            self._free.append(self._holds.pop(stage))

    def take(self, i: int) -> int:
        """Returns the slot of the entry that stage i makes; -1 if nobody reads it."""
        self._numbers[i] = len(self._numbers)
        if i not in self.last_use:
            return -1
        slot = self._free.pop() if self._free else self.count
        self.count = max(self.count, slot + 1)
        self._holds[i] = slot
        return slot


def last_uses(stages: list[Rows], given: int = 0, newest: int = 0) -> dict[int, int]:
    """Returns the last stage that reads a stage's entry, by the stage that made it.

    Args:
        stages: the rows of each.
        given: entries that a run starts with.
        newest: how many of the newest entries every stage holds, read or not.
    """
    made: list[int] = [*range(-given, 0)]
    last = {}
    for i, rows in enumerate(stages):
        for column in set().union(*rows.values()):
            if column[0] == "h" and column != NEW:
                stage = made[-int(column[1:])]
                last[stage] = max(i, last.get(stage, i))
        if rows.get(H):
            made.append(i)
            if newest:
                last[i] = i + newest
    return last
