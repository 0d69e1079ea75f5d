"""What `accept` refuses, in the words of csrc/accept_tensors.h."""

import torch

from diffast.ops.checks import check, check_per_sample, dtype_text, shape_text
from diffast.ops.schema import CONTROLS, COUNTS, FLAGS, MAX_MEMORY, MAX_PLANES, RULE


def check_accept(
    norms, status, rule, flags, moves, memory, sources, control, counts, streams, targets
) -> None:
    """Refuses a bad call of `accept`."""
    check(
        norms.dim() == 2,
        f"accept: norms have shape {shape_text(norms)} but [samples, 2] is needed",
    )
    samples = norms.shape[0]
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
    check(
        len(moves) % 3 == 0,
        f"accept: moves has {len(moves)} numbers but (stage, source, target) are three each",
    )
    check(
        len(memory) <= MAX_MEMORY + 1,
        f"accept: memory names {len(memory) - 1} targets but at most {MAX_MEMORY} are supported",
    )
    slots = max(len(memory) - 1, 0)
    for name, t, dtype, width in (
        ("norms", norms, torch.float64, 2),
        ("control", control, torch.float64, len(CONTROLS) + slots),
        ("counts", counts, torch.int64, len(COUNTS)),
        ("streams", streams, torch.int64, 3),
    ):
        check_per_sample("accept", name, t, dtype, [samples, width], norms)
    check_per_sample("accept", "status", status, torch.int64, [samples], norms)
    for name, planes in (("sources", sources), ("targets", targets)):
        check(
            len(planes) <= MAX_PLANES,
            f"accept: {len(planes)} {name} but at most {MAX_PLANES} are supported",
        )
        for k, plane in enumerate(planes):
            _check_plane(f"{name}[{k}]", plane, sources[0] if sources else plane, samples, norms)
    pairs = [(source, target) for _, source, target in zip(*[iter(moves)] * 3, strict=True)]
    pairs += [(memory[0], target) for target in memory[1:]]
    for source, target in pairs:
        check(
            0 <= source < len(sources) and 0 <= target < len(targets),
            f"accept: a move from source {source} to target {target} but there are "
            f"{len(sources)} sources and {len(targets)} targets",
        )
        check(
            sources[source].dtype == targets[target].dtype,
            f"accept: source {source} is {dtype_text(sources[source])} but target {target} is "
            f"{dtype_text(targets[target])}",
        )


def _check_plane(name, plane, first, samples, norms) -> None:
    check(
        plane.dim() > 0 and plane.shape[0] == samples and plane.shape == first.shape,
        f"accept: {name} has shape {shape_text(plane)} but sources[0] has shape "
        f"{shape_text(first)} and there are {samples} samples",
    )
    check(
        plane.device == norms.device,
        f"accept: {name} is on {plane.device} but norms are on {norms.device}",
    )
    check(
        plane.is_contiguous(),
        f"accept: {name} of shape {shape_text(plane)} is not contiguous but the kernel reads it "
        "in row-major order",
    )
