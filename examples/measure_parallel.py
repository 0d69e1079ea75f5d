"""Measures parallel sampling: rounds against window and tolerance, against dimension, and time.

    python examples/measure_parallel.py window --out window.png
    python examples/measure_parallel.py dimension --out dimension.png
    python examples/measure_parallel.py blocks --out blocks.png
    python examples/measure_parallel.py memory
    python examples/measure_parallel.py time --out time.png
    python examples/measure_parallel.py digits --count 8 --solver ddim --steps 50

    python examples/measure_parallel.py window --draw --out window.png

Each writes its numbers beside the picture, as JSON; --draw draws from that file without measuring.
Networks are closed forms, except that of `digits`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import diffast as df

SCHEDULE = df.schedules.vp_linear()

# Colours that colour-blind people can tell apart (Okabe and Ito), without yellow.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")
MARKERS = "os^Dv<>P"

# How each measurement is drawn: column across and up, columns that tell the lines apart, title,
# names of both axes, and how a line is named.
PICTURES = {
    "window": (
        *("window", "rounds_mean", ("method", "tol")),
        "Rounds against window: DDIM with 100 stages, mixture in 256 dimensions",
        *("window (stages of a sample at a time)", "network rounds (mean of the samples)"),
        "{}, tolerance {:g}",
    ),
    "dimension": (
        *("dimensions", "rounds", ("method",)),
        "Rounds against dimension: PIADM-ODE on a normal, 4 sqrt(d) stages",
        *("dimensions d", "network rounds (slowest of 4 samples)"),
        "{}",
    ),
    "blocks": (
        *("of", "rounds", ("plan", "block", "method")),
        "Rounds of PIADM's plans with 405 stages, on three mixtures",
        *("mixture", "network rounds (slowest of 4 samples)"),
        "{}, blocks of length {:g}, {}",
    ),
    "memory": (
        *("method", "tensors", ()),
        "Peak memory of a run with 32 rows of 4 MiB",
        *("method", "memory (tensors of all rows)"),
        "",
    ),
    "time": (
        *("steps", "milliseconds", ("kind",)),
        "Time of one sample: DDIM, network of matrix products",
        *("stages of the plan", "time (milliseconds, median of 5)"),
        "{}",
    ),
    "digits": (
        *("method", "rounds_mean", ("tol",)),
        "Rounds of the embedded network's digits",
        *("method", "network rounds (mean of the digits)"),
        "tolerance {:g}",
    ),
}


def coefficients(t, x):
    """Returns alpha and sigma at the times t [B], shaped to go with x [B, D]."""
    times = t.double().numpy()
    return (
        torch.from_numpy(f(times)).to(x.dtype)[:, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma)
    )


def mixture(dimensions, components=16, spread=0.25, seed=0, manifold=None):
    """Returns the exact x0 estimate for normals of one spread around random means.

    The means lie on a plane of `manifold` dimensions, if given.
    """
    generator = torch.Generator().manual_seed(seed)
    means = 0.7 * torch.randn(components, manifold or dimensions, generator=generator)
    if manifold:
        plane = torch.randn(dimensions, manifold, generator=generator)
        means = means @ torch.linalg.qr(plane)[0].T * (dimensions / manifold) ** 0.5

    def network(x, t):
        alpha, sigma = coefficients(t, x)
        variance = (alpha * spread) ** 2 + sigma**2
        square = (x * x).sum(1, keepdim=True) - 2 * alpha * (x @ means.T)
        square = square + alpha**2 * (means * means).sum(1)
        mean = torch.softmax(-square / (2 * variance), dim=1) @ means
        return mean + alpha * spread**2 / variance * (x - alpha * mean)

    return df.Denoiser(network, SCHEDULE, predicts="x0")


def normal(dimensions):
    """Returns the exact x0 estimate for N(0, diag) with variances from 1/4 to 1."""
    variances = torch.linspace(0.25, 1.0, dimensions)

    def network(x, t):
        alpha, sigma = coefficients(t, x)
        return alpha * variances / (alpha**2 * variances + sigma**2) * x

    return df.Denoiser(network, SCHEDULE, predicts="x0")


def relative(x, wanted):
    """Returns each sample's relative error, [B] numpy."""
    x, wanted = x.flatten(1), wanted.flatten(1)
    return ((x - wanted).norm(dim=1) / wanted.norm(dim=1)).numpy()


def own_rounds(out, stages):
    """Returns the rounds of each sample, [B]."""
    starts = np.array([step.settled for step in out.history])
    return (starts < stages).sum(0) + 1


