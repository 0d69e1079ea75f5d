"""Fakes for torch.compile, returning forms of `normal` and `brownian`, autograd, vmap."""

import torch

from diffast.ops import autograd, vmap
from diffast.ops.brownian.checks import check_brownian
from diffast.ops.combine.checks import check_combine, check_table
from diffast.ops.combine.reference import promoted
from diffast.ops.combine_error.checks import check_error
from diffast.ops.explain import CHECKS
from diffast.ops.normal.checks import check_normal
from diffast.ops.schema import SCHEMAS, library

_ops = torch.ops.diffast


def _normal(ids, shape, seed, stage, scale, dtype):
    out = check_normal(ids, shape, seed, stage, scale, dtype)
    _ops.normal.out(ids, seed, stage, scale, out)
    return out


def _brownian(streams, nodes, weights, depth, last, shape, dtype):
    """Returns [increment, V(nodes[:, 1])], each [B, *shape]."""
    increment = check_brownian(streams, nodes, weights, depth, last, shape, dtype)
    value = torch.empty_like(increment)
    _ops.brownian.out(streams, nodes, weights, depth, last, increment, value)
    return [increment, value]


def _new_rows(xs, rows: int) -> list[torch.Tensor]:
    return [xs[0].new_empty(xs[0].shape, dtype=promoted(xs)) for _ in range(rows)]


def _fake_error(xs, weights, noise, streams, clamp, tolerance, *norm):
    rows = check_error(xs, weights, noise, streams, clamp, tolerance, *norm)
    return [*_new_rows(xs, rows), torch.empty_like(tolerance)]


def _fake_brownian(*call):
    increment = check_brownian(*call)
    return [increment, torch.empty_like(increment)]


def _fake_out(check_call):
    """Returns the fake of an op that writes into given tensors: its checks, without addresses."""

    def fake(*call, **named):
        check_call(*call, **named, pointers=False)

    return fake


def register() -> None:
    """Registers everything about the ops that is not a kernel."""
    library.impl("normal", _normal, "CompositeExplicitAutograd")
    library.impl("brownian", _brownian, "CompositeExplicitAutograd")
    fakes = {
        "combine": lambda xs, *call: _new_rows(xs, check_combine(xs, *call)),
        "combine.table": lambda xs, *call: _new_rows(xs, check_table(xs, *call)),
        "combine_error": _fake_error,
        "brownian": _fake_brownian,
        "normal": check_normal,
    }
    for name in SCHEMAS:
        fake = fakes.get(name) or _fake_out(CHECKS[name])
        torch.library.register_fake(f"diffast::{name}", fake, lib=library)
    autograd.register()
    vmap.register()
