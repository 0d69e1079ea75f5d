"""Medians of functions timed in turns, A B A B ..., so that other load slows all of them.

A ratio of two numbers that were measured minutes apart depends on the other load of the machine.
Every ratio in this folder is made by this module.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUND_SECONDS = 1e-3  # a round repeats a short function until it has run about so long


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over the rounds, and their quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Returns the distance of the quartiles over the median."""
        return (self.high - self.low) / self.median


def _seconds(function: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - begin) / repeats


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Returns the timing of one call of each function, called in turn over so many rounds.

    Args:
        functions: what to time, by name, in the order of the turns.
        rounds: turns; 1 is a smoke test that calls each once, 4 or more give quartiles.
    """
    if rounds == 1:
        return {name: _timing([_seconds(function, 1)]) for name, function in functions.items()}
    repeats = {}
    for name, function in functions.items():
        function()  # warm: pages touched, kernels chosen, threads started
        once = _seconds(function, 1)
        repeats[name] = max(1, round(ROUND_SECONDS / max(once, 1e-9)))
    samples = {name: [] for name in functions}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, function in functions.items():
                samples[name].append(_seconds(function, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: list[float]) -> Timing:
    low = high = median = statistics.median(values)
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high, len(values))
