"""Splitting solvers on the embedded digit network, guided by its noise-aware classifier.

    python -m bench.splitting_digits errors     distances to runs of 1,000 steps, same noises
    python -m bench.splitting_digits times      seconds, each method against DDIM by turns
    python -m bench.splitting_digits picture    docs/pictures/splitting_digits.png
    python -m bench.splitting_digits report     the tables of docs/splitting.md

The network is told no label; the classifier alone guides. "ddim" is `euler`, "plms4" `ipndm` of
order 4 with that order into sigma = 0, both with the guidance in the x0 estimate. The references
are 1,000 steps of DDIM, as in the paper, and 1,000 steps of `additive_multistep`, whose distance to
the exact solution is far smaller. Results go to bench/results/splitting_digits.json.
"""

from __future__ import annotations

import fcntl
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

import diffast as df
import diffast.digits as digits

RESULTS = Path(__file__).parent / "results" / "splitting_digits.json"
PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "splitting_digits.png"

BATCH, SEED = 12, 7
SCALES = (4.0, 12.0)
STEPS = (8, 12, 16, 25, 40, 60, 100)
REFERENCES, REFERENCE_STEPS = ("ddim", "additive lms4"), 1000

S = df.solvers
METHODS: dict[str, Callable[..., df.Plan]] = {
    "ddim": S.euler,
    "plms4": partial(S.ipndm, order=4, final="full"),
    "stsp4 released": partial(S.stsp, inner="plms", compat="released"),
    "stsp4 lms": partial(S.stsp, inner="lms"),
    "stsp4": partial(S.stsp, inner="adams", order=4),
    "stsp3": partial(S.stsp, inner="adams", order=3),
    "stsp2": partial(S.stsp, inner="adams", order=2),
    "ltsp4": partial(S.ltsp, inner="adams", order=4),
    "ltsp2": partial(S.ltsp, inner="adams", order=2),
    "additive lms4": partial(S.additive_multistep, inner="lms"),
    "additive": partial(S.additive_multistep, inner="adams", order=4),
    "additive lms2": partial(S.additive_multistep, inner="lms", order=2),
}


class Problem:
    """The guided digits at one scale."""

    def __init__(self, scale: float, batch: int = BATCH):
        """Loads the networks and draws the noise."""
        self.schedule, self.labels = df.schedules.edm(), torch.arange(batch) % 10
        term = df.guidance.classifier(digits.load_classifier(), self.labels, scale)
        self.denoiser = df.Denoiser(
            digits.load_unet(),
            self.schedule,
            "x0",
            conditions={"labels": torch.full((batch,), digits.NULL_LABEL)},
            guides=[term],
        )
        self.judge = digits.load_judge()
        generator = torch.Generator().manual_seed(SEED)
        self.x = torch.randn(BATCH, 1, 28, 28, generator=generator)[:batch] * 80.0

    def plan(self, name: str, steps: int) -> df.Plan:
        """Returns a method's plan on Karras' levels."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", df.PlanWarning)
            return METHODS[name](self.schedule, df.grids.karras(self.schedule, steps))

    @torch.no_grad()
    def run(self, plan: df.Plan) -> torch.Tensor:
        """Returns the samples."""
        return df.sample(self.denoiser, plan, x=self.x, throw=False).x

    @torch.no_grad()
    def distances(self, x: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
        """Returns distances of samples to the reference: pixels, and the judge's features."""
        gap = (x - reference).square().flatten(1).mean(1).sqrt()
        features = (self.judge.features(x) - self.judge.features(reference)).norm(dim=1)
        right = self.judge(x).argmax(1) == self.labels
        return {
            "rms": float(gap.square().mean().sqrt()),
            "median": float(gap.median()),
            "features": float(features.mean()),
            "accuracy": float(right.float().mean()),
        }


