"""`audit`, `audit_batches`: does a sampler with noise do what its equation says?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.thermo.jko.report import Audit
from diffast.thermo.jko.snapshots import snapshots_of
from diffast.thermo.jko.states import check_states, is_step, states_of
from diffast.thermo.jko.transitions import Step, measure, pooled

_WHO = "audit"

# The change in lam that the effect of a wrong time is measured by.
SHIFT = 0.05


def audit(
    denoiser: Denoiser,
    plan: Plan | None = None,
    shape: Sequence[int] | None = None,
    *,
    x: torch.Tensor | None = None,
    seed: int = 0,
    batches: Sequence[torch.Tensor] | None = None,
    times: Sequence[float] | None = None,
    eta: float = 1.0,
    directions: Any = None,
    allow: bool | None = None,
    level: float = 0.01,
) -> Audit:
    """Returns drift, temperature and told time of a stochastic sampler's steps, with their errors.

    Every step between stored batches is compared with the reverse process of the schedule, see
    `thermo/jko/transitions.py`. The x0 estimate at the stored states is the denoiser's, at the time
    of their level; how the sampler came from one state to the next is not looked at. So any
    sampler can be audited, of this package or not.

        found = df.thermo.audit(denoiser, plan, (2000, 2))     runs the plan and stores its states
        found = df.thermo.audit(denoiser, batches=stored, times=t)
        print(found); assert found.sound

    The network is called twice a stored state. A corrector's steps, which stay at one level, are
    left out here: `audit_batches` takes them. So is a step into sigma = 0.

    **What a sound sampler may do.** A method of first order (`ddim(eta=1)`, `euler_ancestral`,
    `ddpm`) makes the very step that it is compared with. Others differ by an amount that falls with
    the step; the allowance for it is measured, and a fault below it is not found. Euler-Maruyama
    steps in the model time differ by more, and are called unsound where they are long: use
    `audit_batches` with their drift and temperature and allow=False, or `fluctuation_test`.

    Args:
        denoiser: the network, with conditions and guidance of the run.
        plan: a plan with noise in its steps; None: `batches` are given.
        shape: [n, ...] of the state for a plan.
        x: the initial state in place of a shape.
        seed: of the plan's run.
        batches: K+1 states [n, ...] of the same particles, from noise to data.
        times: [K+1] falling model times of the batches.
        eta: strength of the sampler's noise: dx = (f - (1 + eta^2) g^2 / 2 score) dt + eta g dB.
            `ddim` with an eta below 1 draws more noise than this process, and does so beyond any
            allowance unless its steps are short: its steps are called unsound.
        directions: [m, ...], each shaped as a state, that the states are projected on; they are
            made orthonormal. None: every element.
        allow: whether steps may differ by what a method of higher order does; None: for `batches`,
            and plans that remember estimates or call the network more than once a step.
        level: share of sound samplers that are called unsound.

    Raises:
        TypeError: a plan and batches together, or neither; batches without times.
        ValueError: fewer than 50 samples; states that are not finite or differ in shape; times that
            do not fall; no step with noise at both ends; plans without noise, or that put noise
            back between steps; eta <= 0; directions of another shape, or that depend on each other.
    """
    run = states_of(_WHO, denoiser, plan, shape, x, seed, batches, times, eta)
    states, at, levels = run.states, run.times, run.levels
    allow = run.higher_order if allow is None else allow
    check_states(_WHO, states)
    onto = _projection(directions, states[0].shape[1:])
    held = _Estimates(denoiser, onto)
    steps = []
    for k in range(len(states) - 1):
        (alpha, sigma), (alpha_t, sigma_t) = levels[k], levels[k + 1]
        if not is_step(levels[k], levels[k + 1]):
            continue
        x0, moved = held(states[k], at[k], alpha, sigma, turn=True)
        later, _ = held(states[k + 1], at[k + 1], alpha_t, sigma_t, turn=False)
        steps.append(
            _step(
                onto(states[k]), onto(states[k + 1]), x0, later, moved, levels[k], levels[k + 1],
                eta, (float(at[k]), float(at[k + 1])),
            )
        )  # fmt: skip
    if not steps:
        raise ValueError(f"{_WHO}: no step with noise at both ends, and less of it at the second")
    return _audit(steps, len(states[0]), allow, level)


def audit_batches(
    batches: Sequence[Any],
    times: Any,
    drift: Callable[[torch.Tensor, float], Any],
    temperature: float | Callable[[float], float],
    *,
    directions: Any = None,
    allow: bool = True,
    level: float = 0.01,
) -> Audit:
    """Returns an audit of any process dx = f(x, t) dt + sqrt(2 T(t)) dB: drift and temperature.

    For forward processes and Langevin correctors: between stored states of the same particles the
    mean is x + tau f and the variance 2 T tau.

    Args:
        batches: K+1 states [n, ...] of the same particles.
        times: [K+1], rising.
        drift: f, called with a float64 tensor [n, ...] and a time; returns [n, ...].
        temperature: T, a number or a function of the time.
        directions: as for `audit`.
        allow: whether steps may differ by what the change of f over them does. False for states
            that Euler-Maruyama steps made, one a batch.
        level: share of sound processes that are called unsound.

    Raises:
        ValueError: as `audit`; times that do not rise; a temperature that is not positive; a drift
            of another shape.
    """
    who = "audit_batches"
    given = snapshots_of(who, batches, times, None)
    shape = (-1, *given.shape)
    states = [torch.as_tensor(one).reshape(shape) for one in given.samples]
    check_states(who, states)
    onto = _projection(directions, states[0].shape[1:])
    steps = []
    pushes = []
    for state, t in zip(states, given.times.tolist(), strict=True):
        made = torch.as_tensor(drift(state, t)).detach().double()
        if made.shape != state.shape:
            raise ValueError(
                f"{who}: drift returned {list(made.shape)} at states {list(state.shape)}"
            )
        pushes.append(onto(made))
    for k, tau in enumerate(np.diff(given.times).tolist()):
        t = float(given.times[k])
        heat = float(temperature(t)) if callable(temperature) else float(temperature)
        if not 0 < heat < float("inf"):
            raise ValueError(f"{who}: temperature = {heat} at t = {t:g}, but it must be positive")
        unit = 1.0 / np.sqrt(2.0 * heat * tau)
        push, later = unit * tau * pushes[k], unit * tau * pushes[k + 1]
        moved = unit * (onto(states[k + 1]) - onto(states[k]))
        steps.append(
            Step(moved - push, 1.0, push, None, later - push, 0.0, (t, float(given.times[k + 1])))
        )
    return _audit(steps, len(states[0]), allow, level)


def _audit(steps: list[Step], count: int, allow: bool, level: float) -> Audit:
    if not 0 < level < 1:
        raise ValueError(f"{_WHO}: level = {level}, but it must lie between 0 and 1")
    measured = [measure(step, allow) for step in steps]
    numbers = steps[0].residual.shape[1]
    return Audit(tuple(measured), pooled(measured), count, numbers, level)


def _step(x, y, x0, later, moved, level, level_t, eta, times) -> Step:
    """Returns a step of the reverse process, divided by the noise level of its end."""
    (alpha, sigma), (alpha_t, sigma_t) = level, level_t
    with np.errstate(divide="ignore"):
        h = float(np.log(alpha_t / sigma_t) - np.log(alpha / sigma))
    kept = float(np.exp(-(eta**2) * h))  # 0 from pure noise
    gain = alpha_t / sigma_t - kept * alpha / sigma  # of the x0 estimate
    noise = (x - alpha * x0) / sigma
    mean = alpha_t / sigma_t * x0 + kept * noise
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        push = -(np.exp(h) - kept) * noise  # what the step has beside x / alpha held
    variance = -float(np.expm1(-2.0 * eta**2 * h))
    residual = y / sigma_t - mean
    turn = gain * moved / SHIFT
    return Step(residual, variance, push, turn, gain * (later - x0), h, times)


class _Estimates:
    """x0 estimates of stored states, projected; the estimate of a state is made once."""

    def __init__(self, denoiser: Denoiser, onto: Callable[[torch.Tensor], np.ndarray]):
        self.denoiser, self.onto = denoiser, onto
        self.made: tuple[torch.Tensor, np.ndarray] | None = None

    def __call__(self, state, t, alpha, sigma, turn) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns (x0, its change where the network is told a lam that is larger by SHIFT)."""
        if self.made is None or self.made[0] is not state:
            self.made = state, self._at(state, t)
        x0 = self.made[1]
        if not turn:
            return x0, None
        schedule = self.denoiser.schedule
        least, most = sorted((float(schedule.t_min), float(schedule.t_start)))
        sign = 1.0
        try:
            told = float(schedule.time(np.log(alpha / sigma) + SHIFT)) if alpha else most
            if not least <= told <= most:
                sign, told = -1.0, float(schedule.time(np.log(alpha / sigma) - SHIFT))
        except ValueError:
            return x0, np.full_like(x0, np.nan)
        if not alpha or not least <= told <= most or self.denoiser.whole_times:
            return x0, np.full_like(x0, np.nan)
        # The output alone is told another time: what it says of x0 is read at the true one.
        return x0, sign * (self._at(state, t, told) - x0)

    def _at(self, state: torch.Tensor, t: float, told: float | None = None) -> np.ndarray:
        denoiser = self.denoiser if told is None else _Late.of(self.denoiser, told - t)
        with torch.no_grad():
            made = self.onto(denoiser.x0(state, float(t)))
        if not np.isfinite(made).all():
            raise ValueError(f"{_WHO}: the x0 estimates at t = {t:g} are not finite")
        return made


