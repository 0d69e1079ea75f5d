"""Late starts on the digit network: error and quality with and without, the certificate beside it.

    python bench/late_start.py distance --data mnist-10k.npz --kind class --out late_start.jsonl
    python bench/late_start.py quality --data mnist-10k.npz --kind class --out late_start.jsonl
    python bench/late_start.py certificate --data mnist-10k.npz --out late_start.jsonl

Laws are made of all but the last 1,000 images, certificates are measured on those. "distance" is
the rms distance to the exact flow over the spread of its samples: `error` to the flow of the same
noises from noise alone at the top, `error_to_law` to that from the law there. "quality" is
what the judge says: the Frechet distance to all images of the file, and the share of samples of the
class asked for. Kinds: "uncond" (no class), "class", "guided" (guidance 3, laws of the data
of a class) and "guided, laws of guided samples" (500 of the network's own).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffast as df
from diffast.digits import NULL_LABEL, quality
from diffast.plans.initial import StartLaw
from diffast.tuning.judge import Judge, samples_of
from diffast.tuning.pilots import HELD_OUT, Pilots, ids_of
from diffast.tuning.teacher import teacher_plan

KINDS = ("uncond", "class", "guided", "guided, laws of guided samples")
LABELS = {"labels": torch.arange(10)}
BLANK = {"labels": torch.tensor([NULL_LABEL])}
SHAPE = (1, 28, 28)
HELD = 1000


def denoiser_of(kind: str) -> df.Denoiser:
    """Returns the digit network; row i is a digit of class i modulo 10, or of any class."""
    guided = kind.startswith("guided")
    return df.Denoiser(
        df.digits.load_unet(),
        df.schedules.edm(),
        "x0",
        conditions=BLANK if kind == "uncond" else LABELS,
        unconditional=BLANK if guided else None,
        guidance=3.0 if guided else 1.0,
    )


def images_of(path: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns all images [N, 1, 28, 28] in data units and their labels."""
    with np.load(path, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1
        return images, torch.from_numpy(file["labels"]).long()


def law_of(kind: str, images: torch.Tensor, labels: torch.Tensor) -> StartLaw:
    """Returns one law for all, or one a class."""
    shrunk = df.thermo.shrunk_gaussian
    if kind == "uncond":
        return StartLaw((shrunk(images),))
    if kind.endswith("guided samples"):
        plan = df.digits.load_plan(5, 3.0)
        return df.thermo.start_law(
            denoiser_of(kind), by="labels", shape=SHAPE, count=500, plan=plan, seed=7
        )
    return StartLaw(tuple(shrunk(images[labels == k]) for k in range(10)), by="labels")


def standard(solver: str, steps: int) -> df.Plan:
    """Returns a standard plan on the grid that served best without a late start."""
    schedule = df.schedules.edm()
    grid = df.grids.even(schedule, steps)
    if solver == "unipc":
        return df.solvers.unipc(schedule, grid, order=3, final="falling")
    return df.solvers.adams(schedule, grid, order=int(solver[-1]))


def plans(kind: str) -> Iterator[tuple[str, df.Plan]]:
    """Yields (name, plan) of what is cut."""
    for calls in (4, 5, 6, 8, 10):
        try:
            yield "tuned", df.digits.load_plan(calls, 3.0 if kind.startswith("guided") else 1.0)
        except ValueError:
            continue
    for calls in (3, 5, 8):
        yield "unipc", standard("unipc", calls)  # keeps more than x between steps: is not cut
    for calls in (8, 16):
        yield "adams2", standard("adams2", calls)


def cuts(plan: df.Plan, law: Any, most: int) -> Iterator[df.Plan]:
    """Yields the plan, and the plan with each of its first calls cut off, down to 3 calls."""
    yield plan
    seen = {plan.nfe}
    for calls in range(min(plan.nfe, most), 2, -1):
        try:
            late = plan.late_start(law, calls=calls)
        except ValueError:
            continue
        if late.nfe not in seen or calls == plan.nfe:
            seen.add(late.nfe)
            yield late


def level_of(plan: df.Plan) -> float:
    return float(np.exp(-plan.schedule.lam(plan.start)))


def distances(arguments: argparse.Namespace) -> Iterator[dict]:
    kind, rows = arguments.kind, arguments.count or 64
    images, labels = images_of(arguments.data)
    law, denoiser = law_of(kind, images[:-HELD], labels[:-HELD]), denoiser_of(kind)
    ids = ids_of(rows, HELD_OUT)
    pilots = Pilots(denoiser, SHAPE, 0, torch.device("cpu"))
    # The exact flow from noise alone at the top, and from the law there.
    teacher = teacher_plan(denoiser, 48)
    noise, start = (
        Judge(samples_of(plan, pilots, ids, 256)) for plan in (teacher, teacher.late_start(law))
    )
    yield {"plan": "exact flow from the law at the top", "error": noise.error(start.wanted)}
    for name, plan in plans(kind):
        for one in cuts(plan, law, 10):
            made = samples_of(one, pilots, ids, 256)
            row = {"plan": name, "of": plan.nfe, "calls": one.nfe, "late": one.initial is not None}
            row |= {"level": level_of(one), "error": noise.error(made)}
            yield row | {"error_to_law": start.error(made)}


def qualities(arguments: argparse.Namespace) -> Iterator[dict]:
    kind, count = arguments.kind, arguments.count or 500
    images, labels = images_of(arguments.data)
    law, denoiser = law_of(kind, images[:-HELD], labels[:-HELD]), denoiser_of(kind)
    judge, wanted, ids = df.digits.load_judge(), torch.arange(count) % 10, ids_of(count)
    pilots = Pilots(denoiser, SHAPE, 0, torch.device("cpu"))
    for name, plan in judged(kind, law):
        made = samples_of(plan, pilots, ids, 125).clamp(-1, 1)
        found = quality.measure(judge, made, wanted, images)
        if kind == "uncond":  # no class is asked for
            found = {"frechet": found["frechet"]}
        row = {"plan": name, "calls": plan.nfe, "late": plan.initial is not None}
        yield row | {"level": level_of(plan), "count": count} | found


def judged(kind: str, law: StartLaw) -> Iterator[tuple[str, df.Plan]]:
    """Yields (name, plan): full plans, the same from the law, and cut ones of as many calls."""
    guidance = 3.0 if kind.startswith("guided") else 1.0
    tuned = {}
    for calls in (4, 5, 6, 8, 10):
        try:
            tuned[calls] = df.digits.load_plan(calls, guidance)
        except ValueError:
            continue
    for calls in (3, 5, 8):
        yield "unipc", standard("unipc", calls)
    for calls, of in ((3, 4), (3, 5), (5, 6), (8, 10)):
        if of in tuned:
            yield f"tuned of {of}", tuned[of].late_start(law, calls=calls)
    for calls in (5, 8):
        yield "tuned", tuned[calls]
        yield "tuned", tuned[calls].late_start(law)
    yield "adams3", standard("adams3", 12)
    yield "adams3", standard("adams3", 12).late_start(law)


def certificates(arguments: argparse.Namespace) -> Iterator[dict]:
    """Yields certificates of every kind of law, by the number of images that laws are made of."""
    images, labels = images_of(arguments.data)
    y, own = images[-HELD:][:200], labels[-HELD:][:200]
    levels = np.geomspace(40.0, 0.7, 13)
    for kind in ("class", "uncond"):
        denoiser = denoiser_of(kind)
        if kind == "class":
            denoiser = replace(denoiser, conditions={"labels": own})
        for count in (len(images) - HELD, 1000):
            some, their = images[:count], labels[:count]
            laws = {"one law": law_of("uncond", some, their)}
            if kind == "class":
                laws["a law a class"] = law_of("class", some, their)
            for name, law in laws.items():
                made = df.thermo.certificate(denoiser, law, y, levels=levels)
                yield {"kind": kind, "law": name, "images": count} | made.to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["distance", "quality", "certificate"])
    parser.add_argument("--data", required=True, help="npz with images uint8 [N, 28, 28], labels")
    parser.add_argument("--kind", choices=KINDS, default="class")
    parser.add_argument("--count", type=int)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = {"distance": distances, "quality": qualities, "certificate": certificates}
    for row in parts[arguments.part](arguments):
        row = {"part": arguments.part, "kind": arguments.kind} | row
        with arguments.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


if __name__ == "__main__":
    main()
