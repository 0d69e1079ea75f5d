"""The drop-in scheduler: diffusers' interface over plans and fused steps.

Each class here is a subclass of the scheduler it replaces and keeps that one's configuration,
timesteps, `add_noise` and file format. Only the step is replaced. Pipelines that check for the
original class accept it, and every option that changes the noise levels works.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from diffast import ops
from diffast.executors.device import on_host
from diffast.integrations.diffusers.compiled import CompiledRun, stepper_of
from diffast.integrations.diffusers.indexed import learned_deviation
from diffast.integrations.diffusers.run import Prepared, Recipe, Run, ids_of
from diffast.integrations.diffusers.shared import read
from diffast.solvers.core.stability import unchecked

_is_compiling = torch.compiler.is_compiling
NOISES = ("generator", "counter")
_KEPT = 4  # plans that a scheduler keeps: users run the same few over and over
_LONGEST = 4096  # elements of a tensor that timesteps are looked up in
KINDS: dict[str, type] = {}  # original class name -> drop-in class


class DiffastScheduler(SchedulerMixin, ConfigMixin):
    """A diffusers scheduler whose step is one fused kernel.

    `DiffastScheduler.from_config(pipe.scheduler.config)` returns the drop-in for that scheduler, an
    instance of a subclass of both this class and the original's.

    Instances share nothing; a deep copy taken between two steps goes on by itself. Half-precision
    networks are remembered in float32.

    Args:
        noise: "generator": stochastic steps draw from the pipeline's torch generator exactly as
            diffusers does, so the pictures are the same. "counter": the package's own noise, made
            inside the step's kernel: faster, and the same for a sample alone, in any batch and on
            any device; from the generator only its seed is used.

    Raises:
        ValueError: another noise, an unknown option.
    """

    config_name = "scheduler_config.json"
    order = 1
    # Set by `drop_in` and by `set_timesteps`; None until then.
    _compiled: Any  # CompiledRun
    _factors: Any  # list of factors of the network's input, where there are any
    _positions: Any  # dict: timestep -> index
    _run: Any  # Run
    _step_index: Any  # int
    _foreign: Any = None  # (tensor of the caller's, its version, its numbers)
    _searches = False  # whether the original looks each timestep up, and so keeps no step index

    @classmethod
    def from_scheduler(cls, scheduler, **kwargs):
        """Returns the drop-in for one of diffusers' schedulers, or a copy of a drop-in.

        Args:
            scheduler: whose class and config are taken.
            **kwargs: as for `from_config`.

        Raises:
            ValueError: a scheduler that has no drop-in.
        """
        return _kind_named(type(scheduler).__name__).from_config(scheduler.config, **kwargs)

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs=False, **kwargs):
        """Returns the drop-in for a scheduler's config; see the class.

        Args:
            config: of one of diffusers' schedulers, or of a drop-in.
            return_unused_kwargs: whether to return (scheduler, unused arguments).
            **kwargs: options that replace those of the config, and `noise`.

        Raises:
            ValueError: a scheduler that has no drop-in, or an option that it does not have.
        """
        if cls is DiffastScheduler:
            return _kind_of(config).from_config(config, return_unused_kwargs, **kwargs)
        known = set(inspect.signature(cls.__init__).parameters)
        unknown = sorted(k for k in kwargs if k not in known and not k.startswith("_"))
        if unknown and not return_unused_kwargs:
            raise ValueError(
                f"{cls.__name__}: option {unknown[0]!r} is not known, but these are: "
                f"{', '.join(sorted(known - {'self'}))}"
            )
        return super().from_config(config, return_unused_kwargs, **kwargs)

    # --- the plan ---------------------------------------------------------------------------

    # (self, begin, options) -> Recipe: of the steps from index `begin` on, for those arguments
    _recipe: Any

    def _input_factors(self) -> list[float] | None:
        """Returns the factor of the network's input at each entry of timesteps, if it has one."""
        return None

    _Output: type  # the original's
    _options: tuple = ()  # the arguments of `step` that a plan depends on, at their defaults

    def _after_set_timesteps(self, device) -> None:
        """Forgets the last run and checks the new timesteps by making their plan."""
        self.host = read(self, self.host)
        self._factors = self._input_factors()
        times = self.host.times
        self._count = len(times)
        if not times:
            raise ValueError(f"{type(self).__name__}: 0 timesteps, but at least 1 is needed")
        # of two equal times the second one begins a step
        self._positions = {float(t): i for i, t in enumerate(times)}
        if device is not None:
            narrow = torch.device(device).type == "mps" and self.timesteps.is_floating_point()
            self.timesteps = self.timesteps.to(device, torch.float32 if narrow else None)
        self._step_index = self._run = self._compiled = None
        if self._made:
            self._start(0, self._options)

    def _start(self, begin: int, options: tuple, traced: bool = False) -> Run:
        """Starts a run at that index, for eager steps or for traced ones.

        With the usual options traced ones are always made ready, as nothing can be while tracing.
        """
        traced = traced or options == self._options
        key = (
            tuple(self.host.times),
            self.host.sigmas.tobytes(),
            self.timesteps.device,
            self.num_inference_steps,
            begin,
            options,
            traced,
        )
        if self._kept is None or self._kept[0] is not self._internal_dict:
            self._kept = (self._internal_dict, {})  # the config is another one: its plans too
        kept = self._kept[1]
        if key not in kept:
            if len(kept) == _KEPT:
                kept.pop(next(iter(kept)))
            recipe, stepper = self._checked_recipe(begin, options), None
            if traced:
                stepper = stepper_of(recipe, self._counter, self.timesteps.device)
            kept[key] = (Prepared(recipe, options, self._counter), stepper)
        prepared, stepper = kept[key]
        self._run = Run(prepared)
        if stepper is not None:
            self._compiled = CompiledRun(prepared, stepper, self._counter)
            if self._factors is not None:
                self._compiled.factors = torch.tensor(self._factors, device=self.timesteps.device)
        return self._run

    def _checked_recipe(self, begin: int, options: tuple) -> Recipe:
        with unchecked():  # the pipeline's scheduler and steps are what its user asks for
            recipe = self._recipe(begin, options)
        plan = recipe.plan
        if recipe.begin + plan.nfe != self._count:
            raise ValueError(
                f"{type(self).__name__}: {self._count} timesteps, but the plan has "
                f"{recipe.begin + plan.nfe} calls"
            )
        return recipe

    def _run_from(self, i: int, options: tuple) -> Run:
        """Returns a run that can take step i: the last one if it is where that left off."""
        run = self._run
        # a run that starts later has no remembered entries
        lost = run is not None and run.remembers and run.next != i and i != run.begin
        if run is None or run.options != options or run.begin > i or lost:
            run = self._start(i, options)
            if not run.starts_at(i - run.begin):
                raise ValueError(
                    f"{type(self).__name__}: timestep {i} is the second call of a step, but a run "
                    "starts with the first"
                )
        return run

    # --- where in the run -------------------------------------------------------------------

    def _position(self, timestep) -> int:
        """Returns the index into `timesteps` of one of them, without reading from a device."""
        if self._positions is None:
            raise ValueError(
                f"{type(self).__name__}: a step, but set_timesteps was not called before"
            )
        times = self.timesteps
        if isinstance(timestep, torch.Tensor):
            if timestep.dtype == times.dtype and timestep.device == times.device:
                # an element of `timesteps`, or of a slice of it, is a view: its place tells
                ahead = timestep.data_ptr() - times.data_ptr()
                i, rest = divmod(ahead, times.element_size())
                if not rest and 0 <= i < self._count and timestep.numel() == 1:
                    return i
            timestep = self._number(timestep)
        i = self._positions.get(float(timestep))
        if i is None:
            raise ValueError(
                f"{type(self).__name__}: timestep {timestep} but the timesteps set are "
                f"{', '.join(f'{t:g}' for t in list(self._positions)[:4])} ..."
            )
        return i

    def _number(self, timestep: torch.Tensor) -> float:
        """Returns the number in a timestep that is not an element of `timesteps`.

        If it is an element of a tensor of the caller's, all of that tensor's numbers are read: a
        loop over it then waits for the device once, and not at every step. On the CPU there is
        nothing to wait for, and memory shared with numpy changes without a new version.
        """
        whole = timestep._base
        if whole is None or timestep.numel() != 1 or not whole.is_contiguous():
            return timestep.item()
        if whole.numel() > _LONGEST or timestep.dtype != whole.dtype or on_host(whole.device):
            return timestep.item()
        known = self._foreign
        if known is None or known[0] is not whole or known[1] != whole._version:
            known = self._foreign = (whole, whole._version, whole.reshape(-1).tolist())
        return known[2][timestep.storage_offset() - whole.storage_offset()]

    def _init_step_index(self, timestep) -> int:
        begin = getattr(self, "_begin_index", None)
        self._step_index = self._position(timestep) if begin is None else begin
        return self._step_index

    def index_for_timestep(self, timestep, schedule_timesteps=None) -> int:
        """Returns the index at which a run that starts with that timestep starts."""
        if schedule_timesteps is None:
            return self._position(timestep)
        # the original's, the other base
        return super().index_for_timestep(  # pyright: ignore[reportAttributeAccessIssue]
            timestep, schedule_timesteps
        )

    def _index(self, timestep) -> int:
        if self._searches:
            return self._position(timestep)
        i = self._step_index
        if i is None:
            i = self._init_step_index(timestep)
        if i >= self._count:  # `run.next` says so too: it never gets there
            raise ValueError(
                f"{type(self).__name__}: step {i}, but {self._count} were set: "
                "call set_timesteps before another run"
            )
        return i

    # --- the step ---------------------------------------------------------------------------

    def _advance(
        self, output, timestep, sample, return_dict, generator=None, options=(), noise=None
    ):
        """Returns what `step` returns: a fused step from the sample by the network's output."""
        if _is_compiling():
            if self._compiled is None or self._compiled.options != options:
                self._trace_with(options)  # pyright: ignore[reportAttributeAccessIssue]
            row = self._first_row(timestep)
            compiled: Any = self._compiled
            result, x0 = compiled.step(sample, output, row, generator, noise)
            return self._traced_output(return_dict, result, x0)
        i = self._position(timestep) if self._searches else self._step_index
        run = self._run
        # in the middle of a run none of these needs more
        if i is None or run is None or run.next != i or run.options != options:
            i = self._index(timestep)
            run = self._run_from(i, options)
        stage = i - run.begin
        if run.draws:
            output, noise = self._noise(run, stage, output, sample, generator, noise)
        dtype = output.dtype
        if sample.dtype is not dtype and not run.wide:
            dtype = torch.promote_types(dtype, sample.dtype)
        result = run.step(stage, sample, output, noise, dtype)
        self._step_index = i + 1
        run.next = i + 1 if i + 1 < self._count else -1
        return self._output(return_dict, result, run, stage, sample, output, noise)

    @torch.compiler.disable
    def _trace_with(self, options: tuple) -> None:
        """Makes the tables of other arguments of `step` than were traced last; breaks the graph."""
        begin = getattr(self, "_begin_index", None) or 0
        self._start(begin, options, traced=True)

    def _first_row(self, timestep):
        """Returns the stage at which a traced run is, a number or a tensor; None: the next one."""
        if self._searches:
            return (self.timesteps == timestep).to(torch.int64).argmax()
        if self._compiled.state is not None:
            return None
        begin = getattr(self, "_begin_index", None) or 0
        return begin - self._compiled.recipe.begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the index into `timesteps` at which the run starts (img2img)."""
        self._begin_index = begin_index
        if self._run is not None and begin_index and self._run.remembers:
            self._start(begin_index, self._options)

    def _noise(self, run, stage, output, sample, generator, noise):
        """Returns the network's output of x0 alone, and the normals of this stage or None."""
        if self._counter and noise is not None:
            raise ValueError(
                f"{type(self).__name__}: variance_noise is given, but noise is 'counter'"
            )
        recipe, deviation = run.recipe, None
        if recipe.deviations is not None:
            output, deviation = learned_deviation(recipe.deviations, stage, output, sample.shape[1])
        if self._counter and (run.ids is None or len(run.ids) != len(sample)):
            run.ids = ids_of(generator, len(sample), sample.device)
        if not recipe.draws[stage]:
            return output, None
        if self._counter:
            if deviation is None:
                return output, None
            noise = torch.empty(sample.shape, dtype=torch.float32, device=sample.device)
            ops.normal_out(run.ids, 0, ops.STEP_NOISE + stage, 1.0, noise)
        elif noise is None:
            kind = recipe.noise_dtype or output.dtype
            noise = randn_tensor(
                sample.shape, generator=generator, device=output.device, dtype=kind
            )
        noise = noise.to(output.device).contiguous()
        return output, noise if deviation is None else deviation * noise

    def _traced_output(self, return_dict, sample, x0):
        return self._output(return_dict, sample)

    def _output(self, return_dict, sample, *seen):
        """Returns the result in diffusers' form; those with an x0 estimate override it."""
        return self._Output(prev_sample=sample) if return_dict else (sample,)

    def _scaled(self, sample, timestep):
        """Returns the network's input: the sample times this step's factor."""
        if _is_compiling() or (self._compiled is not None and self._compiled.state is not None):
            self.is_scale_input_called = True
            return self._compiled.scaled(sample, self._first_row(timestep))
        i = self._step_index
        if i is None:
            i = self._init_step_index(timestep)
        self.is_scale_input_called = True
        return sample * self._factors[i]


