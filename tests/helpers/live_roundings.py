"""What half-precision latents and outputs are right to: to the original's own roundings.

Original and drop-in take each step from the same latents by the same output and noise. A copy of
the original that remembers in float64 takes it too, from these inputs in float64: what the original
is off by is its rounding, and a drop-in may be off by half as much again.
"""

import copy
import sys
import warnings

import torch
from diffusers_cases import Case
from diffusers_loop import model_input, network, noisy, takes

from diffast.integrations.diffusers import DiffastScheduler
from diffast.integrations.handed_over import HandedOverWarning


def in_float64(value):
    """Returns a scheduler's attribute with floating-point tensors in float64."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.float64, copy=True)
    return [*map(in_float64, value)] if isinstance(value, list) else copy.copy(value)


def taken(scheduler, options, *inputs, noises=None):
    """Returns ((network's input, next latents, x0 estimate), the noise that was drawn).

    Args:
        scheduler: that takes the step.
        options: of step.
        inputs: the network's output, the timestep and the latents.
        noises: to take in float64 in the place of drawn ones.
    """
    module = sys.modules[type(scheduler).__module__]
    draw, made = getattr(module, "randn_tensor", None), []
    left = None if noises is None else [*noises]

    def drawn(*args, **kwargs):
        made.append(draw(*args, **kwargs) if left is None else left.pop(0).double())
        return made[-1]

    output, t, x = inputs
    seen = model_input(scheduler, x, t)
    if draw is not None:
        module.randn_tensor = drawn
    try:
        result = scheduler.step(output, t, x, **options)
    finally:
        if draw is not None:
            module.randn_tensor = draw
    return (seen, result.prev_sample, result.get("pred_original_sample")), made


def misses(case: Case, sample: torch.dtype, output: torch.dtype, steps: int, keep: bool):
    """Yields (what, relative difference from the original, ours and its own from float64).

    Args:
        case: the scheduler.
        sample: dtype of the first latents.
        output: of the network's outputs.
        steps: of the run.
        keep: whether latents keep their first dtype, as some pipelines have it.

    Raises:
        AssertionError: another dtype or shape than the original's.
    """
    theirs = case.original()
    ours = DiffastScheduler.from_scheduler(theirs)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(steps, **case.timing)
    options = [dict(case.stepping), dict(case.stepping)]
    if takes(theirs.step, "generator"):
        options = [{**o, "generator": torch.Generator().manual_seed(1)} for o in options]
    x = noisy(theirs, (2, 3, 4, 4), dtype=sample)
    for i, t in enumerate(theirs.timesteps):
        exact = object.__new__(type(theirs))
        vars(exact).update({name: in_float64(value) for name, value in vars(theirs).items()})
        made = network(x.float(), t).to(output)
        wanted, noises = taken(theirs, options[0], made, t, x)
        with warnings.catch_warnings():
            warnings.simplefilter("error", HandedOverWarning)  # then nothing would be compared
            found, _ = taken(ours, options[1], made, ours.timesteps[i], x)
        best, _ = taken(exact, options[0], made.double(), t, x.double(), noises=noises)
        named = zip(("input", "latents", "x0"), found, wanted, best, strict=True)
        for what, a, b, right in named:
            if b is None:
                continue
            assert (a.dtype, a.shape) == (b.dtype, b.shape), (what, i, a.dtype, b.dtype)
            scale = right.abs().max() + 1e-9
            a, b = a.double(), b.double()
            pairs = ((a, b), (a, right), (b, right))
            apart = [float((p - q).abs().max() / scale) for p, q in pairs]
            yield f"{what} of step {i}", *apart
        x = wanted[1].to(sample) if keep else wanted[1]
