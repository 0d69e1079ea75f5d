"""Further drop-ins: ancestral and Brownian steps, inversion, distilled and flow samplers.

diffusers has some of these schedulers only in later versions, or only beside torchsde.
"""

from __future__ import annotations

import functools
import logging

import torch
from diffusers import SchedulerMixin as SchedulerMixin  # pipelines look for it here
from diffusers import schedulers as originals
from diffusers.utils import is_torchsde_available

from diffast.integrations.diffusers import memory, more_sigmas
from diffast.integrations.diffusers.classes import _drawing_step as drawing_step
from diffast.integrations.diffusers.classes import _Preconditioned as Preconditioned
from diffast.integrations.diffusers.classes import _SigmaSpace as SigmaSpace
from diffast.integrations.diffusers.classes import _step as plain_step
from diffast.integrations.diffusers.classes import _WithEstimate as WithEstimate
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.on_path import OnPath
from diffast.integrations.diffusers.registry import drop_in
from diffast.integrations.diffusers.scheduler import DiffastScheduler
from diffast.integrations.diffusers.shared import scale, without_variance


def _quietly(method):
    """Returns the method without diffusers' log of options that a class does not have."""

    @functools.wraps(method)
    def quiet(self, *args, **kwargs):
        logger = logging.getLogger("diffusers.configuration_utils")
        before, logger.disabled = logger.disabled, True
        try:
            return method(self, *args, **kwargs)
        finally:
            logger.disabled = before

    return quiet


@drop_in(originals.KDPM2AncestralDiscreteScheduler)
class DiffastKDPM2AncestralDiscreteScheduler(
    SigmaSpace, WithEstimate, originals.KDPM2AncestralDiscreteScheduler
):
    """Drop-in for KDPM2AncestralDiscreteScheduler."""

    order = 2
    _recipe, _memory = more_sigmas.kdpm2_ancestral, memory.ANCESTRAL_MIDPOINT
    _on_device = ("sigmas_interpol", "sigmas_down", "sigmas_up", "log_sigmas")
    step = drawing_step

    def _input_factors(self):
        between = scale(self.sigmas_interpol.double())
        return [
            between[i - 1] if i % 2 else of_step
            for i, of_step in enumerate(scale(self.host.sigmas))
        ]


@drop_in(originals.DPMSolverMultistepInverseScheduler)
class DiffastDPMSolverMultistepInverseScheduler(
    DiffastScheduler, originals.DPMSolverMultistepInverseScheduler
):
    """Drop-in for DPMSolverMultistepInverseScheduler."""

    _recipe, _memory = more_sigmas.dpm_multistep_inverse, memory.MULTISTEP

    def step(
        self, model_output, timestep, sample, generator=None, variance_noise=None, return_dict=True
    ):
        """Returns the next, noisier sample; see diffusers."""
        output = without_variance(self.config, model_output)
        return self._advance(output, timestep, sample, return_dict, generator, noise=variance_noise)


@drop_in(originals.IPNDMScheduler)
class DiffastIPNDMScheduler(DiffastScheduler, originals.IPNDMScheduler):
    """Drop-in for IPNDMScheduler."""

    _recipe, _memory = more_sigmas.ipndm, memory.IPNDM
    _read_too = ("alphas", "betas")
    step = plain_step


@drop_in(originals.CMStochasticIterativeScheduler)
class DiffastCMStochasticIterativeScheduler(
    Preconditioned, originals.CMStochasticIterativeScheduler
):
    """Drop-in for CMStochasticIterativeScheduler."""

    _recipe = more_sigmas.consistency
    step = drawing_step


