"""`log_likelihood`: the density that a plan gives to data, by Jarzynski's equality."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.thermo.estimate import FewSamplesWarning
from diffast.thermo.fluctuation.chain import Chain
from diffast.thermo.fluctuation.densities import start_density
from diffast.thermo.fluctuation.paths import Paths, estimates_of
from diffast.tuning.pilots import tiled

# Below this effective number of paths the mean of the weights is that of a few of them.
FEW = 10.0

# Paths have ids from here on: none has the noise that a sample of the same seed was made of.
FIRST_ID = 6 << 40


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log-densities of data under the sampler that a plan is.

    Attributes:
        value: [N] float64, log <W> over the paths: the estimate of the log-density, in nats. It is
            too small on average, and less so with more paths.
        error: [N] its standard error, by the delta method; NaN with one path. It means little where
            `ess` is small.
        elbo: [N] <log W>, a lower bound of the log-density without bias (evidence lower bound).
        elbo_error: [N] its standard error.
        ess: [N] effective number of paths, (sum W)^2 / sum W^2, from 1 to `paths`.
        log_weights: [N, paths] log W of each path.
        paths: paths of each x.
        level: (alpha, sigma) at which x is taken to stand.
        observation_noise: deviation of the noise added to the sample; None: none.
        noising: "plan" or "schedule", see `log_likelihood`.
        d: elements of one x.
    """

    value: torch.Tensor
    error: torch.Tensor
    elbo: torch.Tensor
    elbo_error: torch.Tensor
    ess: torch.Tensor
    log_weights: torch.Tensor
    paths: int
    level: tuple[float, float]
    observation_noise: float | None
    noising: str
    d: int

    @property
    def gap(self) -> torch.Tensor:
        """Returns log <W> - <log W> [N] >= 0: the dissipation, in nats."""
        return self.value - self.elbo

    def bits_per_dimension(self, bin_width: float = 1.0, bound: bool = False) -> torch.Tensor:
        """Returns -log2 of the probability of a bin, over the number of elements, [N].

        Args:
            bin_width: width of the bin of one element in units of x: 2/255 for pixels of 256 values
                on [-1, 1].
            bound: whether to use the lower bound `elbo` instead of `value`.
        """
        nats = self.elbo if bound else self.value
        return -nats / (self.d * math.log(2.0)) - math.log2(bin_width)

    def __str__(self) -> str:
        """Returns the means over x in one line, and what density it is."""
        of = f"alpha x0 + sigma eps at alpha = {self.level[0]:.6g}, sigma = {self.level[1]:.3g}"
        if self.observation_noise is not None:
            of = f"the sample plus noise of deviation {self.observation_noise:g}"
        return (
            f"log-likelihood {float(self.value.mean()):.5g} nats, bound "
            f"{float(self.elbo.mean()):.5g}, {self.paths} paths of which "
            f"{float(self.ess.median()):.3g} count; density of {of}"
        )


