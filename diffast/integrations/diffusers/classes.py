"""The drop-ins, one for each scheduler of diffusers that has one."""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin as SchedulerMixin  # pipelines look for it here
from diffusers import schedulers as originals

from diffast.integrations.diffusers import dpm_family, indexed, memory, sigmas
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.outputs import Pair
from diffast.integrations.diffusers.registry import drop_in
from diffast.integrations.diffusers.scheduler import DiffastScheduler
from diffast.integrations.diffusers.shared import scale, without_variance

NO_CHURN = (0.0, 0.0, float("inf"), 1.0)
_CHURN = {"_options": NO_CHURN, "_option_names": ("s_churn", "s_tmin", "s_tmax", "s_noise")}


class _WithEstimate(DiffastScheduler):
    """A drop-in whose original returns the x0 estimate too."""

    def _output(self, return_dict, sample, *seen):
        if return_dict:
            return self._Output(sample, seen[0].x0(*seen[1:]))
        return Pair(sample, seen)

    def _traced_output(self, return_dict, sample, x0):
        return self._Output(sample, x0) if return_dict else (sample, x0)


class _Scaled(DiffastScheduler):
    """A drop-in whose network sees the sample times a factor of its step."""

    def scale_model_input(self, sample, timestep):
        """Returns the network's input [B, ...]: the sample times this step's factor."""
        return self._scaled(sample, timestep)


class _SigmaSpace(_Scaled):
    """A drop-in whose network sees x / sqrt(sigma^2 + 1)."""

    def _input_factors(self):
        return scale(self.host.sigmas)


class _Preconditioned(_Scaled):
    """A drop-in whose network sees x / sqrt(sigma^2 + sigma_data^2)."""

    def _input_factors(self):
        return scale(self.host.sigmas, setting(self.config, "sigma_data"))


def _step(self, model_output, timestep, sample, return_dict=True):
    """Returns the previous sample (and the x0 estimate); see diffusers."""
    return self._advance(model_output, timestep, sample, return_dict)


def _drawing_step(self, model_output, timestep, sample, generator=None, return_dict=True):
    """Returns the previous sample (and the x0 estimate); see diffusers."""
    return self._advance(model_output, timestep, sample, return_dict, generator)


def _step_without_variance(self, model_output, timestep, sample, generator=None, return_dict=True):
    """Returns the previous sample; see diffusers. A learned variance is not used."""
    output = without_variance(self.config, model_output)
    return self._advance(output, timestep, sample, return_dict, generator)


def _churning_step(
    self,
    model_output,
    timestep,
    sample,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=float("inf"),
    s_noise=1.0,
    generator=None,
    return_dict=True,
):
    """Returns the previous sample (and the x0 estimate); see diffusers."""
    options = (s_churn, s_tmin, s_tmax, s_noise) if s_churn else self._options
    return self._advance(model_output, timestep, sample, return_dict, generator, options)


def _drop_in(original, recipe, step, *bases: type, **data) -> type:
    """Returns the drop-in for an original that differs in nothing else.

    Args:
        original: diffusers' class.
        recipe: (scheduler, begin, options) -> Recipe.
        step: its method.
        bases: what it shares with others; none: `DiffastScheduler`.
        data: attributes.
    """
    about = f"Drop-in for {original.__name__}."
    data |= {"_recipe": recipe, "step": step, "__doc__": about, "__module__": __name__}
    bases = (*(bases or (DiffastScheduler,)), original)
    return drop_in(original)(type(f"Diffast{original.__name__}", bases, data))


@drop_in(originals.DDIMScheduler)
class DiffastDDIMScheduler(_WithEstimate, originals.DDIMScheduler):
    """Drop-in for DDIMScheduler."""

    _searches = True
    _options = (0.0, False)
    _option_names = ("eta", "use_clipped_model_output")
    _recipe = indexed.ddim

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator=None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        if variance_noise is not None and generator is not None and eta > 0:
            raise ValueError("step: generator and variance_noise are both given, but one is used")
        options = (float(eta), use_clipped_model_output)
        return self._advance(
            model_output, timestep, sample, return_dict, generator, options, variance_noise
        )


DiffastDDPMScheduler = _drop_in(
    originals.DDPMScheduler, indexed.ddpm, _drawing_step, _WithEstimate, _searches=True
)
DiffastLCMScheduler = _drop_in(
    originals.LCMScheduler, indexed.lcm, _drawing_step, _WithEstimate, _reads_time=True
)
DiffastPNDMScheduler = _drop_in(
    originals.PNDMScheduler, indexed.pndm, _step, _memory=memory.PNDM, _reads_time=True
)

_in_sigmas = (_SigmaSpace, _WithEstimate)
DiffastEulerDiscreteScheduler = _drop_in(
    originals.EulerDiscreteScheduler, sigmas.euler, _churning_step, *_in_sigmas, **_CHURN
)


@drop_in(originals.EDMEulerScheduler)
class DiffastEDMEulerScheduler(_Preconditioned, _WithEstimate, originals.EDMEulerScheduler):
    """Drop-in for EDMEulerScheduler."""

    _options, _option_names = _CHURN.values()
    _recipe = sigmas.edm_euler

    def step(
        self,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        return_dict=True,
        pred_original_sample=None,
    ):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        rest = (s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)
        if pred_original_sample is not None:  # the network has been read already
            self._hand_over_one_step("pred_original_sample is given")
            return super().step(model_output, timestep, sample, *rest, pred_original_sample)
        return _churning_step(self, model_output, timestep, sample, *rest)


