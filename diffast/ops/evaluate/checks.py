"""What `evaluate` refuses."""

import torch

from diffast.ops.checks import Beside, check, check_count, dtype_text, shape_text
from diffast.ops.memory import checks_memory
from diffast.ops.schema import INSTRUCTIONS, MAX_EVALUATE_OUTS, MAX_REGISTERS, OPERANDS


@checks_memory("evaluate")
def check_evaluate(
    code,
    constants,
    starts,
    program,
    inputs,
    counts,
    column,
    edges,
    pieces,
    registers,
    outs,
    pointers=True,
) -> None:
    """Refuses a bad call of `evaluate` (`pointers`: real memory, of which parts may overlap).

    The instructions of programs on the CPU are checked, too. Those on a device are not read: they
    have to be the encoder's.
    """
    _check_tables(code, constants, starts, inputs, edges, pieces)
    check(
        1 <= registers <= MAX_REGISTERS,
        f"evaluate: {registers} registers but 1 to {MAX_REGISTERS} are supported",
    )
    programs = starts.shape[0] - 1
    if counts is None:
        check(
            0 <= program < programs,
            f"evaluate: program {program} but there are {programs} programs",
        )
    else:
        check(
            counts.dim() == 2 and 0 <= column < counts.shape[1],
            f"evaluate: column {column} of counts of shape {shape_text(counts)} but [samples, "
            "columns] with that column is needed",
        )
        shape = [inputs.shape[0], counts.shape[1]]
        Beside("evaluate", "inputs", inputs).numbers("counts", counts, torch.int64, shape)
    _check_outs(inputs, outs)
    if not pointers:
        return
    if inputs.device.type == "cpu":
        check_programs(
            code, constants, starts, program, inputs, counts, column, pieces, registers, outs
        )


def _check_tables(code, constants, starts, inputs, edges, pieces) -> None:
    check(
        inputs.dim() == 2,
        f"evaluate: inputs have shape {shape_text(inputs)} but [samples, columns] is needed",
    )
    beside = Beside("evaluate", "inputs", inputs)
    length = code.shape[0] if code.dim() else 0
    known = constants.shape[0] if constants.dim() else 0
    for name, t, dtype, shape in (
        ("inputs", inputs, torch.float64, inputs.shape),
        ("code", code, torch.int32, [length, 5]),
        ("constants", constants, torch.float64, [known]),
    ):
        beside.numbers(name, t, dtype, shape)
    for name, t, dtype in (("starts", starts, torch.int32), ("edges", edges, torch.float64)):
        check(
            t.dim() == 1,
            f"evaluate: {name} has shape {shape_text(t)} but one dimension is needed",
        )
        beside.numbers(name, t, dtype, t.shape)
    check(
        starts.shape[0] >= 2,
        f"evaluate: starts has {starts.shape[0]} numbers but 2 at least are needed, one more than "
        "there are programs",
    )
    fields = pieces.shape[0] if pieces.dim() else 0
    count = max(edges.shape[0] - 1, 0)
    beside.numbers("pieces", pieces, torch.float64, [fields, count, 4])


def _check_outs(inputs, outs) -> None:
    check_count("evaluate", len(outs), "outs", MAX_EVALUATE_OUTS)
    for k, out in enumerate(outs):
        check(
            out.dtype in (torch.float64, torch.int64),
            f"evaluate: outs[{k}] has dtype {dtype_text(out)} but float64 or int64 is needed",
        )
        check(
            out.dim() > 0 and out.shape[0] == inputs.shape[0],
            f"evaluate: outs[{k}] has shape {shape_text(out)} but there are {inputs.shape[0]} "
            "samples",
        )
        Beside("evaluate", "inputs", inputs, "writes").place(f"outs[{k}]", out)


def check_programs(
    code, constants, starts, program, inputs, counts, column, pieces, registers, outs
) -> None:
    """Refuses numbers of programs that there are not, and bad instructions of those that run.

    The tensors are read, so on a device the call waits for them.
    """
    bounds = starts.tolist()
    programs = len(bounds) - 1
    which = [program] if counts is None else counts[:, column].tolist()
    for sample, number in enumerate(which):
        check(
            0 <= number < programs,
            f"evaluate: counts[{sample}, {column}] is program {number} but there are {programs} "
            "programs",
        )
    samples = inputs.shape[0]
    sizes = {
        "constant": (constants.shape[0], "constants"),
        "column": (inputs.shape[1], "columns of inputs"),
        "row": (pieces.shape[0] if pieces.shape[1] else 0, "rows of pieces"),
        "out": (len(outs), "outs"),
    }
    elements = [out[0].numel() if samples else None for out in outs]
    for number in sorted(set(which)):
        first, end = bounds[number], bounds[number + 1]
        check(
            0 <= first <= end <= code.shape[0],
            f"evaluate: program {number} is instructions {first} to {end} but there are "
            f"{code.shape[0]}",
        )
        written = set()
        for at, instruction in enumerate(code[first:end].tolist(), first):
            _check_instruction(at, instruction, sizes, pieces, elements, registers, written)


def _check_instruction(at, instruction, sizes, pieces, elements, registers, written) -> None:
    opcode, target, *values = instruction
    check(
        0 <= opcode < len(INSTRUCTIONS),
        f"evaluate: instruction {at} has opcode {opcode} but opcodes are 0 to "
        f"{len(INSTRUCTIONS) - 1}",
    )
    name = INSTRUCTIONS[opcode]
    check(
        name != "piece" or pieces.shape[1] > 0,
        f"evaluate: instruction {at} (piece) needs a piece but there are 0 pieces",
    )
    for kind, value in zip(OPERANDS[name], values, strict=False):
        if kind == "register":
            check(
                value in written,
                f"evaluate: instruction {at} ({name}) reads register {value} but nothing was "
                "written there",
            )
            continue
        if kind == "element":
            size, what = elements[values[0]], f"elements a sample in outs[{values[0]}]"
        else:
            size, what = sizes[kind]
        check(
            value >= 0 and (size is None or value < size),
            f"evaluate: instruction {at} ({name}) has {kind} {value} but there are {size} {what}",
        )
    if name == "store":
        return
    check(
        0 <= target < registers,
        f"evaluate: instruction {at} ({name}) writes register {target} but there are {registers}",
    )
    written.add(target)


CHECKS = {"evaluate": check_evaluate}
