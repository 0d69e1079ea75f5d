"""Drop-ins of noise form against diffusers, where weights extrapolate far and steps are large."""

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from diffusers_cases import (  # noqa: E402
    BETA,
    COSINE,
    DYNAMIC,
    EXPONENTIAL,
    KARRAS,
    SD,
    TO_SIGMA_MIN,
    X0,
    Case,
    V,
)
from diffusers_loop import difference, run, uncertainty  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # algorithm_type "dpmsolver"

LINEAR = {"beta_schedule": "linear"}
NOISE = {**TO_SIGMA_MIN, "predict_x0": False}
SOLVER = {**TO_SIGMA_MIN, "algorithm_type": "dpmsolver"}

# The plan's check refused all of these for rounding that their own steps multiply.
REFUSED = [
    Case("deis_2", "DEISMultistep", {**COSINE, **EXPONENTIAL}),
    Case("deis_3", "DEISMultistep", {**COSINE, **EXPONENTIAL, **V, "solver_order": 3}),
    Case("dpm_2", "DPMSolverMultistep", {**COSINE, **EXPONENTIAL, **SOLVER}),
    Case(
        "dpm_3", "DPMSolverMultistep", {**COSINE, **EXPONENTIAL, **SOLVER, **X0, "solver_order": 3}
    ),
    Case("unipc_3", "UniPCMultistep", {**COSINE, **NOISE, "solver_order": 3}),
]
# The corrector was left out over steps that divide sigma/alpha by more than 30.
CORRECTED = [
    Case(f"unipc_{order}_{name}", "UniPCMultistep", {**own, **NOISE, "solver_order": order})
    for order in (1, 2, 3)
    for name, own in {"beta": {**SD, **BETA, **X0}, "karras": {**LINEAR, **KARRAS, **V}}.items()
]


@pytest.mark.parametrize("case", [*REFUSED, *CORRECTED], ids=lambda case: case.id)
def test_noise_forms_are_the_originals(case):
    for steps in (4, 8) if case in CORRECTED else (3, 4):
        want = run(case.original(), case, steps)[-1]
        got = run(case.drop_in(), case, steps)[-1]
        assert difference(got, want) <= max(1e-4, uncertainty(case, steps)[-1])


@pytest.mark.parametrize("steps", [4, 20])
def test_the_noise_form_of_unipc_is_not_thresholded(steps):
    case = Case("unipc", "UniPCMultistep", {**SD, **NOISE, **DYNAMIC})
    want = run(case.original(), case, steps)[-1]
    assert difference(run(case.drop_in(), case, steps)[-1], want) < 1e-4
    plain = Case("unipc", "UniPCMultistep", {**SD, **NOISE})
    assert torch.equal(run(case.drop_in(), case, steps)[-1], run(plain.drop_in(), plain, steps)[-1])
    data = Case("unipc", "UniPCMultistep", {**SD, **DYNAMIC})
    assert (
        difference(run(data.drop_in(), data, steps)[-1], run(data.original(), data, steps)[-1])
        < 1e-4
    )


def test_flow_predictions_have_no_noise_form():
    case = Case(
        "unipc",
        "UniPCMultistep",
        {**NOISE, "prediction_type": "flow_prediction", "use_flow_sigmas": True},
    )
    with pytest.raises(ValueError, match="predict_x0 is False and prediction_type is 'flow_pred"):
        run(case.drop_in(), case, 4)
    with pytest.raises(ValueError):
        run(case.original(), case, 4)


@pytest.mark.parametrize(
    ("sigmas", "facts"),
    [
        ([1.0, 0.5, 0.5, 0.2], r"sigmas\[1\] = 0.5 is followed by sigmas\[2\] = 0.5"),
        ([1.0, 0.5, 0.7, 0.2], r"sigmas\[1\] = 0.5 is followed by sigmas\[2\] = 0.7"),
        ([1.0, 0.5, 0.0], r"sigmas\[2\] = 0 is followed by sigmas\[3\] = 0"),
    ],
)
def test_sigmas_that_do_not_fall_are_named(sigmas, facts):
    from diffast.integrations.diffusers.shared import falling

    with pytest.raises(ValueError, match=facts):
        falling(np.append(sigmas, 0.0))
