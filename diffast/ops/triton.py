"""The ops in Triton: what serves CUDA where the compiled kernels are missing.

The functions have the signatures of diffast/ops/reference.py. Float64 tensors are served by the
reference itself: Triton takes numbers given by the host as float32. Every launch switches the
fusion of products and sums off, or the results would not be the other backends' to the last bit.

Prefixes: p_ pointer, b_ values of a block, o_ offsets, m_ mask, i_ index.
"""

import torch
import triton
import triton.language as tl

from diffast.ops import checks, reference
from diffast.ops.noise import SLOT_SHIFT, STAGE_LIMIT

# Four elements a thread: then the normals of a Philox block are born where they are needed, and the
# compiled kernels exchange nothing through shared memory.
_BLOCK, _SMALL_BLOCK = 512, 128
_SLOT = tl.constexpr(1 << SLOT_SHIFT)
_STAGE_MASK = tl.constexpr(STAGE_LIMIT - 1)
# Words as Triton takes them: tl.umulhi and wrapping sums want uint32.
_MUL_X, _MUL_Z = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_WEYL_LO, _WEYL_HI = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


@triton.jit
def _philox(x, y, z, w, key_lo, key_hi):
    """Returns the four words of Philox4x32-10; csrc/philox.h."""
    for _ in tl.static_range(10):
        x_hi, x_lo = tl.umulhi(x, tl.full(x.shape, _MUL_X, tl.uint32)), x * _MUL_X
        z_hi, z_lo = tl.umulhi(z, tl.full(z.shape, _MUL_Z, tl.uint32)), z * _MUL_Z
        x, y, z, w = z_hi ^ y ^ key_lo, z_lo, x_hi ^ w ^ key_hi, x_lo
        key_lo = key_lo + _WEYL_LO
        key_hi = key_hi + _WEYL_HI
    return x, y, z, w


@triton.jit
def _log_uniform(u):
    """Returns log(u) for u in [2**-33, 1]; csrc/normal.h."""
    shifted = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    exponent = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, f + 2.0)
    z = s * s
    series = ((z * 0.29871866 + 0.39977537) * z + 0.66666776) * z
    return exponent * 0.6931472 + (s * 2.0 + s * series)


