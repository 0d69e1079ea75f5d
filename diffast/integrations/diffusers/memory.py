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

from diffast import ops
from diffast.integrations.diffusers.live import setting, setting_before
from diffast.integrations.diffusers.original import twin_of


@dataclass(frozen=True)
class Memory:
    """How an original remembers.

    Attributes:
        names: its attributes that hold tensors or counts of earlier steps.
        restore: (scheduler, run, index of the next step) -> None, writes them; None: a run's
            registers do not tell them.
        keeps: (scheduler, options of step) -> how many entries the original holds, of which no
            later step may read the oldest; None: those that a later step reads.
        anchored: whether it holds the latents from which its last step began, also a step of one
            call.
        held: the attribute in which it keeps the very tensor that a step was given, not a copy.
    """

    names: tuple[str, ...]
    restore: Callable[[Any, Any, int], None] | None = None
    keeps: Callable[[Any, tuple], int] | None = None
    anchored: bool = False
    held: str | None = None

    def most(self, scheduler: Any, options: tuple) -> int:
        """Returns how many entries have to be kept; 0: those that a later step reads."""
        return 0 if self.keeps is None else self.keeps(scheduler, options)


def _outputs(scheduler: Any, options: tuple) -> int:
    return len(vars(scheduler).get("model_outputs") or ())


def _slopes(scheduler: Any, options: tuple) -> int:
    return options[0]


def _four(scheduler: Any, options: tuple) -> int:
    return 4


def _five(scheduler: Any, options: tuple) -> int:
    return 5  # PNDM's four, and its second call's between them, which it does not hold


