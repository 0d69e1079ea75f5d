"""Two network calls of one stage at once, on two inputs: parallel directions.

Every stage but the first, and the last one where the number of calls is even, calls the network on
x and on x2, as one batch (compare Zhu et al. 2025, "Distilling parallel gradients for fast ODE
solvers of diffusion models", arXiv:2507.14797). Both estimates are weighed in the next rows. What
is remembered of a stage is one mixture of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.plans.registers import X2, D, H, X, entry_column, pack
from diffast.tuning.form import Form
from diffast.tuning.parameters import Numbers, Parameters


def stages_of(calls: int) -> list[int]:
    """Returns the number of calls of each stage: 1, 2, 2, .. and 1 more where that is left."""
    pairs, rest = divmod(calls - 1, 2)
    return [1, *[2] * pairs, *[1] * rest]


class _Extra(NamedTuple):
    """What the second inputs add, float64; stage by stage, without meaning where there is none.

    Attributes:
        levels: [S, 2] of (alpha, sigma) of x2.
        told: [S] model times of the calls on x2.
        keep: [S] weights of the x before in x2.
        rows: [S, S] weights in x2 of what is remembered of earlier stages; of the newest stage
            that of d.
        ahead: [S] weights in x2 of the newest d2.
        share: [S] shares of d2 in the newest estimate of the row of x.
        mixed: [S] shares of d2 in what is remembered.
    """

    levels: torch.Tensor
    told: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    ahead: torch.Tensor
    share: torch.Tensor
    mixed: torch.Tensor


class PairedParameters:
    """`Parameters` of a plan whose stages call the network twice: of x, and then of x2.

    Args:
        form: the numbers of x at the vector 0, one call a stage.
        denoiser: whose prediction and guidance count.
        freedom: names of FREEDOMS, for x.
        calls: network calls of the plan.

    Raises:
        ValueError: for a form of another number of stages, or one that `Parameters` refuses.
    """

    def __init__(self, form: Form, denoiser: Denoiser, freedom: Sequence[str], calls: int):
        """Lays out the vector: that of x, then that of each second input."""
        self.pattern = stages_of(calls)
        if len(self.pattern) != form.calls:
            raise ValueError(f"PairedParameters: {form.calls} stages, not {len(self.pattern)}")
        self.main = Parameters(form, denoiser, freedom)
        self.form, self.calls = form, calls
        self.paired = [n for n, count in enumerate(self.pattern) if count == 2]
        self.size = self.main.size
        self._places = {}
        for n in self.paired:  # level, told time, share, mixed, d2 before, entries before
            count = 5 + max(n - 1, 0)
            self._places[n] = slice(self.size, self.size + count)
            self.size += count
        # The place of each stage's call on x among all calls; that on x2 follows.
        self.first = np.concatenate([[0], np.cumsum(self.pattern)]).tolist()

    def _extra(self, vector: torch.Tensor, main: Numbers) -> _Extra:
        count = len(self.pattern)
        own = self.main
        lams = own.log_snr(vector)
        zero = torch.zeros((), dtype=torch.float64, device="cpu")
        columns: dict[str, list[torch.Tensor]] = {name: [] for name in _Extra._fields}
        for n in range(count):
            if n not in self._places:
                made = {"levels": torch.ones(2, dtype=torch.float64, device="cpu")}
                made["rows"] = torch.zeros(count, dtype=torch.float64, device="cpu")
                for name, values in columns.items():
                    values.append(made.get(name, zero))
                continue
            level, told, share, mixed, ahead, *entries = vector[self._places[n]]
            # half of the way to the next level; of the way before, where the next is clean
            gap = lams[n + 1] - lams[n] if n + 1 < count else lams[n] - lams[max(n - 1, 1)]
            at = lams[n] + 0.5 * gap.detach() + level
            _, alpha, sigma = (part[0] for part in own.at(at[None]))
            time = own.at((at + told)[None])[0][0]
            before = main.levels[n - 1]
            keep = sigma / before[1]
            gain = alpha - keep * before[0]
            older = (
                gain * torch.stack(entries)
                if entries
                else torch.zeros(0, dtype=torch.float64, device="cpu")
            )
            ahead = gain * ahead if n - 1 in self._places else zero
            newest = gain - older.sum() - ahead
            rest = torch.zeros(count - n, dtype=torch.float64, device="cpu")
            row = torch.cat([older, newest[None], rest])
            made = (torch.stack([alpha, sigma]), time, keep, row, ahead, share, mixed)
            for name, value in zip(_Extra._fields, made, strict=True):
                columns[name].append(value)
        return _Extra(*(torch.stack(values) for values in columns.values()))

    def numbers(self, vector: torch.Tensor, told: torch.Tensor | None = None) -> Numbers:
        """Returns what a run needs, a row for each call; see `Parameters.numbers`."""
        main = self.main.numbers(vector[: self.main.size], None if told is None else told[self._x])
        extra = self._extra(vector, main)
        calls = self.calls
        base, keep, rows, levels, times = [], [], [], [main.levels[0]], []
        for n, made in enumerate(self.pattern):
            times += [main.told[n], *([extra.told[n]] if made == 2 else [])]
            # this stage writes x of the next one, and x2 where that one calls it
            weights = self._flat(main.weights[n], extra, n, extra.share[n] * main.weights[n, n])
            base.append(self.first[n])
            keep.append(main.keep[n])
            rows.append(weights)
            levels.append(main.levels[n + 1])
            if n + 1 in self._places:
                base.append(self.first[n])
                keep.append(extra.keep[n + 1])
                rows.append(self._flat(extra.rows[n + 1], extra, n, extra.ahead[n + 1], True))
                levels.append(extra.levels[n + 1])
        all_told = torch.stack(times)
        a, b = self.main.affine(all_told)
        scales = torch.repeat_interleave(main.scales, torch.tensor(self.pattern, device="cpu"))
        fresh = torch.zeros(calls, dtype=torch.float64, device="cpu")
        weights, kept = torch.stack(rows), torch.stack(keep)
        made = (kept, weights, fresh, all_told, a, b, scales, torch.stack(levels))
        return Numbers(*made, tuple(base))

    @property
    def _x(self) -> torch.Tensor:
        return torch.tensor(self.first[:-1], device="cpu")

    def _flat(self, row, extra: _Extra, n: int, second: torch.Tensor, added: bool = False):
        """Returns a row over stages as one over calls; `second` is the weight of the newest d2.

        It is taken from the weight of d, unless it is `added` to a row that has left room for it.
        """
        flat = [torch.zeros((), dtype=torch.float64, device="cpu") for _ in range(self.calls)]
        for j in range(n):
            mixed = extra.mixed[j]
            flat[self.first[j]] = row[j] * (1.0 - mixed)
            if j in self._places:
                flat[self.first[j] + 1] = row[j] * mixed
        if n in self._places:
            flat[self.first[n]] = row[n] if added else row[n] - second
            flat[self.first[n] + 1] = second
        else:
            flat[self.first[n]] = row[n]
        return torch.stack(flat)

    def form_at(self, vector: torch.Tensor) -> PairedForm:
        """Returns the numbers of the plan at a vector [P]."""
        with torch.no_grad():
            main = self.main.numbers(vector[: self.main.size])
            extra = self._extra(vector, main)
        form = self.main.form_at(vector[: self.main.size])
        paired = np.array(self.pattern) == 2
        return PairedForm(form, paired, *(part.numpy() for part in extra))


@dataclass(frozen=True)
class PairedForm:
    """The numbers of such a plan: the form of x, which stages are paired, and `_Extra`'s arrays."""

    form: Form
    paired: np.ndarray
    levels: np.ndarray
    told: np.ndarray
    keep: np.ndarray
    rows: np.ndarray
    ahead: np.ndarray
    share: np.ndarray
    mixed: np.ndarray

    def plan(self, name: str, **fields: Any) -> Plan:
        """Returns the plan; fields are further ones of `Plan`."""
        form, count = self.form, self.form.calls
        following = np.append(self.paired[1:], False)  # whether the next stage calls x2
        ahead, rows2 = np.append(self.ahead[1:], 0.0), np.vstack([self.rows[1:], 0 * self.rows[:1]])
        older, older2 = (np.tril(table, -1) for table in (form.weights, rows2))
        stands, levels2 = form.levels, np.vstack([self.levels[1:], np.full((1, 2), np.nan)])
        keep2 = np.where(following, np.append(self.keep[1:], 0.0), 0.0)
        gain2 = np.where(following, levels2[:, 0] - keep2 * stands[:-1, 0], 0.0)
        newest = form.gain - older.sum(axis=1)
        second = np.where(self.paired, self.share * newest, 0.0)
        x = {X: form.keep, D: newest - second, "d2": second}
        ahead = np.where(following & self.paired, ahead, 0.0)
        older2 = np.where(following[:, None], older2, 0.0)
        x2 = {X: keep2, D: gain2 - older2.sum(axis=1) - ahead, "d2": ahead}
        for age in range(1, count):
            for row, table in ((x, older), (x2, older2)):
                row[entry_column(age)] = np.append(np.zeros(age), np.diagonal(table, -age))
        mixed = np.where(self.paired, self.mixed, 0.0)
        rows = {H: {D: 1.0 - mixed, "d2": mixed}, X2: x2, X: x}
        names, columns, matrix = pack(rows, count)
        levels = np.full((count, len(names), 2), np.nan)
        levels[:, names.index(X)] = stands[1:]
        levels[following, names.index(X2)] = levels2[following]
        times = np.stack([form.told, np.where(self.paired, self.told, np.nan)], axis=1)
        guidance = form.guidance
        if guidance is not None:
            guidance = np.stack([guidance, np.where(self.paired, guidance, np.nan)], axis=1)
        return Plan(
            schedule=form.schedule,
            times=times,
            start=form.start,
            end=form.end,
            rows=names,
            columns=columns,
            matrix=matrix,
            levels=levels,
            steps=count,
            name=name,
            guidance=guidance,
            **fields,
        )
