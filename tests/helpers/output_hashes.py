"""Prints hashes of many outputs as JSON, for runs that differ in the backend (environment) only.

The hashes are of `combine` with host weights and with tables, `normal` and every output dtype, at
sizes that end inside and outside of the vectors.
"""

import hashlib
import itertools
import json

import numpy as np
import torch
from op_cases import CLAMPS, FLOATS, Case, around_every_half, every_half, into, random_tensor

from diffast import ops


def _hash(tensors) -> str:
    digest = hashlib.sha256()
    for t in tensors:
        t = torch.where(t.isnan(), torch.nan, t)  # which NaN it is stays open
        digest.update(t.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hashes() -> dict[str, str]:
    """Returns the hash of each call's outputs by the call's description."""
    found = {}
    sizes = itertools.cycle((7, 64, 1003, 2049))
    for inputs, rows, noises, clamp in itertools.product(
        (1, 2, 4, 7, 9, 16), (1, 3, 4, 8), (0, 1, 2), CLAMPS
    ):
        rng = np.random.default_rng((inputs, rows, noises))
        shape = (2, next(sizes))
        # One position in turn carries another dtype; every seventh call is float64.
        dtypes = [torch.float32] * inputs
        dtypes[rows % inputs] = FLOATS[(inputs + noises) % (4 if rows % 7 == 0 else 3)]
        xs = [random_tensor(rng, shape, dtype) for dtype in dtypes]
        case = Case(rng, xs, rows, noises, clamp)
        outs = [torch.empty(shape, dtype=FLOATS[r % 3]) for r in range(rows - case.hidden)]
        key = f"{inputs} inputs, {rows} rows, {noises} noises, {clamp}, {shape}"
        if outs:
            ops.combine_out(*into(case.host_call, outs, None))
            found[f"host: {key}"] = _hash(outs)
        found[f"table: {key}"] = _hash(ops.combine_table(*case.table_call))
    for dtype, size in itertools.product(FLOATS, (1, 255, 256, 1025, 65537)):
        z = ops.normal((2, size), seed=size, stage=3, scale=1.75, dtype=dtype)
        found[f"normal: {dtype}, {size}"] = _hash([z])
    wide = [random_tensor(np.random.default_rng(k), (2, 1003), torch.float64) for k in range(4)]
    for rows, noises in itertools.product((1, 4, 6), (0, 2)):
        case = Case(np.random.default_rng(rows), wide, rows, noises)
        found[f"float64: {rows} rows, {noises} noises"] = _hash(ops.combine_host(*case.host_call))
    for dtype in (torch.float16, torch.bfloat16):
        halves, near = every_half(dtype), around_every_half(dtype)
        found[f"from {dtype}"] = _hash(ops.combine([halves, torch.zeros(1, 2**16)], [1.0, 0.0]))
        out = torch.empty(near.shape, dtype=dtype)
        found[f"to {dtype}"] = _hash(ops.combine([near], [1.0], outs=[out]))
    large = [random_tensor(np.random.default_rng(k), (1, 4_500_001)) for k in range(2)]
    found["streamed"] = _hash(ops.combine(large, [[0.3, -0.7], [1.1, 0.2]]))
    return found


if __name__ == "__main__":
    print(json.dumps({"backend": ops.backends()["cpu"]["backend"], "hashes": hashes()}))
