"""Run by test_compile.py in a process of its own: compiles diffast's Triton kernels without a GPU.

Prints one line of JSON: what the PTX of each case holds, and how many kernels the launchers asked
for. The interpreter is off here, and once switched on in a process it cannot be left.
"""

import json
import re

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from diffast.ops.combine import triton as ops
from diffast.ops.launch import LARGE_BLOCK
from diffast.ops.normal import triton as normal

ARCHITECTURES = (80, 90, 100)
HALVES = ("*fp16", "*bf16")
# Inputs, outputs, then what differs from a call with host weights.
CASES = {
    "copy": (("*fp32",), ("*fp32",), {}),
    "two rows": (("*fp32",) * 4, ("*fp32",) * 2, {}),
    "mixed": (("*fp32", "*bf16", "*fp16"), ("*fp32", "*fp16", "*bf16"), {}),
    "noise": (("*fp32", "*bf16"), ("*fp32",), {"noises": 1}),
    "two noises": (("*fp32",) * 2, ("*fp32",) * 2, {"noises": 2, "ids": True}),
    "clamp": (("*fp32", "*bf16"), ("*fp32",) * 2, {"clamp": True, "status": True}),
    "table": (("*fp32", "*bf16"), ("*fp32",), {"table": True, "noises": 1, "status": True}),
    "most": (("*fp32",) * 16, ("*fp32",) * 8, {"noises": 2}),
    "normal": ((), ("*fp32",), {"noises": 1}),
    "half normal": ((), ("*bf16",), {"noises": 1}),
}


def source(kernel, arguments, constants, pointers):
    """Returns the source of `kernel` for arguments of which all pointers are aligned."""
    names = kernel.arg_names
    signature = {n: arguments.get(n, "constexpr") for n in names}
    values = {(i,): constants.get(n) for i, n in enumerate(names) if signature[n] == "constexpr"}
    aligned = [["tt.divisibility", 16]]
    attributes = {(names.index("elements"),): aligned}
    for name, count in pointers.items():
        i = names.index(name)
        attributes |= {(i, k): aligned for k in range(count)} if count else {(i,): aligned}
    return ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)


def combine_source(xs, ys, noises=0, table=False, clamp=False, status=False, ids=False):
    """Returns the source of combine_kernel for inputs `xs` and outputs `ys`."""
    rows, columns = len(ys), len(xs) + clamp
    arguments = {"p_xs": xs, "p_ys": ys, "low": "fp32", "high": "fp32", "elements": "i32"}
    arguments |= dict.fromkeys(("seed_lo", "seed_hi", "word"), "i32")
    if table:
        arguments |= {"p_table": "*fp64", "p_noise_table": "*fp64", "p_streams": "*i64"}
    else:
        arguments |= {"weights": ("fp32",) * (rows * columns)}
        arguments |= {"noise_weights": ("fp32",) * (rows * noises)} if noises else {}
    arguments |= {"p_ids": "*i64"} if ids else {}
    arguments |= {"p_status": "*i64"} if status else {}
    constants = {"INPUTS": len(xs), "ROWS": rows, "HIDDEN": 0, "NOISES": noises, "CLAMP": clamp}
    constants["BLOCK"] = LARGE_BLOCK
    return source(ops.combine_kernel, arguments, constants, {"p_xs": len(xs), "p_ys": rows})


def normal_source(y):
    """Returns the source of normal_kernel for an output of type `y`."""
    arguments = {"p_y": y, "p_ids": "*i64", "scale": "fp32", "elements": "i32"}
    arguments |= dict.fromkeys(("seed_lo", "seed_hi", "word"), "i32")
    return source(normal.normal_kernel, arguments, {"BLOCK": LARGE_BLOCK}, {"p_y": 0})


def look(xs, ys, options, arch):
    """Returns the counts of one case beside those expected of it."""
    kernel = combine_source(xs, ys, **options) if xs else normal_source(ys[0])
    compiled = triton.compile(
        kernel,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    ptx = compiled.asm["ptx"]
    names = ("ld.global.v4", "ld.global.v2", "st.global.v4", "st.global.v2", "div.rn", "sqrt.rn")
    counts = {name: ptx.count(name) for name in names}
    counts["fused"] = len(re.findall(r"\b(fma|mad)\.[a-z.]*f(16|32|64)|\bfma\b", ptx))
    counts["approximate"] = len(re.findall(r"\.(approx|ftz|full)\b", ptx))
    counts["spills"] = ptx.count(".local ")
    counts["noises"] = options.get("noises", 0)
    for word, types in (("loads", xs), ("stores", ys)):
        counts["half " + word] = sum(t in HALVES for t in types)
        counts["wide " + word] = len(types) - counts["half " + word]
    return counts


class Driver:
    """What a launch asks of the driver before it launches."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


def count_launches():
    """Returns how many different kernels calls of the launchers lead to, launching none."""
    driver.set_active(Driver())
    kernels = []
    run = JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        assert options["enable_fp_fusion"] is False
        kernels.append(run(self, *args, grid=grid, warmup=True, **options))

    def distinct():
        count = len({id(kernel) for kernel in kernels})
        kernels.clear()
        return count

    JITFunction.run = only_compile
    x, y, found = torch.zeros(3, 1024), torch.zeros(3, 1024, dtype=torch.bfloat16), {}
    seeds = (0, 1, 16, -1, 2**31, 2**62, -(2**63))
    for i, seed in enumerate(seeds):
        weights = [0.0, 1.0, -1.0, 1e-40, 0.1 * i, 2.0]
        weights[2] = 0.0
        ops.combine_out(
            [x, y], weights, [x], None, i * i, [float(i), 1.0], seed, None, [-1.0, float(i)]
        )
    found["combine, other weights, seeds and stages"] = distinct()
    for size in (1, 2, 16, 1024, 2048):
        ops.combine([torch.zeros(1, size)], [1.0], [], 0, 0, None, [])
    found["combine, sizes 1, 2, 16, 1024 and 2048"] = distinct()
    status = torch.zeros(3, dtype=torch.int64)
    ops.combine_out([x], [1.0, 0.0], [], status, clamp=[0.0, 1.0])
    found["combine, nothing but a status"] = distinct()
    for i, seed in enumerate(seeds):
        normal.normal_out(torch.arange(3), seed, i * i, 0.5 * i, x)
    found["normal, other seeds, stages and scales"] = distinct()
    return found


if __name__ == "__main__":
    kernels = {
        str(arch): {name: look(*case, arch) for name, case in CASES.items()}
        for arch in ARCHITECTURES
    }
    print(json.dumps({"kernels": kernels, "launches": count_launches()}))
