"""The attack on the ops: a part of it, and what it would say of an op that is wrong."""

import json
import sys

import numpy as np
import pytest
import torch
from places import ROOT

sys.path.append(str(ROOT / "bench" / "attack"))

import ops as attack_ops  # noqa: E402  bench/attack/ops.py
import ops_worker as worker  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # casts of the attack itself


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_calls_are_equal_or_refused(first):
    for seed in range(first, first + 50):
        outcome = worker.outcome(seed)
        assert outcome["kind"] in attack_ops.FINE, outcome


# Found by the attack: counts of no samples, None for a tensor, a list for a truth value.
@pytest.mark.parametrize("seed", (109538, 105642, 109118, 107672, 108970, 111256, 100119))
def test_calls_that_were_findings(seed):
    assert worker.outcome(seed)["kind"] in attack_ops.FINE


def broken(name, spoil):
    """Returns an op that is right but for what `spoil` does with its arguments."""
    function = worker.FUNCTIONS[name]

    def call(*arguments):
        made = function(*arguments)
        spoil(arguments)
        return made

    return call


def beside(arguments):
    out = arguments[4]
    out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(1.0)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda arguments: arguments[4].view(-1)[:1].add_(1), "differing"),
        (beside, "differing"),
        (lambda arguments: torch.empty(-1), "refused after writing"),
    ],
    ids=("a wrong number", "a byte beside", "an error"),
)
def test_a_wrong_op_is_found(spoil, kind, monkeypatch):
    monkeypatch.setitem(worker.FUNCTIONS, "normal.out", broken("normal.out", spoil))
    found = set()
    for seed in range(400):
        call = worker.Call(np.random.default_rng(seed))
        if call.name == "normal.out" and call.arguments[4].numel():
            found.add(worker.outcome(seed)["kind"])
            if kind in found:
                break
    assert kind in found


@pytest.mark.slow
def test_a_crash_is_an_outcome_and_the_others_go_on():
    process = attack_ops.Worker(ROOT)
    kinds = [outcome["kind"] for outcome in process.outcomes([7, "no seed", 8])]
    process.stop()
    assert kinds[1] == "crashed"
    assert {kinds[0], kinds[2]} <= set(attack_ops.FINE)


@pytest.mark.slow
def test_the_attack_from_its_command_line():
    report = attack_ops.attack(1000, 700000, ROOT)
    assert report["calls"] == 1000 and report["crashed"] == 0 and report["findings"] == []
    assert report["counts"]["equal"] > 200 and report["counts"]["refused"] > 200


def test_the_table_of_the_documents_is_the_stored_report():
    stored = json.loads((ROOT / "bench" / "results" / "attack_ops.json").read_text())
    page = (ROOT / "docs" / "reliability.md").read_text()
    for name, text in (("plain", "as installed"), ("sanitized", "sanitized")):
        report = stored[name]
        assert report["findings"] == [] and report["crashed"] == 0
        counts = [report["counts"].get(kind, 0) for kind in attack_ops.FINE]
        assert sum(counts) == report["calls"]
        row = [f"{count:,}" for count in (report["calls"], *counts, 0, 0)]
        assert f"| {text} | {' | '.join(row)} |" in page
    assert stored["plain"]["calls"] >= 20_000 and stored["sanitized"]["calls"] >= 5_000
