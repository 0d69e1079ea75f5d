"""Inverse problems and guided tasks: measurements, projections, and the tasks on digits.

A measurement is a linear operator with `forward`, `transpose`, `pseudo_inverse` and `prox`:

    inpainting(mask)  super_resolution(factor)  blur(kernel)  colour(basis)  compose(first, ...)

`digits` has the tasks on the digit network of the package.
"""

from diffast.tasks import digits
from diffast.tasks.composition import compose
from diffast.tasks.methods import METHODS, restore
from diffast.tasks.operator import Operator
from diffast.tasks.operators import (
    blur,
    colour,
    gaussian_kernel,
    inpainting,
    opponent_basis,
    super_resolution,
)
from diffast.tasks.projections import range_null, replacement
from diffast.tasks.setup import Setup

__all__ = [
    "METHODS",
    "Operator",
    "Setup",
    "blur",
    "colour",
    "compose",
    "digits",
    "gaussian_kernel",
    "inpainting",
    "opponent_basis",
    "range_null",
    "replacement",
    "restore",
    "super_resolution",
]
