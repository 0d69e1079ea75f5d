"""Run by test_accept_compile.py in a process of its own: compiles `accept`'s Triton kernels.

Prints one line of JSON, by architecture and case; the interpreter is off here.
"""

import json
import re

import torch
import triton
from compile_triton import ARCHITECTURES, Driver, source
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from diffast.ops.accept import triton as ops

# Slots, or the types of the planes of each copy.
DECIDE = {"no slots": 0, "four slots": 4}
COPY = {
    "one": ("*fp32",),
    "three": ("*fp32", "*bf16", "*fp64"),
    "most": ("*fp32",) * 52,
}
NUMBERS = {
    "p_norms": "*fp64",
    "p_status": "*i64",
    "p_table": "*fp64",
    "p_control": "*fp64",
    "p_counts": "*i64",
    "p_streams": "*i64",
    "p_route": "*i32",
}


def decide_source(slots):
    arguments = {**NUMBERS, "samples": "i32"}
    constants = {"SLOTS": slots, "BLOCK": ops._SAMPLES}
    names = ops.decide_kernel.arg_names
    signature = {n: arguments.get(n, "constexpr") for n in names}
    values = {(i,): constants[n] for i, n in enumerate(names) if signature[n] == "constexpr"}
    return triton.compiler.ASTSource(fn=ops.decide_kernel, signature=signature, constexprs=values)


def copy_source(types):
    routes = tuple(range(len(types)))
    arguments = {"p_from": types, "p_to": types, "p_route": "*i32", "elements": "i32"}
    constants = {"ROUTES": routes, "COPIES": len(types), "BLOCK": ops.LARGE_BLOCK}
    pointers = {"p_from": len(types), "p_to": len(types)}
    return source(ops.copy_kernel, arguments, constants, pointers)


def look(kernel, arch, warps):
    options = {"num_warps": warps, "enable_fp_fusion": False}
    compiled = triton.compile(kernel, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = compiled.asm["ptx"]
    counts = {"spills": ptx.count(".local "), "barriers": ptx.count("bar.sync")}
    counts["wide loads"] = ptx.count("ld.global.v4") + ptx.count("ld.global.v2.b64")
    counts["wide stores"] = ptx.count("st.global.v4") + ptx.count("st.global.v2.b64")
    counts["narrow"] = len(re.findall(r"(?:ld|st)\.global\.b(?:16|32|64)", ptx))
    counts["in float32"] = len(re.findall(r"\b(?:add|sub|mul|fma|div|cvt)\.\S*f32", ptx))
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
    from accept_cases import flags, rule
    from test_accept import plain_call

    for i, samples in enumerate((2, 3, 64, 1000)):
        planes = [torch.zeros(samples, 64) for _ in range(4)]
        call = plain_call(samples, moves=[1, 0, 0, 0, 1, 1], sources=planes[:2], targets=planes[2:])
        call["rule"] = rule(safety=0.1 * i + 0.1, step_max=10.0**i)
        call["flags"] = flags(last=1 + i, calm=i % 2, most_calls=10**i, by_factor=i % 2)
        ops.accept(*call.values())
    return len({id(kernel) for kernel in kernels}), len(kernels)


if __name__ == "__main__":
    kernels = {}
    for arch in ARCHITECTURES:
        decides = {name: look(decide_source(slots), arch, 2) for name, slots in DECIDE.items()}
        copies = {name: look(copy_source(types), arch, 4) for name, types in COPY.items()}
        kernels[str(arch)] = {"decide": decides, "copy": copies}
    print(json.dumps({"kernels": kernels, "launches": count_launches()}))
