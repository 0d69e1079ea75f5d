"""What a report is asked for: parts, device, threads, and how long each case may take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

PARTS = ("ops", "steps", "runs", "paths", "start", "memory")


@dataclass(frozen=True)
class Settings:
    """The settings of one report.

    Attributes:
        quick: fewer cases and shorter turns: under three minutes on two cores.
        device: where everything runs.
        threads: numbers of CPU threads; on a CUDA device they are those of the host.
        budget: seconds of turns for a case; 0 calls everything once, which is a smoke test.
        ops: for each op "ok", or the reason why it is not measured.
        unverified: whether ops that failed their check are measured all the same.
        tiny: the smallest sizes, for tests of the command itself.
    """

    quick: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: Sequence[int] = (1,)
    budget: float = 0.4
    ops: dict[str, str] = field(default_factory=dict)
    unverified: bool = False
    tiny: bool = False

    def refusal(self, *needed: str) -> str | None:
        """Returns why figures that need these ops are refused; None if they are not."""
        if self.unverified:
            return None
        red = [f"{op}: {self.ops[op]}" for op in needed if self.ops.get(op, "ok") != "ok"]
        return "; ".join(red) or None

    def marks(self) -> dict[str, bool]:
        """Returns what every row says of its verification."""
        return {"verified": False} if self.unverified else {}

    @contextmanager
    def using(self, threads: int) -> Iterator[None]:
        """Has torch and the ops use so many threads."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
