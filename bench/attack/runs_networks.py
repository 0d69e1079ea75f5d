"""Networks that do what they should not, each with what a run of it has to give.

A fault is made of a healthy network f(x, t). Its `wanted` is the healthy network whose samples are
right for it, or None where no samples can be right and the run has to say why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import diffast as df


def healthy(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """A smooth denoiser, each sample by itself."""
    time = t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    made = (0.8 * x + 0.1 - 0.1 * time) / (1 + 0.3 * x * x)
    return made if c is None else made + 0.05 * c.to(x.dtype)


def identity(x: torch.Tensor, t: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """The estimate is the state."""
    return x.clone()


class Mine(Exception):
    """An error of the network's own."""


@dataclass
class Fault:
    """One kind of fault.

    Attributes:
        name: in the table.
        make: returns a new network, which may count its calls.
        wanted: the healthy network; None: the run has to end in an error.
        broken: whether the samples may be lost, and then have to be named.
        rounding: by how much samples may differ from those of the healthy network, relative.
        kind: "value" (the fault is in what is returned) or "effect" (in what else it does).
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    wanted: Callable[..., Any] | None = field(default=healthy)
    rounding: float = 2e-5
    kind: str = "value"
    broken: bool = False


def _after(effect: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[[], Any]:
    """A network that answers as it should and then does something."""

    def make():
        def network(x, t, c=None):
            y = healthy(x, t, c)
            effect(x, t)
            return y

        return network

    return make


def _changed(change: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
    """A network whose answer is changed."""
    return lambda: lambda x, t, c=None: change(healthy(x, t, c))


def _at_call(number: int, change: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
    def make():
        calls = [0]

        def network(x, t, c=None):
            calls[0] += 1
            y = healthy(x, t, c)
            return change(y) if calls[0] == number else y

        return network

    return make


def _writes_at(number: int) -> Callable[[], Any]:
    def make():
        calls = [0]

        def network(x, t, c=None):
            calls[0] += 1
            y = healthy(x, t, c)
            if calls[0] == number:
                x.data.mul_(0.5)
            return y

        return network

    return make


def _static() -> Callable[[], Any]:
    """One tensor for all answers, as a captured network has it."""

    def make():
        kept: dict[tuple, torch.Tensor] = {}

        def network(x, t, c=None):
            y = healthy(x, t, c)
            out = kept.setdefault((y.shape, y.dtype), torch.empty_like(y))
            return out.copy_(y)

        return network

    return make


def _keeps() -> Any:
    held: list[torch.Tensor] = []

    def network(x, t, c=None):
        y = healthy(x, t, c)
        if held and held[-1].shape == x.shape:
            held[-1].mul_(0.5)
        held.append(x)
        return y

    return network


def _bad(y: torch.Tensor, value: float, one: bool) -> torch.Tensor:
    y = y.clone()
    (y[:1] if one else y).fill_(value)
    return y


def _numpy_write(x: torch.Tensor, t: torch.Tensor) -> None:
    x.detach().numpy()[...] *= 0.5


def _storage_write(x: torch.Tensor, t: torch.Tensor) -> None:
    flat = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
    flat.data.mul_(0.5)


def _own_op(x: torch.Tensor, t: torch.Tensor) -> None:
    df.ops.combine_out([x], [0.5], [x])


def _one_number(x: torch.Tensor, t: torch.Tensor) -> None:
    x.data.view(-1)[5] += 1.0


def _raise(x: torch.Tensor, t: torch.Tensor) -> None:
    raise Mine("out of luck")


class _Output(dict):
    """As the outputs of transformers and diffusers: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class _Data:
    sample: torch.Tensor


class _Sub(torch.Tensor):
    """A subclass without a meaning of its own."""


