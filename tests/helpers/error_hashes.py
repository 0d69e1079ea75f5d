"""Prints hashes of what `combine_error` gives as JSON, for runs that differ in the backend only."""

import itertools
import json

import numpy as np
import torch
from error_cases import VARIANTS, ErrorCase, tensors
from op_cases import FLOATS
from output_hashes import _hash

from diffast import ops


def hashes() -> dict[str, str]:
    """Returns the hash of each call's outputs and norms by the call's description."""
    found = {}
    sizes = itertools.cycle((7, 64, 1003, 2049))
    for i, variant in enumerate(VARIANTS):
        inputs = (1, 2, 3, 4, 6, 8, 9, 16)[i % 8]
        rng = np.random.default_rng(i)
        dtypes = [torch.float32] * inputs
        dtypes[i % inputs] = FLOATS[i % 4]
        shape = (2, next(sizes))
        case = ErrorCase(rng, tensors(rng, dtypes, shape), *variant)
        outs = [torch.empty(shape, dtype=FLOATS[(r + i) % 3]) for r in range(case.stored)]
        norms = torch.empty(2, 2, dtype=torch.float64)
        ops.combine_error_out(*case.call, outs, norms, None)
        found[f"{inputs} inputs, {variant}, {shape}"] = _hash([*outs, norms])
    return found


if __name__ == "__main__":
    print(json.dumps({"backend": ops.backends()["cpu"]["backend"], "hashes": hashes()}))
