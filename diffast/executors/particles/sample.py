"""`df.sample_particles`: steering by particles, as in TDS and FK steering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from diffast import _arguments as arguments
from diffast import ops, planning
from diffast.executors import context
from diffast.executors.device import on_host
from diffast.executors.initial import origin_of, put_start
from diffast.executors.particles.potential import POTENTIALS, Potential
from diffast.executors.particles.proposal import Proposal, check_particle_plan, for_particles
from diffast.executors.particles.resampling import (
    effective_number,
    log_mean,
    normalised,
    systematic,
    uniforms,
)
from diffast.executors.results import FINE, NonFiniteError, check_finite
from diffast.executors.stepwise import State, Stepper
from diffast.lowering.program import Identity
from diffast.model.denoiser import Denoiser
from diffast.planning.choose import whole_calls
from diffast.plans import Plan

WHO = "sample_particles"

# Ids of a sample's particles lie so far apart; the first particle has the sample's own.
_APART = 1 << 40

Reward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ParticleSamples:
    """What `df.sample_particles` returns: weighed samples of the steered distribution.

    Attributes:
        x: the particles [N, K, ...]; NaN for one that failed.
        weights: their weights [N, K] float64, adding up to 1 for each sample.
        reward: of each particle, scaled, [N, K] float64.
        log_normaliser: estimate of log E[exp(reward)] over the unsteered samples, [N] float64.
            Its exponential is unbiased.
        effective: effective number of particles at every network call, before a resampling, and at
            the end, [S + 1, N].
        resampled: whether the particles were resampled at each network call, [S, N] bool.
        ancestors: which of the initial particles each particle descends from, [N, K] int64.
        nfe: network calls of each particle, [N] int64.
        status: [N, K] int64: -1 for a particle that is fine, else the number of the network call
            after which it failed. A particle that fails has weight 0; the next resampling replaces
            it.
    """

    x: torch.Tensor
    weights: torch.Tensor
    reward: torch.Tensor
    log_normaliser: torch.Tensor
    effective: torch.Tensor
    resampled: torch.Tensor
    ancestors: torch.Tensor
    nfe: torch.Tensor
    status: torch.Tensor

    @property
    def fine(self) -> torch.Tensor:
        """Returns whether each sample has a particle that is fine, [N] bool."""
        return (self.status == FINE).any(dim=1)

    def best(self) -> torch.Tensor:
        """Returns the particle of the highest reward of each sample, [N, ...]."""
        top = torch.where(self.status == FINE, self.reward, -torch.inf).argmax(dim=1)
        return self.x[torch.arange(len(self.x), device=self.x.device), top]

    def mean(self) -> torch.Tensor:
        """Returns the weighted mean of the particles of each sample, [N, ...]."""
        shape = (*self.weights.shape, *[1] * (self.x.dim() - 2))
        parts = torch.where(self.weights.view(shape) > 0, self.x, 0.0)
        return (parts * self.weights.view(shape).to(self.x.dtype)).sum(dim=1)

    def draw(self, seed: int = 0) -> torch.Tensor:
        """Returns one particle of each sample, drawn by the weights, [N, ...]."""
        rows = torch.arange(len(self.x), device=self.x.device)
        point = uniforms(ops.fold_seed(seed), rows, len(self.resampled))
        total = torch.cumsum(self.weights, dim=1)
        at = torch.searchsorted(total / total[:, -1:], point[:, None], right=True)
        return self.x[rows, at[:, 0].clamp(max=self.weights.shape[1] - 1)]


def sample_particles(
    denoiser: Denoiser,
    plan: Plan | None = None,
    *,
    reward: Reward,
    particles: int = 4,
    scale: float = 1.0,
    potential: str = "difference",
    threshold: float = 0.5,
    until: float = 0.0,
    shape: Sequence[int] | None = None,
    x: torch.Tensor | None = None,
    calls: int | None = None,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    clamp: context.Clamp | None = None,
    device: torch.device | str | None = None,
    throw: bool = True,
) -> ParticleSamples:
    """Returns samples of p(x) exp(scale reward(x)), by K particles a sample.

    Every particle is a run of its own. At every network call it is weighed by the reward of its x0
    estimate. Where too few particles are effective (`threshold`), the heavy ones take the places of
    the light ones, all that the solver remembers of them included. Feynman-Kac
    steering (Singhal et al. 2025, arXiv:2501.06848); for a denoiser with guidance terms the twisted
    diffusion sampler (Wu et al. 2023, arXiv:2306.17775), where the terms make the steps, and the
    weights take out what they change. Exact for any reward in the limit of many particles. A
    reward can also be a log-likelihood, and need not be differentiable.

        plan = df.solvers.ddim(schedule, grid, eta=1.0)
        out = df.sample_particles(denoiser, plan, reward=score, particles=8, shape=(16, 1, 28, 28))
        out.best(), out.draw(), out.mean()

    The noise of a particle depends on seed, id and slot alone. Copies differ from then on: the ids
    stay with the slots. The first particle's noise is that of `df.sample`. A step without fresh
    noise takes no guidance terms, since it has no density that could be corrected. Terms have to be
    small beside the fresh noise: their weight as a score is; a term of through="x0" needs a scale
    that falls with sigma^2.

    Args:
        denoiser: the network, its conditions (one row a sample) and guidance.
        plan: of a stochastic solver.
        reward: (x0 [N K, ...], t [N K]) -> reward [N K]; the K particles of a sample stand
            together. -inf rules a particle out.
        particles: K, for each sample.
        scale: of the reward.
        potential: "difference", "max" or "sum" (Singhal et al., section 3): what the rewards on
            the way do; the samples have the same distribution for many particles.
        threshold: t, of resampling where fewer than 1 + t (K - 1) particles are effective; 0:
            never; 1: whenever the weights differ.
        until: sigma/alpha below which nothing is resampled any more.
        shape: [N, ...] of the samples; not needed if x is given.
        x: the initial states of the particles [N, K, ...].
        calls: in place of a plan: that of `df.plan(denoiser, calls, stochastic=True)`.
        seed: any integer of 64 bits.
        ids: N integers, of less than 2^40, which fix each sample's noise; default 0 .. N-1.
        clamp: (low, high) for the x0 estimate, before the reward and the guidance terms see it.
        device: as for `df.sample`.
        throw: whether samples without a particle that is fine raise.

    Raises:
        TypeError: for a plan and calls together, or neither.
        ValueError: for a plan that draws no noise; guidance terms with a plan whose steps have no
            density; a reward that is NaN, +inf, or of another shape than [N K]; arguments that
            disagree.
        NonFiniteError: if all particles of a sample failed; its `result` holds the others.
    """
    if plan is None and calls is not None:  # the plan to start with is one that draws noise
        plan = planning.plan(denoiser, whole_calls(WHO, calls), stochastic=True)
        calls = None
    plan = context.plan_of(WHO, denoiser, plan, calls)
    particles = arguments.whole(WHO, "particles", particles)
    scale, threshold, until = _numbers(scale, threshold, until)
    arguments.function(WHO, "reward", reward, optional=False)
    arguments.choice(WHO, "potential", potential, POTENTIALS)
    context.check_flags(WHO, throw=throw)
    check_particle_plan(WHO, plan, denoiser)
    if x is not None and (arguments.state(WHO, "x", x).dim() < 2 or x.shape[1] != particles):
        raise ValueError(
            f"{WHO}: x is {list(x.shape)}, but [N, K, ...] with K = {particles} particles is needed"
        )
    if x is not None and on_host(x.device):
        check_finite(WHO, x)
    first = None if x is None else x[:, 0]
    whole = context.place_of(WHO, denoiser, shape, first, device, seed, ids, clamp, looks=False)
    run = _Run(denoiser, plan, whole, particles, reward, scale, potential)
    # not inference mode, whose tensors no guidance term could be differentiated at
    with torch.inference_mode(False), torch.no_grad():
        run.start(x)
        for i in range(plan.nfe):
            run.stage(i, threshold, until)
        made = run.result()
    if throw and not bool(made.fine.all()):
        lost = (~made.fine).nonzero()[:, 0].tolist()
        raise NonFiniteError(
            f"{WHO}: all {particles} particles of {len(lost)} of {len(made.x)} samples failed: "
            + ", ".join(map(str, lost[:8])),
            made,
        )
    return made


class _Run:
    """The particles of all samples, as [N K] rows of one batch."""

    def __init__(self, denoiser, plan, whole: context.Place, count, reward, scale, potential):
        samples = whole.shape[0]
        device = whole.device
        self.samples, self.count, self.plan, self.ids = samples, count, plan, whole.ids
        self.reward, self.scale = reward, float(scale)
        slots = torch.arange(count, dtype=torch.int64, device=device)
        rows = (whole.ids[:, None] + slots * _APART).reshape(-1)
        shape = (samples * count, *whole.shape[1:])
        self.place = whole._replace(shape=shape, ids=rows)
        owner = torch.arange(samples, device=device).repeat_interleave(count)
        own = for_particles(denoiser, samples, count)
        self.proposal = Proposal(own, plan, self.place, owner)
        self.stepper = Stepper(plan, Identity(), device=device)
        self.levels = _ratios(plan)
        like = torch.zeros(samples, count, dtype=torch.float64, device=device)
        self.potential, self.log_weights = Potential(potential, like), like
        self.log_normaliser = like[:, 0].clone()
        self.ancestors = slots.expand(samples, count).clone()
        self.effective: list[torch.Tensor] = []
        self.resampled: list[torch.Tensor] = []
        self.state: State

    def start(self, x: torch.Tensor | None) -> None:
        """Puts the particles at the plan's start."""
        state = self.place.empty()
        given = None if x is None else x.reshape(self.place.shape)
        origin = origin_of(self.plan, self.proposal.denoiser.conditions)
        put_start(WHO, state, given, origin, self.place)
        self.state, _, _ = self.stepper.start(state, seed=self.place.seed, ids=self.place.ids)

    def stage(self, i: int, threshold: float, until: float) -> None:
        """Makes one network call, weighs the particles, resamples them, and takes the step."""
        x = self.state.x
        x0, added = self.proposal.estimate(i, x)
        self.log_weights = self.log_weights + self.potential.step(self._rewards(i, x0))
        effective = effective_number(self.log_weights)
        # of 2 particles one at least is effective, so the bound counts from there
        low = effective - 1.0 < threshold * (self.count - 1) * (1.0 - 1e-12)
        low &= (self.log_weights > -torch.inf).any(dim=1) & (self.levels[i] >= until)
        self.effective.append(effective)
        self.resampled.append(low)
        if bool(low.any()):
            parts = [x, x0] if added is None else [x, x0, added]
            x, x0, *rest = self._resample(i, low, parts)
            added = rest[0] if rest else None
        guided = x0 if added is None else x0 + added
        self.state, _, _ = self.stepper.step(self.state, guided)
        if added is not None:
            ratio = self.proposal.log_ratio(i, x, x0, added, self.state.x).view_as(self.log_weights)
            self.log_weights = self.log_weights + torch.where(ratio.isnan(), -torch.inf, ratio)

    def _resample(self, i: int, low: torch.Tensor, parts: list) -> list[torch.Tensor]:
        """Gives heavy particles the slots of light ones, in the samples that need it."""
        weights = normalised(self.log_weights)
        taken = systematic(weights, uniforms(self.place.seed, self.ids, i))
        own = torch.arange(self.count, device=taken.device).expand_as(taken)
        taken = torch.where(low[:, None], taken, own)
        gained = torch.where(low, log_mean(self.log_weights), 0.0)
        self.log_normaliser = self.log_normaliser + gained
        self.log_weights = torch.where(low[:, None], 0.0, self.log_weights)
        self.potential.take(taken)
        self.ancestors = self.ancestors.gather(1, taken)
        offsets = torch.arange(self.samples, device=taken.device)[:, None] * self.count
        rows = (taken + offsets).reshape(-1)
        # the noise stays with the slot, so that copies part
        self.state = self.stepper.select(self.state, rows)._replace(ids=self.place.ids)
        return [part[rows] for part in parts]

    def _rewards(self, i: int, x0: torch.Tensor) -> torch.Tensor:
        """Returns the scaled rewards of estimates, [N, K]; -inf for those that are not finite."""
        last = i == self.plan.nfe
        time = self.plan.end if last else self.plan.call_times[i]
        where = "of the samples" if last else f"at network call {i}"
        told = torch.full((len(x0),), float(time), dtype=x0.dtype, device=x0.device)
        made = self.reward(x0.clone(), told)
        if not isinstance(made, torch.Tensor) or made.shape != x0.shape[:1]:
            got = list(made.shape) if isinstance(made, torch.Tensor) else type(made).__name__
            raise ValueError(
                f"{WHO}: {len(x0)} particles but the reward returned {got}, not [{len(x0)}]"
            )
        if made.device != x0.device:
            raise ValueError(
                f"{WHO}: the reward is on {made.device} but the particles are on {x0.device}"
            )
        made = made.double() * self.scale
        alive = x0.isfinite().reshape(len(x0), math.prod(x0.shape[1:])).all(dim=1)
        bad = alive & (made.isnan() | (made == torch.inf))
        if bool(bad.any()):
            row = int(bad.nonzero()[0, 0])
            raise ValueError(
                f"{WHO}: the reward {where} is {float(made[row])} for sample {row // self.count}, "
                f"particle {row % self.count}, but it must be finite or -inf"
            )
        return torch.where(alive, made, -torch.inf).view(self.samples, self.count)

    def result(self) -> ParticleSamples:
        """Returns the particles with the weights of their own rewards."""
        x = self.state.x
        rewards = self._rewards(self.plan.nfe, x)
        self.log_weights = self.log_weights + self.potential.last(rewards)
        self.effective.append(effective_number(self.log_weights))
        status = self.state.status.view(self.samples, self.count)
        both = (self.samples, self.count, *x.shape[1:])
        shaped = status.view(-1, *[1] * (x.dim() - 1))
        x = torch.where(shaped == FINE, x, torch.nan)
        return ParticleSamples(
            x.view(both),
            normalised(self.log_weights),
            rewards,
            self.log_normaliser + log_mean(self.log_weights),
            torch.stack(self.effective),
            torch.stack(self.resampled),
            self.ancestors,
            torch.full_like(self.ids, self.plan.nfe),
            status,
        )


def _ratios(plan: Plan) -> list[float]:
    """Returns sigma/alpha at every network call."""
    alpha, sigma = plan.schedule.alpha(plan.call_times), plan.schedule.sigma(plan.call_times)
    return [float(s / a) if a > 0 else float("inf") for a, s in zip(alpha, sigma, strict=True)]


def _numbers(scale, threshold, until) -> tuple[float, float, float]:
    """Returns the numbers of a run; raises for those that no run can have."""
    return (
        arguments.number(WHO, "scale", scale),
        arguments.number(WHO, "threshold", threshold, "lie in [0, 1]", lambda n: 0.0 <= n <= 1.0),
        arguments.number(WHO, "until", until, "be 0 or more", lambda n: n >= 0.0),
    )
