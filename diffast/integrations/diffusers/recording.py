"""What a pipeline gives its network, found by running the pipeline's first two steps.

The pipeline runs as it stands, with a scheduler that takes down what it is given. The network's
outputs are replaced by random numbers, the probes. What the scheduler then receives is compared
with the probes: that tells which rows are the unconditional branch, what the guidance scale is, and
whether the pipeline changes the output in another way. So no pipeline is written a second time.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from diffast import solvers
from diffast.integrations.diffusers.convention import Convention, convention_of
from diffast.integrations.diffusers.planned import PlanScheduler

# Pictures of one prompt in a recording: tensors with a row a picture are told from others by it.
_PICTURES = 3
_COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "batch_size")
_TIMES = ("timestep", "timesteps", "t")
# What the probes may be missed by: roundings, also those of half precision.
_NEAR = {torch.float32: 1e-4, torch.float64: 1e-4}
_NEAR_HALF = 0.02
_EXTRA = "extra channels"  # what a pipeline appends to the latents, as inpainting does


class _Stop(Exception):  # noqa: N818
    """Enough is recorded. No error: nothing went wrong."""


@dataclass
class _Call:
    """One call of the network: its arguments by name, and the probe that it returned."""

    arguments: dict[str, Any]
    probe: torch.Tensor


@dataclass
class _Step:
    """What a scheduler was given in one step."""

    time: float
    sample: torch.Tensor
    output: torch.Tensor
    calls: list[_Call] = field(default_factory=list)


@dataclass(frozen=True)
class Recording:
    """What a pipeline gives its network for one prompt.

    Attributes:
        shape: of one sample of the latents, without the batch.
        input, time: names of those arguments.
        slope, shift: the network's time is slope * timestep + shift.
        time_dtype: of the network's time.
        dtype: of the network's input.
        sign: +1, or -1 where the pipeline turns the output's sign.
        scale: guidance scale; 1: none.
        cond: tensors with a row a sample, [1, ...] each, by path ("added_cond_kwargs.time_ids").
        uncond: the same of the unconditional branch; None: none.
        fixed: the other arguments, by path.
        convention: schedule and prediction type.
    """

    shape: tuple[int, ...]
    input: str
    time: str
    slope: float
    shift: float
    time_dtype: torch.dtype
    dtype: torch.dtype
    sign: float
    scale: float
    cond: dict[str, torch.Tensor]
    uncond: dict[str, torch.Tensor] | None
    fixed: dict[str, Any]
    convention: Convention


def network_of(pipe: Any) -> torch.nn.Module:
    """Returns the network that the pipeline samples with.

    Raises:
        ValueError: a pipeline with none, or with two that take turns.
    """
    name = type(pipe).__name__
    for part in ("transformer", "unet"):
        if getattr(pipe, f"{part}_2", None) is not None:
            raise ValueError(f"{name} samples with two networks in turn, but a plan is for one")
        network = getattr(pipe, part, None)
        if isinstance(network, torch.nn.Module):
            return network
    raise ValueError(f"{name} has neither a unet nor a transformer, but one of them is tuned for")


def record(pipe: Any, call: Mapping[str, Any]) -> Recording:
    """Returns what the pipeline gives its network when it is called with these arguments.

    The pipeline is as before when this returns.

    Args:
        pipe: a diffusers pipeline that calls one network a step, or one a branch.
        call: keyword arguments of the pipeline, without the number of steps.

    Raises:
        ValueError: a pipeline that changes more than guidance between network and scheduler, or
            whose arguments of the network change from step to step.
    """
    network, before = network_of(pipe), pipe.scheduler
    original = before.original() if isinstance(before, PlanScheduler) else before
    recorder: Any = _Recorder.of(original, _two_calls(convention_of(original)))
    recorder.begin()
    given = {**_counted(pipe, call), "num_inference_steps": 2}
    pipe.scheduler = recorder
    try:
        with _watched(network, recorder), torch.no_grad(), contextlib.suppress(_Stop):
            pipe(**given)
    finally:
        pipe.scheduler = before
        free = getattr(pipe, "maybe_free_model_hooks", None)
        if free is not None:  # what the pipeline does at its end, for models that are offloaded
            free()
    name = type(pipe).__name__
    if len(recorder.steps) < 2:
        raise ValueError(f"{name} ended before its scheduler took two steps, but a loop is needed")
    found = _read(name, recorder)
    shown = getattr(pipe, "guidance_scale", None)  # exact, where the probes were rounded
    if isinstance(shown, (int, float)) and abs(shown - found.scale) <= 0.01 * abs(found.scale):
        return replace(found, scale=float(shown) if found.uncond is not None else 1.0)
    return found


def _two_calls(convention: Convention):
    schedule = convention.schedule
    low, high = schedule.t_min, schedule.t_start
    return solvers.euler(schedule, [high, round(0.6 * high + 0.4 * low, 3), schedule.t_end])


def _counted(pipe: Any, call: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments for several pictures, where the pipeline makes several.

    Embeddings of one prompt are repeated, as not every pipeline repeats all that it is given.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    counts = [name for name in _COUNTS if name in known]
    embedded = [name for name in call if name.endswith(("_embeds", "_mask"))]
    if any(name in call for name in (*counts, "latents")) or not counts:
        return dict(call)
    if embedded:
        return {**call, **{name: _repeated(call[name]) for name in embedded}}
    return {**call, counts[0]: _PICTURES}


def _repeated(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dim() and len(value) == 1:
        return value.expand(_PICTURES, *value.shape[1:])
    return value


class _Recorder(PlanScheduler):
    """Takes down two steps and stops the pipeline."""

    def begin(self) -> None:
        """Starts anew."""
        self.steps: list[_Step] = []
        self.calls: list[_Call] = []

    def step(self, model_output, timestep, sample, return_dict=True, generator=None, **options):
        """Takes the step down and returns random latents."""
        time = float(torch.as_tensor(timestep))
        if model_output.shape[1:2] == (2 * sample.shape[1],):
            model_output = model_output[:, : sample.shape[1]]  # the rest is a learned variance
        self.steps.append(_Step(time, sample.clone(), model_output.clone(), self.calls))
        self.calls = []
        if len(self.steps) == 2:
            raise _Stop
        following = torch.randn_like(sample)
        return self._Output(following, sample) if return_dict else (following, sample)


@contextlib.contextmanager
def _watched(network: torch.nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Takes down the network's calls and replaces its outputs by random numbers."""
    signature = inspect.signature(network.forward)

    def after(module, args, kwargs, output):
        arguments = signature.bind(*args, **kwargs).arguments
        more = [n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]
        for name in more:
            arguments.update(arguments.pop(name, {}))
        first = output if isinstance(output, torch.Tensor) else output[0]
        if not isinstance(first, torch.Tensor):
            raise ValueError(
                f"{type(network).__name__} returns a {type(first).__name__}, but a tensor is needed"
            )
        probe = torch.randn_like(first)
        recorder.calls.append(_Call(_copied(arguments), probe))
        if isinstance(output, torch.Tensor):
            return probe
        if isinstance(output, tuple):
            return (probe, *output[1:])
        return type(output)(probe, *output.to_tuple()[1:])

    handle = network.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _copied(value: Any) -> Any:
    """Returns nested arguments with copies of their tensors: a pipeline may write over them."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return [*map(_copied, value)] if isinstance(value, list) else value


def _read(name: str, recorder: _Recorder) -> Recording:
    """Returns what two steps say; raises ValueError for what is not understood."""
    first, second = recorder.steps
    weights = _weights(name, first)
    input_name, extra = _input_of(name, first)
    time_name = next((n for n in _TIMES if n in first.calls[0].arguments), None)
    if time_name is None:
        raise ValueError(f"{name}: its network has no argument timestep, but a time is needed")
    times = [_time_of(name, step.calls[0].arguments[time_name]) for step in (first, second)]
    slope, shift = _line(name, [first.time, second.time], times, recorder)
    branches = [_branches(step, (input_name, time_name)) for step in (first, second)]
    fixed, rows = branches[0]
    _check_constant(name, branches)
    if extra is not None:
        for branch, part in zip(rows, extra, strict=True):
            branch[_EXTRA] = part
    sign = round(sum(weights))
    cond = max(range(len(weights)), key=lambda k: sign * weights[k])
    entered = first.calls[0].arguments
    return Recording(
        shape=tuple(first.sample.shape[1:]),
        input=input_name,
        time=time_name,
        slope=slope,
        shift=shift,
        time_dtype=torch.as_tensor(entered[time_name]).dtype,
        dtype=entered[input_name].dtype,
        sign=float(sign),
        scale=1.0 if len(weights) == 1 else _rounded(sign * weights[cond]),
        cond=rows[cond],
        uncond=None if len(weights) == 1 else rows[1 - cond],
        fixed=fixed,
        convention=recorder.convention,
    )


def _weights(name: str, step: _Step) -> list[float]:
    """Returns the weight of each branch's output in what the scheduler was given."""
    like, blocks = step.sample, []
    for call in step.calls:
        if len(call.probe) % len(like):
            raise ValueError(
                f"{name}: the network returned {len(call.probe)} rows for {len(like)} samples"
            )
        blocks += call.probe.split(len(like))
    width = like.shape[1]
    for block in blocks:
        if block.shape[2:] != like.shape[2:] or block.shape[1] < width:
            raise ValueError(
                f"{name}: the network returned {list(block.shape)} for latents of "
                f"{list(like.shape)}, which no plan reads"
            )
    table = torch.stack([block[:, :width].double().flatten() for block in blocks], dim=1).cpu()
    target = step.output.double().flatten().cpu()
    if len(target) != len(table):
        raise ValueError(
            f"{name}: the scheduler was given {list(step.output.shape)} for latents of "
            f"{list(like.shape)}"
        )
    found = torch.linalg.lstsq(table, target[:, None]).solution[:, 0]
    missed = float((table @ found - target).norm() / target.norm())
    total = float(found.sum())
    near = max(_NEAR.get(t.dtype, _NEAR_HALF) for t in (step.output, *blocks))
    if missed > near or abs(abs(total) - 1.0) > near * float(found.abs().sum()):
        raise ValueError(
            f"{name} changes the network's output by more than classifier-free guidance before "
            f"its scheduler sees it (the best combination of the branches misses it by "
            f"{missed:.2g}, and its weights add up to {total:.4g}), "
            "which no plan can say: leave out guidance_rescale and the like"
        )
    if len(blocks) > 2:
        raise ValueError(f"{name} has {len(blocks)} guidance branches, but two are known")
    return found.tolist()


