"""Further schedulers of diffusers that are called as most are; see also diffusers_odd_steps."""

from diffusers_cases import COSINE, DYNAMIC, LEADING, SD, TRAILING, X0, ZERO_SNR, Case, V, options

SHIFTED = {**V, "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0}

INDEXED = [
    *options(
        "DDIMParallel",
        {
            "default": {},
            "stable_diffusion": {**LEADING, "clip_sample": False, "set_alpha_to_one": False},
            "zero_snr": {**ZERO_SNR, "clip_sample": False},
            "dynamic": {**DYNAMIC, "clip_sample": False},
        },
    ),
    Case("DDIMParallel-eta_clip", "DDIMParallel", {}, stepping={"eta": 0.6}),
    *options(
        "DDPMParallel",
        {
            "default": {},
            "trailing": TRAILING,
            "fixed_large": {"variance_type": "fixed_large"},
            "learned_range": {"variance_type": "learned_range"},
            "dynamic": {**DYNAMIC, "clip_sample": False},
        },
    ),
    *options(
        "DDIMInverse",
        {
            "default": {},
            "stable_diffusion": {**LEADING, "clip_sample": False, "set_alpha_to_one": False},
            "trailing": {**TRAILING, "clip_sample_range": 0.7},
            "v": {**SD, **V, "clip_sample": False},
            "x0": {**SD, **X0, "set_alpha_to_one": False},
            "cosine": {**COSINE, "clip_sample": False},
        },
    ),
    *options(
        "CogVideoXDDIM",
        {
            "default": {},
            "model": {**SHIFTED, "timestep_spacing": "trailing"},
            "linspace": {**X0, "timestep_spacing": "linspace"},
            "last_alpha": {**LEADING, "set_alpha_to_one": False, "snr_shift_scale": 2.0},
        },
    ),
    Case("CogVideoXDDIM-eta", "CogVideoXDDIM", {}, stepping={"eta": 0.5}),  # it is not used
    *options(
        "TCD", {"default": {}, "v": V, "x0": X0, "zero_snr": {**V, "rescale_betas_zero_snr": True}}
    ),
    Case("TCD-deterministic", "TCD", {}, stepping={"eta": 0.0}),
    Case("TCD-stochastic", "TCD", COSINE, stepping={"eta": 1.0}),
    Case("TCD-strength", "TCD", {}, {"strength": 0.8}, {"eta": 0.5}),
    *options(
        "UnCLIP",
        {
            "default": {},
            "x0": {**X0, "clip_sample_range": 5.0},
            "no_clip": {"clip_sample": False},
            "learned_range": {"variance_type": "learned_range"},
        },
    ),
]
ONE_INDEXED = list({case.kind: case for case in reversed(INDEXED)}.values())[::-1]
