"""`sweep` and `gram` against a copy of their bytes, and `sweep` against a round in eager torch.

The floor of a sweep over a window is three tensors of the window's size: the points and outputs
that are read, the points that are written; `over copy` is the time over that of torch.copy_ moving
as many bytes in the same turns. The floor of `gram` with four inputs is reading them, which is
measured as a sum over as many bytes.
"""

import pytest
import torch
from bench_combine import bytes_of, copying

from diffast import ops

WINDOW, BATCH, ELEMENTS = 100, 8, 3072
CASES = ("ODE", "ODE, in place", "ODE, no slopes", "SDE", "2 parts")


def window_of(rows=WINDOW * BATCH):
    return torch.randn(rows, ELEMENTS)


def sweep_call(case):
    """Returns the arguments of one sweep over the window: every sample is a job."""
    x, output = window_of(), window_of()
    noises, parts = int(case == "SDE"), case == "2 parts"
    made, columns = 2 + parts, 2 + parts + noises
    weights = torch.full((WINDOW, made, columns), 0.9 / columns, dtype=torch.float64)
    changes = torch.full((WINDOW, made), 0.1, dtype=torch.float64)
    tails = torch.zeros(WINDOW, made - 1, 2 + parts + noises, dtype=torch.float64)
    line = torch.ones(WINDOW, 4, dtype=torch.float64)
    slopes = torch.rand(len(x), dtype=torch.float64)
    jobs = torch.tensor([[b, b, -1, b, 0, WINDOW, 0, 1] for b in range(BATCH)], dtype=torch.int32)
    # Rows are [step, sample], as a batched network call wants a part of the window.
    walk = torch.arange(WINDOW * BATCH, dtype=torch.int32).reshape(WINDOW, BATCH).T.contiguous()
    ids = torch.arange(BATCH)
    points = x if "in place" in case else torch.randn_like(x)
    states = torch.randn(BATCH, 4, ELEMENTS)
    norms = torch.empty(BATCH, WINDOW + 1, dtype=torch.float64)
    slopes = None if "no slopes" in case else slopes
    tables = (slopes, weights, changes, tails, line, jobs, walk, ids)
    return (x, [output], *tables, 0, noises, parts, [], points, states, norms)


def eager_round(x, output, noise):
    """Returns one round of ParaDiGMS after its network call, by its equations in plain torch.

    X_new[m + 1] = X[0] + sum_{l <= m} (step(X[l]) - X[l]) + sum_{l <= m} noise[l], and
    err[m + 1] = |X_new[m + 1] - X[m + 1]|^2 / (D var[m + 1]), as a DDIM step with eps gives it.
    """
    x, eps = x.reshape(WINDOW, BATCH, ELEMENTS), output.reshape(WINDOW, BATCH, ELEMENTS)
    buffer = torch.randn(WINDOW + 1, BATCH, ELEMENTS)
    buffer[:WINDOW] = x
    signal = torch.linspace(0.1, 0.99, WINDOW + 1).reshape(-1, 1, 1)  # alphas squared
    variance = torch.linspace(0.1, 1.0, WINDOW)

    def step(points):
        now, following = signal[:-1], signal[1:]
        x0 = (points - (1 - now).sqrt() * eps) / now.sqrt()
        return following.sqrt() * x0 + (1 - following).sqrt() * eps

    def call():
        points = buffer[:WINDOW]
        delta = step(points) - points
        moved = torch.cumsum(delta, dim=0)
        fresh = points[0] + moved
        fresh = fresh + torch.cumsum(noise, dim=0)
        error = (fresh - buffer[1:]).reshape(WINDOW, BATCH, ELEMENTS)
        error = torch.linalg.norm(error, dim=-1).pow(2) / ELEMENTS / variance[:, None]
        stride = int((error > 1e-2).any(dim=1).int().argmax())
        buffer[1:] = fresh
        return stride

    return call


@pytest.mark.parametrize("case", CASES)
def test_sweep(benchmark, measure, report, threads, case):
    """Targets: at most 1.3 times a copy of its bytes, 20 times as fast as eager torch."""
    call = sweep_call(case)
    total = 3 * bytes_of(call[0])
    functions = {"sweep": lambda: ops.sweep(*call), "copy": copying(total)}
    if case in ("ODE", "SDE"):
        noise = torch.randn(WINDOW, BATCH, ELEMENTS) * (case == "SDE")
        functions["eager"] = eager_round(call[0], call[1][0], noise)
    with torch.inference_mode():
        timings = measure(functions)
        benchmark.pedantic(functions["sweep"], rounds=3, iterations=3, warmup_rounds=1)
    seconds = timings["sweep"].median
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "GB/s": total / seconds * 1e-9,
        "over copy": seconds / timings["copy"].median,
    }
    targets = []
    if case.startswith("ODE"):
        targets.append(("over copy", "<=", 1.3))
    if "eager" in timings:
        figures["times eager"] = timings["eager"].median / seconds
        targets.append(("times eager", ">=", 20))
    benchmark.extra_info.update(figures)
    report(f"{case}, {WINDOW} x {BATCH} x {ELEMENTS}", timings, targets, **figures)


@pytest.mark.parametrize("inputs", (2, 4))
def test_gram(benchmark, measure, report, threads, inputs):
    """Target: 1.3 times the time of reading the inputs."""
    xs = [window_of() for _ in range(inputs)]
    weights = torch.randn(len(xs[0]), 2, inputs, dtype=torch.float64)
    sums = torch.empty(len(xs[0]), 3, dtype=torch.float64)
    whole = torch.randn(inputs * xs[0].numel())
    functions = {
        "gram": lambda: ops.gram(xs, weights, sums),
        "read": lambda: whole.sum(),
        "eager": lambda: [(y * z).sum(dim=1) for y, z in eager_pairs(xs, weights)],
    }
    with torch.inference_mode():
        timings = measure(functions)
        benchmark.pedantic(functions["gram"], rounds=3, iterations=3, warmup_rounds=1)
    seconds = timings["gram"].median
    figures = {
        "threads": threads,
        "us": seconds * 1e6,
        "GB/s": bytes_of(*xs) / seconds * 1e-9,
        "over read": seconds / timings["read"].median,
        "times eager": timings["eager"].median / seconds,
    }
    benchmark.extra_info.update(figures)
    report(f"gram, {inputs} inputs, 2 rows", timings, [("over read", "<=", 1.3)], **figures)


def eager_pairs(xs, weights):
    """Returns the pairs of rows whose products are wanted."""
    numbers = weights.float()

    def row(r):
        total = xs[0] * numbers[:, r, :1]
        for k, x in enumerate(xs[1:], 1):
            total += x * numbers[:, r, k : k + 1]
        return total

    first, second = row(0), row(1)
    return (first, first), (first, second), (second, second)
