"""What a profile is good for: the plan that it alone asks for, against others, at 5, 8, 10 calls.

    python bench/profile_plans.py moons-edm moons-flow moons-vp     # minutes each
    python bench/profile_plans.py digits                            # half an hour on one core

Errors are rms distances to a teacher's samples from the same held-out noises, over their spread.
Results are written to bench/results/profile_plans.json, a problem at a time. Errors of plans that
were measured before are kept in --work, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure_tuned_grids as small
import numpy as np
import torch

import diffast as df
from diffast.plans.provenance import digest
from diffast.thermo import surrogate as stand_in
from diffast.thermo.surrogate.choose import _stand_in, candidates
from diffast.tuning import grids as measured
from diffast.tuning.candidates import plans_for, starts_late
from diffast.tuning.judge import Judge, samples_of
from diffast.tuning.pilots import HELD_OUT, Pilots, ids_of

RESULTS = Path(__file__).parent / "results" / "profile_plans.json"
BUDGETS = (5, 8, 10)


def vp_network(iterations: int = 4000) -> df.Denoiser:
    """Returns a network of the two moons that predicts epsilon on a VP schedule."""
    torch.manual_seed(0)
    draw, schedule = torch.Generator().manual_seed(1), df.schedules.vp_linear()
    network = small.Field()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    first, last = float(schedule.t_start), float(schedule.t_min)
    for _ in range(iterations):
        x0, noise = small.moons(512, draw), torch.randn(512, 2, generator=draw)
        t = last + (first - last) * torch.rand(512, 1, generator=draw)
        alpha, sigma = (
            torch.as_tensor(f(t.double().numpy())).float() for f in (schedule.alpha, schedule.sigma)
        )
        loss = ((network(alpha * x0 + sigma * noise, 4 * t) - noise) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    network.eval().requires_grad_(False)
    return df.Denoiser(lambda x, t: network(x, 4 * t), schedule, predicts="epsilon")


def problem(name: str) -> tuple[df.Denoiser, int, int, tuple[int, ...], torch.Tensor | None]:
    """Returns (denoiser, rows of the profile, held-out noises, shape, data for the profile)."""
    if name == "digits":
        return small.digits(), 64, 96, (1, 28, 28), None
    data = small.moons(256, torch.Generator().manual_seed(9))
    kind = name.removeprefix("moons-")
    network = vp_network() if kind == "vp" else small.trained(kind)
    return network, 256, 1024, (2,), data


class Errors:
    """Held-out errors of plans, kept in a file by the digest of the plan's numbers."""

    def __init__(self, name: str, denoiser: df.Denoiser, held: int, shape: tuple, work: Path):
        """Runs the teacher, or reads its samples."""
        self.file, ends = work / f"errors-{name}.json", work / f"teacher-{name}.pt"
        self.known = json.loads(self.file.read_text()) if self.file.exists() else {}
        if not ends.exists():
            made = measured.HeldOut(denoiser, (held, *shape), rows=max(held, 64))
            accuracy = torch.tensor(made.accuracy)
            torch.save({"wanted": made.judge.wanted, "accuracy": accuracy}, ends)
        kept = torch.load(ends, weights_only=True)
        self.judge, self.accuracy = Judge(kept["wanted"]), float(kept["accuracy"])
        self.ids, self.rows = ids_of(held, HELD_OUT), max(held, 64)
        self.pilots = Pilots(denoiser, shape, 0, denoiser.device())

    def __call__(self, plan: df.Plan) -> float:
        """Returns the error of a plan."""
        key = digest(plan)
        if key not in self.known:
            made = samples_of(plan, self.pilots, self.ids, self.rows)
            self.known[key] = self.judge.error(made)
            self.file.write_text(json.dumps(self.known))
        return self.known[key]


def profile_of(denoiser: df.Denoiser, rows: int, shape: tuple, data: torch.Tensor | None) -> Any:
    """Returns the profile of a network: one sweep over the levels, and nothing else.

    Where no data are given the network's own samples stand for them.
    """
    own = {key: value[:rows] for key, value in denoiser.conditions.items()}
    network = replace(denoiser, conditions=own)
    if data is not None:
        return df.thermo.profile(network, data[:rows], measure=())
    return df.thermo.profile(network, shape=(rows, *shape), count=rows, measure=())


