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


SLOW = Path(__file__).with_name("slow.txt")


def slow_names() -> tuple[re.Pattern, re.Pattern]:
    """Returns what matches file::test[parameters] of the slow tests, and of their exceptions."""
    lines = [line.split("#")[0].strip() for line in SLOW.read_text().splitlines()]
    slow = [line for line in lines if line and line[0] != "-"]
    but = [line[1:].strip() for line in lines if line and line[0] == "-"]
    return tuple(
        re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in names) or "(?!)")
        for names in (slow, but)
    )


def pytest_collection_modifyitems(items):
    slow, but = slow_names()
    for item in items:
        name = f"{item.path.name}::{item.name}"
        if slow.fullmatch(name) and not but.fullmatch(name):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def nan_memory():
    """Memory that torch hands out, to Python or to a kernel's glue, is full of NaN."""
    torch.use_deterministic_algorithms(True)  # fill_uninitialized_memory is on by default
    yield
    torch.use_deterministic_algorithms(False)
