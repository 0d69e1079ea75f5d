"""Bad calls of the command line: one line, status 2, no file left; what is known comes first."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffast.cli import doors, failure, main

SAMPLE = ["sample", "--count", "1", "--steps", "1", "--quiet", "--out", "x.npz"]
PARALLEL = ["profile", "--parallel", "--count", "1", "--steps", "3", "--quiet", "--out", "p.json"]
ADAPTIVE = ["profile", "--adaptive", "--count", "1", "--quiet", "--out", "p.json"]
TUNE = ["tune", "--calls", "2", "--count", "2", "--iterations", "0", "--quiet"]


@pytest.fixture(autouse=True)
def bad_files(tmp_path, monkeypatch):
    """Files that are none of what they are given as, in the folder where calls run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "deep.json").write_text("[" * 50_000)
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04" + bytes(60))
    np.save(tmp_path / "pickled.npy", np.array([{}, None], dtype=object))
    np.save(tmp_path / "mask.npy", np.ones((28, 28), np.float32))
    (tmp_path / "of_user.py").write_text(
        "import sys\ndef raises():\n    raise KeyError('gone')\ndef exits():\n    sys.exit(3)\n"
    )
    (tmp_path / "syntax_of_user.py").write_text("def (")
    yield
    for name in ("of_user", "syntax_of_user"):
        sys.modules.pop(name, None)
    sys.path[:] = [part for part in sys.path if part]


CALLS = [
    ([], "the following arguments are required: COMMAND"),
    (["no_such_command"], "invalid choice"),
    ([*SAMPLE, "--count=1000000000000"], "needs 1.1 EB of memory, but"),
    ([*SAMPLE, "--count=1.5"], "argument --count: '1.5' is no whole number, but one is needed"),
    ([*SAMPLE, f"--count={'9' * 400}"], "argument --count: 999"),
    ([*SAMPLE, "--steps=1000000000"], "argument --steps: 1000000000 is given, but 1 to 100000"),
    ([*SAMPLE, "--columns=1000000000"], "argument --columns: 1000000000 is given, but 1 to 1000"),
    ([*SAMPLE, "--guidance=inf"], "argument --guidance: inf is given, but a finite number"),
    ([*SAMPLE, "--solver=--"], "solver '--' is not known"),
    ([*SAMPLE, "--device=meta"], "--device 'meta' has no kernels here, but cpu and cuda have"),
    ([*SAMPLE, "--device=cpu:7"], "--device cpu:7 but there are 1 devices, from cpu:0"),
    ([*SAMPLE, "--device=--"], "--device '--' is no device"),
    ([*SAMPLE, "--out=folder.json"], "but its ending must be .png, .npz or .safetensors"),
    ([*SAMPLE, f"--out={'x' * 300}.npz"], "File name too long"),
    ([*SAMPLE, "--out=empty.json/x.npz"], "but there is no folder"),
    ([*SAMPLE, "--task=inpaint", "--mask=mask.npy", "--image=pickled.npy"], "pickled.npy"),
    (["sample", "--plan=missing.json", "--out=x.npz"], "'missing.json': there is no such file"),
    (["sample", "--plan=deep.json", "--out=x.npz"], "deep.json"),
    (["sample", "--plan=cut.npz", "--out=x.npz"], "cut.npz"),
    (["sample", "--plan=folder.json", "--out=x.npz"], "'folder.json': there is no such file"),
    ([*PARALLEL, "--set=window=x"], "--set window=x but "),
    ([*PARALLEL, "--set=nothing=1"], "--set nothing=1 but "),
    ([*PARALLEL, "--set=callback=1"], "callback cannot be given here: use it from Python"),
    ([*PARALLEL, "--parallel="], "but the known methods are"),
    ([*ADAPTIVE, "--set=throw=1"], "throw cannot be given here: use it from Python"),
    ([*ADAPTIVE, "--out=folder.json"], "--out folder.json is a folder but a file is needed"),
    (["profile", "--data=cut.npz", "--out=p.json"], "--data cut.npz"),
    (["profile", "--levels=1", "--out=p.json"], "argument --levels: 1 is given, but 2 to 10000"),
    ([*TUNE, "--calls=1000000000"], "but whole numbers from 1 to 1000 are needed"),
    ([*TUNE, "--network=of_user:raises", "--shape=2"], "raises failed: KeyError: 'gone'"),
    ([*TUNE, "--network=of_user:exits", "--shape=2"], "exits failed: SystemExit: 3"),
    ([*TUNE, "--network=syntax_of_user:made", "--shape=2"], "failed: SyntaxError"),
    ([*TUNE, "--network=os:sep", "--shape=2"], "sep is a str, and a function is needed"),
    ([*TUNE, "--resume=folder.json"], "--resume folder.json is a folder but a file is needed"),
    ([*TUNE, "--resume=nowhere/x"], "--resume nowhere/x but there is no folder"),
    (["plan", "--calls=1e3"], "argument --calls: '1e3' is no whole number"),
    (["bench", "--threads=0"], "--threads '0'"),
    (["bench", "--out=empty.json"], "--out empty.json"),
]


