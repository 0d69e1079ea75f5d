"""Guidance: terms that pull samples towards a condition by a gradient.

    df.Denoiser(network, schedule, "epsilon", guides=[df.guidance.classifier(net, labels, 2.0)])

Every solver runs such a denoiser: the gradients join its x0 estimates. Splitting solvers
(`df.solvers.ltsp`, `df.solvers.stsp`) give them sub-steps of their own.
"""

from diffast.guidance.gradients import classifier, gradient, loss
from diffast.guidance.guide import Guide, Point
from diffast.guidance.inverse import diffpir, dps, mcg, mpgd
from diffast.guidance.measurement import Measurement
from diffast.guidance.posterior import mmps, pigdm, tmpd
from diffast.guidance.training_free import descent, freedom, lgd_mc, tfg, ugd

__all__ = ["Guide", "Measurement", "Point", "classifier", "descent", "diffpir", "dps", "freedom"]
__all__ += ["gradient", "lgd_mc", "loss", "mcg", "mmps", "mpgd", "pigdm", "tfg", "tmpd", "ugd"]