def log_likelihood(
    denoiser: Denoiser,
    plan: Plan,
    x: torch.Tensor,
    *,
    paths: int = 100,
    noising: str = "auto",
    observation_noise: float | None = None,
    log_start: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
    rows: int = 4096,
    warn: bool = True,
) -> Likelihood:
    """Returns the log-density that a run of the plan gives to x: of the sampler, not of an ODE.

    A path leads from x to noise by a noising process q and is weighed against the plan's run p,

        log W = log pi(x_0) + sum_k log p(x_{k+1} | x_0 .. x_k) - log q(x_0 .. x_{K-1} | x_K = x)

    <W> over the paths is the density p(x), exactly and for any number of steps (Jarzynski 1997;
    annealed importance sampling, Neal 2001); <log W> is the evidence lower bound of Ho et al. 2020.
    The difference is the dissipation of the run: with a large one <W> is the mean of a few paths,
    which `ess` tells. The means of p are the plan's rows over the network's x0 estimates, memory of
    multistep methods included.

    A plan whose last step draws no noise (into sigma = 0) has no density at its end. Then either
    x is taken as the state at the last noise level, which `level` of the result says, or the
    density is that of the sample plus `observation_noise` times a normal.

    Args:
        denoiser: the network; its conditions have one row each x, or one for all.
        plan: a plan with noise, such as `df.solvers.ddpm`, `ddim` with eta, `dpmpp_2m_sde`.
        x: data [N, ...]. Means are computed in its dtype, densities in float64.
        paths: paths for each x.
        noising: how paths are drawn. "schedule": by the schedule's noising steps. It dissipates
            least for plans with the noise of the reverse SDE or more (eta = 1). "plan": by the
            plan's own steps with x / alpha for every estimate, the process of Song et al. 2021
            (DDIM, eq. 7). It dissipates less for plans with less noise. "auto": "schedule" where
            every step draws at least the noise of the noising process's posterior.
        observation_noise: deviation of noise added to the sample, in units of x; for plans whose
            last step draws none.
        log_start: log-density [B] of initial states [B, ...], for runs that start at another law
            than the plan's noise.
        seed: of the paths' noise. No sample of `df.sample` has the noise of a path.
        rows: states that the network is called on at once.
        warn: whether to warn where `ess` is below 10.

    Raises:
        ValueError: a plan without noise, or one whose states have no density (see the message);
            x that is not finite; arguments that disagree; what the network's call raises.
    """
    who = "log_likelihood"
    _check(x, paths)
    chain = Chain(who, plan)
    made = Paths(who, chain, noising, observation_noise)
    count, each = len(x), max(1, rows // max(len(x), 1))
    logs = torch.empty((count, paths), dtype=torch.float64, device=x.device)
    start_of = start_density(who, log_start, *chain.start)
    with torch.no_grad():
        for first in range(0, paths, each):
            many = min(each, paths - first)
            data = torch.cat([x] * many).contiguous()
            estimate = estimates_of(who, chain, tiled(denoiser, many, count))
            ids = torch.arange(many * count, dtype=torch.int64, device=x.device) + first * count
            ids = ids + FIRST_ID
            start, states = made.draw(data, seed, ids)
            weight = made.run_density(data, start, states, estimate, start_of)
            weight = weight - made.noising_density(data, start, states)
            logs[:, first : first + many] = weight.reshape(many, count).T
    return _result(logs, made, observation_noise, x[0].numel(), warn)


def _result(logs, made, observation_noise, d, warn) -> Likelihood:
    paths = logs.shape[1]
    value = logs.logsumexp(1) - math.log(paths)
    ratio = (logs - value[:, None]).exp()  # W / <W>
    spread = ratio.std(1) if paths > 1 else torch.full_like(value, torch.nan)
    own = logs.std(1) if paths > 1 else torch.full_like(value, torch.nan)
    ess = paths / ratio.square().mean(1)
    few = int((ess < FEW).sum())
    if few and warn:
        warnings.warn(
            f"log_likelihood: for {few} of {len(value)} x the {paths} paths count as fewer than "
            f"{FEW:g} (least {float(ess.min()):.3g}), so log <W> is that of the luckiest path: "
            "read the lower bound `elbo`, or take more paths, more steps or fewer dimensions",
            FewSamplesWarning,
            stacklevel=3,
        )
    return Likelihood(
        value,
        spread / math.sqrt(paths),
        logs.mean(1),
        own / math.sqrt(paths),
        ess,
        logs,
        paths,
        made.level,
        observation_noise,
        made.noising,
        d,
    )


def _check(x: Any, paths: Any) -> None:
    if not isinstance(x, torch.Tensor) or x.dim() < 2 or not len(x) or not x.is_floating_point():
        shape = list(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"log_likelihood: x is {shape}, but a tensor [N, ...] of N data is needed")
    if not bool(x.isfinite().all()):
        bad = int((~x.isfinite().flatten(1).all(1)).sum())
        raise ValueError(f"log_likelihood: {bad} of {len(x)} x are not finite")
    try:
        fine = operator.index(paths) >= 1
    except TypeError:
        fine = False
    if not fine:
        raise ValueError(f"log_likelihood: paths = {paths!r}, but at least 1 path is needed")
