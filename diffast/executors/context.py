"""What every executor is given, checked once: state, ids, clamp, noise, hook.

Messages begin with the name of the public function that was called (`who`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast import ops, planning
from diffast.executors.device import on_host, pinned
from diffast.executors.made_for import check_made_for
from diffast.executors.results import Info, check_finite
from diffast.model.denoiser import FORMATS
from diffast.planning.choose import whole_calls
from diffast.plans import Plan
from diffast.plans.initial import Initial

# Where fresh noise may come from. A callable gives the normals of a stage.
NOISES = ("counter", "path", "bridge", "redraw")

# Why a source of noise cannot be had on a fixed grid, where every step is accepted.
FIXED_GRID = {
    "bridge": "nothing is rejected on a fixed grid, which a bridge is for: use 'counter' or 'path'",
    "redraw": "nothing is rejected on a fixed grid: use 'counter'",
}

# How a run is given to a device: call by call, or as a CUDA graph.
EXECUTORS = ("sequential", "graph")

# What ops weigh together with a state.
FLOATS = arguments.FLOATS

OnX0 = Callable[[torch.Tensor, Info], torch.Tensor]
Clamp = tuple[float, float]


class Place(NamedTuple):
    """What a run's tensors are, and whose noise they get.

    Attributes:
        shape, dtype, device: of the state.
        ids: [B] int64 on the device.
        seed: folded.
        limits: clamp of the x0 estimate as the ops take it: (low, high), or nothing.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    ids: torch.Tensor
    seed: int
    limits: list[float]

    # Inference mode is off here, the caller's too. Tensors made in it count no writes (`_version`),
    # and a network that writes into its input would not be noticed.
    @torch.inference_mode(False)
    def empty(self, rows: int | None = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Returns a new tensor like the state [B, ...], or with other rows or another dtype."""
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)


def place_of(
    who: str,
    denoiser: Any,
    shape: Any,
    x: Any,
    device: Any,
    seed: int,
    ids: Any,
    clamp: Any,
    looks: bool = True,
) -> Place:
    """Returns what the arguments of a run say of its tensors.

    `looks` is whether x is looked at, which waits for its device.

    Raises:
        ValueError: what disagrees.
    """
    arguments.no_fake_mode(who)
    shape, device, dtype = _state_like(who, denoiser, shape, x, device, looks)
    dims = FORMATS[denoiser.memory_format]
    if dims not in (0, len(shape)):
        raise ValueError(
            f"{who}: memory_format is {denoiser.memory_format}, for {dims} dimensions, but the "
            f"state is {list(shape)}"
        )
    seed, ids = seed_of(who, seed), ids_of(who, ids, shape[0], device)
    return Place(shape, dtype, device, ids, seed, limits_of(who, clamp))


def check_plan(who: str, plan: Any) -> None:
    """Raises ValueError for what is no plan; of a file's name it says how it is loaded."""
    if isinstance(plan, Plan):
        return
    if isinstance(plan, (str, PathLike)):
        raise ValueError(
            f"{who}: plan is the path {str(plan)!r}, but a df.Plan is needed: "
            f"df.Plan.load({str(plan)!r})"
        )
    of_result = ": give its .plan" if isinstance(getattr(plan, "plan", None), Plan) else ""
    raise ValueError(f"{who}: plan is a {type(plan).__name__}, but a df.Plan is needed{of_result}")


def check_fits(who: str, plan: Plan, denoiser: Any) -> None:
    """Raises ValueError if plan and denoiser are for different schedules or prediction types.

    A plan made for another network, or for another guidance scale, is warned of.
    """
    check_plan(who, plan)
    if plan.schedule != denoiser.schedule:
        raise ValueError(
            f"{who}: the plan is for {plan.schedule} but the denoiser for {denoiser.schedule}"
        )
    check_made_for(who, plan, denoiser)


# The plan of each denoiser and number of calls that runs without a plan have asked for. CUDA graphs
# are kept for a plan as an object, so that the next such run has to find the same one.
_STARTING: WeakKeyDictionary[Any, dict[Any, Plan]] = WeakKeyDictionary()


def plan_of(who: str, denoiser: Any, plan: Plan | None, calls: int | None) -> Plan:
    """Returns the plan that was given, or the one to start with for so many calls.

    Raises:
        TypeError: if both or none of plan and calls are given; for a plan that is none.
        ValueError: if plan and denoiser are for different schedules; what `df.plan` raises.
    """
    if plan is None:
        if calls is None:
            raise TypeError(
                f"{who}: neither plan nor calls is given: calls=10 takes df.plan(denoiser, 10)"
            )
        count = whole_calls(who, calls)
        held = _STARTING.setdefault(denoiser, {})
        if count not in held:
            held[count] = planning.plan(denoiser, count)
        return held[count]
    if calls is not None:
        shown = plan.name if isinstance(plan, Plan) else repr(plan)
        raise TypeError(
            f"{who}: plan {shown} and calls = {calls} are given, but calls is for runs without a "
            "plan: give one of the two"
        )
    check_fits(who, plan, denoiser)
    return plan


def check_own_times(who: str, denoiser: Any) -> None:
    """Raises ValueError for a network that takes one time for all samples.

    For runs whose samples stand at different times.
    """
    if getattr(denoiser.network, "one_time", False):
        raise ValueError(
            f"{who}: the field takes one time for all samples (time_shape), but this run gives "
            "each sample its own: use df.sample, or a field of time_shape='batch'"
        )


# Below this many numbers the spread of an initial state says too little.
_LEAST_NUMBERS = 32
# Where the noise is _MOSTLY times the signal, x is hardly less than the noise. Where it is _NOISY
# times the signal, x is noise alone to a percent or so.
_MOSTLY, _NOISY = 3.0, 10.0
_FAR = 3.0
# A plan may start below the schedule's highest level, by more than this factor: then x whose spread
# is about the highest level is noise that was scaled for another plan.
_LATE, _NEAR = 1.5, 0.15


def warn_of_spread(
    who: str, schedule: Any, time: Any, x: torch.Tensor | None, initial: Initial | None = None
) -> None:
    """Warns where an initial state at a noisy time has another spread than the noise there.

    Unit noise where sigma is 80, noise that was scaled twice, or noise of the schedule's highest
    level for a plan that starts lower, gives wrong samples in silence. So does noise for a plan
    that starts from a Gaussian law, `initial`. Only states on the host are looked at: on a device
    the look would wait for it.
    """
    if x is None or not on_host(x.device) or x.numel() < _LEAST_NUMBERS:
        return
    alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
    if initial is not None:
        laws, size = initial.law.laws, size_of(x)
        sizes = [(alpha**2 * law.energy / law.d + sigma**2) ** 0.5 for law in laws]
        if not min(sizes) / _FAR <= size <= max(sizes) * _FAR:
            warnings.warn(
                f"{who}: x has root mean square {size:.3g} (median of its samples), but the plan "
                f"starts from a Gaussian law of the data, whose states have {max(sizes):.3g} at t "
                f"= {time:g}: make x by df.initial_state, or leave x out",
                stacklevel=3,
            )
        return
    if not sigma > _MOSTLY * alpha:
        return
    size, highest = size_of(x), float(schedule.sigma(schedule.t_start))
    wrong = size < sigma / _FAR or (sigma > _NOISY * alpha and size > sigma * _FAR)
    whole = float(x.detach().float().square().mean().sqrt())
    of_highest = highest > _LATE * sigma and abs(whole / highest - 1.0) < _NEAR
    if wrong or of_highest or size != size:
        factor = "plan.initial_scale" if of_highest else "the schedule's sigma"
        warnings.warn(
            f"{who}: x has root mean square {size:.3g} (median of its samples), but at the start "
            f"t = {time:g} it should be noise of deviation sigma = {sigma:.3g}: multiply normals "
            f"by {factor}, or leave x out",
            stacklevel=3,
        )


def size_of(x: torch.Tensor) -> float:
    """Returns the root mean square of a state [B, ...], the median of its samples.

    A single strange sample is the caller's, and fails by itself.
    """
    x = x.detach().float()
    size = float(x.flatten(1).norm(dim=1).median()) if x.dim() > 1 else float(x.std())
    return size / (x.numel() / len(x)) ** 0.5


def _state_like(
    who: str,
    denoiser: Any,
    shape: Sequence[int] | None,
    x: torch.Tensor | None,
    device: Any,
    looks: bool,
) -> tuple[tuple[int, ...], torch.device, torch.dtype]:
    """Returns shape, device and dtype of the state."""
    if x is None:
        if shape is None:
            raise ValueError(f"{who}: neither shape nor x is given, but one is needed")
        shape = arguments.sizes(who, shape)
        place = denoiser.device() if device is None else arguments.device(who, device)
        return shape, place, torch.float32
    arguments.state(who, "x", x)
    if shape is not None and arguments.sizes(who, shape) != tuple(x.shape):
        raise ValueError(f"{who}: shape is {list(shape)} but x has {list(x.shape)}")
    if looks and on_host(x.device):  # on a device at the end, see Result.or_raise
        check_finite(who, x)
    place = x.device if device is None else arguments.device(who, device)
    return tuple(x.shape), place, x.dtype


def ids_of(who: str, ids: Any, batch: int, device: torch.device) -> torch.Tensor:
    """Returns the ids as int64 [B] on the device, or raises ValueError."""
    if ids is None:
        return torch.arange(batch, dtype=torch.int64, device=device)
    given = arguments.ids(who, ids, batch)
    return pinned(given, device).to(device, non_blocking=True).contiguous()


def seed_of(who: str, seed: Any) -> int:
    """Returns the seed as ops take it, or raises TypeError or ValueError."""
    try:
        return ops.fold_seed(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from None


def limits_of(who: str, clamp: Clamp | None) -> list[float]:
    """Returns the clamp as the ops take it, or raises ValueError."""
    if clamp is None:
        return []
    pair: Any = () if isinstance(clamp, (str, bytes, Mapping, set)) else clamp
    try:
        low, high = pair
    except (TypeError, ValueError):
        said = arguments.shown(clamp)
        raise ValueError(f"{who}: clamp is {said} but must be two numbers, (low, high)") from None
    low, high = (arguments.number(who, "clamp", end, "", lambda n: True) for end in (low, high))
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"{who}: clamp is ({low:g}, {high:g}) but must be finite and in order")
    return [low, high]


def check_noise(who: str, noise: Any, refused: dict[str, str]) -> Any:
    """Returns where fresh noise comes from: a name of NOISES, or a callable.

    Raises:
        ValueError: another name; one that is among `refused`, with the reason that stands there.
    """
    if isinstance(noise, torch.Tensor):
        raise ValueError(
            f"{who}: noise is a tensor, but noise says where fresh noise comes from "
            f"({', '.join(NOISES)} or a callable): the initial state is x="
        )
    kind = "callable" if callable(noise) else noise
    if not callable(noise) and not (isinstance(noise, str) and noise in NOISES):
        raise ValueError(
            f"{who}: noise is {arguments.shown(noise)} but must be one of {', '.join(NOISES)} or a "
            "callable"
        )
    if kind in refused:
        named = "a callable" if callable(noise) else repr(noise)
        raise ValueError(f"{who}: noise is {named} but {refused[kind]}")
    return noise


def check_executor(who: str, executor: str) -> None:
    """Raises ValueError for a name that is not among EXECUTORS."""
    arguments.choice(who, "executor", executor, EXECUTORS)


def check_flags(who: str, *, on_x0: Any = None, callback: Any = None, **flags: Any) -> None:
    """Raises TypeError for hooks that cannot be called, and flags that are neither true nor false.

    Args:
        who: the public function.
        on_x0: the hook, or None.
        callback: the callback, or None.
        flags: by name.
    """
    if on_x0 is not None:
        arguments.function(who, "on_x0", on_x0)
    if callback is not None:
        arguments.function(who, "callback", callback)
    for name, value in flags.items():
        if value is not True and value is not False:
            arguments.flag(who, name, value)


def refuse(who: str, **given: tuple[Any, str]) -> None:
    """Raises ValueError if an argument, (value, why it cannot be had here), has a value."""
    for name, (value, why) in given.items():
        if value is not None and value is not False:
            raise ValueError(f"{who}: {name} is given but {why}")


def hooked(who: str, on_x0: OnX0, x0: torch.Tensor, info: Info) -> torch.Tensor:
    """Returns what the hook makes of the x0 estimate [B, ...].

    Raises:
        ValueError: if it returns no tensor of that shape, on that device, of floating point.
    """
    changed = on_x0(x0, info)
    if not isinstance(changed, torch.Tensor) or changed.shape != x0.shape:
        got = list(changed.shape) if isinstance(changed, torch.Tensor) else type(changed).__name__
        raise ValueError(f"{who}: on_x0 was given {list(x0.shape)} but returned {got}")
    if changed.device != x0.device or changed.dtype not in FLOATS:
        raise ValueError(f"{who}: {unlike('what on_x0 returned', changed, x0)}")
    return changed


def blame(
    error: Exception, where: str, state: torch.Tensor, given: Mapping[str, torch.Tensor]
) -> None:
    """Raises an op's error in the caller's words, if a tensor of the caller's is why; else nothing.

    For an `except` clause: a run without errors does not pay for it. `where` is the public function
    and the stage. `given` are the tensors from outside, by what the caller would call them.
    """
    for name, tensor in given.items():
        complaint = unlike(name, tensor, state)
        if complaint is not None:
            raise ValueError(f"{where}: {complaint}") from error
    for name, tensor in {**given, "the state": state}.items() if torch.is_grad_enabled() else ():
        if tensor.requires_grad:
            raise ValueError(
                f"{where}: {name} requires a gradient, but a step has none: step under "
                "torch.no_grad(), or detach the tensor"
            ) from error


def check_apart(who: str, outputs: Iterable[torch.Tensor]) -> None:
    """Raises ValueError where the networks of two branches gave the same memory back."""
    starts = [output.data_ptr() for output in outputs if output.numel() and not output.is_meta]
    if len(set(starts)) < len(starts):
        raise ValueError(
            f"{who}: the networks of two branches returned the same tensor, so that the second "
            "output has replaced the first: give copies"
        )


def unlike(name: str, tensor: Any, state: torch.Tensor) -> str | None:
    """Returns why no op can weigh the tensor together with the state; None if one can."""
    if not isinstance(tensor, torch.Tensor):
        return f"{name} is a {type(tensor).__name__} but a tensor is needed"
    if tensor.device != state.device:
        return f"{name} is on {tensor.device} but the state is on {state.device}"
    if tensor.dtype not in FLOATS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        return f"{name} is {tensor.dtype} but must be one of {known}"
    if tensor.shape != state.shape:
        return f"{name} is {list(tensor.shape)} but the state is {list(state.shape)}"
    return None


def on_rows(arguments: Mapping[str, Any], change: Callable) -> dict[str, Any]:
    """Returns a network's conditions, with what `change` makes of those that have rows."""
    return {name: change(value) if has_rows(value) else value for name, value in arguments.items()}


def has_rows(condition: Any) -> bool:
    """Returns whether a network's condition has a row for each sample."""
    return isinstance(condition, torch.Tensor) and condition.dim() > 0


def put_initial(state: torch.Tensor, x: torch.Tensor | None, scale: float, place: Place) -> None:
    """Writes the initial state: x, or the package's normals times `scale`."""
    if x is None:
        ops.normal_out(place.ids, place.seed, ops.INITIAL_NOISE, scale, state)
    else:
        state.copy_(pinned(x, state.device), non_blocking=True)


def put_opening(
    state: torch.Tensor,
    opening: tuple[float, float] | None,
    place: Place,
    given: Callable[[], torch.Tensor] | None = None,
) -> None:
    """Moves the initial state [B, ...] to where the first network call stands, in place.

    The opening is the weights (keep, fresh) of a lowered plan. `given` returns the normals, in
    place of the package's own.
    """
    if opening is None:
        return
    keep, fresh = opening
    if fresh and given is not None:
        ops.combine_out([state, given()], [keep, fresh], [state])
    else:
        noise = [fresh] if fresh else []
        rest = ops.OPENING_NOISE, noise, place.seed, place.ids
        ops.combine_out([state], [keep], [state], None, *rest)


def progress_bar(total: int, name: str, unit: str, wanted: bool) -> Any:
    """Returns tqdm's bar on stderr, or something with its `update` that shows nothing."""
    if not wanted:
        return nullcontext(SimpleNamespace(update=lambda count=1: None))
    from tqdm import tqdm

    return tqdm(total=total, desc=name, unit=unit)
