"""The script that proves everything on a GPU, without one: steps, limits, JSON, resumption."""

import json
import os
import subprocess
import sys
import time

import pytest
from places import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import gpu_check  # noqa: E402
from gpu import machine, runner, steps  # noqa: E402
from gpu.runner import FAILED, PASSED, SKIPPED, TIMED_OUT, Check, Step, read_json  # noqa: E402

HEADER = {"card": "a card", "commit": "abc", "sources": "123", "dry_run": False, "file": "card-abc"}


def step(name, program="", seconds=30, **more):
    return Step(name, seconds, f"what {name} does", [sys.executable, "-c", program], **more)


FIGURES = f"""
import sys; sys.path.insert(0, {str(ROOT / "bench")!r})
from gpu.runner import Figures
f = Figures()
f.note(backend="none")
f.add("a case", us=1.5)
f.target("a number", 2.0, ">=", 1.0)
f.target("another", 2.0, "<=", 1.0)
f.target("a third", None, "<=", 1.0, "not here")
"""


def check(tmp_path, budget=60, **more):
    return Check(HEADER, tmp_path, budget, echo=lambda line: None, **more)


def states(run):
    return {name: record["state"] for name, record in run.results.items()}


def test_steps_pass_fail_and_are_stopped(tmp_path):
    """A step that is stopped keeps its figures, and its children are gone."""
    child = "import subprocess, sys, time\n"
    child += "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    child += "print('child', p.pid, flush=True)\n"
    run = check(tmp_path, probe=lambda: {"clocks.sm": "1980 MHz"})
    chain = [
        step("good", FIGURES),
        step("bad", "print('a word'); raise SystemExit(3)"),
        step("long", FIGURES + child + "time.sleep(60)", seconds=1.5),
        step("late", "print(1)", unless=lambda results: f"bad is {results['bad']['state']}"),
    ]
    begin = time.monotonic()
    assert not run.run(chain)
    assert time.monotonic() - begin < 20
    assert states(run) == {"good": PASSED, "bad": FAILED, "long": TIMED_OUT, "late": SKIPPED}
    found = json.loads(run.path.read_text())
    by_name = {record["name"]: record for record in found["steps"]}
    assert by_name["good"]["figures"] == [{"case": "a case", "us": 1.5, "card": "a card"}]
    assert by_name["good"]["backend"] == "none"
    assert by_name["good"]["clocks"] == {"clocks.sm": "1980 MHz"}
    assert by_name["long"]["figures"] == by_name["good"]["figures"]
    assert by_name["bad"]["tail"][-1] == "a word" and by_name["bad"]["reason"] == "exit code 3"
    assert by_name["late"]["reason"] == "bad is failed"
    assert [t["met"] for t in found["targets"]] == [True, False, None] * 2
    (line,) = [line for line in by_name["long"]["tail"] if line.startswith("child")]
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # killed, and then taken away by the system
            os.kill(int(line.split()[1]), 0)
            time.sleep(0.1)
    assert not list(tmp_path.glob(".*"))


def test_the_json_is_whole_after_every_step(tmp_path):
    """While a step runs, the file holds the steps before it."""
    path = tmp_path / "card-abc.json"
    look = f"import json; n = [s['name'] for s in json.load(open({str(path)!r}))['steps']]\n"
    run = check(tmp_path)
    assert run.run([step("a", look + "assert n == []"), step("b", look + "assert n == ['a']")])
    assert [s["name"] for s in read_json(path)["steps"]] == ["a", "b"]


def test_resuming_keeps_what_passed(tmp_path):
    again = [step("a"), step("b", "raise SystemExit(1)")]
    assert not check(tmp_path).run(again)
    fail = "raise SystemExit(1)"
    run = check(tmp_path, resume=True)
    assert run.run([step("a", fail), step("b")])  # a is not run again
    assert run.results["a"]["kept"] and "kept" not in run.results["b"]
    elsewhere = check(tmp_path / "new", resume=True, archive=tmp_path)
    assert elsewhere.run([step("a", fail), step("b", fail)]), "the archive's JSON is taken over"
    for change in ({"card": "another"}, {"sources": "456"}, {"dry_run": True}):
        other = Check({**HEADER, **change}, tmp_path, 60, resume=True, echo=lambda line: None)
        assert not other.run([step("a", fail)])
        assert check(tmp_path).run([step("a")])


