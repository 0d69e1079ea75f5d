"""Posteriors of sbi that are sampled by a vector field: NPSE and FMPE (checked with 0.27)."""

from __future__ import annotations

from typing import Any

import torch

from diffast import schedules
from diffast.integrations.networks.shared import Network, needed
from diffast.model.denoiser import Denoiser


def from_sbi(posterior: Any, x: torch.Tensor | None = None, **options: Any) -> Denoiser:
    """Returns the vector field of an sbi posterior, given one observation, as a denoiser.

    The states are parameters theta [B, D]. FMPE: the path is (1 - t) theta + (t + s) eps, where s
    is the estimator's noise_scale (1e-3); the field is read as one of the straight path, so plans
    without fresh noise solve sbi's own ODE. NPSE: alpha and sigma are the estimator's, from its
    t_max to time 0, and the network predicts the score.

    sbi rejects samples outside of the prior; samples of this package are not looked at:
    `posterior.prior.log_prob` tells which are.

    Args:
        posterior: a VectorFieldPosterior, or its vector field estimator.
        x: the observation [1, ...]; None: the posterior's default_x.
        options: of `Denoiser`, but for conditions.

    Raises:
        ValueError: for a posterior of another kind; no observation; parameters that the estimator
            standardises around the network ("composed" z-scores).
    """
    estimator = getattr(posterior, "vector_field_estimator", posterior)
    needed("from_sbi", estimator, ("ode_fn", "condition_shape"), "a VectorFieldPosterior")
    x = getattr(posterior, "default_x", None) if x is None else x
    if x is None:
        raise ValueError("from_sbi: neither x nor the posterior's default_x is given")
    if getattr(estimator, "compose_enabled", False):
        raise ValueError(
            "from_sbi: the estimator has composed z-scores: its field lives in standardised "
            "parameters; build it without them"
        )
    condition = torch.as_tensor(x, dtype=torch.float32).reshape(1, *estimator.condition_shape)

    def field(theta, t, condition):
        return estimator(theta, condition, t)

    network = Network(estimator, field)
    conditions = {"condition": condition}
    if hasattr(estimator, "noise_scale"):
        return Denoiser(network, schedules.flow(), "flow", conditions=conditions, **options)
    needed("from_sbi", estimator, ("mean_t_fn", "std_fn", "t_max"), "a score estimator")
    start, least = float(estimator.t_max), float(estimator.t_min)
    schedule = schedules.from_functions(
        lambda t: estimator.mean_t_fn(t).reshape(-1),
        lambda t: estimator.std_fn(t).reshape(-1),
        t_start=start,
        t_min=least,
    )
    return Denoiser(network, schedule, "score", conditions=conditions, **options)
