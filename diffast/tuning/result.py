"""What `df.tune` returns: the plan, and what was measured on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import Any, NamedTuple

from diffast.plans import Plan


class Measured(NamedTuple):
    """The error of one plan on the held-out noises.

    Attributes:
        name: the candidate's name.
        calls: network calls of its plan.
        error: root mean square distance to the teacher's samples, over their spread.
        kind: "standard" or "tuned".
    """

    name: str
    calls: int
    error: float
    kind: str


@dataclass(frozen=True)
class TuneResult:
    """A plan made for a network, and what was measured.

    Attributes:
        plan: the tuned plan; the best standard one where learning found none that is better.
        error: its error on the held-out noises.
        best_standard: the best standard plan of as many calls: name, calls, error.
        table: everything that was measured on the held-out noises, best first.
        teacher: name, calls and accuracy of the reference.
        network_calls: evaluations that tuning took, counted by sample.
        history: held-out error after every iteration of learning.
        notes: what was skipped or did not go as asked.
    """

    plan: Plan
    error: float
    best_standard: Measured
    table: tuple[Measured, ...]
    teacher: dict[str, Any]
    network_calls: int
    history: tuple[float, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def save(self, path: str | PathLike) -> None:
        """Writes the plan, with its provenance, as `.json` or `.npz`; see `Plan.save`."""
        self.plan.save(path)

    def picture(self, path: str | PathLike) -> None:
        """Draws error against calls, a point for each measured plan; needs matplotlib.

        Raises:
            ImportError: without matplotlib (`pip install diffast[plot]`).
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for kind, mark in (("standard", "."), ("tuned", "*")):
            rows = [row for row in self.table if row.kind == kind]
            label = f"{kind} ({len(rows)})"
            axes.plot(
                [row.calls for row in rows],
                [row.error for row in rows],
                mark,
                label=label,
                markersize=7 if kind == "standard" else 13,
            )
        best: dict[int, float] = {}
        for row in self.table:
            if row.kind == "standard":
                best[row.calls] = min(row.error, best.get(row.calls, float("inf")))
        counts = sorted(best)
        axes.plot(counts, [best[n] for n in counts], "-", color="C0", linewidth=1)
        axes.set(
            xlabel="network calls", ylabel="error / spread", yscale="log", title=self.plan.name
        )
        axes.set_xticks(sorted({row.calls for row in self.table}))
        axes.legend()
        figure.savefig(path)

    def __str__(self) -> str:
        """Returns a few lines for people."""
        best = self.best_standard
        lines = [
            f"{self.plan.name}: {self.plan.nfe} calls, error {self.error:.4f} of the spread",
            f"best standard: {best.name}, {best.calls} calls, error {best.error:.4f}",
            f"teacher: {self.teacher['name']}, accuracy {self.teacher['accuracy']:.2g}",
            f"network calls of tuning: {self.network_calls} (one sample each)",
        ]
        others = [row for row in self.table if row.kind == "standard" and row.calls != best.calls]
        if others:
            lines.append(
                f"best standard of {others[0].calls} calls: {others[0].name}, "
                f"error {others[0].error:.4f}"
            )
        return "\n".join([*lines, *self.notes])
