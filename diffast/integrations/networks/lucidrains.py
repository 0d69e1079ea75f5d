"""Models of denoising_diffusion_pytorch by lucidrains (checked with 2.3)."""

from __future__ import annotations

from typing import Any

import torch

from diffast import schedules
from diffast.integrations.networks.shared import Network, needed
from diffast.model.denoiser import Denoiser

OBJECTIVES = {"pred_noise": "epsilon", "pred_x0": "x0", "pred_v": "v"}


def from_lucidrains(diffusion: Any, **options: Any) -> Denoiser:
    """Returns a GaussianDiffusion (1-D or 2-D) or an ElucidatedDiffusion as a denoiser.

    Of GaussianDiffusion the schedule is `df.schedules.from_betas`, and the network is told whole
    numbers: take a grid of whole times, or round_times=True. `ddim_sample` is the plan `ddim` with
    eta on the times torch.linspace(-1, T - 1, steps + 1).int() from high to low, run with
    clamp=(-1, 1). The samples are in [-1, 1]; `diffusion.unnormalize` makes [0, 1] of them.

    Of ElucidatedDiffusion the schedule is `df.schedules.edm` with its sigma_min and sigma_max;
    its own sampler clamps the estimate to [-1, 1] as well.

    Args:
        diffusion: the object, with its network.
        options: of `Denoiser`: conditions, unconditional, guidance, round_times, dtype.

    Raises:
        ValueError: for self-conditioning, which feeds the last estimate back into the network; for
            a network with a learned variance; for another class.
    """
    if getattr(diffusion, "self_condition", False):
        raise ValueError(
            "from_lucidrains: the network is self-conditioned: it wants the last x0 estimate as an "
            "input, which no plan of this package has; train it with self_condition=False"
        )
    if hasattr(diffusion, "preconditioned_network_forward"):
        schedule = schedules.edm(float(diffusion.sigma_min), float(diffusion.sigma_max))

        def denoised(x, sigma, **conditions):
            return diffusion.preconditioned_network_forward(x, sigma, **conditions)

        return Denoiser(Network(diffusion, denoised), schedule, "x0", **options)
    needed(
        "from_lucidrains",
        diffusion,
        ("model", "betas", "objective"),
        "a GaussianDiffusion with them",
    )
    if diffusion.objective not in OBJECTIVES:
        raise ValueError(
            f"from_lucidrains: objective is {diffusion.objective!r}, but it must be one of "
            f"{', '.join(OBJECTIVES)}"
        )
    network = diffusion.model
    channels, out = getattr(network, "channels", None), getattr(network, "out_dim", None)
    if out is not None and out != channels:
        raise ValueError(
            f"from_lucidrains: the network takes {channels} channels and returns {out}: a learned "
            "variance is not read here; wrap the network in df.LearnedVariance"
        )
    schedule = schedules.from_betas(diffusion.betas.detach().double().cpu().numpy())
    return Denoiser(
        Network(network, lambda x, t, **conditions: network(x, t, **conditions)),
        schedule,
        OBJECTIVES[diffusion.objective],
        time_dtype=torch.long,
        **options,
    )
