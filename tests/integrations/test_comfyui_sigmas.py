"""Sigmas and options of any kind: a plan runs, or ComfyUI's own sampler, or a sentence says why."""

import sys
import types
import warnings

import comfy_runs
import pytest
import torch
from comfy_formulas import as_generator
from comfy_stand_in import Const, Eps
from test_comfyui_formulas import names_of, ours

from diffast.integrations.handed_over import HandedOverWarning


def own_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """ComfyUI's euler, as a stand-in for ComfyUI's own samplers."""
    for i in range(len(sigmas) - 1):
        d = model(x, sigmas[i].expand(len(x)).to(x.dtype), **extra_args)
        x = x + (x - d) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


@pytest.fixture
def with_original(comfy):
    """The stand-in of ComfyUI with own samplers of these names."""
    sampling = comfy.modules["comfy.k_diffusion.sampling"]
    for name in ("euler", "dpmpp_2m", "euler_ancestral", "lcm", "dpm_fast", "dpm_adaptive"):
        setattr(sampling, f"sample_{name}", own_euler)
    return comfy


@pytest.mark.parametrize("above", [1.0000001, 1.0000005])
def test_a_flows_first_sigma_may_be_above_1_by_rounding(comfy, above):
    levels = [above, 0.8, 0.5, 0.2, 0.0]
    sigmas = torch.tensor(levels, dtype=torch.float64)
    x = comfy_runs.start(levels)
    for name in names_of(comfy):
        model = comfy_runs.Model(Const())
        made = ours(comfy, name, model, x, sigmas)
        at_one = [min(level, 1.0) for level in levels]
        normal = as_generator(3, x.shape, torch.float64)
        wanted = comfy_runs.formula(name, model, x, at_one, normal, True)
        assert comfy_runs.relative(made, wanted) < 1e-5, name


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ([0.0, 0.3, 0.6, 1.0], "sigmas.0. = 0 and sigmas.1. = 0.3 are rising"),
        ([0.1, 0.3, 0.6, 1.0], "rising"),
        ([1.0, 0.5, 0.5, 0.0], "equal"),
        ([1.0, 0.5, 0.0, 0.0], "equal"),
    ],
)
def test_sigmas_that_no_plan_has_run_as_comfyuis_own_sampler(with_original, levels, why):
    sigmas, model = torch.tensor(levels), comfy_runs.Model(Eps())
    x = comfy_runs.start([1.0], dtype=torch.float32)
    if levels[0] == 0.0 or levels[-2:] == [0.0, 0.0]:  # ComfyUI divides by sigma
        with pytest.warns(HandedOverWarning), pytest.raises(FloatingPointError, match="gave inf"):
            ours(with_original, "euler", model, x, sigmas)
        return
    with pytest.warns(HandedOverWarning, match=f"sample_diffast_euler: .*{why}.*sampler euler ran"):
        made = ours(with_original, "euler", model, x, sigmas)
    extra_args = {"model_options": {}, "seed": 3}
    wanted = own_euler(comfy_runs.Model(Eps()), x, sigmas, extra_args)
    torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def test_a_flows_sigma_far_above_1_is_comfyuis_own_where_the_log_snr_is_asked_for(with_original):
    sigmas = torch.tensor([1.5, 0.5, 0.0])
    x = comfy_runs.start([1.0], dtype=torch.float32)
    with pytest.warns(HandedOverWarning, match="1.5 is above 1, a flow model's noisiest level"):
        ours(with_original, "lcm", comfy_runs.Model(Const()), x, sigmas)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # steps of sigma have no such bound
        made = ours(with_original, "euler", comfy_runs.Model(Const()), x, sigmas)
    model = comfy_runs.Model(Const())
    wanted = comfy_runs.formula("euler", model, x, sigmas, None, True)
    assert comfy_runs.relative(made, wanted) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sigmas_without_a_value_are_refused_in_a_sentence(comfy, bad):
    x = comfy_runs.start([1.0])
    with pytest.raises(ValueError, match=r"sample_diffast_heun: sigmas\[1\] = (nan|inf), but"):
        ours(comfy, "heun", comfy_runs.Model(Eps()), x, torch.tensor([1.0, bad, 0.0]))
    with pytest.raises(ValueError, match=r"sigmas\[2\] = -0.1, but noise levels are not below 0"):
        ours(comfy, "heun", comfy_runs.Model(Eps()), x, torch.tensor([1.0, 0.5, -0.1]))
    with pytest.raises(ValueError, match="from 0 to 1, but both have to be above 0 and finite"):
        ours(comfy, "dpm_fast", comfy_runs.Model(Eps()), x, torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"dpmpp_2m_sde: sigmas\[0\] = nan"):
        ours(comfy, "dpmpp_2m_sde", comfy_runs.Model(Const()), x, torch.full((2,), torch.nan))
    with pytest.raises(ValueError, match="sigmas is \\[1, 2\\], but a tensor"):
        ours(comfy, "heun", comfy_runs.Model(Eps()), x, torch.tensor([[1.0, 0.0]]))
    with pytest.raises(ValueError, match="on the device 'meta'"):
        ours(comfy, "heun", comfy_runs.Model(Eps()), x, torch.tensor([1.0, 0.0], device="meta"))


