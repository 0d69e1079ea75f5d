"""Denoisers of azula (checked with azula 0.11)."""

from __future__ import annotations

from typing import Any

from diffast import schedules
from diffast.integrations.networks.shared import Network, needed
from diffast.model.denoiser import Denoiser


def from_azula(denoiser: Any, t_min: float = 1e-3, **options: Any) -> Denoiser:
    """Returns azula's denoiser as this package's.

    azula's time runs from 1 (noise) to 0; alpha and sigma are its schedule's, by
    `df.schedules.from_functions`. Its schedules keep a noise sigma_min at time 0, and so do the
    samples. The network's answer is the posterior's mean, x0. On the times of
    `df.grids.uniform_time`, `df.solvers.euler` is azula's DDIMSampler and EulerSampler, and `ddim`
    with eta its DDIMSampler with this eta.

    Args:
        denoiser: an `azula.denoise.Denoiser`; it is called as denoiser(x, t, **conditions).mean.
        t_min: least noisy time at which grids in log-SNR call the network.
        options: of `Denoiser`: conditions, unconditional, guidance.

    Raises:
        ValueError: for an object without a schedule; what `from_functions` and `Denoiser` raise.
    """
    needed("from_azula", denoiser, ("schedule",), "an azula.denoise.Denoiser")
    schedule = schedules.from_functions(
        lambda t: denoiser.schedule(t)[0], lambda t: denoiser.schedule(t)[1], t_min=t_min
    )

    def mean(x, t, **conditions):
        return denoiser(x, t, **conditions).mean

    return Denoiser(Network(denoiser, mean), schedule, "x0", **options)
