"""ComfyUI without ComfyUI."""

import pytest
from comfy_stand_in import stand_in


@pytest.fixture
def comfy(monkeypatch):
    """ComfyUI's stand-in with the custom node freshly imported into it."""
    yield from stand_in(monkeypatch)
