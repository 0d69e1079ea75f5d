"""The drop-in for k-diffusion's BrownianTreeNoiseSampler, in k-diffusion's samplers and in ours."""

import inspect

import pytest
import torch
from op_cases import assert_same_bits
from test_k_diffusion import model, sigmas_of, start, theirs  # noqa: F401

from diffast.integrations import k_diffusion as ours
from diffast.integrations.k_diffusion import BrownianTreeNoiseSampler

SDE = ("sample_dpmpp_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde")
ANCESTRAL = ("sample_euler_ancestral", "sample_dpm_2_ancestral", "sample_dpmpp_2s_ancestral")


def levels(*values):
    return [torch.tensor(value) for value in values]


def test_the_signature_is_k_diffusion_s_and_one_of_comfyui_s(theirs):  # noqa: F811
    def names(function):
        return list(inspect.signature(function).parameters)

    there = names(theirs.BrownianTreeNoiseSampler)
    assert names(BrownianTreeNoiseSampler) == [*there, "cpu"]
    defaults = inspect.signature(BrownianTreeNoiseSampler).parameters
    assert defaults["seed"].default is None and defaults["transform"].default(3) == 3


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))
def test_noise_is_like_x_and_does_not_depend_on_the_order_of_questions(dtype):
    x = torch.zeros(3, 2, 4, dtype=dtype)
    asked = levels(12.0, 5.0, 1.0, 0.3)
    sampler = BrownianTreeNoiseSampler(x, 0.1, 12.0, seed=4)
    forward = [sampler(a, b) for a, b in zip(asked[:-1], asked[1:], strict=True)]
    for z in forward:
        assert z.shape == x.shape and z.dtype == dtype
    back = BrownianTreeNoiseSampler(x, 0.1, 12.0, seed=4, transform=lambda s: -s.log(), cpu=True)
    for i in (2, 1, 0):
        assert_same_bits(back(asked[i], asked[i + 1]), forward[i])
        assert_same_bits(back(asked[i + 1], asked[i]), -forward[i])
        assert_same_bits(back(float(asked[i]), float(asked[i + 1])), forward[i])
    if dtype != torch.float64:
        single = BrownianTreeNoiseSampler(x.float(), 0.1, 12.0, seed=4)(*asked[:2])
        assert_same_bits(single.to(dtype), forward[0])
    assert not torch.equal(BrownianTreeNoiseSampler(x, 0.1, 12.0, seed=5)(*asked[:2]), forward[0])


def test_seeds_of_samples_and_of_torch():
    x, (a, b) = torch.zeros(3, 2, 4), levels(12.0, 5.0)
    for seeds in ([7, 8, 7], (7, 8, 7), torch.tensor([7, 8, 7])):
        many = BrownianTreeNoiseSampler(x, 0.1, 12.0, seed=seeds)(a, b)
        assert_same_bits(many[0], many[2])
        assert not torch.equal(many[0], many[1])
        one = BrownianTreeNoiseSampler(x[:1], 0.1, 12.0, seed=[8])(a, b)
        assert_same_bits(many[1:2], one)
    one = BrownianTreeNoiseSampler(x, 0.1, 12.0, seed=7)(a, b)
    assert_same_bits(BrownianTreeNoiseSampler(x[:2], 0.1, 12.0, seed=7)(a, b), one[:2])
    assert not torch.equal(one[0], one[2])
    torch.manual_seed(1)
    first = BrownianTreeNoiseSampler(x, 0.1, 12.0)(a, b)
    assert not torch.equal(BrownianTreeNoiseSampler(x, 0.1, 12.0)(a, b), first)
    torch.manual_seed(1)
    assert_same_bits(BrownianTreeNoiseSampler(x, 0.1, 12.0)(a, b), first)
    with pytest.raises(ValueError, match="2 seeds and 3 ids for 3 samples"):
        BrownianTreeNoiseSampler(x, 0.1, 12.0, seed=[1, 2])


def test_no_noise_falls_where_there_is_none():
    sampler = BrownianTreeNoiseSampler(torch.zeros(1, 4), 0.1, 12.0, seed=1)
    with pytest.raises(ValueError, match="sigma = 0 at t = 0"):
        sampler(*levels(1.0, 0.0))
    with pytest.raises(ValueError, match="t = 1 and t = 1 are one node"):
        sampler(*levels(1.0, 1.0))


@pytest.mark.parametrize("zero", (True, False))
@pytest.mark.parametrize("name", SDE + ANCESTRAL)
def test_k_diffusion_s_own_samplers_and_ours_take_it(theirs, name, zero):  # noqa: F811
    x, sigmas = start(torch.float32), sigmas_of(torch.float32, zero=zero)
    sampled = []
    for module in (theirs, ours):
        noise = BrownianTreeNoiseSampler(x, 0.05, 12.0, seed=3)
        sampled.append(getattr(module, name)(model, x, sigmas, noise_sampler=noise, disable=True))
    gap = (sampled[0] - sampled[1]).abs().max() / sampled[0].abs().max()
    assert gap < 1e-5


@pytest.mark.parametrize("name", SDE)
def test_ours_take_it_by_default(name):
    """The same paths, asked for in float64 and in float32: here to the same nodes."""
    x, sigmas = start(torch.float32), sigmas_of(torch.float32)
    noise = BrownianTreeNoiseSampler(x, 0.05, 12.0, seed=3)
    given = getattr(ours, name)(model, x, sigmas, noise_sampler=noise, disable=True)
    extra = {"extra_args": {"seed": 3}}

    def seeded(x, sigma, seed):
        return model(x, sigma)

    default = getattr(ours, name)(seeded, x, sigmas, disable=True, **extra)
    assert (given - default).abs().max() < 1e-5 * given.abs().max()


@pytest.mark.parametrize("module", ("theirs", "ours"))
@pytest.mark.parametrize("name", SDE)
def test_pictures_change_little_with_the_number_of_steps(theirs, module, name):  # noqa: F811
    sample = getattr(theirs if module == "theirs" else ours, name)
    x = 12.0 * torch.randn(64, 8, generator=torch.Generator().manual_seed(1))

    def end(steps, seed):
        noise = BrownianTreeNoiseSampler(x, 0.05, 12.0, seed=seed)
        sigmas = sigmas_of(torch.float32, steps)
        return sample(model, x, sigmas, noise_sampler=noise, disable=True)

    same = (end(40, 1) - end(80, 1)).abs().mean()
    other = (end(40, 1) - end(80, 2)).abs().mean()
    assert same < 0.15 * other, (same, other)
