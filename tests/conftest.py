"""What has to stand before any test module is imported, and memory that tells when it is unwritten.

The tests' own arithmetic and the cases of the ops' tests are in op_cases.py.
"""

import os
import re
from pathlib import Path

import pytest
import torch

# Triton reads this when a kernel is defined, so it has to stand before diffast is imported; where
# there is a GPU the kernels are compiled for it instead.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--triton-variants",
        choices=("few", "all"),
        default="few",
        help="on a GPU: a few compiled Triton variants of each op, or all 1,500 (minutes)",
    )


SLOW = Path(__file__).with_name("slow.txt")


def slow_names() -> list[tuple[re.Pattern, bool]]:
    """Returns what fits file::test[parameters] and whether it is slow, the last line first."""
    lines = [line.split("#")[0].strip() for line in SLOW.read_text().splitlines()]
    names = [(line.lstrip("- "), line[0] != "-") for line in reversed(lines) if line]
    return [(re.compile(re.escape(name).replace(r"\*", ".*")), slow) for name, slow in names]


def pytest_collection_modifyitems(items):
    rules = slow_names()
    for item in items:
        name = f"{item.path.name}::{item.name}"
        if next((slow for pattern, slow in rules if pattern.fullmatch(name)), False):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def nan_memory():
    """Memory that torch hands out, to Python or to a kernel's glue, is full of NaN."""
    torch.use_deterministic_algorithms(True)  # fill_uninitialized_memory is on by default
    yield
    torch.use_deterministic_algorithms(False)
