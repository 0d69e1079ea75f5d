"""method="paradigms" takes the rounds and the evaluations of ParaDiGMS, written from its paper."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast import ops

SCHEDULE = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
MEANS = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SPREAD = 0.4


def network(x, t):
    """The exact noise estimate for a mixture of normals, [B, 6]."""
    alpha = torch.from_numpy(SCHEDULE.alpha(t.double().numpy()))[:, None]
    sigma = torch.from_numpy(SCHEDULE.sigma(t.double().numpy()))[:, None]
    variance = (alpha * SPREAD) ** 2 + sigma**2
    away = x.double()[:, None] - alpha[..., None] * MEANS  # [B, 5, 6]
    share = torch.softmax(-(away**2).sum(-1) / (2 * variance), dim=1)
    score = -(share[..., None] * away).sum(1) / variance
    return (-sigma * score).to(x.dtype)


def paradigms(plan, x, noises, stochastic, parallel, tolerance):
    """Shih et al. 2023, algorithm 1, with differences of points added up; float64.

    Returns the samples, the rounds and the evaluations of a sample.
    """
    times = np.append(plan.call_times, plan.end)
    alpha, sigma = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    steps = len(plan.call_times)
    beta = 1 - (alpha[:-1] / alpha[1:]) ** 2
    variance = np.append((sigma[1:] / sigma[:-1]) ** 2 * beta, 0.0)
    points = x.double().repeat(steps + 1, 1, 1)
    noise = torch.from_numpy(np.sqrt(variance[:-1]))[:, None, None] * noises.double()
    begin, rounds, evaluations = 0, 0, 0
    window = min(parallel, steps)
    end = window
    while begin < steps:
        now = points[begin:end]
        count = end - begin
        t = torch.tensor(plan.call_times[begin:end]).repeat_interleave(x.shape[0])
        eps = network(now.reshape(-1, 6), t).reshape(now.shape)
        rounds, evaluations = rounds + 1, evaluations + count

        def column(values, begin=begin, count=count):
            return torch.from_numpy(values[begin : begin + count])[:, None, None]

        clean = (now - column(sigma) * eps) / column(alpha)
        if stochastic:
            to_clean = alpha[1:] * beta / sigma[:-1] ** 2
            keep = alpha[:-1] / alpha[1:] * sigma[1:] ** 2 / sigma[:-1] ** 2
            stepped = column(to_clean) * clean + column(keep) * now
        else:
            stepped = column(alpha[1:]) * clean + column(sigma[1:]) * eps
        added = (stepped - now).cumsum(0)
        if stochastic:
            added = added + noise[begin:end].cumsum(0)
        made = points[begin] + added
        error = ((made - points[begin + 1 : end + 1]) ** 2).mean(-1)  # [count, B]
        moved = error > tolerance**2 * torch.from_numpy(variance[begin + 1 : end + 1])[:, None]
        found = moved.any(1).nonzero()
        stride = min(1 + int(found[0]), count) if len(found) else count
        points[begin + 1 : end + 1] = made
        begin += stride
        points[end + 1 : begin + window + 1] = points[end]
        end = min(begin + window, steps)
    return points[-1], rounds, evaluations


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "name, steps, parallel, tolerance",
    [
        ("ddim", 25, 16, 0.1),
        ("ddim", 50, 50, 0.2),
        ("ddim", 50, 8, 0.01),
        ("ddpm", 100, 32, 0.5),
        ("ddpm", 100, 100, 0.1),
        ("ddpm", 50, 1, 0.1),
    ],
)
def test_rounds_and_evaluations_are_those_of_paradigms(name, steps, parallel, tolerance, batch):
    plan = df.solvers.get(name)(SCHEDULE, df.grids.trailing(SCHEDULE, steps))
    ids = torch.arange(batch)
    scale = float(SCHEDULE.sigma(plan.start))
    x = ops.normal((batch, 6), seed=3, ids=ids, scale=scale, dtype=torch.float64)
    noises = torch.stack([ops.normal((batch, 6), seed=3, stage=i, ids=ids) for i in range(steps)])
    wanted, rounds, evaluations = paradigms(plan, x, noises, name == "ddpm", parallel, tolerance)
    denoiser = df.Denoiser(network, SCHEDULE, predicts="epsilon")
    options = {"method": "paradigms", "window": parallel, "tol": tolerance, "static": True}
    made = df.sample_parallel(denoiser, plan, x=x, seed=3, **options)
    assert made.rounds == rounds
    assert made.nfe.tolist() == [evaluations] * batch
    torch.testing.assert_close(made.x, wanted, rtol=1e-9, atol=1e-9)
