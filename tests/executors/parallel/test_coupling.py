"""method="speculative": the law of the plan, with a window of any size."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.executors.parallel import coupling

SCHEDULE = df.schedules.vp_linear()
MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0]], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.7], dtype=torch.float64)
SPREAD = 0.3


def network(x, t):
    """The exact x0 estimate for a mixture of two normals in the plane."""
    alpha = torch.from_numpy(SCHEDULE.alpha(t.double().numpy()))[:, None]
    sigma = torch.from_numpy(SCHEDULE.sigma(t.double().numpy()))[:, None]
    variance = (alpha * SPREAD) ** 2 + sigma**2
    away = x.double()[:, None] - alpha[..., None] * MEANS
    share = torch.softmax(SHARES.log() - (away**2).sum(-1) / (2 * variance), dim=1)
    gain = alpha * SPREAD**2 / variance
    return (share[..., None] * (MEANS + gain[..., None] * away)).sum(1).to(x.dtype)


DENOISER = df.Denoiser(network, SCHEDULE, predicts="x0")
COUNT = 6_000


def plan_of(steps=20):
    return df.solvers.ddpm(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))


def moments(x):
    """Returns numbers that tell laws apart, and their standard errors."""
    x = x.double().numpy()
    right = x[:, 0] > 0
    features = np.stack(
        [right, x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1], x[:, 0] ** 3], 1
    )
    return features.mean(0), features.std(0) / np.sqrt(len(x))


def apart(a, b):
    (mean, error), (other, error2) = moments(a), moments(b)
    return np.abs(mean - other) / np.sqrt(error**2 + error2**2)


def speculate(**options):
    return df.sample_parallel(
        DENOISER, plan_of(), (COUNT, 2), method="speculative", seed=1, **options
    )


@pytest.mark.parametrize("window", [None, 3, 1])
def test_the_law_is_the_plans(window):
    made = speculate(window=window)
    wanted = df.sample(DENOISER, plan_of(), (COUNT, 2), seed=2).x
    assert apart(made.x, wanted).max() < 4.5
    assert 0.5 < made.acceptance < 1.0 or window == 1
    assert made.rounds <= 20


def test_taking_every_guess_is_another_law(monkeypatch):
    decide = coupling.ByCoupling._decide

    def take_all(self, *given):
        self.log_uniform[:] = -np.inf
        return decide(self, *given)

    monkeypatch.setattr(coupling.ByCoupling, "_decide", take_all)
    wanted = df.sample(DENOISER, plan_of(), (COUNT, 2), seed=2).x
    assert apart(speculate().x, wanted).max() > 10


def test_a_sample_is_the_same_in_any_batch():
    whole = df.sample_parallel(DENOISER, plan_of(), (6, 2), method="speculative", seed=1)
    alone = df.sample_parallel(DENOISER, plan_of(), (1, 2), method="speculative", seed=1, ids=[4])
    assert torch.equal(whole.x[4:5], alone.x)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("ddim", {}, "draws no noise"),
        ("dpmpp_2m_sde", {}, "carries more than its point along"),
        ("ddpm", {"clamp": (-1, 1)}, "clamp is"),
    ],
)
def test_refusals(name, options, words):
    plan = df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, 5))
    with pytest.raises(ValueError, match=words):
        df.sample_parallel(DENOISER, plan, (2, 2), method="speculative", **options)
