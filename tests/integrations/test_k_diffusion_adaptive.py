"""k-diffusion's own sample_dpm_adaptive against the drop-in: the same steps for a batch of one."""

import numpy as np
import pytest
import torch
from test_k_diffusion import model, theirs

from diffast import ops
from diffast.integrations import k_diffusion as ours
from diffast.integrations.k_diffusion import adaptive as k_diffusion_adaptive
from diffast.integrations.k_diffusion import handing

reference = theirs  # the fixture with k_diffusion.sampling alone
LOW, HIGH = 0.05, 12.0
OPTIONS = {
    "default": {},
    "order 2": {"order": 2},
    "tight": {"rtol": 1e-3, "atol": 1e-4},
    "tight, order 2": {"rtol": 5e-3, "order": 2},
    "PID": {"pcoeff": 0.4, "icoeff": 0.3, "dcoeff": 0.1},
    "PI, order 2": {"pcoeff": 0.2, "icoeff": 0.6, "order": 2, "rtol": 0.02},
    "strict": {"accept_safety": 0.9, "h_init": 0.4},
    "no rtol": {"rtol": 0.0, "atol": 0.02},
    "h_init < 0": {"h_init": -0.3},
}
each = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
COUNTS = ("steps", "nfe", "n_accept", "n_reject")


@pytest.fixture
def float64():
    """k-diffusion makes its times of torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def start(seed=3, batch=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (HIGH * torch.randn((batch, 2, 4), dtype=torch.float64, generator=generator)).to(dtype)


class Counted:
    """The model of the other tests, which counts its calls and what it is given."""

    def __init__(self):
        self.calls, self.sigmas = 0, []

    def __call__(self, x, sigma, shift=0.0):
        self.calls += 1
        self.sigmas.append(sigma.clone())
        assert sigma.shape == (len(x),)
        assert sigma.dtype == x.dtype
        return model(x, sigma, shift)


def both(reference, x, low=LOW, high=HIGH, noise_sampler=None, extra_args=None, **options):
    """Returns (samples, info, callback's dictionaries, model) of theirs and of ours."""
    found = []
    for module, sampler in ((reference, noise_sampler), (ours, None)):
        told, network = [], Counted()
        if module is reference and sampler is not None:
            sampler = sampler(told)
        out, info = module.sample_dpm_adaptive(
            network,
            x,
            low,
            high,
            callback=told.append,
            disable=True,
            return_info=True,
            noise_sampler=sampler,
            extra_args={"shift": 0.4} if extra_args is None else extra_args[module is ours],
            **options,
        )
        found.append((out, info, told, network))
    return found


@each
@pytest.mark.parametrize("seed", [3, 5, 8, 10])
def test_a_batch_of_one_takes_their_steps(reference, float64, options, seed):
    one, other = both(reference, start(seed), **options)
    assert other[0].dtype == one[0].dtype
    assert (other[0] - one[0]).abs().max() < 1e-9
    assert other[1] == one[1]
    assert len(one[2]) == len(other[2]) == one[1]["steps"]
    for a, b in zip(one[2], other[2], strict=True):
        assert set(a) == set(b)
        assert [a[name] for name in ("i", *COUNTS)] == [b[name] for name in ("i", *COUNTS)]
        # the first error is 1e-6 and smaller, and its rounding goes into the next step
        for name in ("t", "t_up", "sigma", "sigma_hat", "error"):
            assert a[name].shape == b[name].shape == ()
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-7, abs=1e-9), name
        for name in ("x", "denoised"):
            assert (a[name] - b[name]).abs().max() < 1e-7, name
        assert b["h"] == pytest.approx(a["h"], rel=1e-6)


def test_some_of_these_reject(reference, float64):
    rejected = {n: both(reference, start(), **o)[1][1]["n_reject"] for n, o in OPTIONS.items()}
    assert rejected["order 2"] > 0
    assert rejected["tight"] > 0
    assert both(reference, start(8), **OPTIONS["PID"])[1][1]["n_reject"] > 0


