"""Run by test_compile_evaluate.py in a process of its own: compiles evaluate/triton.py.

Prints one line of JSON: what the PTX holds, and how many kernels the launcher asked for.
"""

import json
import re

import numpy as np
import triton
from compile_triton import Driver
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from diffast.ops.evaluate import triton as ops


def look(arch):
    """Returns counts of the kernel with a float64 and an int64 out."""
    arguments = {"p_code": "*i32", "p_constants": "*fp64", "p_starts": "*i32", "p_inputs": "*fp64"}
    arguments |= {"p_counts": "*i64", "p_edges": "*fp64", "p_table": "*fp64", "p_numbers": "*fp64"}
    arguments |= {"p_scratch": "*fp64", "p_outs": ("*fp64", "*i64"), "p_sizes": "*i64"}
    constants = {"OUTS": 2, "BLOCK": 32}
    names = ops.evaluate_kernel.arg_names
    signature = {n: "constexpr" if n in constants else arguments.get(n, "i32") for n in names}
    values = {(i,): constants[n] for i, n in enumerate(names) if n in constants}
    kernel = triton.compiler.ASTSource(
        fn=ops.evaluate_kernel, signature=signature, constexprs=values
    )
    options = {"num_warps": 1, "enable_fp_fusion": False}
    compiled = triton.compile(kernel, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    return {
        "in float32": len(re.findall(r"\b(?:add|sub|mul|fma|div|cvt)\.\S*f32", ptx)),
        "not rounded": len(re.findall(r"\b(?:add|sub|mul|div|sqrt)\.(?!rn)\S*f64", ptx)),
    }


def count_launches():
    """Returns how many different kernels calls of the launcher lead to, launching none."""
    driver.set_active(Driver())
    kernels = []
    run = JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        assert options["enable_fp_fusion"] is False
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    JITFunction.run = only_compile
    from evaluate_cases import Problem

    for seed, samples in enumerate((1, 2, 16, 1000) * 2):
        rng, some = np.random.default_rng(seed), 1 + seed % 4
        problem = Problem(rng, samples, programs=some, by_counts=seed > 3, columns=some)
        problem.column = seed % 3 if seed > 3 else 0
        if seed > 3:
            problem.counts[:] = 0
        ops.evaluate(*problem.call(problem.outs()[0]))
    return len({id(kernel) for kernel in kernels}), len(kernels)


if __name__ == "__main__":
    print(json.dumps({"kernel": look(90), "launches": count_launches()}))
