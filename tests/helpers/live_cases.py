"""The cases of the tests of live drop-ins, and their comparison."""

import pytest
from diffusers_cases import FLOW, LEADING, ONE_OF_EACH, SD, Case, V
from live_loop import both, gap

TOLERANCE = 1e-4
EIGHTEEN = [
    *("DDIM", "DDPM", "PNDM", "LCM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete"),
    *("KDPM2Discrete", "LMSDiscrete", "EDMEuler", "DPMSolverMultistep", "DPMSolverSinglestep"),
    *("EDMDPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver"),
    *("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"),
]
FIRST = [case for case in ONE_OF_EACH if case.kind in EIGHTEEN]
MORE = [
    Case("DDIM-eta", "DDIM", {**SD, "clip_sample": False}, stepping={"eta": 1.0}),
    Case("PNDM-sd", "PNDM", {**LEADING, "skip_prk_steps": True}),
    Case("Multistep-sde", "DPMSolverMultistep", {**SD, "algorithm_type": "sde-dpmsolver++"}),
    Case("Multistep-3", "DPMSolverMultistep", {**SD, "solver_order": 3}),
    Case("UniPC-3", "UniPCMultistep", {**SD, "solver_order": 3}),
    Case("UniPC-flow", "UniPCMultistep", FLOW),
    Case("Singlestep-3", "DPMSolverSinglestep", {**SD, "solver_order": 3}),
    Case("Euler-v", "EulerDiscrete", {**SD, **V}),
    Case("Flow-shift", "FlowMatchEulerDiscrete", {"shift": 3.0}),
    Case("SA-3", "SASolver", {**SD, "predictor_order": 3, "corrector_order": 3}),
]
CASES = FIRST + MORE
# one case of every mechanism, for the fast tests
FEW = [c for c in CASES if c.id in ("PNDM-sd", "Euler-v", "UniPC-3", "SA-3", "Flow-shift")]
FAST = {case.id for case in FEW} | {"DDIM-default", "UniPCMultistep-default", "PNDM-default"}


def of(cases):
    """All cases, most of them slow."""
    slow = [() if case.id in FAST else pytest.mark.slow for case in cases]
    return pytest.mark.parametrize(
        "case",
        [pytest.param(c, marks=m, id=c.id) for c, m in zip(cases, slow, strict=True)],
    )


def assert_same(case, writes, **options):
    want, got, ours = both(case, writes, **options)
    apart, where = gap(want, got)
    assert apart <= TOLERANCE, (apart, where)
    return want, ours