def test_the_budget_cuts_the_last_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 1)
    run = check(tmp_path, budget=1.5)
    run.run([step("a", "import time; time.sleep(60)", seconds=1), step("b", seconds=30)])
    assert states(run) == {"a": TIMED_OUT, "b": SKIPPED}
    assert run.results["b"]["reason"].endswith("of 2 s are left")
    run = check(tmp_path, budget=1.2)
    run.run([step("a", "import time; time.sleep(60)", seconds=30)])
    assert states(run) == {"a": TIMED_OUT}
    assert run.results["a"]["seconds"] < 20, "the limit is what is left of the budget"


CARD = {"card": "NVIDIA H100 80GB HBM3", "cores": 16, "gpus": 1}


@pytest.mark.parametrize("dry_run", [False, True])
def test_all_steps_fit_into_the_budget(dry_run):
    made = steps.make_steps(CARD, dry_run)
    assert steps.worst_case([s for s in made if s.default]) <= steps.BUDGET == 470
    assert len({s.name for s in made}) == len(made)
    for one in made:
        assert one.folder == ROOT
        files = [word for word in one.command if word.endswith(".py") or word == "tests/gpu"]
        assert all((ROOT / file).exists() for file in files), one.name
        modules = [word for word in one.command if word.startswith("gpu.")]
        assert all((ROOT / "bench" / f"{m.replace('.', '/')}.py").exists() for m in modules)
        joined = " ".join(one.command)
        assert ("--device cuda" in joined) <= (not dry_run)
        backend = one.environment["DIFFAST_BACKEND"]
        assert backend in ({""} if dry_run else {"cuda", "triton", ""}), one.name


def test_steps_after_a_failed_load_are_skipped():
    made = {s.name: s for s in steps.make_steps(CARD, dry_run=False)}
    red = {"libraries": {"state": FAILED}}
    assert "libraries" in made["tests"].unless(red) and "libraries" in made["bench"].unless(red)
    assert made["tests"].unless({"libraries": {"state": PASSED}}) is None
    built = {"libraries": {"state": PASSED, "built": True}}
    assert "build" in made["triton"].unless(built) and made["bench"].unless(built) is None


def test_names_of_steps_are_checked():
    made = steps.make_steps(CARD, dry_run=False)
    assert [s.name for s in gpu_check.chosen(made, "bench,ops", "ops")] == ["bench"]
    usual = [s.name for s in gpu_check.chosen(made, "", "")]
    assert "triton-all" not in usual and usual[0] == "libraries"
    with pytest.raises(SystemExit, match="no step 'benhc'; steps are libraries, ops"):
        gpu_check.chosen(made, "benhc", "")


@pytest.mark.parametrize("given", (["--only", ""], ["--budget", "-1"], ["--budget", "0"]))
def test_options_that_ask_for_nothing_are_refused(given, capsys):
    with pytest.raises(SystemExit):
        gpu_check.arguments(given)
    assert given[0] in capsys.readouterr().err.splitlines()[-1]


def test_names_of_files_are_plain():
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert machine.slug("cpu: Intel(R) Xeon(R) @ 2.10GHz") == "cpu-intel-r-xeon-r-2.10ghz"
    assert machine.sources() == machine.sources() and len(machine.sources()) == 12


def test_without_a_gpu_the_command_says_so(monkeypatch):
    monkeypatch.setattr(machine, "machine", lambda: {**CARD, "card": "cpu", "gpus": 0})
    with pytest.raises(SystemExit, match="no CUDA device here; --dry-run tries the script out"):
        gpu_check.main([])


def test_the_scripts_run_on_the_cpu(tmp_path):
    """A dry run of the steps that measure: a typing error must not cost a card's time."""
    command = [sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--dry-run"]
    only = "libraries,bench,executors"
    out = ["--only", only, "--out", str(tmp_path), "--commit", "c0ffee"]
    run = subprocess.run([*command, *out], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (path,) = tmp_path.glob("cpu-*-c0ffee.json")
    found = json.loads(path.read_text())
    assert {s["name"]: s["state"] for s in found["steps"]} == dict.fromkeys(only.split(","), PASSED)
    cases = [f for s in found["steps"] for f in s.get("figures", [])]
    assert len(cases) > 40 and all(f["card"].startswith("cpu") for f in cases)
    assert found["machine"]["torch"] and found["targets"]
    assert not [t for t in found["targets"] if t["met"]], "the CPU's figures prove nothing of a GPU"
    log = path.with_suffix(".log").read_text()
    assert "===== bench:" in log and "target: one plan step" in log
