"""Learning from one start: iterations, then a polish, with looks at the held-out noises."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from diffast.plans import Plan
from diffast.tuning.adam import Adam, Descent, begin, has_gradient
from diffast.tuning.arguments import Settings
from diffast.tuning.directions import PairedParameters
from diffast.tuning.judge import Judge
from diffast.tuning.law import LawJudge
from diffast.tuning.levenberg import Marquardt, Runner
from diffast.tuning.memo import Memo
from diffast.tuning.parameters import Parameters
from diffast.tuning.pilots import Pilots

# Iterations of the polish between two looks at the held-out noises.
ROUND = 20


class Tuning(Protocol):
    """What learning needs of a tuning run."""

    settings: Settings
    memo: Memo
    pilots: Pilots
    judge: Judge | LawJudge
    train: torch.Tensor
    bar: Any

    def say(self, note: str) -> None:
        """Keeps a note, and shows it."""
        ...

    def held_error(self, key: str, plan: Plan) -> float:
        """Returns a plan's error on the held-out noises."""
        ...


def cost(settings: Settings, size: int) -> int:
    """Returns the network evaluations of an iteration for so many learned numbers, by sample.

    A number's run begins at half the calls on average; a step is tried on twice the batch.
    """
    return settings.batch * settings.calls * (size // 2 + 1 + 2 * 2)


class Walk:
    """Learning from one start; every iteration is in the memo."""

    def __init__(self, tuning: Tuning, name: str, parameters: Parameters | PairedParameters):
        """Begins at the standard plan, whose held-out error comes first."""
        self.tuning, self.name, self.parameters = tuning, name, parameters
        settings = tuning.settings
        runner = Runner(parameters, tuning.pilots, settings.rows)
        numbers = int(np.prod(settings.shape[1:], dtype=np.int64))
        held = 8 * numbers * (parameters.size + 1) * (settings.calls + 4)
        chunk = int(max(1, min(settings.batch, settings.memory_limit // max(held, 1))))
        if settings.stochastic:  # a law is that of all pilots together
            chunk = settings.batch
        self.runner = runner
        probes = tuning.train if settings.stochastic else tuning.train[: settings.batch]
        self.marquardt = Marquardt(runner, tuning.judge.residual, chunk, probes)
        self.vector, self.damping, self.done = np.zeros(parameters.size), 1e-3, 0
        self.batch = settings.batch
        # Later batches may be larger. Learning ends where it has taken what all would have taken.
        self.left = settings.iterations * cost(settings, parameters.size)
        self.history: list[float] = []
        self.trained: float | None = None  # error of the pilots of the newest iteration
        first = tuning.held_error(f"learn {name}: start", self._plan())
        self.history.append(first)
        self.best = (first, self.vector.tolist())

    def _plan(self) -> Plan:
        return self.parameters.form_at(torch.from_numpy(self.vector)).plan("tuned")

    def go(self, iterations: int) -> None:
        """Goes on until so many iterations are done."""
        while self.done < iterations and self.left > 0:
            key = f"learn {self.name}: {self.done}"
            found = self.tuning.memo(key, self._iterate)
            self.vector, self.damping = np.array(found["vector"]), found["damping"]
            self.left -= found["calls"]
            self.trained = found["after"]
            if found["after"] == found["before"]:  # more pilots tell a better direction
                self.batch = min(2 * self.batch, len(self.tuning.train))
            error = self.tuning.held_error(f"{key}, held", self._plan())
            self.history.append(error)
            if error < self.best[0]:
                self.best = (error, found["vector"])
            if found["note"]:
                self.tuning.say(f"iteration {self.done}: {found['note']}")
            self.done += 1

    def polish(self, total: int) -> None:
        """Goes on by gradient descent, from the best vector, in rounds of so many iterations."""
        tuning, settings = self.tuning, self.tuning.settings
        if not has_gradient(tuning.pilots, self.parameters.form.start):
            tuning.say("the network has no gradient, so there is no polish")
            return
        adam = Adam(
            self.runner,
            tuning.judge.residual,
            tuning.train,
            settings.batch,
            total,
            settings.seed,
            settings.saves,
        )
        at = begin(np.array(self.best[1]))
        for first in range(0, total, ROUND):
            count = min(ROUND, total - first)

            def work(at: Descent = at, first: int = first, count: int = count) -> dict[str, Any]:
                found = adam.go(at, first, count)
                tuning.bar.update(found.calls)
                lists = {
                    name: getattr(found, name).tolist() for name in ("vector", "mean", "square")
                }
                return lists | {"skipped": found.skipped, "calls": found.calls}

            key = f"polish {self.name}: {first}"
            found = tuning.memo(key, work)
            vector, mean, square = (np.array(found[n]) for n in ("vector", "mean", "square"))
            at = Descent(vector, mean, square)
            if found["skipped"]:
                tuning.say(
                    f"polish: {found['skipped']} iterations without a finite gradient skipped"
                )
            self.vector = at.vector
            error = tuning.held_error(f"{key}, held", self._plan())
            self.history.append(error)
            if error < self.best[0]:
                self.best = (error, found["vector"])

    def _iterate(self) -> dict[str, Any]:
        settings = self.tuning.settings
        train = self.tuning.train
        drawn = np.random.default_rng([settings.seed % 2**63, self.done])
        order = torch.from_numpy(drawn.permutation(len(train)))
        ids, others = train[order[: self.batch]], train[order[-2 * self.batch :]]
        step = self.marquardt.iterate(self.vector, self.damping, ids, others)
        self.tuning.bar.update(step.calls)
        return {
            "vector": step.vector.tolist(),
            "damping": step.damping,
            "before": step.before if step.before == step.before else None,
            "after": step.after if step.after == step.after else None,
            "note": step.note,
            "calls": step.calls,
        }
