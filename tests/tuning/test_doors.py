"""What `df.tune` is given: numbers checked at the door, in the caller's words, before the work."""

import json
import math

import pytest
import torch

import diffast as df
from diffast.tuning import memo


def denoiser():
    return df.Denoiser(lambda x, t: torch.tanh(x), df.schedules.flow(), predicts="flow")


def tune(**given):
    base = {"calls": 2, "shape": (4, 2), "iterations": 0, "starts": 1, "progress": False}
    return df.tune(denoiser(), **(base | given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calls": 2.5}, "calls is 2.5, but must be a whole number from 1"),
        ({"calls": "8"}, "calls is '8', but must be a whole number from 1"),
        ({"calls": 10**9}, "calls is 1000000000, but must be at most 10000"),
        ({"shape": (2.7, 3)}, "shape is 2.7, but must be a whole number"),
        ({"shape": (10**9, 10**9)}, "samples of .* numbers, but at most"),
        ({"held_out": 10**12}, "1000000000000 samples of"),
        ({"held_out": math.nan}, "held_out is nan"),
        ({"iterations": -1}, "iterations is -1, but must be a whole number from 0"),
        ({"polish": math.nan}, "polish is nan"),
        ({"rows": 2.5}, "rows is 2.5"),
        ({"memory_limit": "x"}, "memory_limit is 'x'"),
        ({"seed": 2.5}, "seed is 2.5, but must be a whole number"),
        ({"seed": 2**70}, "seed is 1180591620717411303424, but must be at most"),
        ({"stochastic": "yes"}, "stochastic is 'yes', but must be True or False"),
        ({"progress": None}, "progress is None, but must be True or False"),
        ({"measured_grids": math.nan}, "measured_grids is nan, but must be True or False"),
        ({"freedom": 3}, "freedom is 3, but names of freedoms are needed"),
        ({"freedom": [[]]}, r"freedom is \[\[\]\], but names of freedoms are needed"),
        ({"compare": None}, "compare is None, but multiples of calls are needed"),
        ({"compare": 1e9}, "compare holds 1e.09 and calls is 2, but at most 10000 calls"),
        ({"resume": 3}, "resume is a int, but a file's path is needed"),
        ({"resume": "\0"}, "but a file's name has no zero byte"),
        ({"resume": "."}, "resume is ., a folder, but a file is needed"),
        ({"resume": "/dev/null"}, "resume is /dev/null, which is no file that can be replaced"),
        ({"resume": "x" * 5000}, "File name too long"),
        ({"device": "toaster"}, "device is 'toaster', but a torch device is needed"),
        ({"device": "meta"}, "the device is meta, where tensors have no values"),
    ],
)
def test_bad_arguments_are_refused_before_the_work(given, message, monkeypatch):
    monkeypatch.setattr("diffast.tuning.tune._Tuning", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(ValueError, match=f"^tune: .*{message}"):
        tune(**given)


def test_a_full_disk_keeps_the_old_resume_file(tmp_path, monkeypatch):
    path = tmp_path / "work.json"
    kept = memo.Memo(path, {"calls": 2})
    kept("first", lambda: {"calls": 1})
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memo.os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: .*work.json"):
        kept("second", lambda: {"calls": 1})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["work.json"]
    assert set(json.loads(before)["results"]) == {"first"}


@pytest.mark.slow
def test_the_default_dtype_changes_no_plan():
    wanted = tune().plan
    torch.set_default_dtype(torch.float64)
    try:
        found = tune().plan
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.name == wanted.name
    assert (found.matrix == wanted.matrix).all()
    with (
        torch._subclasses.fake_tensor.FakeTensorMode(),
        pytest.raises(ValueError, match="^tune: .*F"),
    ):
        tune()
