"""Networks and runs for the tests of the adaptive executor."""

import numpy as np
import torch

import diffast as df


class Gaussian:
    """The exact denoiser of N(mean, diag(variance)) as a network that predicts x0.

    Elementwise, so that a sample's answer does not depend on its batch.
    """

    def __init__(self, schedule, variance, mean=0.3):
        self.schedule = schedule
        self.variance = torch.as_tensor(np.asarray(variance, dtype=np.float64))
        self.mean = mean
        self.rows = 0

    def levels(self, x, t):
        time = np.minimum(t.double().numpy(), self.schedule.t_start)  # float32 may round it up
        shape = (-1, *[1] * (x.dim() - 1))
        alpha, sigma = self.schedule.alpha(time), self.schedule.sigma(time)
        return (torch.from_numpy(np.asarray(a)).to(x.dtype).reshape(shape) for a in (alpha, sigma))

    def __call__(self, x, t):
        self.rows += len(x)
        alpha, sigma = self.levels(x, t)
        variance = self.variance.to(x.dtype)
        gain = alpha * variance / (alpha * alpha * variance + sigma * sigma)
        return self.mean + gain * (x - alpha * self.mean)


def spectrum(d):
    """Variances 1/4, 1/8, 1/12, ...: an image's, roughly; .04 in one dimension."""
    return np.array([0.04]) if d == 1 else 0.25 / np.arange(1, d + 1)


def denoiser(schedule, d=2, **options):
    return df.Denoiser(Gaussian(schedule, spectrum(d)), schedule, predicts="x0", **options)


METHODS = {
    "pec": {},
    "pec, redrawn": {"reject": False},
    "pec, path": {"noise": "path"},
    "pec, tight": {"rtol": 0.02, "controller": {"threshold": 0.7}},
    "ggf": {"rtol": 0.1, "atol": 0.039},
    "ggf, redrawn": {"rtol": 0.1, "atol": 0.039, "noise": "redraw"},
    "ggf, lamba": {"lamba": True},
    "euler_heun": {},
    "dpm_12": {},
    "dpm_23": {},
    "dpm_23, noisy": {"eta": 1.0},
    "bosh3": {},
    "dopri5": {},
    "tsit5": {},
}


def run(name, shape, schedule=None, network=None, **options):
    schedule = df.schedules.vp_linear() if schedule is None else schedule
    given = (
        df.Denoiser(network, schedule, predicts="x0") if network else denoiser(schedule, shape[-1])
    )
    return df.sample_adaptive(given, name.split(",")[0], shape, **METHODS[name] | options)
