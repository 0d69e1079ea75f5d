"""One line for a pipeline: its scheduler replaced by the equivalent drop-in."""

from __future__ import annotations

from dataclasses import dataclass

from diffast.integrations.diffusers.scheduler import DiffastScheduler


@dataclass(frozen=True)
class Report:
    """What `accelerate` did.

    Attributes:
        before: name of the pipeline's scheduler class.
        after: name of the class that replaces it.
        noise: "generator" or "counter".
        notes: what is not exactly as before, a sentence each.
    """

    before: str
    after: str
    noise: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns it in words."""
        head = f"diffast: {self.before} -> {self.after}, noise from the {self.noise}"
        return "\n".join([head, *(f"  {note}" for note in self.notes)])


def accelerate(pipe, noise: str = "generator", quiet: bool = False) -> Report:
    """Returns what was done: the pipeline's scheduler is replaced by its drop-in, in place.

    Args:
        pipe: a diffusers pipeline, or anything with a `scheduler`.
        noise: "generator": the same pictures as before; "counter": the package's own noise, faster
            and the same in any batch and on any device.
        quiet: whether not to print the report.

    Raises:
        ValueError: a scheduler that has no drop-in (the pipeline is left as it was).
    """
    before = pipe.scheduler
    name = type(before).__name__
    if isinstance(before, DiffastScheduler):
        name = name.removeprefix("Diffast")
    after = DiffastScheduler.from_scheduler(before, noise=noise)
    pipe.scheduler = after
    report = Report(name, type(after).__name__, noise, _notes(after))
    if not quiet:
        print(report)
    return report


def _notes(scheduler) -> tuple[str, ...]:
    config, notes = scheduler.config, []
    if config.get("algorithm_type") == "sde-dpmsolver++" and config.get("solver_order") == 3:
        notes.append(
            "third-order SDE steps have the published sign in one term, diffusers the opposite: "
            "the pictures differ"
        )
    if config.noise == "counter":
        notes.append("stochastic steps use other noise than diffusers: other pictures, same law")
    return tuple(notes)