def save(key: str, value: Any) -> None:
    """Adds a result to the file."""
    with RESULTS.open("a+") as file:  # scales may be measured side by side
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        held = json.loads(file.read() or "{}")
        held[key] = value
        file.truncate(0)
        file.write(json.dumps(held, indent=1, sort_keys=True) + "\n")


@cache
def reference(scale: float, name: str) -> torch.Tensor:
    """Returns the samples of 1,000 steps, kept beside torch's own files between runs."""
    path = Path(torch.hub.get_dir()) / f"splitting_{name}_{scale:g}_{BATCH}_{SEED}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    problem = Problem(scale)
    found = problem.run(problem.plan(name, REFERENCE_STEPS))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def errors(scales=SCALES, steps=STEPS, methods=tuple(METHODS)) -> None:
    """Measures distances of all methods, and those of DDIM with 250 steps."""
    for scale in scales:
        problem = Problem(scale)
        both = {name: reference(scale, name) for name in REFERENCES}
        between = problem.distances(*both.values())
        save(f"{scale:g} | references | {REFERENCE_STEPS}", between)
        jobs = [("ddim", 250), *((name, n) for n in steps for name in methods)]
        for name, n in jobs:
            x = problem.run(problem.plan(name, n))
            found = {f"to {who}": problem.distances(x, r) for who, r in both.items()}
            save(f"{scale:g} | {name} | {n}", found)
            print(scale, name, n, found["to ddim"], flush=True)


def times(scale: float, contenders: dict[str, int], rounds: int = 5) -> None:
    """Measures seconds of a run of each contender and of DDIM with 250 steps, by turns."""
    problem = Problem(scale)
    plans = {name: problem.plan(name, n) for name, n in contenders.items()}
    plans["ddim 250"] = problem.plan("ddim", 250)
    took: dict[str, list[float]] = {name: [] for name in plans}
    ends: dict[str, Any] = {}
    for _ in range(rounds):
        for name, plan in plans.items():
            begun = time.process_time()
            x = problem.run(plan)
            took[name].append(time.process_time() - begun)
            ends[name] = {f"to {r}": problem.distances(x, reference(scale, r)) for r in REFERENCES}
    base = statistics.median(took["ddim 250"])
    for name, seconds in took.items():
        middle = statistics.median(seconds)
        steps = contenders.get(name, 250)
        save(
            f"{scale:g} | time | {name}",
            {"steps": steps, "cpu_seconds": middle, "of_ddim_250": middle / base, **ends[name]},
        )
        print(scale, name, steps, f"{middle:.2f} s", f"{middle / base:.3f}", flush=True)


def enough(scale: float, name: str, to: str = "ddim", measure: str = "rms") -> float:
    """Returns with how many steps a method reaches the distance of DDIM with 250 steps.

    Between measured numbers of steps the logarithm of the distance is taken as linear in that of
    the steps, beyond the last one as falling like 1/steps.
    """
    import numpy as np

    held = json.loads(RESULTS.read_text())
    aim = held[f"{scale:g} | ddim | 250"][f"to {to}"][measure]
    known = [(n, held[f"{scale:g} | {name} | {n}"][f"to {to}"][measure]) for n in STEPS]
    for (a, before), (b, after) in zip(known[:-1], known[1:], strict=True):
        if after <= aim:
            share = np.log(before / aim) / np.log(before / after)
            return float(a * (b / a) ** max(share, 0.0))
    return known[-1][0] * known[-1][1] / aim


SHOWN = {
    "DDIM": "ddim",
    "PLMS4": "plms4",
    "STSP4,\nreleased": "stsp4 released",
    "stsp": "stsp2",
    "additive": "additive lms4",
}
CURVES = ("ddim", "plms4", "stsp4 released", "stsp4", "stsp2", "ltsp2", "additive lms4")
SHOWN_STEPS, SHOWN_SCALE, SHOWN_DIGITS = (8, 12, 16, 25, 40, 60), 12.0, 3


