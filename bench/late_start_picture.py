r"""The picture of late starts: digits with and without, the error and the certificate by level.

    python bench/late_start_picture.py --data mnist-10k.npz \
        --results bench/results/late_start.jsonl --out docs/pictures/thermo_late_start.png

Needs matplotlib. Colours are Okabe and Ito's, and every line has its own marker.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
from late_start import HELD, SHAPE, denoiser_of, images_of, law_of, standard

import diffast as df
from diffast.tuning.pilots import Pilots, ids_of
from diffast.tuning.teacher import teacher_plan

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {3: ("#D55E00", "o"), 4: ("#CC79A7", "^"), 5: ("#0072B2", "s"), 8: ("#009E73", "D")}


def rows_of(law) -> list[tuple[str, df.Plan]]:
    tuned = df.digits.load_plan
    return [
        ("exact flow", teacher_plan(denoiser_of("class"), 32)),
        ("3 calls, standard plan", standard("unipc", 3)),
        ("3 calls, late start", tuned(4).late_start(law, calls=3)),
        ("5 calls, standard plan", standard("unipc", 5)),
        ("5 calls, tuned plan", tuned(5)),
        ("5 calls, late start", tuned(6).late_start(law, calls=5)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    images, labels = images_of(arguments.data)
    law, denoiser = law_of("class", images[:-HELD], labels[:-HELD]), denoiser_of("class")
    found = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    figure = plt.figure(figsize=(12.5, 4.8), constrained_layout=True)
    left, right = figure.subfigures(1, 2, width_ratios=[1.2, 1.0])

    rows, ids = rows_of(law), ids_of(10)
    own = Pilots(denoiser, SHAPE, 0, torch.device("cpu")).rows(ids)
    axes = left.subplots(len(rows), 1)
    for axis, (name, plan) in zip(axes, rows, strict=True):
        made = df.sample(own, plan, (10, *SHAPE), seed=0).x.clamp(-1, 1)[:, 0]
        axis.imshow(np.hstack(list(made.numpy())), cmap="gray", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    left.suptitle("Digits 0 to 9, the same noises in every row", fontsize=10)

    one = right.subplots()
    mine = [r for r in found if r["part"] == "distance" and r["kind"] == "class"]
    for calls, (colour, marker) in COLOURS.items():
        late = [r for r in mine if r.get("calls") == calls and r["late"] and r["plan"] == "tuned"]
        late.sort(key=lambda r: r["level"])
        plain = [r for r in mine if r.get("calls") == calls and not r["late"]]
        style = {"color": colour, "marker": marker}
        levels = [r["level"] for r in late]
        one.plot(levels, [r["error"] for r in late], label=f"{calls} calls, late", **style)
        if plain:
            best = min(r["error"] for r in plain)
            one.axhline(best, color=colour, ls=":", lw=1)
            one.plot([95], [best], mfc="white", ls="", **style)
    one.set(xscale="log", ylim=(0.045, 0.62), yscale="log", xlabel="start level sigma / alpha")
    ticks = [0.05, 0.1, 0.2, 0.3, 0.5]
    one.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    one.minorticks_off()
    one.set_ylabel("rms distance to the exact flow / spread")
    one.set_title("Open marker, dotted: best plan without a late start", fontsize=10)
    one.legend(fontsize=8, loc="upper center")
    two = one.twinx()
    for row in found:
        if row["part"] == "certificate" and row["kind"] == "class" and row["images"] > 1000:
            style = {"one law": ":", "a law a class": "--"}[row["law"]]
            two.plot(row["rho"], row["score_kl"], color="black", ls=style, lw=1)
            place, shift = (row["rho"][2], row["score_kl"][2]), (4, 4)
            two.annotate(f"KL, {row['law']}", place, shift, textcoords="offset points", fontsize=8)
    two.set(yscale="log", ylabel="KL of noisy data from the law (nats)")
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
