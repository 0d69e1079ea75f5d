"""Every op against its torch reference, before anything is timed.

A speed of a kernel that computes something else is worth nothing. The check needs no test suite, so
an installed wheel can make it: each op is called at sizes that leave tails, and everything that it
has written is compared with what the reference writes into copies of the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from diffast.bench import op_calls
from diffast.bench.op_calls import OpCall
from diffast.ops.load import modules

SHAPES = ((3, 1, 5, 7), (2, 1030))
# Float64 numbers that are sums in another order, or come from another library's pow.
FLOAT64_TOLERANCE = 1e-11


def _cases(device: torch.device) -> Iterator[Callable[[], OpCall]]:
    for shape in SHAPES:
        yield partial(op_calls.combine, shape, device)
        yield partial(op_calls.combine, shape, device, rows=2, half=True)
        yield partial(op_calls.combine, shape, device, inputs=2, noise=True)
        yield partial(op_calls.combine_table, shape, device)
        yield partial(op_calls.combine_error, shape, device)
        yield partial(op_calls.combine_error, shape, device, inputs=6, form=1)
        yield partial(op_calls.normal, shape, device)
        yield partial(op_calls.brownian, shape, device)
    for batch, elements in ((2, 37), (1, 1030)):
        yield partial(op_calls.sweep, batch, elements, device, window=5)
        yield partial(op_calls.sweep, batch, elements, device, window=5, noise=True)
        yield partial(op_calls.gram, batch, elements, device)
        yield partial(op_calls.quantile, batch, elements, device)
        yield partial(op_calls.accept, batch, elements, device)
    for samples in (1, 67):
        yield partial(op_calls.evaluate, samples, device)
        yield partial(op_calls.evaluate, samples, device, lookups=True, counted=True)


def check(device: torch.device) -> dict[str, str]:
    """Returns, for each op, "ok" or a sentence about the first call that is not right."""
    found: dict[str, str] = {}
    for make in _cases(device):
        torch.manual_seed(0)
        call = make()
        if found.get(call.op, "ok") == "ok":
            found[call.op] = _compare(call)
    return found


def _compare(call: OpCall) -> str:
    references = {
        name: function
        for module in modules("reference")
        for name, function in module.IMPLEMENTATIONS.items()
    }
    wanted = _copied(call.arguments)
    references[call.overload](*wanted)
    try:
        with torch.inference_mode():
            call()
    except RuntimeError as error:
        return f"{call.overload} raised: {str(error).splitlines()[0]}"
    pairs = zip(_tensors_of(call.arguments), _tensors_of(wanted), strict=True)
    for place, (got, want) in enumerate(pairs):
        if not _same(got.cpu(), want):
            return f"{call.overload}: tensor {place} of {list(got.shape)} is not the reference's"
    return "ok"


def _same(got: torch.Tensor, want: torch.Tensor) -> bool:
    if got.dtype == torch.float64:  # norms, sums and step sizes
        tolerance = FLOAT64_TOLERANCE
        return torch.allclose(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
    if got.is_floating_point():  # the same bits; a NaN has no payload that is promised
        kind = torch.int16 if got.element_size() == 2 else torch.int32
        same = got.view(kind) == want.view(kind)
        return bool((same | (got.isnan() & want.isnan())).all())
    return torch.equal(got, want)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value


def _tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_of(item)
