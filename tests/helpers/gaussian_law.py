"""The law of a plan's samples for Gaussian data, exactly, through the plan's own matrices."""

import numpy as np
from numpy_executor import run as run_numpy


def level(plan, t, mean, variance):
    """Mean and variance of the noised data at t."""
    alpha, sigma = float(plan.schedule.alpha(t)), float(plan.schedule.sigma(t))
    return alpha * mean, alpha**2 * variance + sigma**2


def law(plan, mean, variance, start=None, bias=None):
    """Mean and variance of x after the last stage; the denoiser of Gaussian data is affine.

    The state is its own weights on (1, initial noise, z1 of each stage, z2 of each stage).

    Args:
        plan: any plan without silent stages.
        mean: of the data.
        variance: of the data.
        start: (mean, variance) of the initial state; None: those of the noised data.
        bias: [S] by how much the network's eps is too large in each call; None: 0.
    """
    stages, schedule = plan.stages, plan.schedule
    unit = np.eye(2 * stages + 2)
    calls = iter(range(stages))

    def x0(x, t):
        at, total = level(plan, t, mean, variance)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        pull = alpha * variance / total
        found = pull * x + (mean - pull * at) * unit[0]
        call = next(calls)
        return found if bias is None else found - sigma / alpha * bias[call] * unit[0]

    begin, spread = level(plan, plan.start, mean, variance) if start is None else start
    x = begin * unit[0] + np.sqrt(spread) * unit[1]
    x = run_numpy(plan, x0, x, lambda i: unit[2 + i], lambda i: unit[2 + stages + i])[-1]
    return float(x[0]), float((x[1:] ** 2).sum())


def kl(plan, mean, variance, start=None, bias=None):
    """KL(law of the samples || law of the noised data at the plan's end)."""
    m, v = law(plan, mean, variance, start, bias)
    at, total = level(plan, plan.end, mean, variance)
    return 0.5 * (v / total + (m - at) ** 2 / total - 1.0 - np.log(v / total))
