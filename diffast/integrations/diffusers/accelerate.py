"""One line for a pipeline: its schedulers replaced by the equivalent drop-ins."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

from diffast import planning
from diffast.guidance.guide import Guide
from diffast.integrations.diffusers.convention import convention_of
from diffast.integrations.diffusers.dpm_family import OTHER_SIGN
from diffast.integrations.diffusers.guidance_hook import scales_of
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.pipeline_schedulers import (
    ONLY_NOISING,
    Place,
    Replaced,
    level_of,
    places_of,
    put_back,
    replace,
)
from diffast.integrations.diffusers.planned import PlanScheduler
from diffast.integrations.diffusers.scheduler import DiffastScheduler
from diffast.model.fingerprint import fingerprint
from diffast.plans import Plan


@dataclass(frozen=True)
class Report:
    """What `accelerate` did.

    Attributes:
        before: name of the class of the pipeline's scheduler.
        after: name of the class that replaces it.
        noise: "generator" or "counter".
        notes: what is not exactly as before, a sentence each.
        replaced: (place, name of the class before, of the class after) of every scheduler that was
            replaced, as ("prior_pipe.scheduler", "DDIMScheduler", "DiffastDDIMScheduler").
        left: a sentence for every scheduler that was left as it is.
    """

    before: str
    after: str
    noise: str
    notes: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str, str], ...] = ()
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Returns it in words."""
        head = (
            f"diffast: {self.before} -> {self.after}" if self.after else "diffast: nothing undone"
        )
        if self.noise:
            head += f", noise from the {self.noise}"
        lines = [head, *(f"  {note}" for note in self.notes)]
        lines += [f"  {name}: {old} -> {new}" for name, old, new in self.replaced[1:]]
        return "\n".join([*lines, *(f"  {line}" for line in self.left)])


def accelerate(
    pipe: Any,
    noise: str = "generator",
    quiet: bool = False,
    plan: Plan | str | PathLike | None = None,
    calls: int | None = None,
    guidance: float | None = None,
    guides: Guide | Sequence[Guide] = (),
    strict: bool = False,
    undo: bool = False,
) -> Report:
    """Returns what was done: the pipeline's schedulers are replaced by drop-ins, in place.

    All schedulers are replaced: `pipe.scheduler`, others as `prior_scheduler`, and those of
    pipelines inside it. One object in two places stays one object. A scheduler that has no drop-in
    is left as it is, and so is one that only noises pictures (`low_res_scheduler`,
    `image_noising_scheduler`); the report has a line for each.

    With a plan, or a number of calls, `pipe.scheduler` is replaced by a scheduler that runs this
    plan, whatever the scheduler was. The pipeline is then called with `num_inference_steps` equal
    to the plan's number of calls.

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
        strict: whether drop-ins raise a ValueError instead of handing over to diffusers' own code.
        undo: whether to put back the very schedulers that were there before the first
            `accelerate`. One that was replaced by other code since is left; the report says so.

    Raises:
        TypeError: for a plan and calls together, guidance without calls, guides without either, or
            another option beside undo.
        ValueError: no scheduler that has a drop-in; a plan for another schedule or prediction
            type, or one that a pipeline cannot run; a term that is taken through the network;
            nothing to undo. The pipeline is left as it was.
    """
    if undo:
        given = {"plan": plan, "calls": calls, "guidance": guidance, "guides": guides or None}
        beside = [name for name, value in given.items() if value is not None]
        if beside or noise != "generator" or strict:
            raise TypeError("accelerate: undo=True is given with other options, but it takes none")
        return _undone(pipe, quiet)
    if calls is not None and plan is not None:
        raise TypeError(f"accelerate: a plan and calls = {calls} are given: give one of the two")
    if calls is None and guidance is not None:
        raise TypeError(f"accelerate: guidance = {guidance} is given, but it is for calls=")
    places = places_of(pipe)
    if not places:
        raise ValueError(f"accelerate: {type(pipe).__name__} has no scheduler")
    if calls is not None:
        plan = _starting_plan(pipe, calls, guidance)
    guides = (guides,) if isinstance(guides, Guide) else tuple(guides)
    made: dict[int, Any] = {}  # by the id of what is replaced
    notes: list[str] = []
    if plan is not None:
        after, notes = _planned(pipe, plan, noise, guides)
        made[id(pipe.scheduler)] = after
    elif guides:
        raise TypeError(
            f"accelerate: {len(guides)} guidance terms are given, but the latents of "
            f"{type(places[0].get()).__name__} need not be those of the network: give plan= or "
            "calls= too"
        )
    pairs, left = _replacements(places, made, noise, strict)
    if plan is None:
        notes = [note for pair in pairs for note in _notes(pair.after)]
    replace(pipe, pairs)
    first = pairs[0]
    named = tuple((p.place.name, _name(p.before), _after_name(p.after)) for p in pairs)
    report = Report(
        _name(first.before), named[0][2], noise, tuple(dict.fromkeys(notes)), named, tuple(left)
    )
    if not quiet:
        print(report)
        for pair in pairs:  # said here, so no warning says it again
            vars(pair.after).setdefault("_said", set()).update(notes)
    return report


