"""Where a report was made: the card, the versions, the threads, the date and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

import diffast
from diffast import ops

PEERS = ("diffusers", "k-diffusion", "torchdiffeq", "torchsde")
_CPUINFO = Path("/proc/cpuinfo")


def version_of(distribution: str) -> str | None:
    """Returns the version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def card_of(device: torch.device) -> str:
    """Returns the name of the processor that gives the figures: "cpu: AMD EPYC", "NVIDIA H100"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _CPUINFO.read_text().splitlines() if _CPUINFO.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {(models or [platform.processor() or platform.machine()])[0]}"


def usable_cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _git(*words: str) -> str | None:
    folder = Path(diffast.__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    run = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    return run.stdout.strip() if run.returncode == 0 else None


def commit() -> str | None:
    """Returns the commit of the checkout the package lies in, None for an installed package.

    "+" behind the commit says that files of the checkout have been changed since.
    """
    found = _git("rev-parse", "--short=12", "HEAD")
    return found and found + ("+" if _git("status", "--porcelain", "-uno") else "")


def facts(device: torch.device) -> dict:
    """Returns facts about the device and the build, as JSON values."""
    return {
        "card": card_of(device),
        "cores": usable_cores(),
        "backend": ops.backends()[device.type]["backend"],
        "diffast": diffast.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "triton": ops.triton_version(),
        "python": platform.python_version(),
        "system": platform.system(),
        "peers": {name: version_of(name) for name in PEERS},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
