"""The sequential executor against the numpy specification of a plan, and what users lean on."""

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network
from numpy_executor import run as run_numpy

import diffast as df
from diffast import ops
from diffast.plans.registers import one_call_plan

SCHEDULES = {
    "vp_linear": df.schedules.vp_linear(),
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "from_betas": df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
}
SOLVERS = {
    "euler": df.solvers.euler,
    "ddim": lambda s, g: df.solvers.ddim(s, g, eta=0.7),
    "heun": df.solvers.heun,
    "euler_ancestral": df.solvers.euler_ancestral,
    "dpmpp_2m": df.solvers.dpmpp_2m,
    "dpmpp_2m_heun": lambda s, g: df.solvers.dpmpp_2m(s, g, kind="heun"),
}
MEANS = np.array([[0.8, -0.5, 0.1], [-0.9, 0.4, 0.3]])


def grid_of(schedule, steps=6):
    if schedule == SCHEDULES["flow"]:
        return df.grids.uniform_time(schedule, steps)
    return df.grids.karras(schedule, steps)


def truth(schedule):
    return Mixture(schedule, MEANS)


def reference_points(plan, x0, noise, seed=0, ids=None):
    """The run in numpy float64, with the package's own noise."""
    ids = torch.arange(len(noise)) if ids is None else torch.as_tensor(ids)

    def fresh(i):
        z = ops.normal(noise.shape, seed=seed, stage=i, ids=ids, dtype=torch.float64)
        return z.numpy()

    return run_numpy(plan, x0, noise.numpy(), fresh)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_the_numpy_executor_in_float64(name, solver):
    schedule = SCHEDULES[name]
    plan = SOLVERS[solver](schedule, grid_of(schedule))
    noise = ops.normal((4, 3), seed=9, dtype=torch.float64) * schedule.sigma(plan.times[:1])[0]
    out = df.sample(
        df.Denoiser(Network(truth(schedule)), schedule, predicts="x0"), plan, x=noise, seed=5
    )
    wanted = reference_points(plan, truth(schedule).x0, noise, seed=5)[-1]
    assert out.x.dtype == torch.float64
    np.testing.assert_allclose(out.x.numpy(), wanted, rtol=0, atol=1e-12 * float(noise.abs().max()))


