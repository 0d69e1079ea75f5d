"""What the network is told of the time: integers where it indexes a table, its own dtype."""

import numpy as np
import pytest
import torch
from torch import nn

import diffast as df

STEPS = 100
SCHEDULE = df.schedules.from_betas(np.linspace(1e-3, 0.1, STEPS))
WHOLE = df.grids.trailing(SCHEDULE, 10)
SHAPE = (2, 3, 4, 4)


class Table(nn.Module):
    """A small network whose time embedding is a table; remembers the times that it was given."""

    def __init__(self, look=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.table, self.layer = nn.Embedding(STEPS, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.look, self.given = look or (lambda table, t: table(t)), []

    def forward(self, x, t, shift=0.0):
        self.given.append(t)
        return self.layer(x) + self.look(self.table, t)[:, :, None, None] + shift


def denoiser(network, **options):
    return df.Denoiser(network, SCHEDULE, "epsilon", **options)


@pytest.mark.parametrize("wanted", [torch.long, torch.int32])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "ddpm"])
def test_integer_times(solver, wanted):
    network = Table()
    plan = df.solvers.get(solver)(SCHEDULE, WHOLE)
    made = df.sample(denoiser(network, time_dtype=wanted), plan, SHAPE, seed=3).x
    assert {t.dtype for t in network.given} == {wanted}
    assert [t.tolist() for t in network.given] == [[int(t)] * 2 for t in WHOLE[:-1]]
    by_hand = Table(lambda table, t: table(t.long()))
    assert torch.equal(made, df.sample(denoiser(by_hand), plan, SHAPE, seed=3).x)


def test_guided_parallel_and_looking():
    network, plan = Table(), df.solvers.ddim(SCHEDULE, WHOLE)
    options = {
        "conditions": {"shift": torch.zeros(2, 1, 1, 1)},
        "unconditional": {"shift": torch.ones(1, 1, 1, 1)},
    }
    given = denoiser(network, time_dtype=torch.long, guidance=2.0, **options)
    one = df.sample(given, plan, SHAPE, seed=3).x
    assert {tuple(t.shape) for t in network.given} == {(4,)}
    many = df.sample_parallel(given, plan, SHAPE, seed=3, tol=0.0).x
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-4)
    assert given.x0(torch.zeros(SHAPE), 99.0).shape == SHAPE
    with pytest.raises(ValueError, match="t = 0.5, which is no whole number"):
        given.x0(torch.zeros(SHAPE), 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: df.solvers.ddim(SCHEDULE, df.grids.karras(SCHEDULE, 5)),
        lambda: df.solvers.dpm_solver_2s(SCHEDULE, WHOLE),
    ],
)
def test_fractional_times_are_refused_before_the_run_or_rounded(make):
    network, plan = Table(), make()
    broken = plan.times[plan.times != np.round(plan.times)][0]
    given = denoiser(network, time_dtype=torch.long)
    for run in (df.sample, lambda d, p, shape: df.sample_parallel(d, p, shape, tol=0.1)):
        with pytest.raises(
            ValueError, match=rf"would be called at t = {broken:.6g}, which is no whole number"
        ) as error:
            run(given, plan, SHAPE)
        assert "trailing" in str(error.value) and "round_times=True" in str(error.value)
    assert not network.given
    rounded = denoiser(network, time_dtype=torch.long, round_times=True)
    assert df.sample(rounded, plan, SHAPE).x.isfinite().all()
    assert [t[0].item() for t in network.given] == np.round(plan.times).astype(int).tolist()
    # the step is made for the true time
    np.testing.assert_array_equal(
        rounded.affine(plan.times), df.Prediction(SCHEDULE, "epsilon").affine(plan.times)
    )


def test_an_adaptive_run_needs_rounding():
    given = denoiser(Table(), time_dtype=torch.long)
    with pytest.raises(ValueError, match="which is no whole number"):
        df.sample_adaptive(given, "pec", SHAPE)
    network = Table()
    rounded = denoiser(network, time_dtype=torch.long, round_times=True)
    assert df.sample_adaptive(rounded, "pec", SHAPE, rtol=0.5).x.isfinite().all()
    assert {t.dtype for t in network.given} == {torch.long}


def test_a_rounding_error_is_no_fraction():
    times = np.array([99.0, 50.0 + 1e-9, 3.0 - 1e-9])
    assert denoiser(Table(), time_dtype=torch.long).affine(times)[0].shape == (3,)
    with pytest.raises(ValueError, match="t = 50.001"):
        denoiser(Table(), time_dtype=torch.long).affine(np.array([99.0, 50.001]))


INDEXED = {
    "embedding": lambda table, t: table(t),
    "brackets": lambda table, t: table.weight[t],
    "index_select": lambda table, t: table.weight.index_select(0, t),
    "gather": lambda table, t: table.weight.gather(0, t[:, None].expand(-1, 3)),
    "take": lambda table, t: table.weight.take(t)[:, None],
    "one_hot": lambda table, t: nn.functional.one_hot(t, STEPS).float() @ table.weight,
    "list": lambda table, t: torch.stack([list(table.weight)[i] for i in t]),
    "array": lambda table, t: torch.from_numpy(table.weight.numpy(force=True)[t.numpy()]),
}


