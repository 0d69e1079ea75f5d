"""Run by test_compile_error.py in a process of its own: compiles combine_error/triton.py.

Prints one line of JSON: what the PTX of each case holds.
"""

import json
import re

import triton
from compile_triton import ARCHITECTURES, HALVES, source
from triton.backends.compiler import GPUTarget

from diffast.ops.combine_error import triton as ops
from diffast.ops.launch import LARGE_BLOCK

# Inputs, outputs, then what differs from form "scalar".
CASES = {
    "scalar": (("*fp32",) * 4, ("*fp32",) * 2, {}),
    "mixed": (("*fp32", "*bf16", "*fp32"), ("*fp32", "*bf16"), {"status": True}),
    "max": (("*fp32",) * 6, ("*fp32",), {"form": 1, "status": True}),
    "sum": (("*fp32",) * 3, ("*fp32",), {"form": 2, "measure": True}),
    "largest": (("*fp32",) * 2, ("*fp32",), {"form": 1, "largest": True, "measure": True}),
    "noise": (("*fp32", "*bf16"), ("*fp32",), {"noises": 2, "clamp": True}),
    "most": (("*fp32",) * 16, ("*fp32",) * 3, {"form": 1, "noises": 2, "measure": True}),
}


def error_source(xs, ys, form=0, largest=False, measure=False, noises=0, clamp=False, status=False):
    """Returns the source of error_kernel for inputs `xs` and outputs `ys`."""
    arguments = {"p_xs": xs, "p_ys": ys, "low": "fp32", "high": "fp32", "elements": "i32"}
    arguments |= dict.fromkeys(("p_table", "p_tolerance", "p_partials"), "*fp64")
    arguments |= {"p_noise_table": "*fp64"} if noises else {}
    arguments |= {"p_streams": "*i64"} if noises or status else {}
    arguments |= {"p_status": "*i64"} if status else {}
    error = len(ys) + clamp
    constants = {"INPUTS": len(xs), "ROWS": error + 1 + 2 * (form > 0) + measure, "ERROR": error}
    constants |= {"NOISES": noises, "CLAMP": clamp, "FORM": form, "LARGEST": largest}
    constants |= {"MEASURE": measure, "BLOCK": LARGE_BLOCK}
    return source(ops.error_kernel, arguments, constants, {"p_xs": len(xs), "p_ys": len(ys)})


def norms_source(largest):
    """Returns the source of norms_kernel."""
    arguments = {"p_partials": "*fp64", "p_norms": "*fp64", "elements": "i32", "blocks": "i32"}
    constants = {"LARGEST": largest, "MEASURE": True, "SUMS": ops.SUMS_AT_ONCE}
    return source(ops.norms_kernel, arguments, constants, {})


def look(kernel, xs, ys, arch):
    """Returns the counts of one case beside those expected of it."""
    compiled = triton.compile(
        kernel,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    ptx = compiled.asm["ptx"]
    names = ("ld.global.v4", "ld.global.v2.b32", "st.global.v4")
    counts = {name: ptx.count(name) for name in names}
    counts["ld.global.v2"] = counts.pop("ld.global.v2.b32")
    counts["fused"] = len(re.findall(r"\b(fma|mad)\.[a-z.]*f(16|32|64)|\bfma\b", ptx))
    counts["approximate"] = len(re.findall(r"\.(approx|ftz|full)\b", ptx))
    counts["atomic"] = len(re.findall(r"\b(atom|red)\.", ptx))
    counts["spills"] = ptx.count(".local ")
    for word, types in (("loads", xs), ("stores", ys)):
        counts["half " + word] = sum(t in HALVES for t in types)
        counts["wide " + word] = len(types) - counts["half " + word]
    return counts


if __name__ == "__main__":
    found = {}
    for arch in ARCHITECTURES:
        found[arch] = {
            name: look(error_source(xs, ys, **options), xs, ys, arch)
            for name, (xs, ys, options) in CASES.items()
        }
        for largest in (False, True):
            found[arch][f"norms, {largest}"] = look(norms_source(largest), (), (), arch)
    print(json.dumps(found))
