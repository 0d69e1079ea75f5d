"""What `accept` refuses, in the words of csrc/accept_tensors.h."""

import torch

from diffast.ops.checks import STATE_DTYPES, check, device_text, dtype_text, shape_text
from diffast.ops.schema import (
    CONTROLS,
    COUNTS,
    FLAGS,
    MAX_MEMORY,
    MAX_MOVES,
    MAX_PLANES,
    RULE,
)


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
        norms.dim() == 2,
        f"accept: norms have shape {shape_text(norms)} but [samples, 2] is needed",
    )
    _check_rule(rule, flags)
    _check_lists(moves, memory)
    samples, slots = norms.shape[0], max(len(memory) - 1, 0)
    for name, t, dtype, shape in (
        ("norms", norms, torch.float64, [samples, 2]),
        ("control", control, torch.float64, [samples, len(CONTROLS) + slots]),
        ("counts", counts, torch.int64, [samples, len(COUNTS)]),
        ("streams", streams, torch.int64, [samples, 3]),
        ("status", status, torch.int64, [samples]),
    ):
        _check_numbers(name, t, dtype, shape, norms)
    for name, planes in (("sources", sources), ("targets", targets)):
        check(
            len(planes) <= MAX_PLANES,
            f"accept: {len(planes)} {name} but at most {MAX_PLANES} are supported",
        )
        first = [*sources, *targets][:1]
        for k, plane in enumerate(planes):
            _check_plane(f"{name}[{k}]", plane, first[0], norms)
    for i in range(0, len(moves), 3):
        check(
            0 <= moves[i] <= flags[FLAGS.index("last")],
            f"accept: a move at stage {moves[i]} but stages are 0 to {flags[0]}",
        )
        _check_pair(moves[i + 1], moves[i + 2], sources, targets)
    for target in memory[1:]:
        _check_pair(memory[0], target, sources, targets)
    if pointers and targets and targets[0].numel() > 0:
        _check_overlap(sources, targets)
        _check_order(moves, sources, targets)


def _check_rule(rule, flags) -> None:
    check(
        len(rule) == len(RULE),
        f"accept: rule has {len(rule)} numbers but {len(RULE)} are needed",
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
    check(
        1 <= last < 1 << 31,
        f"accept: the last stage is {last} but 1 to 2147483647 is needed",
    )
    check(
        0 <= restart <= last,
        f"accept: restart is stage {restart} but stages are 0 to {last}",
    )


def _check_lists(moves, memory) -> None:
    check(
        len(moves) % 3 == 0,
        f"accept: moves has {len(moves)} numbers but (stage, source, target) are three each",
    )
    check(
        len(moves) <= 3 * MAX_MOVES,
        f"accept: {len(moves) // 3} moves but at most {MAX_MOVES} are supported",
    )
    check(
        len(memory) != 1 and len(memory) <= MAX_MEMORY + 1,
        f"accept: memory names {len(memory) - 1} targets but 1 to {MAX_MEMORY} are supported",
    )


def _check_numbers(name, t, dtype, shape, norms) -> None:
    check(
        t.dtype == dtype and list(t.shape) == shape,
        f"accept: {name} is {dtype_text(t)} {shape_text(t)} but "
        f"{str(dtype).removeprefix('torch.')} {shape} is needed",
    )
    _check_place(name, t, norms)


def _check_place(name, t, norms) -> None:
    check(
        t.device == norms.device,
        f"accept: {name} is on {device_text(t)} but norms is on {device_text(norms)}",
    )
    check(
        t.is_contiguous(),
        f"accept: {name} of shape {shape_text(t)} is not contiguous but the kernel reads it in "
        "row-major order",
    )


def _check_plane(name, plane, first, norms) -> None:
    check(
        plane.dtype in STATE_DTYPES,
        f"accept: {name} has dtype {dtype_text(plane)} but only float32, float16, bfloat16 and "
        "float64 are supported",
    )
    check(
        plane.dim() > 0 and plane.shape[0] == norms.shape[0] and plane.shape == first.shape,
        f"accept: {name} has shape {shape_text(plane)} but the first plane has shape "
        f"{shape_text(first)} and there are {norms.shape[0]} samples",
    )
    _check_place(name, plane, norms)


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


def _same(a, b) -> bool:
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype


def _span(t) -> tuple[int, int]:
    return t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()


def _check_overlap(sources, targets) -> None:
    source_spans = [_span(t) for t in sources]
    target_spans = [_span(t) for t in targets]
    for t, (begin, end) in enumerate(target_spans):
        for k, (start, stop) in enumerate(source_spans):
            check(
                _same(sources[k], targets[t]) or stop <= begin or end <= start,
                f"accept: target {t} overlaps source {k} without being the same tensor",
            )
        for k, (start, stop) in enumerate(target_spans[:t]):
            check(stop <= begin or end <= start, f"accept: target {t} overlaps target {k}")


def _check_order(moves, sources, targets) -> None:
    for i in range(3, len(moves), 3):
        stage, source = moves[i], moves[i + 1]
        for k in range(0, i, 3):
            written = targets[moves[k + 2]]
            # A move of a tensor onto itself writes nothing.
            check(
                moves[k] != stage
                or not _same(written, sources[source])
                or _same(written, sources[moves[k + 1]]),
                f"accept: at stage {stage} source {source} is read after it was written as target "
                f"{moves[k + 2]}",
            )
