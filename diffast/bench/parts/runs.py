"""The part "runs": seconds and network calls of whole runs to a given error.

Every method is run with its settings at rising budgets until its error is small enough. Of each
family, the settings that need the fewest calls are taken, and the families' best are then timed in
turns.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from diffast.bench import candidates, peer_candidates, peers, problems, sde_candidates
from diffast.bench.candidates import Candidate
from diffast.bench.curves import COLUMNS, Curve, curve_of, rows_of
from diffast.bench.problems import Problem
from diffast.bench.settings import Settings
from diffast.bench.table import Section

ODE = (
    "The probability-flow ODE from sigma {high:.2f} to 0, {count} samples, from the same initial "
    "states for all. {network} Error: the rms distance to the end of the exact flow (made in a "
    "fine grid) over the standard deviation of the samples. "
)
SDE = (
    "The reverse SDE from sigma {high:.2f} to 0, {count} samples of the mixture, along one "
    "Brownian path a sample. Error: the rms distance of a sample to the end of the tool's own run "
    "in {fine} steps on the same path (median over the samples, since a few end in another "
    "component), over the standard deviation of the samples. k-diffusion's paths are torchsde's. "
)
HOW = (
    "Of each family, every setting is tried at rising budgets, up to {most} calls one after "
    "another; the one that reaches the error with the fewest network calls a sample is listed "
    "(with equally many: the least error). Budget: steps in terms of calls, or a tolerance. "
    "Rounds: network calls one after another, where they are not the evaluations. Plans and lists "
    "of sigmas are made before the time is taken. Times of ours: milliseconds over those of {mine} "
    "at the same error. A row is red if the tool needs fewer calls or less time than they do; "
    "adaptive tools are held against the package's adaptive runs, too."
)
NETWORKS = {
    "mixture": "The denoiser is the exact one of 8 Gaussians in 16 dimensions and costs next to "
    "nothing, so that the milliseconds are the samplers' own.",
    "digits": "The denoiser is the embedded digit network, which takes nearly all of the time.",
}
TARGETS = (0.1, 0.03, 0.01)
FINE = 400  # steps of the runs that SDE runs are compared with
NEEDED = ("combine", "combine_error", "accept", "evaluate", "sweep", "gram", "normal", "brownian")


def run(settings: Settings) -> list[Section]:
    """Returns a section for each problem."""
    refusal = settings.refusal(*NEEDED)
    if refusal:
        row = {"family": "all", "refused": refusal}
        return [Section("runs", "Whole runs", "Calls to a given error.", COLUMNS, [row])]
    with settings.using(settings.threads[0]), torch.no_grad():
        sections = [_flow(name, settings) for name in ("mixture", "digits")[: 2 - settings.tiny]]
        return [*sections, _stochastic(settings)]


def _problem(name: str, settings: Settings) -> Problem:
    sizes: dict[str, int] = {}
    if settings.tiny:
        sizes = {"count": 2, "steps": 12}
    elif settings.quick and name == "digits":
        sizes = {"steps": 24}
    return getattr(problems, name)(settings.device, **sizes)


def _flow(name: str, settings: Settings) -> Section:
    short = settings.quick and name == "digits"
    targets, most = (TARGETS[:2], 24) if short else (TARGETS, 64)
    if settings.tiny:
        targets, most = TARGETS[:1], 32
    problem = _problem(name, settings)
    theirs, lines = peer_candidates.theirs(settings.quick)
    tried = [*candidates.ours(settings.quick), *theirs]
    if settings.tiny:  # one of each family
        tried = list({candidate.family: candidate for candidate in tried}.values())
    curves = [
        curve_of(candidate, problem, lambda _, x: problem.error(x), min(targets), most)
        for candidate in tried
    ]
    about = ODE + HOW
    about = about.format(
        high=problems.SIGMA_MAX,
        count=len(problem.start),
        network=NETWORKS[name],
        most=most,
        mine="the package's fixed steps",
    )
    title = f"Whole runs, ODE: {name}"
    mine = candidates.FIXED
    return _section(f"runs: {name}", title, about, curves, targets, problem, mine, lines, settings)


def _section(
    name: str,
    title: str,
    about: str,
    curves: list[Curve],
    targets: tuple[float, ...],
    problem: Problem,
    mine: str,
    lines: list[str],
    settings: Settings,
) -> Section:
    rows = [row for t in targets for row in rows_of(t, curves, problem, mine, settings)]
    failed = [f"{c.candidate.family}, {c.candidate.name}: {c.failure}" for c in curves if c.failure]
    plot = {"kind": "runs", "curves": [curve.as_json() for curve in curves]}
    return Section(name, title, about, COLUMNS, rows, [*lines, *failed], plot)


def _stochastic(settings: Settings) -> Section:
    problem, most = _problem("mixture", settings), 128
    fine_steps = 40 if settings.tiny else FINE // 2 if settings.quick else FINE
    groups: list[list[Candidate]] = [list(sde_candidates.ours(settings.quick))]
    lines = []
    for name, make in (
        ("k_diffusion", sde_candidates.of_k_diffusion),
        ("torchsde", sde_candidates.of_torchsde),
    ):
        line = peers.missing(name)
        lines += [line] if line else []
        groups += [] if line else [list(make(settings.quick))]
    # The first candidate of a family gives its fine run: all of them converge to one sample.
    fine = {group[0].family: _fine(group, problem, fine_steps) for group in groups}
    targets = TARGETS[: 1 if settings.tiny else 2 if settings.quick else None]

    def error_of(family: str, x: torch.Tensor) -> float:
        return typical_error(x, fine[family])

    curves = [
        curve_of(candidate, problem, error_of, min(targets), 32 if settings.tiny else most)
        for group in groups
        for candidate in group[: 1 if settings.tiny else None]
    ]
    about = (SDE + HOW).format(
        high=problems.SIGMA_MAX,
        count=len(problem.start),
        fine=fine_steps,
        most=most,
        mine="the package",
    )
    title = "Whole runs, SDE on one path: mixture"
    mine = sde_candidates.OURS
    return _section("runs: sde", title, about, curves, targets, problem, mine, lines, settings)


def _fine(group: Iterable[Candidate], problem: Problem, steps: int) -> torch.Tensor:
    first = next(iter(group))
    return first.run(problem, steps)[0].double()


def typical_error(x: torch.Tensor, fine: torch.Tensor) -> float:
    """Returns the median over samples of the rms distance, over fine's standard deviation.

    Infinite if a sample is not finite.
    """
    distances = (x.double() - fine).flatten(1).square().mean(dim=1).sqrt()  # [B]
    if not bool(distances.isfinite().all()):
        return float("inf")
    return float(distances.median() / fine.std())
