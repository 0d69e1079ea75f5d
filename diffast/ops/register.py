"""Fakes for torch.compile, autograd of `combine`, returning forms of `normal` and `brownian`."""

import torch

from diffast.ops.accept.checks import check_accept
from diffast.ops.brownian.checks import check_brownian_out
from diffast.ops.checks import check
from diffast.ops.combine.checks import (
    check_combine,
    check_combine_out,
    check_table,
    check_table_out,
)
from diffast.ops.combine_error.checks import check_error, check_error_out
from diffast.ops.gram.checks import check_gram
from diffast.ops.normal.checks import check_normal_out
from diffast.ops.schema import MAX_ROWS, library, overload_of
from diffast.ops.sweep.checks import check_sweep

_ops = torch.ops.diffast


def _normal(ids, shape, seed, stage, scale, dtype):
    out = torch.empty([ids.shape[0], *shape], dtype=dtype, device=ids.device)
    _ops.normal.out(ids, seed, stage, scale, out)
    return out


def _brownian(streams, nodes, weights, depth, last, shape, dtype):
    """Returns [increment, V(nodes[:, 1])], each [B, *shape]."""
    increment = streams.new_empty([streams.shape[0], *shape], dtype=dtype)
    value = torch.empty_like(increment)
    _ops.brownian.out(streams, nodes, weights, depth, last, increment, value)
    return [increment, value]


def _promoted(xs) -> torch.dtype:
    dtype = xs[0].dtype
    for x in xs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _new_rows(xs, rows: int) -> list[torch.Tensor]:
    return [xs[0].new_empty(xs[0].shape, dtype=_promoted(xs)) for _ in range(rows)]


def _fake_combine(xs, *call):
    return _new_rows(xs, check_combine(xs, *call))


def _fake_table(xs, *call):
    return _new_rows(xs, check_table(xs, *call))


def _fake_error(xs, *call):
    tolerance = call[4]
    return [*_new_rows(xs, check_error(xs, *call)), torch.empty_like(tolerance)]


def _fake_normal(ids, shape, seed, stage, scale, dtype):
    out = ids.new_empty([ids.shape[0], *shape], dtype=dtype)
    check_normal_out(ids, seed, stage, scale, out)
    return out


def _fake_brownian(streams, nodes, weights, depth, last, shape, dtype):
    increment = streams.new_empty([streams.shape[0], *shape], dtype=dtype)
    check_brownian_out(streams, nodes, weights, depth, last, increment, pointers=False)
    return [increment, torch.empty_like(increment)]


def _fake_out(check_call):
    """Returns the fake of an op that writes into given tensors: its checks, without addresses."""

    def fake(*call, **named):
        check_call(*call, **named, pointers=False)

    return fake


def _no_clamp(clamp) -> None:
    check(
        not clamp,
        "combine: an input requires grad but the gradient through a clamp is not defined here: "
        "clamp with torch.clamp",
    )


def _no_gradient(argument):
    # Under torch.compile the backward has to return [] for an argument that was an empty list.
    return [] if isinstance(argument, (list, tuple)) and not argument else None


def _setup_host(ctx, inputs, output):
    xs, weights, *_, clamp = inputs
    _no_clamp(clamp)
    ctx.weights = weights
    ctx.others = [_no_gradient(argument) for argument in inputs[1:]]
    ctx.dtypes = [x.dtype for x in xs]


def _backward_host(ctx, grads):
    # x_k's gradient is a row of `combine` over the rows' gradients: column k of the weights.
    inputs = len(ctx.dtypes)
    grads = [grad.contiguous() for grad in grads]
    back = []
    for first in range(0, inputs, MAX_ROWS):
        last = min(first + MAX_ROWS, inputs)
        table = [w for k in range(first, last) for w in ctx.weights[k::inputs]]
        back += _ops.combine(grads, table, [], 0, 0, None, [])
    back = [grad.to(dtype) for grad, dtype in zip(back, ctx.dtypes, strict=True)]
    return back, *ctx.others


def _setup_table(ctx, inputs, output):
    xs, weights, *_, clamp = inputs
    _no_clamp(clamp)
    ctx.save_for_backward(weights)
    ctx.others = [_no_gradient(argument) for argument in inputs[1:]]
    ctx.dtypes = [x.dtype for x in xs]


def _backward_table(ctx, grads):
    (weights,) = ctx.saved_tensors
    check(
        not ctx.needs_input_grad[1],
        "combine: the table requires grad but is a constant of the op",
    )
    inputs = len(ctx.dtypes)
    grads = [grad.contiguous() for grad in grads]
    back = []
    for first in range(0, inputs, MAX_ROWS):
        table = weights[:, :, first : first + MAX_ROWS].transpose(1, 2).contiguous()
        back += _ops.combine.table(grads, table, None, None, [])
    back = [grad.to(dtype) for grad, dtype in zip(back, ctx.dtypes, strict=True)]
    return back, *ctx.others


def _requires_grad(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_requires_grad(item) for item in value)
    return isinstance(value, torch.Tensor) and value.requires_grad


def _refuse_grad(overload):
    def call(*args):
        check(
            not (torch.is_grad_enabled() and _requires_grad(args)),
            f"{overload}: a tensor requires grad but this form of the op has no gradient: use "
            "the returning form of combine, or torch.no_grad()",
        )
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    return call


def register() -> None:
    """Registers everything about the ops that is not a kernel."""
    library.impl("normal", _normal, "CompositeExplicitAutograd")
    library.impl("brownian", _brownian, "CompositeExplicitAutograd")
    for name, fake in {
        "combine": _fake_combine,
        "combine.out": _fake_out(check_combine_out),
        "combine.table": _fake_table,
        "combine.table_out": _fake_out(check_table_out),
        "combine_error": _fake_error,
        "combine_error.out": _fake_out(check_error_out),
        "accept": _fake_out(check_accept),
        "gram": _fake_out(check_gram),
        "sweep": _fake_out(check_sweep),
        "brownian": _fake_brownian,
        "brownian.out": _fake_out(check_brownian_out),
        "normal": _fake_normal,
        "normal.out": _fake_out(check_normal_out),
    }.items():
        torch.library.register_fake(f"diffast::{name}", fake, lib=library)
    torch.library.register_autograd(
        "diffast::combine", _backward_host, setup_context=_setup_host, lib=library
    )
    torch.library.register_autograd(
        "diffast::combine.table", _backward_table, setup_context=_setup_table, lib=library
    )
    for name in (
        "combine.out",
        "combine.table_out",
        "combine_error",
        "combine_error.out",
        "accept",
        "gram",
        "sweep",
        "brownian",
        "brownian.out",
        "normal.out",
    ):
        library.impl(name, _refuse_grad(overload_of(name)), "Autograd")
