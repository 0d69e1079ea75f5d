"""What a command can know before its work: files, numbers, devices, packages, memory."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# What one digit takes while the network runs, of one branch; measured: 1.0e6 bytes.
_BYTES_A_DIGIT = 1.1e6
# The most of anything that a command line counts: beyond it, a number is a slip of the finger.
MOST = 100_000

# Packages that a file's ending needs, and the extra that installs them.
_NEEDS = {"PIL": ("Pillow", "pictures"), "matplotlib": ("matplotlib", "plot")}


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """Returns the type of an option that takes a whole number from `least` to `most`."""

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{_short(text)!r} is no whole number, but one is needed"
            ) from None
        if not least <= found <= most:
            known = f"{least} to {most}" if most < 10**20 else f"numbers from {least} on"
            raise argparse.ArgumentTypeError(
                f"{_short(text)} is given, but {known} can be asked for"
            )
        return found

    return number


def real(text: str) -> float:
    """Returns a finite number; the type of an option that takes one."""
    try:
        found = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{_short(text)!r} is no number, but one is needed"
        ) from None
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"{_short(text)} is given, but a finite number is needed")
    return found


def seed(text: str) -> int:
    """Returns an integer of 64 bits; the type of `--seed`."""
    return whole(-(2**63), 2**64 - 1)(text)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def output_file(flag: str, given: str, endings: Sequence[str], needs: Mapping[Any, str]) -> Path:
    """Returns the path of a file that can be written, as far as can be known before.

    Args:
        flag: of the path, for the messages.
        given: the path.
        endings: that it may have.
        needs: {ending: package that writes it}.

    Raises:
        ValueError: another ending; a folder; a folder that is missing or may not be written to; a
            file that may not be replaced; a package that is not installed.
    """
    if "\0" in given:
        raise ValueError(f"{flag} {given!r} but a file's name has no zero byte")
    path = Path(given)
    known = f"{', '.join(endings[:-1])} or {endings[-1]}" if len(endings) > 1 else endings[0]
    if path.suffix not in endings:
        raise ValueError(f"{flag} {given} but its ending must be {known}")
    package = needs.get(path.suffix)
    if package is not None and find_spec(package) is None:
        name, extra = _NEEDS[package]
        free = [ending for ending in endings if ending not in needs]
        instead = f", or write {' or '.join(free)}" if free else ""
        raise ValueError(
            f"{flag} {given} needs {name}, which is not installed: "
            f"pip install 'diffast[{extra}]'{instead}"
        )
    try:
        check_place(flag, path)
    except OSError as error:
        raise ValueError(f"{flag} {given}: {error.strerror or error}") from None
    return path


def check_place(flag: str, path: Path) -> None:
    """Raises ValueError where no file of that path can be written."""
    if path.is_dir():
        raise ValueError(f"{flag} {path} is a folder but a file is needed")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{flag} {path} but there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} {path} but the folder {folder} is not writable")
    if path.exists() and not path.is_file():
        raise ValueError(f"{flag} {path} is no file that can be replaced")


def input_file(flag: str, given: str, endings: Sequence[str] = ()) -> Path:
    """Returns the path of a file that can be read.

    Raises:
        ValueError: another ending, no such file, one that may not be read.
    """
    path = Path(given)
    if endings and path.suffix not in endings:
        raise ValueError(f"{flag} {given} but its ending must be {' or '.join(endings)}")
    try:
        is_there = "\0" not in given and path.is_file()
    except OSError as error:
        raise ValueError(f"{flag} {given[:60]}: {error.strerror}") from None
    if not is_there:
        raise ValueError(f"{flag} {given!r}: there is no such file")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{flag} {given} may not be read")
    return path


def check_count(flag: str, count: int, branches: int, path: Path | None = None) -> None:
    """Raises ValueError for more digits than memory, or the disk of their file, has room for."""
    needed, free = count * branches * _BYTES_A_DIGIT, free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"{flag} {count} needs {_size(needed)} of memory, but {_size(free)} are free: make "
            "them in several runs, with other seeds"
        )
    if path is None:
        return
    room, size = shutil.disk_usage(path.absolute().parent).free, count * 28 * 28 * 4
    if size > room:
        raise ValueError(
            f"{flag} {count} needs {_size(size)} of disk, but {_size(room)} are free there"
        )


def free_memory() -> float | None:
    """Returns the bytes of memory that are free, None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return 1024.0 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB", "PB", "EB"):
        if count < 1000.0 or unit == "EB":
            return f"{count:.3g} {unit}"
        count /= 1000.0
    raise AssertionError  # the loop returns


def device_of(name: str | None) -> Any:
    """Returns a device that tensors can be made on.

    Raises:
        ValueError: an unknown device, or one that is not there.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is no device, but cpu and cuda are") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r} has no kernels here, but cpu and cuda have")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name} but this torch sees no CUDA device")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ValueError(f"--device {name} but there are {count} devices, from {device.type}:0")
    return device


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Gives a new file beside `path` that takes its name at the end, and is removed on an error."""
    mask = os.umask(0)
    os.umask(mask)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name[:50]}.", suffix=path.suffix
    )
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
