"""ComfyUI without ComfyUI; one thread for tiny pipelines."""

import pytest
import torch
from comfy_stand_in import stand_in


@pytest.fixture(scope="module")
def one_thread():
    """Threads wait for each other longer than the networks of tiny pipelines take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's stand-in with the custom node freshly imported into it."""
    yield from stand_in(monkeypatch)
