"""`diffast tune` and `diffast sample --plan`: what they write, print and refuse."""

import json
from dataclasses import replace

import pytest
from few_candidates import few

import diffast as df
from diffast.cli import main

NETWORK = """
import torch
import diffast as df


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, x, t):
        spread = 1.0 + t.reshape(-1, 1) ** 2
        return torch.tanh(self.gain * x / spread) + 0.1 * x / spread


def made():
    return df.Denoiser(Net(), df.schedules.edm(0.02, 10.0), "x0")


def broken():
    return 3
"""
QUICK = ["--quiet", "--count", "8", "--iterations", "1", "--starts", "1"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is measured before learning is not what these tests are about."""
    few(monkeypatch)


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A folder with a module of the user's, in which the command is run."""
    (tmp_path / "my_own_network.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    return ["--network", "my_own_network:made", "--shape", "3"]


def test_tune_makes_plans_for_a_network_of_the_users(network, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = [*network, *QUICK, "--calls", "3,4", "--picture", "error.png"]
    assert main(["tune", *arguments, "--resume", "work.json"]) == 0
    said = capsys.readouterr().out
    for calls in (3, 4):
        plan = df.Plan.load(tmp_path / f"plan-{calls}.json")
        assert plan.nfe == calls and plan.made_for["calls"] == calls
        assert (tmp_path / f"error-{calls}.png").stat().st_size > 1000
        assert f"{calls} calls, error" in said and f"wrote          plan-{calls}.json" in said
    first = (tmp_path / "plan-3.json").read_text()
    assert main(["tune", *network, *QUICK, "--calls", "3", "--resume", "work-3.json"]) == 0
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(first)


def test_the_cost_is_stated_before_the_work(network, capsys):
    loud = [option for option in QUICK if option != "--quiet"]
    assert main(["tune", *network, *loud, "--calls", "3", "--freedom", "levels,weights"]) == 0
    said = capsys.readouterr()
    assert "network evaluations of one sample" in said.err and "minutes" in said.err
    assert df.Plan.load("plan.json").made_for["freedom"] == ["weights", "levels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calls", "few"], "--calls 'few' but whole numbers from 1 to 1000 are needed"),
        (["--calls", "0"], "--calls '0' but whole numbers from 1"),
        (["--out", "plan.txt"], "--out plan.txt but its ending must be .json or .npz"),
        (["--out", "nowhere/plan.json"], "but there is no folder"),
        (["--picture", "p.gif"], "--picture p.gif but its ending must be .png, .svg or .pdf"),
        (["--freedom", "levels,everything"], "everything"),
        (["--network", "my_own_network"], "but it must be module:function"),
        (["--network", "no_such_module:made"], "but there is no module no_such_module"),
        (["--network", "my_own_network:nothing"], "but my_own_network has no nothing"),
        (["--network", "my_own_network:broken"], "broken returned a int, and a df.Denoiser"),
        (["--shape", "big"], "--shape 'big' but whole numbers are needed"),
        (["--device", "toaster"], "'toaster' is no device"),
        (["--count", "1"], "argument --count: 1 is given, but numbers from 2 on"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, network, tmp_path, capsys):
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["tune", *network, *QUICK, *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == before


def test_shape_and_network_belong_together(network, capsys):
    assert main(["tune", *network[:2], *QUICK]) == 2
    assert main(["tune", *network[2:], *QUICK]) == 2
    said = capsys.readouterr().err
    assert "--network is given but --shape is not" in said
    assert "--shape 3 but it is for --network" in said


def test_sample_runs_a_plan_of_a_file(tmp_path, capsys):
    edm = df.schedules.edm()
    plan = df.solvers.dpmpp_3m(edm, df.grids.karras(edm, 3))
    plan.save(tmp_path / "plan.json")
    out = tmp_path / "digits.npz"
    common = ["--quiet", "--count", "2", "--out", str(out)]
    given = ["--plan", str(tmp_path / "plan.json")]
    assert main(["sample", *given, *common]) == 0
    said = capsys.readouterr().out
    assert f"solver         {plan.name}\n" in said and "network calls  3" in said
    for more, name in ((["--steps", "5"], "steps"), (["--solver", "euler"], "solver")):
        assert main(["sample", *given, *more, *common]) == 2
        assert f"--plan and --{name} are both given" in capsys.readouterr().err
    flow = df.schedules.flow()
    df.solvers.euler(flow, df.grids.uniform_time(flow, 3)).save(tmp_path / "plan.json")
    assert main(["sample", *given, *common]) == 2
    assert "the plan is for Flow" in capsys.readouterr().err
    (tmp_path / "plan.json").write_text("{")
    assert main(["sample", *given, *common]) == 2
    assert "not JSON" in capsys.readouterr().err


def test_the_digits_are_tuned_with_their_classes_and_guidance(tmp_path, monkeypatch, capsys):
    given = {}

    def record(denoiser, calls, shape, **options):
        given.update(denoiser=denoiser, calls=calls, shape=shape, **options)
        raise ValueError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(df, "tune", record)
    arguments = ["--calls", "6", "--count", "12", "--classes", "3,7", "--guidance", "2"]
    assert main(["tune", *arguments, "--seed", "5", "--stochastic", "--held-out", "9"]) == 2
    assert capsys.readouterr().err == "diffast: enough\n"
    assert given["shape"] == (12, 1, 28, 28) and given["calls"] == 6 and given["seed"] == 5
    assert given["stochastic"] and given["held_out"] == 9 and given["progress"]
    assert given["denoiser"].guidance == 2.0
    assert given["denoiser"].conditions["labels"].tolist() == [3, 7] * 6


def test_demo_runs_the_shipped_plan_unless_another_is_asked_for(tmp_path, monkeypatch, capsys):
    edm = df.schedules.edm()
    plan = df.solvers.euler(edm, df.grids.karras(edm, 1))
    replace(plan, name="shipped").save(tmp_path / "8-guided1.3.json")
    monkeypatch.setattr("diffast.digits.PLANS", tmp_path)
    common = ["demo", "--quiet", "--out", str(tmp_path / "x.npz")]
    assert main(common) == 0
    assert "solver         shipped\n" in capsys.readouterr().out
    assert main([*common, "--steps", "1"]) == 0
    assert "solver         dpmpp_2m" in capsys.readouterr().out


@pytest.mark.parametrize("schedule", ["edm", "ve", "vp_linear", "vp_cosine", "trig", "flow"])
def test_plan_prints_what_df_plan_chooses(schedule, tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main(["plan", "--schedule", schedule, "--calls", "6", "--out", str(path)]) == 0
    space = getattr(df.schedules, schedule)()
    kind = "flow" if schedule == "flow" else "x0" if schedule in ("edm", "ve") else "v"
    chosen = df.plan(df.Denoiser(lambda x, t: x, space, kind), 6)
    loaded = df.Plan.load(path)
    assert loaded.name == chosen.name and (loaded.matrix == chosen.matrix).all()
    assert capsys.readouterr().out.startswith(str(chosen))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "mine"], "--schedule 'mine' is not known, but these are: edm"),
        (["--calls", "0"], "argument --calls: 0 is given"),
        (["--out", "plan.txt"], "its ending must be .json or .npz"),
        (["--out", "nowhere/plan.json"], "there is no folder"),
    ],
)
def test_plan_refuses_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
