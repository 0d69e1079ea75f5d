"""`accept` in Triton: one kernel decides every sample, a second copies the rows of those that move.

Decisions and copies equal those of reference.py. Powers are exp2(p log2 x) and the arctangent is a
series, in float64, so control numbers agree to 1e-12. Numbers given by the host would arrive as
float32; the rule is therefore read from a table on the device. The first call with a rule copies
its table there and keeps it: make that call before a CUDA graph is captured.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from diffast.ops.accept.checks import check_accept
from diffast.ops.launch import arctan, grid_of, place_of
from diffast.ops.schema import CONTROLS, COUNTS, FLAGS, RULE

LARGE_BLOCK, _SAMPLES = 1024, 64
_INF = tl.constexpr(math.inf)
_RULE, _FLAGS = tl.constexpr(len(RULE)), tl.constexpr(len(FLAGS))
_CONTROLS, _COUNTS = tl.constexpr(len(CONTROLS)), tl.constexpr(len(COUNTS))
_NO_ROUTE, _INTO_SLOT = tl.constexpr(-1), tl.constexpr(-2)  # csrc/ops/accept/decision.h


@triton.jit
def _power(base, exponent):
    """Returns base^exponent for base >= 0; anything^0 is 1."""
    return tl.where(exponent == 0.0, 1.0, tl.exp2(exponent * tl.log2(base)))


@triton.jit
def _smaller(a, b):
    return tl.where(b < a, b, a)


@triton.jit
def _larger(a, b):
    return tl.where(b > a, b, a)


@triton.jit
def _switch(p_flag, o_none):
    """Returns whether a flag is set, as a mask."""
    return (o_none + tl.load(p_flag).to(tl.int32)) != 0


@triton.jit(do_not_specialize=["samples"])
def decide_kernel(
    p_norms,  # [samples, 2]
    p_status,  # [samples]
    p_table,  # the rule, the flags, pi / 2
    p_control,  # [samples, _CONTROLS + SLOTS]
    p_counts,  # [samples, _COUNTS]
    p_streams,  # [samples, 3]
    p_route,  # [samples]
    samples,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Decides BLOCK samples and says what is copied for each."""
    threshold, safety = tl.load(p_table), tl.load(p_table + 1)
    error_power, before_power = tl.load(p_table + 2), tl.load(p_table + 3)
    before2_power = tl.load(p_table + 4)
    least, most = tl.load(p_table + 5), tl.load(p_table + 6)
    reject_safety, reject_power = tl.load(p_table + 7), tl.load(p_table + 8)
    reject_least, reject_most = tl.load(p_table + 9), tl.load(p_table + 10)
    error_floor, noise_floor = tl.load(p_table + 11), tl.load(p_table + 12)
    step_min, step_max = tl.load(p_table + 13), tl.load(p_table + 14)
    error_eps = tl.load(p_table + 15)
    p_flags = p_table + _RULE
    last, restart = tl.load(p_flags).to(tl.int64), tl.load(p_flags + 1).to(tl.int64)
    most_calls = tl.load(p_flags + 7).to(tl.int64)
    half_pi = tl.load(p_flags + _FLAGS)

    o_sample = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_sample = o_sample < samples
    o_none = tl.zeros([BLOCK], tl.int32)
    m_final, m_always = _switch(p_flags + 2, o_none), _switch(p_flags + 3, o_none)
    m_balance, m_calm = _switch(p_flags + 4, o_none), _switch(p_flags + 5, o_none)
    m_by_factor = _switch(p_flags + 6, o_none)
    p_n = p_counts + o_sample * _COUNTS
    p_c = p_control + o_sample * (_CONTROLS + SLOTS)
    m_running = m_sample & (tl.load(p_n, mask=m_sample, other=1) == 0)
    stage = tl.load(p_n + 1, mask=m_running, other=0)
    calls = tl.load(p_n + 2, mask=m_running, other=0) + 1
    b_at = tl.load(p_c, mask=m_running, other=0.0)
    b_to = tl.load(p_c + 1, mask=m_running, other=0.0)
    b_end = tl.load(p_c + 2, mask=m_running, other=0.0)

    # A stage before the last only moves on; the last one is judged by its error.
    noise = tl.load(p_norms + o_sample * 2 + 1, mask=m_running, other=0.0)
    error = tl.load(p_norms + o_sample * 2, mask=m_running, other=0.0)
    error = error / _larger(noise_floor, noise) + error_eps
    m_bad = tl.load(p_status + o_sample, mask=m_running, other=-1) >= 0
    m_last = stage >= last
    m_finite = (error >= 0.0) & (error < _INF) & (noise < _INF)
    m_failed = m_bad | (m_last & ~m_finite)
    m_judged = m_running & m_last & ~m_failed
    m_passed = m_running & ~m_last & ~m_failed

    # The slot for a rejected point: a free one, or the farthest; none for one that has a slot.
    free, far = o_none + SLOTS, o_none
    b_far = b_to - _INF
    m_known = o_none > 0
    for k in tl.static_range(SLOTS):
        b_slot = tl.load(p_c + _CONTROLS + k, mask=m_running, other=0.0)
        free = tl.where((free == SLOTS) & (b_slot == _INF), k, free)
        m_known = m_known | (b_slot == b_to)
        far = tl.where(b_slot > b_far, k, far)
        b_far = tl.where(b_slot > b_far, b_slot, b_far)
    m_full = (free == SLOTS) & ~m_known
    m_known = m_known | (m_full & (b_far < b_to))
    free = tl.where(m_full, far, free)
    before = tl.load(p_c + 4, mask=m_running, other=0.0)
    before = tl.where(before >= 0.0, before, error)
    before2 = tl.load(p_c + 5, mask=m_running, other=0.0)
    before2 = tl.where(before2 >= 0.0, before2, before)
    factor = _power(error, -error_power) * safety
    factor = factor * (_power(before, before_power) * _power(before2, -before2_power))
    factor = tl.where(factor == factor, factor, _INF)
    limited = 1.0 + arctan(factor - 1.0, half_pi)
    m_good = (m_by_factor & (limited >= threshold)) | (~m_by_factor & (error <= threshold))
    factor = _smaller(_larger(tl.where(m_by_factor, limited, factor), least), most)
    m_accepted = m_good | m_always
    shorter = _power(error, -reject_power) * reject_safety
    shorter = _smaller(_larger(shorter, reject_least), reject_most)
    factor = tl.where(m_accepted | m_by_factor, factor, shorter)
    after_reject = tl.load(p_n + 5, mask=m_running, other=0)
    m_calm = m_calm & m_accepted & (after_reject != 0)
    factor = tl.where(m_calm, _smaller(factor, 1.0), factor)

    # Where the next attempt leads.
    step = _smaller((b_to - b_at) * factor, step_max)
    b_now = tl.where(m_accepted, b_to, b_at)
    m_ended = m_accepted & (b_now == b_end)
    m_short = step < step_min
    step = tl.where(m_short, step_min, step)
    rest = b_end - b_now
    m_rest = step >= rest
    step = tl.where(m_balance & (rest < 2.0 * step), 0.5 * rest, step)
    b_next = tl.where(m_rest, b_end, b_now + step)
    m_lost = ~((b_next > b_now) & (b_next <= b_end)) | (m_short & ~m_accepted)

    status = tl.where(m_ended & ((o_none + restart != 0) | ~m_final), 1, 0)
    status = tl.where(~m_ended & m_lost, 3, status)
    status = tl.where(m_passed, ((stage == 0) & (b_at == b_end)).to(tl.int32), status)
    status = tl.where((status == 0) & (calls >= most_calls), 4, status)
    status = tl.where(m_failed, 2, status)
    following = tl.where(m_judged, tl.where(m_accepted, restart, 1), stage + 1)
    m_alive = m_judged | m_passed
    tl.store(p_n, status.to(tl.int64), mask=m_running)
    tl.store(p_n + 1, following, mask=m_alive)
    tl.store(p_n + 2, calls, mask=m_running)
    m_kept = m_judged & m_accepted
    m_thrown = m_judged & ~m_accepted
    m_forgets = m_thrown & m_full
    m_remembers = m_thrown & ~m_known
    tl.store(p_n + 3, tl.load(p_n + 3, mask=m_kept, other=0) + 1, mask=m_kept)
    tl.store(p_n + 4, tl.load(p_n + 4, mask=m_thrown, other=0) + 1, mask=m_thrown)
    tl.store(p_n + 5, m_thrown.to(tl.int64), mask=m_judged)
    if SLOTS > 0:
        tl.store(p_n + 6, tl.load(p_n + 6, mask=m_forgets, other=0) + 1, mask=m_forgets)
    p_attempts = p_streams + o_sample * 3 + 2
    tl.store(p_attempts, tl.load(p_attempts, mask=m_judged, other=0) + 1, mask=m_judged)

    tl.store(p_c, b_now, mask=m_kept)
    tl.store(p_c + 1, b_next, mask=m_judged & ~m_ended)
    tl.store(p_c + 3, error, mask=m_judged)
    m_history = m_kept | (m_thrown & m_by_factor)
    tl.store(p_c + 4, tl.where(m_accepted, _larger(error, error_floor), before), mask=m_history)
    tl.store(p_c + 5, tl.where(m_accepted, before, before2), mask=m_history)
    for k in tl.static_range(SLOTS):
        b_slot = tl.load(p_c + _CONTROLS + k, mask=m_running, other=0.0)
        b_slot = tl.where(m_kept & (b_slot <= b_now), _INF, b_slot)
        b_slot = tl.where(m_remembers & (free == k), b_to, b_slot)
        tl.store(p_c + _CONTROLS + k, b_slot, mask=m_judged)

    m_moves = m_kept | (m_passed & (stage >= 0))
    m_moves = m_moves & (stage <= last)
    route = tl.where(m_moves, stage, _NO_ROUTE)
    if SLOTS > 0:
        route = tl.where(m_remembers, _INTO_SLOT - free, route)
    tl.store(p_route + o_sample, route.to(tl.int32), mask=m_sample)


