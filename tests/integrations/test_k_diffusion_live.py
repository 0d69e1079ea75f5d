"""What callers do while a k-diffusion sampler runs, and what has no plan: as the original does."""

import importlib.util
import warnings
from pathlib import Path

import pytest
import torch
from k_diffusion_alone import alone

from diffast.integrations import k_diffusion as ours
from diffast.integrations.handed_over import HandedOverWarning
from diffast.integrations.k_diffusion import handing
from diffast.integrations.sigma_model import sigma_plan

SHAPE = (3, 2, 4)
DETERMINISTIC = ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
SDE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
EVERY = (*DETERMINISTIC, *ANCESTRAL, *SDE)
LIMIT = {torch.float32: 2e-5, torch.float64: 1e-12}


@pytest.fixture(scope="module")
def theirs():
    with alone() as module:
        yield module


def model(x, sigma, shift=0.0):
    sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
    return 0.8 * torch.tanh(x / (0.9 + sigma**2)) + 0.1 * x / (1.0 + sigma**2) + 0.05 * shift


def start(dtype=torch.float64):
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return (12.0 * x).to(dtype)


def levels(*values, dtype=torch.float64):
    return torch.tensor(values or (12.0, 5.0, 2.0, 0.7, 0.2, 0.05, 0.0), dtype=dtype)


def noise(x):
    count = [0]

    def sampler(sigma, sigma_next):
        count[0] += 1
        generator = torch.Generator().manual_seed(count[0])
        return torch.randn(SHAPE, dtype=torch.float64, generator=generator).to(x.dtype)

    return sampler


def both(theirs, name, x, *given, seed=4, **more):
    """Returns (ours, theirs): samples, and where torch's generator stands after the run."""
    found = []
    for module in (ours, theirs):
        torch.manual_seed(seed)
        how = {key: value() if key == "callback" else value for key, value in more.items()}
        if name in SDE:
            how["noise_sampler"] = noise(x)
        made = getattr(module, f"sample_{name}")(model, x.clone(), *given, disable=True, **how)
        found.append((made, torch.get_rng_state()))
    return found


def check(found, limit=1e-12):
    (mine, state), (their, their_state) = found
    assert mine.dtype == their.dtype
    scale = float(their.double().abs().max())
    assert float((mine.double() - their.double()).abs().max()) < limit * scale
    assert torch.equal(state, their_state)


def into_denoised(info):
    info["denoised"].clamp_(-0.2, 0.2)


def into_x(info):
    info["x"][1:] *= 0.7
    info["x"] += 0.1


def into_both_unseen(info):  # such writes raise no version
    info["x"].data.mul_(0.8)
    info["denoised"].numpy()[:1] = 0.3


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("callback", [into_denoised, into_x, into_both_unseen])
@pytest.mark.parametrize("name", EVERY)
def test_what_a_callback_writes_counts_as_in_k_diffusion(theirs, name, callback, dtype):
    given = {"callback": lambda: callback}
    found = both(theirs, name, start(dtype), levels(dtype=dtype), **given)
    check(found, LIMIT[dtype])
    quiet = both(theirs, name, start(dtype), levels(dtype=dtype))
    if callback is not into_denoised or name not in ("euler", "heun", "dpm_2", "lms"):
        assert float((found[0][0] - quiet[0][0]).abs().max()) > 1e-3  # the write was one


@pytest.mark.parametrize("name", EVERY)
def test_every_step_of_a_sampler_begins_from_the_state(name):
    """A callback's write into x reaches the step: x is the step's state there, not a point."""
    options = {"orders": (1, 2, 3, 4, 4, 4)} if name == "lms" else {}
    plan = sigma_plan(name, tuple(levels().tolist()), **options)
    assert len(plan.step_starts()) in (0, 1, plan.steps)


def test_churned_runs_and_dpm_fast_count_writes_too(theirs):
    for name in ("euler", "heun", "dpm_2"):
        given = {"s_churn": 3.0, "s_tmin": 0.3, "callback": lambda: into_x}
        check(both(theirs, name, start(), levels(), **given))
    torch.set_default_dtype(torch.float64)  # theirs makes its times of the default type
    try:
        for callback in (into_denoised, into_x):
            for calls in (2, 7, 9):
                given = (0.05, 12.0, calls)
                check(both(theirs, "dpm_fast", start(), *given, callback=lambda c=callback: c))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["euler", "heun", "euler_ancestral", "dpmpp_2m"])
