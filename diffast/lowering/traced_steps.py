"""Trial steps as straight-line programs that write every sample's own tables of weights.

The rows of a trial program are functions of a step. Called once with recorded positions
(`recorder.py`), they become float64 programs, one for each network call of a step. A program makes
all numbers that a round needs: the time that the network is told, and the tables for the ops.

    time             [B], given to the network
    inputs           table of the network inputs and, with a bridge, of the path's new values
    settle           table of what follows the answer, for `combine_error`
    tolerance        [B, 2] (atol, rtol)
    levels           [B, 2 + T] (alpha, sigma) of the call, then the weights of the T guidance terms
    estimate         table of the x0 estimate alone, where a hook sees it
    nodes, path      [B, 2], [B, 2]: arguments of `brownian`, for noise="path"

Samples at different calls share tables, whose columns are the union over the calls. Every program
then writes all cells that any of them writes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np

from diffast.lowering.estimate import X0
from diffast.lowering.recorder import Instruction, Recorded, Recording
from diffast.lowering.trial_steps import TrialProgram
from diffast.plans.registers import Z1
from diffast.solvers.embedded import EmbeddedSolver, Node, Step
from diffast.solvers.embedded.solver import Row

# The instructions, and (out, element, number of an instruction) for each number that is written.
Traced = tuple[Sequence[Instruction], list[tuple[int, int, int]]]


class NodeSource(Protocol):
    """Where programs get the nodes of positions from."""

    @property
    def key(self) -> Hashable | None:
        """Returns what is equal for sources that record the same; None: equal to no other."""
        ...

    def node(self, recording: Recording, position: Recorded, place: str) -> Node:
        """Returns the node of a position; the place is "start", "end" or "call"."""
        ...

    def scale(self, recording: Recording, position: Recorded, number: int) -> Recorded:
        """Returns one of the scales that depend on the time, at the position of the call."""
        ...


class Table(NamedTuple):
    """The form of a table for `combine_table` or `combine_error`.

    Attributes:
        name: of the weights [B, height, width] among the outs.
        columns: names of the tensors that it weighs.
        height: number of rows.
        width: number of columns, one more than tensors where a clamped row is weighed.
        noise: name of the weights [B, height, 1] of fresh normals among the outs, or None.
    """

    name: str
    columns: tuple[str, ...]
    height: int
    width: int
    noise: str | None


class Out(NamedTuple):
    """What a program writes of each sample: its name, its shape, whether numbers are whole."""

    name: str
    shape: tuple[int, ...]
    whole: bool


@dataclass(frozen=True)
class TracedRound:
    """The programs of a round, and what they write.

    Attributes:
        programs: one for each of the round's calls.
        outs: what they write, by place.
        inputs, settle: the two tables.
        estimate: the table of the x0 estimate; None without a hook.
        measured: whether the last row of `settle` is the drawn noise.
    """

    programs: list[Traced]
    outs: tuple[Out, ...]
    inputs: Table
    settle: Table
    estimate: Table | None
    measured: bool


@dataclass(frozen=True)
class Tracer:
    """What the programs of all rounds of a run are made of.

    Attributes:
        program: the trial program.
        source: gives the nodes of positions.
        scale: the guidance scale; None where it depends on the time.
        inputs: columns of the inputs by name: "start", "end" and the remembered points.
        times: names of the outs that get the time: the cfg branches have one each.
        copies: number of tensors that a network input is written to.
        path: for noise="path": returns (nodes, weights), the arguments of `brownian` for a step.
    """

    program: TrialProgram
    source: NodeSource
    scale: float | None
    inputs: Mapping[str, int]
    times: tuple[str, ...]
    copies: int
    path: Callable[[Step], tuple[tuple, tuple]] | None

    @cached_property
    def key(self) -> Hashable | None:
        """Returns what the programs depend on: equal keys, equal programs; None: not known."""
        program, source = self.program, self.source.key
        parts = solver_key(program.solver), known_value(program.prediction), source
        if None in parts:
            return None
        run = program.noise, program.hook, program.clamp, self.scale, self.times, self.copies
        run = *run, program.terms
        return (*parts, *run, tuple(self.inputs.items()), self.path)

    def trace(self, calls: Sequence[int], remembered: bool) -> TracedRound:
        """Returns the programs of samples that stand at these calls.

        Without `remembered` no sample remembers a rejected point, and tables have no columns for
        them.
        """
        recording = Recording()
        steps, rejected = self._steps(recording, calls, remembered)
        program, parts = self.program, {}
        estimates, gradients = {}, {}
        for call, step in steps.items():
            scale, *of_terms = self._scales(recording, step)
            estimates[call] = program.estimate(step, scale)
            gradients[call] = program.gradients(step, of_terms)
        cells: dict[int, dict[tuple[str, int], Any]] = {
            call: self._numbers(step, call, gradients[call]) for call, step in steps.items()
        }
        parts = {call: self._input_rows(step, call, rejected) for call, step in steps.items()}
        inputs = self._add("inputs", parts, cells)
        made = estimates, gradients
        parts = {c: program.settle_rows(s, c, *(row[c] for row in made)) for c, s in steps.items()}
        measured = any(rows[-1] for rows in parts.values())
        if not measured:
            parts = {call: rows[:-1] for call, rows in parts.items()}
        settle = self._add("settle", parts, cells, X0 if program.fused else None)
        estimate = None
        if program.hook:
            parts = {call: [row] for call, row in estimates.items()}
            estimate = self._add("estimate", parts, cells)
            if program.clamp:  # the clamped row's own column, 0
                estimate = estimate._replace(width=estimate.width + 1)
        outs = self._outs([inputs, settle, *([estimate] if estimate else [])])
        programs = _programs(recording, cells, [out.name for out in outs])
        return TracedRound(programs, outs, inputs, settle, estimate, measured)

    def _steps(
        self, recording: Recording, calls: Sequence[int], remembered: bool
    ) -> tuple[dict[int, Step], dict[str, Recorded]]:
        """Returns the step of each call, and the positions of remembered points."""
        solver, source = self.program.solver, self.source
        start, end = (recording.input(self.inputs[name]) for name in ("start", "end"))
        names = self.program.rejected if remembered else ()
        rejected = {name: recording.input(self.inputs[name]) for name in names}
        first = source.node(recording, start, "start")
        last = source.node(recording, end, "end")
        steps = {}
        for call in calls:
            place = solver.position(np, call, start, end)
            ends = {start.number: first, end.number: last}
            node = ends.get(place.number) or source.node(recording, place, "call")
            steps[call] = Step(np, first, last, node)
        return steps, rejected

    def _scales(self, recording: Recording, step: Step) -> list[Any]:
        """Returns the guidance scale and those of the terms, at a step's call."""
        found, position = [], step.call.position
        for scale in (self.scale, *(term.scale for term in self.program.terms)):
            if scale is None:  # in the order in which the source has them
                number = sum(not isinstance(known, float) for known in found)
                found.append(self.source.scale(recording, position, number))
            else:
                found.append(scale)
        return found

    def _numbers(self, step: Step, call: int, gradients: Row) -> dict[tuple[str, int], Any]:
        """Returns the cells of what is no table."""
        cells = {(name, 0): step.call.time for name in self.times}
        # Where a sample is not judged, any tolerance will do.
        judged = call == self.program.solver.calls
        tolerance = self.program.solver.tolerance(step) if judged else (1.0, 0.0)
        found = {"tolerance": tolerance}
        if self.program.terms:
            found["levels"] = step.call.alpha, step.call.sigma, *gradients.values()
        if self.path is not None:
            found["nodes"], found["path"] = self.path(step)
        return cells | {(n, k): v for n, numbers in found.items() for k, v in enumerate(numbers)}

    def _input_rows(self, step: Step, call: int, rejected: dict[str, Recorded]) -> list[Row]:
        row, value = self.program.input_rows(step, call, rejected)
        return [row] * self.copies + [value] * (self.program.noise.kind == "bridge")

    def _add(
        self,
        name: str,
        parts: dict[int, list[Row]],
        cells: dict[int, dict[tuple[str, int], Any]],
        last: str | None = None,
    ) -> Table:
        """Returns the table of several calls' rows, as many each, and adds their cells.

        Sums have the order of the names. The column `last` is the clamped row, and no tensor.
        """
        used = {column for rows in parts.values() for row in rows for column in row}
        columns = tuple(c for c in self.program.order if c in used and c != last)
        width = len(columns) + (last is not None)
        place = {column: k for k, column in enumerate((*columns, last))}
        fresh = f"{name} noise"
        for call, rows in parts.items():
            for r, row in enumerate(rows):
                for column, weight in row.items():
                    at = (fresh, r) if column == Z1 else (name, r * width + place[column])
                    cells[call][at] = weight
        height = len(next(iter(parts.values())))
        return Table(name, columns, height, width, fresh if Z1 in used else None)

    def _outs(self, tables: list[Table]) -> tuple[Out, ...]:
        outs = [Out(name, (), False) for name in self.times] + [Out("tolerance", (2,), False)]
        if self.program.terms:
            outs.append(Out("levels", (2 + len(self.program.terms),), False))
        for table in tables:
            outs.append(Out(table.name, (table.height, table.width), False))
            if table.noise is not None:
                outs.append(Out(table.noise, (table.height, 1), False))
        if self.path is not None:
            outs += [Out("nodes", (2,), True), Out("path", (2,), False)]
        return tuple(outs)


