"""Draws digits by every guidance rule from the same noise, and measures each rule.

    python examples/guidance_rules.py --data mnist-10k.npz --out rules.jsonl
    python examples/guidance_rules.py --picture rules.png

The network is the one of the package, 18 steps of DPM++ 2M on Karras' levels. A line of the output
has the rule, the network's rows of one sample, the judge's accuracy, the Frechet distance to the
real digits, the share of pixel values beyond [-1, 1] by 0.05 and more, and the mean deviation of a
pixel within a class, which falls where samples become alike. Rows that the file has are kept.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import diffast as df
from diffast.digits import quality

G = df.guidance
RULES = {
    "none": 1.0,
    "cfg(2)": 2.0,
    "cfg(4)": 4.0,
    "cfg(8)": 8.0,
    "interval(8, 0.5, 3)": G.interval(8.0, 0.5, 3.0),
    "rescale(0.7, 8)": G.rescale(0.7, 8.0),
    "apg(8, eta=0.5)": G.apg(8.0, eta=0.5),
    "apg(8, eta=0, norm_threshold=5)": G.apg(8.0, eta=0.0, norm_threshold=5.0),
    "cfg_zero_star(8)": G.cfg_zero_star(8.0, zero_init_steps=0),
    "tcfg(8)": G.tcfg(8.0),
    "mambo(8)": G.mambo(8.0),
    "fdg([8, 2])": G.fdg([8.0, 2.0]),
    "dynamic_threshold(0.995, 1, 8)": G.dynamic_threshold(0.995, 1.0, 8.0),
    "dynamic_threshold(0.995, 10, 8)": G.dynamic_threshold(0.995, 10.0, 8.0),
    "cfg_plus_plus, 0.6": 0.6,
}


def run(name: str, count: int, batch: int = 125) -> tuple[Tensor, Tensor, float]:
    """Returns samples [count, 1, 28, 28], their labels and the mean of the network's rows."""
    network, schedule = df.digits.load_unet(), df.schedules.edm()
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 18))
    if name.startswith("cfg_plus_plus"):
        plan = df.solvers.cfg_plus_plus(plan)
    labels, images, rows = torch.arange(count) % 10, [], []
    for first in range(0, count, batch):
        some = labels[first : first + batch]
        denoiser = df.Denoiser(
            network,
            schedule,
            "x0",
            conditions={"labels": some},
            unconditional={"labels": torch.tensor([df.digits.NULL_LABEL])},
            guidance=RULES[name],
        )
        ids = range(first, first + len(some))
        out = df.sample(denoiser, plan, (len(some), 1, 28, 28), seed=0, ids=list(ids))
        images.append(out.x)
        rows.append(out.network_rows.float())
    return torch.cat(images), labels, float(torch.cat(rows).mean())


def draw(path: Path) -> None:
    """Draws 20 digits by every rule, a rule a row, with its name."""
    from PIL import Image, ImageDraw

    left, high = 190, 28 * 2
    picture = Image.new("RGB", (left + 20 * high, len(RULES) * high), "white")
    for k, name in enumerate(RULES):
        digits = run(name, 20)[0].clamp(-1, 1)
        line = ((torch.cat(list(digits[:, 0]), 1) + 1) * 127.5).byte().numpy()
        drawn = Image.fromarray(line).resize((20 * high, high))
        picture.paste(drawn, (left, k * high))
        ImageDraw.Draw(picture).text((4, k * high + 22), name, fill="black")
    picture.convert("L").save(path, optimize=True)


def main() -> None:
    """Measures all rules, or draws them."""
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
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {(json.loads(line)["rule"], json.loads(line)["count"]) for line in lines}
    for name in RULES:
        if (name, options.count) in known:
            continue
        images, labels, rows = run(name, options.count)
        beyond = float((images.abs() > 1.05).float().mean())
        clipped = images.clamp(-1, 1)
        spread = torch.stack([clipped[labels == k].std(dim=0).mean() for k in range(10)]).mean()
        row = {"rule": name, "count": options.count, "rows": round(rows, 1)}
        row |= quality.measure(judge, clipped, labels, real)
        row |= {"beyond": round(beyond, 5), "spread": round(float(spread), 4)}
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
