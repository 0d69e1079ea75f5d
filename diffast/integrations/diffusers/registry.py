"""Which drop-in stands for which scheduler, and how one is made from a live scheduler."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import sys
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from diffast.integrations.diffusers.live import (
    OURS,
    LiveConfig,
    State,
    Watch,
    is_rewritten,
    same,
    setting,
    settings_of,
)
from diffast.integrations.diffusers.original import is_patched, own_methods

NOISES = ("generator", "counter")
KINDS: dict[str, type] = {}  # original class name -> drop-in class
_BY_CLASS: dict[type, type] = {}
_OWN_OPTIONS = ("noise", "strict")
# Methods of originals that move a tensor to the device of their argument.
_MOVING = ("add_noise", "scale_noise", "get_velocity", "get_noise", "batch_step_no_noise")


def kind_of(config: Any) -> Any:
    """Returns the drop-in class for a config, by its class name or else by its keys."""
    if not isinstance(config, dict):
        raise ValueError(f"config is a {type(config).__name__}, but a scheduler's config is a dict")
    name = config.get("_class_name")
    if name is None:  # schedulers made by their constructor do not write it down
        keys = {key for key in config if not key.startswith("_")} - {*_OWN_OPTIONS}
        fitting = [kind for kind in KINDS.values() if options_of(kind) == keys]
        # of classes that take the same steps the plain one
        fitting = [kind for kind in fitting if getattr(kind, "_steps_as", None) not in fitting]
        if len(fitting) == 1:
            return fitting[0]
        raise ValueError(
            f"config has no _class_name, and its keys fit {len(fitting)} schedulers: use "
            "from_scheduler(scheduler), or from_config of the drop-in's own class"
        )
    return kind_named(name)


def kind_named(name: str) -> Any:
    """Returns the drop-in for diffusers' class of that name, or of the drop-in's name."""
    kind = KINDS.get(str(name).removeprefix("Diffast"))
    if kind is None:
        raise ValueError(
            f"scheduler {name!r} has no drop-in; diffast.integrations.diffusers.KINDS lists the "
            f"{len(KINDS)} that have one"
        )
    return kind


def kind_for(scheduler: Any) -> Any:
    """Returns the drop-in class for a live scheduler.

    Raises:
        ValueError: a class of another package, also one that bears the name of a class of
            diffusers; a class or an instance whose methods were replaced.
    """
    own = type(scheduler)
    if own in KINDS.values():
        kind: Any = own
    else:
        kind = _BY_CLASS.get(own)
    if kind is None:
        if own.__module__.startswith("diffusers."):
            return kind_named(own.__name__)  # says that there is none
        raise ValueError(
            f"scheduler {own.__name__!r} is a class of {own.__module__}, which has no drop-in: it "
            "may do another thing than a class of diffusers of that name"
        )
    name = is_patched(kind._original) or own_methods(scheduler)
    if name is not None:
        raise ValueError(
            f"{own.__name__}.{name} was replaced by other code, but a drop-in does what diffusers' "
            "own does"
        )
    return kind


def options_of(kind: type) -> set[str]:
    """Returns the options of the original that a drop-in takes."""
    found = inspect.signature(kind.__init__).parameters.values()
    named = {each.name for each in found if each.kind is not each.VAR_KEYWORD}
    return named - {"self", *_OWN_OPTIONS}


def adopted(scheduler: Any, options: dict[str, Any]) -> Any:
    """Returns the drop-in with the settings and tensors of a live scheduler.

    Args:
        scheduler: of diffusers, or a drop-in; it stays as it is.
        options: `noise`, `strict` and options that replace those of the config.

    Raises:
        ValueError: see `DiffastScheduler.from_scheduler`.
    """
    kind = kind_for(scheduler)
    more = {name: options[name] for name in options if name not in _OWN_OPTIONS}
    own = {**_own_options(scheduler.config), **{n: options[n] for n in options if n not in more}}
    if more:
        settings = settings_of(scheduler.config)
        named = {name: value for name, value in settings.items() if name not in _OWN_OPTIONS}
        written = _written(scheduler, kind)
        written -= {"timesteps", "sigmas", "num_inference_steps"}
        if written and vars(scheduler).get("num_inference_steps") is None:
            raise ValueError(
                f"{kind.__name__}: the option {next(iter(more))!r} is given, but "
                f"{', '.join(sorted(written))} of the scheduler was written by hand and would be "
                "lost: set the option on the scheduler's config first"
            )
        return kind.from_config(named, **own, **more)
    made = object.__new__(kind)
    attributes = {n: v for n, v in vars(scheduler).items() if n not in OURS or n in _MOVED}
    vars(made).update(copy.deepcopy(attributes))
    vars(made).update(_said=set())
    _set_own(made, **own)
    config = LiveConfig.of(copy.deepcopy(scheduler.config))
    for name, value in own.items():
        config[name] = value
        setattr(config, name, value)
    vars(made)["_internal_dict"] = config
    watch(made)
    vars(made)["_writes"] = _written(scheduler, kind)
    if is_rewritten(config):
        vars(made)["_odd"] = True
    vars(made)["_made"] = True
    return made


_MOVED = ("_step_index", "_begin_index", "is_scale_input_called")


def _own_options(config: Any) -> dict[str, Any]:
    found = {name: config[name] for name in _OWN_OPTIONS if name in config}
    return {"noise": "generator", "strict": False, **found}


def _written(scheduler: Any, kind: Any) -> set[str]:
    """Returns the names of attributes that are not as the constructor makes them."""
    known = options_of(kind)
    options = {name: value for name, value in scheduler.config.items() if name in known}
    logger = logging.getLogger("diffusers")
    before, logger.disabled = logger.disabled, True
    try:
        fresh = vars(kind._original(**options))
    except Exception:  # options that the constructor refuses were written later
        fresh = {}
    finally:
        logger.disabled = before
    own = vars(scheduler)
    return {
        name
        for name in {*own, *fresh} - OURS - set(kind._memory.names)
        if not (name in own and name in fresh and same(own[name], fresh[name]))
    }


def copy_for_trial(scheduler: Any) -> Any:
    """Returns a copy of a drop-in on the CPU whose plan is not tried out again."""
    made = object.__new__(type(scheduler))
    own = vars(made)
    for name, value in vars(scheduler).items():
        if callable(getattr(type(scheduler), name, None)):
            continue  # a method that the instance replaces is bound to it
        if isinstance(value, torch.Tensor):
            own[name] = value.detach().cpu().clone()
        else:
            own[name] = value
    own.update(_trial=True, _strict=True, _counter=False, _live=False, _handed=None)
    own.update(_kept=None, _run=None, _compiled=None, _step_index=None, _writes=set())
    own.update(type(scheduler)._in_trials)
    own["_internal_dict"] = copy.copy(scheduler._internal_dict)
    watch(made)
    return made


def watch(scheduler: Any) -> None:
    """Takes the scheduler's values down as they are."""
    own = vars(scheduler)
    own["_writes"] = set()
    vars(own["_internal_dict"]).pop("_before", None)
    times = own.get("timesteps")
    own["_base"], own["_size"] = (
        (times.data_ptr(), times.element_size()) if isinstance(times, torch.Tensor) else (0, 1)
    )
    own["_watched"] = Watch(own, {*OURS, *scheduler._memory.names}, scheduler._read_too)


