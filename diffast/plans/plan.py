"""Plans: a solver's whole run as float64 matrices over named registers, which check themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np

from diffast.plans.checks import check_consistent, check_numbers, check_shapes
from diffast.plans.initial import Initial, late_start
from diffast.plans.provenance import checked
from diffast.plans.registers import NEW, Z1, Z2, D, H, V, X, Y, column_key

# Of a plan with more stages than this, people see the first and the last ones.
_SHOWN_FIRST, _SHOWN_LAST = 12, 3


@dataclass(frozen=True, eq=False)
class Plan:
    """A solver's run as numbers: S stages, each one matrix over named registers.

    A stage calls the network on x at `times[i]`, which gives the x0 estimate d; then every row of
    `matrix[i]` is a weighted sum of the columns. `diffast/plans/registers.py` says what registers
    there are. x and y hold the initial state at first. After the last stage x is the sample.

    Arrays are copied to float64 and made read-only.

    Args:
        schedule: schedule, with alpha(t) and sigma(t).
        times: [S] model time that the network is told; NaN: the stage calls no network. Or [S, E],
            for stages that call it on x, x2 .. at once, as one batch; NaN: that one is not called.
        end: model time at which x stands at last.
        rows: R names of what a stage writes, in the order of `registers.ROWS`. A row of zeros
            writes nothing: the register then holds nothing, and no entry is remembered.
        columns: C names of what rows weigh, sorted as `registers.column_key` says.
        matrix: [S, R, C] weights.
        levels: [S, R, 2] of (alpha, sigma): what each register holds after the stage, alpha x0 plus
            noise of deviation sigma: (1, 0) for an x0 estimate, (0, 1) for a momentum, (0, 0) for
            an error. NaN for entries, which hold what their row defines.
        start: model time at which the initial state stands; None: that of the first call.
        steps: number of grid intervals.
        name: what people call it.
        check: "full": everything below; "x0": the noise level is left out, for methods that change
            it on purpose (S_noise); "finite": only shapes and finite numbers, for tables of
            others that contradict themselves.
        spans: [S, 2] model times (from, to) of the Brownian increment that a stage's z1 stands for;
            NaN or None: to x after the stage, from x after the last stage before it that wrote y.
            An annotation: it is read by path noise alone.
        blocks: [B] int, the first calls of the blocks that a method with barriers takes one after
            another; None: no barriers. An annotation: it is read by block-wise parallel runs alone.
        guidance: guidance scale of each network call, shaped as `times`, NaN where it is not made;
            None: the denoiser's own. With 1 (or 0) the call is on one branch alone.
        gradients: [S] model time that the guidance gradients g1 .. at x are told; NaN: the stage
            evaluates none. None: the time of the call where a row weighs a gradient. A stage may
            evaluate gradients without a network call.
        made_for: what the plan was made for and measured on, as `df.tune` writes it: a mapping that
            JSON can hold, or None. "predicts" (prediction type), "network" (its fingerprint) and
            "guidance" are compared with the denoiser of a run. "digest" is that of the plan's
            numbers, and is filled in: numbers that were changed later are refused.
        initial: the Gaussian law that runs start from, and the entries that it fills in, as
            `late_start` makes it; None: runs start from noise alone, and without entries.

    Raises:
        ValueError: naming the stage and the two numbers that disagree, if a shape is wrong, a
            number is not finite, the numbers are not those of `made_for`, a time lies outside the
            schedule, a row weighs what no earlier stage has written, or the matrices are
            inconsistent: were every x0 estimate the true x0 and the initial state alpha x0 + sigma
            eps, each register must hold its level.
    """

    schedule: Any
    times: np.ndarray
    end: float
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    matrix: np.ndarray
    levels: np.ndarray
    start: float | None = None
    steps: int = 1
    name: str = "plan"
    check: str = "full"
    spans: np.ndarray | None = None
    blocks: np.ndarray | None = None
    guidance: np.ndarray | None = None
    gradients: np.ndarray | None = None
    made_for: Mapping[str, Any] | None = None
    initial: Initial | None = None

    def __post_init__(self):
        """Converts, freezes and checks every number."""
        for field in ("times", "matrix", "levels", "spans", "guidance", "gradients"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _frozen(getattr(self, field), np.float64))
        for field in ("rows", "columns"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        object.__setattr__(self, "end", float(self.end))
        if self.blocks is not None:
            indices = np.asarray(self.blocks)
            if indices.dtype.kind not in "iu":
                raise ValueError(
                    f"Plan {self.name}: blocks holds {indices.dtype}, but it must be int"
                )
            object.__setattr__(self, "blocks", _frozen(indices, np.int64))
        check_shapes(self)
        start = self.call_times[0] if self.start is None and self.nfe else self.start
        object.__setattr__(self, "start", float(np.nan if start is None else start))
        object.__setattr__(self, "spans", _frozen(self._spans(), np.float64))
        told = self._gradients()
        object.__setattr__(self, "gradients", told if told is None else _frozen(told, np.float64))
        check_numbers(self)
        check_consistent(self)
        object.__setattr__(self, "made_for", checked(self))

    @property
    def stages(self) -> int:
        """Returns S, the number of stages."""
        return len(self.times)

    @cached_property
    def initial_scale(self) -> float:
        """Returns the deviation of the initial noise, sigma at `start`."""
        return float(self.schedule.sigma(self.start))

    @cached_property
    def calls(self) -> np.ndarray:
        """Returns the stages that call the network, [calls] int."""
        return _frozen(np.flatnonzero(self.called.any(axis=1)), np.int64)

    @cached_property
    def evaluations(self) -> np.ndarray:
        """Returns the stages that call the network or evaluate gradients, [n] int."""
        found = self.called.any(axis=1)
        if self.gradients is not None:
            found = found | ~np.isnan(self.gradients)
        return _frozen(np.flatnonzero(found), np.int64)

    @cached_property
    def called(self) -> np.ndarray:
        """Returns which of its inputs x, x2 .. a stage calls the network on, [S, E] bool."""
        return _frozen(~np.isnan(self.times.reshape(self.stages, -1)), np.bool_)

    @cached_property
    def call_times(self) -> np.ndarray:
        """Returns the model times of the network calls on x, one a stage that calls, [calls]."""
        return _frozen(self.times.reshape(self.stages, -1)[self.calls, 0], np.float64)

    @cached_property
    def nfe(self) -> int:
        """Returns the number of network evaluations of a run; those of one batch count each."""
        return int(self.called.sum())

    @cached_property
    def gradient_evaluations(self) -> int:
        """Returns at how many stages of a run the gradients of guidance terms are evaluated."""
        return 0 if self.gradients is None else int((~np.isnan(self.gradients)).sum())

    @property
    def history(self) -> int:
        """Returns how many entries of earlier stages are remembered."""
        return max((int(name[1:]) for name in self.columns if name[0] == "h"), default=0)

    @property
    def stochastic(self) -> bool:
        """Returns whether any row draws fresh noise."""
        return any(self.weights(row, z).any() for row in self.rows for z in (Z1, Z2))

    def step_starts(self) -> np.ndarray:
        """Returns the network calls before which y is x, the first included, [n] int."""
        numbers = np.arange(len(self.calls))
        if Y not in self.rows:
            return numbers
        x, y = (self.matrix[:, self.rows.index(name)] for name in (X, Y))
        joined = np.flatnonzero((x == y).all(axis=1)) + 1
        return np.flatnonzero(np.isin(self.calls, joined) | (numbers == 0))

    def weights(self, row: str, column: str) -> np.ndarray:
        """Returns the weights of one column in one row, [S]; zeros where the plan has neither."""
        if row not in self.rows or column not in self.columns:
            return np.zeros(self.stages)
        return self.matrix[:, self.rows.index(row), self.columns.index(column)]

    def with_weights(self, weights: dict[tuple[str, str], Any], **fields: Any) -> Plan:
        """Returns the plan with other weights, {(row, column): [S]}, and other fields.

        Raises:
            ValueError: a row that the plan does not have; what the plan's checks refuse.
        """
        for row, _ in weights:
            if row not in self.rows:
                known = ", ".join(self.rows)
                raise ValueError(f"Plan {self.name}: no row {row}, but {known}")
        columns = tuple(dict.fromkeys((*self.columns, *(column for _, column in weights))))
        grown = np.zeros((self.stages, len(self.rows), len(columns)))
        grown[:, :, : len(self.columns)] = self.matrix
        for (row, column), weight in weights.items():
            grown[:, self.rows.index(row), columns.index(column)] = weight
        order = sorted(range(len(columns)), key=lambda k: column_key(columns[k]))
        columns = tuple(columns[k] for k in order)
        return replace(self, columns=columns, matrix=grown[:, :, order], **fields)

    def late_start(
        self,
        law: Any,
        *,
        level: float | None = None,
        calls: int | None = None,
        kl: float | None = None,
    ) -> Plan:
        """Returns the rest of the plan from a lower noise level, started from a Gaussian law.

        At high noise the data are nearly the Gaussian of their mean and covariance, whose flow is
        known in closed form. The network calls there are left out (Raya and Ambrogioni 2023,
        "Spontaneous symmetry breaking in generative diffusion models", Gaussian late start). Three
        things differ from the paper. The draw uses the noise of `df.sample`, carried along by the
        Gaussian's flow, so that the same seed gives nearly the same picture. Multistep methods find
        their remembered estimates filled in by the Gaussian, so that the first step has the full
        order. The level may be chosen by a bound on the divergence (see `df.thermo.start_law`).

        `level`, `calls` and `kl` choose the cut, which is the start of a step of the plan. With
        none of them nothing is cut: the plan itself has to start low.

        Args:
            law: a `df.thermo.Gaussian` of the data, or what `df.thermo.start_law` returns.
            level: the plan starts at the first step whose sigma / alpha is at most this.
            calls: it starts at the first step that leaves at most so many network calls.
            kl: it starts at the last step at which the measured divergence of the data from the
                law is at most this many nats.

        Raises:
            ValueError: no such step; a law without the divergence that `kl` asks for; a plan that
                carries more than x across the cut, or entries that hold noise or gradients; a plan
                that starts from a law already.
        """
        return late_start(self, law, level=level, calls=calls, kl=kl)

    def _gradients(self) -> np.ndarray | None:
        """Returns [S] told times of the gradients; None for a plan that weighs none."""
        weighed = [k for k, name in enumerate(self.columns) if name[0] == "g"]
        if not weighed:
            return None
        used = self.matrix[:, :, weighed].any(axis=(1, 2))
        times = self.times.reshape(self.stages, -1)[:, 0]
        told = times * np.nan if self.gradients is None else self.gradients
        return np.where(used & np.isnan(told), times, told)

    def _spans(self) -> np.ndarray:
        """Returns [S, 2]; by default to the time of x after, from where y was last written."""
        if self.spans is not None and not np.isnan(self.spans).any():
            return self.spans
        stages = np.arange(self.stages)
        after = np.searchsorted(self.calls, stages, side="right")  # number of the next call
        following = np.append(self.call_times, self.end)[after]  # where x stands for it
        wrote = np.where(self._keeps(Y), -1, stages)
        last = np.append(-1, np.maximum.accumulate(wrote)[:-1])
        found = np.stack([np.append(self.start, following)[last + 1], following], axis=1)
        if self.spans is None:
            return found
        return np.where(np.isnan(self.spans).any(axis=1)[:, None], found, self.spans)

    def _keeps(self, register: str) -> np.ndarray:
        """Returns whether each stage leaves a register as it is, [S]; never where there is none."""
        if register not in self.rows:
            return np.zeros(self.stages, dtype=bool)
        row = self.matrix[:, self.rows.index(register)]
        return (row[:, self.columns.index(register)] == 1.0) & (np.count_nonzero(row, axis=1) == 1)

    def __repr__(self) -> str:
        """Returns one line for people."""
        kind = "stochastic" if self.stochastic else "deterministic"
        return (
            f"Plan({self.name}: {self.steps} steps, {self.nfe} calls, history {self.history}, "
            f"{kind}, t {self.start:.6g} -> {self.end:.6g}, {self.schedule})"
        )

    def __str__(self) -> str:
        """Returns the matrices for people: a line a row, weights by what they weigh."""
        lines = [repr(self)]
        shown = range(self.stages)
        if self.stages > _SHOWN_FIRST + _SHOWN_LAST + 1:
            shown = [*range(_SHOWN_FIRST), *range(self.stages - _SHOWN_LAST, self.stages)]
        for i in shown:
            if i and i - 1 not in shown:
                lines.append(f"  ... {i - _SHOWN_FIRST} stages ...")
            lines += self._stage_lines(i)
        return "\n".join(lines)

    def _stage_lines(self, i: int) -> list[str]:
        told = ", ".join(f"{t:.6g}" for t in self.times.reshape(self.stages, -1)[i] if t == t)
        shown = f"t = {told}" if told else "no call"
        if not told and self.gradients is not None and self.gradients[i] == self.gradients[i]:
            shown = f"g at {self.gradients[i]:.6g}"
        head = f"  {i:>4}  {shown:<14}"
        rows = {
            name: {c: w for c, w in zip(self.columns, row.tolist(), strict=True) if w}
            for name, row in zip(self.rows, self.matrix[i], strict=True)
        }
        # Not worth a line: a register that stays, holds nothing or is x, an entry that is d.
        plain = {H: {D: 1.0}, Y: {Y: 1.0}, V: {V: 1.0}}
        joined = rows.get(Y) == rows[X]
        if joined:
            del rows[Y]
        labels = {X: "x = y" if joined else X, H: NEW}
        shown = {name: row for name, row in rows.items() if row != plain.get(name)}
        lines = [
            f"{labels.get(name, name)} = {_terms(row)}"
            for name, row in shown.items()
            if row or name == X
        ]
        return [(head if not n else " " * len(head)) + "  " + line for n, line in enumerate(lines)]

    def save(self, path: str | PathLike) -> None:
        """Writes the plan, its schedule included, as `.json` (readable, exact) or `.npz`.

        Raises:
            ValueError: another ending; a schedule that is not one of `df.schedules`.
        """
        from diffast.plans import file

        file.save(self, path)

    @staticmethod
    def load(path: str | PathLike) -> Plan:
        """Returns the plan that `save` wrote, checked anew and equal to the last bit.

        Raises:
            ValueError: a file that holds no plan, or one that contradicts itself.
        """
        from diffast.plans import file

        return file.load(path)


def _terms(row: dict[str, float]) -> str:
    return " ".join(f"{weight:+.6g} {column}" for column, weight in row.items()) or "0"


def _frozen(array, dtype):
    array = np.array(array, dtype=dtype, order="C")
    array.flags.writeable = False
    return array
