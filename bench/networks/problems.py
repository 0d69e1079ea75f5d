"""Flows to follow: trained networks and closed forms, all in one form.

With x = alpha x0 + sigma eps, let tau = sigma / (alpha + sigma) and y = x / (alpha + sigma). Then
y = (1 - tau) x0 + tau eps on every schedule, and dy/dtau = eps - x0: the probability-flow ODE of
every schedule is the same one, from its own first tau to its own last. A problem is this velocity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

import diffast as df
from bench.networks import libraries
from diffast import schedules

Velocity = Callable[[torch.Tensor, float], torch.Tensor]


@dataclass
class Problem:
    """A velocity field, where its flow starts, and the schedule that it belongs to.

    Attributes:
        name: as reports show it.
        kind: "ve", "vp" or "flow".
        schedule: of the package.
        velocity: (y [B, ...], tau) -> eps - x0 [B, ...].
        shape: of a state.
        steps: of the fine solution.
    """

    name: str
    kind: str
    schedule: Any
    velocity: Velocity
    shape: tuple[int, ...]
    steps: int = 300
    seed: int = 2
    closed: tuple | None = None  # means, variance and guidance of a closed form, see `mixture`

    @cached_property
    def first(self) -> float:
        """Returns tau at the start."""
        return tau_of(self.schedule, self.schedule.t_start)

    @cached_property
    def last(self) -> float:
        """Returns the least tau that the network is defined for; 0 for a flow."""
        if self.kind == "flow":
            return 0.0
        if self.kind == "vp":
            return tau_of(self.schedule, 0.0)
        return self.schedule.sigma_min / (1 + self.schedule.sigma_min)

    @cached_property
    def noise(self) -> torch.Tensor:
        """Returns standard normals, float64."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(self.shape, dtype=torch.float64, generator=generator)

    @cached_property
    def start(self) -> torch.Tensor:
        """Returns y at the start."""
        return self.first * self.noise

    @cached_property
    def fine(self) -> torch.Tensor:
        """Returns the flow's end, by the classical Runge-Kutta method in many float64 steps."""
        return finely(self, self.steps)

    def x0(self, y: torch.Tensor, tau: float) -> torch.Tensor:
        """Returns the x0 estimate."""
        return y - tau * self.velocity(y, tau)

    @cached_property
    def spread(self) -> float:
        """Returns the root mean square of the samples about their mean."""
        return float((self.fine - self.fine.mean(0)).square().mean().sqrt())

    def error(self, y: torch.Tensor) -> float:
        """Returns the rms of y - fine over the spread; infinite where y is not finite."""
        value = float((y.detach().double() - self.fine).square().mean().sqrt() / self.spread)
        return value if np.isfinite(value) else float("inf")

    @cached_property
    def denoiser(self) -> df.Denoiser:
        """Returns the velocity as a network of the package on the problem's schedule."""

        def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            time = np.float64(t.flatten()[0].item())
            alpha, sigma = float(self.schedule.alpha(time)), float(self.schedule.sigma(time))
            tau = sigma / (alpha + sigma)
            found = self.velocity(x / (alpha + sigma), tau)
            return found if self.kind == "flow" else x / (alpha + sigma) - tau * found

        return df.Denoiser(network, self.schedule, "flow" if self.kind == "flow" else "x0")


def tau_of(schedule: Any, t: float) -> float:
    """Returns sigma / (alpha + sigma) at a model time."""
    time = np.float64(t)
    alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
    return sigma / (alpha + sigma)


def finely(problem: Problem, steps: int) -> torch.Tensor:
    """Returns the flow's end by the classical Runge-Kutta method, on small at both ends.

    Below the last level that the network knows the flow is the x0 estimate.
    """
    low, c, e = max(problem.last, 1e-9), 0.02, 1.003  # even in log((c + tau) / (e - tau))
    ends = (np.log((c + tau) / (e - tau)) for tau in (problem.first, low))
    power = np.exp(np.linspace(*ends, steps + 1))
    taus = (power * e - c) / (1 + power)
    taus[0], taus[-1] = problem.first, low
    y = problem.start.clone()
    for a, b in zip(taus, taus[1:], strict=False):
        h, f = float(b - a), problem.velocity
        k1 = f(y, float(a))
        k2 = f(y + 0.5 * h * k1, float(a) + 0.5 * h)
        k3 = f(y + 0.5 * h * k2, float(a) + 0.5 * h)
        k4 = f(y + h * k3, float(b))
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return problem.x0(y, low)


