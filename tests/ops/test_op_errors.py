"""What `combine` and `normal` refuse, in clear words, before anything is written."""

import pytest
import torch
from op_cases import FORMS, into
from refusals import can_be_faked, check_fake_refuses, check_refused

from diffast import ops
from diffast.ops.normal import reference as reference_normal

INF, NAN = float("inf"), float("nan")
NORMAL = ("normal.out", ops.normal_out, reference_normal.normal_out)


def state(*shape, dtype=torch.float32, device="cpu"):
    return torch.ones(shape or (3, 4), dtype=dtype, device=device)


def longs(*shape, device="cpu"):
    return torch.full(shape, -1, dtype=torch.int64, device=device)


def table(*shape, device="cpu"):
    return torch.ones(shape, dtype=torch.float64, device=device)


def host(xs=None, weights=(1.0,), noise=(), stage=0, ids=None, clamp=()):
    """Returns a call of the returning form; one good input by default."""
    xs = [state()] if xs is None else xs
    return ("combine", *FORMS[0]), (xs, list(weights), list(noise), 0, stage, ids, list(clamp))


def host_out(outs=None, status=None, **options):
    _, call = host(**options)
    return ("combine.out", *FORMS[2]), into(call, [state()] if outs is None else outs, status)


def tabled(xs=None, weights=None, noise=None, streams=None, clamp=()):
    xs = [state()] if xs is None else xs
    weights = table(3, 1, 1) if weights is None else weights
    return ("combine.table", *FORMS[1]), (xs, weights, noise, streams, clamp)


def tabled_out(outs=None, status=None, **options):
    _, call = tabled(**options)
    return ("combine.table_out", *FORMS[3]), into(call, [state()] if outs is None else outs, status)


def normal(ids=None, stage=0, scale=1.0, out=None):
    ids = longs(3) if ids is None else ids
    return NORMAL, (ids, 0, stage, scale, state() if out is None else out)


def overlapping(kind):
    """Returns a call whose output shares memory with another tensor in a way that is refused."""
    memory = torch.ones(64)
    x, shifted = memory[:12].view(3, 4), memory[4:16].view(3, 4)
    if kind == "input":
        return host_out([shifted], xs=[x])
    if kind == "later row":
        return host_out([state(), memory[8:20].view(3, 4)], xs=[state(), x], weights=[1.0] * 4)
    if kind == "behind a hidden row":
        clamped = dict(weights=[1.0, 0.0] * 2, clamp=(0.0, 1.0))
        return host_out([shifted], xs=[x], **clamped)
    if kind == "dtype":
        return host_out([memory[:6].view(torch.float16).view(3, 4)], xs=[x])
    if kind == "twice":
        return host_out([x, x], xs=[state()], weights=[1.0, 1.0])
    return host_out([x, shifted], xs=[state()], weights=[1.0, 1.0])


def on_meta(*shape):
    return state(*shape, device="meta")


FLAT, WRONG, TALL = (state(12), state(3, 5), state(4, 3).T)
CLAMPED = dict(clamp=(0.0, 1.0))
LAYOUT = "is not contiguous but the kernel reads it in row-major order"
DTYPES = "but only float32, float16, bfloat16 and float64 are supported"
OTHER_DTYPES = ("uint8", "int8", "int16", "int32", "int64", "complex64", "complex128", "bool")
WORD = "but bits 0 to 25 hold the stage, 28 to 31 the purpose"

