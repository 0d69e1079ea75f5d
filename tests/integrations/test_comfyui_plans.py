"""Plans in ComfyUI's stand-in: the node, its sampler and its sigmas."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from comfy_stand_in import Const, Eps, Guider, generate, latents
from tuned_plans import tuned, two_inputs

import diffast as df


def plan_node(comfy, plan, tmp_path, noise="counter"):
    plan.save(tmp_path / "plan.json")
    return comfy.NODE_CLASS_MAPPINGS["DiffastPlan"]().make(str(tmp_path / "plan.json"), noise)


class Guided(Guider):
    """A guider with a scale, as CFGGuider has one; it writes down the scale of each call."""

    def __init__(self, model_sampling):
        super().__init__(model_sampling)
        self.cfg, self.conds, self.scales = 7.0, {"positive": 0, "negative": 0}, []

    def __call__(self, x, sigma, model_options, seed):
        self.scales.append(self.cfg)
        return super().__call__(x, sigma, model_options, seed)


@pytest.mark.parametrize(
    ("kind", "schedule"), [(Eps, df.schedules.edm(0.03, 14.6)), (Const, df.schedules.flow())]
)
def test_the_node_of_a_plan_samples_as_df_sample_does(comfy, kind, schedule, tmp_path):
    plan = tuned(schedule, 5)
    sampler, sigmas = plan_node(comfy, plan, tmp_path)
    out, guider = generate(comfy, sampler, kind(), sigmas=sigmas)
    denoiser = df.Denoiser(lambda x, t: Guider(kind())(x, t, {}, 0), schedule, "x0")
    x = kind().noise_scaling(torch.tensor(plan.initial_scale), *latents())
    torch.testing.assert_close(out, df.sample(denoiser, plan, x=x).x, rtol=1e-5, atol=1e-5)
    assert [call[1][0] for call in guider.calls] == pytest.approx(plan.call_times)
    seen = []
    generate(comfy, sampler, kind(), sigmas=sigmas, callback=lambda i, *rest: seen.append(i))
    assert seen == list(range(5))


def test_a_plan_of_two_inputs_runs_in_comfyui(comfy, tmp_path):
    schedule = df.schedules.edm(0.03, 14.6)
    plan = two_inputs(schedule)
    sampler, sigmas = plan_node(comfy, plan, tmp_path)
    out, guider = generate(comfy, sampler, Eps(), sigmas=sigmas)
    denoiser = df.Denoiser(lambda x, t: Guider(Eps())(x, t, {}, 0), schedule, "x0")
    want = df.sample(denoiser, plan, x=latents()[0] * plan.initial_scale).x
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)
    assert len(guider.calls) == plan.nfe and all(len(c[1]) == 3 for c in guider.calls)


def test_guidance_scales_of_a_plan_are_set_in_the_guider_and_taken_back(comfy, tmp_path):
    scales = [1.0, 4.0, 3.0]
    plan = replace(tuned(df.schedules.edm(0.03, 14.6), 3), guidance=scales)
    sampler, sigmas = plan_node(comfy, plan, tmp_path)
    guider, extra = Guided(Eps()), {"model_options": {}, "seed": 1}
    sampler.sample(guider, sigmas, dict(extra), None, *latents())
    assert guider.scales == scales and guider.cfg == 7.0
    with pytest.raises(ValueError, match="guidance scale of its own for each call, but this model"):
        sampler.sample(Guider(Eps()), sigmas, dict(extra), None, *latents())


def test_plans_that_do_not_fit_the_model_are_refused_in_a_sentence(comfy, tmp_path):
    plan = tuned(df.schedules.edm(0.03, 14.6), 4)
    sampler, sigmas = plan_node(comfy, plan, tmp_path)
    with pytest.raises(ValueError, match="is for a model with betas or sigmas, but this is a flow"):
        generate(comfy, sampler, Const(), sigmas=sigmas)
    for other in (sigmas[1:], sigmas * 0.9):
        with pytest.raises(ValueError, match="connect the SIGMAS of the same node"):
            generate(comfy, sampler, Eps(), sigmas=other)
    betas = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))  # up to sigma = 157
    sampler, sigmas = plan_node(comfy, tuned(betas, 4), tmp_path)
    with pytest.raises(ValueError, match="noise goes up to sigma = 157.4, but .* up to 14.6"):
        generate(comfy, sampler, Eps(), sigmas=sigmas)
    with pytest.raises(ValueError, match="there is no file /nowhere/plan.json"):
        comfy.NODE_CLASS_MAPPINGS["DiffastPlan"]().make("/nowhere/plan.json", "counter")


def test_plan_files_are_found_in_the_models_folder(comfy, monkeypatch, tmp_path):
    (tmp_path / "diffast_plans").mkdir()
    tuned(df.schedules.flow(), 4).save(tmp_path / "diffast_plans" / "four.json")
    monkeypatch.setitem(
        sys.modules, "folder_paths", types.SimpleNamespace(models_dir=str(tmp_path))
    )
    _, sigmas = comfy.NODE_CLASS_MAPPINGS["DiffastPlan"]().make("four.json", "counter")
    assert len(sigmas) == 5 and float(sigmas[-1]) == 0.0


def test_a_plan_for_another_prediction_type_is_refused_and_another_network_is_told(comfy, tmp_path):
    plan = tuned(df.schedules.flow(), 4)
    cases = [({"predicts": "epsilon"}, "predicts 'epsilon', but the denoiser's predicts 'flow'")]
    cases += [({"predicts": "flow"}, None), ({"predicts": "x0"}, None)]  # x0: a wrapper's plan
    for made_for, message in cases:
        sampler, sigmas = plan_node(comfy, replace(plan, made_for=made_for), tmp_path)
        if message is None:
            generate(comfy, sampler, Const(), sigmas=sigmas)
            continue
        with pytest.raises(ValueError, match=message):
            generate(comfy, sampler, Const(), sigmas=sigmas)
    made_for = {"predicts": "flow", "network": "0123456789abcdef"}
    sampler, sigmas = plan_node(comfy, replace(plan, made_for=made_for), tmp_path)
    guider = Guider(Const())
    guider.inner_model.diffusion_model = torch.nn.Linear(2, 2)
    noise, latent = latents()
    with pytest.warns(UserWarning, match="network with the fingerprint 0123456789abcdef"):
        sampler.sample(guider, sigmas, {"model_options": {}, "seed": 5}, None, noise, latent)
