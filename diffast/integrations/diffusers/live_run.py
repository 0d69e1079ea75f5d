"""The part of a drop-in that follows the live scheduler, and hands over what it cannot do."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from diffast.integrations.diffusers import registry
from diffast.integrations.diffusers.memory import NONE, Memory
from diffast.integrations.diffusers.original import Trial, is_patched
from diffast.integrations.diffusers.run import Run
from diffast.integrations.diffusers.shared import read
from diffast.integrations.handed_over import say_once

# What making a plan raises for settings that it was not made for.
_NO_PLAN = (ValueError, TypeError, ArithmeticError, IndexError)


class Live:
    """What a drop-in watches, and what it does about a write.

    A run is live while its plan stands for the values that the scheduler has now.
    """

    # A run is prepared and nothing was handed over; why the original's code runs instead.
    _live = False
    _handed: str | None = None
    _doubt: Any = None  # why a run from the first step on is refused
    # Whether the settings are not as the constructor left them; likewise what set_timesteps sets.
    _odd = _odd_run = False
    _watched: Any = None  # Watch
    _per_run: frozenset = frozenset()  # attributes that set_timesteps sets
    _original: Any  # diffusers' class
    _memory: Memory = NONE
    _says_scaled = False  # whether its scale_model_input sets is_scale_input_called
    _on_device: tuple[str, ...] = ()  # tensors that set_timesteps puts on its device
    _in_trials: dict[str, Any] = {}  # attributes that have other values in a trial's few numbers
    _counter = _strict = _made = _trial = False
    _options: tuple = ()
    _run: Any = None  # Run
    _internal_dict: Any
    timesteps: Any
    _named: Any
    _start: Any
    _spare: int
    _input_factors: Any

    def _before_set_timesteps(self) -> None:
        """Takes down what was written since the last run was prepared."""
        own = self.__dict__
        written = self._changes() - self._per_run
        self._live, self._handed, self._run, self._odd_run = False, None, None, False
        self._doubt = None
        if written:
            self._odd, self._kept = True, None
        own["_writes"] = set()

    def _after_set_timesteps(self, device=None) -> None:
        """Reads the new timesteps and makes their plan."""
        own = self.__dict__
        self._per_run = self._per_run | frozenset(own.get("_writes", ()))
        self._read()
        if device is not None:
            for name in ("timesteps", *self._on_device):
                value = own[name]
                narrow = torch.device(device).type == "mps" and value.is_floating_point()
                own[name] = value.to(device, torch.float32 if narrow else None)
        self._step_index = None
        if self._made:
            self._prepare(waits=True)

    def _read(self) -> None:
        """Reads the live numbers."""
        self.host = read(self)
        times = self.host.times
        self._count = len(times) - self._spare
        places: dict[float, list[int]] = {}
        for i, t in enumerate(times[: self._count]):
            places.setdefault(float(t), []).append(i)
        # of equal times the second one begins a run
        self._positions = {t: found[:2][-1] for t, found in places.items()}

    def _prepare(self, waits: bool = False) -> None:
        """Makes the plan from the live values, or hands over to the original.

        Args:
            waits: whether no plan is a doubt that the first step sees to: until then other code
                may still write.
        """
        registry.watch(self)
        self._run = self._compiled = None
        patched = None if self._trial else is_patched(self._original)
        if patched is not None:
            return self._hand_over(f"{self._original.__name__}.{patched} was replaced")
        if not isinstance(self.timesteps, torch.Tensor):
            return self._hand_over(f"its timesteps are a {type(self.timesteps).__name__}")
        try:
            if not self._count:
                raise ValueError(f"{type(self).__name__}: 0 timesteps, but at least 1 is needed")
            self._factors = self._input_factors()
            self._start(0, self._options)
        except _NO_PLAN as error:
            if waits and not self._trial:
                self._doubt = error  # what the original does depends on where the run starts
            else:
                self._hand_over(str(error))
        else:
            self._live = self._handed is None

    def _resolve(self, begin: int, options: tuple) -> None:
        """Sees to a doubt: where the run starts is known now.

        Raises:
            ValueError: neither a plan nor the original does it.
        """
        doubt, self._doubt = self._doubt, None
        try:
            self._factors = self._input_factors()
            self._start(begin, options)
            self._live = True
        except _NO_PLAN as error:
            # settings written by hand are the original's affair, whatever comes of them
            by_hand = self._odd or self._odd_run
            if not by_hand and not self._original_does(begin, options):
                self._doubt = doubt
                name, said = type(self).__name__, str(error)
                said = said if said.startswith(name) else f"{name}: {said}"
                raise ValueError(
                    f"{said}. {self._original.__name__}'s own code does not end such a run with "
                    "finite numbers either"
                ) from error
            self._hand_over(str(error))

    def _original_does(self, begin: int, options: tuple) -> bool:
        """Returns whether the original ends such a run with finite numbers."""
        try:
            return Trial(self, begin, self._named(options)).is_finite()
        except Exception:
            return False

    def _try_out(self, begin: int, options: tuple) -> None:
        """Raises ValueError if the plan of settings written by hand is not what the original does.

        The original's code and the fused steps take the same run on a few numbers.
        """
        ours = registry.copy_for_trial(self)
        found = Trial(self, begin, self._named(options)).differs(ours)
        if found is not None:
            raise ValueError(
                "some settings were written by other code, and in a trial the plan made from them "
                f"misses the original's {found}"
            )

    @staticmethod
    def _tried(times):
        """Returns the timesteps of a trial, of those of a run."""
        return times

    @staticmethod
    def _called(step, output, times, k, sample, x0, options):
        """Returns what a step says that is called as pipelines call it; for trials.

        Args:
            step: bound method of an original or a drop-in.
            output: of the network.
            times: timesteps of the run.
            k: the step's number.
            sample: the latents.
            x0: what the step before has returned beside its sample, or None.
            options: further arguments.
        """
        return step(output, times[k], sample, **options)

    def _is_written(self) -> bool:
        """Returns whether something was written since the run was prepared; fast."""
        own = self.__dict__
        watched = own["_watched"]
        return (
            own["_writes"]
            or watched.level.tobytes() != watched.levels
            or (watched.moved is not None and watched.moved())
            or own["_internal_dict"] is not watched.config
            or watched.config_attributes["_writes"] != watched.config_writes
        )

    def _changes(self) -> set[str]:
        """Returns the names of what was written since the last look."""
        own = self.__dict__
        found = set(own.get("_writes", ()))
        if self._watched is not None:
            found |= self._watched.changed()
            if self._watched.is_reconfigured(self._internal_dict):
                found.add("config")
        return found - set(self._memory.names)

    def _look(self) -> None:
        """Sees to what was written since the run was prepared."""
        changes, run = self._changes(), self._run
        if changes <= self._per_run:
            self._odd_run = True
        else:
            self._odd = True
        self._kept = None
        if run is not None and run.next != -1 and run.remembers:
            named = sorted(changes - {"config"})
            if "config" in changes:
                named += self._watched.reconfigured(self._internal_dict)
            return self._hand_over(f"its {', '.join(named)} changed between two steps")
        at, self._doubt, self._live = self._step_index, None, False
        self._read()
        self._prepare(waits=True)
        self._step_index = at
        return None

    def _hand_over(self, reason: str) -> None:
        """Lets the original's own code do the rest of this run.

        Raises:
            ValueError: `strict`; a memory that the original cannot take over.
        """
        name = type(self).__name__
        self._refuse_if_strict(reason)
        run, self._live = self._run, False
        if run is not None and run.next != -1 or run is not None and run.ended:
            try:
                self._restore(run)
            except TypeError:
                raise ValueError(
                    f"{name}: {reason}, but what its steps remember cannot be given to "
                    f"{self._original.__name__} in the middle of a run: do so before the first "
                    "step"
                ) from None
        self._handed, self._run, self._compiled = reason, None, None
        self._say(reason)

    def _show_memory(self, reason: str) -> None:
        """Gives the memory of the run to the original's attributes."""
        run = self._run
        if run is None or not run.ended or run.next != -1:
            return self._hand_over(reason)
        self._live = False  # after the last step nothing is left to hand over
        with suppress(TypeError):  # no step is left that needs the rest
            self._restore(run)
        self._handed, self._run, self._compiled = reason, None, None
        return None

    def _hand_over_one_step(self, reason: str) -> None:
        """Says that the original's own code makes one step; the run stays as it is.

        Raises:
            ValueError: `strict`.
        """
        if not self._trial:
            self._refuse_if_strict(reason)
            self._say(reason, "makes this step")

    def _refuse_if_strict(self, reason: str) -> None:
        if self._strict:
            raise ValueError(
                f"{type(self).__name__}: {reason}, and strict=True lets nothing be handed over"
            )

    def _say(self, reason: str, does: str = "goes on") -> None:
        """Warns once that the original's own code runs."""
        if self._trial:
            return
        noise = " with noise from the generator" if self._counter else ""
        say_once(
            self,
            f"{type(self).__name__}: {reason}. {self._original.__name__}'s own code {does}"
            f"{noise}: the same result, not faster",
        )

    def _restore(self, run: Run) -> None:
        memory = self._memory
        if memory.names:
            if memory.restore is None:
                raise TypeError
            step = run.next if run.next != -1 else self._count
            memory.restore(self, run, step)
            # whoever writes to it later changes what is remembered
            if memory.held is not None and run.held is not None:
                vars(self)[memory.held] = run.held

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy starts with; a write that was not seen to yet stays one."""
        own = dict(self.__dict__)
        own["_writes"] = self._changes()
        for name in ("_watched", "_foreign", "_kept", "_numbers"):
            own.pop(name, None)
        return own

    def __setstate__(self, own: dict[str, Any]) -> None:
        """Begins to watch the copy."""
        self.__dict__.update(own)
        registry.watch(self)
        self.__dict__["_writes"] = own["_writes"]
