"""Drop-ins of schedulers whose steps take any noise level: no plan is made for them.

What these originals are given at each call (levels, times) stands in no list that could be read
before. Their steps read the live settings anew, and one fused pass makes all of a step's tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin as SchedulerMixin  # pipelines look for it here
from diffusers import schedulers as originals
from diffusers.schedulers.scheduling_sde_ve import SdeVeOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from diffast import ops
from diffast.integrations.diffusers.registry import drop_in, watch
from diffast.integrations.diffusers.run import ids_of
from diffast.integrations.diffusers.scheduler import DiffastScheduler


class _Direct(DiffastScheduler):
    """A drop-in without a plan."""

    _draws = 0  # stages of the package's own noise that this run has used
    _ids: Any = None  # of that noise
    _times_seen: Any = (None, 0)  # the time steps that were read, and their version

    def _after_set_timesteps(self, device=None) -> None:
        """Begins a run."""
        own = vars(self)
        own.update(_ids=None, _draws=0)
        self._read()
        if device is not None:
            for name in ("timesteps", *self._on_device):
                own[name] = own[name].to(device)
        own["_times_seen"] = self.timesteps, self.timesteps._version
        watch(self)

    def _fresh(self, sample, generator, *, device=None, dtype=None, **more) -> torch.Tensor:
        """Returns normals [B, ...]: the original's, or the package's own (counter)."""
        if not self._counter:
            return randn_tensor(
                sample.shape, generator=generator, device=device, dtype=dtype, **more
            )
        own = vars(self)
        if self._ids is None or len(self._ids) != len(sample):
            own["_ids"] = ids_of(generator, len(sample), sample.device)
        noise = torch.empty(sample.shape, dtype=torch.float32, device=sample.device)
        ops.normal_out(self._ids, 0, ops.STEP_NOISE + self._draws, 1.0, noise)
        own["_draws"] = self._draws + 1
        return noise


def _rows(dtype: torch.dtype, tensors: list, weights: list[list[float]]) -> list[torch.Tensor]:
    """Returns weighted sums of tensors [B, ...], one for each row of weights, of that dtype."""
    tensors = [tensor.contiguous() for tensor in tensors]
    flat = [float(weight) for row in weights for weight in row]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return [row.to(dtype) for row in ops.combine(tensors, flat)]
    outs = [torch.empty_like(tensors[0], dtype=dtype) for _ in weights]
    ops.combine_out(tensors, flat, outs)
    return outs


def _promoted(*tensors: torch.Tensor) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


if hasattr(originals, "KarrasVeScheduler"):
    from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeOutput

    @drop_in(originals.KarrasVeScheduler)
    class DiffastKarrasVeScheduler(_Direct, originals.KarrasVeScheduler):
        """Drop-in for KarrasVeScheduler (Karras et al. 2022, algorithm 2).

        Levels are read from the device where they are tensors on one, as the original's
        `add_noise_to_input` does.
        """

        _on_device = ("schedule",)
        order = 2

        def add_noise_to_input(self, sample, sigma, generator=None):
            """Returns (noisier sample [B, ...], its level); see diffusers."""
            config: Any = self.config
            gamma = 0.0
            if config.s_min <= sigma <= config.s_max:
                gamma = min(config.s_churn / self.num_inference_steps, 2**0.5 - 1)
            raised = sigma + gamma * sigma
            fresh = self._fresh(sample, generator).to(sample.device)
            up = config.s_noise * float((raised**2 - sigma**2) ** 0.5)
            dtype = _promoted(sample, fresh)
            return _rows(dtype, [sample, fresh], [[1.0, up]])[0], raised

        def step(self, model_output, sigma_hat, sigma_prev, sample_hat, return_dict=True):
            """Returns the sample at sigma_prev, the slope and the x0 estimate; see diffusers."""
            # levels are subtracted in their own type: of float32 ones, 10,000 swallows 0.0004
            down = float(sigma_hat - sigma_prev)
            dtype = _promoted(sample_hat, model_output)
            weights = [[1.0, down], [0.0, -1.0], [1.0, float(sigma_hat)]]
            following, slope, x0 = _rows(dtype, [sample_hat, model_output], weights)
            if not return_dict:
                return following, slope
            return KarrasVeOutput(prev_sample=following, derivative=slope, pred_original_sample=x0)

        def step_correct(
            self,
            model_output,
            sigma_hat,
            sigma_prev,
            sample_hat,
            sample_prev,
            derivative,
            return_dict=True,
        ):
            """Returns the corrected sample, the first slope, the x0 estimate; see diffusers."""
            tensors = [sample_hat, sample_prev, derivative, model_output]
            half = 0.5 * float(sigma_prev - sigma_hat)
            weights = [[1.0, 0.0, half, -half], [0.0, 1.0, 0.0, float(sigma_prev)]]
            following, x0 = _rows(_promoted(*tensors), tensors, weights)
            if not return_dict:
                return following, derivative
            return KarrasVeOutput(
                prev_sample=following, derivative=derivative, pred_original_sample=x0
            )


def _scalar(scheduler: Any, t: Any) -> float | None:
    """Returns the one time of all samples; None: samples have times of their own."""
    if isinstance(t, torch.Tensor) and t.numel() != 1:
        return None
    times, version = scheduler._times_seen
    if isinstance(t, torch.Tensor) and times is scheduler.timesteps and times._version == version:
        i = scheduler._place(t)
        if i is not None:
            return scheduler.host.times[i]
    return float(t)


def _length(scheduler: Any) -> int:
    return len(scheduler.timesteps)


_EACH_ITS_TIME = "samples have times of their own, but a fused step has one"


@drop_in(originals.ScoreSdeVeScheduler)
class DiffastScoreSdeVeScheduler(_Direct, originals.ScoreSdeVeScheduler):
    """Drop-in for ScoreSdeVeScheduler (Song et al. 2021, algorithms 2 and 4).

    The corrector's step is measured from the norms of its noise and of the network's output, which
    no table knows before: `step_correct` is torch code.
    """

    def step_pred(self, model_output, timestep, sample, generator=None, return_dict=True):
        """Returns the previous sample and its mean; see diffusers."""
        t = None if self.timesteps is None else _scalar(self, timestep)
        if t is None:
            if self.timesteps is not None and self._handed is None:
                self._hand_over(_EACH_ITS_TIME)
            return super().step_pred(model_output, timestep, sample, generator, return_dict)
        # float32 all the way: the index is cut off, and near levels cancel
        k = int(np.float32(t) * np.float32(_length(self) - 1))
        levels = self.discrete_sigmas
        below = levels[k - 1] if k else torch.zeros((), dtype=levels.dtype)
        up = float((levels[k] ** 2 - below**2) ** 0.5)
        fresh = self._fresh(
            sample, generator, layout=sample.layout, device=sample.device, dtype=sample.dtype
        )
        dtype = torch.promote_types(_promoted(sample, model_output), levels.dtype)
        weights = [[1.0, up * up, up], [1.0, up * up, 0.0]]
        following, mean = _rows(dtype, [sample, model_output, fresh], weights)
        if not return_dict:
            return following, mean
        return SdeVeOutput(prev_sample=following, prev_sample_mean=mean)

    def step_correct(self, model_output, sample, generator=None, return_dict=True):
        """Returns the sample after a Langevin step at its level; see diffusers."""
        if self.timesteps is None or not self._counter:
            return super().step_correct(model_output, sample, generator, return_dict)
        noise = self._fresh(sample, generator)
        norms = [tensor.flatten(1).norm(dim=1).mean() for tensor in (noise, model_output)]
        config: Any = self.config
        length = 2.0 * (config.snr * norms[0] / norms[1]) ** 2
        length = length.float().expand(len(sample)).reshape(-1, *(1,) * (sample.dim() - 1))
        following = sample + length * model_output + (2.0 * length) ** 0.5 * noise
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)


if hasattr(originals, "ScoreSdeVpScheduler"):

    @drop_in(originals.ScoreSdeVpScheduler)
    class DiffastScoreSdeVpScheduler(_Direct, originals.ScoreSdeVpScheduler):
        """Drop-in for ScoreSdeVpScheduler (Song et al. 2021, the VP SDE by Euler-Maruyama)."""

        def step_pred(self, score, x, t, generator=None):
            """Returns the previous sample and its mean; see diffusers."""
            time = None if self.timesteps is None else _scalar(self, t)
            if time is None:
                if self.timesteps is not None and self._handed is None:
                    self._hand_over(_EACH_ITS_TIME)
                return super().step_pred(score, x, t, generator)
            config: Any = self.config
            rise = config.beta_max - config.beta_min
            # in the time's own dtype: 1 - alpha^2 cancels near the data, here as there
            now = torch.tensor(time, dtype=t.dtype)
            log_alpha = -0.25 * now**2 * rise - 0.5 * now * config.beta_min
            std = torch.sqrt(1.0 - torch.exp(2.0 * log_alpha)).item()
            beta = (config.beta_min + now * rise).item()
            length = 1.0 / _length(self)
            fresh = self._fresh(x, generator, layout=x.layout, device=x.device, dtype=x.dtype)
            dtype = torch.promote_types(_promoted(x, score), t.dtype)
            keep, drift = 1.0 + 0.5 * beta * length, -beta * length / std
            weights = [[keep, drift, (beta * length) ** 0.5], [keep, drift, 0.0]]
            following, mean = _rows(dtype, [x, score, fresh], weights)
            return following, mean
