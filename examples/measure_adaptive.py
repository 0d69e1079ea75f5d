"""Measures error against network calls on the digits, for adaptive methods and fixed grids.

    python examples/measure_adaptive.py --data mnist-10k.npz --count 5000 --out curve.json

With --features FOLDER the judge's features are kept there. The features of all parts (--first 0,
--first 2500, ...) are then measured together.

Each run adds a line to the output, one JSON object: method, options, network calls per digit (mean
and slowest), Frechet distance to the real digits in the judge's features, accuracy of the labels.
With `--picture curve.png` nothing is measured: the numbers of the output file are drawn.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from measure_quality import real_digits

import diffast as df
from diffast.digits import quality

# Colours that colour-blind people can tell apart (Okabe and Ito), without yellow.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"

# Name, options; "steps" is for fixed grids.
RUNS = (
    ("pec", {"rtol": 0.1}),
    ("pec", {"rtol": 0.2, "h_max": 0.5}),
    ("pec", {"rtol": 0.4, "h_max": 0.8}),
    ("pec", {"rtol": 0.8, "h_max": 1.2}),
    ("ggf", {"rtol": 0.1, "atol": 0.0078}),
    ("ggf", {"rtol": 0.3, "atol": 0.0078}),
    ("ggf", {"rtol": 0.5, "atol": 0.05}),
    ("ggf", {"rtol": 1.0, "atol": 0.1}),
    ("dpmpp_2m_sde", {"steps": 20}),
    ("dpmpp_2m_sde", {"steps": 28}),
    ("pec", {"steps": 20}),
    ("pec", {"steps": 28}),
    ("euler_ancestral", {"steps": 28}),
    ("euler_ancestral", {"steps": 60}),
)


def arguments() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", help="npz with images uint8 [N, 28, 28] and labels uint8 [N]")
    add("--count", type=int, default=5000, help="digits to sample, as many of each class")
    add("--first", type=int, default=0, help="number of the first digit")
    add("--features", type=Path, help="folder that keeps the features of every part")
    add("--batch", type=int, default=250)
    add("--runs", default="", help="which of the runs, by number, as 0,3,4; default: all")
    add("--threads", type=int, default=1)
    add("--seed", type=int, default=0)
    add("--out", default="curve.json")
    add("--picture", help="draw the output file to this PNG")
    return parser.parse_args()


def denoiser_of(network, schedule, labels) -> df.Denoiser:
    """Returns the denoiser of some labels."""
    return df.Denoiser(network, schedule, predicts="x0", conditions={"labels": labels})


def digits(network, name, options, start, count, batch, seed):
    """Returns images [count, 1, 28, 28], the labels asked for, and the calls of each, [count]."""
    schedule, images, calls = df.schedules.edm(), [], []
    labels = torch.arange(count) % 10
    options = dict(options)
    steps = options.pop("steps", None)
    for first in range(0, count, batch):
        some = labels[first : first + batch]
        denoiser = denoiser_of(network, schedule, some)
        ids = list(range(start + first, start + first + len(some)))
        shape = (len(some), 1, 28, 28)
        if steps is None:
            out = df.sample_adaptive(denoiser, name, shape, seed=seed, ids=ids, **options)
        else:
            grid = df.grids.uniform_logsnr(schedule, steps)
            plan = df.solvers.get(name)(schedule, grid)
            out = df.sample(denoiser, plan, shape, seed=seed, ids=ids)
        images.append(out.x)
        calls.append(out.nfe)
    return torch.cat(images).clamp(-1, 1), labels, torch.cat(calls).double()


@torch.inference_mode()
def main() -> None:
    """Measures the runs and appends them to the file, or draws it."""
    options = arguments()
    if options.picture:
        draw(Path(options.out), options.picture)
        return
    torch.set_num_threads(options.threads)
    judge, network = df.digits.load_judge(), df.digits.load_unet()
    real = quality.judge_features(judge, real_digits(options.data)[0])
    chosen = [int(k) for k in options.runs.split(",")] if options.runs else range(len(RUNS))
    for k in chosen:
        name, given = RUNS[k]
        begin = time.perf_counter()
        images, labels, calls = digits(
            network, name, given, options.first, options.count, options.batch, options.seed
        )
        features = quality.judge_features(judge, images)
        found = (judge(images).argmax(1) == labels).double()
        if options.features:
            features, found, calls = kept(options, k, features, found, calls)
        record = {
            "method": name,
            "options": given,
            "count": len(features),
            "calls": round(calls.mean().item(), 2),
            "slowest": int(calls.max()),
            "frechet": quality.frechet_distance(features, real),
            "accuracy": found.mean().item(),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        with open(options.out, "a") as file:
            file.write(json.dumps(record) + "\n")


def kept(options, run: int, *tensors):
    """Returns the tensors of all parts of a run, after keeping this one's."""
    options.features.mkdir(exist_ok=True)
    part = options.features / f"{run}_{options.first}.npz"
    np.savez(part, **{str(k): tensor.numpy() for k, tensor in enumerate(tensors)})
    parts = [np.load(path) for path in sorted(options.features.glob(f"{run}_*.npz"))]
    return [
        torch.from_numpy(np.concatenate([part[str(k)] for part in parts]))
        for k in range(len(tensors))
    ]


def draw(path: Path, picture: str) -> None:
    """Draws Frechet distance against calls, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list] = {}
    for text in path.read_text().splitlines():
        record = json.loads(text)
        fixed = " (fixed grid)" if "steps" in record["options"] else ""
        lines.setdefault(record["method"] + fixed, []).append((record["calls"], record["frechet"]))
    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for (name, points), color, marker in zip(lines.items(), COLORS, MARKERS, strict=False):
        points = zip(*sorted(points), strict=True)
        axes.plot(*points, marker=marker, color=color, label=name)
    axes.set(xscale="log", yscale="log", title="Error against network calls on the digits")
    axes.set(xlabel="network calls of a digit (mean)", ylabel="Frechet distance to real digits")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
