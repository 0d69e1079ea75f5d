"""Schedulers of diffusers with the options people use, and those for which diffusers fails."""

from typing import NamedTuple

import diffusers

from diffast.integrations.diffusers import DiffastScheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V = {"prediction_type": "v_prediction"}
X0 = {"prediction_type": "sample"}
ZERO_SNR = {**SD, **V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
LEADING = {**SD, "timestep_spacing": "leading", "steps_offset": 1}
TRAILING = {**SD, "timestep_spacing": "trailing"}
DYNAMIC = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}


class Case(NamedTuple):
    """A scheduler and its options.

    Fields:
        id: name of the test.
        kind: name of the class in diffusers, without "Scheduler".
        config: arguments of the class.
        timing: further arguments of set_timesteps.
        stepping: further arguments of step.
    """

    id: str
    kind: str
    config: dict = {}
    timing: dict = {}
    stepping: dict = {}

    @property
    def learned(self):
        """Whether the network also predicts the variance, in as many channels again."""
        return str(self.config.get("variance_type")).startswith("learned")

    @property
    def shape(self):
        """Latents; where variances are learned, some schedulers cut behind the third channel."""
        return (2, 3 if self.learned else 4, 16, 16)

    def original(self):
        return getattr(diffusers, f"{self.kind}Scheduler")(**self.config)

    def drop_in(self, noise="generator"):
        return replaced(self.original(), noise)


def replaced(scheduler, noise="generator"):
    """The drop-in of a scheduler of diffusers, whose config alone does not tell its class."""
    config = {**scheduler.config, "_class_name": type(scheduler).__name__}
    return DiffastScheduler.from_config(config, noise=noise)


def options(kind, choices):
    """One Case for each name: config of `choices`."""
    return [Case(f"{kind}-{name}", kind, config) for name, config in choices.items()]


SPACINGS = {"default": {}, "leading": LEADING, "trailing": TRAILING, "cosine": COSINE}
SIGMAS = {"karras": {**SD, **KARRAS}, "exponential": {**SD, **EXPONENTIAL}, "beta": {**SD, **BETA}}
LINSPACE = {"linspace": {**SD, "timestep_spacing": "linspace"}}
THREE = {"v": {**SD, **V}, "x0": {**SD, **X0}}

