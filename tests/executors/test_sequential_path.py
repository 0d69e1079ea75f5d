"""`df.sample(noise="path")`: stochastic solvers on a Brownian path, its law and its stability."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network
from numpy_executor import run
from op_cases import assert_same_bits

import diffast as df
from diffast.noise.brownian import BrownianPath, path_noise

EDM, FLOW = df.schedules.edm(), df.schedules.flow()
# Solvers that converge to an SDE's solution.
SDE = {
    "ddim": {"eta": 1.0},
    "euler_ancestral": {},
    "dpm_2_ancestral": {},
    "dpmpp_2s_ancestral": {},
    "dpmpp_sde": {},
    "flow_ancestral": {},
    "flow_sde": {},
    "ddpm": {},
    "dpmpp_2m_sde": {},
    "dpmpp_3m_sde": {},
    "dpm_solver_2m_sde": {},
    "sa_solver": {},
    "seeds_1": {},
    "seeds_2": {},
    "seeds_3": {},
    "er_sde": {},
    "pec": {},
}
# All noise anew, or a share of it, in every step: the more steps, the more noise.
FEW_STEP = {"lcm": {}, "tcd": {}}
# For schedules with alpha^2 + sigma^2 = 1: in test_piadm.py.
PRESERVING = {"piadm_sde", "piadm_ode"}
# Noise at one time, after a step: refused on a path, see test_predictor_corrector.py.
AT_ONE_TIME = {"dpom", "dpum"}
BACK = {"churn": {"s_churn": 5.0}, "restart": {"intervals": [(0.5, 3.0, 1, 3)]}}


def plan_of(name, options, grid, schedule=EDM):
    return df.solvers.get(name)(schedule, grid, **options)


def drawn(plan):
    return (plan.weights("x", "z1") != 0) | (plan.weights("y", "z1") != 0)


def correlation(plan, stages=slice(None)):
    """Returns what the spans of the noises of some stages say of their correlation."""
    tau = np.exp(2 * plan.schedule.lam(plan.spans[stages]))
    shared = np.minimum(tau[:, None, 1], tau[:, 1]) - np.maximum(tau[:, None, 0], tau[:, 0])
    length = tau[:, 1] - tau[:, 0]
    return np.maximum(shared, 0.0) / np.sqrt(length[:, None] * length)


def test_these_are_all_stochastic_solvers():
    grid = df.grids.karras(EDM, 6)
    for name, build in df.solvers.SOLVERS.items():
        if name not in {*BACK, *PRESERVING, *AT_ONE_TIME}:
            known = name in {*SDE, *FEW_STEP} - {"ddim"}
            assert build(EDM, grid).stochastic == known, name


@pytest.mark.parametrize("schedule", (EDM, FLOW), ids=("edm", "flow"))
@pytest.mark.parametrize(("name", "options"), [*SDE.items(), *FEW_STEP.items()])
def test_the_noise_is_the_path_s(name, options, schedule):
    """Unit normals, correlated as the times of their spans say: but for DPM++ SDE not at all."""
    grid = df.grids.uniform_time if schedule is FLOW else df.grids.karras
    plan = plan_of(name, options, grid(schedule, 6), schedule)
    draw = path_noise(plan, (1, 2**18), 1, torch.arange(1), torch.float32)
    stages = np.flatnonzero(drawn(plan))
    assert stages.size > 4
    z = torch.stack([draw(int(i)).flatten().double() for i in stages])
    wanted = torch.from_numpy(correlation(plan, stages))
    if name != "dpmpp_sde":
        assert (wanted - torch.eye(len(z))).abs().max() < 1e-9
    # Ends are rounded to nodes: of an interval of 16 nodes 1/16 at most.
    errors = (z @ z.T / 2**18 - wanted).abs()
    errors -= 0.03 * (wanted - torch.eye(len(z))).abs()
    assert errors.max() < 5 * (2 / 2**18) ** 0.5


def exact(schedule, samples=256):
    truth = Mixture(schedule, [[1.0, 0.5], [-1.0, 0.2], [0.3, -1.0]], 0.3)
    return df.Denoiser(Network(truth), schedule, predicts="x0"), (samples, 2)


@pytest.mark.parametrize(("name", "options"), SDE.items())
def test_pictures_change_less_and_less_with_the_number_of_steps(name, options):
    """Halving the steps changes a sample by a share that falls; with fresh noise it does not."""
    denoiser, shape = exact(EDM, 1024)
    counts = (16, 32, 64, 128)
    changes = {}
    for path in (True, False):
        ends = []
        for n in counts:
            plan = plan_of(name, options, df.grids.karras(EDM, n))
            ends.append(
                df.sample(
                    denoiser, plan, shape, seed=3, noise="path" if path else "counter"
                ).x.double()
            )
        pairs = zip(ends[:-1], ends[1:], strict=True)
        changes[path] = [float((a - b).abs().mean()) for a, b in pairs]
    slope = np.polyfit(np.log(counts[:-1]), np.log(changes[True]), 1)[0]
    assert slope < -0.7, (slope, changes)
    assert changes[False][-1] > 0.8 * changes[False][0], changes
    assert changes[True][-1] < 0.1 * changes[False][-1], changes


def variance(plan, v, path):
    """Returns the variance of the samples of x0 ~ N(0, v) over the right one, exactly."""
    schedule, stages = plan.schedule, plan.stages
    unit = np.eye(1 + stages)

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * v / (alpha**2 * v + sigma**2) * x

    def level(t):
        return schedule.alpha(t) ** 2 * v + schedule.sigma(t) ** 2

    start = np.sqrt(level(plan.start)) * unit[0]
    x = run(plan, denoise, start, lambda i: unit[1 + i])[-1]
    joint = np.eye(1 + stages)
    if path:
        joint[1:, 1:] = correlation(plan)
    return x @ joint @ x / level(plan.end)


def test_a_path_gives_dpmpp_sde_the_order_two_of_its_variance():
    """Its two normals of a step are of one path then, which makes it the map of SEEDS-2."""
    counts, errors = (20, 40, 80, 160), {}
    for path in (True, False):
        plans = [df.solvers.dpmpp_sde(EDM, df.grids.karras(EDM, n, to_zero=False)) for n in counts]
        errors[path] = [variance(plan, 0.4, path) - 1 for plan in plans]
        slope = np.polyfit(np.log(counts), np.log(np.abs(errors[path])), 1)[0]
        assert slope < -1.8 if path else slope > -1.2, errors
    seeds = [df.solvers.seeds_2(EDM, df.grids.karras(EDM, n, to_zero=False)) for n in counts]
    np.testing.assert_allclose(errors[True], [variance(p, 0.4, False) - 1 for p in seeds], 1e-6)


@pytest.mark.parametrize("path", (True, False))
@pytest.mark.parametrize(("name", "options"), [*SDE.items(), *FEW_STEP.items()])
def test_the_variance_of_samples_is_the_plan_s(name, options, path):
    """10^5 samples of Gaussian data have the variance that the plan's rows give."""
    v, plan = 0.4, plan_of(name, options, df.grids.karras(EDM, 12, to_zero=False))

    def network(x, t):
        return v / (v + t.reshape(-1, 1).to(x.dtype) ** 2) * x

    denoiser = df.Denoiser(network, EDM, predicts="x0")
    x = df.sample(denoiser, plan, (1, 2**17), seed=5, noise="path" if path else "counter").x
    wanted = variance(plan, v, path) * (v + EDM.sigma(plan.end) ** 2)
    # The initial state is sigma eps alone, in place of x0 + sigma eps.
    unit = variance_of_start(plan, v)
    wanted -= unit**2 * v
    error = float(x.square().mean()) / wanted - 1
    assert abs(error) < 5 * (2 / 2**17) ** 0.5 + (0.01 if path and name == "dpmpp_sde" else 0.0)


