"""k-diffusion's own functions against the drop-ins: same model, same sigmas, same noise."""

import inspect

import pytest
import torch
from k_diffusion_alone import alone
from torch.utils._python_dispatch import TorchDispatchMode

from diffast.integrations import k_diffusion as ours
from diffast.integrations.k_diffusion import handing

ODE = {
    "sample_euler": [{}],
    "sample_heun": [{}],
    "sample_dpm_2": [{}],
    "sample_dpmpp_2m": [{}],
}
CHURN = ["sample_euler", "sample_heun", "sample_dpm_2"]
CHURNS = [
    {"s_churn": 3.0},
    {"s_churn": 40.0},
    {"s_churn": 3.0, "s_tmin": 0.2, "s_tmax": 3.0, "s_noise": 1.01},
    {"s_churn": 3.0, "s_tmin": "last", "s_tmax": "first"},
]
SDE = {
    "sample_euler_ancestral": [{}, {"eta": 0.6, "s_noise": 1.02}, {"eta": 0.0}],
    "sample_dpm_2_ancestral": [{}, {"eta": 0.6, "s_noise": 1.02}],
    "sample_dpmpp_2s_ancestral": [{}, {"eta": 0.6, "s_noise": 1.02}, {"eta": 0.0}],
    "sample_dpmpp_sde": [{}, {"eta": 0.6, "s_noise": 1.02}, {"r": 0.3}],
    "sample_dpmpp_2m_sde": [
        {},
        {"eta": 0.6, "s_noise": 1.02},
        {"solver_type": "heun"},
        {"eta": 0.0},
    ],
    "sample_dpmpp_3m_sde": [{}, {"eta": 0.6, "s_noise": 1.02}, {"eta": 0.0}],
}
RANDN = [name for name in SDE if name.endswith("ancestral")]
SHAPE = (3, 2, 4)


def cases(table):
    return [
        pytest.param(name, given, id=f"{name}({','.join(f'{k}={v}' for k, v in given.items())})")
        for name, options in table.items()
        for given in options
    ]


@pytest.fixture(scope="module")
def theirs():
    with alone() as module:
        yield module


def model(x, sigma, shift=0.0):
    """A smooth denoiser of slope 1 at most, so that no state on a ridge blows up the rounding."""
    sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
    x = x - 0.1 * shift
    return 0.8 * torch.tanh(x / (0.9 + sigma**2)) + 0.1 * x / (1.0 + sigma**2) + 0.05 * shift


def sigmas_of(dtype, steps=8, zero=True):
    levels = ours.get_sigmas_karras(steps, 0.05, 12.0).to(dtype)
    return levels if zero else levels[:-1]


def start(dtype, level=12.0):
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (x * level).to(dtype)


OWN = ("sample_plan", "get_sigmas_plan")  # k-diffusion has no plans
NAMES = [name for name in dir(ours) if name.startswith(("sample_", "get_sigmas_"))]
NAMES = [name for name in NAMES if name not in OWN]


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_the_same(theirs, name):
    def signature(module):
        parameters = inspect.signature(getattr(module, name)).parameters.values()
        return [(p.name, p.default, p.kind) for p in parameters]

    assert signature(ours) == signature(theirs)


class Given:
    """A noise sampler that depends on what it is asked, and remembers it."""

    def __init__(self, dtype):
        self.dtype, self.asked = dtype, []

    def __call__(self, sigma, sigma_next):
        assert sigma.dim() == sigma_next.dim() == 0
        self.asked.append((float(sigma), float(sigma_next)))
        generator = torch.Generator().manual_seed(len(self.asked))
        return torch.randn(SHAPE, dtype=torch.float64, generator=generator).to(self.dtype)


def gap(got, wanted):
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(("name", "options"), cases(ODE))
def test_deterministic_samplers_are_the_same_map(theirs, name, options, zero, dtype):
    call = (model, start(dtype), sigmas_of(dtype, zero=zero))
    options = options | {"extra_args": {"shift": 0.4}, "disable": True}
    wanted = getattr(theirs, name)(*call, **options)
    assert gap(getattr(ours, name)(*call, **options), wanted) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("zero", [True, False])
def test_lms_is_the_same_map(theirs, order, zero, dtype):
    call = (model, start(dtype), sigmas_of(dtype, zero=zero))
    wanted = theirs.sample_lms(*call, order=order, disable=True)
    assert gap(ours.sample_lms(*call, order=order, disable=True), wanted) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 9, 11])
