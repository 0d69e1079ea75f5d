"""One denoising loop for an original and for its drop-in, with writes of other people's code in it.

    original, ours = both(case, Writes(after=lambda s: setattr(s.config, "shift", 5.0)))

Each of the two lists holds what its scheduler gave: the network's input, the next latents and the
x0 estimate of every step. A list that ends with an exception ended there.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers_cases import Case
from diffusers_loop import difference, model_input, network, noisy, takes

from diffast.integrations.diffusers import DiffastScheduler
from diffast.integrations.handed_over import HandedOverWarning

SHAPE = (2, 3, 4, 4)
STEPS = 6
Write = Callable[[Any], Any]


def nothing(scheduler: Any) -> None:
    """Writes nothing."""


@dataclass(frozen=True)
class Writes:
    """What other code does to a scheduler, and when.

    Attributes:
        before: before there is a drop-in.
        after: after that, before `set_timesteps`.
        ready: after `set_timesteps`, before the first step.
        between: by the index of the step that it comes before.
        again: between two runs; then a second run follows.
        timing: arguments of set_timesteps; without any that is not called.
        stepping: further arguments of step.
        loop: (scheduler) -> the timesteps of the loop; None: all.
        touched: by index, latents -> latents before that step.
        shape: of the latents.
        seed: of the generator of step.
    """

    before: Write = nothing
    after: Write = nothing
    ready: Write = nothing
    between: dict[int, Write] = field(default_factory=dict)
    again: Write | None = None
    timing: dict | None = field(default_factory=lambda: {"num_inference_steps": STEPS})
    stepping: dict = field(default_factory=dict)
    loop: Callable[[Any], Any] | None = None
    touched: dict[int, Callable] = field(default_factory=dict)
    shape: tuple = SHAPE


def learns(scheduler: Any) -> bool:
    """Returns whether the network has to tell its variance too, as the scheduler is now."""
    return str(getattr(scheduler.config, "variance_type", None)).startswith("learned")


def walk(scheduler: Any, case: Case, writes: Writes, seen: list) -> None:
    """Appends what each step of one loop gives."""
    x = noisy(scheduler, writes.shape)
    options = {**case.stepping, **writes.stepping}
    if takes(scheduler.step, "generator"):
        options["generator"] = torch.Generator().manual_seed(1)
    times = scheduler.timesteps if writes.loop is None else writes.loop(scheduler)
    for i, t in enumerate(times):
        changed = writes.between.get(i, nothing)(scheduler)
        if isinstance(changed, slice):  # the batch or its frames shrink
            x = x[changed]
        x = writes.touched.get(i, lambda x: x)(x)
        read = model_input(scheduler, x, t)
        output = network(read, t, learns(scheduler))
        result = scheduler.step(output, t, x, **options)
        estimate = result.get("pred_original_sample")
        seen.append((read, result.prev_sample, estimate))
        x = result.prev_sample


def trace(scheduler: Any, case: Case, writes: Writes) -> list:
    """Returns what each step gives; an exception ends the list."""
    seen: list = []
    try:
        writes.after(scheduler)
        for part in range(1 + (writes.again is not None)):
            if part and writes.again is not None:
                writes.again(scheduler)
            if writes.timing is not None:
                scheduler.set_timesteps(**writes.timing, **case.timing)
            writes.ready(scheduler)
            walk(scheduler, case, writes, seen)
    except Exception as error:
        seen.append(error)
    return seen


def both(case: Case, writes: Writes, **options: Any) -> tuple[list, list, Any]:
    """Returns (what the original gives, what the drop-in gives, the drop-in).

    Args:
        case: the scheduler.
        writes: of other people's code.
        options: of the drop-in.
    """
    original = case.original()
    writes.before(original)
    ours = DiffastScheduler.from_scheduler(copy.deepcopy(original), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HandedOverWarning)
        return trace(original, case, writes), trace(ours, case, writes), ours


def gap(want: list, got: list) -> tuple[float, str]:
    """Returns (the largest relative difference, what differs): inf for other forms or failures.

    Steps at which the original gave no finite numbers have nothing to be equal to, nor has what
    comes after them.
    """
    most, where = 0.0, ""
    for i, (right, found) in enumerate(zip(want, got, strict=False)):
        if isinstance(right, Exception):
            return most, where  # more than the original does
        if isinstance(found, Exception):
            if not all(torch.isfinite(t).all() for t in right if t is not None):
                return most, where
            return float("inf"), f"step {i} raises {type(found).__name__}: {found}"
        for name, a, b in zip(("input", "sample", "x0"), found, right, strict=True):
            if b is None and a is None:
                continue
            if a.dtype != b.dtype or a.shape != b.shape:
                return float("inf"), f"{name} {i}: {a.dtype}{list(a.shape)}, not {b.dtype}"
            if not torch.isfinite(b).all():
                return most, where
            apart = difference(a, b) if b.abs().max() else float(a.abs().max())
            if not apart <= most:
                most, where = apart, f"{name} of step {i}"
    if len(got) < len(want) and not isinstance(want[-1], Exception):
        return float("inf"), f"{len(got)} steps, not {len(want)}"
    return most, where