def _input_of(name: str, step: _Step) -> tuple[str, list[torch.Tensor] | None]:
    """Returns the name of the network's input, and what is appended to it for each branch."""
    sample, rows = step.sample, len(step.sample)
    for key, value in step.calls[0].arguments.items():
        if not isinstance(value, torch.Tensor) or value.dim() != sample.dim():
            continue
        if value.shape[2:] != sample.shape[2:] or len(value) % rows:
            continue
        blocks = [b for call in step.calls for b in call.arguments[key].split(rows)]
        width = sample.shape[1]
        if all(torch.equal(b[:, :width], sample.to(b.dtype)) for b in blocks):
            more = value.shape[1] > width
            return key, [b[:1, width:] for b in blocks] if more else None
    raise ValueError(f"{name}: none of the network's arguments is the latents as they are")


def _time_of(name: str, value: Any) -> float:
    times = torch.as_tensor(value).double()
    if times.dim() > 1:
        raise ValueError(f"{name}: a sample has several timesteps, but a plan tells it one")
    times = times.flatten()
    if not len(times) or not bool((times == times[0]).all()):
        raise ValueError(f"{name}: the samples of a batch have different timesteps")
    return float(times[0])


def _line(name, timesteps, times, recorder) -> tuple[float, float]:
    """Returns (slope, shift) of the network's time over the timestep, exact where it is usual."""
    count = float(recorder.config.get("num_train_timesteps") or 1000)
    for slope, shift in ((1.0, 0.0), (1 / count, 0.0), (-1.0, count), (-1 / count, 1.0)):
        largest = max(abs(slope * t + shift) for t in timesteps)
        ends = zip(timesteps, times, strict=True)
        if all(abs(slope * t + shift - found) <= 0.01 * largest for t, found in ends):
            return slope, shift
    raise ValueError(
        f"{name}: its network is told {times[0]:g} and {times[1]:g} at the timesteps "
        f"{timesteps[0]:g} and {timesteps[1]:g}, which is no change of unit or direction"
    )


