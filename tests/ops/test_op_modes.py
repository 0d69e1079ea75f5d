"""Ops under torch's modes: saved tensors, inference, forward mode, torch.func, vmap, defaults."""

import re

import pytest
import torch
from torch.autograd import forward_ad

from diffast import ops
from diffast.ops.schema import SCHEMAS, overload_of

# torch 2.13's own forward mode scripts functions, which it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")

X = torch.linspace(-1, 1, 6).reshape(2, 3)
TABLE = torch.tensor([[[2.0, 3.0]], [[0.5, -1.0]]], dtype=torch.float64)


def host(x):
    """2 x + 3 x^2, with noise."""
    return ops.combine([x, x * x], [2.0, 3.0], noise=[1.0])[0]


def tabled(x):
    return ops.combine([x, x * x], TABLE)[0]


def plain_host(x):
    return 2 * x + 3 * x * x + ops.normal((2, 3), stage=0).reshape(x.shape)


def plain_table(x):
    first, second = TABLE[:, 0].float().T
    return first[:, None] * x + second[:, None] * x * x


each_form = pytest.mark.parametrize(
    ("op", "plain"), [(host, plain_host), (tabled, plain_table)], ids=("host", "table")
)


def test_autograd_notices_that_a_saved_tensor_was_written():
    weight, saved = torch.ones(2, 3, requires_grad=True), X.clone()
    loss = (weight * saved).sum()
    ops.combine([X], [100.0], outs=[saved])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("mode", (torch.enable_grad, torch.no_grad, torch.inference_mode))
def test_every_written_tensor_counts_its_writes(mode):
    outs, status = [X.clone(), X.clone()], torch.full((2,), -1)
    read = [t._version for t in (X, TABLE)]
    with mode():
        ops.combine_out([X], [1.0, 2.0], outs, status, 3)
        ops.combine_out(xs=[X], weights=[1.0, 2.0], outs=outs, status=status)
        table = TABLE.transpose(1, 2)[:, :, :1].contiguous()
        ops.combine_table_out([X], table, None, None, [], outs, None)
        ops.normal_out(torch.arange(2), 0, 0, 1.0, outs[0])
        ops.gram([X], TABLE[:, :, :1].contiguous(), sums := torch.zeros(2, 1, dtype=torch.float64))
    assert outs[0]._version == 4 and outs[1]._version == 3 and status._version == 2
    if mode is not torch.inference_mode:
        assert sums._version == 1
    assert [t._version for t in (X, TABLE)] == read


def test_below_autograd_integrations_pay_nothing():
    with torch._C._AutoDispatchBelowAutograd():
        (y,) = ops.combine([X], [2.0], outs=[torch.empty_like(X)])
    assert torch.equal(y, 2 * X)


def test_tensors_of_inference_mode_are_written_in_that_mode_alone():
    with torch.inference_mode():
        inside = X.clone()
        ops.combine([inside], [2.0], outs=[inside])
        assert torch.equal(inside, 2 * X)
    wanted = "^combine: outs.0. was made in torch.inference_mode"
    for xs in ([X], [inside]):
        with pytest.raises(RuntimeError, match=wanted):
            ops.combine(xs, [3.0], outs=[inside])
    with pytest.raises(RuntimeError, match=wanted.replace("0", "1")):
        ops.combine([X], [3.0, 4.0], outs=[X.clone(), inside])
    with pytest.raises(RuntimeError, match="^normal: out was made in torch.inference_mode"):
        ops.normal_out(ids=torch.arange(2), seed=0, stage=0, scale=1.0, out=inside)
    assert torch.equal(inside, 2 * X)
    assert torch.equal(ops.combine([inside], [0.5])[0], X), "reading is free"


@each_form
def test_tangents_of_combine(op, plain):
    tangent = X.flip(0) + 2
    value, moved = torch.func.jvp(op, (X,), (tangent,))
    wanted = torch.func.jvp(plain, (X,), (tangent,))
    assert torch.equal(value, op(X))
    torch.testing.assert_close(moved, wanted[1])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X.clone().requires_grad_(), tangent)
        _, found = forward_ad.unpack_dual(op(dual))
    torch.testing.assert_close(found, wanted[1])
    torch.testing.assert_close(torch.func.jacfwd(op)(X), torch.func.jacfwd(plain)(X))


def test_gradcheck_in_forward_mode():
    x = X.double().requires_grad_()
    assert torch.autograd.gradcheck(host, (x,), check_forward_ad=True, check_backward_ad=False)


@each_form
def test_torch_func(op, plain):
    for transform in (torch.func.jacrev, torch.func.hessian):
        torch.testing.assert_close(transform(op)(X), transform(plain)(X))

    def twice(function):
        inner = torch.func.grad(lambda x: function(x).square().sum())
        return torch.func.grad(lambda x: inner(x).square().sum())

    torch.testing.assert_close(twice(op)(X), twice(plain)(X), rtol=1e-4, atol=1e-4)


def test_a_table_that_is_written_before_its_gradient():
    x, table = X.clone().requires_grad_(), TABLE[:, :, :1].clone()
    (y,) = ops.combine([x], table)
    table.fill_(1.0)
    with pytest.raises(RuntimeError, match="^combine: weights were written between the call and"):
        y.sum().backward()


