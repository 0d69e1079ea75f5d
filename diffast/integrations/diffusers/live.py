"""What a drop-in watches: writes of other people's code to the live scheduler.

diffusers' schedulers read their configuration and their tensors anew at every step, and pipelines
and users write to them: attributes are replaced, tensors are changed in place, options are set on
the configuration, the memory of a multistep method is swapped. A drop-in prepares a run ahead, so
it has to notice each of these. No check here reads from a device.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import FunctionType
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict

# Attributes of a drop-in that are not settings: writing to them makes no plan stale.
OURS = frozenset(
    {
        *("_base", "_begin_index", "_compiled", "_count", "_counter", "_doubt"),
        *("_factors", "_foreign", "_handed", "_internal_dict", "_kept", "_live", "_made"),
        *("_numbers", "_odd", "_odd_run", "_order", "_per_run", "_positions", "_run", "_said"),
        *("_size", "_step_index", "_strict", "_trial", "_watched", "_writes", "host"),
        "is_scale_input_called",
    }
)


class LiveConfig(FrozenDict):
    """A scheduler's configuration that counts the writes to it.

    diffusers' FrozenDict does not keep people from writing, and its methods read attributes, which
    `config.option = value` sets, while the item of that name stays as it was.
    """

    @classmethod
    def of(cls, config: FrozenDict) -> LiveConfig:
        """Returns a configuration of the same items and attributes."""
        if type(config) is cls:
            return config
        made = cls(config)
        vars(made).update(vars(config))
        vars(made).pop("_before", None)
        return made

    def after(self, other: Any) -> LiveConfig:
        """Returns itself; the options before are those of the configuration that it replaces."""
        if isinstance(other, LiveConfig) and other is not self:
            vars(self)["_before"] = {**settings_of(other), **vars(other).get("_before", {})}
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets it and counts the write."""
        own = vars(self)
        before = own.get(name)
        super().__setattr__(name, value)
        self._note(name)
        own.setdefault("_before", {}).setdefault(name, before)

    def __setitem__(self, name: str, value: Any) -> None:
        """Sets the item and counts the write."""
        super().__setitem__(name, value)
        self._note(name)

    def _note(self, name: str) -> None:
        """Counts a write to that option."""
        own = vars(self)
        own["_writes"] = count = own.get("_writes", 0) + 1
        own["_written"] = {**own.get("_written", {}), name: count}  # copies share no dict

    def __reduce__(self):
        """Returns how to copy it, attributes included."""
        return _remade, (dict(self), dict(vars(self)))


def _remade(items: dict, attributes: dict) -> LiveConfig:
    made = LiveConfig(items)
    vars(made).clear()
    vars(made).update(attributes)
    return made


def is_rewritten(config: FrozenDict) -> bool:
    """Returns whether an attribute of the configuration differs from its item."""
    own = vars(config)
    return any(name in own and not same(own[name], value) for name, value in config.items())


def settings_of(config: FrozenDict) -> dict[str, Any]:
    """Returns the options as diffusers reads them: the attribute, where it was written."""
    own = vars(config)
    return {name: own.get(name, value) for name, value in config.items()}


def setting(config: Any, name: str, default: Any = None) -> Any:
    """Returns one option as diffusers reads it, by attribute."""
    return getattr(config, name, default)


def setting_before(config: FrozenDict, name: str) -> Any:
    """Returns the option as it was when the run was prepared."""
    before = vars(config).get("_before", {})
    return before[name] if name in before else setting(config, name)


