"""opcheck, gradients and torch.compile of the ops, all on the CPU kernels."""

import warnings

import numpy as np
import pytest
import torch
from op_cases import FLOATS, assert_same_bits, random_tensor
from torch._dynamo.utils import counters
from torch.library import opcheck

from diffast import ops

IDS = torch.tensor([5, -2])
STREAMS = torch.tensor([[1, 2, 3], [4, 5, 6]])
LIMITS = [-0.5, 0.5]
each_grad = pytest.mark.parametrize("grad", (False, True), ids=("no grad", "grad"))


def inputs(count, dtype=torch.float32, grad=False, shape=(2, 5), seed=0):
    rng = np.random.default_rng(seed)
    return [random_tensor(rng, shape, dtype).requires_grad_(grad) for _ in range(count)]


def numbers(count, seed=1):
    return np.random.default_rng(seed).standard_normal(count).tolist()


def table(*shape, seed=2):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


@each_grad
@pytest.mark.parametrize("noises", (0, 2))
@pytest.mark.parametrize("count", (1, 3, 11))
def test_opcheck_combine(count, noises, grad):
    call = (inputs(count, grad=grad), numbers(2 * count), numbers(2 * noises), 3, 4)
    opcheck(torch.ops.diffast.combine.default, (*call, IDS, []))
    opcheck(torch.ops.diffast.combine.default, (*call, None, []))


@each_grad
@pytest.mark.parametrize("noises", (0, 2))
@pytest.mark.parametrize("count", (1, 3, 11))
def test_opcheck_combine_table(count, noises, grad):
    noise = table(2, 2, noises) if noises else None
    call = (inputs(count, grad=grad), table(2, 2, count), noise, STREAMS)
    opcheck(torch.ops.diffast.combine.table, (*call, []))


def test_opcheck_mixed_dtypes_of_which_some_require_grad():
    xs = [x.to(dtype) for x, dtype in zip(inputs(4), FLOATS, strict=True)]
    xs[1].requires_grad_()
    xs[3].requires_grad_()
    opcheck(torch.ops.diffast.combine.default, (xs, numbers(8), [], 0, 0, None, []))
    opcheck(torch.ops.diffast.combine.table, (xs, table(2, 2, 4), None, None, []))


def test_opcheck_with_a_clamp():
    weights = [1.0, 2.0, 0.0, 0.5, 0.25, 1.5]
    rows = torch.tensor(weights, dtype=torch.float64).reshape(1, 2, 3).repeat(2, 1, 1)
    xs = inputs(2)
    opcheck(torch.ops.diffast.combine.default, (xs, weights, [], 0, 0, None, LIMITS))
    opcheck(torch.ops.diffast.combine.table, (xs, rows, None, None, LIMITS))


@pytest.mark.parametrize("status", (False, True))
@pytest.mark.parametrize("clamp", ([], LIMITS))
def test_opcheck_out_forms(clamp, status):
    width = 3 + bool(clamp)
    rows = table(2, 2, width)
    rows[:, 0, -1] = 0
    xs = inputs(3)
    outs = [torch.zeros(2, 5), torch.zeros(2, 5)]
    flags = torch.full((2,), -1) if status else None
    host = (xs, rows[0].ravel().tolist(), outs, flags, 4, numbers(2), 3, IDS, clamp)
    opcheck(torch.ops.diffast.combine.out, host)
    opcheck(
        torch.ops.diffast.combine.table_out, (xs, rows, table(2, 2, 1), STREAMS, clamp, outs, flags)
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_normal(dtype):
    opcheck(torch.ops.diffast.normal.default, (IDS, [3, 4], 1, 2, 1.5, dtype))
    opcheck(torch.ops.diffast.normal.out, (IDS, 1, 2, 1.5, torch.zeros(2, 3, dtype=dtype)))


@pytest.mark.parametrize("noises", (0, 1, 2))
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 2), (8, 3), (9, 1), (16, 2), (2, 8)])
def test_gradients_of_combine(count, rows, noises):
    """More than 8 inputs make the backward more than one call."""
    xs = inputs(count, torch.float64, grad=True, shape=(2, 3))
    weights, noise = numbers(rows * count), numbers(rows * noises)

    def combined(*xs):
        return tuple(ops.combine_host(list(xs), weights, noise, 3, 4, IDS, []))

    assert torch.autograd.gradcheck(combined, xs)
    assert torch.autograd.gradgradcheck(combined, xs)


