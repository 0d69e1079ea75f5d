"""Executors under attack: faulty networks, bad arguments, torch's modes, random calls.

The attacks are those of bench/attack, which holds more of each.
"""

import sys
import warnings
from pathlib import Path

import pytest
import torch

ATTACK = Path(__file__).resolve().parents[2] / "bench" / "attack"
sys.path.append(str(ATTACK))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # plans of few steps warn
    import runs_calls
    import runs_doors
    import runs_executors
    import runs_matrix
    import runs_modes
    import runs_networks

BAD = (*runs_matrix.BAD, "TAKEN", "REFUSED")
# One executor of each family for the fast tests; the slow ones take all.
FEW = {
    name: runs_executors.EXECUTORS[name]
    for name in (
        "sample",
        "graph's run",
        "Stepper",
        "adaptive dpm_12, guided",
        "parallel secant",
        "particles",
        "metropolis mala",
        "Denoiser.x0, guided",
    )
}
WRITES = ("refused", "own error")


@pytest.fixture(scope="module")
def few():
    return runs_matrix.matrix(FEW)


def bad_cells(found):
    return {
        (row, name): cell
        for row, cells in found.items()
        for name, cell in cells.items()
        if cell[0] in BAD
    }


def test_no_executor_is_wrong_in_silence_or_speaks_in_foreign_words(few):
    assert len(few) >= 36
    assert bad_cells(few) == {}


@pytest.mark.parametrize("fault", [f.name for f in runs_networks.WRITES[:8]])
def test_writes_into_the_input_are_refused_everywhere(few, fault):
    assert {kind for kind, _ in few[fault].values()} == {"refused"}
    assert all("wrote into its input" in words for _, words in few[fault].values())


def test_what_cannot_be_a_sample_is_never_taken(few):
    for fault in runs_networks.BROKEN:
        kinds = {kind for kind, _ in few[fault.name].values()}
        assert kinds == {"refused"} if fault.wanted is None else "reported" in kinds


@pytest.mark.slow
def test_the_whole_fault_matrix():
    found = runs_matrix.matrix()
    assert bad_cells(found) == {}
    assert sum(len(row) for row in found.values()) > 1500


def test_the_matrix_tells_what_is_wrong():
    """A network that is refused today must be WRONG where nobody looks."""
    fault = next(f for f in runs_networks.FAULTS if f.name == "writes into x.data")

    def blind(network):
        x = runs_executors.initial()
        for t in (0.9, 0.5, 0.1):
            y = network(x, torch.full((3,), t))
            x = 0.5 * x + 0.5 * y
        return x

    wanted = blind(runs_networks.healthy)
    assert runs_matrix.outcome("blind", blind, fault, wanted)[0] == "WRONG"
    raw = runs_matrix.outcome("raw", lambda net: {}["key"], fault, wanted)
    assert raw[0] == "FOREIGN"


# Arguments.


@pytest.mark.parametrize("door", runs_doors.DOORS, ids=lambda door: door.name)
def test_arguments_are_checked_at_the_door(door, monkeypatch):
    few = {name: values[:4] for name, values in runs_doors.BAD.items()}
    fine = {name: values[:1] for name, values in runs_doors.FINE.items() if name != "x"}
    monkeypatch.setattr(runs_doors, "DOORS", (door,))
    monkeypatch.setattr(runs_doors, "BAD", few)
    monkeypatch.setattr(runs_doors, "FINE", fine)
    found = runs_doors.tried()
    assert found and [row for row in found if row[3] in BAD] == []


@pytest.mark.slow
def test_all_bad_arguments():
    found = runs_doors.tried()
    assert len(found) > 1400 and [row for row in found if row[3] in BAD] == []


# Modes of torch around a run.


def test_modes_of_torch_give_the_same_picture_or_one_sentence(monkeypatch):
    names = ("sample, guided", "Stepper, each", "adaptive pec", "parallel secant")
    few = {name: runs_executors.EXECUTORS[name] for name in names}
    monkeypatch.setattr(runs_modes, "EXECUTORS", few)
    assert bad_cells(runs_modes.modes()) == {}


@pytest.mark.slow
def test_all_modes():
    assert bad_cells(runs_modes.modes()) == {}


# Random calls.


@pytest.mark.parametrize("first", [0, 40])
def test_random_calls_are_those_of_a_walk_in_numpy(first):
    found = runs_calls.calls(20, first)
    assert found["bad"] == []
    assert found["outcomes"]["right"] > 8


@pytest.mark.slow
def test_many_random_calls():
    assert runs_calls.calls(600, 100)["bad"] == []
