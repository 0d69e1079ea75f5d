"""Every solver on every schedule, grid and number of steps: which builds are refused, and why.

    python bench/attack/builds.py [--steps 1,2,3,5,8,15,30,100] [--out FILE] [--only NAME]
    python bench/attack/builds.py --dropins [--out FILE]

A build is fine if it returns a plan, or if it raises an error that the solver's docstring promises
for that schedule. All others are counted as `refused`, with the message. The report is JSON:
counts, and the refused builds. The second form is `attack/dropins.py`: settings of diffusers'
schedulers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

from diffast import grids, schedules, solvers

RESULTS = Path(__file__).resolve().parents[1] / "results"
STEPS = (1, 2, 3, 5, 8, 15, 30, 100)

LINEAR = np.linspace(1e-4, 0.02, 1000)
SCALED = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


def _cosine_betas(count=1000):
    bar = np.cos((np.linspace(0.0, 1.0, count + 1) + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1.0 - bar[1:] / bar[:-1], 0.999)


SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "sub_vp": schedules.sub_vp(),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "edm_wide": schedules.edm(1e-4, 700.0),
    "flow": schedules.flow(),
    "trig": schedules.trig(),
    "betas_linear": schedules.from_betas(LINEAR),
    "betas_scaled": schedules.from_betas(SCALED),
    "betas_cosine": schedules.from_betas(_cosine_betas()),
    "zero_snr": schedules.from_betas(schedules.zero_terminal_snr(SCALED)),
    "functions": schedules.from_functions(
        lambda t: np.cos(0.5 * np.pi * t), lambda t: np.sin(0.5 * np.pi * t)
    ),
}

# Grids of (schedule, steps). Those that a schedule does not have (a level above its first, more
# steps than training indices) raise ValueError themselves: there is then nothing to build.
GRIDS = {
    name: getattr(grids, name)
    for name in (
        *("default", "uniform_time", "uniform_logsnr", "karras", "exponential", "lu"),
        *("polyexponential", "laplace", "kl_optimal", "beta_sigmas", "uniform_flow"),
        *("trailing", "leading", "linspace", "simple", "normal", "sgm_uniform", "ddim_uniform"),
        *("beta", "flow_sigmas", "linear_quadratic", "ays", "vp"),
    )
}
GRIDS["even_arctan"] = partial(grids.even, clock="arctan")
GRIDS["karras_open"] = partial(grids.karras, to_zero=False)
GRIDS["uniform_logsnr_open"] = partial(grids.uniform_logsnr, to_zero=False)
GRIDS["shifted_3"] = lambda schedule, n: grids.shifted(schedule, grids.default(schedule, n), 3.0)

# Options beside the defaults.
OPTIONS = {
    "ddim": [{"eta": 0.5}, {"eta": 1.0}],
    "euler_ancestral": [{"eta": 0.5}],
    "heun": [{"clock": "flow"}],
    "dpm_solver_3s": [{"kind": "heun"}],
    "dpmpp_3s": [{"kind": "heun"}],
    "singlestep": [{"orders": 3}, {"form": "noise"}, {"kind": "heun"}],
    "dpmpp_2m": [{"kind": "heun"}, {"final": "falling"}, {"final": "full"}],
    "dpmpp_3m": [{"form": "compat"}, {"kind": "midpoint"}, {"start": "single"}, {"final": "full"}],
    "dpm_solver_2m": [{"kind": "heun"}, {"start": "single"}, {"final": "full", "kind": "heun"}],
    "dpm_solver_3m": [{"form": "compat"}, {"start": "single"}, {"final": "falling"}],
    "unipc": [
        {"order": 1},
        {"order": 3},
        {"form": "noise"},
        {"form": "noise", "order": 3},
        {"variant": "bh1"},
        {"variant": "bh1", "form": "noise", "order": 3},
        {"corrector": False},
        {"order": 3, "start": "single"},
        {"order": 3, "final": "full", "form": "noise"},
    ],
    "deis": [
        {"order": 2},
        {"order": 4},
        {"clock": "sigma"},
        {"start": "single"},
        {"final": "full"},
    ],
    "adams": [
        {"order": order, "clock": clock, "form": form}
        for order in (2, 3, 5)
        for clock in ("flow", "lam", "rho", "arctan", "snr")
        for form in ("velocity", "data", "noise")
    ],
    "lms": [{"order": 2}, {"order": 3}, {"start": "single"}, {"final": "full"}],
    "ipndm": [{"order": 2}, {"order": 3}, {"final": "falling"}, {"final": "full"}],
    "ipndm_v": [{"order": 3}, {"form": "compat"}, {"order": 3, "form": "compat"}],
    "plms": [{"start": "repeat"}, {"start": "prk"}, {"order": 2}, {"final": "full"}],
    "gradient_estimation": [{"gamma": 1.5}, {"gamma": 3.0}, {"final": "full"}],
    "exponential_adams": [{"order": 2}, {"order": 4}, {"order": 4, "start": "single"}],
    "dpmpp_2m_sde": [{"kind": "heun"}, {"eta": 0.5}],
    "dpmpp_3m_sde": [{"form": "exact"}, {"eta": 0.5}],
    "dpm_solver_2m_sde": [{"kind": "heun"}],
    "sa_solver": [{"form": "noise"}, {"kind": "few_steps"}, {"predictor_order": 3}, {"tau": 0.0}],
    "ddpm": [{"variance": "large"}],
    "seeds_3": [{"eta": 0.0}],
    "er_sde": [{"order": 1}, {"order": 2}],
    "tcd": [{"gamma": 1.0}],
    "churn": [{"s_churn": 5.0}, {"s_churn": 5.0, "base": "euler"}],
    "ghvb": [{"damping": 1.0}, {"order": 2}],
    "heavy_ball": [{"inner": "dpmpp_2m"}],
}
NEEDED = {  # arguments without a default
    "restart": {"intervals": [(0.1, 1.0, 2, 3)]},
    "dpom": {"lipschitz": 10.0},
    "dpum": {"lipschitz": 10.0},
}
# What docstrings promise to refuse: solver -> words of the message.
PROMISED = {
    "piadm_sde": ("alpha^2 + sigma^2", "the OU time"),
    "piadm_ode": ("alpha^2 + sigma^2", "the OU time"),
    "dpom": ("the OU time",),  # a grid that starts at alpha = 0
    "dpum": ("the OU time",),
    "restart": ("no step of the grid ends above", "of the grid time nearest to low"),
    "adams": ("rounding is all that is left",),
}


def made_grids(names):
    """Yields (schedule's name, grid's name, steps, schedule, grid) of all that exist."""
    for schedule_name, schedule in SCHEDULES.items():
        for grid_name, make in GRIDS.items():
            for steps in names:
                try:
                    grid = make(schedule, steps)
                except (ValueError, TypeError):
                    continue
                yield schedule_name, grid_name, steps, schedule, grid


def builders(only):
    """Yields (name, options, builder)."""
    for name, build in solvers.SOLVERS.items():
        if only and name != only:
            continue
        for options in ({}, *OPTIONS.get(name, ())):
            yield name, NEEDED.get(name, {}) | options, build


def attack(steps, only=None):
    """Returns the report of all builds."""
    counts, refused, promised = Counter(), [], Counter()
    ready = [*made_grids(steps)]
    for name, options, build in builders(only):
        for schedule_name, grid_name, count, schedule, grid in ready:
            counts["builds"] += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    build(schedule, grid, **options)
            except ValueError as error:
                if any(words in str(error) for words in PROMISED.get(name, ())):
                    counts["refused as promised"] += 1
                    promised[name] += 1
                    continue
                counts["refused"] += 1
                case = [name, options, schedule_name, grid_name, count]
                refused.append({"case": case, "error": str(error)})
            except Exception as error:
                counts["crashed"] += 1
                case = [name, options, schedule_name, grid_name, count]
                refused.append({"case": case, "error": f"{type(error).__name__}: {error}"})
    return {"counts": dict(counts), "promised": dict(promised), "refused": refused}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--only", help="one solver")
    parser.add_argument("--dropins", action="store_true", help="settings of diffusers' schedulers")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    if options.dropins:
        import dropins

        report, name = dropins.attack(), "attack_dropin_builds.json"
    else:
        steps = [int(each) for each in options.steps.split(",")]
        report, name = attack(steps, options.only), "attack_builds.json"
    report["seconds"] = round(time.monotonic() - begun, 1)
    out = options.out or RESULTS / name
    out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(json.dumps(report["counts"]), f"-> {out}")
    return 1 if report["counts"].get("refused") or report["counts"].get("crashed") else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
