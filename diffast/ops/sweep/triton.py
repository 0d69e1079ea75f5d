"""`sweep` in Triton: a program runs one job over a block of elements, with its state in registers.

What the next stage reads is loaded before a stage is computed. Sums of squares are made by blocks
and then added up, in an order that depends on the number of elements alone.

See launch.py for the prefixes. Jobs run in any order: no job may read what another one writes.
"""

import struct

import torch
import triton
import triton.language as tl

from diffast.ops.combine.triton import clamp_to
from diffast.ops.gram.triton import SUMS_AT_ONCE, add_up, dot
from diffast.ops.launch import grid_of, int32, place_of, word_at
from diffast.ops.normal.triton import with_normals
from diffast.ops.sweep.checks import check_sweep

# Rows with fewer elements use small blocks: jobs take long, and few blocks would leave a GPU idle.
_MANY = 1 << 16
_HOST = ["seed_lo", "seed_hi", "low_lo", "low_hi", "high_lo", "high_hi", "length"]


@triton.jit
def _when(condition, o_element, elements):
    """Returns the mask of a row's elements, all false unless the scalar condition holds.

    Triton's interpreter turns a mask & a scalar into a number, which it refuses as a mask.
    """
    return o_element < tl.where(condition, elements, 0)


@triton.jit
def _double(lo, hi):
    """Returns the float64 made of two words: a float given by the host would arrive as float32."""
    bits = (hi.to(tl.int64) << 32) | (lo.to(tl.int64) & 0xFFFFFFFF)
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def _gain(b_y, b_distance, factor):
    """Returns y + factor distance, and y where the distance is 0, whatever the factor."""
    return tl.where(b_distance == 0.0, b_y, b_y + b_distance * factor)


@triton.jit
def _place_columns(b_a, b_p, b_read, b_hs, PARTS: tl.constexpr, TYPE: tl.constexpr):
    """Returns the columns of a stage: the anchor, p, what it reads, the entries, oldest first."""
    b_columns = (b_a,)
    if PARTS:
        b_columns = b_columns + (b_p,)
    for i in tl.static_range(len(b_read)):
        b_columns = b_columns + (b_read[i].to(TYPE),)
    for h in tl.static_range(len(b_hs)):
        b_columns = b_columns + (b_hs[len(b_hs) - 1 - h],)
    return b_columns


@triton.jit
def _moved(b_rows, b_hs, PARTS: tl.constexpr):
    """Returns the next anchor, p and entries, of the rows that a stage made."""
    b_p = b_rows[len(b_rows) - 1]
    b_a = b_rows[len(b_rows) - 2] if PARTS else b_p
    b_next = ()
    for h in tl.static_range(len(b_hs)):
        b_next = b_next + (b_rows[0] if h == 0 else b_hs[h - 1],)
    return b_a, b_p, b_next


@triton.jit
def _request(p_x, p_outputs, q, condition, o_element, elements, OUTPUTS: tl.constexpr):
    """Returns what a stage reads of row q, if it reads one: x, then the outputs as they are."""
    o_row, m_row = q * elements + o_element, _when(condition, o_element, elements)
    b_loaded = (tl.load(p_x + o_row, mask=m_row, other=0.0),)
    for i in tl.static_range(OUTPUTS):
        b_loaded = b_loaded + (tl.load(p_outputs[i] + o_row, mask=m_row, other=0.0),)
    return b_loaded