# The call, and the text that names the two facts. On a device that is not there: `meta`.
REFUSED = [
    (host([]), "combine: xs is empty but at least 1 input is needed"),
    (host([state()] * 17, [1.0] * 17), "combine: 17 inputs but at most 16 are supported"),
    (host(weights=[1.0] * 9), "combine: 9 rows but at most 8 are supported"),
    (tabled(weights=table(3, 9, 1)), "combine: 9 rows but at most 8 are supported"),
    (tabled([], table(3, 1, 1)), "combine: xs is empty but at least 1 input is needed"),
    *[
        (
            host([state(), state(dtype=getattr(torch, name))], [1.0, 1.0]),
            f"combine: xs[1] has dtype {name} {DTYPES}",
        )
        for name in OTHER_DTYPES
    ],
    (host([longs(3)]), f"combine: xs[0] has dtype int64 {DTYPES}"),
    (host_out([longs(3, 4)]), f"combine: outs[0] has dtype int64 {DTYPES}"),
    (
        host([state(), WRONG], [1.0, 1.0]),
        "combine: xs[1] has shape [3, 5] but xs[0] has shape [3, 4]",
    ),
    (
        host([state(), FLAT], [1.0, 1.0]),
        "combine: xs[1] has shape [12] but xs[0] has shape [3, 4]",
    ),
    (
        host([state(), state(1)[0]], [1.0, 1.0]),
        "combine: xs[1] has shape [] but xs[0] has shape [3, 4]",
    ),
    (host_out([WRONG]), "combine: outs[0] has shape [3, 5] but xs[0] has shape [3, 4]"),
    (
        host([state(), on_meta(3, 4)], [1.0, 1.0]),
        "combine: xs[1] is on meta but xs[0] is on cpu",
    ),
    (host_out([on_meta(3, 4)]), "combine: outs[0] is on meta but xs[0] is on cpu"),
    (host([TALL]), f"combine: xs[0] of shape [3, 4] {LAYOUT}"),
    (host_out([TALL]), f"combine: outs[0] of shape [3, 4] {LAYOUT}"),
    (host_out([state(), state()]), "combine: 1 rows but 2 outs"),
    (host_out([]), "combine: 1 rows but 0 outs"),
    (
        host_out([state()], weights=[1.0, 0.0] * 3, **CLAMPED),
        "combine: 3 rows but 1 outs",
    ),
    (overlapping("input"), "combine: outs[0] overlaps xs[0] without being the same"),
    (overlapping("later row"), "combine: outs[1] overlaps xs[1] without being the"),
    (overlapping("behind a hidden row"), "combine: outs[0] overlaps xs[0] without"),
    (overlapping("dtype"), "combine: outs[0] overlaps xs[0] without being the same"),
    (overlapping("twice"), "combine: outs[1] overlaps outs[0] but both are written"),
    (overlapping("outputs"), "combine: outs[1] overlaps outs[0] but both are written"),
    (
        host([state()] * 2, [1.0] * 3),
        "combine: 2 inputs but 3 weights, which is not a whole number of rows",
    ),
    (host(weights=[]), "combine: 1 inputs but 0 weights, which is not a whole number of rows"),
    (
        host([state()] * 2, [1.0] * 4, **CLAMPED),
        "combine: 2 inputs and a clamped row but 4 weights, which is not a whole number of rows",
    ),
    (
        host([state()] * 2, [1.0, 1.0, NAN, 1.0]),
        "combine: the weight of row 1, column 0 is nan but weights must be finite",
    ),
    (
        host([state()] * 2, [1.0, 1.0, 1.0, -NAN]),
        "combine: the weight of row 1, column 1 is nan but weights must be finite",
    ),
    (
        host([state()], [0.5, 0.0, -INF, 1.0], **CLAMPED),
        "combine: the weight of row 1, column 0 is -inf but weights must be finite",
    ),
    (
        host([state()], [1.0, 0.1, 1.0, 1.0], **CLAMPED),
        "combine: row 0 is the clamped row but gives itself the weight 0.1",
    ),
    (
        host(weights=[1.0, 1.0], noise=[1.0]),
        "combine: 2 rows but 1 noise weights (0, 1 or 2 a row)",
    ),
    (host(noise=[1.0] * 3), "combine: 1 rows but 3 noise weights (0, 1 or 2 a row)"),
    (
        host(weights=[1.0, 1.0], noise=[1.0, 1.0, 1.0, INF]),
        "combine: the noise weight of row 1 is inf but weights must be finite",
    ),
    (host(clamp=[1.0]), "combine: clamp has 1 numbers but (low, high) is needed"),
    (tabled(clamp=[1.0, 2.0, 3.0]), "combine: clamp has 3 numbers but (low, high) is needed"),
    (host(clamp=[2.5, 1e-20]), "combine: clamp low 2.5 but high 1e-20"),
    (host(clamp=[-NAN, 123456789.0]), "combine: clamp low nan but high 1.23457e+08"),
    (host(stage=-1), f"combine: stage -1 {WORD}"),
    (host(stage=2**26), f"combine: stage 67108864 {WORD}"),
    (host(stage=2**27), f"combine: stage 134217728 {WORD}"),
    (host(stage=2**32), f"combine: stage 4294967296 {WORD}"),
    (host(stage=-(2**63)), f"combine: stage -9223372036854775808 {WORD}"),
    (normal(stage=3 * 2**26), f"normal: stage 201326592 {WORD}"),
    (host(ids=longs(2)), "combine: ids is int64 [2] but int64 [3] is needed"),
    (host(ids=longs(3, 1)), "combine: ids is int64 [3, 1] but int64 [3] is needed"),
    (host(ids=state(3)), "combine: ids is float32 [3] but int64 [3] is needed"),
    (host(ids=longs(3, device="meta")), "combine: ids is on meta but xs[0] is on cpu"),
    (host(ids=longs(6)[::2]), f"combine: ids of shape [3] {LAYOUT}"),
    (host_out(status=longs(4)), "combine: status is int64 [4] but int64 [3] is needed"),
    (
        host([state(1)[0]], noise=[1.0]),
        "combine: xs[0] has no batch dimension but noise needs one",
    ),
    (
        host_out([state(1)[0]], longs(1), xs=[state(1)[0]]),
        "combine: xs[0] has no batch dimension but status needs one",
    ),
    (
        tabled([state(1)[0]]),
        "combine: xs[0] has no batch dimension but a table of weights needs one",
    ),
    (
        tabled(weights=table(3, 1)),
        "combine: weights has shape [3, 1] but [samples, rows, columns] is needed",
    ),
    (
        tabled(weights=table(3, 0, 1)),
        "combine: weights has shape [3, 0, 1] but at least 1 row is needed",
    ),
    (
        tabled(weights=table(3, 1, 2)),
        "combine: weights is float64 [3, 1, 2] but float64 [3, 1, 1] is needed",
    ),
    (
        tabled(weights=table(3, 2, 1), **CLAMPED),
        "combine: weights is float64 [3, 2, 1] but float64 [3, 2, 2] is needed",
    ),
    (
        tabled(weights=state(3, 1, 1)),
        "combine: weights is float32 [3, 1, 1] but float64 [3, 1, 1] is needed",
    ),
    (
        tabled(weights=table(3, 2, 1)[:, ::2]),
        f"combine: weights of shape [3, 1, 1] {LAYOUT}",
    ),
    (
        tabled(weights=table(3, 1, 1, device="meta")),
        "combine: weights is on meta but xs[0] is on cpu",
    ),
    (
        tabled(noise=table(3, 1, 3), streams=longs(3, 3)),
        "combine: noise has shape [3, 1, 3] but [samples, rows, 1 or 2] is needed",
    ),
    (
        tabled(noise=table(3, 1), streams=longs(3, 3)),
        "combine: noise has shape [3, 1] but [samples, rows, 1 or 2] is needed",
    ),
    (
        tabled(noise=table(3, 2, 1), streams=longs(3, 3)),
        "combine: noise is float64 [3, 2, 1] but float64 [3, 1, 1] is needed",
    ),
    (
        tabled(noise=table(3, 1, 1)),
        "combine: noise is given but no streams (seed, id, stage)",
    ),
    (
        tabled(noise=table(3, 1, 1), streams=longs(3, 2)),
        "combine: streams is int64 [3, 2] but int64 [3, 3] is needed",
    ),
    (
        tabled_out(status=longs(3)),
        "combine: status is given but no streams, which hold the stage to report",
    ),
    (
        tabled_out(status=longs(3, 1), streams=longs(3, 3)),
        "combine: status is int64 [3, 1] but int64 [3] is needed",
    ),
    (normal(out=longs(3, 4)), f"normal: out has dtype int64 {DTYPES}"),
    (normal(state(3)), "normal: ids is float32 [3] but a contiguous int64 [samples] is needed"),
    (normal(longs(3, 1)), "normal: ids is int64 [3, 1] but a contiguous int64 [samples] is"),
    (normal(longs(6)[::2]), "normal: ids is int64 [3] but a contiguous int64 [samples] is needed"),
    (normal(longs(2)), "normal: out has shape [3, 4] but there are 2 ids"),
    (normal(longs(1), out=state(1)[0]), "normal: out has shape [] but there are 1 ids"),
    (normal(longs(3, device="meta")), "normal: out is on cpu but ids are on meta"),
    (normal(out=TALL), "normal: out of shape [3, 4] is not contiguous but the kernel writes it"),
    (normal(scale=-NAN), "normal: the scale is nan but it must be finite"),
    (normal(scale=-INF), "normal: the scale is -inf but it must be finite"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED, ids=[text for _, text in REFUSED])
def test_it_is_refused_in_clear_words_and_nothing_is_written(call, text):
    forms, arguments = call
    check_refused(*forms, arguments, text)


FAKED = [case for case in REFUSED if can_be_faked(case[1])]


@pytest.mark.parametrize(("call", "text"), FAKED, ids=[text for _, text in FAKED])
def test_the_fakes_refuse_it_too(call, text):
    (name, *_), arguments = call
    check_fake_refuses(name, arguments, text)


def test_the_convenient_forms_refuse_too():
    x = state()
    with pytest.raises(RuntimeError, match="combine: 1 inputs but 0 weights"):
        ops.combine([x], [])
    with pytest.raises(RuntimeError, match="normal: out has dtype int32"):
        ops.normal((2, 3), dtype=torch.int32)
    with pytest.raises(RuntimeError, match="normal: out has shape .* but there are 3 ids"):
        ops.normal((2, 3), ids=longs(3))


def test_noise_for_more_elements_than_the_counter_tells_apart(tmp_path):
    """Blocks of four elements are counted with 32 bits; the file has a hole of 32 GiB."""
    elements = 2**34 + 4
    file = tmp_path / "hole"
    with open(file, "wb") as hole:
        try:
            hole.truncate(elements * 2)
        except OSError as error:
            pytest.skip(f"no file with a hole of this size: {error}")
    x = torch.from_file(str(file), shared=True, size=elements, dtype=torch.float16)
    x = x.view(1, elements)
    said = rf"a sample has {elements} elements but noise can be drawn for at most {2**34} \(2\^34\)"
    with pytest.raises(RuntimeError, match="normal: " + said):
        ops.normal_out(longs(1), 0, 0, 1.0, x)
    with pytest.raises(RuntimeError, match="combine: " + said):
        ops.combine_out([x], [1.0], [x], None, 0, [1.0], 0, longs(1))
    with pytest.raises(RuntimeError, match="combine: " + said):
        streams = torch.zeros(1, 3, dtype=torch.int64)
        ops.combine_table_out([x], table(1, 1, 1), table(1, 1, 1), streams, [], [x], None)
