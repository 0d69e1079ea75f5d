"""The slopes that a sweep gives the network, row by row; "secant" measures them.

A secant is the quotient of <dx, d x0> and <dx, dx>, where dx and d x0 are how far a point and its
x0 estimate moved from one round to the next.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffast import ops
from diffast.executors.context import Place
from diffast.executors.parallel.methods import Method, secant_limits, slopes_of
from diffast.lowering.sweep_tables import ALPHA, SIGMA, Tables

# A slope is measured only where the point moved further than this, relative to its size. Below it
# the rounding errors of the network would be measured, so the slope of the round before is kept.
_SHORTEST = 3e-5


class Slopes:
    """The slope of each row's x0 estimate, without `Tables.own`.

    Numbers that depend on the rows' stages are looked up on the host, and sent with the round's
    other arrays.
    """

    def __init__(self, method: Method, tables: Tables, plan_name: str, place: Place):
        """Looks up nothing yet; see `slopes_of` for what it raises."""
        self.secant, self.place = method.secant, place
        self.base = slopes_of(method, tables, plan_name)
        self.measured = torch.empty(0, dtype=torch.float64, device=place.device)
        if not method.secant:
            return
        stages, branches = tables.slope.shape
        self.weights = np.zeros((stages, 2, 2 + 2 * branches))
        self.weights[:, 0, :2] = 1.0, -1.0
        self.weights[:, 1, 2::2] = tables.slope
        self.weights[:, 1, 3::2] = -tables.slope
        self.least, self.most = secant_limits(tables)
        numel = int(np.prod(place.shape[1:]))
        square = tables.line[:, ALPHA] ** 2 + tables.line[:, SIGMA] ** 2
        self.shortest = _SHORTEST**2 * square * numel

    def open(self, size: int) -> None:
        """Begins with that many rows."""
        self.measured = torch.zeros(size, dtype=torch.float64, device=self.place.device)

    def orders(self, stage: np.ndarray, age: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays that `of` needs on the device, for rows at these stages, [size].

        A row's age is how many rounds it has been at its stage.
        """
        orders = {"slope": self.base[stage]}
        if self.secant:
            orders["fresh"] = age == 0
            orders["secant"] = self.weights[stage]
            # A row that is new has no earlier answer, and is told so by a length out of reach.
            shortest = np.where(orders["fresh"], np.inf, self.shortest[stage])
            orders["limits"] = np.stack([self.least[stage], self.most[stage], shortest])
        return orders

    def of(
        self,
        sent: dict[str, torch.Tensor],
        points: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        before: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Returns the slopes of all rows, [size].

        Args:
            sent: what `orders` returned, on the device.
            points: of this round and of the one before, [size, ...] each.
            outputs: the network's for the points of this round, one a branch.
            before: those of the round before; none in the first round.
        """
        if not self.secant:
            return sent["slope"]
        measured = self.measured  # written in place: a replayed round finds it where it was
        torch.where(sent["fresh"], sent["slope"], measured, out=measured)
        if before:
            answers = zip(outputs, before, strict=True)
            xs = [*points, *(output for pair in answers for output in pair)]
            sums = torch.empty(
                (len(points[0]), 3), dtype=torch.float64, device=self.measured.device
            )
            ops.gram(xs, sent["secant"], sums)
            length, product = sums[:, 0], sums[:, 1]
            least, most, shortest = sent["limits"]
            slope = torch.clamp(product / length, least, most)
            # A point or an output may be infinite, far from where the network was trained. `least`
            # is finite, so the slope is finite if it is below infinity.
            known = (length > shortest) & (slope < torch.inf)
            torch.where(known, slope, measured, out=measured)
        return measured

    def moved(self, index: torch.Tensor) -> None:
        """Called when row i came from row index[i]."""
        self.measured = self.measured.index_select(0, index)
