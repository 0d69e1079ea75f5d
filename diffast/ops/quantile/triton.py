"""`quantile` in Triton: magnitudes are counted digit by digit, and the row is never stored.

A pass counts the keys (bits of the magnitude) that have the digits found so far by their next
digit, and then finds the digit in which the wanted order statistic lies. There are two of them,
which begin with rank and rank + 1. Counts are whole numbers, so no order of additions changes them.
Float64 is handed to the reference. See launch.py for the prefixes.
"""

import struct

import torch
import triton
import triton.language as tl

from diffast.ops.gram.triton import dot
from diffast.ops.launch import grid_of, has_float64, int32, load_inputs, place_of, split_batch
from diffast.ops.quantile import reference
from diffast.ops.quantile.checks import check_quantile
from diffast.ops.quantile.reference import rank_of

# Bits behind a pass's digit, and the bits of the digit.
PASSES = ((23, 8), (15, 8), (7, 8), (0, 7))
DIGITS = 256
_INFINITY = tl.constexpr(0x7F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.jit(do_not_specialize=["shift", "bits"])
def count_kernel(
    p_xs,  # INPUTS pointers [samples, elements]
    p_weights,  # [samples, 1, INPUTS] float64
    p_state,  # [samples, 2, 2] of (digits so far, rank among keys that have them), int32
    p_counts,  # [samples, 2, DIGITS] int32, added to
    p_nan,  # [samples] int32, set to 1 if an element is NaN
    elements,  # of one sample
    shift,
    bits,
    INPUTS: tl.constexpr,
    DIGITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts the next digits of the keys of BLOCK elements of one sample."""
    i_sample, _, _, o_element, m_element = place_of(elements, BLOCK)
    b_xs = load_inputs(p_xs, i_sample * elements + o_element, m_element, tl.float32, INPUTS)
    b_y = dot(p_weights + i_sample * INPUTS, b_xs, INPUTS, tl.float32)
    b_key = b_y.to(tl.int32, bitcast=True) & _MAGNITUDE
    nan = tl.max((m_element & (b_key > _INFINITY)).to(tl.int32), axis=0)
    tl.store(p_nan + i_sample, nan, mask=nan > 0)
    b_digit = (b_key >> shift) & ((1 << bits) - 1)
    b_before = b_key >> (shift + bits)  # a key has 31 bits: none are before the first digit
    first, second = tl.load(p_state + i_sample * 4), tl.load(p_state + i_sample * 4 + 2)
    p_count = p_counts + i_sample * 2 * DIGITS + tl.arange(0, DIGITS)
    b_count = tl.histogram(b_digit, DIGITS, mask=m_element & (b_before == first))
    tl.atomic_add(p_count, b_count, mask=b_count > 0)
    if first != second:
        b_other = tl.histogram(b_digit, DIGITS, mask=m_element & (b_before == second))
        tl.atomic_add(p_count + DIGITS, b_other, mask=b_other > 0)


@triton.jit
def _digit_of(p_count, rank, DIGITS: tl.constexpr):
    """Returns the digit in which the number of a rank lies, and how many have lesser digits."""
    o_digit = tl.arange(0, DIGITS)
    b_count = tl.load(p_count + o_digit)
    b_sum = tl.cumsum(b_count, axis=0)
    digit = tl.sum((b_sum <= rank).to(tl.int32), axis=0)
    return digit, tl.sum(tl.where(o_digit < digit, b_count, 0), axis=0)


@triton.jit
def _magnitude(key):
    return key.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit(do_not_specialize=["bits", "weight_lo", "weight_hi"])
def find_kernel(
    p_state,  # [samples, 2, 2]
    p_counts,  # [samples, 2, DIGITS]; zeros afterwards
    p_nan,  # [samples]
    p_out,  # [samples] float64
    bits,
    weight_lo,  # the words of a float64 number
    weight_hi,
    DIGITS: tl.constexpr,
    LAST: tl.constexpr,
):
    """Finds the digits of one sample's order statistics; after the last ones, its quantile."""
    i_sample = tl.program_id(0).to(tl.int64)
    p_state += i_sample * 4
    p_counts += i_sample * 2 * DIGITS
    first, second = tl.load(p_state), tl.load(p_state + 2)
    rank, after = tl.load(p_state + 1), tl.load(p_state + 3)
    digit, lesser = _digit_of(p_counts, rank, DIGITS)
    # Where both have had the same digits, they were counted once.
    p_other = p_counts + tl.where(first == second, 0, DIGITS)
    other, lesser_after = _digit_of(p_other, after, DIGITS)
    first, second = (first << bits) | digit, (second << bits) | other
    if LAST:
        below, above = _magnitude(first), _magnitude(second)
        high = weight_hi.to(tl.int64) << 32
        weight = (high | (weight_lo.to(tl.int64) & 0xFFFFFFFF)).to(tl.float64, bitcast=True)
        step = above - below
        value = tl.where(weight < 0.5, below + step * weight, above - step * (1.0 - weight))
        value = tl.where(step - step == 0.0, value, above)
        value = tl.where((first == second) | (weight == 0.0), below, value)
        nan = (tl.load(p_nan + i_sample) + _INFINITY).to(tl.float32, bitcast=True).to(tl.float64)
        tl.store(p_out + i_sample, tl.where(tl.load(p_nan + i_sample) > 0, nan, value))
    else:
        tl.debug_barrier()  # all threads have read the counts
        o_digit = tl.arange(0, 2 * DIGITS)
        tl.store(p_counts + o_digit, tl.zeros([2 * DIGITS], tl.int32))
        tl.store(p_state, first)
        tl.store(p_state + 1, rank - lesser)
        tl.store(p_state + 2, second)
        tl.store(p_state + 3, after - lesser_after)


def quantile(xs, weights, p, out):
    """Writes the p-quantile of every sample's row into `out` [B]."""
    check_quantile(xs, weights, p, out)
    if has_float64(xs):
        reference.quantile(xs, weights, p, out)
        return
    samples, elements = split_batch(xs[0])
    if samples == 0:
        return
    rank, weight = rank_of(p, elements)
    low, high = struct.unpack("<2i", struct.pack("<d", weight))
    grid, options = grid_of(samples, elements)
    with torch.cuda.device_of(xs[0]):
        # Both order statistics have no digits yet. Where the second has no weight, there is one.
        state = out.new_zeros(samples, 2, 2, dtype=torch.int32)
        state[:, 0, 1] = rank
        state[:, 1, 1] = rank + (weight > 0)
        counts = out.new_zeros(samples, 2, DIGITS, dtype=torch.int32)
        nan = out.new_zeros(samples, dtype=torch.int32)
        for shift, bits in PASSES:
            count_kernel[grid](
                tuple(xs),
                weights,
                state,
                counts,
                nan,
                elements,
                shift,
                bits,
                INPUTS=len(xs),
                DIGITS=DIGITS,
                **options,
            )
            find_kernel[(samples,)](
                state,
                counts,
                nan,
                out,
                bits,
                int32(low),
                int32(high),
                DIGITS=DIGITS,
                LAST=shift == 0,
                enable_fp_fusion=False,
            )


IMPLEMENTATIONS = {"quantile": quantile}
