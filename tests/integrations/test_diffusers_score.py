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


def karras(scheduler, steps, dtype):
    """The loop of the pipeline; returns every tensor."""
    scheduler.set_timesteps(steps)
    generator, x, seen = torch.Generator().manual_seed(1), start(100.0, dtype), []
    for t in scheduler.timesteps:
        sigma = scheduler.schedule[t]
        below = scheduler.schedule[t - 1] if t > 0 else 0
        hat, level = scheduler.add_noise_to_input(x, sigma, generator=generator)
        out = network(hat / (1 + float(level)), 0).to(dtype)
        made = scheduler.step(out, level, below, hat)
        seen += [hat, *made.values()]
        if below != 0:
            out = network(made.prev_sample / (1 + float(below)), 0).to(dtype)
            rest = (out, level, below, hat, made.prev_sample, made.derivative)
            made = scheduler.step_correct(*rest)
            seen += made.values()
        x = made.prev_sample
    return seen


def ve(scheduler, steps, dtype):
    scheduler.set_timesteps(steps)
    scheduler.set_sigmas(steps)
    generator, x, seen = torch.Generator().manual_seed(1), start(1348.0, dtype), []
    for i, t in enumerate(scheduler.timesteps):
        out = -network(x / (1 + scheduler.sigmas[i]), 0).to(dtype) / (1 + scheduler.sigmas[i])
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
def test_the_same_steps_of_karras(steps, dtype):
    # Step by step from the same tensors: a step takes the level from 10,000 to 0.0004, say, and
    # what is left has the rounding of what was taken off. diffusers finds the slope by adding the
    # output to the sample and taking the sample off again, so it is rounded as the sample is.
    original, ours = pair("KarrasVeScheduler")
    eps = 8 * torch.finfo(torch.float16 if dtype == torch.float16 else torch.float32).eps
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    for scheduler in (original, ours):
        scheduler.set_timesteps(steps)
    x = start(100.0, dtype)

    def check(got, want, size, level):
        assert [*got] == [*want]
        for name in want:
            bound = eps * size / (float(level) if name == "derivative" else 1.0)
            assert got[name].dtype == want[name].dtype
            assert (got[name] - want[name]).abs().max() <= bound, name

    for t in original.timesteps:
        sigma = original.schedule[t]
        below = original.schedule[t - 1] if t > 0 else 0
        (hat, level), (mine, same) = (
            scheduler.add_noise_to_input(x, sigma, generator=generator)
            for scheduler, generator in zip((original, ours), generators, strict=True)
        )
        assert level == same
        assert mine.dtype == hat.dtype
        assert difference(mine, hat) <= eps
        out = network(hat / (1 + level), 0).to(dtype)
        want, got = (s.step(out, level, below, hat) for s in (original, ours))
        size = hat.abs().max() + level * out.abs().max()
        check(got, want, size, level)
        alone = ours.step(out, level, below, hat, return_dict=False)
        assert torch.equal(alone[0], got.prev_sample)
        assert torch.equal(alone[1], got.derivative)
        if below != 0:
            again = network(want.prev_sample / (1 + below), 0).to(dtype)
            rest = (again, level, below, hat, want.prev_sample, want.derivative)
            want, got = (s.step_correct(*rest) for s in (original, ours))
            check(got, want, size * (1 + level / below), level)
        x = want.prev_sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("steps", [2, 7, 30])
@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "ScoreSdeVpScheduler"])
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
        before = LOOPS[name](scheduler, 30, torch.float32)
        for option in ("s_churn", "snr", "beta_max"):
            if hasattr(scheduler.config, option):
                setattr(scheduler.config, option, 0.05 * getattr(scheduler.config, option))
        if name == "ScoreSdeVeScheduler":
            scheduler.discrete_sigmas = scheduler.discrete_sigmas * 0.8
        results.append(LOOPS[name](scheduler, 30, torch.float32)[-1])
        assert difference(results[-1], before[-1]) > 2e-3
    assert difference(*results) <= 1e-4


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
