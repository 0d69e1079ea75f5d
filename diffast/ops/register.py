"""Fakes for torch.compile, autograd of `combine`, returning forms of `normal` and `brownian`."""

import torch

from diffast.ops.brownian.checks import check_brownian_out
from diffast.ops.checks import check
from diffast.ops.combine.checks import check_combine, check_table
from diffast.ops.combine.reference import promoted
from diffast.ops.combine_error.checks import check_error
from diffast.ops.explain import CHECKS
from diffast.ops.normal.checks import check_normal_out
from diffast.ops.schema import MAX_ROWS, SCHEMAS, library, overload_of

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


def _new_rows(xs, rows: int) -> list[torch.Tensor]:
    return [xs[0].new_empty(xs[0].shape, dtype=promoted(xs)) for _ in range(rows)]


def _fake_error(xs, weights, noise, streams, clamp, tolerance, *norm):
    rows = check_error(xs, weights, noise, streams, clamp, tolerance, *norm)
    return [*_new_rows(xs, rows), torch.empty_like(tolerance)]


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


def _no_gradient(argument):
    # Under torch.compile the backward has to return [] for an argument that was an empty list.
    return [] if isinstance(argument, (list, tuple)) and not argument else None


def _setup(ctx, inputs, output):
    xs, weights, *_, clamp = inputs
    check(
        not clamp,
        "combine: an input requires grad but the gradient through a clamp is not defined here: "
        "clamp with torch.clamp",
    )
    if isinstance(weights, torch.Tensor):
        ctx.save_for_backward(weights)
    else:
        ctx.weights = weights
    ctx.others = [_no_gradient(argument) for argument in inputs[1:]]
    ctx.dtypes = [x.dtype for x in xs]


def _backward(ctx, grads, combine_columns):
    """Returns the gradients: x_k's is made of the rows' by column k of the weights."""
    inputs = len(ctx.dtypes)
    grads = [grad.contiguous() for grad in grads]
    back = []
    for first in range(0, inputs, MAX_ROWS):
        back += combine_columns(grads, range(first, min(first + MAX_ROWS, inputs)))
    back = [grad.to(dtype) for grad, dtype in zip(back, ctx.dtypes, strict=True)]
    return back, *ctx.others


def _backward_host(ctx, grads):
    def combine_columns(grads, columns):
        table = [w for k in columns for w in ctx.weights[k :: len(ctx.dtypes)]]
        return _ops.combine(grads, table, [], 0, 0, None, [])

    return _backward(ctx, grads, combine_columns)


def _backward_table(ctx, grads):
    (weights,) = ctx.saved_tensors
    check(
        not ctx.needs_input_grad[1], "combine: the table requires grad but is a constant of the op"
    )

    def combine_columns(grads, columns):
        table = weights[:, :, columns.start : columns.stop].transpose(1, 2).contiguous()
        return _ops.combine.table(grads, table, None, None, [])

    return _backward(ctx, grads, combine_columns)


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
    fakes = {
        "combine": lambda xs, *call: _new_rows(xs, check_combine(xs, *call)),
        "combine.table": lambda xs, *call: _new_rows(xs, check_table(xs, *call)),
        "combine_error": _fake_error,
        "brownian": _fake_brownian,
        "normal": _fake_normal,
    }
    for name in SCHEMAS:
        fake = fakes.get(name) or _fake_out(CHECKS[name])
        torch.library.register_fake(f"diffast::{name}", fake, lib=library)
    for name, backward in (("combine", _backward_host), ("combine.table", _backward_table)):
        torch.library.register_autograd(
            f"diffast::{name}", backward, setup_context=_setup, lib=library
        )
    # `combine` has a gradient, and `normal` no tensor that could require one.
    for name in SCHEMAS.keys() - {"combine", "combine.table", "normal"}:
        library.impl(name, _refuse_grad(overload_of(name)), "Autograd")