DiffastEulerAncestralDiscreteScheduler = _drop_in(
    originals.EulerAncestralDiscreteScheduler, sigmas.euler_ancestral, _drawing_step, *_in_sigmas
)
DiffastHeunDiscreteScheduler = _drop_in(
    originals.HeunDiscreteScheduler,
    sigmas.heun,
    _step,
    *_in_sigmas,
    order=2,
    _memory=memory.HEUN,
)


@drop_in(originals.KDPM2DiscreteScheduler)
class DiffastKDPM2DiscreteScheduler(_SigmaSpace, _WithEstimate, originals.KDPM2DiscreteScheduler):
    """Drop-in for KDPM2DiscreteScheduler."""

    order = 2
    _recipe, _memory = sigmas.dpm_2, memory.MIDPOINT
    step = _step

    def _input_factors(self):
        between = self.sigmas_interpol.tolist()
        return [
            of_step if i % 2 == 0 else 1.0 / (between[i] ** 2 + 1.0) ** 0.5
            for i, of_step in enumerate(scale(self.host.sigmas))
        ]


@drop_in(originals.LMSDiscreteScheduler)
class DiffastLMSDiscreteScheduler(_SigmaSpace, _WithEstimate, originals.LMSDiscreteScheduler):
    """Drop-in for LMSDiscreteScheduler."""

    _options, _option_names = (4,), ("order",)
    _recipe, _memory = sigmas.lms, memory.LMS

    def step(self, model_output, timestep, sample, order=4, return_dict=True):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict, options=(order,))


@drop_in(originals.DPMSolverMultistepScheduler)
class DiffastDPMSolverMultistepScheduler(DiffastScheduler, originals.DPMSolverMultistepScheduler):
    """Drop-in for DPMSolverMultistepScheduler; its third-order SDE has the published sign."""

    _recipe, _memory = dpm_family.dpm_multistep, memory.MULTISTEP

    def step(
        self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True
    ):
        """Returns the previous sample; see diffusers."""
        output = without_variance(self.config, model_output)
        return self._advance(output, timestep, sample, return_dict, generator, noise=variance_noise)


DiffastEDMDPMSolverMultistepScheduler = _drop_in(
    originals.EDMDPMSolverMultistepScheduler,
    dpm_family.dpm_multistep,
    _drawing_step,
    _Preconditioned,
    _memory=memory.MULTISTEP,
)
DiffastDPMSolverSinglestepScheduler = _drop_in(
    originals.DPMSolverSinglestepScheduler,
    dpm_family.dpm_singlestep,
    _step_without_variance,
    _memory=memory.SINGLESTEP,
)
DiffastUniPCMultistepScheduler = _drop_in(
    originals.UniPCMultistepScheduler, dpm_family.unipc, _step, _memory=memory.UNIPC
)
DiffastDEISMultistepScheduler = _drop_in(
    originals.DEISMultistepScheduler, dpm_family.deis, _step, _memory=memory.MULTISTEP
)


class _Corrected(DiffastScheduler):
    """A drop-in whose original remembers the noise of the last step."""

    def _output(self, return_dict, sample, *seen):
        run, noise = seen[0], seen[4]
        run.last = noise
        return super()._output(return_dict, sample)

    def _traced_output(self, return_dict, sample, x0):
        return super()._output(return_dict, sample)


DiffastSASolverScheduler = _drop_in(
    originals.SASolverScheduler,
    dpm_family.sa_solver,
    _step_without_variance,
    _Corrected,
    _memory=memory.SA_SOLVER,
    _reads_time=True,
)


@drop_in(originals.FlowMatchEulerDiscreteScheduler)
class DiffastFlowMatchEulerDiscreteScheduler(
    DiffastScheduler, originals.FlowMatchEulerDiscreteScheduler
):
    """Drop-in for FlowMatchEulerDiscreteScheduler."""

    _options, _option_names = _CHURN.values()
    _recipe, _on_device = sigmas.flow_euler, ("sigmas",)

    def step(
        self,
        model_output,
        timestep,
        sample,
        s_churn=0.0,
        s_tmin=0.0,
        s_tmax=float("inf"),
        s_noise=1.0,
        generator=None,
        per_token_timesteps=None,
        return_dict=True,
    ):
        """Returns the previous sample; see diffusers."""
        if per_token_timesteps is not None:  # a noise level an element is no plan
            self._hand_over_one_step("per_token_timesteps is given")
            rest = (s_churn, s_tmin, s_tmax, s_noise, generator, per_token_timesteps, return_dict)
            return super().step(model_output, timestep, sample, *rest)
        options = self._options  # diffusers takes these and does not use them
        return self._advance(model_output, timestep, sample, return_dict, generator, options)


DiffastFlowMatchHeunDiscreteScheduler = _drop_in(
    originals.FlowMatchHeunDiscreteScheduler,
    sigmas.flow_heun,
    _churning_step,
    order=2,
    _memory=memory.HEUN,
    _on_device=("sigmas",),
    **_CHURN,
)
