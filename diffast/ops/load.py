"""Loads the compiled kernels and says which implementation serves which device, and why."""

import ctypes
import importlib
import importlib.metadata
import os
from pathlib import Path

import torch

from diffast.ops.debugging import waiting, wants_sync
from diffast.ops.schema import library

BACKENDS = ("", "cuda", "triton", "reference")
# The folders beside this file. Each has reference.py, triton.py and checks.py.
OPS = (
    "accept",
    "brownian",
    "combine",
    "combine_error",
    "evaluate",
    "gram",
    "normal",
    "quantile",
    "sweep",
)
_report: dict[str, tuple[str, str]] = {}  # by device: the backend and the reason


def _wanted() -> str:
    wanted = os.environ.get("DIFFAST_BACKEND", "")
    if wanted not in BACKENDS:
        known = ", ".join(BACKENDS[1:])
        raise ValueError(f"DIFFAST_BACKEND is {wanted!r} but must be one of {known}, or unset")
    return wanted


def _binary(name: str) -> Path | None:
    folder = Path(__file__).resolve().parent.parent
    found = sorted(folder.glob(f"{name}.*so")) + sorted(folder.glob(f"{name}.pyd"))
    return found[0] if found else None


def _load_cpu(wanted: str) -> tuple[str, str]:
    path = _binary("_cpu")
    if wanted == "reference":
        return "reference", "DIFFAST_BACKEND=reference"
    if path is None:
        reason = "the compiled _cpu is missing: install with --no-build-isolation to build it"
        return "reference", reason
    torch.ops.load_library(str(path))
    isa = ctypes.CDLL(str(path)).diffast_cpu_isa
    isa.restype = ctypes.c_char_p
    return f"c++ ({isa().decode()})", f"{path.name} loaded"


def _load_cuda(wanted: str) -> tuple[str, str]:
    path = _binary("_cuda")
    if torch.version.cuda is None:
        return "none", "this torch has no CUDA"
    if wanted == "reference":
        return "reference", "DIFFAST_BACKEND=reference"
    if path is not None and wanted != "triton":
        torch.ops.load_library(str(path))
        return "cuda", f"{path.name} loaded"
    if wanted == "cuda":
        raise ImportError("DIFFAST_BACKEND is 'cuda' but the compiled _cuda is missing")
    reason = "DIFFAST_BACKEND=triton" if wanted == "triton" else "the compiled _cuda is missing"
    return _register_triton(wanted, reason)


def _register(kind: str, key: str) -> None:
    """Registers the implementations in the modules of a kind for a dispatch key."""
    for module in modules(kind):
        for name, function in module.IMPLEMENTATIONS.items():
            waits = key == "CUDA" and wants_sync()
            library.impl(name, waiting(name, function) if waits else function, key)


def modules(kind: str) -> list:
    """Returns the modules `reference`, `triton` or `checks` of all ops."""
    return [importlib.import_module(f"diffast.ops.{op}.{kind}") for op in OPS]


def _register_triton(wanted: str, reason: str) -> tuple[str, str]:
    try:
        _register("triton", "CUDA")
    except ModuleNotFoundError as error:
        if error.name != "triton" or wanted == "triton":
            raise
        return "reference", f"{reason}, and so is triton"
    return "triton", reason


def load() -> None:
    """Registers the reference for every device and the best kernels over it.

    A missing binary is reported by `backends`; a binary that fails to load raises.
    """
    wanted = _wanted()
    wants_sync()  # refuses a bad value
    _register("reference", "CompositeExplicitAutograd")
    _report.update(cpu=_load_cpu(wanted), cuda=_load_cuda(wanted))


def backends() -> dict[str, dict[str, str]]:
    """Returns, for "cpu" and "cuda", the backend that serves it and the reason.

    The backends are "c++ (avx2)" or "c++ (base)", "cuda", "triton", "reference" and "none".
    """
    return {device: {"backend": name, "reason": why} for device, (name, why) in _report.items()}


def triton_version() -> str | None:
    """Returns the version of the triton that is installed, None if there is none."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
