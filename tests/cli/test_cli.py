"""The command line: what it writes, what it prints, what it refuses."""

import json
import os
import subprocess
import sys
from inspect import signature

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import diffast as df
from diffast.cli import command as cli
from diffast.cli import main, output

FAST = ["--steps", "2", "--quiet"]


def test_demo_writes_an_8_by_8_grid_and_says_what_it_did(tmp_path, capsys):
    out = tmp_path / "digits.png"
    assert main(["demo", *FAST, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for line in ("digits         64", "steps          2", "network calls  2", "seconds", "wrote"):
        assert line in said
    assert df.backends()["cpu"]["backend"] in said
    with Image.open(out) as picture:
        assert picture.size == (8 * 28, 8 * 28)
        assert np.asarray(picture).std() > 20
        assert json.loads(picture.text["diffast"])["steps"] == 2


DEFAULTED = [
    name
    for name, build in df.solvers.SOLVERS.items()
    if all(p.default is not p.empty for p in list(signature(build).parameters.values())[2:])
]
# For schedules with alpha^2 + sigma^2 = 1, which the embedded network's is not.
PRESERVING = ["piadm_sde", "piadm_ode"]
# For guidance terms, which the command line's plain network has none of.
GUIDED = ["ltsp", "stsp", "additive_multistep"]


@pytest.mark.parametrize("solver", GUIDED)
def test_solvers_for_guidance_terms_say_so(solver, tmp_path, capsys):
    out = tmp_path / "x.npz"
    assert main(["sample", *FAST, "--solver", solver, "--out", str(out)]) == 2
    assert "weighs g1, gradients of guidance terms" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("solver", PRESERVING)
def test_solvers_for_another_schedule_say_so(solver, tmp_path, capsys):
    out = tmp_path / "x.npz"
    assert main(["sample", *FAST, "--solver", solver, "--out", str(out)]) == 2
    assert f"diffast: {solver}: alpha^2 + sigma^2 = " in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("solver", [n for n in DEFAULTED if n not in PRESERVING + GUIDED])
def test_sample_runs_every_solver(solver, tmp_path, capsys):
    out = tmp_path / "x.npz"
    args = ["sample", *FAST, "--solver", solver, "--count", "3", "--classes", "7,1-2"]
    assert main([*args, "--out", str(out), "--seed", "-5"]) == 0
    with np.load(out, allow_pickle=False) as file:
        assert file["x"].shape == (3, 1, 28, 28)
        assert np.isfinite(file["x"]).all()
        assert file["labels"].tolist() == [7, 1, 2]
        facts = json.loads(str(file["facts"]))
    assert facts["seed"] == -5
    assert facts["solver"].startswith(solver)
    capsys.readouterr()


def test_restart_is_the_one_solver_that_needs_more():
    assert set(df.solvers.SOLVERS) - set(DEFAULTED) == {"restart"}


def plan_of(*arguments):
    return cli._make_plan(cli._parser().parse_args(["sample", *arguments]), df.schedules.edm())


@pytest.mark.parametrize("grid", cli.GRIDS)
def test_every_grid_is_offered_by_its_name(grid):
    edm = df.schedules.edm()
    plan = plan_of("--grid", grid, "--steps", "6", "--solver", "euler")
    times = getattr(df.grids, grid)(edm, 6)
    assert np.append(plan.times, plan.end).tolist() == times.tolist()


def test_grids_left_out_need_another_schedule():
    for name in set(df.grids.__all__) - set(cli.GRIDS):
        make = getattr(df.grids, name)
        parameters = list(signature(make).parameters.values())
        if [p.name for p in parameters[:2]] != ["schedule", "steps"]:
            continue
        with pytest.raises(ValueError, match=name):
            make(df.schedules.edm(), 6)


@pytest.mark.parametrize(
    ("solver", "pairs", "options"),
    [
        ("ddim", ["eta=0.5"], {"eta": 0.5}),
        ("churn", ["s_churn=3", "s_tmax=inf", "base=euler"], {"s_churn": 3.0, "base": "euler"}),
        ("lms", ["order=2", "orders=1,2,1"], {"order": 2, "orders": [1, 2, 1]}),
        ("midpoint", ["clock=flow", "r=0.3"], {"clock": "flow", "r": 0.3}),
        ("singlestep", ["orders=2,1"], {"orders": [2, 1]}),
        ("singlestep", ["orders=3"], {"orders": 3}),
        ("unipc", ["corrector=False", "variant=bh1"], {"corrector": False, "variant": "bh1"}),
        (
            "unipc",
            ["corrector=true,false,false"],
            {"corrector": [True, False, False]},
        ),
        ("sa_solver", ["tau=0", "corrector_order=0"], {"tau": 0.0, "corrector_order": 0}),
    ],
)
def test_options_are_read_as_what_they_are(solver, pairs, options):
    sets = [word for pair in pairs for word in ("--set", pair)]
    plan = plan_of("--solver", solver, "--steps", "3", *sets)
    edm = df.schedules.edm()
    wanted = df.solvers.get(solver)(edm, df.grids.karras(edm, 3), **options)
    assert plan.name == wanted.name
    assert (plan.rows, plan.columns) == (wanted.rows, wanted.columns)
    for field in ("times", "matrix", "levels"):  # NaN: a stage without a call, an entry's level
        assert np.array_equal(getattr(plan, field), getattr(wanted, field), equal_nan=True)


def test_formats_hold_the_same_numbers_and_guidance_changes_them(tmp_path, capsys):
    def run(name, *more):
        path = tmp_path / name
        assert main(["sample", *FAST, "--count", "2", "--out", str(path), *more]) == 0
        return path

    with np.load(run("a.npz")) as file:
        x = file["x"]
    with safe_open(run("a.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("x"), torch.from_numpy(x))
        assert json.loads(file.metadata()["diffast"])["guidance"] == 1.0
    with Image.open(run("a.png", "--columns", "2")) as picture:
        assert np.array_equal(np.asarray(picture), output.grid(torch.from_numpy(x), 2))
    with np.load(run("b.npz", "--guidance", "3")) as file:
        assert not np.array_equal(file["x"], x)
    assert "twice the batch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solver", "rk99"], "solver 'rk99' is not known, but these are: euler, "),
        (["--grid", "square"], "grid 'square' is not known, but these are: default, "),
        (["--classes", "12"], "'12' but classes are 0 to 9"),
        (["--classes", "a"], "'a' is neither a digit nor a range"),
        (["--classes", "5-3"], "classes are 0 to 9, ascending"),
        (["--steps", "0"], "argument --steps: 0 is given, but 1 to 100000 can be asked for"),
        (["--out", "digits.gif"], "digits.gif but its ending must be .png, .npz or .safetensors"),
        (["--out", "/no/such/folder/x.png"], "there is no folder /no/such/folder"),
        (["--solver", "ddim", "--set", "eta=2"], "eta = 2.0"),
        (["--solver", "ddim", "--set", "eta=x"], "eta is a float"),
        (["--solver", "ddim", "--set", "ita=1"], "the options of ddim are: eta"),
        (["--solver", "euler", "--set", "eta=1"], "the options of euler are: none"),
        (["--solver", "restart"], "solver restart needs intervals, but the command line cannot"),
        (["--solver", "er_sde", "--set", "noise_scale=3"], "noise_scale is a function"),
        (["--solver", "unipc", "--set", "corrector=maybe"], "corrector is a bool"),
        (["--solver", "lms", "--set", "order=2.5"], "order is a int"),
        (["--solver", "lms", "--set", "orders=1"], "orders has shape [], but it must be [2]"),
        (["--solver", "dpm_fast", "--set", "orders=2"], "orders=2 but 'int' object"),
        (["--solver", "midpoint", "--set", "clock=wall"], "clock = 'wall'"),
        (["--solver", "midpoint", "--set", "r=0.1,0.2"], "--set r=0.1,0.2 but "),
        (["--grid", "trailing"], "grid 'trailing' is not known, but these are: default, "),
        (["--device", "toaster"], "'toaster' is no device"),
        (["--seed", str(2**64)], "argument --seed: 18446744073709551616 is given, but -9"),
        (["--count", "0"], "argument --count: 0 is given, but numbers from 1 on "),
        (["--count", str(10**12)], "--count 1000000000000 needs 1.1 EB of memory, but "),
        (["--count", "many"], "argument --count: 'many' is no whole number"),
        (["--columns", str(10**9)], "argument --columns: 1000000000 is given, but 1 to 1000"),
        (["--guidance", "nan"], "argument --guidance: nan is given, but a finite number"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", *FAST, *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("diffast: ") and said.err.count("\n") == 1
    assert not said.out
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    output.write(path, torch.zeros(1, 1, 2, 2), {}, {})
    before = path.read_bytes()
    monkeypatch.setattr(np, "savez", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        output.write(path, torch.ones(1, 1, 2, 2), {}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_grid_places_clips_and_colours():
    x = torch.stack([torch.full((3, 2, 2), v) for v in (-2.0, 0.0, 1.0)])
    page = output.grid(x, 2)
    assert page.shape == (4, 4, 3)
    assert page[0, 0].tolist() == [0] * 3
    assert page[0, 2].tolist() == [128] * 3
    assert page[2, 0].tolist() == [255] * 3
    assert page[2, 2].tolist() == [0] * 3
    with pytest.raises(ValueError, match=r"\[1, 2, 3, 3\]"):
        output.grid(torch.zeros(1, 2, 3, 3), 1)


def test_doctor_names_the_backends(capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for device, entry in df.backends().items():
        assert f"{device:<8} {entry['backend']}: {entry['reason']}" in said


def test_no_command_and_module_form():
    environment = {**os.environ, "COLUMNS": "100"}
    run = subprocess.run(
        [sys.executable, "-m", "diffast", "doctor"], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    run = subprocess.run([sys.executable, "-m", "diffast"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "COMMAND" in run.stderr


def test_profile_draws_the_steps_of_an_adaptive_method(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "steps.png"
    args = ["profile", "--adaptive", "--count", "2", "--quiet", "--set", "rtol=0.5"]
    assert main([*args, "--set", "h_max=1.5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for line in ("method         pec", "network calls", "accepted", "2 finished", "wrote"):
        assert line in said
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_profile_draws_the_rounds_of_a_parallel_method(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "rounds.png"
    args = ["profile", "--parallel", "--count", "2", "--quiet", "--steps", "6", "--set", "tol=0.1"]
    assert main([*args, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    for line in ("method         secant", "6 stages", "rounds", "evaluations", "wrote"):
        assert line in said
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    out = tmp_path / "rounds.json"
    assert main([*args, "--set", "window=3", "--out", str(out)]) == 0
    facts = json.loads(out.read_text())
    assert facts["settled"][-1] == [6, 6] and len(facts["settled"]) == facts["rounds"]


def test_profile_measures_the_network(tmp_path, capsys):
    data, out = tmp_path / "digits.npz", tmp_path / "profile.json"
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
    np.savez(data, images=images, labels=np.arange(30, dtype=np.uint8) % 10)
    args = ["profile", "--count", "6", "--levels", "4", "--measure", "none", "--quiet"]
    assert main([*args, "--data", str(data), "--out", str(out), "--classes", "0-4"]) == 0
    said = capsys.readouterr().out
    for line in ("6 given samples of 784 elements, 4 noise levels", "note: ", "seconds", "wrote"):
        assert line in said
    made = df.thermo.Profile.load(out)
    assert made.rows_called == 24 and made.rho[0] == pytest.approx(80.0)
    # the pictures of the classes asked for, from -1 to 1
    wanted = images[np.arange(30) % 10 < 5].astype(np.float64) / 127.5 - 1.0
    assert made.energy == pytest.approx((wanted**2).sum((1, 2)).mean(), rel=1e-6)
    assert main([*args, "--out", str(out)]) == 0
    assert df.thermo.Profile.load(out).data == "generated"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "p.pdf"], "must be .html, .png or .json"),
        (["--out", "none/p.png"], "there is no folder"),
        (["--data", "none.npz"], "there is no such file"),
        (["--data", "words.npz"], "an .npz with the arrays images and labels is needed"),
        (["--data", "floats.npz"], "uint8 [N, 28, 28] and [N] are needed"),
        (["--data", "many.npz"], "labels from 0 to 12, but digits are 0 to 9"),
        (["--data", "hot.npz"], "labels int64 [2, 10], but whole numbers [N]"),
        (["--data", "one.npy"], "an .npz with the arrays images and labels is needed"),
        (["--measure", "dreams"], "'dreams', but what can be measured"),
        (["--levels", "2"], "levels = 2, but at least 4"),
        (["--set", "rtol=1"], "it is an option of --adaptive and --parallel"),
        (["--grid", "nope"], "--grid nope but it is an option of --parallel"),
        (["--adaptive", "--steps", "5"], "--steps 5 but it is an option of --parallel"),
        (["--adaptive", "--data", "words.npz"], "the profile of the network alone"),
    ],
)
def test_profile_of_the_network_refuses(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("words.npz", words=np.array(["a"]))
    np.savez("floats.npz", images=np.zeros((2, 28, 28)), labels=np.zeros(2))
    images = np.zeros((2, 28, 28), np.uint8)
    np.savez("many.npz", images=images, labels=np.array([0, 12]))
    np.savez("hot.npz", images=images, labels=np.zeros((2, 10), np.int64))
    np.save("one.npy", images)
    assert main(["profile", "--quiet", *args]) == 2
    assert message in capsys.readouterr().err


def test_profile_writes_numbers(tmp_path, capsys):
    out = tmp_path / "steps.json"
    args = ["profile", "--adaptive", "dpm_12", "--count", "2", "--quiet", "--out", str(out)]
    assert main([*args, "--set", "rtol=1", "--set", "denoise=false"]) == 0
    facts = json.loads(out.read_text())
    assert facts["statuses"] == {"finished": 2}
    assert len(facts["trial_steps"]["lam"]) == facts["accepted"] + facts["rejected"]
    assert facts["options"] == {"rtol": 1, "denoise": False}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--adaptive", "nothing"], "embedded solver 'nothing' is not known"),
        (["--adaptive", "--set", "rtol"], "'rtol' but NAME=VALUE is needed"),
        (["--adaptive", "--set", "rtol=0"], "rtol = 0.0, but it must be above 0"),
        (["--adaptive", "--set", "colour=3"], "unexpected keyword argument"),
        (["--adaptive", "--out", "steps.txt"], "its ending must be .png, .svg, .pdf or .json"),
        (["--parallel", "newton"], "method is 'newton' but the known methods are"),
        (["--parallel", "--set", "window=99"], "window is 99 but plan"),
        (["--parallel", "--grid", "none"], "--grid 'none' but the grids are"),
        (["--adaptive", "--count", "0"], "argument --count: 0 is given, but numbers from 1 on"),
    ],
)
def test_profile_refuses(args, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["profile", "--quiet", *args]) == 2
    assert message in capsys.readouterr().err
