"""What `combine_error` refuses beyond a bad table of weights."""

import torch

from diffast.ops.checks import Beside, check
from diffast.ops.combine.checks import check_outputs, check_status_streams, check_table
from diffast.ops.memory import checks_memory
from diffast.ops.schema import ERROR_FORMS, ERROR_NORMS


def unstored(form: int, measure: bool, clamp) -> tuple[int, int]:
    """Returns how many rows of the table are not stored: before the outputs, and after them."""
    return int(bool(clamp)), 1 + (2 if form else 0) + bool(measure)


def check_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure) -> int:
    """Refuses a bad call of `combine_error`; returns the number of its outputs."""
    check(
        0 <= form < len(ERROR_FORMS),
        f"combine_error: form {form} but 0 (scalar), 1 (max) and 2 (sum) are known",
    )
    check(
        0 <= norm < len(ERROR_NORMS),
        f"combine_error: norm {norm} but 0 (l2) and 1 (linf) are known",
    )
    rows = check_table(xs, weights, noise, streams, clamp)
    outputs = rows - sum(unstored(form, measure, clamp))
    check(
        outputs >= 0,
        f"combine_error: {rows} rows but form {ERROR_FORMS[form]}"
        f"{', a measured row' if measure else ''}{', a clamped row' if clamp else ''} need "
        f"{rows - outputs}",
    )
    _check_pairs("tolerance", tolerance, xs[0])
    return outputs


@checks_memory("combine_error.out")
def check_error_out(
    xs,
    weights,
    noise,
    streams,
    clamp,
    tolerance,
    form,
    norm,
    measure,
    outs,
    norms,
    status,
    pointers=True,
) -> int:
    """Refuses a bad call of `combine_error.out`; returns the number of its outputs."""
    outputs = check_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    check(len(outs) == outputs, f"combine_error: {outputs} rows to store but {len(outs)} outs")
    check_outputs(xs, outs, outputs, False, status)
    _check_pairs("norms", norms, xs[0])
    check_status_streams(status, streams)
    return outputs


def _check_pairs(name: str, t: torch.Tensor, first: torch.Tensor) -> None:
    beside = Beside("combine_error", "xs[0]", first)
    beside.numbers(name, t, torch.float64, [first.shape[0], 2])


CHECKS = {"combine_error": check_error, "combine_error.out": check_error_out}