def picture() -> None:
    """Draws digits of four methods, same noises, and distances against steps."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    held = json.loads(RESULTS.read_text())
    problem = Problem(SHOWN_SCALE, SHOWN_DIGITS)
    shown = reference(SHOWN_SCALE, "ddim")[:SHOWN_DIGITS]

    def strip(x: torch.Tensor) -> np.ndarray:
        return torch.cat([*x[:SHOWN_DIGITS, 0]], dim=1).clamp(-1, 1).numpy()

    rows, columns = len(SHOWN), len(SHOWN_STEPS) + 1
    figure = pyplot.figure(figsize=(13, 7.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[1.0, 1.0])
    axes = upper.subplots(rows, columns)
    for i, (label, name) in enumerate(SHOWN.items()):
        for j, steps in enumerate(SHOWN_STEPS):
            axes[i, j].imshow(
                strip(problem.run(problem.plan(name, steps))), "gray", vmin=-1, vmax=1
            )
            axes[0, j].set_title(f"{steps} steps", fontsize=9)
        axes[i, -1].imshow(strip(shown), "gray", vmin=-1, vmax=1)
        axes[i, 0].set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center")
    axes[0, -1].set_title("1,000 steps", fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    upper.suptitle(
        f"Digits guided by the classifier, scale {SHOWN_SCALE:g}, same noises", fontsize=10
    )
    curves = lower.subplots(1, len(SCALES))
    for axis, scale in zip(curves, SCALES, strict=True):
        for name in CURVES:
            errors = [held[f"{scale:g} | {name} | {n}"]["to ddim"]["rms"] for n in STEPS]
            axis.loglog(STEPS, errors, "o-", markersize=3, linewidth=1, label=name)
        aim = held[f"{scale:g} | ddim | 250"]["to ddim"]["rms"]
        axis.axhline(aim, color="0.5", linestyle=":", label="ddim, 250 steps")
        axis.set_xticks(STEPS, [str(n) for n in STEPS])
        axis.minorticks_off()
        axis.set_xlabel("steps")
        axis.set_title(f"scale {scale:g}: distance to DDIM with 1,000 steps", fontsize=9)
    curves[0].legend(fontsize=7, loc="lower left")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def report() -> str:
    """Returns the tables in Markdown: distances, and steps and time to the distance of DDIM."""
    held = json.loads(RESULTS.read_text())
    lines = []
    for scale in SCALES:
        lines += ["", f"| scale {scale:g}, steps | " + " | ".join(map(str, STEPS)) + " |"]
        lines.append("|" + "---|" * (1 + len(STEPS)))
        for name in METHODS:
            row = [held[f"{scale:g} | {name} | {n}"]["to ddim"] for n in STEPS]
            cells = [f"{v['rms']:.4f}" for v in row]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        aims = [held[f"{scale:g} | ddim | 250"][f"to {to}"]["rms"] for to in REFERENCES]
        lines.append(f"DDIM with 250 steps: {aims[0]:.4f}, to the other reference {aims[1]:.4f}")
        for key, value in held.items():
            if key.startswith(f"{scale:g} | time | "):
                lines.append(f"{key}: {value}")
        for name in METHODS:
            needed = [
                f"{enough(scale, name, to, measure):.0f}"
                for to in REFERENCES
                for measure in ("rms", "median", "features")
            ]
            lines.append(f"{name}: steps to DDIM-250 {needed}")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = sys.argv[1] if len(sys.argv) > 1 else "errors"
    if what == "errors":
        errors(tuple(float(scale) for scale in sys.argv[2:]) or SCALES)
    elif what == "times":
        # steps by method: python -m bench.splitting_digits times 4 stsp4=104 "additive lms4=45"
        given = (pair.rpartition("=") for pair in sys.argv[3:])
        times(float(sys.argv[2]), {name: int(steps) for name, _, steps in given})
    elif what == "picture":
        picture()
    else:
        print(report())