def test_a_callback_may_change_the_arguments(theirs, name):
    def changed():
        arguments = {}

        def callback(info):
            arguments["shift"] = float(info["i"])

        return arguments, callback

    found = []
    for module in (ours, theirs):
        arguments, callback = changed()
        torch.manual_seed(4)
        how = {"extra_args": arguments, "callback": callback, "disable": True}
        made = getattr(module, f"sample_{name}")(model, start(), levels(), **how)
        found.append((made, torch.get_rng_state()))
    check(found)


def test_sigmas_written_during_a_run_are_told():
    sigmas = levels()

    def callback(info):
        sigmas[3] = 1.0

    with pytest.raises(ValueError, match="sigmas were written to before model call 2, but the st"):
        ours.sample_euler(model, start(), sigmas, callback=callback, disable=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_model_that_writes_into_its_input_is_told(dtype):
    def writes(x, sigma):
        return x.mul_(0.5) * 1.0

    with pytest.raises(ValueError, match="wrote into its input"):
        ours.sample_dpmpp_2m(writes, start(dtype), levels(dtype=dtype), disable=True)


@pytest.mark.filterwarnings("ignore:The maximum number of subdivisions")  # scipy's, of theirs
@pytest.mark.parametrize("sigmas", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", EVERY)
def test_dtypes_are_those_of_k_diffusion(theirs, name, dtype, sigmas):
    seen = {}
    for module in (ours, theirs):

        def look(x, sigma, module=module):
            seen.setdefault(module, []).append((x.dtype, sigma.dtype))
            return model(x, sigma)

        how = {"noise_sampler": noise(start(dtype))} if name in SDE else {}
        torch.manual_seed(1)
        given = levels(12.0, 3.0, 0.7, 0.0, dtype=sigmas)
        made = getattr(module, f"sample_{name}")(look, start(dtype), given, disable=True, **how)
        seen[module].append(made.dtype)
    assert seen[ours] == seen[theirs]


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_2m_sde"])
def test_answers_of_a_wider_dtype_widen_the_samples(theirs, name, wide):
    x = start(torch.float16)
    found = []
    for module in (ours, theirs):
        how = {"noise_sampler": noise(x)} if name in SDE else {}
        given = (lambda x, s: model(x.to(wide), s.to(wide)), x, levels(dtype=torch.float16))
        found.append(getattr(module, f"sample_{name}")(*given, disable=True, **how))
    assert found[0].dtype == found[1].dtype == wide
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=0.05)


HANDED = [
    ("euler", (12.0, 3.0, 3.0, 0.5, 0.0), {}),
    ("heun", (0.05, 0.5, 3.0, 12.0), {}),
    ("dpmpp_2m", (0.05, 0.5, 3.0, 12.0), {}),
    ("lms", (0.05, 0.5, 3.0, 12.0), {}),
    ("lms", (12.0, 5.0, 3.0, 2.0, 1.0, 0.5), {"order": 1}),
    ("dpmpp_2m_sde", (12.0, 3.0, 0.0, 0.0), {}),
    ("euler_ancestral", (12.0, 3.0, 0.5, 0.0), {"eta": 1.7}),
    ("euler", (12.0, 3.0, 0.5, 0.0), {"s_churn": -1.0}),
    ("euler", (12.0, 3.0, 0.5, 0.0), {"s_churn": 2.0, "s_noise": -1.0}),
    ("dpm_2_ancestral", (80.0, 0.0016), {}),
]


@pytest.mark.parametrize(("name", "sigmas", "options"), HANDED)
def test_what_has_no_plan_is_k_diffusions_own(theirs, name, sigmas, options, monkeypatch):
    monkeypatch.setattr(handing, "_said", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dtype = torch.float32 if sigmas[0] == 80.0 else torch.float64
        found = both(theirs, name, start(dtype), levels(*sigmas, dtype=dtype), **options)
        both(theirs, name, start(dtype), levels(*sigmas, dtype=dtype), **options)  # said once
    check(found, LIMIT[dtype])
    if name == "lms" and options:
        assert not caught  # order 1 at any falling levels is a plan
        return
    assert [w.category for w in caught] == [HandedOverWarning]
    assert caught[0].filename == __file__
    assert f"k-diffusion's own sample_{name} does this" in str(caught[0].message)


def test_dpm_fast_with_noise_and_backwards_is_k_diffusions_own(theirs, monkeypatch):
    monkeypatch.setattr(handing, "_said", set())
    with pytest.warns(HandedOverWarning, match="eta is 1.0, but there is a plan for 0 alone"):
        check(both(theirs, "dpm_fast", start(), 0.05, 12.0, 9, eta=1.0))
    with pytest.warns(HandedOverWarning, match="sigma_min = 3 is not below sigma_max = 0.5"):
        check(both(theirs, "dpm_fast", start(), 3.0, 0.5, 4))


def test_samples_of_k_diffusion_that_are_not_finite_are_told(theirs):
    said = "k-diffusion's own sample_euler did this, but its samples are not finite"
    with warnings.catch_warnings(), pytest.raises(FloatingPointError, match=said):
        warnings.simplefilter("ignore", HandedOverWarning)
        ours.sample_euler(model, start(), levels(3.0, 1.0, 0.0, 0.0), disable=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {}),
        ("heun", {"s_churn": 2.0, "s_tmin": 100.0}),
        ("dpm_2", {"s_churn": 2.0, "s_tmin": 1.0, "s_tmax": 3.0}),
        ("euler_ancestral", {"eta": 0.0}),
        ("dpm_2_ancestral", {"s_noise": 0.0}),
        ("dpmpp_2s_ancestral", {"eta": 0.0}),
        ("dpmpp_2m_sde", {"eta": 0.0}),
    ],
)
def test_the_generator_stands_where_k_diffusions_stands(theirs, name, options):
    check(both(theirs, name, start(), levels(), **options))


