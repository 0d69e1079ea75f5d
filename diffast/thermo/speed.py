"""Speed, length and entropy of the noising path x = alpha y + sigma eps, from its mmse curve alone.

Ikeda, Uda, Okanohara and Ito 2025, "Speed-accuracy relations for diffusion models" (PRX 15,
031031), numbers in parentheses below. The mmse at a noise level is the least denoising loss there,
E|y - E[y|x]|^2 summed over the d elements of y. The loss curve of a trained network is therefore
enough for everything here: no network is called.

The geometry of all scalar schedules is flat. Let c = sqrt(E|y|^2 / d), the root mean square of the
data, r^2 = alpha^2 c^2 + sigma^2 and phi = arctan(sigma / (alpha c)). With dpsi = kappa(phi) dphi,

    v_2^2 = d ((dr/dt)^2 + r^2 (dpsi/dt)^2),

the squared speed of a point with the polar coordinates (r, psi). Its angle from data to noise is
`angle`, between 0 (standard normal data) and pi/2 (data without spread at every noise level).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from diffast.schedules import Schedule
from diffast.schedules.table import share_times

Mmse = Callable[[np.ndarray], ArrayLike]

# Levels rho / c further out than these are read as these: mmse / rho^2 below and mmse above are
# then constants.
LEAST, MOST = 1e-7, 1e7
# How finely log(alpha / sigma) is tabulated. The trapezoidal rule over it converges exponentially,
# because the integrand falls like exp(-|lam|) at both sides.
STEP, REACH = 0.05, 18.0
# How many values of psi are inverted between.
FINE = 36001
# How many chords a length is the sum of: the error is about 1e-7 of it.
CHORDS = 4096


def w2_speed_squared(
    schedule: Schedule, t: ArrayLike, mmse: Mmse | ArrayLike, energy: float, d: int
) -> np.ndarray:
    """Returns v_2^2, the squared W2 speed of the noising path at model times.

    v_2 = lim W2(p_t, p_{t+dt}) / dt. The probability flow is a gradient, so v_2^2 is its mean
    squared velocity, E|nu|^2:

        v_2^2 = (alpha')^2 E|y|^2 + d (sigma')^2 - (alpha' - alpha sigma' / sigma)^2 mmse(rho).

    A loss above that of the best linear estimate would make it negative; 0 is returned there.

    Args:
        schedule: any of `df.schedules`.
        t: model times, any shape.
        mmse: a function of rho = sigma / alpha, or its values at these times.
        energy: E|y|^2 of the data, summed over the elements.
        d: number of elements of one sample.

    Returns:
        squared data units per squared model time, float64, shaped as t. At a clean end with
        sigma = 0 it is the limit; it is infinite where dsigma/dt is.

    Raises:
        ValueError: a time outside the schedule's domain; energy or d that is not positive; an mmse
            that is negative or not finite, or of another shape.
    """
    rms = _rms("w2_speed_squared", energy, d)
    t = np.asarray(t, dtype=np.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    dalpha, dsigma = schedule.derivatives(t)
    # mmse / rho^2 and mmse itself: each is finite at one end of the path
    shared, known = _curve("w2_speed_squared", mmse, alpha, sigma, rms)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        clean = (dalpha * sigma - alpha * dsigma) ** 2 / alpha**2 * shared
        noisy = (dalpha * sigma - alpha * dsigma) ** 2 / sigma**2 * known
        lost = np.where(sigma < rms * alpha, clean, noisy)
        found = dalpha**2 * energy + d * dsigma**2 - lost
    found = np.where(np.isinf(dsigma) | np.isinf(dalpha), np.inf, np.maximum(found, 0.0))
    return found[()]


def temperature(schedule: Schedule, t: ArrayLike) -> np.ndarray:
    """Returns T = alpha sigma d(sigma / alpha)/dt, half the squared noise rate g^2 / 2; (24).

    The path is that of the stochastic equation dx = (alpha' / alpha) x dt + sqrt(2 T) dB. Infinite
    where alpha = 0.
    """
    t = np.asarray(t, dtype=np.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    dalpha, dsigma = schedule.derivatives(t)
    with np.errstate(divide="ignore"):
        return (sigma * (alpha * dsigma - sigma * dalpha) / alpha)[()]


def entropy_production(
    schedule: Schedule, t: ArrayLike, mmse: Mmse | ArrayLike, energy: float, d: int
) -> np.ndarray:
    """Returns dS_tot/dt = v_2^2 / T, the entropy production rate of the noising path; (36).

    In nats per model time. 0 where alpha = 0, at noise alone.

    Args:
        schedule: as for `w2_speed_squared`.
        t: as for `w2_speed_squared`.
        mmse: as for `w2_speed_squared`.
        energy: as for `w2_speed_squared`.
        d: as for `w2_speed_squared`.

    Raises:
        ValueError: as `w2_speed_squared`; a time with sigma = 0, where the temperature is 0.
    """
    warm = _warm("entropy_production", schedule, t)
    with np.errstate(invalid="ignore"):
        rate = w2_speed_squared(schedule, t, mmse, energy, d) / warm
    return np.where(np.isinf(warm), 0.0, rate)[()]


def entropy_flows(
    schedule: Schedule, t: ArrayLike, mmse: Mmse | ArrayLike, energy: float, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (dS_sys/dt, dS_bath/dt), which add up to the entropy production rate; (37)-(40).

    The first is the rate of the differential entropy of x_t, d sigma'/sigma + (alpha' - alpha
    sigma'/sigma) alpha mmse / sigma^2. The second is E[f . nu] / T with the drift f = (alpha' /
    alpha) x: (alpha'^2 E|y|^2 + d sigma sigma' alpha' / alpha) / T. Nats per model time.

    Args:
        schedule: as for `w2_speed_squared`.
        t: as for `w2_speed_squared`; alpha and sigma are not 0 there.
        mmse: as for `w2_speed_squared`.
        energy: as for `w2_speed_squared`.
        d: as for `w2_speed_squared`.

    Raises:
        ValueError: as `entropy_production`; a time with alpha = 0.
    """
    warm = _warm("entropy_flows", schedule, t)
    if not np.isfinite(warm).all():
        raise ValueError("entropy_flows: alpha = 0 at a time, where the drift is infinite")
    t = np.asarray(t, dtype=np.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    dalpha, dsigma = schedule.derivatives(t)
    _, known = _curve("entropy_flows", mmse, alpha, sigma, _rms("entropy_flows", energy, d))
    mixing = dalpha - alpha * dsigma / sigma
    system = d * dsigma / sigma + mixing * alpha * known / sigma**2
    bath = (dalpha**2 * energy + d * sigma * dsigma * dalpha / alpha) / warm
    return system[()], bath[()]


def kappa(phi: ArrayLike, mmse: Mmse, d: int, energy: float | None = None) -> np.ndarray:
    """Returns kappa = dpsi/dphi in [0, 1], kappa^2 = 1 - mmse(c tan phi) / (E|y|^2 sin^2 phi).

    It is the root mean square of the v-prediction of data divided by c, an element. 0 where the
    noise hides everything but a Gaussian law, 1 where the sample is known and its noise is not.

    Args:
        phi: angles in [0, pi/2], arctan(sigma / (alpha c)).
        mmse: a function of rho = sigma / alpha.
        d: number of elements of one sample.
        energy: E|y|^2, of which c^2 = E|y|^2 / d; None: d, standardised data.

    Raises:
        ValueError: as `w2_speed_squared`; angles outside [0, pi/2].
    """
    energy = float(d if energy is None else energy)
    rms = _rms("kappa", energy, d)
    phi = np.asarray(phi, dtype=np.float64)
    if not ((phi >= 0.0) & (phi <= 0.5 * np.pi)).all():
        raise ValueError("kappa: phi lies outside [0, pi/2]")
    with np.errstate(divide="ignore"):
        return _kappa_at(-np.log(np.tan(phi)), mmse, energy, rms, "kappa")


def angle(mmse: Mmse, d: int, energy: float | None = None) -> float:
    """Returns Psi = int_0^{pi/2} kappa dphi in [0, pi/2]: the angle between data and noise.

    From it follow the least actions: d Psi^2 of a variance-preserving schedule of standardised data
    at constant speed, 4 d sin^2(Psi / 2) of the best scalar schedule.

    Args:
        mmse: a function of rho = sigma / alpha.
        d: number of elements of one sample.
        energy: E|y|^2; None: d, standardised data.

    Raises:
        ValueError: as `w2_speed_squared`.
    """
    return float(Plane("angle", mmse, float(d if energy is None else energy), d).total)


def w2_length(schedule: Schedule, mmse: Mmse, energy: float, d: int) -> float:
    """Returns int v_2 dt, the W2 length of the noising path from the clean end to the start.

    Data units times sqrt(d). Never below W2 between both ends. It depends on the path, not on how
    fast it is walked.

    Args:
        schedule: as for `w2_speed_squared`.
        mmse: a function of rho = sigma / alpha.
        energy: as for `w2_speed_squared`.
        d: as for `w2_speed_squared`.

    Raises:
        ValueError: as `w2_speed_squared`.
    """
    _, steps = chords(Plane("w2_length", mmse, energy, d), schedule)
    return float(steps.sum())


def action(schedule: Schedule, mmse: Mmse, energy: float, d: int) -> float:
    """Returns c_2 = int v_2^2 dt over a path that is given the unit duration; (79), (83).

    The time is the schedule's own, divided by its range. c_2 bounds the squared change of the W1
    error along the path, divided by the chi-square of the start (`speed_accuracy`). It is at least
    the squared length, and equal to it at constant speed.

    Args:
        schedule: as for `w2_speed_squared`.
        mmse: a function of rho = sigma / alpha.
        energy: as for `w2_speed_squared`.
        d: as for `w2_speed_squared`.

    Raises:
        ValueError: as `w2_speed_squared`.
    """
    times, steps = chords(Plane("action", mmse, energy, d), schedule)
    return float((steps**2 / np.diff(times)).sum() * (times[-1] - times[0]))


class Plane:
    """The map of noise levels to points of the flat plane of all scalar schedules.

    Args:
        who: the public function, for errors.
        mmse: a function of rho = sigma / alpha.
        energy: E|y|^2.
        d: number of elements of one sample.
    """

    def __init__(self, who: str, mmse: Mmse, energy: float, d: int):
        """Tabulates psi over lam = log(alpha c / sigma)."""
        self.d, self.rms = d, _rms(who, energy, d)
        if not callable(mmse):
            raise ValueError(f"{who}: mmse is a {type(mmse).__name__}, not a function of rho")
        self.lam = np.arange(-REACH, REACH + 0.5 * STEP, STEP)
        # dphi = -sin(phi) cos(phi) dlam, and sin(phi) cos(phi) = 1 / (2 cosh(lam))
        self.slopes = -_kappa_at(self.lam, mmse, energy, self.rms, who) / (2.0 * np.cosh(self.lam))
        areas = 0.5 * STEP * (self.slopes[1:] + self.slopes[:-1])
        psi = np.concatenate([[0.0], np.cumsum(areas)])
        bends = np.gradient(self.slopes, STEP, edge_order=2)
        psi -= STEP**2 / 12.0 * (bends - bends[0])  # Euler-Maclaurin: fourth order
        self.psi = psi - psi[-1]  # 0 at the data
        self.total = float(self.psi[0])

    def psi_at(self, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Returns the angle psi at levels."""
        with np.errstate(divide="ignore"):
            lam = np.log(alpha * self.rms) - np.log(sigma)
        place = (np.clip(lam, -REACH, REACH) + REACH) / STEP
        k = np.clip(np.floor(place).astype(int), 0, self.lam.size - 2)
        u = place - k
        a, b = self.psi[k], self.psi[k + 1]
        da, db = STEP * self.slopes[k], STEP * self.slopes[k + 1]
        bulge = da * (1 - u) - db * u + (b - a) * (2 * u - 1)
        return a * (1 - u) + b * u + u * (1 - u) * bulge

    def phi_at(self, psi: np.ndarray) -> np.ndarray:
        """Returns the angles phi in [0, pi/2] at angles psi in [0, total]."""
        lam = np.linspace(REACH, -REACH, FINE)
        known = self.psi_at(np.exp(0.5 * lam) / self.rms, np.exp(-0.5 * lam))
        phi = np.arctan(np.exp(-lam))
        phi[0], phi[-1] = 0.0, 0.5 * np.pi
        return np.interp(psi, np.maximum.accumulate(known), phi)

    def points(self, alpha: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Returns the points [N, 2] of levels [N]; their distances are W2, divided by sqrt(d)."""
        psi, r = self.psi_at(alpha, sigma), np.hypot(alpha * self.rms, sigma)
        return np.stack([r * np.cos(psi), r * np.sin(psi)], axis=-1)


def chords(plane: Plane, schedule: Schedule, count: int = CHORDS) -> tuple[np.ndarray, np.ndarray]:
    """Returns (times [count + 1] rising from the clean end, W2 lengths [count] between them).

    Chords need no derivative, so a sigma that begins like a square root is no special case.
    """
    times = share_times(count, float(schedule.t_start), float(schedule.t_end))
    points = plane.points(schedule.alpha(times), schedule.sigma(times))
    return times, math.sqrt(plane.d) * np.linalg.norm(np.diff(points, axis=0), axis=1)


def _kappa_at(lam, mmse, energy, rms, who):
    """Returns kappa at lam = log(alpha c / sigma)."""
    ratio = np.clip(np.exp(-np.clip(lam, -700.0, 700.0)), LEAST, MOST)
    known = _values(who, mmse(rms * ratio), ratio.shape)
    # mmse / (E sin^2), sin^2 = ratio^2 / (1 + ratio^2)
    return np.sqrt(np.clip(1.0 - known / energy * (1.0 + ratio**-2), 0.0, 1.0))


def _curve(who, mmse, alpha, sigma, rms):
    """Returns (mmse / rho^2, mmse) at levels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(np.where(alpha > 0, sigma / (alpha * rms), np.inf), LEAST, MOST)
    shape = np.shape(ratio)
    known = _values(who, mmse(rms * ratio) if callable(mmse) else mmse, shape)
    return known / (rms * ratio) ** 2, known


def _values(who, found: Any, shape):
    found = np.asarray(found, dtype=np.float64)
    if found.shape != shape:
        raise ValueError(f"{who}: mmse has the shape {found.shape} at levels of shape {shape}")
    if not (np.isfinite(found) & (found >= 0.0)).all():
        raise ValueError(f"{who}: mmse is negative or not finite at a level")
    return found


def _rms(who, energy, d):
    if not (0.0 < energy < math.inf and d >= 1):
        raise ValueError(
            f"{who}: energy = {energy} and d = {d}, but both must be positive and finite"
        )
    return math.sqrt(energy / d)


def _warm(who, schedule, t):
    t = np.asarray(t, dtype=np.float64)
    warm = temperature(schedule, t)
    if not (warm > 0.0).all():
        worst = t[~(warm > 0.0)].flat[0]
        raise ValueError(
            f"{who}: the temperature of {schedule} is 0 at t = {worst:g}: ask later times"
        )
    return warm
