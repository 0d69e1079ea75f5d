"""Run by test_compile_quantile.py in a process of its own: compiles quantile/triton.py.

Prints one line of JSON: what the PTX of each kernel holds, and how many kernels the launcher asked
for.
"""

import json
import re

import torch
from compile_triton import ARCHITECTURES
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from diffast.ops.quantile import triton as ops


class Driver:
    """What a launch asks of the driver before it launches."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.arch, 32)


def look(compiled):
    """Returns what is counted in the PTX of a kernel."""
    ptx = compiled.asm["ptx"]
    return {
        "fused": len(re.findall(r"\b(fma|mad)\.[a-z.]*f(16|32|64)|\bfma\b", ptx)),
        "approximate": len(re.findall(r"\.(approx|ftz|full)\b", ptx)),
        "float atomics": len(re.findall(r"\b(atom|red)\.\S*\.f(16|32|64)", ptx)),
        "spills": ptx.count(".local "),
        "wide loads": ptx.count("ld.global.v4.b32"),
    }


def main():
    kernels = []
    run = JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        assert options["enable_fp_fusion"] is False
        kernels.append((self.__name__, run(self, *args, grid=grid, warmup=True, **options)))

    JITFunction.run = only_compile
    found, launches = {}, []
    for arch in ARCHITECTURES:
        driver.set_active(Driver(arch))
        for kernel in (ops.count_kernel, ops.find_kernel):
            kernel.device_caches.clear()
        found[arch] = {}
        for inputs in (1, 2, 8):
            kernels.clear()
            xs = [torch.zeros(2, 1024) for _ in range(inputs)]
            table = torch.ones(2, 1, inputs, dtype=torch.float64)
            for p in (0.5, 0.995, 1.0):
                ops.quantile(xs, table, p, torch.empty(2, dtype=torch.float64))
            for i, (name, compiled) in enumerate(kernels):
                found[arch][f"{inputs} inputs, {i}: {name}"] = look(compiled)
            launches.append(len({id(compiled) for _, compiled in kernels}))
    print(json.dumps({"kernels": found, "launches": launches}))


if __name__ == "__main__":
    main()
