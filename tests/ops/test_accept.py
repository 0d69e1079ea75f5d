"""`accept`: the C++ kernel does what the specification says, to samples in any state at all."""

import collections
import itertools
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from accept_cases import INF, NAN, Problem, assert_equal_state, flags, random_state, rule
from op_cases import FLOATS, assert_same_bits
from places import HELPERS, ROOT
from torch.library import opcheck

from diffast import ops
from diffast.ops.accept import reference as reference_accept
from diffast.ops.schema import (
    FAILED_CALLS,
    FAILED_FINITE,
    FAILED_STEP,
    FINISHED,
    FLAGS,
    RULE,
    RUNNING,
)

pytestmark = pytest.mark.usefixtures("nan_memory")
SWITCHES = ("final", "always", "balance", "calm", "by_factor")


def test_the_compiled_kernels_are_what_is_tested():
    assert ops.backends()["cpu"]["backend"].startswith("c++")


@pytest.mark.parametrize("slots", range(5))
def test_random_problems(slots):
    """3,200 samples a number of slots; every outcome has to occur often."""
    rng = np.random.default_rng(slots)
    outcomes, forgotten, slotted, moved = collections.Counter(), 0, 0, 0
    for i in range(80):
        problem = Problem(rng, 40, slots=slots)
        before = problem.copy()
        wanted = problem.check(ops.accept, (slots, i))
        started = before.counts[:, 0] == RUNNING
        outcomes.update(wanted.counts[started, 0].tolist())
        forgotten += int((wanted.counts - before.counts)[:, 6].sum())
        drawn = (wanted.control[:, 6:] != before.control[:, 6:]).any(dim=1)
        slotted += int((drawn & (wanted.counts[:, 4] > before.counts[:, 4])).sum())
        moved += sum(int(t.isfinite().all(dim=1).sum()) for t in wanted.targets)
    for status in (RUNNING, FINISHED, FAILED_FINITE, FAILED_STEP, FAILED_CALLS):
        assert outcomes[status] > 50, outcomes
    assert moved > 500
    assert (forgotten > 20) == (slots > 0)
    assert (slotted > 20) == (slots > 0)


@pytest.mark.parametrize("switches", list(itertools.product((0, 1), repeat=5)), ids=str)
def test_every_combination_of_flags(switches):
    rng = np.random.default_rng(7)
    chosen = dict(zip(SWITCHES, switches, strict=True))
    for last, restart, most in ((1, 0, 1000), (1, 1, 3), (4, 0, 4), (3, 3, 1000), (2, 1, 0)):
        problem = Problem(rng, 200, slots=last - 1)
        problem.flags = flags(last=last, restart=restart, most_calls=most, **chosen)
        state = random_state(rng, 200, last - 1, last)
        problem.norms, problem.status, problem.control, problem.counts, problem.streams = state
        problem.moves = [last, 0, 0, 0, 1, 1]
        problem.check(ops.accept, (chosen, last))


def test_every_number_of_the_rule_counts():
    """Each number, changed alone, changes what becomes of some sample."""
    others = {"step_max": 0.2, "step_min": 0.4, "least": 1.05, "most": 1.1}
    for name in RULE:
        runs = []
        for numbers in ({}, {name: others.get(name, 0.37)}):
            problem = Problem(np.random.default_rng(3), 2000, moves=0)
            problem.rule, problem.flags = rule(**numbers), flags()
            state = random_state(np.random.default_rng(4), 2000, 0, 1)
            problem.norms, problem.status, problem.control, problem.counts, problem.streams = state
            problem.check(ops.accept, name)
            runs.append(problem)
        control = [run.control.nan_to_num(nan=-1) for run in runs]
        assert not torch.equal(*control), name


@pytest.mark.parametrize("size", (0, 1, 7, 63, 1000, 4097))
def test_every_shape(size):
    for batch, offset in itertools.product((0, 1, 2, 3, 70), (0, 4)):
        rng = np.random.default_rng(size + batch)
        for slots in (0, 2):
            problem = Problem(rng, batch, (size,), slots=slots, offset=offset, moves=6)
            problem.check(ops.accept, (batch, size, offset, slots))


@pytest.mark.parametrize("shape", ((), (3, 5, 7), (4, 64, 64), (0, 4), (40_000,)))
def test_other_shapes(shape):
    Problem(np.random.default_rng(1), 5, shape, slots=1).check(ops.accept, shape)


