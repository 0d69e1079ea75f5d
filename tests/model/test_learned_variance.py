"""Networks that predict their step's variance: against the formulas, and that they are refused."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from numpy_executor import run

import diffast as df
from diffast import ops
from diffast.model import learned_variance as variance

BETAS = np.linspace(1e-4, 0.02, 1000)
SCHEDULE = df.schedules.from_betas(BETAS)
GRID = df.grids.trailing(SCHEDULE, 8)


def network(x, t, shift=0.0):
    """A smooth prediction of the noise, and a variance that differs from element to element."""
    mean = torch.tanh(0.7 * x) + 0.001 * t.view(-1, 1, 1, 1) + shift
    return torch.cat([mean, torch.sin(3.0 * x)], 1)


@pytest.mark.parametrize("kind", variance.KINDS)
def test_against_the_formula(kind):
    net = network if kind == "range" else lambda x, t: torch.cat([0.1 * x, 0.01 + 0.1 * x**2], 1)
    learned = df.LearnedVariance(net, SCHEDULE, df.solvers.ddpm(SCHEDULE, GRID), kind)
    x = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    ids = torch.tensor([7, 1, 4])
    out = df.sample(
        df.Denoiser(learned, SCHEDULE, predicts="epsilon"),
        learned.plan,
        x=x,
        noise=learned.draw(3, seed=5, ids=ids),
    )
    # the posterior mean of Ho et al., eq. 7, and Nichol and Dhariwal's variance, step by step
    times = np.append(GRID[:-1], -1).astype(int)
    product = np.append(np.cumprod(1.0 - BETAS), 1.0)  # alpha-bar, the clean end last
    for i, (t, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        a, b = product[t], product[after]
        beta = 1.0 - a / b
        both = net(x, torch.full((3,), float(t), dtype=torch.float64))
        noise, v = both.split(2, 1)
        x0 = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
        mean = np.sqrt(b) * beta / (1 - a) * x0 + np.sqrt(a / b) * (1 - b) / (1 - a) * x
        if i + 1 == len(times) - 1:
            x = mean
            continue
        if kind == "range":
            share = (v + 1) / 2
            small = (1 - b) / (1 - a) * beta
            log = share * np.log(beta) + (1 - share) * np.log(small)
            deviation = torch.exp(0.5 * log)
        else:
            deviation = v.sqrt()
        x = mean + deviation * ops.normal(x.shape, seed=5, stage=i, ids=ids)
    torch.testing.assert_close(out.x, x, rtol=1e-6, atol=1e-6)


def test_fixed_ends_are_the_fixed_variances():
    # v = -1 everywhere is the posterior's variance, v = 1 the forward step's
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    for value, fixed in ((-1.0, "small"), (1.0, "large")):
        plan = df.solvers.ddpm(SCHEDULE, GRID, variance=fixed)
        learned = df.LearnedVariance(
            lambda x, t, value=value: torch.cat([0.1 * x, torch.full_like(x, value)], 1),
            SCHEDULE,
            plan,
        )
        got = df.sample(
            df.Denoiser(learned, SCHEDULE, predicts="epsilon"),
            learned.plan,
            x=x,
            noise=learned.draw(2, seed=3),
        ).x
        a, b = df.Prediction(SCHEDULE, "epsilon").affine(plan.times)
        place = {t: i for i, t in enumerate(plan.times)}
        want = run(
            plan,
            lambda x, t, a=a, b=b, place=place: a[place[t]] * x + b[place[t]] * 0.1 * x,
            x.numpy(),
            lambda i: ops.normal(x.shape, seed=3, stage=i).double().numpy(),
        )[-1]
        torch.testing.assert_close(got, torch.from_numpy(want), rtol=1e-9, atol=1e-9)


def test_guidance_and_batches():
    plan = df.solvers.ddpm(SCHEDULE, GRID)
    learned = df.LearnedVariance(network, SCHEDULE, plan)
    shift = torch.linspace(-0.2, 0.2, 4).view(4, 1, 1, 1)
    denoiser = df.Denoiser(
        learned,
        SCHEDULE,
        predicts="epsilon",
        conditions={"shift": shift},
        unconditional={"shift": torch.zeros(1, 1, 1, 1)},
        guidance=2.0,
    )
    whole = df.sample(denoiser, learned.plan, (4, 1, 3, 3), seed=2, noise=learned.draw(4, seed=2)).x
    alone = df.Denoiser(
        learned,
        SCHEDULE,
        predicts="epsilon",
        conditions={"shift": shift[2:3]},
        unconditional={"shift": torch.zeros(1, 1, 1, 1)},
        guidance=2.0,
    )
    ids = torch.tensor([2])
    one = df.sample(
        alone, learned.plan, (1, 1, 3, 3), seed=2, ids=ids, noise=learned.draw(1, seed=2, ids=ids)
    ).x
    torch.testing.assert_close(whole[2:3], one, rtol=1e-5, atol=1e-5)


def test_refusals():
    plan = df.solvers.ddpm(SCHEDULE, GRID)
    with pytest.raises(ValueError, match="kind = 'best', but"):
        df.LearnedVariance(network, SCHEDULE, plan, "best")
    with pytest.raises(ValueError, match="a plan of one call a step with noise is needed"):
        df.LearnedVariance(network, SCHEDULE, df.solvers.euler(SCHEDULE, GRID))
    grid = df.grids.karras(SCHEDULE, 5, sigma_max=10.0)
    churned = df.solvers.churn(SCHEDULE, grid, s_churn=1.0, base="euler")
    assert churned.nfe == churned.steps < churned.stages  # noise before its first call
    with pytest.raises(ValueError, match="a plan of one call a step with noise is needed"):
        df.LearnedVariance(network, SCHEDULE, churned)
    narrow = df.LearnedVariance(lambda x, t: x, SCHEDULE, plan)
    with pytest.raises(ValueError, match=r"\[2, 3, 4\].*twice the channels"):
        narrow(torch.zeros(2, 3, 4), torch.zeros(2))


def test_threads_share_a_network_and_not_its_variance():
    """Two runs take turns call by call; each draws by the variance that its own call returned."""
    learned = df.LearnedVariance(network, SCHEDULE, df.solvers.ddpm(SCHEDULE, GRID))
    turns, plan = threading.Barrier(2), learned.plan

    def in_turns(x, t):
        out = learned(x, t)
        turns.wait(60)  # both have called before either draws
        return out

    def made(seed, denoise):
        noise = learned.draw(2, seed=seed)
        denoiser = df.Denoiser(denoise, SCHEDULE, predicts="epsilon")
        return df.sample(denoiser, plan, (2, 1, 3, 3), seed=seed, noise=noise).x

    alone = [made(seed, learned) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda seed: made(seed, in_turns), (1, 2)))
    assert all(map(torch.equal, together, alone))
    assert copy.deepcopy(learned).plan.nfe == plan.nfe


def test_with_a_guidance_term_through_the_network():
    """The network is then called with gradients enabled; the variance keeps no graph."""
    learned = df.LearnedVariance(network, SCHEDULE, df.solvers.ddpm(SCHEDULE, GRID))
    term = df.guidance.loss(lambda x0, t: x0.square().flatten(1).sum(1), 1e-3)
    denoiser = df.Denoiser(learned, SCHEDULE, predicts="epsilon", guides=[term])
    x = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    out = df.sample(denoiser, learned.plan, x=x, noise=learned.draw(2, seed=5))
    plain = df.Denoiser(learned, SCHEDULE, predicts="epsilon")
    other = df.sample(plain, learned.plan, x=x, noise=learned.draw(2, seed=5))
    assert out.fine.all() and not torch.equal(out.x, other.x)
