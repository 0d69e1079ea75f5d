"""The guided x0 estimate in plain torch, for inspection and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffast import _arguments as arguments
from diffast import ops
from diffast.guidance.guide import Guide, Point
from diffast.guidance.reducing import guided
from diffast.guidance.rule import COND, EXTRA, LOW, UNCOND, Measured, RuleAt
from diffast.model.times import time_dtype, told_time


def guided_estimate(denoiser: Any, x: torch.Tensor, t: float) -> torch.Tensor:
    """Returns the guided x0 estimate [B, ...] of a denoiser at one model time.

    Rules are taken as at a call of their own: nothing is remembered, and no call is left out.
    Gradients of guidance terms are added.
    """
    arguments.no_fake_mode("Denoiser")
    estimate = _estimate(denoiser, x, t)
    weights = denoiser.gradient_weights(np.array([t]))[:, 0]
    made = estimate
    for term, weight in zip(denoiser.guides, weights.tolist(), strict=True):
        if weight != 0.0:
            made = made + weight * _gradient(denoiser, term, x, t, estimate)
    return made


def _gradient(
    denoiser: Any, term: Guide, x: torch.Tensor, t: float, estimate: torch.Tensor
) -> torch.Tensor:
    """Returns the gradient of a term, which is told the ids 0 .. B-1."""
    one = torch.ones((len(x), *[1] * (x.dim() - 1)), dtype=x.dtype, device=x.device)
    alpha, sigma = (float(f(t)) * one for f in (denoiser.schedule.alpha, denoiser.schedule.sigma))
    ids = torch.arange(len(x), device=x.device)
    kind = time_dtype(x.dtype)
    told = told_time(denoiser.schedule, t, kind)

    def normals(k: int) -> torch.Tensor:
        word = ops.GUIDANCE_NOISE + k
        return ops.normal(x.shape, seed=0, stage=word, ids=ids, dtype=x.dtype)

    time = torch.full((len(x),), told, dtype=kind, device=x.device)
    point = Point(x.detach(), time, alpha, sigma, ids, 0, normals=normals)
    if term.through == "x0":
        point = point._replace(x0=estimate.detach())
    elif term.through == "network":
        denoiser.weights_at(t)  # refuses rules that have no derivative
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            graph = _estimate(denoiser, leaf, t)

        def pull(vector: torch.Tensor) -> torch.Tensor:
            (found,) = torch.autograd.grad(graph, leaf, vector.to(x.dtype), retain_graph=True)
            return found

        point = point._replace(x0=graph.detach(), pull=pull)
    with torch.no_grad():
        return term.gradient(point).detach().to(x.dtype)


def _estimate(denoiser: Any, x: torch.Tensor, t: float) -> torch.Tensor:
    """Returns the estimate without gradients of terms."""
    a, b = (float(w[0]) for w in denoiser.affine(np.array([t])))
    x_in = x.to(denoiser.dtype or x.dtype)
    kind = time_dtype(x.dtype)
    told = told_time(denoiser.schedule, t, kind)
    times = torch.full((len(x),), told, dtype=kind, device=x.device)

    def output_of(branch: str) -> torch.Tensor:
        network, _ = denoiser.branch(branch)
        arguments = denoiser.arguments(len(x), x.device, branch)
        output = denoiser.call(x_in, times.clone(), arguments, network=network)
        if output.device != x.device or output.dtype.itemsize == 1:
            raise ValueError(
                f"Denoiser: the network was given {x_in.dtype} on {x_in.device} but returned "
                f"{output.dtype} on {output.device}"
            )
        # a copy: the network may write its next answer into the same memory
        return output.to(x.dtype, copy=True)

    rule = denoiser.rule
    if rule is not None:
        (at,) = denoiser.rules_at(np.array([t]))
        if not at.weights and at.weights is not None:  # a call that a run would leave out
            (at,) = denoiser.rules_at(np.array([t] * (rule.zeroed + 1)))[-1:]
        return _ruled(at, {name: output_of(name) for name in at.used if name != LOW}, x, a, b)
    scale = float(denoiser.scales(np.array([t]))[0])
    output = output_of(UNCOND if scale == 0.0 else COND)
    if scale not in (0.0, 1.0):
        output = output_of(UNCOND).lerp(output, scale)
    return a * x + b * output


def _ruled(at: RuleAt, outputs: dict, x: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """Returns the estimate by a rule, given the outputs of its branches."""
    if at.rule.space == "x0":
        outputs = {name: a * x + b * output for name, output in outputs.items()}
        a, b = 0.0, 1.0
    if at.low:
        outputs[LOW] = at.rule.low_pass(outputs[COND] - outputs[UNCOND])
    names = tuple(name for name in (COND, UNCOND, EXTRA, LOW) if name in outputs)
    flat = [outputs[name].double().flatten(1) for name in names]
    products = [(p * q).sum(1) for i, p in enumerate(flat) for q in flat[i:]]
    values = [v.cpu().numpy() for v in (*products, *(p.sum(1) for p in flat))]
    weights = guided(np, at, Measured(names, values, x[0].numel() if len(x) else 1))
    estimate = a * x
    for name, weight in weights.items():
        factor = torch.as_tensor(weight, dtype=x.dtype, device=x.device)
        factor = factor.expand(len(x)).reshape(-1, *[1] * (x.dim() - 1))
        estimate = estimate + b * factor * outputs[name]
    if at.threshold is not None and len(x):
        s = estimate.abs().flatten(1).double().quantile(at.threshold.p, dim=1)
        s = s.clamp(1.0, at.threshold.maximum).to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        estimate = (estimate / s).clamp(-1.0, 1.0)
    return estimate
