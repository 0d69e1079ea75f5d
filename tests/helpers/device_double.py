"""A device played on the CPU: it has the package's ops and torch's, and notes who waits for it.

    with Device() as device:
        df.sample(denoiser, plan, (2, 3), device=device.place)
    device.kernels, device.uploads, device.downloads, device.waits

Tensors of the double say that they are on torch's device "meta" and hold a CPU tensor. Whatever
waits for a real device is refused: `.item()`, `.tolist()`, `.numpy()`, `.cpu()` and copies to the
host that are not `non_blocking`, copies from host tensors that are not, `torch.tensor(list,
device=...)`, indexing by a mask or by a host tensor, `nonzero`, `equal`. So are host tensors beside
tensors of the device in one op. What waits on purpose, through an event, is counted.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from diffast.executors import device as places

PLACE = torch.device("meta")

# Ops that read numbers of the device, or whose result has a shape that depends on them.
_READING = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "equal",
    "is_nonzero",
    "allclose",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
    "bincount",
}
_COPIES = {"_to_copy", "copy_", "to"}
# Launch no kernel: they only make a tensor or another view of one.
_FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}
_FREE |= {"detach", "detach_", "alias", "lift_fresh", "_unsafe_view", "_reshape_alias"}
# Copy only where the result cannot be a view.
_PERHAPS = {"reshape", "contiguous"}


class Waits(AssertionError):
    """Something would wait for the device, or would fail on one."""


class _There(torch.Tensor):
    """A tensor of the double; `held` is its memory."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    @torch.inference_mode(False)
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=PLACE
        )
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise Waits(f"{function} on a tensor of the double outside of its `with`")


class _Event:
    """An event of the double: passed once something has waited for a later one, or for it."""

    def __init__(self, device):
        self.device, self.number = device, device.recorded
        device.recorded += 1

    def query(self):
        return self.number < self.device.passed

    def synchronize(self):
        if not self.query():
            self.device.waits += 1
            self.device.passed = self.number + 1


class _Made(TorchFunctionMode):
    """Refuses tensors made from Python numbers on the device, which torch copies and waits."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            given = args[0] if args else kwargs.get("data")
            if torch.device(kwargs["device"]) == PLACE and not isinstance(given, _There):
                self.device.wait(f"{function.__name__}(..., device=...) from the host's memory")
                self.device.uploads += 1
                return _There(function(*args, **kwargs | {"device": "cpu"}))
        return function(*args, **kwargs)


class Device(TorchDispatchMode):
    """The double, while its `with` lasts; see the top of this file.

    Attributes:
        place: the torch.device.
        kernels: how often each op was launched, by name.
        uploads, downloads: copies from and to the host.
        waits: how often the host waited for an event.

    Args:
        strict: whether what waits is refused; otherwise it is counted among the waits.
    """

    place = PLACE

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else torch imports its compiler, which takes seconds

    def __init__(self, strict=True):
        super().__init__()
        self.strict = strict
        self.recorded = self.passed = 0
        self.reset()
        self.outside = 0

    def reset(self):
        """Begins to count anew."""
        self.kernels: Counter[str] = Counter()
        self.uploads = self.downloads = self.waits = 0

    @property
    def launches(self) -> int:
        return sum(self.kernels.values())

    def __enter__(self):
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(places, "new_event", lambda place: _Event(self))
        self.made = _Made(self)
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *caught):
        super().__exit__(*caught)
        self.made.__exit__(*caught)
        self.patches.undo()

    @contextmanager
    def uncounted(self):
        """While it lasts nothing is counted, and nothing refused: it is the caller's network."""
        self.outside += 1
        try:
            yield
        finally:
            self.outside -= 1

    def network(self, function):
        """Returns a network whose own launches are not counted."""

        def called(*args, **kwargs):
            with self.uncounted():
                return function(*args, **kwargs)

        return called

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = [*args, *kwargs.values()]
        given = [t for t in _pytree.tree_leaves(flat) if isinstance(t, torch.Tensor)]
        there = [t for t in given if isinstance(t, _There)]
        name = function._schema.name.split("::")[1]
        wanted = kwargs.get("device")
        makes = wanted is not None and torch.device(wanted) == PLACE
        if not there and not makes:
            return function(*args, **kwargs)
        if name in _COPIES and self._crosses(name, args, wanted, given, there):
            return self._copied(name, function, args, kwargs)
        if not self.outside:
            self._check(name, given, there)
            if name not in _FREE | _PERHAPS and not function.is_view:
                self.kernels[function._schema.name.split("::")[-1]] += 1
        result = self._run(function, args, kwargs, makes)
        if name in _PERHAPS and not self.outside and _memory(result) != _memory(args[0]):
            self.kernels["clone"] += 1
        return result

    def _check(self, name, given, there):
        """Refuses what a device would wait for or would not take."""
        if name in _READING:
            self.wait(f"{name} reads from the device")
        for host in (t for t in given if not isinstance(t, _There)):
            if host.dim() or name.startswith("index"):
                raise Waits(f"{name} is given {list(host.shape)} of the host beside the device's")
        if name.startswith("index") and any(t.dtype == torch.bool for t in there[1:]):
            self.wait(f"{name} by a mask reads from the device how many are true")

    def wait(self, why):
        if self.strict:
            raise Waits(why)
        self.waits += 1

    def _crosses(self, name, args, wanted, given, there) -> bool:
        if name == "copy_":
            return isinstance(args[0], _There) != isinstance(args[1], _There)
        return wanted is not None and (torch.device(wanted) == PLACE) != (len(there) == len(given))

    def _copied(self, name, function, args, kwargs):
        """Makes a copy from or to the host."""
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
        up = not isinstance(args[1 if name == "copy_" else 0], _There)
        if not self.outside:
            if blocking:
                self.wait(f"a copy {'from' if up else 'to'} the host that is waited for")
            self.uploads += up
            self.downloads += not up
        if name == "copy_":
            args[0].held.copy_(args[1]) if up else args[0].copy_(args[1].held)
            return args[0]
        return self._run(function, args, kwargs, up, copied=True)

    def _run(self, function, args, kwargs, makes, copied=False):
        """Runs the op on the CPU; its results are on the double."""
        known = {}

        def held(value):
            if isinstance(value, _There):
                known[id(value.held)] = value
                return value.held
            return PLACE_OF_MEMORY if isinstance(value, torch.device) and value == PLACE else value

        args, kwargs = _pytree.tree_map(held, (args, kwargs))
        result = function(*args, **kwargs)
        if copied and not makes:
            return result
        if copied:
            result = result.clone()  # the CPU's own `to` returns the host's tensor

        def wrapped(value):
            if not isinstance(value, torch.Tensor):
                return value
            same = known.get(id(value))
            return _There(value) if same is None else same

        return _pytree.tree_map(wrapped, result)


PLACE_OF_MEMORY = torch.device("cpu")


def _memory(tensor: torch.Tensor) -> int:
    return host(tensor).untyped_storage().data_ptr()


def host(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the memory of a tensor of the double, for a test to look at."""
    return tensor.held if isinstance(tensor, _There) else tensor