def facts_of(out, plan, wanted):
    """Returns what one run came to."""
    rounds, error = own_rounds(out, plan.stages), relative(out.x, wanted)
    return {
        "rounds": out.rounds,
        "rounds_mean": float(rounds.mean()),
        "evaluations": float(out.nfe.double().mean()),
        "error_median": float(np.median(error)),
        "error_most": float(error.max()),
        "above_0.01": int((error > 0.01).sum()),
    }


def window(options):
    """Rounds against the window, for three tolerances and ParaDiGMS."""
    denoiser = mixture(256)
    plan = df.solvers.ddim(SCHEDULE, df.grids.uniform_time(SCHEDULE, 100))
    shape = (options.count, 256)
    wanted = df.sample(denoiser, plan, shape, seed=1).x
    rows = []
    for method, tol in (("secant", 1e-1), ("secant", 1e-2), ("secant", 1e-3), ("paradigms", 1e-2)):
        for size in (4, 8, 16, 32, 64, 100):
            out = df.sample_parallel(
                denoiser, plan, shape, seed=1, method=method, tol=tol, window=size
            )
            rows.append({"method": method, "tol": tol, "window": size})
            rows[-1] |= facts_of(out, plan, wanted)
            print(rows[-1], flush=True)
    return rows


def dimension(options):
    """Rounds of PIADM-ODE against the dimension, with the steps that its theory asks for."""
    rows = []
    for dimensions in (64, 256, 1024, 4096, 16384):
        steps = round(4 * dimensions**0.5)
        plan = df.solvers.piadm_ode(SCHEDULE, df.grids.ou_early(SCHEDULE, steps))
        denoiser = normal(dimensions)
        shape = (4, dimensions)
        wanted = df.sample(denoiser, plan, shape, seed=1).x
        # The error of the whole vector stays the same: theory's delta is one of the law.
        tol = 0.1 / dimensions**0.5
        for method in ("piadm", "secant"):
            out = df.sample_parallel(denoiser, plan, shape, seed=1, method=method, tol=tol)
            rows.append({"method": method, "dimensions": dimensions, "steps": plan.stages})
            rows[-1] |= facts_of(out, plan, wanted)
            rows[-1]["rounds_over_log2"] = rows[-1]["rounds"] / np.log2(dimensions) ** 2
            print(rows[-1], flush=True)
    return rows


def blocks(options):
    """Rounds of PIADM, block by block, on three mixtures; the same plans with measured slopes."""
    problems = {
        "256 dimensions, 16 normals": mixture(256),
        "64 dimensions, 32 normals": mixture(64, 32),
        "256 dimensions, 32 normals in a plane of 4": mixture(256, 32, manifold=4),
    }
    grid = df.grids.ou_early(SCHEDULE, 405)
    rows = []
    for number, (problem, denoiser) in enumerate(problems.items()):
        shape = (4, 64 if problem.startswith("64") else 256)
        for name in ("piadm_sde", "piadm_ode"):
            for block in (1.0, 2.0):
                plan = df.solvers.get(name)(SCHEDULE, grid, block=block)
                wanted = df.sample(denoiser, plan, shape, seed=1).x
                for method in ("piadm", "secant"):
                    out = df.sample_parallel(denoiser, plan, shape, seed=1, method=method, tol=2e-3)
                    rows.append({"problem": number, "of": problem, "plan": name, "block": block})
                    rows[-1] |= {"blocks": len(plan.blocks), "method": method}
                    rows[-1] |= facts_of(out, plan, wanted)
                    print(rows[-1], flush=True)
    return rows


def memory(options):
    """Peak memory of a run, in tensors of all rows. Each method runs in a process of its own."""
    rows = []
    for method in ("secant", "prior", "anderson", "paradigms", "speculative"):
        command = [sys.executable, __file__, "peak", "--solver", method]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows.append({"method": method, "tensors": float(said)})
        print(rows[-1], flush=True)
    return rows


