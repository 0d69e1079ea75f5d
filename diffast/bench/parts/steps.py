"""The part "steps": drop-in steps against diffusers' and k-diffusion's own, on the same tensors.

A network that costs nothing is in both loops, so that the time is the sampler's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from diffast.bench import peers
from diffast.bench.ratios import slower, spread_of, timed
from diffast.bench.settings import Settings
from diffast.bench.table import Section

COLUMNS = ("tool", "sampler", "state", "threads", "us", "their us", "times as fast", "of copy")
COLUMNS += ("spread",)
ABOUT = (
    "Microseconds of one step, mean over a run of 20, without a network. diffusers: `step`, as "
    "pipelines call it; noise is the package's counter noise here and the generator's there. "
    "k-diffusion: a whole sampler call, with its default noise. Share of copy: the time of "
    "torch.copy_ of the bytes that a fused step has to read and write, over the step's time."
)
STEPS = 20
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = "FlowMatchEulerDiscrete"

# sampler: class, options, tensors that a fused step reads and writes.
SCHEDULERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "DDIM": ("DDIM", {"clip_sample": False}, 3),
    "Euler": ("EulerDiscrete", {}, 3),
    "DPM++ 2M": ("DPMSolverMultistep", {}, 5),
    "UniPC-2": ("UniPCMultistep", {}, 8),
    "FlowMatchEuler": (FLOW, {}, 3),
    "DPM++ 2M SDE": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, 5),
    "DPM++ 3M": ("DPMSolverMultistep", {"solver_order": 3}, 6),
    "DEIS-2": ("DEISMultistep", {}, 5),
    "UniPC-3": ("UniPCMultistep", {"solver_order": 3}, 9),
    "SA-Solver": ("SASolver", {}, 8),
    "Heun": ("HeunDiscrete", {}, 5),
    "LMS": ("LMSDiscrete", {}, 7),
    "PNDM": ("PNDM", {"skip_prk_steps": True}, 7),
    "Euler ancestral": ("EulerAncestralDiscrete", {}, 3),
    "LCM": ("LCM", {}, 3),
}
QUICK = 6  # the first so many are in every report

# sampler: function, tensors that a fused step reads and writes.
SAMPLERS = {
    "dpmpp_2m": ("sample_dpmpp_2m", 5),
    "euler": ("sample_euler", 3),
    "dpmpp_2m_sde": ("sample_dpmpp_2m_sde", 5),
    "heun": ("sample_heun", 4),
    "dpmpp_3m_sde": ("sample_dpmpp_3m_sde", 6),
    "lms": ("sample_lms", 7),
}
QUICK_SAMPLERS = 3


def _shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    if settings.tiny:
        return {"2x3x8x8": (2, 3, 8, 8)}
    shapes = {"1x4x64x64": (1, 4, 64, 64), "64x3x64x64": (64, 3, 64, 64)}
    return shapes if settings.quick else shapes | {"8x4x128x128": (8, 4, 128, 128)}


def run(settings: Settings) -> list[Section]:
    """Returns one section: a row for each sampler, state and number of threads."""
    section = Section("steps", "Drop-in steps", ABOUT, COLUMNS, plot={"kind": "steps"})
    refusal = settings.refusal("combine", "normal", "brownian")
    if refusal:
        section.rows.append({"tool": "all", "refused": refusal})
        return [section]
    # As in a process in which a network has run: freeing one large block makes the C library keep
    # pages from then on. Otherwise every new tensor of 2 MiB is faulted in, of either side.
    del [torch.empty(7 << 20) for _ in range(2)][:]
    few = 1 if settings.tiny else None
    for name, make, cases, quick in (
        ("diffusers", _diffusers_pair, SCHEDULERS, QUICK),
        ("k_diffusion", _k_diffusion_pair, SAMPLERS, QUICK_SAMPLERS),
    ):
        line = peers.missing(name)
        if line:
            section.notes.append(line)
            continue
        wanted = list(cases)[: quick if settings.quick else None][:few]
        for threads in settings.threads:
            with settings.using(threads), torch.no_grad(), warnings.catch_warnings():
                # torchsde warns that rounding puts k-diffusion's ends outside of its tree.
                warnings.simplefilter("ignore", UserWarning)
                for state, shape in _shapes(settings).items():
                    for sampler in wanted:
                        if settings.quick and sampler == "dpmpp_2m_sde" and shape[0] > 1:
                            continue  # torchsde takes seconds a run
                        pair, tensors = make(sampler, shape, settings.device)
                        start = {"tool": peers.DISTRIBUTIONS.get(name, name), "sampler": sampler}
                        start |= {"state": state, "threads": threads} | settings.marks()
                        section.rows.append(start | _figures(pair, tensors, shape, settings))
    return [section]


def _figures(pair: dict, tensors: int, shape: tuple[int, ...], settings: Settings) -> dict:
    source = torch.randn(tensors * torch.Size(shape).numel() // 2, device=settings.device)
    target = torch.empty_like(source)
    functions = {**pair, "copy": lambda: target.copy_(source)}
    timings = timed(functions, settings.budget, settings.device, 4 if settings.quick else 7)
    ours, theirs = timings["diffast"], timings["theirs"]
    return {
        "us": ours.median / STEPS * 1e6,
        "their us": theirs.median / STEPS * 1e6,
        "times as fast": theirs.median / ours.median,
        "of copy": timings["copy"].median * STEPS / ours.median,
        "spread": spread_of(ours, theirs),
        "rounds": ours.rounds,
        "loss": slower(ours, theirs),
    }


def original(sampler: str) -> Any:
    """Returns diffusers' scheduler of that name."""
    kind, options, _ = SCHEDULERS[sampler]
    latent = {} if kind == FLOW else LATENT
    return getattr(peers.diffusers(), f"{kind}Scheduler")(**latent, **options)


def _diffusers_pair(sampler: str, shape: tuple[int, ...], device: torch.device):
    from diffast.integrations.diffusers import DiffastScheduler

    x, output = (torch.randn(shape, device=device) for _ in range(2))
    theirs = original(sampler)
    ours = DiffastScheduler.from_scheduler(theirs, noise="counter")
    pair = {"diffast": _stepping(ours, x, output), "theirs": _stepping(theirs, x, output)}
    return pair, SCHEDULERS[sampler][2]


def _stepping(scheduler: Any, x: torch.Tensor, output: torch.Tensor) -> Callable[[], None]:
    """Returns a function that makes the 20 steps of a run."""
    scheduler.set_timesteps(STEPS, device=x.device)
    scheduler.is_scale_input_called = True  # no warning where it is not
    times = list(scheduler.timesteps)[:STEPS]

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

    def steps():
        restart()
        for t in times:
            scheduler.step(output, t, x, return_dict=False)

    return steps


def _k_diffusion_pair(sampler: str, shape: tuple[int, ...], device: torch.device):
    from diffast.integrations import k_diffusion

    name, tensors = SAMPLERS[sampler]
    x, output = (torch.randn(shape, device=device) for _ in range(2))
    sigmas = k_diffusion.get_sigmas_karras(STEPS, 0.03, 14.6, device=str(device))

    def model(x, sigma):
        return output

    def whole(module):
        function = getattr(module, name)
        return lambda: function(model, x * sigmas[0], sigmas, disable=True)

    pair = {"diffast": whole(k_diffusion), "theirs": whole(peers.k_diffusion_sampling())}
    return pair, tensors
