"""Paths that lead from data to noise, drawn for a chain, and both densities of a path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.plans.registers import levels_of
from diffast.thermo.fluctuation.chain import Chain, Estimate
from diffast.thermo.fluctuation.densities import kernels, log_normal

NOISINGS = ("auto", "plan", "schedule")


class Paths:
    """The states of a chain that are drawn, the noising process that draws them, and densities.

    A path is the initial state and the state after each noisy evaluation. The last of them, or the
    sample with its observation noise, is the data x; the others are drawn given x.

        noising = "schedule"    x_k given x_{k+1} by the schedule's noising step
        noising = "plan"        x_{k+1} given x_0 .. x_k by the plan's own step, with x / alpha in
                                place of every x0 estimate

    Args:
        who: the public function.
        chain: of the plan.
        noising: "auto" is "schedule" where every step of the plan draws at least the noise of the
            noising process's own posterior (eta = 1), otherwise "plan".
        observation: deviation of noise added to the sample; None: none.

    Raises:
        ValueError: for another noising; noise levels that rise, with "schedule"; observation noise
            where the last step is noisy already.
    """

    def __init__(
        self,
        who: str,
        chain: Chain,
        noising: str = "auto",
        observation: float | None = None,
    ):
        """Finds the levels of the states."""
        if noising not in NOISINGS:
            raise ValueError(f"{who}: noising = {noising!r}, but it must be one of {NOISINGS}")
        plan, links = chain.plan, chain.links
        last = chain.noisy[-1] == len(links) - 1
        if observation is not None and not 0.0 < observation < float("inf"):
            raise ValueError(
                f"{who}: observation_noise = {observation:g}, but it must be positive and finite"
            )
        if observation is not None and last:
            raise ValueError(
                f"{who}: observation_noise = {observation:g}, but the last step of {plan.name} "
                "draws noise, so its sample has a density already"
            )
        self.who, self.chain, self.observation = who, chain, observation
        # Evaluations whose states are drawn; the data is the state after them.
        self.drawn = chain.noisy if observation is not None else chain.noisy[:-1]
        at = levels_of(plan.schedule, plan.end).tolist() if observation is not None else None
        self.level = tuple(at) if at else links[chain.noisy[-1]].level
        if self.level[0] == 0.0:
            raise ValueError(f"{who}: alpha = 0 at the end of {plan.name}, so x tells no data")
        levels = [chain.start, *(links[i].level for i in self.drawn), self.level]
        if noising == "auto":
            noising = "schedule" if _enough(levels, self._deviations()) else "plan"
        self.noising = noising
        self.steps: list[tuple[float, float]] = []
        if noising == "schedule":
            names = ["the start", *(f"evaluation {i}" for i in self.drawn), "the end"]
            self.steps = kernels(who, levels, names, 'use noising="plan"')

    def _deviations(self) -> list[float]:
        """Returns the deviation of each step between two states of a path."""
        own = [self.chain.links[i].deviation for i in self.chain.noisy]
        return own if self.observation is None else [*own, self.observation]

    def draw(
        self, x: torch.Tensor, seed: int, ids: torch.Tensor
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Returns (initial states, {evaluation: states after it}) drawn given data x [B, ...]."""

        def normal(stage: int) -> torch.Tensor:
            made = ops.normal(x.shape, seed=seed, stage=stage, ids=ids, dtype=x.dtype)
            return made.contiguous()

        states: dict[int, torch.Tensor] = {}
        if self.noising == "schedule":
            state = x
            for k in range(len(self.steps) - 1, -1, -1):
                factor, deviation = self.steps[k]
                stage = self.drawn[k - 1] if k else ops.INITIAL_NOISE
                (state,) = ops.combine([state, normal(stage)], [factor, deviation])
                if k:
                    states[self.drawn[k - 1]] = state
            return state, states
        alpha, sigma = self.chain.start
        data = x / self.level[0]
        (start,) = ops.combine([data, normal(ops.INITIAL_NOISE)], [alpha, sigma])

        def choose(i: int, mean: torch.Tensor, deviation: float) -> torch.Tensor:
            (states[i],) = ops.combine([mean, normal(i)], [1.0, deviation])
            return states[i]

        count = self.drawn[-1] + 1 if self.drawn else 0
        self.chain.walk(start, lambda i, state: data, choose, count)
        return start, states

    def noising_density(
        self, x: torch.Tensor, start: torch.Tensor, states: dict[int, torch.Tensor]
    ) -> torch.Tensor:
        """Returns log q(path | x), [B] float64."""
        if self.noising == "schedule":
            along = [start, *(states[i] for i in self.drawn), x]
            total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            for k, (factor, deviation) in enumerate(self.steps):
                total += log_normal(along[k], factor * along[k + 1], deviation)
            return total
        data = x / self.level[0]
        alpha, sigma = self.chain.start
        total = log_normal(start, alpha * data, sigma)
        return total + self._walked(x, start, states, lambda i, state: data, False)

    def run_density(
        self,
        x: torch.Tensor,
        start: torch.Tensor,
        states: dict[int, torch.Tensor],
        estimate: Estimate,
        log_start: Callable[[torch.Tensor], torch.Tensor] | None = None,
        seen: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Returns log p(path, x) of a run of the plan, [B] float64.

        Args:
            x: data [B, ...].
            start: initial states.
            states: those after the noisy evaluations.
            estimate: the network's x0 estimate.
            log_start: log-density of the initial state; None: the plan's own.
            seen: called at each noisy evaluation with (z, mean / deviation).
        """
        first = self.chain.log_start(start) if log_start is None else log_start(start)
        return first + self._walked(x, start, states, estimate, True, seen)

    def _walked(self, x, start, states, estimate, to_data, seen=None) -> torch.Tensor:
        """Returns the sum of log-densities of the steps; `to_data`: with that of x."""
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        last = self.chain.noisy[-1]

        def choose(i: int, mean: torch.Tensor, deviation: float) -> torch.Tensor:
            nonlocal total
            state = states.get(i, x)
            total = total + log_normal(state, mean, deviation)
            if seen is not None:
                seen((state - mean).double() / deviation, mean.double() / deviation)
            return state

        drawn = self.drawn[-1] + 1 if self.drawn else 0
        count = drawn if not to_data else None if self.observation is not None else last + 1
        end = self.chain.walk(start, estimate, choose, count)
        if self.observation is not None and to_data:
            total = total + log_normal(x, end, self.observation)
        return total


def _enough(levels: list[tuple[float, float]], deviations: list[float]) -> bool:
    """Returns whether noise falls along the levels and no step has less than the posterior's.

    The posterior of the noising process between (alpha_s, sigma_s) and (alpha_t, sigma_t) has the
    variance sigma_t^2 (1 - r^2), r = alpha_s sigma_t / (alpha_t sigma_s).
    """
    for (alpha, sigma), (to, low), deviation in zip(
        levels[:-1], levels[1:], deviations, strict=True
    ):
        ratio = alpha * low / (to * sigma) if to * sigma else np.inf
        if not ratio < 1.0 or deviation < (1.0 - 1e-6) * low * np.sqrt(1.0 - ratio**2):
            return False
    return True


def estimates_of(who: str, chain: Chain, denoiser: Any) -> Estimate:
    """Returns the network's x0 estimates at the evaluations of a chain.

    Raises:
        ValueError: where an estimate is not finite; for guidance that remembers earlier calls.
    """
    rule = denoiser.rule
    if rule is not None and not rule.plain:
        raise ValueError(
            f"{who}: guidance is a rule that reads the outputs or remembers earlier calls, but the "
            "means of a path are those of one call at a time: use a scale or a linear rule"
        )

    def estimate(i: int, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            made = denoiser.x0(x, chain.links[i].time).to(x.dtype)
        if not bool(made.isfinite().all()):
            bad = np.flatnonzero((~made.isfinite()).flatten(1).any(1).cpu().numpy())
            raise ValueError(
                f"{who}: the x0 estimate at t = {chain.links[i].time:.6g} is not finite for "
                f"{len(bad)} of {len(x)} states"
            )
        return made

    return estimate
