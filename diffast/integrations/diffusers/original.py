"""The original's own code, run beside a drop-in or in its place."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffast.integrations.diffusers.live import OURS

_HOME = str(Path(diffusers.__file__).parent)
# Fused steps and the original's differ by float32 roundings. Where a stiff step enlarges them
# further, the original's own code runs.
_NEAR = 3e-4
_CHANNELS = 3
# Attributes of a drop-in that the original has too.
_SHARED = ("_internal_dict", "_step_index", "_begin_index", "is_scale_input_called")


def twin_of(scheduler: Any) -> Any:
    """Returns an instance of the original's class with a copy of the drop-in's attributes."""
    original = type(scheduler)._original
    twin = object.__new__(original)
    for name, value in vars(scheduler).items():
        if (name in OURS and name not in _SHARED) or callable(getattr(original, name, None)):
            continue  # also methods that the instance replaces: they are bound to it
        if isinstance(value, torch.Tensor):
            vars(twin)[name] = _on_host(scheduler, name, value)
        else:
            vars(twin)[name] = copy.copy(value)
    vars(twin).update(type(scheduler)._in_trials)
    return twin


_READ = {"sigmas": "sigmas", "timesteps": "times", "alphas_cumprod": "products"}


def _on_host(scheduler: Any, name: str, value: torch.Tensor) -> torch.Tensor:
    """Returns the tensor on the CPU; what was read from its device before is not read again."""
    if value.device.type == "cpu" or name not in _READ or scheduler.host is None:
        return value.detach().cpu().clone()
    known = getattr(scheduler.host, _READ[name])
    if len(known) != len(value):
        return value.detach().cpu()
    return torch.as_tensor(known, device="cpu").to(value.dtype, copy=True)


def is_patched(original: type) -> str | None:
    """Returns the name of a method of diffusers' class that other code has replaced, if any."""
    for kind in original.__mro__:
        if not kind.__module__.startswith("diffusers."):
            continue
        for name, value in vars(kind).items():
            code = getattr(value, "__code__", None)
            if code is not None and not code.co_filename.startswith(_HOME):
                return name
    return None


def own_methods(scheduler: Any) -> str | None:
    """Returns the name of a method that the instance itself replaces, if any."""
    kind = type(scheduler)
    for name in vars(scheduler):
        if callable(getattr(kind, name, None)):
            return name
    return None


def _with_seed(step: Any, options: dict[str, Any]) -> dict[str, Any]:
    if "generator" in inspect.signature(step).parameters:
        return {**options, "generator": torch.Generator().manual_seed(0)}
    return options


