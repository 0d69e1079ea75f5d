"""Further drop-ins whose steps lead between training indices or between times from 0 to 1.

Imported after `classes`, whose kinds of drop-ins these are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import SchedulerMixin as SchedulerMixin  # pipelines look for it here
from diffusers import schedulers as originals
from diffusers.schedulers import (
    scheduling_ddim_cogvideox,
    scheduling_ddim_inverse,
    scheduling_dpm_cogvideox,
)

from diffast.integrations.diffusers import classes, indexed, more_indexed, ratios
from diffast.integrations.diffusers.classes import _WithEstimate
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.outputs import Pair
from diffast.integrations.diffusers.registry import drop_in
from diffast.integrations.diffusers.scheduler import DiffastScheduler

_is_compiling = torch.compiler.is_compiling


class _OwnArguments(DiffastScheduler):
    """A drop-in whose original's step takes what a plan's step does not.

    Where no plan runs `_advance` returns None, and the class calls its original.
    """

    def _seen(self) -> bool:
        """Returns whether a plan holds, after a look at what other code has written."""
        if self._live and self._is_written():
            self._look()
        return self._live

    def _by_original(self, *args):
        if self._live:  # this step alone
            self._hand_over_one_step("step was given other arguments than its timesteps have")


def _out_of_a_graph(scheduler: Any, *arguments: Any) -> Any:
    """Returns what its `step` does, outside of a graph."""
    result = scheduler.step(*arguments)
    return tuple(result) if type(result) is Pair else result  # nothing traces a Pair


_eager: Any = torch.compiler.disable(_out_of_a_graph)


@drop_in(originals.DDIMParallelScheduler)
class DiffastDDIMParallelScheduler(_WithEstimate, originals.DDIMParallelScheduler):
    """Drop-in for DDIMParallelScheduler; `batch_step_no_noise` is the original's."""

    _searches, _steps_as = True, classes.DiffastDDIMScheduler
    _options, _option_names = (0.0, False), ("eta", "use_clipped_model_output")
    _recipe = indexed.ddim
    step: Any = classes.DiffastDDIMScheduler.step


@drop_in(originals.DDPMParallelScheduler)
class DiffastDDPMParallelScheduler(_WithEstimate, originals.DDPMParallelScheduler):
    """Drop-in for DDPMParallelScheduler; `batch_step_no_noise` is the original's."""

    _searches, _steps_as = True, classes.DiffastDDPMScheduler
    _recipe = indexed.ddpm
    step: Any = classes.DiffastDDPMScheduler.step


