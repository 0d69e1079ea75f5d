"""`df.sample_metropolis`: a plan's steps with Metropolis-adjusted Langevin chains between them.

A chain stands at a place between two steps, at the model time t, and moves x in a way that leaves
the density exp(-energy(x, t)) exactly as it is, whatever its step. Its proposal uses the network's
score, which need not be the gradient of the energy. A sample takes or leaves its own proposal.

    mala    x' = x + h s + sqrt(2h) z        taken with the probability min(1, r),
            log r = E(x) - E(x') + (|x' - x - h s|^2 - |x - x' - h s'|^2) / (4h)
    ghmc    v <- e v + sqrt(1 - e^2) z, e = exp(-g h); then one leapfrog step,
            x' = x + h v + h^2/2 s, v' = v + h/2 (s + s')
            log r = E(x) - E(x') + (|v|^2 - |v'|^2) / 2; where it is not taken, v <- -v

(Besag 1994; Roberts and Tweedie 1996, "Exponential convergence of Langevin distributions"; Horowitz
1991, "A generalized guided Monte Carlo algorithm".) z of a sample depends on (seed, id, number of
the chain's step) alone, and so does the uniform number that decides.

A step of a chain is one network call, one call of the energy, and 8 kernels. Four of these go over
the state: `combine` makes the proposal with its noise, `combine` makes the score there (and v'),
`gram` makes the two squared lengths, `where` takes or leaves all of a sample. The other four are
over [B] numbers; the decision itself is one call of `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast import ops
from diffast.executors import context
from diffast.executors.initial import origin_of, put_start
from diffast.executors.results import FINE, Result
from diffast.executors.stepwise import Stepper
from diffast.lowering.program import COND, UNCOND, check_plain_calls, check_plain_rule, lower
from diffast.lowering.recorder import Recording
from diffast.model.denoiser import Denoiser
from diffast.model.times import time_dtype, told_time
from diffast.ops.evaluate.encode import encode
from diffast.plans import Plan
from diffast.plans.places import Place, Where, chosen, last_reads, places
from diffast.plans.registers import X

_WHO = "sample_metropolis"
Energy = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Number = float | Callable[[float], float]

# Of each proposal: the default step, and the power of sigma that it is measured in.
PROPOSALS = {"mala": (0.5, 2), "ghmc": (0.8, 1)}


@dataclass(frozen=True)
class MetropolisSamples(Result):
    """What `df.sample_metropolis` returns: a `Result`.

    Attributes:
        times: model times of the chains, [V] float64 on the CPU.
        acceptance: share of the proposals that each sample took in each chain, [V, B] float64.
    """

    times: torch.Tensor
    acceptance: torch.Tensor


def sample_metropolis(
    denoiser: Denoiser,
    plan: Plan,
    energy: Energy,
    shape: Sequence[int] | None = None,
    *,
    proposal: str = "mala",
    n: int = 1,
    step: Number | None = None,
    friction: Number = 2.0,
    where: Where = None,
    x: torch.Tensor | None = None,
    seed: int = 0,
    ids: Sequence[int] | torch.Tensor | None = None,
    device: torch.device | str | None = None,
    throw: bool = True,
) -> MetropolisSamples:
    """Returns samples of a plan whose steps have Metropolis-adjusted chains between them.

    A chain leaves the density exp(-energy(x, t)) exactly as it is, for a step of any size; an
    unadjusted corrector has an error of its step. The network is called n + 1 times in a chain.
    The other arguments are those of `df.sample`.

    Args:
        denoiser: the network and what it predicts.
        plan: a plan of a one-step solver for the denoiser's schedule.
        energy: called as energy(x, t) with states [B, ...] and model times [B]; returns -log p_t of
            each, up to a constant, [B]. A proposal whose energy is not finite is not taken.
        shape: [B, ...] of the state; not needed with `x`.
        proposal: "mala" (overdamped) or "ghmc" (underdamped, one leapfrog step at a time).
        n: steps of each chain.
        step: h in units of sigma^2 for "mala" (default 0.5), of sigma for "ghmc" (default 0.8); a
            number or a function of the model time.
        friction: g of "ghmc", in units of 1/sigma; a number or a function of the model time.
        where: after which steps chains run, as in `df.solvers.predictor_corrector`.
        x: the initial state, as for `df.sample`. Not written to.
        seed: any integer of 64 bits.
        ids: B integers of 64 bits; default 0 .. B-1.
        device: where to run; default: that of `x`, else the network's.
        throw: whether failed samples raise; otherwise `status` says which failed.

    Raises:
        ValueError: for arguments that disagree; a plan that remembers entries, which belong to the
            path before a chain, or whose steps do not begin at x alone; guidance terms, or a rule
            that needs each sample's outputs; an energy that returns another shape, device or dtype.
        NonFiniteError: at the end of the run, if samples, or energies at the start of a chain, are
            not finite; its `result` holds the others.
    """
    context.check_plan(_WHO, plan)
    context.check_fits(_WHO, plan, denoiser)
    _check_guidance(plan, denoiser)
    arguments.function(_WHO, "energy", energy, optional=False)
    context.check_flags(_WHO, throw=throw)
    rule = _Rule(proposal, n, step, friction)
    stops = {place.before: place for place in chosen(_WHO, plan, places(_WHO, plan), where)}
    _check_places(plan, stops)
    place = context.place_of(_WHO, denoiser, shape, x, device, seed, ids, None)
    context.warn_of_spread(_WHO, plan.schedule, plan.start, x, plan.initial)
    # No inference mode: networks of energies differentiate them, under torch.enable_grad.
    with torch.no_grad():
        run = _Run(denoiser, plan, energy, rule, place)
        run.start(x, stops.get(0))
        for call in range(plan.nfe):
            run.step(call)
            after = int(plan.calls[call]) + 1
            if after in stops:
                run.chain(stops[after])
    return run.result(throw, x, [stops[k].time for k in sorted(stops)])


def _check_guidance(plan: Plan, denoiser: Denoiser) -> None:
    """Refuses guidance that is no row of weights over one network call's outputs."""
    check_plain_calls(_WHO, plan)
    check_plain_rule(_WHO, denoiser)
    if denoiser.guides:
        raise ValueError(
            f"{_WHO}: the denoiser has {len(denoiser.guides)} guidance term(s), but a chain "
            "proposes by the network's score alone: use df.sample, or leave them out"
        )


