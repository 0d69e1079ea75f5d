"""`combine_error` in Triton: the rows of `combine`, and their norms.

A program takes a block of one sample and writes the outputs and a partial sum; a second kernel adds
up a sample's partial sums. The block's size depends on the number of elements alone, and so do the
order and the bits of the sums. Float64 tensors are served by the reference.

See launch.py for the prefixes.
"""

import torch
import triton
import triton.language as tl

from diffast.ops.combine.triton import clamp_to, new_outputs, report, row_of
from diffast.ops.combine_error import reference
from diffast.ops.combine_error.checks import check_error, check_error_out, unstored
from diffast.ops.launch import grid_of, has_float64, load_inputs, place_of, split_batch, word_at
from diffast.ops.normal.triton import with_normals

SUMS_AT_ONCE = 128  # partial sums that the second kernel takes at a time


@triton.jit
def _larger(b_a, b_b):
    """Returns the larger one, NaN if either is; csrc/ops/combine_error/norm.h."""
    return tl.where((b_a > b_b) | (b_a != b_a), b_a, b_b)


@triton.jit
def _fold(b_values, LARGEST: tl.constexpr):
    """Returns the sum of a block, or its largest number: NaN if one is."""
    if LARGEST:
        bad = tl.max((b_values != b_values).to(tl.int32), axis=0)
        return tl.where(bad > 0, float("nan"), tl.max(b_values, axis=0))
    else:
        return tl.sum(b_values, axis=0)


