"""The specification of `accept`: what becomes of every sample after one network call.

Each sample walks positions from `at` to `end` (increasing), by attempts that lead to `to`. An
attempt takes the network calls of stages 1 .. last (stage 0 comes before, where the network has to
be asked about the state itself), and after the last of them it is accepted or rejected, by its
scaled error

    E = norms[:, 0] / max(rule.noise_floor, norms[:, 1])

With the step h = to - at just tried, and E1, E2 those of the two accepted attempts before,

    accepted:  h <- h clip(safety E^-error_power E1^before_power E2^-before2_power, least, most)
               (at most 1 right after a rejection, with flags.calm); E1 <- max(E, error_floor)
    rejected:  h <- h clip(reject_safety E^-reject_power, reject_least, reject_most)

then h <- min(h, step_max), at least step_min after an accepted attempt, and the attempt leads to
the end if that is no further than h, with flags.balance half way there if it is nearer than 2 h. An
attempt is accepted if E <= threshold, always with flags.always; with flags.by_factor if its factor,
limited to 1 + atan(factor - 1), reaches the threshold instead, and the accepted rule gives both
next steps. E1 and E2 that are NaN stand for E itself.

`memory` = (source, targets...) remembers rejected points: what a rejected attempt drew is copied
into the first free target and its position `to` into the control's slot, +inf when free. A slot is
freed when an attempt is accepted that reaches it; a position that has one needs no second. With no
slot free a rejection is not possible, and the attempt is accepted, counted as `forced`.

`moves` = (stage, source, target, ...) are copied whole, of each sample that has done that stage:
for the last stage only if it was accepted. A sample that is not running is left as it is.
"""

import math

import torch

from diffast.ops.checks_accept import check_accept
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
    steps = list(zip(moves[::3], moves[1::3], moves[2::3], strict=True))
    r = dict(zip(RULE, rule, strict=True))
    f = dict(zip(FLAGS, flags, strict=True))
    for b in range(norms.shape[0]):
        c = dict(zip(CONTROLS, control[b].tolist(), strict=False))
        slots = control[b, len(CONTROLS) :].tolist()
        n = dict(zip(COUNTS, counts[b].tolist(), strict=True))
        if n["status"] != RUNNING:
            continue
        stage = n["stage"]
        error, noise = norms[b].tolist()
        done, free = _decide(error, noise, int(status[b]), r, f, c, n, slots, bool(memory))
        if done:
            for at, source, target in steps:
                if at == stage:
                    targets[target][b] = sources[source][b]
        elif free >= 0:
            targets[memory[1 + free]][b] = sources[memory[0]][b]
        if stage == f["last"] and n["status"] != FAILED_FINITE:
            streams[b, 2] += 1
        control[b] = torch.tensor([*c.values(), *slots], dtype=torch.float64)
        counts[b] = torch.tensor(list(n.values()), dtype=torch.int64)


def _decide(error, noise, bad, r, f, c, n, slots, remembers):
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
        error = error / max(r["noise_floor"], noise)
        if not error < math.inf:  # NaN, or beyond any step
            n["status"] = FAILED_FINITE
            return False, -1
        done, free = _judge(error, r, f, c, n, slots, remembers)
    if n["status"] == RUNNING and n["calls"] >= f["most_calls"]:
        n["status"] = FAILED_CALLS
    return done, free


def _judge(error, r, f, c, n, slots, remembers):
    step = c["to"] - c["at"]
    c["error"] = error
    before = error if math.isnan(c["before"]) else c["before"]
    before2 = before if math.isnan(c["before2"]) else c["before2"]
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
    free = -1 if known else free
    full = remembers and free < 0 and not known
    accepted = bool(good or f["always"] or full)
    n["forced"] += int(not good and not f["always"] and full)
    if accepted:
        factor = min(max(factor, r["least"]), r["most"])
        if f["calm"] and n["after_reject"]:
            factor = min(factor, 1.0)
        c["before2"], c["before"] = before, max(error, r["error_floor"])
        c["at"] = c["to"]
        slots[:] = [math.inf if slot <= c["at"] else slot for slot in slots]
        n["accepted"] += 1
        n["stage"] = f["restart"]
    else:
        if not f["by_factor"]:
            factor = r["reject_safety"] * _power(error, -r["reject_power"])
            factor = min(max(factor, r["reject_least"]), r["reject_most"])
        if free >= 0:
            slots[free] = c["to"]
        n["rejected"] += 1
        n["stage"] = 1
    n["after_reject"] = int(not accepted)
    if accepted and c["at"] == c["end"]:
        if f["restart"] != 0 or not f["final"]:
            n["status"] = FINISHED
        return True, -1
    _aim(min(step * factor, r["step_max"]), accepted, r, f, c, n)
    return accepted, -1 if accepted else free


def _aim(step, accepted, r, f, c, n):
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
        if c["to"] <= c["at"]:
            n["status"] = FAILED_STEP


def _power(base, exponent):
    if exponent == 0.0:
        return 1.0
    if base == 0.0:
        return math.inf if exponent < 0.0 else 0.0
    return math.pow(base, exponent)
