"""The ops' schemas: the one place where their arguments are named.

Every step of a plan is one call of `combine.out`. What a plain step needs comes first there, and
the other arguments have defaults: an argument that is left out costs nothing, and one that is given
costs 0.2 to 0.4 us in the dispatcher. The other ops have no defaults, for two reasons. With
defaults, torch's autograd registration miscounts the gradients of a returning form. With outputs
before another tensor, its inductor (2.13) calls `combine.table_out` with shifted arguments.

`xs` are K tensors of one shape [B, ...]; row r of the result is

    y_r = sum_k weights[r, k] * xs[k] (+ weights[r, K] * y_0 with a clamp) + sum_m noise[r, m] * z_m

products and sums rounded one by one in float32 (float64 if any tensor is float64), columns in that
order, and one rounding to the output's type. With `clamp = [low, high]` row 0 is clamped first and
is one more column of the later rows. z_m are the normals of `normal`, slot m of the given stage.
`outs` may leave the clamped row 0 out; `status` [B] keeps, for each sample, the first stage at
which a sum was not finite (fill it with -1 beforehand).

`combine_error` has a table of weights whose rows are, in order: the clamped row (with a clamp), the
outputs, the error row e, the rows `before` and `after` (absent for the form "scalar"), the measured
row (with `measure`). Only the outputs are stored. `norms` [B, 2] are the error norm

    q = e / delta, 0 where e = 0; the root of the mean of q^2 ("l2"), or max |q| ("linf")
    delta = atol ("scalar"), max(atol, rtol m) ("max"), atol + rtol m ("sum"),
    m = max(|before|, |after|), with tolerance[b] = (atol, rtol)

and the root of the mean of the measured row's squares (0 without one). delta and q are rounded like
the rows, sums are in float64, in an order that depends on the number of elements alone.

`accept`, `brownian`, `evaluate`, `gram`, `quantile` and `sweep` are specified in reference.py of
their folders.
"""

import torch

MAX_INPUTS = 16
MAX_ROWS = 8
MAX_NOISES = 2

# The meanings of `form` and `norm` of `combine_error`, by index.
ERROR_FORMS = ("scalar", "max", "sum")
ERROR_NORMS = ("l2", "linf")

# The numbers that `accept` is given, by position: its rule (numbers), its flags (whole numbers),
# and for each sample control (float64; slots of remembered points follow) and counts (int64).
RULE = (
    "threshold",
    "safety",
    "error_power",
    "before_power",
    "before2_power",
    "least",
    "most",
    "reject_safety",
    "reject_power",
    "reject_least",
    "reject_most",
    "error_floor",
    "noise_floor",
    "step_min",
    "step_max",
    "error_eps",
)
FLAGS = ("last", "restart", "final", "always", "balance", "calm", "by_factor", "most_calls")
CONTROLS = ("at", "to", "end", "error", "before", "before2")
COUNTS = ("status", "stage", "calls", "accepted", "rejected", "after_reject", "forgotten")
MAX_PLANES = 16
MAX_DEPTH = 24
PATH_RANGE = 8.0  # the tree of `brownian` spans the log-SNRs from minus this to this
MAX_MEMORY = 8
MAX_MOVES = 48
MAX_ENTRIES = 7  # remembered by a walk of `sweep`
MAX_OUTPUTS = 2  # of the network: with guidance there are two
MAX_GRAM_INPUTS = 8
MAX_GRAM_ROWS = 4
MAX_QUANTILE_INPUTS = 8
MAX_QUANTILE_ELEMENTS = (1 << 31) - 1  # of one sample: they are counted with 32 bits

MAX_REGISTERS = 256  # numbers that a program of `evaluate` holds for a sample
MAX_EVALUATE_OUTS = 16

# The instructions of `evaluate`, by opcode, and the kinds of their operands a, b, c. A register is
# a number that the sample holds; a constant, column, row, out and element are places in the op's
# `constants`, `inputs`, `pieces`, `outs` and in a sample's part of an out.
_UNARY, _BINARY = ("register",), ("register", "register")
OPERANDS = {
    "constant": ("constant",),
    "input": ("column",),
    "add": _BINARY,
    "sub": _BINARY,
    "mul": _BINARY,
    "div": _BINARY,
    "neg": _UNARY,
    "abs": _UNARY,
    "sqrt": _UNARY,
    "exp": _UNARY,
    "expm1": _UNARY,
    "log": _UNARY,
    "log1p": _UNARY,
    "sin": _UNARY,
    "cos": _UNARY,
    "tan": _UNARY,
    "atan": _UNARY,
    "atan2": _BINARY,
    "sinh": _UNARY,
    "asinh": _UNARY,
    "floor": _UNARY,
    "round": _UNARY,
    "minimum": _BINARY,
    "maximum": _BINARY,
    "lt": _BINARY,
    "le": _BINARY,
    "gt": _BINARY,
    "ge": _BINARY,
    "eq": _BINARY,
    "and": _BINARY,
    "or": _BINARY,
    "not": _UNARY,
    "where": ("register", "register", "register"),
    "piece": _UNARY,
    "lookup": ("row", "register", "register"),
    "store": ("out", "element", "register"),
}
INSTRUCTIONS = tuple(OPERANDS)

