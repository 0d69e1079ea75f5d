"""k-diffusion's lists of noise levels, computed in float64."""

from __future__ import annotations

import numpy as np
import torch


def get_sigmas_karras(n, sigma_min, sigma_max, rho=7.0, device="cpu") -> torch.Tensor:
    """Returns n noise levels evenly spaced in sigma^(1/rho), then 0 (Karras et al. 2022); [n+1].

    As in k-diffusion sigma_min may be 0, or above sigma_max; the dtype is torch's default.

    Raises:
        ValueError: a level that is negative or not finite, rho that is 0.
    """
    who = "get_sigmas_karras"
    low, high = (level_of(who, name, of) for name, of in ends_of(sigma_min, sigma_max))
    low, high = (level ** (1.0 / _number(who, "rho", rho, zero=False)) for level in (low, high))
    return _levels(who, (high + _ramp(who, n, 0.0, 1.0) * (low - high)) ** rho, device)


def get_sigmas_exponential(n, sigma_min, sigma_max, device="cpu") -> torch.Tensor:
    """Returns n noise levels evenly spaced in log sigma, then 0; [n+1].

    Raises:
        ValueError: a level that is not positive and finite.
    """
    who = "get_sigmas_exponential"
    low, high = (np.log(level_of(who, name, of, 0.0)) for name, of in ends_of(sigma_min, sigma_max))
    return _levels(who, np.exp(high + _ramp(who, n, 0.0, 1.0) * (low - high)), device)


def get_sigmas_polyexponential(n, sigma_min, sigma_max, rho=1.0, device="cpu") -> torch.Tensor:
    """Returns n noise levels from sigma_max to sigma_min, then 0; [n+1].

    log sigma = log sigma_min + u^rho log(sigma_max / sigma_min), u from 1 to 0 in even steps.

    Raises:
        ValueError: a level that is not positive and finite.
    """
    who = "get_sigmas_polyexponential"
    low, high = (np.log(level_of(who, name, of, 0.0)) for name, of in ends_of(sigma_min, sigma_max))
    u = _ramp(who, n, 1.0, 0.0) ** _number(who, "rho", rho)
    return _levels(who, np.exp(low + u * (high - low)), device)


def get_sigmas_vp(n, beta_d=19.9, beta_min=0.1, eps_s=1e-3, device="cpu") -> torch.Tensor:
    """Returns sigma/alpha of `df.schedules.vp_linear` at n even times from 1 to eps_s, then 0.

    Raises:
        ValueError: a number that is not finite; levels that are not.
    """
    who = "get_sigmas_vp"
    beta_d, beta_min = _number(who, "beta_d", beta_d), _number(who, "beta_min", beta_min)
    t = _ramp(who, n, 1.0, _number(who, "eps_s", eps_s))
    with np.errstate(over="ignore", invalid="ignore"):
        levels = np.sqrt(np.expm1(0.5 * beta_d * t**2 + beta_min * t))
    return _levels(who, levels, device)


def ends_of(sigma_min, sigma_max) -> tuple:
    """Returns both levels with their names."""
    return ("sigma_min", sigma_min), ("sigma_max", sigma_max)


def _number(who, name, value, zero=True):
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{who}: {name} is {value!r}, but a number is needed") from None
    if not np.isfinite(found) or (not zero and found == 0.0):
        raise ValueError(f"{who}: {name} is {found:g}, but a finite number is needed")
    return found


def level_of(who: str, name: str, value, above: float = -np.inf) -> float:
    """Returns a noise level as a number.

    Raises:
        ValueError: one that is negative, not above `above`, or not finite.
    """
    found = _number(who, name, value)
    if found < 0.0 or found <= above:
        least = "a positive noise level" if above == 0.0 else "a noise level from 0"
        raise ValueError(f"{who}: {name} is {found:g}, but {least} is needed")
    return found


def _ramp(who, n, first, last):
    count = n.__index__() if hasattr(n, "__index__") else -1
    if count < 0:
        raise ValueError(f"{who}: n is {n!r}, but a whole number from 0 is needed")
    return np.linspace(first, last, count)


def _levels(who, levels, device):
    if not np.isfinite(levels).all():
        bad = int(np.argmin(np.isfinite(levels)))
        raise ValueError(f"{who}: noise level {bad} is {levels[bad]:g}, but must be finite")
    return torch.tensor(np.append(levels, 0.0), dtype=torch.get_default_dtype(), device=device)
