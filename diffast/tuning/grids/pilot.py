"""`Pilot`: what is measured on a network before grids are made for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch

from diffast.executors.context import FLOATS
from diffast.model.denoiser import Denoiser
from diffast.tuning.grids import densities, error_kernel, shortest_path
from diffast.tuning.grids.flow_path import FlowPath
from diffast.tuning.grids.levels import levels_by_density

NAMES = {
    "arctan": "even in arctan(rho / c), c the measured deviation of the data",
    "entropic": "equal falls of the entropy of x0 given the state",
    "rescaled_entropic": "the entropic density times rho",
    "equal_ep": "equal entropy production",
    "score_optimal": "equal changes of the score at given states",
    "accel": "the local error of DDIM, carried to the end as for Gaussian data",
    "klub": "the shortest path in the bound of Align Your Steps",
    "gits": "the shortest path in errors of single Euler steps",
    "kernel_1": "least error of a first-order solver, errors taken with their signs",
    "kernel_2": "the same for the second-order multistep method",
    "kernel_2_cautious": "kernel_2, which expects little of errors that cancel: for few steps",
    "kernel_heun": "the same for Heun's method",
}
"""The grids that `Pilot.grid` makes, and what they are."""

# The order of the solver behind each kernel, and the caution that suits it.
_ORDERS = {"kernel_1": 1, "kernel_2": 2, "kernel_heun": 2}
_CAUTION = {"kernel_2_cautious": ("kernel_2", 4.0)}


class Pilot:
    """Measurements on a network with a batch of samples, and the grids made of them.

    Measured when first asked for: the flow from the initial noise of `df.sample` at fine levels, by
    a Heun method; the loss of the x0 estimate; changes of the score; how far one coarse step of a
    solver moves the end point. All of it depends on the network, the conditions, the guidance and
    the seed alone. One row of a batch is one sample, so conditions with rows need B of them.

    Args:
        denoiser: the network and what it predicts.
        shape: [B, ...] of the state.
        seed: of the initial noise, and of the noise of the loss.
        levels: how many levels, even in log(rho), the loss and the kernels are measured at.
        substeps: steps of the flow between two levels.
        data: samples [>= 1, ...] for the loss, in the network's unit; None: the end points of the
            pilot's own flow. With conditions by rows they have to fit the rows.
        dtype: of the state: torch.float32 or torch.float64.
        device: where to run; None: where the network is.

    Raises:
        ValueError: fewer than 4 levels, fewer than 1 substep, an empty shape, data of another
            shape, another dtype; at a measurement, x0 estimates that are not finite.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        seed: int = 0,
        levels: int = 16,
        substeps: int = 4,
        data: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ):
        """Checks the arguments; no network call yet."""
        shape = tuple(int(size) for size in shape)
        if not shape or min(shape) < 1:
            raise ValueError(f"Pilot: shape is {shape}, but it must be [B, ...], B >= 1")
        for name, value, least in (("levels", levels, 4), ("substeps", substeps, 1)):
            if value < least:
                raise ValueError(f"Pilot: {name} is {value}, but at least {least} are needed")
        if dtype not in FLOATS[:2]:
            raise ValueError(f"Pilot: dtype is {dtype}, but it must be float32 or float64")
        if data is not None and tuple(data.shape[1:]) != shape[1:]:
            raise ValueError(
                f"Pilot: data has rows of shape {list(data.shape[1:])}, but shape asks for "
                f"{list(shape[1:])}"
            )
        self.denoiser, self.shape, self.seed, self.substeps = denoiser, shape, seed, substeps
        self.flow = FlowPath(denoiser, shape, seed, dtype, device)
        self.times, self.rho = self.flow.levels.even((levels - 1) * substeps + 1)
        keep = np.unique(np.linspace(0, len(self.rho) - 1, levels).round().astype(int))
        self.coarse = keep  # which of the fine levels are those of the loss and the kernels
        self._data = data
        self._kernels: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def calls(self) -> int:
        """Returns the network calls so far, each of all B rows."""
        return self.flow.calls

    @property
    def elements(self) -> int:
        """Returns d, the number of elements of one sample."""
        return int(np.prod(self.shape[1:])) if len(self.shape) > 1 else 1

    # What is measured.

    @cached_property
    def path(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Returns (states u, x0 estimates) of the flow at all fine levels."""
        with torch.no_grad():
            states, estimates = self.flow.heun(self.flow.start(), self.times)
            estimates.append(self.flow.estimate(states[-1], self.times[-1]))
        return states, estimates

    @property
    def ends(self) -> torch.Tensor:
        """Returns the samples [B, ...] that the flow ends at: the last x0 estimates."""
        return self.path[1][-1]

    @cached_property
    def deviation(self) -> float:
        """Returns the deviation of the data about their mean, over all elements."""
        data = (self.ends if self._data is None else self._data).double()
        return float((data - data.mean(0)).square().mean().sqrt()) or 1.0

    @cached_property
    def loss(self) -> np.ndarray:
        """Returns E|x0 - D|^2, summed over the elements, at the coarse levels from high to low.

        The same noise serves all levels. The curve is pooled so that it does not rise as the level
        falls.
        """
        data = self.ends if self._data is None else self._data
        data = data.to(self.flow.device, self.flow.dtype)
        data = data[torch.arange(self.shape[0], device=data.device) % len(data)]
        generator = torch.Generator("cpu").manual_seed(self.seed & 0x7FFFFFFFFFFFFFFF)
        noise = torch.randn(self.shape, generator=generator, dtype=torch.float64, device="cpu")
        noise = noise.to(self.flow.device, self.flow.dtype)
        losses = []
        with torch.no_grad():
            for k in self.coarse:
                made = self.flow.estimate(data + float(self.rho[k]) * noise, float(self.times[k]))
                losses.append(
                    float((made - data).double().square().reshape(len(made), -1).sum(1).mean())
                )
        return densities.rising(np.array(losses)[::-1])[::-1]

    @cached_property
    def score_changes(self) -> np.ndarray:
        """Returns rho' times the rms change of the score from each coarse level to the next.

        Both scores are taken at the same states, those of the flow at the noisier level. [M-1].
        """
        states, estimates = self.path
        changes = []
        with torch.no_grad():
            for i, j in zip(self.coarse[:-1], self.coarse[1:], strict=True):
                u, rho, new = states[i], self.rho[i], self.rho[j]
                after = self.flow.estimate(u, float(self.times[j]))
                change = (after - u) / new**2 - (estimates[i] - u) / rho**2
                changes.append(new * float(change.double().square().mean().sqrt()))
        return np.array(changes)

    @cached_property
    def slope(self) -> np.ndarray:
        """Returns the rms of dD / d log(rho) along the flow, [n-1], between the fine levels."""
        lengths = -np.diff(np.log(self.rho))
        steps = zip(self.path[1][:-1], self.path[1][1:], strict=True)
        sizes = [float((b - a).double().square().mean().sqrt()) for a, b in steps]
        return np.array(sizes) / lengths

    def kernel(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (K, widths) of `error_kernel.minimise` for the intervals of coarse levels.

        From each coarse level one step of the solver is made to the next level and the flow is
        followed to the end, one Heun step from level to level. What such a step misses on the
        pilot's own flow is added to it, so that the flow itself is followed exactly.

        Args:
            name: "kernel_1" (DDIM), "kernel_2" (second-order multistep) or "kernel_heun".
        """
        if name not in self._kernels:
            self._kernels[name] = self._measured_kernel(name)
        return self._kernels[name]

    @cached_property
    def _shifts(self) -> list[torch.Tensor]:
        """Returns what has to be added after a Heun step from each coarse level to the next."""
        (states, estimates), shifts = self.path, []
        with torch.no_grad():
            for i, j in zip(self.coarse[:-1], self.coarse[1:], strict=True):
                made = self.flow.heun(states[i], self.times[[i, j]], estimates[i])[0][-1]
                shifts.append(states[j] - made)
        return shifts

    @torch.no_grad()
    def _measured_kernel(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        order, times, rho = _ORDERS[name], self.times[self.coarse], self.rho[self.coarse]
        states, estimates = ([made[k] for k in self.coarse] for made in self.path)
        widths = -np.diff(np.log(rho))
        moved = []
        for j, width in enumerate(widths):
            u, d, keep = states[j], estimates[j], rho[j + 1] / rho[j]
            u_new = keep * u + (1.0 - keep) * d
            if name == "kernel_2" and j:
                back = widths[j - 1]
                u_new += (1.0 - keep) * 0.5 * width / back * (d - estimates[j - 1])
            elif name == "kernel_heun":
                late = (u_new - self.flow.estimate(u_new, times[j + 1])) / rho[j + 1]
                u_new = u + 0.5 * (rho[j + 1] - rho[j]) * ((u - d) / rho[j] + late)
            for k in range(j + 1, len(widths)):
                u_new = self.flow.heun(u_new, times[k : k + 2])[0][-1] + self._shifts[k]
            moved.append((u_new - states[-1]) / width ** (order + 1))
        if name == "kernel_2":  # the first step has no history: its neighbour stands for it
            moved[0] = moved[1]
        flat = torch.stack([g.double().flatten() for g in moved])
        return (flat @ flat.T / flat.shape[1]).cpu().numpy(), widths

    # The grids.

    def levels(self, name: str, steps: int) -> np.ndarray:
        """Returns the noise levels rho [steps+1] of a grid, from high to low.

        Args:
            name: one of `NAMES`.
            steps: number of grid intervals.

        Raises:
            ValueError: an unknown name; steps < 1; what a measurement cannot be made into a grid
                of.
        """
        if name not in NAMES:
            raise ValueError(f"Pilot: grid {name!r} is not known, but {', '.join(NAMES)} are")
        if steps < 1:
            raise ValueError(f"Pilot: {steps} steps, but at least 1 is needed")
        log_rho, rho = np.log(self.rho), self.rho
        if name == "gits":
            return rho[shortest_path.shortest_path(self._euler_errors, steps, 1.15)]
        if name == "klub":
            fine = np.geomspace(rho[0], rho[-1], max(200, 4 * steps))
            mmse = np.exp(self._log_loss(np.log(fine)))
            return fine[shortest_path.shortest_path(shortest_path.klub(fine, mmse), steps)]
        if name.startswith("kernel"):
            kind, caution = _CAUTION.get(name, (name, 0.1))
            kernel, order = self.kernel(kind), _ORDERS[kind]
            made = error_kernel.minimise(*kernel, order, steps, caution=caution)
            return levels_by_density(*self._between(self.coarse, made.density), steps)
        if name == "score_optimal":
            widths = -np.diff(log_rho[self.coarse])
            return levels_by_density(
                *self._between(self.coarse, self.score_changes / widths), steps
            )
        if name == "accel":
            middle = np.exp(0.5 * (log_rho[1:] + log_rho[:-1]))
            density = densities.acceleration(middle, self.slope, self.deviation)
            return levels_by_density(*self._between(np.arange(len(rho)), density), steps)
        fine = np.geomspace(rho[0], rho[-1], 512)
        if name == "arctan":
            density = densities.arctan(fine, self.deviation)
        else:
            mmse = np.exp(self._log_loss(np.log(fine)))
            density = {
                "entropic": lambda: densities.entropic(fine, mmse),
                "rescaled_entropic": lambda: densities.rescaled_entropic(fine, mmse),
                "equal_ep": lambda: densities.equal_entropy_production(fine, mmse, self.elements),
            }[name]()
        return levels_by_density(np.log(fine), density, steps)

    def grid(self, name: str, steps: int, to_zero: bool = True) -> np.ndarray:
        """Returns a measured grid as model times, [steps+1] float64.

        The levels are those of `levels`. With `to_zero` the last one is moved to sigma = 0, so that
        the last step ends at the x0 estimate.

        Raises:
            ValueError: as `levels`; more steps than a network of whole times has times.
        """
        return self.flow.levels.grid(self.levels(name, steps), to_zero)

    def grids(self, steps: int, names: Sequence[str] = tuple(NAMES)) -> dict[str, np.ndarray]:
        """Returns the measured grids by name."""
        return {name: self.grid(name, steps) for name in names}

    def _log_loss(self, log_rho: np.ndarray) -> np.ndarray:
        known = np.log(np.maximum(self.loss, np.finfo(np.float64).tiny))
        return np.interp(-log_rho, -np.log(self.rho[self.coarse]), known)

    def _between(self, which: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (log levels, density) for densities that are known between levels."""
        log_rho = np.log(self.rho[which])
        middle = 0.5 * (log_rho[1:] + log_rho[:-1])
        ends = np.concatenate([log_rho[:1], middle, log_rho[-1:]])
        return ends, np.concatenate([density[:1], density, density[-1:]])

    @cached_property
    def _euler_errors(self) -> np.ndarray:
        """Returns [n, n], the mean distance from one Euler step i -> j to the flow's state j."""
        states, estimates = self.path
        count = len(self.rho)
        cost = np.zeros((count, count))
        for i in range(count - 1):
            for j in range(i + 1, count):
                keep = self.rho[j] / self.rho[i]
                made = torch.lerp(estimates[i], states[i], float(keep))
                cost[i, j] = float(
                    (made - states[j]).reshape(len(made), -1).norm(dim=1).double().mean()
                )
        return cost