def peak(options):
    """Prints the peak memory of one run (method: --solver) over that before it."""
    stages, elements = 32, 1 << 20
    denoiser = df.Denoiser(lambda x, t: x * 0.5, SCHEDULE, predicts="x0")
    name = "ddpm" if options.solver == "speculative" else "ddim"
    plan = df.solvers.get(name)(SCHEDULE, df.grids.uniform_time(SCHEDULE, stages))
    run = {"method": options.solver, "seed": 1}
    df.sample_parallel(denoiser, plan, (1, 64), **run)  # loads what is loaded at first use

    def resident(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

    before = resident("VmRSS")
    out = df.sample_parallel(denoiser, plan, (1, elements), tol=0.5, **run)
    states = 2 * 4 * elements * 4 + out.x.numel() * 4
    print((resident("VmHWM") - before - states) / (stages * elements * 4))
    raise SystemExit


def time_of(options):
    """Seconds against sequential ones, for a network of matrix products."""
    torch.set_num_threads(2)
    width = 2048
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, width, generator=generator) / 8
    middle = torch.randn(width, width, generator=generator) / width**0.5
    last = torch.randn(width, 64, generator=generator) / width**0.5

    def network(x, t):
        # The matrices are read once a call, whatever its rows: what a GPU is for small batches.
        return 0.5 * torch.tanh(torch.tanh(x @ first) @ middle) @ last

    denoiser = df.Denoiser(network, SCHEDULE, predicts="x0")
    rows = []
    for steps in (25, 50, 100, 200):
        plan = df.solvers.ddim(SCHEDULE, df.grids.uniform_time(SCHEDULE, steps))
        seconds = {"sequential": [], "parallel": []}
        for _ in range(5):
            begin = time.perf_counter()
            wanted = df.sample(denoiser, plan, (1, 64), seed=1).x
            middle_time = time.perf_counter()
            out = df.sample_parallel(denoiser, plan, (1, 64), seed=1)
            seconds["sequential"].append(middle_time - begin)
            seconds["parallel"].append(time.perf_counter() - middle_time)
        for kind, values in seconds.items():
            rows.append({"kind": kind, "steps": steps, "milliseconds": 1e3 * np.median(values)})
            rows[-1] |= facts_of(out, plan, wanted)
            print(rows[-1], flush=True)
    return rows


def digits(options):
    """Rounds of the embedded network, by method."""
    schedule = df.schedules.edm()
    labels = torch.arange(options.count) % 10
    denoiser = df.Denoiser(
        df.digits.load_unet(), schedule, predicts="x0", conditions={"labels": labels}
    )
    grid = df.grids.karras(schedule, options.steps)
    plan = df.solvers.get(options.solver)(schedule, grid)
    shape = (options.count, 1, 28, 28)
    wanted = df.sample(denoiser, plan, shape, seed=1).x
    rows = []
    for method, tol in (("secant", 1e-2), ("prior", 1e-2), ("anderson", 1e-2), ("paradigms", 1e-2)):
        if plan.history > 0 and method == "paradigms":
            continue
        out = df.sample_parallel(
            denoiser, plan, shape, seed=1, method=method, tol=tol, batch_size=64
        )
        rows.append({"method": method, "tol": tol, "stages": plan.stages})
        rows[-1] |= facts_of(out, plan, wanted)
        print(rows[-1], flush=True)
    return rows


def draw(rows, what, path):
    """Draws one line for each value of the columns that tell lines apart."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    across, up, names, title, below, beside, label = PICTURES[what]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    for number, key in enumerate(lines):
        line = [row for row in rows if tuple(row[name] for name in names) == key]
        x, y = [row[across] for row in line], [row[up] for row in line]
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        style = "none" if isinstance(x[0], str) else ("-", "--")[number % 2]
        marks = {"marker": marker, "markersize": 7, "markerfacecolor": "none"}
        axes.plot(x, y, color=color, linestyle=style, label=label.format(*key), **marks)
    values = list(dict.fromkeys(row[across] for row in rows))
    if isinstance(values[0], str):
        axes.margins(x=0.25)
        axes.set_xticks(values, [value.replace(", ", ",\n") for value in values])
    else:
        axes.set_xscale("log")
        axes.set_xticks(values)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.minorticks_off()
    axes.set(xlabel=below, ylabel=beside, title=title)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if names and len(lines) <= 4:
        axes.legend()
    elif names:
        figure.legend(loc="outside lower center", ncols=2)
        figure.set_size_inches(7, 6)
    figure.savefig(path, dpi=120)


def main():
    """Runs or draws one measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "what", choices=("window", "dimension", "blocks", "memory", "peak", "time", "digits")
    )
    parser.add_argument(
        "--out", type=Path, help="picture; its numbers go to the same name in .json"
    )
    parser.add_argument(
        "--draw", action="store_true", help="draw from the .json beside --out, measure nothing"
    )
    parser.add_argument("--count", type=int, default=16, help="samples (%(default)s)")
    parser.add_argument("--solver", default="ddim", help="of digits (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="of digits (%(default)s)")
    options = parser.parse_args()
    if options.draw and (options.out is None or options.what == "peak"):
        parser.error("--draw needs --out, and a measurement that has a picture")
    if options.draw:
        draw(json.loads(options.out.with_suffix(".json").read_text()), options.what, options.out)
        return
    measure = {"window": window, "dimension": dimension, "blocks": blocks}
    measure |= {"memory": memory, "peak": peak, "time": time_of, "digits": digits}
    rows = measure[options.what](options)
    if options.out is not None:
        options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
        draw(rows, options.what, options.out)


if __name__ == "__main__":
    main()
