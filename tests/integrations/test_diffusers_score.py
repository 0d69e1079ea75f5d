"""Drop-ins of schedulers without a list of steps: Karras VE and the score SDEs."""

import inspect
import warnings

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import schedulers as originals  # noqa: E402
from diffusers_loop import difference, network  # noqa: E402

from diffast.integrations.diffusers import DiffastScheduler  # noqa: E402
from diffast.integrations.handed_over import HandedOverWarning  # noqa: E402

SHAPE = (2, 3, 8, 8)


def pair(name, noise="generator", **config):
    original = getattr(originals, name)(**config)
    return original, DiffastScheduler.from_scheduler(original, noise=noise)


def start(scale, dtype=torch.float32):
    return (scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))).to(dtype)


def karras(scheduler, steps, dtype, forms=True):
    """The loop of the pipeline; returns every tensor."""
    scheduler.set_timesteps(steps)
    generator, x, seen = torch.Generator().manual_seed(1), start(100.0, dtype), []
    for t in scheduler.timesteps:
        sigma = scheduler.schedule[t]
        below = scheduler.schedule[t - 1] if t > 0 else 0
        hat, level = scheduler.add_noise_to_input(x, sigma, generator=generator)
        out = network(hat, level).to(dtype)
        made = scheduler.step(out, level, below, hat)
        seen += [hat, *made.values()]
        if below != 0:
            out = network(made.prev_sample, below).to(dtype)
            rest = (out, level, below, hat, made.prev_sample, made.derivative)
            made = scheduler.step_correct(*rest)
            seen += made.values()
            seen += scheduler.step_correct(*rest, return_dict=False)
        x = made.prev_sample
    return seen


def ve(scheduler, steps, dtype):
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    generator, x, seen = torch.Generator().manual_seed(1), start(1348.0, dtype), []
    for i, t in enumerate(scheduler.timesteps):
        out = network(x, scheduler.sigmas[i]).to(dtype) / 40.0
        x = scheduler.step_correct(out, x, generator=generator).prev_sample.to(dtype)
        made = scheduler.step_pred(out, t, x, generator=generator)
        seen += [x, *made.values()]
        x = made.prev_sample.to(dtype)
    return seen


def vp(scheduler, steps, dtype):
    scheduler.set_timesteps(steps)
    generator, x, seen = torch.Generator().manual_seed(1), start(1.0, dtype), []
    for t in scheduler.timesteps:
        x, mean = scheduler.step_pred(network(x, t).to(dtype), x, t, generator=generator)
        seen += [x, mean]
        x = x.to(dtype)
    return seen


LOOPS = {"KarrasVeScheduler": karras, "ScoreSdeVeScheduler": ve, "ScoreSdeVpScheduler": vp}
each_kind = pytest.mark.parametrize("name", LOOPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [2, 7, 30])
@each_kind
def test_the_same_tensors(name, steps, dtype):
    original, ours = pair(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HandedOverWarning)
        got = LOOPS[name](ours, steps, dtype)
    want = LOOPS[name](original, steps, dtype)
    assert len(got) == len(want)
    bound = 2e-5 if dtype != torch.float16 else 4e-3
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        if torch.isfinite(w).all():
            assert difference(g, w) <= bound


@each_kind
def test_settings_are_read_at_each_step(name):
    original, ours = pair(name)
    results = []
    for scheduler in (original, ours):
        LOOPS[name](scheduler, 4, torch.float32)
        for option in ("s_churn", "snr", "beta_max"):
            if hasattr(scheduler.config, option):
                setattr(scheduler.config, option, 0.7 * getattr(scheduler.config, option))
        if name == "ScoreSdeVeScheduler":
            scheduler.discrete_sigmas = scheduler.discrete_sigmas * 0.8
        results.append(LOOPS[name](scheduler, 4, torch.float32))
    for g, w in zip(*results, strict=True):
        assert difference(g, w) <= 2e-5


@each_kind
def test_noise_by_counter(name):
    original, ours = pair(name, "counter")
    one, again = (LOOPS[name](ours, 6, torch.float32)[-1] for _ in range(2))
    assert torch.equal(one, again)
    theirs = LOOPS[name](original, 6, torch.float32)[-1]
    assert not torch.equal(one, theirs)
    assert one.std() / theirs.std() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "ScoreSdeVpScheduler"])
def test_samples_with_times_of_their_own_are_the_original_s(name):
    original, ours = pair(name)
    results = []
    for scheduler in (original, ours):
        scheduler.set_timesteps(5)
        x, t = start(1.0), torch.tensor([0.9, 0.4])
        generator = torch.Generator().manual_seed(2)
        arguments = (x, t, x) if name == "ScoreSdeVeScheduler" else (x, x, t)
        warned = pytest.warns(HandedOverWarning, match="times of their own")
        if scheduler is original:
            result = scheduler.step_pred(*arguments, generator=generator)
        else:
            with warned:
                result = scheduler.step_pred(*arguments, generator=generator)
        results.append([*(result.values() if hasattr(result, "values") else result)])
    for g, w in zip(*results, strict=True):
        assert torch.equal(g, w)


@each_kind
def test_it_is_saved_and_takes_the_original_s_arguments(name, tmp_path):
    original, ours = pair(name)
    assert isinstance(ours, type(original))
    ours.save_pretrained(tmp_path)
    again = DiffastScheduler.from_config(type(original).load_config(tmp_path))
    assert type(again) is type(ours)
    for method in ("step", "step_pred", "step_correct", "add_noise_to_input", "set_timesteps"):
        if hasattr(original, method):
            theirs = inspect.signature(getattr(original, method)).parameters
            assert [*inspect.signature(getattr(ours, method)).parameters] == [*theirs]


def test_gradients_go_through_a_step():
    original, ours = pair("ScoreSdeVpScheduler")
    found = []
    for scheduler in (original, ours):
        scheduler.set_timesteps(10)
        x, t = start(1.0).requires_grad_(), scheduler.timesteps[4]
        generator = torch.Generator().manual_seed(2)
        scheduler.step_pred(network(x, t), x, t, generator=generator)[0].sum().backward()
        found.append(x.grad)
    assert difference(found[1], found[0]) <= 1e-5