def variance_of_start(plan, v):
    """Returns the weight of the initial state in the samples."""
    points = run(plan, lambda x, t: v / (v + t**2) * x, np.ones(1))
    return float(points[-1][0])


def test_sample_b_is_the_same_in_every_batch_and_with_every_seed_of_its_own():
    denoiser, _ = exact(EDM)
    plan = df.solvers.dpmpp_2m_sde(EDM, df.grids.karras(EDM, 8))
    whole = df.sample(denoiser, plan, (4, 2), seed=2, ids=[5, -1, 8, 0], noise="path").x
    for b, sample in enumerate((5, -1, 8, 0)):
        alone = df.sample(denoiser, plan, (1, 2), seed=2, ids=[sample], noise="path").x
        assert_same_bits(alone, whole[b : b + 1])
    other = df.sample(denoiser, plan, (4, 2), seed=3, ids=[5, -1, 8, 0], noise="path").x
    assert not torch.equal(other, whole)


def test_it_is_draw_with_a_path():
    denoiser, shape = exact(FLOW)
    plan = df.solvers.dpmpp_sde(FLOW, df.grids.uniform_time(FLOW, 8))
    spans = plan.spans
    path = BrownianPath(FLOW, shape, 4, spans=spans[drawn(plan)])
    wanted = df.sample(
        denoiser, plan, shape, seed=4, noise=lambda stage: path.increment(*spans[stage])
    )
    assert_same_bits(df.sample(denoiser, plan, shape, seed=4, noise="path").x, wanted.x)