DDIM = [
    *options("DDIM", SPACINGS | LINSPACE | THREE),
    *options(
        "DDIM",
        {
            "stable_diffusion": {**LEADING, "clip_sample": False, "set_alpha_to_one": False},
            "clip_range": {"clip_sample_range": 0.6},
            "dynamic": {**DYNAMIC, "clip_sample": False},
            "zero_snr": {**ZERO_SNR, "clip_sample": False},
            "last_alpha": {"set_alpha_to_one": False},
        },
    ),
    Case("DDIM-eta", "DDIM", {**SD, "clip_sample": False}, stepping={"eta": 1.0}),
    Case("DDIM-eta_clip", "DDIM", {}, stepping={"eta": 0.6}),
    Case(
        "DDIM-clipped_output", "DDIM", {}, stepping={"eta": 0.3, "use_clipped_model_output": True}
    ),
]
DDPM = [
    *options("DDPM", SPACINGS | LINSPACE | THREE),
    *options(
        "DDPM",
        {
            "sigmoid": {"beta_schedule": "sigmoid"},
            "fixed_large": {"variance_type": "fixed_large"},
            "fixed_small_log": {"variance_type": "fixed_small_log"},
            "learned": {"variance_type": "learned"},
            "learned_range": {"variance_type": "learned_range"},
            "no_clip": {**SD, "clip_sample": False},
            "dynamic": {**DYNAMIC, "clip_sample": False},
            "zero_snr": {**ZERO_SNR, "clip_sample": False},
        },
    ),
]
PNDM = options(
    "PNDM",
    {
        "default": {},
        "stable_diffusion": {**LEADING, "skip_prk_steps": True},
        "v": {**SD, **V, "skip_prk_steps": True},
        "linspace": {**SD, "timestep_spacing": "linspace", "skip_prk_steps": True},
        "trailing": {**TRAILING, "skip_prk_steps": True},
        "trailing_prk": TRAILING,
        "alpha_one": {**SD, "set_alpha_to_one": True, "skip_prk_steps": True},
        "cosine": {**COSINE, "skip_prk_steps": True},
    },
)
LMS = [
    *options("LMSDiscrete", SPACINGS | SIGMAS | THREE),
    Case("LMSDiscrete-order2", "LMSDiscrete", SD, stepping={"order": 2}),
]
EULER = [
    *options("EulerDiscrete", SPACINGS | SIGMAS | THREE),
    *options(
        "EulerDiscrete",
        {
            "zero_snr": ZERO_SNR,
            "sigma_min": {**SD, **TO_SIGMA_MIN},
            "karras_range": {**SD, **KARRAS, "sigma_min": 0.1, "sigma_max": 10.0},
            "log_linear": {**SD, "interpolation_type": "log_linear"},
            "continuous": {**SD, **V, **KARRAS, "timestep_type": "continuous"},
        },
    ),
    Case("EulerDiscrete-churn", "EulerDiscrete", SD, stepping={"s_churn": 2.0}),
    Case(
        "EulerDiscrete-churn_window",
        "EulerDiscrete",
        {**SD, **V, **KARRAS},
        stepping={"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 5.0, "s_noise": 1.02},
    ),
]
ANCESTRAL = options("EulerAncestralDiscrete", SPACINGS | {"v": {**SD, **V}, "zero_snr": ZERO_SNR})
HEUN = [
    *options("HeunDiscrete", SPACINGS | SIGMAS | THREE),
    *options("HeunDiscrete", {"clip": {"clip_sample": True, "clip_sample_range": 0.8}}),
]
KDPM2 = options("KDPM2Discrete", SPACINGS | SIGMAS | {"v": {**SD, **V}})
MULTISTEP = [
    *options("DPMSolverMultistep", SPACINGS | SIGMAS | THREE),
    *options(
        "DPMSolverMultistep",
        {
            "lu": {**SD, "use_lu_lambdas": True},
            "flow": FLOW,
            "flow_heun": {**FLOW, "solver_type": "heun"},
            "zero_snr": ZERO_SNR,
            "order1": {**SD, "solver_order": 1},
            "order3": {**SD, "solver_order": 3},
            "order3_high_final": {
                **SD,
                **TO_SIGMA_MIN,
                "solver_order": 3,
                "lower_order_final": False,
            },
            "heun": {**SD, "solver_type": "heun"},
            "euler_final": {**SD, "euler_at_final": True, "lower_order_final": False},
            "sigma_min": {**SD, **TO_SIGMA_MIN},
            "dynamic": DYNAMIC,
            "lambda_clipped": {**COSINE, "lambda_min_clipped": -5.1},
            "learned": {"variance_type": "learned_range"},
            "sde": {**SD, "algorithm_type": "sde-dpmsolver++"},
            "sde_heun": {**SD, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            "sde_order1": {**SD, "algorithm_type": "sde-dpmsolver++", "solver_order": 1},
            "sde_karras": {
                **SD,
                **KARRAS,
                "algorithm_type": "sde-dpmsolver++",
                "euler_at_final": True,
            },
            "sde_flow": {**FLOW, "algorithm_type": "sde-dpmsolver++"},
            "noise": {**SD, **TO_SIGMA_MIN, "algorithm_type": "dpmsolver"},
            "noise_heun": {
                **SD,
                **TO_SIGMA_MIN,
                "algorithm_type": "dpmsolver",
                "solver_type": "heun",
            },
            "noise_order3": {
                **SD,
                **TO_SIGMA_MIN,
                "algorithm_type": "dpmsolver",
                "solver_order": 3,
            },
            "noise_sde": {**SD, **TO_SIGMA_MIN, "algorithm_type": "sde-dpmsolver"},
            "noise_sde_heun": {
                **SD,
                **TO_SIGMA_MIN,
                "algorithm_type": "sde-dpmsolver",
                "solver_type": "heun",
            },
        },
    ),
    Case(
        "DPMSolverMultistep-flow_mu",
        "DPMSolverMultistep",
        {**FLOW, "use_dynamic_shifting": True},
        {"mu": 0.8},
    ),
]
SINGLESTEP = [
    *options("DPMSolverSinglestep", {"default": {}, "cosine": COSINE} | SIGMAS | THREE),
    *options(
        "DPMSolverSinglestep",
        {
            "stable_diffusion": SD,
            "flow": FLOW,
            "order1": {**SD, "solver_order": 1},
            "order3": {**SD, "solver_order": 3},
            "order3_heun": {**SD, "solver_order": 3, "solver_type": "heun"},
            "heun": {**SD, "solver_type": "heun"},
            "lower_final": {**SD, "lower_order_final": True},
            "sigma_min": {**SD, **TO_SIGMA_MIN},
            "dynamic": DYNAMIC,
            "learned": {"variance_type": "learned"},
            "noise": {**SD, **TO_SIGMA_MIN, "algorithm_type": "dpmsolver"},
            "noise_order3": {
                **SD,
                **TO_SIGMA_MIN,
                "algorithm_type": "dpmsolver",
                "solver_order": 3,
            },
            "sde": {**SD, "algorithm_type": "sde-dpmsolver++"},
            "sde_order1": {**SD, "algorithm_type": "sde-dpmsolver++", "solver_order": 1},
        },
    ),
]
UNIPC = [
    *options("UniPCMultistep", SPACINGS | SIGMAS | THREE),
    *options(
        "UniPCMultistep",
        {
            "flow": FLOW,
            "flow_karras": {**FLOW, **KARRAS},
            "order1": {**SD, "solver_order": 1},
            "order3": {**SD, "solver_order": 3},
            "order3_high_final": {
                **SD,
                **TO_SIGMA_MIN,
                "solver_order": 3,
                "lower_order_final": False,
            },
            "bh1": {**SD, **TO_SIGMA_MIN, "solver_type": "bh1"},
            "bh1_order3": {**SD, **TO_SIGMA_MIN, "solver_type": "bh1", "solver_order": 3},
            "noise": {**SD, **TO_SIGMA_MIN, "predict_x0": False},
            "noise_order3": {**SD, **TO_SIGMA_MIN, "predict_x0": False, "solver_order": 3},
            "no_corrector": {**SD, "disable_corrector": list(range(50))},
            "some_corrector": {**SD, "disable_corrector": [0, 1, 5]},
            "sigma_min": {**SD, **TO_SIGMA_MIN},
            "zero_snr": ZERO_SNR,
            "dynamic": DYNAMIC,
        },
    ),
    Case(
        "UniPCMultistep-flow_mu",
        "UniPCMultistep",
        {**FLOW, "use_dynamic_shifting": True},
        {"mu": 0.8},
    ),
]
DEIS = [
    *options("DEISMultistep", SPACINGS | SIGMAS | THREE),
    *options(
        "DEISMultistep",
        {
            "flow": FLOW,
            "order1": {**SD, "solver_order": 1},
            "order3": {**SD, "solver_order": 3},
            "high_final": {**SD, "lower_order_final": False},
            "dynamic": DYNAMIC,
        },
    ),
]
SA = options(
    "SASolver",
    SPACINGS
    | SIGMAS
    | THREE
    | {
        "flow": FLOW,
        "predictor3": {**SD, "predictor_order": 3, "corrector_order": 3},
        "corrector1": {**SD, "predictor_order": 1, "corrector_order": 1},
        "noise": {**SD, "algorithm_type": "noise_prediction"},
        "dynamic": DYNAMIC,
    },
)
EDM = [
    *options(
        "EDMEuler",
        {
            "default": {},
            "exponential": {"sigma_schedule": "exponential"},
            "v": V,
            "sigma_min": TO_SIGMA_MIN,
            "range": {"sigma_min": 0.01, "sigma_max": 40.0, "sigma_data": 1.0, "rho": 5.0},
        },
    ),
    Case("EDMEuler-churn", "EDMEuler", {}, stepping={"s_churn": 2.0, "s_noise": 1.003}),
    *options(
        "EDMDPMSolverMultistep",
        {
            "default": {},
            "exponential": {"sigma_schedule": "exponential"},
            "v": V,
            "sigma_min": TO_SIGMA_MIN,
            "order1": {"solver_order": 1},
            "order3": {"solver_order": 3},
            "heun": {"solver_type": "heun"},
            "euler_final": {"euler_at_final": True},
            "dynamic": DYNAMIC,
            "sde": {"algorithm_type": "sde-dpmsolver++"},
            "sde_heun": {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        },
    ),
]
FLOWS = [
    *options(
        "FlowMatchEulerDiscrete",
        {
            "default": {},
            "shift": {"shift": 3.0},
            "karras": KARRAS,
            "exponential": {**EXPONENTIAL, "shift": 2.0},
            "beta": BETA,
            "terminal": {"shift": 3.0, "shift_terminal": 0.1},
            "inverted": {"invert_sigmas": True},
            "stochastic": {"stochastic_sampling": True, "shift": 3.0},
        },
    ),
    Case(
        "FlowMatchEulerDiscrete-mu",
        "FlowMatchEulerDiscrete",
        {"use_dynamic_shifting": True},
        {"mu": 0.8},
    ),
    Case(
        "FlowMatchEulerDiscrete-mu_linear",
        "FlowMatchEulerDiscrete",
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"mu": 0.8},
    ),
    *options("FlowMatchHeunDiscrete", {"default": {}, "shift": {"shift": 3.0}}),
]
LCM = options(
    "LCM",
    {
        "default": {},
        "v": V,
        "x0": X0,
        "clip": {"clip_sample": True},
        "dynamic": DYNAMIC,
        "original40": {"original_inference_steps": 40},
        "scaling": {"timestep_scaling": 3.0},
        "zero_snr": {**V, "rescale_betas_zero_snr": True},
    },
)
FAMILIES = [
    *(DDIM, DDPM, PNDM, LMS, EULER, ANCESTRAL, HEUN, KDPM2, MULTISTEP, SINGLESTEP),
    *(UNIPC, DEIS, SA, EDM, FLOWS, LCM),
]
CASES = [case for family in FAMILIES for case in family]
ONE_OF_EACH = list({case.kind: case for case in reversed(CASES)}.values())[::-1]


def broken(kind, choices):
    """Cases for which diffusers answers NaN or fails in step, and the step counts that show it."""
    return [(Case(f"{kind}-{name}", kind, c), n) for name, (c, n) in choices.items()]


SHORT = {"num_train_timesteps": 50}
SDE = {"algorithm_type": "sde-dpmsolver"}
SDEPP = {"algorithm_type": "sde-dpmsolver++"}
HIGH = {"solver_order": 3, "lower_order_final": False}
CLEAN_ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
BROKEN = [
    # h is infinite at sigma = 0, and expm1(h) with it
    *broken(
        "UniPCMultistep",
        {
            "bh1": ({**SD, "solver_type": "bh1"}, (1, 2, 5, 20)),
            "bh1_order3": ({**SD, "solver_type": "bh1", "solver_order": 3}, (1, 5)),
            "bh1_flow": ({**FLOW, "solver_type": "bh1"}, (1, 5)),
            "bh1_karras": ({**SD, **KARRAS, "solver_type": "bh1"}, (1, 5)),
            "noise": ({**SD, "predict_x0": False}, (1, 2, 5, 20)),
            "noise_order3": ({**SD, "predict_x0": False, "solver_order": 3}, (1, 5)),
            # no such branch in convert_model_output
            "noise_flow": ({**FLOW, **TO_SIGMA_MIN, "predict_x0": False}, (5,)),
            # neighbours share a time step
            "every_step": (SHORT, (50,)),
        },
    ),
    # the last two sigmas are equal: 0 / 0 in the third-order differences
    *broken(
        "DPMSolverMultistep",
        {
            "karras_min": ({**SD, **KARRAS, **TO_SIGMA_MIN, **HIGH}, (3, 5, 20)),
            "exponential_min": ({**SD, **EXPONENTIAL, **TO_SIGMA_MIN, **HIGH}, (3, 20)),
            "lu_min": ({**SD, **TO_SIGMA_MIN, **HIGH, "use_lu_lambdas": True}, (3, 20)),
            "karras_min_low": ({**SD, **KARRAS, **TO_SIGMA_MIN, "solver_order": 3}, (20,)),
            # the third order has no branch for it: UnboundLocalError
            "sde_order3": ({**SD, **TO_SIGMA_MIN, **SDE, "solver_order": 3}, (5, 20)),
            "noise_flow": ({**FLOW, **TO_SIGMA_MIN, "algorithm_type": "dpmsolver"}, (5,)),
            "every_step": (SHORT, (50,)),
        },
    ),
    *broken(
        "EDMDPMSolverMultistep",
        {
            "order3_min": ({**TO_SIGMA_MIN, **HIGH}, (3, 5, 20)),
            "sde_order3": ({**SDEPP, "solver_order": 3}, (5, 20)),
        },
    ),
    *broken("DEISMultistep", {"every_step": (SHORT, (50,))}),
    *broken(
        "SASolver",
        {
            "every_step": (SHORT, (50,)),
            "no_corrector": ({**SD, "corrector_order": 0}, (5,)),
            "noise_flow": ({**FLOW, "algorithm_type": "noise_prediction"}, (5,)),
        },
    ),
    # a square root of log(beta)
    *broken("DDPM", {"fixed_large_log": ({"variance_type": "fixed_large_log"}, (2, 5))}),
    # alpha = 0 at the first step, where noise tells nothing about x0
    *broken("DDPM", {"zero_snr_noise": ({**CLEAN_ZERO_SNR, "clip_sample": False}, (1, 5))}),
    *broken("DDIM", {"zero_snr_noise": ({**CLEAN_ZERO_SNR, "clip_sample": False}, (1, 5))}),
    # spacing "leading" with an offset runs past the last training step
    *broken("DDPM", {"leading_all": ({**LEADING, **SHORT}, (50,))}),
    *broken("DDIM", {"leading_all": ({**LEADING, **SHORT}, (50,))}),
    *broken("LMSDiscrete", {"leading_all": ({**LEADING, **SHORT}, (50,))}),
    # fewer steps than the four of the Runge-Kutta start
    *broken("PNDM", {"few_steps": ({}, (1, 2, 3)), "x0": (X0, (5,))}),
    # two equal times at the start: the search for the first step takes the second one
    *broken("EulerDiscrete", {"wide": ({**SD, **KARRAS, "sigma_max": 20.0}, (20,))}),
    # one step to the terminal value: 0 / 0
    *broken("FlowMatchEulerDiscrete", {"one_step": ({"shift_terminal": 0.1}, (1,))}),
    *broken("LCM", {"zero_snr_noise": ({"rescale_betas_zero_snr": True}, (1, 4))}),
]
# Diffusers answers, but not what was published, from the third step on: a term of the third-order
# SDE step has the other sign, and so tends to -1 where it should tend to 0 with the step.
DIFFERENT = options("DPMSolverMultistep", {"sde_order3": {**SD, **SDEPP, "solver_order": 3}})
