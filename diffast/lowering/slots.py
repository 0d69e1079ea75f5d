"""History slots: which slot holds which remembered entry, stage by stage."""

from __future__ import annotations

from diffast.lowering.silent import Rows
from diffast.plan.registers import NEW, H


def slot_name(number: int) -> str:
    """Returns the name of a slot's tensor."""
    return f"slot{number}"


class Slots:
    """Which slot holds the entry of which stage."""

    def __init__(self, last_use: dict[int, int]):
        """Begins with no entry.

        Args:
            last_use: the last stage that reads a stage's entry, by the stage that made it.
        """
        self.last_use, self.count = last_use, 0
        self._holds: dict[int, int] = {}  # stage -> slot, the oldest entry first
        self._free: list[int] = []
        self._made: list[int] = []  # stages that made entries, newest first

    def columns(self) -> dict[int, str]:
        """Returns the tensors' names by the age of their entry."""
        return {
            age: slot_name(self._holds[stage])
            for age, stage in enumerate(self._made, 1)
            if stage in self._holds
        }

    def held(self) -> tuple[int, ...]:
        """Returns the slots that hold entries, the oldest first."""
        return tuple(self._holds.values())

    def take(self, i: int) -> int:
        """Frees the slots that stage i reads last; returns the slot of its entry, or -1."""
        # An entry that is read for the last time may be overwritten by the same call.
        for stage in [s for s in self._holds if self.last_use[s] == i]:
            self._free.append(self._holds.pop(stage))
        self._made.insert(0, i)
        if i not in self.last_use:
            return -1
        slot = self._free.pop() if self._free else self.count
        self.count = max(self.count, slot + 1)
        self._holds[i] = slot
        return slot


def last_uses(stages: list[Rows]) -> dict[int, int]:
    """Returns the last stage that reads a stage's entry, by the stage that made it."""
    made: list[int] = []
    last = {}
    for i, rows in enumerate(stages):
        ages = {int(c[1:]) for row in rows.values() for c in row if c[0] == "h" and c != NEW}
        for age in ages:
            last[made[-age]] = i
        if rows.get(H):
            made.append(i)
    return last
