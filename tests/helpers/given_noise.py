"""Running a plan beside published formulas on the same random numbers."""

import numpy as np
import pytest
from numpy_executor import run

from diffast import grids, schedules

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
INDEXED = schedules.from_betas(BETAS)
EDM = schedules.edm()
SIGMAS = {
    "to_zero": grids.karras(EDM, 12),
    "open": grids.karras(EDM, 12, to_zero=False),
    "even": grids.uniform_time(EDM, 12),
}
each_sigmas = pytest.mark.parametrize("sigmas", SIGMAS.values(), ids=SIGMAS)
VP_GRIDS = {
    "linspace": grids.linspace(INDEXED, 20)[:-1],
    "karras": grids.karras(INDEXED, 20, to_zero=False),
}
each_vp = pytest.mark.parametrize("grid", VP_GRIDS.values(), ids=VP_GRIDS)
ALPHA_SIGMA = ("vp_linear", "vp_cosine", "sub_vp", "edm", "flow")


def wavy(schedule):
    """Some nonlinear x0 estimate; the formulas must agree for any."""
    return lambda x, t: np.sin(2 * x / (schedule.alpha(t) + schedule.sigma(t))) + 0.1


def agree(plan, published, atol=1e-12):
    """The plan's sample equals published(model, x, noise of call i), on random numbers."""
    random = np.random.default_rng(6)
    x = random.normal(size=5) * plan.schedule.sigma(plan.start)
    z = random.normal(size=(plan.nfe + 1, 5))  # of each call; the last: before the first
    model = wavy(plan.schedule)
    want = published(model, x, z)  # which may put its own numbers into z
    got = run(plan, model, x, lambda i: z[i])[-1]
    np.testing.assert_allclose(got, want, rtol=0, atol=atol * max(1.0, np.abs(want).max()))


def ancestral_step(a, b, eta):
    up = min(b, eta * np.sqrt(b**2 * (a**2 - b**2) / a**2))
    return np.sqrt(b**2 - up**2), up


def slope(x, sigma, d):
    return (x - d) / sigma