def _set_own(scheduler: Any, noise: str, strict: bool) -> None:
    """Sets the options of a drop-in that the original does not have."""
    name = type(scheduler).__name__
    if noise not in NOISES:
        raise ValueError(f"{name}: noise is {noise!r}, but 'generator' or 'counter' is needed")
    if not isinstance(strict, bool):
        raise ValueError(f"{name}: strict is {strict!r}, but True or False is needed")
    own = vars(scheduler)
    own.update(_counter=noise == "counter", _strict=strict, _writes=set(), _handed=None)
    own.update(_live=False, _run=None, _compiled=None)
    own.setdefault("_step_index", None)


def drop_in(original: type):
    """Returns a decorator that finishes a drop-in class for that original.

    It gives the class the original's arguments and two more (`noise`, `strict`), and builds the
    plan at the end of `set_timesteps`, whose signature stays the original's: pipelines look at it.
    """

    def finish(cls):
        cls._original = original
        code = getattr(getattr(original, "scale_model_input", None), "__code__", None)
        cls._says_scaled = code is not None and "is_scale_input_called" in code.co_names
        cls.__init__ = _constructor(cls, original)
        cls.set_timesteps = _set_timesteps(original)
        if hasattr(original, "step_index"):
            cls.step_index = property(_step_index)
        if hasattr(original, "set_begin_index"):
            cls.set_begin_index = _set_begin_index(original)
        for name in _MOVING:
            if hasattr(original, name):
                setattr(cls, name, _moving(getattr(original, name)))
        for name in cls._memory.names:
            setattr(cls, name, State(name))
        name, module = original.__name__, sys.modules[original.__module__]
        if "_Output" not in vars(cls):
            cls._Output = getattr(module, f"{name}Output", SchedulerOutput)
        KINDS[name] = _BY_CLASS[original] = cls
        return cls

    return finish


