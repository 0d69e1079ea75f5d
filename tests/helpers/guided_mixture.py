"""A guided problem with closed forms: eight narrow Gaussians on a ring, in four classes.

The network's x0 estimate, the classifier's gradient and the guided probability-flow ODE are exact,
in float64. The classifier can be made rough: a fixed random Fourier series is added to its
gradient, as fast in x as the errors of a trained one.
"""

import numpy as np
from scipy.integrate import solve_ivp

RADIUS, WIDTH, COUNT, CLASSES = 0.7, 0.12, 8, 4


class GuidedMixture:
    """The mixture with labels [B] for its samples.

    Args:
        schedule: any schedule.
        labels: [B] ints below 4.
        scale: of the guidance.
        rough: size of the classifier's error; 0: exact.
        frequency: of this error, in 1 over the unit of x.
    """

    def __init__(self, schedule, labels, scale=1.0, rough=0.0, frequency=20.0):
        self.schedule, self.labels, self.scale = schedule, np.asarray(labels), scale
        angles = 2 * np.pi * np.arange(COUNT) / COUNT
        self.means = RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1)
        self.classes = np.arange(COUNT) % CLASSES
        self.rough, random = rough, np.random.default_rng(11)
        self.waves = random.normal(size=(32, 2)) * frequency
        self.phases = random.uniform(0, 2 * np.pi, 32)
        self.sizes = random.normal(size=(32, 2)) / np.sqrt(16)

    def levels(self, t):
        t = np.asarray(t, np.float64)
        return float(self.schedule.alpha(t)), float(self.schedule.sigma(t))

    def _shares(self, y, rho):
        """Log-densities of y = x/alpha under the components [B, 8], up to a constant."""
        gap = y[:, None, :] - self.means
        return -(gap**2).sum(-1) / (2 * (WIDTH**2 + rho**2)), gap

    def mean(self, y, rho):
        """E[x0 | y] of y = x/alpha = x0 + rho eps, [B, 2]."""
        score, _ = self._shares(y, rho)
        share = _softmax(score)
        keep = WIDTH**2 / (WIDTH**2 + rho**2)
        return keep * y + (1 - keep) * (share @ self.means)

    def pull(self, y, rho):
        """Gradient in y of scale log p(label | y), [B, 2]."""
        score, gap = self._shares(y, rho)
        own = np.where(self.classes == self.labels[:, None], score, -np.inf)
        weight = _softmax(own) - _softmax(score)
        made = -(weight[:, :, None] * gap).sum(1) / (WIDTH**2 + rho**2)
        if self.rough:
            # of the size of a noise-aware classifier's gradient, 1/(its width at this level)
            wide = np.sqrt(WIDTH**2 + rho**2)
            angle = (y / np.sqrt(1 + rho**2)) @ self.waves.T + self.phases
            made = made + self.rough * np.sin(angle) @ self.sizes / wide
        return self.scale * made

    def x0(self, x, t):
        alpha, sigma = self.levels(t)
        if alpha == 0.0:  # pure noise says nothing of the data
            return np.broadcast_to(self.means.mean(0), x.shape)
        return self.mean(x / alpha, sigma / alpha)

    def gradient(self, x, t):
        """The gradient in x, as the column g1 has it."""
        alpha, sigma = self.levels(t)
        return self.pull(x / alpha, sigma / alpha) / alpha

    def reference(self, x, start, end, rtol=1e-10, still=False):
        """Where the guided ODE takes x from one model time to another; `still`: with eps = 0."""
        (alpha, sigma), (alpha1, sigma1) = self.levels(start), self.levels(end)

        def slope(u, y):
            y, rho = y.reshape(-1, 2), np.sinh(u)
            # eps = (y - mean)/rho; the guidance rho times the gradient in y
            step = -rho * self.pull(y, rho)
            step = step if still else step + (y - self.mean(y, rho)) / rho
            return (step * np.cosh(u)).ravel()

        span = np.arcsinh(sigma / alpha), max(np.arcsinh(sigma1 / alpha1), 1e-9)
        found = solve_ivp(slope, span, (x / alpha).ravel(), method="DOP853", rtol=rtol, atol=1e-11)
        return alpha1 * found.y[:, -1].reshape(-1, 2)


def _softmax(score):
    weight = np.exp(score - score.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)
