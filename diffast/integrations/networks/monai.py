"""Diffusion models of MONAI (checked with 1.6)."""

from __future__ import annotations

from typing import Any

import torch

from diffast import schedules
from diffast.integrations.networks.shared import Network, needed
from diffast.model.denoiser import Denoiser

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def from_monai(network: Any, scheduler: Any, **options: Any) -> Denoiser:
    """Returns a network of MONAI, with the scheduler that it was trained with, as a denoiser.

    The network is called as network(x, timesteps=t, **conditions): a DiffusionModelUNet with
    conditions such as `context` or `class_labels`.

    DDPM, DDIM and PNDM schedulers: the schedule is `df.schedules.from_betas`, and the network is
    told whole numbers: take a grid of whole times, or round_times=True. Where the scheduler clips
    (`clip_sample`), give `df.sample` the same clamp. A step of its DDIM goes from t to t - T / N,
    which are not the times of its next call; a plan's times are those at which it calls.

    RFlowScheduler: the schedule is `df.schedules.flow`; the network is told T t and predicts the
    data minus the noise. `df.solvers.euler` on the times timesteps / T, and 0, is its loop.

    Args:
        network: the network.
        scheduler: an object of monai.networks.schedulers.
        options: of `Denoiser`: conditions, unconditional, guidance, round_times, dtype.

    Raises:
        ValueError: for a scheduler without betas that is no RFlowScheduler; for an unknown
            prediction type.
    """
    needed("from_monai", scheduler, ("num_train_timesteps",), "a scheduler of MONAI")
    count = int(scheduler.num_train_timesteps)
    if not hasattr(scheduler, "betas"):
        if not hasattr(scheduler, "use_discrete_timesteps"):
            raise ValueError(
                f"from_monai: {type(scheduler).__name__} has no betas and is no RFlowScheduler, "
                "but one of them is needed"
            )
        flow = Network(network, lambda x, t, **more: network(x, timesteps=count * t, **more))
        return Denoiser(flow, schedules.flow(), "reverse_flow", **options)
    kind = str(getattr(scheduler, "prediction_type", "epsilon"))
    kind = getattr(kind, "value", kind)
    if kind not in PREDICTIONS:
        raise ValueError(
            f"from_monai: prediction_type is {kind!r}, but it must be one of "
            f"{', '.join(PREDICTIONS)}"
        )
    return Denoiser(
        Network(network, lambda x, t, **more: network(x, timesteps=t, **more)),
        schedules.from_betas(scheduler.betas.detach().double().cpu().numpy()),
        PREDICTIONS[kind],
        time_dtype=torch.long,
        **options,
    )