@each
def test_single_precision(reference, options):
    # the first error at h_init = 0.05 is float32's rounding, and so is the step after it, which
    # is told by `test_rounding_of_the_first_error`
    options = {"h_init": 0.5} | options
    one, other = both(reference, start(dtype=torch.float32), **options)
    assert other[0].dtype == torch.float32
    assert (other[0] - one[0]).abs().max() < 1e-4
    assert other[1] == one[1]


def test_rounding_of_the_first_error(reference):
    """With all defaults in float32 steps part in the fourth digit, samples by less than rtol."""
    one, other = both(reference, start(dtype=torch.float32))
    assert float(one[2][0]["error"]) < 1e-5
    assert other[1] == one[1]
    assert (other[0] - one[0]).abs().max() < 1e-3
    tight = both(reference, start(dtype=torch.float32), rtol=1e-3, atol=1e-4)
    assert (tight[0][0] - tight[1][0]).abs().max() < 1e-5


def test_calls_of_the_model(reference, float64):
    one, other = both(reference, start(), order=2)
    assert one[3].calls == one[1]["nfe"]
    # the state is not asked about again after a rejection
    assert other[3].calls == other[1]["nfe"] - other[1]["n_reject"]
    assert other[1]["n_reject"] > 0
    unique = {round(float(s[0]), 12) for s in one[3].sigmas}
    assert unique == {round(float(s[0]), 12) for s in other[3].sigmas}


@pytest.mark.parametrize(("h_init", "seed"), [(3.0, 5), (3.0, 10), (2.0, 3), (0.3, 8)])
def test_a_rejected_last_step(reference, float64, h_init, seed):
    """k-diffusion cuts the last step short for the attempt alone, and may try the same again."""
    one, other = both(reference, start(seed), h_init=h_init)
    end, steps = -np.log(LOW), [0.0, *(float(info["h"]) for info in one[2])]
    cut = [
        float(before["t"]) + h > end and float(info["t"]) < end
        for before, info, h in zip(one[2], one[2][1:], steps[1:], strict=False)
    ]
    assert any(cut)
    assert other[1] == one[1]
    assert (other[0] - one[0]).abs().max() < 1e-9
    for a, b in zip(one[2], other[2], strict=True):
        assert b["h"] == pytest.approx(a["h"], rel=1e-6)
        assert float(b["t"]) == pytest.approx(float(a["t"]), rel=1e-8)


# Noise.


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.5, 1.0), (0.7, 0.9)])
def test_given_our_noise_theirs_is_the_same(reference, float64, order, eta, s_noise):
    """The noise of attempt n is that of the counter (seed, sample 0, n)."""

    def sampler(told):
        def draw(sigma, sigma_next):
            return ops.normal((1, 2, 4), seed=77, stage=len(told), dtype=torch.float64)

        return draw

    arguments = ({"shift": 0.4}, {"shift": 0.4, "seed": 77})
    # the model is called with all of extra_args
    network = Counted.__call__
    Counted.__call__ = lambda self, x, sigma, shift=0.0, seed=0: network(self, x, sigma, shift)
    try:
        options = {"order": order, "eta": eta, "s_noise": s_noise, "rtol": 0.03}
        one, other = both(
            reference, start(), noise_sampler=sampler, extra_args=arguments, **options
        )
    finally:
        Counted.__call__ = network
    assert other[1] == one[1]
    assert (other[0] - one[0]).abs().max() < 1e-9
    assert one[1]["n_accept"] > 5


def gaussian(x, sigma, variance=0.25, **extra):
    sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
    return variance / (variance + sigma**2) * x


