"""Fakes (shapes for torch.compile), autograd for the linear part, and the returning `normal`."""

import torch

from diffast.ops import checks
from diffast.ops.checks_accept import check_accept
from diffast.ops.checks_brownian import check_brownian
from diffast.ops.checks_error import check_error, check_error_outputs
from diffast.ops.checks_gram import check_gram
from diffast.ops.checks_sweep import check_sweep
from diffast.ops.schema import MAX_ROWS, library

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


def _fake_combine(xs, weights, noise, seed, stage, ids, clamp):
    rows = checks.check_host(xs, weights, noise, stage, ids, clamp)
    return [xs[0].new_empty(xs[0].shape, dtype=_promoted(xs)) for _ in range(rows)]


def _fake_combine_out(
    xs, weights, outs, status=None, stage=0, noise=(), seed=0, ids=None, clamp=()
):
    rows = checks.check_host(xs, weights, noise, stage, ids, clamp)
    checks.check_outputs(xs, outs, rows, bool(clamp), status, pointers=False)


def _fake_table(xs, weights, noise, streams, clamp):
    rows = checks.check_table(xs, weights, noise, streams, clamp)
    return [xs[0].new_empty(xs[0].shape, dtype=_promoted(xs)) for _ in range(rows)]


def _fake_table_out(xs, weights, noise, streams, clamp, outs, status):
    rows = checks.check_table(xs, weights, noise, streams, clamp)
    checks.check_outputs(xs, outs, rows, bool(clamp), status, pointers=False)
    checks.check_status_streams(status, streams)


def _fake_normal(ids, shape, seed, stage, scale, dtype):
    out = ids.new_empty([ids.shape[0], *shape], dtype=dtype)
    checks.check_normal(ids, stage, scale, out)
    return out


def _fake_normal_out(ids, seed, stage, scale, out):
    checks.check_normal(ids, stage, scale, out)


def _fake_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure):
    outputs = check_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    made = [xs[0].new_empty(xs[0].shape, dtype=_promoted(xs)) for _ in range(outputs)]
    return [*made, torch.empty_like(tolerance)]


def _fake_error_out(
    xs, weights, noise, streams, clamp, tolerance, form, norm, measure, outs, norms, status
):
    outputs = check_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    check_error_outputs(xs, outs, outputs, norms, status, streams, pointers=False)


def _fake_accept(*call):
    check_accept(*call, pointers=False)


def _fake_sweep(*call):
    check_sweep(*call, pointers=False)


def _fake_brownian(streams, nodes, weights, depth, last, shape, dtype):
    increment = streams.new_empty([streams.shape[0], *shape], dtype=dtype)
    check_brownian(streams, nodes, weights, depth, last, increment, None, pointers=False)
    return [increment, torch.empty_like(increment)]


def _fake_brownian_out(streams, nodes, weights, depth, last, increment, value=None):
    check_brownian(streams, nodes, weights, depth, last, increment, value, pointers=False)


def _no_clamp(clamp) -> None:
    checks.check(
        not clamp,
        "combine: an input requires grad but the gradient through a clamp is not defined here: "
        "clamp with torch.clamp",
    )


def _no_gradient(argument):
    # Under torch.compile the backward has to return [] where an empty list came in.
    return [] if isinstance(argument, (list, tuple)) and not argument else None


def _setup_host(ctx, inputs, output):
    xs, weights, *_, clamp = inputs
    _no_clamp(clamp)
    ctx.weights = weights
    ctx.others = [_no_gradient(argument) for argument in inputs[1:]]
    ctx.dtypes = [x.dtype for x in xs]


def _backward_host(ctx, grads):
    # The transpose of the table is a table: x_k's gradient is row k over the rows' gradients.
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
    checks.check(
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
        checks.check(
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
        "combine.out": _fake_combine_out,
        "combine.table": _fake_table,
        "combine.table_out": _fake_table_out,
        "combine_error": _fake_error,
        "combine_error.out": _fake_error_out,
        "accept": _fake_accept,
        "gram": check_gram,
        "sweep": _fake_sweep,
        "brownian": _fake_brownian,
        "brownian.out": _fake_brownian_out,
        "normal": _fake_normal,
        "normal.out": _fake_normal_out,
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
        packet, _, overload = name.partition(".")
        kernel = getattr(getattr(_ops, packet), overload or "default")
        library.impl(name, _refuse_grad(kernel), "Autograd")
