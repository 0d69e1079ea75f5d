"""Parallel in time: the sequential result, whatever the solver, method and window."""

import pytest
import torch

import diffast as df

SCHEDULE = df.schedules.vp_linear()


def network(x, t):
    # Elementwise, so that a row's place in a batch cannot matter.
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, *[1] * (x.dim() - 1)))


DENOISER = df.Denoiser(network, SCHEDULE, predicts="epsilon")


def plan_of(name, steps=12):
    grid = df.grids.uniform_time(SCHEDULE, steps)
    return df.solvers.get(name)(SCHEDULE, grid)


@pytest.mark.parametrize("window", [None, 5, 1])
@pytest.mark.parametrize("method", ["secant", "prior", "anderson"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "heun", "rk4"])
def test_without_tolerance_it_is_the_sequential_result_to_the_bit(name, method, window):
    plan = plan_of(name)
    wanted = df.sample(DENOISER, plan, (3, 7), seed=4).x
    made = df.sample_parallel(DENOISER, plan, (3, 7), seed=4, method=method, tol=0.0, window=window)
    assert torch.equal(made.x, wanted)
    assert made.rounds <= plan.stages
    if window == 1:
        assert made.rounds == plan.stages


@pytest.mark.parametrize("method", ["secant", "prior", "anderson"])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_2m"])
def test_the_error_stays_within_the_tolerance(name, method):
    plan = plan_of(name, 30)
    wanted = df.sample(DENOISER, plan, (16, 7), seed=4).x
    made = df.sample_parallel(DENOISER, plan, (16, 7), seed=4, tol=1e-2, method=method)
    error = (made.x - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert 0.0 < error.max() <= 1e-2
    assert made.rounds < plan.stages


def run(**options):
    given = {"seed": 4, "shape": (5, 7)} | options
    plan = given.pop("plan", None) or plan_of("ddim")
    return df.sample_parallel(given.pop("denoiser", DENOISER), plan, given.pop("shape"), **given)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "newton"}, "method is 'newton' but the known methods are secant"),
        ({"window": 0}, "window is 0 but plan ddim.* has 12 stages"),
        ({"window": 13}, "window is 13 but plan ddim.* has 12 stages"),
        ({"tol": float("nan")}, "tol is nan"),
        ({"tol": -1.0}, "tol is -1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"method": "piadm"}, "plan ddim.* has no blocks"),
        ({"sweeps": 3}, "method 'secant' has no blocks to sweep"),
        ({"memory_limit": 1000}, "memory_limit is 1000 bytes"),
        (
            {"method": "paradigms", "plan": plan_of("heun")},
            "stages of plan heun start at a state",
        ),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)


def test_a_plan_that_looks_too_far_back_is_refused_in_its_words():
    plan = plan_of("dpmpp_2m")
    half = 0.5 * plan.weights("x", "h1")
    half[:8] = 0.0
    weights = {("x", "h1"): plan.weights("x", "h1") - half, ("x", "h8"): half}
    plan = plan.with_weights(weights, check="finite")
    df.sample(DENOISER, plan, (5, 7))
    words = "weighs the estimates of 8 calls before, but a sweep carries those of 7"
    with pytest.raises(ValueError, match=words):
        run(plan=plan)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_calls_of_one_size(size):
    sizes = set()

    def watched(x, t):
        sizes.add(len(x))
        return network(x, t)

    made = run(
        denoiser=df.Denoiser(watched, SCHEDULE, predicts="epsilon"), batch_size=size, tol=0.0
    )
    assert sizes == {size}
    assert torch.equal(made.x, df.sample(DENOISER, plan_of("ddim"), (5, 7), seed=4).x)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m_sde"])
@pytest.mark.parametrize("most", [1, 2, 4, 11])
def test_out_of_memory_halves_the_windows_and_loses_nothing(most, name):
    def greedy(x, t):
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(x, t)

    plan = plan_of(name)
    denoiser = df.Denoiser(greedy, SCHEDULE, predicts="epsilon")
    with pytest.warns(RuntimeWarning, match="out of memory with"):
        made = run(denoiser=denoiser, plan=plan, tol=0.0)
    assert torch.equal(made.x, df.sample(DENOISER, plan, (5, 7), seed=4).x)