class _Late(torch.nn.Module):
    """A network that is told another time."""

    def __init__(self, network: Any, by: float):
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> Any:
        """Returns the network's output at a time that is later by `by`."""
        return self.network(x, t + self.by, **conditions)

    @staticmethod
    def of(denoiser: Denoiser, by: float) -> Denoiser:
        """Returns the denoiser with such a network."""
        return replace(denoiser, network=_Late(denoiser.network, by))


def _projection(directions: Any, shape: Sequence[int]) -> Callable[[torch.Tensor], np.ndarray]:
    """Returns the function that makes numbers [n, m] float64 of states [n, ...]."""
    if directions is None:
        return lambda state: state.detach().cpu().double().reshape(len(state), -1).numpy()
    given = torch.as_tensor(np.asarray(directions, dtype=np.float64))
    given = given[None] if tuple(given.shape) == tuple(shape) else given
    if tuple(given.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{_WHO}: directions are {list(given.shape)}, but states {list(shape)} need "
            f"[m, {', '.join(map(str, shape))}]"
        )
    flat = given.reshape(len(given), -1)
    axes, sizes, _ = torch.linalg.svd(flat.T, full_matrices=False)
    if len(flat) > flat.shape[1] or not bool(sizes[-1] > 1e-10 * sizes[0]):
        raise ValueError(f"{_WHO}: the {len(flat)} directions depend on each other")
    if len(flat) == 1:
        axes = flat.T / flat.norm()
    return lambda state: (state.detach().cpu().double().reshape(len(state), -1) @ axes).numpy()
