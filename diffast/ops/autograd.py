"""What torch's autograd does with the ops.

`combine` and `combine.table` are linear in their inputs: they have gradients of every order, in
reverse and in forward mode. The other ops have none. They refuse tensors that require a gradient or
have a tangent, and they tell autograd what they wrote, so that it refuses a gradient through a
saved tensor that was written over.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

from diffast.ops.checks import check
from diffast.ops.memory import collector_of, flat, named_tensors, written_of
from diffast.ops.schema import MAX_ROWS, SCHEMAS, library, overload_of

_ops = torch.ops.diffast
_below_autograd = torch._C._AutoDispatchBelowAutograd
_increment_version = torch._C._increment_version
_is_inference_mode = torch.is_inference_mode_enabled
DIFFERENTIABLE = ("combine", "combine.table")
LEVEL = 0  # torch has one level of forward-mode differentiation


def has_duals(arguments: Any) -> bool:
    """Returns whether a tensor among arguments, or in a list among them, has a tangent."""
    if forward_ad._current_level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    return any(_tangent(t) is not None for t in flat(arguments))


def _tangent(t: torch.Tensor) -> torch.Tensor | None:
    return forward_ad.unpack_dual(t, level=LEVEL).tangent


def refuse_duals(name: str, arguments: tuple) -> None:
    """Refuses tensors with a tangent, for an op that has no rule for them."""
    check(
        not has_duals(arguments),
        f"{name.partition('.')[0]}: a tensor has a tangent (forward-mode differentiation) but this "
        "form of the op has none: use the returning form of combine, or unpack the tensor",
    )


def refuse_inference(name: str, arguments: tuple, named: dict) -> None:
    """Refuses to write into a tensor of inference mode outside that mode, as torch does."""
    for written, (_, text, t) in named_tensors(name, arguments, named):
        check(
            not (written and t.is_inference()),
            f"{name.partition('.')[0]}: {text} was made in torch.inference_mode() but is written "
            "outside: give a clone, or call the op in that mode",
        )


def _no_gradient(overload: torch._ops.OpOverload, name: str) -> Callable:
    """Returns the autograd kernel of an op without a gradient."""
    collect, writes = collector_of(name), written_of(name).stop > 0

    def call(*args):
        # No text is made before it is needed: this is on the way of every call with gradients off.
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            raise RuntimeError(
                f"{overload}: a tensor requires grad but this form of the op has no gradient: use "
                "the returning form of combine, or torch.no_grad()"
            )
        if forward_ad._current_level >= 0:
            refuse_duals(name, args)
        outs = collect(args) if writes else ()
        for t in outs:
            if t.is_inference() and not _is_inference_mode():
                refuse_inference(name, args, {})
        with _below_autograd():
            made = overload(*args)
        if writes:
            _increment_version(outs)
        return made

    return call


class _Linear(torch.autograd.function._SingleLevelFunction):
    """The rows of `combine`, and their gradients. Its arguments are the tensors behind the call."""

    @staticmethod
    def forward(run, columns, dtypes, *xs):
        if not torch._C._are_functorch_transforms_active():
            return tuple(run(list(xs)))
        # The op goes on to the levels of torch.func outside this one, which have graphs and
        # tangents of their own, but torch has switched both off for this function.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return tuple(run(list(xs)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.columns, ctx.dtypes, *_ = inputs

    @staticmethod
    def backward(ctx, *grads):
        """Returns the gradients: x_k's is made of the rows' by column k of the weights."""
        inputs = len(ctx.dtypes)
        grads = [grad.contiguous() for grad in grads]
        back = []
        for first in range(0, inputs, MAX_ROWS):
            back += ctx.columns(grads, range(first, min(first + MAX_ROWS, inputs)))
        back = [grad.to(dtype) for grad, dtype in zip(back, ctx.dtypes, strict=True)]
        return None, None, None, *back


def _one_level() -> AbstractContextManager:
    """Returns the context in which torch.func (grad, vjp) lets a function serve one level."""
    if not torch._C._are_functorch_transforms_active():
        return nullcontext()
    from torch._functorch.autograd_function import enable_single_level_autograd_function

    return enable_single_level_autograd_function()


def _host_columns(weights: list, inputs: int) -> Callable:
    def combine_columns(grads, columns):
        table = [w for k in columns for w in weights[k::inputs]]
        return _ops.combine(grads, table, [], 0, 0, None, [])

    return combine_columns


def _table_columns(weights: torch.Tensor) -> Callable:
    version = weights._version

    def combine_columns(grads, columns):
        check(
            weights._version == version,
            "combine: weights were written between the call and its gradient: give a copy",
        )
        table = weights[:, :, columns.start : columns.stop].transpose(1, 2).contiguous()
        return _ops.combine.table(grads, table, None, None, [])

    return combine_columns


def _linear(name: str) -> Callable:
    """Returns the autograd kernel of a returning form of `combine`."""
    overload = overload_of(name)

    def call(xs, weights, *rest):
        xs = list(xs)
        if has_duals([xs]):
            return _push_forward(name, xs, weights, rest)
        check(
            not (isinstance(weights, torch.Tensor) and has_duals([weights])),
            "combine: weights have a tangent but they are constants of the op",
        )

        def run(xs):
            with _below_autograd():
                return overload(xs, weights, *rest)

        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(xs, weights)):
            return run(xs)
        check(
            not rest[-1],
            "combine: an input requires grad but the gradient through a clamp is not defined here: "
            "clamp with torch.clamp",
        )
        if isinstance(weights, torch.Tensor):
            check(
                not weights.requires_grad,
                "combine: weights require grad but they are constants of the op",
            )
            columns = _table_columns(weights)
        else:
            columns = _host_columns(weights, len(xs))
        with _one_level():
            function: Any = _Linear  # torch declares `apply` for another class only
            return list(function.apply(run, columns, [x.dtype for x in xs], *xs))

    return call


def _push_forward(name: str, xs: list, weights: Any, rest: tuple) -> list[torch.Tensor]:
    """Returns dual rows: the op is linear in `xs`, so their tangents go through the same weights.

    What stands beside xs: (noise, seed, stage, ids, clamp), or (noise, streams, clamp).
    """
    check(
        not rest[-1],
        "combine: an input has a tangent but the tangent through a clamp is not defined here: "
        "clamp with torch.clamp",
    )
    overload = overload_of(name)
    pairs = [forward_ad.unpack_dual(x, level=LEVEL) for x in xs]
    rows = overload([x for x, _ in pairs], weights, *rest)
    still = ([], 0, 0, None, []) if name == "combine" else (None, None, [])
    tangents = [torch.zeros_like(x) if t is None else t.contiguous() for x, t in pairs]
    moved = overload(tangents, weights, *still)
    return [forward_ad.make_dual(y, t, level=LEVEL) for y, t in zip(rows, moved, strict=True)]


def register() -> None:
    """Registers the autograd kernels of all ops."""
    for name in DIFFERENTIABLE:
        library.impl(name, _linear(name), "Autograd")
    # `normal` has no tensor that could require one.
    for name in SCHEMAS.keys() - {*DIFFERENTIABLE, "normal"}:
        library.impl(name, _no_gradient(overload_of(name), name), "Autograd")