def _check_places(plan: Plan, stops: dict[int, Place]) -> None:
    """Refuses chains where x has a size of its own, and those that entries are read across."""
    for stop in stops.values():
        if stop.scale != 1.0:
            raise ValueError(
                f"{_WHO}: {plan.name} has x at {1 / stop.scale:.3g} times the schedule's level at "
                f"t = {stop.time:g}, but an energy is that of the schedule: take a plan of "
                "df.solvers"
            )
    for maker, last in last_reads(plan).items():
        # Entries that the plan starts with are made after a chain at its start.
        crossed = [stop for before, stop in stops.items() if max(maker, 0) < before <= last]
        if crossed:
            entry = f"the entry of stage {maker}" if maker >= 0 else "an entry that it starts with"
            raise ValueError(
                f"{_WHO}: {plan.name} reads {entry} after the chain at t = "
                f"{crossed[0].time:g}, but the entry belongs to the path before the chain: take a "
                "one-step solver, such as euler or heun"
            )


class _Rule:
    """The numbers of a proposal at a level."""

    def __init__(self, proposal: str, n: int, step: Number | None, friction: Number):
        """Checks the options."""
        arguments.choice(_WHO, "proposal", proposal, PROPOSALS)
        n = arguments.whole(_WHO, "n", n)
        default, self.power = PROPOSALS[proposal]
        self.name, self.n = proposal, n
        self._step: Number = default if step is None else step
        self._friction: Number = friction

    def at(self, place: Place) -> tuple[float, float]:
        """Returns (h, e) at a place; e = exp(-g h) is what is kept of the momentum."""
        sigma = place.level[1]
        h = self._positive("step", self._step, place.time)
        kept = np.exp(-h * self._positive("friction", self._friction, place.time))
        return h * sigma**self.power, float(kept)

    def _positive(self, what: str, value: Number, t: float) -> float:
        given = value(t) if callable(value) else value
        return arguments.positive(_WHO, f"{what} at t = {t:g}", given, finite=True)


