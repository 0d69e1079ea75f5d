"""Recipes of the schedulers whose times are real numbers and no training indices."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffast import schedules
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.reading import Reading
from diffast.integrations.diffusers.run import Recipe
from diffast.model.denoiser import Prediction
from diffast.solvers import compat


def wuerstchen(scheduler, begin, options) -> Recipe:
    """DDPMWuerstchenScheduler; the option is the dtype that its times were rounded to, or None.

    A pipeline in half precision rounds the time that a step starts at, but not that of its end.
    """
    (rounded,) = options
    times = torch.tensor(scheduler.host.times, dtype=scheduler.timesteps.dtype)
    starts, ends = times[:-1], times[1:]
    if rounded is not None:
        starts = starts.to(rounded)

    def products(of):
        found = scheduler._alpha_cumprod(of, torch.device("cpu"))
        return found.to(torch.float64).numpy()

    start, end = products(starts), products(ends)
    trig = schedules.trig()
    at_start, at_end = (np.arctan2(np.sqrt(1.0 - p), np.sqrt(p)) for p in (start, end))
    betas = (end - start) / end
    if (betas < 0.0).any():
        raise ValueError("a timestep is smaller than the one after it, which has no such step")
    noise = np.sqrt(betas * (1.0 - end) / (1.0 - start)) * (ends != 0).numpy()
    plan = compat.posterior(trig, at_start, at_end, start / end, betas, noise)
    return Recipe(plan, Prediction(trig, "epsilon"), draws=(True,) * plan.nfe, wide=True)


def scm(scheduler, begin, options) -> Recipe:
    """SCMScheduler: TrigFlow, x = cos(t) x0 + sin(t) z."""
    config = scheduler.config
    if scheduler.num_inference_steps is None:
        raise ValueError("set_timesteps was not called, but the original needs it")
    if config.prediction_type != "trigflow":
        raise ValueError(f"prediction_type is {config.prediction_type!r}, but SCM's is 'trigflow'")
    times = np.array(scheduler.host.times)
    starts, ends = times[:-1], times[1:]
    # usual lists begin a little above pi / 2, where no schedule is: only the labels are below it
    labels = np.clip(starts, 0.0, 0.5 * math.pi)
    noise = np.sin(ends) * float(setting(config, "sigma_data"))
    plan = compat.consistency(schedules.trig(), labels, np.cos(ends), noise)
    return Recipe(
        plan,
        Reading(np.cos(starts), -np.sin(starts)),
        draws=(True,) * plan.nfe,
        noise_dtype=torch.get_default_dtype(),
    )
