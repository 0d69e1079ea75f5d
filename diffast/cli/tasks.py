"""`diffast sample --task`: inverse problems and guided tasks on the digits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffast._files import load_array

# Names of the command line: the task of `df.tasks.digits`, and which files it needs.
NAMES = {
    "inpaint": ("inpaint", ("image", "mask")),
    "super-resolution": ("super_resolve", ("image",)),
    "deblur": ("deblur", ("image",)),
    "colorize": ("colourise", ("image",)),
    "class": ("draw", ()),
    "text": ("write", ("text",)),
}
# Of a blur, in pixels, where the text says none.
_BLUR = 2.0
_FLAG = "--task"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of tasks."""
    add = parser.add_argument
    add(
        "--task",
        metavar="NAME[:KEY=VALUE,..]",
        help=f"{', '.join(NAMES)}; options as in inpaint:method=dps,calls=100, class:scale=5, "
        "super-resolution:factor=4, deblur:kernel=2",
    )
    add("--image", metavar="FILE", help="what a task knows of the digit: .png, or .npy in [-1, 1]")
    add("--mask", metavar="FILE", help="of inpaint, and of a hint's place: white is known")
    add("--text", help='of the task "text": such as "a bold seven leaning right"')


def check(arguments: argparse.Namespace) -> None:
    """Checks which flags stand together, before anything is loaded.

    Raises:
        ValueError: an unknown task; a file or text that is missing, or has no task.
    """
    given = [name for name in ("image", "mask", "text") if getattr(arguments, name) is not None]
    if arguments.task is None:
        if given:
            raise ValueError(f"--{given[0]} is given, but no --task that takes it")
        return
    name, (_, needed) = _task(arguments.task)
    for flag in needed:
        if getattr(arguments, flag) is None:
            raise ValueError(f"{_FLAG} {name} needs --{flag}, but it is not given")
    for flag in given:
        if flag not in needed:
            raise ValueError(f"--{flag} is given, but {_FLAG} {name} takes none")
    if arguments.guidance_rule is not None or arguments.guidance != 1.0:
        flag = "--guidance" if arguments.guidance_rule is None else "--guidance-rule"
        raise ValueError(
            f"{flag} and {_FLAG} are both given, but a task's network has no unconditional "
            f"branch: {_FLAG} class:scale=5 says how strong a condition is"
        )


def _task(text: str) -> tuple[str, tuple[str, tuple[str, ...]]]:
    from diffast._namespace import lookup
    from diffast.guidance.parse import split

    name, _ = split(_FLAG, text)
    return name, lookup("task", NAMES, name)


def prepared(
    arguments: argparse.Namespace, plan: Any, labels: Any, device: Any, classes: bool
) -> Any:
    """Returns the task of the arguments, see `df.tasks.digits.prepare`.

    Args:
        arguments: of the command.
        plan: to run in place of the task's own, or None.
        labels: the digits asked for, [count].
        device: where to run.
        classes: whether --classes was given, which tells the network the digits.

    Raises:
        ValueError: files that cannot be read, images of the wrong size; unknown options.
    """
    import torch

    from diffast import tasks
    from diffast.guidance.parse import check_known, number, split

    name, (task, _) = _task(arguments.task)
    _, texts = split(_FLAG, arguments.task)
    options = {key: number(f"{_FLAG} {name}", key, value) for key, value in texts.items()}
    if plan is not None and "calls" in options:
        raise ValueError(
            f"{_FLAG} {name} is given calls, and the plan's flags give a plan, which has its own "
            "number of calls: leave one out"
        )
    options |= {} if plan is None else {"plan": plan}
    if name in ("class", "text"):
        known = ["scale", "calls", "plan", *(["through"] if name == "text" else [])]
        check_known(_FLAG, name, options, known)
        first: Any = labels if name == "class" else arguments.text
        more = {"samples": arguments.count, "device": device}
        return tasks.digits.prepare(task, first, **more, **options)
    side = tasks.digits.SIZE
    factor = options.pop("factor", 4) if name == "super-resolution" else 1
    deviation = options.pop("kernel", _BLUR) if name == "deblur" else 0.0
    if not isinstance(factor, int) or factor < 1 or side % factor:
        raise ValueError(f"{_FLAG} {name}: factor is {factor}, but it must divide {side}")
    side //= factor
    image = torch.from_numpy(read_image("--image", arguments.image, side)).to(device)
    given: list[Any] = [image]
    if name == "inpaint":
        size = tasks.digits.SIZE
        given.append(torch.from_numpy(read_mask("--mask", arguments.mask, size)).to(device))
    given += [factor] if name == "super-resolution" else []
    given += [tasks.gaussian_kernel(deviation)] if name == "deblur" else []
    more = {"samples": arguments.count} | ({"labels": labels.to(device)} if classes else {})
    try:
        return tasks.digits.prepare(task, *given, **more, **options)
    except TypeError as error:
        raise ValueError(f"{_FLAG} {arguments.task!r}: {error}") from None