def mixture(means: torch.Tensor, variance: torch.Tensor, weights: torch.Tensor | None = None):
    """Returns the velocity of a mixture of Gaussians with one diagonal covariance.

    With d_k = y - (1 - tau) m_k, S = (1 - tau)^2 V + tau^2 and p_k proportional to
    w_k exp(-d_k^2 / (2 S)): x0 = sum_k p_k (m_k + (1 - tau) V d_k / S) and
    eps = tau sum_k p_k d_k / S.

    Args:
        means: [K, D].
        variance: V [D] or [1].
        weights: [K]; None: all equal.
    """
    held = {}
    prior = torch.zeros(len(means)) if weights is None else weights.log()
    for dtype in (torch.float32, torch.float64):
        held[dtype] = tuple(t.to(dtype) for t in (means, variance, prior))

    def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
        m, v, w = held[y.dtype]
        a = 1 - tau
        s = a * a * v + tau * tau  # [D]
        scaled, centres = y / s.sqrt(), a * m / s.sqrt()
        far = (centres.square().sum(1)) * 0.5 - scaled @ centres.T  # [B, K], less |y|^2
        p = torch.softmax(w - far, 1)
        d = y - a * (p @ m)
        return tau * d / s - (p @ m + a * v * d / s)

    return velocity