def written_calls(x):
    """Calls that have no gradient and no tangent, by op."""
    out, sums = torch.empty_like(X), torch.zeros(2, 1, dtype=torch.float64)
    one = torch.ones(2, 1, 1, dtype=torch.float64)
    return {
        "combine": lambda: ops.combine([x], [1.0], outs=[out]),
        "gram": lambda: ops.gram([x], one, sums),
        "quantile": lambda: ops.quantile([x], one, 0.5, sums[:, 0].contiguous()),
    }


def test_other_ops_refuse_tangents():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        for name, call in written_calls(dual).items():
            with pytest.raises(RuntimeError, match=f"^{name}: a tensor has a tangent"):
                call()
            with (
                torch._C._AutoDispatchBelowAutograd(),
                pytest.raises(RuntimeError, match=f"^{name}: a tensor has a tangent"),
            ):
                call()
        with pytest.raises(RuntimeError, match="the tangent through a clamp is not defined here"):
            ops.combine([dual], [1.0, 0.0], clamp=(-1, 1))


def _maps(every, dim):
    return [x.contiguous() for x in every.unbind(dim)]


@each_form
@pytest.mark.parametrize("dim", (0, 1, 2))
def test_vmap_has_the_bits_of_single_calls(op, plain, dim):
    every = torch.stack([X, 2 * X, X - 3, X * X], dim)
    mapped = torch.vmap(op, in_dims=dim)(every)
    assert torch.equal(mapped, torch.stack([op(x) for x in _maps(every, dim)]))
    twice = torch.vmap(torch.vmap(op, in_dims=dim))(every[None])
    assert torch.equal(twice[0], mapped)
    gradient = torch.vmap(torch.func.grad(lambda x: op(x).sum()), in_dims=dim)(every)
    wanted = [torch.func.grad(lambda x: op(x).sum())(x) for x in _maps(every, dim)]
    torch.testing.assert_close(gradient, torch.stack(wanted))


def test_vmap_of_normal():
    ids = torch.arange(8).reshape(4, 2)
    mapped = torch.vmap(lambda ids: ops.normal((2, 3), seed=5, ids=ids))(ids)
    assert torch.equal(mapped.reshape(8, 3), ops.normal((8, 3), seed=5))


def test_vmap_of_the_other_ops_is_refused_in_one_sentence():
    for name, call in (("combine", 0), ("gram", 1), ("quantile", 2)):
        with pytest.raises(RuntimeError, match=f"^{name}: torch.vmap cannot map this op, which"):
            torch.vmap(lambda x, k=call: list(written_calls(x).values())[k]())(X[None])
    with pytest.raises(RuntimeError, match="vmap over tensors without a batch dimension"):
        torch.vmap(lambda x: ops.combine([x], [1.0])[0])(torch.ones(4))
    for name in SCHEMAS:
        keys = torch._C._dispatch_has_kernel_for_dispatch_key
        qualified = overload_of(name).name()
        assert keys(qualified, "FuncTorchBatched"), name


def test_defaults_of_the_process_change_nothing():
    wanted = host(X), tabled(X), ops.normal((2, 3))
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = host(X), tabled(X), ops.normal((2, 3))
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
KINDS = [
    (lambda: ops.combine([None], [1.0]), "xs is a list with NoneType but a list of tensors is"),
    (lambda: ops.combine([X], "ab"), "weights is a list with str but a list of numbers is needed"),
    (lambda: ops.combine([X.numpy()], [1.0]), "xs is a list with ndarray but a list of tensors"),
    (lambda: ops.combine([X], [1.0], stage=2**70), f"stage is {2**70} but an integer of 64 bits"),
    (lambda: ops.combine([X], [1.0], ids=[1, 2]), "ids is a list with int but a tensor or None"),
    (lambda: ops.combine_out([X]), "weights is missing"),
    (lambda: ops.combine_out([X], [1.0], [X], stages=3), "stages is unknown but xs, weights, outs"),
    (lambda: ops.combine_table_out([X], None, None, None, [], [X], None), "weights is None but a"),
    (lambda: ops.combine([X.to_sparse()], [1.0]), "xs[0] is a sparse_coo tensor but a dense one"),
    (lambda: ops.combine([X, NESTED], [1.0, 1.0]), "xs[1] is a nested tensor but a dense one is"),
    (lambda: ops.combine([torch._efficientzerotensor((2, 3))], [1.0]), "xs[0] is a zero tensor of"),
    (lambda: ops.combine([X.to("meta")], [1.0], outs=[None]), "outs is a list with NoneType but"),
]


@pytest.mark.parametrize(("call", "text"), KINDS, ids=[text for _, text in KINDS])
def test_arguments_of_a_wrong_kind_are_named_in_one_sentence(call, text):
    with pytest.raises(RuntimeError, match="^combine: " + re.escape(text)) as error:
        call()
    assert "\n" not in str(error.value) and "diffast::" not in str(error.value)


@pytest.mark.parametrize("shape", ((2.7, 3), (-2, 3), ()))
def test_shapes_of_normal(shape):
    with pytest.raises(RuntimeError, match="^normal: shape is .* but whole numbers, batch first"):
        ops.normal(shape)
