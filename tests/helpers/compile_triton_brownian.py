"""Run by test_compile_brownian.py in a process of its own: compiles brownian/triton.py.

Prints one line of JSON: what the PTX of each case holds, and how many kernels the launcher asked
for.
"""

import json
import re

import torch
import triton
from compile_triton import ARCHITECTURES, Driver, source
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from diffast.ops.brownian import triton as ops
from diffast.ops.launch import LARGE_BLOCK

NAMES = ("ld.global.v4", "st.global.v4", "div.rn", "sqrt.rn")


def look(known, value, arch):
    """Returns the counts of the kernel with or without `last` and `value`."""
    arguments = {"p_streams": "*i64", "p_nodes": "*i64", "p_weights": "*fp64", "p_levels": "*fp32"}
    arguments |= {"p_increment": "*fp32", "depth": "i32", "elements": "i32"}
    arguments |= {"p_last": "*fp32"} if known else {}
    arguments |= {"p_value": "*fp32"} if value else {}
    pointers = {name: 0 for name in ("p_last", "p_increment", "p_value") if name in arguments}
    compiled = triton.compile(
        source(ops.brownian_kernel, arguments, {"BLOCK": LARGE_BLOCK}, pointers),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    ptx = compiled.asm["ptx"]
    counts = {name: ptx.count(name) for name in NAMES}
    counts["fused"] = len(re.findall(r"\b(fma|mad)\.[a-z.]*f(16|32|64)|\bfma\b", ptx))
    counts["approximate"] = len(re.findall(r"\.(approx|ftz|full)\b", ptx))
    counts["spills"] = ptx.count(".local ")
    counts["wide loads"], counts["wide stores"] = int(known), 1 + int(value)
    return counts


def count_launches():
    """Returns how many different kernels calls of the launcher lead to, launching none."""
    driver.set_active(Driver())
    kernels = []
    run = JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        assert options["enable_fp_fusion"] is False
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    JITFunction.run = only_compile
    words = torch.zeros(3, 3, dtype=torch.int64)
    weights, x = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, 3, 1024)
    for depth in (1, 2, 11, 16, 24):
        ops.brownian_out(words, words[:, :2].contiguous(), weights, depth, None, *x)
    return len({id(kernel) for kernel in kernels})


if __name__ == "__main__":
    found = {
        arch: {
            f"last {known}, value {value}": look(known, value, arch)
            for known in (False, True)
            for value in (False, True)
        }
        for arch in ARCHITECTURES
    }
    print(json.dumps({"kernels": found, "launches": count_launches()}))
