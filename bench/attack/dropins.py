"""Settings of diffusers' noise-form schedulers, run by the original and by the drop-in.

    python bench/attack/builds.py --dropins

Every setting is run four times on one smooth function of (x, t): original and drop-in, in float32
and in float64. In float64 the original is given its own sigmas as float64, so that nothing but the
algorithm is compared. In float32 a difference is that of rounding where the original itself is as
far from its float64 run, or moves as far when its inputs and sigmas are rounded to a neighbour.
"""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import diffusers
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

from diffusers_loop import network  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402

SHAPE = (1, 4, 8, 8)
CLOSE = 1e-4  # of the largest value
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
RANGES = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}
PREDICTS = ("epsilon", "v_prediction", "sample")
SIGMAS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
STEPS = ((1, 2, 3, 4, 6, 8, 20, 30, 100), (5, 7, 10, 12, 15, 25, 50, 200, 1000))
END = {"final_sigmas_type": "sigma_min"}


def kinds():
    """Yields (class, options) of every noise form."""
    for order in (1, 2, 3):
        yield "DEISMultistep", {"solver_order": order}
        for kind in ("midpoint", "heun"):
            own = {"algorithm_type": "dpmsolver", "solver_order": order, "solver_type": kind}
            yield "DPMSolverMultistep", own | END
        for kind in ("bh1", "bh2"):
            own = {"predict_x0": False, "solver_order": order, "solver_type": kind}
            yield "UniPCMultistep", own | END


def settings():
    """Yields (class, options, number of steps)."""
    choices = itertools.product(kinds(), BETAS, SIGMAS.values())
    for n, ((kind, own), betas, sigmas) in enumerate(choices):
        for k, steps in enumerate(STEPS[n % 2]):
            predicts = {"prediction_type": PREDICTS[(n // 2 + k) % 3]}
            more = {"beta_schedule": betas} | RANGES.get(betas, {}) | sigmas | predicts
            yield kind, own | more, steps


def made(kind, options):
    return getattr(diffusers, f"{kind}Scheduler")(**options)


def dropped_in(kind, options):
    config = dict(made(kind, options).config) | {"_class_name": f"{kind}Scheduler"}
    return DiffastScheduler.from_config(config)


class _Wide:
    """The module torch whose float32 is float64: some originals convert their sample to that."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def wide_run(scheduler, steps):
    """The original in float64 throughout."""
    module = sys.modules[type(scheduler).__module__]
    module.torch = _Wide()
    try:
        return run(scheduler, steps, torch.float64, own_sigmas=True)
    finally:
        module.torch = torch


def run(scheduler, steps, dtype, touch=None, own_sigmas=False):
    """The loop from noise; `touch` moves what goes into a step."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)  # else originals start at the second of two equal time steps
    if own_sigmas:
        scheduler.sigmas = scheduler.sigmas.to(dtype)
    if touch is not None:
        scheduler.sigmas = touch(scheduler.sigmas)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x * scheduler.init_noise_sigma).to(dtype)
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        if touch is not None:
            x, out = touch(x), touch(out)
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return x.double()


def rounded(seed):
    """A function that moves each number to one of its two neighbours."""
    generator = torch.Generator().manual_seed(seed)

    def touch(x):
        up = torch.rand(x.shape, generator=generator) < 0.5
        return torch.nextafter(x, torch.where(up, torch.inf, -torch.inf).to(x.dtype))

    return touch


def gap(got, want):
    found = (got - want).abs().max() / want.abs().max()
    return float(found) if torch.isfinite(found) else float("inf")


def tried(kind, options, steps):
    """Returns (verdict, numbers) of one setting."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            wide = wide_run(made(kind, options), steps)
            narrow = run(made(kind, options), steps, torch.float32)
        except Exception as error:
            return "original raises", {"error": f"{type(error).__name__}: {error}"}
        if not torch.isfinite(narrow).all():
            return "original is not finite", {}
        try:
            ours = [
                run(dropped_in(kind, options), steps, d) for d in (torch.float64, torch.float32)
            ]
        except ValueError as error:
            # all time steps are one: "leading" with as many steps as were trained
            kind = "sigmas do not fall" if "sigmas that fall" in str(error) else "refused"
            return kind, {"error": str(error)}
        found = {"float64": gap(ours[0], wide), "float32": gap(ours[1], narrow)}
        if found["float64"] <= CLOSE and found["float32"] <= CLOSE:
            return "equal", found
        found["original's own"] = gap(narrow, wide)
        found["ours from float64"] = gap(ours[1], wide)
        moved = [run(made(kind, options), steps, torch.float32, rounded(i)) for i in range(3)]
        found["moved by rounding"] = max(gap(each, narrow) for each in moved)
        known = 8 * max(found["original's own"], found["moved by rounding"])
    if found["float64"] <= CLOSE and found["float32"] <= known:
        return "equal within float32", found
    return "different", found


def attack(part=None):
    """Returns the report; `part` is (k, n): every n-th setting from k on."""
    torch.set_num_threads(1)
    part = part or tuple(map(int, os.environ.get("ATTACK_PART", "0/1").split("/")))
    counts, largest, odd = Counter(), Counter(), []
    for kind, options, steps in itertools.islice(settings(), part[0], None, part[1]):
        verdict, found = tried(kind, options, steps)
        counts["settings"] += 1
        counts[verdict] += 1
        if verdict == "equal":
            for name, value in found.items():
                largest[name] = max(largest[name], value)
        else:
            odd.append({"case": [kind, options, steps], "verdict": verdict, **found})
    counts["refused"] += 0
    return {"counts": dict(counts), "largest of the equal ones": dict(largest), "odd": odd}
