"""What `combine_error` refuses, in C++ and Python alike; opcheck, torch.compile, gradients."""

import numpy as np
import pytest
import torch
from error_cases import ErrorCase, tensors
from op_cases import FLOATS, assert_same_bits
from refusals import can_be_faked, check_fake_refuses, check_refused
from torch._dynamo.utils import counters
from torch.library import opcheck

from diffast import ops
from diffast.ops.combine_error import reference as reference_error
from diffast.ops.explain import explained

returning = torch.ops.diffast.combine_error.default
RETURNING = ("combine_error", explained("combine_error"), reference_error.combine_error)
WRITING = ("combine_error.out", ops.combine_error_out, reference_error.combine_error_out)
LAYOUT = "is not contiguous but the kernel reads it in row-major order"


def state(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape or (3, 4), dtype=dtype, device=device)


def doubles(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


def longs(*shape):
    return torch.full(shape, -1, dtype=torch.int64)


def call(
    xs=None,
    table=None,
    noise=None,
    streams=None,
    clamp=(),
    tolerance=None,
    form=0,
    norm=0,
    measure=False,
):
    """Returns a call of the returning form; by default a good one of two rows."""
    xs = [state()] if xs is None else xs
    table = doubles(3, 2, 1) if table is None else table
    tolerance = doubles(3, 2) if tolerance is None else tolerance
    return RETURNING, (xs, table, noise, streams, list(clamp), tolerance, form, norm, measure)


def call_out(outs=None, norms=None, status=None, **options):
    outs = [state()] if outs is None else outs
    norms = doubles(3, 2) if norms is None else norms
    return WRITING, (*call(**options)[1], outs, norms, status)


def overlapping(clamp=()):
    memory = torch.ones(64)
    x, shifted = memory[:12].view(3, 4), memory[4:16].view(3, 4)
    table = doubles(3, 3 + bool(clamp), 1 + bool(clamp))
    return call_out([state(), shifted], xs=[x], table=table, clamp=clamp)


SMALL, MEASURED, CLAMPED = doubles(3, 1, 1), doubles(3, 3, 1), doubles(3, 4, 2)
# The call, and the text that names the two facts.
REFUSED = [
    (call(form=3), "combine_error: form 3 but 0 (scalar), 1 (max) and 2 (sum) are known"),
    (call(form=-1), "combine_error: form -1 but 0 (scalar), 1 (max) and 2 (sum) are known"),
    (call(norm=2), "combine_error: norm 2 but 0 (l2) and 1 (linf) are known"),
    (call(norm=-(2**40)), "combine_error: norm -1099511627776 but 0 (l2) and 1 (linf) are known"),
    (call(table=SMALL, form=1), "combine_error: 1 rows but form max need 3"),
    (call(table=SMALL, measure=True), "combine_error: 1 rows but form scalar, a measured row need"),
    (call(table=MEASURED, form=2, measure=True), "combine_error: 3 rows but form sum, a measured"),
    (
        call(table=CLAMPED, form=2, measure=True, clamp=(0.0, 1.0)),
        "combine_error: 4 rows but form sum, a measured row, a clamped row need 5",
    ),
    (
        call(table=doubles(3, 1, 2), clamp=(0.0, 1.0)),
        "combine_error: 1 rows but form scalar, a clamped row need 2",
    ),
    (call([], doubles(3, 2, 0)), "combine: xs is empty but at least 1 input is needed"),
    (call(table=doubles(3, 9, 1)), "combine: 9 rows but at most 8 are supported"),
    (call(table=doubles(3, 2)), "combine: weights has shape [3, 2] but [samples, rows, columns]"),
    (call(noise=doubles(3, 2, 1)), "combine: noise is given but no streams"),
    (call(clamp=(1.0,)), "combine: clamp has 1 numbers but (low, high) is needed"),
    (
        call(tolerance=doubles(3, 1)),
        "combine_error: tolerance is float64 [3, 1] but float64 [3, 2] is needed",
    ),
    (
        call(tolerance=state(3, 2)),
        "combine_error: tolerance is float32 [3, 2] but float64 [3, 2] is needed",
    ),
    (call(tolerance=doubles(2, 3).T), f"combine_error: tolerance of shape [3, 2] {LAYOUT}"),
    (
        call(tolerance=doubles(3, 2, device="meta")),
        "combine_error: tolerance is on meta but xs[0] is on cpu",
    ),
    (call_out([]), "combine_error: 1 rows to store but 0 outs"),
    (call_out([state(), state()]), "combine_error: 1 rows to store but 2 outs"),
    (
        call_out([state(), state()], table=doubles(3, 3, 2), clamp=(0.0, 1.0)),
        "combine_error: 1 rows to store but 2 outs",
    ),
    (call_out([longs(3, 4)]), "combine: outs[0] has dtype int64 but only float32"),
    (call_out([state(3, 5)]), "combine: outs[0] has shape [3, 5] but xs[0] has shape [3, 4]"),
    (overlapping(), "combine_error: outs[1] overlaps xs[0] without being the same tensor"),
    (overlapping((0.0, 1.0)), "combine_error: outs[1] overlaps xs[0] without being the same"),
    (
        call_out(norms=doubles(3, 3)),
        "combine_error: norms is float64 [3, 3] but float64 [3, 2] is needed",
    ),
    (call_out(norms=doubles(2, 3).T), f"combine_error: norms of shape [3, 2] {LAYOUT}"),
    (
        call_out(status=longs(4), streams=longs(3, 3)),
        "combine: status is int64 [4] but int64 [3] is needed",
    ),
    (
        call_out(status=longs(3)),
        "combine: status is given but no streams, which hold the stage to report",
    ),
]


@pytest.mark.parametrize(("refused", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_it_is_refused_in_clear_words_and_nothing_is_written(refused, text):
    forms, arguments = refused
    check_refused(*forms, arguments, text)


FAKED = [case for case in REFUSED if can_be_faked(case[1])]


@pytest.mark.parametrize(("refused", "text"), FAKED, ids=[text for _, text in FAKED])
def test_the_fakes_refuse_it_too(refused, text):
    (name, *_), arguments = refused
    check_fake_refuses(name, arguments, text)


@pytest.mark.parametrize("which", ("xs", "table", "tolerance", "outs", "norms"))
def test_tensors_that_require_grad_are_refused(which):
    _, (xs, table, noise, streams, clamp, tolerance, *rest) = call()
    outs, norms = [state()], doubles(3, 2)
    {"xs": xs[0], "table": table, "tolerance": tolerance, "outs": outs[0], "norms": norms}[
        which
    ].requires_grad_()
    arguments = (xs, table, noise, streams, clamp, tolerance, *rest)
    with pytest.raises(RuntimeError, match="a tensor requires grad but"):
        ops.combine_error_out(*arguments, outs, norms, None)
    if which in ("xs", "table", "tolerance"):
        with pytest.raises(RuntimeError, match="a tensor requires grad but"):
            returning(*arguments)
    with torch.no_grad():
        ops.combine_error_out(*arguments, outs, norms, None)


def random_case(seed, *variant, shape=(2, 5)):
    rng = np.random.default_rng(seed)
    return ErrorCase(rng, tensors(rng, FLOATS, shape), *variant)


@pytest.mark.parametrize("variant", ((2, 0), (0, 1, 1, True), (1, 2, 0, True, 2, True)), ids=str)
def test_opcheck(variant):
    case = random_case(1, *variant)
    opcheck(returning, case.call)
    outs = [torch.zeros(2, 5) for _ in range(case.stored)]
    norms, status = torch.zeros(2, 2, dtype=torch.float64), torch.full((2,), -1)
    opcheck(torch.ops.diffast.combine_error.out, (*case.call, outs, norms, status))
    opcheck(torch.ops.diffast.combine_error.out, (*case.call, outs, norms, None))


@pytest.mark.parametrize("backend", ("aot_eager", "inductor"))
# torch 2.13's own inductor imports torch.jit.script_method, which it deprecates itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_both_forms_compile_into_one_graph(backend):
    torch._dynamo.reset()
    counters.clear()

    def step(xs, table, streams, tolerance, out, norms, status):
        made = returning(xs, table, None, streams, [], tolerance, 1, 0, False)
        call = (xs, table, None, streams, [], tolerance, 1, 0, False)
        ops.combine_error_out(*call, [out], norms, status)
        return [*made, out * 2, norms + 1, status]

    compiled = torch.compile(step, backend=backend, fullgraph=True)
    for seed in range(3):
        case = random_case(seed, 1, 1)
        results = []
        for function in (step, compiled):
            out, norms = torch.full((2, 5), torch.nan), torch.full((2, 2), torch.nan).double()
            status = torch.full((2,), -1)
            arguments = (case.xs, case.table, case.streams, case.tolerance, out, norms, status)
            results.append([*function(*arguments), out, norms])
        for a, b in zip(*results, strict=True):
            if a.is_floating_point():
                assert_same_bits(a, b, seed)
            else:
                assert torch.equal(a, b)
    assert counters["stats"]["unique_graphs"] == 1
