"""One call of a sampler: what it was given, its plan, and what goes to k-diffusion's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from diffast._arguments import no_fake_mode
from diffast.integrations.k_diffusion.handing import handed_over
from diffast.integrations.sigma_model import Manner, Steps, levels_of, run, sigma_plan
from diffast.plans import Plan

# What k-diffusion's samplers do beside the arithmetic. Those that are not listed do nothing of it.
MANNERS = {
    **dict.fromkeys(("euler", "heun", "dpm_2", "lms"), Manner(slope_first=True, slopes=True)),
    **dict.fromkeys(("euler_ancestral", "dpm_2_ancestral"), Manner(slopes=True)),
    **dict.fromkeys(("dpmpp_2s_ancestral", "dpmpp_sde"), Manner(last_slope=True)),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_3m_sde"), Manner(clean=True)),
    "dpm_fast": Manner(slope_first=True, follows=True),
}


class Call:
    """One call of a sampler: its plan and noise, or why k-diffusion's own function does it."""

    def __init__(self, solver: str, given: dict[str, Any], options: dict[str, Any]):
        """Reads the sigmas and checks what needs no plan."""
        self.solver, self.name, self.given = solver, f"sample_{solver}", given
        check_state(self.name, given["x"])
        self.x, self.sigmas = given["x"], _sigmas(self.name, given["sigmas"])
        self.model_arguments = {
            name: given[name] for name in ("model", "extra_args", "callback", "disable")
        }
        self.options = options
        self.levels = tuple(self.sigmas.detach().double().cpu().tolist())

    @property
    def ends_at_zero(self) -> bool:
        """Returns whether the last sigma is 0."""
        return self.levels[-1] == 0.0

    def over(self, why: str, kind: str) -> Any:
        """Returns what k-diffusion's own function returns."""
        return handed_over(self.name, why, kind, self.given)

    def plan(self, solver: str, **options: Any) -> tuple[Plan | None, Any]:
        """Returns (plan, None), or (None, the samples of k-diffusion's own function)."""
        try:
            levels_of(self.name, self.sigmas)
        except ValueError as error:
            if not np.isfinite(self.levels).all():
                raise
            return None, self.over(reason(self.name, error), "sigmas")
        try:
            return sigma_plan(solver, self.levels, **options), None
        except (TypeError, ValueError) as error:
            return None, self.over(reason(self.name, error), "options")

    def run(self, plan: Plan, draw: Any = None, begin: Any = None, **more: Any) -> torch.Tensor:
        """Returns the samples of a plan."""
        manner = MANNERS.get(self.solver)
        how = {"draw": draw, "begin": begin, "manner": manner, **self.model_arguments, **more}
        return run(x=self.x, plan=plan, levels=self.levels, sigmas=self.sigmas, **how)


def reason(name: str, error: Exception) -> str:
    """Returns an error's message as a part of a sentence."""
    return str(error).removeprefix(f"{name}: ")


def _sigmas(name, sigmas):
    if not isinstance(sigmas, torch.Tensor):
        try:
            sigmas = torch.as_tensor(sigmas)
        except (TypeError, ValueError, RuntimeError):
            kind = type(sigmas).__name__
            raise ValueError(f"{name}: sigmas is a {kind}, but numbers [N+1] are needed") from None
        sigmas = sigmas if sigmas.is_floating_point() else sigmas.to(torch.get_default_dtype())
    if sigmas.dim() != 1:
        raise ValueError(f"{name}: sigmas has shape {list(sigmas.shape)}, but it must be [N+1]")
    if sigmas.is_complex() or sigmas.dtype == torch.bool:
        raise ValueError(f"{name}: sigmas is {sigmas.dtype}, but real numbers are needed")
    return sigmas


def check_state(name: str, x: Any) -> None:
    """Raises ValueError for what is no state [B, ...] of floating point."""
    no_fake_mode(name)
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or not x.dim():
        what = f"{x.dtype} {list(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"{name}: x is {what}, but a tensor [B, ...] of floating point is needed")


class Unused:
    """Asks for the noise of weight 0 that k-diffusion asks for, after each step."""

    def __init__(
        self,
        drawn: Callable[..., Any],
        sigmas: torch.Tensor,
        levels: Sequence[float],
        middle: float | None = None,
    ):
        """Asks nothing yet; `middle`: where a step in log sigma asks for noise before its end."""
        self.drawn, self.sigmas, self.levels, self.middle = drawn, sigmas, levels, middle

    def begin(self, step: int, steps: Steps) -> None:
        """Asks for the noise of the step before, whose dtype x takes on."""
        for z in self._asked(step) if step else ():
            steps.widen(z.dtype)

    def finished(self, made: torch.Tensor) -> torch.Tensor:
        """Returns the samples, after the noise of the last step was asked for."""
        for z in self._asked(len(self.levels) - 1):
            made = made.to(torch.promote_types(made.dtype, z.dtype))
        return made

    def _asked(self, end):
        if self.levels[end] == 0.0:
            return []
        start, stop = self.sigmas[end - 1], self.sigmas[end]
        asked = [(start, stop)]
        if self.middle is not None:
            asked.insert(0, (start, start ** (1.0 - self.middle) * stop**self.middle))
        return [self.drawn(*levels) for levels in asked]
