"""Plans: a solver's whole run as tables of numbers, which check themselves when made.

Before stage 0 the model input and the anchor are both `opening . (initial state, z)`, at times[0].
Stage i

    d       = x0 estimate of the network for the model input, at times[i]
    history = (read[i] . (model input, d), older entries ...)          at most H entries
    model input <- point[i]  . (anchor, z, history newest first)       stands at times[i+1] or end
    anchor      <- anchor[i] . (anchor, z, history newest first)       stands at anchor_at[i]

where both rows see the old anchor and one and the same fresh z ~ N(0, I). The last point is the
sample. `direct[i]` adds weights of the stage's own (model input, d) to both rows, `second[i]` those
of a second normal z2, independent of z. `error[i]`, if any, is one more row over the columns of
`point`.

Where something not linear is done to d (a clamp, a hook), the history holds the changed d and
`direct` weighs the unchanged one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffast.plan.checks import check_consistent, check_numbers, check_shapes
from diffast.plan.unroll import Unrolled as Unrolled
from diffast.plan.unroll import unroll as unroll

# Of a plan with more stages than this, people see the first and the last ones.
_SHOWN_FIRST, _SHOWN_LAST = 12, 3


@dataclass(frozen=True, eq=False)
class Plan:
    """A solver's run as numbers: S stages of one network call each, H remembered entries.

    Arrays are copied to float64 and made read-only. What they mean: see the top of this file.

    Args:
        schedule: numpy-only schedule, with alpha(t) and sigma(t).
        times: [S] model time of each network call.
        end: model time at which the last point stands.
        read: [S, 2] weights of (model input, x0 estimate) in the history entry.
        point: [S, 2+H] weights of (anchor, noise, history newest first) in the next model input.
        anchor: [S, 2+H] the same for the next anchor; (1, 0, 0, ...) keeps it.
        anchor_at: [S] int, index into (times..., end) of the time at which the anchor then stands;
            -1 for an anchor that is an estimate of x0 itself; -2 for one that is a velocity, the
            momentum of a unit mass: no x0 in it, and N(0, I) by itself.
        error: [S, 2+H] embedded error estimate, as the error itself; or None.
        steps: number of grid intervals.
        name: what people call it.
        direct: [S, 2, 2] weights of this stage's (model input, x0 estimate as the network gave it)
            in its (point, anchor) rows, beside their other columns; None: none.
        opening: (2,) weights of (initial state, fresh noise) in the state at times[0].
        start: model time at which the initial state stands; None: times[0].
        spans: [S, 2] model times (from, to) of the Brownian increment that a stage's fresh noise
            stands for; None: from the time of the old anchor to that of the new point.
        second: [S, 2] weights of a second fresh normal, independent of the first, in the
            (point, anchor) rows; None: none.
        blocks: [B] int, the first stages of the blocks that a method with barriers takes together,
            one after another; None: no barriers. Says nothing about the samples.
        check: "full": everything below; "x0": the noise level is left out, for methods that change
            it on purpose (S_noise); "finite": only shapes and finite numbers, for tables of
            others that contradict themselves.

    Raises:
        ValueError: naming the stage and the two numbers that disagree, if a shape is wrong, a
            number is not finite, a time lies outside the schedule, a weight falls on history that
            does not exist yet, or the tables are inconsistent: were every x0 estimate the true x0
            and the initial state alpha x0 + sigma eps, each point and anchor must be alpha x0 plus
            noise of variance sigma^2 at its own time, and each error row must be 0.
    """

    schedule: object
    times: np.ndarray
    end: float
    read: np.ndarray
    point: np.ndarray
    anchor: np.ndarray
    anchor_at: np.ndarray
    error: np.ndarray | None = None
    steps: int = 1
    name: str = "plan"
    direct: np.ndarray | None = None
    opening: np.ndarray = (1.0, 0.0)
    start: float | None = None
    spans: np.ndarray | None = None
    check: str = "full"
    second: np.ndarray | None = None
    blocks: np.ndarray | None = None

    def __post_init__(self):
        """Converts, freezes and checks every number."""
        fields = ("times", "read", "point", "anchor", "error", "direct", "opening", "spans")
        for field in (*fields, "second"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _frozen(getattr(self, field), np.float64))
        object.__setattr__(self, "end", float(self.end))
        if self.start is None and self.times.size:
            object.__setattr__(self, "start", float(self.times.flat[0]))
        for field in ("anchor_at", "blocks"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _frozen(_whole(self, field), np.int64))
        check_shapes(self)
        object.__setattr__(self, "start", float(self.start))
        for field in ("direct", "second"):
            if getattr(self, field) is not None and not getattr(self, field).any():
                object.__setattr__(self, field, None)
        if self.spans is None:
            object.__setattr__(self, "spans", _frozen(_default_spans(self), np.float64))
        check_numbers(self)
        check_consistent(self)

    @property
    def stages(self) -> int:
        """Returns S, the number of network calls."""
        return len(self.times)

    @property
    def nfe(self) -> int:
        """Returns the number of network calls (function evaluations) of a run."""
        return self.stages

    @property
    def history(self) -> int:
        """Returns H, the number of remembered entries."""
        return self.point.shape[1] - 2

    @property
    def stochastic(self) -> bool:
        """Returns whether any row uses its noise."""
        first = self.point[:, 1].any() or self.anchor[:, 1].any() or self.opening[1]
        return bool(first or self.second is not None)

    @property
    def calls_per_step(self) -> float:
        """Returns network calls per grid interval."""
        return self.stages / self.steps

    def __repr__(self) -> str:
        """Returns one line for people."""
        kind = "stochastic" if self.stochastic else "deterministic"
        return (
            f"Plan({self.name}: {self.steps} steps, {self.stages} calls, history {self.history}, "
            f"{kind}, t {self.start:.6g} -> {self.end:.6g}, {self.schedule})"
        )

    def __str__(self) -> str:
        """Returns the tables for people: one line a stage, weights by what they weigh."""
        lines = [repr(self)]
        if self.opening[1] or self.opening[0] != 1.0:
            lines.append(f"  opening      x = {_terms(('x', 'z'), self.opening)}")
        shown = range(self.stages)
        if self.stages > _SHOWN_FIRST + _SHOWN_LAST + 1:
            shown = [*range(_SHOWN_FIRST), *range(self.stages - _SHOWN_LAST, self.stages)]
        for i in shown:
            if i and i - 1 not in shown:
                lines.append(f"  ... {i - _SHOWN_FIRST} stages ...")
            lines += self._stage_lines(i)
        return "\n".join(lines)

    def _stage_lines(self, i: int) -> list[str]:
        entry = "d" if not self.read[i, 0] and self.read[i, 1] == 1.0 else "h"
        names = ["anchor", "z", f"{entry}[{i}]"]
        names += [f"{entry}[{i - back}]" for back in range(1, self.history)]
        names += ["input", f"raw d[{i}]", "z2"]
        beside = np.zeros((2, 2)) if self.direct is None else self.direct[i]
        second = np.zeros(2) if self.second is None else self.second[i]
        point, anchor = (
            np.append(table[i], [*beside[r], second[r]])
            for r, table in enumerate((self.point, self.anchor))
        )
        head = f"  {i:>4}  t = {self.times[i]:<10.6g}"
        lines = []
        if entry == "h":
            lines.append(f"h[{i}] = {_terms(('input', f'd[{i}]'), self.read[i])}")
        both = np.array_equal(point, anchor)
        lines.append(f"{'x = anchor' if both else 'x'} = {_terms(names, point)}")
        if not both:
            lines.append(f"anchor = {_terms(names, anchor)}")
        return [(head if not n else " " * len(head)) + "  " + line for n, line in enumerate(lines)]

    def save(self, path) -> None:
        """Writes the plan, its schedule included, as `.json` (readable, exact) or `.npz`.

        Raises:
            ValueError: another ending; a schedule that is not one of `df.schedules`.
        """
        from diffast.plan import file as plan_file

        plan_file.save(self, path)

    @staticmethod
    def load(path) -> Plan:
        """Returns the plan that `save` wrote, checked anew and equal to the last bit.

        Raises:
            ValueError: a file that holds no plan, or one that contradicts itself.
        """
        from diffast.plan import file as plan_file

        return plan_file.load(path)


def _terms(names, weights) -> str:
    parts = [f"{w:+.6g} {n}" for n, w in zip(names, weights, strict=True) if w != 0.0]
    return " ".join(parts) or "0"


def _default_spans(plan):
    """Returns [S, 2]: the time of the anchor before the stage, the time of the new point."""
    times = np.append(plan.times, plan.end)
    before = np.append(0, np.clip(plan.anchor_at[:-1], 0, plan.stages))
    return np.stack([times[before], times[1:]], axis=1)


def _frozen(array, dtype):
    array = np.array(array, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def _whole(plan, field):
    indices = np.asarray(getattr(plan, field))
    if indices.dtype.kind not in "iu":
        raise ValueError(f"Plan {plan.name}: {field} holds {indices.dtype}, but it must be int")
    return indices
