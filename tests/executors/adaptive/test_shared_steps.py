"""`sample_adaptive(control="batch")`: the steps and tolerances of torchdiffeq's `odeint`."""

import numpy as np
import pytest
import torch
from torchdiffeq import odeint

import diffast as df

SCHEDULE = df.schedules.flow()


def velocity(x, t):
    """The exact field of data .5 N(-1, .04) + .5 N(1, .04) in each coordinate, s from noise."""
    s = t.double().reshape(-1, *[1] * (x.dim() - 1))
    y, whole = x.double(), 0.04 * s**2 + (1 - s) ** 2
    right = torch.sigmoid(2 * s * y / whole)
    mean = 2 * right - 1
    x0 = mean + 0.04 * s / whole * (y - s * mean)
    eps = (1 - s) / whole * (y - s * mean)
    return (x0 - eps).to(x.dtype)


@pytest.fixture(scope="module")
def start():
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def ends(start):
    return ode(start, 1e-10)[0]


def ode(x, tolerance, method="dopri5"):
    """Returns (samples, calls) of torchdiffeq."""
    calls = 0

    def field(s, x):
        nonlocal calls
        calls += 1
        return velocity(x, s.expand(len(x)))

    span = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return odeint(field, x, span, rtol=tolerance, atol=tolerance, method=method)[-1], calls


def rms(x):
    return float(x.double().square().mean().sqrt())


DENOISER = df.Denoiser.from_velocity(velocity)


@pytest.mark.parametrize(("method", "share"), [("dopri5", 1.05), ("bosh3", 1.25)])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7])
def test_a_tolerance_means_what_torchdiffeqs_means(start, ends, method, share, tolerance):
    """The error is near the tolerance and at most torchdiffeq's, from about as many calls.

    torchdiffeq goes beyond the end and interpolates, which may cost it accuracy.
    """
    made = df.sample_adaptive(
        DENOISER, method, x=start, rtol=tolerance, atol=tolerance, control="batch", until=1e-9
    )
    theirs, calls = ode(start, tolerance, method)
    assert tolerance / 30 < rms(made.x - ends) < 30 * tolerance
    assert rms(made.x - ends) < 1.2 * rms(theirs - ends)
    assert made.rounds <= share * calls
    assert (made.nfe == made.rounds).all() and made.nfe.shape == (64,)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "dpm_12", "dpm_23"])
def test_errors_fall_with_the_tolerance(start, ends, method):
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        made = df.sample_adaptive(
            DENOISER, method, x=start, rtol=tolerance, atol=tolerance, control="batch", until=1e-6
        )
        errors.append(rms(made.x - ends))
    assert errors[0] > 5 * errors[1] and errors[1] > 5 * errors[2] or errors[2] < 3e-5
    assert errors[0] < 0.1


def test_all_samples_take_the_same_steps(start):
    """One sample in a batch of copies takes the steps that it takes alone."""
    alone = df.sample_adaptive(DENOISER, "dopri5", x=start[:1], control="batch")
    copies = df.sample_adaptive(DENOISER, "dopri5", x=start[:1].repeat(5, 1), control="batch")
    assert torch.allclose(copies.x, alone.x.expand(5, 3), rtol=1e-12)
    assert copies.nfe.tolist() == alone.nfe.tolist() * 5
    growth = {"controller": {"most": 10.0}}
    own = df.sample_adaptive(DENOISER, "dopri5", x=start[:1], h_init=0.02, **growth)
    shared = df.sample_adaptive(DENOISER, "dopri5", x=start[:1], h_init=0.02, control="batch")
    assert torch.allclose(own.x, shared.x, rtol=1e-12) and own.nfe.tolist() == shared.nfe.tolist()


def test_calls_are_counted_as_they_are_made(start):
    calls = 0

    def counted(x, t):
        nonlocal calls
        calls += 1
        assert x.shape == (64, 3) and t.shape == (64,)
        return velocity(x, t)

    denoiser = df.Denoiser.from_velocity(counted)
    for options in ({}, {"h_init": 0.02}):
        calls = 0
        made = df.sample_adaptive(denoiser, "dopri5", x=start, control="batch", **options)
        assert calls == made.rounds == int(made.nfe[0])
    assert made.wasted == 0 and made.accepted.shape == (64,) and len(made.outcomes) == 64