def _constructor(cls: Any, original: Any):
    signature = inspect.signature(original.__init__)
    keyword = inspect.Parameter.KEYWORD_ONLY
    noise_option = inspect.Parameter("noise", keyword, default="generator")
    strict_option = inspect.Parameter("strict", keyword, default=False)

    def __init__(self, *args, noise="generator", strict=False, **kwargs):  # noqa: N807
        _set_own(self, noise, strict)
        known = {*signature.parameters, *getattr(original, "_deprecated_kwargs", ())}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(
                f"{cls.__name__}: option {unknown[0]!r} is not known, but these are: "
                f"{', '.join(p for p in signature.parameters if p != 'self')}, noise, strict"
            )
        original.__init__(self, *args, **kwargs)
        self.register_to_config(noise=noise, strict=strict)
        watch(self)
        self._made = True

    plain = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    __init__.__signature__ = signature.replace(
        parameters=[*plain, noise_option, strict_option, *rest]
    )
    return __init__


def _set_timesteps(original: Any):
    set_original = original.set_timesteps
    arguments = inspect.signature(set_original)

    @functools.wraps(set_original)
    def set_timesteps(self, *args, **kwargs):
        bound = arguments.bind(self, *args, **kwargs)
        device = bound.arguments.pop("device", None)
        more = {"device": "cpu"} if "device" in arguments.parameters else {}
        if self._made:
            self._before_set_timesteps()
        try:
            with (
                np.errstate(divide="ignore", invalid="ignore"),  # refused below, in words
                torch.inference_mode(False),  # tensors whose writes are counted
                torch.no_grad(),
            ):
                # as it is now: other code may have replaced it
                type(self)._original.set_timesteps(*bound.args, **bound.kwargs, **more)
        except Exception as error:
            reason = _complaint(type(self), bound.arguments, self.config)
            if reason is None:
                raise
            raise ValueError(reason) from error
        self._after_set_timesteps(device)

    return set_timesteps


def _complaint(kind: Any, arguments: Any, config: Any) -> str | None:
    """Returns why the original has failed, where its own words do not say so."""
    name, fewest = kind.__name__, kind._fewest
    count = arguments.get("num_inference_steps")
    if count is None:
        return None
    if not isinstance(count, int) or count < fewest:
        return f"{name}: {count} steps, but a whole number from {fewest} is needed"
    if setting(config, "skip_prk_steps") is False and count < 4:
        return (
            f"{name}: {count} steps, but the pseudo Runge-Kutta warm-up takes 3 of at least 4: set "
            "skip_prk_steps"
        )
    most = setting(config, "num_train_timesteps")
    if most is not None and count > most:
        return f"{name}: {count} steps, but the model was trained on {most} timesteps"
    return None


def _moving(method: Any):
    """Returns the original's method, whose own writes to the scheduler are no writes of others."""

    @functools.wraps(method)
    def moved(self, *args, **kwargs):
        own = vars(self)
        if not own.get("_live") or self._is_written():
            return method(self, *args, **kwargs)
        result = method(self, *args, **kwargs)
        if own["_writes"]:
            watch(self)
        return result

    return moved


def _set_begin_index(original: Any):
    @functools.wraps(original.set_begin_index)
    def set_begin_index(self, *args, **kwargs):
        original.set_begin_index(self, *args, **kwargs)
        begin, run = self._begin_index, self._run
        # once a run has begun the index says nothing about it
        early = self._step_index is None and run is not None and run.next == -1 and not run.ended
        if begin and run is not None and early and run.remembers and self._live:
            try:
                self._start(begin, self._options)
            except (ValueError, ArithmeticError, IndexError) as error:
                self._hand_over(str(error))

    return set_begin_index


def _step_index(scheduler) -> int | None:
    """Returns the index of the next step; of a traced run it is read from the device."""
    traced = scheduler._compiled
    if traced is not None and traced.state is not None:
        return traced.recipe.begin + int(traced.state.row[0])
    return scheduler._step_index
