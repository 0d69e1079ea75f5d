"""Measures where Langevin correctors pay on the embedded digits, at equal numbers of network calls.

    python examples/measure_digit_correctors.py --data mnist-10k.npz --out digit_correctors.jsonl

Three settings. "exact": the network as it is. "biased": above sigma = 5, a field of noise is added
to the network's output, 7x7 blocks of deviation 1, drawn once for each sample. "early": runs start
at sigma = 5 as noise without data, N(0, 25). Each row has the Frechet distance to the real digits
and the judge's accuracy. Lines that the file has already are not measured again. With --picture
FILE.png 20 digits of three runs are drawn in each setting, and nothing is measured.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import diffast as df
from diffast.digits import quality

LEVEL = 5.0  # of sigma: above it the biased network is wrong; the early start begins there
SETTINGS = ("exact", "biased", "early")
# (solver, grid steps, corrector or None): about 32 calls, then about 16
RUNS = (
    ("dpmpp_2m", 32, None),
    ("dpmpp_2m", 16, "olmc:n=1"),
    ("dpmpp_2m", 16, "ulmc:n=1"),
    ("dpmpp_2m", 11, "ulmc:n=2"),
    ("dpmpp_2m", 11, "baoab:n=2"),
    ("dpmpp_2m", 16, None),
    ("dpmpp_2m", 8, "olmc:n=1"),
    ("dpmpp_2m", 6, "baoab:n=2"),
    ("euler_ancestral", 32, None),
    ("euler_ancestral", 16, None),
    ("dpmpp_2m", 16, "baoab:n=8"),
)
# Two visits of the last of these: sigma = 2.9 and 0.98; from the early start 2.7 and 1.1.
FEW, EARLY_FEW = [4, 8], [2, 6]

DRAWN = (0, 3, 8)


class Biased(torch.nn.Module):
    """The network with a field of noise added to its x0 estimate above `LEVEL`."""

    def __init__(self, network, ids):
        """Draws the field of each sample by its id."""
        super().__init__()
        self.network = network
        fields = []
        for number in ids:
            random = torch.Generator().manual_seed(int(number))
            fields.append(torch.randn(1, 7, 7, generator=random))
        self.field = torch.stack(fields).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def forward(self, x, t, labels):
        """Returns the x0 estimates [B, 1, 28, 28]."""
        wrong = (t > LEVEL).to(x.dtype)[:, None, None, None]
        return self.network(x, t, labels) + wrong * self.field


def plan_of(solver: str, steps: int, corrector: str | None, early: bool) -> df.Plan:
    """Returns the plan of one run."""
    schedule = df.schedules.edm()
    grid = df.grids.even(schedule, steps, start=LEVEL if early else None)
    plan = df.solvers.get(solver)(schedule, grid)
    if corrector is None:
        return plan
    where = (EARLY_FEW if early else FEW) if corrector == "baoab:n=8" else None
    return df.solvers.predictor_corrector(plan, corrector, where=where)


def digits(plan: df.Plan, setting: str, count: int, batch: int = 125):
    """Returns images [count, 1, 28, 28] clipped to [-1, 1], and the labels asked for."""
    network, labels, images = df.digits.load_unet(), torch.arange(count) % 10, []
    for first in range(0, count, batch):
        some = labels[first : first + batch]
        ids = list(range(first, first + len(some)))
        called = Biased(network, ids) if setting == "biased" else network
        denoiser = df.Denoiser(called, df.schedules.edm(), "x0", conditions={"labels": some})
        images.append(df.sample(denoiser, plan, (len(some), 1, 28, 28), seed=0, ids=ids).x)
    return torch.cat(images).clamp(-1, 1), labels


def draw(path: Path) -> None:
    """Draws the same 20 samples by three runs of about 32 calls, in each setting: 9 rows."""
    from PIL import Image

    rows = []
    for setting in SETTINGS:
        for number in DRAWN:
            images, _ = digits(plan_of(*RUNS[number], setting == "early"), setting, 20)
            rows.append(torch.cat(list(images[:, 0]), 1))
    picture = ((torch.cat(rows) + 1) * 127.5).byte().numpy()
    Image.fromarray(picture).resize((2 * picture.shape[1], 2 * picture.shape[0])).save(path)


def main() -> None:
    """Measures all runs in all settings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="npz with images uint8 [N, 28, 28]")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    if options.picture:
        draw(options.picture)
        return
    if not (options.data and options.out):
        parser.error("--data and --out are needed")
    with np.load(options.data, allow_pickle=False) as file:
        real = torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1
    judge = df.digits.load_judge()
    known = options.out.read_text().splitlines() if options.out.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("setting", "plan", "count")) for line in known}
    for run in RUNS:
        for setting in SETTINGS:
            plan = plan_of(*run, setting == "early")
            if (setting, plan.name + f" {run[1]}", options.count) in done:
                continue
            images, labels = digits(plan, setting, options.count)
            found = quality.measure(judge, images, labels, real)
            row = {"setting": setting, "plan": plan.name + f" {run[1]}", "calls": plan.nfe}
            row |= {"count": options.count, **found}
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
