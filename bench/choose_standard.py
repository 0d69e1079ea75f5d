"""Solvers and grids for `df.plan` where no row is learned: the least worst ratio over problems.

    python -m bench.choose_standard ode KIND GUIDED     deterministic, by the rms to a fine solution
    python -m bench.choose_standard sde KIND GUIDED     with fresh noise, by sliced W2 to the data

A ratio is the error of a setting over the least error of all settings on the same problem.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import torch

import diffast as df
from bench.make_plan_table import NETWORKS, ROWS, SLOW
from bench.networks import problems
from bench.networks.own_runs import follow
from bench.networks.problems import Problem
from diffast import solvers
from diffast.planning.choose import grid_of

CALLS = {"ode": (4, 8, 20, 200), "sde": (5, 20)}
SPACINGS = ("karras", "flow", "flow^1.5", "flow^2")
# Trained networks under guidance, as that of examples/own_network.py, make errors of epsilon that
# closed forms do not have: on grids even in tau the first steps are too large for them.
TRAINED = ("karras", "uniform_time")
ODE = [
    ("euler", {}),
    ("dpmpp_2m", {}),
    ("dpmpp_3m", {}),
    ("unipc", {"order": 2}),
    ("unipc", {"order": 3, "final": "falling"}),
    ("deis", {"order": 3}),
    ("adams", {"order": 2, "clock": "flow", "form": "velocity"}),
    ("adams", {"order": 3, "clock": "flow", "form": "velocity"}),
    ("adams", {"order": 3, "clock": "flow", "form": "velocity", "final": "falling"}),
]
# In very many steps those on x0 alone: others cancel near alpha = 0, see `Plan`'s check.
LONG = ("dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde")
SDE = [
    ("ddim", {"eta": 1.0}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_3m_sde", {"form": "exact"}),
    ("sa_solver", {}),
    ("er_sde", {}),
]


def of_kind(kind: str, guided: bool, rows: int) -> list[Problem]:
    """Returns the quick problems of a kind; the network that is held out is not among them."""
    if guided:
        imperfect = problems.imperfect_forms(rows) if kind == "vp" else []
        return problems.guided_forms(kind, rows) + imperfect
    every = problems.closed_forms(kind, rows)
    some = ("moons", "spirals", "64-D", "spectrum")
    found = [p for p in every if p.name.partition(" (")[0] in some]
    found += problems.imperfect_forms(rows) if kind == "vp" else []
    return found + [problems.network(n) for n in NETWORKS[kind] if n not in SLOW]


def data(problem: Problem, rows: int) -> torch.Tensor:
    """Returns samples of a closed form's data [rows, D]."""
    assert problem.closed is not None
    means, variance, *_ = problem.closed
    generator = torch.Generator().manual_seed(9)
    which = torch.randint(0, len(means), (rows,), generator=generator)
    noise = torch.randn(rows, means.shape[1], dtype=torch.float64, generator=generator)
    return means[which] + variance.sqrt() * noise


def sliced(a: torch.Tensor, b: torch.Tensor, directions: int = 64) -> float:
    """Returns the sliced 2-Wasserstein distance of two sets [N, D] of equal size."""
    generator = torch.Generator().manual_seed(5)
    way = torch.randn(a.shape[1], directions, dtype=torch.float64, generator=generator)
    way = way / way.norm(dim=0)
    one, other = ((t.double() @ way).sort(0).values for t in (a, b))
    value = float((one - other).square().mean().sqrt())
    return value if np.isfinite(value) else 1e9


def law_error(problem: Problem, plan: df.Plan) -> float:
    """Returns the sliced W2 of a plan's samples to the data, over the spread."""
    rows = 1000 if problem.shape[1] == 2 else 500
    schedule, start = problem.schedule, np.float64(problem.schedule.t_start)
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(rows, problem.shape[1], generator=generator)
    x = float(schedule.sigma(start)) * noise
    made = df.sample(problem.denoiser, plan, x=x).x
    wanted = data(problem, rows)
    return sliced(made, wanted) / float((wanted - wanted.mean(0)).square().mean().sqrt())


def choose(what: str, kind: str, guided: bool) -> list:
    """Returns [calls, solver, options, grid, worst ratio] for each number of calls."""
    every = of_kind(kind, guided, 128)
    if what == "sde":
        every = [p for p in every if p.closed is not None and p.shape[1] < 256]
    tried = TRAINED if guided and kind == "vp" else SPACINGS
    found = []
    for n in CALLS[what]:
        names, errors = [], []
        for name, options in ODE if what == "ode" else SDE:
            if n > 100 and name not in LONG:
                continue
            for spacing in tried if n <= 100 else SPACINGS[2:]:
                row = []
                for p in every:
                    try:
                        grid = grid_of(spacing, p.schedule, n)
                        plan = getattr(solvers, name)(p.schedule, grid, **options)
                    except ValueError:
                        break
                    error = p.error(follow(p, plan)[0]) if what == "ode" else law_error(p, plan)
                    row.append(max(error, 1e-6))
                else:
                    names.append([name, options, spacing])
                    errors.append(row)
        table = np.array(errors)
        worst = (table / table.min(0)).max(1)
        best = int(worst.argmin())
        found.append([n, *names[best], round(float(worst[best]), 3)])
        print(what, kind, guided, found[-1], flush=True)
    return found


def main() -> None:
    """Chooses what is asked for."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    what, kind, guided = sys.argv[1:]
    found = choose(what, kind, guided == "1")
    ROWS.mkdir(parents=True, exist_ok=True)
    (ROWS / f"{what}_{kind}_{guided}.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
