"""The arguments of `df.tune`, checked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch

from diffast._arguments import no_fake_mode
from diffast.lowering.program import rule_name
from diffast.model.denoiser import Denoiser
from diffast.model.fingerprint import fingerprint
from diffast.ops import MAX_INPUTS
from diffast.plans import Plan
from diffast.plans.initial import check_plain_start
from diffast.plans.provenance import digest
from diffast.tuning.directions import stages_of
from diffast.tuning.parameters import FREEDOMS, STANDARD

# Candidates are compared at first on pilots that hold about so many numbers.
_SCREENED = 4096
# What a plan has at most, and what is held at most, in numbers: beyond, a number is a slip.
MOST_CALLS, _MOST_NUMBERS = 10_000, 2**38


@dataclass(frozen=True)
class Settings:
    """What `df.tune` was asked for; the names are those of its arguments."""

    denoiser: Denoiser
    calls: int
    shape: tuple[int, ...]
    stochastic: bool
    freedom: tuple[str, ...]
    conditions: Callable | None
    held_out: int
    batch: int
    iterations: int
    starts: int
    polish: int
    saves: bool
    seed: int
    features: Callable | None
    tolerance: float
    measured_grids: bool
    compare: tuple[float, ...]
    start: Plan | None
    rows: int
    memory_limit: int
    device: torch.device
    progress: bool
    notes: tuple[str, ...]

    @property
    def screened(self) -> int:
        """Returns the number of pilots on which candidates are compared at first."""
        if self.stochastic:
            return self.shape[0]
        rows = _SCREENED // max(1, math.prod(self.shape[1:]))
        return min(max(rows, 8), 64, self.shape[0])

    def record(self) -> dict[str, Any]:
        """Returns what a file of the run is known by: all that the result depends on."""
        kept = (
            "calls",
            "shape",
            "stochastic",
            "freedom",
            "held_out",
            "batch",
            "iterations",
            "starts",
            "seed",
        )
        kept = (*kept, "polish", "saves", "tolerance", "compare", "rows", "memory_limit")
        kept = (*kept, "measured_grids")
        found = {name: getattr(self, name) for name in kept}
        denoiser, scale = self.denoiser, self.denoiser.guidance
        if denoiser.guides:  # files of runs without them do not have the name
            found["guides"] = [self._term(term) for term in denoiser.guides]
        return found | {
            "schedule": f"{denoiser.schedule} {_levels(denoiser.schedule)}",
            "predicts": denoiser.predicts,
            "network": fingerprint(denoiser.network),
            "guidance": self._scales() if callable(scale) else float(scale),
            "features": self.features is not None,
            "start": None if self.start is None else f"{self.start.name} {digest(self.start)}",
            "conditions": [_digest(denoiser.conditions), _digest(denoiser.unconditional)],
        }

    def _term(self, term: Any) -> list[Any]:
        """Returns what a guidance term is known by; its function is not."""
        return [term.name, term.through, term.scales(_times(self.denoiser.schedule)).tolist()]

    def _scales(self) -> list[float]:
        """Returns guidance scales at 33 times, of a guidance that is a function of the time."""
        return [float(w) for w in self.denoiser.scales(_times(self.denoiser.schedule))]


def _times(schedule: Any) -> np.ndarray:
    return np.linspace(float(schedule.t_min), float(schedule.t_start), 33)


def _levels(schedule: Any) -> str:
    """Returns 16 hexadecimal digits of a schedule's levels: not every one prints all it is."""
    times = _times(schedule)
    levels = np.stack([np.broadcast_to(f(times), 33) for f in (schedule.alpha, schedule.sigma)])
    return hashlib.sha256(levels.astype("<f8").tobytes()).hexdigest()[:16]


