"""Times of device work, of host work and of graph replays, in turns; the CPU can stand in.

Device times are CUDA events around several calls. A call takes its tensors from a ring of sets that
are larger together than the L2 cache. On the CPU the same functions read the host's clock, so that
the scripts can be tried out; those figures mean nothing.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

RING_BYTES = 2**28  # five times the largest L2 cache
ROUND_SECONDS = 2e-3  # a round repeats a short call until it has run about so long


@dataclass(frozen=True)
class Time:
    """Seconds of one call: the median over rounds, and their quartiles."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Returns the distance of the quartiles over the median."""
        return (self.high - self.low) / self.median


def _time(values: list[float]) -> Time:
    low = high = statistics.median(values)
    if len(values) > 3:
        low, _, high = statistics.quantiles(values, n=4)
    return Time(statistics.median(values), low, high)


def ring(make: Callable[[], object], bytes_each: int, device: torch.device) -> list:
    """Returns sets of tensors, made one by one, that are larger together than the L2 cache."""
    count = 2 if device.type == "cpu" else max(2, min(64, RING_BYTES // max(1, bytes_each)))
    return [make() for _ in range(count)]


def _device_seconds(call: Callable[[int], object], repeats: int, device: torch.device) -> float:
    """Returns the device's seconds of one call; `call` is given the number of its turn."""
    if device.type == "cpu":
        begin = time.perf_counter()
        for k in range(repeats):
            call(k)
        return (time.perf_counter() - begin) / repeats
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000 * repeats)  # 10 us a call: the host is ahead, and none waits for it
    start.record()
    for k in range(repeats):
        call(k)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def interleaved(
    calls: dict[str, Callable[[int], object]], rounds: int, device: torch.device
) -> dict[str, Time]:
    """Returns the device's time of each call, all of them in turns: A B A B ..."""
    repeats = {}
    for name, call in calls.items():
        call(0)
        once = _device_seconds(call, 2, device)
        repeats[name] = max(1, min(200, round(ROUND_SECONDS / max(once, 1e-7))))
    if device.type == "cpu":
        repeats = dict.fromkeys(calls, 1)
    found = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(_device_seconds(call, repeats[name], device))
    return {name: _time(values) for name, values in found.items()}


def host_seconds(call: Callable[[int], object], device: torch.device, rounds: int = 9) -> Time:
    """Returns the host's time of one call: how long it takes until it returns."""
    repeats, found = 2 if device.type == "cpu" else 100, []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()  # an empty queue: the host never waits for room in it
        begin = time.perf_counter()
        for k in range(repeats):
            call(k)
        found.append((time.perf_counter() - begin) / repeats)
    return _time(found[1:])


def graph_of(work: Callable[[], object]) -> Callable[[], object]:
    """Returns a function that replays the captured work; on the CPU the work itself."""
    if not torch.cuda.is_available():
        return work
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def replay_seconds(call: Callable[[int], object], device: torch.device, many: int = 40) -> Time:
    """Returns the time of one call among many in a graph: what it costs without its host."""
    many = 2 if device.type == "cpu" else many
    replay = graph_of(lambda: [call(k) for k in range(many)])
    found = interleaved({"graph": lambda _: replay()}, 9 if device.type == "cuda" else 2, device)
    whole = found["graph"]
    return Time(whole.median / many, whole.low / many, whole.high / many)


def wall_seconds(work: Callable[[], object], device: torch.device, rounds: int) -> Time:
    """Returns the wall time of work that ends with the device being done."""
    found = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return _time(found[1:])