@triton.jit(do_not_specialize=_HOST)
def sweep_kernel(
    p_x,  # [rows, elements]
    p_outputs,  # OUTPUTS pointers [rows, elements]
    p_slopes,  # [rows] float64, or None
    p_weights,  # [stages, MADE + 1, COLUMNS] float64
    p_changes,  # [stages, MADE + 1] float64
    p_tails,  # [stages, MADE, WIDTH] float64
    p_line,  # [stages, 4] float64
    p_jobs,  # [jobs, 8] int32
    p_walk,  # [jobs, length] int32
    p_ids,  # [samples] int64
    p_points,  # [rows, elements]
    p_states,  # [states, 4 + ENTRIES, elements]
    p_partials,  # [jobs, length + 1, blocks] float64, or None
    seed_lo,
    seed_hi,
    low_lo,
    low_hi,
    high_lo,
    high_hi,
    length,
    elements,  # of one row
    OUTPUTS: tl.constexpr,
    ENTRIES: tl.constexpr,
    NOISES: tl.constexpr,
    PARTS: tl.constexpr,
    CLAMP: tl.constexpr,
    IN_PLACE: tl.constexpr,  # points are x
    BLOCK: tl.constexpr,
):
    """Runs one job for BLOCK elements."""
    TYPE: tl.constexpr = p_x.dtype.element_ty
    MADE: tl.constexpr = 1 + PARTS + (ENTRIES > 0)  # rows after the x0 estimate
    KNOWN: tl.constexpr = 1 + PARTS + OUTPUTS + ENTRIES  # columns of the x0 estimate
    COLUMNS: tl.constexpr = KNOWN + CLAMP + NOISES
    WIDTH: tl.constexpr = 2 + PARTS + ENTRIES + NOISES  # columns of a tail's row
    i_job, i_block, start, o_element, m_element = place_of(elements, BLOCK)
    blocks = (elements - 1) // BLOCK + 1  # of one row
    p_job = p_jobs + i_job * 8
    keys = (tl.load(p_ids + tl.load(p_job)), word_at(seed_lo, 0), word_at(seed_hi, 0))
    origin = tl.load(p_job + 1).to(tl.int64)
    state_out = tl.load(p_job + 3).to(tl.int64)
    first = tl.load(p_job + 4).to(tl.int64)
    real = tl.load(p_job + 5)
    tail = tl.load(p_job + 6)
    m_write = _when(tl.load(p_job + 7) != 0, o_element, elements)

    low, high = tl.full([], 0.0, TYPE), tl.full([], 0.0, TYPE)
    if CLAMP:
        low, high = _double(low_lo, low_hi).to(TYPE), _double(high_lo, high_hi).to(TYPE)

    # A job begins at a row of x, or at a state: [p, a, h_1 .. h_E, d, e].
    m_state = _when(origin < 0, o_element, elements)
    p_state = p_states + tl.load(p_job + 2).to(tl.int64) * ((4 + ENTRIES) * elements) + o_element
    b_p = tl.load(
        p_x + origin * elements + o_element, mask=_when(origin >= 0, o_element, elements), other=0.0
    )
    b_p = tl.where(origin < 0, tl.load(p_state, mask=m_state, other=0.0), b_p)
    b_a = b_p
    if PARTS:
        b_a = tl.where(origin < 0, tl.load(p_state + elements, mask=m_state, other=0.0), b_a)
    b_hs = ()
    for h in tl.static_range(ENTRIES):
        b_hs = b_hs + (tl.load(p_state + (2 + h) * elements, mask=m_state, other=0.0),)
    m_line = m_state & _when(real == 0, o_element, elements)
    b_d = tl.load(p_state + (2 + ENTRIES) * elements, mask=m_line, other=0.0)
    b_e = tl.load(p_state + (3 + ENTRIES) * elements, mask=m_line, other=0.0)

    p_q = p_walk + i_job * length
    q = tl.load(p_q, mask=real > 0, other=0).to(tl.int64)
    b_loaded = _request(p_x, p_outputs, q, real > 0, o_element, elements, OUTPUTS)
    # Another name for b_p would not do: Triton takes a name that the loop gives the tensor that it
    # already stood for as unchanged, and after the loop it would be the first point.
    b_before = tl.zeros_like(b_p)
    for k in range(0, real):
        stage = first + k
        more = k + 1 < real
        next_q = tl.load(p_q + k + 1, mask=more, other=0).to(tl.int64)
        b_next = _request(p_x, p_outputs, next_q, more, o_element, elements, OUTPUTS)
        b_columns = _place_columns(b_a, b_p, b_loaded[1:], b_hs, PARTS, TYPE)
        b_delta = b_p - b_loaded[0]
        if p_partials is not None:
            b_wide = tl.where(m_element, b_delta, 0.0).to(tl.float64)
            p_partial = p_partials + (i_job * (length + 1) + k) * blocks + i_block
            tl.store(p_partial, tl.sum(b_wide * b_wide, axis=0))
        slope = tl.full([], 0.0, tl.float64)
        if p_slopes is not None:
            slope = tl.load(p_slopes + q)
        p_row = p_weights + stage * ((MADE + 1) * COLUMNS)
        p_change = p_changes + stage * (MADE + 1)
        b_d = dot(p_row, b_columns, KNOWN, TYPE)
        if p_slopes is not None:
            b_d = _gain(b_d, b_delta, (tl.load(p_change) * slope).to(TYPE))
        if CLAMP:
            b_d = clamp_to(b_d, low, high)
            b_columns = b_columns + (b_d,)
        b_columns = with_normals(b_columns, start, word_at(stage, 0), *keys, TYPE, NOISES, BLOCK)
        b_rows = ()
        for r in tl.static_range(1, MADE + 1):
            b_y = dot(p_row + r * COLUMNS, b_columns, COLUMNS, TYPE)
            if p_slopes is not None:
                b_y = _gain(b_y, b_delta, (tl.load(p_change + r) * slope).to(TYPE))
            b_rows = b_rows + (b_y,)
        if IN_PLACE:
            tl.debug_barrier()
        tl.store(p_points + q * elements + o_element, b_p, mask=m_write)
        b_before = b_p
        b_a, b_p, b_hs = _moved(b_rows, b_hs, PARTS)
        q = next_q
        b_loaded = b_next

    p_last = p_line + (first + real - 1) * 4
    alpha = tl.load(p_last, mask=real > 0, other=0.0).to(TYPE)
    inverse = tl.load(p_last + 2, mask=real > 0, other=0.0).to(TYPE)
    b_e = tl.where(real > 0, (b_before - b_d * alpha) * inverse, b_e)

    for k in range(real, real + tail):
        stage = first + k
        if IN_PLACE:
            tl.debug_barrier()
        q = tl.load(p_q + k).to(tl.int64)
        tl.store(p_points + q * elements + o_element, b_p, mask=m_write)
        p_number = p_line + stage * 4
        b_line = b_d * tl.load(p_number).to(TYPE) + b_e * tl.load(p_number + 1).to(TYPE)
        b_x0 = b_d + (b_p - b_line) * tl.load(p_number + 3).to(TYPE)
        if CLAMP:
            b_x0 = clamp_to(b_x0, low, high)
        b_columns = _place_columns(b_a, b_p, (), b_hs, PARTS, TYPE) + (b_x0,)
        b_columns = with_normals(b_columns, start, word_at(stage, 0), *keys, TYPE, NOISES, BLOCK)
        p_row = p_tails + stage * (MADE * WIDTH)
        b_rows = ()
        for r in tl.static_range(MADE):
            b_rows = b_rows + (dot(p_row + r * WIDTH, b_columns, WIDTH, TYPE),)
        b_a, b_p, b_hs = _moved(b_rows, b_hs, PARTS)

    m_out = _when(state_out >= 0, o_element, elements)
    p_state = p_states + state_out * ((4 + ENTRIES) * elements) + o_element
    if p_partials is not None:
        b_wide = tl.where(m_out, b_p - tl.load(p_state, mask=m_out, other=0.0), 0.0).to(tl.float64)
        p_partial = p_partials + (i_job * (length + 1) + real) * blocks + i_block
        tl.store(p_partial, tl.sum(b_wide * b_wide, axis=0), mask=(state_out >= 0) & (tail == 0))
    tl.debug_barrier()  # the state that is overwritten here has been read above
    tl.store(p_state, b_p, mask=m_out)
    tl.store(p_state + elements, b_a, mask=m_out)
    for h in tl.static_range(ENTRIES):
        tl.store(p_state + (2 + h) * elements, b_hs[h], mask=m_out)
    tl.store(p_state + (2 + ENTRIES) * elements, b_d, mask=m_out)
    tl.store(p_state + (3 + ENTRIES) * elements, b_e, mask=m_out)