@pytest.mark.parametrize("name", ["euler", "uni_pc", "dpm_fast", "dpm_adaptive", "dpmpp_2m_cfg_pp"])
def test_no_step_is_no_call(comfy, name):
    model, x = comfy_runs.Model(Eps()), comfy_runs.start([1.0])
    for levels in ([], [1.0]):
        assert ours(comfy, name, model, x, torch.tensor(levels)) is x
    assert model.calls == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sigmas_of_any_dtype_are_read_as_they_are(comfy, dtype):
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0], dtype=dtype)
    for name in ("euler", "dpmpp_2m_sde", "lms"):
        x = comfy_runs.start([4.0], dtype=torch.float32)
        made = ours(comfy, name, comfy_runs.Model(Eps()), x, sigmas)
        wanted = ours(comfy, name, comfy_runs.Model(Eps()), x, sigmas.float())
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, wanted, rtol=0, atol=0)


def test_model_sampling_is_read_anew_at_each_run(comfy):
    """ModelSamplingSD3 and its kin change it between runs."""
    sigmas, x = torch.tensor([1.0, 0.6, 0.3, 0.0]), comfy_runs.start([1.0], dtype=torch.float32)
    model = comfy_runs.Model(Const())
    before = ours(comfy, "dpmpp_2m_sde", model, x, sigmas)
    shifted = Const()
    shifted.percent_to_sigma = lambda percent: 3 * (1 - percent) / (1 + 2 * (1 - percent))
    model.inner_model.inner_model.model_sampling = shifted
    after = ours(comfy, "dpmpp_2m_sde", model, x, sigmas)
    normal = as_generator(3, x.shape)
    wanted = comfy_runs.formula("dpmpp_2m_sde", model, x, sigmas, normal, True)
    assert comfy_runs.relative(after, wanted) < 1e-5
    assert comfy_runs.relative(before, wanted) > 1e-4
    model.inner_model.inner_model.model_sampling = Eps()
    now = ours(comfy, "dpmpp_2m_sde", model, x, sigmas)
    normal = as_generator(3, x.shape)
    wanted = comfy_runs.formula("dpmpp_2m_sde", model, x, sigmas, normal, False)
    assert comfy_runs.relative(now, wanted) < 1e-5


def test_the_noise_scale_of_model_sampling_multiplies_the_noise(comfy):
    sigmas, x = torch.tensor([1.0, 0.6, 0.3, 0.0]), comfy_runs.start([1.0], dtype=torch.float32)
    model = comfy_runs.Model(Const())
    model.inner_model.inner_model.model_sampling.noise_scale = 0.5
    for name in ("euler_ancestral", "er_sde", "res_multistep_ancestral"):
        halved = ours(comfy, name, model, x, sigmas)
        wanted = ours(comfy, name, comfy_runs.Model(Const()), x, sigmas, s_noise=0.5)
        torch.testing.assert_close(halved, wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match="noise_scale = 0.5 has no plan, and this ComfyUI has no"):
        ours(comfy, "sa_solver", model, x, sigmas)


