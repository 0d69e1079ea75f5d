"""`start_law`: the Gaussians that a late start draws from, with their measured divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.planning import plan as start_plan
from diffast.plans import Plan
from diffast.plans.gaussian import Gaussian
from diffast.plans.initial import StartLaw
from diffast.thermo.late_start import Certificate, certificate
from diffast.thermo.shrinkage import shrunk_gaussian
from diffast.tuning.pilots import Pilots, ids_of, pieces

# Share of the samples that laws are not made of, and the most of them: the divergence is theirs.
_HELD_OUT, _MOST_HELD_OUT = 0.2, 256


def start_law(
    denoiser: Denoiser,
    data: Any = None,
    *,
    by: str | None = None,
    labels: Any = None,
    shape: Sequence[int] | None = None,
    count: int = 256,
    plan: Plan | None = None,
    levels: int | Sequence[float] = 16,
    rank: int | None = None,
    shrink: float | None = None,
    seed: int = 0,
    rows: int = 256,
) -> StartLaw:
    """Returns the law for `Plan.late_start`, with its divergence from the data at noise levels.

        law = df.thermo.start_law(denoiser, images)
        law = df.thermo.start_law(denoiser, images, by="labels", labels=digits)
        late = plan.late_start(law, kl=0.05)

    A network with conditions needs a law for each of their values: the data given a class are not
    the Gaussian of all data, not even at high noise, where the means alone differ. One sample in
    five, at most 256 of them, is left out of the laws. The divergence is measured on these:
    the score form of `df.thermo.certificate`, made to rise as the level falls.

    Guidance is left out of the measurement. Samples made with guidance have a law of their own;
    with `data` None and guidance it is theirs that is estimated, and nothing is certified.

    Args:
        denoiser: the network. Sample i has row i of the conditions, counted around their end.
        data: samples [N, ...]; None: `count` samples that the network makes.
        by: the condition whose whole number 0 .. K-1 picks a sample's law; None: one law for all.
        labels: [N] the values of that condition for the data; None: those of the denoiser's rows,
            counted around their end.
        shape: of one sample, where there are no data.
        count: samples that are made, where there are no data.
        plan: of these samples; None: `df.plan(denoiser, 10)`.
        levels: noise levels of the certificate, as for `df.thermo.certificate`.
        rank: directions with a variance of their own, as for `shrunk_gaussian`.
        shrink: as for `shrunk_gaussian`.
        seed: of all noises.
        rows: samples of one network call, at most.

    Raises:
        ValueError: no data and no shape; labels that are not one a sample or have gaps, a class
            with fewer than 2 samples, a condition that is not there; what `certificate` raises.
    """
    pilots = None
    if data is None:
        if shape is None:
            raise ValueError("start_law: there are no data, so shape is needed, that of one sample")
        pilots = Pilots(denoiser, tuple(shape), seed, denoiser.device())
        data = _generated(pilots, plan or start_plan(denoiser, 10), count, rows)
    data = torch.as_tensor(data).detach()
    data = data if data.is_floating_point() else data.double()
    if len(data) < 5:
        raise ValueError(f"start_law: {len(data)} samples, but at least 5 are needed")
    values = None if by is None else _values(denoiser, by, labels, len(data))
    held = _held_out(len(data), values)
    laws = _laws(data.cpu().double().numpy(), values, ~held, rank, shrink)
    law = StartLaw(laws, by)
    guided = denoiser.unconditional is not None or denoiser.guides
    if pilots is not None and guided:
        return law
    if held.sum() < 2:
        raise ValueError(
            f"start_law: {len(data)} samples leave {held.sum()} to measure the divergence on, but "
            "2 are needed: one in five of each class is left out, so give 10 samples or more"
        )
    plain = replace(denoiser, unconditional=None, guidance=1.0, guides=())
    left = torch.as_tensor(held.nonzero()[0])
    # The certificate gives its sample i row i: that has to be the row of the sample left out.
    plain = Pilots(plain, data.shape[1:], seed, denoiser.device()).rows(left)
    if by is not None and values is not None:
        chosen = torch.as_tensor(values)[left].to(_picked(denoiser, by).device)
        plain = replace(plain, conditions={**plain.conditions, by: chosen})
    made = certificate(plain, law, data[left.to(data.device)], levels=levels, seed=seed, rows=rows)
    return with_certificate(law, made)


def with_certificate(law: StartLaw | Gaussian, made: Certificate) -> StartLaw:
    """Returns the law with the divergence of a certificate, made to rise as the level falls."""
    law = StartLaw((law,)) if isinstance(law, Gaussian) else law
    kl = made.loss_kl if made.score_kl is None else made.score_kl
    return replace(law, rho=made.rho, kl=np.maximum.accumulate(np.maximum(kl, 0.0)))


def _held_out(count: int, values: np.ndarray | None) -> np.ndarray:
    """Returns which samples [N] laws are not made of: the same share of every class, by chance."""
    step = max(round(1 / _HELD_OUT), -(-count // _MOST_HELD_OUT))
    order = np.random.default_rng(0).permutation(count)
    held = np.zeros(count, dtype=bool)
    groups = [order] if values is None else [order[values[order] == v] for v in np.unique(values)]
    for group in groups:
        held[group[step - 1 :: step]] = True
    return held


def _laws(
    data: np.ndarray, values: np.ndarray | None, kept: np.ndarray, rank: Any, shrink: Any
) -> tuple[Gaussian, ...]:
    if values is None:
        return (shrunk_gaussian(data[kept], rank, shrink),)
    counts = np.bincount(values[kept], minlength=int(values.max()) + 1)
    few = int(counts.argmin())
    if counts[few] < 2:
        raise ValueError(
            f"start_law: {counts[few]} of the samples that laws are made of have the value {few}, "
            f"but values are 0 to {len(counts) - 1} and each needs at least 2"
        )
    groups = [data[kept & (values == value)] for value in range(len(counts))]
    return tuple(shrunk_gaussian(group, rank, shrink) for group in groups)


def _values(denoiser: Denoiser, by: str, labels: Any, count: int) -> np.ndarray:
    """Returns the value [N] of the condition `by` for each sample."""
    if labels is None:
        own = _picked(denoiser, by).reshape(-1).cpu().numpy()
        return own[np.arange(count) % len(own)]
    _picked(denoiser, by)
    found = np.asarray(labels).reshape(-1)
    if len(found) != count or found.dtype.kind not in "iu" or found.min() < 0:
        raise ValueError(
            f"start_law: labels are {len(found)} of {found.dtype}, but {count} whole numbers from "
            "0 on are needed, one a sample"
        )
    return found.astype(np.int64)


def _picked(denoiser: Denoiser, by: str) -> torch.Tensor:
    picked = denoiser.conditions.get(by)
    if not isinstance(picked, torch.Tensor) or picked.is_floating_point():
        raise ValueError(
            f"start_law: by is {by!r}, but the denoiser has no such condition of whole numbers: "
            f"its conditions are {sorted(denoiser.conditions)}"
        )
    return picked


def _generated(pilots: Pilots, plan: Plan, count: int, rows: int) -> torch.Tensor:
    """Returns samples [count, ...] that the network makes, row i with row i of the conditions."""
    made = []
    for piece in pieces(count, rows):
        ids = ids_of(piece.stop - piece.start, piece.start)
        made.append(
            sample(
                pilots.rows(ids), plan, (len(ids), *pilots.shape), seed=pilots.seed, ids=ids
            ).x.cpu()
        )
    return torch.cat(made)


def noise_kl(law: Gaussian | StartLaw, rho: float) -> float:
    """Returns KL(G || N(0, rho^2)) in nats: what a start from noise alone costs at a noise level.

    Sampling from noise alone at the top of a schedule is itself an approximation. A late start with
    a smaller divergence is nearer to the data than the usual start is. Of several laws: the mean.

    Args:
        law: of the data.
        rho: noise level sigma / alpha, > 0.

    Raises:
        ValueError: a level that is not above 0.
    """
    if not rho > 0.0:
        raise ValueError(f"noise_kl: rho = {rho}, but it must be above 0")
    laws = (law,) if isinstance(law, Gaussian) else law.laws
    found = []
    for one in laws:
        share = one.spectrum / rho**2
        size = float((one.mean**2).sum()) / rho**2
        found.append(0.5 * (float((share - np.log1p(share)).sum()) + size))
    return float(np.mean(found))
