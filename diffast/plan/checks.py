"""What a Plan refuses: wrong shapes, numbers out of bounds, tables that contradict themselves."""

from __future__ import annotations

import numpy as np

from diffast.plan.unroll import unroll_noise

# Largest allowed gap between what a row holds of x0 and alpha, over the sum of |weight * input| of
# the row. Checked row by row, so no rounding adds up: all solvers stay below 2.3e-16.
TOLERANCE_X0 = 5e-14

# The same for noise level and sigma, over the whole run: all stay below 9e-15 at 1,000 stages.
TOLERANCE_NOISE = 2e-12

# A noise weight below this share of the row's noise shows in its variance only as 1e-10 and less:
# no solver means that, so it is refused as a slip rather than drowned in the tolerance.
LEAST_NOISE = 1e-5

CHECKS = ("full", "x0", "finite")


def check_shapes(plan) -> None:
    """Raises ValueError if an array has the wrong shape, or an option is unknown."""

    def refuse(field, array, want):
        raise ValueError(
            f"Plan {plan.name}: {field} has shape {list(array.shape)}, but it must be {want}"
        )

    if plan.check not in CHECKS:
        raise ValueError(
            f"Plan {plan.name}: check = {plan.check!r}, but it must be one of {', '.join(CHECKS)}"
        )
    if plan.times.ndim != 1 or not plan.times.size:
        refuse("times", plan.times, "[S], S >= 1")
    stages = plan.times.size
    if plan.point.ndim != 2 or len(plan.point) != stages or plan.point.shape[1] < 3:
        refuse("point", plan.point, f"[{stages}, 2+H], H >= 1")
    wide = plan.point.shape
    wanted = {
        "read": (stages, 2),
        "anchor": wide,
        "anchor_at": (stages,),
        "error": wide,
        "direct": (stages, 2, 2),
        "opening": (2,),
        "spans": (stages, 2),
        "second": (stages, 2),
    }
    for field, want in wanted.items():
        array = getattr(plan, field)
        if array is not None and array.shape != want:
            refuse(field, array, list(want))
    if plan.blocks is not None and plan.blocks.ndim != 1:
        refuse("blocks", plan.blocks, "[B]")
    if not 1 <= plan.steps <= stages:
        raise ValueError(f"Plan {plan.name}: {plan.steps} steps, but {stages} network calls")


def check_numbers(plan) -> None:
    """Raises ValueError for a number that is not finite, or a time or index out of bounds."""
    stages = plan.stages
    low, high = getattr(plan.schedule, "domain", (-np.inf, np.inf))
    for i, t in enumerate((*plan.times.tolist(), plan.end, plan.start)):
        if not (np.isfinite(t) and low <= t <= high):
            where = f"stage {i}" if i < stages else ("end", "start")[i - stages]
            raise ValueError(
                f"Plan {plan.name}: {where}: t = {t}, but the schedule holds for {low} to {high}"
            )
    for i, at in enumerate(plan.anchor_at.tolist()):
        if not -2 <= at <= stages:
            raise ValueError(f"Plan {plan.name}: stage {i}: anchor_at = {at}, but -2 to {stages}")
    if plan.blocks is not None:
        _check_blocks(plan)
    for field in ("read", "point", "anchor", "error", "direct", "opening", "spans", "second"):
        array = getattr(plan, field)
        if array is None:
            continue
        bad = ~np.isfinite(array)
        if bad.any():
            i, *k = np.argwhere(bad)[0]
            where = f"stage {i}: " if k else ""
            k = k or [i]
            value = array[tuple(np.argwhere(bad)[0])]
            raise ValueError(f"Plan {plan.name}: {where}{field}{[int(n) for n in k]} = {value}")
        if field in ("point", "anchor", "error"):
            _check_early(plan, field, array)


def _check_blocks(plan):
    blocks = plan.blocks
    if not (blocks.size and blocks[0] == 0 and (np.diff(blocks) > 0).all()):
        raise ValueError(
            f"Plan {plan.name}: blocks = {blocks.tolist()}, but they must start with 0 and rise"
        )
    if blocks[-1] >= plan.stages:
        raise ValueError(
            f"Plan {plan.name}: a block begins at stage {blocks[-1]}, but there are {plan.stages}"
        )


def _check_early(plan, field, array):
    # entry k of the history exists from stage k on
    early = np.triu(array[:, 2:], 1)
    if early.any():
        i, k = np.argwhere(early)[0]
        raise ValueError(
            f"Plan {plan.name}: stage {i}: {field} has weight {early[i, k]} on history entry "
            f"{k}, but {i + 1} exist"
        )


def check_consistent(plan) -> None:
    """Raises ValueError for a row that would not reproduce a known x0 and its noise level.

    x0 is checked row by row from what each input ought to hold: so it gathers no rounding from the
    rows before. Noise has to be unrolled: an anchor and a history entry may share some of it.
    """
    if plan.check == "finite":
        return
    alpha, sigma = _levels(plan)
    _check_x0(plan, alpha)
    if plan.check == "full":
        _check_noise(plan, sigma)


