"""Velocity fields of flow_matching's and torchdiffeq's convention: s from 0 (noise) to 1 (data)."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.solvers.core.one_step import one_step
from diffast.solvers.ode.runge_kutta import Tableau, midpoint

MEANS = torch.tensor([[0.8, -0.5, 0.1], [-0.9, 0.4, 0.3]], dtype=torch.float64)
# torchdiffeq's "rk4" is Kutta's 3/8 rule
KUTTA38 = Tableau(
    (1 / 3, 2 / 3, 1.0), ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)
)


class Field(torch.nn.Module):
    """The exact velocity E[x1 - x0 | x_s] of x_s = s x1 + (1 - s) x0, x1 one of two wide points."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(3))
        self.times = []

    def forward(self, x, t, shift=None):
        assert t.shape in ((len(x),), ())
        self.times.append(float(t.reshape(-1)[0]))
        s = t.reshape(-1, 1).to(x.dtype)
        width2 = 0.3**2
        variance = s**2 * width2 + (1 - s) ** 2
        gap = x[:, None, :] - s[:, :, None] * MEANS.to(x.dtype)
        share = torch.softmax(-(gap**2).sum(-1) / (2 * variance), dim=1)
        mean = share @ MEANS.to(x.dtype)
        data = mean + s * width2 / variance * (x - s * mean)
        noise_minus_data = (x - data) / (1 - s)
        return -noise_minus_data if shift is None else -noise_minus_data + shift


def noise(dtype=torch.float64, rows=4):
    return torch.randn(rows, 3, dtype=dtype, generator=torch.Generator().manual_seed(2))


def exact_below(t, x, velocity):
    """x0 from the velocity by hand: x_s = s x1 + (1 - s) x0 and u = x1 - x0."""
    s = 1.0 - t
    return x + (1.0 - s) * velocity


def test_the_estimate_is_the_data_end_of_the_straight_line():
    field = Field()
    denoiser = df.Denoiser.from_velocity(field)
    assert denoiser.schedule == df.schedules.flow()
    x = noise()
    for t in (1.0, 0.7, 0.1):
        velocity = field(x=x, t=torch.full((4,), 1.0 - t, dtype=torch.float64))
        torch.testing.assert_close(
            denoiser.x0(x, t), exact_below(t, x, velocity), rtol=0, atol=1e-15
        )


@pytest.mark.parametrize(
    ("method", "build"),
    [
        ("euler", df.solvers.euler),
        ("midpoint", midpoint),
        ("rk4", lambda schedule, grid: one_step("rk38", schedule, grid, KUTTA38)),
    ],
)
def test_equals_torchdiffeq_on_the_same_times(method, build):
    odeint = pytest.importorskip("torchdiffeq").odeint
    field, x = Field(), noise()
    s = torch.linspace(0.0, 0.95, 12, dtype=torch.float64)
    with torch.no_grad():
        wanted = odeint(lambda t, y: field(x=y, t=t), x, s, method=method)[-1]
    schedule = df.schedules.flow()
    plan = build(schedule, 1.0 - s.numpy())
    asked, field.times = field.times, []
    got = df.sample(df.Denoiser.from_velocity(field), plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(field.times, asked, rtol=0, atol=1e-12)


def test_euler_goes_all_the_way_to_the_data():
    odeint = pytest.importorskip("torchdiffeq").odeint
    field, x = Field(), noise()
    s = torch.linspace(0.0, 1.0, 11, dtype=torch.float64)
    with torch.no_grad():
        wanted = odeint(lambda t, y: field(x=y, t=t), x, s, method="euler")[-1]
    schedule = df.schedules.flow()
    plan = df.solvers.euler(schedule, df.grids.uniform_time(schedule, 10))
    got = df.sample(df.Denoiser.from_velocity(field), plan, x=x).x
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)


def test_a_field_of_positional_arguments_and_other_paths():
    """func(s, x) of torchdiffeq, on the variance-preserving path of flow_matching's VPScheduler."""
    schedule = df.schedules.vp_linear()
    clean = noise(rows=4) * 0.5

    def func(s, x):
        t = float(1.0 - s.reshape(-1)[0])
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        dalpha, dsigma = schedule.derivatives(t)
        return -(dalpha * clean + dsigma * (x - alpha * clean) / sigma)

    denoiser = df.Denoiser.from_velocity(lambda x, t: func(t, x), schedule)
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 6))
    got = df.sample(denoiser, plan, x=noise()).x
    torch.testing.assert_close(got, clean, rtol=0, atol=1e-12)


