"""Drop-in schedulers against the installed diffusers: one step, in turns, same tensors.

What is timed is `step` for each entry of `timesteps`, as pipelines call it, without a network; and
`scale_model_input` and `step` together, where the network's input is scaled. "floor" is torch.copy_
of the bytes that a fused step has to read and write: state, output, entries, result. The package's
noise is counter noise; "torch noise" draws the same numbers as diffusers.
"""

import numpy as np
import pytest
import torch

import diffast as df

diffusers = pytest.importorskip("diffusers")
from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402
from diffast.solvers import dpmpp_2m  # noqa: E402

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


def scales(scheduler):
    """Whether the network's input is not the sample itself."""
    names = ("Euler", "Heun", "KDPM2", "LMS", "EDM")
    return hasattr(scheduler, "scale_model_input") and any(
        name in type(scheduler).__name__ for name in names
    )


def stepping(scheduler, x, output, scaled=False):
    """A function that takes one more step of a run, starting anew after the last one."""
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = True  # no warning where it is not
    times = list(scheduler.timesteps)
    place = {"i": len(times)}

    def restart():
        if isinstance(scheduler, DiffastScheduler):  # its memory is that of its run
            scheduler._start(0, scheduler._options)
            scheduler._step_index = None
            place["i"] = 0
            return
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
    # As in a process in which a network has run: freeing one large block makes the C library keep
    # pages from then on. Otherwise every new tensor of 2 MiB is faulted in, of either side.
    del [torch.empty(7 << 20) for _ in range(2)][:]
    x, output = torch.randn(SHAPES[shape]), torch.randn(SHAPES[shape])
    theirs = original(case)
    functions = {
        "diffast": stepping(DiffastScheduler.from_scheduler(theirs, noise="counter"), x, output),
        "diffusers": stepping(theirs, x, output),
    }
    if scales(theirs):
        again = DiffastScheduler.from_scheduler(theirs, noise="counter")
        functions["diffast scaled"] = stepping(again, x, output, scaled=True)
        functions["diffusers scaled"] = stepping(original(case), x, output, scaled=True)
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
    if "diffast scaled" in took:
        figures["scaled of diffusers"] = took["diffast scaled"] / took["diffusers scaled"]
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


def digit_loop(scheduler, network, x, steps):
    """DPM++ 2M over the embedded digit network, as a pipeline would drive it."""
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    state = x
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.tolist(), strict=False):
        x0 = network(state * (sigma * sigma + 1.0) ** 0.5, sigma)
        state = scheduler.step(x0, t, state, return_dict=False)[0]
    return state


def test_digits(benchmark, measure, report, threads, request):
    """64 digits, 20 steps of 2M end to end; a sampler's share is a run without the network."""
    steps = 2 if request.config.getoption("--benchmark-disable") else STEPS
    unet, labels = df.digits.load_unet().eval(), torch.arange(64) % 10
    still = torch.randn(64, 1, 28, 28)

    def network(x, sigma):
        return unet(x, torch.full((64,), sigma), labels)

    def nothing(x, sigma):
        return still

    options = {"prediction_type": "sample", "use_karras_sigmas": True, **LATENT}
    theirs = diffusers.DPMSolverMultistepScheduler(**options)
    ours = DiffastScheduler.from_scheduler(theirs)
    theirs.set_timesteps(steps)
    schedule = df.schedules.trig()
    plan = dpmpp_2m(schedule, np.arctan(theirs.sigmas.double().numpy()))
    x = torch.randn(64, 1, 28, 28)

    def whole(network):
        def call(x, t):
            sigma = float(torch.tan(t[0]))
            return network(x * (sigma * sigma + 1.0) ** 0.5, sigma)

        return lambda: df.sample(df.Denoiser(call, schedule, predicts="x0"), plan, x=x)

    runs = {
        "diffast": lambda: digit_loop(ours, network, x, steps),
        "diffusers": lambda: digit_loop(theirs, network, x, steps),
        "df.sample": whole(network),
    }
    shares = {
        "diffast": lambda: digit_loop(ours, nothing, x, steps),
        "diffusers": lambda: digit_loop(theirs, nothing, x, steps),
        "df.sample": whole(nothing),
    }
    with torch.inference_mode():
        pictures = [run() if name != "df.sample" else run().x for name, run in runs.items()]
        for other in pictures[1:]:
            torch.testing.assert_close(pictures[0], other, rtol=0, atol=2e-3)
        alone = measure(shares)
        timings = measure(runs, rounds=7)
        benchmark.pedantic(shares["diffast"], rounds=3, iterations=1, warmup_rounds=1)
    took = {name: timing.median for name, timing in timings.items()}
    figures = {
        "threads": threads,
        "us": took["diffast"] * 1e6,
        "diffusers us": took["diffusers"] * 1e6,
        "of diffusers": took["diffast"] / took["diffusers"],
        "df.sample of diffusers": took["df.sample"] / took["diffusers"],
        "sampler's share": alone["diffast"].median / took["diffast"],
        "df.sample's share": alone["df.sample"].median / took["df.sample"],
        "diffusers' share": alone["diffusers"].median / took["diffusers"],
    }
    benchmark.extra_info.update(figures)
    report("dpmpp_2m, 64 digits, 20 steps", timings, [("of diffusers", "<=", 1.0)], **figures)
