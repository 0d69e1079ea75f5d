"""What the Triton kernels of all ops share: a launch's grid and its arguments.

Triton serves CUDA where the compiled kernels are missing. Each op's Triton function has the
arguments of its reference. Most ops hand float64 tensors to the reference: Triton takes a number
given by the host as float32. Every launch switches the fusion of products and sums off
(`enable_fp_fusion=False`), so that results equal those of the other backends to the last bit.

Prefixes of names in kernels: p_ pointer, b_ values of a block, o_ offsets, m_ mask, i_ index.
"""

import torch
import triton
import triton.language as tl

# A thread takes four elements, because one Philox block is four normals: then a thread computes the
# normals of its own elements, and the kernels exchange nothing through shared memory.
LARGE_BLOCK, SMALL_BLOCK = 512, 128


@triton.jit
def word_at(number, shift: tl.constexpr):
    """Returns 32 bits of an integer, from bit `shift` on, as uint32."""
    return (number >> shift).to(tl.uint32)


@triton.jit
def place_of(elements, BLOCK: tl.constexpr):
    """Returns a program's sample, its block there, the block's first element, offsets and mask."""
    blocks = (elements - 1) // BLOCK + 1  # of one sample
    i_sample = (tl.program_id(0) // blocks).to(tl.int64)
    i_block = tl.program_id(0) % blocks
    start = i_block.to(tl.int64) * BLOCK
    o_element = start + tl.arange(0, BLOCK)
    return i_sample, i_block, start, o_element, o_element < elements


@triton.jit
def load_inputs(p_xs, o_batch, m_element, TYPE: tl.constexpr, INPUTS: tl.constexpr):
    """Returns the block of every input, rounded to the arithmetic type."""
    b_xs = ()
    for k in tl.static_range(INPUTS):
        b_xs = b_xs + (tl.load(p_xs[k] + o_batch, mask=m_element, other=0.0).to(TYPE),)
    return b_xs


@triton.jit
def arctan(b_x, half_pi):
    """Returns arctangents: of 1 / x beyond 1, halved three times, then a series below 0.1.

    For numbers of at least -1; CUDA's own function is not in Triton's language.
    """
    far = b_x > 1.0
    u = tl.where(far, 1.0 / tl.where(far, b_x, 1.0), b_x)
    for _ in tl.static_range(3):
        u = u / (1.0 + tl.sqrt(1.0 + u * u))
    z = u * u
    series = z * 0.0
    for k in tl.static_range(8):
        series = 1.0 / (z * 0.0 + (15 - 2 * k)) - z * series
    angle = series * u * 8.0
    return tl.where(far, half_pi - angle, angle)


def int32(word: int) -> int:
    """Returns the lowest 32 bits as a signed integer, which Triton takes as int32 always."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def grid_of(
    samples: int, elements: int, few: int = SMALL_BLOCK, large: int = LARGE_BLOCK
) -> tuple[tuple[int], dict]:
    """Returns the grid and the launch's options: small blocks for up to `few` elements."""
    block, warps = (large, 4) if elements > few else (SMALL_BLOCK, 1)
    grid = (samples * triton.cdiv(elements, block),)
    return grid, {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}


def split_batch(x: torch.Tensor) -> tuple[int, int]:
    """Returns the number of samples, and that of one sample's elements."""
    samples = x.shape[0] if x.dim() else 1
    return samples, x.numel() // samples if samples else 0


def has_float64(tensors) -> bool:
    """Returns whether any of the tensors is float64."""
    return any(t.dtype == torch.float64 for t in tensors)
