"""`fluctuation_test_of_plan`: whether a run of a plan has the steps that the plan's numbers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffast.executors.initial import initial_state
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.thermo.estimate import mean_of
from diffast.thermo.fluctuation.chain import Chain
from diffast.thermo.fluctuation.densities import of_ends, start_density
from diffast.thermo.fluctuation.of_steps import fitted_ratio
from diffast.thermo.fluctuation.paths import Paths, estimates_of
from diffast.thermo.fluctuation.slips import drift_slips, noise_slip
from diffast.thermo.fluctuation.theorem import FluctuationTest, judged


def fluctuation_test_of_plan(
    denoiser: Denoiser,
    plan: Plan,
    log_end: Any,
    shape: Sequence[int] | None = None,
    *,
    x: torch.Tensor | None = None,
    log_start: Any = None,
    noising: str = "schedule",
    seed: int = 0,
) -> FluctuationTest:
    """Returns the fluctuation test of a run of `df.sample`: of the run against the plan's numbers.

    The plan is run, its states are kept, and the density of each path is computed anew from the
    plan's matrices in torch, without the run's lowered weights and kernels. With p the density of
    the run's path and q that of a noising path from its end,

        dS = log p(x_0 .. x_K) - log q(x_0 .. x_{K-1} | x_K) - log p_end(x_K)

    <exp(-dS)> = 1 is exact for any number of steps, any solver with noise and any normalised p_end;
    <dS> is the KL divergence of the run from the noising process that starts at p_end.

    Args:
        denoiser: the network.
        plan: a plan with noise.
        log_end: a density at the plan's last noisy level (alpha, sigma): an object with
            `log_density(x, alpha, sigma)` such as `GaussianMixture`, or a function of the states.
        shape: [B, ...] of the run; None: that of x.
        x: initial states; None: those that `df.sample` makes.
        log_start: log-density of the initial states, as `log_end`, where x has another law than the
            plan's own start.
        noising: "schedule" or "plan", see `log_likelihood`.
        seed: of the run.

    Raises:
        ValueError: a plan whose states have no density; what `df.sample` raises.
    """
    who = "fluctuation_test_of_plan"
    chain = Chain(who, plan)
    if plan.evaluations[0]:
        raise ValueError(
            f"{who}: {plan.name} adds noise before its first call, and a run does not show the "
            "state between"
        )
    made = Paths(who, chain, noising)
    states: dict[int, torch.Tensor] = {}
    last = chain.noisy[-1]

    def keep(progress: Any) -> bool:
        if progress.stage in chain.noisy:
            states[progress.stage] = progress.x.clone()
        return progress.stage >= last

    start = _start(denoiser, plan, shape, x, seed)
    sample(denoiser, plan, x=start, seed=seed, callback=keep)
    return judged_run(who, chain, made, denoiser, start, states, log_end, log_start)


def judged_run(
    who: str,
    chain: Chain,
    made: Paths,
    denoiser: Denoiser,
    start: torch.Tensor,
    states: dict[int, torch.Tensor],
    log_end: Any,
    log_start: Any = None,
) -> FluctuationTest:
    """Returns the test of the states {evaluation: [B, ...]} of a run."""
    end = states.pop(chain.noisy[-1])
    first = start_density(who, log_start, *chain.start)
    noises: list[torch.Tensor] = []
    along = torch.zeros(len(end), dtype=torch.float64, device=end.device)
    square = along.clone()

    def seen(z: torch.Tensor, mean: torch.Tensor) -> None:
        nonlocal along, square
        noises.append(z.square().flatten(1).mean(1))
        along = along + (mean * (mean + z)).flatten(1).sum(1)
        square = square + mean.square().flatten(1).sum(1)

    with torch.no_grad():
        estimate = estimates_of(who, chain, denoiser)
        run = made.run_density(end, start, states, estimate, first, seen)
        back = made.noising_density(end, start, states)
    values = run - back - of_ends(who, log_end, end, "end", *made.level)
    noise, factor = mean_of(torch.stack(noises).mean(0)), fitted_ratio(along, square)
    wrong = drift_slips(["mean"], np.array([factor.value]), np.array([factor.error]), True)
    wrong = [slip.replace("the drift's part 'mean'", "the mean of a step") for slip in wrong]
    slip = None if wrong else noise_slip(noise, exact=True)
    slips = [*wrong, *([slip] if slip else [])]
    return judged(values.cpu(), slips, noise, {"mean": factor}, "plan", True)


def _start(denoiser, plan, shape, x, seed) -> torch.Tensor:
    """Returns the initial states of the run, at the first evaluation."""
    if (shape is None) == (x is None):
        raise ValueError(
            "fluctuation_test_of_plan: exactly one of shape and x is needed, for the states of "
            "the run"
        )
    if x is not None:
        return x
    return initial_state(denoiser, plan, shape, seed=seed)