def test_dpm_fast_is_the_same_map_for_any_budget(theirs, calls, dtype):
    torch.set_default_dtype(dtype)  # theirs makes its times of the default type
    seen = {theirs: [], ours: []}
    try:
        wanted, got = (
            module.sample_dpm_fast(
                model, start(dtype), 0.05, 12.0, calls, disable=True, callback=seen[module].append
            )
            for module in (theirs, ours)
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert gap(got, wanted) < LIMIT[dtype]
    assert len(seen[ours]) == len(seen[theirs])
    for mine, their in zip(seen[ours], seen[theirs], strict=True):
        assert set(mine) == set(their) and mine["i"] == their["i"]
        for key in set(mine) - {"i"}:
            tolerance = 3 * LIMIT[dtype]
            torch.testing.assert_close(mine[key], their[key], rtol=tolerance, atol=tolerance)


def test_dpm_fast_refuses_what_it_has_no_plan_for():
    with pytest.raises(ValueError, match="sample_dpm_fast: sigma_min is 0, but a positive"):
        ours.sample_dpm_fast(model, start(torch.float32), 0.0, 12.0, 9)


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize(("name", "options"), cases(SDE))
def test_noise_samplers_are_asked_alike_and_make_the_same_samples(
    theirs, name, options, zero, dtype
):
    call = (model, start(dtype), sigmas_of(dtype, zero=zero))
    theirs_asked, ours_asked = Given(dtype), Given(dtype)
    wanted = getattr(theirs, name)(*call, noise_sampler=theirs_asked, disable=True, **options)
    got = getattr(ours, name)(*call, noise_sampler=ours_asked, disable=True, **options)
    assert gap(got, wanted) < LIMIT[dtype]
    assert len(ours_asked.asked) == len(theirs_asked.asked)
    for mine, their in zip(ours_asked.asked, theirs_asked.asked, strict=True):
        assert mine == pytest.approx(their, rel=LIMIT[dtype])


@pytest.mark.parametrize("name", RANDN)
def test_torch_seeds_give_the_same_pictures_of_ancestral_samplers(theirs, name):
    call = (model, start(torch.float32), sigmas_of(torch.float32))
    torch.manual_seed(11)
    wanted = getattr(theirs, name)(*call, disable=True)
    torch.manual_seed(11)
    assert gap(getattr(ours, name)(*call, disable=True), wanted) < 1e-5


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("options", CHURNS, ids=str)
@pytest.mark.parametrize("name", CHURN)
def test_churn_draws_the_same_numbers_in_the_same_order(theirs, name, options, dtype):
    call = (model, start(dtype), sigmas_of(dtype))
    ends = {"first": float(call[2][0]), "last": float(call[2][-2])}  # levels themselves are inside
    options = {option: ends.get(value, value) for option, value in options.items()}
    torch.manual_seed(11)
    wanted = getattr(theirs, name)(*call, disable=True, **options)
    torch.manual_seed(11)
    assert gap(getattr(ours, name)(*call, disable=True, **options), wanted) < LIMIT[dtype]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample_euler", {}),
        ("sample_heun", {}),
        ("sample_heun", {"s_churn": 3.0, "s_tmin": 0.2}),
        ("sample_dpm_2", {"s_churn": 3.0}),
        ("sample_dpmpp_2m", {}),
        ("sample_euler_ancestral", {}),
        ("sample_dpm_2_ancestral", {}),
        ("sample_dpmpp_2s_ancestral", {}),
        ("sample_dpmpp_sde", {"eta": 0.0}),
        ("sample_dpmpp_3m_sde", {"eta": 0.0}),
    ],
)
def test_callbacks_see_the_same_at_every_step(theirs, name, options):
    def seen_by(module):
        torch.manual_seed(5)
        seen = []
        getattr(module, name)(
            model,
            start(torch.float64),
            sigmas_of(torch.float64),
            callback=seen.append,
            disable=True,
            **options,
        )
        return seen

    wanted, got = seen_by(theirs), seen_by(ours)
    assert len(wanted) == len(got) == 8
    for mine, their in zip(got, wanted, strict=True):
        assert set(mine) == set(their) and mine["i"] == their["i"]
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(mine[key], their[key], rtol=1e-12, atol=1e-12)


def test_what_a_callback_keeps_stays_as_it_was():
    kept = []
    ours.sample_heun(model, start(torch.float32), sigmas_of(torch.float32), callback=kept.append)
    again = []

    def compare(info):
        torch.testing.assert_close(kept[info["i"]]["x"], info["x"], rtol=0, atol=0)
        again.append(info["i"])

    ours.sample_heun(model, start(torch.float32), sigmas_of(torch.float32), callback=compare)
    assert again == list(range(8))


@pytest.mark.parametrize("name", ["sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde"])
def test_counter_noise_follows_the_seed_and_not_the_batch(name):
    def samples(rows, seed=None):
        arguments = {} if seed is None else {"seed": seed}
        x = start(torch.float32)[:rows]
        return getattr(ours, name)(
            lambda x, sigma, seed=None: model(x, sigma),
            x,
            sigmas_of(torch.float32),
            extra_args=arguments,
            disable=True,
        )

    torch.testing.assert_close(samples(3, 7)[:1], samples(1, 7), rtol=0, atol=0)
    assert gap(samples(3, 8), samples(3, 7)) > 1e-3
    torch.manual_seed(4)
    first = samples(3)
    torch.manual_seed(4)
    torch.testing.assert_close(samples(3), first, rtol=0, atol=0)
    assert gap(samples(3), first) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_x_is_float32_between_the_steps(dtype):
    seen = []

    def half_model(x, sigma):
        seen.append((x.dtype, sigma.dtype))
        return model(x.float(), sigma.float()).to(dtype)

    x = start(dtype)
    got = ours.sample_dpmpp_2m(half_model, x, sigmas_of(torch.float32), disable=True)
    wanted = ours.sample_dpmpp_2m(model, x.float(), sigmas_of(torch.float32), disable=True)
    assert got.dtype == dtype and set(seen) == {(dtype, dtype)}
    assert float((got.float() - wanted).abs().max()) < (0.01 if dtype == torch.float16 else 0.05)


