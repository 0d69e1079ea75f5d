"""Every executor inside of torch's modes: the same picture, or one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from runs_executors import EXECUTORS
from runs_matrix import sentence
from runs_networks import healthy
from torch._subclasses import FakeTensor, FakeTensorMode


@contextmanager
def _default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _threads() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _inside(mode: Callable) -> Callable[[Callable], torch.Tensor]:
    def run(executor: Callable) -> torch.Tensor:
        with mode():
            return executor(healthy)

    return run


def _vmapped(executor: Callable) -> torch.Tensor:
    return torch.vmap(lambda scale: executor(healthy) * scale)(torch.ones(2))[0]


def _vmap_inside(executor: Callable) -> torch.Tensor:
    """The network is a vmap of a network of one sample."""
    one = torch.vmap(lambda x, t: healthy(x[None], t[None])[0])
    return executor(lambda x, t, c=None: one(x, t) + (0 if c is None else 0.05 * c))


def _differentiated(executor: Callable) -> torch.Tensor:
    """A run as a function that is differentiated: no gradient passes a run."""
    shift = torch.zeros((), requires_grad=True)
    return executor(lambda x, t, c=None: healthy(x, t, c) + shift)


MODES: dict[str, Callable[[Callable], torch.Tensor]] = {
    'set_default_device("meta")': _inside(lambda: _default_device("meta")),
    "torch.device as a context": _inside(lambda: torch.device("meta")),
    "set_default_dtype(float64)": _inside(lambda: _default_dtype(torch.float64)),
    "set_default_dtype(bfloat16)": _inside(lambda: _default_dtype(torch.bfloat16)),
    "autocast(bfloat16)": _inside(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "inference_mode": _inside(torch.inference_mode),
    "no_grad": _inside(torch.no_grad),
    "enable_grad": _inside(torch.enable_grad),
    "deterministic algorithms": _inside(_threads),
    "anomaly mode": _inside(lambda: torch.autograd.set_detect_anomaly(True, check_nan=True)),
    "inside of vmap": _vmapped,
    "a network that is a vmap": _vmap_inside,
    "a network with a gradient": _differentiated,
    "FakeTensorMode": _inside(FakeTensorMode),
}


def modes() -> dict[str, dict[str, tuple[str, str]]]:
    """Returns the outcomes by mode and executor."""
    found: dict[str, dict[str, tuple[str, str]]] = {name: {} for name in MODES}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for executor, run in EXECUTORS.items():
            wanted = run(healthy)
            for name, mode in MODES.items():
                try:
                    made = mode(run)
                except Exception as error:
                    kind = "refused" if sentence(error) else "FOREIGN"
                    found[name][executor] = kind, f"{type(error).__name__}: {error}"
                    continue
                if isinstance(made, FakeTensor):
                    found[name][executor] = "WRONG", "fake samples"
                    continue
                same = made.dtype == wanted.dtype and made.device == wanted.device
                same = (
                    same
                    and made.shape == wanted.shape
                    and torch.allclose(made.detach(), wanted, rtol=1e-4, atol=1e-4)
                )
                found[name][executor] = ("right", "") if same else ("WRONG", f"{made.dtype}")
    return found
