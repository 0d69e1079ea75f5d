"""Which card, driver, versions and sources a check of a GPU ran with."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a result depends on. Results of other sources are not taken over by --resume.
SOURCES = ("csrc/**/*", "diffast/**/*.py", "tests/gpu/*.py", "tests/helpers/*.py", "bench/gpu/*.py")
SMI = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit"
SMI += ",temperature.gpu,utilization.gpu,memory.total"


def digest(paths) -> str:
    """Returns twelve hexadecimal digits of the files' contents."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def sources() -> str:
    """Returns a digest of everything that is measured and of what measures it."""
    files = {path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()}
    return digest(path for path in files if path.suffix not in (".pyc", ".so"))


def commit() -> str:
    """Returns the short commit of the checkout; a digest of the sources where git is missing."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"src{sources()[:8]}"


def slug(text: str) -> str:
    """Returns a text as a part of a file's name: letters, digits, '.', '_' and '-' alone."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-").lower()


def processor() -> str:
    """Returns the processor's model name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def smi() -> dict:
    """Returns what nvidia-smi says of the first card; an empty dict where there is none."""
    if shutil.which("nvidia-smi") is None or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return {}
    command = ["nvidia-smi", f"--query-gpu={SMI}", "--format=csv,noheader", "--id=0"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = (
        [value.strip() for value in run.stdout.splitlines()[0].split(",")] if run.stdout else []
    )
    return dict(zip(SMI.split(","), values, strict=False))


# Asked in a process of its own, so that the runner itself holds nothing of the card.
_ASK = """
import json, importlib.metadata as m, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda}
for name in ("triton", "numpy", "pytest", "pytest-xdist", "diffusers"):
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: found[name] = None
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {"card": p.name, "capability": f"{p.major}.{p.minor}"}
    found |= {"gpus": torch.cuda.device_count(), "multiprocessors": p.multi_processor_count}
    found |= {"memory": p.total_memory, "l2": getattr(p, "L2_cache_size", None)}
print(json.dumps(found))
"""


def machine() -> dict:
    """Returns the card (on a machine without one: the processor) and what runs on it.

    Raises:
        RuntimeError: if torch cannot be imported.
    """
    import json

    run = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"gpu_check: torch cannot be imported: {run.stderr.strip()[-500:]}")
    found = {"card": f"cpu {processor()}", "capability": None, "gpus": 0}
    found |= json.loads(run.stdout.splitlines()[-1])
    found |= {"python": platform.python_version(), "cores": os.cpu_count(), "cpu": processor()}
    found["libraries"] = {p.name: digest([p]) for p in sorted((ROOT / "diffast").glob("_*.so"))}
    found["nvidia-smi"] = smi()
    return found
