"""Medians of functions timed in turns, A B A B ..., so that other load slows all of them.

A ratio of two numbers that were measured minutes apart depends on the other load of the machine.
Every ratio of the package's benchmarks is made by this module. On a CUDA device, the seconds are
those between two events of the current stream.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

ROUND_SECONDS = 1e-3  # a round repeats a short function until it has run about so long
LEAST_ROUNDS = 15
MOST_ROUNDS = 200


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


def spread_of(*timings: Timing) -> float:
    """Returns the largest spread: distance of the quartiles over the median."""
    return max(timing.spread for timing in timings)


def slower(ours: Timing, theirs: Timing) -> bool:
    """Returns whether ours is slower by more than the quartiles of both overlap."""
    return ours.median > theirs.median and ours.low > theirs.high


def _seconds(function: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - begin) / repeats


def _seconds_on_cuda(function: Callable[[], object], repeats: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / repeats


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Returns the timing of one call of each function, called in turn over so many rounds.

    Args:
        functions: what to time, by name, in the order of the turns.
        rounds: turns; 1 is a smoke test that calls each once, 4 or more give quartiles.
        device: where the functions' work is done.
    """
    return _timed(functions, lambda turn: rounds, device, rounds == 1)


def timed(
    functions: Mapping[str, Callable[[], object]],
    budget: float,
    device: torch.device | str = "cpu",
    least: int = LEAST_ROUNDS,
) -> dict[str, Timing]:
    """Returns `interleaved` timings over as many rounds as fit into a budget.

    Args:
        functions: what to time, by name, in the order of the turns.
        budget: seconds of turns; 0 calls each function once.
        device: where the functions' work is done.
        least: rounds that are made even if they take longer than the budget.
    """

    def rounds(turn: float) -> int:
        return max(least, min(MOST_ROUNDS, int(budget / turn)))

    return _timed(functions, rounds, device, not budget)


def _timed(
    functions: Mapping[str, Callable[[], object]],
    rounds: Callable[[float], int],
    device: torch.device | str,
    once: bool,
) -> dict[str, Timing]:
    """Returns the timings over `rounds(seconds of a turn)` turns, or of a single call of each."""
    seconds = _seconds_on_cuda if torch.device(device).type == "cuda" else _seconds
    if once:
        return {name: timing_of([seconds(function, 1)]) for name, function in functions.items()}
    repeats, turn = {}, 0.0
    for name, function in functions.items():
        function()  # warm: pages touched, kernels chosen, threads started
        taken = max(seconds(function, 1), 1e-9)
        repeats[name] = max(1, round(ROUND_SECONDS / taken))
        turn += repeats[name] * taken
    samples = {name: [] for name in functions}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds(turn)):
            for name, function in functions.items():
                samples[name].append(seconds(function, repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: timing_of(values) for name, values in samples.items()}


def timing_of(values: list[float]) -> Timing:
    """Returns median and quartiles of the seconds of each turn; four turns give quartiles."""
    low = high = median = statistics.median(values)
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high, len(values))
