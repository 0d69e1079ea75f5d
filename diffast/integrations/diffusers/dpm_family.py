"""Recipes of DPM-Solver, UniPC, DEIS and SA-Solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffast import schedules, solvers
from diffast.integrations.diffusers.reading import edm_reading
from diffast.integrations.diffusers.run import Recipe
from diffast.integrations.diffusers.shared import (
    falling,
    flow_sigmas,
    hook_of,
    levels,
    predicts,
    sigma_space,
)
from diffast.integrations.handed_over import AnotherPictureWarning, say_once
from diffast.model.denoiser import Prediction
from diffast.solvers import compat


def _space(config, sigmas):
    """Returns (schedule, grid) that a list of sigmas stands for in the DPM-Solver family."""
    grid = falling(sigmas)
    if flow_sigmas(config):
        return schedules.flow(), grid
    return schedules.trig(), np.arctan(grid)


def rising_orders(config, count, begin, final_first) -> list[int]:
    """Returns the order of each step from `begin` on, as DPMSolverMultistep lowers it."""
    short = config.lower_order_final and count < 15
    orders = []
    for i in range(begin, count):
        order = min(config.solver_order, i - begin + 1)
        if i == count - 1 and (short or final_first):
            order = 1
        elif i == count - 2 and short:
            order = min(order, 2)
        orders.append(order)
    return orders


# By algorithm_type and whether solver_order is 3. dpmpp_3m_sde has the published sign; diffusers'
# third order has the opposite one in one term.
_MULTISTEP = {
    ("dpmsolver++", False): solvers.dpmpp_2m,
    ("dpmsolver++", True): solvers.dpmpp_3m,
    ("dpmsolver", False): solvers.dpm_solver_2m,
    ("dpmsolver", True): solvers.dpm_solver_3m,
    ("sde-dpmsolver++", False): solvers.dpmpp_2m_sde,
    ("sde-dpmsolver++", True): solvers.dpmpp_3m_sde,
    ("sde-dpmsolver", False): solvers.dpm_solver_2m_sde,
}


OTHER_SIGN = (
    "third-order SDE steps have the published sign in one term, diffusers the opposite: the "
    "pictures differ"
)


def dpm_multistep(scheduler, begin, options) -> Recipe:
    """DPMSolverMultistepScheduler and EDMDPMSolverMultistepScheduler."""
    config, sigmas = scheduler.config, levels(scheduler)[begin:]
    edm = "sigma_data" in config
    if edm:
        grid = falling(sigmas)
        space = sigma_space(grid)
    else:
        space, grid = _space(config, sigmas)
    final_first = config.euler_at_final or config.final_sigmas_type == "zero"
    orders = rising_orders(config, len(scheduler.timesteps), begin, final_first)
    kind, third = config.algorithm_type, config.solver_order == 3
    build = _MULTISTEP.get((kind, third))
    if build is None:
        raise ValueError(
            f"algorithm_type is {kind!r} and solver_order {config.solver_order}, but there is no "
            "such step"
        )
    sde = kind.startswith("sde")
    if sde and third and not edm and max(orders) == 3 and not scheduler._trial:
        say_once(scheduler, OTHER_SIGN, AnotherPictureWarning)
    published: dict[str, Any] = {"form": "compat"} if third and not sde else {}
    plan = build(space, grid, orders=orders, kind=config.solver_type, **published)
    reads = edm_reading(config)(plan.times) if edm else Prediction(space, predicts(config))
    return Recipe(
        plan,
        reads,
        hook=hook_of(scheduler),
        draws=(sde,) * plan.nfe,
        noise_dtype=None if edm else torch.float32,
        wide=not edm and config.prediction_type == "sample",
        begin=begin,
    )


def dpm_singlestep(scheduler, begin, options) -> Recipe:
    """DPMSolverSinglestepScheduler."""
    config = scheduler.config
    space, grid = _space(config, levels(scheduler)[begin:])
    blocks = []
    for i, order in enumerate(scheduler.order_list[begin:]):
        order = min(order, i + 1)
        if order == 1:
            blocks.append(0)
        blocks[-1] += 1
    kind, sde = config.solver_type, config.algorithm_type == "sde-dpmsolver++"
    if sde:
        plan = compat.singlestep_sde(space, grid, blocks, kind)
    else:
        form = "data" if config.algorithm_type == "dpmsolver++" else "noise"
        plan = solvers.singlestep(space, grid, blocks, form, kind, clock="rho")
    reads = Prediction(space, predicts(config))
    draws = (sde,) * plan.nfe
    return Recipe(plan, reads, hook=hook_of(scheduler), draws=draws, begin=begin)


def deis(scheduler, begin, options) -> Recipe:
    """DEISMultistepScheduler."""
    config = scheduler.config
    space, grid = _space(config, levels(scheduler)[begin:])
    orders = rising_orders(config, len(scheduler.timesteps), begin, False)
    plan = solvers.deis(space, grid, order=config.solver_order, orders=orders)
    reads = Prediction(space, predicts(config))
    return Recipe(plan, reads, hook=hook_of(scheduler), begin=begin)


def unipc(scheduler, begin, options) -> Recipe:
    """UniPCMultistepScheduler."""
    config, count = scheduler.config, len(scheduler.timesteps)
    if scheduler.solver_p is not None:
        raise ValueError("solver_p is another scheduler, but a plan has one predictor")
    space, grid = _space(config, levels(scheduler)[begin:])
    orders, corrector = [], []
    for i in range(begin, count):
        order = min(config.solver_order, i - begin + 1)
        orders.append(min(order, count - i) if config.lower_order_final else order)
        corrector.append(i not in scheduler.disable_corrector)
    form = "data" if scheduler.predict_x0 else "noise"
    if form == "noise" and config.prediction_type == "flow_prediction":
        raise ValueError(
            "predict_x0 is False and prediction_type is 'flow_prediction', but UniPC reads noise "
            "from 'epsilon', 'sample' and 'v_prediction' alone"
        )
    plan = compat.unipc(
        space,
        grid,
        order=config.solver_order,
        variant=config.solver_type,
        form=form,
        corrector=corrector,
        orders=orders,
    )
    reads = Prediction(space, predicts(config))
    hook = hook_of(scheduler) if form == "data" else None  # noise is not thresholded there
    return Recipe(plan, reads, hook=hook, wide="sample", begin=begin)


def sa_solver(scheduler, begin, options) -> Recipe:
    """SASolverScheduler."""
    config, count = scheduler.config, len(scheduler.timesteps)
    space, grid = _space(config, levels(scheduler)[begin:])
    predictor, corrector, most = [], [], max(config.predictor_order, config.corrector_order - 1)
    for i in range(begin, count):
        first = second = 10**9
        if config.lower_order_final:
            first, second = count - i, count - i + 1
        known = min(i - begin, most)
        predictor.append(min(config.predictor_order, first, known + 1))
        corrector.append(min(config.corrector_order, second, known + 2))
    strengths = [float(scheduler.tau_func(t)) for t in scheduler.host.times[begin:]]
    taus = dict(zip(grid.tolist(), strengths, strict=False))
    plan = solvers.sa_solver(
        space,
        grid,
        predictor_order=predictor,
        corrector_order=corrector,
        tau=lambda t: taus[t],
        form="data" if config.algorithm_type == "data_prediction" else "noise",
        kind="few_steps",
    )
    # the corrector goes on from the state of the step before, not from the latents given
    plan = compat.with_own_state(plan)
    reads = Prediction(space, predicts(config))
    draws = (True,) * plan.nfe
    hook = hook_of(scheduler)
    return Recipe(plan, reads, hook=hook, draws=draws, wide="sample", begin=begin)
