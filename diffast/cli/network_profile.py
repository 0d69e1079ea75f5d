"""`diffast profile` of the digit network: what limits its sampler."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffast.cli import doors

_COUNT, _LEVELS = 256, 24


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that the other two profiles do not have."""
    add = parser.add_argument
    data = "images: .npz with images uint8 [N, 28, 28] and labels [N] (default: generated digits)"
    add("--data", metavar="FILE", help=data)
    parts = (
        "what is measured besides the levels: some of samples, rotation, decisions, clones; none"
    )
    add("--measure", metavar="PARTS", default="samples,rotation,decisions,clones", help=parts)
    add("--levels", type=doors.whole(2, 10_000), default=_LEVELS, help="noise levels (%(default)s)")


def check_out(out: str) -> Path:
    """Returns the file that a profile is written to.

    Raises:
        ValueError: another ending; no such folder.
    """
    drawn = {".html": "matplotlib", ".png": "matplotlib"}
    return doors.output_file("--out", out, (".html", ".png", ".json"), drawn)


def profile(arguments: argparse.Namespace, digit_denoiser: Callable[..., Any]) -> int:
    """Measures the digit network, writes the profile and prints its summary; returns 0.

    Args:
        arguments: as parsed.
        digit_denoiser: arguments -> (denoiser of the digits, labels, device).

    Raises:
        ValueError: bad input.
    """
    path = check_out(arguments.out or "profile.html")
    arguments.count = _COUNT if arguments.count is None else arguments.count
    if arguments.set:
        raise ValueError(
            f"--set {arguments.set[0]!r} but it is an option of --adaptive and --parallel"
        )
    parts = [] if arguments.measure == "none" else arguments.measure.split(",")
    images, labels = (None, None) if arguments.data is None else _digits(Path(arguments.data))
    denoiser, asked, device = digit_denoiser(arguments)
    if images is not None and labels is not None:
        wanted = (labels[:, None] == asked.unique()).any(1)  # --classes
        images, labels = images[wanted], labels[wanted]
        denoiser = replace(denoiser, conditions={"labels": labels.to(device)})

    from diffast.thermo.profiling import profile as measured

    begin = time.perf_counter()
    found = measured(
        denoiser,
        images,
        (arguments.count, 1, 28, 28),
        count=arguments.count,
        levels=arguments.levels,
        seed=arguments.seed,
        measure=parts,
        device=device,
        progress=not arguments.quiet,
    )
    seconds = time.perf_counter() - begin
    found.save(path)
    print(found)
    for note in found.notes:
        print(f"note: {note}")
    print(f"seconds        {seconds:.2f}")
    print(f"wrote          {path}")
    return 0


def _digits(path: Path) -> tuple[Any, Any]:
    """Returns (images [N, 1, 28, 28] from -1 to 1, labels [N]) of an npz file."""
    import numpy as np
    import torch

    from diffast._files import load_arrays

    doors.input_file("--data", str(path))
    try:
        file = load_arrays(path, ratio=64)
        images, labels = file["images"], file["labels"]
    except (OSError, EOFError, KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"--data {path} but an .npz with the arrays images and labels is needed ({error})"
        ) from None
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise ValueError(
            f"--data {path} has images {images.dtype} {list(images.shape)} and labels "
            f"{list(labels.shape)}, but uint8 [N, 28, 28] and [N] are needed"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise ValueError(
            f"--data {path} has labels {labels.dtype} {list(labels.shape)}, but whole numbers [N] "
            "are needed"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() <= 9):
        raise ValueError(
            f"--data {path} has labels from {labels.min()} to {labels.max()}, but digits are 0 to 9"
        )
    made = torch.from_numpy(images.astype(np.float32))[:, None] / 127.5 - 1.0
    return made, torch.from_numpy(labels.astype(np.int64))