class _Module(torch.nn.Module):
    """Writes its parameters anew in every call, with the values that they have."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, t, c=None):
        with torch.no_grad():
            self.scale.copy_(torch.ones_like(self.scale))
        return healthy(x, t, c) * self.scale.detach()


def _random(x: torch.Tensor, t: torch.Tensor) -> None:
    torch.manual_seed(3)
    torch.rand(7)
    np.random.seed(3)


def _fake(y: torch.Tensor) -> torch.Tensor:
    from torch._subclasses import FakeTensorMode

    return FakeTensorMode().from_tensor(y)


def _in_inference(x, t, c=None):
    with torch.inference_mode():
        return healthy(x, t, c)


def _autocast(x, t, c=None):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return healthy(x, t, c) + 0.0 * (x.flatten(1) @ x.flatten(1).T).sum()


def _nested(x, t, c=None):
    schedule = df.schedules.vp_linear()
    plan = df.solvers.ddim(schedule, df.grids.uniform_logsnr(schedule, 2))
    df.sample(df.Denoiser(healthy, schedule, "x0"), plan, (2, 3), seed=9)
    return healthy(x, t, c)


def _negative(y: torch.Tensor) -> torch.Tensor:
    """The same numbers as a lazy negative: torch keeps a bit, the memory holds -y."""
    return torch._neg_view(-y)


def _apart(y: torch.Tensor) -> torch.Tensor:
    """The same numbers with gaps between them."""
    whole = torch.zeros((*y.shape, 2), dtype=y.dtype)
    whole[..., 0] = y
    return whole[..., 0]


def _behind(y: torch.Tensor) -> torch.Tensor:
    whole = torch.zeros(y.numel() + 3, dtype=y.dtype)
    whole[3:] = y.reshape(-1)
    return whole[3:].view(y.shape)


def _constant(x, t, c=None):
    return torch.zeros_like(x) + 0.25


def _transposed(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(-1, -2).contiguous().transpose(-1, -2)


def _grad_output(y: torch.Tensor) -> torch.Tensor:
    return y.detach().clone().requires_grad_()


WRITES = (
    Fault("writes into x (mul_)", _after(lambda x, t: x.mul_(0.5)), kind="effect"),
    Fault("writes into x (out=)", _after(lambda x, t: torch.add(x, 1.0, out=x)), kind="effect"),
    Fault("writes into x (x[:] =)", _after(lambda x, t: x.__setitem__(0, 0.0)), kind="effect"),
    Fault("writes into x.data", _after(lambda x, t: x.data.mul_(0.5)), kind="effect"),
    Fault("writes into x by numpy", _after(_numpy_write), kind="effect"),
    Fault("writes into x's storage", _after(_storage_write), kind="effect"),
    Fault("writes into x by an op of diffast", _after(_own_op), kind="effect"),
    Fault("writes one number into x.data", _after(_one_number), kind="effect"),
    Fault("writes into x.data at its third call", _writes_at(3), kind="effect"),
    Fault("writes into the x of the call before", _keeps, kind="effect"),
    Fault("writes into t", _after(lambda x, t: t.mul_(0.5)), kind="effect"),
    Fault("reshapes x in place", _after(lambda x, t: x.unsqueeze_(0)), kind="effect"),
    Fault("x.requires_grad_()", _after(lambda x, t: x.requires_grad_()), kind="effect"),
)

EFFECTS = (
    Fault("raises", _after(_raise), None, kind="effect"),
    Fault("raises StopIteration", lambda: lambda x, t, c=None: next(iter(())), None, kind="effect"),
    Fault("rewrites its parameters", _Module, kind="effect"),
    Fault("seeds and uses the global generators", _after(_random), kind="effect"),
    Fault(
        "sets the default dtype",
        _after(lambda x, t: torch.set_default_dtype(torch.float64)),
        kind="effect",
    ),
    Fault("leaves gradients on", _after(lambda x, t: torch.set_grad_enabled(True)), kind="effect"),
    Fault("autocast inside", lambda: _autocast, rounding=2e-2, kind="effect"),
    Fault("runs df.sample inside", lambda: _nested, kind="effect"),
)

BROKEN = (
    Fault(
        "NaN in one sample at call 3", _at_call(3, lambda y: _bad(y, torch.nan, True)), broken=True
    ),
    Fault("NaN in all at call 1", _at_call(1, lambda y: _bad(y, torch.nan, False)), broken=True),
    Fault(
        "inf in one sample at call 2", _at_call(2, lambda y: _bad(y, torch.inf, True)), broken=True
    ),
    Fault("returns None", _changed(lambda y: None), None),
    Fault("returns ()", _changed(lambda y: ()), None),
    Fault("returns {}", _changed(lambda y: {}), None),
    Fault("returns a string", _changed(lambda y: "noise"), None),
    Fault("returns a number", _changed(lambda y: 0.5), None),
    Fault("returns a numpy array", _changed(lambda y: y.detach().numpy()), None),
    Fault("returns a dict of other names", _changed(lambda y: {"a": y, "b": y}), None),
    Fault("returns fewer channels", _changed(lambda y: y[:, :1]), None),
    Fault("returns one row for all", _changed(lambda y: y[:1]), None),
    Fault("returns a number of dimensions more", _changed(lambda y: y[None]), None),
    Fault("returns no batch", _changed(lambda y: y[0]), None),
    Fault("returns int32", _changed(lambda y: y.to(torch.int32)), None),
    Fault("returns bool", _changed(lambda y: y > 0), None),
    Fault("returns complex64", _changed(lambda y: y.to(torch.complex64)), None),
    Fault("returns float8", _changed(lambda y: y.to(torch.float8_e4m3fn)), None),
    Fault("returns a tensor on another device", _changed(lambda y: y.to("meta")), None),
    Fault("returns a fake tensor", _changed(_fake), None),
    Fault("returns a sparse tensor", _changed(lambda y: y.to_sparse()), None),
    Fault("returns an empty tensor", _changed(lambda y: y[:0]), None),
)

SHAPED = (
    Fault("returns (y,)", _changed(lambda y: (y,))),
    Fault("returns [y]", _changed(lambda y: [y])),
    Fault("returns {'sample': y}", _changed(lambda y: {"sample": y})),
    Fault("returns a ModelOutput", _changed(lambda y: _Output(sample=y))),
    Fault("returns a dataclass", _changed(_Data)),
    Fault("returns float64", _changed(lambda y: y.double())),
    Fault("returns float16", _changed(lambda y: y.half()), rounding=5e-3),
    Fault("returns bfloat16", _changed(lambda y: y.bfloat16()), rounding=4e-2),
    Fault("returns its input", lambda: lambda x, t, c=None: x, identity),
    Fault("returns a view of its input", lambda: lambda x, t, c=None: x.view(x.shape), identity),
    Fault(
        "returns its input transposed twice",
        lambda: lambda x, t, c=None: x.flatten(1).t().t().view(x.shape),
        identity,
    ),
    Fault("one tensor for all answers", _static()),
    Fault("output of inference mode", lambda: _in_inference),
    Fault("output that requires grad", _changed(_grad_output)),
    Fault("output with gaps", _changed(_apart)),
    Fault("output behind an offset", _changed(_behind)),
    Fault("output in channels_last", _changed(_transposed)),
    Fault(
        "output expanded from one number",
        lambda: lambda x, t, c=None: torch.full((1,) * x.dim(), 0.25).to(x.dtype).expand(x.shape),
        _constant,
    ),
    Fault("output with a negative bit", _changed(_negative)),
    Fault("output of a subclass", _changed(lambda y: y.as_subclass(_Sub))),
    Fault("output is a Parameter", _changed(lambda y: torch.nn.Parameter(y.detach().clone()))),
)

FAULTS = (*WRITES, *EFFECTS, *BROKEN, *SHAPED)
