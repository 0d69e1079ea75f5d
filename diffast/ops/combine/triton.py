"""`combine` in Triton. See launch.py for the prefixes."""

import torch
import triton
import triton.language as tl

from diffast.ops.combine import reference
from diffast.ops.combine.checks import (
    check_combine,
    check_combine_out,
    check_table,
    check_table_out,
)
from diffast.ops.launch import grid_of, has_float64, int32, split_batch, word_at
from diffast.ops.normal.triton import draw
from diffast.ops.streams import SLOT_SHIFT, STAGE_LIMIT

SLOT = tl.constexpr(1 << SLOT_SHIFT)
STAGE_MASK = tl.constexpr(STAGE_LIMIT - 1)


@triton.jit
def weight_at(numbers, p_table, o_sample, i_number: tl.constexpr):
    """Returns one float32 weight: of the host's numbers, or of the sample's part of a table."""
    if p_table is not None:
        return tl.load(p_table + o_sample + i_number).to(tl.float32)
    else:
        return tl.full([], numbers[i_number], tl.float32)


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "word"])
def combine_kernel(
    p_xs,  # INPUTS pointers [samples, elements]
    p_ys,  # ROWS pointers [samples, elements]; without row 0 if HIDDEN is 1
    weights,  # ROWS * columns numbers, or None with a table
    noise_weights,  # ROWS * NOISES numbers, or None
    p_table,  # [samples, ROWS, columns] float64, or None
    p_noise_table,  # [samples, ROWS, NOISES] float64, or None
    p_streams,  # [samples, 3] of (seed, id, word), or None
    p_ids,  # [samples], or None: 0 .. samples - 1
    p_status,  # [samples], or None
    low,
    high,
    seed_lo,
    seed_hi,
    word,
    elements,  # of one sample
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
    NOISES: tl.constexpr,
    CLAMP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes all rows of `combine` for BLOCK elements of one sample."""
    COLUMNS: tl.constexpr = INPUTS + CLAMP
    i_program = tl.program_id(0)
    programs = (elements - 1) // BLOCK + 1  # of one sample
    i_sample = (i_program // programs).to(tl.int64)
    start = (i_program % programs).to(tl.int64) * BLOCK
    o_element = start + tl.arange(0, BLOCK)
    m_element = o_element < elements
    o_batch = i_sample * elements + o_element

    b_xs = ()
    for k in tl.static_range(INPUTS):
        b_xs = b_xs + (tl.load(p_xs[k] + o_batch, mask=m_element, other=0.0).to(tl.float32),)

    stage_word = word_at(word, 0)
    if p_streams is not None:
        stage_word = word_at(tl.load(p_streams + i_sample * 3 + 2), 0)
    b_zs = ()
    if NOISES > 0:
        seed_low, seed_high = word_at(seed_lo, 0), word_at(seed_hi, 0)
        sample_id = i_sample
        if p_ids is not None:
            sample_id = tl.load(p_ids + i_sample)
        if p_streams is not None:
            seed = tl.load(p_streams + i_sample * 3)
            seed_low, seed_high = word_at(seed, 0), word_at(seed, 32)
            sample_id = tl.load(p_streams + i_sample * 3 + 1)
        id_low, id_high = word_at(sample_id, 0), word_at(sample_id, 32)
        for m in tl.static_range(NOISES):
            slot_word = stage_word + m * SLOT
            b_zs = b_zs + (draw(start, slot_word, id_low, id_high, seed_low, seed_high, BLOCK),)

    # An output may be an input, and more than one thread may hold an element.
    tl.debug_barrier()
    o_table, o_noise = i_sample * (ROWS * COLUMNS), i_sample * (ROWS * NOISES)
    b_clamped = b_xs[0]
    m_bad = o_element < 0
    for r in tl.static_range(ROWS):
        b_y = b_xs[0] * weight_at(weights, p_table, o_table, r * COLUMNS)
        for k in tl.static_range(1, INPUTS):
            b_y = b_y + b_xs[k] * weight_at(weights, p_table, o_table, r * COLUMNS + k)
        if CLAMP and r > 0:
            b_y = b_y + b_clamped * weight_at(weights, p_table, o_table, r * COLUMNS + INPUTS)
        for m in tl.static_range(NOISES):
            b_y = b_y + b_zs[m] * weight_at(noise_weights, p_noise_table, o_noise, r * NOISES + m)
        m_bad = m_bad | (b_y - b_y != 0.0)
        if CLAMP and r == 0:
            b_low, b_high = tl.full([], low, tl.float32), tl.full([], high, tl.float32)
            b_y = tl.where(b_y < b_low, b_low, b_y)
            b_y = tl.where(b_y > b_high, b_high, b_y)
            b_clamped = b_y
        if r >= HIDDEN:
            p_y = p_ys[r - HIDDEN]
            tl.store(p_y + o_batch, b_y.to(p_y.dtype.element_ty), mask=m_element)
    if p_status is not None:
        bad = tl.max((m_bad & m_element).to(tl.int32), axis=0)
        before = tl.load(p_status + i_sample)
        stage = (stage_word & STAGE_MASK).to(tl.int64)
        tl.store(p_status + i_sample, stage, mask=(bad > 0) & (before < 0))


def _launch(
    xs,
    outs,
    rows,
    clamp,
    weights=None,
    noise=None,
    table=None,
    noise_table=None,
    streams=None,
    ids=None,
    status=None,
    seed=0,
    stage=0,
):
    noises = len(noise) // rows if noise else noise_table.shape[2] if noise_table is not None else 0
    samples, elements = split_batch(xs[0])
    if table is None and noises == 0 and status is None:
        samples, elements = 1, samples * elements
    if samples * elements == 0:
        return
    low, high = clamp if clamp else (0.0, 0.0)
    grid, options = grid_of(samples, elements)
    with torch.cuda.device_of(xs[0]):
        combine_kernel[grid](
            tuple(xs),
            tuple(outs)
            or (xs[0],),  # a tuple may not be empty, and a clamped row alone may be unstored
            tuple(weights) if weights else None,
            tuple(noise) if noise else None,
            table,
            noise_table,
            streams,
            ids,
            status,
            low,
            high,
            int32(seed),
            int32(seed >> 32),
            int32(stage),
            elements,
            INPUTS=len(xs),
            ROWS=rows,
            HIDDEN=rows - len(outs),
            NOISES=noises,
            CLAMP=bool(clamp),
            **options,
        )


def new_outputs(xs, rows: int) -> list[torch.Tensor]:
    """Returns new tensors for so many rows, of the inputs' promoted dtype."""
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [torch.empty_like(xs[0], dtype=dtype) for _ in range(rows)]


def combine(xs, weights, noise, seed, stage, ids, clamp):
    """Returns the rows of `combine` with host weights, each of the inputs' promoted dtype."""
    rows = check_combine(xs, weights, noise, seed, stage, ids, clamp)
    if has_float64(xs):
        return reference.combine(xs, weights, noise, seed, stage, ids, clamp)
    outs = new_outputs(xs, rows)
    host = {"weights": weights, "noise": noise, "seed": seed, "stage": stage, "ids": ids}
    _launch(xs, outs, rows, clamp, **host)
    return outs


def combine_out(xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=()):
    """Writes the rows of `combine` with host weights into `outs`."""
    rows = check_combine_out(xs, weights, outs, status, stage, noise, seed, ids, clamp)
    if has_float64([*xs, *outs]):
        reference.combine_out(xs, weights, outs, status, stage, noise, seed, ids, clamp)
        return
    host = {"weights": weights, "noise": noise, "seed": seed, "stage": stage, "ids": ids}
    _launch(xs, outs, rows, clamp, status=status, **host)


def combine_table(xs, weights, noise, streams, clamp):
    """Returns the rows of `combine` with a table of weights [B, R, K]."""
    rows = check_table(xs, weights, noise, streams, clamp)
    if has_float64(xs):
        return reference.combine_table(xs, weights, noise, streams, clamp)
    outs = new_outputs(xs, rows)
    _launch(xs, outs, rows, clamp, table=weights, noise_table=noise, streams=streams)
    return outs


def combine_table_out(xs, weights, noise, streams, clamp, outs, status):
    """Writes the rows of `combine` with a table of weights [B, R, K] into `outs`."""
    rows = check_table_out(xs, weights, noise, streams, clamp, outs, status)
    if has_float64([*xs, *outs]):
        reference.combine_table_out(xs, weights, noise, streams, clamp, outs, status)
        return
    table = {"table": weights, "noise_table": noise, "streams": streams}
    _launch(xs, outs, rows, clamp, status=status, **table)


IMPLEMENTATIONS = {
    "combine": combine,
    "combine.out": combine_out,
    "combine.table": combine_table,
    "combine.table_out": combine_table_out,
}
