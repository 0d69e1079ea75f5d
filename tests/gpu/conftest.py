"""What all tests of a real GPU share: which device, which backend, and a clean end.

    pytest tests/gpu                              on the GPU, with the loaded kernels
    pytest tests/gpu --triton-variants all        also 1,500 compiled Triton variants (minutes)
    DIFFAST_TEST_DEVICE=cpu pytest tests/gpu      on the CPU, what can be tried out there

Name the folder: a bare `pytest -m gpu` collects every test of the package first.
"""

import os
import platform
from pathlib import Path

import pytest
import torch
from device_watch import reset_waits

from diffast import ops

DEVICES = ("cuda", "cpu")
DEVICE = os.environ.get("DIFFAST_TEST_DEVICE", "cuda")
HERE = Path(__file__).parent
if DEVICE not in DEVICES:
    raise ValueError(f"DIFFAST_TEST_DEVICE is {DEVICE!r} but must be cuda or cpu, or unset")


def card() -> str:
    """Returns the name of the card that the tests run on, or of the processor."""
    if DEVICE == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = (
        Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    )
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {names[0] if names else platform.processor()}"


def pytest_report_header():
    return f"diffast: tests/gpu on {card()}"


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["card"] = card()


def pytest_collection_modifyitems(config, items):
    """Every test here has the marker `gpu`; most Triton variants are left out unless asked for."""
    every = config.getoption("--triton-variants", "few") == "all"
    kept, dropped = [], []
    for item in items:
        if HERE not in item.path.parents:
            kept.append(item)
            continue
        item.add_marker(pytest.mark.gpu)
        many = item.get_closest_marker("triton_variants") is not None
        (kept if every or not many else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def the_wanted_backend_serves():
    """A failed build of the kernels must not pass for one: Triton would serve CUDA in its place."""
    if DEVICE != "cuda" or not torch.cuda.is_available():
        return
    wanted = os.environ.get("DIFFAST_BACKEND") or "cuda"
    found = ops.backends()["cuda"]
    assert found["backend"] == wanted, f"CUDA is served by {found}, not by {wanted}"


@pytest.fixture(autouse=True)
def no_mode_is_left_on():
    """A test that fails with sync-debug mode on must not break the tests after it."""
    yield
    reset_waits()


@pytest.fixture
def device():
    """The device of tests that can also be tried out on the CPU."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device (DIFFAST_TEST_DEVICE=cpu tries this test out on the CPU)")
    return torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device("cpu")
