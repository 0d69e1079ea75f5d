"""Writes results/steer_digits.json: digits of a wanted class by particles.

    python bench/steer_digits.py                # some minutes on one core

The reward is log p(class) of the noise-aware classifier at the x0 estimate; the share of samples
that a second, clean classifier takes for the class judges them. "terms" are guided steps by the
first classifier at the noisy state, of scale 1: with particles that is TDS.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn import functional

import diffast as df

WRITTEN = Path(__file__).parent / "results" / "steer_digits.json"
SAMPLES, CALLS = 40, 20
NOISE = 0.2  # what the classifier is told of estimates: it was trained for noisy digits


def main() -> None:
    """Measures and writes."""
    torch.set_num_threads(1)
    schedule = df.schedules.edm()
    classifier, judge = df.digits.load_classifier(), df.digits.load_judge()
    labels = torch.arange(SAMPLES) % 10
    plan = df.solvers.ddim(schedule, df.grids.default(schedule, CALLS), eta=1.0)
    any_digit = torch.full((SAMPLES,), df.digits.NULL_LABEL)

    def score(x0: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        logits = classifier(x0, torch.full((len(x0),), NOISE))
        return functional.log_softmax(logits, 1).gather(1, own[:, None])[:, 0]

    rows = []
    for guided in (False, True):
        guides = [df.guidance.classifier(classifier, labels, 1.0)] if guided else []
        denoiser = df.Denoiser(
            df.digits.load_unet(), schedule, "x0", conditions={"labels": any_digit}, guides=guides
        )
        for particles in (1, 2, 4) if guided else (1, 2, 4, 8):
            own = labels.repeat_interleave(particles)
            made = df.sample_particles(
                denoiser,
                plan,
                reward=lambda x0, t, own=own: score(x0, own),
                particles=particles,
                shape=(SAMPLES, 1, 28, 28),
                seed=1,
            )
            picked = {"draw": made.draw(), "best": made.best()}
            with torch.no_grad():
                right = {
                    k: float((judge(x).argmax(1) == labels).float().mean())
                    for k, x in picked.items()
                }
            row = {"terms": guided, "particles": particles, "calls": CALLS * particles} | right
            row["resampled"] = float(made.resampled.float().sum(0).mean())
            row["effective"] = float(made.effective[-1].mean())
            rows.append(row)
            print(row, flush=True)
    WRITTEN.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
