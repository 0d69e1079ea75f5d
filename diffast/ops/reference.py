"""The specification of every op, in plain torch: what the kernels must equal, bit for bit.

It serves any device that has no kernel. Float32 arithmetic here means one torch call per rounding.
"""

import math

import torch

from diffast.ops import checks
from diffast.ops.noise import SLOT_SHIFT, STAGE_LIMIT

_MASK = 0xFFFFFFFF
_MUL_X, _MUL_Z = 0xD2511F53, 0xCD9E8D57
_WEYL_LO, _WEYL_HI = 0x9E3779B9, 0xBB67AE85


def _multiply_words(a: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the high and low 32 bits of a * factor, for words held in int64."""
    low = a * (factor & 0xFFFF)
    high = a * (factor >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _MASK


def philox(counter: list[torch.Tensor], key_lo, key_hi) -> list[torch.Tensor]:
    """Returns the four output words of Philox4x32-10 (Salmon et al., SC 2011).

    Args:
        counter: four int64 tensors that broadcast, each holding 32-bit words.
        key_lo: low word of the key, int or int64 tensor.
        key_hi: high word of the key.
    """
    x, y, z, w = counter
    for _ in range(10):
        x_hi, x_lo = _multiply_words(x, _MUL_X)
        z_hi, z_lo = _multiply_words(z, _MUL_Z)
        x, y, z, w = z_hi ^ y ^ key_lo, z_lo, x_hi ^ w ^ key_hi, x_lo
        key_lo = (key_lo + _WEYL_LO) & _MASK
        key_hi = (key_hi + _WEYL_HI) & _MASK
    return [x, y, z, w]


def to_uniform(bits: torch.Tensor) -> torch.Tensor:
    """Returns (bits + 1/2) / 2**32 in float32, in [2**-33, 1], for 32-bit words in int64."""
    high = (bits >> 16).to(torch.float32)
    low = (bits & 0xFFFF).to(torch.float32)
    return (high * 65536.0 + low) * 2.0**-32 + 2.0**-33


def log_uniform(u: torch.Tensor) -> torch.Tensor:
    """Returns log(u) for float32 u in [2**-33, 1], by exponent split and a series in f/(2+f)."""
    shifted = u.view(torch.int32) - 0x3F3504F3
    exponent = (shifted >> 23).to(torch.float32)
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).view(torch.float32) - 1.0
    s = f / (f + 2.0)
    z = s * s
    series = ((z * 0.29871866 + 0.39977537) * z + 0.66666776) * z
    return exponent * 0.6931472 + (s * 2.0 + s * series)


def to_normals(radius_bits: torch.Tensor, angle_bits: torch.Tensor) -> tuple:
    """Returns two float32 normals per pair of words (Box-Muller), as csrc/normal.h does."""
    # torch's float32 root on the CPU is off by an ulp now and then: root in float64, then round.
    square = log_uniform(to_uniform(radius_bits)) * -2.0
    radius = square.to(torch.float64).sqrt().to(torch.float32)
    quadrant = ((angle_bits + 0x20000000) & _MASK) >> 30
    centred = (angle_bits - (quadrant << 30)) & _MASK
    centred = torch.where(centred >= 1 << 31, centred - (1 << 32), centred)
    angle = centred.to(torch.float32) * 1.4629180793e-9
    z = angle * angle
    sine = angle + angle * (((z * -0.00019517 + 0.00833218) * z + -0.16666655) * z)
    tail = (z * 2.44384136e-05 + -1.38873672e-03) * z + 4.16666469e-02
    cosine = (1.0 - z * 0.5) + tail * (z * z)
    odd = (quadrant & 1) != 0
    first = torch.where(odd, sine, cosine)
    second = torch.where(odd, cosine, sine)
    first = torch.where((quadrant + 1) & 2 != 0, -first, first)
    second = torch.where(quadrant & 2 != 0, -second, second)
    return radius * first, radius * second


def draw(seed, ids: torch.Tensor, word, elements: int) -> torch.Tensor:
    """Returns the float32 normals [B, elements] of (seed, id, word).

    Args:
        seed: int, or int64 tensor [B].
        ids: sample ids, int64 [B].
        word: counter word (stage, slot and purpose), int or int64 tensor [B].
        elements: numbers per sample.
    """

    def column(value):
        value = torch.as_tensor(value, dtype=torch.int64, device=ids.device)
        return value.reshape(-1, 1)

    seed, word, ids = column(seed), column(word), column(ids)
    blocks = torch.arange((elements + 3) // 4, dtype=torch.int64, device=ids.device)[None]
    shape = torch.broadcast_shapes(blocks.shape, ids.shape)
    counter = [blocks & _MASK, word & _MASK, ids & _MASK, (ids >> 32) & _MASK]
    x, y, z, w = philox([c.expand(shape) for c in counter], seed & _MASK, (seed >> 32) & _MASK)
    normals = torch.stack([*to_normals(x, y), *to_normals(z, w)], dim=-1)  # [B, blocks, 4]
    return normals.reshape(shape[0], shape[1] * 4)[:, :elements].contiguous()


def arithmetic_dtype(tensors) -> torch.dtype:
    """Returns float64 if any tensor is, else float32."""
    wide = any(t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def round_to(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns the value rounded once, to nearest even."""
    # A half result of float64 arithmetic goes by way of float32, as every converter here does.
    if value.dtype == torch.float64 and dtype in (torch.float16, torch.bfloat16):
        value = value.to(torch.float32)
    return value.to(dtype)


def sum_columns(weights: list, columns: list[torch.Tensor]) -> torch.Tensor:
    """Returns sum_k weights[k] * columns[k], products and sums rounded one by one, in order."""
    total = columns[0] * weights[0]
    for weight, column in zip(weights[1:], columns[1:], strict=True):
        total = total + column * weight
    return total


def clamp_to(value: torch.Tensor, limits) -> torch.Tensor:
    """Returns the value within (low, high); NaN stays NaN."""
    # Spelled out, as in csrc/row.h: torch.clamp refuses limits beyond float32, which round to
    # infinity here, and leaves open which zero max(-0, +0) is.
    limits = torch.tensor(limits, dtype=torch.float64, device=value.device).to(value.dtype)
    value = torch.where(value < limits[0], limits[0], value)
    return torch.where(value > limits[1], limits[1], value)


def _rows(xs, row_weights, row_noise, noises, clamp, arithmetic):
    """Returns the rows in the arithmetic type and, per row, the sum before any clamp."""
    columns = [x.to(arithmetic) for x in xs]
    noises = [z.to(arithmetic) for z in noises]
    rows, sums = [], []
    for r, (weights, noise) in enumerate(zip(row_weights, row_noise, strict=True)):
        inputs = list(columns)
        if clamp:
            weights = weights[: len(columns)] if r == 0 else weights
            inputs += [] if r == 0 else [rows[0]]
        total = sum_columns([*weights, *noise], [*inputs, *noises])
        sums.append(total)
        if clamp and r == 0:
            total = clamp_to(total, clamp)
        rows.append(total)
    return rows, sums


def _host_rows(xs, weights, noise, seed, stage, ids, clamp, rows, arithmetic):
    width = len(weights) // rows
    slots = len(noise) // rows
    noises = []
    if slots:
        first = xs[0]
        elements = first[0].numel() if first.shape[0] else 0
        if ids is None:
            ids = torch.arange(first.shape[0], dtype=torch.int64, device=first.device)
        noises = [
            draw(seed, ids, stage + (m << SLOT_SHIFT), elements).reshape(first.shape)
            for m in range(slots)
        ]
    row_weights = [weights[r * width : (r + 1) * width] for r in range(rows)]
    row_noise = [noise[r * slots : (r + 1) * slots] for r in range(rows)]
    return _rows(xs, row_weights, row_noise, noises, clamp, arithmetic)


def table_rows(xs, weights, noise, streams, clamp, rows, arithmetic):
    """Returns the rows of a table [B, R, K] in the arithmetic type, and the sums before a clamp."""
    first = xs[0]

    def spread(table, r, k):  # [B, 1, 1, ...]
        return table[:, r, k].to(arithmetic).reshape(-1, *[1] * (first.dim() - 1))

    slots = 0 if noise is None else noise.shape[2]
    noises = []
    if slots:
        elements = first[0].numel() if first.shape[0] else 0
        for m in range(slots):
            word = streams[:, 2] + (m << SLOT_SHIFT)
            noises.append(draw(streams[:, 0], streams[:, 1], word, elements).reshape(first.shape))
    row_weights = [[spread(weights, r, k) for k in range(weights.shape[2])] for r in range(rows)]
    row_noise = [[spread(noise, r, m) for m in range(slots)] for r in range(rows)]
    return _rows(xs, row_weights, row_noise, noises, clamp, arithmetic)


def promoted(xs) -> torch.dtype:
    """Returns the dtype that torch would promote the inputs to."""
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def note(status, sums, stage) -> None:
    """Writes the stage into the entries below 0 of samples with a sum that is not finite."""
    finite = torch.ones_like(status, dtype=torch.bool)
    for total in sums:
        elements = math.prod(total.shape[1:])
        finite = finite & total.isfinite().reshape(total.shape[0], elements).all(dim=1)
    stage = torch.as_tensor(stage, dtype=torch.int64, device=status.device) & (STAGE_LIMIT - 1)
    status.copy_(torch.where(~finite & (status < 0), stage, status))


def store(rows, outs) -> None:
    """Writes the last len(outs) rows, each rounded once to its output's type."""
    for row, out in zip(rows[len(rows) - len(outs) :], outs, strict=True):
        out.copy_(round_to(row, out.dtype))


def combine(xs, weights, noise, seed, stage, ids, clamp):
    """Returns the rows of `combine` with host weights, each of the inputs' promoted dtype."""
    rows = checks.check_host(xs, weights, noise, stage, ids, clamp)
    arithmetic = arithmetic_dtype(xs)
    values, _ = _host_rows(xs, weights, noise, seed, stage, ids, clamp, rows, arithmetic)
    return [round_to(value, promoted(xs)) for value in values]


def combine_out(xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=()):
    """Writes the rows of `combine` with host weights into `outs`."""
    rows = checks.check_host(xs, weights, noise, stage, ids, clamp)
    checks.check_outputs(xs, outs, rows, bool(clamp), status)
    arithmetic = arithmetic_dtype([*xs, *outs])
    values, sums = _host_rows(xs, weights, noise, seed, stage, ids, clamp, rows, arithmetic)
    if status is not None:
        note(status, sums, stage)
    store(values, outs)


def combine_table(xs, weights, noise, streams, clamp):
    """Returns the rows of `combine` with a table of weights [B, R, K]."""
    rows = checks.check_table(xs, weights, noise, streams, clamp)
    values, _ = table_rows(xs, weights, noise, streams, clamp, rows, arithmetic_dtype(xs))
    return [round_to(value, promoted(xs)) for value in values]


def combine_table_out(xs, weights, noise, streams, clamp, outs, status):
    """Writes the rows of `combine` with a table of weights [B, R, K] into `outs`."""
    rows = checks.check_table(xs, weights, noise, streams, clamp)
    checks.check_outputs(xs, outs, rows, bool(clamp), status)
    checks.check_status_streams(status, streams)
    arithmetic = arithmetic_dtype([*xs, *outs])
    values, sums = table_rows(xs, weights, noise, streams, clamp, rows, arithmetic)
    if status is not None:
        note(status, sums, streams[:, 2])
    store(values, outs)


def normal_out(ids, seed, stage, scale, out):
    """Writes scale * N(0, 1) of (seed, ids, stage) into `out` [B, ...]."""
    checks.check_normal(ids, stage, scale, out)
    elements = out[0].numel() if out.shape[0] else 0
    z = draw(seed, ids, stage, elements).reshape(out.shape)
    if out.dtype == torch.float64:
        z = z.to(torch.float64)
    if scale != 1.0:
        z = z * scale
    out.copy_(round_to(z, out.dtype))