def test_other_errors_of_the_network_pass():
    def broken(x, t):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        run(denoiser=df.Denoiser(broken, SCHEDULE, predicts="epsilon"))


def test_a_network_that_looks_at_its_batch_is_told():
    def mixing(x, t):
        return network(x, t) + torch.arange(len(x))[:, None] * 0.01

    with pytest.warns(RuntimeWarning, match="between two places of its batch"):
        made = run(denoiser=df.Denoiser(mixing, SCHEDULE, predicts="epsilon"))
    assert made.batch_difference > 1e-3
    assert run().batch_difference == 0.0


@pytest.mark.parametrize("method", ["secant", "prior", "anderson"])
def test_memory_limit_is_honoured(method):
    elements = 64
    rows = []

    def watched(x, t):
        rows.append(len(x))
        return network(x, t)

    denoiser = df.Denoiser(watched, SCHEDULE, predicts="epsilon")
    limit = 40_000
    made = run(denoiser=denoiser, shape=(5, elements), method=method, tol=0.0, memory_limit=limit)
    planes = {"secant": 4, "prior": 2, "anderson": 8}[method]
    states = 2 * 5 * 4 * elements * 4
    assert max(rows) == (limit - states) // (planes * elements * 4)
    wanted = df.sample(DENOISER, plan_of("ddim"), (5, elements), seed=4).x
    assert torch.equal(made.x, wanted)


def test_guidance_conditions_clamp_float64_and_half():
    labels = torch.linspace(-1, 1, 5)[:, None]

    def conditional(x, t, labels):
        return network(x, t) + 0.1 * labels.to(x.dtype)

    for options in ({}, {"guidance": 3.0}, {"guidance": lambda t: 2.0 if t > 0.5 else 1.0}):
        for dtype in (None, torch.bfloat16):
            denoiser = df.Denoiser(
                conditional,
                SCHEDULE,
                predicts="epsilon",
                conditions={"labels": labels},
                unconditional={"labels": torch.zeros(1, 1)},
                dtype=dtype,
                **options,
            )
            for clamp in (None, (-1.0, 1.0)):
                plan = plan_of("dpmpp_2m")
                wanted = df.sample(denoiser, plan, (5, 7), seed=4, clamp=clamp).x
                made = run(denoiser=denoiser, plan=plan, tol=0.0, clamp=clamp)
                assert torch.equal(made.x, wanted)
    x = torch.randn(5, 7, dtype=torch.float64)
    wanted = df.sample(DENOISER, plan_of("ddpm"), x=x, seed=4).x
    made = run(plan=plan_of("ddpm"), shape=None, x=x, tol=0.0)
    assert made.x.dtype == torch.float64 and torch.equal(made.x, wanted)


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (1, 1), (2, 3, 5)])
def test_odd_shapes(shape):
    made = run(shape=shape, tol=0.0)
    assert torch.equal(made.x, df.sample(DENOISER, plan_of("ddim"), shape, seed=4).x)


@pytest.mark.parametrize("kind", ["sde", "ode", "corrected"])
def test_piadm_sweeps_block_by_block(kind):
    grid = df.grids.ou_early(SCHEDULE, 20)
    if kind == "sde":
        plan = df.solvers.piadm_sde(SCHEDULE, grid)
    else:
        corrector = (0.2, 3) if kind == "corrected" else None
        plan = df.solvers.piadm_ode(SCHEDULE, grid, corrector=corrector)
    wanted = df.sample(DENOISER, plan, (4, 7), seed=1).x
    exact = run(plan=plan, shape=(4, 7), seed=1, method="piadm", tol=0.0)
    assert torch.equal(exact.x, wanted)
    few = run(plan=plan, shape=(4, 7), seed=1, method="piadm", tol=0.0, sweeps=2)
    lengths = [b - a for a, b in zip(plan.blocks, [*plan.blocks[1:], plan.stages], strict=True)]
    # The network's call at a block's first stage is on a settled point.
    assert few.rounds == sum(min(2, length) for length in lengths)
