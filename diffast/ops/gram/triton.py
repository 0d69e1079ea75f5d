"""`gram` in Triton: rows in registers, the products of their pairs added up in float64.

A program takes a block of one sample; a second kernel adds up the blocks, in an order that depends
on the number of elements alone. See launch.py for the prefixes.
"""

import torch
import triton
import triton.language as tl

from diffast.ops.gram.checks import check_gram
from diffast.ops.launch import grid_of, has_float64, load_inputs, place_of, split_batch

SUMS_AT_ONCE = 128  # partial sums that the second kernel takes at a time


@triton.jit
def dot(p_weights, b_columns, COUNT: tl.constexpr, TYPE: tl.constexpr):
    """Returns sum_k weights[k] * columns[k], weights of a float64 table rounded to TYPE."""
    b_y = b_columns[0] * tl.load(p_weights).to(TYPE)
    for k in tl.static_range(1, COUNT):
        b_y = b_y + b_columns[k] * tl.load(p_weights + k).to(TYPE)
    return b_y


@triton.jit
def add_up(p_partials, blocks, SUMS: tl.constexpr):
    """Returns the sum of `blocks` float64 numbers, SUMS at a time."""
    b_total = tl.zeros([SUMS], tl.float64)
    for first in range(0, blocks, SUMS):
        o_block = first + tl.arange(0, SUMS)
        b_total = b_total + tl.load(p_partials + o_block, mask=o_block < blocks, other=0.0)
    return tl.sum(b_total, axis=0)


@triton.jit
def gram_kernel(
    p_xs,  # INPUTS pointers [samples, elements]
    p_weights,  # [samples, ROWS, INPUTS] float64
    p_partials,  # [samples, pairs (+ ROWS), blocks] float64
    elements,  # of one sample
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    TOTALS: tl.constexpr,  # the sum of each row, too
    WIDE: tl.constexpr,  # rows in float64
    BLOCK: tl.constexpr,
):
    """Writes the partial sums of all pairs of rows (and rows) for BLOCK elements of one sample."""
    TYPE: tl.constexpr = tl.float64 if WIDE else tl.float32
    SUMS: tl.constexpr = ROWS * (ROWS + 1) // 2 + (ROWS if TOTALS else 0)
    i_sample, i_block, _, o_element, m_element = place_of(elements, BLOCK)
    b_xs = load_inputs(p_xs, i_sample * elements + o_element, m_element, TYPE, INPUTS)
    b_rows = ()
    for r in tl.static_range(ROWS):
        p_row = p_weights + (i_sample * ROWS + r) * INPUTS
        b_y = tl.where(m_element, dot(p_row, b_xs, INPUTS, TYPE), 0.0)
        b_rows = b_rows + (b_y.to(tl.float64),)
    blocks = (elements - 1) // BLOCK + 1
    p_partial = p_partials + i_sample * SUMS * blocks + i_block
    for i in tl.static_range(ROWS):
        for j in tl.static_range(i, ROWS):
            tl.store(p_partial, tl.sum(b_rows[i] * b_rows[j], axis=0))
            p_partial += blocks
    if TOTALS:
        for j in tl.static_range(ROWS):
            tl.store(p_partial, tl.sum(b_rows[j], axis=0))
            p_partial += blocks


@triton.jit
def sums_kernel(p_partials, p_sums, blocks, SUMS: tl.constexpr):
    """Adds up the partial sums of one pair of one sample."""
    i_sum = tl.program_id(0).to(tl.int64)
    tl.store(p_sums + i_sum, add_up(p_partials + i_sum * blocks, blocks, SUMS))


def gram(xs, weights, sums):
    """Writes inner products of rows into `sums` [B, J (J + 1) / 2], sums of rows into J more."""
    check_gram(xs, weights, sums)
    samples, elements = split_batch(xs[0])
    if samples * elements == 0:
        sums.zero_()
        return
    grid, options = grid_of(samples, elements)
    blocks = grid[0] // samples
    rows = weights.shape[1]
    with torch.cuda.device_of(xs[0]):
        partials = sums.new_empty(samples, sums.shape[1], blocks)
        gram_kernel[grid](
            tuple(xs),
            weights,
            partials,
            elements,
            INPUTS=len(xs),
            ROWS=rows,
            TOTALS=sums.shape[1] > rows * (rows + 1) // 2,
            WIDE=has_float64(xs),
            **options,
        )
        sums_kernel[(sums.numel(),)](
            partials, sums, blocks, SUMS=SUMS_AT_ONCE, enable_fp_fusion=False
        )


IMPLEMENTATIONS = {"gram": gram}