@pytest.mark.parametrize("predicts", ["epsilon", "v", "flow", "score"])
@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m", "euler_ancestral"])
@pytest.mark.parametrize("name", ["vp_linear", "flow", "from_betas"])
def test_every_prediction_gives_the_same_samples(name, solver, predicts):
    schedule = SCHEDULES[name]
    grid = grid_of(schedule)
    if name == "flow":
        grid = np.concatenate([[0.98], grid[1:]])  # alpha = 0 does not determine x0 from epsilon
    plan = SOLVERS[solver](schedule, grid)
    noise = ops.normal((4, 3), seed=9, dtype=torch.float64)
    x0, other = (
        df.sample(df.Denoiser(Network(truth(schedule), p), schedule, predicts=p), plan, x=noise)
        for p in ("x0", predicts)
    )
    np.testing.assert_allclose(other.x.numpy(), x0.x.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("solver", SOLVERS)
def test_guidance_is_one_batched_call_and_folds_into_the_step(solver, dtype):
    schedule = SCHEDULES["vp_linear"]
    plan = SOLVERS[solver](schedule, grid_of(schedule))
    shift = torch.tensor([[0.1, 0.2, -0.1]]).expand(4, 3).contiguous()
    noise = ops.normal((4, 3), seed=2, dtype=torch.float64)
    scale = 2.5
    network = Network(truth(schedule), "epsilon")
    denoiser = df.Denoiser(
        network,
        schedule,
        predicts="epsilon",
        conditions={"shift": shift},
        unconditional={"shift": torch.zeros(1, 3)},
        guidance=scale,
        dtype=dtype,
    )
    state = noise if dtype is None else noise.float()
    out = df.sample(denoiser, plan, x=state)
    assert len(network.calls) == plan.stages
    assert {call[0] for call in network.calls} == {(8, 3)}
    assert {call[1] for call in network.calls} == {dtype or torch.float64}

    def guided(x, t):
        seen = torch.from_numpy(x).to(dtype or torch.float64).double().numpy()
        alpha, sigma = (f(np.array([t])) for f in (schedule.alpha, schedule.sigma))
        halves = []
        for offset in (shift.numpy(), 0.0):
            eps = (seen - alpha * (truth(schedule).x0(seen, t) + offset)) / sigma
            eps = torch.from_numpy(eps).to(dtype or torch.float64).double().numpy()
            halves.append((x - sigma * eps) / alpha)
        return halves[1] + scale * (halves[0] - halves[1])

    wanted = reference_points(plan, guided, noise)[-1]
    # The half formats round the network's input and output; at the noisy end x0 is 150 eps away,
    # and which way a borderline rounding goes is chance.
    bound = {None: 1e-10, torch.float16: 0.05, torch.bfloat16: 0.4}[dtype]
    np.testing.assert_allclose(out.x.numpy(), wanted, rtol=0, atol=bound)


def test_guidance_interval_calls_the_network_on_half_the_rows_outside_it():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.heun(schedule, df.grids.karras(schedule, 8))
    shift = torch.full((3, 3), 0.1, dtype=torch.float64)
    network = Network(truth(schedule))
    conditions = {"conditions": {"shift": shift}, "unconditional": {"shift": shift * 0}}

    def scale(t):
        return 3.0 if 0.1 < t < 5 else (0.0 if t >= 5 else 1.0)

    denoiser = df.Denoiser(network, schedule, "x0", guidance=scale, **conditions)
    noise = ops.normal((3, 3), seed=2, dtype=torch.float64) * 80
    out = df.sample(denoiser, plan, x=noise)
    rows = [call[0][0] for call in network.calls]
    assert rows == [6 if 0.1 < t < 5 else 3 for t in plan.times]
    assert {3, 6} == set(rows)

    def guided(x, t):
        return truth(schedule).x0(x, t) + 0.1 * scale(t)

    wanted = reference_points(plan, guided, noise)[-1]
    np.testing.assert_allclose(out.x.numpy(), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guided", [False, True])
def test_clamp_hook_and_preview_agree_with_the_specification(solver, guided):
    schedule = SCHEDULES["vp_linear"]
    plan = SOLVERS[solver](schedule, grid_of(schedule))
    noise = ops.normal((4, 3), seed=3, dtype=torch.float64)
    low, high = -0.35, 0.3
    shift = torch.full((4, 3), 0.2, dtype=torch.float64)
    options = {"predicts": "v"}
    if guided:
        options |= {
            "conditions": {"shift": shift},
            "unconditional": {"shift": shift * 0},
            "guidance": 2.0,
        }
    offset = 0.4 if guided else 0.0
    denoiser = df.Denoiser(Network(truth(schedule), "v"), schedule, **options)

    def clamped(x, t):
        return np.clip(truth(schedule).x0(x, t) + offset, low, high)

    previews = []

    def look(p):
        previews.append((p.x0.clone(), p.x.clone()))

    with_clamp = df.sample(denoiser, plan, x=noise, clamp=(low, high), callback=look)
    points = reference_points(plan, clamped, noise)
    np.testing.assert_allclose(with_clamp.x.numpy(), points[-1], rtol=0, atol=1e-11)
    for i, (x0, x) in enumerate(previews):
        np.testing.assert_allclose(x.numpy(), points[i + 1], rtol=0, atol=1e-11)
        wanted = clamped(points[i], plan.times[i])
        np.testing.assert_allclose(x0.numpy(), wanted, rtol=0, atol=1e-11)
    quiet = df.sample(denoiser, plan, x=noise, clamp=(low, high))
    assert torch.equal(quiet.x, with_clamp.x)

    def hook(x0, stage):
        return x0.clamp(low, high)

    hooked = df.sample(denoiser, plan, x=noise, on_x0=hook)
    np.testing.assert_allclose(hooked.x.numpy(), points[-1], rtol=0, atol=1e-11)
    plain = df.sample(denoiser, plan, x=noise)
    seen = df.sample(denoiser, plan, x=noise, callback=lambda p: None)
    assert torch.equal(plain.x, seen.x)
    assert not torch.equal(plain.x, quiet.x)


def test_long_histories_are_kept_and_their_buffers_reused():
    # A made-up three-entry method: consistent, so that the plan accepts it.
    schedule = SCHEDULES["edm"]
    grid = df.grids.karras(schedule, 12)
    base = df.solvers.euler(schedule, grid)
    row = {name: base.weights("x", name).copy() for name in ("x", "d")}
    row |= {f"h{back}": np.zeros(12) for back in (1, 2, 3)}
    for i in range(12):
        for back in range(1, min(i, 3) + 1):
            weight = 0.05 * back * base.weights("x", "d")[i]
            row[f"h{back}"][i] += weight
            row["d"][i] -= weight
    plan = one_call_plan("made up", schedule, grid, row)
    assert plan.history == 3
    noise = ops.normal((5, 3), seed=4, dtype=torch.float64) * 80
    network = Network(truth(schedule), "epsilon")
    out = df.sample(df.Denoiser(network, schedule, predicts="epsilon"), plan, x=noise)
    wanted = reference_points(plan, truth(schedule).x0, noise)[-1]
    np.testing.assert_allclose(out.x.numpy(), wanted, rtol=0, atol=1e-10)


def test_entries_of_slopes_work_like_entries_of_x0():
    # Euler with the epsilon-like slope remembered in place of x0: entries weigh x too.
    schedule = SCHEDULES["edm"]
    grid = df.grids.karras(schedule, 5)
    base = df.solvers.euler(schedule, grid)
    slope = 1.0 / base.times
    row = {"x": 1.0, "h0": np.diff(np.append(base.times, base.end))}
    plan = one_call_plan("slopes", schedule, grid, row, h={"x": slope, "d": -slope})
    noise = ops.normal((5, 3), seed=4, dtype=torch.float64) * 80
    denoiser = df.Denoiser(Network(truth(schedule)), schedule, predicts="x0")
    first, second = (df.sample(denoiser, p, x=noise).x for p in (base, plan))
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=0, atol=1e-11)


def test_a_sample_does_not_depend_on_its_batch():
    schedule = SCHEDULES["vp_linear"]
    plan = df.solvers.euler_ancestral(schedule, df.grids.karras(schedule, 7))
    denoiser = df.Denoiser(Network(truth(schedule)), schedule, predicts="x0")
    ids = [7, -3, 2**62, 0, 11]
    together = df.sample(denoiser, plan, shape=(5, 3), seed=1, ids=ids)
    for row, i in enumerate(ids):
        alone = df.sample(denoiser, plan, shape=(1, 3), seed=1, ids=[i])
        assert torch.equal(alone.x[0], together.x[row])
    other = df.sample(denoiser, plan, shape=(5, 3), seed=2, ids=ids)
    assert not torch.equal(other.x, together.x)


def test_initial_noise_has_the_level_of_the_first_time():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 4))
    first = []

    def network(x, t):
        first.append(x.clone())
        return x * 0

    df.sample(df.Denoiser(network, schedule, predicts="x0"), plan, shape=(1, 4096), seed=3)
    assert torch.equal(first[0], ops.normal((1, 4096), seed=3, scale=80.0))


