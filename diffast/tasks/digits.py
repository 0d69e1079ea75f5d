"""Guided tasks and inverse problems on the digit networks of the package.

    df.tasks.digits.inpaint(image, mask)            part of the image is known
    df.tasks.digits.super_resolve(image, factor=4)  block means are known
    df.tasks.digits.deblur(image, kernel)           a blurred image is known
    df.tasks.digits.colourise(grey)                 the grey value is known, the ink is not
    df.tasks.digits.draw(labels)                    the class, by a noise-aware classifier
    df.tasks.digits.write(captions)                 a caption, by an embedding of digits and words

Each returns the `Samples` of `df.sample`. `prepare(task, ...)` returns the same before the run: a
`Prepared`, with the setup and the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffast import digits, grids, guidance, schedules, solvers
from diffast._namespace import lookup
from diffast.executors.results import Samples
from diffast.model.denoiser import Denoiser
from diffast.plans import Plan
from diffast.tasks.composition import compose
from diffast.tasks.methods import restore
from diffast.tasks.operator import Operator
from diffast.tasks.operators import blur, colour, inpainting, opponent_basis, super_resolution
from diffast.tasks.setup import Setup

SIZE = 28

# A pixel may miss its range by rounding.
_SLACK = 1e-3


@dataclass(frozen=True)
class Prepared:
    """A task before its run.

    Attributes:
        setup: what the run needs.
        shape: of the samples, [B, C, 28, 28].
        operator: the measurement; None for tasks without one.
        y: what was measured, or None.
    """

    setup: Setup
    shape: tuple[int, ...]
    operator: Operator | None = None
    y: Tensor | None = None

    def sample(self, **arguments: Any) -> Samples:
        """Returns the samples; arguments (seed, ids, callback, ..) as for `df.sample`."""
        x = arguments.pop("x", None)
        return self.setup.sample(None if x is not None else self.shape, x=x, **arguments)


@cache
def _network(name: str) -> Any:
    """One of the package's networks, loaded once."""
    return getattr(digits, f"load_{name}")()


def _on(network: Any, device: torch.device) -> Any:
    """Returns the network on a device; the one that is kept stays on the host."""
    if device.type == "cpu":
        return network
    from copy import deepcopy

    return deepcopy(network).to(device)


def denoiser(
    count: int,
    labels: Any = None,
    *,
    network: str = "unet",
    device: torch.device | str = "cpu",
    guides: Sequence[guidance.Guide] = (),
) -> Denoiser:
    """Returns the denoiser of `count` digits of any class, or of the labels.

    Args:
        count: samples.
        labels: the digit of each sample, [B] or one for all; None: any digit.
        network: "unet" for grey digits, "tinted" for digits in coloured ink.
        device: where the network is to be.
        guides: guidance terms.

    Raises:
        ValueError: labels that are no digits, or not one for each sample.
    """
    device = torch.device(device)
    told = torch.as_tensor(digits.NULL_LABEL if labels is None else labels)
    if told.is_floating_point() or told.dim() > 1 or (told.dim() and len(told) not in (1, count)):
        raise ValueError(
            f"tasks: labels are {told.dtype} {list(told.shape)}, but a whole number for each of "
            f"{count} samples is needed"
        )
    if bool(((told < 0) | (told > digits.NULL_LABEL)).any()):
        raise ValueError(f"tasks: label {int(told.max())} is given, but digits are 0 to 9")
    told = told.to(device, torch.int64).expand(count).contiguous()
    return Denoiser(
        _on(_network(network), device),
        schedules.edm(),
        "x0",
        conditions={"labels": told},
        guides=guides,
    )


# --- what is measured ---------------------------------------------------------------------------


def _image(who: str, image: Any, channels: int, size: tuple[int, int], slack: float) -> Tensor:
    """Returns an image as [B, C, H, W] of float32.

    Raises:
        ValueError: another shape, values that are not finite or outside [-1, 1].
    """
    given = torch.as_tensor(image)
    if not given.dtype.is_floating_point:
        raise ValueError(
            f"{who}: the image is {given.dtype}, but pixels are numbers in [-1, 1]: divide bytes "
            "by 127.5 and subtract 1"
        )
    given = given[(None,) * max(4 - given.dim(), 0)]
    if given.dim() != 4 or tuple(given.shape[1:]) != (channels, *size) or not len(given):
        shape = ", ".join(map(str, (channels, *size)))
        raise ValueError(f"{who}: the image is {list(given.shape)}, but [B, {shape}] is needed")
    if not bool(given.isfinite().all()):
        raise ValueError(f"{who}: the image holds values that are not finite")
    worst = float(given.abs().max())
    if worst > 1 + _SLACK + max(slack, 0.0):
        far = float(given.flatten()[given.abs().argmax()])
        raise ValueError(
            f"{who}: the image holds {far:g}, but pixels lie in [-1, 1]: divide bytes by 127.5 and "
            "subtract 1"
        )
    return given.float()