def entries(run: Any, i: int, most: int, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """Returns what the last stages before stage i have remembered, oldest first, [B, ...] each.

    Args:
        run: a `Run`.
        i: a stage.
        most: how many are wanted.
        dtype: of the tensors.

    None stands where no later step of the plan needs the entry, so that it was not kept.
    """
    found: list[torch.Tensor | None] = []
    taken: set[int] = set()
    for stage in range(i - 1, max(i - 1 - most, -1), -1):
        slot = run.calls[stage].slot
        kept = slot >= 0 and slot not in taken  # another entry was written over this one
        taken.add(slot)
        found.append(run.kept(slot).to(dtype) if kept else None)
    return found[::-1]


def _is_inside(run: Any, stage: int) -> bool:
    """Returns whether that stage is a later call of a step."""
    return stage < len(run.calls) and not run.starts_at(stage)


def _sigmas(scheduler: Any) -> torch.Tensor:
    """Returns the noise levels that the run was prepared with: those of now may be others."""
    return torch.from_numpy(scheduler.host.sigmas).to(scheduler.sigmas)


def _multistep(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    order = len(own["model_outputs"])  # as it was when the run began
    found = entries(run, taken, order, run.seen_dtype)
    own["model_outputs"] = [None] * (order - len(found)) + found
    own["lower_order_nums"] = min(taken, order)


def _singlestep(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    order = len(own["model_outputs"])
    found = entries(run, taken, order, run.seen_dtype)
    own["model_outputs"] = [None] * (order - len(found)) + found
    own["sample"] = run.anchor()
    if own["sample"] is None:  # a block has ended
        own["sample"] = run.ended_from()


def _unipc(scheduler: Any, run: Any, step: int) -> None:
    own, taken, last = vars(scheduler), step - run.begin, step - 1
    order = len(own["model_outputs"])
    _multistep(scheduler, run, step)
    times = [*scheduler.timesteps[max(run.begin, step - order) : step]]
    own["timestep_list"] = [None] * (order - len(times)) + times
    own["last_sample"] = run.anchor()
    most = order
    if setting(scheduler.config, "lower_order_final"):
        most = min(order, len(scheduler.timesteps) - last)
    own["this_order"] = min(most, min(taken - 1, order) + 1)


def _lms(scheduler: Any, run: Any, step: int) -> None:
    found = entries(run, step - run.begin, run.options[0], run.seen_dtype)
    vars(scheduler)["derivatives"] = [each for each in found if each is not None]


def _heun(scheduler: Any, run: Any, step: int) -> None:
    own, stage = vars(scheduler), step - run.begin
    own["prev_derivative"] = own["dt"] = own["sample"] = None
    if _is_inside(run, stage):
        sigmas, i = _sigmas(scheduler), step - 1
        own["prev_derivative"] = entries(run, stage, 1, run.seen_dtype)[0]
        own["dt"] = sigmas[i + 1] - sigmas[i]
        own["sample"] = run.anchor()


def _midpoint(scheduler: Any, run: Any, step: int) -> None:
    stage = step - run.begin
    vars(scheduler)["sample"] = run.anchor() if _is_inside(run, stage) else None


def _stochastic_midpoint(scheduler: Any, run: Any, step: int) -> None:
    own, stage = vars(scheduler), step - run.begin
    own["sample"] = own["mid_point_sigma"] = None
    if _is_inside(run, stage):
        own["sample"] = run.anchor()
        own["mid_point_sigma"] = torch.tensor(run.recipe.intervals[stage - 1][1])

    _path(scheduler, run, step)


def _multistep_on_a_path(scheduler: Any, run: Any, step: int) -> None:
    _multistep(scheduler, run, step)
    _path(scheduler, run, step)


def _path(scheduler: Any, run: Any, step: int) -> None:
    """Makes the tree of noise anew in a copy, which has none."""
    if vars(scheduler).get("_tree_made") is not None:
        scheduler._tree()


def _ipndm(scheduler: Any, run: Any, step: int) -> None:
    found = entries(run, step - run.begin, 4, run.seen_dtype)
    vars(scheduler)["ets"] = [each for each in found if each is not None]


def _nothing(scheduler: Any, run: Any, step: int) -> None:
    """Leaves what the original makes anew where it is missing."""


def _pndm(scheduler: Any, run: Any, step: int) -> None:
    own, taken = vars(scheduler), step - run.begin
    outputs = entries(run, taken, 12, run.seen_dtype)
    skips = setting_before(scheduler.config, "skip_prk_steps")
    warm = 0 if skips else len(scheduler.prk_timesteps)
    own["counter"], own["cur_model_output"], own["cur_sample"] = taken, 0, None
    if taken <= warm:  # one entry a Runge-Kutta step of four calls
        inside = taken % 4
        heads = range(4 * ((taken - 1) // 4), -1, -4) if taken else ()
        own["ets"] = [outputs[k - taken] for k in heads if taken - k <= len(outputs)][::-1]
        for k, weight in zip(range(inside), (1 / 6, 1 / 3, 1 / 3), strict=False):
            own["cur_model_output"] = own["cur_model_output"] + weight * outputs[k - inside]
        own["cur_sample"] = run.anchor() if inside else run.ended_from()
    else:
        first = list(range(0, warm, 4))
        later = [k for k in range(warm, taken) if not (warm == 0 and k == 1)]
        kept = [k for k in (*first, *later)][-4:]
        own["ets"] = [outputs[k - taken] for k in kept if taken - k <= len(outputs)]
        if taken == 1:
            own["cur_sample"] = run.anchor()


def _sa_solver(scheduler: Any, run: Any, step: int) -> None:
    """The corrected state is not held: the predictor's equation gives it from the next state."""
    own, taken, config = vars(scheduler), step - run.begin, scheduler.config
    order, last = len(own["model_outputs"]), step - 1
    found = entries(run, taken, order, run.seen_dtype)
    times = [*scheduler.timesteps[max(run.begin, step - order) : step]]
    own["model_outputs"] = [None] * (order - len(found)) + found
    own["timestep_list"] = [None] * (order - len(times)) + times
    first = setting_before(config, "predictor_order")
    second = setting_before(config, "corrector_order")
    most = max(first, second - 1)
    known, ahead = min(taken - 1, most), len(scheduler.timesteps) - last
    own["lower_order_nums"] = min(taken, most)
    if setting_before(config, "lower_order_final"):
        first, second = min(first, ahead), min(second, ahead + 1)
    own["this_predictor_order"] = min(first, known + 1)
    own["this_corrector_order"] = min(second, known + 2)
    state, noise = 2.0 * run.anchor(), run.last  # see `with_own_state`
    if noise is None:  # the package's own
        noise = torch.empty(state.shape, dtype=torch.float32, device=state.device)
        ops.normal_out(run.ids, 0, ops.STEP_NOISE + taken - 1, 1.0, noise)
    own["last_noise"] = noise.to(run.seen_dtype)
    wide = torch.promote_types(state.dtype, torch.float32)
    twin = twin_of(scheduler)
    vars(twin).update(_step_index=last, model_outputs=[_like(each, wide) for each in found])
    vars(twin)["sigmas"] = _sigmas(scheduler)
    how = {"order": own["this_predictor_order"], "tau": scheduler.tau_func(times[-1])}
    zero, noise = torch.zeros_like(state, dtype=wide), noise.to(wide)
    update = twin.stochastic_adams_bashforth_update
    rest = update(model_output=twin.model_outputs[-1], sample=zero, noise=noise, **how)
    twin.model_outputs = [torch.zeros_like(zero)] * len(found)
    weight = update(model_output=zero, sample=torch.ones_like(zero), noise=zero, **how)
    own["last_sample"] = ((state.to(wide) - rest) / weight).to(run.seen_dtype)


def _like(entry: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if entry is None else entry.to(dtype)


NONE = Memory(())
MULTISTEP = Memory(("model_outputs", "lower_order_nums"), _multistep, _outputs)
SINGLESTEP = Memory(
    ("model_outputs", "sample"), _singlestep, _outputs, anchored=True, held="sample"
)
UNIPC = Memory(
    ("model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order"),
    _unipc,
    _outputs,
    held="last_sample",
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
    _outputs,
    held="last_sample",
)
LMS = Memory(("derivatives",), _lms, _slopes)
HEUN = Memory(("prev_derivative", "dt", "sample"), _heun, held="sample")
MIDPOINT = Memory(("sample",), _midpoint, held="sample")
PNDM = Memory(("ets", "counter", "cur_model_output", "cur_sample"), _pndm, _five, held="cur_sample")
STOCHASTIC_MIDPOINT = Memory(
    ("sample", "mid_point_sigma", "noise_sampler", "_tree_made"),
    _stochastic_midpoint,
    held="sample",
)
ANCESTRAL_MIDPOINT = Memory(("sample", "dt"), _midpoint, held="sample")
MULTISTEP_ON_A_PATH = Memory(
    ("model_outputs", "lower_order_nums", "noise_sampler", "_tree_made"),
    _multistep_on_a_path,
    _outputs,
)
IPNDM = Memory(("ets",), _ipndm, _four)
SIZE = Memory(("_init_size",), _nothing)
