"""JSON and npz files of strangers: read within bounds, or refused in one sentence.

A file is judged before its data are read: how long it is, how many values it can hold, what the
headers of an archive's arrays say. All that is wrong with its content is a ValueError that begins
with the file's name. A file that is missing, or that may not be read, is an OSError.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

# The largest text, and the most values in it: more than 2 million numbers with all their digits.
# They take 150 MB while they are read. Characters of other alphabets may take four times the
# memory, so a text with any of them may have a sixth of the length.
MOST_TEXT, MOST_WIDE_TEXT, MOST_VALUES = 48 << 20, 8 << 20, 1 << 21

# Lists and dicts in each other. A plan's file has 5.
DEEPEST = 32

# The arrays of an archive: no more than this, or than so many times the length of the file. Those
# that numpy writes are not compressed, so that the file is as long as its arrays.
MOST_ARRAYS, LEAST_ROOM, RATIO = 256, 16 << 20, 8

# The longest text of an error, and the longest part of a file in it.
_LONGEST, _SHOWN = 600, 200

# What numpy writes in front of an array, but for structured types, which no file of ours has.
_HEADER = re.compile(
    r"\{'descr': '([<>|=]?)([fiubU])(\d{1,9})', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,18}, ?)*\d{0,18})\), \} *\n?"
)
_MAGIC, _LONGEST_HEADER = b"\x93NUMPY", 4096

# What zipfile and zlib raise for archives that are cut, damaged, encrypted or made up.
_BROKEN = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, RuntimeError),
    *(ValueError, LookupError, OverflowError, OSError, MemoryError),
)


def shortened(error: Any) -> str:
    """Returns what an error says in one line of at most 600 characters."""
    said = " ".join(str(error).split())
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 4]} ..."


def shown(value: Any) -> str:
    """Returns a value of a file for an error, its repr or the beginning of it."""
    said = repr(value)
    return said if len(said) <= _SHOWN else f"{said[: _SHOWN - 4]} ..."


def load_json(path: str | os.PathLike, nan: bool = False, room: int = 1) -> Any:
    """Returns what a JSON file holds; see `parse_json`.

    Args:
        path: of the file.
        nan: as for `parse_json`.
        room: how many times as long and as full it may be.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: what `parse_json` refuses; something that is no file, such as a pipe.
    """
    with _opened(path) as file:
        data = file.read(room * MOST_TEXT + 1)
    return parse_json(data, str(path), nan, room)


def parse_json(data: bytes | str, where: str, nan: bool = False, room: int = 1) -> Any:
    """Returns what JSON text holds, which is less than the json module takes.

    Args:
        data: UTF-8.
        where: begins the errors.
        nan: whether NaN, which Python writes and JSON does not know, is taken.
        room: how many times as long and as full it may be.

    Raises:
        ValueError: text that is no JSON, or longer than 48 MiB; more than 2 million values; lists
            and dicts in each other 33 times; a name twice in one dict; Infinity and numbers beyond
            float64.
    """
    try:
        return _parsed(data, nan, room)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {shortened(error)}") from None


def check_json(data: bytes, where: str) -> None:
    """Raises ValueError for text that is too large for `parse_json`."""
    try:
        _check_text(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _parsed(data: bytes | str, nan: bool, room: int) -> Any:
    if isinstance(data, str):
        data = data.encode()
    _check_text(data, room)
    text = data.decode("utf-8")
    del data
    constant = _nan if nan else _no_constant
    found = json.loads(text, object_pairs_hook=_once, parse_constant=constant)
    del text
    _check_values(found)
    return found


def _check_text(data: bytes, room: int = 1) -> None:
    most = room * (MOST_TEXT if data.isascii() else MOST_WIDE_TEXT)
    if len(data) > most:
        raise ValueError(f"it is longer than {most >> 20} MiB")
    # a pair of a dict takes the memory of three or more numbers
    values = data.count(b",") + data.count(b"[") + 3 * (data.count(b":") + data.count(b"{"))
    if values > room * MOST_VALUES:
        raise ValueError(f"it holds more than {room * MOST_VALUES:,} values")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shown(twice)} stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _nan(name: str) -> float:
    return math.nan if name == "NaN" else _no_constant(name)


def _check_values(found: Any) -> None:
    """Refuses depth and infinite numbers; without recursion, for the depth is not known."""
    level: list[Any] = [[found]]
    depth = -1
    while level:
        if depth >= DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists or objects lie in each other")
        below: list[Any] = []
        for parts in level:
            parts = [*parts.values()] if isinstance(parts, dict) else parts
            kinds = set(map(type, parts))
            if float in kinds and (math.inf in parts or -math.inf in parts):
                raise ValueError("a number is too large for float64")
            if list in kinds or dict in kinds:
                below += [part for part in parts if isinstance(part, (list, dict))]
        level, depth = below, depth + 1


def leaf_types(value: Any) -> set[type]:
    """Returns the types of what nested lists hold at their ends."""
    if not isinstance(value, list):
        return {type(value)}
    found = set(map(type, value))
    if list in found:
        found.remove(list)
        found = found.union(*(leaf_types(part) for part in value if isinstance(part, list)))
    return found


def load_arrays(path: str | os.PathLike, ratio: int = RATIO) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz file by name; what they say of their size is checked first.

    Args:
        path: of the file.
        ratio: how many times as long as the file the arrays may be.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: a file that is no such archive, or cut, damaged or encrypted; an array whose
            header and length disagree; arrays of objects, of structures and of complex numbers;
            more than 256 arrays; arrays of more than 16 MiB that are longer than the file in more
            than that ratio.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
                _check_members(members, max(LEAST_ROOM, ratio * size))
                return {
                    each.filename.removesuffix(".npy"): _array(each.filename, _read(archive, each))
                    for each in members
                }
        except _BROKEN as error:
            raise ValueError(f"{path}: no arrays in it: {shortened(error)}") from None


def load_array(path: str | os.PathLike) -> np.ndarray:
    """Returns the array of an npy file.

    Raises:
        OSError: there is no such file, or it may not be read.
        ValueError: a file that holds no array of numbers or text, or whose header and length
            disagree.
    """
    with _opened(path) as file:
        data = file.read()
    try:
        return _array(Path(path).name, data)
    except ValueError as error:
        raise ValueError(f"{path}: {shortened(error)}") from None


def _check_members(members: Sequence[zipfile.ZipInfo], room: int) -> None:
    if len(members) > MOST_ARRAYS:
        raise ValueError(f"it has {len(members)} arrays, but at most {MOST_ARRAYS} are read")
    names = [each.filename for each in members]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{shown(twice)} stands in it twice")
    for each in members:
        if not each.filename.endswith(".npy"):
            raise ValueError(f"{shown(each.filename)} in it is no array")
        if each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{shown(each.filename)} is compressed in a way that numpy has not")
    wanted = sum(each.file_size for each in members)
    if wanted > room:
        raise ValueError(f"its arrays take {wanted:,} bytes, but for its length they may {room:,}")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Returns the bytes of a member, no more of them than it says that it has."""
    with archive.open(member) as file:
        return file.read(member.file_size + 1)