def test_results_are_ordinary_tensors_and_the_noise_is_left_alone():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.heun(schedule, df.grids.karras(schedule, 4))
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) * 80
    kept = noise.clone()
    out = df.sample(df.Denoiser(Network(truth(schedule)), schedule, predicts="x0"), plan, x=noise)
    assert torch.equal(noise, kept)
    assert not out.x.is_inference()
    weight = torch.ones(3, requires_grad=True)
    (out.x * weight).sum().backward()
    assert out.nfe.tolist() == [7, 7, 7]
    assert out.completed


def test_the_network_sees_times_of_the_batch_and_eval_outputs_may_be_strided():
    schedule = SCHEDULES["from_betas"]
    plan = df.solvers.euler(schedule, df.grids.trailing(schedule, 5))
    seen = []

    def network(x, t):
        seen.append((t.clone(), torch.is_inference_mode_enabled()))
        return (x * 0.5).to(memory_format=torch.channels_last)

    out = df.sample(df.Denoiser(network, schedule, predicts="x0"), plan, shape=(2, 3, 4, 4))
    assert out.x.is_contiguous()
    times = torch.stack([t for t, _ in seen])
    assert times.shape == (5, 2)
    assert times[:, 0].tolist() == plan.times.tolist()
    assert all(inference for _, inference in seen)


