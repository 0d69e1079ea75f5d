"""The adaptive executor on a GPU: samples, laws, faults; no host synchronisation in a round."""

import pytest
import torch
from adaptive_cases import METHODS, Gaussian, spectrum
from device_watch import no_waits

import diffast as df
from diffast.executors.adaptive import sample as adaptive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
VP = df.schedules.vp_linear()


class OnDevice:
    """The exact denoiser of a Gaussian in torch alone, for x on any device (VP)."""

    def __init__(self, d):
        self.variance = torch.as_tensor(spectrum(d), device="cuda")

    def __call__(self, x, t):
        t = t.double()[:, None]
        beta = 0.1 * t + 0.5 * 19.9 * t * t
        alpha, square = torch.exp(-0.5 * beta), -torch.expm1(-beta)
        gain = alpha * self.variance / (alpha**2 * self.variance + square)
        return (0.3 + gain * (x.double() - alpha * 0.3)).to(x.dtype)


def sample(name, shape, network=None, **options):
    given = df.Denoiser(network or OnDevice(shape[-1]), VP, predicts="x0")
    method, more = name.split(",")[0], METHODS[name] | options
    return df.sample_adaptive(given, method, shape, device="cuda", **more)


@pytest.mark.parametrize("name", METHODS)
def test_same_samples_as_on_the_cpu(name):
    out = sample(name, (9, 3), seed=2)
    given = df.Denoiser(Gaussian(VP, spectrum(3)), VP, predicts="x0")
    host = df.sample_adaptive(given, name.split(",")[0], (9, 3), seed=2, **METHODS[name])
    assert out.fine.all()
    assert torch.allclose(out.x.cpu(), host.x, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["pec", "ggf", "dopri5"])
def test_a_sample_is_the_same_in_any_batch(name):
    whole, alone = sample(name, (7, 3), seed=5), sample(name, (1, 3), seed=5, ids=[3])
    assert torch.equal(alone.x[0], whole.x[3])


def test_pec_has_the_variance_of_gaussians():
    out = sample("pec", (40_000, 8), denoise=False)
    alpha, sigma = float(VP.alpha(VP.t_min)), float(VP.sigma(VP.t_min))
    want = torch.as_tensor(alpha**2 * spectrum(8) + sigma**2)
    assert abs((out.x.double().var(0).cpu() / want - 1).mean()) < 0.03


@pytest.mark.parametrize("name", METHODS)
def test_a_round_does_not_wait_for_the_device(name):
    given = df.Denoiser(OnDevice(64), VP, predicts="x0")
    run = adaptive.prepare(
        given, name.split(",")[0], (32, 64), device="cuda", h_max=1e-3, **METHODS[name]
    )
    with torch.inference_mode():
        run.start(None)
        run.round()  # kernels are loaded, Triton's compiled
        with no_waits():
            for _ in range(20):
                run.round()


def test_a_sample_that_is_not_finite_fails_alone():
    network = OnDevice(3)

    def faulty(x, t, label):
        return torch.where(((label == 1) & (t < 0.3))[:, None], float("nan"), network(x, t))

    def samples(labels):
        given = df.Denoiser(faulty, VP, "x0", conditions={"label": labels})
        return df.sample_adaptive(given, "pec", (4, 3), device="cuda", throw=False)

    good = samples(torch.zeros(4, dtype=torch.int64))
    out = samples(torch.tensor([0, 1, 0, 0]))
    assert out.fine.tolist() == [True, False, True, True] and out.x[1].isnan().all()
    assert torch.equal(out.x[[0, 2, 3]], good.x[[0, 2, 3]])
