"""The specification of `accept`: what becomes of every sample after one network call.

Each sample goes from position `at` to position `end` (increasing), by attempts that lead to `to`.
An attempt takes the network calls of stages 1 .. last. Stage 0 is a call before the attempts, for
methods that need the network's output at the state itself. After stage `last` the attempt is
accepted or rejected by its scaled error

    E = norms[:, 0] / max(rule.noise_floor, norms[:, 1]) + error_eps

Let h = to - at be the step just tried, and E1, E2 the errors of the two accepted attempts before
it:

    accepted:  h <- h clip(safety E^-error_power E1^before_power E2^-before2_power, least, most)
               (at most 1 right after a rejection, with flags.calm); E1 <- max(E, error_floor)
    rejected:  h <- h clip(reject_safety E^-reject_power, reject_least, reject_most)

then h <- min(h, step_max), but at least step_min. A sample fails if a rejected attempt would bring
h below step_min. The next attempt leads to `end` if the end is no further than h away. With
flags.balance it leads half way to the end if the end is nearer than 2 h. A sample also fails if the
attempt leads nowhere because h is below the spacing of numbers. The end is reached exactly: `to` is
then `end` itself.

An attempt is accepted if E <= threshold; with flags.always, every attempt is. If E1 is NaN, E is
used in its place; if E2 is NaN, E1 is. 0^0 is 1. flags.by_factor selects k-diffusion's PID
controller. It limits the factor to 1 + atan(factor - 1), accepts if that reaches the threshold, and
takes it (clipped) for the next step after accepted and rejected attempts alike. With it, an E1 or
E2 that is NaN becomes the first attempt's E, even if that attempt is rejected.

`memory` = (source, targets...) remembers rejected points. What a rejected attempt drew is copied
into the first free target, and its position `to` into the slot of `control`; a free slot holds
+inf. A slot is freed when an accepted attempt reaches its position. A position that has a slot
already gets no second one. If no slot is free, the farthest point is forgotten (the new one, if it
is the farthest) and counted in `forgotten`. The farthest point matters least: so long a step is
rejected whatever it draws.

A sample fails (`schema.FAILED_*`) if a sum of its stage was not finite, if E is not a number >= 0,
if its step fails as above, or if it is still running after most_calls calls.

`moves` = (stage, source, target, ...): after a stage, each sample that has done it gets its row of
`source` copied to its row of `target`; after the last stage only if the attempt was accepted. A
sample that is not running is left as it is. Moves are made in their order, so that (s, state,
previous, s, new, state) shifts. All sources are read as they were before the call: no move may read
what an earlier move of its stage has written. A source is a target itself or does not overlap it;
targets do not overlap each other.

Decisions by E and copies are exact on every backend. The numbers of `control` come from pow and
atan, where a GPU differs from a CPU by a few ulp and Triton by up to 1e-12 relative.
"""

import math

from diffast.ops.accept.checks import check_accept
from diffast.ops.schema import (
    CONTROLS,
    COUNTS,
    FAILED_CALLS,
    FAILED_FINITE,
    FAILED_STEP,
    FINISHED,
    FLAGS,
    RULE,
    RUNNING,
)


def accept(norms, status, rule, flags, moves, memory, sources, control, counts, streams, targets):
    """Decides every running sample's attempt, chooses its next step and moves its tensors.

    Args:
        norms: [B, 2] float64, of `combine_error`.
        status: [B] int64, of `combine_error`: 0 and above fails the sample.
        rule: numbers, see `schema.RULE`.
        flags: whole numbers, see `schema.FLAGS`.
        moves: (stage, source, target) three by three.
        memory: (source, targets...) or nothing.
        sources: tensors [B, ...].
        control: [B, 6 + slots] float64, see `schema.CONTROLS`.
        counts: [B, 7] int64, see `schema.COUNTS`.
        streams: [B, 3] int64; the last column counts attempts.
        targets: tensors [B, ...].
    """
    check_accept(
        norms, status, rule, flags, moves, memory, sources, control, counts, streams, targets
    )
    r = dict(zip(RULE, rule, strict=True))
    f = dict(zip(FLAGS, flags, strict=True))
    rows, copied, attempts = {}, {}, []  # by sample; samples by what is copied; samples judged
    inputs = zip(norms.tolist(), status.tolist(), control.tolist(), counts.tolist(), strict=True)
    for b, (measured, bad, numbers, whole) in enumerate(inputs):
        c = dict(zip(CONTROLS, numbers, strict=False))
        slots = numbers[len(CONTROLS) :]
        n = dict(zip(COUNTS, whole, strict=True))
        if n["status"] != RUNNING:
            continue
        stage, judged = n["stage"], n["accepted"] + n["rejected"]
        done, free = _decide(*measured, bad, r, f, c, n, slots)
        if done or free >= 0:
            copied.setdefault((stage, free), []).append(b)
        if n["accepted"] + n["rejected"] != judged:
            attempts.append(b)
        rows[b] = [*c.values(), *slots], list(n.values())
    for (stage, free), samples in copied.items():
        pairs = zip(moves[1::3], moves[2::3], moves[::3], strict=True)
        pairs = [(source, target) for source, target, at in pairs if at == stage]
        if free >= 0:
            pairs = [(memory[0], memory[1 + free])]
        for source, target in pairs:
            targets[target][samples] = sources[source][samples]
    if rows:
        which = list(rows)
        control[which] = control.new_tensor([numbers for numbers, _ in rows.values()])
        counts[which] = counts.new_tensor([whole for _, whole in rows.values()])
    if attempts:
        streams[attempts, 2] += 1