def _digest(conditions: Mapping[str, Any] | None) -> str | None:
    """Returns 16 hexadecimal digits of the tensors in conditions and of the names of the others."""
    if conditions is None:
        return None
    found = hashlib.sha256()
    for name, value in sorted(conditions.items()):
        found.update(name.encode())
        if isinstance(value, torch.Tensor):
            found.update(f"{list(value.shape)}".encode())
            found.update(value.detach().cpu().double().numpy().tobytes())
        elif isinstance(value, (bool, int, float, str, bytes, type(None))):
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def check_arguments(
    denoiser: Any, calls: Any, shape: Any, freedom: Any, held_out: Any, **others: Any
) -> Settings:
    """Returns the arguments of `df.tune` as they are used.

    Raises:
        ValueError: what disagrees.
    """
    no_fake_mode("tune")
    _check_resume(others.pop("resume"))
    for name in ("stochastic", "checkpoint", "measured_grids", "progress"):
        others[name] = _switch(name, others[name])
    others["seed"] = _whole("seed", others["seed"], -(2**63), 2**64 - 1)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"tune: denoiser is a {type(denoiser).__name__}, but must be a df.Denoiser"
        )
    check_guidance(denoiser)
    calls = _whole("calls", calls, 1, MOST_CALLS)
    if isinstance(shape, (str, int)) or not hasattr(shape, "__iter__"):
        raise ValueError(f"tune: shape is {shape!r}, but [B, ...] is needed")
    shape = tuple(_whole("shape", n, 1) for n in shape)
    for name in ("conditions", "features"):
        if not (others[name] is None or callable(others[name])):
            raise ValueError(
                f"tune: {name} is a {type(others[name]).__name__}, but must be a function"
            )
    if len(shape) < 2:
        raise ValueError(
            f"tune: shape is {list(shape)}, but [B, ...] is needed: B pilots of a sample's shape"
        )
    if shape[0] < 2:
        raise ValueError(f"tune: shape is {list(shape)}, but 2 pilots are needed at least")
    held_out = shape[0] if held_out is None else _whole("held_out", held_out, 2)
    held = max(held_out, shape[0]) * math.prod(shape[1:])
    if held > _MOST_NUMBERS:
        raise ValueError(
            f"tune: {max(held_out, shape[0])} samples of {list(shape[1:])} are {held} numbers, but "
            f"at most {_MOST_NUMBERS} can be held"
        )
    place = _device(denoiser, others.pop("device"))
    if others["rows"] is None:
        others["rows"] = 64 if place.type == "cpu" else 512
    bounds = {"batch": 1, "iterations": 0, "starts": 1, "polish": 0, "rows": 1, "memory_limit": 1}
    for name, least in bounds.items():
        others[name] = _whole(name, others[name], least)
    others["batch"] = min(others["batch"], shape[0])
    stochastic = others["stochastic"] = bool(others["stochastic"])
    if stochastic:
        others["batch"] = shape[0]
        if others["polish"]:
            raise ValueError("tune: polish is given, but it is for deterministic plans alone")
    if freedom is None:
        freedom = (*STANDARD, *(("noise",) if stochastic else ("start",)))
    freedom, notes = _freedom(denoiser, freedom, stochastic)
    if "directions" in freedom:
        _check_directions(denoiser, calls)
    start = others["start"]
    if start is not None:
        _check_start(denoiser, start, calls)
    compare = others.pop("compare")
    if compare is None or isinstance(compare, (str, bytes, Mapping)):
        raise ValueError(f"tune: compare is {compare!r}, but multiples of calls are needed")
    compare = tuple(
        _positive("compare", n) for n in ((compare,) if np.isscalar(compare) else compare)
    )
    if any(n * calls > MOST_CALLS for n in compare):
        raise ValueError(
            f"tune: compare holds {max(compare):g} and calls is {calls}, but at most {MOST_CALLS} "
            "calls can be asked for"
        )
    if not _positive("tolerance", others["tolerance"]) < 1.0:
        raise ValueError(f"tune: tolerance is {others['tolerance']}, but must lie in (0, 1)")
    return Settings(
        denoiser=denoiser,
        calls=calls,
        shape=shape,
        freedom=freedom,
        held_out=held_out,
        compare=compare,
        device=place,
        saves=bool(others.pop("checkpoint")),
        notes=notes,
        **others,
    )


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    try:
        found = int(value)
    except (OverflowError, TypeError, ValueError, RuntimeError):
        found = None
    if isinstance(value, (bool, str)) or found is None or found != value or found < least:
        raise ValueError(f"tune: {name} is {value!r}, but must be a whole number from {least}")
    if most is not None and found > most:
        raise ValueError(f"tune: {name} is {value!r}, but must be at most {most}")
    return found


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)) and not (isinstance(value, int) and value in (0, 1)):
        raise ValueError(f"tune: {name} is {value!r}, but must be True or False")
    return bool(value)


