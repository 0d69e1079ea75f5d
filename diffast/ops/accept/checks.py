"""What `accept` refuses."""

import torch

from diffast.ops.checks import (
    Beside,
    check,
    check_count,
    check_dtype,
    dtype_text,
    same_tensor,
    shape_text,
)
from diffast.ops.memory import checks_memory
from diffast.ops.schema import CONTROLS, COUNTS, FLAGS, MAX_MEMORY, MAX_MOVES, MAX_PLANES, RULE


@checks_memory("accept")
def check_accept(
    norms,
    status,
    rule,
    flags,
    moves,
    memory,
    sources,
    control,
    counts,
    streams,
    targets,
    pointers=True,
) -> None:
    """Refuses a bad call of `accept` (`pointers`: real memory, of which parts may overlap)."""
    check(
        norms.dim() == 2, f"accept: norms have shape {shape_text(norms)} but [samples, 2] is needed"
    )
    _check_rule(rule, flags)
    _check_lists(moves, memory)
    samples, slots = norms.shape[0], max(len(memory) - 1, 0)
    beside = Beside("accept", "norms", norms)
    for name, t, dtype, shape in (
        ("norms", norms, torch.float64, [samples, 2]),
        ("control", control, torch.float64, [samples, len(CONTROLS) + slots]),
        ("counts", counts, torch.int64, [samples, len(COUNTS)]),
        ("streams", streams, torch.int64, [samples, 3]),
        ("status", status, torch.int64, [samples]),
    ):
        beside.numbers(name, t, dtype, shape)
    for name, planes in (("sources", sources), ("targets", targets)):
        check_count("accept", len(planes), name, MAX_PLANES)
        for k, plane in enumerate(planes):
            _check_plane(f"{name}[{k}]", plane, [*sources, *targets][0], beside)
    for i in range(0, len(moves), 3):
        check(
            0 <= moves[i] <= flags[FLAGS.index("last")],
            f"accept: a move at stage {moves[i]} but stages are 0 to {flags[0]}",
        )
        _check_pair(moves[i + 1], moves[i + 2], sources, targets)
    for target in memory[1:]:
        _check_pair(memory[0], target, sources, targets)
    if pointers and targets and targets[0].numel() > 0:
        _check_order(moves, sources, targets)


def _check_rule(rule, flags) -> None:
    check(
        len(rule) == len(RULE), f"accept: rule has {len(rule)} numbers but {len(RULE)} are needed"
    )
    check(
        len(flags) == len(FLAGS),
        f"accept: flags has {len(flags)} numbers but {len(FLAGS)} are needed",
    )
    check(
        all(number == number for number in rule),
        "accept: a number of the rule is NaN but rules are numbers",
    )
    floor = rule[RULE.index("noise_floor")]
    check(floor > 0, f"accept: noise_floor is {floor:g} but errors are divided by it")
    last, restart = flags[FLAGS.index("last")], flags[FLAGS.index("restart")]
    check(1 <= last < 1 << 31, f"accept: the last stage is {last} but 1 to 2147483647 is needed")
    check(0 <= restart <= last, f"accept: restart is stage {restart} but stages are 0 to {last}")


def _check_lists(moves, memory) -> None:
    check(
        len(moves) % 3 == 0,
        f"accept: moves has {len(moves)} numbers but (stage, source, target) are three each",
    )
    check_count("accept", len(moves) // 3, "moves", MAX_MOVES)
    check(
        len(memory) != 1 and len(memory) <= MAX_MEMORY + 1,
        f"accept: memory names {len(memory) - 1} targets but 1 to {MAX_MEMORY} are supported",
    )


def _check_plane(name, plane, first, beside) -> None:
    check_dtype("accept", name, plane)
    samples = beside.first.shape[0]
    check(
        plane.dim() > 0 and plane.shape[0] == samples and plane.shape == first.shape,
        f"accept: {name} has shape {shape_text(plane)} but the first plane has shape "
        f"{shape_text(first)} and there are {samples} samples",
    )
    beside.place(name, plane)


def _check_pair(source, target, sources, targets) -> None:
    check(
        0 <= source < len(sources) and 0 <= target < len(targets),
        f"accept: a move from source {source} to target {target} but there are {len(sources)} "
        f"sources and {len(targets)} targets",
    )
    check(
        sources[source].dtype == targets[target].dtype,
        f"accept: source {source} is {dtype_text(sources[source])} but target {target} is "
        f"{dtype_text(targets[target])}",
    )


def _check_order(moves, sources, targets) -> None:
    for i in range(3, len(moves), 3):
        stage, source = moves[i], moves[i + 1]
        for k in range(0, i, 3):
            written = targets[moves[k + 2]]
            # A move of a tensor onto itself writes nothing.
            check(
                moves[k] != stage
                or not same_tensor(written, sources[source])
                or same_tensor(written, sources[moves[k + 1]]),
                f"accept: at stage {stage} source {source} is read after it was written as target "
                f"{moves[k + 2]}",
            )


CHECKS = {"accept": check_accept}