if is_torchsde_available():
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    @drop_in(originals.DPMSolverSDEScheduler)
    class DiffastDPMSolverSDEScheduler(
        SigmaSpace, WithEstimate, OnPath, originals.DPMSolverSDEScheduler
    ):
        """Drop-in for DPMSolverSDEScheduler."""

        order = 2
        _recipe, _memory = more_sigmas.dpm_sde, memory.STOCHASTIC_MIDPOINT
        _options, _option_names = (1.0,), ("s_noise",)
        _sampler = BrownianTreeNoiseSampler

        @torch.compiler.disable
        def step(self, model_output, timestep, sample, return_dict=True, s_noise=1.0):
            """Returns the previous sample and the x0 estimate; see diffusers."""
            return self._advance(
                model_output, timestep, sample, return_dict, options=(float(s_noise),)
            )

        @torch.compiler.disable
        def scale_model_input(self, sample, timestep):
            """Returns the network's input [B, ...]: the sample times this step's factor."""
            return self._scaled(sample, timestep)

        def _input_factors(self):
            sigmas = self.host.sigmas
            factors = scale(sigmas)
            return [
                scale((sigmas[i - 1 : i] * sigmas[i : i + 1]) ** 0.5)[0] if i % 2 else factor
                for i, factor in enumerate(factors[: self._count])
            ]

        def _span(self):
            known = self.sigmas[self.sigmas > 0]
            return known.min().item(), self.sigmas.max().item()

        def _seed(self, generator):
            return self.noise_sampler_seed

    @drop_in(originals.CosineDPMSolverMultistepScheduler)
    class DiffastCosineDPMSolverMultistepScheduler(
        Preconditioned, OnPath, originals.CosineDPMSolverMultistepScheduler
    ):
        """Drop-in for CosineDPMSolverMultistepScheduler."""

        _recipe, _memory = more_sigmas.cosine_dpm, memory.MULTISTEP_ON_A_PATH
        _sampler = BrownianTreeNoiseSampler

        @torch.compiler.disable
        def step(self, model_output, timestep, sample, generator=None, return_dict=True):
            """Returns the previous sample; see diffusers."""
            return self._advance(model_output, timestep, sample, return_dict, generator)

        @torch.compiler.disable
        def scale_model_input(self, sample, timestep):
            """Returns the network's input [B, ...]: the sample times this step's factor."""
            return self._scaled(sample, timestep)

        def _span(self):
            return setting(self.config, "sigma_min"), setting(self.config, "sigma_max")

        def _tree_dtype(self, sample, output):
            return torch.promote_types(sample.dtype, output.dtype)

        def _seed(self, generator):
            if isinstance(generator, list):
                return [each.initial_seed() for each in generator]
            return None if generator is None else generator.initial_seed()


if hasattr(originals, "FlowMatchLCMScheduler"):

    @drop_in(originals.FlowMatchLCMScheduler)
    class DiffastFlowMatchLCMScheduler(DiffastScheduler, originals.FlowMatchLCMScheduler):
        """Drop-in for FlowMatchLCMScheduler; latents that change their size are the original's."""

        _recipe, _memory, _on_device = more_sigmas.flow_lcm, memory.SIZE, ("sigmas",)
        step = drawing_step


if hasattr(originals, "LTXEulerAncestralRFScheduler"):

    @drop_in(originals.LTXEulerAncestralRFScheduler)
    class DiffastLTXEulerAncestralRFScheduler(
        DiffastScheduler, originals.LTXEulerAncestralRFScheduler
    ):
        """Drop-in for LTXEulerAncestralRFScheduler."""

        _recipe, _on_device = more_sigmas.ltx_ancestral, ("sigmas",)
        step = drawing_step

    # it makes a FlowMatchEuler of its own configuration, where `noise` and `strict` are not known
    DiffastLTXEulerAncestralRFScheduler.set_timesteps = _quietly(
        DiffastLTXEulerAncestralRFScheduler.set_timesteps
    )


if hasattr(originals, "FlowMapEulerDiscreteScheduler"):

    @drop_in(originals.FlowMapEulerDiscreteScheduler)
    class DiffastFlowMapEulerDiscreteScheduler(
        DiffastScheduler, originals.FlowMapEulerDiscreteScheduler
    ):
        """Drop-in for FlowMapEulerDiscreteScheduler."""

        _recipe, _on_device, _reads_time = more_sigmas.flow_map, ("sigmas",), True

        def step(self, model_output, timestep, sample, r_timestep=None, return_dict=True):
            """Returns the sample at the next time, or at `r_timestep`; see diffusers."""
            if r_timestep is not None:  # from any time to any other is no list of steps
                self._hand_over_one_step("r_timestep is given")
                return super().step(model_output, timestep, sample, r_timestep, return_dict)
            return self._advance(model_output, timestep, sample, return_dict)


if hasattr(originals, "MiniMaxH3Scheduler"):

    @drop_in(originals.MiniMaxH3Scheduler)
    class DiffastMiniMaxH3Scheduler(DiffastScheduler, originals.MiniMaxH3Scheduler):
        """Drop-in for MiniMaxH3Scheduler."""

        _recipe, _on_device, _reads_time = more_sigmas.minimax_h3, ("sigmas",), True
        step = plain_step
