"""The estimates of particles' runs, and how much likelier an unguided step is than a guided one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors import context
from diffast.executors.guided import Guides
from diffast.lowering.program import lower
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.plans.registers import Z1, D, X


def check_particle_plan(who: str, plan: Plan, denoiser: Denoiser) -> None:
    """Raises ValueError for plans and denoisers whose particles cannot be weighed."""
    guided, rule = bool(denoiser.guides), denoiser.rule
    if plan.initial is not None and plan.initial.entries:
        raise ValueError(
            f"{who}: {plan.name} starts with {plan.initial.entries} entries of a Gaussian law, but "
            "particles begin with none: start the plan late without a level"
        )
    if rule is not None and (rule.momentum_factor is not None or rule.zeroed):
        raise ValueError(
            f"{who}: guidance is {rule.name}, which depends on the number of the call or on calls "
            "before, but particles take every estimate by itself: leave out momentum and zero steps"
        )
    if not plan.stochastic:
        raise ValueError(
            f"{who}: plan {plan.name} draws no fresh noise, so that copies of a particle would "
            "stay equal: take df.solvers.ddim(schedule, grid, eta=1.0) or another stochastic solver"
        )
    if plan.gradients is not None or plan.called.shape[1] > 1:
        what = "weighs gradients itself" if plan.gradients is not None else "has several inputs"
        raise ValueError(f"{who}: plan {plan.name} {what}, but particles' plans may not")
    if plan.guidance is not None:
        raise ValueError(
            f"{who}: plan {plan.name} has guidance scales of its own, but particles take the "
            "denoiser's"
        )
    used = {column for column in plan.columns if plan.weights(X, column).any()}
    simple = set(plan.rows) == {X} and used <= {X, D, Z1} and len(plan.calls) == plan.stages
    if guided and not simple:
        raise ValueError(
            f"{who}: the denoiser has guidance terms, and plan {plan.name} remembers more than the "
            "state or calls the network several times a step: the density of a guided step is "
            "known for one-step plans with one normal (ddim with eta, euler_ancestral, ddpm)"
        )


class Proposal:
    """What the particles of a run do at a stage.

    Args:
        denoiser: with conditions of one row a particle.
        plan: that `check_particle_plan` passes.
        place: of all particles, [N K] rows.
        owner: [N K] int64, the sample of each row.
    """

    def __init__(self, denoiser: Denoiser, plan: Plan, place: context.Place, owner: torch.Tensor):
        """Makes the weights of the guidance terms."""
        self.denoiser, self.plan, self.place, self.owner = denoiser, plan, place, owner
        self.plain = replace(denoiser, guides=())  # its x0 is the unguided estimate
        self.times = plan.call_times.tolist()
        self.guides = None
        if denoiser.guides:
            # A step without fresh noise has no density: there the terms are left out.
            self.noise, self.keep, self.new = (plan.weights(X, c) for c in (Z1, X, D))
            program = lower(plan, denoiser)
            self.guides = _Guides(denoiser, program.stages, place)
            self.guides.owner = owner
            self.scales = denoiser.gradient_weights(np.array(self.times))
            self.calls = {b: self._calls(b) for b in program.branches}

    def _calls(self, branches: str) -> list[tuple[Any, str, dict[str, Any]]]:
        """Returns (network, branches, conditions) of the calls for these branches."""
        groups = self.denoiser.groups(branches)
        if len(groups) == 1:
            groups = [(groups[0][0], branches)]
        rows, device = len(self.owner), self.place.device
        return [(net, b, self.denoiser.arguments(rows, device, b)) for net, b in groups]

    def estimate(self, i: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (the unguided x0 estimate, what the guidance terms add to it or None)."""
        if self.guides is None or not self.guides.stages[i].gradients or not self.noise[i]:
            return self._clamped(self.plain.x0(x, self.times[i]).contiguous()), None
        pulled = None
        if self.guides.through_network(i):
            branches = self.guides.stages[i].branches
            layout = torch.contiguous_format
            pulled = self.guides.pulled(i, x, self.calls[branches], branches, layout)
            x0 = self._clamped(pulled.x0.contiguous())
        else:
            x0 = self._clamped(self.plain.x0(x, self.times[i]).contiguous())
        made = self.guides.gradients(i, x, x0, pulled)
        weights = [float(self.scales[int(name[1:]) - 1, i]) for name in made]
        added = torch.empty_like(x0)
        ops.combine_out([*made.values()], weights, [added])
        return x0, added

    def _clamped(self, x0: torch.Tensor) -> torch.Tensor:
        return x0.clamp(*self.place.limits) if self.place.limits else x0

    def log_ratio(
        self,
        i: int,
        before: torch.Tensor,
        x0: torch.Tensor,
        added: torch.Tensor,
        after: torch.Tensor,
    ) -> torch.Tensor:
        """Returns log p(after | before) / q(after | before), [N K] float64.

        p is the step with the estimate x0, q the one with x0 + added, both normal with the plan's
        fresh noise: (|z|^2 - |z + shift|^2) / 2 for the drawn z.
        """
        noise, keep, new = (float(w[i]) for w in (self.noise, self.keep, self.new))
        shift = (new / noise) * added.double()
        z = (after.double() - keep * before.double() - new * (x0 + added).double()) / noise
        found = -(shift * (z + 0.5 * shift))
        return found.reshape(len(found), math.prod(found.shape[1:])).sum(1)


class _Guides(Guides):
    """Guidance terms of particles, whose conditions are those of their samples."""

    owner: torch.Tensor | None = None

    def point(self, i: int, x: torch.Tensor):
        """Returns where the gradients of stage i are taken."""
        return super().point(i, x)._replace(owner=self.owner)


def for_particles(denoiser: Denoiser, samples: int, particles: int) -> Denoiser:
    """Returns the denoiser with conditions of one row a particle, in place of one a sample.

    Raises:
        ValueError: for a guidance rule whose branches have conditions of one row a sample.
    """
    _check_rule(denoiser.rule, samples, particles)
    if particles == 1:
        return denoiser

    def grown(given: Any) -> Any:
        if given is None:
            return None
        return {
            name: v.repeat_interleave(particles, dim=0)
            if context.has_rows(v) and v.shape[0] == samples != 1
            else v
            for name, v in given.items()
        }

    return replace(
        denoiser,
        conditions=grown(denoiser.conditions),
        unconditional=grown(denoiser.unconditional),
    )


def _check_rule(rule: Any, samples: int, particles: int) -> None:
    """Refuses conditions of branches that are not those of the particles."""
    if rule is None:
        return
    for branch in rule.branches.values():
        for name, value in (branch.conditions or {}).items():
            if particles > 1 and context.has_rows(value) and value.shape[0] == samples != 1:
                raise ValueError(
                    f"sample_particles: condition {name!r} of a branch of {rule.name} has "
                    f"{samples} rows, one a sample, but there are {particles} particles a sample"
                )
