"""A plan made for the network of a pipeline, as the pipeline stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffast.integrations.diffusers.pipeline_network import denoiser_of
from diffast.integrations.diffusers.recording import network_of, record
from diffast.model.denoiser import Denoiser
from diffast.tuning.parameters import STANDARD
from diffast.tuning.result import TuneResult
from diffast.tuning.tune import tune as tune_denoiser

_WHAT = "a prompt, or the pipeline's arguments of one as a dict"


def tune(
    pipe: Any,
    prompts: str | Sequence[str | Mapping[str, Any]] | None = None,
    calls: int = 8,
    *,
    samples: int = 32,
    options: Mapping[str, Any] | None = None,
    **tuning: Any,
) -> TuneResult:
    """Returns a plan of so many network calls, made for the pipeline's network and guidance.

    The pipeline is called once a prompt, for two steps, to see what it gives its network: prompt
    embeddings, added conditions, guidance scale, the shape of the latents, the unit of its time.
    Then `df.tune` works with the network alone. Nothing is decoded, and the pipeline is left as it
    was. Put the plan in with `accelerate(pipe, plan=result.plan)`.

    Args:
        pipe: a diffusers pipeline that calls one unet or transformer a step: schedulers with betas
            or of flow matching, with or without classifier-free guidance.
        prompts: texts, or dicts of the pipeline's arguments ({"prompt_embeds": ..}), whose rows
            the pilots take in turn. None: a pipeline without prompts.
        calls: network calls of the plan; with guidance, a call on both branches is one.
        samples: how many noises are learned from.
        options: further arguments of every call of the pipeline: guidance_scale, height, width,
            negative_prompt. Give those that you sample with.
        **tuning: arguments of `df.tune`.

    Raises:
        ValueError: a pipeline that does more between network and scheduler than classifier-free
            guidance, or whose network's arguments change from step to step; prompts that differ
            in the shape of what the network is given; what `df.tune` raises.
    """
    freedom = tuning.get("freedom")
    freedom = (freedom,) if isinstance(freedom, str) else freedom
    if "directions" in (freedom or ()):
        raise ValueError(
            "tune: freedom holds 'directions', which calls the network on two inputs at once, but "
            "a pipeline calls its network on one"
        )
    denoiser = pipeline_denoiser(pipe, prompts, options)
    if denoiser.network.recording.convention.is_flow:  # pyright: ignore[reportFunctionMemberAccess]
        if "start" in (freedom or ()):
            raise ValueError(
                "tune: freedom holds 'start', but a flow's pipeline starts from noise of "
                "deviation 1: leave it out"
            )
        if freedom is None and not tuning.get("stochastic"):
            tuning["freedom"] = STANDARD
    shape = (samples, *denoiser.network.recording.shape)  # pyright: ignore[reportFunctionMemberAccess]
    return tune_denoiser(denoiser, calls, shape, **tuning)


def pipeline_denoiser(
    pipe: Any,
    prompts: str | Sequence[str | Mapping[str, Any]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Denoiser:
    """Returns the pipeline's network as a denoiser with one row of conditions a prompt.

    Args:
        pipe: as for `tune`.
        prompts: as for `tune`.
        options: as for `tune`.

    Raises:
        ValueError: as for `tune`.
    """
    given = [prompts] if isinstance(prompts, (str, Mapping)) else prompts
    if given is not None and not len(given):
        raise ValueError(
            "tune: prompts is empty, but one is needed, or None for a pipeline without"
        )
    asked = [_call(prompt) for prompt in ([None] if given is None else given)]
    recordings = [record(pipe, {**(options or {}), **call}) for call in asked]
    return denoiser_of(pipe, network_of(pipe), recordings)


def _call(prompt: Any) -> dict[str, Any]:
    if prompt is None:
        return {}
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, Mapping):
        return dict(prompt)
    raise ValueError(f"tune: a prompt is a {type(prompt).__name__}, but {_WHAT} is needed")
