"""What a tuning run has worked out so far, in a file: a run that was killed goes on from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from diffast._files import load_json, shown

FORMAT = "diffast tuning"
VERSION = 1
# How many times as large as a plan's file it may be: it holds all iterations.
_ROOM = 16
# Where a file of tensors says to which arguments it belongs.
_OF = "arguments"


class Memo:
    """Results by name, each worked out once. JSON holds a float64 to the last bit.

    The file is written anew after every result, under another name first: a kill leaves the one
    before. Tensors lie beside it, in `<file>.safetensors`.

    Args:
        path: of the file; None: nothing is kept.
        arguments: of the run, as JSON. A file of a run with others is refused.

    Raises:
        ValueError: for a file that is none of these, or one of a run with other arguments.
    """

    def __init__(self, path: str | PathLike | None, arguments: dict[str, Any]):
        """Reads the file, if there is one."""
        self.path = None if path is None else Path(path)
        self.arguments = json.loads(json.dumps(arguments))
        self.results: dict[str, Any] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        if self.path is None:
            return
        _check_place(self.path)
        if self.path.exists():
            self._read(self.path)

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Returns the result of that name, from the file or worked out now; it is JSON."""
        if name not in self.results:
            self.results[name] = json.loads(json.dumps(work()))
            self._write()
        found = self.results[name]
        return _Result(found, f"tune: {self.path}: {name}") if isinstance(found, dict) else found

    def tensor(self, name: str, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Returns the tensor of that name, from the file or worked out now; on the CPU."""
        if name not in self.tensors:
            self.tensors[name] = work().detach().cpu().contiguous()
            if self.path is not None:
                _replace(self._beside(), save(self.tensors, {_OF: self._digest()}))
        return self.tensors[name]

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.arguments, sort_keys=True).encode()).hexdigest()

    def _beside(self) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + ".safetensors")

    def _write(self) -> None:
        if self.path is None:
            return
        head = {"format": FORMAT, "version": VERSION, "arguments": self.arguments}
        body = head | {"results": self.results, "digest": _digest_of(self.results)}
        _replace(self.path, json.dumps(body).encode())

    def _read(self, path: Path) -> None:
        try:
            body = load_json(path, nan=True, room=_ROOM)
            known = body["format"] == FORMAT and body["version"] == VERSION
            arguments, results = dict(body["arguments"]), dict(body["results"])
            _check_results(results)
        except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"tune: {path} is no file of a tuning run ({error})") from None
        if not known:
            raise ValueError(f"tune: {path} is no file of a tuning run of this version")
        for name in sorted({*arguments, *self.arguments}):
            before, now = arguments.get(name), self.arguments.get(name)
            if before != now:
                raise ValueError(
                    f"tune: {path} is of a run with {name} = {shown(before)}, but {name} is "
                    f"{shown(now)} now"
                )
        # files of older versions have none
        if body.get("digest", _digest_of(results)) != _digest_of(results):
            raise ValueError(f"tune: {path} was changed after it was written: remove it")
        self.results = results
        beside = self._beside()
        if beside.exists():
            try:
                with safe_open(beside, "pt") as file:
                    if (file.metadata() or {}).get(_OF) != self._digest():
                        return  # of a run whose other file was removed
                    self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise ValueError(f"tune: {beside} is no safetensors file ({error})") from None


def _check_place(path: Path) -> None:
    """Raises ValueError where the file cannot be written anew after each result."""
    folder = path.absolute().parent
    try:
        if path.is_dir():
            raise ValueError(f"tune: resume is {path}, a folder, but a file is needed")
        if not folder.is_dir():
            raise ValueError(f"tune: resume is {path}, but there is no folder for it")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"tune: resume is {path}, but its folder is not writable")
        if path.exists() and not path.is_file():
            raise ValueError(f"tune: resume is {path}, which is no file that can be replaced")
    except OSError as error:  # a name that no file can have
        raise ValueError(f"tune: resume is {path}: {error.strerror}") from None


class _Result(dict):
    """A result of a file; what it lacks is said with the file's name."""

    def __init__(self, found: dict[str, Any], where: str):
        super().__init__(found)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.where} has no {name!r}: the file was changed, remove it")


def _digest_of(results: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def _check_results(results: dict[str, Any]) -> None:
    """Refuses a result without a whole number of network calls, which every one has."""
    for name, found in results.items():
        calls: Any = found.get("calls") if isinstance(found, dict) else found
        if type(calls) not in (int, float) or not 0 <= calls < 2**63:
            raise ValueError(f"{shown(name)} has calls = {shown(calls)}, but they are counted")


def _replace(path: Path, data: bytes) -> None:
    """Writes a file so that a kill, or a full disk, leaves the old one or the new one.

    Raises:
        OSError: naming the file.
    """
    other = path.with_name(path.name + ".new")
    try:
        with other.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(other, path)
    except OSError as error:
        other.unlink(missing_ok=True)
        if error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