def joined(closed: list[tuple]) -> Callable:
    """Returns the velocity of several mixtures at once, (y [P, B, D], tau [P, 1, 1]).

    Args:
        closed: means [K, D], variance, the components that guidance goes to, its scale.
    """
    size = max(len(means) for means, *_ in closed)
    kept = torch.full((len(closed), 1, size), -torch.inf)
    aim, m = kept.clone(), torch.zeros(len(closed), size, closed[0][0].shape[1])
    for i, (means, _, near, _) in enumerate(closed):
        m[i, : len(means)] = means
        kept[i, 0, : len(means)] = 0.0
        aim[i, 0, slice(len(means)) if near is None else near] = 0.0
    v = torch.stack([variance.float().expand(m.shape[2]) for _, variance, *_ in closed])[:, None]
    scale = torch.tensor([c[3] for c in closed]).reshape(-1, 1, 1)
    guided = bool((scale != 1).any())

    def velocity(y: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        a = 1 - tau
        s = a * a * v + tau * tau  # [P, 1, D]
        centres = a * m / s.sqrt()
        far = centres.square().sum(2)[:, None] * 0.5 - y / s.sqrt() @ centres.transpose(1, 2)

        def of(some: torch.Tensor) -> torch.Tensor:
            mean = torch.softmax(some - far, 2) @ m
            d = y - a * mean
            return tau * d / s - (mean + a * v * d / s)

        every = of(kept)
        return every + scale * (of(aim) - every) if guided else every

    return velocity


def _even_points(points: Callable, count: int, scale: float = 1.0) -> torch.Tensor:
    return scale * points(count, torch.Generator().manual_seed(11)).double()


def _high(seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    falling = 1 / (1 + torch.arange(64.0, dtype=torch.float64)).sqrt()
    means = torch.randn(12, 64, dtype=torch.float64, generator=generator) * falling
    variance = (0.4 * falling) ** 2
    whole = (means.square().mean() + variance.mean()).sqrt()
    return scale * means / whole, variance * (scale / whole) ** 2


def _spectrum(scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A Gaussian of 256 independent modes with variances k^-2."""
    k = torch.arange(1, 257, dtype=torch.float64)
    variance = k**-2 / (k**-2).mean() * scale**2
    return torch.zeros(1, 256, dtype=torch.float64), variance


VE = schedules.edm(0.002, 80.0)
VE_SMALL = schedules.edm(0.005, 10.0)
VP = schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
VP_LATENT = schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
FLOW = schedules.flow()


def closed_forms(kind: str, rows: int = 256) -> list[Problem]:
    """Returns the closed-form problems on the schedules of a kind: "ve", "vp" or "flow"."""
    first, second = {"ve": (VE, VE_SMALL), "vp": (VP, VP_LATENT), "flow": (FLOW, FLOW)}[kind]
    small = 0.5 if kind == "ve" else 1.0
    point = torch.tensor([1.0], dtype=torch.float64)
    made = [
        ("moons", first, 2, _even_points(libraries.two_moons, 60, small * 1.3), 0.08**2 * point),
        ("clusters", second, 2, _even_points(libraries.rings, 40, small), 0.1**2 * point),
        ("spirals", second, 2, _even_points(libraries.spirals, 120), 0.06**2 * point),
        ("checker", first, 2, _even_points(libraries.checkerboard, 80), 0.15**2 * point),
        ("64-D", first, 64, *_high(21, small)),
        ("64-D second", second, 64, *_high(22, 1.0)),
        ("spectrum", first, 256, *_spectrum(small)),
    ]
    found = []
    for name, schedule, size, means, variance in made:
        field = mixture(means, variance)
        count = rows if size == 2 else rows // 4
        closed = (means, variance, None, 1.0)
        label = f"{name} ({kind})"
        found.append(Problem(label, kind, schedule, field, (count, size), closed=closed))
    return found


def _told(value: Any, y: torch.Tensor) -> torch.Tensor:
    """A number, or a tensor with a gradient, as the time [B] that a network is told."""
    return torch.as_tensor(value, dtype=y.dtype).expand(len(y))


def _index(tau: Any, y: torch.Tensor) -> torch.Tensor:
    """The index, of the schedule VP, where the level is tau; with a gradient where tau has one."""
    at = float(tau.detach() if torch.is_tensor(tau) else tau)
    lam = np.log((1 - at) / at) + np.array([0.0, 1e-4, -1e-4])
    index, above, below = VP.time(np.clip(lam, VP.lam(999.0), None))
    slope = (above - below) / 2e-4
    moved = 0.0 if isinstance(tau, float) else ((1 - tau) / tau).log() - lam[0]
    return _told(index + slope * moved, y)


def imperfect_forms(rows: int = 256) -> list[Problem]:
    """Returns closed forms on VP betas whose epsilon is off by a smooth field of deviation 0.02.

    A network that predicts epsilon makes such errors. Where alpha is nearly 0 they are large in
    x0 and in the velocity, which are epsilon's error over alpha: the flow then has a thin layer at
    its start.
    """
    found = []
    made = [
        ("moons", VP, 2, _even_points(libraries.two_moons, 60, 1.3), 0.08**2, rows // 2),
        ("64-D", VP, 64, _high(21, 1.0)[0], _high(21, 1.0)[1], rows // 4),
    ]
    for name, schedule, size, means, variance, count in made:
        field = mixture(means, torch.as_tensor(variance, dtype=torch.float64).reshape(-1))
        label = f"{name}, imperfect epsilon (vp)"
        found.append(
            Problem(label, "vp", schedule, _imperfect(field, size), (count, size), steps=600)
        )
    return found


def _imperfect(field: Velocity, size: int) -> Velocity:
    generator = torch.Generator().manual_seed(31)
    turn = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    phase = 6.0 * torch.rand(size, dtype=torch.float64, generator=generator)

    def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
        wrong = 0.03 * torch.sin(y @ turn.to(y.dtype) + phase.to(y.dtype))
        return field(y, tau) + wrong / (1 - tau)

    return velocity


def guided_forms(kind: str, rows: int = 256) -> list[Problem]:
    """Returns closed forms under guidance 2, 4 and 7.5 towards a fifth of a mixture's components.

    v = v_all + w (v_some - v_all), as classifier-free guidance has it.
    """
    first, second = {"ve": (VE, VE_SMALL), "vp": (VP, VP_LATENT), "flow": (FLOW, FLOW)}[kind]
    small = 0.5 if kind == "ve" else 1.0
    point = torch.tensor([1.0], dtype=torch.float64)
    made = [
        ("clusters", second, 2, _even_points(libraries.rings, 40, small), 0.15**2 * point, 2.0),
        ("checker", first, 2, _even_points(libraries.checkerboard, 80), 0.3**2 * point, 2.0),
        (
            "moons",
            first,
            2,
            _even_points(libraries.two_moons, 60, small * 1.3),
            0.15**2 * point,
            4.0,
        ),
        ("64-D", first, 64, *_high(21, small), 4.0),
        ("64-D second", second, 64, *_high(22, 1.0), 7.5),
        (
            "checker second",
            second,
            2,
            _even_points(libraries.checkerboard, 80),
            0.3**2 * point,
            7.5,
        ),
    ]
    found = []
    for name, schedule, size, means, variance, scale in made:
        near = (means - means[0]).square().sum(1).argsort()[: max(2, len(means) // 5)]
        field = _guided(mixture(means, variance), mixture(means[near], variance), scale)
        count = rows if size == 2 else rows // 4
        label = f"{name}, guidance {scale:g} ({kind})"
        closed = (means, variance, near, scale)
        made_of = {"steps": 500, "closed": closed}
        found.append(Problem(label, kind, schedule, field, (count, size), **made_of))
    return found


def _guided(every: Velocity, some: Velocity, scale: float) -> Velocity:
    def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
        v = every(y, tau)
        return v + scale * (some(y, tau) - v)

    return velocity


def _eps_velocity(eps: Callable) -> Velocity:
    """From eps(x, sigma) on x = x0 + sigma eps."""

    def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
        a = 1 - tau
        return (eps(y / a, tau / a) - y) / a

    return velocity


def network(name: str, rows: int = 256) -> Problem:
    """Returns the problem of a trained network of `libraries`.

    Args:
        name: a key of `libraries.MAKERS`, or "digits".
        rows: samples of the two-dimensional ones; pictures have fewer.
    """
    if name == "digits":
        return _digits()
    single = libraries.load(name)
    double = libraries.load(name).double()

    def of(x: torch.Tensor) -> torch.nn.Module:
        return double if x.dtype == torch.float64 else single

    if name == "smalldiffusion":

        def eps(x: torch.Tensor, sigma: float) -> torch.Tensor:
            return of(x)(x, _told(sigma, x).unsqueeze(1))

        return Problem(name, "ve", VE_SMALL, _eps_velocity(eps), (rows, 2))
    if name in ("azula", "azula_vp"):
        schedule = VE if name == "azula" else schedules.edm(1e-3, 1e3)

        def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
            a = 1 - tau
            model = of(y)
            scale = (a * a + tau * tau) ** 0.5
            out = model.backbone(y / scale, _told(tau / a, y).log())
            # azula's KarrasDenoiser: c_skip = alpha / scale^2, c_out = sigma / scale
            x0 = a * y / scale**2 + tau / scale * out
            return (y - x0) / tau

        if name == "azula":
            return Problem(name, "ve", schedule, velocity, (rows, 2))
        return Problem(name, "vp", VP, velocity, (rows, 2))
    if name in ("flow_matching", "torchcfm"):

        def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
            return -of(y)(y, _told(1 - tau, y))

        return Problem(name, "flow", FLOW, velocity, (rows, 2))
    side = libraries.PICTURES

    def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
        a = 1 - tau
        whole = (a * a + tau * tau) ** -0.5  # alpha + sigma where alpha^2 + sigma^2 = 1
        eps = of(y)(y * whole, _index(tau, y).to(y.dtype))
        return (eps - y) / a

    return Problem(name, "vp", VP, velocity, (8, 1, side, side), steps=100)


def _digits(rows: int = 4) -> Problem:
    unet = df.digits.load_unet().eval().requires_grad_(False)
    labels = torch.arange(rows) % 10

    def velocity(y: torch.Tensor, tau: float) -> torch.Tensor:
        a = 1 - tau
        x, sigma = (y / a).float(), _told(tau / a, y).float()
        return (y - unet(x, sigma, labels).to(y.dtype)) / tau

    return Problem("digits", "ve", VE, velocity, (rows, 1, 28, 28), steps=60)
