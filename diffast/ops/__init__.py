"""The fused ops, served by C++, CUDA, Triton or the torch reference.

`combine` and `normal` below are the convenient forms. Executors prepare everything beforehand and
call the other functions, which have the arguments of an op's overload (diffast/ops/schema.py).

Each op has a folder here. The functions `combine`, `accept`, `evaluate`, `gram`, `quantile`,
`sweep` and `normal` have the names of such folders: `diffast.ops.sweep` is the function. `from
diffast.ops.sweep import reference` finds the folder all the same.
"""

from collections.abc import Sequence

import torch

from diffast.ops import load as _load
from diffast.ops import register as _register
from diffast.ops.explain import explained as _explained
from diffast.ops.load import backends, triton_version
from diffast.ops.schema import MAX_INPUTS, MAX_NOISES, MAX_ROWS
from diffast.ops.streams import (
    BROWNIAN_NOISE,
    COUPLING_NOISE,
    GUIDANCE_NOISE,
    INITIAL_NOISE,
    OPENING_NOISE,
    STAGE_LIMIT,
    STEP_NOISE,
    fold_seed,
)

_load.load()
_register.register()

combine_host = _explained("combine")
combine_out = _explained("combine.out")
combine_table = _explained("combine.table")
combine_table_out = _explained("combine.table_out")
combine_error_out = _explained("combine_error.out")
accept = _explained("accept")
evaluate = _explained("evaluate")
gram = _explained("gram")
quantile = _explained("quantile")
sweep = _explained("sweep")
brownian_out = _explained("brownian.out")
normal_out = _explained("normal.out")
_normal = _explained("normal")

__all__ = [
    "BROWNIAN_NOISE",
    "COUPLING_NOISE",
    "GUIDANCE_NOISE",
    "INITIAL_NOISE",
    "MAX_INPUTS",
    "MAX_NOISES",
    "MAX_ROWS",
    "OPENING_NOISE",
    "STAGE_LIMIT",
    "STEP_NOISE",
    "backends",
    "combine",
    "combine_host",
    "combine_out",
    "combine_table",
    "combine_table_out",
    "fold_seed",
    "normal",
    "normal_out",
    "triton_version",
]


def _flat(values) -> list[float]:
    if values is None:
        return []
    if hasattr(values, "ravel"):
        return values.ravel().tolist()
    if len(values) and isinstance(values[0], Sequence):
        return [number for row in values for number in row]
    return list(values)


def combine(
    xs: Sequence[torch.Tensor],
    weights,
    *,
    noise=None,
    seed: int = 0,
    stage: int = 0,
    ids: torch.Tensor | None = None,
    streams: torch.Tensor | None = None,
    clamp: tuple[float, float] | None = None,
    outs: Sequence[torch.Tensor] | None = None,
    status: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Returns R linear combinations of K tensors plus fresh normals, in one pass over memory.

    y_r = sum_k weights[r, k] xs[k] + sum_m noise[r, m] z_m, accumulated in float32 (float64 if any
    tensor is float64) in column order; the same bits on every backend.

    Args:
        xs: 1 to 16 contiguous tensors [B, ...] of one shape and device; float32, float16,
            bfloat16 and float64 may be mixed.
        weights: [R, K] numbers (lists or a numpy array), the same for the whole batch; or a
            float64 tensor [B, R, K] on the inputs' device, own numbers for each sample. At most 8
            rows. With a clamp, one more column: the weight of the clamped row 0.
        noise: [R, M] numbers, or a float64 tensor [B, R, M], with M = 1 or 2; None: no noise.
        seed: any integer of 64 bits (host weights).
        stage: counter word of the noise, 0 <= stage < 2**26, plus a purpose such as
            INITIAL_NOISE (host weights).
        ids: int64 [B], any values; sample b's noise depends on (seed, ids[b], stage) alone.
            None: 0 .. B-1 (host weights).
        streams: int64 [B, 3] of (seed, id, stage), for a noise table.
        clamp: (low, high): row 0 is clamped, and its clamped value is column K of rows 1 and on.
        outs: R contiguous tensors to write, each of any supported dtype; an input itself may be
            one of them. With a clamp, R - 1 of them leave row 0 unwritten. None: new tensors of
            the inputs' promoted dtype.
        status: int64 [B], only with outs: entries below 0 are set to the stage if one of the
            sample's sums is not finite.

    Raises:
        RuntimeError: for inputs that disagree; the message names the two facts.
    """
    xs = list(xs)
    limits = [] if clamp is None else [float(clamp[0]), float(clamp[1])]
    if isinstance(weights, torch.Tensor):
        if outs is None:
            return combine_table(xs, weights, noise, streams, limits)
        outs = list(outs)
        combine_table_out(xs, weights, noise, streams, limits, outs, status)
        return outs
    weights = _flat(weights)
    noise, seed = _flat(noise), fold_seed(seed)
    if outs is None:
        return combine_host(xs, weights, noise, seed, stage, ids, limits)
    outs = list(outs)
    combine_out(xs, weights, outs, status, stage, noise, seed, ids, limits)
    return outs


def normal(
    shape: Sequence[int],
    *,
    seed: int = 0,
    stage: int = INITIAL_NOISE,
    ids: torch.Tensor | None = None,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Returns scale * N(0, 1) numbers [B, ...] that depend on (seed, id, stage, element) alone.

    Philox4x32-10 and Box-Muller made of exactly specified arithmetic: the same bits on every
    device, for any batch size and order. Float64 gets the same float32 normals widened.

    Args:
        shape: shape of the result, batch first.
        seed: any integer of 64 bits.
        stage: counter word, 0 <= stage < 2**26, plus a purpose (default: INITIAL_NOISE).
        ids: int64 [B] sample ids on the wanted device; None: 0 .. B-1.
        scale: factor on every number.
        dtype: float32, float16, bfloat16 or float64.
        device: where to put them, when no ids say so.

    Raises:
        RuntimeError: if ids and shape disagree, or the dtype is not supported.
    """
    shape = list(shape)
    if not shape or not all(hasattr(size, "__index__") and size >= 0 for size in shape):
        raise RuntimeError(f"normal: shape is {shape} but whole numbers, batch first, are needed")
    if ids is None:
        ids = torch.arange(shape[0], dtype=torch.int64, device=device)
    if torch._C._are_functorch_transforms_active() and len(ids) == shape[0]:
        return _normal(ids, shape[1:], fold_seed(seed), stage, float(scale), dtype)
    out = torch.empty(shape, dtype=dtype, device=ids.device)
    normal_out(ids, fold_seed(seed), stage, float(scale), out)
    return out
