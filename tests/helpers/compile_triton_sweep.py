"""Run by test_compile_sweep.py in a process of its own: compiles sweep/triton.py, gram/triton.py.

Prints one line of JSON: what the PTX of each case holds, and how many kernels the launchers asked
for.
"""

import json
import re

import numpy as np
import torch
from compile_triton import ARCHITECTURES
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction
from walk_cases import Walks, gram_case

from diffast.ops.gram import triton as triton_gram
from diffast.ops.sweep import triton as triton_sweep


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


# Elements, then what differs from a plain call.
WALKS = {
    "plain": (1024, {}),
    "large": (1 << 17, {"norms": False}),
    "an entry": (1024, {"entries": 1, "outputs": (torch.bfloat16,)}),
    "most": (1024, {"entries": 7, "parts": True, "clamp": True, "noises": 2}),
    "in place": (1024, {"in_place": True, "slopes": False, "outputs": ()}),
    "chunks": (1024, {"chunk": 2, "noises": 1}),
    "float64": (1024, {"dtype": torch.float64, "chunk": 2, "outputs": (torch.float16,) * 2}),
}


def launched():
    """Returns a list that every kernel which a launcher asks for is put into; none is launched."""
    kernels = []
    run = JITFunction.run

    def only_compile(self, *args, grid, warmup, **options):
        assert options["enable_fp_fusion"] is False
        kernels.append((self.__name__, run(self, *args, grid=grid, warmup=True, **options)))

    JITFunction.run = only_compile
    return kernels


def look(compiled):
    """Returns what is counted in the PTX of a kernel."""
    ptx = compiled.asm["ptx"]
    return {
        "fused": len(re.findall(r"\b(fma|mad)\.[a-z.]*f(16|32|64)|\bfma\b", ptx)),
        "approximate": len(re.findall(r"\.(approx|ftz|full)\b", ptx)),
        "atomic": len(re.findall(r"\b(atom|red)\.", ptx)),
        "spills": ptx.count(".local "),
        "wide loads": ptx.count("ld.global.v4.b32"),
        "wide stores": ptx.count("st.global.v4.b32"),
    }


def run_walk(rng, size, **options):
    case = Walks(rng, size, **options)
    tensors, _ = case.fresh()
    triton_sweep.sweep(*case.call(*tensors))


def main():
    kernels = launched()
    rng = np.random.default_rng(0)
    found = {}
    for arch in ARCHITECTURES:
        driver.set_active(Driver(arch))
        for function in (triton_sweep.sweep_kernel, triton_sweep.ends_kernel):
            function.device_caches.clear()
        found[arch] = {}
        for name, (size, options) in WALKS.items():
            kernels.clear()
            run_walk(rng, size, jobs=2, length=5, **options)
            for kernel, compiled in kernels:
                found[arch][f"{name}: {kernel}"] = look(compiled)
        kernels.clear()
        for dtypes in ((torch.float32, torch.bfloat16) * 4, (torch.float64,) * 3):
            xs, weights = gram_case(rng, dtypes, (2, 1024), 4)
            triton_gram.gram(xs, weights, torch.empty(2, 10, dtype=torch.float64))
        for i, (kernel, compiled) in enumerate(kernels):
            found[arch][f"gram {i}: {kernel}"] = look(compiled)
    kernels.clear()
    for jobs, length, chunk in ((1, 1, 0), (2, 5, 0), (16, 16, 0), (3, 17, 0)):
        run_walk(rng, 1024, jobs=jobs, length=length, chunk=chunk)
    plain = len({id(k) for name, k in kernels if name == "sweep_kernel"})
    kernels.clear()
    for jobs, length, chunk in ((2, 4, 1), (2, 5, 2), (16, 64, 16)):
        run_walk(rng, 1024, jobs=jobs, length=length, chunk=chunk)
    ends = len({id(k) for name, k in kernels if name == "ends_kernel"})
    print(json.dumps({"kernels": found, "launches": {"sweep": plain, "ends": ends}}))


if __name__ == "__main__":
    main()
