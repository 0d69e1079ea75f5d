"""Networks of diffusers with the scheduler that they were trained with (checked with 0.42)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffast import schedules
from diffast.integrations.networks.shared import Network, needed
from diffast.model.denoiser import Denoiser
from diffast.model.sigma_model import SigmaModel

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
LEARNED = ("learned", "learned_range")
# Transformers that multiply the time by 1,000 themselves.
UNIT_TIME = ("Flux", "Chroma")


def from_diffusers(model: Any, scheduler: Any, **options: Any) -> Denoiser:
    """Returns a U-Net or a transformer of diffusers, with its scheduler, as a denoiser.

    Which sampler the scheduler would run does not matter, only what it says of training:

    - betas (DDPM, DDIM, Euler, DPM-Solver, UniPC ...): `df.schedules.from_betas`; the network is
      told the index and predicts epsilon, x0 or v. A fractional time is told as it is.
    - FlowMatch...: `df.schedules.flow`; the network is told 1,000 t (Flux: t) and predicts
      eps - x0. The scheduler's shift is a matter of the grid: `df.grids.flow_match`,
      `df.grids.shifted`.
    - EDM...: `df.schedules.edm`; the network has EDM's preconditioning.

    The network is called as model(x, timestep=t, return_dict=False, **conditions). What a pipeline
    does around it (text encoders, packing of latents, the VAE) is the caller's, or see
    `df.integrations.diffusers.accelerate` for a pipeline as it stands.

    Args:
        model: the network.
        scheduler: a scheduler, or its config, a dict that names its class.
        options: of `Denoiser`: conditions (encoder_hidden_states ...), unconditional, guidance,
            dtype.

    Raises:
        ValueError: for a config without a class, a prediction type that is not known, or sigmas
            of neither kind.
    """
    if isinstance(scheduler, dict):
        scheduler = _built(scheduler)
    needed("from_diffusers", scheduler, ("config",), "a scheduler of diffusers")
    config = scheduler.config
    name = type(scheduler).__name__
    count = int(config.get("num_train_timesteps", 1000))
    learned = config.get("variance_type") in LEARNED

    def called(x, t, **conditions):
        output = model(x, timestep=t, return_dict=False, **conditions)[0]
        return output[:, : x.shape[1]] if learned else output

    if "FlowMatch" in name or config.get("prediction_type") == "flow_prediction":
        scale = 1.0 if type(model).__name__.startswith(UNIT_TIME) else float(count)
        told = Network(model, lambda x, t, **more: called(x, scale * t, **more))
        return Denoiser(told, schedules.flow(), "flow", **options)
    kind = config.get("prediction_type", "epsilon")
    if name.startswith("EDM"):
        returns = {"epsilon": "edm", "v_prediction": "v"}.get(kind)
        if returns is None:
            raise ValueError(f"from_diffusers: {name} with prediction_type {kind!r} is not known")
        return _edm(Network(model, called), config, returns, options)
    if kind not in PREDICTIONS:
        raise ValueError(
            f"from_diffusers: prediction_type is {kind!r}, but it must be one of "
            f"{', '.join(PREDICTIONS)}"
        )
    betas = getattr(scheduler, "betas", None)
    if betas is None:
        raise ValueError(
            f"from_diffusers: {name} has no betas and is neither of the FlowMatch nor of the EDM "
            "kind, but one of them is needed"
        )
    betas = np.array(betas.detach().double().cpu().numpy())
    if config.get("rescale_betas_zero_snr"):
        betas[-1] = 1.0  # diffusers puts 2^-24 for the signal there in some of its classes
    return Denoiser(
        Network(model, called), schedules.from_betas(betas), PREDICTIONS[kind], **options
    )


def _edm(network, config, returns, options):
    dtype: torch.dtype | None = options.pop("dtype", None)
    data = float(config["sigma_data"])
    model = SigmaModel(network, returns, data, True, "log(sigma)/4", dtype, None)
    schedule = schedules.edm(float(config["sigma_min"]), float(config["sigma_max"]))
    return Denoiser(model, schedule, "x0", **options)


def _built(config):
    """Returns the scheduler of a config that names its class."""
    import diffusers

    name = config.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if kind is None:
        raise ValueError(
            f"from_diffusers: the config's _class_name is {name!r}, which is no class of diffusers"
        )
    return kind.from_config(config)