def _kind_of(config) -> type:
    """Returns the drop-in class for a config, by its class name or else by its keys."""
    if not isinstance(config, dict):
        raise ValueError(f"config is a {type(config).__name__}, but a scheduler's config is a dict")
    name = config.get("_class_name")
    if name is None:  # schedulers made by their constructor do not write it down
        keys = {key for key in config if not key.startswith("_")} - {"noise"}
        fitting = [kind for kind in KINDS.values() if _options_of(kind) == keys]
        if len(fitting) == 1:
            return fitting[0]
        raise ValueError(
            f"config has no _class_name, and its keys fit {len(fitting)} schedulers: use "
            "from_scheduler(scheduler), or from_config of the drop-in's own class"
        )
    return _kind_named(name)


def _kind_named(name: str) -> type:
    kind = KINDS.get(str(name).removeprefix("Diffast"))
    if kind is None:
        raise ValueError(
            f"scheduler {name!r} has no drop-in, but these have: {', '.join(sorted(KINDS))}"
        )
    return kind


def _options_of(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self", "noise"}


def drop_in(original: type):
    """Returns a decorator that finishes a drop-in class for that original.

    It gives the class the original's arguments and one more (`noise`), and builds the plan at the
    end of `set_timesteps`, whose signature stays the original's: pipelines look at it.
    """

    def finish(cls):
        signature = inspect.signature(original.__init__)
        more = inspect.Parameter("noise", inspect.Parameter.KEYWORD_ONLY, default="generator")

        def __init__(self, *args, noise="generator", **kwargs):  # noqa: N807
            if noise not in NOISES:
                raise ValueError(
                    f"{cls.__name__}: noise is {noise!r}, but 'generator' or 'counter'"
                )
            unknown = sorted(set(kwargs) - set(signature.parameters))
            if unknown:
                raise ValueError(
                    f"{cls.__name__}: option {unknown[0]!r} is not known, but these are: "
                    f"{', '.join(p for p in signature.parameters if p != 'self')}, noise"
                )
            self._counter = noise == "counter"
            self._run = self._compiled = self._positions = self._kept = self.host = None
            self._factors = None
            self._made = False  # some originals set timesteps in their constructor
            original.__init__(self, *args, **kwargs)
            self.register_to_config(noise=noise)
            self._made = True

        __init__.__signature__ = signature.replace(
            parameters=[*signature.parameters.values(), more]
        )
        cls.__init__ = __init__
        set_original = original.set_timesteps
        arguments = inspect.signature(set_original)

        @functools.wraps(set_original)
        def set_timesteps(self, *args, **kwargs):
            bound = arguments.bind(self, *args, **kwargs)
            device = bound.arguments.pop("device", None)
            _check_count(cls.__name__, bound.arguments, self.config)
            more = {"device": "cpu"} if device else {}
            with np.errstate(divide="ignore", invalid="ignore"):  # refused below, in words
                set_original(*bound.args, **bound.kwargs, **more)
            self._after_set_timesteps(device)

        cls.set_timesteps = set_timesteps
        if hasattr(original, "step_index"):
            cls.step_index = property(_step_index)
        name, module = original.__name__, sys.modules[original.__module__]
        cls._Output = getattr(module, f"{name}Output", SchedulerOutput)
        KINDS[name] = cls
        return cls

    return finish


def _step_index(scheduler) -> int | None:
    """Returns the index of the next step; of a traced run it is read from the device."""
    traced = scheduler._compiled
    if traced is not None and traced.state is not None:
        return traced.recipe.begin + int(traced.state.row[0])
    return scheduler._step_index


def _check_count(name, arguments, config) -> None:
    count = arguments.get("num_inference_steps")
    if count is None:
        return
    if config.get("skip_prk_steps") is False and count < 4:
        raise ValueError(
            f"{name}: {count} steps, but the pseudo Runge-Kutta warm-up takes 3 of at least 4: "
            "set skip_prk_steps"
        )
    most = config.get("num_train_timesteps")
    if isinstance(count, float) and not count.is_integer() or count < 1:
        raise ValueError(f"{name}: {count} steps, but a whole number from 1 is needed")
    if most is not None and count > most:
        raise ValueError(f"{name}: {count} steps, but the model was trained on {most} timesteps")


def scale(sigmas, data: float = 1.0) -> list[float]:
    """Returns 1 / sqrt(sigma^2 + data^2) for each noise level."""
    return [1.0 / math.sqrt(s * s + data * data) for s in sigmas.tolist()]