@pytest.mark.parametrize(("argv", "message"), CALLS)
def test_a_bad_call_is_one_line(argv, message, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(argv) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("diffast: ")
    assert said.err.count("\n") == 1 and not said.out
    left = [path for path in tmp_path.iterdir() if path.name != "__pycache__"]
    assert sorted(left) == before


@pytest.mark.parametrize(
    ("package", "argv", "message"),
    [
        (
            "PIL",
            ["sample", "--out=x.png"],
            "needs Pillow, which is not installed: pip install 'dif",
        ),
        (
            "matplotlib",
            ["profile", "--adaptive"],
            "profile.png needs matplotlib, which is not inst",
        ),
        ("matplotlib", ["profile"], "profile.html needs matplotlib, which is not installed"),
        ("matplotlib", [*TUNE, "--picture=x.svg"], "--picture x.svg needs matplotlib"),
    ],
)
def test_a_missing_package_is_said_before_the_work(package, argv, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("diffast.digits.load_unet", lambda: pytest.fail("the work has begun"))
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_errors_on_the_way_are_one_line_and_a_traceback_can_be_asked_for(monkeypatch, capsys):
    def breaks(*_):
        raise RuntimeError("of a\nbackend")

    monkeypatch.setattr("diffast.digits.load_unet", breaks)
    assert main(SAMPLE) == 1
    said = capsys.readouterr().err
    assert said == "diffast: RuntimeError: of a backend (DIFFAST_TRACEBACK=1 shows where)\n"
    monkeypatch.setenv("DIFFAST_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="of a"):
        main(SAMPLE)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "diffast: interrupted\n"),
        (MemoryError("2 TiB"), 1, "diffast: there is not enough memory (2 TiB)\n"),
        (OSError(28, "No space left on device", "x.npz"), 1, "diffast: x.npz: No space left on"),
        (ModuleNotFoundError("gone", name="tqdm"), 2, "diffast: this needs tqdm, which cannot be"),
        (FileNotFoundError(2, "No such file", "plan.json"), 2, "diffast: [Errno 2] No such file"),
    ],
)
def test_statuses(error, status, said, capsys):
    def work():
        raise error

    assert failure.status_of(work) == status
    assert capsys.readouterr().err.startswith(said)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "x.npz").write_bytes(b"old")
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert main(SAMPLE) == 1
    assert capsys.readouterr().err == "diffast: No space left on device\n"
    assert (tmp_path / "x.npz").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_memory_and_disk_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(doors, "free_memory", lambda: 1e9)
    with pytest.raises(ValueError, match="--count 1000 needs 2.2 GB of memory, but 1 GB are free"):
        doors.check_count("--count", 1000, 2)
    doors.check_count("--count", 100, 2)
    usage = type("usage", (), {"free": 1000.0})
    monkeypatch.setattr(doors.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="--count 10 needs 31.4 KB of disk, but 1 KB are free"):
        doors.check_count("--count", 10, 1, tmp_path / "x.npz")
    monkeypatch.undo()
    assert doors.free_memory() > 1e6


@pytest.mark.parametrize(
    ("mode", "limit"),
    [
        (lambda: torch.set_default_device("meta"), 0.0),
        (lambda: torch.set_default_dtype(torch.float64), 0.0),
        (lambda: torch.set_default_dtype(torch.bfloat16), 0.0),
    ],
)
def test_defaults_of_torch_change_no_digit(mode, limit, tmp_path):
    assert main(SAMPLE) == 0
    wanted = np.load("x.npz")["x"]
    try:
        mode()
        assert main([*SAMPLE, "--out", "y.npz"]) == 0
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert np.abs(np.load("y.npz")["x"] - wanted).max() <= limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "shell", "status"),
    [
        ({"PYTHONIOENCODING": "ascii"}, " --out ä.txt", 2),
        ({"COLUMNS": "1"}, " --help", 0),
        ({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}, " --out ä.txt", 2),
        ({"HOME": ""}, "", 0),
        ({}, " | true", (0, 141)),
        ({}, " >&-", 0),
        ({}, " --calls 0 2>&-", 2),
        ({}, " <&-", 0),
        ({}, " >/dev/full", 1),
    ],
)
def test_streams_and_surroundings(environment, shell, status, tmp_path):
    line = f"set -o pipefail; '{sys.executable}' -m diffast plan{shell}"
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | environment | {"PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, timeout=120)
    assert done.returncode in (status if isinstance(status, tuple) else (status,))
    said = done.stderr.decode(errors="replace")
    assert "Traceback" not in said and "Exception ignored" not in said
    assert said.count("\n") <= 1
