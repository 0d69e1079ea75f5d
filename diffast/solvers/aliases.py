"""Second names of solvers, some with fixed options or other defaults."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from diffast.plans import Plan
from diffast.solvers.core.stability import probed
from diffast.solvers.ode.adams import exponential_adams
from diffast.solvers.ode.euler import ddim
from diffast.solvers.ode.exponential import res_2s
from diffast.solvers.ode.runge_kutta import midpoint
from diffast.solvers.ode.singlestep import dpm_solver_2s

Options = ParamSpec("Options")


def alias(
    name: str,
    of: Callable[Options, Plan],
    about: str,
    defaults: dict[str, Any] | None = None,
    **fixed: Any,
) -> Callable[Options, Plan]:
    """Returns the builder `of` by another name.

    Its signature is that of `of` without the fixed options; its docstring is `about` with the
    arguments of `of`. Plans and error messages carry the new name.

    Args:
        name: the new name.
        of: the builder that makes the plan.
        about: what the docstring says first.
        defaults: options whose default is another one.
        **fixed: options that cannot be chosen.
    """
    make: Callable[..., Plan] = inspect.unwrap(of)
    defaults = defaults or {}
    signature = inspect.signature(of)
    parameters = [
        parameter.replace(default=defaults.get(parameter.name, parameter.default))
        for parameter in signature.parameters.values()
        if parameter.name not in fixed
    ]
    shown = signature.replace(parameters=parameters)

    @wraps(of)
    def build(*args: Any, **options: Any) -> Plan:
        bound = shown.bind(*args, **options)
        bound.apply_defaults()
        try:
            plan = make(**bound.arguments, **fixed)
        except ValueError as error:
            raise ValueError(str(error).replace(of.__name__, name)) from None
        known = plan.name.replace(of.__name__, name)
        for option in fixed:
            known = re.sub(rf"\b{option}=[^,)]*(, )?", "", known)
        # fresh, and not yet in other hands: no need to check all its numbers again
        object.__setattr__(plan, "name", known.replace("()", ""))
        return plan

    build.__name__ = build.__qualname__ = name
    build.__module__ = __name__
    build.__dict__["__signature__"] = shown
    build.__doc__ = inspect.cleandoc(about) + "\n" + _rest(of.__doc__ or "", fixed)
    return probed(build)


def _rest(doc: str, fixed: dict) -> str:
    """Returns a docstring from "Args:" on, without the fixed options."""
    _, args, rest = doc.partition("\nArgs:\n")
    for option in fixed:
        rest = re.sub(rf"^ {{4}}{option}: .*\n(?: {{8}}.*\n)*", "", rest, flags=re.M)
    return args + rest


euler_ancestral = alias(
    "euler_ancestral",
    ddim,
    """Returns an Euler step down to a lower noise level, then fresh noise up. Weak order 1, 1 call.

    `ddim` with eta = 1 by default. With rho = sigma/alpha:
    rho_up^2 = eta^2 rho_t^2 (rho_s^2 - rho_t^2) / rho_s^2 and rho_down^2 = rho_t^2 - rho_up^2
    (k-diffusion's sigmas, where alpha = 1). rho_t/rho_s is exp(-h), so alpha_t rho_up is the noise
    of `ddim` for every eta, not only 1: one map by two names.
    """,
    defaults={"eta": 1.0},
)

ralston = alias(
    "ralston",
    midpoint,
    """Returns Ralston's method: `midpoint` with r = 2/3. Order 2, 2 calls a step.

    Ralston 1962, "Runge-Kutta methods with minimum error bounds": the least bound on the error of
    all two-stage methods. Out of alpha_s = 0 and into sigma_t = 0: see `midpoint`.
    """,
    r=2 / 3,
)

dpm_2 = alias(
    "dpm_2",
    dpm_solver_2s,
    """Returns k-diffusion's and Karras et al.'s DPM-2: `dpm_solver_2s` by its other name. Order 2.

    x_m = x + (rho_m - rho_s) f_s, x_t = x + (rho_t - rho_s) f_m with log(rho_m) halfway between
    (k-diffusion `sample_dpm_2`, diffusers `KDPM2DiscreteScheduler`, both where alpha = 1): with
    r = 1/2 the two slopes of DPM-Solver-2 have the weights 0 and 1, with another r 1 - 1/(2r) and
    1/(2r). 2 calls a step.
    """,
)

etdrk2 = alias(
    "etdrk2",
    res_2s,
    """Returns ETD2RK: an exponential Heun. Order 2, 2 calls a step.

    a_21 = phi_1, c_2 = 1; b_2 = phi_2 (Cox & Matthews 2002, "Exponential time differencing for
    stiff systems", eq. 22): `res_2s` with c2 = 1, whose second call is the end of the step.
    """,
    c2=1.0,
)

res_2m = alias(
    "res_2m",
    exponential_adams,
    """Returns RES 2M: `exponential_adams` of order 2, which is `dpmpp_2m` of kind "heun".

    Order 2, 1 call a step. Zhang et al. 2023 ("Improved order analysis and design of exponential
    integrator for diffusion models sampling"), multistep with the exact phi_2.
    """,
    order=2,
    start="rise",
)

res_3m = alias(
    "res_3m",
    exponential_adams,
    """Returns RES 3M: `exponential_adams` of order 3, one by two names. 1 call a step.""",
    order=3,
)