class _Draws(TorchDispatchMode):
    """Takes down the dtype of normals that are drawn."""

    def __init__(self):
        super().__init__()
        self.dtype: torch.dtype | None = None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs the operator."""
        result = function(*args, **(kwargs or {}))
        if self.dtype is None and "randn" in str(function):
            self.dtype = result.dtype
        return result


class Trial:
    """A run of the original on a few numbers, from one index of `timesteps` on."""

    def __init__(self, scheduler: Any, begin: int, options: dict[str, Any]):
        """Makes the twin ready.

        Args:
            scheduler: the drop-in, after `set_timesteps`.
            begin: where the run starts.
            options: further arguments of `step`.
        """
        self.twin = twin_of(scheduler)
        self.begin, self.options = begin, _with_seed(self.twin.step, options)
        vars(self.twin)["_step_index"] = None
        vars(self.twin)["is_scale_input_called"] = True  # it warns where that was left out
        if hasattr(self.twin, "_begin_index"):
            vars(self.twin)["_begin_index"] = begin
        kind = type(scheduler)
        self.called, twin = kind._called, self.twin
        self.times = kind._tried(twin.timesteps[begin : len(twin.timesteps) - kind._spare])

    def sample(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Returns initial latents [2, 3, 2, 2]."""
        drawn = torch.randn(2, _CHANNELS, 2, 2, generator=torch.Generator().manual_seed(1))
        return (drawn * float(getattr(self.twin, "init_noise_sigma", 1.0))).to(dtype)

    def outputs(self, scheduler: Any, dtype: torch.dtype = torch.float32):
        """Yields a network's outputs, with a variance beside them where the config says so."""
        drawn = torch.Generator().manual_seed(2)
        kind = scheduler.config.get("variance_type")
        wide = kind in ("learned", "learned_range")
        while True:
            output = torch.randn(2, _CHANNELS * (1 + wide), 2, 2, generator=drawn)
            if wide:
                output[:, _CHANNELS:] = output[:, _CHANNELS:].abs().clamp(max=1.0)
            yield output.to(dtype)

    def takes(self, output: torch.Tensor, k: int, sample: torch.Tensor, x0: Any) -> tuple:
        """Returns (next sample, x0 estimate or None) of the original's step number k.

        x0 is what the step before it has returned.
        """
        step: Any = self.twin.step
        return _results(self.called(step, output, self.times, k, sample, x0, self.options))

    def is_finite(self) -> bool:
        """Returns whether the original ends the run, with finite numbers."""
        x, x0 = self.sample(), None
        try:
            with torch.no_grad():
                for k, (output, t) in enumerate(
                    zip(self.outputs(self.twin), self.times, strict=False)
                ):
                    _scaled(self.twin, x, t)
                    x, x0 = self.takes(output, k, x, x0)
        except Exception:
            return False
        return bool(torch.isfinite(x).all())

    def differs(self, ours: Any) -> str | None:
        """Returns where the drop-in's run differs from the original's; None: it does not.

        Args:
            ours: a copy of the drop-in that may be run.
        """
        x, x0, options = self.sample(), None, _with_seed(ours.step, self.options)
        with torch.no_grad():
            for k, (output, t) in enumerate(zip(self.outputs(ours), self.times, strict=False)):
                try:
                    seen = _scaled(self.twin, x, t)
                    wanted = self.takes(output, k, x, x0)
                except Exception:
                    return None  # there is nothing to be equal to
                if not torch.isfinite(wanted[0]).all():
                    return None
                pairs = [("network's input", _scaled(ours, x, t), seen)]
                made = _results(self.called(ours.step, output, self.times, k, x, x0, options))
                pairs += zip(("sample", "x0 estimate"), made, wanted, strict=True)
                for what, found, right in pairs:
                    if right is None or found is None or not torch.isfinite(right).all():
                        continue
                    missed = (found - right).abs().max() / (right.abs().max() + 1e-12)
                    if not missed <= _NEAR:
                        by = f"by {float(missed):.2g} of the largest value"
                        return f"{what} of step {self.begin + k} {by}"
                x, x0 = wanted
        return None

    def dtypes(self, sample: torch.dtype, output: torch.dtype) -> tuple:
        """Returns the dtypes of the original's (next sample, x0 estimate, noise)."""
        drawn = _Draws()
        both = torch.promote_types(sample, output)
        found, x = (both, sample, output), self.sample(sample)
        x0: Any = None
        try:
            with torch.no_grad():
                for k, (made, _) in enumerate(
                    zip(self.outputs(self.twin, output), self.times, strict=False)
                ):
                    with drawn:
                        following, x0 = self.takes(made, k, x, x0)
                    shown = following if x0 is None else x0
                    found = (following.dtype, shown.dtype, drawn.dtype or output)
                    x = following.to(sample)
                    if k == 2:
                        break
        except Exception:
            return found
        return found


def _scaled(scheduler: Any, sample: torch.Tensor, t: Any) -> torch.Tensor:
    """Returns the network's input."""
    scale = getattr(scheduler, "scale_model_input", None)
    return sample if scale is None else scale(sample, t)


def _results(result: Any) -> tuple:
    """Returns (next sample, what the step returns beside it or None) of a step's result."""
    found = result if isinstance(result, tuple) else tuple(result.values())
    return found[0], found[1] if len(found) > 1 else None
