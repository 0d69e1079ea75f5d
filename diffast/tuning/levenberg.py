"""Learning by Levenberg and Marquardt's method: network calls forwards, no gradient needed.

The residuals of a batch of pilots, and their derivatives by differences in every parameter, give
normal equations; a damped step solves them (Marquardt 1963, "An algorithm for least-squares
estimation of nonlinear parameters"). A parameter of call n changes nothing before that call, so its
run begins there, from the states of the unchanged run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from diffast.tuning.directions import PairedParameters
from diffast.tuning.parameters import Numbers, Parameters
from diffast.tuning.pilots import Pilots, pieces, tiled
from diffast.tuning.run import Rows, next_state

# Differences that a derivative may be made of. The noise of a network divided by the difference is
# an error of the derivative, and curvature times the difference is one. Float32 networks want small
# ones; TF32 (convolutions on a GPU), half precision and quantised weights want large ones.
_STEPS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# No parameter moves further in one iteration.
_LONGEST = 1.0
_TRIES = 8
_LEAST_DAMPING, _MOST_DAMPING = 1e-7, 1e6
# Damping that an iteration begins with, at most: with more of it no step leads anywhere.
_FIRST_DAMPING = 1.0

Residual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Step(NamedTuple):
    """What an iteration did.

    Attributes:
        vector: [P] after it.
        damping: for the next one.
        before: error of the batch before.
        after: error of the batch after; the same if no step was better.
        calls: network evaluations, by sample.
        note: what went wrong, or "".
    """

    vector: np.ndarray
    damping: float
    before: float
    after: float
    calls: int
    note: str = ""


class Trace(NamedTuple):
    """The unchanged run: x before each call and at the end, and the estimates."""

    states: list[torch.Tensor]
    estimates: list[torch.Tensor]


class Runner:
    """Runs of a batch of pilots with many parameter vectors at once.

    Args:
        parameters: what is learned.
        pilots: the noises.
        rows: rows of one network call, at most.
    """

    def __init__(self, parameters: Parameters | PairedParameters, pilots: Pilots, rows: int):
        """Keeps them; `calls` counts network evaluations by sample."""
        self.parameters, self.pilots, self.rows = parameters, pilots, rows
        self.calls = 0

    def trace(self, ids: torch.Tensor, numbers: Numbers) -> Trace:
        """Returns the unchanged run of pilots."""
        x = self.pilots.noise(ids, float(numbers.levels[0, 1]))
        trace = Trace([x], [])
        for n in range(len(numbers.keep)):
            trace.estimates.append(self._estimates(ids, [(trace.states[n], numbers)], n)[0])
            normal = self._normal(ids, numbers, n)
            trace.states.append(_next(trace, numbers, n, normal))
        return trace

    def changed(
        self, ids: torch.Tensor, trace: Trace, base: Numbers, others: list[Numbers]
    ) -> list[torch.Tensor]:
        """Returns the samples [B, ...] of each of several other numbers, near the base."""
        first = [_first_change(base, other) for other in others]
        runs = [Trace([*trace.states], [*trace.estimates]) for _ in others]
        sigma = float(base.levels[0, 1])
        for made, other in zip(runs, others, strict=True):
            if float(other.levels[0, 1]) != sigma:
                made.states[0] = trace.states[0] * (float(other.levels[0, 1]) / sigma)
        for n in range(len(base.keep)):
            called = [k for k, (call, _) in enumerate(first) if call <= n]
            wanted = [(runs[k].states[n], others[k]) for k in called]
            made = self._estimates(ids, wanted, n)
            for k, estimate in zip(called, made, strict=True):
                runs[k].estimates[n] = estimate
            normal = self._normal(ids, base, n)
            for k, other in enumerate(others):
                if min(first[k]) <= n:
                    runs[k].states[n + 1] = _next(runs[k], other, n, normal)
        return [run.states[-1] for run in runs]

    def _normal(self, ids: torch.Tensor, numbers: Numbers, n: int) -> torch.Tensor | None:
        return self.pilots.noise(ids, 1.0, n) if bool(numbers.fresh[n] > 0.0) else None

    def _estimates(
        self, ids: torch.Tensor, wanted: list[tuple[torch.Tensor, Numbers]], n: int
    ) -> list[torch.Tensor]:
        """Returns the x0 estimates of several runs at call n, as few network calls as `rows`."""
        found: list[torch.Tensor] = []
        batch = len(ids)
        together = max(self.rows // batch, 1)
        if getattr(self.pilots.denoiser.network, "one_time", False):  # each run tells its own
            together = 1
        for piece in pieces(len(wanted), together):
            found += self._together(ids, wanted[piece], n)
        return found

    def _together(self, ids, wanted, n):
        batch, count = len(ids), len(wanted)
        denoiser = tiled(self.pilots.rows(ids), count, batch)
        x = torch.cat([x for x, _ in wanted])

        def column(field: str) -> torch.Tensor:
            each = torch.stack([getattr(numbers, field)[n] for _, numbers in wanted])
            each = each.repeat_interleave(batch).to(x.device, x.dtype)
            return each.reshape(-1, *[1] * (x.dim() - 1))

        scales = {float(numbers.scales[n]) for _, numbers in wanted}
        rows = Rows(denoiser, x)
        told = torch.stack([numbers.told[n] for _, numbers in wanted]).repeat_interleave(batch)
        a, b = column("a"), column("b")
        self.calls += len(x) * (1 if scales <= {0.0} or scales <= {1.0} else 2)
        if scales in ({0.0}, {1.0}):
            output = rows.output(x, told, "cond" if scales == {1.0} else "uncond")
        else:
            cond, uncond = rows.output(x, told, "both").chunk(2)
            output = uncond + column("scales") * (cond - uncond)
        return (a * x + b * output).split(batch)


def _next(trace, numbers, n, normal):
    """Returns the state that row n makes."""
    row = zip(numbers.weights[n], trace.estimates[: n + 1], strict=False)
    terms = [(weight, estimate) for weight, estimate in row if weight != 0.0]
    state = trace.states[numbers.bases()[n]]
    return next_state(numbers.keep[n], state, terms, numbers.fresh[n], normal)


def _first_change(base: Numbers, other: Numbers) -> tuple[int, int]:
    """Returns the first call that has to be made again, and the first row; N where there is none.

    A row that changes the state after call n changes the call after it.
    """
    count = len(base.keep)
    called = torch.stack(
        [(getattr(base, f) != getattr(other, f)) for f in ("told", "a", "b", "scales")]
    )
    rows = (base.weights != other.weights).any(1) | (base.keep != other.keep)
    rows |= base.fresh != other.fresh
    call = 0 if bool(base.levels[0, 1] != other.levels[0, 1]) else _first(called.any(0), count)
    row = _first(rows, count)
    return min(call, row + 1), row


def _first(where: torch.Tensor, otherwise: int) -> int:
    found = where.nonzero()
    return int(found[0]) if len(found) else otherwise


class Marquardt:
    """One iteration after another, each on a batch of its own.

    Args:
        runner: makes the samples.
        residual: called as residual(samples, ids); returns [B, F], whose mean square is the squared
            error of these rows.
        chunk: pilots whose derivatives are held at once.
        probes: pilots [B] by which the difference of derivatives is chosen, at the vector 0.
    """

    def __init__(self, runner: Runner, residual: Residual, chunk: int, probes: torch.Tensor):
        """Keeps them; see the class."""
        self.runner, self.residual, self.chunk, self.probes = runner, residual, chunk, probes

    @cached_property
    def difference(self) -> float:
        """Returns the difference whose second differences are the least share of its first ones.

        Along one direction. Noise makes second differences large at small steps, curvature at large
        ones.
        """
        size = self.runner.parameters.size
        signs = np.where(np.arange(size) % 3 == 1, -1.0, 1.0) / max(size, 1) ** 0.5
        own = self.probes[: self.chunk]

        def seen(step: float) -> torch.Tensor:
            numbers = self.runner.parameters.numbers(torch.from_numpy(step * signs))
            return self.residual(self.runner.trace(own, numbers).states[-1], own).double()

        middle, shares = seen(0.0), []
        for step in _STEPS:
            above, below = seen(step), seen(-step)
            first = float((above - below).square().mean().sqrt()) / 2.0
            second = float((above - 2.0 * middle + below).square().mean().sqrt())
            shares.append(second / first if first > 0.0 and second < math.inf else math.inf)
        return _STEPS[int(np.argmin(shares))]

    def iterate(
        self, vector: np.ndarray, damping: float, ids: torch.Tensor, others: torch.Tensor
    ) -> Step:
        """Returns what one iteration makes of a vector [P].

        Args:
            vector: where it stands.
            damping: of the first try.
            ids: pilots that the equations are made of.
            others: pilots that a step has to be better on. With those of the equations a step that
                fits their noise would be taken.
        """
        begun = self.runner.calls
        normal, slope, before, note = self._equations(vector, ids)
        if normal is None or slope is None:
            return Step(vector, damping, before, before, self.runner.calls - begun, note)
        sizes = np.diag(normal)
        damped = np.diag(sizes + 0.01 * sizes.mean())
        damping = min(damping, _FIRST_DAMPING)
        fine, before = self._error(vector, others)
        after, found, first = before, vector, damping
        for _ in range(_TRIES):
            move = -np.linalg.solve(normal + damping * damped, slope)
            move *= min(1.0, _LONGEST / max(np.abs(move).max(), 1e-300))
            kept, error = self._error(vector + move, others[fine])
            if error < before and bool(kept.all()):
                after, found = error, vector + move
                damping = max(damping / 4.0, _LEAST_DAMPING)
                break
            damping = min(6.0 * damping, _MOST_DAMPING)
        else:  # the pilots were too few to tell a direction, which more damping does not mend
            damping = min(6.0 * first, _MOST_DAMPING)
        return Step(found, damping, before, after, self.runner.calls - begun, note)

    def _equations(self, vector, ids):
        """Returns (J'J, J'r, error, note); without equations where nothing was finite."""
        parameters, h = self.runner.parameters, self.difference
        size = parameters.size
        normal, slope = np.zeros((size, size)), np.zeros(size)
        total, count, lost = 0.0, 0, 0
        base = parameters.numbers(torch.from_numpy(vector))
        others = [
            parameters.numbers(torch.from_numpy(vector + h * unit), base.told)
            for unit in np.eye(size)
        ]
        for piece in pieces(len(ids), self.chunk):
            own = ids[piece]
            trace = self.runner.trace(own, base)
            r = self.residual(trace.states[-1], own).double()
            moved = self.runner.changed(own, trace, base, others)
            slopes = torch.stack([(self.residual(y, own).double() - r) / h for y in moved])
            fine = r.isfinite().all(1) & slopes.isfinite().all(2).all(0)
            lost += int((~fine).sum())
            jacobian = slopes[:, fine].reshape(size, -1).cpu().numpy()
            flat = r[fine].reshape(-1).cpu().numpy()
            normal += jacobian @ jacobian.T
            slope += jacobian @ flat
            total, count = total + float(flat @ flat), count + flat.size
        note = f"{lost} of {len(ids)} pilots were not finite and are left out" if lost else ""
        if not count or not np.isfinite(normal).all():
            return None, None, float("nan"), "no pilot was finite: the step is skipped"
        return normal / count, slope / count, (total / count) ** 0.5, note

    def _error(self, vector: np.ndarray, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Returns which pilots [B] are finite, and the error of these; infinity for none."""
        numbers = self.runner.parameters.numbers(torch.from_numpy(vector))
        fine, total, count = [], 0.0, 0
        for piece in pieces(len(ids), self.chunk):
            r = self.residual(self.runner.trace(ids[piece], numbers).states[-1], ids[piece])
            own = r.isfinite().all(1).cpu()
            fine.append(own)
            r = r[own.to(r.device)].double()
            total, count = total + float(r.square().sum()), count + r.numel()
        kept = torch.cat(fine)
        return kept, (total / count) ** 0.5 if count else float("inf")
