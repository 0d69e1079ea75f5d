"""`DIFFAST_SYNC=1`: ops wait for their kernels, and indices are looked at before they are used."""

import subprocess
import sys

import pytest
import torch

from diffast.ops import debugging, load
from diffast.ops.sweep.checks import check_sweep

CUDA = torch.device("cuda:1")


class OnCuda(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    @property
    def device(self):
        """The device that it claims."""
        return CUDA


def on_cuda(*shape):
    return torch.zeros(shape).as_subclass(OnCuda)


@pytest.fixture
def cuda(monkeypatch):
    """What torch.cuda is asked for: `waited` lists devices, `captured` says whether a graph is."""

    class Cuda:
        waited, captured, error = [], False, None

    def synchronize(device):
        Cuda.waited.append(device)
        if Cuda.error:
            raise Cuda.error

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Cuda.captured)
    return Cuda


def test_an_op_waits_for_the_devices_of_its_tensors(cuda):
    function = debugging.waiting("gram", lambda xs, weight, number: number)
    assert function([on_cuda(2)], on_cuda(3), 5) == 5
    assert cuda.waited == [CUDA]
    function([torch.zeros(2)], torch.zeros(3), 5)
    assert cuda.waited == [CUDA]
    cuda.captured = True
    function([on_cuda(2)], None, 5)
    assert cuda.waited == [CUDA]


def test_a_kernel_that_fails_is_named_with_its_device(cuda):
    cuda.error = RuntimeError("an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="^sweep: its kernel failed on cuda:1: an illegal"):
        debugging.waiting("sweep", lambda x: x)(on_cuda(2))


@pytest.mark.parametrize("value", ("", "0", "1"))
def test_triton_ops_wait_where_it_is_wanted(value, monkeypatch):
    monkeypatch.setenv("DIFFAST_SYNC", value)
    registered = {}

    class Library:
        impl = staticmethod(lambda name, function, key: registered.update({name: function}))

    monkeypatch.setattr(load, "library", Library)
    load._register("reference", "CUDA")
    assert hasattr(registered["sweep"], "__wrapped__") == (value == "1")
    load._register("reference", "CompositeExplicitAutograd")
    assert not hasattr(registered["sweep"], "__wrapped__")


def test_indices_are_looked_at_where_that_is_free_or_wanted(cuda, monkeypatch):
    cpu, meta = torch.device("cpu"), torch.device("meta")
    for value in ("0", "1"):
        monkeypatch.setenv("DIFFAST_SYNC", value)
        assert debugging.indices_are_checked(cpu)
        assert not debugging.indices_are_checked(meta)
        assert debugging.indices_are_checked(CUDA) == (value == "1")
    cuda.captured = True
    assert not debugging.indices_are_checked(CUDA)


def test_a_job_on_a_device_that_leads_out_of_the_points_is_refused(cuda, monkeypatch):
    """The words are those of the CPU; without the variable the indices are not read."""

    def double(*shape):
        return torch.zeros(shape, dtype=torch.float64).as_subclass(OnCuda)

    jobs = torch.tensor([[0, 0, -1, -1, 0, 1, 0, 1]], dtype=torch.int32).as_subclass(OnCuda)
    walk = torch.tensor([[2]], dtype=torch.int32).as_subclass(OnCuda)
    ids = torch.zeros(1, dtype=torch.int64).as_subclass(OnCuda)
    x, states = on_cuda(2, 4), on_cuda(1, 4, 4)
    tables = double(1, 2, 2), double(1, 2), double(1, 1, 2), double(1, 4)
    call = (x, [on_cuda(2, 4)], None, *tables, jobs, walk, ids, 0, 0, False, [], x, states, None)
    monkeypatch.setenv("DIFFAST_SYNC", "0")
    check_sweep(*call)
    monkeypatch.setenv("DIFFAST_SYNC", "1")
    with pytest.raises(RuntimeError, match=r"^sweep: walk\[0, 0\] is row 2 but x has 2 rows"):
        check_sweep(*call)


def test_another_value_is_refused_at_import():
    program = "import os; os.environ['DIFFAST_SYNC'] = 'yes'; import diffast.ops"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "DIFFAST_SYNC is 'yes' but must be 0, 1 or unset" in done.stderr
