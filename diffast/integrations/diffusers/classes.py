"""The drop-ins, one for each scheduler of diffusers that has one."""

from __future__ import annotations

import torch
from diffusers import (
    SchedulerMixin as SchedulerMixin,
)  # pipelines look for it beside their scheduler
from diffusers import schedulers as originals
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_ddpm,
    scheduling_edm_euler,
    scheduling_lcm,
    scheduling_lms_discrete,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete as scheduling_ancestral
from diffusers.schedulers import scheduling_euler_discrete as scheduling_euler
from diffusers.schedulers import scheduling_flow_match_euler_discrete as scheduling_flow
from diffusers.schedulers import scheduling_flow_match_heun_discrete as scheduling_flow_heun
from diffusers.schedulers import scheduling_heun_discrete as scheduling_heun
from diffusers.schedulers import scheduling_k_dpm_2_discrete as scheduling_dpm_2
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from diffast.integrations.diffusers import dpm_family, indexed, sigmas
from diffast.integrations.diffusers.outputs import Pair
from diffast.integrations.diffusers.scheduler import DiffastScheduler, drop_in, scale
from diffast.integrations.diffusers.shared import without_variance


class _WithEstimate(DiffastScheduler):
    """A drop-in whose original returns the x0 estimate too."""

    def _output(self, return_dict, sample, *seen):
        if return_dict:
            return self._Output(sample, seen[0].x0(*seen[1:], sample.dtype))
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
        return scale(self.host.sigmas, self.config["sigma_data"])


def _step(self, model_output, timestep, sample, return_dict=True):
    """Returns the previous sample (and the x0 estimate); see diffusers."""
    return self._advance(model_output, timestep, sample, return_dict)


def _drawing_step(self, model_output, timestep, sample, generator=None, return_dict=True):
    """Returns the previous sample (and the x0 estimate); see diffusers."""
    return self._advance(model_output, timestep, sample, return_dict, generator)


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


@drop_in(originals.DDIMScheduler)
class DiffastDDIMScheduler(_WithEstimate, originals.DDIMScheduler):
    """Drop-in for DDIMScheduler."""

    _Output = scheduling_ddim.DDIMSchedulerOutput
    _searches = True
    _options = (0.0, False)

    def _recipe(self, begin, options):
        return indexed.ddim(self, *options)

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
        if variance_noise is not None and generator is not None:
            raise ValueError("step: generator and variance_noise are both given, but one is used")
        options = (float(eta), use_clipped_model_output)
        return self._advance(
            model_output, timestep, sample, return_dict, generator, options, variance_noise
        )


@drop_in(originals.DDPMScheduler)
class DiffastDDPMScheduler(_WithEstimate, originals.DDPMScheduler):
    """Drop-in for DDPMScheduler."""

    _Output = scheduling_ddpm.DDPMSchedulerOutput
    _searches = True

    def _recipe(self, begin, options):
        return indexed.ddpm(self)

    step = _drawing_step


@drop_in(originals.LCMScheduler)
class DiffastLCMScheduler(_WithEstimate, originals.LCMScheduler):
    """Drop-in for LCMScheduler."""

    _Output = scheduling_lcm.LCMSchedulerOutput

    def _recipe(self, begin, options):
        return indexed.lcm(self)

    step = _drawing_step


@drop_in(originals.PNDMScheduler)
class DiffastPNDMScheduler(DiffastScheduler, originals.PNDMScheduler):
    """Drop-in for PNDMScheduler."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return indexed.pndm(self, begin)

    step = _step


@drop_in(originals.EulerDiscreteScheduler)
class DiffastEulerDiscreteScheduler(_SigmaSpace, _WithEstimate, originals.EulerDiscreteScheduler):
    """Drop-in for EulerDiscreteScheduler."""

    _Output = scheduling_euler.EulerDiscreteSchedulerOutput
    _options = (0.0, 0.0, float("inf"), 1.0)

    def _recipe(self, begin, options):
        return sigmas.euler(self, options)

    step = _churning_step


@drop_in(originals.EDMEulerScheduler)
class DiffastEDMEulerScheduler(_Preconditioned, _WithEstimate, originals.EDMEulerScheduler):
    """Drop-in for EDMEulerScheduler."""

    _Output = scheduling_edm_euler.EDMEulerSchedulerOutput
    _options = (0.0, 0.0, float("inf"), 1.0)

    def _recipe(self, begin, options):
        return sigmas.edm_euler(self, options)

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
        if pred_original_sample is not None:  # the network has been read already
            return super().step(
                model_output,
                timestep,
                sample,
                s_churn,
                s_tmin,
                s_tmax,
                s_noise,
                generator,
                return_dict,
                pred_original_sample,
            )
        options = (s_churn, s_tmin, s_tmax, s_noise) if s_churn else self._options
        return self._advance(model_output, timestep, sample, return_dict, generator, options)


@drop_in(originals.EulerAncestralDiscreteScheduler)
class DiffastEulerAncestralDiscreteScheduler(
    _SigmaSpace, _WithEstimate, originals.EulerAncestralDiscreteScheduler
):
    """Drop-in for EulerAncestralDiscreteScheduler."""

    _Output = scheduling_ancestral.EulerAncestralDiscreteSchedulerOutput

    def _recipe(self, begin, options):
        return sigmas.euler_ancestral(self)

    step = _drawing_step


@drop_in(originals.HeunDiscreteScheduler)
class DiffastHeunDiscreteScheduler(_SigmaSpace, _WithEstimate, originals.HeunDiscreteScheduler):
    """Drop-in for HeunDiscreteScheduler."""

    _Output = scheduling_heun.HeunDiscreteSchedulerOutput

    order = 2

    def _recipe(self, begin, options):
        return sigmas.heun(self)

    step = _step


@drop_in(originals.KDPM2DiscreteScheduler)
class DiffastKDPM2DiscreteScheduler(_SigmaSpace, _WithEstimate, originals.KDPM2DiscreteScheduler):
    """Drop-in for KDPM2DiscreteScheduler."""

    _Output = scheduling_dpm_2.KDPM2DiscreteSchedulerOutput
    order = 2

    def _input_factors(self):
        between = self.sigmas_interpol.tolist()
        return [
            of_step if i % 2 == 0 else 1.0 / (between[i] ** 2 + 1.0) ** 0.5
            for i, of_step in enumerate(scale(self.host.sigmas))
        ]

    def _recipe(self, begin, options):
        return sigmas.dpm_2(self)

    step = _step


@drop_in(originals.LMSDiscreteScheduler)
class DiffastLMSDiscreteScheduler(_SigmaSpace, _WithEstimate, originals.LMSDiscreteScheduler):
    """Drop-in for LMSDiscreteScheduler."""

    _Output = scheduling_lms_discrete.LMSDiscreteSchedulerOutput
    _options = (4,)

    def _recipe(self, begin, options):
        return sigmas.lms(self, begin, *options)

    def step(self, model_output, timestep, sample, order=4, return_dict=True):
        """Returns the previous sample and the x0 estimate; see diffusers."""
        return self._advance(model_output, timestep, sample, return_dict, options=(order,))


@drop_in(originals.DPMSolverMultistepScheduler)
class DiffastDPMSolverMultistepScheduler(DiffastScheduler, originals.DPMSolverMultistepScheduler):
    """Drop-in for DPMSolverMultistepScheduler; its third-order SDE has the published sign."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return dpm_family.dpm_multistep(self, begin)

    def step(
        self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True
    ):
        """Returns the previous sample; see diffusers."""
        output = without_variance(self.config, model_output)
        return self._advance(output, timestep, sample, return_dict, generator, noise=variance_noise)


