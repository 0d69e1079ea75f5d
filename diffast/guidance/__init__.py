"""Guidance: terms that pull samples towards a condition by a gradient.

    df.Denoiser(network, schedule, "epsilon", guides=[df.guidance.classifier(net, labels, 2.0)])

Every solver runs such a denoiser: the gradients join its x0 estimates. Splitting solvers
(`df.solvers.ltsp`, `df.solvers.stsp`) give them sub-steps of their own.
"""

from diffast.guidance.gradients import classifier, gradient, loss
from diffast.guidance.guide import Guide, Point

__all__ = ["Guide", "Point", "classifier", "gradient", "loss"]
