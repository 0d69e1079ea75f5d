"""`df.tune`: a plan made for a network."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch

from diffast import __version__
from diffast.executors.context import progress_bar
from diffast.model.denoiser import Denoiser
from diffast.model.fingerprint import fingerprint
from diffast.plans import Plan
from diffast.plans.overshoot import PlanWarning
from diffast.tuning.arguments import Settings, check_arguments
from diffast.tuning.candidates import plans_for, starts_late
from diffast.tuning.directions import PairedParameters, stages_of
from diffast.tuning.form import Form, form_of
from diffast.tuning.grids import measured
from diffast.tuning.judge import Features, Judge, samples_of
from diffast.tuning.law import LawJudge
from diffast.tuning.memo import Memo
from diffast.tuning.parameters import Parameters
from diffast.tuning.pilots import HELD_OUT, Conditions, Pilots, ids_of, pieces
from diffast.tuning.repeat import check_repeats
from diffast.tuning.result import Measured, TuneResult
from diffast.tuning.teacher import check_finite, find_teacher
from diffast.tuning.walk import ROUND, Walk, cost

# How many candidates are measured on all held-out noises, and how many on other budgets.
_FINALISTS, _COMPARED = 6, 12
# Calls a pilot that measured grids take, about; for the statement of the cost.
_GRID_CALLS = 380
# More pilots are asked for where the held-out error is so many times that of the pilots.
_OVERFIT = 1.3
# Iterations that a start has before the best start is chosen.
_TRIAL = 2


def tune(
    denoiser: Denoiser,
    calls: int = 8,
    shape: Sequence[int] = (),
    *,
    stochastic: bool = False,
    freedom: Sequence[str] | None = None,
    conditions: Conditions | None = None,
    held_out: int | None = None,
    batch: int = 32,
    iterations: int = 12,
    starts: int = 2,
    polish: int = 0,
    checkpoint: bool = False,
    seed: int = 0,
    features: Features | None = None,
    tolerance: float = 0.003,
    measured_grids: bool = True,
    compare: Sequence[float] = (2,),
    start: Plan | None = None,
    rows: int | None = None,
    memory_limit: int = 2**30,
    resume: str | PathLike | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> TuneResult:
    """Returns a plan of so many network calls that is made for this network.

    Standard solvers and grids are measured first, against a fine reference (the teacher) from the
    same noises. Then the numbers of the best ones are learned: the noise levels of the calls, every
    weight that a plan's self-check leaves free, and more where `freedom` says so. The plan is a
    `df.Plan` as all others, and holds what it was made for (`Plan.made_for`).

    The error is the root mean square distance to the teacher's samples over their spread. It is
    measured on held-out noises, which learning does not see. They choose between iterations and
    starts, and the result is never worse on them than the best standard plan.

    Learning is Levenberg and Marquardt's method with derivatives by differences. It calls the
    network forwards alone, so networks without gradients (compiled, quantised) are tuned as well.

    The related work learns levels, weights or both: bespoke solvers (Shaul et al. 2024,
    arXiv:2403.01329), LD3 (Tong et al. 2025, arXiv:2405.15506), S4S (Frankel et al. 2025,
    arXiv:2502.17423).

    Args:
        denoiser: the network, in eval mode. Pilot i has row i of its conditions, counted around
            their end.
        calls: network calls of the plan, at least 1. With guidance a call on both branches is one.
        shape: [B, ...] of the pilots that are learned from; B of 32 to 128 is enough.
        stochastic: whether the plan draws fresh noise. What is compared is then the law of the
            samples, by the sliced Wasserstein-2 distance over the spread. It falls to about
            1 / sqrt(B) for the teacher's own samples, so B and `held_out` of 1,000 and more are
            needed, and `batch` is B.
        freedom: what is learned; None: "levels", "weights", "times" and "scale", with "noise" in
            stochastic plans and "start" in others. Choose among "levels", "weights", "times" (the
            time that the network is told), "scale" (of the state, off the schedule), "start" (the
            level of the initial state, which is noise alone), "guidance" (a scale for each call),
            "noise" (the share of fresh noise of each step), "directions" (a stage calls the network
            on two inputs at once; both calls are counted; `df.sample` alone runs such plans).
        conditions: called as conditions(ids) with ids [B] int64; returns named conditions of B
            rows, or a pair of them for the two branches of guidance. It has to return the same
            rows for the same ids.
        held_out: number of held-out noises; None: as many as pilots.
        batch: pilots of one iteration.
        iterations: of learning.
        starts: how many of the best standard plans learning tries to start from.
        polish: iterations of gradient descent afterwards, where the network has a gradient; 100 to
            300 gain some 5 to 10 percent.
        checkpoint: whether the polish computes activations again, in place of keeping those of all
            calls: a third more time, and the memory of one call.
        seed: of the noises and of the choice of pilots. The same call gives the same plan.
        features: what is compared, a function of samples [B, ...]; None: the samples themselves.
        tolerance: accuracy of the teacher, as a share of the spread.
        measured_grids: whether grids that are measured on the network are candidates too
            (`df.tuning.grids`). With stochastic plans they are not.
        compare: budgets, as multiples of `calls`, at which standard plans are measured too.
        start: a further plan to start from, of so many calls at most.
        rows: rows of one network call, at most; None: 64 on a CPU, 512 on other devices.
        memory_limit: bytes that states and derivatives of learning may take, without what the
            network needs inside; the latter is bounded by `rows`.
        resume: a file that keeps what was worked out. A run that was killed goes on from it, and
            returns the same plan to the bit. A file of a run with other arguments is refused.
        device: where to run; None: where the network is.
        progress: whether to state the cost before the work, and show a bar, on stderr.

    Raises:
        ValueError: for arguments that disagree; a file that is of another run; a network whose
            samples are not finite or do not differ.
    """
    given = locals()
    settings = check_arguments(**given)
    return _Tuning(settings, Memo(resume, settings.record())).result()


class _Tuning:
    """One run of `tune`, step after step; each is in the memo once it is done."""

    def __init__(self, settings: Settings, memo: Memo):
        self.settings, self.memo = settings, memo
        self.denoiser = settings.denoiser
        self.pilots = Pilots(
            settings.denoiser,
            settings.shape[1:],
            settings.seed,
            settings.device,
            settings.conditions,
        )
        self.train = ids_of(settings.shape[0])
        self.held = ids_of(settings.held_out, HELD_OUT)
        self.notes: list[str] = list(settings.notes)
        self.bar: Any = None

    def say(self, note: str) -> None:
        """Keeps a note, and shows it."""
        self.notes.append(note)
        if self.settings.progress:
            print(f"tune: {note}", file=sys.stderr)

    def result(self) -> TuneResult:
        """Returns what comes of it."""
        settings = self.settings
        some = torch.cat([self.train[-2:], self.held[-2:]])
        check_repeats(
            self.denoiser, self.pilots, some, settings.features, self.memo, self.notes.append
        )
        candidates = self._candidates(settings.calls)
        if settings.measured_grids and not settings.stochastic:
            candidates |= self._measured()
        if settings.start is not None:
            candidates["the start given"] = settings.start
        if not candidates:
            raise ValueError(
                f"tune: no solver has a plan of {settings.calls} calls for {self.denoiser.schedule}"
            )
        total = self._state_cost(len(candidates))
        with progress_bar(total, "tune", "call", settings.progress) as self.bar, torch.no_grad():
            teacher, accuracy = find_teacher(
                self.denoiser, self.pilots, settings.rows, settings.tolerance, self.memo, self.say
            )
            self._teach(teacher)
            ranked = self._screen(candidates, "screen")
            table = self._standard(ranked, candidates)
            best = min(table, key=lambda row: row.error)
            vector, parameters, history = self._learn(ranked, candidates)
            compared = self._compare([name for name, _ in ranked])
        plan, error, name = candidates[best.name], best.error, best.name
        if parameters is not None:
            learned = parameters.form_at(torch.from_numpy(vector)).plan("tuned")
            found = min(history)
            table.append(Measured("tuned", learned.nfe, found, "tuned"))
            if found < error:
                plan, error, name = learned, found, "tuned"
        if name != "tuned":
            self.say(f"nothing learned was better than {name}, which is the result")
        table = sorted([*table, *compared], key=lambda row: row.error)
        facts = {"name": teacher.name, "calls": teacher.nfe, "accuracy": accuracy}
        return TuneResult(
            self._named(plan, name, best, table, facts),
            error,
            best,
            tuple(table),
            facts,
            self._counted(),
            tuple(history),
            tuple(self.notes),
        )

    def _candidates(self, calls: int) -> dict[str, Plan]:
        """Returns the standard plans of at most so many calls, by name."""
        made = dict(plans_for(self.denoiser, calls, self.settings.stochastic))
        if "start" in self.settings.freedom or self.settings.stochastic:
            return made
        first = float(self.denoiser.schedule.t_start)
        return {name: plan for name, plan in made.items() if plan.start == first}

    def _measured(self) -> dict[str, Plan]:
        """Returns plans on grids that are measured on the network, by name."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PlanWarning)  # an unstable one is measured as such
            calls, count = self.settings.calls, len(self.train)
            return measured(self.denoiser, self.pilots, calls, self.memo, count)

    def _teach(self, teacher: Plan) -> None:
        """Works out the teacher's samples of all pilots."""
        ids = torch.cat([self.train, self.held])
        made = []
        for i, piece in enumerate(pieces(len(ids), self.settings.rows)):
            own = ids[piece]
            made.append(self.memo.tensor(f"ends {i}", lambda own=own: self._samples(teacher, own)))
            self.memo(f"calls of ends {i}", lambda own=own: {"calls": teacher.nfe * len(own)})
        ends = torch.cat(made)
        check_finite(ends, teacher)
        count = len(self.train)
        self.judge, self.held_judge = (self._judge(part) for part in (ends[:count], ends[count:]))

    def _judge(self, ends: torch.Tensor) -> Judge | LawJudge:
        """Returns what measures errors against the teacher's samples of some pilots."""
        settings = self.settings
        if settings.stochastic:
            return LawJudge(ends, settings.features, settings.seed, settings.device)
        return Judge(ends, settings.features, settings.device)

    def _samples(self, plan: Plan, ids: torch.Tensor) -> torch.Tensor:
        return samples_of(plan, self.pilots, ids, self.settings.rows, self.bar.update)

    def _screen(self, candidates: dict[str, Plan], key: str) -> list[tuple[str, float]]:
        """Returns (name, error on some pilots) of candidates, best first."""
        ids = self.train[: self.settings.screened]
        found = [
            (name, self._error(f"{key}: {name}", plan, ids, self.judge))
            for name, plan in candidates.items()
        ]
        return sorted(found, key=lambda pair: pair[1])

    def _error(self, key: str, plan: Plan, ids: torch.Tensor, judge: Any) -> float:
        """Returns a plan's error on the first pilots that a judge has samples of."""

        def work() -> dict[str, Any]:
            error = judge.error(self._samples(plan, ids), slice(len(ids)))
            return {"error": error if error < math.inf else None, "calls": plan.nfe * len(ids)}

        error = self.memo(key, work)["error"]
        return math.inf if error is None else error

    def held_error(self, key: str, plan: Plan) -> float:
        """Returns a plan's error on the held-out noises."""
        return self._error(key, plan, self.held, self.held_judge)

    def _standard(self, ranked, candidates) -> list[Measured]:
        """Returns the held-out errors of the best standard plans."""
        found = []
        for name, _ in ranked[:_FINALISTS]:
            plan = candidates[name]
            error = self.held_error(f"held: {name}", plan)
            found.append(Measured(name, plan.nfe, error, "standard"))
        return found

    def _compare(self, names: list[str]) -> list[Measured]:
        """Returns held-out errors of standard plans with other budgets."""
        found = []
        for multiple in self.settings.compare:
            calls = round(multiple * self.settings.calls)
            plans = self._candidates(calls)
            plans = {name: plans[name] for name in names[: 2 * _COMPARED] if name in plans}
            ranked = self._screen(plans, f"{calls} calls")
            for name, _ in ranked[:2]:
                key = f"held, {calls} calls: {name}"
                error = self.held_error(key, plans[name])
                found.append(Measured(name, plans[name].nfe, error, "standard"))
        return found

    def _learn(self, ranked, candidates):
        """Returns (vector, parameters, held-out errors) of the best start; Nones for no start."""
        begun, grids, late = [], set(), False
        if "directions" in self.settings.freedom:
            stages = len(stages_of(self.settings.calls))
            candidates = self._candidates(stages)
            ranked = self._screen(candidates, f"{stages} stages")
        is_late = {name: starts_late(candidates[name]) for name, _ in ranked}
        lates = "start" in self.settings.freedom and any(is_late.values())
        for name, _ in ranked:
            grid = name.rpartition(", ")[2]
            # Starts of one grid lead to one end. The last place is kept for a late start.
            last = len(begun) == self.settings.starts - 1 > 0
            if grid in grids or (last and lates and not late and not is_late[name]):
                continue
            try:
                parameters = self._parameters(form_of(candidates[name]))
            except ValueError:  # a plan of fewer calls, or one that calls twice at one level
                continue
            if parameters.size:
                begun.append((name, parameters))
                grids.add(grid)
                late |= is_late[name]
            if len(begun) == self.settings.starts:
                break
        if not begun:
            self.say("no candidate can be learned from: none has levels that rise call by call")
            return None, None, []
        trial = min(_TRIAL, self.settings.iterations) if len(begun) > 1 else 0
        walks = [Walk(self, name, parameters) for name, parameters in begun]
        for walk in walks:
            walk.go(trial)
        best = min(walks, key=lambda walk: walk.best[0])
        best.go(self.settings.iterations)
        if self.settings.polish:
            best.polish(self.settings.polish)
        if best.trained is not None and best.best[0] > _OVERFIT * best.trained:
            self.say(
                f"the error is {best.trained:.3g} on the pilots and {best.best[0]:.3g} on the "
                f"held-out noises: more pilots than {len(self.train)} would help"
            )
        return np.array(best.best[1]), best.parameters, best.history

    def _parameters(self, form: Form) -> Parameters | PairedParameters:
        """Returns what is learned from a standard plan's form; ValueError where nothing can be."""
        settings = self.settings
        if "directions" in settings.freedom:
            return PairedParameters(form, self.denoiser, settings.freedom, settings.calls)
        if form.calls != settings.calls:
            raise ValueError(f"tune: a plan of {form.calls} calls, not {settings.calls}")
        return Parameters(form, self.denoiser, settings.freedom)

    def _state_cost(self, candidates: int) -> int:
        """Returns the network evaluations to come, by sample, and says what they will take."""
        settings = self.settings
        calls, trained, held = settings.calls, *(len(ids) for ids in (self.train, self.held))
        learned = settings.calls * (settings.calls - 1) // 2 + 3 * settings.calls
        total = 64 * (trained + held) + candidates * calls * settings.screened
        total += _FINALISTS * calls * held
        if settings.measured_grids and not settings.stochastic:
            total += _GRID_CALLS * min(max(settings.screened, 16), trained)
        rounds = settings.iterations + _TRIAL * (settings.starts - 1)
        total += rounds * (cost(settings, learned) + held * calls)
        total += settings.polish * 3 * settings.batch * calls
        total += settings.polish // ROUND * held * calls
        for multiple in settings.compare:
            total += round(multiple * calls) * (2 * _COMPARED * settings.screened + 2 * held)
        if settings.progress:
            seconds = total * self._seconds_a_call()
            print(
                f"tune: {calls} calls: about {total} network evaluations of one sample, "
                f"{seconds / 60:.1f} minutes by the time of the first ones; the teacher may double "
                "its steps",
                file=sys.stderr,
            )
        return total

    def _seconds_a_call(self) -> float:
        """Returns what one sample takes in a network call, measured on the second call."""
        ids = self.train[: self.settings.rows]
        plan = next(iter(dict(plans_for(self.denoiser, 1)).values()), None)
        if plan is None:
            return 0.0
        samples_of(plan, self.pilots, ids[:1], 1)
        begun = time.perf_counter()
        samples_of(plan, self.pilots, ids, self.settings.rows)
        return (time.perf_counter() - begun) / len(ids)

    def _counted(self) -> int:
        """Returns the network evaluations of the whole run, by sample, before a kill included."""
        done = self.memo.results.values()
        return sum(result["calls"] for result in done if isinstance(result, dict))

    def _named(self, plan, name, best, table, facts) -> Plan:
        """Returns the plan with its name and what it was made for."""
        denoiser, settings = self.denoiser, self.settings
        scale = denoiser.guidance
        made_for = {
            "predicts": denoiser.predicts,
            "network": fingerprint(denoiser.network),
            "guidance": None if callable(scale) else float(scale),
            "guides": [term.name for term in denoiser.guides],
            "calls": settings.calls,
            "shape": list(settings.shape[1:]),
            "seed": settings.seed,
            "freedom": list(settings.freedom),
            "measured": [row._asdict() for row in table],
            "teacher": facts,
            "held_out": settings.held_out,
            "diffast": __version__,
        }
        shown = f"tuned({plan.nfe} calls)" if name == "tuned" else plan.name
        return replace(plan, name=shown, made_for=made_for)