@pytest.mark.parametrize("noises", (0, 1, 2))
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 2), (9, 1), (16, 2), (2, 8)])
def test_gradients_of_combine_table(count, rows, noises):
    xs = inputs(count, torch.float64, grad=True, shape=(2, 3))
    weights = table(2, rows, count)
    noise = table(2, rows, noises) if noises else None

    def combined(*xs):
        return tuple(ops.combine_table(list(xs), weights, noise, STREAMS, []))

    assert torch.autograd.gradcheck(combined, xs)
    assert torch.autograd.gradgradcheck(combined, xs)


def test_gradients_are_the_transposed_weights():
    xs = inputs(3, grad=True)
    first, second = ops.combine(xs, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], noise=[[0.5], [0.5]])
    a, b = inputs(2, seed=7)
    torch.autograd.backward([first, second], [a, b])
    for k, x in enumerate(xs):
        assert_same_bits(x.grad, (k + 1) * a + (k + 4) * b)


def test_an_unused_row_and_an_input_without_gradient():
    xs = inputs(3, grad=True)
    xs[1].requires_grad_(False)
    _, second = ops.combine(xs, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    second.sum().backward()  # the gradient of a sum is expanded: stride 0
    assert_same_bits(xs[0].grad, torch.full((2, 5), 4.0))
    assert xs[1].grad is None
    assert_same_bits(xs[2].grad, torch.full((2, 5), 6.0))


def test_gradients_that_are_not_contiguous():
    xs = inputs(2, grad=True)
    (y,) = ops.combine(xs, [[2.0, -1.0]])
    grad = inputs(1, shape=(5, 2))[0].T
    y.backward(grad)
    assert_same_bits(xs[0].grad, 2 * grad)
    (y,) = ops.combine(
        xs, torch.tensor([2.0, 3.0], dtype=torch.float64).reshape(2, 1, 1).repeat(1, 1, 2)
    )
    xs[1].grad = None
    y.sum().backward()
    assert_same_bits(xs[1].grad, torch.tensor([[2.0], [3.0]]).expand(2, 5))


@pytest.mark.parametrize("other", FLOATS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_has_its_inputs_dtype(dtype, other):
    xs = [inputs(1, dtype, grad=True)[0], inputs(1, other, grad=True, seed=4)[0]]
    weights = torch.tensor([1.5, 2.5], dtype=torch.float64).reshape(1, 1, 2).repeat(2, 1, 1)
    for (y,) in (ops.combine(xs, [1.5, 2.5]), ops.combine(xs, weights)):
        assert y.dtype == torch.promote_types(dtype, other)
        y.sum().backward()
        for x, weight in zip(xs, (1.5, 2.5), strict=True):
            assert_same_bits(x.grad, torch.full((2, 5), weight, dtype=x.dtype))
            x.grad = None


def test_what_has_no_gradient_is_refused_and_allowed_without_gradients():
    (x,) = inputs(1, grad=True)
    out = torch.full((2, 5), torch.nan)
    one = torch.ones(2, 1, 1, dtype=torch.float64)
    calls = {
        "diffast.combine.out": lambda: ops.combine([x], [1.0], outs=[out]),
        "diffast.combine.table_out": lambda: ops.combine([x], one, outs=[out]),
        "diffast.normal.out": lambda: ops.normal_out(IDS, 0, 0, 1.0, x),
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=f"{name}: a tensor requires grad but this form"):
            call()
        assert out.isnan().all()
        with torch.no_grad():
            call()
        out.fill_(torch.nan)
    pair = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(2, 1, 1)
    for weights in ([1.0, 0.0], pair):
        with pytest.raises(RuntimeError, match="the gradient through a clamp is not defined here"):
            ops.combine([x], weights, clamp=(-1, 1))
        with torch.no_grad():
            (y,) = ops.combine([x], weights, clamp=(-1, 1))
        assert_same_bits(y, x.detach().clamp(-1, 1))
    with pytest.raises(RuntimeError, match="weights require grad but they are constants of the op"):
        ops.combine([x], one.requires_grad_())[0].sum().backward()


def test_outputs_that_require_grad_are_refused():
    out = torch.zeros(2, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="a tensor requires grad but this form of the op"):
        ops.combine(inputs(1), [1.0], outs=[out])


def returning(xs, weights, stage, out):
    (y,) = ops.combine_host([xs[0] + 1, xs[1]], weights, [0.5], 3, stage, IDS, [])
    return y * 2


def into_out(xs, weights, stage, out):
    ops.combine_out([xs[0] + 1, xs[1]], weights, [out], None, stage, [0.5], 3, IDS)
    return out * 2


def with_table(xs, weights, stage, out):
    noise = torch.full((2, 1, 1), 0.5, dtype=torch.float64)
    (y,) = ops.combine_table([xs[0] + 1, xs[1]], weights, noise, STREAMS + stage, [])
    return y * 2


def with_table_into_out(xs, weights, stage, out):
    noise = torch.full((2, 1, 1), 0.5, dtype=torch.float64)
    ops.combine_table_out([xs[0] + 1, xs[1]], weights, noise, STREAMS + stage, [], [out], None)
    return out * 2


@pytest.fixture
def compiler(request):
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        # torch 2.13's own inductor imports torch.jit.script_method, which it deprecates itself.
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        yield lambda call: torch.compile(call, fullgraph=True, backend=request.param)
    torch._dynamo.reset()


each_compiler = pytest.mark.parametrize("compiler", ("aot_eager", "inductor"), indirect=True)


@each_compiler
@pytest.mark.parametrize("call", (with_table, with_table_into_out))
def test_a_table_is_compiled_once(compiler, call):
    compiled = compiler(call)
    xs = inputs(2)
    for stage in range(10):
        arguments = (xs, table(2, 1, 2, seed=stage), torch.tensor(stage))
        wanted = call(*arguments, torch.zeros(2, 5))
        assert_same_bits(compiled(*arguments, torch.full((2, 5), torch.nan)), wanted, stage)
    assert counters["stats"]["unique_graphs"] == 1


@each_compiler
@pytest.mark.parametrize("call", (returning, into_out))
def test_host_weights_are_compiled_in(compiler, call):
    """Equal calls share a graph; new weights or a new stage are new constants, so a new graph."""
    compiled = compiler(call)
    xs = inputs(2)
    for stage in (0, 1, 1, 0):
        arguments = (xs, numbers(2, seed=stage), stage)
        wanted = call(*arguments, torch.zeros(2, 5))
        assert_same_bits(compiled(*arguments, torch.full((2, 5), torch.nan)), wanted, stage)
    assert counters["stats"]["unique_graphs"] == 2


@each_compiler
def test_an_output_that_is_an_input_compiles(compiler):
    def step(x, slope, weights):
        ops.combine_table_out([x, slope], weights, None, None, [], [x], None)
        return x * 2

    weights, (x, slope) = table(2, 1, 2), inputs(2)
    wanted = [x.clone()]
    wanted.append(step(wanted[0], slope, weights))
    found = [x, compiler(step)(x, slope, weights)]
    for a, b in zip(found, wanted, strict=True):
        assert_same_bits(a, b)


@each_compiler
def test_normal_compiles(compiler):
    compiled = compiler(lambda ids: ops.normal((2, 9), seed=5, ids=ids) * 2)
    assert_same_bits(compiled(IDS), ops.normal((2, 9), seed=5, ids=IDS) * 2)


@each_compiler
def test_gradients_compile(compiler):
    weights, noise = numbers(4), numbers(2)

    def loss(a, b):
        first, second = ops.combine_host([a, b], weights, noise, 3, 4, IDS, [])
        return (first * second).sum()

    plain, compiled = inputs(2, grad=True), inputs(2, grad=True)
    loss(*plain).backward()
    compiler(loss)(*compiled).backward()
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