@pytest.mark.parametrize("dtypes", [(d,) for d in FLOATS] + [FLOATS, FLOATS[::-1]], ids=str)
def test_every_dtype_alone_and_side_by_side(dtypes):
    rng = np.random.default_rng(2)
    for slots, size in itertools.product((0, 3), (1, 67, 20_000)):
        problem = Problem(rng, 9, (size,), slots, dtypes, moves=12)
        problem.check(ops.accept, (dtypes, slots, size))


def test_what_is_copied_are_bytes():
    """Every pattern of a half type arrives as it was, signalling NaNs included."""
    for dtype in (torch.float16, torch.bfloat16):
        source = torch.arange(-(2**15), 2**15).to(torch.int16).reshape(2, -1).view(dtype)
        target = torch.zeros_like(source)
        call = plain_call(2)
        call["flags"] = flags(last=2)
        call |= {"moves": [1, 0, 0], "sources": [source], "targets": [target]}
        ops.accept(*call.values())
        assert torch.equal(target.view(torch.int16), source.view(torch.int16))


@pytest.mark.parametrize("threads", (1, 2))
def test_thread_counts_do_not_matter(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rng = np.random.default_rng(5)
        # Many small samples are decided, and few large ones copied, by several threads.
        Problem(rng, 20_000, (2,), slots=2).check(ops.accept, threads)
        Problem(rng, 6, (100_003,), slots=2, moves=8).check(ops.accept, threads)
    finally:
        torch.set_num_threads(before)


def plain_call(samples=1, slots=0, **planes):
    """Returns a call, by argument, of samples on their way from 0 to 1 that judges an attempt."""
    return {
        "norms": torch.tensor([[0.5, 0.0]] * samples, dtype=torch.float64).reshape(samples, 2),
        "status": torch.full((samples,), -1),
        "rule": rule(),
        "flags": flags(),
        "moves": [],
        "memory": [0, *[0] * slots] if slots else [],
        "sources": [],
        "control": torch.tensor(
            [[0, 0.25, 1, NAN, NAN, NAN, *[INF] * slots]] * samples, dtype=torch.float64
        ).reshape(samples, 6 + slots),
        "counts": torch.tensor([[0, 1, 0, 0, 0, 0, 0]] * samples).reshape(samples, 7),
        "streams": torch.zeros(samples, 3, dtype=torch.int64),
        "targets": [],
        **planes,
    }


def test_moves_are_made_in_their_order():
    """A shift: what was the state becomes the previous one, then the new one the state."""
    for op in (ops.accept, reference_accept.accept):
        state, previous, new = (torch.full((3, 5), value) for value in (1.0, 0.0, 2.0))
        call = plain_call(3, moves=[1, 0, 1, 1, 1, 0])
        call |= {"sources": [state, new], "targets": [state, previous]}
        call["counts"][1, 0] = FINISHED
        op(*call.values())
        assert previous[:, 0].tolist() == [1, 0, 1]
        assert state[:, 0].tolist() == [2, 1, 2]


def test_a_tensor_moved_onto_itself_stays():
    for op in (ops.accept, reference_accept.accept):
        x, y = torch.rand(2, 4), torch.rand(2, 4)
        kept = x.clone()
        call = plain_call(2, moves=[1, 0, 0, 1, 0, 1], sources=[x], targets=[x, y])
        op(*call.values())
        assert_same_bits(x, kept)
        assert_same_bits(y, kept)


def test_a_slot_may_be_what_is_drawn_itself():
    x, y = torch.rand(2, 4), torch.rand(2, 4)
    kept = x.clone()
    call = plain_call(2, 2, sources=[x], targets=[x, y])
    call["memory"], call["norms"][:, 0] = [0, 1, 0], 9.0
    call["control"][1, 6] = 0.9  # its first slot is taken
    ops.accept(*call.values())
    assert_same_bits(y[:1], kept[:1])
    assert_same_bits(x, kept)


def test_the_reference_and_its_kernel_on_one_call_by_hand():
    """One sample accepts, one rejects and is remembered, one is not finite, one is at rest."""
    for op in (ops.accept, reference_accept.accept):
        drawn = torch.arange(4.0).reshape(4, 1) + 1
        state, slot = torch.zeros(4, 1), torch.zeros(4, 1)
        call = plain_call(4, 1, sources=[drawn], targets=[state, slot])
        call |= {"moves": [1, 0, 0], "memory": [0, 1]}
        call["norms"][:, 0] = torch.tensor([0.25, 4.0, NAN, 0.25])
        call["counts"][3, 0] = FAILED_CALLS
        op(*call.values())
        assert state[:, 0].tolist() == [1, 0, 0, 0]
        assert slot[:, 0].tolist() == [0, 2, 0, 0]
        assert call["counts"].tolist() == [
            [RUNNING, 1, 1, 1, 0, 0, 0],
            [RUNNING, 1, 1, 0, 1, 1, 0],
            [FAILED_FINITE, 1, 1, 0, 0, 0, 0],
            [FAILED_CALLS, 1, 0, 0, 0, 0, 0],
        ]
        # 0.25 * 0.9 / 0.5 beyond 0.25, and 0.25 * 0.9 / 2.
        assert call["control"][0, :2].tolist() == pytest.approx([0.25, 0.7], rel=1e-15)
        assert call["control"][1, :2].tolist() == pytest.approx([0.0, 0.1125], rel=1e-15)
        assert call["control"][:, 6].tolist() == [INF, 0.25, INF, INF]
        assert call["streams"][:, 2].tolist() == [1, 1, 0, 0]


def test_opcheck():
    """Schema, fake kernel and autograd registration, with aliased and with empty planes."""
    rng = np.random.default_rng(6)
    for slots in (0, 2):
        opcheck(torch.ops.diffast.accept.default, Problem(rng, 4, slots=slots).call)
        opcheck(torch.ops.diffast.accept.default, Problem(rng, 0, slots=slots).call)
    opcheck(torch.ops.diffast.accept.default, tuple(plain_call(3).values()))


@pytest.fixture
def compiler(request):
    """What compiles a function whole with the backend of the parameter."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # torch 2.13's own inductor imports torch.jit.script_method, which it deprecates itself.
        warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
        yield lambda call: torch.compile(call, fullgraph=True, backend=request.param)
    torch._dynamo.reset()


each_compiler = pytest.mark.parametrize(
    "compiler", ("eager", "aot_eager", "inductor"), indirect=True
)


@each_compiler
def test_torch_compile_takes_it_whole(compiler):
    rng = np.random.default_rng(8)

    def step(*call):
        ops.accept(*call)
        return call[7] * 2

    compiled = compiler(step)
    for slots in (0, 1):
        problem = Problem(rng, 6, slots=slots)
        wanted = problem.copy()
        with torch.inference_mode():
            reference_accept.accept(*wanted.call)
            doubled = compiled(*problem.call)
        assert_equal_state(problem, wanted, slots)
        torch.testing.assert_close(doubled, wanted.control * 2, rtol=1e-12, atol=0, equal_nan=True)


@each_compiler
def test_torch_compile_keeps_the_order_of_moves(compiler):
    """Functional copies of the targets do not change what the sources are."""
    state, previous, new = (torch.full((3, 5), value) for value in (1.0, 0.0, 2.0))

    def shift(state, previous, new, norms, status, control, counts, streams):
        moves, planes = [1, 0, 1, 1, 1, 0], ([state, new], [state, previous])
        numbers = (rule(), flags(), moves, [])
        ops.accept(norms, status, *numbers, planes[0], control, counts, streams, planes[1])
        return state + previous

    call = plain_call(3)
    numbers = [call[name] for name in ("norms", "status", "control", "counts", "streams")]
    total = compiler(shift)(state, previous, new, *numbers)
    assert (total == 3).all() and (state == 2).all() and (previous == 1).all()


def test_a_tensor_that_requires_grad_is_refused():
    call = plain_call(2, sources=[torch.rand(2, 3, requires_grad=True)])
    with pytest.raises(RuntimeError, match="requires grad but this form of the op has no"):
        ops.accept(*call.values())


def test_the_build_without_avx2_does_the_same():
    program = (
        "import numpy as np\nfrom accept_cases import Problem\nfrom diffast import ops\n"
        "assert ops.backends()['cpu']['backend'] == 'c++ (base)'\n"
        "for i in range(20):\n"
        "    Problem(np.random.default_rng(i), 40, (19,), i % 5).check(ops.accept, i)\n"
    )
    here = HELPERS
    environment = {**os.environ, "DIFFAST_CPU_ISA": "base"}
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here)])
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_names_of_numbers_are_those_of_the_header():
    """The structs of csrc/ops/accept/args.h are filled in the schema's order."""
    header = (ROOT / "csrc" / "ops" / "accept" / "args.h").read_text()

    def members(struct):
        body = header.split(f"struct {struct} {{")[1].split("};")[0]
        lines = [line.strip().split(maxsplit=1)[1] for line in body.strip().split(";") if line]
        return tuple(name.strip() for line in lines for name in line.split(","))

    assert members("AcceptRule") == RULE
    assert members("AcceptFlags") == FLAGS
    from diffast.ops.schema import CONTROLS, COUNTS

    assert members("AcceptControl") == CONTROLS
    assert members("AcceptCounts") == COUNTS
