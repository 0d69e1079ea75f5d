"""What of a plan is learned: one vector, zero at the plan that learning starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.ops import MAX_INPUTS
from diffast.plans.registers import levels_of
from diffast.tuning.differentiable import AffineAt, ScheduleAt
from diffast.tuning.form import Form

# What may be learned beside the levels, and what it is.
FREEDOMS = {
    "weights": "the weights of all remembered estimates",
    "levels": "the noise levels of the calls",
    "times": "the time that the network is told, which need not be that of its input's level",
    "scale": "the scale of the state, which need not lie on the schedule",
    "start": "the noise level of the initial state, which may be less than the schedule's highest; "
    "without it standard plans that start lower are left out",
    "guidance": "the guidance scale of each call",
    "noise": "the share of fresh noise of each step, in stochastic plans",
    "directions": "two network calls of one stage at once, on two inputs; both are counted",
}
# What is learned unless one asks for something else; "start" with it in deterministic plans.
STANDARD = ("levels", "weights", "times", "scale")


class Numbers(NamedTuple):
    """A form's numbers as tensors that depend on the vector, float64.

    Attributes:
        keep: [N] weights of the state.
        weights: [N, N] weights of the estimates, lower triangular.
        fresh: [N] weights of fresh normals.
        told: [N] model times.
        a: [N] weights of the network's input in the x0 estimate.
        b: [N] weights of its output.
        scales: [N] guidance scales.
        levels: [N + 1, 2] of (alpha, sigma).
        base: which state, by its call, each row weighs with `keep`; None: the newest.
    """

    keep: torch.Tensor
    weights: torch.Tensor
    fresh: torch.Tensor
    told: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    scales: torch.Tensor
    levels: torch.Tensor
    base: tuple[int, ...] | None = None

    def bases(self) -> Sequence[int]:
        """Returns which state each row weighs, [N]."""
        return range(len(self.keep)) if self.base is None else self.base


class Parameters:
    """The map from a vector [P] float64 to a plan's numbers.

    Levels are increments of the log-SNR, each multiplied by the exponential of its number. Weights,
    told times and the start (as log-SNRs), the logarithm of the state's scale and guidance scales
    have their numbers added. The weight of the newest estimate is what the constraint leaves.

    Args:
        form: the numbers at the vector 0, with log-SNRs that rise from call to call.
        denoiser: whose prediction and guidance count.
        freedom: names of FREEDOMS.

    Raises:
        ValueError: for a form whose levels do not rise.
    """

    def __init__(self, form: Form, denoiser: Denoiser, freedom: Sequence[str]):
        """Lays out the vector."""
        self.form, self.denoiser, self.freedom = form, denoiser, tuple(freedom)
        noisiest = form.schedule.t_start if "start" in self.freedom else form.start
        self.at = ScheduleAt(form.schedule, noisiest)
        self.affine = AffineAt(denoiser)
        n = form.calls
        with np.errstate(divide="ignore"):
            lams = np.log(form.levels[:-1, 0]) - np.log(form.levels[:-1, 1])
        finite = bool(np.isfinite(lams[0]))
        self._first = lams[0] if finite else (lams[1] if n > 1 else 0.0)
        self._finite = finite
        gaps = np.diff(lams if finite else lams[1:])
        if not (gaps > 0).all():
            raise ValueError("Parameters: the levels of the calls do not rise from call to call")
        self._gaps = torch.from_numpy(gaps)
        own = self.at(torch.from_numpy(lams[1:]))
        # How far the levels lie off the schedule at first; 0 for the solvers' plans.
        self._off = torch.log(torch.from_numpy(form.levels[1:-1, 1]) / own[2][: n - 1])
        self._told = torch.from_numpy(self._delta(form, lams))
        gain = torch.from_numpy(form.gain)
        memory = MAX_INPUTS - (2 if denoiser.unconditional is None else 3)
        if np.abs(np.tril(form.weights, -1 - memory)).max() > 1e-12:
            raise ValueError(
                f"Parameters: a row weighs more than the {memory} newest estimates before its own, "
                "which is what a step can take beside x and the network's output"
            )
        older = np.tril(form.weights, -1) - np.tril(form.weights, -1 - memory)
        self._older = torch.from_numpy(older) / gain[:, None]
        pairs = torch.tril_indices(n, n, -1)
        self._pairs = pairs[:, pairs[0] - pairs[1] <= memory]
        sigma = form.levels[1:, 1]
        share = np.divide(form.fresh, sigma, out=np.zeros(n), where=sigma > 0)
        self._angle = torch.from_numpy(np.arcsin(np.clip(share, 0.0, 1.0)))
        self._scales = torch.from_numpy(self._own_scales(form))
        sizes = {
            "levels": max(n - 1, 0),
            "weights": self._pairs.shape[1],
            "times": n - (not finite),
            "scale": n - 1,
            "start": int(finite),
            "guidance": n,
            "noise": int(sum(share > 0)),
        }
        self.slices: dict[str, slice] = {}
        self.size = 0
        for name, count in sizes.items():
            if name in self.freedom and count:
                self.slices[name] = slice(self.size, self.size + count)
                self.size += count
        self._drawn = torch.from_numpy(np.flatnonzero(share > 0))
        self._whole = not self.affine.smooth

    def _delta(self, form: Form, lams: np.ndarray) -> np.ndarray:
        """Returns [N] how far the told times lie from the levels', in log-SNR."""
        told = np.asarray(form.schedule.lam(form.told), dtype=np.float64)
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(told) & np.isfinite(lams), told - lams, 0.0)

    def _own_scales(self, form: Form) -> np.ndarray:
        if form.guidance is not None:
            return np.asarray(form.guidance, dtype=np.float64)
        return self.denoiser.scales(form.told)

    def part(self, vector: torch.Tensor, name: str, count: int) -> torch.Tensor:
        """Returns the numbers of one freedom, zeros where it is not learned."""
        where = self.slices.get(name)
        return (
            torch.zeros(count, dtype=torch.float64, device="cpu")
            if where is None
            else vector[where]
        )

    def numbers(self, vector: torch.Tensor, told: torch.Tensor | None = None) -> Numbers:
        """Returns what a run needs, as functions of the vector [P].

        Args:
            vector: [P] float64.
            told: [N] whole times that a network which wants integers is told all the same, so that
                a small difference of the vector is one of the numbers.
        """
        n = self.form.calls
        lams = self.log_snr(vector)
        inner_t, alpha, sigma = self.at(lams[1:])
        off = torch.exp(self._off + self.part(vector, "scale", n - 1))
        ends = torch.from_numpy(self.form.levels)
        inner = torch.stack([alpha * off, sigma * off], dim=1)
        first, first_t = (
            ends[:1],
            torch.tensor([self.form.told[0]], dtype=torch.float64, device="cpu"),
        )
        if "start" in self.slices:
            first_t, *level = self.at(lams[:1])
            first = torch.stack(level, dim=1)
        levels = torch.cat([first, inner, ends[-1:]])
        angle = self._angle
        if "noise" in self.slices:
            angle = angle.index_add(0, self._drawn, self.part(vector, "noise", len(self._drawn)))
            angle = angle.clamp(0.0, np.pi / 2)
        keep = levels[1:, 1] * torch.cos(angle) / levels[:-1, 1]
        fresh = levels[1:, 1] * torch.sin(angle)
        gain = levels[1:, 0] - keep * levels[:-1, 0]
        older = self._older
        if "weights" in self.slices:
            learned = torch.zeros(n, n, dtype=torch.float64, device="cpu")
            older = older + learned.index_put(tuple(self._pairs), vector[self.slices["weights"]])
        older = older * gain[:, None]
        weights = older + torch.diag(gain - older.sum(dim=1))
        if told is None or not self._whole:
            told = self._times(vector, lams, torch.cat([first_t, inner_t]))
        a, b = self.affine(told)
        scales = self._scales + self.part(vector, "guidance", n)
        return Numbers(keep, weights, fresh, told, a, b, scales, levels)

    def log_snr(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns [N] log-SNRs of the calls' levels, the first one -inf where alpha is 0 there."""
        n = self.form.calls
        moves = self.part(vector, "levels", n - 1)
        first = torch.tensor([self._first], dtype=torch.float64, device="cpu")
        if "start" in self.slices:
            first = torch.clamp(first + vector[self.slices["start"]], min=self.at.least)
        if self._finite:
            return torch.cat([first, first + torch.cumsum(self._gaps * torch.exp(moves), 0)])
        nowhere = torch.tensor([-np.inf], dtype=torch.float64, device="cpu")
        if n == 1:
            return nowhere
        second = first + moves[:1]
        rest = second + torch.cumsum(self._gaps * torch.exp(moves[1:]), 0)
        return torch.cat([nowhere, second, rest])

    def _times(self, vector: torch.Tensor, lams: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Returns [N] told times, whole where the network wants integers; `own` are the levels'."""
        moves = self.part(vector, "times", self.form.calls - (not self._finite))
        if "times" in self.slices or bool(self._told.any()):
            delta = self._told if self._finite else self._told[1:]
            told = self.at((lams if self._finite else lams[1:]) + delta + moves)[0]
            told = told if self._finite else torch.cat([own[:1], told])
        else:
            told = own
        if self._whole:  # the derivative is that of the time before it was rounded
            told = told + (told.round() - told).detach()
        return told

    def form_at(self, vector: torch.Tensor) -> Form:
        """Returns the form at a vector [P], as float64 arrays."""
        with torch.no_grad():
            made = self.numbers(vector)
        form = self.form
        levels, start = made.levels.numpy().copy(), form.start
        levels[0], levels[-1] = form.levels[0], form.levels[-1]
        if "start" in self.slices:
            with torch.no_grad():
                start = float(self.at(self.log_snr(vector)[:1])[0])
            levels[0] = levels_of(form.schedule, start)
        guided = form.guidance is not None or "guidance" in self.slices
        return Form(
            form.schedule,
            start,
            form.end,
            levels,
            made.told.numpy().copy(),
            np.tril(made.weights.numpy()),
            np.where(made.fresh.numpy() > 1e-4 * levels[1:, 1], made.fresh.numpy(), 0.0),
            made.scales.numpy().copy() if guided else None,
        )
