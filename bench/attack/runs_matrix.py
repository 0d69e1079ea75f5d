"""The fault matrix: every executor with every faulty network, and what became of each.

right       samples of the healthy network, up to the rounding that the fault asks for
refused     one sentence of diffast's
own error   the network's own error, as it was
reported    NonFiniteError, which names the samples; an estimate that is NaN is one itself
goes on     samples of the right law, without the answer that was not finite (see GOES_ON)
WRONG       other samples and no error
FOREIGN     an error in other words than the caller's
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from runs_executors import EXECUTORS
from runs_networks import FAULTS, Fault, Mine, healthy

import diffast as df

SPEAKERS = (
    "sample",
    "Stepper",
    "Denoiser",
    "initial_state",
    "guidance",
    "LearnedVariance",
    "GraphSampler",
)
BAD = ("WRONG", "FOREIGN")

# Where a run makes other finite samples after an answer that is not finite, and why they are right.
GOES_ON = {
    "adaptive dopri5, batch": "the trial step is rejected, and a shorter one is taken",
    "particles": "the particle has weight 0, and a copy of another one takes its place",
    "metropolis mala": "the proposal is not taken",
    "metropolis ghmc": "the proposal is not taken",
}


def sentence(error: BaseException) -> bool:
    """Whether an error is one of diffast's own, in the caller's words."""
    text = str(error)
    plain = not any(word in text for word in ("xs[", ".cpp", "/csrc", "outs[", "combine", "\n"))
    return isinstance(error, (ValueError, TypeError)) and text.startswith(SPEAKERS) and plain


class _State:
    """Torch's settings of a thread, put back after a fault has changed them."""

    def __enter__(self) -> None:
        self.dtype, self.grad = torch.get_default_dtype(), torch.is_grad_enabled()

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.dtype)
        torch.set_grad_enabled(self.grad)


def outcome(name: str, run: Callable, fault: Fault, wanted: torch.Tensor | None) -> tuple[str, str]:
    """Returns what became of a run, and the words of its error."""
    with _State(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = run(fault.make())
        except df.NonFiniteError as error:
            return ("reported" if fault.broken else "WRONG"), str(error)
        except (Mine, StopIteration) as error:
            return "own error", str(error)
        except Exception as error:
            if sentence(error):
                return "refused", str(error)
            own = traceback.extract_tb(error.__traceback__)[-1].filename
            if "runs_networks" in own or (
                fault.kind == "effect" and "unsupported op" in str(error)
            ):
                return "own error", str(error)  # raised by the network's own line
            return "FOREIGN", f"{type(error).__name__}: {error}"
    if wanted is None:
        return "WRONG", "no error"
    if made.shape != wanted.shape or made.dtype != wanted.dtype:
        return "WRONG", f"{list(made.shape)} {made.dtype}"
    if fault.broken and name.startswith("Denoiser.x0") and not made.isfinite().all():
        return "reported", "NaN in the estimate"
    size = float(wanted.double().square().mean().sqrt())
    apart = float((made.detach().double() - wanted.double()).abs().max()) / size
    if apart > fault.rounding and fault.broken and name in GOES_ON and made.isfinite().all():
        return "goes on", GOES_ON[name]
    return ("right" if apart <= fault.rounding else "WRONG"), f"apart by {apart:.1e}"


def matrix(
    executors: dict[str, Callable] | None = None, faults: tuple[Fault, ...] = FAULTS
) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns the outcomes by fault and executor."""
    executors = EXECUTORS if executors is None else executors
    found: dict[str, dict[str, tuple[str, str]]] = {}
    healthy_samples: dict[tuple[str, Any], torch.Tensor] = {}
    for fault in faults:
        row = found[fault.name] = {}
        for name, run in executors.items():
            wanted = None
            if fault.wanted is not None:
                key = name, fault.wanted
                if key not in healthy_samples:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        healthy_samples[key] = run(fault.wanted)
                wanted = healthy_samples[key]
            row[name] = outcome(name, run, fault, wanted)
    return found


def _named(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(found: dict[str, dict[str, tuple[str, str]]]) -> str:
    """Returns the outcomes as a table in Markdown; a cell where all executors agree is one word."""
    lines = ["| the network | what a run does |", "|---|---|"]
    for name, row in found.items():
        by_kind: dict[str, list[str]] = {}
        for executor, (kind, _) in row.items():
            by_kind.setdefault(kind, []).append(executor)
        ordered = sorted(by_kind.items(), key=lambda item: -len(item[1]))
        first, *others = ordered
        words = (
            first[0]
            if not others
            else f"{first[0]}; " + "; ".join(f"{kind}: {_named(names)}" for kind, names in others)
        )
        lines.append(f"| {name} | {words} |")
    return "\n".join(lines)


__all__ = ["BAD", "healthy", "matrix", "outcome", "sentence", "table"]