def _array(name: str, data: bytes) -> np.ndarray:
    """Returns the array in the bytes of an npy file."""
    if data[:6] != _MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise ValueError(f"{shown(name)} is no array of numpy")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    header = data[start : start + min(length, _LONGEST_HEADER)].decode("latin1")
    found = _HEADER.fullmatch(header)
    if found is None:
        raise ValueError(f"{shown(name)} holds {shown(header.strip())}, but it must hold numbers")
    order, kind, width, fortran, sizes = found.groups()
    try:
        dtype = np.dtype(f"{order}{kind}{width}")
    except TypeError:
        raise ValueError(f"{shown(name)} holds {kind}{width}, which numpy does not know") from None
    shape = tuple(int(one) for one in re.findall(r"\d+", sizes))
    values, start = math.prod(shape), start + length
    if values * dtype.itemsize != len(data) - start or len(shape) > 32:
        raise ValueError(
            f"{shown(name)} says that its shape is {shown(list(shape))} of {dtype}, but it has "
            f"{len(data) - start} bytes"
        )
    if not dtype.itemsize and shape:
        raise ValueError(f"{shown(name)} holds {len(shape)} axes of empty texts")
    if not values or not dtype.itemsize:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype, values, start)
    return flat.reshape(shape, order="F" if fortran == "True" else "C")


def _opened(path: str | os.PathLike) -> Any:
    """Returns a file opened for reading; a pipe or a device is refused and not waited for."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path}: a pipe, a socket or a device, but it must be a file")
    return open(path, "rb")