@pytest.mark.parametrize(("eta", "order"), [(1.0, 2), (1.0, 3), (0.4, 3)])
def test_law_with_noise(eta, order):
    """2,000 samples of 16 numbers of Gaussian data: the variance at sigma_min, to 4 s.e. and 3 %.

    The errors that the steps are chosen by leave some of the noise's own bias, which is what the
    3 % are for; k-diffusion has the same.
    """
    x = 80.0 * torch.randn((2000, 16), generator=torch.Generator().manual_seed(0))
    out = ours.sample_dpm_adaptive(
        gaussian, x, 0.02, 80.0, {"seed": 5}, disable=True, eta=eta, order=order, rtol=0.005
    )
    wanted = 0.25 + 0.02**2
    assert abs(out.var() / wanted - 1) < 4 * np.sqrt(2 / out.numel()) + 0.03
    assert abs(out.mean()) < 4 * np.sqrt(wanted / out.numel())


def test_seeds():
    def run(extra, batch=2, eta=1.0):
        return ours.sample_dpm_adaptive(
            gaussian, start(batch=batch), LOW, HIGH, extra, disable=True, eta=eta
        )

    assert torch.equal(run({"seed": 1}), run({"seed": 1}))
    assert not torch.equal(run({"seed": 1}), run({"seed": 2}))
    torch.manual_seed(0)
    one, two = run(None), run(None)
    assert not torch.equal(one, two)
    torch.manual_seed(0)
    assert torch.equal(run(None), one)
    state = torch.get_rng_state()
    run(None, eta=0.0)
    assert torch.equal(torch.get_rng_state(), state)


# Batches.


def test_every_sample_is_that_of_a_batch_of_one(float64):
    x = start(batch=5)
    x[3] *= 0.05  # one that needs other steps
    whole, info = ours.sample_dpm_adaptive(model, x, LOW, HIGH, disable=True, return_info=True)
    alone = [
        ours.sample_dpm_adaptive(model, x[b : b + 1], LOW, HIGH, disable=True, return_info=True)
        for b in range(5)
    ]
    for b in range(5):
        assert (whole[b] - alone[b][0][0]).abs().max() < 1e-12
    assert info["steps"] == max(one["steps"] for _, one in alone)
    assert len({one["steps"] for _, one in alone}) > 1


def test_the_model_sees_the_whole_batch_throughout():
    rows = []

    def look(x, sigma, label):
        rows.append((len(x), len(sigma), len(label)))
        return model(x, sigma)

    x = start(batch=4, dtype=torch.float32)
    x[0] *= 0.02
    ours.sample_dpm_adaptive(look, x, LOW, HIGH, {"label": torch.zeros(4)}, disable=True)
    assert set(rows) == {(4, 4, 4)}


