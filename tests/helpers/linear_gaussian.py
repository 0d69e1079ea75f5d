"""Normal data, a linear measurement of them, and the network that is exact for either."""

import numpy as np
import torch

import diffast as df

VP = df.schedules.vp_linear()
SIZE, SEEN = 5, 2
F64 = torch.float64


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


MEAN = numbers(SIZE, seed=1)
FULL = (lambda root: root @ root.T / SIZE)(numbers(SIZE, SIZE, seed=2))
MATRIX = numbers(SEEN, SIZE, seed=3)
Y, NOISE = numbers(1, SEEN, seed=4), 0.3


class Linear:
    """An operator with every closed form, y = A x."""

    def __init__(self, matrix=MATRIX):
        self.matrix = matrix

    def forward(self, x):
        return x @ self.matrix.T

    def transpose(self, y):
        return y @ self.matrix

    def pseudo_inverse(self, y):
        return y @ torch.linalg.pinv(self.matrix).T

    def prox(self, x, y, weight):
        gram = self.matrix @ self.matrix.T
        moved = []
        for w, residual in zip(weight, y - self.forward(x), strict=True):
            eye = torch.eye(len(gram), dtype=F64) * (1.0 / w)
            moved.append(self.matrix.T @ torch.linalg.solve(gram + eye, residual))
        return x + torch.stack(moved)


def posterior(covariance, matrix=MATRIX, y=Y, noise=NOISE, mean=MEAN):
    """Mean and covariance of the data given y."""
    seen = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=F64)
    gain = covariance @ matrix.T @ torch.linalg.inv(seen)
    return mean + gain @ (y[0] - matrix @ mean), covariance - gain @ matrix @ covariance


def network(mean, covariance, schedule=VP):
    """E[x0 | x] of normal data, by the eigenvectors of their covariance."""
    values, vectors = torch.linalg.eigh(covariance)

    def estimate(x, t):
        t = t.detach().double().numpy()
        a, s = (
            torch.as_tensor(np.asarray(f(t)))[:, None] for f in (schedule.alpha, schedule.sigma)
        )
        gain = a * values / (a * a * values + s * s)
        return mean + ((x - a * mean) @ vectors * gain) @ vectors.T

    return estimate
