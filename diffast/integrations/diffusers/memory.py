"""What fused steps remember, in the form in which the original remembers it.

Other people's code reads and writes this memory between two steps. It is made once, when that
happens, from the registers of the run; from then on the original's own code goes on with it. Every
function writes into the dictionary of the scheduler's attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffast.integrations.diffusers.live import setting, setting_before
from diffast.integrations.diffusers.original import twin_of


def _no_depth(scheduler: Any, options: tuple) -> int:
    return 0


@dataclass(frozen=True)
class Memory:
    """How an original remembers.

    Attributes:
        names: its attributes that hold tensors or counts of earlier steps.
        restore: (scheduler, run, index of the next step) -> None, writes them; None: a run's
            registers do not tell them.
        depth: (scheduler, options of step) -> of how many calls it remembers what they gave.
    """

    names: tuple[str, ...]
    restore: Callable[[Any, Any, int], None] | None = None
    depth: Callable[[Any, tuple], int] = _no_depth


def entries(run: Any, i: int, most: int, scheduler: Any) -> list[torch.Tensor | None]:
    """Returns what the last stages before stage i have remembered, oldest first, [B, ...] each.

    Args:
        run: a `Run`.
        i: a stage.
        most: how many are wanted.
        scheduler: whose original makes an entry anew that no later step of the plan needs.

    None stands where an entry was not kept.
    """
    found: list[torch.Tensor | None] = []
    taken: set[int] = set()
    for stage in range(i - 1, max(i - 1 - most, -1), -1):
        slot = run.calls[stage].slot
        kept = slot >= 0 and slot not in taken  # another entry was written over this one
        taken.add(slot)
        entry = run.kept(slot).to(run.seen_dtype) if kept else None
        if entry is None and stage in run.unkept:
            entry = _converted(scheduler, run.begin + stage, *run.unkept[stage])
        found.append(entry)
    return found[::-1]


def _converted(scheduler: Any, step: int, sample, output) -> torch.Tensor | None:
    """Returns what the original has made of a network's output."""
    twin = twin_before(scheduler, step)
    convert = getattr(twin, "convert_model_output", None)
    if convert is None:
        return output.to(sample.dtype)
    with torch.no_grad():
        return convert(output, sample=sample)


def twin_before(scheduler: Any, step: int) -> Any:
    """Returns the original at that step, with the settings that the run was prepared for."""
    twin = twin_of(scheduler)
    for name, value in vars(scheduler.config).get("_before", {}).items():
        setattr(twin.config, name, value)
    sigmas = scheduler.host.sigmas
    if len(sigmas):
        vars(twin)["sigmas"] = torch.from_numpy(sigmas.astype("float32"))
    vars(twin)["_step_index"] = step
    return twin


def _order(scheduler: Any, options: tuple) -> int:
    return setting(scheduler.config, "solver_order")


