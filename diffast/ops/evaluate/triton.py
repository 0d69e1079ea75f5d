"""`evaluate` in Triton: a loop over the instructions of a program, for 32 samples at a time.

Registers lie in a scratch tensor in global memory, where an instruction reads and writes one number
a sample. This is slower than the shared memory of csrc/ops/evaluate/cuda.cu, and serves devices
where the compiled kernels are missing.

Triton has exp, log, sin and cos of float64 on every target and in its interpreter. The other
functions are made of these four here, to about 1e-14 relative to the larger of the result and what
it is made of; tan is sin / cos. All other instructions have the bits of reference.py. Numbers given
by the host would arrive as float32, so those that float32 has not are read from a table on the
device. The first call on a device puts it there: make that call before a CUDA graph is captured.

See launch.py for the prefixes of names.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from diffast.ops.evaluate.checks import check_evaluate
from diffast.ops.launch import arctan
from diffast.ops.schema import INSTRUCTIONS, KNOT_SCALES, KNOTS

_SAMPLES = 32
_NUMBERS = (*KNOTS, *KNOT_SCALES, math.pi, math.log(2.0))


def _opcode(name: str) -> tl.constexpr:
    return tl.constexpr(INSTRUCTIONS.index(name))


_CONSTANT, _INPUT, _ADD, _SUB = (_opcode(n) for n in ("constant", "input", "add", "sub"))
_MUL, _DIV, _NEG, _ABS = (_opcode(n) for n in ("mul", "div", "neg", "abs"))
_SQRT, _EXP, _EXPM1, _LOG = (_opcode(n) for n in ("sqrt", "exp", "expm1", "log"))
_LOG1P, _SIN, _COS, _TAN = (_opcode(n) for n in ("log1p", "sin", "cos", "tan"))
_ATAN, _ATAN2, _SINH, _ASINH = (_opcode(n) for n in ("atan", "atan2", "sinh", "asinh"))
_FLOOR, _ROUND, _MINIMUM = (_opcode(n) for n in ("floor", "round", "minimum"))
_MAXIMUM, _LT, _LE, _GT = (_opcode(n) for n in ("maximum", "lt", "le", "gt"))
_GE, _EQ, _AND, _OR = (_opcode(n) for n in ("ge", "eq", "and", "or"))
_NOT, _WHERE, _PIECE = (_opcode(n) for n in ("not", "where", "piece"))
_LOOKUP, _STORE = (_opcode(n) for n in ("lookup", "store"))
_INF = tl.constexpr(math.inf)
_TWO_52 = tl.constexpr(2.0**52)  # from here on all numbers are whole
_TWO_63 = tl.constexpr(2.0**63)


@triton.jit
def _number(m_true):
    return m_true.to(tl.float64)


@triton.jit
def _with_sign(b_size, b_of):
    """Returns a number of this size, at least 0, with the sign of another one."""
    return tl.where(b_of.to(tl.int64, bitcast=True) < 0, -b_size, b_size)


@triton.jit
def _round(b_x):
    """Returns the nearest whole number, halves to the even one."""
    size = tl.abs(b_x)
    return tl.where(size < _TWO_52, _with_sign((size + _TWO_52) - _TWO_52, b_x), b_x)


@triton.jit
def _expm1(b_x):
    """Kahan's form: what exp(x) lost by rounding is the same in its logarithm."""
    u = tl.exp(b_x)
    near = tl.where(tl.abs(b_x) <= 1.0, u, 2.0)
    close = (near - 1.0) * b_x / tl.log(near)
    return tl.where(tl.abs(b_x) <= 1.0, tl.where(u == 1.0, b_x, close), u - 1.0)


@triton.jit
def _log1p(b_x):
    """Kahan's form, as for expm1."""
    u = 1.0 + b_x
    m_own = (u == 1.0) | (u == _INF)
    return tl.where(m_own, b_x, tl.log(u) * b_x / tl.where(m_own, 1.0, u - 1.0))