@pytest.mark.parametrize("wrap", [lambda y: (y, None), lambda y: [y], lambda y: _Box(y)])
def test_network_outputs_in_a_box_are_unpacked(wrap):
    schedule = SCHEDULES["edm"]
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3))
    plain = df.sample(
        df.Denoiser(lambda x, t: x * 0.1, schedule, predicts="x0"), plan, shape=(2, 5)
    )
    boxed = df.sample(
        df.Denoiser(lambda x, t: wrap(x * 0.1), schedule, predicts="x0"), plan, shape=(2, 5)
    )
    assert torch.equal(plain.x, boxed.x)


class _Box:
    def __init__(self, y):
        self.sample = y


def test_callback_interrupts_and_returns_the_preview():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.heun(schedule, df.grids.karras(schedule, 6))
    network = Network(truth(schedule))
    kept = []

    def stop(p):
        kept.append(p.x0.clone())
        assert p.stages == plan.stages
        assert p.time == plan.times[p.stage]
        return p.stage == 3

    out = df.sample(
        df.Denoiser(network, schedule, predicts="x0"), plan, shape=(2, 3), callback=stop
    )
    assert not out.completed
    assert len(network.calls) == 4
    assert out.nfe.tolist() == [4, 4]
    assert torch.equal(out.x, kept[-1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_network_output_is_reported_with_stage_and_sample(value):
    schedule = SCHEDULES["edm"]
    plan = df.solvers.heun(schedule, df.grids.karras(schedule, 6))
    calls = []

    def network(x, t):
        calls.append(t)
        y = x * 0.1
        if len(calls) == 4:
            y[2, 1] = value
        return y

    with pytest.raises(FloatingPointError, match=r" 2 \(id 30\): the network's output .*stage 3 "):
        df.sample(
            df.Denoiser(network, schedule, predicts="x0"), plan, shape=(4, 3), ids=[10, 20, 30, 40]
        )
    assert len(calls) == plan.nfe  # the others' run goes on


def test_overflow_of_a_finite_output_is_called_what_it_is():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 6))
    with pytest.raises(FloatingPointError, match="state made of a finite network output"):
        df.sample(
            df.Denoiser(lambda x, t: torch.full_like(x, 3e38), schedule, predicts="epsilon"),
            plan,
            shape=(1, 3),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": None}, "neither shape nor x"),
        ({"shape": (2, 3), "x": torch.zeros(3, 3)}, r"\[2, 3\] but x has \[3, 3\]"),
        ({"x": torch.zeros(2, 3, dtype=torch.float16)}, "float16"),
        ({"x": torch.tensor([[1.0], [float("nan")]])}, "sample 1"),
        ({"ids": [1, 2, 3]}, r"ids are \[3\] but there are 2"),
        ({"ids": [1.5, 2.0]}, "float32 but integers"),
        ({"ids": [True, False]}, "bool but integers"),
        ({"ids": [0, 2**63]}, "64 bits, signed"),
        ({"clamp": (1.0, -1.0)}, "in order"),
        ({"seed": 2**64}, "64 bits"),
    ],
)
def test_bad_arguments_name_the_two_facts(change, message):
    schedule = SCHEDULES["edm"]
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3))
    call = {"shape": (2, 3)} | change
    if "x" in change and "shape" not in change:
        call["shape"] = None
    with pytest.raises(ValueError, match=message):
        df.sample(df.Denoiser(lambda x, t: x, schedule, predicts="x0"), plan, **call)