# Deviation of the pixels of digits, which tells how far an estimate may be off.
_SPREAD = 0.62


def _prepare(
    operator: Operator, y: Tensor, samples: int | None, channels: int, labels: Any, options: Any
) -> Prepared:
    """Returns the task of a measurement; y is repeated for several samples of one image."""
    count = len(y) if samples is None else samples
    if samples is not None and (samples < 1 or len(y) not in (1, samples)):
        raise ValueError(f"tasks: {len(y)} images are given, but {samples} samples are wanted")
    y = y.expand(count, -1, -1, -1).contiguous()
    network = "unet" if channels == 1 else "tinted"
    made = denoiser(count, labels, network=network, device=y.device)
    options = {"method": "pigdm", **options}
    if options["method"] == "pigdm":
        options = {"spread": _SPREAD, **options}
    return Prepared(
        restore(made, operator, y, **options), (count, channels, SIZE, SIZE), operator, y
    )


def prepare_inpaint(
    image: Any, mask: Any, *, samples: int | None = None, labels: Any = None, **options: Any
) -> Prepared:
    """Returns the task of `inpaint`; arguments and errors are the same."""
    mask = torch.as_tensor(mask)
    if tuple(mask.shape[-2:]) != (SIZE, SIZE):
        raise ValueError(
            f"inpaint: the mask is {list(mask.shape)}, but the digits are {[SIZE, SIZE]}"
        )
    given = torch.as_tensor(image)
    operator = inpainting(mask.to(given.device))
    if given.dtype.is_floating_point and tuple(given.shape[-2:]) == (SIZE, SIZE):
        # what lies under the mask may be anything
        given = operator.forward(given[(None,) * max(4 - given.dim(), 0)])
    slack = 6 * options.get("noise", 0.0)
    return _prepare(
        operator,
        _image("inpaint", given, 1, (SIZE, SIZE), slack),
        samples,
        1,
        labels,
        ({} if options.get("noise") else {"method": "mcg"}) | options,
    )


def prepare_super_resolve(
    image: Any, factor: int = 4, *, samples: int | None = None, labels: Any = None, **options: Any
) -> Prepared:
    """Returns the task of `super_resolve`; arguments and errors are the same."""
    operator = super_resolution(factor)
    if SIZE % factor:
        raise ValueError(f"super_resolve: factor is {factor}, but it does not divide {SIZE}")
    small, slack = SIZE // factor, 6 * options.get("noise", 0.0)
    y = _image("super_resolve", image, 1, (small, small), slack)
    return _prepare(operator, y, samples, 1, labels, options)


def prepare_deblur(
    image: Any, kernel: Any, *, samples: int | None = None, labels: Any = None, **options: Any
) -> Prepared:
    """Returns the task of `deblur`; arguments and errors are the same."""
    y = _image("deblur", image, 1, (SIZE, SIZE), 6 * options.get("noise", 0.0))
    operator = blur(torch.as_tensor(kernel).to(y.device))
    return _prepare(operator, y, samples, 1, labels, options)


def prepare_colourise(
    grey: Any,
    hint: Any = None,
    mask: Any = None,
    *,
    samples: int | None = None,
    labels: Any = None,
    **options: Any,
) -> Prepared:
    """Returns the task of `colourise`; arguments and errors are the same."""
    if (hint is None) != (mask is None):
        raise ValueError("colourise: a hint needs a mask that says where it holds, and a mask one")
    if options.get("noise"):
        options["noise"] = options["noise"] * 3**0.5  # of the mean, but y is the basis' coordinate
    y = _image("colourise", grey, 1, (SIZE, SIZE), 4 * options.get("noise", 0.0))
    basis = colour(opponent_basis())
    known = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bool, device=y.device)
    known[:, 0] = True
    coordinates = torch.cat([y * 3**0.5, torch.zeros_like(y).expand(-1, 2, -1, -1)], dim=1)
    if hint is not None:
        shown = inpainting(torch.as_tensor(mask).to(y.device)).mask
        if tuple(shown.shape[2:]) != (SIZE, SIZE) or shown.shape[1] != 1:
            raise ValueError(
                f"colourise: the mask is {list(shown.shape)}, but the digits are {[SIZE, SIZE]}"
            )
        known = known | shown
        colours = basis.forward(_image("colourise", hint, 3, (SIZE, SIZE), 0.0))
        coordinates = torch.cat([coordinates[:, :1], colours[:, 1:].expand(len(y), -1, -1, -1)], 1)
    operator = compose(basis, inpainting(known))
    coordinates = torch.where(known, coordinates, coordinates.new_zeros(()))
    return _prepare(operator, coordinates, samples, 3, labels, options)


