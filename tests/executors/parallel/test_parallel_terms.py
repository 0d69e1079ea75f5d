"""Guidance terms in parallel runs: the samples of `df.sample` with the same terms."""

import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.plans.registers import Stages

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 8)
SHAPE = (4, 6)
IDS = [5, -3, 2**61, 0]


def network(x, t, shift=0.0):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def pull(x, t):
    return 0.5 - x


def far(x0, t):
    return (x0 - 0.3).square().sum(1)


TARGETS = torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None]
TERMS = {
    "x": [df.guidance.gradient(pull, 0.1)],
    "x0": [df.guidance.loss(far, 0.05, through="x0")],
    "network": [df.guidance.loss(far, lambda t: 0.05 * (1 + t))],
    "two": [
        df.guidance.Guide(lambda at: at.own("test", "targets", TARGETS) - at.x, 0.1),
        df.guidance.Guide(lambda at: at.normals(1), 0.02),
    ],
}


def start():
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def close(got, want):
    """Rounding apart: a gradient is divided by the output's weight and multiplied by it."""
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * float(want.abs().max()))


def both(guides, predicts="epsilon", plan=None, options=None, **more):
    plan = df.solvers.dpmpp_2m(VP, GRID) if plan is None else plan
    denoiser = df.Denoiser(network, VP, predicts, guides=guides, **(options or {}))
    want = df.sample(denoiser, plan, x=start(), seed=7, ids=IDS)
    return want, df.sample_parallel(denoiser, plan, x=start(), seed=7, ids=IDS, tol=0, **more)


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("predicts", ["epsilon", "x0", "v"])
def test_terms_give_the_samples_of_sample(kind, predicts):
    want, got = both(TERMS[kind], predicts)
    close(got.x, want.x)
    assert got.rounds <= 8


@pytest.mark.parametrize(
    "more",
    [
        {"window": 3},
        {"batch_size": 3},
        {"method": "prior"},
        {"plan": df.solvers.dpmpp_2m_sde(VP, GRID)},
        {"plan": df.solvers.heun(VP, GRID[::2])},
        {
            "options": {
                "conditions": {"shift": torch.full((1, 6), 0.3)},
                "unconditional": {"shift": torch.zeros(1, 6)},
                "guidance": lambda t: 1.0 + t,
            }
        },
    ],
    ids=["window", "batch_size", "prior", "sde", "heun", "guidance"],
)
def test_with_other_options(more):
    for kind in ("network", "two"):
        want, got = both(TERMS[kind], **more)
        close(got.x, want.x)


def test_a_tolerance_is_kept():
    denoiser = df.Denoiser(network, VP, "epsilon", guides=TERMS["network"])
    plan = df.solvers.euler(VP, df.grids.uniform_logsnr(VP, 30))
    want = df.sample(denoiser, plan, x=start()).x
    got = df.sample_parallel(denoiser, plan, x=start(), tol=1e-3)
    assert got.rounds < 20
    assert float((got.x - want).norm() / want.norm()) < 1e-3


def test_a_gradient_that_is_not_finite_fails_its_sample_alone():
    def broken(at):
        bad = (at.ids == IDS[2]) & (at.time < 0.5)
        return torch.where(bad[:, None], math.nan, pull(at.x, at.time))

    guides = [df.guidance.Guide(broken, 0.1)]
    denoiser, plan = df.Denoiser(network, VP, "x0", guides=guides), df.solvers.euler(VP, GRID)
    want = df.sample(denoiser, plan, x=start(), ids=IDS, throw=False)
    facts = r"2 \(id 2305843009213693952\): .* or the gradient of a guidance term is not finite at"
    with pytest.raises(df.NonFiniteError, match=facts) as error:
        df.sample_parallel(denoiser, plan, x=start(), ids=IDS, tol=0)
    got = error.value.result
    assert got.status.tolist() == want.status.tolist()
    close(got.x[got.fine], want.x[want.fine])


def test_a_gradient_counts_only_where_it_is_weighed():
    """Rows at other times weigh it by 0, and a zero times NaN would spread."""

    def broken(x, t):
        return torch.where(t.reshape(-1, 1) < 0.5, math.nan, pull(x, t))

    want, got = both([df.guidance.gradient(broken, lambda t: 0.1 * (t >= 0.5))], "x0")
    close(got.x, want.x)


def split():
    stages = Stages(VP, GRID[0])
    stages.add(GRID[0], GRID[-1], {"d": 1.0})
    stages.add(None, GRID[-1], {"x": 1.0, "g1": 0.1}, gradient=GRID[-1])
    return stages.plan("split", 1)


def renoised():
    stages = Stages(VP, GRID[0])
    a, s, b, r = (float(f(t)) for t in GRID[:2] for f in (VP.alpha, VP.sigma))
    stages.add(GRID[0], GRID[1], {"x": r / s, "d": b, "d_uncond": -a * r / s})
    stages.add(GRID[1], GRID[-1], {"d": 1.0})
    return stages.plan("renoised", 2)


def test_what_a_sweep_cannot_carry():
    shift = {"shift": torch.ones(1, 6)}
    guided = {"conditions": shift, "unconditional": shift, "guidance": 2.0}
    one = df.Denoiser(network, VP, "x0", guides=TERMS["x"])
    for denoiser, plan, facts, how in (
        (one, split(), "split weighs the gradients g1 of guidance terms, but only df.sample", {}),
        (df.Denoiser(network, VP, "x0", **guided), renoised(), "renoised weighs d_uncond, the", {}),
        (
            one,
            df.solvers.euler(VP, GRID),
            "clamp is given and the denoiser has",
            {"clamp": (-1, 1)},
        ),
    ):
        with pytest.raises(ValueError, match=facts):
            df.sample_parallel(denoiser, plan, x=start(), **how)
