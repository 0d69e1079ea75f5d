"""The parts of a report: sections of rows under named columns, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Section:
    """One table of the report.

    Attributes:
        name: of the part and the table: "ops", "runs: digits".
        title: heading in the report.
        about: what was measured, in sentences.
        columns: keys of the rows that are shown, in order; a key is a heading too.
        rows: figures by column. A row may also have "refused" (the reason why nothing was
            measured), "verified" (false with `--unverified`), and "loss" (true where the package
            is slower, or needs more calls, than what it is compared with).
        notes: sentences below the table, such as "torchsde: not installed".
        plot: None, or what the picture shows: see `diffast.bench.plots`.
    """

    name: str
    title: str
    about: str
    columns: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plot: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the section as JSON values."""
        return asdict(self) | {"columns": list(self.columns)}
