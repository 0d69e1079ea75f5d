"""Measures digits sampled by this package: Frechet distance and class accuracy, against real ones.

    python examples/measure_quality.py --data mnist-10k.npz --solver heun --steps 18 --guidance 1

Prints one JSON object. diffast/digits/weights/README.md holds such numbers.
"""

import argparse
import json
import time

import numpy as np
import torch

import diffast as df
from diffast.digits import quality


def arguments() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, help="npz with images uint8 [N, 28, 28] and labels uint8 [N]")
    add("--holdout", type=int, default=1000, help="the last so many images are the reference")
    add("--count", type=int, default=1000, help="digits to sample, as many of each class")
    add("--batch", type=int, default=100)
    add("--solver", default="heun")
    add("--steps", type=int, default=18)
    add("--guidance", type=float, default=1.0)
    add("--seed", type=int, default=0)
    return parser.parse_args()


def real_digits(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images [N, 1, 28, 28] in [-1, 1] and labels [N] of a data file."""
    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1
        return images, torch.from_numpy(file["labels"]).long()


def sampled_digits(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns sampled images [count, 1, 28, 28], clipped to [-1, 1], and the labels asked for."""
    schedule = df.schedules.edm()
    plan = df.solvers.get(options.solver)(schedule, df.grids.karras(schedule, options.steps))
    network, images = df.digits.load_unet(), []
    labels = torch.arange(options.count) % 10
    for first in range(0, options.count, options.batch):
        some = labels[first : first + options.batch]
        denoiser = df.Denoiser(
            network,
            schedule,
            predicts="x0",
            conditions={"labels": some},
            unconditional={"labels": torch.tensor([df.digits.NULL_LABEL])},
            guidance=options.guidance,
        )
        ids = range(first, first + len(some))  # each digit its own noise, whatever the batch
        shape = (len(some), 1, 28, 28)
        images.append(df.sample(denoiser, plan, shape=shape, seed=options.seed, ids=list(ids)).x)
    return torch.cat(images).clamp(-1, 1), labels


def main() -> None:
    """Samples, measures, prints."""
    options = arguments()
    images, labels = real_digits(options.data)
    held, train = images[-options.holdout :], images[: -options.holdout]
    judge = df.digits.load_judge()
    begin = time.perf_counter()
    x, asked = sampled_digits(options)
    seconds = time.perf_counter() - begin
    real = quality.measure(judge, held, labels[-options.holdout :], train)
    result = {
        "sampled against held out": quality.measure(judge, x, asked, held),
        "sampled against training": quality.measure(judge, x, asked, train),
        "held out against training": real,
        "options": vars(options),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