def known_value(thing: Any) -> Hashable | None:
    """Returns a dataclass of the package that cannot change, as a key; None for anything else.

    A class of the caller's may be frozen and still say other things later: by a field that is an
    object with attributes, one that is not compared, an attribute of the class.
    """
    parameters = getattr(type(thing), "__dataclass_params__", None)
    if parameters is None or not (parameters.frozen and parameters.eq and _is_own(thing)):
        return None
    if vars(thing).keys() - {field.name for field in fields(thing)}:  # not compared
        return None
    try:
        hash(thing)
    except TypeError:  # a field that can change
        return None
    return thing


def solver_key(solver: EmbeddedSolver) -> Hashable | None:
    """Returns what the rows of a solver of the package depend on; None for any other.

    None as well where an option is no plain number.
    """
    if not _is_own(solver):
        return None
    options = {n: value for n, value in vars(solver).items() if n != "controller"}
    if not all(_is_plain(value) for value in options.values()):
        return None
    return (type(solver), *options.items())


def _is_own(thing: Any) -> bool:
    """Returns whether the package defines a thing's class: no other code is known to be fixed."""
    return type(thing).__module__.partition(".")[0] == __name__.partition(".")[0]


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    plain = value is None or type(value) in (bool, int, float, str)
    return plain or known_value(value) is not None


def _programs(
    recording: Recording, cells: dict[int, dict[tuple[str, int], Any]], outs: list[str]
) -> list[Traced]:
    """Returns each call's program; a cell that it has not, but another call has, is 0."""
    keys = dict.fromkeys(key for found in cells.values() for key in found)
    zero, programs = recording.constant(0.0), []
    for found in cells.values():
        stores = []
        for name, element in keys:
            value = found.get((name, element), zero)
            value = value if isinstance(value, Recorded) else recording.constant(value)
            stores.append((outs.index(name), element, value.number))
        programs.append((recording.instructions, stores))
    return programs
