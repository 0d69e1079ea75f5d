"""EDM's sampler by its own name and signature (Karras et al. 2022), run as a plan.

Example, in place of `edm_sampler` of EDM's generate.py:
    from diffast.integrations.edm import edm_sampler
    images = edm_sampler(net, latents, class_labels, randn_like=rng.randn_like, num_steps=18)
"""

from __future__ import annotations

import sys
from os import PathLike
from typing import Any

import numpy as np
import torch

from diffast._arguments import no_fake_mode
from diffast.executors.sequential import sample
from diffast.integrations.sigma_model import DrawnEachStep, sigma_plan, step_starts
from diffast.integrations.sigma_plans import (
    check_network,
    in_sigma_space,
    levels_before_calls,
    plan_of,
    run_plan,
)
from diffast.model.denoiser import Denoiser
from diffast.model.input_watch import InputWatch, InputWritten
from diffast.model.outputs import tensor_of
from diffast.plans import Plan


def edm_sampler(
    net,
    latents: torch.Tensor,
    class_labels: torch.Tensor | None = None,
    randn_like=torch.randn_like,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,  # noqa: N803
    S_min: float = 0.0,  # noqa: N803
    S_max: float = float("inf"),  # noqa: N803
    S_noise: float = 1.0,  # noqa: N803
    plan: Plan | str | PathLike | None = None,
) -> torch.Tensor:
    """Returns samples [B, ...] float64 by algorithm 2: Heun's method with churn, float64 state.

    randn_like is called once a step, with a float64 tensor like latents, whether or not the step
    uses it: the same numbers as in EDM's loop, for a StackedRandomGenerator too, and the generator
    stands where EDM's stands afterwards. The net's sigma_min, sigma_max and round_sigma are read at
    each call.

    Args:
        net: called as net(x, sigma, class_labels), x float64 [B, ...], sigma a float64 scalar;
            its sigma_min, sigma_max and round_sigma bound and round the noise levels.
        latents: N(0, 1), [B, ...].
        class_labels: passed on.
        randn_like: returns N(0, 1) shaped as its argument.
        num_steps: number of steps.
        sigma_min: least noise level of a call.
        sigma_max: noise level at the start.
        rho: see `df.grids.karras`.
        S_churn: total amount of added noise.
        S_min: least noise level that gets any.
        S_max: largest noise level that gets any.
        S_noise: scale of the added noise.
        plan: one made for the network, or the path of its file, in place of algorithm 2: num_steps,
            sigma_min, sigma_max and rho are then not used. None: algorithm 2.

    What no plan has runs as a plain loop of torch, which is slower: levels that repeat or rise,
    churned levels that the net rounds, a negative S_churn.

    Raises:
        ValueError: numbers out of range; a noise level of 0 before the end; a net without
            sigma_min, sigma_max or round_sigma; a net that writes into its input. With a plan:
            S_churn beside it, levels that the net rounds, a start where alpha is 0, another
            prediction type.
        FloatingPointError: a value that is not finite.
    """
    no_fake_mode("edm_sampler")
    _check_latents(latents)
    if plan is not None:
        if S_churn:
            raise ValueError(f"edm_sampler: S_churn = {S_churn:g}, but a plan is given beside it")
        return _planned(net, latents, class_labels, randn_like, plan)
    numbers = {"S_churn": S_churn, "S_min": S_min, "S_max": S_max, "S_noise": S_noise}
    churn = {name: number_of(name, value, np.inf) for name, value in numbers.items()}
    times = _levels(net, num_steps, sigma_min, sigma_max, rho, latents.device)
    levels = tuple(times.tolist())
    made = _plan(levels, churn)
    start = latents.detach().to(torch.float64)
    if made is None or (churn["S_churn"] and not _is_rounded(net, made.call_times, start.device)):
        return _by_hand(net, start, times, class_labels, randn_like, churn)
    starts, calls = step_starts(made, levels), 0
    draw = DrawnEachStep(
        lambda dtype: randn_like(start).to(torch.float64), torch.float64, made, levels
    )

    def network(x, t):
        nonlocal calls
        if calls in starts:
            draw.begin(starts[calls])
        calls += 1
        with torch.inference_mode(False), torch.no_grad():
            return net(x, t[0].clone(), class_labels)

    noise: dict[str, Any] = {"noise": draw} if made.stochastic else {}
    with torch.no_grad():
        denoiser = Denoiser(network, made.schedule, predicts="x0")
        return sample(denoiser, made, x=start * levels[0], **noise).x