@pytest.mark.parametrize("n", [1, 2, 6])
def test_noise_levels_down_to_zero_up_and_of_another_default_dtype(theirs, n):
    for given in ((0.0, 14.6), (14.6, 0.03)):
        wanted = theirs.get_sigmas_karras(n, *given)
        torch.testing.assert_close(ours.get_sigmas_karras(n, *given), wanted, rtol=1e-5, atol=1e-6)
    torch.set_default_dtype(torch.float64)
    try:
        for name in ("karras", "exponential", "polyexponential"):
            wanted = getattr(theirs, f"get_sigmas_{name}")(n, 0.03, 14.6)
            got = getattr(ours, f"get_sigmas_{name}")(n, 0.03, 14.6)
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    finally:
        torch.set_default_dtype(torch.float32)
    for name in ("exponential", "polyexponential"):
        with pytest.raises(ValueError, match=f"get_sigmas_{name}: sigma_min is 0, but a positive"):
            getattr(ours, f"get_sigmas_{name}")(n, 0.0, 14.6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigmas": None}, "sigmas is a NoneType, but numbers"),
        ({"sigmas": torch.ones(3, dtype=torch.complex64)}, "sigmas is torch.complex64"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, r"x is torch.int64 \[2, 3\], but a tensor"),
        ({"x": torch.ones(())}, r"x is torch.float32 \[\], but a tensor"),
        ({"x": [1.0]}, "x is list, but a tensor"),
    ],
)
def test_what_is_no_state_and_no_sigmas(given, message):
    call = {"model": model, "x": start(), "sigmas": levels()} | given
    with pytest.raises(ValueError, match=f"sample_dpmpp_2m: {message}"):
        ours.sample_dpmpp_2m(**call)


def test_sigmas_may_be_numbers():
    wanted = ours.sample_heun(model, start(), levels(12.0, 3.0, 0.0), disable=True)
    assert torch.equal(ours.sample_heun(model, start(), [12.0, 3.0, 0.0], disable=True), wanted)


@pytest.mark.slow
def test_random_calls_differ_nowhere_in_silence(theirs):
    """The first cases of bench/attack/k_diffusion_samplers.py."""
    path = Path(__file__).parents[2] / "bench" / "attack" / "k_diffusion_samplers.py"
    spec = importlib.util.spec_from_file_location("k_diffusion_samplers", path)
    attack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(attack)
    found = {number: attack.verdict(theirs, number) for number in range(150)}
    bad = {n: what for n, what in found.items() if what[0] in ("silent", "crash")}
    assert not bad
    assert sum(kind.startswith("equal") for kind, _ in found.values()) > 100