def _decide(error, noise, bad, r, f, c, n, slots):
    """Returns whether the stage's moves are made, and the slot that remembers (-1: none)."""
    stage = n["stage"]
    n["calls"] += 1
    if bad >= 0:
        n["status"] = FAILED_FINITE
        return False, -1
    done, free = True, -1
    if stage < f["last"]:
        n["stage"] = stage + 1
        if stage == 0 and c["at"] == c["end"]:
            n["status"] = FINISHED
    else:
        error = error / max(r["noise_floor"], noise) + r["error_eps"]
        if not (0.0 <= error < math.inf and noise < math.inf):
            n["status"] = FAILED_FINITE
            return False, -1
        done, free = _judge(error, r, f, c, n, slots)
    if n["status"] == RUNNING and n["calls"] >= f["most_calls"]:
        n["status"] = FAILED_CALLS
    return done, free


def _judge(error, r, f, c, n, slots):
    """Returns whether the attempt is accepted, and the slot that remembers it (-1: none)."""
    step = c["to"] - c["at"]
    before = c["before"] if c["before"] >= 0.0 else error
    before2 = c["before2"] if c["before2"] >= 0.0 else before
    factor = r["safety"] * _power(error, -r["error_power"])
    factor *= _power(before, r["before_power"]) * _power(before2, -r["before2_power"])
    factor = math.inf if math.isnan(factor) else factor  # an error of 0 after one of 0
    if f["by_factor"]:
        factor = 1.0 + math.atan(factor - 1.0)
        good = factor >= r["threshold"]
    else:
        good = error <= r["threshold"]
    known = c["to"] in slots  # a rejected attempt that ended here is remembered already
    free = next((k for k, slot in enumerate(slots) if slot == math.inf), -1)
    accepted = bool(good or f["always"])
    if not accepted and slots and free < 0 and not known:
        free = max(range(len(slots)), key=lambda k: slots[k])
        known = slots[free] < c["to"]
        n["forgotten"] += 1
    free = -1 if known else free
    c["error"] = error
    if accepted or f["by_factor"]:
        factor = min(max(factor, r["least"]), r["most"])
    if not accepted:
        if f["by_factor"]:
            c["before"], c["before2"] = before, before2
        else:
            factor = r["reject_safety"] * _power(error, -r["reject_power"])
            factor = min(max(factor, r["reject_least"]), r["reject_most"])
        if free >= 0:
            slots[free] = c["to"]
        n["rejected"] += 1
        n["stage"] = n["after_reject"] = 1
        _aim(step * factor, False, r, f, c, n)
        return False, free
    if f["calm"] and n["after_reject"]:
        factor = min(factor, 1.0)
    c["before2"], c["before"] = before, max(error, r["error_floor"])
    c["at"] = c["to"]
    slots[:] = [math.inf if slot <= c["at"] else slot for slot in slots]
    n["accepted"] += 1
    n["stage"], n["after_reject"] = f["restart"], 0
    if c["at"] != c["end"]:
        _aim(step * factor, True, r, f, c, n)
    elif f["restart"] != 0 or not f["final"]:
        n["status"] = FINISHED
    return True, -1


def _aim(step, accepted, r, f, c, n):
    step = min(step, r["step_max"])
    if step < r["step_min"]:
        step = r["step_min"]
        if not accepted:
            n["status"] = FAILED_STEP
    rest = c["end"] - c["at"]
    if step >= rest:
        c["to"] = c["end"]
    else:
        if f["balance"] and rest < 2.0 * step:
            step = 0.5 * rest
        c["to"] = c["at"] + step
    if not c["at"] < c["to"] <= c["end"]:
        n["status"] = FAILED_STEP


def _power(base, exponent):
    """Returns what C's pow does, where Python's raises."""
    if base == 0.0 and exponent < 0.0:
        return math.inf
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf
    except ValueError:  # of a number below 0
        return math.nan


IMPLEMENTATIONS = {"accept": accept}
