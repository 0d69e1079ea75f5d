"""What holds for every op on a GPU: results, guards around outputs, streams, graphs, devices.

    DIFFAST_TEST_DEVICE=cpu pytest tests/gpu/test_gpu_every_op.py

tries out on the CPU what needs neither streams nor graphs.
"""

import pytest
import torch
from device_watch import no_waits
from op_calls import CALLS, Placed, assert_results, check, expected
from test_memory import PAIRS, allowed, at, sharing

from diffast.ops.explain import explained
from diffast.ops.memory import WRITING

each_call = pytest.mark.parametrize("call", CALLS, ids=str)
cuda_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Odd and even sizes, around a thread's four or eight elements, a warp's and a block's.
SIZES = (1, 2, 3, 5, 7, 8, 9, 31, 127, 129, 255, 1023, 1025, 2051, 4099)


@each_call
def test_results_and_guards_at_odd_sizes(call, device):
    """No byte beside an output is written, wherever the output starts in memory."""
    for k, size in enumerate(SIZES):
        samples = 1 + k % 3
        check(call, call.make(samples, size, k), device, (samples, size), offset=k % 4)


@pytest.mark.parametrize("name", WRITING)
def test_a_written_tensor_shares_memory_with_no_other(name, device):
    for op, out, other in PAIRS:
        if op != name:
            continue
        arguments = sharing(name, out, other, True, device)
        if not allowed(name, out, other, at(name, arguments, out), at(name, arguments, other)):
            with pytest.raises(RuntimeError, match="overlaps"):
                explained(name)(*arguments)


@each_call
def test_a_call_does_not_wait_for_the_device(call, device):
    placed = Placed(call, call.make(), device).run()  # constants of the op are on the device now
    placed.reset()
    with no_waits(device):
        placed.run()
    assert_results(call, placed, expected(call, call.make()))


def poison(placed):
    """Fills floating-point inputs with NaN; returns what they held. Indices stay valid."""
    floats = [t for t in placed.inputs if t.is_floating_point()]
    held = [t.clone() for t in floats]
    for t in floats:
        t.fill_(torch.nan)
    return list(zip(floats, held, strict=True))


@cuda_only
@each_call
def test_work_goes_to_the_current_stream(call):
    """The inputs are written by the side stream, late: an op elsewhere would read NaN."""
    arguments = call.make()
    Placed(call, arguments, "cuda").run()
    placed = Placed(call, arguments, "cuda")
    held = poison(placed)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for tensor, values in held:
            tensor.copy_(values)
        placed.run()
        assert not stream.query(), "the op waited for the device"
    stream.synchronize()
    assert_results(call, placed, expected(call, arguments), "side stream")
    placed.assert_guards("side stream")


@cuda_only
@each_call
def test_capture_and_replay(call):
    """A replay does what the call does, on what lies in its tensors then."""
    arguments = call.make()
    placed = Placed(call, arguments, "cuda").run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        placed.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        placed.run()
    held = poison(placed)
    graph.replay()
    for tensor, values in held:
        tensor.copy_(values)
    for _ in range(2):
        placed.reset()
        graph.replay()
        assert_results(call, placed, expected(call, arguments), "replay")
    placed.assert_guards("replay")


@each_call
def test_the_same_bits_every_time(call, device):
    first, again = (Placed(call, call.make(5, 4099), device) for _ in range(2))
    first.run()
    for _ in range(5):
        again.reset()
        again.run()
        for a, b in zip(again.results(), first.results(), strict=True):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), call


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
@each_call
def test_tensors_of_another_device_than_the_current(call):
    with torch.cuda.device(0):
        made = check(call, call.make(), "cuda:1", "second device")
        assert torch.cuda.current_device() == 0
    assert all(t.device.index == 1 for t in (*made.outputs, *made.returned))


def called(name, label):
    (call,) = (call for call in CALLS if str(call) == f"{name} {label}")
    return call


def replayed(placed):
    """Returns a graph of the call."""
    placed.run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        placed.run()
    return graph


@cuda_only
@pytest.mark.parametrize("name", ["combine.out noise", "normal.out f32"])
def test_a_graph_keeps_the_seed_of_the_host(name):
    """A seed and stage given as numbers are frozen by capture: each replay draws the same noise."""
    call = called(*name.split())
    placed = Placed(call, call.make(), "cuda")
    graph = replayed(placed)
    placed.reset()
    graph.replay()
    first = placed.results()
    torch.cuda.manual_seed(99)  # torch's generator is neither read nor advanced
    placed.reset()
    graph.replay()
    for a, b in zip(placed.results(), first, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# Where the seeds, ids and stages are in memory: the argument's name in the schema.
STREAMS = {
    "combine.table_out noise": "streams",
    "combine_error.out linf": "streams",
    "brownian.out f32": "streams",
    "sweep SDE": "ids",
    "combine.out noise": "ids",
    "normal.out f32": "ids",
}


@pytest.mark.parametrize("name", STREAMS)
def test_streams_in_memory_give_new_noise_to_a_replay(name, device):
    """Seeds and ids that lie in tensors are read at each replay; on the CPU: at each call."""
    call = called(*name.rsplit(" ", 1))
    arguments = call.make()
    placed = Placed(call, arguments, device)
    again = replayed(placed).replay if device.type == "cuda" else placed.run
    names = [parameter.name for parameter in call.parameters]
    at = names.index(STREAMS[name])
    changed = list(arguments)
    changed[at] = arguments[at] + 1
    placed.arguments[at].copy_(changed[at])
    placed.reset()
    again()
    assert_results(call, placed, expected(call, changed), "new streams")
    fresh, old = placed.results()[0], expected(call, arguments).results()[0]
    assert not torch.equal(fresh.nan_to_num(), old.nan_to_num())
