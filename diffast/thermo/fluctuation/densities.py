"""Gaussian log-densities of paths: of noising kernels, of a plan's own steps, of start and end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from diffast.plans.gaussian import Gaussian


def log_normal(x: torch.Tensor, mean: Any, deviation: float) -> torch.Tensor:
    """Returns log N(x; mean, deviation^2 I), [B] float64."""
    square = ((x - mean).double() / deviation).square().flatten(1).sum(1)
    d = x[0].numel()
    return -0.5 * square - d * (math.log(deviation) + 0.5 * math.log(2.0 * math.pi))


def log_gaussian(x: torch.Tensor, law: Gaussian, alpha: float, sigma: float) -> torch.Tensor:
    """Returns the log-density [B] float64 of states of Gaussian data at a noise level."""
    apart = x.double().flatten(1) - alpha * torch.tensor(law.mean, device=x.device)
    along = apart @ torch.tensor(law.basis, device=x.device).T
    sizes = alpha**2 * torch.tensor(law.variances, device=x.device) + sigma**2
    rest, left = alpha**2 * law.rest + sigma**2, law.d - len(sizes)
    if not (bool((sizes > 0.0).all()) and (rest > 0.0 or not left)):
        return torch.full((len(x),), torch.inf, dtype=torch.float64)  # no density
    rest = rest or 1.0
    square = (along.square() / sizes).sum(1)
    # rounding may leave a little below 0
    square += (apart.square().sum(1) - along.square().sum(1)).clamp(min=0.0) / rest
    log_sizes = float(sizes.log().sum()) + left * math.log(rest)
    return -0.5 * (square + log_sizes + law.d * math.log(2.0 * math.pi))


def kernels(
    who: str, levels: list[tuple[float, float]], names: list[str], instead: str
) -> list[tuple[float, float]]:
    """Returns (factor, deviation) of the noising steps between levels, cleanest last.

    Step k leads from levels[k + 1] to levels[k], x_k = a x_{k+1} + deviation z with a = alpha_k /
    alpha_{k+1} and variance sigma_k^2 - a^2 sigma_{k+1}^2: the noising process of the schedule.

    Raises:
        ValueError: levels whose noise does not fall, for then no such step exists.
    """
    made = []
    pairs = zip(levels[:-1], levels[1:], names[:-1], names[1:], strict=True)
    for (alpha, sigma), (next_alpha, next_sigma), name, following in pairs:
        a = alpha / next_alpha if next_alpha else math.inf
        left = (sigma - a * next_sigma) * (sigma + a * next_sigma)
        if not left > 0.0:
            raise ValueError(
                f"{who}: sigma/alpha is {_ratio(alpha, sigma)} at {name} and "
                f"{_ratio(next_alpha, next_sigma)} at {following}, but the noising process of the "
                f"schedule needs it to fall along a run: {instead}"
            )
        made.append((a, math.sqrt(left)))
    return made


def _ratio(alpha: float, sigma: float) -> str:
    return f"{sigma / alpha:.6g}" if alpha else "infinite"


def of_ends(who: str, given: Any, x: torch.Tensor, what: str, *level: float) -> torch.Tensor:
    """Returns log-densities [B] float64 of states, from numbers, a function or a closed form.

    Args:
        who: the public function.
        given: [B] numbers; a function of x; a `Gaussian`; or an object with `log_density(x, alpha,
            sigma)`. The last two are asked at the level (1, 0) where none is given.
        x: [B, ...].
        what: which end, for messages.
        level: alpha, sigma.

    Raises:
        ValueError: no density given; other shapes; a density that is not finite at a state.
    """
    if given is None:
        raise ValueError(
            f"{who}: no log-density at the {what} is given, but the entropy of a path needs one at "
            "both ends"
        )
    if isinstance(given, Gaussian):
        found = log_gaussian(x, given, *(level or (1.0, 0.0)))
    elif hasattr(given, "log_density"):
        found = given.log_density(x.double().flatten(1).cpu(), *level)
    else:
        found = given(x) if callable(given) else given
    found = torch.as_tensor(found).detach().double().to(x.device)
    if found.shape != x.shape[:1]:
        raise ValueError(
            f"{who}: log-densities at the {what} are {list(found.shape)}, but there are "
            f"{len(x)} paths"
        )
    bad = int((~found.isfinite()).sum())
    if bad:
        raise ValueError(
            f"{who}: the log-density at the {what} is not finite for {bad} of {len(x)} paths, but "
            "the theorem needs a density at both ends: points (Dirac data) have none, so stop at a "
            "noise level above 0"
        )
    return found


def start_density(who: str, given: Any, *level: float) -> Callable[[torch.Tensor], Any] | None:
    """Returns the function of states that `of_ends` is for the start; None where none is given."""
    if given is None:
        return None
    return lambda state: of_ends(who, given, state, "start", *level)