@drop_in(originals.DDIMInverseScheduler)
class DiffastDDIMInverseScheduler(_WithEstimate, originals.DDIMInverseScheduler):
    """Drop-in for DDIMInverseScheduler."""

    _searches = True
    _Output = scheduling_ddim_inverse.DDIMSchedulerOutput
    _recipe = more_indexed.ddim_inverse

    def step(self, model_output, timestep, sample, return_dict=True):
        """Returns the noisier sample and the x0 estimate; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict)


@drop_in(originals.CogVideoXDDIMScheduler)
class DiffastCogVideoXDDIMScheduler(_WithEstimate, originals.CogVideoXDDIMScheduler):
    """Drop-in for CogVideoXDDIMScheduler."""

    _searches = True
    _Output = scheduling_ddim_cogvideox.DDIMSchedulerOutput
    _recipe = more_indexed.cogvideox_ddim

    def step(
        self,
        model_output,
        timestep,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=True,
    ):
        """Returns the previous sample and the x0 estimate; see diffusers, which draws no noise."""
        return self._advance(model_output, timestep, sample, return_dict)


@drop_in(originals.CogVideoXDPMScheduler)
class DiffastCogVideoXDPMScheduler(_OwnArguments, originals.CogVideoXDPMScheduler):
    """Drop-in for CogVideoXDPMScheduler. The caller keeps the x0 estimate of the step before."""

    _searches = True
    _Output = scheduling_dpm_cogvideox.DDIMSchedulerOutput
    _options = (False,)
    _recipe = more_indexed.cogvideox_dpm

    def _output(self, return_dict, sample, run, stage, seen, output, noise, shown):
        if run.y is None:  # the sample is the estimate
            return sample, sample.to(shown, copy=True)
        return sample, run.y if run.y.dtype is shown else run.y.to(shown)

    @staticmethod
    def _called(step, output, times, k, sample, x0, options):
        back = times[k - 1] if k and x0 is not None else None
        return step(output, x0, times[k], back, sample, **options, return_dict=False)

    def _named(self, options):
        return {}

    def step(
        self,
        model_output,
        old_pred_original_sample,
        timestep,
        timestep_back,
        sample,
        eta=0.0,
        use_clipped_model_output=False,
        generator=None,
        variance_noise=None,
        return_dict=False,
    ):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        old, result = old_pred_original_sample, None
        if _is_compiling():
            rest = (eta, use_clipped_model_output, generator, variance_noise, return_dict)
            return _eager(self, model_output, old, timestep, timestep_back, sample, *rest)
        at = self._place(timestep) if self._seen() else None
        if old is None:
            options = self._options if at == 0 else (True,)
        else:
            options = self._options if self._follows(at, timestep_back) else None
        if not model_output.shape == sample.shape == (sample if old is None else old).shape:
            options = None  # the original broadcasts them
        if options is not None:
            given = sample if old is None else old
            result = self._advance(
                model_output, timestep, sample, False, generator, options, given=given
            )
        elif self._live:
            self._by_original()
        if result is None:
            return self._original.step(
                self,
                model_output,
                old,
                timestep,
                timestep_back,
                sample,
                generator=generator,
                return_dict=return_dict,
            )
        if return_dict and old is not None and timestep >= self._stride():
            return self._Output(*result)
        return result

    def _stride(self) -> int:
        return setting(self.config, "num_train_timesteps") // self.num_inference_steps

    def _follows(self, at: int | None, back: Any) -> bool:
        """Returns whether the step at that index comes after the one at timestep `back`."""
        if at is None:
            return False
        if self.host.times[at] < self._stride():  # a last step, of first order
            return True
        return at > 0 and back is not None and self._place(back) == at - 1


@drop_in(originals.TCDScheduler)
class DiffastTCDScheduler(_WithEstimate, originals.TCDScheduler):
    """Drop-in for TCDScheduler."""

    _reads_time = True
    _options, _option_names = (0.3,), ("eta",)
    _recipe = more_indexed.tcd

    def step(self, model_output, timestep, sample, eta=0.3, generator=None, return_dict=True):
        """Returns the previous sample and the state before its noise; see diffusers."""
        if not 0 <= eta <= 1:
            raise ValueError(f"step: eta is {eta}, but it must be from 0 to 1")
        return self._advance(model_output, timestep, sample, return_dict, generator, (eta,))


@drop_in(originals.UnCLIPScheduler)
class DiffastUnCLIPScheduler(_OwnArguments, _WithEstimate, originals.UnCLIPScheduler):
    """Drop-in for UnCLIPScheduler."""

    _searches, _read_too, _fewest = True, ("alphas", "betas"), 2
    _options, _option_names = (True,), ("prev_timestep",)
    _recipe = more_indexed.unclip

    @staticmethod
    def _called(step, output, times, k, sample, x0, options):
        strides = options.get("prev_timestep") and k + 1 < len(times)
        following = times[k + 1] if strides else None
        return step(output, times[k], sample, **{**options, "prev_timestep": following})

    def step(
        self, model_output, timestep, sample, prev_timestep=None, generator=None, return_dict=True
    ):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        if _is_compiling():
            if prev_timestep is not None:
                return _eager(
                    self, model_output, timestep, sample, prev_timestep, generator, return_dict
                )
            return self._advance(model_output, timestep, sample, return_dict, generator, (False,))
        self._seen()
        result, options = None, self._ends(timestep, prev_timestep)
        if options is not None:
            result = self._advance(model_output, timestep, sample, return_dict, generator, options)
        elif self._live:
            self._by_original()
        if result is None:
            return self._original.step(
                self, model_output, timestep, sample, prev_timestep, generator, return_dict
            )
        return result

    def _ends(self, timestep, following) -> tuple | None:
        """Returns the options of a step that ends there; None: no plan's step does."""
        if following is None:
            run = self._run
            if run is None or self._place(timestep) != self._count - 1:
                return (False,)
            return run.options
        if not self._live:
            return None
        at, end = self._place(timestep), self._place(following)
        if at is None or end is None or at + 1 >= self._count:
            return None
        return (True,) if self.host.times[end] == self.host.times[at + 1] else None


