"""Random calls of random executors against a float64 walk of the plan in numpy.

A call has a random solver, schedule, grid, prediction type, guidance, clamp, hook, dtype, batch,
ids, seed and options. What it returns is compared with `tests/helpers/numpy_executor.py`, which
knows no executor; of adaptive runs with themselves in another batch, and in float64.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs_matrix import sentence

import diffast as df
from diffast import ops

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))
import numpy_executor  # noqa: E402

SCHEDULES: dict[str, Callable] = {
    "vp_linear": df.schedules.vp_linear,
    "vp_cosine": df.schedules.vp_cosine,
    "edm": df.schedules.edm,
    "flow": df.schedules.flow,
    "trig": df.schedules.trig,
}
SOLVERS: dict[str, Callable] = {
    "euler": df.solvers.euler,
    "ddim": df.solvers.ddim,
    "ddim, eta": lambda s, g: df.solvers.ddim(s, g, eta=1.0),
    "heun": df.solvers.heun,
    "dpmpp_2m": df.solvers.dpmpp_2m,
    "dpmpp_2m_sde": df.solvers.dpmpp_2m_sde,
    "dpmpp_3m_sde": df.solvers.dpmpp_3m_sde,
    "unipc": df.solvers.unipc,
    "deis": df.solvers.deis,
    "euler_ancestral": df.solvers.euler_ancestral,
    "dpm_2_ancestral": df.solvers.dpm_2_ancestral,
    "dpmpp_sde": df.solvers.dpmpp_sde,
    "adams": df.solvers.adams,
    "lcm": df.solvers.lcm,
    "rk4": df.solvers.rk4,
}
EXECUTORS = ("sample", "sample", "together", "each", "parallel", "speculative", "adaptive")
SHAPES = ((1,), (3,), (2, 4), (1, 2, 3, 3), (5, 1, 4), (2, 3, 8, 8), (7, 33))
# What float32 may be off after some ten stages, relative to the samples' size.
ROUNDING = {torch.float32: 2e-4, torch.float64: 1e-9}
# A run may be off by so many times what one rounding of every input and output makes: the ops, the
# times and the network round as well.
SPREAD = 8.0


def _x0(x: Any, t: Any, lib: Any) -> Any:
    """The x0 estimate of the problem, for numpy and for torch."""
    return (0.4 * x + 0.2) / (1.0 + 0.15 * x * x) + 0.05 * lib.cos(3.0 * t)


class Case:
    """One random call; `describe` is what to repeat it by.

    Args:
        number: seed of the choice.
    """

    def __init__(self, number: int):
        """Chooses everything."""
        rng = random.Random(number)
        self.number, self.executor = number, rng.choice(EXECUTORS)
        self.schedule_name = rng.choice(list(SCHEDULES))
        self.schedule = SCHEDULES[self.schedule_name]()
        self.solver, self.steps = rng.choice(list(SOLVERS)), rng.randint(2, 9)
        self.shape, self.dtype = rng.choice(SHAPES), rng.choice(list(ROUNDING))
        self.seed = rng.choice((0, 7, -3, (1 << 64) - 1))
        batch = self.shape[0]
        self.ids = [rng.choice((k, 1 << 40, -5 - k)) + k for k in range(batch)]
        self.predicts = rng.choice(("x0", "x0", "epsilon", "v", "flow"))
        self.scale = rng.choice((1.0, 1.0, 0.0, 2.5))
        self.clamp = rng.choice((None, None, (-0.5, 0.6)))
        self.hook = rng.random() < 0.2 and self.executor in ("sample", "together", "each")
        self.given_x = rng.random() < 0.5 or self.executor in ("together", "each")
        self.method = rng.choice(("secant", "prior", "anderson"))
        self.window = rng.choice((None, None, 2))
        self.embedded = rng.choice(("pec", "dpm_12", "dpm_23", "dopri5"))

    def describe(self) -> str:
        """Returns the choice in a few words."""
        return (
            f"{self.number}: {self.executor} {self.solver} {self.schedule_name} steps={self.steps} "
            f"{list(self.shape)} {self.dtype} {self.predicts} w={self.scale} clamp={self.clamp} "
            f"hook={self.hook} {self.method} {self.embedded}"
        )

    def _levels(self, t: Any) -> tuple[np.ndarray, np.ndarray]:
        t = np.asarray(t, dtype=np.float64)
        low, high = self.schedule.domain
        t = np.clip(t, low, high)
        return np.asarray(self.schedule.alpha(t)), np.asarray(self.schedule.sigma(t))

    def network(self, x: torch.Tensor, t: torch.Tensor, c: Any = None) -> torch.Tensor:
        """The network in torch, of the prediction type."""
        low, high = self.schedule.domain
        assert bool(((t.double() >= low) & (t.double() <= high)).all()), f"t = {t}"
        tall = t.reshape(-1, *[1] * (x.dim() - 1)).double()
        wide = x.double()
        x0 = _x0(wide, tall, torch)
        if c is not None:
            x0 = x0 + 0.1 * c.double().reshape(-1, *[1] * (x.dim() - 1))
        alpha, sigma = (torch.from_numpy(n) for n in self._levels(tall.numpy()))
        eps = (wide - alpha * x0) / sigma
        inside = np.clip(tall.numpy(), low, high)
        rates = self.schedule.derivatives(inside)
        rate_alpha, rate_sigma = (torch.from_numpy(np.asarray(r) + 0.0 * inside) for r in rates)
        made = {
            "x0": x0,
            "epsilon": eps,
            "v": alpha * eps - sigma * x0,
            "flow": rate_alpha * x0 + rate_sigma * eps,
        }[self.predicts]
        return made.to(x.dtype)

    def denoise(self, x: np.ndarray, t: float) -> np.ndarray:
        """The guided x0 estimate in numpy."""
        plain = _x0(x, t, np)
        return plain if self.scale == 0.0 else plain + self.scale * 0.1 * self._cond(x)

    def _cond(self, x: np.ndarray) -> np.ndarray:
        return np.ones((len(x), *[1] * (x.ndim - 1)))

    def build(self) -> tuple[Any, Any]:
        """Returns (plan, denoiser)."""
        grid = df.grids.default(self.schedule, self.steps)
        plan = SOLVERS[self.solver](self.schedule, grid)
        one = torch.ones(self.shape[0], dtype=torch.float64)
        denoiser = df.Denoiser(
            self.network,
            self.schedule,
            self.predicts,
            conditions={"c": one},
            unconditional={"c": torch.zeros(1, dtype=torch.float64)},
            guidance=self.scale,
        )
        return plan, denoiser

    def start(self, plan: Any) -> torch.Tensor:
        """Returns the initial state."""
        about = {"seed": self.seed, "stage": ops.INITIAL_NOISE, "ids": torch.tensor(self.ids)}
        return ops.normal(self.shape, scale=plan.initial_scale, dtype=self.dtype, **about)

    def reference(self, plan: Any, denoise: Callable | None = None) -> np.ndarray:
        """Returns the samples of the walk in numpy."""
        ids = torch.tensor(self.ids)

        def noise(call: int) -> np.ndarray:
            word = ops.OPENING_NOISE if call < 0 else call
            made = ops.normal(self.shape, seed=self.seed, stage=word, ids=ids, dtype=self.dtype)
            return made.double().numpy()

        def change(x0: np.ndarray) -> np.ndarray:
            x0 = x0 if self.clamp is None else np.clip(x0, *self.clamp)
            return 0.9 * x0 if self.hook else x0

        x = self.start(plan).double().numpy()
        return numpy_executor.run(plan, denoise or self.denoise, x, noise, change=change)[-1]

    def run(self, plan: Any, denoiser: Any) -> torch.Tensor:
        """Returns the samples of the executor."""
        hook = (lambda x0, info: 0.9 * x0) if self.hook else None
        given: dict[str, Any] = {"seed": self.seed, "ids": self.ids, "clamp": self.clamp}
        wide = self.dtype == torch.float64
        given |= {"x": self.start(plan)} if self.given_x or wide else {"shape": self.shape}
        if self.executor == "sample":
            return df.sample(denoiser, plan, on_x0=hook, **given).x
        if self.executor == "parallel":
            own = {"tol": 0.0, "method": self.method, "window": self.window}
            if self.window is not None:
                own["window"] = min(self.window, plan.nfe)
            return df.sample_parallel(denoiser, plan, **own, **given).x
        if self.executor == "speculative":
            return df.sample_parallel(denoiser, plan, method="speculative", **given).x
        stepper = df.Stepper(plan, denoiser, clamp=self.clamp, on_x0=hook)
        state, x, t = stepper.start(
            self.start(plan), seed=self.seed, ids=self.ids, each=self.executor == "each"
        )
        one = torch.ones(self.shape[0])
        for _ in range(plan.nfe):
            pair = self.network(x, t, one), self.network(x, t, 0.0 * one)
            state, x, t = stepper.step(state, pair if stepper.guided else pair[self.scale == 0.0])
        return stepper.result(state).x

    def adaptive(self, denoiser: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns samples of a batch, and of each sample by itself."""
        about = {"seed": self.seed, "clamp": self.clamp, "max_calls": 2000, "rtol": 0.05}
        whole = df.sample_adaptive(denoiser, self.embedded, self.shape, ids=self.ids, **about).x
        one = df.Denoiser(
            self.network,
            self.schedule,
            self.predicts,
            conditions={"c": torch.ones(1, dtype=torch.float64)},
            unconditional={"c": torch.zeros(1, dtype=torch.float64)},
            guidance=self.scale,
        )
        alone = [
            df.sample_adaptive(one, self.embedded, (1, *self.shape[1:]), ids=[k], **about).x
            for k in self.ids
        ]
        return whole, torch.cat(alone)

    def outcome(self) -> tuple[str, str]:
        """Returns (outcome, words)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                plan, denoiser = self.build()
                if self.executor == "adaptive":
                    made, wanted = self.adaptive(denoiser)
                    self.dtype = torch.float32
                    wanted = wanted.double().numpy()
                else:
                    made = self.run(plan, denoiser)
                    if self.executor == "speculative":  # another sample of the same law
                        good = bool(made.isfinite().all()) and made.dtype == self.dtype
                        return ("finite" if good else "WRONG"), ""
                    wanted = self.reference(plan)
            except Exception as error:
                words = f"{type(error).__name__}: {error}"
                fine = sentence(error) or isinstance(error, df.NonFiniteError)
                return ("refused" if fine else "FOREIGN"), words
        if tuple(made.shape) != wanted.shape or made.dtype != self.dtype:
            return "WRONG", f"{list(made.shape)} {made.dtype}"
        size = max(float(np.sqrt(np.mean(wanted**2))), 1.0)
        apart = float(np.abs(made.double().numpy() - wanted).max()) / size
        limit = ROUNDING[self.dtype]
        if apart > limit and self.executor != "adaptive":
            limit += SPREAD * self._amplified(plan, denoiser, wanted) / size
        return ("right" if apart <= limit else "WRONG"), f"apart by {apart:.1e}"

    def _amplified(self, plan: Any, denoiser: Any, wanted: np.ndarray) -> float:
        """Returns how far the walk moves if x and the outputs are rounded to the run's dtype.

        Near alpha = 0 a network of epsilon gives x0 times sigma / alpha, some thousands.
        """
        kind = np.float32 if self.dtype == torch.float32 else np.float64

        def rounded(x: np.ndarray, t: float) -> np.ndarray:
            x = x.astype(kind).astype(np.float64)
            a, b = (float(weight[0]) for weight in denoiser.affine(np.array([t])))
            output = (self.denoise(x, t) - a * x) / b
            return a * x + b * output.astype(kind).astype(np.float64)

        return float(np.abs(self.reference(plan, rounded) - wanted).max())


def calls(count: int, first: int = 0) -> dict[str, Any]:
    """Returns counts of the outcomes of so many random calls, and every bad one in words."""
    begin, found, bad, refused = time.time(), Counter(), [], Counter()
    by_executor: dict[str, Counter] = {}
    for number in range(first, first + count):
        case = Case(number)
        kind, words = case.outcome()
        found[kind] += 1
        by_executor.setdefault(case.executor, Counter())[kind] += 1
        if kind == "refused":
            refused[" ".join(words.split()[:9])] += 1
        if kind in ("WRONG", "FOREIGN"):
            bad.append({"case": case.describe(), "outcome": kind, "words": words[:300]})
    return {
        "calls": count,
        "seconds": round(time.time() - begin, 1),
        "outcomes": dict(found),
        "by executor": {name: dict(one) for name, one in sorted(by_executor.items())},
        "refused because": dict(refused.most_common(12)),
        "bad": bad,
    }
