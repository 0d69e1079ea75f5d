"""The specification of `combine_error`: the rows of `combine`, and the scaled norm of one."""

import math

import torch

from diffast.ops.combine import reference
from diffast.ops.combine_error.checks import check_error, check_error_out, unstored


def combine_error(xs, weights, noise, streams, clamp, tolerance, form, norm, measure):
    """Returns the output rows, each of the inputs' promoted dtype, and then the norms [B, 2]."""
    call = (xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    outputs = check_error(*call)
    values, _, norms = _run(*call, reference.arithmetic_dtype(xs), outputs)
    return [*(reference.round_to(v, reference.promoted(xs)) for v in values), norms]


def combine_error_out(
    xs, weights, noise, streams, clamp, tolerance, form, norm, measure, outs, norms, status
):
    """Writes the output rows into `outs` and the norms into `norms` [B, 2]."""
    call = (xs, weights, noise, streams, clamp, tolerance, form, norm, measure)
    outputs = check_error_out(*call, outs, norms, status)
    values, sums, found = _run(*call, reference.arithmetic_dtype([*xs, *outs]), outputs)
    norms.copy_(found)
    if status is not None:
        reference.note(status, sums, streams[:, 2])
    reference.store(values, outs)


def _run(xs, weights, noise, streams, clamp, tolerance, form, norm, measure, arithmetic, outputs):
    """Returns the output rows, the sums of all rows before any clamp, the norms [B, 2]."""
    count = weights.shape[1]
    rows, sums = reference.table_rows(xs, weights, noise, streams, clamp, count, arithmetic)
    first = unstored(form, measure, clamp)[0]
    error = rows[first + outputs]
    pair = rows[first + outputs + 1 : first + outputs + 3] if form else []
    norms = torch.zeros_like(tolerance)
    norms[:, 0] = _norm(_scaled(error, pair, tolerance, form), norm)
    if measure:
        norms[:, 1] = _norm(rows[-1], 0)
    return rows[first : first + outputs], sums, norms


def _scaled(error, pair, tolerance, form):
    """Returns e / delta, 0 where e is 0."""

    def spread(k):  # [B, 1, 1, ...]
        return tolerance[:, k].to(error.dtype).reshape(-1, *[1] * (error.dim() - 1))

    delta = spread(0)
    if form:
        largest = torch.maximum(pair[0].abs(), pair[1].abs())
        scaled = largest * spread(1)
        delta = torch.maximum(delta, scaled) if form == 1 else delta + scaled
    return torch.where(error == 0.0, error, error / delta)


def _norm(values, norm):
    samples, elements = values.shape[0], math.prod(values.shape[1:])
    flat = values.reshape(samples, elements).to(torch.float64)
    if samples * elements == 0:
        return flat.new_zeros(samples)
    if norm == 1:
        return flat.abs().amax(dim=1)  # NaN stays NaN
    return (flat * flat).mean(dim=1).sqrt()


IMPLEMENTATIONS = {"combine_error": combine_error, "combine_error.out": combine_error_out}
