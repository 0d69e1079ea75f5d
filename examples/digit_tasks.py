"""Guided tasks and inverse problems on digits: numbers for all, pictures with ``--out``.

    python examples/digit_tasks.py
    python examples/digit_tasks.py --data mnist-10k.npz --out docs/pictures --calls 60

The truth is drawn by the network itself; with ``--data`` it is the last digits of an npz file with
``images`` uint8 [N, 28, 28]. Each picture has the truth on top, then what is known, then samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import diffast as df
from diffast.tasks import digits as tasks
from diffast.tasks import gaussian_kernel

NOISE = 0.05


def psnr(x: Tensor, truth: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB, for pixels in [-1, 1]."""
    error = (x.clamp(-1, 1) - truth).square().mean(dim=(1, 2, 3))
    return float((10 * (4 / error).log10()).mean())


def read(x: Tensor) -> Tensor:
    """The judge's answers to grey digits, [B]."""
    return df.digits.load_judge()(x.clamp(-1, 1)).argmax(dim=1)


def truths(data: Path | None, count: int) -> Tensor:
    """Digits to hide something of, [count, 1, 28, 28]."""
    if data is None:
        denoiser = tasks.denoiser(count, torch.arange(count) % 10)
        plan = df.digits.load_plan(8)
        return df.sample(denoiser, plan, (count, 1, 28, 28), seed=7).x.clamp(-1, 1)
    with np.load(data, allow_pickle=False) as file:
        return torch.from_numpy(file["images"][-count:]).float()[:, None] / 127.5 - 1


def whole(image: Tensor) -> Tensor:
    """An image as large as a digit: pixels of a small one are repeated."""
    factor = 28 // image.shape[-1]
    return image.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def save(path: Path, rows: list[Tensor]) -> None:
    """Writes rows of images [B, 1 or 3, 28, 28] as one picture, three pixels for one."""
    from PIL import Image

    lines = []
    for row in rows:
        colours = row.clamp(-1, 1).expand(-1, 3, -1, -1)
        framed = torch.nn.functional.pad((colours + 1) * 127.5, (1, 1, 1, 1), value=60.0)
        lines.append(torch.cat(list(framed), dim=2))
    pixels = torch.cat(lines, dim=1).round().byte().permute(1, 2, 0)
    pixels = pixels.repeat_interleave(3, 0).repeat_interleave(3, 1)
    Image.fromarray(pixels.numpy()).save(path, optimize=True)


def inpainting(truth: Tensor, calls: int) -> tuple[list[Tensor], str]:
    """A hole of 12 x 12 pixels."""
    mask = torch.ones(28, 28, dtype=torch.bool)
    mask[8:20, 8:20] = False
    known = torch.where(mask, truth, 0.0)
    made = [tasks.inpaint(known, mask, calls=calls, seed=seed).x for seed in range(3)]
    return [truth, known, *made], said(made, truth)


def super_resolution(truth: Tensor, calls: int) -> tuple[list[Tensor], str]:
    """Means of 4 x 4 pixels, and noise."""
    small = noisy(torch.nn.functional.avg_pool2d(truth, 4))
    options = {"calls": calls, "noise": NOISE}
    made = [tasks.super_resolve(small, 4, seed=seed, **options).x for seed in range(3)]
    return [truth, whole(small), *made], said(made, truth)


def deblurring(truth: Tensor, calls: int) -> tuple[list[Tensor], str]:
    """A Gaussian blur of deviation 2, and noise."""
    kernel = gaussian_kernel(2.0)
    blurred = noisy(df.tasks.blur(kernel).forward(truth))
    options = {"calls": calls, "noise": NOISE}
    made = [tasks.deblur(blurred, kernel, seed=seed, **options).x for seed in range(3)]
    return [truth, blurred, *made], said(made, truth)


def colourising(truth: Tensor, calls: int) -> tuple[list[Tensor], str]:
    """Grey values of coloured digits. Every ink agrees with them."""
    ink = torch.arange(len(truth)) % 3
    coloured = df.digits.tint(truth, ink)
    grey = coloured.mean(dim=1, keepdim=True)
    made = [tasks.colourise(grey, calls=calls, seed=seed).x for seed in range(3)]
    amount = (made[0].clamp(-1, 1) + 1).square().sum(dim=(2, 3))
    pure = float((amount.amax(dim=1) / amount.sum(dim=1)).mean())
    found = torch.cat([(x + 1).square().sum(dim=(2, 3)).argmax(dim=1) for x in made])
    shares = torch.bincount(found, minlength=3).tolist()
    return [coloured, grey, *made], f"{pure:.1%} of the light in one ink, inks {shares}"


def classes(truth: Tensor, calls: int) -> tuple[list[Tensor], str]:
    """A class for each digit, by the noise-aware classifier."""
    labels = torch.arange(len(truth)) % 10
    made = [tasks.draw(labels, calls=calls, seed=seed).x for seed in range(3)]
    right = sum(float((read(x) == labels).double().mean()) for x in made) / 3
    return made, f"{right:.0%} are read as the digit that was asked for"


def captions(truth: Tensor, calls: int) -> tuple[list[Tensor], str]:
    """Thin digits, bold ones, and bold ones that lean to the left."""
    labels = torch.arange(len(truth)) % 10
    names = [df.digits.words.NAMES[digit] for digit in labels.tolist()]
    texts = ("a thin {}", "a bold {}", "a bold {} leaning left")
    made = [tasks.write([text.format(n) for n in names], calls=calls, seed=1).x for text in texts]
    right = sum(float((read(x) == labels).double().mean()) for x in made) / 3
    light = [float((x.clamp(-1, 1) + 1).mean() / 2) for x in made]
    return made, f"{right:.0%} are read as their name, mean pixel {light[0]:.3f}, {light[1]:.3f}"


def noisy(image: Tensor) -> Tensor:
    """The image and some noise."""
    return image + NOISE * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))


def said(made: list[Tensor], truth: Tensor) -> str:
    """Quality of restored digits, over all samples."""
    dB = sum(psnr(x, truth) for x in made) / len(made)
    right = sum(float((read(x) == read(truth)).double().mean()) for x in made) / len(made)
    return f"{dB:.1f} dB, {right:.0%} are read as the truth is"


EXAMPLES = {
    "inpainting": inpainting,
    "super_resolution": super_resolution,
    "deblurring": deblurring,
    "colourising": colourising,
    "classes": classes,
    "captions": captions,
}


def main() -> None:
    """Runs the tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=list(EXAMPLES), help=", ".join(EXAMPLES))
    parser.add_argument("--data", type=Path, help="npz of images; default: digits of the network")
    parser.add_argument("--out", type=Path, help="folder for pictures; default: none")
    parser.add_argument("--calls", type=int, default=12, help="network calls of a run")
    parser.add_argument("--count", type=int, default=10, help="digits")
    args = parser.parse_args()
    truth = truths(args.data, args.count)
    for name in args.tasks:
        rows, result = EXAMPLES[name](truth, args.calls)
        print(f"{name}: {result}", flush=True)
        if args.out is not None:
            save(args.out / f"task_{name}.png", rows)


if __name__ == "__main__":
    main()
