"""Plans: a solver's whole run as tables of numbers, which check themselves when made.

Before stage 0 the model input and the anchor are both the initial state, at times[0]. Stage i

    d       = x0 estimate of the network for the model input, at times[i]
    history = (read[i] . (model input, d), older entries ...)          at most H entries
    model input <- point[i]  . (anchor, z, history newest first)       stands at times[i+1] or end
    anchor      <- anchor[i] . (anchor, z, history newest first)       stands at anchor_at[i]

where both rows see the old anchor and one and the same fresh z ~ N(0, I). The last point is the
sample. `error[i]`, if any, is one more row over the same columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# Largest allowed gap between what a row holds of x0 and alpha, over the sum of |weight * input| of
# the row. Checked row by row, so no rounding adds up: all solvers stay below 2.3e-16.
TOLERANCE_X0 = 5e-14

# The same for noise level and sigma, over the whole run: all stay below 9e-15 at 1,000 stages.
TOLERANCE_NOISE = 2e-12

# A noise weight below this share of the row's noise shows in its variance only as 1e-10 and less:
# no solver means that, so it is refused as a slip rather than drowned in the tolerance.
LEAST_NOISE = 1e-5


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
        anchor_at: [S] int, index into (times..., end) of the time at which the anchor then stands.
        error: [S, 2+H] embedded error estimate, as the error itself; or None.
        steps: number of grid intervals.
        name: what people call it.

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

    def __post_init__(self):
        """Converts, freezes and checks every number."""
        for field in ("times", "read", "point", "anchor", "error"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _frozen(getattr(self, field), np.float64))
        object.__setattr__(self, "end", float(self.end))
        object.__setattr__(self, "anchor_at", _frozen(_whole(self, self.anchor_at), np.int64))
        _check_shapes(self)
        _check_numbers(self)
        _check_consistent(self)

    @property
    def stages(self) -> int:
        """Returns S, the number of network calls."""
        return len(self.times)

    @property
    def history(self) -> int:
        """Returns H, the number of remembered entries."""
        return self.point.shape[1] - 2

    @property
    def stochastic(self) -> bool:
        """Returns whether any row uses its noise."""
        return bool(self.point[:, 1].any() or self.anchor[:, 1].any())

    @property
    def calls_per_step(self) -> float:
        """Returns network calls per grid interval."""
        return self.stages / self.steps

    def __repr__(self) -> str:
        """Returns one line for people."""
        kind = "stochastic" if self.stochastic else "deterministic"
        return (
            f"Plan({self.name}: {self.steps} steps, {self.stages} calls, history {self.history}, "
            f"{kind}, t {self.times[0]:.6g} -> {self.end:.6g}, {self.schedule})"
        )


class Unrolled(NamedTuple):
    """Rows as weights of (initial state, x0 estimates d_0..d_{S-1}, noises z_0..z_{S-1})."""

    point: np.ndarray  # [S, 1+2S]
    anchor: np.ndarray  # [S, 1+2S]
    error: np.ndarray | None  # [S, 1+2S]


def unroll(plan: Plan) -> Unrolled:
    """Returns every point, anchor and error row as weights of what a run starts from.

    Column 0 is the initial state, column 1+j the x0 estimate d_j of stage j, column 1+S+j its noise
    z_j; row i is zero at every j > i. With it all points follow from all x0 estimates by one matrix
    product, whatever the solver.

    Args:
        plan: any plan, S stages.
    """
    stages, columns = plan.point.shape
    tables = [plan.point, plan.anchor] + ([] if plan.error is None else [plan.error])
    weights = np.stack(tables, axis=1)  # [S, R, 2+H]
    out = np.empty((stages, len(tables), 1 + 2 * stages))
    inputs = np.zeros((columns, 1 + 2 * stages))  # anchor, noise, history
    inputs[0, 0] = 1.0
    x = inputs[0].copy()
    for i in range(stages):
        inputs[3:] = inputs[2:-1]
        np.multiply(x, plan.read[i, 0], out=inputs[2])
        inputs[2, 1 + i] += plan.read[i, 1]
        inputs[1, stages + i] = 0.0
        inputs[1, 1 + stages + i] = 1.0
        np.matmul(weights[i], inputs, out=out[i])
        x, inputs[0] = out[i, 0], out[i, 1]
    return Unrolled(out[:, 0], out[:, 1], None if plan.error is None else out[:, 2])


def _frozen(array, dtype):
    array = np.array(array, dtype=dtype, order="C")
    array.flags.writeable = False
    return array


def _whole(plan, indices):
    indices = np.asarray(indices)
    if indices.dtype.kind not in "iu":
        raise ValueError(f"Plan {plan.name}: anchor_at holds {indices.dtype}, but it must be int")
    return indices


def _check_shapes(plan):
    def refuse(field, array, want):
        raise ValueError(
            f"Plan {plan.name}: {field} has shape {list(array.shape)}, but it must be {want}"
        )

    if plan.times.ndim != 1 or not plan.times.size:
        refuse("times", plan.times, "[S], S >= 1")
    stages = plan.times.size
    if plan.point.ndim != 2 or len(plan.point) != stages or plan.point.shape[1] < 3:
        refuse("point", plan.point, f"[{stages}, 2+H], H >= 1")
    wide = plan.point.shape
    wanted = {"read": (stages, 2), "anchor": wide, "anchor_at": (stages,), "error": wide}
    for field, want in wanted.items():
        array = getattr(plan, field)
        if array is not None and array.shape != want:
            refuse(field, array, list(want))
    if not 1 <= plan.steps <= stages:
        raise ValueError(f"Plan {plan.name}: {plan.steps} steps, but {stages} network calls")


def _check_numbers(plan):
    stages = plan.stages
    low, high = getattr(plan.schedule, "domain", (-np.inf, np.inf))
    for i, t in enumerate((*plan.times.tolist(), plan.end)):
        if not (np.isfinite(t) and low <= t <= high):
            where = f"stage {i}" if i < stages else "end"
            raise ValueError(
                f"Plan {plan.name}: {where}: t = {t}, but the schedule holds for {low} to {high}"
            )
    for i, at in enumerate(plan.anchor_at.tolist()):
        if not 0 <= at <= stages:
            raise ValueError(f"Plan {plan.name}: stage {i}: anchor_at = {at}, but 0 to {stages}")
    for field in ("read", "point", "anchor", "error"):
        array = getattr(plan, field)
        if array is None:
            continue
        bad = ~np.isfinite(array)
        if bad.any():
            i, k = np.argwhere(bad)[0]
            raise ValueError(f"Plan {plan.name}: stage {i}: {field}[{k}] = {array[i, k]}")
        if field == "read":
            continue
        # entry k of the history exists from stage k on
        early = np.triu(array[:, 2:], 1)
        if early.any():
            i, k = np.argwhere(early)[0]
            raise ValueError(
                f"Plan {plan.name}: stage {i}: {field} has weight {early[i, k]} on history entry "
                f"{k}, but {i + 1} exist"
            )


def _check_consistent(plan):
    """Checks x0 row by row from what each input ought to hold, noise by unrolling the whole run.

    Taken from the row's own inputs, x0 gathers no rounding from the rows before. Noise has to be
    unrolled: an anchor and a history entry may share some of it.
    """
    stages = plan.stages
    times = np.append(plan.times, plan.end)
    alpha, sigma = (
        np.broadcast_to(np.asarray(level(times), np.float64), times.shape)
        for level in (plan.schedule.alpha, plan.schedule.sigma)
    )
    if not (np.isfinite(alpha) & np.isfinite(sigma)).all():
        i = int(np.argmin(np.isfinite(alpha) & np.isfinite(sigma)))
        raise ValueError(
            f"Plan {plan.name}: stage {i}: alpha = {alpha[i]}, sigma = {sigma[i]} at t = {times[i]}"
        )
    rows = unroll(plan)
    noise = {
        field: _noise_level(getattr(rows, field), sigma[0])
        for field in ("point", "anchor", "error")
        if getattr(plan, field) is not None
    }
    anchor_at = np.append(0, plan.anchor_at[:-1])
    entry = plan.read[:, 0] * alpha[:-1]
    held = _columns(plan, alpha[anchor_at], 0.0, entry + plan.read[:, 1])
    size = _columns(plan, alpha[anchor_at], 0.0, np.abs(entry) + np.abs(plan.read[:, 1]))
    model_input = np.append(sigma[0], noise["point"][:-1])
    anchor = np.append(sigma[0], noise["anchor"][:-1])
    size_noise = _columns(plan, anchor, 1.0, np.abs(plan.read[:, 0]) * model_input)
    after = np.arange(1, stages + 1)
    for field, stands in (("point", after), ("anchor", plan.anchor_at), ("error", None)):
        if field not in noise:
            continue
        want_x0 = np.zeros(stages) if stands is None else alpha[stands]
        want_noise = np.zeros(stages) if stands is None else sigma[stands]
        row = getattr(plan, field)
        x0 = _dot(row, held)
        wrong = ~(np.abs(x0 - want_x0) <= TOLERANCE_X0 * _dot(np.abs(row), size))
        if wrong.any():
            _refuse(plan, field, int(np.argmax(wrong)), "x0 with weight", x0, "alpha", want_x0)
        scale = _dot(np.abs(row), size_noise)
        wrong = ~(np.abs(noise[field] - want_noise) <= TOLERANCE_NOISE * scale)
        if wrong.any():
            i = int(np.argmax(wrong))
            _refuse(plan, field, i, "noise of level", noise[field], "sigma", want_noise)
        fresh = np.abs(row[:, 1])
        wrong = (fresh > 0) & (fresh < LEAST_NOISE * scale)
        if wrong.any():
            i = int(np.argmax(wrong))
            least = LEAST_NOISE * scale
            _refuse(plan, field, i, "fresh noise of weight", fresh, "0 or at least", least)


def _refuse(plan, field, i, what, has, other, want):
    raise ValueError(
        f"Plan {plan.name}: stage {i}: {field} holds {what} {float(has[i])!r}, but it must be "
        f"{other} = {float(want[i])!r}"
    )


def _noise_level(row, sigma):
    """Returns [S] levels of all noise in unrolled rows [S, 1+2S], the initial one included."""
    fresh = row[:, 1 + len(row) :]
    return np.sqrt((sigma * row[:, 0]) ** 2 + _dot(fresh, fresh))


def _columns(plan, anchor, fresh, entry):
    """Returns [S, 2+H]: what each stage combines, from [S] of anchors and of history entries."""
    out = np.zeros_like(plan.point)
    out[:, 0] = anchor
    out[:, 1] = fresh
    for back in range(min(plan.history, plan.stages)):
        out[back:, 2 + back] = entry[: plan.stages - back]
    return out


def _dot(a, b):
    return np.einsum("ij,ij->i", a, b)