@triton.jit
def _arctan2(b_y, b_x, pi):
    """Returns the angle of the point (x, y), with the signs of zeros and infinities of C."""
    y, x = tl.abs(b_y), tl.abs(b_x)
    m_same = (y == x) & ((x == 0.0) | (x == _INF))
    ratio = tl.where(m_same, tl.where(x == 0.0, 0.0, 1.0), y / tl.where(x == 0.0, 1.0, x))
    ratio = tl.where((x == 0.0) & (y > 0.0), _INF, ratio)
    angle = arctan(ratio, pi * 0.5)
    angle = tl.where(b_x.to(tl.int64, bitcast=True) < 0, pi - angle, angle)
    return tl.where(b_x == b_x, _with_sign(angle, b_y), b_x)


@triton.jit
def _sinh(b_x):
    size = tl.abs(b_x)
    small = _expm1(tl.where(size < 22.0, size, 0.0))
    half = tl.exp(0.5 * size)
    value = tl.where(size < 22.0, 0.5 * (small + small / (small + 1.0)), 0.5 * half * half)
    return tl.where(b_x == b_x, _with_sign(value, b_x), b_x)


@triton.jit
def _arcsinh(b_x, log_two):
    size = tl.abs(b_x)
    m_far = size > 1e8
    near = tl.where(m_far, 1.0, size)
    near = _log1p(near + near * near / (1.0 + tl.sqrt(near * near + 1.0)))
    value = tl.where(m_far, tl.log(tl.where(m_far, size, 1.0)) + log_two, near)
    return tl.where(b_x == b_x, _with_sign(value, b_x), b_x)


@triton.jit
def _function(opcode, b_x, b_y, p_numbers):
    """Returns an instruction of the library's functions, exp to asinh."""
    b_made = b_x
    if opcode <= _LOG:
        if opcode == _EXP:
            b_made = tl.exp(b_x)
        elif opcode == _EXPM1:
            b_made = _expm1(b_x)
        else:
            b_made = tl.log(b_x)
    elif opcode <= _TAN:
        if opcode == _LOG1P:
            b_made = _log1p(b_x)
        elif opcode == _SIN:
            b_made = tl.sin(b_x)
        elif opcode == _COS:
            b_made = tl.cos(b_x)
        else:
            b_made = tl.sin(b_x) / tl.cos(b_x)
    elif opcode == _ATAN:
        b_made = _with_sign(arctan(tl.abs(b_x), tl.load(p_numbers + 8) * 0.5), b_x)
    elif opcode == _ATAN2:
        b_made = _arctan2(b_x, b_y, tl.load(p_numbers + 8))
    elif opcode == _SINH:
        b_made = _sinh(b_x)
    else:
        b_made = _arcsinh(b_x, tl.load(p_numbers + 9))
    return b_made


@triton.jit
def _exact(opcode, b_x, b_y, b_z):
    """Returns an instruction whose result is fixed to the last bit."""
    b_made = b_x
    if opcode <= _SQRT:
        if opcode == _ADD:
            b_made = b_x + b_y
        elif opcode == _SUB:
            b_made = b_x - b_y
        elif opcode == _MUL:
            b_made = b_x * b_y
        elif opcode == _DIV:
            b_made = b_x / b_y
        elif opcode == _NEG:
            b_made = -b_x
        elif opcode == _ABS:
            b_made = tl.abs(b_x)
        else:
            b_made = tl.sqrt(b_x)
    elif opcode <= _MAXIMUM:
        if opcode == _FLOOR:
            b_made = tl.floor(b_x)
        elif opcode == _ROUND:
            b_made = _round(b_x)
        elif opcode == _MINIMUM:
            b_made = tl.where((b_x < b_y) | (b_x != b_x), b_x, b_y)
        else:
            b_made = tl.where((b_x > b_y) | (b_x != b_x), b_x, b_y)
    elif opcode <= _EQ:
        if opcode == _LT:
            b_made = _number(b_x < b_y)
        elif opcode == _LE:
            b_made = _number(b_x <= b_y)
        elif opcode == _GT:
            b_made = _number(b_x > b_y)
        elif opcode == _GE:
            b_made = _number(b_x >= b_y)
        else:
            b_made = _number(b_x == b_y)
    elif opcode == _AND:
        b_made = _number((b_x != 0.0) & (b_y != 0.0))
    elif opcode == _OR:
        b_made = _number((b_x != 0.0) | (b_y != 0.0))
    elif opcode == _NOT:
        b_made = _number(b_x == 0.0)
    else:
        b_made = tl.where(b_x != 0.0, b_y, b_z)
    return b_made


