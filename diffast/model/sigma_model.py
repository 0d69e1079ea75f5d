"""Networks of a noise level, as k-diffusion, EDM and their like have them."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch

from diffast.model.outputs import output_complaint, tensor_of

# What a network of a noise level returns.
RETURNS = ("x0", "epsilon", "v", "edm")

# What it may be told of the noise level, by name.
LEVELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigma": lambda sigma: sigma,
    "log(sigma)": torch.log,
    "log(sigma)/4": lambda sigma: 0.25 * torch.log(sigma),
    "2/pi atan(sigma)": lambda sigma: torch.atan(sigma) * (2.0 / torch.pi),
}


class SigmaModel:
    """A network of (c_in x, level), as one of (x, sigma) that returns x0 or epsilon.

    Args:
        network: the caller's.
        returns: one of RETURNS.
        sigma_data: the spread s of the data.
        scaled_input: whether c_in is 1 / sqrt(sigma^2 + s^2), or 1.
        level: one of LEVELS, or a function of sigma [B].
        dtype: what the network wants x in; None: that of x.
        time_dtype: what it wants the level in; None: as it is.

    Raises:
        ValueError: for an option that is none of these.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        returns: str,
        sigma_data: float,
        scaled_input: bool,
        level: str | Callable[[torch.Tensor], torch.Tensor],
        dtype: torch.dtype | None,
        time_dtype: torch.dtype | None,
    ):
        """Checks the options."""
        if not callable(network):
            raise ValueError(
                f"Denoiser: network is a {type(network).__name__} but must be callable"
            )
        if returns not in RETURNS:
            raise ValueError(
                f"Denoiser: predicts {returns!r} but a network of a noise level predicts one of "
                f"{', '.join(RETURNS)}"
            )
        if not callable(level) and level not in LEVELS:
            raise ValueError(
                f"Denoiser: level is {level!r} but must be a function of sigma or one of "
                f"{', '.join(map(repr, LEVELS))}"
            )
        if not 0 < sigma_data < float("inf"):
            raise ValueError(f"Denoiser: sigma_data is {sigma_data} but must be positive")
        self.network, self.returns, self.sigma_data = network, returns, sigma_data
        self.scaled_input, self.dtype, self.time_dtype = scaled_input, dtype, time_dtype
        self.level = level if callable(level) else LEVELS[level]
        self.parameters = getattr(network, "parameters", None)

    def like(self, network: Callable[..., Any]) -> SigmaModel:
        """Returns another network of the same conventions, such as a weaker one."""
        made = copy(self)
        made.network, made.parameters = network, getattr(network, "parameters", None)
        return made

    @property
    def predicts(self) -> str:
        """Returns what the answer is: "epsilon" stays itself, all else becomes x0."""
        return "epsilon" if self.returns == "epsilon" else "x0"

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **conditions: Any) -> Any:
        """Returns x0 or epsilon [B, ...] for noise levels t [B]."""
        sigma = t.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        scale = torch.sqrt(sigma**2 + self.sigma_data**2)
        given, told = (x / scale if self.scaled_input else x), self.level(t)
        given = given if self.dtype is None else given.to(self.dtype)
        told = told if self.time_dtype is None else told.to(self.time_dtype)
        output = self.network(given, told, **conditions)
        if self.returns in ("x0", "epsilon"):
            return output
        skip, out = (self.sigma_data / scale) ** 2, self.sigma_data * sigma / scale
        output = tensor_of(output, "v" if self.returns == "v" else None)
        if output.shape != x.shape or not output.is_floating_point():
            raise ValueError(output_complaint(x, output))  # a shape would be repeated in silence
        output = output.to(x.dtype)
        return skip * x + (out if self.returns == "edm" else -out) * output
