"""Frechet distance and class accuracy of digits by tuned and by standard plans.

    python bench/digit_quality.py --data mnist-10k.npz --count 2500 --out quality.jsonl

Tuned plans are those of `df.digits.load_plan`, without guidance. The standard one is
`unipc(order=3, final="falling")` on `grids.even`, the best of the solvers and grids that need no
measurement. All runs have the same noises. The reference is every image of the data file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import diffast as df
from diffast.digits import quality


def digits(plan: df.Plan, count: int, batch: int = 125) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images [count, 1, 28, 28] clipped to [-1, 1], and the labels asked for."""
    network, labels, images = df.digits.load_unet(), torch.arange(count) % 10, []
    for first in range(0, count, batch):
        some = labels[first : first + batch]
        conditions = {"labels": some}
        denoiser = df.Denoiser(network, df.schedules.edm(), "x0", conditions=conditions)
        ids = list(range(first, first + len(some)))
        images.append(df.sample(denoiser, plan, (len(some), 1, 28, 28), seed=0, ids=ids).x)
    return torch.cat(images).clamp(-1, 1), labels


def standard(calls: int) -> df.Plan:
    """Returns the standard plan of so many calls."""
    schedule = df.schedules.edm()
    return df.solvers.unipc(schedule, df.grids.even(schedule, calls), order=3, final="falling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="npz with images uint8 [N, 28, 28]")
    parser.add_argument("--count", type=int, default=2500)
    parser.add_argument("--tuned", default="5,8,10")
    parser.add_argument("--standard", default="5,8,10,16,20")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with np.load(arguments.data, allow_pickle=False) as file:
        real = torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1
    judge = df.digits.load_judge()
    plans = [("tuned", int(n), df.digits.load_plan(int(n))) for n in arguments.tuned.split(",")]
    plans += [("standard", int(n), standard(int(n))) for n in arguments.standard.split(",")]
    for kind, calls, plan in plans:
        images, labels = digits(plan, arguments.count)
        found = quality.measure(judge, images, labels, real)
        row = {"kind": kind, "calls": calls, "plan": plan.name, "count": len(images), **found}
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