@triton.jit
def _find_piece(p_edges, pieces, steps, b_x, BLOCK: tl.constexpr):
    """Returns the pieces that hold numbers, by bisection in enough steps for all edges."""
    first = tl.zeros([BLOCK], tl.int32)
    end = first + pieces + 1
    for _ in range(0, steps):
        m_open = first < end
        middle = (first + end) // 2
        edge = tl.load(p_edges + middle, mask=m_open, other=0.0)
        m_up = ~(edge >= b_x)
        first = tl.where(m_open & m_up, middle + 1, first)
        end = tl.where(m_open & ~m_up, middle, end)
    return tl.minimum(tl.maximum(first - 1, 0), pieces - 1).to(tl.float64)


@triton.jit
def _look_up(p_edges, p_row, p_numbers, pieces, b_piece, b_x):
    """Returns the cubics of pieces at positions."""
    last = pieces - 1
    m_inside = (b_piece > 0.0) & (b_piece < last)
    o_piece = tl.where(m_inside, b_piece, 0.0).to(tl.int32)
    o_piece = tl.where(b_piece >= last, last, o_piece)
    low, high = tl.load(p_edges + o_piece), tl.load(p_edges + o_piece + 1)
    part = (b_x - low) / (high - low)
    g0, g1 = part - tl.load(p_numbers), part - tl.load(p_numbers + 1)
    g2, g3 = part - tl.load(p_numbers + 2), part - tl.load(p_numbers + 3)
    s0, s1 = tl.load(p_numbers + 4), tl.load(p_numbers + 5)
    s2, s3 = tl.load(p_numbers + 6), tl.load(p_numbers + 7)
    p_y = p_row + o_piece.to(tl.int64) * 4
    b_made = tl.load(p_y) * (s0 * g1 * g2 * g3) + tl.load(p_y + 1) * (s1 * g0 * g2 * g3)
    b_made = b_made + tl.load(p_y + 2) * (s2 * g0 * g1 * g3)
    return b_made + tl.load(p_y + 3) * (s3 * g0 * g1 * g2)


@triton.jit
def _put(p_outs, p_sizes, out, element, o_sample, m_mine, b_value, OUTS: tl.constexpr):
    """Stores one number a sample; an int64 out gets the nearest whole one."""
    for k in tl.static_range(OUTS):
        if out == k:
            o_out = o_sample * tl.load(p_sizes + k) + element
            if p_outs[k].dtype.element_ty == tl.int64:
                m_high, m_low = b_value >= _TWO_63, ~(b_value >= -_TWO_63)
                whole = _round(tl.where(m_high | m_low, 0.0, b_value)).to(tl.int64)
                lowest = tl.full([], 1, tl.int64) << 63
                whole = tl.where(m_high, ~lowest, tl.where(m_low, lowest, whole))
                tl.store(p_outs[k] + o_out, whole, mask=m_mine)
            else:
                tl.store(p_outs[k] + o_out, b_value, mask=m_mine)


