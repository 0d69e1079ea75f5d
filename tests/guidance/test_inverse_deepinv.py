"""The inverse rules of deepinv on normal data, its network in float32: equal samples."""

import importlib
import warnings

import numpy as np
import pytest
import torch
from linear_gaussian import FULL, MATRIX, MEAN, NOISE, SIZE, Y, numbers

import diffast as df

STEPS = 12


@pytest.fixture
def peer():
    """The package, where it can be loaded, and its physics of the measurement."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            deepinv = importlib.import_module("deepinv")
        except Exception as error:
            pytest.skip(f"deepinv cannot be loaded: {error}")
    return deepinv


def physics_of(deepinv):
    matrix = MATRIX.float()
    return deepinv.physics.LinearPhysics(
        A=lambda x, **_: (x.flatten(1) @ matrix.T)[:, None, None],
        A_adjoint=lambda y, **_: (y.flatten(1) @ matrix)[:, None, None],
        noise_model=deepinv.physics.GaussianNoise(NOISE),
    )


def theirs(x, sigma, **_):
    """E[x0 | x0 + sigma eps] of images [B, 1, 1, SIZE]."""
    values, vectors = torch.linalg.eigh(FULL)
    gain = values / (values + torch.as_tensor(sigma).double().reshape(-1, 1).square())
    flat = MEAN + ((x.double().flatten(1) - MEAN) @ vectors * gain) @ vectors.T
    return flat.view(x.shape).to(x.dtype)


def operator(x):
    return (x.flatten(1) @ MATRIX.T)[:, None, None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rule", ["dps", "pigdm", "mmps"])
def test_terms_as_scores(peer, rule):
    from deepinv.sampling import PosteriorDiffusion, VariancePreservingDiffusion
    from deepinv.sampling import noisy_datafidelity as fidelity
    from deepinv.sampling.sde_solver import DDIMSolver

    class Network(peer.models.Denoiser):
        def forward(self, x, sigma, *args, **kwargs):
            return theirs(x, sigma)

    own = Network()
    made = {
        "dps": lambda: fidelity.DPSDataFidelity(own, weight=0.4),
        "pigdm": lambda: fidelity.PiGDMDataFidelity(own, cg_max_iter=10, cg_tol=1e-7),
        "mmps": lambda: fidelity.MomentMatchingDataFidelity(own, cg_max_iter=10, cg_tol=1e-7),
    }[rule]()
    term = {
        "dps": lambda: df.guidance.dps(operator, Y[:, None, None], 0.4),
        "pigdm": lambda: df.guidance.pigdm(operator, Y[:, None, None], NOISE),
        "mmps": lambda: df.guidance.mmps(operator, Y[:, None, None], NOISE, iterations=2),
    }[rule]()
    times = torch.linspace(1.0, 0.0, STEPS + 1, dtype=torch.float64)
    posterior = PosteriorDiffusion(
        made,
        own,
        VariancePreservingDiffusion(alpha=0.0),
        DDIMSolver(timesteps=times),
        minus_one_one=False,
    )
    x = numbers(1, 1, 1, SIZE, seed=13)
    want = posterior(Y[:, None, None].float(), physics_of(peer), x_init=x).detach()

    schedule = df.schedules.vp_linear()

    def ours(x, t):
        a, s = (float(f(np.array(float(t[0])))) for f in (schedule.alpha, schedule.sigma))
        return theirs(x / a, torch.tensor(s / a))

    denoiser = df.Denoiser(ours, schedule, "x0", guides=[term])
    plan = df.solvers.euler(schedule, times.numpy())
    got = df.sample(denoiser, plan, x=x).x
    torch.testing.assert_close(got, want.double(), rtol=0, atol=2e-5 * float(want.abs().max()))


@pytest.mark.filterwarnings("ignore")
def test_diffpir(peer, monkeypatch):
    """Theirs is in [0, 1], and weighs the measurement by 1 / (2 rho): lambda is half of ours."""
    from deepinv.optim.data_fidelity import L2
    from deepinv.sampling import DiffPIR

    physics = physics_of(peer)
    physics.noise_model = None
    model = DiffPIR(theirs, L2(), sigma=NOISE, max_iter=STEPS, zeta=0.3, lambda_=7.0)
    y = Y[:, None, None].float() * 0.2 + 0.3
    start = 0.1 * numbers(1, 1, 1, SIZE, seed=13).float() + 0.5
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    want = model(y, physics, x_init=start)
    monkeypatch.undo()

    schedule = df.schedules.from_betas(model.betas.double().numpy())
    levels = model.reduced_alpha_cumprod
    grid = [int((levels - model.sigmas[k]).abs().argmin()) for k in model.seq]

    def ours(x, t):
        index = int(t[0])
        scaled = x / (2 * model.sqrt_alphas_cumprod[index]) + 0.5
        return 2 * theirs(scaled, levels[index] / 2) - 1

    shifted = 2 * y - operator(torch.ones(1, 1, 1, SIZE).double()).float()
    term = df.guidance.diffpir(
        lambda x: operator(x.double()).to(x.dtype), shifted, NOISE, strength=14.0
    )
    denoiser = df.Denoiser(ours, schedule, "x0", guides=[term])
    plan = df.solvers.renoised(schedule, np.array(grid, dtype=np.float64), 0.3)
    x = (2 * start - 1) / model.sqrt_recip_alphas_cumprod[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a start without noise
        made = df.sample(denoiser, plan, x=x, clamp=(-1, 1), noise=lambda i: torch.zeros_like(x))
    torch.testing.assert_close(made.x / 2 + 0.5, want, rtol=0, atol=2e-4)
