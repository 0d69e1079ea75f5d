"""`normal` in Triton, and the normals that other kernels draw. See launch.py for the prefixes."""

import torch
import triton
import triton.language as tl

from diffast.ops.launch import grid_of, has_float64, int32, split_batch, word_at
from diffast.ops.normal import reference
from diffast.ops.normal.checks import check_normal_out

# Words as Triton takes them: tl.umulhi and wrapping sums want uint32.
_MUL_X, _MUL_Z = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_WEYL_LO, _WEYL_HI = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


@triton.jit
def _philox(x, y, z, w, key_lo, key_hi):
    """Returns the four words of Philox4x32-10; csrc/core/philox.h."""
    for _ in tl.static_range(10):
        x_hi, x_lo = tl.umulhi(x, tl.full(x.shape, _MUL_X, tl.uint32)), x * _MUL_X
        z_hi, z_lo = tl.umulhi(z, tl.full(z.shape, _MUL_Z, tl.uint32)), z * _MUL_Z
        x, y, z, w = z_hi ^ y ^ key_lo, z_lo, x_hi ^ w ^ key_hi, x_lo
        key_lo = key_lo + _WEYL_LO
        key_hi = key_hi + _WEYL_HI
    return x, y, z, w


@triton.jit
def _log_uniform(u):
    """Returns log(u) for u in [2**-33, 1]; csrc/core/normal.h."""
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, f + 2.0)
    z = s * s
    series = ((z * 0.29871866 + 0.39977537) * z + 0.66666776) * z
    return exponent * 0.6931472 + (s * 2.0 + s * series)


@triton.jit
def _to_normals(radius_bits, angle_bits):
    """Returns two normals a pair of words, by Box-Muller; csrc/core/normal.h."""
    high = (radius_bits >> 16).to(tl.float32)
    low = (radius_bits & 0xFFFF).to(tl.float32)
    u = (high * 65536.0 + low) * 2.3283064365386963e-10 + 1.1641532182693481e-10  # 2**-32, 2**-33
    radius = tl.sqrt_rn(_log_uniform(u) * -2.0)
    quadrant = (angle_bits + 0x20000000) >> 30
    centred = (angle_bits - (quadrant << 30)).to(tl.int32, bitcast=True)
    angle = centred.to(tl.float32) * 1.4629180793e-9
    z = angle * angle
    sine = angle + angle * (((z * -0.00019517 + 0.00833218) * z + -0.16666655) * z)
    tail = (z * 2.44384136e-05 + -1.38873672e-03) * z + 4.16666469e-02
    cosine = (1.0 - z * 0.5) + tail * (z * z)
    odd = (quadrant & 1) != 0
    first = tl.where(odd, sine, cosine).to(tl.uint32, bitcast=True)
    second = tl.where(odd, cosine, sine).to(tl.uint32, bitcast=True)
    first = (first ^ (((quadrant + 1) & 2) << 30)).to(tl.float32, bitcast=True)
    second = (second ^ ((quadrant & 2) << 30)).to(tl.float32, bitcast=True)
    return radius * first, radius * second


@triton.jit
def draw(start, word, id_lo, id_hi, seed_lo, seed_hi, BLOCK: tl.constexpr):
    """Returns the normals [BLOCK] of elements start .. start + BLOCK - 1; one Philox for four."""
    QUARTER: tl.constexpr = BLOCK // 4
    blocks = (start // 4).to(tl.uint32) + tl.arange(0, QUARTER).to(tl.uint32)
    zeros = tl.zeros([QUARTER], tl.uint32)
    x, y, z, w = _philox(blocks, zeros + word, zeros + id_lo, zeros + id_hi, seed_lo, seed_hi)
    n_0, n_1 = _to_normals(x, y)
    n_2, n_3 = _to_normals(z, w)
    return tl.interleave(tl.interleave(n_0, n_2), tl.interleave(n_1, n_3))


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "word"])
def normal_kernel(p_y, p_ids, scale, seed_lo, seed_hi, word, elements, BLOCK: tl.constexpr):
    """Writes scale * N(0, 1) for BLOCK elements of one sample."""
    i_program = tl.program_id(0)
    programs = (elements - 1) // BLOCK + 1
    i_sample = (i_program // programs).to(tl.int64)
    start = (i_program % programs).to(tl.int64) * BLOCK
    o_element = start + tl.arange(0, BLOCK)
    sample_id = tl.load(p_ids + i_sample)
    id_low, id_high = word_at(sample_id, 0), word_at(sample_id, 32)
    b_z = draw(
        start, word_at(word, 0), id_low, id_high, word_at(seed_lo, 0), word_at(seed_hi, 0), BLOCK
    )
    b_y = (b_z * tl.full([], scale, tl.float32)).to(p_y.dtype.element_ty)
    tl.store(p_y + i_sample * elements + o_element, b_y, mask=o_element < elements)


def normal_out(ids, seed, stage, scale, out):
    """Writes scale * N(0, 1) of (seed, ids, stage) into `out` [B, ...]."""
    check_normal_out(ids, seed, stage, scale, out)
    if has_float64([out]):
        reference.normal_out(ids, seed, stage, scale, out)
        return
    samples, elements = split_batch(out)
    if samples * elements == 0:
        return
    grid, options = grid_of(samples, elements)
    words = (int32(seed), int32(seed >> 32), int32(stage))
    with torch.cuda.device_of(out):
        normal_kernel[grid](out, ids, scale, *words, elements, **options)


IMPLEMENTATIONS = {"normal.out": normal_out}