def test_the_callback_of_a_batch():
    told, x = [], start(batch=4)
    x[0] *= 0.02
    out, info = ours.sample_dpm_adaptive(
        model, x, LOW, HIGH, callback=told.append, disable=True, return_info=True
    )
    assert [info["i"] for info in told] == list(range(len(told)))
    sigmas = [float(info["sigma"]) for info in told]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == pytest.approx(LOW)
    assert torch.equal(told[-1]["x"], out)
    assert {info["x"].shape for info in told} == {x.shape} == {t["denoised"].shape for t in told}
    assert told[-1]["steps"] == info["steps"]

    def spoil(info):
        info["x"].fill_(7.0)

    with pytest.raises(ValueError, match="callback wrote into x after round 1, but the next step"):
        ours.sample_dpm_adaptive(model, x, LOW, HIGH, callback=spoil, disable=True)

    def unread(info):
        info["denoised"].fill_(7.0)

    again = ours.sample_dpm_adaptive(model, x, LOW, HIGH, callback=unread, disable=True)
    assert torch.equal(again, out)

    class Stop(Exception):
        pass

    def stop(info):
        raise Stop

    with pytest.raises(Stop):
        ours.sample_dpm_adaptive(model, x, LOW, HIGH, callback=stop, disable=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    seen = set()

    def look(x, sigma):
        seen.update([x.dtype, sigma.dtype])
        return model(x.float(), sigma.float()).to(dtype)

    x = start(dtype=torch.float32)
    out = ours.sample_dpm_adaptive(look, x.to(dtype), LOW, HIGH, disable=True)
    assert seen == {dtype} == {out.dtype}
    wanted = ours.sample_dpm_adaptive(model, x.to(dtype).float(), LOW, HIGH, disable=True)
    assert (out.float() - wanted).abs().max() < 0.05


def test_the_model_may_use_gradients():
    def guided(x, sigma):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad((model(x, sigma) ** 2).sum(), x)
        return model(x.detach(), sigma) - 0.01 * slope

    out = ours.sample_dpm_adaptive(guided, start(batch=2), LOW, HIGH, disable=True)
    assert out.isfinite().all()
    assert not out.requires_grad


def test_what_is_given_is_not_changed_and_nothing_to_do():
    x = start(batch=2)
    before = x.clone()
    out = ours.sample_dpm_adaptive(model, x, LOW, HIGH, disable=True)
    assert torch.equal(x, before)
    assert isinstance(out, torch.Tensor)  # without return_info
    out, info = ours.sample_dpm_adaptive(model, x[:0], LOW, HIGH, disable=True, return_info=True)
    assert out.shape == (0, 2, 4)
    assert info == {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}


def test_sigmas_may_be_tensors():
    x = start(batch=2)
    one = ours.sample_dpm_adaptive(model, x, torch.tensor(LOW), torch.tensor(HIGH), disable=True)
    low, high = float(torch.tensor(LOW)), HIGH
    assert torch.equal(one, ours.sample_dpm_adaptive(model, x, low, high, disable=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 4}, "order = 4, but it must be 2 or 3"),
        ({"eta": 1.5}, r"eta is 1.5, but it lies in \[0, 1\] here, which only k-diffusion's own"),
        ({"eta": 0.5, "noise_sampler": lambda a, b: 0}, "eta is 0.5 and a noise_sampler is given"),
        ({"sigma_min": 0.0}, "sigma_min is 0, but a positive noise level is needed"),
        ({"sigma_min": 20.0}, "sigma_min = 20 is not below sigma_max = 12"),
        ({"rtol": 0.0, "atol": 0.0}, "rtol = 0 and atol = 0"),
        ({"h_init": 0.0}, "step = 0.0, but it must be above 0"),
    ],
)
def test_refusals(options, message, monkeypatch):
    monkeypatch.setattr(handing, "_original", lambda: (None, "ImportError: not there"))
    given = {"sigma_min": LOW, "sigma_max": HIGH} | options
    with pytest.raises(ValueError, match=message):
        ours.sample_dpm_adaptive(model, start(), disable=True, **given)


def test_a_noise_sampler_without_noise_is_not_asked():
    def never(sigma, sigma_next):
        raise AssertionError

    x = start()
    one = ours.sample_dpm_adaptive(model, x, LOW, HIGH, disable=True, noise_sampler=never)
    assert torch.equal(one, ours.sample_dpm_adaptive(model, x, LOW, HIGH, disable=True))


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
@pytest.mark.parametrize("below", [20.0, 1.0])
def test_values_that_are_not_finite(fault, below):
    def faulty(x, sigma):
        out = model(x, sigma)
        out[1] = torch.where(sigma[1] < below, fault, out[1])
        return out

    with pytest.raises(FloatingPointError, match="sample_dpm_adaptive: sample 1: not finite"):
        ours.sample_dpm_adaptive(faulty, start(batch=3), LOW, HIGH, disable=True)


def test_a_model_that_no_step_is_small_enough_for(monkeypatch):
    def noisy(x, sigma):
        return torch.randn_like(x)

    monkeypatch.setattr(k_diffusion_adaptive, "MOST_CALLS", 500)
    with pytest.raises(RuntimeError, match="sample_dpm_adaptive: sample 0: too many calls"):
        ours.sample_dpm_adaptive(noisy, start(), LOW, HIGH, disable=True, rtol=1e-9, atol=1e-9)
