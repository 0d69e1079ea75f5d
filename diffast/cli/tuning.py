"""`diffast tune`: plans made for the embedded digit network, or for a network of the user's."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffast.cli import doors

_ENDINGS = (".json", ".npz")
_PICTURES = (".png", ".svg", ".pdf")
_MOST_CALLS = 1000


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `diffast tune`."""
    add, any_count = parser.add_argument, doors.whole(1, 10**30)
    pilots, some = doors.whole(2, 10**30), doors.whole(0)
    add("--calls", default="8", help="network calls of the plan; 5,6,8 makes three (%(default)s)")
    network = "your network: module:function, which returns a df.Denoiser (default: the digits)"
    add("--network", metavar="MODULE:FUNCTION", help=network)
    add("--shape", help="of one sample of your network, as 3,32,32")
    add(
        "--count",
        type=pilots,
        default=64,
        help="noises that are learned from (%(default)s)",
    )
    add(
        "--held-out",
        type=pilots,
        default=None,
        help="noises that judge (as many as --count)",
    )
    freedom = (
        "what is learned (default: levels,weights,times,scale,start; "
        "with --stochastic noise in place of start)"
    )
    add("--freedom", help=freedom)
    add("--stochastic", action="store_true", help="a plan that draws fresh noise")
    add("--iterations", type=some, default=12, help="of learning (%(default)s)")
    add(
        "--starts",
        type=doors.whole(1),
        default=2,
        help="standard plans to start from (%(default)s)",
    )
    add(
        "--polish",
        type=some,
        default=0,
        help="iterations of gradient descent after (%(default)s)",
    )
    add(
        "--batch",
        type=any_count,
        default=32,
        help="noises of one iteration (%(default)s)",
    )
    add("--resume", metavar="FILE", help="keep the work in a file, and go on from it")
    add("--out", default="plan.json", help=".json or .npz; several get -5, -6 (%(default)s)")
    add("--picture", help="error against calls: .png, .svg or .pdf")
    add("--seed", type=doors.seed, default=0, help="of the noises (%(default)s)")
    add("--classes", default="0-9", help="digits such as 7 or 0-4,9, in turn (%(default)s)")
    scale = "classifier-free scale of the digits; 1 is none (%(default)s)"
    add("--guidance", type=doors.real, default=1.0, help=scale)
    add("--device", default=None, help="cpu or cuda (default: where the network is)")
    add("--quiet", action="store_true", help="neither the cost nor a progress bar")


def tune(
    arguments: argparse.Namespace,
    digit_denoiser: Callable[..., Any],
    device_of: Callable[[str | None], Any],
) -> int:
    """Makes the plans, writes and prints them; returns 0.

    Args:
        arguments: as parsed.
        digit_denoiser: arguments -> (denoiser of the digits, labels, device).
        device_of: name of a device -> the device.

    Raises:
        ValueError: bad input.
    """
    counts = _counts(arguments.calls)
    outs = [_path("--out", arguments.out, _ENDINGS, n, counts) for n in counts]
    pictures = [_path("--picture", arguments.picture, _PICTURES, n, counts) for n in counts]
    resumes = [_path("--resume", arguments.resume, None, n, counts) for n in counts]
    freedom = None if arguments.freedom is None else tuple(arguments.freedom.split(","))
    denoiser, sample, device = _network(arguments, digit_denoiser)
    if arguments.network is not None and arguments.device is not None:
        device = device_of(arguments.device)

    from diffast import tune as tune_denoiser

    for calls, out, picture, resume in zip(counts, outs, pictures, resumes, strict=True):
        result = tune_denoiser(
            denoiser,
            calls,
            (arguments.count, *sample),
            stochastic=arguments.stochastic,
            freedom=freedom,
            held_out=arguments.held_out,
            batch=arguments.batch,
            iterations=arguments.iterations,
            starts=arguments.starts,
            polish=arguments.polish,
            seed=arguments.seed,
            resume=resume,
            device=device,
            progress=not arguments.quiet,
        )
        assert out is not None  # it has a default
        result.save(out)
        print(result)
        print(f"wrote          {out}")
        if picture is not None:
            with doors.replaced(picture) as part:
                result.picture(part)
            print(f"wrote          {picture}")
    return 0


def _counts(text: str) -> list[int]:
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part[:9]) <= _MOST_CALLS for part in found):
        raise ValueError(
            f"--calls {text!r} but whole numbers from 1 to {_MOST_CALLS} are needed, such as 5,6,8"
        )
    return list(dict.fromkeys(map(int, found)))


def _path(option: str, given: str | None, endings, calls: int, counts: list[int]) -> Path | None:
    """Returns the file of one plan: with the number of calls in its name where there are more."""
    if given is None:
        return None
    path = Path(given)
    if len(counts) > 1 and path.name:
        path = path.with_name(f"{path.stem}-{calls}{path.suffix}")
    if endings is None:
        endings = (path.suffix,)
    needs = {ending: "matplotlib" for ending in _PICTURES} if option == "--picture" else {}
    return doors.output_file(option, str(path), endings, needs)


def _network(arguments: argparse.Namespace, digit_denoiser: Callable[..., Any]):
    """Returns (denoiser, shape of a sample, device or None)."""
    if arguments.network is None:
        if arguments.shape is not None:
            raise ValueError(f"--shape {arguments.shape} but it is for --network: digits are 28x28")
        denoiser, _, device = digit_denoiser(arguments)
        return denoiser, (1, 28, 28), device
    if arguments.shape is None:
        raise ValueError("--network is given but --shape is not: give one sample's, as 3,32,32")
    parts = arguments.shape.split(",")
    if not all(part.strip().isdecimal() and 0 < int(part[:9]) < 10**8 for part in parts):
        raise ValueError(f"--shape {arguments.shape!r} but whole numbers are needed, as 3,32,32")
    return loaded(arguments.network), tuple(map(int, parts)), None  # where the network is


def loaded(name: str) -> Any:
    """Returns the denoiser that module:function makes; the module may lie in this folder.

    Raises:
        ValueError: another form, no such module or function, something else than a denoiser.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"--network {name!r} but it must be module:function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise ValueError(f"--network {name!r} but importing {module} failed: {error}") from None
        raise ValueError(f"--network {name!r} but there is no module {module}") from None
    except (Exception, SystemExit) as error:  # it is the caller's code
        raise ValueError(
            f"--network {name!r} but importing {module} failed: {_of(error)}"
        ) from error
    if not hasattr(found, function):
        raise ValueError(f"--network {name!r} but {module} has no {function}")
    make = getattr(found, function)

    from diffast import Denoiser

    if not isinstance(make, Denoiser) and not callable(make):
        raise ValueError(
            f"--network {name!r} but {function} is a {type(make).__name__}, and a function is "
            "needed"
        )
    try:
        made = make if isinstance(make, Denoiser) else make()
    except (Exception, SystemExit) as error:
        raise ValueError(f"--network {name!r} but {function} failed: {_of(error)}") from error
    if not isinstance(made, Denoiser):
        raise ValueError(
            f"--network {name!r} but {function} returned a {type(made).__name__}, and a "
            "df.Denoiser is needed"
        )
    return made


def _of(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