def number_of(name: str, value: Any, most: float = sys.float_info.max) -> float:
    """Returns a number of the caller's.

    Raises:
        ValueError: what is no number, or NaN, or beyond `most`.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"edm_sampler: {name} is {value!r}, but a number is needed") from None
    if not abs(found) <= most:
        raise ValueError(f"edm_sampler: {name} is {found:g}, but a finite number is needed")
    return found


def _check_latents(latents):
    if not isinstance(latents, torch.Tensor) or not latents.dim():
        what = list(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(f"edm_sampler: latents are {what}, but a tensor [B, ...] is needed")
    if not (latents.is_floating_point()):
        raise ValueError(f"edm_sampler: latents are {latents.dtype}, but normals are needed")


def _levels(net, num_steps, sigma_min, sigma_max, rho, device) -> torch.Tensor:
    """Returns the noise levels before the steps and 0, [num_steps + 1] float64."""
    for name in ("sigma_min", "sigma_max", "round_sigma"):
        if not hasattr(net, name):
            raise ValueError(f"edm_sampler: net has no {name}, but EDM's networks have one")
    steps = num_steps.__index__() if hasattr(num_steps, "__index__") else 0
    if steps < 1:
        raise ValueError(
            f"edm_sampler: num_steps is {num_steps!r}, but a whole number from 1 is needed"
        )
    bounds = [number_of(f"the net's {name}", getattr(net, name), np.inf) for name in _BOUNDS]
    low = max(number_of("sigma_min", sigma_min), bounds[0])
    high = min(number_of("sigma_max", sigma_max, np.inf), bounds[1])
    power = number_of("rho", rho)
    if power == 0.0 or not 0.0 <= low < np.inf or not 0.0 < high < np.inf:
        raise ValueError(
            f"edm_sampler: noise levels from {high:g} to {low:g} with rho = {power:g}, but levels "
            "are finite and not negative, and rho is not 0"
        )
    with np.errstate(divide="ignore"):
        ends = np.array([high, low]) ** (1.0 / power)
        levels = (ends[0] + np.linspace(0.0, 1.0, steps) * (ends[1] - ends[0])) ** power
    if low == high:
        levels = np.full(steps, high)
    rounded = _rounded(net, levels, device)
    if not (rounded > 0.0).all() or not np.isfinite(rounded).all():
        bad = int(np.argmin((rounded > 0.0) & np.isfinite(rounded)))
        raise ValueError(
            f"edm_sampler: noise level {bad + 1} of {steps} is {rounded[bad]:g}, but algorithm 2 "
            "divides by it: give a sigma_min above 0"
        )
    return torch.tensor(np.append(rounded, 0.0), dtype=torch.float64, device=device)


_BOUNDS = ("sigma_min", "sigma_max")


def _plan(levels, churn) -> Plan | None:
    """Returns the plan of algorithm 2, None if the builders have none for these levels."""
    if not all(a > b for a, b in zip(levels, levels[1:], strict=False)) or churn["S_churn"] < 0.0:
        return None
    own = {"s_churn": churn["S_churn"], "s_tmin": churn["S_min"], "s_tmax": churn["S_max"]}
    own |= {"s_noise": churn["S_noise"], "base": "heun"}
    try:
        return sigma_plan("churn", levels, **own) if own["s_churn"] else sigma_plan("heun", levels)
    except ValueError:
        return None


def _is_rounded(net, levels, device) -> bool:
    return bool((_rounded(net, levels, device) == levels).all())


@torch.no_grad()
def _by_hand(net, latents, times, class_labels, randn_like, churn) -> torch.Tensor:
    """Returns the samples of algorithm 2 step by step (Karras et al. 2022), [B, ...] float64."""
    steps, x = len(times) - 1, latents * times[0]
    gain = min(churn["S_churn"] / steps, 2.0**0.5 - 1.0)
    for i in range(steps):
        start, end = times[i], times[i + 1]
        inside = churn["S_min"] <= float(start) <= churn["S_max"]
        hat = torch.as_tensor(net.round_sigma(start * (1.0 + (gain if inside else 0.0))))
        fresh = randn_like(x).to(torch.float64)
        x = x + (hat**2 - start**2).sqrt() * churn["S_noise"] * fresh
        slope = (x - _answer(net, x, hat, class_labels)) / hat
        moved = x + (end - hat) * slope
        if i + 1 < steps:
            other = (moved - _answer(net, moved, end, class_labels)) / end
            moved = x + (end - hat) * 0.5 * (slope + other)
        x = moved
        if not bool(x.isfinite().all()):
            raise FloatingPointError(f"edm_sampler: the state after step {i + 1} is not finite")
    return x


def _answer(net, x, sigma, class_labels) -> torch.Tensor:
    watch = InputWatch(x)
    before = watch.look()
    denoised = net(x, sigma.clone(), class_labels)
    if watch.look() != before:
        raise InputWritten("edm_sampler")
    if not isinstance(denoised, torch.Tensor):
        denoised = tensor_of(denoised, "x0")
    if denoised.shape != x.shape:
        raise ValueError(
            f"edm_sampler: net was given {list(x.shape)} but returned {list(denoised.shape)}"
        )
    return denoised.to(torch.float64)


def _planned(net, latents, class_labels, randn_like, plan) -> torch.Tensor:
    """Returns the samples of a plan [B, ...] float64."""
    who = "edm_sampler"
    own = plan_of(who, plan)
    check_network(who, own, net)
    moved = in_sigma_space(who, own)
    told = moved.times[moved.called.reshape(moved.times.shape)]
    _check_rounding(net, told, latents.device, "the plan tells the net")
    start = latents.to(torch.float64)
    levels = levels_before_calls(moved)
    sigmas = torch.tensor(levels, dtype=torch.float64, device=latents.device)

    def model(x, sigma):
        return net(x, sigma[0], class_labels)

    draw = (lambda stage: randn_like(start).to(torch.float64)) if moved.stochastic else None
    rest = {}, None, True, draw
    return run_plan(who, model, start * levels[0], moved, levels, sigmas, *rest)


def _rounded(net, levels, device) -> np.ndarray:
    levels = torch.tensor(levels, dtype=torch.float64, device=device)
    rounded = net.round_sigma(levels)
    if isinstance(rounded, torch.Tensor) and rounded.is_meta:
        raise ValueError("edm_sampler: the net's round_sigma returned levels on the device meta")
    return np.asarray(rounded.cpu() if isinstance(rounded, torch.Tensor) else rounded, np.float64)


def _check_rounding(net, times, device, what):
    rounded = _rounded(net, times, device)
    wrong = rounded != times
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"edm_sampler: {what} {times[i]:g}, but the net's round_sigma makes that {rounded[i]:g}"
        )
