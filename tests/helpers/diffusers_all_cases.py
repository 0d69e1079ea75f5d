"""All schedulers that have a drop-in and are called as most are, and in what they differ."""

import pytest
from diffusers_cases import CASES as USUAL
from diffusers_cases import ONE_OF_EACH as USUAL_KINDS
from diffusers_indexed_cases import INDEXED, ONE_INDEXED
from diffusers_more_cases import MORE, ONE_OF_EACH_MORE

WITH_X0 = (
    *("DDIM", "DDPM", "EulerDiscrete", "EulerAncestralDiscrete", "EDMEuler", "LCM"),
    *("KDPM2AncestralDiscrete", "DPMSolverSDE"),
    *(case.kind for case in ONE_INDEXED),
)
STOCHASTIC = (
    *("DDPM", "EulerAncestralDiscrete", "SASolver", "LCM", "DDPMParallel", "UnCLIP"),
    *("KDPM2AncestralDiscrete", "CosineDPMSolverMultistep", "FlowMatchLCM"),
    *("CMStochasticIterative", "LTXEulerAncestralRF"),
)
WITHOUT_ADD_NOISE = ("IPNDM", "LTXEulerAncestralRF", "DDIMInverse")
ON_A_PATH = ("DPMSolverSDE", "CosineDPMSolverMultistep")
DETERMINISTIC = ("LTXEulerAncestralRF-euler", "LTXEulerAncestralRF-quiet")
LEARNED = ("DDPM", "DDPMParallel", "UnCLIP")  # these read the variance
CASES = [*USUAL, *INDEXED, *MORE]
ONE_OF_EACH = [*USUAL_KINDS, *ONE_INDEXED, *ONE_OF_EACH_MORE]
RARE = {case.kind for case in MORE}  # their fast tests stand in test_diffusers_more.py


def each(cases):
    return pytest.mark.parametrize(
        "case",
        [pytest.param(c, id=c.id, marks=[pytest.mark.slow] * (c.kind in RARE)) for c in cases],
    )


stochastic = [
    case
    for case in CASES
    if case.kind in STOCHASTIC
    and case.id not in DETERMINISTIC
    or "sde" in case.id
    or (case.stepping.get("eta", case.kind == "TCD") and case.kind != "CogVideoXDDIM")
    or "s_churn" in case.stepping
    or case.config.get("stochastic_sampling")
]
