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
from diffast.ops.launch import (
    grid_of,
    has_float64,
    int32,
    load_inputs,
    place_of,
    split_batch,
    word_at,
)
from diffast.ops.normal.triton import with_normals
from diffast.ops.streams import STAGE_LIMIT

_STAGE_MASK = tl.constexpr(STAGE_LIMIT - 1)


@triton.jit
def _weight_at(numbers, p_table, o_sample, i_number: tl.constexpr):
    """Returns one float32 weight: of the host's numbers, or of the sample's part of a table."""
    if p_table is not None:
        return tl.load(p_table + o_sample + i_number).to(tl.float32)
    else:
        return tl.full([], numbers[i_number], tl.float32)


@triton.jit
def row_of(
    b_xs,
    b_clamped,
    b_zs,
    weights,
    noise_weights,
    p_table,
    p_noise_table,
    i_first,  # the sample's first row of a table
    r: tl.constexpr,
    CLAMP: tl.constexpr,
):
    """Returns row r before any clamp; `b_clamped` is row 0 after it."""
    INPUTS: tl.constexpr = len(b_xs)
    NOISES: tl.constexpr = len(b_zs)
    COLUMNS: tl.constexpr = INPUTS + CLAMP
    o_table, o_noise = i_first * COLUMNS, i_first * NOISES
    b_y = b_xs[0] * _weight_at(weights, p_table, o_table, r * COLUMNS)
    for k in tl.static_range(1, INPUTS):
        b_y = b_y + b_xs[k] * _weight_at(weights, p_table, o_table, r * COLUMNS + k)
    if CLAMP and r > 0:
        b_y = b_y + b_clamped * _weight_at(weights, p_table, o_table, r * COLUMNS + INPUTS)
    for m in tl.static_range(NOISES):
        b_y = b_y + b_zs[m] * _weight_at(noise_weights, p_noise_table, o_noise, r * NOISES + m)
    return b_y


@triton.jit
def clamp_to(b_y, low, high):
    """Returns the block within its limits; NaN stays NaN."""
    b_low, b_high = tl.full([], low, b_y.dtype), tl.full([], high, b_y.dtype)
    b_y = tl.where(b_y < b_low, b_low, b_y)
    return tl.where(b_y > b_high, b_high, b_y)


@triton.jit
def report(p_status, i_sample, m_bad, word):
    """Notes the stage of a word as the sample's, if an element is bad and no stage is noted."""
    bad = tl.max(m_bad.to(tl.int32), axis=0)
    before = tl.load(p_status + i_sample)
    tl.store(p_status + i_sample, (word & _STAGE_MASK).to(tl.int64), mask=(bad > 0) & (before < 0))


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
    i_sample, _, start, o_element, m_element = place_of(elements, BLOCK)
    o_batch = i_sample * elements + o_element
    b_xs = load_inputs(p_xs, o_batch, m_element, tl.float32, INPUTS)
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
        b_zs = with_normals(
            b_zs, start, stage_word, sample_id, seed_low, seed_high, tl.float32, NOISES, BLOCK
        )

    # An output may be an input, and more than one thread may hold an element.
    tl.debug_barrier()
    i_first = i_sample * ROWS
    b_clamped = b_xs[0]
    m_bad = o_element < 0
    for r in tl.static_range(ROWS):
        b_y = row_of(
            b_xs, b_clamped, b_zs, weights, noise_weights, p_table, p_noise_table, i_first, r, CLAMP
        )
        m_bad = m_bad | (b_y - b_y != 0.0)
        if CLAMP and r == 0:
            b_clamped = clamp_to(b_y, low, high)
            b_y = b_clamped
        if r >= HIDDEN:
            p_y = p_ys[r - HIDDEN]
            tl.store(p_y + o_batch, b_y.to(p_y.dtype.element_ty), mask=m_element)
    if p_status is not None:
        report(p_status, i_sample, m_bad & m_element, stage_word)


def _launch(xs, outs, rows, clamp, status, host=((), (), 0, 0, None), table=(None,) * 3):
    """Launches a call with host weights, or with tables of weights and noise and the streams."""
    weights, noise, seed, stage, ids = host
    table, noise_table, streams = table
    noises = len(noise) // rows if noise else noise_table.shape[2] if noise_table is not None else 0
    samples, elements = split_batch(xs[0])
    if table is None and noises == 0 and status is None:
        samples, elements = 1, samples * elements
    if samples * elements == 0:
        return
    grid, options = grid_of(samples, elements)
    # A tuple may not be empty, and a clamped row alone may be unstored.
    numbers = (tuple(weights) or None, tuple(noise) or None)
    words = (int32(seed), int32(seed >> 32), int32(stage))
    with torch.cuda.device_of(xs[0]):
        combine_kernel[grid](
            tuple(xs),
            tuple(outs) or (xs[0],),
            *numbers,
            *(table, noise_table, streams, ids, status),
            *(clamp or (0.0, 0.0)),
            *words,
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
    dtype = reference.promoted(xs)
    return [torch.empty_like(xs[0], dtype=dtype) for _ in range(rows)]


def combine(xs, weights, noise, seed, stage, ids, clamp):
    """Returns the rows of `combine` with host weights, each of the inputs' promoted dtype."""
    rows = check_combine(xs, weights, noise, seed, stage, ids, clamp)
    if has_float64(xs):
        return reference.combine(xs, weights, noise, seed, stage, ids, clamp)
    outs = new_outputs(xs, rows)
    _launch(xs, outs, rows, clamp, None, host=(weights, noise, seed, stage, ids))
    return outs


def combine_out(xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=()):
    """Writes the rows of `combine` with host weights into `outs`."""
    rows = check_combine_out(xs, weights, outs, status, stage, noise, seed, ids, clamp)
    if has_float64([*xs, *outs]):
        reference.combine_out(xs, weights, outs, status, stage, noise, seed, ids, clamp)
        return
    _launch(xs, outs, rows, clamp, status, host=(weights, noise, seed, stage, ids))


def combine_table(xs, weights, noise, streams, clamp):
    """Returns the rows of `combine` with a table of weights [B, R, K]."""
    rows = check_table(xs, weights, noise, streams, clamp)
    if has_float64(xs):
        return reference.combine_table(xs, weights, noise, streams, clamp)
    outs = new_outputs(xs, rows)
    _launch(xs, outs, rows, clamp, None, table=(weights, noise, streams))
    return outs


def combine_table_out(xs, weights, noise, streams, clamp, outs, status):
    """Writes the rows of `combine` with a table of weights [B, R, K] into `outs`."""
    rows = check_table_out(xs, weights, noise, streams, clamp, outs, status)
    if has_float64([*xs, *outs]):
        reference.combine_table_out(xs, weights, noise, streams, clamp, outs, status)
        return
    _launch(xs, outs, rows, clamp, status, table=(weights, noise, streams))


IMPLEMENTATIONS = {
    "combine": combine,
    "combine.out": combine_out,
    "combine.table": combine_table,
    "combine.table_out": combine_table_out,
}
