"""Splitting solvers on the guided mixture of the tests: the tables of docs/splitting.md.

    python -m bench.splitting_mixture

Eight Gaussians on a ring in four classes, exact network, exact or rough classifier, 256 samples,
steps even in the index of a table of 1,000 betas. Results: bench/results/splitting_mixture.json.
"""

from __future__ import annotations

import json
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np

import diffast as df

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))
from guided_mixture import GuidedMixture
from numpy_executor import walk

RESULTS = Path(__file__).parent / "results" / "splitting_mixture.json"
STEPS = (6, 8, 10, 15, 20, 30, 50, 100)
# Name, guidance scale, error of the classifier's gradient.
PROBLEMS = (("smooth", 4.0, 0.0), ("rough", 1.0, 0.5))

S = df.solvers
PLMS = partial(S.ipndm, final="full")
METHODS = {
    "`euler` (DDIM)": S.euler,
    "PLMS4": PLMS,
    "`dpmpp_2m`": S.dpmpp_2m,
    "LTSP4, released": partial(S.ltsp, inner="plms", compat="released"),
    "STSP2, released": partial(S.stsp, inner="plms", order=2, compat="released"),
    "STSP4, released": partial(S.stsp, inner="plms", compat="released"),
    "`stsp`, inner PLMS4": partial(S.stsp, inner=PLMS),
    "`ltsp`": S.ltsp,
    '`ltsp`, first="guidance"': partial(S.ltsp, first="guidance"),
    "`stsp`": S.stsp,
    "`stsp`, merged": partial(S.stsp, merged=True),
    '`stsp`, inner="lms"': partial(S.stsp, inner="lms"),
    '`stsp`, guidance="rk2"': partial(S.stsp, guidance="rk2"),
    '`ltsp`, guidance="heavy_ball"': partial(S.ltsp, guidance="heavy_ball"),
    "`additive_multistep`": S.additive_multistep,
    '`additive_multistep`, "adams"': partial(S.additive_multistep, guidance="adams"),
    "`stsp`, Heun and RK2": partial(S.stsp, inner="heun", guidance="rk2"),
}


def errors(scale: float, rough: float, batch: int = 256) -> dict[str, list[float]]:
    """Returns the root mean square distance to the ODE's solution, a number of steps each."""
    table = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    random = np.random.default_rng(0)
    problem = GuidedMixture(table, random.integers(0, 4, batch), scale, rough)
    x = random.normal(size=(batch, 2))
    ends = df.grids.linspace(table, 6)[[0, -1]]
    truth = problem.reference(x, *ends)

    def guided(x, t):
        alpha, sigma = problem.levels(t)
        return problem.x0(x, t) + sigma**2 / alpha * problem.gradient(x, t)

    found = {}
    for name, build in METHODS.items():
        found[name] = []
        for steps in STEPS:
            plan = build(table, df.grids.linspace(table, steps))
            own = plan.gradients is not None
            gradients = {"g1": problem.gradient} if own else None
            end = walk(plan, problem.x0 if own else guided, x, gradients=gradients)[-1]["x"]
            found[name].append(float(np.sqrt(((end - truth) ** 2).sum(1).mean())))
        print(name, found[name], flush=True)
    return found


def table_of(found: dict[str, list[float]]) -> str:
    """Returns the table in Markdown."""
    lines = ["| steps | " + " | ".join(map(str, STEPS)) + " |", "|" + "---|" * (1 + len(STEPS))]
    for name, row in found.items():
        cells = [f"{v:.3g}" if v < 10 else f"{v:.0f}" for v in row]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.simplefilter("ignore", df.PlanWarning)
    held = {name: errors(scale, rough) for name, scale, rough in PROBLEMS}
    RESULTS.write_text(json.dumps({"steps": STEPS, **held}, indent=1) + "\n")
    for name, found in held.items():
        print(f"\n{name}\n\n{table_of(found)}")