def test_float64_states_and_plans_without_noise():
    denoiser, shape = exact(EDM)
    noise = 80 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plan = df.solvers.seeds_2(EDM, df.grids.karras(EDM, 8))
    wide = df.sample(denoiser, plan, x=noise, noise="path").x
    single = df.sample(denoiser, plan, x=noise.float(), noise="path").x
    assert wide.dtype == torch.float64 and (wide - single).abs().max() < 1e-3
    plan = df.solvers.dpmpp_2m(EDM, df.grids.karras(EDM, 8))
    assert_same_bits(
        df.sample(denoiser, plan, shape, noise="path").x, df.sample(denoiser, plan, shape).x
    )


@pytest.mark.parametrize(("name", "options"), BACK.items())
def test_plans_that_put_noise_back_are_refused_before_anything_runs(name, options):
    def network(x, t):
        raise AssertionError("called")

    plan = plan_of(name, options, df.grids.karras(EDM, 8))
    denoiser = df.Denoiser(network, EDM, predicts="x0")
    message = r"sample: (churn|restart)\(heun.* puts noise back .* a path goes from noise to data"
    with pytest.raises(ValueError, match=message):
        df.sample(denoiser, plan, (2, 2), noise="path")
    late = df.solvers.churn(EDM, df.grids.karras(EDM, 8), s_churn=5.0, s_tmax=1.0)
    assert late.nfe == late.stages
    with pytest.raises(ValueError, match=r"puts noise back at stage \d+, from t = .* to t = "):
        df.sample(denoiser, late, (2, 2), noise="path")


def test_path_by_the_name_of_its_noise():
    plan = plan_of("euler_ancestral", {}, df.grids.karras(EDM, 4))
    denoiser = df.Denoiser(Network(Mixture(EDM, [[0.5, -0.5]])), EDM, predicts="x0")
    named = df.sample(denoiser, plan, shape=(3, 2), noise="path", seed=2)
    assert torch.equal(named.x, df.sample(denoiser, plan, shape=(3, 2), noise="path", seed=2).x)
    assert not torch.equal(named.x, df.sample(denoiser, plan, shape=(3, 2), seed=2).x)
    with pytest.raises(ValueError, match="noise is 'tree' but must be one of counter, path"):
        df.sample(denoiser, plan, shape=(3, 2), noise="tree")