# The cubics of `lookup`: where in a piece their knots are (0.5 - 0.5 cos(pi (i + 0.5) / 4)), and
# 1 / prod_{j != i} (knot_i - knot_j). They are written out because math libraries may differ in the
# last bit of the cosine.
KNOTS = (0.03806023374435663, 0.3086582838174551, 0.6913417161825448, 0.9619397662556434)
KNOT_SCALES = (-6.122934917841438, 14.782072520180593, -14.782072520180588, 6.122934917841435)

# The numbers of a job of `sweep`, by position: whose id the noise has, the row of x that it begins
# at (-1: a state), the states that it begins at and ends in (-1: none), its first stage, how many
# stages with outputs, how many without, and whether points are written.
JOB = ("sample", "from", "state_in", "state_out", "first", "real", "tail", "write")

# counts.status: whether a sample is running, and otherwise why it is not.
RUNNING, FINISHED, FAILED_FINITE, FAILED_STEP, FAILED_CALLS = range(5)

SCHEMAS = {
    "combine": "(Tensor[] xs, float[] weights, float[] noise, int seed, int stage, Tensor? ids, "
    "float[] clamp) -> Tensor[]",
    "combine.out": "(Tensor[] xs, float[] weights, Tensor(a!)[] outs, Tensor(b!)? status=None, "
    "int stage=0, float[] noise=[], int seed=0, Tensor? ids=None, float[] clamp=[]) -> ()",
    "combine.table": "(Tensor[] xs, Tensor weights, Tensor? noise, Tensor? streams, "
    "float[] clamp) -> Tensor[]",
    "combine.table_out": "(Tensor[] xs, Tensor weights, Tensor? noise, Tensor? streams, "
    "float[] clamp, Tensor(a!)[] outs, Tensor(b!)? status) -> ()",
    "combine_error": "(Tensor[] xs, Tensor weights, Tensor? noise, Tensor? streams, "
    "float[] clamp, Tensor tolerance, int form, int norm, bool measure) -> Tensor[]",
    "combine_error.out": "(Tensor[] xs, Tensor weights, Tensor? noise, Tensor? streams, "
    "float[] clamp, Tensor tolerance, int form, int norm, bool measure, Tensor(a!)[] outs, "
    "Tensor(b!) norms, Tensor(c!)? status) -> ()",
    "accept": "(Tensor norms, Tensor status, float[] rule, int[] flags, int[] moves, "
    "int[] memory, Tensor[] sources, Tensor(a!) control, Tensor(b!) counts, Tensor(c!) streams, "
    "Tensor(d!)[] targets) -> ()",
    "brownian": "(Tensor streams, Tensor nodes, Tensor weights, int depth, Tensor? last, "
    "int[] shape, ScalarType dtype) -> Tensor[]",
    "brownian.out": "(Tensor streams, Tensor nodes, Tensor weights, int depth, Tensor? last, "
    "Tensor(a!) increment, Tensor(b!)? value=None) -> ()",
    "evaluate": "(Tensor code, Tensor constants, Tensor starts, int program, Tensor inputs, "
    "Tensor? counts, int column, Tensor edges, Tensor pieces, int registers, "
    "Tensor(a!)[] outs) -> ()",
    "gram": "(Tensor[] xs, Tensor weights, Tensor(a!) sums) -> ()",
    "quantile": "(Tensor[] xs, Tensor weights, float p, Tensor(a!) out) -> ()",
    "sweep": "(Tensor x, Tensor[] outputs, Tensor? slopes, Tensor weights, Tensor changes, "
    "Tensor tails, Tensor line, Tensor jobs, Tensor walk, Tensor ids, int seed, int noises, "
    "bool parts, float[] clamp, Tensor(a!) points, Tensor(b!) states, "
    "Tensor(c!)? norms) -> ()",
    "normal": "(Tensor ids, int[] shape, int seed, int stage, float scale, ScalarType dtype) "
    "-> Tensor",
    "normal.out": "(Tensor ids, int seed, int stage, float scale, Tensor(a!) out) -> ()",
}


def overload_of(name: str) -> torch._ops.OpOverload:
    """Returns the op that SCHEMAS calls so: `combine` or `combine.out`."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.diffast, packet), overload or "default")


library = torch.library.Library("diffast", "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)
