"""The README's examples run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


class Network(torch.nn.Module):
    def forward(self, x, t, labels):
        return 0.1 * x


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, capsys):
    names = {
        "my_trained_network": Network(),
        "betas": np.linspace(1e-4, 0.02, 1000),
        "labels": torch.zeros(16, dtype=torch.int64),
        "null": torch.zeros(1, dtype=torch.int64),
    }
    exec(compile(EXAMPLES[number], "README", "exec"), names)
    if number == 0:
        assert names["out"].x.shape == (16, 3, 64, 64)
        assert names["out"].nfe.tolist() == [20] * 16
    else:
        assert names["digits"].shape == (10, 1, 28, 28)


def test_solver_table_is_complete():
    import diffast as df

    for name in df.solvers.SOLVERS:
        assert f"| `{name}" in README
