"""What has to stand before any test module is imported, and memory that tells when it is unwritten.

The tests' own arithmetic and the cases of the ops' tests are in op_cases.py.
"""

import os

import pytest
import torch

# Triton reads this when a kernel is defined, so it has to stand before diffast is imported; where
# there is a GPU the kernels are compiled for it instead.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def nan_memory():
    """Memory that torch hands out, to Python or to a kernel's glue, is full of NaN."""
    torch.use_deterministic_algorithms(True)  # fill_uninitialized_memory is on by default
    yield
    torch.use_deterministic_algorithms(False)
