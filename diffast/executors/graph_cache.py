"""The graphs of `df.sample(..., executor="graph")`: kept while they fit into a number of bytes."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from diffast.executors import context
from diffast.executors.bound_run import constraints_of
from diffast.executors.cuda_graph import GraphError, backend_of
from diffast.executors.graph_sampler import GraphRun
from diffast.executors.replay import ReplayableRun
from diffast.executors.results import Samples
from diffast.lowering.program import Program, lower
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan


class GraphCache:
    """Captured runs, the least recently used one out first.

    A graph is used again for the same network, plan, shape, dtype, device, clamp, hook and
    functions of guidance terms, and conditions of the same shapes; seed, ids, initial state, values
    of conditions and all guidance scales may differ. Networks, plans, hooks and functions are not
    kept alive: a graph goes with any of them.

    Attributes:
        limit: bytes that graphs and their tensors may hold together. The last one is always kept.
    """

    def __init__(self, limit: int = 4 << 30):
        """Holds nothing yet."""
        self.limit = limit
        self._lock = threading.Lock()
        self._gone: deque[Any] = deque()  # keys whose network, plan or hook is gone
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Returns the bytes that the graphs hold."""
        with self._locked():
            return self._held()

    def __len__(self) -> int:
        """Returns how many graphs there are."""
        with self._locked():
            return sum(entry.run is not None for entry in self._entries.values())

    def clear(self) -> None:
        """Drops all graphs, and what is known of networks that cannot be captured."""
        with self._locked():
            self._entries.clear()

    def sample(
        self,
        denoiser: Denoiser,
        plan: Plan,
        place: context.Place,
        x: torch.Tensor | None,
        noise: str | Callable[[int], torch.Tensor],
        on_x0: context.OnX0 | None,
        throw: bool,
        check: bool,
    ) -> Samples | None:
        """Returns the samples of a replay; None where the run cannot be captured.

        The arguments are those of `df.sample`, checked. A run that cannot be captured is warned of.

        Raises:
            ValueError: if the device has no graphs.
            NonFiniteError: if samples are not finite, unless check is False.
        """
        backend_of("sample", place.device)
        if not place.shape[0]:
            return None
        given = callable(noise) or noise == "path"
        program = lower(plan, denoiser, constraints_of(denoiser, place, on_x0, given))
        with self._locked():
            entry = self._entry(denoiser, plan, place, noise, on_x0, program)
        if entry.run is None:
            warnings.warn(
                f'sample: executor="graph" runs stage by stage: {entry.cause}',
                RuntimeWarning,
                stacklevel=3,
            )
            return None
        load = {
            "denoiser": denoiser,
            "program": program,
            "seed": place.seed,
            "ids": place.ids,
            "x": None if x is None else x.to(place.device),
            "noise": noise if callable(noise) else None,
        }
        return entry.run(load, False, check, throw)

    def _entry(self, denoiser, plan, place, noise, on_x0, program) -> _Entry:
        """Returns the graph for these arguments, captured now if there is none."""
        key = _key(denoiser, plan, place, noise, on_x0, program)
        entry = self._entries.get(key)
        if entry is not None and entry.run is not None and entry.run.watch.changed():
            del self._entries[key]
            entry = None  # its memory goes before the new graph's comes
        if entry is None:
            entry = _Entry(denoiser, plan, place, noise, on_x0)
            held = (denoiser.network, plan, on_x0, None if _is_plain(denoiser) else denoiser)
            held = (*held, *denoiser.networks[1:])
            held = (*held, *(term.function for term in denoiser.guides))
            entry.anchors = [self._anchor(one, key) for one in held]
            self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > 1 and self._held() > self.limit:
            self._entries.popitem(last=False)
        return entry

    def _held(self) -> int:
        return sum(entry.bytes for entry in self._entries.values())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the lock, without graphs of what is gone."""
        with self._lock:
            while self._gone:
                self._entries.pop(self._gone.popleft(), None)
            yield

    def _anchor(self, held: Any, key: Any) -> Any:
        """Returns a weak reference that takes the graph away; what cannot have one is kept."""

        def gone(_: Any) -> None:
            self._gone.append(key)
            # The garbage collector may be here in the middle of a call that has the lock; that
            # call's successor then takes the graph away.
            if self._lock.acquire(blocking=False):
                try:
                    self._entries.pop(key, None)
                finally:
                    self._lock.release()

        try:
            if isinstance(held, MethodType):  # it is made anew whenever it is asked for
                return weakref.WeakMethod(held, gone)
            return weakref.ref(held, gone)
        except TypeError:
            return held


class _Entry:
    """A graph, or why there can be none."""

    def __init__(self, denoiser, plan, place, noise, on_x0):
        self.run, self.cause, self.bytes, self.anchors = None, "", 0, []
        # what the key knows by its identity
        given = [*denoiser.conditions.values(), *(denoiser.unconditional or {}).values()]
        self.fixed = [(v, tree_leaves(v)) for v in given if not isinstance(v, torch.Tensor)]
        run = ReplayableRun(denoiser, plan, place, noise=noise, on_x0=on_x0)
        try:
            self.run = GraphRun(run, denoiser)
        except GraphError as error:
            self.cause = str(error)
            return
        memory = self.run.memory
        self.bytes = memory.bytes + memory.pool
        run.release()


def _key(
    denoiser: Denoiser,
    plan: Plan,
    place: context.Place,
    noise: Any,
    on_x0: Any,
    program: Program,
) -> tuple:
    """Returns everything that a graph is captured for."""
    kind = "given" if callable(noise) else noise
    device_type = place.device.type
    branches = {} if denoiser.rule is None else denoiser.rule.branches
    return (
        *(_identity(denoiser.network), id(plan), _identity(on_x0), kind, program.structure),
        tuple(_identity(network) for network in denoiser.networks[1:]),
        *(_signature(branch.conditions or {}, place) for branch in branches.values()),
        *(type(denoiser), None if _is_plain(denoiser) else id(denoiser)),
        *(place.shape, place.dtype, place.ids.device, tuple(place.limits)),
        *(denoiser.predicts, denoiser.dtype, denoiser.memory_format),
        *(denoiser.time_dtype, denoiser.round_times),
        tuple((_identity(term.function), term.through) for term in denoiser.guides),
        *(_signature(c or {}, place) for c in (denoiser.conditions, denoiser.unconditional)),
        torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type),
    )


def _identity(thing: Any) -> Any:
    """Returns what tells an object from others that live; a method by its object and function."""
    if isinstance(thing, MethodType):
        return id(thing.__self__), id(thing.__func__)
    return id(thing)


def _is_plain(denoiser: Denoiser) -> bool:
    """Returns whether a denoiser is its fields alone; a subclass may do anything."""
    return type(denoiser) is Denoiser


def _signature(conditions: Mapping[str, Any], place: context.Place) -> tuple:
    """Returns what of conditions cannot change in a replay."""
    return tuple((name, type(value), *_fixed(value, place)) for name, value in conditions.items())


def _fixed(value: Any, place: context.Place) -> tuple:
    """Returns what a key holds of a condition: what a replay cannot write anew.

    A list or dict may get other elements and stay the object that it is.
    """
    if isinstance(value, torch.Tensor):
        written = value.dim() > 0 or value.device == place.ids.device
        return value.dtype, value.dim(), value.shape[1:] if written else value.item()
    leaves = tree_leaves(value)
    alone = len(leaves) == 1 and leaves[0] is value
    return tuple(map(_known, leaves if alone else [value, *leaves]))


def _known(value: Any) -> Any:
    """Returns a value that a key can hold: its own, or which object it is."""
    plain = isinstance(value, (str, int, float, bool, type(None)))
    return (type(value), value) if plain else id(value)


graph_cache = GraphCache()
