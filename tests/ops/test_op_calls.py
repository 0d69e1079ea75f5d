"""The calls that tests of a real GPU share: complete, right on the CPU, and able to fail."""

import pytest
import torch
from op_calls import CALLS, TRITON_CALLS, TRITON_SIZES, Placed, check

from diffast.ops.load import OPS, modules
from diffast.ops.schema import SCHEMAS, overload_of


def test_every_op_has_a_call():
    assert {call.name for call in CALLS} == set(SCHEMAS)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_the_cpu_does_what_the_reference_does(call):
    check(call, call.make(2, 131), "cpu", offset=len(str(call)) % 2)


def test_a_byte_behind_an_output_is_seen():
    (call,) = (call for call in CALLS if str(call) == "normal.out f32")
    placed = Placed(call, call.make(2, 7))
    placed.run()
    placed.assert_guards()
    for place in (-1, 14):
        out = placed.outputs[0]
        out.as_strided((1,), (1,), out.storage_offset() + place).fill_(0.0)
        with pytest.raises(AssertionError, match="4 bytes written around an output"):
            placed.assert_guards()
        out.as_strided((1,), (1,), out.storage_offset() + place).view(torch.int32).fill_(-1)


@pytest.mark.parametrize("name", ["combine K=3", "combine_error.out l2", "accept no slots"])
def test_a_wrong_result_is_seen(name):
    (call,) = (call for call in CALLS if str(call) == name)
    at = call.written.index(True) if True in call.written else None

    def wrong(*arguments):
        made = overload_of(call.name)(*arguments)
        written = made if at is None else arguments[at]
        first = written[0] if isinstance(written, list) else written
        first.view(-1)[3] += 1
        return made

    with pytest.raises(AssertionError, match=call.name):
        check(call, call.make(2, 7), "cpu", function=wrong)


# What the Triton kernels are compiled for, by kernel and compile-time argument.
WANTED = {
    "combine.combine_kernel": {
        "INPUTS": range(1, 17),
        "ROWS": range(1, 9),
        "HIDDEN": range(2),
        "NOISES": range(3),
        "CLAMP": (False, True),
        "BLOCK": (128, 512),
    },
    "combine_error.error_kernel": {
        "INPUTS": range(1, 17),
        "ROWS": range(1, 9),
        "NOISES": range(3),
        "CLAMP": (False, True),
        "FORM": range(3),
        "LARGEST": (False, True),
        "MEASURE": (False, True),
        "BLOCK": (128, 512),
    },
    "combine_error.norms_kernel": {"LARGEST": (False, True), "MEASURE": (False, True)},
    "gram.gram_kernel": {
        "INPUTS": range(1, 9),
        "ROWS": range(1, 5),
        "TOTALS": (False, True),
        "WIDE": (False, True),
        "BLOCK": (128, 512),
    },
    "gram.sums_kernel": {},
    "quantile.count_kernel": {"INPUTS": range(1, 9), "BLOCK": (128, 512)},
    "quantile.find_kernel": {"LAST": (False, True)},
    "sweep.sweep_kernel": {
        "OUTPUTS": range(3),
        "ENTRIES": range(8),
        "NOISES": range(3),
        "PARTS": (False, True),
        "CLAMP": (False, True),
        "IN_PLACE": (False, True),
    },
    "sweep.norms_kernel": {},
    "accept.decide_kernel": {"SLOTS": range(9)},
    "accept.copy_kernel": {},
    "brownian.brownian_kernel": {"BLOCK": (128, 512)},
    "normal.normal_kernel": {"BLOCK": (128, 512)},
}


class Recorder:
    """Stands for a Triton kernel: remembers what it is compiled for and runs nothing."""

    def __init__(self):
        self.seen = []

    def __getitem__(self, grid):
        return lambda *_, **named: self.seen.append(named)


def test_a_few_calls_take_every_value_that_triton_compiles_for(monkeypatch):
    pytest.importorskip("triton")
    recorders = {}
    for op, module in zip(OPS, modules("triton"), strict=True):
        kernels = [name for name in vars(module) if name.endswith("_kernel")]
        for name in kernels:
            if vars(module)[name].fn.__module__ == module.__name__:
                recorders[f"{op}.{name}"] = Recorder()
                monkeypatch.setattr(module, name, recorders[f"{op}.{name}"])
    triton = {k: v for module in modules("triton") for k, v in module.IMPLEMENTATIONS.items()}
    for call, size in zip(TRITON_CALLS, TRITON_SIZES, strict=True):
        Placed(call, call.make(2, size)).run(triton.get(call.name))
    assert recorders.keys() >= WANTED.keys()
    for name, recorder in recorders.items():
        assert recorder.seen, name
        for argument, values in WANTED.get(name, {}).items():
            missing = set(values) - {named[argument] for named in recorder.seen}
            assert not missing, (name, argument, missing)
    variants = sum(len({str(sorted(v.items())) for v in r.seen}) for r in recorders.values())
    assert variants < 120, "a handful, since each is compiled on the GPU's machine"
