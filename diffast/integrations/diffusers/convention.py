"""What a diffusers scheduler says of its network: noise schedule, prediction type, times.

A plan is for a schedule and a prediction type. This file reads both from a scheduler, whatever its
solver, so that a plan made for a network runs in any pipeline around that network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffast import schedules
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.shared import predicts
from diffast.model.prediction import Prediction
from diffast.plans import Plan

# Their networks are distilled, and read x0 by formulas of their own.
_DISTILLED = ("LCM", "TCD", "FlowMatchLCM", "ConsistencyModels", "CMStochasticIterative", "SCM")
# Their steps do not only lead from noise to a sample.
_OTHER_WAYS = ("RePaint", "DDIMInverse", "DPMSolverMultistepInverse")
# log-SNRs of one schedule, from betas in float32 and from betas in float64, agree to this.
_SAME = 2e-3


@dataclass(frozen=True)
class Convention:
    """The terms of a network in a pipeline.

    Attributes:
        schedule: its noise schedule: `from_betas` or `flow`.
        predicts: its prediction type, as `Denoiser` names it.
        unit: what a pipeline's timestep grows by while the model time grows by 1.
    """

    schedule: Any
    predicts: str
    unit: float = 1.0

    @property
    def is_flow(self) -> bool:
        """Returns whether the network is one of flow matching."""
        return self.unit != 1.0

    @property
    def prediction(self) -> Prediction:
        """Returns what the network's output says of x0."""
        return Prediction(self.schedule, self.predicts)


def convention_of(scheduler: Any) -> Convention:
    """Returns the terms of the network that a scheduler of diffusers was configured for.

    Raises:
        ValueError: schedulers of distilled networks, and those that have neither betas nor a flow.
    """
    config, name = scheduler.config, type(scheduler).__name__
    short = name.removeprefix("Diffast").removesuffix("Scheduler")
    if short in _DISTILLED:
        raise ValueError(
            f"{name} is for networks that were distilled to few steps, but a plan is for a network "
            "that predicts x0, noise or a velocity at every level"
        )
    if short in _OTHER_WAYS:
        raise ValueError(
            f"{name} inverts pictures or completes them, but a plan leads from noise to a sample"
        )
    kind = setting(config, "prediction_type")
    if short.startswith(("FlowMatch", "LTXEulerAncestralRF")) or kind == "flow_prediction":
        if setting(config, "invert_sigmas") or setting(config, "stochastic_sampling"):
            raise ValueError(
                f"{name} has invert_sigmas or stochastic_sampling, but a plan has sigmas that fall "
                "and noise of its own"
            )
        return Convention(schedules.flow(), "flow", float(config["num_train_timesteps"]))
    betas = getattr(scheduler, "betas", None)
    products = getattr(scheduler, "alphas_cumprod", None)  # IPNDM's betas are levels
    if betas is None or products is None or config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(
            f"{name} has no betas of its own that its network was trained on, but a plan needs "
            "the network's noise schedule: schedulers with betas and those of flow matching can "
            "run plans"
        )
    return Convention(schedules.from_betas(_betas(scheduler)), predicts(config))


def _betas(scheduler: Any) -> np.ndarray:
    """Returns the betas [N] float64; from alphas_cumprod where a scheduler changes those alone."""
    betas = scheduler.betas.detach().cpu().double().numpy()
    products = scheduler.alphas_cumprod.detach().cpu().double().numpy()
    if np.allclose(np.cumprod(1.0 - betas), products, rtol=1e-3, atol=1e-6):
        return betas
    return 1.0 - products / np.append(1.0, products[:-1])


def check_same(who: str, plan: Plan, convention: Convention) -> None:
    """Raises ValueError unless the plan is for the network's schedule and prediction type."""
    ours, theirs = plan.schedule, convention.schedule
    if type(ours) is not type(theirs) or not _same_levels(ours, theirs):
        raise ValueError(
            f"{who}: the plan is for {ours}{_levels(ours)} but the pipeline's network for "
            f"{theirs}{_levels(theirs)}"
        )
    made_for = getattr(plan, "made_for", None) or {}
    tuned = made_for.get("predicts")
    if tuned is not None and tuned != convention.predicts:
        raise ValueError(
            f"{who}: the plan was made for a network that predicts {tuned!r}, but that of the "
            f"pipeline predicts {convention.predicts!r}"
        )


def _same_levels(ours: Any, theirs: Any) -> bool:
    if ours.domain != theirs.domain:
        return False
    # the domain is the clean end to the noisiest time, where lam may be infinite
    low, high = ours.domain
    times = np.linspace(low, high, 65)[1:-1]
    return bool(np.allclose(ours.lam(times), theirs.lam(times), rtol=_SAME, atol=_SAME))


def _levels(schedule: Any) -> str:
    middle = 0.5 * sum(schedule.domain)
    return f" (log-SNR {float(schedule.lam(middle)):.3f} at t = {middle:g})"
