"""Bad values for every argument of every executor: one sentence each, before the network is called.

A value is bad if no run can be made of it. Values that are unusual and fine (a seed of numpy, a
shape as a list, ids as an array) have to give a run.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from runs_executors import DDIM, HEUN, NOISY, SHAPE, VP, _energy, _reward, denoiser, initial
from runs_matrix import sentence
from runs_networks import healthy

import diffast as df

NAN, INF = float("nan"), float("inf")
STRING, THING = "two", object()

NOT_COUNTS = (0, -1, 2.5, "2", True, NAN, INF, [2], torch.tensor(2.5), np.float64(2.5), 1j, THING)
NOT_POSITIVE = (0, -1.0, "2", NAN, [2.0], 1j, THING, True)
NOT_FLAGS = ("no", 2, 0.5, [True], THING, torch.tensor([1, 0]))
NOT_CALLABLES = (3, "hook", [len], THING)

# Bad values by argument, for all executors that have it.
BAD: dict[str, tuple[Any, ...]] = {
    "shape": (
        (2.7, 3), (-1, 2), (), 3, "ab", (True, 2), (3, None), (NAN, 2), [[3]], (3, "2"), THING,
        (1 << 62, 1 << 62), torch.zeros(2, 2), {3: 2}, (INF,),
    ),
    "seed": (0.5, "1", None, True, 1 << 64, -(1 << 63) - 1, [1], NAN, THING, 1j),
    "ids": (
        [0.0, 1.0, 2.0], [0, 1], "abc", ["a", "b", "c"], [True, False, True], 3, [0, 1, 1 << 63],
        torch.zeros(3, 1, dtype=torch.int64), np.zeros(3), THING, [None, 1, 2], [[0], [1], [2]],
        {0: 1}, torch.zeros(3, dtype=torch.complex64),
    ),
    "x": (
        np.zeros(SHAPE), [0.0], 3.0, "x", torch.zeros(SHAPE, dtype=torch.int64),
        torch.zeros(SHAPE, dtype=torch.float16), torch.zeros(()), torch.full(SHAPE, NAN),
        torch.full(SHAPE, INF), torch.zeros(SHAPE).to_sparse(), THING,
        torch.zeros(SHAPE, dtype=torch.complex64), torch.zeros(SHAPE, dtype=torch.bool),
    ),
    "device": ("gpu", "nowhere:3", 2.5, THING, "cuda:x", ["cpu"], "cuda:97", NAN),
    "clamp": (
        1.0, (1.0,), (1.0, -1.0), (NAN, 1.0), (-INF, 1.0), "ab", (0.0, 0.0), (0, 1, 2),
        ("a", "b"), (None, 1.0), THING, {0: 1}, (1j, 2), (True, False), torch.zeros(2, 2),
    ),
    "on_x0": NOT_CALLABLES,
    "callback": NOT_CALLABLES,
    "progress": NOT_FLAGS,
    "throw": NOT_FLAGS,
    "check": NOT_FLAGS,
    "compact": NOT_FLAGS,
    "trace": NOT_FLAGS,
    "static": NOT_FLAGS,
    "reject": NOT_FLAGS,
    "denoise": NOT_FLAGS,
    "noise": (3, "gauss", np.zeros(SHAPE), torch.zeros(SHAPE), THING, ["counter"], 1.5),
    "executor": (3, None, "cuda", THING, ["graph"], True),
    "calls": (0, -3, 2.5, "4", True, NAN, 1 << 40, [4], THING),
    "plan": ("plan.json", 4, [HEUN], THING, df.solvers.ddim, {"a": 1}),
    "method": ("nothing", 3, THING, ["pec"], True, df.solvers.ddim),
    "window": (*NOT_COUNTS, 10_000),
    "memory_limit": NOT_COUNTS,
    "batch_size": NOT_COUNTS,
    "sweeps": NOT_COUNTS,
    "tol": (-1.0, NAN, INF, "small", None, [0.1], THING, 1j, True),
    "ranks": (3, "all", THING, [0, 1], 0.5),
    "control": ("all", 3, None, THING, ["batch"], True),
    "controller": (
        "fast", 3, {"speed": 1}, {"safety": NAN}, {"safety": "x"}, {"safety": -1.0}, THING, [1],
        {3: 1}, {"safety": None},
    ),
    "least_ratio": (NAN, -1.0, "0", [0.1], THING, 1j, True),
    "until": (NAN, -1.0, 2.0, "0", [0.1], THING, 1j, True, INF),
    "h_init": NOT_POSITIVE,
    "h_min": (*NOT_POSITIVE, INF),
    "h_max": NOT_POSITIVE,
    "max_calls": NOT_COUNTS,
    "rtol": (-0.1, NAN, INF, "x", None, THING, [0.1], 1j, True),
    "atol": (-0.1, NAN, INF, "x", THING, [0.1], 1j, True),
    "order": (7, "x"),
    "reward": (None, 3, "nice", THING),
    "particles": NOT_COUNTS,
    "scale": (NAN, INF, "x", None, THING, [1.0], 1j, True),
    "potential": (3, "best", None, THING, ["sum"]),
    "threshold": (-0.1, 1.1, NAN, "x", None, THING, [0.5], 1j, True),
    "energy": (None, 3, "low", THING),
    "proposal": ("hmc", 3, None, THING, ["mala"]),
    "n": NOT_COUNTS,
    "step": (*NOT_POSITIVE, INF),
    "friction": (*NOT_POSITIVE, None, INF),
    "where": ("nowhere", 3.5, THING, [99], -1, NAN, [0.5]),
    "dtype": ("float16", 3, THING, torch.int32, torch.bool, torch.complex64),
    "z": (3, "z", THING, np.zeros(SHAPE), torch.zeros(1)),
    "schedule": (None, 3, "vp", THING),
    "x0": (
        None, 3, np.zeros(SHAPE), torch.zeros(()), torch.zeros(SHAPE, dtype=torch.int64), THING,
        "x0",
    ),
    "time": (NAN, -1.0, 2.0, "x", None, THING, torch.zeros(2), 1j, [0.1]),
    "depth": (0, 99, 2.5, "x", True, THING, [3], NAN),
}  # fmt: skip

# Unusual values that are fine.
FINE: dict[str, tuple[Any, ...]] = {
    "shape": (list(SHAPE), torch.Size(SHAPE), np.array(SHAPE), tuple(np.int64(n) for n in SHAPE)),
    "seed": (np.int64(7), -1, (1 << 64) - 1, torch.tensor(7), np.uint64(1 << 63)),
    "ids": (
        range(3), (7, 8, 9), np.array([7, 8, 9], dtype=np.int32), torch.tensor([7, 8, 9]),
        [np.int64(1), np.int64(2), np.int64(3)], torch.tensor([7, 8, 9], dtype=torch.uint8),
    ),
    "x": (initial().requires_grad_(), initial().transpose(-1, -2), initial().double()),
    "device": ("cpu", torch.device("cpu")),
    "clamp": (
        [-1, 1], (np.float32(-1), np.float64(1)), torch.tensor([-1.0, 1.0]), (Fraction(-1), 1),
    ),
    "throw": (np.bool_(True), 1, 0),
    "tol": (0, np.float32(1e-3), Fraction(1, 100)),
    "window": (np.int64(2), torch.tensor(2)),
    "max_calls": (np.int64(400), 400.0),
    "rtol": (np.float32(0.1), Fraction(1, 10)),
    "until": (np.float64(0.01), torch.tensor(0.01)),
    "particles": (np.int64(2),),
    "n": (np.int64(1),),
}  # fmt: skip


def _network(x: torch.Tensor, t: torch.Tensor, c: Any = None) -> torch.Tensor:
    return healthy(x, t, c)


class Door:
    """One public function: how it is called, and the arguments it has.

    Args:
        name: as messages begin.
        call: takes keyword arguments.
        usual: good arguments.
        arguments: those to try.
    """

    def __init__(self, name: str, call: Callable, usual: dict[str, Any], arguments: str):
        """Keeps them."""
        self.name, self.call, self.usual = name, call, usual
        self.arguments = arguments.split()

    def tries(self, values: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
        """Yields (argument, value)."""
        for name in self.arguments:
            yield from zip(itertools.repeat(name), values.get(name, ()))

    def run(self, name: str, value: Any) -> Any:
        """Calls it with one argument replaced."""
        given = dict(self.usual)
        if name == "x":
            given.pop("shape", None)
        if name == "shape":
            given.pop("x", None)
        if name == "calls":
            given["plan"] = None
        given["until" if name == "least_ratio" else name] = value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.call(**given)


ONE = denoiser(_network)
COMMON = "shape seed ids x device clamp throw"
DOORS = (
    Door("sample", lambda **k: df.sample(ONE, **k), {"plan": HEUN, "x": initial()},
         COMMON + " on_x0 callback progress check noise executor calls plan"),
    Door("sample_adaptive", lambda **k: df.sample_adaptive(ONE, **k),
         {"method": "dpm_12", "x": initial(), "max_calls": 400},
         COMMON + " on_x0 callback progress noise executor method control controller until h_init "
         "h_min h_max max_calls rtol atol compact trace reject denoise"),
    Door("sample_adaptive", lambda **k: df.sample_adaptive(ONE, **k),
         {"method": "dopri5", "x": initial(), "max_calls": 400, "control": "batch"},
         COMMON + " noise method controller until h_init h_min h_max max_calls rtol atol"),
    Door("sample_parallel", lambda **k: df.sample_parallel(ONE, **k),
         {"plan": HEUN, "x": initial()},
         COMMON + " callback progress noise executor calls plan method window memory_limit "
         "batch_size sweeps tol ranks static"),
    Door("sample_particles", lambda **k: df.sample_particles(ONE, **k),
         {"plan": NOISY, "shape": SHAPE, "reward": _reward, "particles": 2},
         "shape seed ids device clamp throw calls plan reward particles scale potential threshold "
         "least_ratio x"),
    Door("sample_metropolis", lambda **k: df.sample_metropolis(ONE, **k),
         {"plan": DDIM, "energy": _energy, "x": initial()},
         "shape seed ids x device throw plan energy proposal n step friction where"),
    Door("Stepper", lambda **k: df.Stepper(**({"plans": HEUN, "denoiser": ONE} | _plans(k))), {},
         "device dtype noise clamp on_x0 callback progress plan"),
    Door("Stepper", lambda **k: df.Stepper(HEUN, ONE).start(**k), {"x": initial()},
         "x seed ids"),
    Door("initial_state", lambda **k: df.initial_state(ONE, **k), {"plan": HEUN, "shape": SHAPE},
         "shape seed ids device plan"),
    Door("add_noise", lambda **k: df.add_noise(**k),
         {"schedule": VP, "x0": initial(), "time": 0.5}, "x0 time seed ids noise_ schedule"),
    Door("BrownianPath", lambda **k: df.BrownianPath(**k), {"schedule": VP, "shape": SHAPE},
         "shape seed ids device dtype depth schedule"),
    Door("Denoiser", lambda **k: df.Denoiser(_network, VP, "x0", **k), {},
         "dtype guidance_ conditions_ unconditional_ guides_ time_dtype_ memory_format_ "
         "round_times_"),
)  # fmt: skip

BAD |= {
    "noise_": (3, "z", np.zeros(SHAPE), torch.zeros(1), THING),
    "guidance_": (NAN, INF, "2", [2.0], THING, 1j, True),
    "conditions_": (3, [1], "c", {1: 2}, THING),
    "unconditional_": (3, [1], "c", {"c": 1}, THING),
    "guides_": (3, "g", [3], THING),
    "time_dtype_": ("long", 3, torch.bool, torch.complex64, THING),
    "memory_format_": ("channels_last", 3, THING, torch.preserve_format),
    "round_times_": NOT_FLAGS,
}


def _plans(given: dict[str, Any]) -> dict[str, Any]:
    return {"plans" if name == "plan" else name: value for name, value in given.items()}


def tried() -> list[tuple[str, str, str, str, str]]:
    """Returns (function, argument, value, outcome, words) of every bad and every unusual value."""
    found = []
    for door in DOORS:
        for fine, values in ((False, BAD), (True, FINE)):
            for name, value in door.tries(values):
                argument = name.rstrip("_")
                shown = type(value).__name__ if value is THING else repr(value)[:60]
                try:
                    door.run(argument, value)
                    outcome, words = ("fine" if fine else "TAKEN"), ""
                except Exception as error:
                    outcome, words = "refused", f"{type(error).__name__}: {error}"
                    known = sentence(error) or (
                        isinstance(error, (ValueError, TypeError))
                        and str(error).startswith(door.name)
                    )
                    if fine:
                        outcome = "REFUSED"
                    elif not known:
                        outcome = "FOREIGN"
                found.append((door.name, argument, shown, outcome, words))
    return found