def same(one: Any, other: Any) -> bool:
    """Returns whether two attributes of schedulers hold the same values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, FunctionType):  # a default that each constructor call makes anew
        return one.__code__ is other.__code__ and same(one.__defaults__, other.__defaults__)
    if isinstance(one, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        one, other = one.detach().cpu(), other.detach().cpu()
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and bool((one == other).all())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    try:
        return bool(one == other) or (one != one and other != other)
    except Exception:
        return False


# Tensors that no step reads, as they matter to `set_timesteps` alone; further ones that no step of
# a scheduler with `sigmas` reads. The sigmas themselves are compared by value.
_OF_TRAINING = frozenset({"alphas", "alpha_t", "betas", "lambda_t", "sigma_t"})
_UNREAD = _OF_TRAINING | {"alphas_cumprod", "sigmas", "timesteps"}


class Watch:
    """The tensors and lists of a scheduler, as they were when a run was prepared.

    A tensor that autograd counts is compared by its version. Memory that is written past this
    counter (`.data`, a numpy view) is compared by value where the tensor is on the CPU and short.
    """

    __slots__ = (
        *("all", "level", "levels", "lists", "moved", "views"),
        *("config", "config_attributes", "config_writes"),
    )

    def __init__(self, attributes: dict[str, Any], skipped: Any, needed: Any = ()):
        """Looks at the attributes.

        Args:
            attributes: of the scheduler.
            skipped: names of those that are not looked at.
            needed: names of those that its step reads, though most schedulers' steps do not.
        """
        self.config = attributes["_internal_dict"]
        self.config_attributes = vars(self.config)
        self.config_writes = self.config_attributes["_writes"]
        kept = {name: value for name, value in attributes.items() if name not in skipped}
        tensors = {n: v for n, v in kept.items() if isinstance(v, torch.Tensor)}
        counted = {n: v for n, v in tensors.items() if not v.is_inference()}
        self.all = [(name, tensor, tensor._version) for name, tensor in counted.items()]
        # those that a step reads
        unread = _UNREAD if "sigmas" in kept else _OF_TRAINING
        unread = unread - set(needed)
        of_steps = {name: tensor for name, tensor in counted.items() if name not in unread}
        read = [*of_steps.values()]
        # noise levels, also where a write gives them no new version
        level = kept.get("sigmas")
        self.level = view_of(level) if isinstance(level, torch.Tensor) else None
        self.level = np.empty(0) if self.level is None else self.level
        self.levels = self.level.tobytes()
        if level is not None and not len(self.levels) and not level.is_inference():
            read.append(level)
        short = [tensor for tensor in of_steps.values() if len(tensor.shape) < 2]
        values = {id(tensor): view_of(tensor) for tensor in short}
        values = {key: view for key, view in values.items() if view is not None}
        read = [tensor for tensor in read if id(tensor) not in values]
        self.moved = _moved(
            [*read, *values.values()],
            [*[tensor._version for tensor in read], *[v.tobytes() for v in values.values()]],
        )
        self.views = [(n, v, view_of(v)) for n, v in tensors.items()]
        self.views = [(n, v, view.tobytes()) for n, v, view in self.views if view is not None]
        self.lists = [
            (n, v, v.tobytes() if isinstance(v, np.ndarray) else list(v))
            for n, v in kept.items()
            if isinstance(v, (list, np.ndarray))
        ]

    def is_reconfigured(self, config: Any) -> bool:
        """Returns whether the scheduler's configuration was written to or replaced."""
        return config is not self.config or self.config_attributes["_writes"] != self.config_writes

    def reconfigured(self, config: Any) -> list[str]:
        """Returns the options of the configuration that were written to, as "config.eta"."""
        if config is not self.config:
            before = settings_of(self.config)
            found = [n for n, v in settings_of(config).items() if not same(v, before.get(n))]
        else:
            written = self.config_attributes.get("_written", {})
            found = [name for name, count in written.items() if count > self.config_writes]
        return [f"config.{name}" for name in found] or ["config"]

    def changed(self) -> set[str]:
        """Returns the names of those whose values have changed; for the start of a run."""
        found = {name for name, tensor, version in self.all if tensor._version != version}
        for name, tensor, was in self.views:
            view = view_of(tensor)
            if view is None or view.tobytes() != was:
                found.add(name)
        for name, value, was in self.lists:
            now = value.tobytes() if isinstance(value, np.ndarray) else list(value)
            if not same(now, was):
                found.add(name)
        return found


def view_of(tensor: torch.Tensor) -> np.ndarray | None:
    """Returns the CPU tensor's memory as an array; None: it is elsewhere."""
    if tensor.device.type != "cpu" or tensor.dtype == torch.bfloat16:
        return None
    return tensor.detach().numpy()


def _moved(watched: list, was: list) -> Callable[[], bool] | None:
    """Returns a function that says whether something was written to; None: there is nothing.

    Four comparisons by name take half the time of two lists.

    Args:
        watched: tensors, compared by version, and arrays, compared by value.
        was: versions and bytes of them.
    """
    if not watched:
        return None
    now: list[Any] = [_version if isinstance(e, torch.Tensor) else _bytes for e in watched]
    if len(watched) > 4:
        every = list(zip(now, watched, was, strict=True))
        return lambda: any(read(each) != before for read, each, before in every)
    missing = 4 - len(watched)
    (f1, f2, f3, f4), (w1, w2, w3, w4), (b1, b2, b3, b4) = (
        [*each, *[each[0]] * missing] for each in (now, watched, was)
    )
    if missing == 0:
        return lambda: f1(w1) != b1 or f2(w2) != b2 or f3(w3) != b3 or f4(w4) != b4
    if missing == 1:
        return lambda: f1(w1) != b1 or f2(w2) != b2 or f3(w3) != b3
    return lambda: f1(w1) != b1 or f2(w2) != b2


_version, _bytes = attrgetter("_version"), np.ndarray.tobytes


class State:
    """An attribute in which the original keeps what it remembers between two steps.

    While fused steps run, what they remember lies in registers of their own. Reading or writing the
    attribute moves it to the original's form and hands the rest of the run to the original's code.
    """

    __slots__ = ("name",)

    def __init__(self, name: str):
        """Names the attribute."""
        self.name = name

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        """Returns the attribute's value."""
        if scheduler is None:
            return self
        own = vars(scheduler)
        if own.get("_live"):
            scheduler._show_memory(f"its {self.name} was read between two steps")
        try:
            return own[self.name]
        except KeyError:
            raise AttributeError(
                f"{type(scheduler).__name__!r} object has no attribute {self.name!r}"
            ) from None

    def __set__(self, scheduler: Any, value: Any) -> None:
        """Sets the attribute's value."""
        own = vars(scheduler)
        if own.get("_live"):
            scheduler._show_memory(f"its {self.name} was written between two steps")
        own[self.name] = value

    def __delete__(self, scheduler: Any) -> None:
        """Deletes the attribute."""
        del vars(scheduler)[self.name]
