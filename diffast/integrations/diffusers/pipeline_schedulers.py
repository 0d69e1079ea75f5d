"""The schedulers of a pipeline: where they are, and putting others in their places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline, SchedulerMixin

try:
    from diffusers import ModularPipeline
except ImportError:  # older diffusers
    ModularPipeline = DiffusionPipeline

_PIPELINES = (DiffusionPipeline, ModularPipeline)
# Schedulers under these names noise a picture and never step: a drop-in would change nothing.
ONLY_NOISING = frozenset({"low_res_scheduler", "image_noising_scheduler"})
_KEY = "_diffast_replaced"  # attribute of a pipeline: list of lists of `Replaced`


@dataclass(frozen=True)
class Place:
    """Where a scheduler is: an attribute of a pipeline, or an entry of a dict or list.

    Attributes:
        owner: the pipeline, dict or list.
        key: the attribute's name, the key or the index.
        name: as people write it, from the pipeline on: "prior_pipe.scheduler".
    """

    owner: Any
    key: Any
    name: str

    def get(self) -> Any:
        """Returns what is there now; None: nothing."""
        try:
            if isinstance(self.owner, (dict, list)):
                return self.owner[self.key]
            return getattr(self.owner, self.key, None)
        except (KeyError, IndexError):
            return None

    def put(self, scheduler: Any) -> None:
        """Puts a scheduler there."""
        if isinstance(self.owner, (dict, list)):
            self.owner[self.key] = scheduler
        else:
            setattr(self.owner, self.key, scheduler)


@dataclass(frozen=True)
class Replaced:
    """What was put where.

    Attributes:
        place: where.
        before: the scheduler that was there.
        after: the one that is there now.
    """

    place: Place
    before: Any
    after: Any


def is_scheduler(value: Any) -> bool:
    """Returns whether a value is a scheduler, of diffusers or of somebody else."""
    if isinstance(value, type):
        return False
    steps = callable(getattr(value, "step", None))
    return isinstance(value, SchedulerMixin) or (
        steps and callable(getattr(value, "set_timesteps", None))
    )


def places_of(pipe: Any) -> list[Place]:
    """Returns the places of all schedulers of a pipeline, that of `pipe.scheduler` first.

    Pipelines inside it, dicts, lists and tuples of them are looked through.

    Args:
        pipe: a diffusers pipeline, or anything with a `scheduler`.
    """
    found = list(_walk(pipe, "", set()))
    listed = any(place.owner is pipe and place.key == "scheduler" for place in found)
    if not listed and is_scheduler(getattr(pipe, "scheduler", None)):
        found.append(Place(pipe, "scheduler", "scheduler"))
    return sorted(found, key=lambda place: place.name != "scheduler")


def _walk(owner: Any, prefix: str, seen: set[int]) -> Iterator[Place]:
    """Yields the places inside one owner, each owner once."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    for key, value in _items(owner):
        name = f"{prefix}[{key!r}]" if isinstance(owner, (dict, list, tuple)) else f"{prefix}.{key}"
        name = name.removeprefix(".")
        if is_scheduler(value):
            if not isinstance(owner, tuple):  # entries of a tuple cannot be replaced
                yield Place(owner, key, name)
        elif isinstance(value, (*_PIPELINES, dict, list, tuple)):
            yield from _walk(value, name, seen)


def _items(owner: Any) -> list[tuple[Any, Any]]:
    if isinstance(owner, dict):
        return list(owner.items())
    if isinstance(owner, (list, tuple)):
        return list(enumerate(owner))
    own = {k: v for k, v in getattr(owner, "__dict__", {}).items() if k not in _SKIPPED}
    if isinstance(owner, ModularPipeline) and ModularPipeline is not DiffusionPipeline:
        for name in getattr(owner, "component_names", ()):
            own.setdefault(name, getattr(owner, name, None))
    return list(own.items())


_SKIPPED = frozenset({_KEY, "_internal_dict", "hf_device_map"})


def replace(pipe: Any, pairs: list[Replaced]) -> None:
    """Puts the schedulers into their places and notes it; on an error none of them.

    Args:
        pipe: where it is noted.
        pairs: what to put where.
    """
    done: list[Replaced] = []
    try:
        for pair in pairs:
            done.append(pair)
            pair.place.put(pair.after)
        _noted(pipe)[_KEY] = [*_noted(pipe).get(_KEY, ()), pairs]
    except BaseException:
        for pair in reversed(done):
            pair.place.put(pair.before)
        raise


def level_of(pipe: Any) -> int:
    """Returns how often something was replaced and not put back."""
    return len(_noted(pipe).get(_KEY, ()))


def put_back(pipe: Any, level: int = 0) -> tuple[list[Replaced], list[Replaced]]:
    """Returns (what was put back, what was not, as somebody has replaced it since).

    Args:
        pipe: the pipeline.
        level: how many replacements stay.
    """
    levels = _noted(pipe).get(_KEY, [])
    back, kept = [], []
    for pair in [pair for pairs in reversed(levels[level:]) for pair in reversed(pairs)]:
        if pair.place.get() is pair.after:
            pair.place.put(pair.before)
            back.append(pair)
        else:
            kept.append(pair)
    if level:
        _noted(pipe)[_KEY] = levels[:level]
    else:
        _noted(pipe).pop(_KEY, None)
    return back, kept


def _noted(pipe: Any) -> dict[str, Any]:
    """Returns the attributes of a pipeline, past what its own code does about writes to them."""
    try:
        return vars(pipe)
    except TypeError:
        raise ValueError(
            f"accelerate: a {type(pipe).__name__} has no attributes of its own (__slots__), but "
            "what was replaced is noted in one"
        ) from None