def _check_resume(resume: Any) -> None:
    if resume is not None and not isinstance(resume, (str, PathLike)):
        raise ValueError(f"tune: resume is a {type(resume).__name__}, but a file's path is needed")
    if resume is not None and "\0" in str(resume):
        raise ValueError(f"tune: resume is {resume!r}, but a file's name has no zero byte")


def _device(denoiser: Denoiser, device: Any) -> torch.device:
    try:
        place = denoiser.device() if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"tune: device is {device!r}, but a torch device is needed") from None
    if place.type == "meta":
        raise ValueError(
            "tune: the device is meta, where tensors have no values: give device='cpu'"
        )
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"tune: device is {device!r}, but this torch sees no CUDA device")
    return place


def _positive(name: str, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not 0.0 < found < math.inf:
        raise ValueError(f"tune: {name} is {value!r}, but must be a positive number")
    return found


def check_guidance(denoiser: Denoiser) -> None:
    """Raises ValueError for guidance that plans are not tuned with: terms, or rules.

    Learning differentiates a run by its weights, and that of a term or a rule is not known.
    """
    if denoiser.guides:
        raise ValueError(
            f"tune: the denoiser has {len(denoiser.guides)} guidance terms, but a plan is tuned "
            "for a network alone: tune without guides, and run the plan with them"
        )
    if denoiser.rule is not None:
        raise ValueError(
            f"tune: guidance is {rule_name(denoiser.rule)}, but a plan is tuned with "
            "classifier-free guidance alone: give a scale, and run the plan with the rule"
        )


def _check_directions(denoiser: Denoiser, calls: int) -> None:
    """Raises ValueError for more stages of two calls than a step can remember."""
    if getattr(denoiser.network, "one_time", False):
        raise ValueError(
            "tune: freedom holds 'directions', which tells a batch two times, but the field takes "
            "one time for all samples: leave it out, or use a field with time_shape='batch'"
        )
    outputs = 2 if denoiser.unconditional is None else 4
    stages, most = len(stages_of(calls)), MAX_INPUTS - 2 - outputs + 1
    if stages > most:
        raise ValueError(
            f"tune: freedom holds 'directions' and calls is {calls}, but such plans have at most "
            f"{2 * most - 1} calls here: leave 'directions' out"
        )


def _freedom(
    denoiser: Denoiser, freedom: Sequence[str], stochastic: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of what is learned, in the order of FREEDOMS, and what has to be said."""
    named = (freedom,) if isinstance(freedom, str) else freedom
    named = [*named] if isinstance(named, Iterable) else [named]
    if not all(isinstance(name, str) for name in named):
        raise ValueError(f"tune: freedom is {freedom!r}, but names of freedoms are needed")
    wanted = set(named)
    unknown = sorted(wanted - {*FREEDOMS})
    if unknown:
        raise ValueError(
            f"tune: freedom holds {unknown[0]!r}, but the freedoms are {', '.join(FREEDOMS)}"
        )
    if "guidance" in wanted and denoiser.unconditional is None:
        raise ValueError(
            "tune: freedom holds 'guidance', but the denoiser has no unconditional conditions"
        )
    if "noise" in wanted and not stochastic:
        raise ValueError("tune: freedom holds 'noise', but stochastic is False")
    if "directions" in wanted and stochastic:
        raise ValueError("tune: freedom holds 'directions', but stochastic is True")
    notes = ()
    dtype = denoiser.time_dtype
    if "times" in wanted and dtype is not None and not dtype.is_floating_point:
        wanted.remove("times")
        notes = (f"the network wants its time as {dtype}, so told times are not learned",)
    return tuple(name for name in FREEDOMS if name in wanted), notes


def _check_start(denoiser: Denoiser, start: Any, calls: int) -> None:
    if not isinstance(start, Plan):
        raise ValueError(f"tune: start is a {type(start).__name__}, but must be a df.Plan")
    check_plain_start("tune", start, "tune the plan first, then start it late")
    if start.schedule != denoiser.schedule:
        raise ValueError(
            f"tune: start is a plan for {start.schedule}, but the denoiser is for "
            f"{denoiser.schedule}"
        )
    if start.nfe > calls:
        raise ValueError(f"tune: start has {start.nfe} network calls, but calls is {calls}")
