"""Guidance: terms that pull samples towards a condition by a gradient, and rules for branches.

    df.Denoiser(network, schedule, "epsilon", guides=[df.guidance.classifier(net, labels, 2.0)])

Every solver runs such a denoiser: the gradients join its x0 estimates. Splitting solvers
(`df.solvers.ltsp`, `df.solvers.stsp`) give them sub-steps of their own.
"""

from diffast.guidance.frequency import fdg
from diffast.guidance.gradients import classifier, gradient, loss
from diffast.guidance.guide import Guide, Point
from diffast.guidance.inverse import diffpir, dps, mcg, mpgd
from diffast.guidance.linear import autoguidance, cfg, interval, perturbed
from diffast.guidance.measurement import Measurement
from diffast.guidance.parse import parse
from diffast.guidance.posterior import mmps, pigdm, tmpd
from diffast.guidance.reducing import (
    apg,
    cfg_zero_star,
    dynamic_threshold,
    mambo,
    rescale,
    tcfg,
)
from diffast.guidance.rule import Rule
from diffast.guidance.training_free import descent, freedom, lgd_mc, tfg, ugd

__all__ = ["Guide", "Measurement", "Point", "Rule", "apg", "autoguidance", "cfg", "cfg_zero_star"]
__all__ += ["classifier", "descent", "diffpir", "dps", "dynamic_threshold", "fdg", "freedom"]
__all__ += [
    "gradient",
    "interval",
    "lgd_mc",
    "loss",
    "mambo",
    "mcg",
    "mmps",
    "mpgd",
    "parse",
    "perturbed",
]
__all__ += ["pigdm", "rescale", "tcfg", "tfg", "tmpd", "ugd"]