def test_conditions_and_guidance_reach_the_field():
    field, x = Field(), noise(torch.float32)
    plan = df.solvers.euler(df.schedules.flow(), np.linspace(1.0, 0.0, 5))
    shift = torch.tensor([[0.3, 0.0, -0.2]])

    def run(**given):
        return df.sample(df.Denoiser.from_velocity(field, **given), plan, x=x).x

    moved = run(conditions={"shift": shift})
    assert float((moved - run()).abs().max()) > 0.1
    both = {"conditions": {"shift": shift}, "unconditional": {"shift": torch.zeros(1, 3)}}
    torch.testing.assert_close(
        run(**both, guidance=2.0), run(conditions={"shift": 2.0 * shift}), rtol=1e-4, atol=1e-5
    )


def test_the_field_is_called_by_keyword_with_one_time_a_sample():
    calls = []

    def field(*, x, t):
        calls.append((t.dtype, t.tolist()))
        return torch.zeros_like(x)

    plan = df.solvers.euler(df.schedules.flow(), [1.0, 0.75, 0.0])
    df.sample(df.Denoiser.from_velocity(field), plan, x=noise(torch.float32, rows=2))
    assert calls == [(torch.float32, [0.0, 0.0]), (torch.float32, [0.25, 0.25])]


def test_the_device_is_that_of_the_field():
    assert df.Denoiser.from_velocity(Field()).device() == torch.device("cpu")
    assert df.Denoiser.from_velocity(Field().to("meta")).device() == torch.device("meta")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"velocity": 3}, "velocity is a int but must be callable"),
        (
            {"schedule": df.schedules.edm()},
            "needs a schedule whose time runs from 1 to 0, but that of .* runs from 80 to 0",
        ),
        ({"conditions": {"a": 1}, "unconditional": {}}, "conditions are"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        df.Denoiser.from_velocity(**({"velocity": Field()} | given))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, lambda s: s),
        ({"times": (0.0, 1000.0)}, lambda s: 1000 * s),
        ({"time_scale": 1000.0}, lambda s: 1000 * s),
        ({"times": (1.0, 0.0)}, lambda s: 1 - s),
        ({"times": (1.0, 0.0), "time_scale": 1000.0}, lambda s: 1000 * (1 - s)),
        ({"times": (-1.0, 3.0)}, lambda s: -1 + 4 * s),
    ],
)
def test_any_range_of_times(options, told):
    """One step from anywhere leads to the data; the field sees its own time."""
    clean, seen = 0.5 * noise(), []
    first, last = options.get("times", (0.0, 1.0))

    def field(x, t):
        seen.append(t.tolist())
        s = t[:, None] / options.get("time_scale", 1.0)
        s = (s - first) / (last - first)
        return (clean - x) / (1 - s) / (last - first)

    denoiser = df.Denoiser.from_velocity(field, **options)
    plan = df.solvers.euler(df.schedules.flow(), [0.9, 0.3, 0.0])
    got = df.sample(denoiser, plan, x=noise()).x
    torch.testing.assert_close(got, clean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(seen, [[told(s)] * 4 for s in (0.1, 0.7)], rtol=1e-12)


@pytest.mark.parametrize("call", ["x, t", "t, x", "x=, t="])
@pytest.mark.parametrize(
    ("time_shape", "shape"), [("batch", (4,)), ("column", (4, 1)), ("scalar", ()), ("one", (1,))]
)
def test_calls_and_shapes_of_the_time(call, time_shape, shape):
    seen = []

    def field(*args, shift=None, **named):
        x, t = (named["x"], named["t"]) if named else (args if call == "x, t" else args[::-1])
        seen.append((tuple(t.shape), float(t.reshape(-1)[0]), float(shift)))
        return torch.ones_like(x)

    denoiser = df.Denoiser.from_velocity(
        field, call=call, time_shape=time_shape, conditions={"shift": 2.0}
    )
    plan = df.solvers.euler(df.schedules.flow(), [1.0, 0.5, 0.0])
    got = df.sample(denoiser, plan, x=noise()).x
    torch.testing.assert_close(got, noise() + 1)
    assert seen == [(shape, 0.0, 2.0), (shape, 0.5, 2.0)]


def test_one_time_for_all_is_refused_where_samples_have_their_own():
    field = df.Denoiser.from_velocity(lambda t, x: -x, call="t, x", time_shape="scalar")
    plan = df.solvers.euler(df.schedules.flow(), [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="one time for all samples .*: use df.sample"):
        df.sample_parallel(field, plan, shape=(2, 3))
    with pytest.raises(ValueError, match="sample_adaptive: the field takes one time"):
        df.sample_adaptive(field, "bosh3", (2, 3))
    with pytest.raises(ValueError, match="one time for all samples"):
        field.network(noise(), torch.tensor([0.1, 0.2, 0.3, 0.4]))


def cosine_field(x, t):
    """dx/ds of centred Gaussian data of deviation 0.5 on alpha = sin(pi s / 2), sigma = cos."""
    angle = t.reshape(-1, 1) * (np.pi / 2)
    alpha, sigma = torch.sin(angle), torch.cos(angle)
    variance = 0.25 * alpha**2 + sigma**2
    return (np.pi / 2) * (0.25 - 1.0) * alpha * sigma / variance * x


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m", "rk4"])
def test_any_field_is_solved_as_if_its_path_were_straight(solver):
    """The limit is that of the field's own equation, for one-step methods at their order.

    2M reaches it more slowly: its last steps are long in log-SNR on this grid.
    """
    x = noise()
    wanted = 0.5 * x  # sqrt(variance) goes from 1 to 0.5
    denoiser = df.Denoiser.from_velocity(cosine_field)
    errors = []
    for steps in (16, 32, 64):
        plan = df.solvers.get(solver)(df.schedules.flow(), np.linspace(1.0, 0.0, steps + 1))
        errors.append(float((df.sample(denoiser, plan, x=x).x - wanted).abs().max()))
    assert errors[-1] < 0.02
    least = {"euler": 0.85, "dpmpp_2m": 0.7}.get(solver, 1.7)
    assert np.log2(errors[1] / errors[2]) > least, errors


def test_the_true_path_gives_the_mean_of_the_data():
    schedule = df.schedules.from_functions(
        lambda t: np.cos(np.pi / 2 * t), lambda t: np.sin(np.pi / 2 * t)
    )
    for given, options in (
        (schedule, {}),
        (df.schedules.trig(), {"times": (0.0, 1.0)}),
        (df.schedules.trig(), {"times": (0.0, 1.0), "call": "x, t"}),
    ):
        denoiser = df.Denoiser.from_velocity(cosine_field, given, **options)
        t = 0.4 * given.t_start
        alpha, sigma = float(given.alpha(t)), float(given.sigma(t))
        wanted = 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * noise()
        torch.testing.assert_close(denoiser.x0(noise(), t), wanted, rtol=1e-9, atol=1e-9)
        plan = df.solvers.ddim(given, df.grids.uniform_time(given, 40), eta=1.0)
        out = df.sample(denoiser, plan, shape=(400, 3), seed=5).x
        assert abs(float(out.std()) - 0.5) < 0.06


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"times": (1.0, 1.0)}, "must be finite and different"),
        ({"call": "x"}, "call is 'x' but must be one of"),
        ({"time_shape": "row"}, "time_shape is 'row' but must be one of"),
        ({"time_scale": 0.0}, "time_scale is 0.0"),
    ],
)
def test_options_that_are_not_known(given, message):
    with pytest.raises(ValueError, match=message):
        df.Denoiser.from_velocity(Field(), **given)


def test_batch_of_one_and_time_dtype():
    def half(x, t):
        assert x.dtype == t.dtype == torch.bfloat16
        return -x

    denoiser = df.Denoiser.from_velocity(half, dtype=torch.bfloat16, time_dtype=torch.bfloat16)
    plan = df.solvers.euler(df.schedules.flow(), [1.0, 0.5, 0.0])
    assert df.sample(denoiser, plan, shape=(1, 3)).x.shape == (1, 3)
