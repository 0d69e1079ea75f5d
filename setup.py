"""Builds diffast's extensions: `_cpu`, and `_cuda` where it is wanted."""

import os
import sys
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    torch = None

# The oldest torch whose binaries these may meet; the stable ABI is frozen at that version.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# Every product and sum is rounded on its own, or the backends would not agree to the last bit.
HOST_FLAGS = ["-O3", "-std=c++20", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
HOST_FLAGS += ["-fvisibility=hidden", "-Wno-psabi", "-Wno-unknown-pragmas"]
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false", "-lineinfo", "--expt-relaxed-constexpr"]
# DIFFAST_SANITIZE=1, of `make asan`: reads and writes outside of memory, and undefined behaviour.
SANITIZE = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
NVCC_FLAGS += ["-Xcompiler=-fvisibility=hidden"]
# Where no GPU tells. 8.0 serves 8.6 and 8.9 too, and PTX the later ones.
DEFAULT_ARCHS = "8.0;9.0;10.0+PTX"


class TorchIsMissing(build_ext):
    """Stands in for torch's build command, so that metadata and the sdist need no torch."""

    def run(self):
        """Ends with one line."""
        sys.exit(
            "diffast builds against the torch you already have: install torch, then "
            "pip install --no-build-isolation ."
        )


def wants_cuda() -> bool:
    """Returns whether `_cuda` is built: DIFFAST_CUDA=0|1, or else as torch was built."""
    asked = os.environ.get("DIFFAST_CUDA", "")
    if asked not in ("", "0", "1"):
        sys.exit(f"DIFFAST_CUDA is {asked!r} but must be 0 or 1")
    return asked == "1" if asked else torch.version.cuda is not None


def sources(*patterns: str) -> list[str]:
    return sorted(path for pattern in patterns for path in glob(f"csrc/{pattern}"))


def headers() -> list[str]:
    """Returns every file that a source may include: a change of one rebuilds the extensions."""
    endings = (".h", ".inc", ".cuh")
    return sorted(str(path) for path in Path("csrc").rglob("*") if path.suffix in endings)


def cuda_home() -> Path:
    """Returns the toolkit's folder: CUDA_HOME, or the first usual place that has all of it."""
    asked = os.environ.get("CUDA_HOME")
    # torch takes the folder above the `nvcc` on PATH, which may be a wrapper far from the headers.
    places = [asked] if asked else [cpp_extension.CUDA_HOME, "/usr/local/cuda"]
    homes = [Path(place) for place in places if place]
    needed = ("bin/nvcc", "include/cuda_runtime_api.h")
    for home in homes:
        if all((home / name).exists() for name in needed):
            return home
    sys.exit(
        f"the CUDA build is wanted but {' and '.join(needed)} are not both in "
        f"{' or '.join(map(str, homes))}: set CUDA_HOME"
    )


def architectures() -> str:
    """Returns what the kernels are compiled for, as TORCH_CUDA_ARCH_LIST has it.

    That variable decides. Without it, a machine with GPUs builds for those alone: each architecture
    takes as long as the first.
    """
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if listed:
        return listed
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    present = sorted({torch.cuda.get_device_capability(device) for device in range(count)})
    return ";".join(f"{major}.{minor}" for major, minor in present) or DEFAULT_ARCHS


def cuda_extension() -> Extension:
    home = cuda_home()
    # torch leaves this unset in a CPU-only build of itself, where the build is a check only.
    cpp_extension.CUDA_HOME = str(home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    several = len(os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";").split(";")) > 1
    # The function that tells the current stream is in libtorch_cuda, which a CPU-only torch lacks.
    # A library that is built there as a check finds it in the process that loads it.
    torch_cuda = ["torch_cuda"] if torch.version.cuda else []
    return cpp_extension.CppExtension(
        "diffast._cuda",
        sources("cuda/*.cpp", "ops/*/cuda*.cu"),
        include_dirs=[str(home / "include")],
        library_dirs=[str(home / "lib64")],
        libraries=[*torch_cuda, "cudart_static", "rt", "dl", "pthread"],
        extra_compile_args={
            "cxx": [*HOST_FLAGS, TORCH_TARGET, "-DUSE_CUDA"],
            "nvcc": NVCC_FLAGS + (["--threads", "0"] if several else []),
        },
        depends=headers(),
        py_limited_api=True,
    )


def extensions() -> list[Extension]:
    sanitize = SANITIZE if os.environ.get("DIFFAST_SANITIZE") == "1" else []
    cpu = cpp_extension.CppExtension(
        "diffast._cpu",
        sources("cpu/*.cpp", "ops/*/cpu.cpp"),
        extra_compile_args={"cxx": [*HOST_FLAGS, TORCH_TARGET, *sanitize]},
        extra_link_args=sanitize,
        depends=headers(),
        py_limited_api=True,
    )
    return [cpu] + ([cuda_extension()] if wants_cuda() else [])


setup(
    ext_modules=extensions() if torch else [Extension("diffast._cpu", [])],
    cmdclass={"build_ext": cpp_extension.BuildExtension if torch else TorchIsMissing},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
