"""Drop-in schedulers against the installed diffusers: one step, in turns, same tensors.

What is timed is `scale_model_input` (where the scheduler has a factor) and `step` for each entry of
`timesteps`, as a pipeline calls them, without a network. "floor" is torch.copy_ of the bytes that a
fused step has to read and write: state, output, what is remembered, result. The package's noise is
drawn by counter; "+ torch noise" rows draw the very numbers that diffusers draws.
"""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402

diffusers.utils.logging.set_verbosity_error()
SHAPES = {
    "1x4x64x64": (1, 4, 64, 64),
    "8x4x128x128": (8, 4, 128, 128),
    "64x3x64x64": (64, 3, 64, 64),
}
STEPS = 20
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# name: class, options, tensors that a fused step reads and writes, bound at 64 KiB (of diffusers'
# time), bound from 2 MiB on, whether it is stochastic.
CASES = {
    "ddim": ("DDIM", {"clip_sample": False}, 3, 1 / 4, 1 / 3, False),
    "euler": ("EulerDiscrete", {}, 3, 1 / 4, 1 / 3, False),
    "dpmpp_2m": ("DPMSolverMultistep", {}, 5, 1 / 4, 1 / 2, False),
    "dpmpp_3m": ("DPMSolverMultistep", {"solver_order": 3}, 6, 1 / 4, 1 / 2, False),
    "deis_2": ("DEISMultistep", {}, 5, 1 / 4, 1 / 2, False),
    "dpmpp_2m_sde": (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++"},
        5,
        1 / 4,
        None,
        True,
    ),
    "unipc_2": ("UniPCMultistep", {}, 8, 1 / 15, 1 / 2, False),
    "unipc_3": ("UniPCMultistep", {"solver_order": 3}, 9, 1 / 15, 1 / 2, False),
    "sa_solver": ("SASolver", {}, 8, 1 / 15, None, True),
    "flow_euler": ("FlowMatchEulerDiscrete", {}, 3, 1.0, None, False),
    "heun": ("HeunDiscrete", {}, 5, None, None, False),
    "dpm_2": ("KDPM2Discrete", {}, 4, None, None, False),
    "lms": ("LMSDiscrete", {}, 7, None, None, False),
    "pndm": ("PNDM", {"skip_prk_steps": True}, 7, None, None, False),
    "dpmpp_2s": ("DPMSolverSinglestep", {}, 4, None, None, False),
    "euler_ancestral": ("EulerAncestralDiscrete", {}, 3, None, None, True),
    "ddpm": ("DDPM", {"clip_sample": False}, 3, None, None, True),
    "lcm": ("LCM", {}, 3, None, None, True),
    "edm_2m": ("EDMDPMSolverMultistep", {}, 5, None, None, False),
}


def original(name):
    kind, options = CASES[name][:2]
    latent = {} if kind.startswith(("Flow", "EDM")) else LATENT
    return getattr(diffusers, f"{kind}Scheduler")(**latent, **options)


def stepping(scheduler, x, output):
    """A function that takes one more step of a run, starting anew after the last one."""
    scheduler.set_timesteps(STEPS)
    times = list(scheduler.timesteps)
    place = {"i": len(times)}
    scaled = any(
        name in type(scheduler).__name__ for name in ("Euler", "Heun", "KDPM2", "LMS", "EDM")
    ) and hasattr(scheduler, "scale_model_input")

    def restart():
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        for name, empty in (("counter", 0), ("ets", []), ("lower_order_nums", 0)):
            if hasattr(scheduler, name):
                setattr(scheduler, name, type(empty)())
        if hasattr(scheduler, "derivatives"):
            scheduler.derivatives = []
        place["i"] = 0

    def one():
        if place["i"] == len(times):
            restart()
        t = times[place["i"]]
        place["i"] += 1
        if scaled:
            scheduler.scale_model_input(x, t)
        return scheduler.step(output, t, x, return_dict=False)[0]

    return one


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_step(benchmark, measure, report, threads, shape, case):
    """Microseconds of a step, as a share of diffusers' and of a copy of the minimal bytes."""
    _, _, tensors, small, large, stochastic = CASES[case]
    x, output = torch.randn(SHAPES[shape]), torch.randn(SHAPES[shape])
    theirs = original(case)
    functions = {
        "diffast": stepping(DiffastScheduler.from_scheduler(theirs, noise="counter"), x, output),
        "diffusers": stepping(theirs, x, output),
    }
    if stochastic:
        again = DiffastScheduler.from_scheduler(original(case))
        functions["torch noise"] = stepping(again, x, output)
    source = torch.randn(tensors * x.numel() // 2)
    target = torch.empty_like(source)
    functions["copy"] = lambda: target.copy_(source)
    with torch.no_grad():
        timings = measure({name: _run(function) for name, function in functions.items()})
        benchmark.pedantic(_run(functions["diffast"]), rounds=3, iterations=1, warmup_rounds=1)
    took = {name: timing.median for name, timing in timings.items()}
    ours = took["diffast"] / STEPS
    figures = {
        "threads": threads,
        "us": ours * 1e6,
        "diffusers us": took["diffusers"] / STEPS * 1e6,
        "of diffusers": took["diffast"] / took["diffusers"],
        "copy us": took["copy"] / STEPS * 1e6,
        "over floor": (ours - 10e-6) / (took["copy"] / STEPS),
    }
    if stochastic:
        figures["torch noise of diffusers"] = took["torch noise"] / took["diffusers"]
    targets = []
    if threads == 1:
        bound = small if shape == "1x4x64x64" else large
        targets += [("of diffusers", "<=", bound)] if bound else []
        if shape != "1x4x64x64" and large:
            targets.append(("over floor", "<=", 1.3))
    benchmark.extra_info.update(figures)
    report(f"{case}, {shape}", timings, targets, **figures)


def _run(function):
    """A run of 20 calls, so that first steps, middle ones and last ones have their weights."""

    def run():
        for _ in range(STEPS):
            function()

    return run
