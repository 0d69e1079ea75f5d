"""Distributions whose denoiser is known exactly, as numpy functions and as torch networks."""

import numpy as np
import torch


class Mixture:
    """Equal-weight Gaussian mixture of standard deviation `width` about `means` [M, D]."""

    def __init__(self, schedule, means, width=0.3):
        self.schedule, self.width = schedule, width
        self.means = np.asarray(means, dtype=np.float64)

    def x0(self, x, t):
        """Returns E[x0 | x] for x [B, D]; t a scalar or [B]."""
        t = np.broadcast_to(np.asarray(t, np.float64), x.shape[:1])
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        variance = alpha**2 * self.width**2 + sigma**2
        gap = x[:, None, :] - alpha[:, :, None] * self.means  # [B, M, D]
        score = -(gap**2).sum(-1) / (2 * variance)
        weight = np.exp(score - score.max(-1, keepdims=True))
        weight /= weight.sum(-1, keepdims=True)
        mean = weight @ self.means
        return mean + alpha * self.width**2 / variance * (x - alpha * mean)


class Network(torch.nn.Module):
    """A torch network that predicts what it is asked to, from an exact x0(x, t)."""

    def __init__(self, truth, predicts="x0", dtype=None):
        super().__init__()
        self.truth, self.predicts, self.dtype, self.calls = truth, predicts, dtype, []

    def forward(self, x, t, shift=None):
        self.calls.append((x.shape, x.dtype, t.shape, t.dtype))
        flat = x.double().reshape(len(x), -1).numpy()
        time = t.double().numpy()
        x0 = self.truth.x0(flat, time)
        if shift is not None:  # a condition: moves the answer
            x0 = x0 + shift.double().reshape(len(x), -1).numpy()
        schedule = self.truth.schedule
        alpha, sigma = schedule.alpha(time)[:, None], schedule.sigma(time)[:, None]
        if self.predicts == "x0":
            out = x0
        elif self.predicts == "epsilon":
            out = (flat - alpha * x0) / sigma
        elif self.predicts == "score":
            out = (alpha * x0 - flat) / sigma**2
        elif self.predicts == "v":
            out = alpha * (flat - alpha * x0) / sigma - sigma * x0
        else:
            dalpha, dsigma = (d.reshape(-1, 1) for d in schedule.derivatives(time))
            out = dalpha * x0 + dsigma * (flat - alpha * x0) / sigma
        return torch.from_numpy(out).to(self.dtype or x.dtype).reshape(x.shape)