@drop_in(originals.RePaintScheduler)
class DiffastRePaintScheduler(_OwnArguments, originals.RePaintScheduler):
    """Drop-in for RePaintScheduler; `undo_step` is the original's.

    The painted part and the known one are one fused call. A mask weighs them element by element,
    which is no weight of a plan.
    """

    _searches = True
    _order: Any = None  # list: index into timesteps -> index into the host's times
    _recipe = more_indexed.repaint

    def _read(self):
        super()._read()
        times = list(dict.fromkeys(self.host.times))
        self._positions = {float(t): i for i, t in enumerate(times)}
        self._order = [self._positions[float(t)] for t in self.host.times]
        self.host, self._count = replace(self.host, times=times), len(times)

    def _place(self, timestep):
        order = self._order
        if order is not None and isinstance(timestep, torch.Tensor) and timestep.numel() == 1:
            times = self.timesteps
            i, rest = divmod(timestep.data_ptr() - self._base, self._size)
            of_run = timestep.dtype is times.dtype and timestep.device == times.device
            if of_run and not rest and 0 <= i < len(order):
                return order[i]
        return super()._place(timestep)

    @staticmethod
    def _tried(times):
        return times.unique().flip(0)  # a step is that of its timestep alone

    def _output(self, return_dict, sample, run, *step):
        return sample, run, step

    @staticmethod
    def _called(step, output, times, k, sample, x0, options):
        mask = (output[:, :1] > 0.0).to(sample.dtype)
        return step(output, times[k], sample, output.flip(-1), mask, **options)

    def step(
        self,
        model_output,
        timestep,
        sample,
        original_image,
        mask,
        generator=None,
        return_dict=True,
    ):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        result: Any = None
        if _is_compiling():
            rest = (original_image, mask, generator, return_dict)
            return _eager(self, model_output, timestep, sample, *rest)
        if original_image.shape == sample.shape == model_output.shape:
            result = self._advance(
                model_output, timestep, sample, False, generator, given=original_image
            )
        elif self._live:
            self._by_original()
        if result is None:
            return self._original.step(
                self, model_output, timestep, sample, original_image, mask, generator, return_dict
            )
        painted, run, seen = result
        dtype = torch.promote_types(painted.dtype, mask.dtype)
        known = run.y.to(dtype)
        blended = torch.lerp(painted.to(dtype), known, mask.to(dtype))
        if return_dict:
            return self._Output(blended, run.x0(*seen))
        return Pair(blended, (run, *seen))


@drop_in(originals.DDPMWuerstchenScheduler)
class DiffastDDPMWuerstchenScheduler(DiffastScheduler, originals.DDPMWuerstchenScheduler):
    """Drop-in for DDPMWuerstchenScheduler."""

    _searches, _spare = True, 1
    _options = (None,)
    _recipe = ratios.wuerstchen

    def _read(self):
        super()._read()
        # of two equal times the original finds the first
        times = [float(t) for t in self.host.times[: self._count]]
        self._positions = {t: i for i, t in reversed(list(enumerate(times)))}

    def _place(self, timestep):
        times = self.timesteps
        if not isinstance(timestep, torch.Tensor) or timestep.dim() != 1 or not len(timestep):
            return None
        if timestep.dtype is times.dtype and timestep.device == times.device:
            i, rest = divmod(timestep.data_ptr() - self._base, self._size)
            one = timestep.stride(0) == 0 or len(timestep) == 1
            if one and not rest and 0 <= i < self._count:
                return self._positions[float(self.host.times[i])]
        values = timestep.tolist()  # a copy of the pipeline's: it is read
        if len(set(values)) != 1:
            return None
        numbers = torch.tensor(self.host.times, dtype=times.dtype)
        i = int((numbers - torch.tensor(values[0], dtype=timestep.dtype)).abs().argmin())
        same = i < self._count and float(numbers[i].to(timestep.dtype)) == values[0]
        return i if same else None

    def _first_row(self, timestep):
        return (self.timesteps - timestep[0]).abs().argmin()

    def _named(self, options):
        return {}

    @staticmethod
    def _called(step, output, times, k, sample, x0, options):
        return step(output, times[k].expand(len(sample)), sample, **options)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        """Returns the previous sample; see diffusers. The timestep is a tensor [B]."""
        dtype = getattr(timestep, "dtype", None)
        options = self._options if dtype is self.timesteps.dtype else (dtype,)
        return self._advance(model_output, timestep, sample, return_dict, generator, options)


@drop_in(originals.SCMScheduler)
class DiffastSCMScheduler(_WithEstimate, originals.SCMScheduler):
    """Drop-in for SCMScheduler."""

    _spare = 1
    _recipe = ratios.scm

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict, generator)