def test_plan_and_denoiser_must_share_the_schedule():
    plan = df.solvers.euler(SCHEDULES["edm"], df.grids.karras(SCHEDULES["edm"], 3))
    with pytest.raises(ValueError, match="the plan is for .* but the denoiser for"):
        df.sample(df.Denoiser(lambda x, t: x, SCHEDULES["flow"], predicts="x0"), plan, shape=(2, 3))


def test_wrong_network_shapes_hooks_and_in_place_networks_are_refused():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3))
    with pytest.raises(ValueError, match=r"given x of shape \[2, 3\] but returned \[2, 2\]"):
        df.sample(df.Denoiser(lambda x, t: x[:, :2], schedule, predicts="x0"), plan, shape=(2, 3))
    with pytest.raises(ValueError, match="wrote into its input at stage 0"):
        df.sample(
            df.Denoiser(lambda x, t: x.mul_(0.5), schedule, predicts="x0"), plan, shape=(2, 3)
        )
    denoiser = df.Denoiser(lambda x, t: x * 0.5, schedule, predicts="x0")
    with pytest.raises(ValueError, match=r"on_x0 was given \[2, 3\] but returned NoneType"):
        df.sample(denoiser, plan, shape=(2, 3), on_x0=lambda x0, i: None)


def test_a_network_may_return_its_input():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 5))
    same = df.sample(df.Denoiser(lambda x, t: x, schedule, predicts="x0"), plan, shape=(2, 3))
    copy = df.sample(
        df.Denoiser(lambda x, t: x.clone(), schedule, predicts="x0"), plan, shape=(2, 3)
    )
    assert torch.equal(same.x, copy.x)


def test_an_empty_batch_is_fine():
    schedule = SCHEDULES["edm"]
    plan = df.solvers.heun(schedule, df.grids.karras(schedule, 3))
    out = df.sample(
        df.Denoiser(lambda x, t: x, schedule, predicts="x0"), plan, shape=(0, 3, 4), ids=[]
    )
    assert out.x.shape == (0, 3, 4)
    assert out.nfe.shape == (0,)


def test_a_thousand_stages_and_a_progress_bar(capsys):
    schedule = SCHEDULES["from_betas"]
    plan = df.solvers.ddim(schedule, df.grids.trailing(schedule, 1000), eta=1.0)
    denoiser = df.Denoiser(lambda x, t: x * 0.01, schedule, predicts="epsilon")
    out = df.sample(denoiser, plan, shape=(2, 8), progress=True)
    assert out.x.isfinite().all()
    assert "1000/1000" in capsys.readouterr().err


def test_one_stage_is_one_network_call_and_one_op(monkeypatch):
    schedule = SCHEDULES["vp_linear"]
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 5))
    log = []
    real = ops.combine_out
    monkeypatch.setattr(ops, "combine_out", lambda *a: (log.append("combine"), real(*a))[1])

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            log.append(str(func))
            return func(*args, **(kwargs or {}))

    def network(x, t):
        log.append("network")
        return x

    shift = torch.zeros(2, 3)
    denoiser = df.Denoiser(
        lambda x, t, shift: network(x, t),
        schedule,
        predicts="epsilon",
        guidance=2.0,
        conditions={"shift": shift},
        unconditional={"shift": shift},
    )
    with Watch():
        df.sample(denoiser, plan, shape=(2, 3))
    first = log.index("network")
    views = ("slice", "split", "Version")
    loop = [entry for entry in log[first:] if not any(view in entry for view in views)]
    per_stage = ["network", "combine", "diffast.combine.out"]
    assert loop[: 3 * plan.stages] == per_stage * plan.stages