def test_the_noise_is_that_of_df_sample():
    """The same seed and ids start from the same states, in float32."""
    seen = []

    def first(x, t):
        seen.append(x.clone())
        return velocity(x, t)

    denoiser = df.Denoiser.from_velocity(first)
    df.sample_adaptive(denoiser, "bosh3", (4, 3), seed=7, ids=[3, 1, 8, 2], control="batch")
    shared, seen[:] = seen[0], []
    plan = df.solvers.euler(SCHEDULE, df.grids.uniform_time(SCHEDULE, 1))
    df.sample(denoiser, plan, (4, 3), seed=7, ids=[3, 1, 8, 2])
    assert torch.equal(shared, seen[0]) and shared.dtype == torch.float32


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, lambda t: 1.0 + t])
def test_guidance_and_conditions_by_rows(scale):
    schedule = df.schedules.vp_linear()
    centres = torch.linspace(-1.0, 1.0, 6).reshape(-1, 1)

    def network(x, t, centre):
        alpha = torch.from_numpy(schedule.alpha(t.double().numpy())).reshape(-1, 1).to(x.dtype)
        noise = 1 - alpha**2
        return (0.04 * alpha * x + noise * centre) / (0.04 * alpha**2 + noise)

    denoiser = df.Denoiser(
        network,
        schedule,
        predicts="x0",
        conditions={"centre": centres},
        unconditional={"centre": torch.full((1, 1), 0.3)},
        guidance=scale,
    )
    tight = {"rtol": 1e-5, "atol": 1e-5}
    each = df.sample_adaptive(denoiser, "dopri5", (6, 1), seed=3, **tight)
    shared = df.sample_adaptive(denoiser, "dopri5", (6, 1), seed=3, control="batch", **tight)
    assert torch.allclose(each.x, shared.x, atol=2e-4)


def test_a_sample_that_is_not_finite_fails_the_batch(start):
    def broken(x, t):
        made = velocity(x, t)
        made[2] = torch.where(t[:1] > 0.5, torch.nan, made[2])
        return made

    denoiser = df.Denoiser.from_velocity(broken)
    with pytest.raises(df.NonFiniteError, match="64 of 64 samples failed: 0 .id 0.: not finite"):
        df.sample_adaptive(denoiser, "dopri5", x=start, control="batch")
    made = df.sample_adaptive(denoiser, "dopri5", x=start, control="batch", throw=False)
    assert (made.status >= 0).all() and made.x.isnan().all()
    with pytest.raises(
        df.StepLimitError, match="too many calls after 4 network calls of the whole"
    ):
        df.sample_adaptive(DENOISER, "dopri5", x=start, control="batch", max_calls=4)


def test_an_empty_batch():
    made = df.sample_adaptive(DENOISER, "dopri5", (0, 3), control="batch")
    assert made.x.shape == (0, 3)


def test_a_network_that_is_all_zero_has_a_first_step():
    """The slope is 0: the step is found by the rule's own guards, and the run ends."""
    denoiser = df.Denoiser.from_velocity(lambda x, t: torch.zeros_like(x))
    x = torch.zeros(2, 3)
    made = df.sample_adaptive(denoiser, "dopri5", x=x, control="batch")
    assert torch.equal(made.x, x)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"method": "pec"}, "control is 'batch' but pec draws noise for each sample"),
        ({"control": "all"}, "control is 'all' but must be one of sample, batch"),
        ({"on_x0": lambda x, i: x}, "on_x0 is given but control is 'batch'"),
        ({"callback": lambda p: None}, "callback is given but control is 'batch'"),
        ({"trace": True}, "trace is given but control is 'batch'"),
        ({"executor": "graph"}, "executor is given but control is 'batch'"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        df.sample_adaptive(
            DENOISER, **({"method": "dopri5", "shape": (2, 3), "control": "batch"} | options)
        )


def test_an_embedded_solver_made_before(start):
    solver = df.embedded.get("dopri5")(rtol=1e-4, atol=1e-4)
    made = df.sample_adaptive(DENOISER, solver, x=start, control="batch")
    named = df.sample_adaptive(DENOISER, "dopri5", x=start, control="batch", rtol=1e-4, atol=1e-4)
    assert np.array_equal(made.x.numpy(), named.x.numpy())


def test_an_answer_that_is_not_finite_fails_the_batch_and_no_level_is_made_of_it():
    """The first step's size comes from the first answer."""

    def broken(x, t):
        assert t.isfinite().all()
        return torch.where(x[:, :1] > 0, torch.nan, 0.5 * x)

    denoiser = df.Denoiser(broken, df.schedules.edm(), "x0")
    with pytest.raises(df.NonFiniteError):
        df.sample_adaptive(denoiser, "dopri5", control="batch", shape=(8, 2))
