"""The specification of `accept`: what becomes of every sample after one network call.

Each sample walks positions from `at` to `end` (increasing), by attempts that lead to `to`. An
attempt takes the network calls of stages 1 .. last (stage 0 comes before, where the network has to
be asked about the state itself), and after the last of them it is accepted or rejected, by its
scaled error

    E = norms[:, 0] / max(rule.noise_floor, norms[:, 1]) + error_eps

With the step h = to - at just tried, and E1, E2 those of the two accepted attempts before,

    accepted:  h <- h clip(safety E^-error_power E1^before_power E2^-before2_power, least, most)
               (at most 1 right after a rejection, with flags.calm); E1 <- max(E, error_floor)
    rejected:  h <- h clip(reject_safety E^-reject_power, reject_least, reject_most)

then h <- min(h, step_max), at least step_min: a rejected attempt that would come below it fails
the sample. The attempt leads to the end if that is no further than h, with flags.balance half way
there if it is nearer than 2 h. One that leads nowhere, because h is below the spacing of numbers,
fails the sample, too. The end is reached exactly: `to` is then `end` itself.

An attempt is accepted if E <= threshold, always with flags.always. An E1 that is NaN stands for E,
an E2 for E1; 0^0 is 1. flags.by_factor is k-diffusion's PID controller: the factor, limited to
1 + atan(factor - 1), has to reach the threshold instead, gives (clipped) both next steps, and E1
and E2 that are NaN become the first attempt's E even if that was rejected.

`memory` = (source, targets...) remembers rejected points: what a rejected attempt drew is copied
into the first free target and its position `to` into the control's slot, +inf when free. A slot is
freed when an attempt is accepted that reaches it; a position that has one needs no second. With no
slot free the farthest point is forgotten, this one itself if it is that, and counted as
`forgotten`: so long a step is rejected whatever it draws, and what it drew says next to nothing.

A sample fails (`schema.FAILED_*`) for a sum of its stage that was not finite or an E that is not a
number >= 0, for a step as above, or when it is still running after most_calls calls.

`moves` = (stage, source, target, ...) are copied whole, of each sample that has done that stage:
for the last stage only if it was accepted. A sample that is not running is left as it is. Moves are
made in their order, so that (s, state, previous, s, new, state) shifts; all sources are read as
they were before the call, since what one move has written no later one of its stage may read. A
source is a target itself or does not overlap it; targets do not overlap each other.

Decisions by E and copies are exact. The numbers of `control`, and what hangs on their last bits,
come from pow and atan, of which a GPU's differ from a CPU's by a few ulp, Triton's by up to 1e-12.
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
    rows, copied, attempts = {}, {}, []  # by sample, by what is copied, of whom
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
    known = c["to"] in slots  # rejected there before, and the same was drawn
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
