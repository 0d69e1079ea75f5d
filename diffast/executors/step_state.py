"""The state of a stepwise run, and what is checked of the tensors that a step is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from diffast.executors import context
from diffast.executors.step_terms import Needs
from diffast.lowering.evaluations import BRANCHES
from diffast.model.input_watch import InputWritten, is_changed
from diffast.model.outputs import check_plain, tensor_of

# What messages call the outputs of the branches.
OUTPUTS = ("output", "unconditional output", "third output")

# Why a source of noise cannot be had here.
SOURCES = {
    "path": "a path needs the times of the whole run: use df.sample, or give normals as z",
    "bridge": "nothing is rejected on a fixed grid: use 'counter' or 'given'",
    "redraw": "nothing is rejected on a fixed grid: use 'counter' or 'given'",
    "callable": "step takes the normals themselves: use 'given' and hand them over as z",
}


class State(NamedTuple):
    """Where every sample stands. Of R table rows in all, plan p takes S_p + 1, the last at its end.

    Attributes:
        row: which row of the stepper's table is next: an int, all samples together; or [B] int64
            on the samples' device, each its own.
        x: the next model inputs [B, ...]; where a sample has ended, the sample.
        y: the step's states [B, ...]; None while they are x.
        v: the momenta [B, ...]; None while there are none.
        slots: remembered entries, each [B, ...] or None while empty; oldest first where samples
            stand each at its own stage.
        seed: of the noise: an int for all; or [B] int64, each sample's own.
        ids: [B] int64, which fix each sample's noise.
        status: [B] int64: -1, or the first stage at which a sample was not finite.
        momentum: the momenta [B, ...] of a guidance rule; None while there are none.
    """

    row: int | torch.Tensor
    x: torch.Tensor
    y: torch.Tensor | None
    v: torch.Tensor | None
    slots: tuple[torch.Tensor | None, ...]
    seed: int | torch.Tensor
    ids: torch.Tensor
    status: torch.Tensor
    momentum: torch.Tensor | None = None


def outputs_of(output: Any) -> list[torch.Tensor | None]:
    """Returns the outputs of the three branches; None where one is not given.

    Raises:
        ValueError: more than three.
    """
    if output is not None and not isinstance(output, (torch.Tensor, tuple, list)):
        output = tensor_of(output, who="Stepper")
    given = output if isinstance(output, (tuple, list)) else (output,)
    if len(given) > len(BRANCHES):
        raise ValueError(f"Stepper: {len(given)} outputs, but a step weighs at most 3")
    return [*given, *[None] * (len(BRANCHES) - len(given))]


def check_unchanged(state: State) -> None:
    """Raises InputWritten if the state's x is not as the step that made it left it."""
    if is_changed(state.x):
        raise InputWritten(
            "Stepper", " (or the loop wrote into x: state._replace(x=...) gives another one)"
        )


def check_outputs(
    state: State, outputs: Sequence[Any], needs: Needs, guided: bool, extra: bool
) -> None:
    """Raises ValueError for outputs that are missing, or shaped otherwise than the state."""
    cond, uncond, third = outputs
    if needs.network and not isinstance(cond, torch.Tensor):
        raise ValueError(
            f"Stepper: output is a {type(cond).__name__} but the network's tensor is needed, "
            "or with guidance a pair of them"
        )
    for name, tensor in zip(OUTPUTS, outputs, strict=True):
        check_shape(state, name, tensor)
        if tensor is not None and (
            type(tensor) is not torch.Tensor or tensor.layout is not torch.strided
        ):
            check_plain(state.x, tensor, "Stepper")
    if needs.network and guided and uncond is None:
        raise ValueError("Stepper: a plan is guided, but one output is given and not a pair")
    if needs.network and extra and third is None:
        raise ValueError(
            "Stepper: guidance has a third branch, but its output is not given: (conditional, "
            "unconditional, third) is needed"
        )


def check_shape(state: State, name: str, tensor: torch.Tensor | None) -> None:
    """Raises ValueError for a tensor of another shape than the state."""
    if tensor is not None and tensor.shape != state.x.shape:
        raise ValueError(
            f"Stepper: {name} is {list(tensor.shape)} but the state is {list(state.x.shape)}"
        )


def check_gradients(state: State, given: Sequence[Any], needs: Needs) -> None:
    """Raises ValueError for gradients of guidance terms that are missing, or unlike the state."""
    if len(given) != len(needs.terms):
        raise ValueError(
            f"Stepper: {len(given)} gradients are given, but the step weighs those of "
            f"{len(needs.terms)} guidance terms: stepper.gradients(state, output) makes them"
        )
    for k, gradient in zip(needs.terms, given, strict=True):
        complaint = context.unlike(f"the gradient of guidance term {k}", gradient, state.x)
        if complaint is not None:
            raise ValueError(f"Stepper: {complaint}")


def each_of(states: Sequence[State], joined: Any) -> State:
    """Returns one state, every tensor of it made by `joined` of those of the states."""
    fields = {}
    for name, parts in zip(State._fields, zip(*states, strict=True), strict=True):
        if isinstance(parts[0], tuple):
            fields[name] = tuple(map(joined, zip(*parts, strict=True)))
        else:
            fields[name] = None if parts[0] is None else joined(parts)
    return State(**fields)


def check_normals(state: State, z: torch.Tensor | None, given: bool, draws: bool) -> None:
    """Raises ValueError for normals that are missing, not asked for, or of another shape."""
    check_shape(state, "z", z)
    if z is not None and not given:
        raise ValueError("Stepper: z is given, but noise is 'counter'")
    if z is None and draws:
        raise ValueError("Stepper: noise is 'given' and a plan draws, but no z is given")


def rows_of(table, first, last, hidden):
    """Returns rows first to last of the written ones, behind the hidden one, contiguous."""
    if table is None:
        return None
    rows = table[:, hidden + first : hidden + last]
    if hidden:
        rows = torch.cat([table[:, :hidden], rows], 1)
    return rows.contiguous()
