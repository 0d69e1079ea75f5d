"""One line for a pipeline: its scheduler replaced by the equivalent drop-in."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from diffast import planning
from diffast.guidance.guide import Guide
from diffast.integrations.diffusers.convention import convention_of
from diffast.integrations.diffusers.guidance_hook import scales_of
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.planned import PlanScheduler
from diffast.integrations.diffusers.scheduler import DiffastScheduler
from diffast.model.fingerprint import fingerprint
from diffast.plans import Plan


@dataclass(frozen=True)
class Report:
    """What `accelerate` did.

    Attributes:
        before: name of the pipeline's scheduler class.
        after: name of the class that replaces it.
        noise: "generator" or "counter".
        notes: what is not exactly as before, a sentence each.
    """

    before: str
    after: str
    noise: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns it in words."""
        head = f"diffast: {self.before} -> {self.after}, noise from the {self.noise}"
        return "\n".join([head, *(f"  {note}" for note in self.notes)])


def accelerate(
    pipe: Any,
    noise: str = "generator",
    quiet: bool = False,
    plan: Plan | str | PathLike | None = None,
    calls: int | None = None,
    guidance: float | None = None,
    guides: Guide | Sequence[Guide] = (),
) -> Report:
    """Returns what was done: the pipeline's scheduler is replaced by its drop-in, in place.

    With a plan, or a number of calls, it is replaced by a scheduler that runs this plan, whatever
    the scheduler was. The pipeline is then called with `num_inference_steps` equal to the plan's
    number of calls.

    Args:
        pipe: a diffusers pipeline, or anything with a `scheduler`.
        noise: "generator": the same pictures as before; "counter": the package's own noise, faster
            and the same in any batch and on any device.
        quiet: whether not to print the report.
        plan: a plan, or the path of its file, for the network's schedule and prediction type: one
            of `df.plan`, `df.solvers`, or one that `tune` made for the network. None: the plan of
            the pipeline's own scheduler.
        calls: network calls, in place of a plan: that of `df.plan` for the network's schedule.
        guidance: with calls, the guidance scale that the plan is chosen for; None: the default of
            the pipeline's guidance_scale, where that is classifier-free.
        guides: with a plan or calls, guidance terms (`df.guidance`): gradients of a condition that
            join every x0 estimate. They see the latents [B, ...] at the plan's model times. Terms
            through the network need `df.sample`.

    Raises:
        TypeError: for a plan and calls together, guidance without calls, or guides without either.
        ValueError: a scheduler that has no drop-in; a plan for another schedule or prediction
            type, or one that a pipeline cannot run; a term that is taken through the network. The
            pipeline is left as it was.
    """
    before = pipe.scheduler
    if calls is not None and plan is not None:
        raise TypeError(f"accelerate: a plan and calls = {calls} are given: give one of the two")
    if calls is None and guidance is not None:
        raise TypeError(f"accelerate: guidance = {guidance} is given, but it is for calls=")
    if calls is not None:
        plan = _starting_plan(pipe, calls, guidance)
    guides = (guides,) if isinstance(guides, Guide) else tuple(guides)
    if plan is not None:
        return _planned(pipe, plan, noise, quiet, guides)
    if guides:
        raise TypeError(
            f"accelerate: {len(guides)} guidance terms are given, but the latents of "
            f"{type(before).__name__} need not be those of the network: give plan= or calls= too"
        )
    if isinstance(before, PlanScheduler):
        before = before.original()
    name = type(before).__name__
    if isinstance(before, DiffastScheduler):
        name = name.removeprefix("Diffast")
    after = DiffastScheduler.from_scheduler(before, noise=noise)
    pipe.scheduler = after
    report = Report(name, type(after).__name__, noise, _notes(after))
    if not quiet:
        print(report)
    return report


def _starting_plan(pipe: Any, calls: int, guidance: float | None) -> Plan:
    """Returns the plan of `df.plan` for the pipeline's network."""
    before = pipe.scheduler
    if isinstance(before, PlanScheduler):
        before = before.original()
    scale = _usual_guidance(pipe) if guidance is None else guidance
    return planning.plan(convention_of(before).schedule, calls, guidance=scale)


def _usual_guidance(pipe: Any) -> float:
    """Returns the default scale of the pipeline's classifier-free guidance, 1 where it has none."""
    known = inspect.signature(type(pipe).__call__).parameters
    # with true_cfg_scale, guidance_scale is told to a network that was distilled
    own = "true_cfg_scale" if "true_cfg_scale" in known else "guidance_scale"
    if own not in known or "negative_prompt" not in known:
        return 1.0
    default = known[own].default
    return float(default) if isinstance(default, (int, float)) else 1.0


def _planned(
    pipe: Any, plan: Any, noise: str, quiet: bool, guides: tuple[Guide, ...] = ()
) -> Report:
    """Puts a scheduler that runs the plan into the pipeline."""
    if isinstance(plan, (str, PathLike)):
        plan = Plan.load(plan)
    if not isinstance(plan, Plan):
        of_result = ": give its .plan" if isinstance(getattr(plan, "plan", None), Plan) else ""
        raise ValueError(
            f"accelerate: plan is a {type(plan).__name__}, but a df.Plan or the path of its file "
            f"is needed{of_result}"
        )
    after = PlanScheduler.of(pipe.scheduler, plan, noise, guides)
    notes = [f"call the pipeline with num_inference_steps={plan.nfe}"]
    if guides:
        named = ", ".join(term.name for term in guides)
        notes.append(f"guidance terms: {named}; they are not saved with the pipeline")
    scales = scales_of(plan)
    if scales is not None:
        after.guide(pipe)
        notes.append(
            f"guidance scales {scales.min():.3g} to {scales.max():.3g} are the plan's: "
            "guidance_scale has to be above 1, its value is not used"
        )
    scale = (plan.made_for or {}).get("guidance")
    if scales is None and scale is not None and scale != 1.0:
        notes.append(f"made for guidance_scale={scale:g}: its measured error is for that scale")
    notes += check_network(pipe, plan)
    pipe.scheduler = after
    report = Report(after.planned_for, f"plan {plan.name}", noise, tuple(notes))
    if not quiet:
        print(report)
    return report


def _notes(scheduler) -> tuple[str, ...]:
    config, notes = scheduler.config, []
    if (
        setting(config, "algorithm_type") == "sde-dpmsolver++"
        and setting(config, "solver_order") == 3
    ):
        notes.append(
            "third-order SDE steps have the published sign in one term, diffusers the opposite: "
            "the pictures differ"
        )
    if config.noise == "counter":
        notes.append("stochastic steps use other noise than diffusers: other pictures, same law")
    return tuple(notes)


def check_network(pipe: Any, plan: Plan) -> list[str]:
    """Returns a sentence if the plan was made for other weights than the pipeline's network has."""
    tuned = (plan.made_for or {}).get("network")
    network = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    found = None if tuned is None or network is None else fingerprint(network)
    if found is None or found == tuned:
        return []
    return [
        f"the plan was made for a network with the fingerprint {tuned}, but the pipeline's has "
        f"{found}: the measured errors are not those of this network"
    ]
