"""Rounds of a fixed number of rows are one piece of device work, done again and again.

That is what a CUDA graph of a round needs: the same ops in the same order, on the same memory, with
the same numbers of the host. What changes from round to round lies in the arrays that are sent.
"""

import pytest
import torch
from device_double import Device, host

import diffast as df
from diffast.executors.parallel import rounds

SCHEDULE = df.schedules.vp_linear()


def network(x, t):
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, 1))


class Recorder(Device):
    """A device that writes down its ops, with memory by name.

    Memory that an op of this round made is ("new", its number), of the round before ("before", its
    number); other memory has its address. The network's outputs are new memory too.
    """

    def __init__(self):
        super().__init__()
        self.ops, self.fresh, self.before = [], {}, {}

    def next_round(self):
        self.ops, self.before, self.fresh = [], self.fresh, {}

    def name(self, value):
        if isinstance(value, torch.Tensor):
            memory = host(value).untyped_storage()
            at = memory.data_ptr()
            known = self.fresh.get(at) or self.before.get(at)
            kind = "new" if at in self.fresh else "before"
            place = (kind, known[0]) if known else at
            return place, host(value).storage_offset(), tuple(value.shape), value.dtype
        if isinstance(value, (list, tuple)):
            return tuple(self.name(item) for item in value)
        return value

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.outside:
            return super().__torch_dispatch__(function, types, args, kwargs)
        given = self.name(args), self.name(tuple((kwargs or {}).items()))
        olds = {host(t).untyped_storage().data_ptr() for t in _tensors(args)}
        result = super().__torch_dispatch__(function, types, args, kwargs)
        for tensor in _tensors((result,)):
            memory = host(tensor).untyped_storage()
            if memory.data_ptr() not in olds and "out" not in (kwargs or {}):
                self.note(memory)
        if not function.is_view and function._schema.name != "aten::detach":
            self.ops.append((str(function), given))
        return result

    def note(self, memory):
        self.fresh[memory.data_ptr()] = (len(self.fresh), memory)  # kept: no address comes twice


def _tensors(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize(
    "method, name",
    [
        ("secant", "ddim"),
        ("secant", "dpmpp_2m_sde"),
        ("secant", "heun"),
        ("prior", "ddim"),
        ("prior", "rk4"),
        ("paradigms", "ddpm"),
    ],
)
def test_every_second_round_is_the_same_device_work(method, name, monkeypatch):
    device, traces, inner = Recorder(), [], rounds.ParallelRun.round

    def watched(run):
        device.next_round()
        settled = inner(run)
        traces.append(list(device.ops))
        return settled

    def answer(x, t):
        with device.uncounted():
            out = network(x, t)
        device.note(host(out).untyped_storage())
        return out

    monkeypatch.setattr(rounds.ParallelRun, "round", watched)
    options = {"shape": (3, 7), "seed": 4, "method": method, "static": True, "window": 4}
    plan = df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, 16))
    with device:
        denoiser = df.Denoiser(answer, SCHEDULE, predicts="epsilon")
        df.sample_parallel(denoiser, plan, device=device.place, tol=1e-3, **options)
    # The first three rounds make buffers, the last sends nothing for a next one. Once a run two
    # answers of a batch are compared.
    compares = [any("stack" in op for op, _ in ops) for ops in traces]
    pairs = [k for k in range(3, len(traces) - 3) if not (compares[k] or compares[k + 2])]
    assert len(pairs) >= 2
    for k in pairs:
        assert traces[k] == traces[k + 2]