def _multistep(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    order = setting_before(scheduler.config, "solver_order")
    found = entries(run, taken, order, scheduler)
    own["model_outputs"] = [None] * (order - len(found)) + found
    own["lower_order_nums"] = min(taken, order)


def _singlestep(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    order = setting_before(scheduler.config, "solver_order")
    found = entries(run, taken, order, scheduler)
    own["model_outputs"] = [None] * (order - len(found)) + found
    own["sample"] = run.anchor()
    for stage in sorted(run.unkept, reverse=True):  # the original holds it on until the next block begins
        if own["sample"] is None and run.starts_at(stage):
            own["sample"] = run.unkept[stage][0]


def _unipc(scheduler: Any, run: Any, step: int) -> None:
    own, taken, last = vars(scheduler), step - run.begin, step - 1
    order = setting_before(scheduler.config, "solver_order")
    _multistep(scheduler, run, step)
    times = [*scheduler.timesteps[max(run.begin, step - order) : step]]
    own["timestep_list"] = [None] * (order - len(times)) + times
    own["last_sample"] = run.anchor()
    most = order
    if setting_before(scheduler.config, "lower_order_final"):
        most = min(order, len(scheduler.timesteps) - last)
    own["this_order"] = min(most, min(taken - 1, order) + 1)


def _sa_orders(scheduler: Any) -> tuple[int, int]:
    config = scheduler.config
    return setting(config, "predictor_order"), setting(config, "corrector_order")


def _sa_depth(scheduler: Any, options: tuple) -> int:
    predictor, corrector = _sa_orders(scheduler)
    return max(predictor + 1, corrector) + 1


def _sa_solver(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    twin = twin_before(scheduler, step - 1)
    predictor, corrector = _sa_orders(twin)
    most, count = max(predictor, corrector - 1), len(scheduler.host.times)

    def orders(i: int) -> tuple[int, int]:
        """Returns those of (predictor, corrector) after step i."""
        first, second = predictor, corrector
        if setting(twin.config, "lower_order_final"):
            first, second = min(first, count - i), min(second, count - i + 1)
        known = min(i - run.begin, most)
        return min(first, known + 1), min(second, known + 2)

    found = entries(run, taken, most + 2, scheduler)
    kept = found[-most:]
    own["model_outputs"] = [None] * (most - len(kept)) + kept
    times = [*scheduler.timesteps[max(run.begin, step - most) : step]]
    own["timestep_list"] = [None] * (most - len(times)) + times
    own["lower_order_nums"] = min(taken, most)
    own["this_predictor_order"], own["this_corrector_order"] = orders(step - 1)
    sample, own["last_noise"] = run.chain[:2]
    if taken > 1:  # the corrector has changed the latents that the step was given
        nothing = torch.zeros_like(sample)
        first, second = orders(step - 2)
        tau = scheduler.tau_func(scheduler.timesteps[step - 2])
        earlier = found[:-1]
        vars(twin)["model_outputs"] = earlier
        with torch.no_grad():
            right = twin.stochastic_adams_moulton_update(
                this_model_output=found[-1],
                last_sample=nothing,
                last_noise=nothing,
                this_sample=nothing,
                order=second,
                tau=tau,
            )
            vars(twin)["_step_index"] = step - 2
            guess = twin.stochastic_adams_bashforth_update(
                model_output=earlier[-1], sample=nothing, noise=nothing, order=first, tau=tau
            )
        sample = sample + right - guess
    own["last_sample"] = sample


def _lms(scheduler: Any, run: Any, step: int) -> None:
    found = entries(run, step - run.begin, run.options[0], scheduler)
    vars(scheduler)["derivatives"] = [each for each in found if each is not None]


def _heun(scheduler: Any, run: Any, step: int) -> None:
    own, stage = vars(scheduler), step - run.begin
    own["prev_derivative"] = own["dt"] = own["sample"] = None
    if not run.starts_at(stage):
        sigmas, i = twin_before(scheduler, step).sigmas, step - 1
        own["prev_derivative"] = entries(run, stage, 1, scheduler)[0]
        own["dt"] = sigmas[i + 1] - sigmas[i]
        own["sample"] = run.anchor()


def _midpoint(scheduler: Any, run: Any, step: int) -> None:
    stage = step - run.begin
    vars(scheduler)["sample"] = None if run.starts_at(stage) else run.anchor()


def _pndm(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    outputs = entries(run, taken, 12, scheduler)
    skips = setting_before(scheduler.config, "skip_prk_steps")
    warm = 0 if skips else len(scheduler.prk_timesteps)
    own["counter"], own["cur_model_output"], own["cur_sample"] = taken, 0, None
    if taken <= warm:  # one entry a Runge-Kutta step of four calls
        inside = taken % 4
        heads = range(4 * ((taken - 1) // 4), -1, -4) if taken else ()
        own["ets"] = [outputs[k - taken] for k in heads if taken - k <= len(outputs)][::-1]
        for k, weight in zip(range(inside), (1 / 6, 1 / 3, 1 / 3), strict=False):
            own["cur_model_output"] = own["cur_model_output"] + weight * outputs[k - inside]
        own["cur_sample"] = _first_sample(run) if taken else None
    else:
        first = list(range(0, warm, 4))
        later = [k for k in range(warm, taken) if not (warm == 0 and k == 1)]
        kept = [k for k in (*first, *later)][-4:]
        own["ets"] = [outputs[k - taken] for k in kept if taken - k <= len(outputs)]
        if taken == 1:
            own["cur_sample"] = _first_sample(run)


def _first_sample(run: Any) -> torch.Tensor | None:
    """Returns the latents that the unfinished step goes on from."""
    anchor = run.anchor()
    return run.unkept[max(run.unkept)][0] if anchor is None and run.unkept else anchor


NONE = Memory(())
MULTISTEP = Memory(("model_outputs", "lower_order_nums"), _multistep, _order)
SINGLESTEP = Memory(("model_outputs", "sample"), _singlestep, _order)
UNIPC = Memory(
    ("model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order"),
    _unipc,
    _order,
)
SA_SOLVER = Memory(
    (
        "model_outputs",
        "timestep_list",
        "lower_order_nums",
        "last_sample",
        "last_noise",
        "this_predictor_order",
        "this_corrector_order",
    ),
    _sa_solver,
    _sa_depth,
)
LMS = Memory(("derivatives",), _lms)
HEUN = Memory(("prev_derivative", "dt", "sample"), _heun)
MIDPOINT = Memory(("sample",), _midpoint)
PNDM = Memory(("ets", "counter", "cur_model_output", "cur_sample"), _pndm, lambda *_: 5)
