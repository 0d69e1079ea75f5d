"""`GraphSampler`: whole runs of one shape as one CUDA graph, network included, for servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from diffast.executors import context
from diffast.executors.cuda_graph import Graph, GraphError, backend_of
from diffast.executors.network_watch import NetworkWatch
from diffast.executors.replay import Memory, ReplayableRun, changed
from diffast.executors.results import Samples
from diffast.executors.table_run import copied
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan

# A run calls the network at every stage; with fewer stages it is run more often before the capture.
_WARM_CALLS = 3


class GraphRun:
    """A replayable run, its graph, and what has to hold for a replay."""

    def __init__(self, run: ReplayableRun, denoiser: Denoiser):
        """Captures the run, with the package's noise as its initial state."""
        backend = backend_of(run.who, run.bound.ids.device)
        self.run, self._lock, self._backend = run, threading.Lock(), backend
        self.watch = NetworkWatch(*denoiser.networks)
        self._changed = False  # whether conditions or scale of the last call were its own
        run.load_anything()
        stages = max(len(run.bound.stages), 1)
        self.graph = Graph(run.run, backend, warm_ups=-(-_WARM_CALLS // stages))
        backend.mark()

    def __call__(
        self,
        load: Mapping[str, Any],
        donate: bool,
        check: bool,
        throw: bool,
        usual: Denoiser | None = None,
    ) -> Samples:
        """Returns the samples for what is loaded, see `ReplayableRun.load`.

        `usual` is loaded where the call has no denoiser and the call before it had one.
        """
        # One call at a time, and on the device behind the one before: the tensors are the run's.
        with self._lock:
            self._backend.follow()
            given = load["denoiser"]
            if given is None and self._changed:
                load = {**load, "denoiser": usual}
            self._changed = True  # until the call has gone through
            self.run.load(**load)
            self.graph.replay()
            result = self.run.samples(donate)
            self._backend.mark()
            self._changed = given is not None
        if not check:
            return result
        bound, x = self.run.bound, load["x"]
        return result.or_raise(self.run.who, bound.ids, throw, bound.what_failed, initial=x)

    @property
    def memory(self) -> Memory:
        """Returns what the run and the graph hold."""
        return self.run.memory._replace(pool=self.graph.pool)


class GraphSampler:
    """A whole run of one shape, captured once as a CUDA graph and replayed for every request.

    Calls are `df.sample` with the same bits, for another seed, ids, initial state, conditions and
    guidance scale each. A replay is one launch, and a few small ones put what changes into the
    graph's memory: nothing waits for the device but the look at the run's status at the end.

    The graph holds the kernels that the network, the hook and the guidance terms launched when they
    were captured, not their Python. Parameters, and tensors that a term reads, may be written in
    place between calls. A network under `torch.compile` is compiled before the capture, in the run
    that precedes it; its mode must not make CUDA graphs itself (`mode="reduce-overhead"` does).

    Args:
        denoiser: the network, its conditions and guidance. Conditions that are tensors are copied,
            and calls may replace them.
        plan: a plan for the denoiser's schedule; None: that of `calls`.
        shape: [B, ...] of the state.
        calls: network calls, in place of a plan: the plan is `df.plan(denoiser, calls)`.
        dtype: of the state, float32 or float64.
        device: where to run; default: where the network is.
        noise: "counter" or "path", see `df.sample`; or a callable, which is called before the
            replay for all stages that draw, and whose normals are one more state a stage.
        clamp: (low, high) for the x0 estimate.
        on_x0: a hook made of torch operations on the device, see `df.sample`.
        donate: True: the samples returned are the graph's own tensor, which the next call
            overwrites; False: a copy.
        check: False: the status is not looked at, so that nothing waits for the device. Failed
            samples then raise no error; `status` names them.

    Raises:
        TypeError: for a plan and calls together, or neither.
        GraphError: if the run cannot be captured; the message names the cause. The device is usable
            afterwards, and `df.sample` runs what cannot be captured.
        ValueError: for arguments that disagree, and for devices that are no CUDA devices.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        plan: Plan | None = None,
        shape: Sequence[int] | None = None,
        *,
        calls: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        noise: str | Callable[[int], torch.Tensor] = "counter",
        clamp: context.Clamp | None = None,
        on_x0: context.OnX0 | None = None,
        donate: bool = False,
        check: bool = True,
    ):
        """Captures the run; see the class."""
        who = "GraphSampler"
        plan = context.plan_of(who, denoiser, plan, calls)
        context.check_noise(who, noise, context.FIXED_GRID)
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{who}: dtype is {dtype} but the state is float32 or float64")
        device = _exact(denoiser.device() if device is None else torch.device(device))
        backend_of(who, device)
        place = context.place_of(who, denoiser, shape, None, device, 0, None, clamp)
        self._place, self._ids = place._replace(dtype=dtype), place.ids
        self._denoiser, self._donate, self._check = _with_copies(denoiser), donate, check
        self._noise = noise if callable(noise) else None
        self._run = GraphRun(
            ReplayableRun(self._denoiser, plan, self._place, noise=noise, on_x0=on_x0, who=who),
            denoiser,
        )
        self._name, self._planned = plan.name, plan.guidance is not None

    def __call__(
        self,
        *,
        seed: int = 0,
        ids: Sequence[int] | torch.Tensor | None = None,
        x: torch.Tensor | None = None,
        conditions: Mapping[str, Any] | None = None,
        unconditional: Mapping[str, Any] | None = None,
        guidance: float | Callable[[float], float] | None = None,
        throw: bool = True,
    ) -> Samples:
        """Returns samples: those of `df.sample` with the same arguments.

        Args:
            seed: any integer of 64 bits.
            ids: B integers of 64 bits; default 0 .. B-1. A tensor has to be on the device.
            x: the initial state [B, ...] on the device; None: the package's noise.
            conditions: conditions that differ from the denoiser's in this call, by name, of the
                same shapes and dtypes.
            unconditional: the same for the unconditional branch.
            guidance: another scale, or another function of the model time. It has to call the
                network on the same cfg branches.
            throw: whether failed samples raise; otherwise `status` says which failed.

        Raises:
            ValueError: for what the graph was not captured for; the message names the two facts.
                Also for an initial state that is not finite, unless check is False.
            GraphError: if the network's parameters have moved since the capture.
            NonFiniteError: if samples are not finite, unless check is False; its `result` holds the
                others.
        """
        if self._run.watch.changed():
            raise GraphError(
                "GraphSampler: the network's parameters or modules are others than those captured "
                "(moved, replaced, or train() in place of eval()): make a new GraphSampler"
            )
        batch, device = self._place.shape[0], self._place.device
        if isinstance(ids, torch.Tensor) and ids.device != device:
            raise ValueError(f"GraphSampler: ids are on {ids.device} but the graph is on {device}")
        ids = self._ids if ids is None else context.ids_of("GraphSampler", ids, batch, device)
        if guidance is not None and self._planned:
            raise ValueError(
                f"GraphSampler: guidance is given, but plan {self._name} has a guidance scale of "
                "its own for each call"
            )
        given = conditions, unconditional, guidance
        other = any(value is not None for value in given)
        denoiser = changed(self._denoiser, *given) if other else None
        scales = (self._denoiser.guidance, *(term.scale for term in self._denoiser.guides))
        if denoiser is None and any(map(callable, scales)):  # which may have changed
            denoiser = self._denoiser
        load = {"denoiser": denoiser, "seed": seed, "ids": ids, "x": x, "noise": self._noise}
        return self._run(load, self._donate, self._check, throw, self._denoiser)

    @property
    def memory(self) -> Memory:
        """Returns what the sampler holds: states, bytes, and the graph's pool."""
        return self._run.memory

    def __repr__(self) -> str:
        """Returns plan, state and memory."""
        memory, place = self.memory, self._place
        return (
            f"GraphSampler({self._name}, {list(place.shape)}, {place.dtype}, {place.device}: "
            f"{memory.states:g} states, {memory.bytes / 2**20:.1f} MiB of tensors, "
            f"{memory.pool / 2**20:.1f} MiB of the graph's own)"
        )


def _exact(device: torch.device) -> torch.device:
    """Returns the device with its index."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _with_copies(denoiser: Denoiser) -> Denoiser:
    """Returns the denoiser with conditions that nobody else writes to."""

    def kept(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            k: v.clone() if isinstance(v, torch.Tensor) else copied(v) for k, v in values.items()
        }

    unconditional = None if denoiser.unconditional is None else kept(denoiser.unconditional)
    return changed(denoiser, kept(denoiser.conditions), unconditional)
