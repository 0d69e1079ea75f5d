"""`brownian` in Triton. reference.py specifies it; launch.py has the prefixes of names."""

from functools import lru_cache

import torch
import triton
import triton.language as tl

from diffast.ops.brownian import reference
from diffast.ops.brownian.checks import check_brownian_out
from diffast.ops.brownian.reference import END, LAST_WORD, LEVELS
from diffast.ops.launch import grid_of, split_batch, word_at
from diffast.ops.normal.triton import draw
from diffast.ops.streams import BROWNIAN_NOISE

_NOISE = tl.constexpr(BROWNIAN_NOISE)
_LAST_WORD = tl.constexpr(LAST_WORD)


@triton.jit
def _value(p_levels, node, depth, start, id_lo, id_hi, seed_lo, seed_hi, BLOCK: tl.constexpr):
    """Returns V [BLOCK] at a node of one sample's path, for elements start .. start + BLOCK - 1."""
    last = tl.full([], 1, tl.int64) << depth
    node = tl.minimum(node, last)
    above = node > last // 2
    # Normals that are drawn: the middle's, an end's, then one for each level down to the node's.
    count = depth + 1
    rest = tl.where(node > 0, node, 1)
    while (rest & 1) == 0:
        rest = rest >> 1
        count = count - 1
    count = tl.where((node == 0) | (node == last), 2, tl.where(node == last // 2, 1, count))
    count = tl.where(node < 0, 0, count)
    b_value = tl.zeros([BLOCK], tl.float32)
    b_left, b_right = b_value, b_value
    for step in range(0, count):
        half = tl.maximum(depth - step, 0)  # nodes from the middle to either side, a power of two
        number = (tl.full([], 1, tl.int64) << tl.maximum(step - 1, 0)) + (node >> (half + 1))
        number = tl.where(step == 1, tl.where(above, _LAST_WORD, 0), number)
        number = tl.where(step == 0, 1, number)
        up = tl.where(step == 1, node <= last // 2, ((node >> half) & 1) != 0)
        word = word_at(number, 0) + _NOISE
        b_z = draw(start, word, id_lo, id_hi, seed_lo, seed_hi, BLOCK)
        keep, fresh = tl.load(p_levels + 2 * step), tl.load(p_levels + 2 * step + 1)
        b_known = tl.where(step == 1, b_left, b_left + b_right)
        b_value = tl.where(step == 0, b_z, b_known * keep + b_z * fresh)
        b_left = tl.where(up | (step == 0), b_value, b_left)
        b_right = tl.where((step == 0) | (up == 0), b_value, b_right)
    return b_value


@triton.jit(do_not_specialize=["depth"])
def brownian_kernel(
    p_streams,  # [samples, 3] of (seed, id, unused)
    p_nodes,  # [samples, 2]
    p_weights,  # [samples, 2] float64
    p_levels,  # [MAX_DEPTH + 1, 2] of (keep, fresh), by step
    p_last,  # [samples, elements], or None
    p_increment,  # [samples, elements]
    p_value,  # [samples, elements], or None
    depth,
    elements,  # of one sample
    BLOCK: tl.constexpr,
):
    """Writes the increment and the path's value for BLOCK elements of one sample."""
    i_program = tl.program_id(0)
    programs = (elements - 1) // BLOCK + 1
    i_sample = (i_program // programs).to(tl.int64)
    start = (i_program % programs).to(tl.int64) * BLOCK
    o_element = start + tl.arange(0, BLOCK)
    m_element = o_element < elements
    o_batch = i_sample * elements + o_element
    seed, sample_id = tl.load(p_streams + i_sample * 3), tl.load(p_streams + i_sample * 3 + 1)
    seed_lo, seed_hi = word_at(seed, 0), word_at(seed, 32)
    id_lo, id_hi = word_at(sample_id, 0), word_at(sample_id, 32)

    node = tl.load(p_nodes + i_sample * 2)
    begin = node
    if p_last is not None:
        b_known = tl.load(p_last + o_batch, mask=m_element, other=0.0)
        begin = tl.full([], -1, tl.int64)  # it is known, and not computed
    b_from = _value(p_levels, begin, depth, start, id_lo, id_hi, seed_lo, seed_hi, BLOCK)
    if p_last is not None:
        b_from = tl.where(node < 0, b_from, b_known)
    node = tl.load(p_nodes + i_sample * 2 + 1)
    b_to = _value(p_levels, node, depth, start, id_lo, id_hi, seed_lo, seed_hi, BLOCK)
    weight = tl.load(p_weights + i_sample * 2).to(tl.float32)
    of_start = tl.load(p_weights + i_sample * 2 + 1).to(tl.float32)
    b_increment = b_to * weight + b_from * of_start
    tl.debug_barrier()  # `last` may be an output, and more than one thread may hold an element
    tl.store(p_increment + o_batch, b_increment, mask=m_element)
    if p_value is not None:
        tl.store(p_value + o_batch, b_to, mask=m_element)


@lru_cache(maxsize=16)
def _levels(device: torch.device) -> torch.Tensor:
    """Returns (keep, fresh) by step, rounded once: of the middle (unused), the end, the levels."""
    return torch.tensor([(0.0, 0.0), END, *LEVELS], dtype=torch.float32, device=device)


def brownian_out(streams, nodes, weights, depth, last, increment, value=None):
    """Writes the increments, and V(nodes[:, 1]) into `value` if it is given."""
    check_brownian_out(streams, nodes, weights, depth, last, increment, value)
    if increment.dtype == torch.float64:
        reference.brownian_out(streams, nodes, weights, depth, last, increment, value)
        return
    samples, elements = split_batch(increment)
    if samples * elements == 0:
        return
    grid, options = grid_of(samples, elements)
    with torch.cuda.device_of(increment):
        levels = _levels(increment.device)
        tensors = (streams, nodes, weights, levels, last, increment, value)
        brownian_kernel[grid](*tensors, depth, elements, **options)


IMPLEMENTATIONS = {"brownian.out": brownian_out}