def test_options_without_a_plan_go_to_comfyuis_own_sampler(with_original):
    sigmas, x = torch.tensor([2.0, 1.0, 0.0]), comfy_runs.start([2.0], dtype=torch.float32)
    seen = {}

    def own(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        seen.update(options)
        return x

    sampling = with_original.modules["comfy.k_diffusion.sampling"]
    sampling.sample_euler = sampling.sample_euler_ancestral = own
    given = [("euler", {"s_churn": 5.0}, "s_churn = 5.0 has no plan")]
    given += [("euler_ancestral", {"eta": 1.5}, "eta = 1.5")]
    for name, options, why in given:
        with pytest.warns(HandedOverWarning, match=why):
            assert ours(with_original, name, comfy_runs.Model(Eps()), x, sigmas, **options) is x
        assert seen == options
        seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours(with_original, "euler", comfy_runs.Model(Eps()), x, sigmas, s_churn=0.0, s_tmax=9.0)
    assert seen == {}


def test_a_noise_sampler_of_the_callers_is_asked_for_each_step(comfy):
    sigmas, x = torch.tensor([2.0, 1.0, 0.5, 0.0]), comfy_runs.start([2.0], dtype=torch.float32)
    asked = []

    def noise_sampler(sigma, sigma_next):
        asked.append((float(sigma), float(sigma_next)))
        return torch.zeros_like(x)

    for name in ("euler_ancestral", "dpmpp_2s_ancestral", "res_multistep_ancestral"):
        asked.clear()
        ours(comfy, name, comfy_runs.Model(Eps()), x, sigmas, noise_sampler=noise_sampler)
        assert asked == [(2.0, 1.0), (1.0, 0.5)], name


def test_dpm_fast_and_adaptive_end_at_the_last_sigma_above_0(comfy):
    sigmas = torch.tensor([14.6, 3.0, 1.0, 0.1, 0.0])
    x = comfy_runs.start([14.6], rows=1)
    model = comfy_runs.Model(Eps())
    ours(comfy, "dpm_fast", model, x, sigmas)
    assert len(model.calls) == 4 and model.calls[0] == pytest.approx(14.6)
    model = comfy_runs.Model(Eps())
    made = ours(comfy, "dpm_adaptive", model, x, sigmas, s_churn=0.0)
    closer = ours(comfy, "dpm_adaptive", comfy_runs.Model(Eps()), x, sigmas, rtol=1e-5, atol=1e-6)
    assert 0.0 < comfy_runs.relative(made, closer) < 0.1 and min(model.calls) > 0.1


def test_dpm_adaptive_of_a_batch_is_comfyuis_own(with_original):
    sigmas, x = torch.tensor([2.0, 1.0, 0.0]), comfy_runs.start([2.0], dtype=torch.float32)
    with pytest.warns(HandedOverWarning, match="a batch of 2 has one step size for all"):
        ours(with_original, "dpm_adaptive", comfy_runs.Model(Eps()), x, sigmas)
    with pytest.warns(HandedOverWarning, match="the noise levels go from 2 to 2"):
        ours(with_original, "dpm_fast", comfy_runs.Model(Eps()), x, sigmas[[0, 2]])


def test_comfyuis_samplers_are_found_as_its_own_names_are(comfy):
    find = sys.modules["diffast.integrations.comfyui.originals"].original_of
    assert find("euler") is None
    made = types.SimpleNamespace(sampler_function=own_euler)
    comfy.samplers.sampler_object = lambda name: made
    assert find("uni_pc") is own_euler


def test_no_seed_draws_another_picture_each_time(comfy):
    sigmas, x = torch.tensor([2.0, 1.0, 0.0]), comfy_runs.start([2.0], dtype=torch.float32)
    for noise in ("counter", "torch"):
        runs = [
            ours(comfy, "euler_ancestral", comfy_runs.Model(Eps()), x, sigmas, noise, seed=None)
            for _ in range(2)
        ]
        assert not torch.equal(*runs)


def test_ddim_gives_the_kept_part_of_a_masked_picture_noise_of_its_own(comfy):
    sigmas, x = torch.tensor([2.0, 1.0, 0.0]), comfy_runs.start([2.0], dtype=torch.float32)
    make = sys.modules["diffast.integrations.comfyui.samplers"].sampler("ddim")
    for mask in (None, torch.ones(2, 1, 4, 4)):
        model = comfy_runs.Model(Eps())
        model.noise = torch.zeros(2, 2, 4, 4)
        extra_args = {"model_options": {}, "seed": 3, "denoise_mask": mask}
        make(model, x, sigmas, extra_args=extra_args, disable=True)
        fresh = torch.randn(2, 2, 4, 4, generator=torch.manual_seed(4))
        wanted = torch.zeros_like(fresh) if mask is None else fresh
        torch.testing.assert_close(model.noise, wanted, rtol=0, atol=0)
