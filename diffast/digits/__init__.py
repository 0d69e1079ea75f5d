"""Small trained networks for 28x28 digits: denoisers, a classifier, an embedding, a judge.

They serve examples, tests and measurements. ``weights/README.md`` describes their training and
quality.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from diffast._arguments import no_fake_mode
from diffast.digits.classifier import (
    ClassifierConfig,
    DigitJudge,
    JudgeConfig,
    NoisyDigitClassifier,
)
from diffast.digits.tinted import TintedDigits, tint
from diffast.digits.unet import NULL_LABEL, DigitUNet, UNetConfig
from diffast.digits.words import DigitWords, WordsConfig
from diffast.plans import Plan

__all__ = [
    "NULL_LABEL",
    "ClassifierConfig",
    "DigitJudge",
    "DigitUNet",
    "DigitWords",
    "JudgeConfig",
    "NoisyDigitClassifier",
    "TintedDigits",
    "UNetConfig",
    "WordsConfig",
    "load_classifier",
    "load_judge",
    "load_plan",
    "load_tinted",
    "load_unet",
    "load_words",
    "tint",
]

PLANS = Path(__file__).parent / "plans"
"""The folder of the plans that were made for ``load_unet()`` by ``bench/tune_digits.py``."""

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the weights that the package ships."""

_Network = TypeVar("_Network", bound=nn.Module)


def load_unet(path: Path | str | None = None) -> DigitUNet:
    """The trained denoiser ``unet(x, t, labels) -> x0``, float32 on the CPU, in eval mode.

    Args:
        path: safetensors file to read instead of the shipped one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold a ``DigitUNet``.
    """
    return _load(DigitUNet, UNetConfig, path or WEIGHTS / "unet.safetensors")


def load_classifier(path: Path | str | None = None) -> NoisyDigitClassifier:
    """The trained noise-aware classifier ``classifier(x, t) -> logits``.

    Its weights need no gradient, its input may: that is what classifier guidance differentiates.
    Argument, device, mode and errors as of ``load_unet``.
    """
    return _load(NoisyDigitClassifier, ClassifierConfig, path or WEIGHTS / "classifier.safetensors")


def load_judge(path: Path | str | None = None) -> DigitJudge:
    """The trained judge of clean digits; argument, device, mode and errors as of ``load_unet``."""
    return _load(DigitJudge, JudgeConfig, path or WEIGHTS / "judge.safetensors")


def load_words() -> DigitWords:
    """The trained embedding of digits and captions; device and mode as of ``load_unet``."""
    return _load(DigitWords, WordsConfig, WEIGHTS / "words.safetensors")


def load_tinted() -> TintedDigits:
    """The denoiser of digits in coloured ink; device and mode as of ``load_unet``."""
    ink = _load(NoisyDigitClassifier, ClassifierConfig, WEIGHTS / "ink.safetensors")
    return TintedDigits(load_unet(), ink)


def load_plan(calls: int = 8, guidance: float = 1.0) -> Plan:
    """The plan of so many network calls that was made for ``load_unet()`` by ``df.tune``.

    It is for ``df.schedules.edm()`` and ``predicts="x0"``. ``made_for`` holds what was measured.

    Args:
        calls: network calls of a sample.
        guidance: the guidance scale that the plan was made for.

    Raises:
        ValueError: there is no such plan; the message names those that there are.
    """
    name = plan_name(calls, guidance)
    path = PLANS / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PLANS.glob("*.json"))) or "none"
        raise ValueError(f"load_plan: there is no plan {name}, but these are there: {known}")
    return Plan.load(path)


def plan_name(calls: int, guidance: float) -> str:
    """The name of a plan's file: the calls, and the guidance scale where it is not 1."""
    return f"{calls}" if guidance == 1.0 else f"{calls}-guided{guidance:g}"


# The widest layer that a config may ask for.
_WIDEST = 1024


def _load(network: type[_Network], config: type, path: Path | str) -> _Network:
    """The network of a safetensors file whose metadata holds ``kind`` and ``config``."""
    name = network.__name__
    no_fake_mode(name)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no weights at {path}")
    try:
        with _plain_defaults(), safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{name}: {path} is not a safetensors file ({error})") from error
    if metadata.get("kind") != name:
        raise ValueError(f"{name}: {path} holds {metadata.get('kind', 'no kind in its metadata')}")
    try:
        numbers = json.loads(metadata["config"])
        numbers = {k: tuple(v) if isinstance(v, list) else v for k, v in numbers.items()}
        _check_widths(numbers)
        # Loading leaves the caller's random numbers alone. The meta device would too, but its
        # first use imports torch's Python decompositions: seconds.
        with torch.random.fork_rng(devices=[]), _plain_defaults():
            model = network(config(**numbers))
        model.load_state_dict(state)
    except (
        AttributeError,
        LookupError,
        TypeError,
        RuntimeError,
        ValueError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split())  # load_state_dict spreads over lines
        raise ValueError(f"{name}: {path} does not fit ({reason})") from error
    return model.eval().requires_grad_(False)


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """Networks are float32 whatever torch's default is, and have memory where that is meta."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if device.type == "meta" else nullcontext():
            yield
    finally:
        torch.set_default_dtype(dtype)


def _check_widths(numbers: dict) -> None:
    """Refuses numbers of a config that would make a network of gigabytes before it is compared."""
    for name, value in numbers.items():
        for one in value if isinstance(value, tuple) else (value,):
            if type(one) not in (int, float) or not abs(one) <= _WIDEST:
                raise ValueError(f"config: {name} = {value!r:.60}, but at most {_WIDEST} is known")