def with_plan(made: Any, change: Callable[[Any], Any]) -> Any:
    """Returns a task whose plan is changed by a function."""
    from dataclasses import replace

    return replace(made, setup=replace(made.setup, plan=change(made.setup.plan)))


def read_image(flag: str, path: str, side: int) -> np.ndarray:
    """Returns a picture as float32 [1, 1, side, side] in [-1, 1].

    Args:
        flag: that names the file, for messages.
        path: a .png, of which the grey value is taken, or a .npy with numbers in [-1, 1].
        side: pixels.

    Raises:
        ValueError: no such file, another ending, what is no picture, another size, numbers outside
            of [-1, 1].
    """
    if _ending(flag, path) == ".npy":
        found = _array(flag, path)
        worst = float(np.abs(found).max(initial=0.0)) if np.isfinite(found).all() else np.inf
        if worst > 1.0:
            raise ValueError(f"{flag} {path} holds {worst:g}, but pixels lie in [-1, 1]")
    else:
        found = _pixels(flag, path) / 127.5 - 1.0
    found = found.astype(np.float32)
    _check_size(flag, path, found, side)
    return found[None, None]


def read_mask(flag: str, path: str, side: int) -> np.ndarray:
    """Returns a mask as bool [side, side], True where a pixel is known.

    Args:
        flag: that names the file, for messages.
        path: a .png of black and white (known), or a .npy of 0 and 1.
        side: pixels.

    Raises:
        ValueError: as `read_image`; values between the two.
    """
    png = _ending(flag, path) == ".png"
    found = _pixels(flag, path) if png else _array(flag, path)
    top = 255 if png else 1
    between = found[(found != 0) & (found != top)]
    if between.size:
        raise ValueError(
            f"{flag} {path} holds {between.flat[0]:g}, but a mask has 0 (hidden) and {top} (known) "
            "alone"
        )
    _check_size(flag, path, found, side)
    return found != 0


def _ending(flag: str, path: str) -> str:
    ending = Path(path).suffix.lower()
    if ending not in (".png", ".npy"):
        raise ValueError(f"{flag} {path} ends in {ending!r}, but .png or .npy is needed")
    if not Path(path).is_file():
        raise ValueError(f"{flag} {path}: there is no such file")
    return ending


def _array(flag: str, path: str) -> np.ndarray:
    try:
        found = load_array(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{flag} {path} is no array of numpy: {error}") from None
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{flag} {path} holds {found.dtype}, but numbers are needed")
    shape = [n for n in found.shape if n != 1]
    return found.astype(np.float64).reshape(shape if len(shape) == 2 else found.shape)


def _pixels(flag: str, path: str) -> np.ndarray:
    """Returns the grey values 0 to 255 of a PNG, [H, W] float64."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ValueError(
            f"{flag} {path} needs Pillow, which is not installed: pip install 'diffast[pictures]', "
            "or give a .npy"
        ) from error
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith("I"):  # 16 bits; Pillow's conversion would clip them
                return np.asarray(picture, dtype=np.float64) / 257.0
            if np.asarray(picture.convert("RGBA"))[..., 3].min(initial=255) < 255:
                raise ValueError(
                    f"{flag} {path} is transparent in places, but every pixel needs a grey value: "
                    "put the picture on a background"
                )
            return np.asarray(picture.convert("L"), dtype=np.float64)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{flag} {path} is no PNG that can be read: {error}") from None


def _check_size(flag: str, path: str, found: np.ndarray, side: int) -> None:
    if found.shape != (side, side):
        size = " x ".join(map(str, found.shape[::-1]))
        raise ValueError(f"{flag} {path} is {size} pixels, but {side} x {side} are needed")