def compared(name: str, work: Path, tuned: bool, keep: Callable[[dict], None]) -> None:
    """Measures errors by kind of choice and calls, with names and costs; kept after each budget."""
    denoiser, rows, held, shape, data = problem(name)
    kept = work / f"profile-{name}.json"
    if not kept.exists():
        profile_of(denoiser, rows, shape, data).save(kept)
    profile = df.thermo.Profile.load(kept)
    errors = Errors(name, denoiser, held, shape, work)
    surrogate = stand_in.Surrogate.fit(profile)
    result: dict = {"misfit": surrogate.misfit, "teacher": errors.accuracy}
    result |= {"profile evaluations": profile.rows_called, "calls": {}}
    for calls in BUDGETS:
        rows_of: dict = {}

        def put(kind: str, plan: df.Plan, table: dict = rows_of, **facts) -> None:
            table[kind] = {"plan": plan.name, "error": errors(plan)} | facts

        put("df.plan", df.plan(denoiser, calls))
        named = {n: p for n, p in plans_for(denoiser, calls) if not starts_late(p)}
        best = min((n for n in named if n != "df.plan"), key=lambda n: errors(named[n]))
        rows_of["best standard plan, after the fact"] = {
            "plan": best,
            "error": errors(named[best]),
        }
        for how in stand_in.HOWS:
            started = time.perf_counter()
            plan = stand_in.plan_of_profile(profile, denoiser, calls, how=how)
            seconds = time.perf_counter() - started
            put(f"profile, {how}", plan, seconds=seconds, said=surrogate.error(plan))
        said, true = [], []
        like = _stand_in(surrogate, denoiser)
        for _, plan in candidates(stand_in.Curve.of(profile), like, calls):
            said.append(surrogate.error(plan))
            true.append(errors(plan))
        ranks = [np.argsort(np.argsort(v)) for v in (said, true)]
        ratio = np.array(said) / np.array(true)
        rows_of["surrogate"] = {
            "plans": len(said),
            "rank correlation": float(np.corrcoef(*ranks)[0, 1]),
            "said / true, quartiles": np.quantile(ratio, [0.25, 0.5, 0.75]).tolist(),
            "best after the fact": min(true),
            "best of its first five": min(np.array(true)[np.argsort(said)[:5]].tolist()),
        }
        rows_of["measured grids, after the fact"] = on_measured(name, denoiser, calls, errors)
        if name == "digits":
            plan = df.digits.load_plan(calls)
            rows_of["df.tune"] = {"plan": plan.name, "error": errors(plan), "shipped": True}
        elif tuned:
            rows_of |= tunings(denoiser, calls, errors, profile)
        result["calls"][calls] = rows_of
        shown = {k: v["error"] for k, v in rows_of.items() if "error" in v}
        keep(result)
        print(name, calls, json.dumps({k: round(v, 4) for k, v in shown.items()}), flush=True)


def on_measured(name: str, denoiser: df.Denoiser, calls: int, errors: Errors) -> dict:
    """Returns the best solver on a grid that `df.tuning.grids` measures with runs of the network.

    On the digits these are the figures of bench/results/tuned_grids.json: the same noises.
    """
    if name == "digits":
        table = json.loads((RESULTS.parent / "tuned_grids.json").read_text())["digits"]
        lines = table["calls"][str(calls)]
        own = {n: e for n, e in lines.items() if n.split(", ")[-1] in measured.NAMES}
        best = min(own, key=lambda n: own[n])
        return {"plan": best, "error": own[best], "evaluations": 24 * table["pilot"]}
    pilot = measured.Pilot(denoiser, (64, 2))
    plans = dict(measured.candidates(denoiser, pilot, calls))
    best = min(plans, key=lambda n: errors(plans[n]))
    return {"plan": best, "error": errors(plans[best]), "evaluations": 64 * pilot.calls}


def tunings(denoiser: df.Denoiser, calls: int, errors: Errors, profile: Any) -> dict:
    """Returns `df.tune` from standard starts, and from plans of the profile alone."""
    found = {}
    for kind in ("df.tune", "df.tune from profile, surrogate", "df.tune from profile, learned"):
        options: dict = {}
        if kind != "df.tune":
            how = kind.rpartition(" ")[2]
            start = stand_in.plan_of_profile(profile, denoiser, calls, how=how)
            options = {"start": start, "measured_grids": False, "starts": 1}
        result = df.tune(
            denoiser,
            calls,
            (1024, 2),
            batch=128,
            rows=1024,
            freedom=("levels", "weights", "times", "scale"),
            seed=1,
            compare=(),
            progress=False,
            **options,
        )
        found[kind] = {
            "plan": result.plan.name,
            "error": errors(replace(result.plan, made_for=None)),
            "evaluations": result.network_calls,
            "history": result.history,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="+")
    parser.add_argument("--work", type=Path, default=Path("/tmp/profile_plans"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--no-tune", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    for name in given.problems:

        def keep(made: dict, name: str = name) -> None:
            known = json.loads(given.out.read_text()) if given.out.exists() else {}
            given.out.write_text(json.dumps(known | {name: made}, indent=1) + "\n")

        compared(name, given.work, not given.no_tune, keep)


if __name__ == "__main__":
    main()
