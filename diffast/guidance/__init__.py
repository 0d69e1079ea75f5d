"""Guidance: terms that pull samples towards a condition by a gradient.

    df.Denoiser(network, schedule, "epsilon", guides=[df.guidance.classifier(net, labels, 2.0)])

Every solver runs such a denoiser: the gradients join its x0 estimates. Splitting solvers
(`df.solvers.ltsp`, `df.solvers.stsp`) give them sub-steps of their own.
"""

from diffast.guidance.frequency import fdg
from diffast.guidance.gradients import classifier, gradient, loss
from diffast.guidance.guide import Guide, Point
from diffast.guidance.linear import autoguidance, cfg, interval, perturbed
from diffast.guidance.reducing import (
    apg,
    cfg_zero_star,
    dynamic_threshold,
    mambo,
    rescale,
    tcfg,
)
from diffast.guidance.rule import Rule

__all__ = [
    "Guide",
    "Point",
    "Rule",
    "apg",
    "autoguidance",
    "cfg",
    "cfg_zero_star",
    "classifier",
    "dynamic_threshold",
    "fdg",
    "gradient",
    "interval",
    "loss",
    "mambo",
    "perturbed",
    "rescale",
    "tcfg",
]