def _levels(plan):
    """Returns alpha and sigma at times..., end, start, of a velocity, of data; [S+4] each."""
    times = np.append(plan.times, [plan.end, plan.start])
    alpha, sigma = (
        np.broadcast_to(np.asarray(level(times), np.float64), times.shape)
        for level in (plan.schedule.alpha, plan.schedule.sigma)
    )
    if not (np.isfinite(alpha) & np.isfinite(sigma)).all():
        i = int(np.argmin(np.isfinite(alpha) & np.isfinite(sigma)))
        raise ValueError(
            f"Plan {plan.name}: stage {i}: alpha = {alpha[i]}, sigma = {sigma[i]} at t = {times[i]}"
        )
    return np.append(alpha, [0.0, 1.0]), np.append(sigma, [1.0, 0.0])


def _rows(plan):
    """Yields field, where its rows stand as indices into the levels (None: nowhere)."""
    yield "point", np.arange(1, plan.stages + 1)
    yield "anchor", plan.anchor_at
    if plan.error is not None:
        yield "error", None


def _direct(plan, field):
    """Returns [S, 2] weights of (model input, raw x0 estimate) in the rows of that field."""
    if plan.direct is None or field == "error":
        return np.zeros((plan.stages, 2))
    return plan.direct[:, 0 if field == "point" else 1]


def _second(plan, field):
    """Returns [S] weights of the second normal in the rows of that field."""
    if plan.second is None or field == "error":
        return np.zeros(plan.stages)
    return plan.second[:, 0 if field == "point" else 1]


def _check_x0(plan, alpha):
    stages = plan.stages
    before = np.append(0, plan.anchor_at[:-1])
    entry = plan.read[:, 0] * alpha[:stages]
    held = _columns(plan, alpha[before], 0.0, entry + plan.read[:, 1])
    size = _columns(plan, alpha[before], 0.0, np.abs(entry) + np.abs(plan.read[:, 1]))
    beside = np.stack([alpha[:stages], np.ones(stages)], axis=1)  # model input, raw x0 estimate
    for field, stands in _rows(plan):
        row, more = getattr(plan, field), _direct(plan, field)
        want = np.zeros(stages) if stands is None else alpha[stands]
        x0 = _dot(row, held) + _dot(more, beside)
        scale = _dot(np.abs(row), size) + _dot(np.abs(more), beside)
        wrong = ~(np.abs(x0 - want) <= TOLERANCE_X0 * scale)
        if wrong.any():
            _refuse(plan, field, int(np.argmax(wrong)), "x0 with weight", x0, "alpha", want)
    has, want = float(plan.opening[0] * alpha[-3]), float(alpha[0])
    if not abs(has - want) <= TOLERANCE_X0 * max(abs(has), want):
        raise ValueError(
            f"Plan {plan.name}: opening holds x0 with weight {has!r}, but it must be "
            f"alpha = {want!r}"
        )


def _check_noise(plan, sigma):
    stages = plan.stages
    rows = unroll_noise(plan)
    noise = {field: _noise_level(getattr(rows, field), sigma[0]) for field, _ in _rows(plan)}
    model_input = np.append(sigma[0], noise["point"][:-1])
    anchor = np.append(sigma[0], noise["anchor"][:-1])
    size = _columns(plan, anchor, 1.0, np.abs(plan.read[:, 0]) * model_input)
    for field, stands in _rows(plan):
        row = getattr(plan, field)
        want = np.zeros(stages) if stands is None else sigma[stands]
        second = np.abs(_second(plan, field))
        scale = _dot(np.abs(row), size) + second
        scale += np.abs(_direct(plan, field)[:, 0]) * model_input
        wrong = ~(np.abs(noise[field] - want) <= TOLERANCE_NOISE * scale)
        if wrong.any():
            i = int(np.argmax(wrong))
            _refuse(plan, field, i, "noise of level", noise[field], "sigma", want)
        for fresh in (np.abs(row[:, 1]), second):
            wrong = (fresh > 0) & (fresh < LEAST_NOISE * scale)
            if wrong.any():
                i = int(np.argmax(wrong))
                least = LEAST_NOISE * scale
                _refuse(plan, field, i, "fresh noise of weight", fresh, "0 or at least", least)
    has, want = float(np.hypot(plan.opening[0] * sigma[-3], plan.opening[1])), float(sigma[0])
    if not abs(has - want) <= TOLERANCE_NOISE * max(has, want):
        raise ValueError(
            f"Plan {plan.name}: opening holds noise of level {has!r}, but it must be "
            f"sigma = {want!r}"
        )
    fresh = abs(float(plan.opening[1]))
    if 0.0 < fresh < LEAST_NOISE * has:
        raise ValueError(
            f"Plan {plan.name}: opening holds fresh noise of weight {fresh!r}, but it must be "
            f"0 or at least {LEAST_NOISE * has!r}"
        )


def _refuse(plan, field, i, what, has, other, want):
    raise ValueError(
        f"Plan {plan.name}: stage {i}: {field} holds {what} {float(has[i])!r}, but it must be "
        f"{other} = {float(want[i])!r}"
    )


def _noise_level(row, sigma):
    """Returns [S] levels of all noise in rows of `unroll_noise`, the initial one included."""
    fresh = row[:, 1:]
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