@triton.jit
def copy_kernel(
    p_from,  # pointers [samples, elements], one a copy
    p_to,  # as many
    p_route,  # [samples]
    elements,  # of one sample
    ROUTES: tl.constexpr,  # for each copy, the route of the samples that make it
    COPIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Makes the copies of BLOCK elements of one sample, in their order."""
    i_sample, _, _, o_element, m_element = place_of(elements, BLOCK)
    o_batch = i_sample * elements + o_element
    route = tl.load(p_route + i_sample)
    for i in tl.static_range(COPIES):
        if route == ROUTES[i]:
            value = tl.load(p_from[i] + o_batch, mask=m_element)
            # A later copy may write what is read here, and several threads may hold an element.
            tl.debug_barrier()
            tl.store(p_to[i] + o_batch, value, mask=m_element)


@functools.lru_cache(maxsize=256)
def _table(rule, flags, device) -> torch.Tensor:
    """Returns the rule, the flags (exact below 2^53) and pi / 2, float64 on the device."""
    flags = [min(flag, 2**53) for flag in flags]
    return torch.tensor([*rule, *flags, math.pi / 2], dtype=torch.float64, device=device)


def accept(norms, status, rule, flags, moves, memory, sources, control, counts, streams, targets):
    """Decides every running sample's attempt, chooses its next step and moves its tensors."""
    check_accept(
        norms, status, rule, flags, moves, memory, sources, control, counts, streams, targets
    )
    samples = norms.shape[0]
    if samples == 0:
        return
    table = _table(tuple(rule), tuple(flags), norms.device)
    route = torch.empty(samples, dtype=torch.int32, device=norms.device)
    tensors = (norms, status, table, control, counts, streams, route)
    options = {"SLOTS": max(len(memory) - 1, 0), "BLOCK": _SAMPLES, "num_warps": 2}
    with torch.cuda.device_of(norms):
        decide_kernel[(triton.cdiv(samples, _SAMPLES),)](
            *tensors, samples, enable_fp_fusion=False, **options
        )
        copies = list(zip(moves[::3], moves[1::3], moves[2::3], strict=True))
        copies += [(-2 - k, memory[0], to) for k, to in enumerate(memory[1:])]
        elements = targets[0].numel() // samples if targets else 0
        if not copies or elements == 0:
            return
        grid, options = grid_of(samples, elements, large=LARGE_BLOCK)
        copy_kernel[grid](
            tuple(sources[source] for _, source, _ in copies),
            tuple(targets[target] for _, _, target in copies),
            route,
            elements,
            ROUTES=tuple(which for which, _, _ in copies),
            COPIES=len(copies),
            **options,
        )


IMPLEMENTATIONS = {"accept": accept}