def test_the_model_may_use_gradients_and_x_is_left_alone():
    def guided(x, sigma):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad((x**2).sum(), x)
        return model(x.detach(), sigma) - 0.01 * slope

    x = start(torch.float32)
    before = x.clone()
    got = ours.sample_heun(guided, x, sigmas_of(torch.float32), disable=True)
    wanted = ours.sample_heun(
        lambda x, sigma: model(x, sigma) - 0.02 * x, x, sigmas_of(torch.float32), disable=True
    )
    torch.testing.assert_close(got, wanted)
    assert torch.equal(x, before) and not got.is_inference() and not got.requires_grad


def test_models_of_another_dtype_and_progress_on_stderr(capsys):
    call = (start(torch.float32), sigmas_of(torch.float32))
    wide = ours.sample_euler(lambda x, s: model(x.double(), s.double()), *call, disable=False)
    assert "8/8" in capsys.readouterr().err
    assert wide.dtype == torch.float64  # as torch promotes it, and k-diffusion with it
    assert gap(wide.float(), ours.sample_euler(model, *call, disable=True)) < 1e-6
    assert capsys.readouterr().err == ""


class Reads(TorchDispatchMode):
    """Counts reads of numbers off a device, each of which waits for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample_heun", {}),
        ("sample_euler_ancestral", {}),
        ("sample_dpmpp_2m_sde", {"noise_sampler": lambda *_: torch.ones(SHAPE)}),
    ],
)
def test_no_number_is_read_off_the_device_in_the_loop(name, options):
    def reads(steps):
        with Reads() as mode:
            getattr(ours, name)(
                model,
                start(torch.float32),
                sigmas_of(torch.float32, steps),
                callback=lambda info: None,
                disable=True,
                **options,
            )
        return mode.count

    assert reads(12) == reads(3)


def test_models_that_write_into_x_or_return_nan_are_reported():
    call = (start(torch.float32), sigmas_of(torch.float32))
    with pytest.raises(ValueError, match="wrote into its input at stage 0"):
        ours.sample_dpmpp_2m(lambda x, sigma: x.mul_(0.5) * 1.0, *call, disable=True)
    with pytest.raises(FloatingPointError, match="network's output is not finite at stage 0"):
        ours.sample_dpmpp_2m(lambda x, sigma: x * float("nan"), *call, disable=True)


def test_no_step_returns_x():
    x = start(torch.float32)
    assert ours.sample_heun(model, x, torch.tensor([1.0])) is x
    assert ours.sample_euler_ancestral(model, x, torch.tensor([])) is x


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        (
            [1.0, 2.0, 0.0],
            r"sample_heun: sigmas\[0\] = 1 is followed by 2, .* only k-diffusion's own",
        ),
        ([2.0, 1.0, 1.0], r"sigmas\[1\] = 1 is followed by 1"),
        ([2.0, -1.0], r"sigmas\[0\] = 2 is followed by -1"),
        ([float("nan"), 1.0], r"sigmas\[0\] = nan"),
        ([[2.0, 1.0]], r"sigmas has shape \[1, 2\]"),
    ],
)
def test_without_k_diffusion_sigmas_that_do_not_fall_are_refused(sigmas, message, monkeypatch):
    missing = "ModuleNotFoundError: No module named 'k_diffusion'"
    monkeypatch.setattr(handing, "_original", lambda: (None, missing))
    with pytest.raises(ValueError, match=message):
        ours.sample_heun(model, start(torch.float32), torch.tensor(sigmas))


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("get_sigmas_karras", {"sigma_min": 0.03, "sigma_max": 14.6, "rho": 5.0}),
        ("get_sigmas_exponential", {"sigma_min": 0.03, "sigma_max": 14.6}),
        ("get_sigmas_polyexponential", {"sigma_min": 0.03, "sigma_max": 14.6, "rho": 1.4}),
        ("get_sigmas_vp", {"beta_d": 18.0, "beta_min": 0.2, "eps_s": 2e-3}),
    ],
)
def test_noise_levels_are_the_same(theirs, name, arguments, steps):
    got = getattr(ours, name)(steps, **arguments)
    assert got.dtype == torch.float32
    torch.set_default_dtype(torch.float64)  # their float32 loses digits of exp(B) - 1
    try:
        wanted = getattr(theirs, name)(steps, **arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-7, atol=0)