class _Run:
    """The state of a run: that of a stepper, and the buffers of a chain."""

    def __init__(self, denoiser: Denoiser, plan: Plan, energy: Energy, rule: _Rule, place):
        """Makes the buffers: the two ends of a proposal, x, s and for "ghmc" v of each."""
        self.denoiser, self.plan, self.energy = denoiser, plan, energy
        self.rule, self.place = rule, place
        self.batch, self.device = place.shape[0], place.device
        self.stepper = Stepper(plan, denoiser, device=place.device, dtype=denoiser.dtype)
        kinds = {stage.branches for stage in self.stepper.programs[0].stages}
        self.arguments = {k: denoiser.arguments(self.batch, place.device, k) for k in kinds}
        width = 3 if rule.name == "ghmc" else 2
        self.old, self.new = torch.empty(
            (2, width, *place.shape), dtype=place.dtype, device=place.device
        )
        self.decide = encode([_decision()]).to(place.device)
        self.steps = 0  # of all chains
        self.bad = torch.full((self.batch,), -1, dtype=torch.int64, device=place.device)
        self.acceptance: list[torch.Tensor] = []
        self.nfe = 0

    def start(self, x: torch.Tensor | None, stop: Place | None) -> None:
        """Puts the initial state where the first call stands."""
        state = self.place.empty()
        origin = origin_of(self.plan, self.denoiser.conditions)
        put_start(_WHO, state, x, origin, self.place)
        if stop is not None:
            self._chain_on(state, stop)
            state = self.old[0].clone()
        self.state, self.input, self.time = self.stepper.start(
            state, seed=self.place.seed, ids=self.place.ids
        )
        if stop is not None:
            self._note(stop)

    def step(self, call: int) -> None:
        """Makes one network call of the plan, and what follows it."""
        branches = self.stepper.programs[0].stages[call].branches
        outputs = self._network(self.input, self.time, branches)
        both = tuple(outputs.values())
        output = both[0] if len(both) == 1 else both
        if self.stepper.guided and len(both) == 1:
            output = both * 2
        self.state, self.input, self.time = self.stepper.step(self.state, output)

    def chain(self, stop: Place) -> None:
        """Moves the state by a chain."""
        self._chain_on(self.state.x, stop)
        x = self.old[0].clone()
        y = None if self.state.y is None else x
        self.state = self.state._replace(x=x, y=y)
        self.input = x if self.denoiser.dtype is None else x.to(self.denoiser.dtype)
        self._note(stop)

    def _note(self, stop: Place) -> None:
        failed = self.failed & (self.state.status == FINE)
        stage = max(int(np.searchsorted(self.plan.calls, stop.before)) - 1, 0)
        self.bad[failed] = len(self.acceptance) - 1
        self.state = self.state._replace(
            status=torch.where(failed, torch.full_like(self.state.status, stage), self.state.status)
        )

    def _network(self, x: torch.Tensor, t: torch.Tensor, branches: str) -> dict:
        """Returns the network's outputs by branch, [B, ...] each."""
        if branches == "both":
            x, t = torch.cat([x, x]), torch.cat([t, t])
        if branches not in self.arguments:
            found = self.denoiser.arguments(self.batch, self.device, branches)
            self.arguments[branches] = found
        # copies: the network may write into its times, which the rest of a chain needs
        output = self.denoiser.call(x, t.clone(), self.arguments[branches])
        self.nfe += 1
        if branches == "both":
            return dict(zip((COND, UNCOND), output.split(self.batch), strict=True))
        return {COND if branches == "cond" else UNCOND: output}

    def _energy(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        found = self.energy(x, t)
        good = isinstance(found, torch.Tensor) and found.shape == (self.batch,)
        if not good or found.device != x.device or not found.is_floating_point():
            told = f"a {type(found).__name__}"
            if isinstance(found, torch.Tensor):
                told = f"{list(found.shape)} of {found.dtype} on {found.device}"
            raise ValueError(
                f"{_WHO}: energy returned {told}, but a number for each of the {self.batch} "
                f"samples is needed, on {x.device}"
            )
        return found.to(torch.float64)

    def _chain_on(self, x: torch.Tensor, stop: Place) -> None:
        """Runs a chain from x; its end is old[0]."""
        rule, place = self.rule, self.place
        old, new = self.old, self.new
        h, keep = rule.at(stop)
        first = place.seed, ops.STEP_NOISE + self.plan.nfe + self.steps
        score = _Score(self.plan, self.denoiser, stop)
        kind = time_dtype(place.dtype)
        time = told_time(self.plan.schedule, stop.time, kind)
        told = torch.full((self.batch,), time, dtype=kind, device=self.device)
        uniform = torch.empty((self.batch, rule.n), dtype=torch.float32, device=self.device)
        ops.normal_out(
            place.ids, first[0], ops.COUPLING_NOISE + self.plan.nfe + self.steps, 1.0, uniform
        )
        # the distribution function of a normal number is a uniform number
        log_uniform = torch.special.log_ndtr(uniform.double())
        old[0].copy_(x)
        status = torch.full_like(place.ids, FINE)
        self._score(score, old, told, status)
        energy = self._energy(old[0], told)
        self.failed = ~energy.isfinite() | (status != FINE)
        taken = torch.zeros((self.batch, 1), dtype=torch.float64, device=self.device)
        flag = torch.empty((self.batch, 1), dtype=torch.int64, device=self.device)
        energy = energy[:, None].clone()
        rows = _lengths(rule.name, h).to(self.device).expand(self.batch, -1, -1).contiguous()
        scale = 0.25 / h if rule.name == "mala" else 0.5
        scales = torch.full_like(energy, scale)
        sums = torch.empty((self.batch, 3), dtype=torch.float64, device=self.device)
        for k in range(rule.n):
            self._propose(h, keep if k else 0.0, first[0], first[1] + k)
            momentum = h if rule.name == "ghmc" else None
            self._score(score, new, told, None, momentum)
            proposed = self._energy(new[0], told)[:, None]
            xs = [old[0], new[0], old[1], new[1]] if rule.name == "mala" else [old[2], new[2]]
            ops.gram(xs, rows, sums)
            known = torch.cat([energy, proposed, sums, scales, log_uniform[:, k : k + 1], taken], 1)
            self._decide(known, [energy, taken, flag])
            take = (flag != 0).view(1, self.batch, *[1] * (x.dim() - 1))
            torch.where(take, new, old, out=old)
        self.steps += rule.n
        self.acceptance.append(taken[:, 0] / rule.n)

    def _propose(self, h: float, keep: float, seed: int, word: int) -> None:
        """Writes the proposal's x, and for "ghmc" the flipped momentum that a refusal leaves."""
        old, new, ids = self.old, self.new, self.place.ids
        if self.rule.name == "mala":
            xs, weights, outs, noise = [old[0], old[1]], [1.0, h], [new[0]], [np.sqrt(2.0 * h)]
        else:
            fresh = np.sqrt(1.0 - keep**2)
            xs, weights, noise = [old[0], old[1]], [1.0, 0.5 * h**2, 0.0, 0.0], [h * fresh, -fresh]
            outs = [new[0], old[2]]
            if keep:
                xs = [*xs, old[2]]
                weights = [1.0, 0.5 * h**2, h * keep, 0.0, 0.0, -keep]
        ops.combine_out(xs, weights, outs, None, word, [float(z) for z in noise], seed, ids)

    def _score(self, score: _Score, at: torch.Tensor, told, status, h: float | None = None) -> None:
        """Writes the score at at[0] into at[1]; with h also the leapfrog's momentum into at[2]."""
        x = at[0] if self.denoiser.dtype is None else at[0].to(self.denoiser.dtype)
        filled = self._network(x, told, score.branches) | {X: at[0]}
        xs, weights = [filled[name] for name in score.columns], score.weights
        outs = [at[1]]
        if h is not None:
            xs = [*xs, self.old[1], self.old[2]]
            kick = [0.5 * h * w for w in weights]
            weights = [*weights, 0.0, 0.0, *kick, 0.5 * h, -1.0]
            outs = [at[1], at[2]]
        ops.combine_out(xs, weights, outs, status, 0)

    def _decide(self, known: torch.Tensor, outs: list[torch.Tensor]) -> None:
        code, constants, starts, registers = self.decide
        edges = torch.empty(0, dtype=torch.float64, device=self.device)
        pieces = torch.empty((0, 0, 4), dtype=torch.float64, device=self.device)
        ops.evaluate(code, constants, starts, 0, known, None, 0, edges, pieces, registers, outs)

    def result(self, throw: bool, x: torch.Tensor | None, times: list[float]) -> MetropolisSamples:
        """Returns the samples."""
        made = self.acceptance
        acceptance = torch.stack(made) if made else torch.empty((0, self.batch), device=self.device)
        nfe = torch.full((self.batch,), self.nfe, dtype=torch.int64, device=self.device)
        told = torch.tensor(times, dtype=torch.float64, device="cpu")
        found = MetropolisSamples(
            self.state.x, nfe, self.state.status, True, told, acceptance.to(torch.float64)
        )

        def what(b: int, stage: int) -> str:
            chain = int(self.bad[b])
            if chain >= 0:
                return (
                    "the energy or the network's output is not finite at the start of the chain at "
                    f"t = {times[chain]:g}"
                )
            return f"the network's output or the state made of it is not finite at stage {stage}"

        return found.or_raise(_WHO, self.place.ids, throw, what, initial=x)


class _Score:
    """The score at a place as a row over x and the network's outputs, by the one lowering."""

    def __init__(self, plan: Plan, denoiser: Denoiser, stop: Place):
        """Lowers a plan of one stage, whose x is the score."""
        alpha, sigma = stop.level
        row = [[-1.0 / sigma**2, alpha / sigma**2]]
        one = Plan(
            schedule=plan.schedule,
            times=np.array([stop.time]),
            end=stop.time,
            rows=("x",),
            columns=("x", "d"),
            matrix=np.array([row]),
            levels=np.array([[[0.0, 1.0 / sigma]]]),
            name=plan.name,
            check="finite",
        )
        stage = lower(one, denoiser).stages[0]
        (call,) = stage.calls
        self.branches, self.columns, self.weights = stage.branches, call.columns, call.weights


def _lengths(proposal: str, h: float) -> torch.Tensor:
    """Returns the rows of `gram`, [1, 2, columns]: what the forward and the backward move need."""
    if proposal == "ghmc":  # (v of the leapfrog's start, its end)
        rows = [[[1.0, 0.0], [0.0, 1.0]]]
        return torch.tensor(rows, dtype=torch.float64, device="cpu")
    forward, backward = [-1.0, 1.0, -h, 0.0], [1.0, -1.0, 0.0, -h]
    rows = [[forward, backward]]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _decision() -> tuple:
    """Returns the program of a decision.

    Inputs: the energies before and after, the three products of `gram`, the factor of the lengths,
    the logarithm of a uniform number, and how many proposals were taken. It writes the energy, that
    number and whether the proposal is taken.
    """
    record = Recording()
    before, after, forward, _, backward, scale, log_uniform, taken = map(record.input, range(8))
    ratio = before - after + scale * (forward - backward)
    # NaN is taken for no: a comparison with it is false
    take = (log_uniform < ratio) & (abs(after) < np.inf)
    energy = record.apply("where", take, after, before)
    count = record.apply("where", take, taken + 1.0, taken)
    flag = record.apply("where", take, 1.0, 0.0)
    stores = [(k, 0, value.number) for k, value in enumerate((energy, count, flag))]
    return record.instructions, stores
