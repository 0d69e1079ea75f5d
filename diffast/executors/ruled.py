"""Guidance rules where samples stand at times of their own: the rule as part of the network.

A plan's weights hold a rule at one time for all samples. An adaptive or a parallel run has other
times in every row, so the rule is applied to the network's outputs, and the run sees one output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast.executors.context import check_apart
from diffast.executors.fused_rule import FusedRule
from diffast.guidance.rule import COND, Rule, RuleAt, branch_names, joined_names
from diffast.lowering.program import rule_name
from diffast.model.denoiser import Denoiser
from diffast.model.guidance import arguments_of

# Branches in the order of a call, and what stands between a branch and a condition's name.
_BETWEEN = "."


def ruled(who: str, denoiser: Denoiser) -> Denoiser:
    """Returns a denoiser whose network returns the guided output; itself where there is no rule.

    Raises:
        ValueError: a rule that depends on the time, on earlier calls, or on x0 estimates; one that
            reduces, beside a guidance term that is taken through the network.
    """
    rule = denoiser.rule
    if rule is None:
        return denoiser
    _check(who, denoiser, rule)
    found = denoiser.rules_at(np.array([float(denoiser.schedule.t_start)]))
    assert found is not None  # there is a rule
    at = found[0]
    names = tuple(name for name in branch_names("cond+uncond+extra") if name in at.used)
    given = {name: denoiser.branch(name)[1] for name in names or (COND,)}
    conditions = {
        f"{branch}{_BETWEEN}{name}": value
        for branch, values in given.items()
        for name, value in values.items()
    }
    network = RuledNetwork(denoiser, at, tuple(given))
    return replace(
        denoiser, network=network, conditions=conditions, unconditional=None, guidance=1.0
    )


def _check(who: str, denoiser: Denoiser, rule: Rule) -> None:
    why = None
    if callable(rule.scale) or rule.window is not None:
        why = "depends on the time, and every row has its own"
    elif rule.zeroed or rule.momentum_factor:
        why = "depends on the calls before, which are not the same in every row"
    elif rule.threshold is not None or (rule.space != "output" and not rule.linear):
        why = "needs x0 estimates, which every row has at a noise level of its own"
    elif not rule.plain and any(term.through == "network" for term in denoiser.guides):
        why = "has no derivative, and a guidance term is taken through the network"
    if why is not None:
        raise ValueError(f"{who}: guidance is {rule_name(rule)}, which {why}: use df.sample")


class RuledNetwork(torch.nn.Module):
    """A network that is called on all branches of a rule and returns the guided output.

    Args:
        denoiser: of the network, with the rule.
        at: the rule, the same for all rows.
        names: of the branches.
    """

    def __init__(self, denoiser: Denoiser, at: RuleAt, names: tuple[str, ...]):
        """Keeps what is called."""
        super().__init__()
        self.network, self.denoiser, self.at, self.names = denoiser.network, denoiser, at, names
        self.fused = FusedRule()
        self.one_time = getattr(denoiser.network, "one_time", False)
        self.train(getattr(denoiser.network, "training", False))

    @property
    def branches(self) -> int:
        """Returns on how many branches a row is called."""
        return len(self.names)

    def forward(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> torch.Tensor:
        """Returns the guided output [B, ...]."""
        own: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        for key, value in conditions.items():
            branch, _, name = key.partition(_BETWEEN)
            own[branch][name] = value
        found: dict[str, torch.Tensor] = {}
        outputs = []
        for network, joined in self.denoiser.groups(joined_names(self.names)):
            names = branch_names(joined)
            told = arguments_of([own[name] for name in names], len(x), x.device)
            rows = x if len(names) == 1 else torch.cat([x] * len(names))
            output = self.denoiser.call(rows, t.repeat(len(names)), told, network=network)
            outputs.append(output)
            found |= dict(zip(names, output.split(len(x)), strict=True))
        check_apart("guidance", outputs)
        if torch.is_grad_enabled() and any(output.requires_grad for output in found.values()):
            made = torch.zeros_like(x)
            for name, weight in self.at.weights or ():
                made = made + weight * found[name]
            return made
        return self.fused(self.at, found)
