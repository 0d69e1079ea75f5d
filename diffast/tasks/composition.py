"""One measurement after another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffast.tasks.operator import Operator, check_image, check_same, inverse_weight
from diffast.tasks.operators import Colour

# Conjugate gradients end at this residual, relative to the right-hand side, or after so many steps.
_TOLERANCE, _MOST_STEPS = 1e-6, 500


class Composed(Operator):
    """See `compose`; the measurement is that of the last operator."""

    name = "compose"

    def __init__(self, operators: tuple[Operator, ...]) -> None:
        """Takes two or more operators, the first one applied first."""
        self.operators = operators
        first, rest = _split(operators) if len(operators) > 1 else (None, self)
        if first is not None:
            self.inverse_gain = rest.inverse_gain

    def forward(self, x: Tensor) -> Tensor:
        """Returns the measurement of the measurement ... of x."""
        for operator in self.operators:
            x = operator.forward(x)
        return x

    def transpose(self, y: Tensor) -> Tensor:
        """Returns A^T y: the transposes, the last operator's first."""
        for operator in reversed(self.operators):
            y = operator.transpose(y)
        return y

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """Returns A^+ y: exact after changes of basis, else by conjugate gradients.

        Raises:
            RuntimeError: the gradients did not converge.
        """
        first, rest = _split(self.operators)
        if first is not None:
            return first.transpose(rest.pseudo_inverse(y))
        check_image(self.name, y, "y")
        # The normal equations have a solution for every y; gradients from 0 find the shortest one.
        return _solve(lambda x: self.transpose(self.forward(x)), self.transpose(y))

    def prox(self, x: Tensor, y: Tensor, weight: float | Tensor) -> Tensor:
        """Returns the proximal step: exact after changes of basis, else by conjugate gradients.

        Raises:
            RuntimeError: the gradients did not converge.
        """
        first, rest = _split(self.operators)
        if first is not None:
            return first.transpose(rest.prox(first.forward(x), y, weight))
        seen = self.forward(x)
        check_same(self.name, x, y, seen.shape)
        inverse = inverse_weight(self.name, weight, x)
        if not bool((inverse > 0).all()):  # an infinite weight
            return x + self.pseudo_inverse(y - seen)
        # a weight of 0 leaves x as it is
        ridge = inverse.clamp(max=1e12)
        u = _solve(lambda v: self.forward(self.transpose(v)) + ridge * v, y - seen)
        return x + self.transpose(u) * (inverse < torch.inf)


def _solve(apply: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """The solution u of apply(u) = right, for a positive map; each sample by itself."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dim=(1, 2, 3), keepdim=True)

    u, residual = torch.zeros_like(right), right
    direction, size = right, dot(right, right)
    # Rounding of the numbers themselves is the least residual that can be asked for.
    tolerance = max(_TOLERANCE, 8 * torch.finfo(right.dtype).eps)
    goal = size * tolerance**2
    for _ in range(_MOST_STEPS):
        going = size > goal
        if not bool(going.any()):
            return u
        applied = apply(direction)
        curve = dot(direction, applied)
        step = torch.where(going, size / torch.where(curve == 0, 1, curve), 0)
        u, residual = u + step * direction, residual - step * applied
        new = dot(residual, residual)
        direction = residual + torch.where(going, new / torch.where(going, size, 1), 0) * direction
        size = new
    worst = float((size / torch.where(goal == 0, 1, goal)).max()) ** 0.5 * tolerance
    raise RuntimeError(
        f"compose: conjugate gradients did not converge in {_MOST_STEPS} steps: the residual is "
        f"{worst:.1e} of the right-hand side, but {tolerance:.0e} was wanted"
    )


def _split(operators: tuple[Operator, ...]) -> tuple[Colour | None, Operator]:
    """Returns a first change of basis, where there is one, and the rest."""
    first, *others = operators
    if isinstance(first, Colour) and first.basis.shape[0] == first.basis.shape[1]:
        return first, others[0] if len(others) == 1 else Composed(tuple(others))
    return None, first


def compose(*operators: Operator) -> Operator:
    """Returns the measurement that applies the operators one after another, the first one first.

    After a full change of basis, `colour` of as many rows as channels, the closed forms of the
    rest hold: `compose(colour(opponent_basis()), inpainting(mask))` is inpainting in that basis.
    Other pairs have an exact `forward` and `transpose`; `pseudo_inverse` and `prox` then use
    conjugate gradients.

    Raises:
        ValueError: no operators, or something that is none.
    """
    if not operators:
        raise ValueError("compose: no operators are given, but at least one is needed")
    for operator in operators:
        if not isinstance(operator, Operator):
            raise ValueError(
                f"compose: a {type(operator).__name__} is given, but an operator of df.tasks is "
                "needed"
            )
    return operators[0] if len(operators) == 1 else Composed(operators)
