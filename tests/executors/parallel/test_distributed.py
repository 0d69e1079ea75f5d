"""Several processes make one run: the same bits, and an error instead of a hang."""

import subprocess
import sys

import pytest
import torch
from places import HELPERS
from rank_worker import samples

WORKER = HELPERS / "rank_worker.py"


def start(world, task, folder):
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(WORKER),
                str(rank),
                str(world),
                str(folder / "meeting"),
                task,
                str(folder / f"{rank}.pt"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


@pytest.mark.parametrize("world, task", [(2, "pieces"), (4, "pieces"), (2, "whole")])
def test_ranks_make_the_bits_of_one_process(world, task, tmp_path):
    processes = start(world, task, tmp_path)
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    wanted = samples(tol=1e-3, batch_size=4 if task == "pieces" else None)
    shares = []
    for rank in range(world):
        made = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(made["x"], wanted.x)
        shares.append(made["rows"])
    assert max(shares) <= -(-wanted.rows // world) + 4 * wanted.rounds
    assert sum(shares) >= wanted.rows


def test_a_rank_that_dies_is_an_error_on_the_others(tmp_path):
    processes = start(2, "dies", tmp_path)
    _, errors = processes[0].communicate(timeout=120)
    processes[1].communicate(timeout=120)
    assert processes[1].returncode == 7
    assert processes[0].returncode not in (0, 7)
    assert "rank 0 of 2 got no answer from another rank" in errors


def test_ranks_without_a_group_are_refused():
    with pytest.raises(ValueError, match="torch.distributed has no process group"):
        samples(ranks=True)
