"""A pipeline's network as `Denoiser` calls one, with the arguments that a recording found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from diffast.integrations.diffusers.recording import _EXTRA, Recording, nested, same
from diffast.integrations.diffusers.shared import clamp_of
from diffast.model.denoiser import Denoiser


class PipelineNetwork:
    """network(x [B, ...], t [B], **conditions) -> the prediction, shaped as x.

    Args:
        module: the pipeline's unet or transformer.
        recording: how the pipeline calls it.
        limit: x0 -> x0, what the scheduler does to the estimate; None: nothing.
    """

    def __init__(self, module: torch.nn.Module, recording: Recording, limit: Callable | None):
        """Nothing is called."""
        self.module, self.recording, self.limit = module, recording, limit
        self.parameters, self.buffers = module.parameters, module.buffers
        self.named_parameters, self.named_buffers = module.named_parameters, module.named_buffers
        self.state_dict = module.state_dict

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **rows: Any) -> torch.Tensor:
        """Returns the network's prediction [B, ...]."""
        how = self.recording
        extra = rows.pop(_EXTRA, None)
        full = x if extra is None else torch.cat([x, extra.to(x.dtype)], dim=1)
        told = how.slope * how.convention.unit * t.double() + how.shift
        arguments = nested({**how.fixed, **rows})
        arguments |= {how.input: full, how.time: told.to(how.time_dtype)}
        output = self.module(**arguments)
        if not isinstance(output, torch.Tensor):
            output = output[0]
        output = how.sign * output[:, : x.shape[1]]
        return output if self.limit is None else self._limited(x, t, output)

    def _limited(self, x, t, output):
        """Returns the output whose x0 estimate is the limited one."""
        a, b = (float(w[0]) for w in self.recording.convention.prediction.affine(t[:1].cpu()))
        return (self.limit(a * x + b * output) - a * x) / b  # pyright: ignore[reportOptionalCall]


def denoiser_of(pipe: Any, module: torch.nn.Module, recordings: Sequence[Recording]) -> Denoiser:
    """Returns the pipeline's network as a denoiser with one row of conditions a prompt.

    Args:
        pipe: the pipeline; its scheduler says how x0 estimates are limited.
        module: its network.
        recordings: one a prompt.

    Raises:
        ValueError: prompts that differ in more than tensors with a row a sample.
    """
    first = recordings[0]
    for other in recordings[1:]:
        _check_alike(first, other)
    limit = _limit_of(pipe.scheduler, first)
    return Denoiser(
        PipelineNetwork(module, first, limit),
        first.convention.schedule,
        first.convention.predicts,
        conditions=_stacked([r.cond for r in recordings]),
        unconditional=(
            None if first.uncond is None else _stacked([r.uncond or {} for r in recordings])
        ),
        guidance=first.scale,
        dtype=None if first.dtype in (torch.float32, torch.float64) else first.dtype,
    )


def _stacked(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {path: torch.cat([each[path] for each in rows]) for path in rows[0]}


def _check_alike(first: Recording, other: Recording) -> None:
    for field in ("shape", "scale", "dtype", "time_dtype"):
        ours, theirs = getattr(first, field), getattr(other, field)
        if ours != theirs:
            raise ValueError(f"tune: the prompts differ in {field}: {ours} and {theirs}")
    for path in {*first.fixed, *other.fixed}:
        if not same(first.fixed.get(path), other.fixed.get(path)):
            raise ValueError(
                f"tune: the prompts differ in the network's argument {path}, which has no row a "
                "sample"
            )
    for ours, theirs in ((first.cond, other.cond), (first.uncond or {}, other.uncond or {})):
        shapes = [{path: tuple(t.shape) for path, t in rows.items()} for rows in (ours, theirs)]
        if shapes[0] != shapes[1]:
            path = next(
                p for p in {**shapes[0], **shapes[1]} if shapes[0].get(p) != shapes[1].get(p)
            )
            raise ValueError(
                f"tune: the prompts differ in the shape of the network's argument {path}: "
                f"{shapes[0].get(path)} and {shapes[1].get(path)}"
            )


def _limit_of(scheduler: Any, recording: Recording) -> Callable | None:
    """Returns what the scheduler does to x0 estimates, None for nothing."""
    config = scheduler.config
    if recording.convention.is_flow or not (
        config.get("clip_sample") or config.get("thresholding")
    ):
        return None
    if recording.uncond is not None:
        raise ValueError(
            "tune: the scheduler limits x0 (clip_sample or thresholding) after guidance, which "
            "only an unguided pipeline is tuned with: switch it off in the scheduler's config"
        )
    if config.get("thresholding"):
        return functools.partial(DDIMScheduler._threshold_sample, scheduler)
    most = clamp_of(config)
    assert most is not None  # clip_sample is set
    return lambda x0: x0.clamp(-most, most)