@contextmanager
def accelerated(pipe: Any, **options: Any) -> Iterator[Report]:
    """Replaces the pipeline's schedulers by drop-ins while its `with` lasts.

        with accelerated(pipe):
            image = pipe("a dog").images[0]

    Yields what `accelerate` returns. At the end, also after an error, the very schedulers are put
    back that were there at its start; one that other code has replaced since is left.

    Args:
        pipe: a diffusers pipeline, or anything with a `scheduler`.
        options: of `accelerate`, without `undo`; `quiet` is True unless given.

    Raises:
        TypeError, ValueError: as `accelerate`.
    """
    if "undo" in options:
        raise TypeError("accelerated: undo is given, but its end puts the schedulers back")
    level = level_of(pipe)
    report = accelerate(pipe, **{"quiet": True, **options})
    try:
        yield report
    finally:
        put_back(pipe, level)


def _undone(pipe: Any, quiet: bool) -> Report:
    """Puts the schedulers back and returns what was done."""
    if not level_of(pipe):
        raise ValueError(
            f"accelerate: undo=True, but nothing of this {type(pipe).__name__} was replaced by it"
        )
    back, kept = put_back(pipe)
    named = tuple((p.place.name, type(p.after).__name__, type(p.before).__name__) for p in back)
    left = [
        f"{p.place.name}: {type(p.place.get()).__name__} is left, as other code put it there"
        for p in kept
    ]
    left = tuple(dict.fromkeys(left))  # a place that was replaced twice is told once
    first = named[0] if named else ("", "", "")
    report = Report(first[1], first[2], "", (), named, left)
    if not quiet:
        print(report)
    return report


def _replacements(
    places: list[Place], made: dict[int, Any], noise: str, strict: bool
) -> tuple[list[Replaced], list[str]]:
    """Returns (what goes where, a sentence for each scheduler that stays).

    Raises:
        ValueError: nothing can be replaced.
    """
    pairs, left, refusal = [], [], None
    for place in places:
        before = place.get()
        if id(before) not in made:
            if str(place.key) in ONLY_NOISING:
                left.append(f"{place.name}: {type(before).__name__} is left, as it only adds noise")
                continue
            source = before.original() if isinstance(before, PlanScheduler) else before
            try:
                after = DiffastScheduler.from_scheduler(source, noise=noise, strict=strict)
            except ValueError as error:
                refusal = refusal or error
                left.append(f"{place.name}: {type(before).__name__} is left: {error}")
                continue
            made[id(before)] = after
        pairs.append(Replaced(place, before, made[id(before)]))
    if not pairs:
        if refusal is not None:
            raise refusal
        raise ValueError(f"accelerate: {'; '.join(left)}")
    return pairs, left


def _name(scheduler: Any) -> str:
    """Returns the name of the scheduler's class in diffusers."""
    if isinstance(scheduler, PlanScheduler):
        return scheduler.planned_for
    name = type(scheduler).__name__
    return name.removeprefix("Diffast") if isinstance(scheduler, DiffastScheduler) else name


def _after_name(scheduler: Any) -> str:
    if isinstance(scheduler, PlanScheduler):
        return f"plan {scheduler.plan.name}"
    return type(scheduler).__name__


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
    pipe: Any, plan: Any, noise: str, guides: tuple[Guide, ...]
) -> tuple[PlanScheduler, list[str]]:
    """Returns (a scheduler that runs the plan in the pipeline, notes)."""
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
    return after, notes


def _notes(scheduler) -> tuple[str, ...]:
    config, notes = scheduler.config, []
    if (
        setting(config, "algorithm_type") == "sde-dpmsolver++"
        and setting(config, "solver_order") == 3
    ):
        notes.append(OTHER_SIGN)
    if config.noise == "counter":
        notes.append(
            "steps that draw noise, if this scheduler has any, draw other noise than in diffusers: "
            "other pictures of the same law"
        )
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
