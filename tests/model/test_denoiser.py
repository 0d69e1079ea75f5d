"""What a network's output means for x0, and what the wrapper refuses."""

import re

import numpy as np
import pytest
import torch
from closed_forms import Mixture, Network

import diffast as df
from diffast.model.prediction import PREDICTIONS

MEANS = np.array([[0.8, -0.5], [-0.9, 0.4]])
SCHEDULES = {
    "vp_linear": df.schedules.vp_linear(),
    "vp_cosine": df.schedules.vp_cosine(),
    "sub_vp": df.schedules.sub_vp(),
    "ve": df.schedules.ve(),
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "from_betas": df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000)),
}


@pytest.mark.parametrize("predicts", ["x0", "epsilon", "v", "flow", "score"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_x0_is_recovered_from_every_prediction(name, predicts):
    schedule = SCHEDULES[name]
    truth = Mixture(schedule, MEANS)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for share in (0.1, 0.5, 0.9):
        t = schedule.t_min + share * (schedule.t_start - schedule.t_min)
        denoiser = df.Denoiser(Network(truth, predicts), schedule, predicts=predicts)
        wanted = truth.x0(x.numpy(), t)
        np.testing.assert_allclose(denoiser.x0(x, t).numpy(), wanted, rtol=0, atol=1e-9)


def test_a_flow_network_of_cond_ot_predicts_eps_minus_x0():
    a, b = df.Denoiser(lambda x, t: x, SCHEDULES["flow"], predicts="flow").affine(
        np.array([0.25, 1.0])
    )
    np.testing.assert_allclose(a, [1, 1], atol=1e-15)
    np.testing.assert_allclose(b, [-0.25, -1.0], atol=1e-15)


def test_epsilon_at_alpha_zero_is_refused():
    denoiser = df.Denoiser(lambda x, t: x, SCHEDULES["flow"], predicts="epsilon")
    with pytest.raises(ValueError, match=r"'epsilon' but at t = 1 alpha is 0"):
        denoiser.affine(np.array([0.5, 1.0]))
    a, b = df.Denoiser(lambda x, t: x, SCHEDULES["flow"], predicts="v").affine(np.array([1.0]))
    assert (a[0], b[0]) == (0.0, -1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"predicts": "noise"},
            "'noise' but the known predictions are x0, epsilon, v, flow, score",
        ),
        ({"network": 3}, "network is a int"),
        (
            {"conditions": {"a": 1}, "unconditional": {"b": 1}},
            r"conditions are \['a'\] but unconditional ones are \['b'\]",
        ),
        ({"guidance": float("inf")}, "guidance is inf"),
    ],
)
def test_what_cannot_be_is_refused_when_made(change, message):
    call = {"network": lambda x, t: x, "schedule": SCHEDULES["edm"], "predicts": "x0"} | change
    with pytest.raises(ValueError, match=message):
        df.Denoiser(**call)


def test_a_forgotten_prediction_type_is_refused_with_the_list_of_them():
    schedule = SCHEDULES["edm"]
    known = {
        "x0": "EDM and k-diffusion",
        "epsilon": "DDPM, Stable Diffusion 1",
        "v": "Stable Diffusion 2.*Imagen",
        "flow": "Stable Diffusion 3, Flux",
        "score": "score-based",
        "reverse_flow": "from_velocity",
    }
    assert list(known) == list(PREDICTIONS)
    for who, make in (
        ("Denoiser", lambda **given: df.Denoiser(lambda x, t: x, schedule, **given)),
        ("Prediction", lambda **given: df.Prediction(schedule, **given)),
    ):
        for given in ({}, {"predicts": None}):
            with pytest.raises(TypeError, match=f"^{who}: predicts is missing, but") as error:
                make(**given)
            for name, networks in known.items():
                assert re.search(rf"'{name}' \([^)]*{networks}", str(error.value)), name
        with pytest.raises(ValueError, match=f"^{who}: predicts 'noise' but the known"):
            make(predicts="noise")
    assert df.Denoiser(lambda x, t: x, schedule, "v").predicts == "v"
    assert df.Prediction(schedule, "v") == df.Prediction(schedule, predicts="v")