@triton.jit
def error_kernel(
    p_xs,  # INPUTS pointers [samples, elements]
    p_ys,  # the stored rows' pointers [samples, elements]
    p_table,  # [samples, ROWS, columns] float64
    p_noise_table,  # [samples, ROWS, NOISES] float64, or None
    p_streams,  # [samples, 3] of (seed, id, word), or None
    p_status,  # [samples], or None
    p_tolerance,  # [samples, 2] float64 of (atol, rtol)
    p_partials,  # [samples, blocks, 2] float64
    low,
    high,
    elements,  # of one sample
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    ERROR: tl.constexpr,  # which row is the error
    NOISES: tl.constexpr,
    CLAMP: tl.constexpr,
    FORM: tl.constexpr,
    LARGEST: tl.constexpr,
    MEASURE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes the stored rows for BLOCK elements of one sample, and the partial sums of the rest."""
    i_sample, i_block, start, o_element, m_element = place_of(elements, BLOCK)
    o_batch = i_sample * elements + o_element
    b_xs = load_inputs(p_xs, o_batch, m_element, tl.float32, INPUTS)
    b_zs = ()
    if NOISES > 0:
        seed = tl.load(p_streams + i_sample * 3)
        sample_id = tl.load(p_streams + i_sample * 3 + 1)
        word = word_at(tl.load(p_streams + i_sample * 3 + 2), 0)
        seed_lo, seed_hi = word_at(seed, 0), word_at(seed, 32)
        b_zs = with_normals(
            b_zs, start, word, sample_id, seed_lo, seed_hi, tl.float32, NOISES, BLOCK
        )

    # An output may be an input, and more than one thread may hold an element.
    tl.debug_barrier()
    i_first = i_sample * ROWS
    b_clamped = b_xs[0]
    b_error = b_xs[0]
    b_size = b_xs[0]
    b_measured = b_xs[0]
    m_bad = o_element < 0
    for r in tl.static_range(ROWS):
        b_y = row_of(b_xs, b_clamped, b_zs, None, None, p_table, p_noise_table, i_first, r, CLAMP)
        m_bad = m_bad | (b_y - b_y != 0.0)
        if CLAMP and r == 0:
            b_clamped = clamp_to(b_y, low, high)
        elif r < ERROR:
            p_y = p_ys[r - CLAMP]
            tl.store(p_y + o_batch, b_y.to(p_y.dtype.element_ty), mask=m_element)
        elif r == ERROR:
            b_error = b_y
        elif MEASURE and r == ROWS - 1:
            b_measured = b_y
        elif r == ERROR + 1:
            b_size = tl.abs(b_y)
        else:
            b_size = _larger(tl.abs(b_y), b_size)

    b_delta = tl.zeros([BLOCK], tl.float32) + tl.load(p_tolerance + i_sample * 2).to(tl.float32)
    if FORM > 0:
        b_scale = b_size * tl.load(p_tolerance + i_sample * 2 + 1).to(tl.float32)
        b_delta = _larger(b_delta, b_scale) if FORM == 1 else b_delta + b_scale
    # Elements beyond the end may hold normals.
    m_none = (b_error == 0.0) | (o_element >= elements)
    b_q = tl.where(m_none, 0.0, tl.div_rn(b_error, tl.where(m_none, 1.0, b_delta))).to(tl.float64)
    blocks = (elements - 1) // BLOCK + 1
    p_partial = p_partials + (i_sample * blocks + i_block) * 2
    tl.store(p_partial, _fold(tl.abs(b_q) if LARGEST else b_q * b_q, LARGEST))
    if MEASURE:
        b_measured = tl.where(m_element, b_measured, 0.0).to(tl.float64)
        tl.store(p_partial + 1, _fold(b_measured * b_measured, False))
    if p_status is not None:
        word = word_at(tl.load(p_streams + i_sample * 3 + 2), 0)
        report(p_status, i_sample, m_bad & m_element, word)


@triton.jit
def norms_kernel(
    p_partials,  # [samples, blocks, 2] float64
    p_norms,  # [samples, 2] float64
    elements,  # of one sample
    blocks,  # of one sample
    LARGEST: tl.constexpr,
    MEASURE: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Adds up one sample's partial sums, SUMS at a time."""
    i_sample = tl.program_id(0).to(tl.int64)
    p_sample = p_partials + i_sample * blocks * 2
    count = tl.full([], 0.0, tl.float64) + elements
    for k in tl.static_range(2):
        b_total = tl.zeros([SUMS], tl.float64)
        if k == 0 or MEASURE:
            for first in range(0, blocks, SUMS):
                o_block = first + tl.arange(0, SUMS)
                b_part = tl.load(p_sample + o_block * 2 + k, mask=o_block < blocks, other=0.0)
                b_total = _larger(b_part, b_total) if LARGEST and k == 0 else b_total + b_part
        total = _fold(b_total, LARGEST and k == 0)
        if not (LARGEST and k == 0):
            total = tl.sqrt(total / count)
        tl.store(p_norms + i_sample * 2 + k, total)


def _launch(
    xs, weights, noise, streams, clamp, tolerance, form, norm, measure, outs, norms, status
):
    samples, elements = split_batch(xs[0])
    if samples * elements == 0:
        norms.zero_()
        return
    rows = weights.shape[1]
    grid, options = grid_of(samples, elements)
    blocks = grid[0] // samples
    flags = {"LARGEST": norm == 1, "MEASURE": bool(measure)}
    with torch.cuda.device_of(xs[0]):
        partials = torch.empty(samples, blocks, 2, dtype=torch.float64, device=xs[0].device)
        error_kernel[grid](
            tuple(xs),
            tuple(outs) or (xs[0],),  # a tuple may not be empty
            *(weights, noise, streams, status, tolerance, partials),
            *(clamp or (0.0, 0.0)),
            elements,
            INPUTS=len(xs),
            ROWS=rows,
            ERROR=rows - unstored(form, measure, clamp)[1],
            NOISES=0 if noise is None else noise.shape[2],
            CLAMP=bool(clamp),
            FORM=form,
            **flags,
            **options,
        )
        norms_kernel[(samples,)](
            partials, norms, elements, blocks, SUMS=SUMS_AT_ONCE, enable_fp_fusion=False, **flags
        )


def combine_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure):
    """Returns the output rows, each of the inputs' promoted dtype, and then the norms [B, 2]."""
    call = (xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    outputs = check_error(*call)
    if has_float64(xs):
        return reference.combine_error(*call)
    outs, norms = new_outputs(xs, outputs), torch.empty_like(tolerance)
    _launch(*call, outs, norms, None)
    return [*outs, norms]


def combine_error_out(
    xs, weights, noise, streams, clamp, tolerance, form, norm, measure, outs, norms, status
):
    """Writes the output rows into `outs` and the norms into `norms` [B, 2]."""
    call = (xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    check_error_out(*call, outs, norms, status)
    if has_float64([*xs, *outs]):
        reference.combine_error_out(*call, outs, norms, status)
        return
    _launch(*call, outs, norms, status)


IMPLEMENTATIONS = {"combine_error": combine_error, "combine_error.out": combine_error_out}
