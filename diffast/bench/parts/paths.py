"""The part "paths": increments of a Brownian path against torchsde.BrownianTree.

A run is that of k-diffusion's SDE samplers: 20 Karras steps from sigma 14.6 to 0.03, a new path a
run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffast import ops
from diffast.bench import peers
from diffast.bench.op_calls import DEPTH
from diffast.bench.ratios import slower, spread_of, timed
from diffast.bench.settings import Settings
from diffast.bench.table import Section

COLUMNS = ("state", "threads", "ms", "torchsde ms", "times as fast", "of 12 normals", "spread")
ABOUT = (
    "Milliseconds of the noise of one step: `BrownianTreeNoiseSampler` on `brownian` here, on "
    "torchsde.BrownianTree there. Both give the same path however many steps are taken. Of 12 "
    "normals: against the 12 plain normals an element that an increment at depth 11 is made of."
)
STEPS = 20


def _tree_sampler(x, sigma_min, sigma_max, seed):
    """Returns k-diffusion's BrownianTreeNoiseSampler with one seed, on torchsde."""
    # A little wider: torchsde warns if rounding puts a level outside.
    low, high = 0.999 * float(sigma_min), 1.001 * float(sigma_max)
    tree = peers.torchsde().BrownianTree(low, torch.zeros_like(x), high, entropy=seed)
    return lambda sigma, sigma_next: -tree(sigma_next, sigma) / (sigma - sigma_next).abs().sqrt()


def _run_of(sampler: Callable, x: torch.Tensor) -> Callable[[], None]:
    from diffast.integrations import k_diffusion

    sigmas = k_diffusion.get_sigmas_karras(STEPS, 0.03, 14.6)[:-1]

    def run():
        noise = sampler(x, sigmas[-1], sigmas[0], seed=1)
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            noise(sigma, sigma_next)

    return run


def run(settings: Settings) -> list[Section]:
    """Returns one section: a row for each state and number of threads."""
    from diffast.integrations import k_diffusion

    section = Section("paths", "Brownian paths", ABOUT, COLUMNS)
    refusal = settings.refusal("brownian", "normal")
    if refusal:
        section.rows.append({"state": "all", "refused": refusal})
        return [section]
    line = peers.missing("torchsde")
    if line:
        section.notes.append(line)
    shapes = {"1x4x64x64": (1, 4, 64, 64), "8x4x128x128": (8, 4, 128, 128)}
    if settings.quick:  # torchsde takes seconds a run at the large one
        shapes.pop("8x4x128x128")
    if settings.tiny:
        shapes = {"2x3x8x8": (2, 3, 8, 8)}
    for threads in settings.threads:
        for state, shape in shapes.items():
            x = torch.zeros(shape, device=settings.device)
            out, ids = torch.empty_like(x), torch.arange(shape[0], device=settings.device)

            def normals(ids=ids, out=out):
                for stage in range(STEPS - 1):
                    ops.normal_out(ids, 7, stage, 1.0, out)

            functions = {"path": _run_of(k_diffusion.BrownianTreeNoiseSampler, x)}
            functions["normals"] = normals
            if not line:
                functions["torchsde"] = _run_of(_tree_sampler, x)
            with settings.using(threads), torch.no_grad():
                least = 4 if settings.quick else 7
                timings = timed(functions, settings.budget, settings.device, least)
            ours = timings["path"]
            row = {"state": state, "threads": threads, "ms": ours.median / (STEPS - 1) * 1e3}
            row["of 12 normals"] = ours.median / timings["normals"].median / (DEPTH + 1)
            row |= {"spread": spread_of(*timings.values()), "rounds": ours.rounds}
            if not line:
                theirs = timings["torchsde"]
                row["torchsde ms"] = theirs.median / (STEPS - 1) * 1e3
                row["times as fast"] = theirs.median / ours.median
                row["loss"] = slower(ours, theirs)
            section.rows.append(row | settings.marks())
    return [section]
