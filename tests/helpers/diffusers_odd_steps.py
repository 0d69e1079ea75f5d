"""Schedulers of diffusers whose steps are called in ways of their own, as their pipelines do it."""

import inspect
from typing import NamedTuple

import diffusers
import torch
from diffusers_loop import network

SPARE = ("DDPMWuerstchen", "SCM")  # their last timestep is where the last step ends


class Odd(NamedTuple):
    """A scheduler, its options, and how it is called.

    Fields:
        id: name of the test.
        kind: name of the class in diffusers, without "Scheduler".
        config: arguments of the class.
        timing: further arguments of set_timesteps.
    """

    id: str
    kind: str
    config: dict = {}
    timing: dict = {}

    @property
    def learned(self):
        return str(self.config.get("variance_type")).startswith("learned")

    def original(self):
        return getattr(diffusers, f"{self.kind}Scheduler")(**self.config)

    def drop_in(self, noise="generator", **options):
        from diffast.integrations.diffusers import DiffastScheduler

        return DiffastScheduler.from_scheduler(self.original(), noise=noise, **options)


V = {"prediction_type": "v_prediction"}
JUMPS = {"jump_length": 2, "jump_n_sample": 2}
NO_MIDDLE = {"intermediate_timesteps": None}
ODD = [
    Odd("CogVideoXDPM-default", "CogVideoXDPM"),
    Odd(
        "CogVideoXDPM-model",
        "CogVideoXDPM",
        {**V, "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0}
        | {"timestep_spacing": "trailing"},
    ),
    Odd("CogVideoXDPM-x0", "CogVideoXDPM", {"prediction_type": "sample"}),
    Odd("CogVideoXDPM-last_alpha", "CogVideoXDPM", {**V, "set_alpha_to_one": False}),
    Odd("CogVideoXDPM-linspace", "CogVideoXDPM", {"timestep_spacing": "linspace"}),
    Odd("UnCLIP-strides", "UnCLIP"),
    Odd("UnCLIP-prior", "UnCLIP", {"prediction_type": "sample", "clip_sample_range": 5.0}),
    Odd("UnCLIP-learned", "UnCLIP", {"variance_type": "learned_range"}),
    Odd("DDPMWuerstchen-default", "DDPMWuerstchen"),
    Odd("DDPMWuerstchen-scaled", "DDPMWuerstchen", {"scaler": 2.0, "s": 0.02}),
    Odd("DDPMWuerstchen-slow", "DDPMWuerstchen", {"scaler": 0.5}),
    Odd("RePaint-default", "RePaint", {}, JUMPS),
    Odd("RePaint-ddpm", "RePaint", {"eta": 1.0, "clip_sample": False}, JUMPS),
    Odd("RePaint-cosine", "RePaint", {"eta": 0.5, "beta_schedule": "squaredcos_cap_v2"}, JUMPS),
    Odd("SCM-default", "SCM", {}, NO_MIDDLE),
    Odd("SCM-data", "SCM", {"sigma_data": 1.0}, {**NO_MIDDLE, "max_timesteps": 1.4}),
]
ONE_ODD = list({case.kind: case for case in reversed(ODD)}.values())[::-1]


def times_of(case, scheduler):
    times = scheduler.timesteps
    return times[:-1] if case.kind in SPARE else times


def take(case, scheduler, output, times, k, x, beside, **options):
    """Returns (next latents, what is returned beside them or None) of step k."""
    t, step = times[k], scheduler.step
    if "generator" not in inspect.signature(step).parameters:
        options.pop("generator", None)
    if case.kind == "CogVideoXDPM":
        back = times[k - 1] if k and beside is not None else None
        result = step(output, beside, t, back, x, **options, return_dict=False)
    elif case.kind == "UnCLIP":
        following = times[k + 1] if k + 1 < len(times) else None
        result = step(output, t, x, prev_timestep=following, **options, return_dict=False)
    elif case.kind == "RePaint":
        picture, mask = known(x)
        result = step(output, t, x, picture, mask, **options, return_dict=False)
    elif case.kind == "DDPMWuerstchen":
        ratio = t.expand(len(x)).to(output.dtype)
        result = step(output, ratio, x, **options, return_dict=False)
    elif case.kind == "SCM":
        result = step(output, t.expand(len(x)), x, **options, return_dict=False)
    else:
        result = step(output, t, x, **options, return_dict=False)
    return tuple(result) if len(result) > 1 else (result[0], None)


def known(x):
    """A picture to be completed, and where it is known; a mask need not be 0 or 1."""
    drawn = torch.Generator().manual_seed(9)
    picture = torch.tanh(torch.randn(x.shape, generator=drawn)).to(x.dtype)
    mask = torch.rand(1, 1, *x.shape[2:], generator=drawn).round(decimals=1)
    return picture, mask.to(x.dtype)


def shape_of(case):
    return (2, 3 if case.learned else 4, 8, 8)


def noisy(case, shape=None, dtype=torch.float32):
    drawn = torch.randn(shape or shape_of(case), generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype)


def start(case, scheduler, steps, begin=0):
    scheduler.set_timesteps(steps, **case.timing)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)  # SCM is given one time a sample, which it cannot find


def run(case, scheduler, steps, seed=1, begin=0, touch=None, shape=None, dtype=torch.float32):
    """Returns [(latents, what is beside them)] of each step of a loop.

    `touch(k)`, if given, is called before each step.
    """
    start(case, scheduler, steps, begin)
    times, x, beside, found = times_of(case, scheduler), noisy(case, shape, dtype), None, []
    if isinstance(seed, list):
        generator = [torch.Generator().manual_seed(s) for s in seed]
    else:
        generator = torch.Generator().manual_seed(seed)
    for k in range(begin, len(times)):
        if touch is not None:
            touch(k)
        output = network(x, times[k], case.learned)
        x, beside = take(case, scheduler, output, times, k, x, beside, generator=generator)
        found.append((x, beside))
    return found