def test_guidance_without_an_unconditional_branch_is_refused():
    denoiser = df.Denoiser(lambda x, t: x, SCHEDULES["edm"], predicts="x0", guidance=2.0)
    with pytest.raises(ValueError, match="guidance is 2 but there are no unconditional"):
        denoiser.scales(np.array([1.0]))
    wrong = df.Denoiser(
        lambda x, t: x, SCHEDULES["edm"], predicts="x0", guidance=lambda t: float("nan")
    )
    with pytest.raises(ValueError, match="guidance is nan at t = 1"):
        wrong.scales(np.array([1.0]))


def test_conditions_are_rows_of_the_batch_and_repeated_for_both_branches():
    labels = torch.arange(3)
    denoiser = df.Denoiser(
        lambda x, t: x,
        SCHEDULES["edm"],
        predicts="x0",
        conditions={"labels": labels, "mode": "fast", "context": torch.ones(1, 4)},
        unconditional={"labels": torch.tensor([9]), "mode": "fast", "context": torch.zeros(1, 4)},
        guidance=2.0,
    )
    both = denoiser.arguments(3, torch.device("cpu"), "both")
    assert both["labels"].tolist() == [0, 1, 2, 9, 9, 9]
    assert both["context"].sum(1).tolist() == [4, 4, 4, 0, 0, 0]
    assert both["mode"] == "fast"
    assert denoiser.arguments(3, torch.device("cpu"), "uncond")["labels"].tolist() == [9, 9, 9]
    with pytest.raises(ValueError, match="'labels' has 3 rows but there are 2 samples"):
        denoiser.arguments(2, torch.device("cpu"), "cond")


def test_conditions_that_cannot_be_stacked_are_refused():
    def both(**conditions):
        denoiser = df.Denoiser(
            lambda x, t: x,
            SCHEDULES["edm"],
            predicts="x0",
            conditions={k: v[0] for k, v in conditions.items()},
            unconditional={k: v[1] for k, v in conditions.items()},
            guidance=2.0,
        )
        return denoiser.arguments(2, torch.device("cpu"), "both")

    with pytest.raises(ValueError, match="'mode' differs between the cfg branches"):
        both(mode=("fast", "slow"))
    with pytest.raises(ValueError, match=r"\[2, 4\] but \[2, 5\]"):
        both(context=(torch.zeros(2, 4), torch.zeros(1, 5)))


def test_device_is_the_networks():
    assert df.Denoiser(lambda x, t: x, SCHEDULES["edm"], predicts="x0").device() == torch.device(
        "cpu"
    )
    module = torch.nn.Linear(2, 2, device="meta")
    assert df.Denoiser(module, SCHEDULES["edm"], predicts="x0").device() == torch.device("meta")


def test_what_cfg_cannot_put_together_is_said():
    """A nested dict of tensors, as SDXL's added_cond_kwargs; a number that is a tensor can be."""
    schedule = df.schedules.edm()
    plan = df.solvers.euler(schedule, df.grids.karras(schedule, 3))

    def network(x, t, **conditions):
        return x * conditions.get("scale", 1.0) * 0.5

    def sample(cond, uncond):
        options = {"conditions": cond, "unconditional": uncond, "guidance": 2.0}
        return df.sample(df.Denoiser(network, schedule, predicts="x0", **options), plan, (2, 3)).x

    words = "condition 'added' differs between the cfg branches of one batched call but is a dict"
    with pytest.raises(ValueError, match=words):
        sample({"added": {"y": torch.ones(2, 4)}}, {"added": {"y": torch.zeros(2, 4)}})
    half = torch.tensor(0.5)
    assert sample({"scale": half}, {"scale": half.clone()}).isfinite().all()
    with pytest.raises(ValueError, match="condition 'scale' differs .* is a Tensor, no tensor"):
        sample({"scale": half}, {"scale": 2 * half})