@pytest.mark.parametrize("name", INDEXED)
def test_a_table_indexed_by_a_float_names_the_option(name):
    network, plan = Table(INDEXED[name]), df.solvers.ddim(SCHEDULE, WHOLE)
    with pytest.raises(ValueError, match="time as torch.float32.*time_dtype=torch.long") as error:
        df.sample(denoiser(network), plan, SHAPE)
    assert isinstance(error.value.__cause__, (RuntimeError, IndexError, TypeError))
    assert error.value.__cause__.__traceback__ is not None
    made = df.sample(denoiser(network, time_dtype=torch.long), plan, SHAPE)
    assert made.x.isfinite().all()


def test_an_index_that_is_not_the_time_keeps_the_networks_error():
    network = Table(lambda table, t: table(t) + table(torch.zeros(2)))
    with pytest.raises(RuntimeError, match="scalar types: Long, Int; but got"):
        df.sample(denoiser(network, time_dtype=torch.long), df.solvers.ddim(SCHEDULE, WHOLE), SHAPE)


class Scalar(nn.Module):
    """Takes one time for all."""

    def forward(self, x, t):
        if t.dim():
            raise ValueError("t must be 0-d")
        return x * t


@pytest.mark.parametrize(
    ("network", "kind", "message"),
    [
        (Scalar(), ValueError, "^t must be 0-d$"),
        (lambda x, t: x[:, 7], IndexError, "^index 7 is out of bounds"),
        (lambda x: x, TypeError, "takes 1 positional argument"),
        (lambda x, t: x @ torch.zeros(5, 5), RuntimeError, "shapes cannot be multiplied"),
        (lambda x, t: {}["key"], KeyError, "key"),
    ],
)
def test_other_errors_of_the_network_pass_unchanged(network, kind, message):
    with pytest.raises(kind, match=message) as error:
        df.sample(denoiser(network), df.solvers.ddim(SCHEDULE, WHOLE), SHAPE)
    assert error.value.__cause__ is None


def test_out_of_memory_passes_unchanged():
    def greedy(x, t):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        df.sample(denoiser(greedy), df.solvers.ddim(SCHEDULE, WHOLE), SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_dtype": torch.bool}, "time_dtype is torch.bool but must be an integer or"),
        ({"time_dtype": torch.complex64}, "time_dtype is torch.complex64 but must be"),
        ({"time_dtype": "long"}, "time_dtype is 'long' but must be"),
        ({"round_times": True}, "round_times is true but time_dtype is None"),
        ({"round_times": True, "time_dtype": torch.float32}, "time_dtype is torch.float32, which"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        denoiser(Table(), **options)


# Half precision.


class Linear(nn.Module):
    """A network that is given the time as a column; `cast` says what is done to it first."""

    def __init__(self, dtype, cast):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.time = nn.Conv2d(3, 3, 1).to(dtype), nn.Linear(1, 3).to(dtype)
        self.cast = cast

    def forward(self, x, t):
        t = self.cast(t[:, None] / STEPS)
        return self.body(x) + self.time(t)[:, :, None, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_networks(dtype):
    plan, network = df.solvers.ddim(SCHEDULE, WHOLE), Linear(dtype, lambda t: t.to(dtype))
    made = df.sample(denoiser(network, dtype=dtype), plan, SHAPE, seed=3).x
    assert made.dtype == torch.float32
    wide = Linear(torch.float32, lambda t: t)
    wide.load_state_dict(network.state_dict())
    torch.testing.assert_close(
        made, df.sample(denoiser(wide), plan, SHAPE, seed=3).x, rtol=0.1, atol=0.1
    )
    with pytest.raises(
        ValueError, match=rf"parameters are {dtype} but it was given x as torch.float32: set dtype="
    ) as error:
        df.sample(denoiser(network), plan, SHAPE)
    assert isinstance(error.value.__cause__, RuntimeError)
    # the time is float32 unless the network casts it or is given another
    blunt = Linear(dtype, lambda t: t)
    with pytest.raises(ValueError, match=rf"given the time as torch.float32.*time_dtype={dtype}"):
        df.sample(denoiser(blunt, dtype=dtype), plan, SHAPE)
    again = df.sample(denoiser(blunt, dtype=dtype, time_dtype=dtype), plan, SHAPE, seed=3).x
    torch.testing.assert_close(again, made, rtol=0.1, atol=0.1)


LAYERS = {
    "linear": nn.Linear(4, 4),
    "convolution": nn.Conv2d(3, 3, 3, padding=1),
    "convolution without bias": nn.Conv2d(3, 3, 3, padding=1, bias=False),
    "group norm": nn.GroupNorm(3, 3),
    "layer norm": nn.LayerNorm(4),
    "prelu": nn.PReLU(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_float64_state_or_a_half_layer_names_the_dtype(name):
    plan, layer = df.solvers.ddim(SCHEDULE, WHOLE), LAYERS[name]

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t):
            return self.layer(x)

    network, x = One(), torch.randn(SHAPE, dtype=torch.float64)
    with pytest.raises(ValueError, match="given x as torch.float64: set dtype=torch.float32"):
        df.sample(denoiser(network.float()), plan, x=x)
    assert df.sample(denoiser(network, dtype=torch.float32), plan, x=x).x.dtype == x.dtype
    with pytest.raises(ValueError, match="given x as torch.float32: set dtype=torch.bfloat16"):
        df.sample(denoiser(network.bfloat16()), plan, SHAPE)


def test_a_mismatch_that_no_option_mends_keeps_the_networks_error():
    weight = torch.zeros(4, 4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="same dtype"):
        df.sample(denoiser(lambda x, t: x @ weight), df.solvers.ddim(SCHEDULE, WHOLE), SHAPE)
