"""What a guidance sub-step is: where it stands, how long it is, and by which method it is made.

A sub-step at level (alpha, sigma) of length dr > 0 in rho takes x/alpha against -f, downwards:

    x' = x + alpha dr f,      f = scale sigma g,      g = grad log p(condition | x)

at one noise level, so x stays at its level. Out of alpha_s = 0 rho is infinite. The ODE's variable
there is tau = sigma / (alpha + sigma), a flow's time, in which x / (alpha + sigma) has the guidance
slope (alpha + sigma)/alpha f, and the whole length is taken at the end of the step.
"""

from __future__ import annotations

from typing import NamedTuple

from diffast.solvers.core.integrals import Level
from diffast.solvers.core.multistep import check_choice, check_order
from diffast.solvers.splitting.momentum import HIGHEST, check_damping, damped_weights
from diffast.solvers.splitting.weave import Weave

METHODS = ("euler", "rk2", "heavy_ball", "ghvb")


class Substep(NamedTuple):
    """One guidance sub-step.

    Attributes:
        time: model time that the guidance terms are told.
        sigma: noise level in f.
        length: alpha dr, the weight of f.
    """

    time: float
    sigma: float
    length: float


def full_length(s: Level, t: Level, at: Level) -> float:
    """Returns alpha dr of the whole step from s to t, for a sub-step at s or t.

    From alpha_s = 0 it is that of a sub-step at t, and 0 at s.
    """
    if s.alpha > 0.0:
        return at.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)
    if at is s or at.sigma == 0.0:
        return 0.0
    total = t.alpha + t.sigma
    return (1.0 - t.on("flow")) * total * total / t.alpha


class Pull:
    """A method for guidance sub-steps, which adds their stages to a weave.

    Args:
        who: the builder, for messages.
        method: "euler"; "rk2" (Heun's method, two gradients); "heavy_ball", Euler's method with a
            velocity; "ghvb", several velocities.
        damping: of the last two, in (0, 1].
        order: of "ghvb", 1 to 5.

    Raises:
        ValueError: another method; a damping or an order outside of these.
    """

    def __init__(self, who: str, method: str, damping: float, order: int):
        """Checks the method."""
        self.method = check_choice(who, "guidance", method, METHODS)
        self.damping = check_damping(who, damping)
        self.order = check_order(who, order, HIGHEST) if method == "ghvb" else 1
        self.velocities = 0

    @property
    def label(self) -> str:
        """Returns what people call it."""
        if self.method in ("euler", "rk2"):
            return self.method
        return f"{self.method} {self.order - 1 + self.damping:g}"

    def add(self, weave: Weave, substep: Substep) -> None:
        """Adds the stages of one sub-step; none of a sub-step that changes nothing."""
        weight = substep.length * substep.sigma
        if weight == 0.0:
            return
        if self.method == "euler":
            weave.guide(substep.time, {"x": 1.0, "g1": weight})
        elif self.method == "rk2":
            weave.guide(substep.time, {"x": 1.0, "g1": weight}, y={"y": 1.0})
            # the half of the first slope is half of what x moved
            weave.guide(substep.time, {"x": 0.5, "y": 0.5, "g1": 0.5 * weight})
        else:
            self._damped(weave, substep)

    def _damped(self, weave: Weave, substep: Substep) -> None:
        n, b = self.velocities, self.damping if self.velocities else 1.0
        velocity = {"g1": b * substep.sigma} | ({("pull", n - 1): 1.0 - b} if n else {})
        weights = damped_weights(min(self.order, n + 1), self.damping)
        x = {("pull", n - j): substep.length * weight for j, weight in enumerate(weights)}
        weave.guide(substep.time, {"x": 1.0} | x, h=velocity, entry=("pull", n))
        self.velocities += 1