def _branches(step: _Step, skipped) -> tuple[dict[str, Any], list[dict[str, torch.Tensor]]]:
    """Returns (arguments that have no rows, tensors with rows for each branch) by path."""
    rows, fixed, found = len(step.sample), {}, []
    for call in step.calls:
        count = len(call.probe)
        leaves = dict(_leaves({k: v for k, v in call.arguments.items() if k not in skipped}))
        held = {
            path: leaf
            for path, leaf in leaves.items()
            if isinstance(leaf, torch.Tensor) and leaf.dim() and len(leaf) == count
        }
        fixed |= {path: leaf for path, leaf in leaves.items() if path not in held}
        for k in range(count // rows):
            found.append({path: leaf[k * rows : k * rows + 1] for path, leaf in held.items()})
    return fixed, found


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in value.items():
        if isinstance(each, Mapping) and each:
            yield from _leaves(each, f"{above}{name}.")
        else:
            yield f"{above}{name}", each


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments by name from arguments by path: the inverse of what a recording does."""
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split(".")
        place = made
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return made


def _check_constant(name: str, branches) -> None:
    """Refuses arguments that are other ones in the second step."""
    (fixed, rows), (later_fixed, later_rows) = branches
    pairs = [(fixed, later_fixed), *zip(rows, later_rows, strict=True)]
    for now, later in pairs:
        for path in now:
            if path not in later or not same(now[path], later[path]):
                raise ValueError(
                    f"{name}: the network's argument {path} changes from step to step, but only x "
                    "and the time may"
                )


def same(a: Any, b: Any) -> bool:
    """Returns whether two arguments of a network are equal."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    try:
        return a is b or bool(a == b)
    except (RuntimeError, ValueError):
        return False


def _rounded(scale: float) -> float:
    """Returns a guidance scale without the last digits, which are rounding of the probes."""
    return float(np.format_float_positional(scale, precision=4, fractional=False))