@triton.jit(do_not_specialize=["length"])
def norms_kernel(p_partials, p_norms, p_jobs, length, blocks, SUMS: tl.constexpr):
    """Adds up the partial sums of one stage of a job, or writes 0 where there are none."""
    i_norm = tl.program_id(0).to(tl.int64)
    k = i_norm % (length + 1)
    p_job = p_jobs + i_norm // (length + 1) * 8
    real = tl.load(p_job + 5)
    is_end = (k == real) & (tl.load(p_job + 3) >= 0) & (tl.load(p_job + 6) == 0)
    count = tl.where((k < real) | is_end, blocks, 0)
    tl.store(p_norms + i_norm, add_up(p_partials + i_norm * blocks, count, SUMS))


def _words(number: float) -> tuple[int, int]:
    """Returns the two halves of a float64, as Triton takes integers."""
    (bits,) = struct.unpack("<q", struct.pack("<d", number))
    return int32(bits), int32(bits >> 32)


def sweep(*args):
    """Runs all jobs; writes into `points`, `states` and `norms`. See reference.py."""
    call = check_sweep(*args)
    x, norms, clamp = call.x, call.norms, call.clamp
    count, length = call.walk.shape
    if x.numel() == 0 or count == 0:
        if norms is not None:
            norms.zero_()
        return
    elements = x.numel() // x.shape[0]
    grid, options = grid_of(count, elements, few=_MANY)
    blocks = grid[0] // count
    words = (int32(call.seed), int32(call.seed >> 32))
    limits = (*_words(clamp[0]), *_words(clamp[1])) if clamp else (0,) * 4
    tables = (call.slopes, call.weights, call.changes, call.tails, call.line)
    tables += (call.jobs, call.walk, call.ids)
    with torch.cuda.device_of(x):
        partials = None if norms is None else norms.new_empty(count, length + 1, blocks)
        written = (call.points, call.states, partials)
        sweep_kernel[grid](
            x,
            tuple(call.outputs) or (x,),  # a tuple may not be empty
            *tables,
            *written,
            *words,
            *limits,
            length,
            elements,
            OUTPUTS=len(call.outputs),
            ENTRIES=call.states.shape[1] - 4,
            NOISES=call.noises,
            PARTS=bool(call.parts),
            CLAMP=bool(clamp),
            IN_PLACE=call.points.data_ptr() == x.data_ptr(),
            **options,
        )
        if norms is not None:
            sums = {"SUMS": SUMS_AT_ONCE, "enable_fp_fusion": False}
            norms_kernel[(norms.numel(),)](partials, norms, call.jobs, length, blocks, **sums)


IMPLEMENTATIONS = {"sweep": sweep}
