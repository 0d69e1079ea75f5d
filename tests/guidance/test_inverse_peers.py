"""The inverse rules of azula on its own normal data: equal samples at equal steps."""

import pytest
import torch
from linear_gaussian import MATRIX, NOISE, SIZE, Y, numbers

import diffast as df

STEPS = 12


@pytest.fixture
def peer():
    """azula's denoiser of normal data of full covariance, its schedule, and a denoiser of ours."""
    for name in ("denoise", "guidance", "noise", "sample", "linalg.covariance"):
        pytest.importorskip(f"azula.{name}")
    from azula.denoise import GaussianDenoiser
    from azula.linalg.covariance import FullCovariance
    from azula.noise import VPSchedule

    covariance = FullCovariance.from_data(numbers(40, SIZE, seed=11))
    theirs = GaussianDenoiser(numbers(SIZE, seed=12), covariance, VPSchedule())

    def level(which):
        return lambda t: theirs.schedule(torch.tensor(t))[which].numpy()

    schedule = df.schedules.from_functions(level(0), level(1))

    def ours(*guides):
        def network(x, t):
            return theirs(x, t[0]).mean

        return df.Denoiser(network, schedule, "x0", guides=guides)

    return theirs, ours, df.grids.uniform_time(schedule, STEPS)


def samples_of(sampler, x, monkeypatch):
    """Their samples, without fresh noise."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    made = sampler(x)
    monkeypatch.undo()
    return made


def plain(x):
    return x @ MATRIX.T


def silent(kind, *args, **options):
    return kind(*args, **options, steps=STEPS, silent=True, dtype=torch.float64)


def check(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=1e-7 * float(want.abs().max()))


# torch's forward mode, which azula's MMPS uses, says so when it is loaded
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
@pytest.mark.parametrize("rule", ["mmps", "tmpd", "diffpir"])
def test_terms_in_the_estimate(peer, rule, monkeypatch):
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.tmpd import TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDIMSampler

    theirs, ours, grid = peer
    variance = torch.tensor(NOISE**2, dtype=torch.float64)
    exact = {"solver": "cg", "iterations": 2}
    guided = {
        "mmps": lambda: MMPSDenoiser(theirs, Y, plain, IsotropicCovariance(variance), **exact),
        "tmpd": lambda: TMPDenoiser(theirs, Y, plain, variance),
        "diffpir": lambda: DiffPIRDenoiser(theirs, Y, plain, variance, 10.0, "cg", SIZE),
    }[rule]()
    term = {
        "mmps": lambda: df.guidance.mmps(plain, Y, NOISE, iterations=2),
        "tmpd": lambda: df.guidance.tmpd(plain, Y, NOISE),
        "diffpir": lambda: df.guidance.diffpir(plain, Y, NOISE, strength=10.0),
    }[rule]()
    x = numbers(1, SIZE, seed=13)
    want = samples_of(silent(DDIMSampler, guided), x, monkeypatch)
    denoiser = ours(term)
    check(df.sample(denoiser, df.solvers.euler(denoiser.schedule, grid), x=x).x, want)


def test_dps_on_the_state(peer, monkeypatch):
    from azula.guidance.dps import DPSSampler

    theirs, ours, grid = peer
    x = numbers(1, SIZE, seed=13)
    want = samples_of(silent(DPSSampler, theirs, Y, plain, 0.4), x, monkeypatch)
    denoiser = ours(df.guidance.dps(plain, Y, 0.4))
    plan = df.solvers.on_state(df.solvers.ddim(denoiser.schedule, grid, eta=1.0))
    check(df.sample(denoiser, plan, x=x, noise=lambda i: torch.zeros_like(x)).x, want)


def test_pigdm_on_the_state_with_its_adaptive_weight(peer, monkeypatch):
    """Their step adds alpha alpha' J^T A^+ (y - A x0): r^2 times the score, on the state."""
    from azula.guidance.pgdm import PGDMSampler

    theirs, ours, grid = peer
    inverse = torch.linalg.pinv(MATRIX)
    x = numbers(1, SIZE, seed=13)
    sampler = silent(PGDMSampler, theirs, Y, plain, lambda y: y @ inverse.T, eta=0.0)
    want = samples_of(sampler, x, monkeypatch)
    schedule = ours().schedule
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    weights = alpha[:-1] * alpha[1:] * sigma[:-1] ** 2 / (alpha[:-1] ** 2 + sigma[:-1] ** 2)
    known = dict(zip(grid[:-1].tolist(), weights.tolist(), strict=True))
    denoiser = ours(df.guidance.pigdm(plain, Y, scale=known.__getitem__))
    plan = df.solvers.on_state(df.solvers.euler(schedule, grid))
    check(df.sample(denoiser, plan, x=x).x, want)
