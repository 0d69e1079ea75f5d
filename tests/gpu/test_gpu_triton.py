"""A few Triton variants of every op on a GPU, which take every compile-time value at least once.

They are compiled when they are first called: about a second each. `--triton-variants all` runs the
other files' 1,500 too. Without a GPU the kernels run in Triton's interpreter, in tests/ops.
"""

import os
import subprocess
import sys

import pytest
import torch
from device_watch import no_waits
from op_calls import TRITON_CALLS, TRITON_SIZES, Placed, assert_results, check, expected
from places import ROOT

from diffast.ops.load import modules
from diffast.ops.schema import overload_of

pytest.importorskip("triton")
cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CASES = list(zip(TRITON_CALLS, TRITON_SIZES, strict=True))


def function_of(call):
    found = {k: v for module in modules("triton") for k, v in module.IMPLEMENTATIONS.items()}
    return found.get(call.name) or overload_of(call.name)  # an op may have no Triton kernel


@cuda_only
@pytest.mark.parametrize(("call", "size"), CASES, ids=str)
def test_triton_variants(call, size):
    """Results, guards, no wait, and a graph's replay."""
    function, arguments = function_of(call), call.make(2, size)
    placed = check(call, arguments, "cuda", function=function)
    placed.reset()
    with no_waits():
        placed.run(function)
    placed.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        placed.run(function)
    placed.reset()
    graph.replay()
    assert_results(call, placed, expected(call, arguments), "replay")
    placed.assert_guards("replay")


@cuda_only
def test_triton_runs_on_the_current_stream():
    call, size = next(c for c in CASES if str(c[0]) == "combine.table_out K=3")
    arguments, function = call.make(2, size), function_of(call)
    Placed(call, arguments, "cuda").run(function)
    placed = Placed(call, arguments, "cuda")
    floats = [t for t in placed.inputs if t.is_floating_point()]
    held = [t.clone() for t in floats]
    for t in floats:
        t.fill_(torch.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for t, values in zip(floats, held, strict=True):
            t.copy_(values)
        placed.run(function)
        assert not stream.query(), "the op waited for the device"
    stream.synchronize()
    assert_results(call, placed, expected(call, arguments), "side stream")


SAMPLE = """
import sys, torch, diffast as df
device, path = sys.argv[1:]
s = df.schedules.vp_linear()
network = lambda x, t: 0.5 * x
out = {}
for name in ("dpmpp_2m", "euler_ancestral", "heun"):
    plan = df.solvers.get(name)(s, df.grids.uniform_time(s, 6))
    denoiser = df.Denoiser(network, s, predicts="epsilon")
    out[name] = df.sample(denoiser, plan, (3, 1000), seed=4, device=device, clamp=(-2.0, 2.0)).x
out["backend"] = df.backends()["cpu" if device == "cpu" else "cuda"]["backend"]
torch.save({k: v.cpu() if hasattr(v, "cpu") else v for k, v in out.items()}, path)
"""


def samples(folder, device, backend):
    path = folder / f"{backend or 'default'}_{device}.pt"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DIFFAST_BACKEND": backend}
    command = [sys.executable, "-c", SAMPLE, device, str(path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return torch.load(path, weights_only=True)


def test_triton_through_the_dispatcher(device, tmp_path):
    """Whole runs in a process where Triton serves CUDA have the CPU's bits."""
    wanted = samples(tmp_path, "cpu", "")
    there = ("cuda", "triton") if device.type == "cuda" else ("cpu", "reference")
    got = samples(tmp_path, *there)
    assert got.pop("backend") == there[1] and wanted.pop("backend").startswith("c++")
    for name, x in wanted.items():
        assert torch.equal(got[name], x), name
