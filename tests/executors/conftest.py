"""Graphs without a GPU: capture and replay are played on the CPU."""

import pytest
from graph_tape import TapeBackend

import diffast as df
from diffast.executors import cuda_graph


@pytest.fixture
def made(monkeypatch):
    """Lets graphs run on the CPU; the backends that were made."""
    found = []

    def backend(device):
        found.append(TapeBackend(device))
        return found[-1]

    monkeypatch.setitem(cuda_graph.BACKENDS, "cpu", backend)
    df.graph_cache.clear()
    yield found
    df.graph_cache.clear()
