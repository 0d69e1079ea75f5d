"""What is said of the arguments that many builders have, and their types."""

from collections.abc import Callable
from typing import Literal, cast

from numpy.typing import ArrayLike

from diffast._docs import Function, documented
from diffast.solvers.core.stability import probed

Clock = Literal["rho", "flow"] | None
Form = Literal["exact", "compat"]
Kind = Literal["midpoint", "heun"]
Orders = ArrayLike | None
Start = Literal["rise", "single"]
Final = Literal["clean", "falling", "full"]

ARGUMENTS = {
    "schedule": "any schedule.",
    "grid": "[N+1] model times from noisy to clean.",
    "clock": '"rho", "flow" or None: "flow" where alpha + sigma = 1 on the grid, else "rho".',
    "order": "1 to 4.",
    "orders": "[N] orders of the steps, each at most the method's and what is remembered.",
    "start": '"rise" or "single", see `lms`.',
    "final": '"clean", "falling" or "full": the orders of the last steps, see `adams`. Not with '
    "orders.",
    "form": '"exact" or "compat".',
    "kind": '"midpoint" or "heun".',
    "r": "place of the second call within the step, in h; in (0, 1].",
    "r1": "place of the second call within the step, in h; 0 < r1 < r2 <= 1.",
    "r2": "place of the third.",
    "c2": "place of the second call within the step, in h; in (0, 1].",
    "c3": "place of the third, likewise.",
    "eta": "rate at which noise is replaced, 0 and up; 0 for the ODE, 1 for the reverse SDE.",
    "s_noise": "factor on the fresh noise, 0 and up; other than 1, the plan is checked for x0 "
    "alone.",
}
GRID = "a grid that `check_grid` refuses."
ERRORS = f"ValueError: an option outside of these; {GRID}"


def _of_plans(arguments: dict[str, str], errors: str) -> Callable[[Function], Function]:
    """Returns a decorator of builders: it completes the docstring, and plans are probed."""
    complete = documented(arguments, errors)
    return lambda build: cast("Function", probed(complete(build)))


builder = _of_plans(ARGUMENTS, ERRORS)
plain_builder = _of_plans(ARGUMENTS, f"ValueError: {GRID}")
ancestral_builder = _of_plans(ARGUMENTS | {"eta": "0 for the ODE to 1 for ancestral."}, ERRORS)
SPLITTING = {
    "inner": 'solver of the network\'s part: "adams", "lms", "plms" (weights for even steps), '
    '"deis", "exponential_adams" or "ghvb", of `order`; "euler", "dpmpp_2m", "heun" or "rk4"; or a '
    "function (schedule, grid) -> Plan.",
    "order": 'order of the first six, 1 to 4; None: 2 of "adams", else 4.',
    "damping": "b, of velocities, in (0, 1]; 1: none.",
    "compat": '"released": the numbers of the released program; None.',
    "guidance": 'method of the guidance: "euler", "rk2" (2 gradients), "heavy_ball" or "ghvb".',
    "guidance_order": 'order of "ghvb" in the guidance, 1 to 5.',
}
splitting_builder = _of_plans(ARGUMENTS | SPLITTING, ERRORS)
