"""The specification of `normal`, in plain torch: Philox words to N(0, 1) by Box-Muller.

The counter's layout is written down in csrc/core/normal.h. Float32 arithmetic here means one torch
call per rounding.
"""

import torch

from diffast.ops.normal.checks import check_normal_out

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
    """Returns two float32 normals per pair of words (Box-Muller), as csrc/core/normal.h does."""
    # torch's float32 root on the CPU is sometimes off by an ulp: take it in float64, then round.
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


def normal_out(ids, seed, stage, scale, out):
    """Writes scale * N(0, 1) of (seed, ids, stage) into `out` [B, ...]."""
    check_normal_out(ids, seed, stage, scale, out)
    elements = out[0].numel() if out.shape[0] else 0
    z = draw(seed, ids, stage, elements).reshape(out.shape)
    if out.dtype == torch.float64:
        z = z.to(torch.float64)
    if scale != 1.0:
        z = z * scale
    out.copy_(z.to(out.dtype))


IMPLEMENTATIONS = {"normal.out": normal_out}
