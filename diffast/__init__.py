"""Fast, exact sampling for diffusion and flow models.

import diffast as df

schedule = df.schedules.vp_linear()
plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 20))
denoiser = df.Denoiser(network, schedule, predicts="epsilon")
out = df.sample(denoiser, plan, shape=(16, 1, 28, 28), seed=0)
"""

from diffast import grids, ops, solvers
from diffast import schedule as schedules
from diffast.denoiser import Denoiser
from diffast.ops import backends
from diffast.plan import Plan, unroll
from diffast.sampler import Progress, Samples, sample

__version__ = "0.1.0"

__all__ = [
    "Denoiser",
    "Plan",
    "Progress",
    "Samples",
    "backends",
    "grids",
    "ops",
    "sample",
    "schedules",
    "solvers",
    "unroll",
]