@triton.jit
def _to_normals(radius_bits, angle_bits):
    """Returns two normals a pair of words, by Box-Muller; csrc/normal.h."""
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
def _draw(start, word, id_lo, id_hi, seed_lo, seed_hi, BLOCK: tl.constexpr):
    """Returns the normals [BLOCK] of elements start .. start + BLOCK - 1; one Philox for four."""
    QUARTER: tl.constexpr = BLOCK // 4
    blocks = (start // 4).to(tl.uint32) + tl.arange(0, QUARTER).to(tl.uint32)
    zeros = tl.zeros([QUARTER], tl.uint32)
    x, y, z, w = _philox(blocks, zeros + word, zeros + id_lo, zeros + id_hi, seed_lo, seed_hi)
    n_0, n_1 = _to_normals(x, y)
    n_2, n_3 = _to_normals(z, w)
    return tl.interleave(tl.interleave(n_0, n_2), tl.interleave(n_1, n_3))


@triton.jit
def _word(number, shift: tl.constexpr):
    """Returns 32 bits of an integer, from bit `shift` on, as uint32."""
    return (number >> shift).to(tl.uint32)


@triton.jit
def _weight(numbers, p_table, o_sample, i_number: tl.constexpr):
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

    stage_word = _word(word, 0)
    if p_streams is not None:
        stage_word = _word(tl.load(p_streams + i_sample * 3 + 2), 0)
    b_zs = ()
    if NOISES > 0:
        seed_low, seed_high = _word(seed_lo, 0), _word(seed_hi, 0)
        sample_id = i_sample
        if p_ids is not None:
            sample_id = tl.load(p_ids + i_sample)
        if p_streams is not None:
            seed = tl.load(p_streams + i_sample * 3)
            seed_low, seed_high = _word(seed, 0), _word(seed, 32)
            sample_id = tl.load(p_streams + i_sample * 3 + 1)
        id_low, id_high = _word(sample_id, 0), _word(sample_id, 32)
        for m in tl.static_range(NOISES):
            slot_word = stage_word + m * _SLOT
            b_zs = b_zs + (_draw(start, slot_word, id_low, id_high, seed_low, seed_high, BLOCK),)

    # An output may be an input, and more than one thread may hold an element.
    tl.debug_barrier()
    o_table, o_noise = i_sample * (ROWS * COLUMNS), i_sample * (ROWS * NOISES)
    b_clamped = b_xs[0]
    m_bad = o_element < 0
    for r in tl.static_range(ROWS):
        b_y = b_xs[0] * _weight(weights, p_table, o_table, r * COLUMNS)
        for k in tl.static_range(1, INPUTS):
            b_y = b_y + b_xs[k] * _weight(weights, p_table, o_table, r * COLUMNS + k)
        if CLAMP and r > 0:
            b_y = b_y + b_clamped * _weight(weights, p_table, o_table, r * COLUMNS + INPUTS)
        for m in tl.static_range(NOISES):
            b_y = b_y + b_zs[m] * _weight(noise_weights, p_noise_table, o_noise, r * NOISES + m)
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
        stage = (stage_word & _STAGE_MASK).to(tl.int64)
        tl.store(p_status + i_sample, stage, mask=(bad > 0) & (before < 0))


@triton.jit(do_not_specialize=["seed_lo", "seed_hi", "word"])
def normal_kernel(p_y, p_ids, scale, seed_lo, seed_hi, word, elements, BLOCK: tl.constexpr):
    """Writes scale * N(0, 1) for BLOCK elements of one sample."""
    i_program = tl.program_id(0)
    programs = (elements - 1) // BLOCK + 1
    i_sample = (i_program // programs).to(tl.int64)
    start = (i_program % programs).to(tl.int64) * BLOCK
    o_element = start + tl.arange(0, BLOCK)
    sample_id = tl.load(p_ids + i_sample)
    id_low, id_high = _word(sample_id, 0), _word(sample_id, 32)
    b_z = _draw(start, _word(word, 0), id_low, id_high, _word(seed_lo, 0), _word(seed_hi, 0), BLOCK)
    b_y = (b_z * tl.full([], scale, tl.float32)).to(p_y.dtype.element_ty)
    tl.store(p_y + i_sample * elements + o_element, b_y, mask=o_element < elements)


def _int32(word: int) -> int:
    """Returns the lowest 32 bits as a signed integer, which Triton takes as int32 always."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _blocks(samples: int, elements: int) -> tuple[tuple[int], dict]:
    """Returns the grid and the launch's options."""
    block, warps = (_BLOCK, 4) if elements > _SMALL_BLOCK else (_SMALL_BLOCK, 1)
    grid = (samples * triton.cdiv(elements, block),)
    return grid, {"BLOCK": block, "num_warps": warps, "enable_fp_fusion": False}


def _samples(x: torch.Tensor) -> tuple[int, int]:
    samples = x.shape[0] if x.dim() else 1
    return samples, x.numel() // samples if samples else 0


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
    samples, elements = _samples(xs[0])
    if table is None and noises == 0 and status is None:
        samples, elements = 1, samples * elements
    if samples * elements == 0:
        return
    low, high = clamp if clamp else (0.0, 0.0)
    grid, options = _blocks(samples, elements)
    with torch.cuda.device_of(xs[0]):
        combine_kernel[grid](
            tuple(xs),
            tuple(outs) or (xs[0],),  # never empty: a clamped row alone may go unstored
            tuple(weights) if weights else None,
            tuple(noise) if noise else None,
            table,
            noise_table,
            streams,
            ids,
            status,
            low,
            high,
            _int32(seed),
            _int32(seed >> 32),
            _int32(stage),
            elements,
            INPUTS=len(xs),
            ROWS=rows,
            HIDDEN=rows - len(outs),
            NOISES=noises,
            CLAMP=bool(clamp),
            **options,
        )


def _has_float64(tensors) -> bool:
    return any(t.dtype == torch.float64 for t in tensors)


def _new_outputs(xs, rows: int) -> list[torch.Tensor]:
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [torch.empty_like(xs[0], dtype=dtype) for _ in range(rows)]


def combine(xs, weights, noise, seed, stage, ids, clamp):
    """Returns the rows of `combine` with host weights, each of the inputs' promoted dtype."""
    rows = checks.check_host(xs, weights, noise, stage, ids, clamp)
    if _has_float64(xs):
        return reference.combine(xs, weights, noise, seed, stage, ids, clamp)
    outs = _new_outputs(xs, rows)
    host = {"weights": weights, "noise": noise, "seed": seed, "stage": stage, "ids": ids}
    _launch(xs, outs, rows, clamp, **host)
    return outs


def combine_out(xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=()):
    """Writes the rows of `combine` with host weights into `outs`."""
    rows = checks.check_host(xs, weights, noise, stage, ids, clamp)
    checks.check_outputs(xs, outs, rows, bool(clamp), status)
    if _has_float64([*xs, *outs]):
        reference.combine_out(xs, weights, outs, status, stage, noise, seed, ids, clamp)
        return
    host = {"weights": weights, "noise": noise, "seed": seed, "stage": stage, "ids": ids}
    _launch(xs, outs, rows, clamp, status=status, **host)


def combine_table(xs, weights, noise, streams, clamp):
    """Returns the rows of `combine` with a table of weights [B, R, K]."""
    rows = checks.check_table(xs, weights, noise, streams, clamp)
    if _has_float64(xs):
        return reference.combine_table(xs, weights, noise, streams, clamp)
    outs = _new_outputs(xs, rows)
    _launch(xs, outs, rows, clamp, table=weights, noise_table=noise, streams=streams)
    return outs


def combine_table_out(xs, weights, noise, streams, clamp, outs, status):
    """Writes the rows of `combine` with a table of weights [B, R, K] into `outs`."""
    rows = checks.check_table(xs, weights, noise, streams, clamp)
    checks.check_outputs(xs, outs, rows, bool(clamp), status)
    checks.check_status_streams(status, streams)
    if _has_float64([*xs, *outs]):
        reference.combine_table_out(xs, weights, noise, streams, clamp, outs, status)
        return
    table = {"table": weights, "noise_table": noise, "streams": streams}
    _launch(xs, outs, rows, clamp, status=status, **table)


def normal_out(ids, seed, stage, scale, out):
    """Writes scale * N(0, 1) of (seed, ids, stage) into `out` [B, ...]."""
    checks.check_normal(ids, stage, scale, out)
    if _has_float64([out]):
        reference.normal_out(ids, seed, stage, scale, out)
        return
    samples, elements = _samples(out)
    if samples * elements == 0:
        return
    grid, options = _blocks(samples, elements)
    words = (_int32(seed), _int32(seed >> 32), _int32(stage))
    with torch.cuda.device_of(out):
        normal_kernel[grid](out, ids, scale, *words, elements, **options)


IMPLEMENTATIONS = {
    "combine": combine,
    "combine.out": combine_out,
    "combine.table": combine_table,
    "combine.table_out": combine_table_out,
    "normal.out": normal_out,
}
