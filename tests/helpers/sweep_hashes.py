"""Prints hashes of what `sweep` and `gram` give as JSON, for runs that differ in the backend."""

import json

import numpy as np
import torch
from op_cases import FLOATS, random_tensor, random_weights
from output_hashes import _hash
from sweep_cases import SweepCase, random_options

from diffast import ops


def hashes() -> dict[str, str]:
    """Returns the hash of each call's points, states and norms by the call's description."""
    found = {}
    for i in range(60):
        rng = np.random.default_rng(1000 + i)
        size = (7, 64, 1003, 2049, 5000)[i % 5]
        case = SweepCase(rng, (size,), **random_options(rng))
        ops.sweep(*case.call())
        norms = [] if case.norms is None else [case.norms]
        found[f"sweep {i}, {size}"] = _hash([case.points, case.states, *norms])
    for i in range(64):
        rng = np.random.default_rng(i)
        size, inputs, rows = (7, 64, 1003, 2049, 5000)[i % 5], i % 8 + 1, i // 8 % 4 + 1
        xs = [random_tensor(rng, (2, size), FLOATS[(i + k) % 4]) for k in range(inputs)]
        xs = [x.float() for x in xs] if i % 3 else xs
        sums = torch.full((2, rows * (rows + 1) // 2), torch.nan, dtype=torch.float64)
        ops.gram(xs, torch.from_numpy(random_weights(rng, 2, rows, inputs)), sums)
        found[f"gram {i}, {size}, {inputs}, {rows}"] = _hash([sums])
    return found


if __name__ == "__main__":
    print(json.dumps({"backend": ops.backends()["cpu"]["backend"], "hashes": hashes()}))
