"""Copies between host and device, and the double of a device that other tests run on."""

import numpy as np
import pytest
import torch
from device_double import Device, Waits, host

from diffast.executors.device import Readback, Upload, sent

ARRAYS = {
    "numbers": np.linspace(0.0, 1.0, 6).reshape(2, 3),
    "flags": np.array([True, False, True]),
    "ids": np.arange(5, dtype=np.int64)[::2],  # not contiguous
    "jobs": np.arange(8, dtype=np.int32).reshape(1, 8),
    "times": np.float32([0.5, 0.25]),
    "none": np.zeros((0, 4), dtype=np.int32),
}


def test_arrays_of_all_kinds_arrive_after_one_copy():
    with Device() as device:
        there = Upload(device.place).send(ARRAYS)
        assert (device.uploads, device.waits, device.launches) == (1, 0, 0)
        found = {name: host(tensor).numpy().copy() for name, tensor in there.items()}
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_on_the_cpu_arrays_are_taken_as_they_are():
    array = np.arange(3.0)
    assert Upload(torch.device("cpu")).send({"a": array})["a"].data_ptr() == array.ctypes.data
    tensor = torch.arange(3.0)
    assert Readback(torch.device("cpu")).take(tensor).ctypes.data == tensor.data_ptr()


def test_what_was_sent_holds_until_the_send_after_the_next():
    with Device() as device:
        upload = Upload(device.place)
        first, second = (upload.send({"a": np.full(4, number)})["a"] for number in (1, 2))
        assert host(first).tolist() == [1] * 4 and host(second).tolist() == [2] * 4
        third = upload.send({"a": np.full(4, 3)})["a"]
        assert third is first and host(second).tolist() == [2] * 4


def test_a_copy_in_flight_is_not_overwritten():
    """The third send waits for the first copy, unless something later was waited for."""
    with Device() as device:
        upload = Upload(device.place)
        for _ in range(3):
            upload.send({"a": np.zeros(4)})
        assert device.waits == 1
        Readback(device.place).take(torch.zeros(2, device=device.place))
        assert device.waits == 2
        upload.send({"a": np.zeros(4)})
        assert device.waits == 2


def test_larger_arrays_than_before_get_larger_buffers():
    with Device() as device:
        upload = Upload(device.place)
        small = upload.send({"a": np.ones(4)})["a"]
        large = upload.send({"a": np.arange(1000.0)})["a"]
        assert host(small).tolist() == [1.0] * 4 and host(large).tolist() == list(range(1000))


def test_reading_is_one_copy_and_one_wait():
    with Device() as device:
        readback = Readback(device.place)
        for count in (3, 2, 7):
            tensor = sent(device.place, np.arange(count, dtype=np.float64))[0]
            device.reset()
            assert readback.take(tensor).tolist() == list(range(count))
            assert (device.downloads, device.waits) == (1, 1)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: float(x[0]),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.as_tensor([1.0, 2.0], device=x.device),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.masked_select(x, x > 0),
        lambda x: torch.equal(x, x + 1),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x + torch.ones(3),
    ],
)
def test_the_double_refuses_what_waits_or_mixes(ask):
    with Device() as device, torch.inference_mode():
        x = torch.ones(3, device=device.place)
        with pytest.raises(Waits):
            ask(x)


@pytest.mark.parametrize("ask", [lambda x: x.tolist(), lambda x: x.numpy(), np.asarray])
def test_the_double_has_no_memory_that_the_host_reads(ask):
    with Device() as device, pytest.raises((RuntimeError, TypeError, Waits)):
        ask(torch.ones(3, device=device.place))


def test_the_double_counts_launches_and_no_views():
    with Device() as device:
        x = torch.zeros(4, 3, device=device.place)
        device.reset()
        y = (x[1:].view(9).exp() + 1.0).reshape(3, 3).T
        torch.empty_like(y).copy_(y)
        assert dict(device.kernels) == {"exp": 1, "add": 1, "copy_": 1}
