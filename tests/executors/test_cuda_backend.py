"""What `CudaBackend` asks of torch.cuda, and in which order; a made-up torch.cuda notes it."""

from contextlib import contextmanager

import pytest
import torch

from diffast.executors.cuda_graph import CudaBackend, Graph, GraphError

DEVICE = torch.device("cuda", 0)


class Stream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_stream(self, other):
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for the event")


class Event:
    def __init__(self, log):
        self.log = log

    def record(self, stream):
        self.log.append(f"event on {stream.name}")


class Generator:
    """A generator of which a capture that failed has kept hold, if it is stuck."""

    def __init__(self, log, stuck):
        self.log, self.stuck = log, stuck

    def get_offset(self):
        return 8

    def set_offset(self, offset):
        self.log.append(f"offset {offset}")

    def clone_state(self):
        return "copy"

    def graphsafe_set_state(self, state):
        assert state == "copy"
        self.stuck = False
        self.log.append("generator mended")


@pytest.fixture
def played(monkeypatch):
    """A function that prepares the made-up torch.cuda and returns its log."""

    def play(invalid=False, stuck=False):
        log = []
        streams = {"now": Stream(log, "current")}

        class CUDAGraph:
            def capture_begin(self, pool, capture_error_mode):
                log.append(f"begin {pool} {capture_error_mode} on {streams['now'].name}")

            def capture_end(self):
                log.append(f"end on {streams['now'].name}")
                if invalid:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def reset(self):
                log.append("reset")

            def replay(self):
                log.append("replay")

        @contextmanager
        def stream(wanted):
            before, streams["now"] = streams["now"], wanted
            try:
                yield
            finally:
                streams["now"] = before

        def rand(*_, device):
            if generator.stuck:
                raise RuntimeError("Offset increment outside graph capture encountered")

        generator = Generator(log, stuck)
        cuda = {
            "Stream": lambda device: Stream(log, "side"),
            "Event": lambda: Event(log),
            "CUDAGraph": CUDAGraph,
            "stream": stream,
            "current_stream": lambda device: streams["now"],
            "synchronize": lambda device: log.append("synchronize"),
            "empty_cache": lambda: log.append("empty cache"),
            "graph_pool_handle": lambda: "pool",
            "memory_reserved": lambda device: 1000 * log.count("work"),
            "default_generators": (generator,),
        }
        for name, value in cuda.items():
            monkeypatch.setattr(torch.cuda, name, value, raising=False)
        monkeypatch.setattr(torch, "rand", rand)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            note = lambda index, pool, name=name: log.append(f"{name} {index} {pool}")  # noqa: E731
            monkeypatch.setattr(torch._C, name, note, raising=False)
        return log

    return play


PREPARED = [
    "synchronize",
    "empty cache",
    "side waits for current",
    "begin pool thread_local on side",
]


def test_a_capture_is_made_aside_and_replayed(played):
    log = played()
    graph = Graph(lambda: log.append("work"), CudaBackend(DEVICE))
    aside = ["side waits for current", "work", "current waits for side"]
    captured = [*PREPARED, "work", "end on side", "current waits for side"]
    assert log == [*aside, *captured]
    assert graph.pool == 1000
    graph.replay()
    assert log[-1] == "replay"


def fail():
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


@pytest.mark.parametrize("invalid", [False, True])
@pytest.mark.parametrize("stuck", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind(played, invalid, stuck):
    log = played(invalid, stuck)
    with pytest.raises(GraphError, match="waits for the device .*test_cuda_backend.py"):
        Graph(fail, CudaBackend(DEVICE), warm_ups=0)
    pool = ["_cuda_endAllocateToPool 0 pool", "_cuda_releasePool 0 pool"] if invalid else []
    mended = ["generator mended"] if stuck else []
    assert log == [*PREPARED, "end on side", *pool, "reset", *mended, "offset 8"]


def test_work_that_hides_its_error_fails_at_the_end(played):
    log = played(invalid=True)
    with pytest.raises(GraphError, match="previous error during capture"):
        Graph(lambda: log.append("work"), CudaBackend(DEVICE), warm_ups=0)
    assert log[-2:] == ["reset", "offset 8"]
    assert torch.cuda.current_stream(DEVICE).name == "current"


def test_errors_before_the_capture_come_back_from_the_side_stream(played):
    log = played()
    with pytest.raises(RuntimeError, match="not permitted"):
        Graph(fail, CudaBackend(DEVICE))
    assert log == ["side waits for current", "current waits for side"]


def test_order_between_streams(played):
    log = played()
    backend = CudaBackend(DEVICE)
    backend.follow()
    backend.mark()
    assert log == ["current waits for the event", "event on current"]
