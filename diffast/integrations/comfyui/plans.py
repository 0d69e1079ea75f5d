"""Plans in ComfyUI: the sampler function of a plan, and its sigmas."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from diffast.executors.made_for import check_made_for
from diffast.integrations.comfyui.levels import check_sigmas, is_flow
from diffast.integrations.comfyui.samplers import NOISES, model_sampling_of, torch_noise
from diffast.integrations.sigma_model import drawn_by
from diffast.integrations.sigma_plans import (
    in_sigma_space,
    levels_before_calls,
    plan_of,
    run_plan,
)
from diffast.plans import Plan
from diffast.schedules import flow

FOLDER = "diffast_plans"  # of ComfyUI's models folder, where plan files are looked for
_TITLE = "sample_diffast_plan"


def find_plan(path: str) -> Plan:
    """Returns the plan of a file: an absolute path, or one in ComfyUI's models/diffast_plans.

    Raises:
        ValueError: no such file; what `Plan.load` raises.
    """
    found = Path(path).expanduser()
    if not found.is_absolute():
        folder_paths = sys.modules.get("folder_paths")  # ComfyUI's own, there before any node is
        if folder_paths is not None:
            found = Path(folder_paths.models_dir) / FOLDER / found
    if not found.is_file():
        raise ValueError(
            f"diffast plan: there is no file {found}: give an absolute path, or put the plan into "
            f"models/{FOLDER}"
        )
    return Plan.load(found)


class PlanOfModel:
    """A plan as ComfyUI's states have it: x0 + sigma eps, or the flow's (1 - s) x0 + s eps.

    Args:
        plan: of any schedule; one of `df.schedules.flow` is for flow models.
    """

    def __init__(self, plan: Plan):
        """Converts the plan; see the class."""
        self.own = plan_of(_TITLE, plan)
        self.for_flow = self.own.schedule == flow()
        self.plan = self.own if self.for_flow else in_sigma_space(_TITLE, self.own)
        if self.for_flow:
            start = [float(self.own.schedule.sigma(self.own.start))]
            at = self.own.levels[self.own.calls[:-1], self.own.rows.index("x"), 1]
            levels = [*start, *at.tolist(), 0.0]
        else:
            levels = [*levels_before_calls(self.plan)]
        self.levels = tuple(levels)

    @property
    def sigmas(self) -> torch.Tensor:
        """Returns the noise levels before the calls and 0, [calls + 1] float32, for SIGMAS."""
        return torch.tensor(self.levels, dtype=torch.float32)

    def check(self, model_sampling: Any, sigmas: torch.Tensor) -> None:
        """Raises ValueError for a model of another kind or range, or for other sigmas."""
        if is_flow(model_sampling) != self.for_flow:
            kinds = ("a flow model", "a model with betas or sigmas")
            ours, theirs = kinds if self.for_flow else kinds[::-1]
            raise ValueError(f"diffast plan: {self.own.name} is for {ours}, but this is {theirs}")
        if len(sigmas) != len(self.levels) or not torch.allclose(
            sigmas.cpu().float(), self.sigmas, rtol=1e-4, atol=1e-6
        ):
            raise ValueError(
                f"diffast plan: {self.own.name} has {len(self.levels) - 1} calls and levels of its "
                f"own, but the sampler was given {len(sigmas) - 1} other ones: connect the SIGMAS "
                "of the same node, with denoise 1"
            )
        if self.for_flow or not hasattr(self.own.schedule, "timesteps"):
            return
        noisiest = self.own.schedule.t_start
        ours = float(self.own.schedule.sigma(noisiest) / self.own.schedule.alpha(noisiest))
        theirs = float(model_sampling.sigma_max)
        if abs(ours - theirs) > 0.01 * theirs:
            raise ValueError(
                f"diffast plan: {self.own.name} is for a network whose noise goes up to sigma = "
                f"{ours:.4g}, but that of this model goes up to {theirs:.4g}"
            )


def _as_denoiser(plan: Plan, guider: Any) -> Any:
    """Returns what `check_made_for` reads: the model's prediction type, its network, the scale."""
    from comfy import model_sampling as kinds  # pyright: ignore[reportMissingImports]

    predicts, inner = None, getattr(guider, "inner_model", None)
    made_for = (plan.made_for or {}).get("predicts")
    # A plan tuned with a wrapper that returns x0 fits every type: the wrapper knows the model's.
    for kind, name in _KINDS if made_for != "x0" else ():
        if predicts is None and isinstance(
            getattr(inner, "model_sampling", None), getattr(kinds, kind, ())
        ):
            predicts = name
    network = getattr(inner, "diffusion_model", None)
    scale = getattr(guider, "cfg", None)
    return SimpleNamespace(predicts=predicts, network=network, guidance=scale, guides=())


# ComfyUI's classes; EDM is one of v with the other sign.
_KINDS = (("EDM", "v"), ("V_PREDICTION", "v"), ("CONST", "flow"), ("EPS", "epsilon"))


def plan_sampler(prepared: PlanOfModel, noise: str = "counter") -> Callable[..., torch.Tensor]:
    """Returns the sampler function for KSAMPLER: fn(model, x, sigmas, extra_args, ..).

    Guidance scales of the plan are set in the guider, `cfg`, for the time of the run.

    Args:
        prepared: the plan.
        noise: of stochastic plans, as for `samplers.sampler`.

    Raises:
        ValueError: for an unknown noise.
    """
    if noise not in NOISES:
        raise ValueError(f"diffast plan: noise = {noise!r}, but one of {', '.join(NOISES)}")
    plan, levels = prepared.plan, prepared.levels

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        guider = model.inner_model
        check_sigmas("diffast plan", sigmas)
        prepared.check(model_sampling_of(model), sigmas)
        check_made_for("diffast plan", prepared.own, _as_denoiser(prepared.own, guider))
        seed = (extra_args or {}).get("seed")
        draw = None
        if noise == "torch" and plan.stochastic:
            draw = drawn_by(torch_noise(x, seed), plan, sigmas)
        guided = hasattr(guider, "cfg") and "negative" in getattr(guider, "conds", {"negative": 0})
        before = getattr(guider, "cfg", None)

        def guide(scale, arguments):
            guider.cfg = scale

        rest = extra_args, callback, disable, draw, seed or 0
        try:
            return run_plan(
                _TITLE, model, x, plan, levels, sigmas, *rest, guide=guide if guided else None
            )
        finally:
            if guided:
                guider.cfg = before

    sample.__name__ = sample.__qualname__ = _TITLE
    return sample
