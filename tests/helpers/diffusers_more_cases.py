"""Schedulers of diffusers that fewer people use, with their options."""

from diffusers_cases import (
    BETA,
    COSINE,
    DYNAMIC,
    EXPONENTIAL,
    FLOW,
    KARRAS,
    LEADING,
    SD,
    THREE,
    TO_SIGMA_MIN,
    TRAILING,
    Case,
    V,
    broken,
    options,
)

SEEDED = {"noise_sampler_seed": 3}  # without one the two draw different paths
MORE = [
    *options(
        "KDPM2AncestralDiscrete",
        {"default": {}, "leading": LEADING, "v": {**SD, **V, **KARRAS}},
    ),
    *options(
        "DPMSolverSDE",
        {
            "default": SEEDED,
            "leading": {**LEADING, **SEEDED},
            "trailing": {**TRAILING, **SEEDED},
            "karras": {**SD, **KARRAS, **SEEDED},
            "exponential": {**SD, **EXPONENTIAL, **SEEDED},
            "beta": {**SD, **BETA, **SEEDED},
            "v": {**SD, **V, **SEEDED},
        },
    ),
    Case("DPMSolverSDE-s_noise", "DPMSolverSDE", {**SD, **SEEDED}, stepping={"s_noise": 0.9}),
    *options(
        "DPMSolverMultistepInverse",
        {"leading": LEADING, "trailing": TRAILING, "cosine": COSINE, "karras": {**SD, **KARRAS}}
        | THREE,
    ),
    *options(
        "DPMSolverMultistepInverse",
        {
            "default": {},
            "flow": FLOW,
            "order1": {**SD, "solver_order": 1},
            "order3": {**SD, "solver_order": 3},
            "heun": {**SD, "solver_type": "heun"},
            "euler_final": {**SD, "euler_at_final": True, "lower_order_final": False},
            "dynamic": DYNAMIC,
            "lambda_clipped": {**COSINE, "lambda_min_clipped": -5.1},
            "learned": {"variance_type": "learned_range"},
            "noise": {**SD, "algorithm_type": "dpmsolver"},
            "noise_heun": {**SD, "algorithm_type": "dpmsolver", "solver_type": "heun"},
            "noise_order3": {**SD, "algorithm_type": "dpmsolver", "solver_order": 3},
        },
    ),
    *options(
        "CosineDPMSolverMultistep",
        {
            "default": {},
            "karras": {"sigma_schedule": "karras"},
            "epsilon": {"prediction_type": "epsilon"},
            "order1": {"solver_order": 1},
            "heun": {"solver_type": "heun"},
            "euler_final": {"euler_at_final": True, "lower_order_final": False},
            "range": {"sigma_min": 0.05, "sigma_max": 80.0, "sigma_data": 0.5},
        },
    ),
    *options("IPNDM", {"default": {}}),
    *options(
        "FlowMatchLCM",
        {
            "default": {},
            "shift": {"shift": 3.0},
            "karras": KARRAS,
            "exponential": {**EXPONENTIAL, "shift": 2.0},
            "beta": BETA,
            "terminal": {"shift": 3.0, "shift_terminal": 0.1},
        },
    ),
    Case("FlowMatchLCM-mu", "FlowMatchLCM", {"use_dynamic_shifting": True}, {"mu": 0.8}),
    *options(
        "LTXEulerAncestralRF",
        {
            "default": {},
            "half": {"eta": 0.5, "s_noise": 0.9},
            "euler": {"eta": 0.0},
            "quiet": {"s_noise": 0.0},
        },
    ),
    *options(
        "CMStochasticIterative",
        {
            "default": {},
            "no_clip": {"clip_denoised": False},
            "s_noise": {"s_noise": 0.9},
            "range": {"sigma_min": 0.01, "sigma_max": 20.0, "sigma_data": 1.0, "rho": 5.0},
        },
    ),
    *options("FlowMapEulerDiscrete", {"default": {}, "shift": {"shift": 3.0}}),
    *options("MiniMaxH3", {"default": {}, "shift": {"shift": 3.0}}),
]
ONE_OF_EACH_MORE = list({case.kind: case for case in reversed(MORE)}.values())[::-1]
BROKEN_MORE = [
    # the first level down is the root of a negative number, for float32
    *broken("KDPM2AncestralDiscrete", {"cosine": (COSINE, (2, 5))}),
    # the tree is asked for the noise of an interval of length zero, and never ends halving it
    *broken("CosineDPMSolverMultistep", {"sigma_min": (TO_SIGMA_MIN, (2, 5))}),
    # no branch for the third order
    *broken("CosineDPMSolverMultistep", {"order3": ({"solver_order": 3}, (5,))}),
    # the noise's variance is negative where the levels rise
    *broken("DPMSolverMultistepInverse", {"sde": ({"algorithm_type": "sde-dpmsolver++"}, (5,))}),
    # of two equal times at the start it searches for the second one, and runs past the end
    *broken("DPMSolverMultistepInverse", {"exponential": ({**SD, **EXPONENTIAL}, (20,))}),
]
