"""Samples to files: a PNG grid, .npz or .safetensors, each written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from diffast.cli import doors

ENDINGS = (".png", ".npz", ".safetensors")


def check_path(path: str | Path) -> Path:
    """Returns the path if samples can be written there; called before the work, not after.

    Raises:
        ValueError: for an ending that is not known, a missing folder, one without permission, or
            a PNG where Pillow is not installed.
    """
    return doors.output_file("output", str(path), ENDINGS, {".png": "PIL"})


def grid(x: torch.Tensor, columns: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Returns samples [N, 1 or 3, H, W] as one picture, uint8 [rows * H, columns * W] or [..., 3].

    Values outside [low, high], black and white, are clipped. The last row is filled up with black.

    Raises:
        ValueError: for another shape, or fewer than 1 column.
    """
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"grid: x is {list(x.shape)} but [N, 1 or 3, H, W] is needed")
    if columns < 1:
        raise ValueError(f"grid: {columns} columns but at least 1 is needed")
    count, channels, height, width = x.shape
    unit = ((x.detach().float().cpu() - low) / (high - low)).clamp(0, 1)
    pixels = (unit * 255).round().to(torch.uint8).numpy()
    rows = max(1, -(-count // columns))
    page = np.zeros((rows * columns, channels, height, width), np.uint8)
    page[:count] = pixels
    page = page.reshape(rows, columns, channels, height, width).transpose(0, 3, 1, 4, 2)
    page = page.reshape(rows * height, columns * width, channels)
    return page[:, :, 0] if channels == 1 else page


def write(path: str | Path, x: torch.Tensor, arrays: dict, facts: dict, columns: int = 8) -> Path:
    """Returns the path, after writing the samples [N, C, H, W] there.

    A .png is a grid; .npz and .safetensors hold `x` and the arrays, such as labels [N]. The facts,
    how the samples were made, are kept as JSON text in every format.

    Raises:
        ValueError: as `check_path` and `grid`.
    """
    path, text = check_path(path), json.dumps(facts, sort_keys=True)
    with doors.replaced(path) as part:  # a full disk or a stop leaves the old file
        _WRITERS[path.suffix](part, x, arrays, text, columns)
    return path


def _write_png(name, x, arrays, text, columns) -> None:
    from PIL import Image, PngImagePlugin

    note = PngImagePlugin.PngInfo()
    note.add_text("diffast", text)
    Image.fromarray(grid(x, columns)).save(name, format="PNG", pnginfo=note)


def _write_npz(name, x, arrays, text, columns) -> None:
    np.savez(name, x=x.cpu().numpy(), facts=np.array(text), **arrays)


def _write_safetensors(name, x, arrays, text, columns) -> None:
    from safetensors.torch import save_file

    tensors = {key: torch.as_tensor(value) for key, value in arrays.items()}
    save_file({"x": x.cpu().contiguous(), **tensors}, name, metadata={"diffast": text})


_WRITERS = {".png": _write_png, ".npz": _write_npz, ".safetensors": _write_safetensors}