# --- what is asked for --------------------------------------------------------------------------


def _guided(count: int, guides: Sequence[guidance.Guide], calls: int, plan: Plan | None, device):
    made = denoiser(count, device=device, guides=guides)
    if plan is None:
        plan = solvers.dpmpp_2m(made.schedule, grids.default(made.schedule, calls))
    return Prepared(Setup(made, plan), (count, 1, SIZE, SIZE))


def prepare_draw(
    labels: Any,
    *,
    scale: float | Callable[[float], float] = 5.0,
    samples: int | None = None,
    calls: int = 30,
    plan: Plan | None = None,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Returns the task of `draw`; arguments and errors are the same."""
    wanted = torch.as_tensor(labels)
    if wanted.is_floating_point() or wanted.dim() > 1 or not wanted.numel():
        raise ValueError(f"draw: labels are {wanted.dtype} {list(wanted.shape)}, but [B] of int64")
    if bool(((wanted < 0) | (wanted > 9)).any()):
        raise ValueError(f"draw: label {int(wanted.max())} is given, but digits are 0 to 9")
    count = wanted.numel() if samples is None else samples
    wanted = wanted.to(device, torch.int64).expand(count)
    term = guidance.classifier(_on(_network("classifier"), torch.device(device)), wanted, scale)
    return _guided(count, [term], calls, plan, device)


def prepare_write(
    captions: str | Sequence[str],
    *,
    scale: float | Callable[[float], float] = 5.0,
    through: str = "network",
    samples: int | None = None,
    calls: int = 30,
    plan: Plan | None = None,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Returns the task of `write`; arguments and errors are the same."""
    captions = [captions] if isinstance(captions, str) else list(captions)
    count = len(captions) if samples is None else samples
    if len(captions) not in (1, count):
        raise ValueError(f"write: {len(captions)} captions are given, but {count} samples")
    words = _on(_network("words"), torch.device(device))
    term = guidance.loss(
        caption_loss(words, captions * (count // len(captions))), scale, through=through
    )
    return _guided(count, [term], calls, plan, device)


def caption_loss(
    words: digits.DigitWords, captions: Sequence[str]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns (x0 [B, 1, 28, 28], t) -> [B], minus the log-probability of each sample's caption."""
    with torch.no_grad():
        wanted = words.embed_captions(captions)

    def loss(x0: Tensor, t: Tensor) -> Tensor:
        cosine = (words.embed_images(x0) * wanted.to(x0.dtype)).sum(dim=1)
        return -F.logsigmoid(words.log_scale.exp().to(x0.dtype) * cosine + words.bias.to(x0.dtype))

    return loss


# --- runs ---------------------------------------------------------------------------------------


def inpaint(image: Any, mask: Any, *, seed: int = 0, ids: Any = None, **options: Any) -> Samples:
    """Returns digits that have the known pixels of an image.

    Args:
        image: pixels in [-1, 1], [B, 1, 28, 28] or [28, 28]; what the mask hides may be anything.
        mask: True (or 1) where a pixel is known, [28, 28] or [B, 1, 28, 28].
        seed: of the run.
        ids: of the samples, see `df.sample`.
        **options: `samples`, how many to draw of one image; `labels`, the digits where they are
            known; `method`, `calls`, `repeats`, `noise`, `plan` and others of `restore`.

    Raises:
        ValueError: a mask of another size or of values other than 0 and 1; known pixels outside
            [-1, 1]; what `restore` refuses.
    """
    return prepare_inpaint(image, mask, **options).sample(seed=seed, ids=ids)


def super_resolve(
    image: Any, factor: int = 4, *, seed: int = 0, ids: Any = None, **options: Any
) -> Samples:
    """Returns digits whose block means are the pixels of a small image.

    Args:
        image: pixels in [-1, 1], [B, 1, 28 / factor, 28 / factor], or without the first axes.
        factor: side of a block, 2, 4, 7 or 14.
        seed: of the run.
        ids: of the samples, see `df.sample`.
        **options: as for `inpaint`.

    Raises:
        ValueError: a factor that does not divide 28; an image of another size, or outside [-1, 1];
            what `restore` refuses.
    """
    return prepare_super_resolve(image, factor, **options).sample(seed=seed, ids=ids)


def deblur(image: Any, kernel: Any, *, seed: int = 0, ids: Any = None, **options: Any) -> Samples:
    """Returns digits that look like an image when they are blurred; edges wrap around.

    Args:
        image: pixels in [-1, 1], [B, 1, 28, 28] or [28, 28].
        kernel: of the blur, [h, w], odd, for example `df.tasks.gaussian_kernel(2.0)`.
        seed: of the run.
        ids: of the samples, see `df.sample`.
        **options: as for `inpaint`.

    Raises:
        ValueError: what `df.tasks.blur` refuses; an image of another size, or outside [-1, 1]; what
            `restore` refuses.
    """
    return prepare_deblur(image, kernel, **options).sample(seed=seed, ids=ids)


def colourise(
    grey: Any, hint: Any = None, mask: Any = None, *, seed: int = 0, ids: Any = None, **options: Any
) -> Samples:
    """Returns digits in red, green or blue ink, [B, 3, 28, 28], with given grey values.

    In an orthogonal basis of colours (grey, red-green, yellow-blue) one coordinate is known and
    two are found. Without a hint, every ink agrees with the grey value.

    Args:
        grey: mean of the three channels of each pixel, [B, 1, 28, 28] or [28, 28].
        hint: an image in colour, [B, 3, 28, 28] or [3, 28, 28], known where the mask is True.
        mask: [28, 28] or [B, 1, 28, 28].
        seed: of the run.
        ids: of the samples, see `df.sample`.
        **options: as for `inpaint`.

    Raises:
        ValueError: a hint without mask, or a mask without hint; images of another size, or outside
            [-1, 1]; what `restore` refuses.
    """
    return prepare_colourise(grey, hint, mask, **options).sample(seed=seed, ids=ids)


def draw(labels: Any, *, seed: int = 0, ids: Any = None, **options: Any) -> Samples:
    """Returns digits of given classes: an unconditional network and a noise-aware classifier.

    Args:
        labels: the digits, [B] int64, or one number.
        seed: of the run.
        ids: of the samples, see `df.sample`.
        **options: `scale` of the classifier's gradient, a number or a function of the model time;
            `samples`, how many of one digit; `calls` or a `plan`; `device`.

    Raises:
        ValueError: labels that are not 0 to 9; what `df.guidance.classifier` refuses.
    """
    return prepare_draw(labels, **options).sample(seed=seed, ids=ids)


def write(
    captions: str | Sequence[str], *, seed: int = 0, ids: Any = None, **options: Any
) -> Samples:
    """Returns digits that captions describe, such as "a bold seven leaning right".

    Args:
        captions: a text for each sample, or one for all.
        seed: of the run.
        ids: of the samples, see `df.sample`.
        **options: `scale` of the gradient of the caption's log-probability; `through`, "network" or
            "x0", see `df.guidance.loss`; `samples`; `calls` or a `plan`; `device`.

    Raises:
        ValueError: characters that the embedding does not know; what `df.guidance.loss` refuses.
    """
    return prepare_write(captions, **options).sample(seed=seed, ids=ids)


TASKS: dict[str, Callable[..., Prepared]] = {
    "inpaint": prepare_inpaint,
    "super_resolve": prepare_super_resolve,
    "deblur": prepare_deblur,
    "colourise": prepare_colourise,
    "draw": prepare_draw,
    "write": prepare_write,
}


def prepare(task: str, *arguments: Any, **options: Any) -> Prepared:
    """Returns a task before its run, by its name: `prepare("inpaint", image, mask, calls=60)`.

    Args:
        task: "inpaint", "super_resolve", "deblur", "colourise", "draw" or "write".
        *arguments: of the function of that name.
        **options: of the function of that name, without seed and ids.

    Raises:
        ValueError: an unknown name; what the function raises.
    """
    return lookup("task", TASKS, task)(*arguments, **options)