@triton.jit(
    do_not_specialize=[
        "program",
        "programs",
        "samples",
        "columns",
        "count_step",
        "column",
        "pieces",
        "steps",
        "registers",
    ]
)
def evaluate_kernel(
    p_code,  # [instructions, 5] int32
    p_constants,  # float64
    p_starts,  # [programs + 1] int32
    p_inputs,  # [samples, columns] float64
    p_counts,  # [samples, count_step] int64: programs at `column`; or None: `program` for all
    p_edges,  # [pieces + 1] float64
    p_table,  # [fields, pieces, 4] float64
    p_numbers,  # _NUMBERS
    p_scratch,  # [blocks, registers, BLOCK] float64
    p_outs,  # OUTS pointers [samples, elements], float64 or int64
    p_sizes,  # [OUTS] int64: elements of a sample
    program,
    programs,
    samples,
    columns,
    count_step,
    column,
    pieces,
    steps,  # of a search among the edges
    registers,
    OUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Runs the programs of BLOCK samples, one program after another."""
    o_lane, o_zero = tl.arange(0, BLOCK), tl.zeros([BLOCK], tl.int32)
    o_sample = tl.program_id(0).to(tl.int64) * BLOCK + o_lane
    m_sample = o_sample < samples
    p_own = p_scratch + tl.program_id(0).to(tl.int64) * registers * BLOCK + o_lane
    b_program = tl.zeros([BLOCK], tl.int64) + program
    if p_counts is not None:
        b_program = tl.load(p_counts + o_sample * count_step + column, mask=m_sample, other=-1)
    for number in range(0, programs):
        m_mine = m_sample & (b_program == number)
        first, end = tl.load(p_starts + number), tl.load(p_starts + number + 1)
        end = tl.where(tl.max(m_mine.to(tl.int32), axis=0) > 0, end, first)
        for line in range(first, end):
            p_line = p_code + line * 5
            opcode, target = tl.load(p_line), tl.load(p_line + 1)
            a, b, c = tl.load(p_line + 2), tl.load(p_line + 3), tl.load(p_line + 4)
            # What is no register may be a number beyond them; it is then not read here.
            b_x = tl.load(p_own + a * BLOCK, mask=m_mine & (o_zero + a < registers), other=0.0)
            b_y = tl.load(p_own + b * BLOCK, mask=m_mine & (o_zero + b < registers), other=0.0)
            b_z = tl.load(p_own + c * BLOCK, mask=m_mine & (o_zero + c < registers), other=0.0)
            b_made = b_x
            if opcode == _STORE:
                _put(p_outs, p_sizes, a, b, o_sample, m_mine, b_z, OUTS)
            else:
                if opcode == _CONSTANT:
                    b_made = tl.zeros([BLOCK], tl.float64) + tl.load(p_constants + a)
                elif opcode == _INPUT:
                    b_made = tl.load(p_inputs + o_sample * columns + a, mask=m_mine, other=0.0)
                elif opcode == _PIECE:
                    b_made = _find_piece(p_edges, pieces, steps, b_x, BLOCK)
                elif opcode == _LOOKUP:
                    p_row = p_table + a.to(tl.int64) * pieces * 4
                    b_made = _look_up(p_edges, p_row, p_numbers, pieces, b_y, b_z)
                elif (opcode >= _EXP) & (opcode <= _ASINH):
                    b_made = _function(opcode, b_x, b_y, p_numbers)
                else:
                    b_made = _exact(opcode, b_x, b_y, b_z)
                tl.store(p_own + target * BLOCK, b_made, mask=m_mine)
            tl.debug_barrier()  # the next line may read what this one wrote


@functools.lru_cache(maxsize=16)
def _numbers(device: torch.device) -> torch.Tensor:
    return torch.tensor(_NUMBERS, dtype=torch.float64, device=device)


@functools.lru_cache(maxsize=64)
def _sizes(sizes: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(sizes, dtype=torch.int64, device=device)


def evaluate(
    code, constants, starts, program, inputs, counts, column, edges, pieces, registers, outs
):
    """Runs each sample's program, which writes elements of `outs`."""
    check_evaluate(
        code, constants, starts, program, inputs, counts, column, edges, pieces, registers, outs
    )
    samples = inputs.shape[0]
    if samples == 0 or not outs:
        return
    blocks = triton.cdiv(samples, _SAMPLES)
    with torch.cuda.device_of(inputs):
        scratch = inputs.new_empty(blocks, registers, _SAMPLES)
        evaluate_kernel[(blocks,)](
            code,
            constants,
            starts,
            inputs,
            counts,
            edges,
            pieces,
            _numbers(inputs.device),
            scratch,
            tuple(outs),
            _sizes(tuple(out.numel() // samples for out in outs), inputs.device),
            program,
            starts.shape[0] - 1,
            samples,
            inputs.shape[1],
            1 if counts is None else counts.shape[1],
            column,
            pieces.shape[1],
            edges.shape[0].bit_length(),
            registers,
            OUTS=len(outs),
            BLOCK=_SAMPLES,
            num_warps=1,
            enable_fp_fusion=False,
        )


IMPLEMENTATIONS = {"evaluate": evaluate}
