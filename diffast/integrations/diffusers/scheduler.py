"""The drop-in scheduler: diffusers' interface over plans and fused steps.

Each class here is a subclass of the scheduler it replaces and keeps that one's configuration,
timesteps, `add_noise` and file format. Only the step is replaced. Pipelines that check for the
original class accept it, and every option that changes the noise levels works.

Everything public of the original is live: a write to its configuration, its tensors or its memory
is noticed. The plan is then made anew from the live values, or the original's own code goes on.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.utils.torch_utils import randn_tensor

from diffast import ops
from diffast.integrations.diffusers import registry
from diffast.integrations.diffusers.compiled import CompiledRun, stepper_of
from diffast.integrations.diffusers.indexed import learned_deviation
from diffast.integrations.diffusers.live import OURS, LiveConfig
from diffast.integrations.diffusers.live_run import Live
from diffast.integrations.diffusers.memory import NONE
from diffast.integrations.diffusers.original import Trial
from diffast.integrations.diffusers.places import Places
from diffast.integrations.diffusers.run import Prepared, Recipe, Run, ids_of
from diffast.solvers.core.stability import unchecked

_is_compiling = torch.compiler.is_compiling
_float32, _Tensor = torch.float32, torch.Tensor
_KEPT = 4  # plans that a scheduler keeps: users run the same few over and over
KINDS = registry.KINDS


class DiffastScheduler(Live, Places, SchedulerMixin, ConfigMixin):
    """A diffusers scheduler whose step is one fused kernel.

    `DiffastScheduler.from_scheduler(pipe.scheduler)` returns the drop-in for that scheduler, an
    instance of a subclass of both this class and the original's.

    A drop-in reads what the original reads, when the original reads it. What it cannot do itself
    it hands to the original's own code, with one `HandedOverWarning`.

    Instances share nothing; a deep copy taken between two steps goes on by itself. Half-precision
    networks are remembered in float32.

    Args:
        noise: "generator": stochastic steps draw from the pipeline's torch generator exactly as
            diffusers does, so the pictures are the same. "counter": the package's own noise, made
            inside the step's kernel: faster, and the same for a sample alone, in any batch and on
            any device; from the generator only its seed is used.
        strict: whether to raise a ValueError instead of handing over to the original's code.

    Raises:
        ValueError: another noise, an unknown option.
    """

    config_name = "scheduler_config.json"
    order = 1
    # Set by `drop_in` and by `set_timesteps`; None until then.
    _compiled: Any = None  # CompiledRun
    _factors: Any = None  # list of factors of the network's input, where there are any
    _positions: Any = None  # dict: timestep -> index
    _run: Any = None  # Run
    _kept: Any = None  # dict of plans by what they were made from
    _step_index: Any = None  # int
    host: Any = None  # Host
    # Whether the original looks each timestep up and keeps no step index; whether its step reads
    # the timestep beside the index.
    _searches = _reads_time = False
    _fewest = 1  # steps that the original's set_timesteps can do
    _spare = 0  # entries of `timesteps` at its end where no step begins
    _read_too: tuple[str, ...] = ()  # tensors that its step reads beside the usual ones

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets the attribute; a write to a setting makes the prepared run stale."""
        if name == "_internal_dict" and isinstance(value, FrozenDict):
            value = LiveConfig.of(value).after(self.__dict__.get(name))
        object.__setattr__(self, name, value)
        if name not in OURS:
            self.__dict__.setdefault("_writes", set()).add(name)

    @classmethod
    def from_scheduler(cls, scheduler, **kwargs):
        """Returns the drop-in for one of diffusers' schedulers, or a copy of a drop-in.

        The drop-in has the live scheduler's settings: also options that were written to its
        configuration and tensors that were replaced.

        Args:
            scheduler: whose class, configuration and attributes are taken.
            **kwargs: as for `from_config`.

        Raises:
            ValueError: a scheduler that has no drop-in, one with methods of its own, options beside
                settings that were written by hand.
        """
        return registry.adopted(scheduler, kwargs)

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs=False, **kwargs):
        """Returns the drop-in for a scheduler's config; see the class.

        Args:
            config: of one of diffusers' schedulers, or of a drop-in.
            return_unused_kwargs: whether to return (scheduler, unused arguments).
            **kwargs: options that replace those of the config, `noise` and `strict`.

        Raises:
            ValueError: a scheduler that has no drop-in, or an option that it does not have.
        """
        if cls is DiffastScheduler:
            return registry.kind_of(config).from_config(config, return_unused_kwargs, **kwargs)
        known = set(inspect.signature(cls.__init__).parameters)
        unknown = sorted(k for k in kwargs if k not in known and not k.startswith("_"))
        if unknown and not return_unused_kwargs:
            raise ValueError(
                f"{cls.__name__}: option {unknown[0]!r} is not known, but these are: "
                f"{', '.join(sorted(known - {'self'}))}"
            )
        made = super().from_config(config, return_unused_kwargs, **kwargs)
        # the class name that diffusers writes to the config now is no write of others
        registry.watch(made[0] if isinstance(made, tuple) else made)
        return made

    # --- the plan ---------------------------------------------------------------------------

    # (self, begin, options) -> Recipe: of the steps from index `begin` on, for those arguments
    _recipe: Any

    def _input_factors(self) -> list[float] | None:
        """Returns the factor of the network's input at each entry of timesteps, if it has one."""
        return None

    _Output: type  # the original's
    _options: tuple = ()  # the arguments of `step` that a plan depends on, at their defaults
    _option_names: tuple[str, ...] = ()  # theirs, as the original names them

    def _named(self, options: tuple) -> dict[str, Any]:
        return dict(zip(self._option_names, options, strict=False))

    def _start(self, begin: int, options: tuple, traced: bool = False) -> Run:
        """Starts a run at that index, for eager steps or for traced ones.

        With the usual options traced ones are always made ready, as nothing can be while tracing.

        Raises:
            ValueError: no plan does what the original does.
        """
        traced = traced or options == self._options
        odd = self._odd or self._odd_run
        key = (
            tuple(self.host.times),
            self.host.sigmas.tobytes(),
            self.timesteps.device,
            getattr(self, "num_inference_steps", None),
            begin,
            options,
            traced,
            odd,
        )
        kept = self._kept = {} if self._kept is None else self._kept
        if key not in kept:
            if len(kept) == _KEPT:
                kept.pop(next(iter(kept)))
            recipe, stepper = self._checked_recipe(begin, options), None
            if odd and not self._trial:
                self._try_out(begin, options)
            alone = recipe.given or recipe.intervals  # what no table holds
            if traced and not self._trial and not alone:
                stepper = stepper_of(recipe, self._counter, self.timesteps.device)
            memory = self._memory
            most, holds = memory.most(self, options), memory.held is not None
            prepared = Prepared(recipe, options, self._counter, most, holds)
            kept[key] = (prepared, stepper, {})
        prepared, stepper, dtypes = kept[key]
        self._run = run = Run(prepared, dtypes)
        run.searches, run.reads_time = self._searches, self._reads_time
        run.time_dtype, run.anchored = self.timesteps.dtype, self._memory.anchored
        run.plain = type(self)._output is DiffastScheduler._output
        run.places = type(self)._place is Places._place
        if stepper is not None:
            self._compiled = CompiledRun(prepared, stepper, self._counter)
            if self._factors is not None:
                self._compiled.factors = torch.tensor(self._factors, device=self.timesteps.device)
        return self._run

    def _checked_recipe(self, begin: int, options: tuple) -> Recipe:
        own = self.__dict__
        written = set(own["_writes"])
        try:
            with unchecked():  # the pipeline's scheduler and steps are what its user asks for
                recipe = self._recipe(begin, options)
        finally:
            own["_writes"] = written  # methods of the original that were asked may have written
        plan = recipe.plan
        calls = recipe.begin + plan.nfe - recipe.given
        if calls != self._count:
            raise ValueError(
                f"{type(self).__name__}: {self._count} timesteps, but the plan has {calls} calls"
            )
        return recipe

    def _by_original(self, output, timestep, sample, return_dict, generator, options, noise):
        """Returns what the original's own step returns."""
        past = self.__dict__["_step_index"] is not None and self._step_index >= self._count
        if self._live and not past:  # this step alone
            self._hand_over_one_step(f"timestep {timestep} is not the one that was set")
        more = self._named(options)
        if generator is not None:
            more["generator"] = generator
        if noise is not None:
            more["variance_noise"] = noise
        step: Any = self._original.step  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return step(self, output, timestep, sample, return_dict=return_dict, **more)
        except (IndexError, TypeError) as error:  # of levels or of memory that are not there
            i = self.__dict__["_step_index"]
            if i is None or i < self._count:
                raise
            raise ValueError(self._too_many(i)) from error

    def _too_many(self, i: int) -> str:
        return (
            f"{type(self).__name__}: step {i}, but {self._count} were set: call set_timesteps "
            "before another run"
        )

    def _ready(self, timestep, options: tuple, shape=None) -> tuple[Run | None, int]:
        """Returns (run, index) of a step that does not simply go on; run None: the original's."""
        if self._handed is not None:
            return None, 0
        if not self._live and self._doubt is None:  # no set_timesteps, or a copy
            self._odd_run = True
            self._read()
            if self._step_index is not None:
                self._hand_over("it was copied between two steps")
            else:
                self._prepare()
        elif self._is_written() or self._changes():  # also what gave no tensor a new version
            self._look()
        if self._handed is None and self._doubt is not None:
            self._resolve(self._index(timestep) or 0, options)
        if self._handed is not None:
            return None, 0
        i = self._index(timestep)
        if i is None:
            return None, 0
        run = self._run
        # the memory of a run is that of the steps before this one
        lost = run is not None and run.remembers and run.next != i and run.next != -1
        if lost or (run is not None and run.ended and run.remembers):
            self._step_index = i
            self._hand_over(f"step {i} was taken out of turn")
            return None, 0
        goes_on = run is not None and run.next == i and run.remembers
        if run is not None and goes_on and shape is not None and run.holds_another(shape):
            self._hand_over(f"the latents are {list(shape)} after others of another shape")
            return None, 0
        if run is None or run.options != options or run.begin > i or run.next != i:
            try:
                if run is not None and run.remembers and run.next == i:
                    raise ValueError(f"other arguments of step were given in step {i}")
                if (
                    run is None
                    or run.options != options
                    or run.begin > i
                    or (run.remembers and run.begin != i)
                ):
                    run = self._start(i, options)
                if not run.starts_at(i - run.begin):
                    raise ValueError(f"the run starts at {i}, the second call of a step")
            except (ValueError, ArithmeticError, IndexError) as error:
                self._step_index = i
                self._hand_over(str(error))
                return None, 0
        return run, i

    # --- where in the run -------------------------------------------------------------------

    def _init_step_index(self, timestep) -> None:
        begin = getattr(self, "_begin_index", None)
        if begin is None and self._positions is not None:
            begin = self._place(timestep)
            if begin is not None and hasattr(self._original, "_init_step_index"):
                # of equal times the second one begins a run
                begin = self._positions[float(self.host.times[begin])]
        if begin is None and not hasattr(self._original, "_init_step_index"):
            self._hand_over(f"timestep {timestep} is not one of those that were set")
        elif begin is None:
            super()._init_step_index(timestep)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._step_index = begin

    def _index(self, timestep) -> int | None:
        """Returns the index of the step; None: only the original's code knows that timestep."""
        if self._searches:
            return self._place(timestep)
        if self._step_index is None:
            self._init_step_index(timestep)
        i = self._step_index
        if i is None:
            return None
        if i >= self._count:  # `run.next` says so too: it never gets there
            if self._memory is not NONE:
                if 0 < len(self.host.sigmas) <= i + 1:
                    raise ValueError(self._too_many(i))
                self._hand_over(f"step {i} was taken, but {self._count} were set")
            return None
        if self._reads_time and not self._stands_at(timestep, i):
            if self._memory is not NONE:
                self._hand_over(f"timestep {timestep} was given in the place of number {i}")
            return None
        return i

    # --- the step ---------------------------------------------------------------------------

    def _advance(
        self,
        output,
        timestep,
        sample,
        return_dict,
        generator=None,
        options=(),
        noise=None,
        given=None,
    ):
        """Returns what `step` returns: a fused step from the sample by the network's output."""
        if _is_compiling():
            if self._compiled is None or self._compiled.options != options or self._writes:
                self._trace_with(options)  # pyright: ignore[reportAttributeAccessIssue]
            row = self._first_row(timestep)
            compiled: Any = self._compiled
            result, x0 = compiled.step(sample, output, row, generator, noise)
            return self._traced_output(return_dict, result, x0)
        own = self.__dict__
        run, watched = own["_run"], own["_watched"]
        if run is None or not run.searches:
            i = own["_step_index"]
        elif run.places and timestep.__class__ is _Tensor and timestep.dtype is run.time_dtype:
            # an element of `timesteps` is known by its place, as `_place` finds it
            i, rest = divmod(timestep.data_ptr() - own["_base"], own["_size"])
            if rest or i < 0 or i >= own["_count"] or timestep.dim():
                i = self._place(timestep)
        else:
            i = self._place(timestep)
        if run is not None and run.held is not None and run.is_overwritten(sample):
            self._hand_over("the latents of the step before were written in place")
            run = None
        # In the middle of a run none of these needs more. From `_writes` on it is `_is_written`,
        # whose call would take as long as what it does.
        if (
            i is None
            or run is None
            or run.next != i
            or (run.options is not options and run.options != options)
            or own["_writes"]
            or watched.level.tobytes() != watched.levels
            or (watched.moved is not None and watched.moved())
            or own["_internal_dict"] is not watched.config
            or watched.config_attributes["_writes"] != watched.config_writes
            or (
                run.reads_time
                # an element of `timesteps` is known by its place
                and (
                    timestep.__class__ is not _Tensor
                    or timestep.data_ptr() - own["_base"] != i * own["_size"]
                    or timestep.dtype is not run.time_dtype
                )
                and not self._stands_at(timestep, i)
            )
            or (run.draws and run.remembers and run.holds_another(sample.shape))
        ):
            run, i = self._ready(timestep, options, sample.shape)
            if run is None:
                return self._by_original(
                    output, timestep, sample, return_dict, generator, options, noise
                )
        stage = i - run.begin
        dtype = output.dtype
        if dtype is sample.dtype is _float32:
            shown = drawn = dtype
        else:
            known = run.dtypes.get((sample.dtype, dtype))
            dtype, shown, drawn = known or self._dtypes(sample, dtype)
        if run.draws:
            output, noise = self._noise(run, stage, output, sample, generator, noise, drawn)
        if given is not None:
            run.give(given)
        try:
            result = run.step(stage, sample, output, noise, dtype)
        except ValueError:
            if run.draws or not run.remembers or not run.holds_another(sample.shape):
                raise
            self._hand_over(f"the latents are {list(sample.shape)} after others of another shape")
            return self._by_original(
                output, timestep, sample, return_dict, generator, options, noise
            )
        if run.holds:
            run.hold(stage, sample)
        own["_step_index"] = i + 1
        if i + 1 < own["_count"]:
            run.next = i + 1
        else:
            run.next, run.ended = -1, True
        if run.plain and not return_dict:
            return (result,)
        return self._output(return_dict, result, run, stage, sample, output, noise, shown)

    def _dtypes(self, sample, output: torch.dtype) -> tuple:
        """Returns the dtypes of (next sample, x0 estimate, noise): the original is asked, once."""
        run = self._run
        found = Trial(self, run.begin, self._named(run.options)).dtypes(sample.dtype, output)
        run.dtypes[sample.dtype, output] = found
        return found

    @torch.compiler.disable
    def _trace_with(self, options: tuple) -> None:
        """Makes the tables of other arguments of `step` than were traced last; breaks the graph."""
        if self._is_written():
            self._look()
        if self._handed is not None:
            raise ValueError(
                f"{type(self).__name__}: {self._handed}, so the original's own code has to run: "
                "leave the scheduler's step out of torch.compile"
            )
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

    def _noise(self, run, stage, output, sample, generator, noise, dtype):
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
        if recipe.intervals:
            return output, self._along_a_path(run, stage, sample, output, generator)
        if self._counter:
            if deviation is None:
                return output, None
            noise = torch.empty(sample.shape, dtype=torch.float32, device=sample.device)
            ops.normal_out(run.ids, 0, ops.STEP_NOISE + stage, 1.0, noise)
        elif noise is None:
            for _ in range(recipe.draws[stage]):
                noise = randn_tensor(
                    sample.shape, generator=generator, device=output.device, dtype=dtype
                )
        noise = noise.to(output.device).contiguous()  # pyright: ignore[reportOptionalMemberAccess]
        return output, noise if deviation is None else deviation * noise

    # (self, run, stage, sample, output, generator) -> normals [B, ...] of a recipe's `intervals`
    _along_a_path: Any

    def _traced_output(self, return_dict, sample, x0):
        return self._output(return_dict, sample)

    def _output(self, return_dict, sample, *seen):
        """Returns the result in diffusers' form; those with an x0 estimate override it."""
        return self._Output(prev_sample=sample) if return_dict else (sample,)

    def _scaled(self, sample, timestep):
        """Returns the network's input: the sample times this step's factor."""
        if _is_compiling() or (self._compiled is not None and self._compiled.state is not None):
            if self._says_scaled and not self.is_scale_input_called:
                self.is_scale_input_called = True
            return self._compiled.scaled(sample, self._first_row(timestep))
        own = self.__dict__
        i, run = own["_step_index"], own["_run"]
        if i is None or run is None or run.next != i or self._is_written():
            run, i = self._ready(timestep, self._options if run is None else run.options)
            if run is None:
                return self._original.scale_model_input(self, sample, timestep)
        if self._says_scaled:
            own["is_scale_input_called"] = True
        return sample * self._factors[i]