@drop_in(originals.EDMDPMSolverMultistepScheduler)
class DiffastEDMDPMSolverMultistepScheduler(
    _Preconditioned, originals.EDMDPMSolverMultistepScheduler
):
    """Drop-in for EDMDPMSolverMultistepScheduler."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return dpm_family.dpm_multistep(self, begin)

    step = _drawing_step


@drop_in(originals.DPMSolverSinglestepScheduler)
class DiffastDPMSolverSinglestepScheduler(DiffastScheduler, originals.DPMSolverSinglestepScheduler):
    """Drop-in for DPMSolverSinglestepScheduler."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return dpm_family.dpm_singlestep(self, begin)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        """Returns the previous sample; see diffusers."""
        output = without_variance(self.config, model_output)
        return self._advance(output, timestep, sample, return_dict, generator)


@drop_in(originals.UniPCMultistepScheduler)
class DiffastUniPCMultistepScheduler(DiffastScheduler, originals.UniPCMultistepScheduler):
    """Drop-in for UniPCMultistepScheduler."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return dpm_family.unipc(self, begin)

    step = _step


@drop_in(originals.DEISMultistepScheduler)
class DiffastDEISMultistepScheduler(DiffastScheduler, originals.DEISMultistepScheduler):
    """Drop-in for DEISMultistepScheduler."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return dpm_family.deis(self, begin)

    step = _step


@drop_in(originals.SASolverScheduler)
class DiffastSASolverScheduler(DiffastScheduler, originals.SASolverScheduler):
    """Drop-in for SASolverScheduler."""

    _Output = SchedulerOutput

    def _recipe(self, begin, options):
        return dpm_family.sa_solver(self, begin)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True):
        """Returns the previous sample; see diffusers."""
        output = without_variance(self.config, model_output)
        return self._advance(output, timestep, sample, return_dict, generator)


@drop_in(originals.FlowMatchEulerDiscreteScheduler)
class DiffastFlowMatchEulerDiscreteScheduler(
    DiffastScheduler, originals.FlowMatchEulerDiscreteScheduler
):
    """Drop-in for FlowMatchEulerDiscreteScheduler."""

    _Output = scheduling_flow.FlowMatchEulerDiscreteSchedulerOutput
    _options = (0.0, 0.0, float("inf"), 1.0)

    def _recipe(self, begin, options):
        return sigmas.flow_euler(self, options)

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
            return super().step(
                model_output,
                timestep,
                sample,
                s_churn,
                s_tmin,
                s_tmax,
                s_noise,
                generator,
                per_token_timesteps,
                return_dict,
            )
        options = self._options  # diffusers takes these and does not use them
        return self._advance(model_output, timestep, sample, return_dict, generator, options)


@drop_in(originals.FlowMatchHeunDiscreteScheduler)
class DiffastFlowMatchHeunDiscreteScheduler(
    DiffastScheduler, originals.FlowMatchHeunDiscreteScheduler
):
    """Drop-in for FlowMatchHeunDiscreteScheduler."""

    _Output = scheduling_flow_heun.FlowMatchHeunDiscreteSchedulerOutput
    order = 2
    _options = (0.0, 0.0, float("inf"), 1.0)

    def _recipe(self, begin, options):
        return sigmas.flow_heun(self, options)

    step = _churning_step
