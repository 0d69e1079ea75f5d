"""Stepwise runs for tests: plans of every kind, a network, ways to put a batch together."""

import pytest
import torch
from solver_cases import ALL_SOLVERS

import diffast as df
from diffast import ops, solvers
from diffast.solvers import compat

VP, EDM, FLOW = df.schedules.vp_linear(), df.schedules.edm(), df.schedules.flow()
IDS = [5, -3, 2**61, 0]


def restart(schedule, grid):
    return solvers.restart(schedule, grid, [(0.2, 2.0, 2, 3)])


def churn(schedule, grid):
    """Noise at the opening and between steps."""
    return solvers.churn(schedule, grid, s_churn=3.0)


def raw_noise(schedule, grid):
    """Unchanged estimates: the noise left in the state is the network's, whatever a clamp does."""
    return compat.ddim_strides(schedule, grid[:-1], grid[1:], eta=0.5, raw_noise=True)


def parted(schedule, grid):
    """x and y part in every stage; both weigh x, y, entries and the unchanged estimate."""
    plan = solvers.midpoint(schedule, grid)
    more = {("x", "x"): 0.3, ("x", "d_raw"): -0.2, ("y", "x"): -0.1, ("y", "d_raw"): 0.25}
    weights = {place: plan.weights(*place) + weight for place, weight in more.items()}
    return plan.with_weights(weights, check="finite")


BUILDERS = {case.name: case.build for case in ALL_SOLVERS} | {
    "raw_noise": raw_noise,
    "parted": parted,
    "restart": restart,
    "churn_heun": churn,
    "tcd": solvers.tcd,
    "dopri5": solvers.dopri5,
    "tsit5": solvers.tsit5,
}
# Of each kind of plan: many entries, x and y that part, noise, noise before the first call,
# unchanged estimates.
SOME = (
    "euler",
    "heun",
    "unipc_3",
    "lms_4",
    "seeds_3",
    "dpmpp_3m_sde",
    "churn_heun",
    "dopri5",
    "raw_noise",
    "parted",
)
some = pytest.mark.parametrize("name", SOME)


def network(x, t, shift=0.0):
    """Sums, products and quotients alone: the same bits a sample whatever the batch."""
    t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return (0.8 * x + 0.1 - t + shift) / (1 + 0.3 * x * x + t * t)


def plan_of(name, schedule=VP, steps=5):
    return BUILDERS[name](schedule, df.grids.uniform_time(schedule, steps, start=0.98))


def noise_of(batch=4, shape=(5,), dtype=torch.float32):
    return ops.normal((batch, *shape), seed=4, dtype=dtype)


def run(stepper, state, x, t, steps=None, call=network, extra=0):
    """The state after `steps`, or at the end of all samples and `extra` steps on."""
    count = 0
    while count != steps:
        done = stepper.done(state)
        if steps is None and bool(done if isinstance(done, bool) else done.all()):
            if not extra:
                break
            extra -= 1
        state, x, t = stepper.step(state, call(x, t))
        count += 1
    return state


def staggered(stepper, noise, seed=7, ids=IDS, calls=(0, 2, 4, 1), call=network, plans=None):
    """One state of samples that have had different numbers of calls, each started alone."""
    parts = []
    for b, count in enumerate(calls):
        plan = 0 if plans is None else plans[b]
        begin = stepper.start(noise[b : b + 1], plan=plan, seed=seed, ids=ids[b : b + 1])
        parts.append(run(stepper, *begin, steps=count, call=call))
    state = stepper.join(*parts)
    return state, stepper._network_input(state.x), stepper.time(state)


def guided(scale):
    shift = torch.full((4, 5), 0.3)
    conditions = {"conditions": {"shift": shift}, "unconditional": {"shift": shift[:1] * -0.5}}
    return df.Denoiser(network, VP, predicts="v", guidance=scale, **conditions)


def pair(x, t):
    return network(x, t, 0.3), network(x, t, 0.3 * -0.5)
