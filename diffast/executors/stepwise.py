"""The stepwise executor: a plan run one network call at a time, for loops that others own.

    state, x, t = stepper.start(noise)
    while not stepper.done(state):
        state, x, t = stepper.step(state, network(x, t))

`step` is a pure function: the state is a tuple of tensors, and nothing else remembers anything.
Rows of a batch may stand at different stages, of different plans (`State.row` is then a tensor [B],
the weights a table on the device, and nothing is read from it): what a server needs to let samples
join and leave a running batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from diffast import ops
from diffast.lowering.program import Constraints, lower
from diffast.lowering.step_table import (
    AT_NOISE,
    AT_UNCOND,
    AT_X0,
    AT_Y,
    StepCall,
    Table,
    make_table,
    numbered,
)
from diffast.model.denoiser import time_dtype
from diffast.plan import Plan
from diffast.plan.registers import H, V, X, Y


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
    """

    row: int | torch.Tensor
    x: torch.Tensor
    y: torch.Tensor | None
    v: torch.Tensor | None
    slots: tuple[torch.Tensor | None, ...]
    seed: int | torch.Tensor
    ids: torch.Tensor
    status: torch.Tensor


def _rows(table, first, last, hidden):
    """Returns rows first to last of the written ones, behind the hidden one, contiguous."""
    rows = table[:, hidden + first : hidden + last]
    if hidden:
        rows = torch.cat([table[:, :hidden], rows], 1)
    return rows.contiguous()


class Stepper:
    """Plans ready to be stepped: tables, on the host and on the device. Holds no run's state.

    Args:
        plans: a plan, or pairs (plan, denoiser), any of which a sample may follow: their steps,
            solvers and guidance may differ.
        denoiser: for a single plan: what its network outputs mean (a `Denoiser`, or a
            `Prediction` where nothing calls the network from here).
        device: where the samples are.
        dtype: what the network wants its input in; None: the state's, which is float32 or float64.
        given_noise: the fresh normals are given to `step` as a tensor, in place of the package's.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, stage)` with the estimate [B, ...] and the stage (an int, or
            [B] int64); what it returns is used instead. Costs one more kernel a stage.

    Raises:
        ValueError: no plans; a clamp out of order; a clamp and a hook together; given noise for a
            plan that draws two normals a stage; what `lower` raises.
    """

    def __init__(
        self,
        plans: Plan | Sequence[tuple[Plan, object]],
        denoiser=None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        given_noise: bool = False,
        clamp: tuple[float, float] | None = None,
        on_x0: Callable | None = None,
    ):
        """Multiplies the plans out; see the class."""
        if clamp is not None and on_x0 is not None:
            raise ValueError("Stepper: clamp and on_x0 are both given, but one of them acts on x0")
        pairs = [(plans, denoiser)] if isinstance(plans, Plan) else list(plans)
        if not pairs:
            raise ValueError("Stepper: 0 plans, but at least 1 is needed")
        self.plans = tuple(plan for plan, _ in pairs)
        self.device, self.dtype, self.given_noise = torch.device(device), dtype, given_noise
        self.limits = [] if clamp is None else [float(limit) for limit in clamp]
        if self.limits and not -math.inf < self.limits[0] < self.limits[1] < math.inf:
            raise ValueError(
                f"Stepper: clamp is {tuple(self.limits)} but must be finite and in order"
            )
        self.on_x0 = on_x0
        how = Constraints(bool(self.limits), on_x0 is not None, given_noise=given_noise)
        self.programs = [lower(plan, read, how) for plan, read in pairs]
        self.slots = max(program.slots for program in self.programs)
        self.calls: list[StepCall | None] = []  # None: a plan's end
        self.first: list[int] = []  # each plan's first table row
        for program in self.programs:
            self.first.append(len(self.calls))
            self.calls += [*numbered(program), None]
        used = [{*c.columns, *c.x0_columns} for c in self.calls if c is not None]
        self.guided = any(AT_UNCOND in columns for columns in used)
        self.draws = any(AT_NOISE in columns for columns in used)
        carried = {name for program in self.programs for name in program.carried}
        self.carried = tuple(name for name in (Y, V) if name in carried)
        self._times: list[float] = []
        for plan in self.plans:  # a sample at its end repeats its last time, which is known
            self._times += [*plan.call_times.tolist(), float(plan.call_times[-1])]
        self._table = None

    def start(
        self,
        x: torch.Tensor,
        *,
        plan: int | Sequence[int] | torch.Tensor = 0,
        seed: int = 0,
        ids: Sequence[int] | torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        each: bool = False,
    ) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Returns (state, first model inputs [B, ...], model times [B]).

        Args:
            x: initial states, alpha x0 + sigma eps at the plan's start, [B, ...], float32 or 64.
            plan: which plan to follow; several numbers, [B]: one a sample (then `each` is set).
            seed: any integer of 64 bits.
            ids: B integers of 64 bits that fix each sample's noise, default 0 .. B-1.
            noise: normals [B, ...] for the plan's opening, with `given_noise`.
            each: True: samples may stand at different stages from now on.

        Raises:
            ValueError: another dtype, an unknown plan, ids that do not count the samples.
        """
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Stepper: x is {x.dtype} but the state is float32 or float64")
        batch = x.shape[0]
        ids = torch.arange(batch) if ids is None else torch.as_tensor(ids)
        if batch and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
            raise ValueError(f"Stepper: ids are {ids.dtype} but integers are needed")
        if tuple(ids.shape) != (batch,):
            raise ValueError(f"Stepper: ids are {list(ids.shape)} but there are {batch} samples")
        numbers = torch.as_tensor(plan)
        if numbers.dim() not in (0, 1) or (numbers.dim() and tuple(numbers.shape) != (batch,)):
            raise ValueError(
                f"Stepper: plan has shape {list(numbers.shape)} but there are {batch} samples"
            )
        chosen = set(numbers.reshape(-1).tolist())
        if not chosen <= set(range(len(self.plans))):
            raise ValueError(
                f"Stepper: plan {sorted(chosen)} but there are {len(self.plans)} plans, from 0"
            )
        seed, ids = ops.fold_seed(seed), ids.to(self.device, torch.int64).contiguous()
        status = torch.full((batch,), -1, dtype=torch.int64, device=self.device)
        x = self._opened(x.contiguous(), chosen, numbers, seed, ids, noise)
        state = State(0, x, None, None, (None,) * self.slots, seed, ids, status)
        if each or numbers.dim():
            row = torch.tensor(self.first, dtype=torch.int64)[numbers].to(self.device)
            state = self.separate(state)._replace(row=row.expand(batch).contiguous())
        else:
            state = state._replace(row=self.first[int(numbers)])
        return state, self._network_input(x), self.time(state)

    def _opened(self, x, chosen, numbers, seed, ids, noise):
        openings = [program.opening or (1.0, 0.0) for program in self.programs]
        if all(openings[p] == (1.0, 0.0) for p in chosen):
            return x
        table = torch.tensor(openings, dtype=torch.float64)[numbers].to(self.device)
        table = table.expand(len(x), 2)
        keep, fresh = table[:, None, :1].contiguous(), table[:, None, 1:].contiguous()
        if self.given_noise:
            if noise is None:
                raise ValueError("Stepper: the plan opens with noise, but none is given")
            weights = torch.cat([keep, fresh], 2)
            return ops.combine_table([x, noise.contiguous()], weights, None, None, [])[0]
        words = torch.full_like(ids, ops.OPENING_NOISE)
        streams = torch.stack([torch.full_like(ids, seed), ids, words], 1)
        return ops.combine_table([x], keep, fresh, streams, [])[0]

    def step(
        self,
        state: State,
        output: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        noise: torch.Tensor | None = None,
    ) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Returns (state, next model inputs [B, ...], their model times [B]) after one call.

        Nothing is read from the device. A sample at its plan's end stays as it is.

        Args:
            state: from `start` or `step`; not changed.
            output: what the network said of the model inputs, [B, ...]; with guidance the pair
                (conditional, unconditional).
            noise: normals [B, ...], with `given_noise`.

        Raises:
            ValueError: an output of another shape; guidance without a pair; noise given or
                missing.
        """
        cond, uncond = output if isinstance(output, (tuple, list)) else (output, None)
        self._check(state, cond, uncond, noise)
        given = (t if t is None else t.contiguous() for t in (cond, uncond, noise))
        cond, uncond, noise = given
        fixed = [state.y, state.v, state.x, cond, uncond, None, noise]
        if isinstance(state.row, int):
            state = self._step_together(state, fixed)
        else:
            state = self._step_each(state, fixed)
        return state, self._network_input(state.x), self.time(state)

    def _check(self, state, cond, uncond, noise, stepping=True):
        for name, tensor in (("output", cond), ("unconditional output", uncond), ("noise", noise)):
            if tensor is not None and tensor.shape != state.x.shape:
                raise ValueError(
                    f"Stepper: {name} is {list(tensor.shape)} but the state is "
                    f"{list(state.x.shape)}"
                )
        if self.guided and uncond is None:
            raise ValueError("Stepper: a plan is guided, but one output is given and not a pair")
        if noise is not None and not self.given_noise:
            raise ValueError("Stepper: noise is given, but given_noise is not set")
        if noise is None and self.draws and stepping:
            raise ValueError("Stepper: given_noise is set and a plan is stochastic, but noise none")

    def _step_together(self, state: State, fixed: list) -> State:
        call = self.calls[state.row]
        if call is None:
            return state
        if fixed[AT_Y] is None:
            fixed[AT_Y] = state.x
        tensors = [*fixed, *state.slots]
        outs = [torch.empty_like(state.x) for _ in call.writes]
        status = state.status.clone()
        stage = state.row - self.first[self._plan_of(state.row)]
        if self.on_x0 is not None:
            x0 = torch.empty_like(state.x)
            ops.combine_out([tensors[k] for k in call.x0_columns], call.x0_weights, [x0])
            tensors[AT_X0] = self._hooked(x0, stage)
        rest = (call.noise, state.seed, state.ids, self.limits)
        rest = rest if call.noise or self.limits else ()
        ops.combine_out(
            [tensors[k] for k in call.columns], call.weights, outs, status, stage, *rest
        )
        made = dict(zip(call.writes, outs, strict=True))
        slots = state.slots
        if H in made:
            slots = (*slots[: call.slot], made[H], *slots[call.slot + 1 :])
        y = made.get(Y, fixed[AT_Y] if Y in call.keeps else None)
        v = made.get(V, state.v if V in call.keeps else None)
        return State(state.row + 1, made[X], y, v, slots, state.seed, state.ids, status)

    def _hooked(self, x0, stage):
        changed = self.on_x0(x0, stage)
        if not isinstance(changed, torch.Tensor) or changed.shape != x0.shape:
            got = list(changed.shape) if isinstance(changed, torch.Tensor) else type(changed)
            raise ValueError(f"Stepper: on_x0 was given {list(x0.shape)} but returned {got}")
        return changed.contiguous()

    def _plan_of(self, row: int) -> int:
        return max(p for p, first in enumerate(self.first) if first <= row)

    def _step_each(self, state: State, fixed: list) -> State:
        table = self.table()
        row = state.row
        tensors = [*fixed, *state.slots]
        words = table.words[row]
        if self.on_x0 is not None:
            x0 = torch.empty_like(state.x)
            xs = [tensors[k] for k in table.x0_columns]
            ops.combine_table_out(xs, table.x0[row], None, None, [], [x0], None)
            tensors[AT_X0] = self._hooked(x0, words)
        xs = [tensors[k] for k in table.columns]
        streams = torch.stack([state.seed, state.ids, words], 1)
        weights, noise = table.weights[row], None
        if table.noise is not None:
            noise = table.noise[row]
        status = state.status.clone()
        hidden = int(bool(self.limits))  # the clamped row 0 is not written
        outs = [torch.empty_like(state.x) for _ in range(weights.shape[1] - hidden)]
        for first in range(0, len(outs), ops.MAX_ROWS - hidden):
            last = first + ops.MAX_ROWS - hidden
            ops.combine_table_out(
                xs,
                _rows(weights, first, last, hidden),
                None if noise is None else _rows(noise, first, last, hidden),
                streams,
                self.limits,
                outs[first:last],
                status,
            )
        *slots, x = outs
        carried = {name: slots.pop() for name in reversed(self.carried)}
        y, v = carried.get(Y, x), carried.get(V)
        following = table.following[row]
        return State(following, x, y, v, tuple(slots), state.seed, state.ids, status)

    def estimate(
        self, state: State, output: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Returns the x0 estimate [B, ...] that the output is for the state, for looking at.

        In plain torch, clamped or changed as the step's is.
        """
        cond, uncond = output if isinstance(output, (tuple, list)) else (output, None)
        self._check(state, cond, uncond, None, stepping=False)
        table, tensors = self.table(), (self.state(state), state.v, state.x, cond, uncond)
        weights = table.x0[state.row].to(state.x.dtype)  # [B, 1, columns], [1, columns] together
        shape = (-1, *([1] * (state.x.dim() - 1)))
        x0 = sum(
            weights[..., 0, n].view(shape) * tensors[k] for n, k in enumerate(table.x0_columns)
        )
        if self.limits:
            return x0.clamp(*self.limits)
        return x0 if self.on_x0 is None else self._hooked(x0, self.stage(state))

    def separate(self, state: State) -> State:
        """Returns the state as one whose samples may stand at different stages."""
        slots = state.slots
        if isinstance(state.row, int):
            call = self.calls[state.row]
            slots = tuple(slots[slot] for slot in call.held) if call is not None else ()
        blank = [torch.zeros_like(state.x)] * (self.slots - len(slots))
        row, seed = (
            torch.full_like(state.ids, value) if isinstance(value, int) else value
            for value in (state.row, state.seed)
        )
        v = torch.zeros_like(state.x) if V in self.carried and state.v is None else state.v
        return state._replace(row=row, seed=seed, slots=(*slots, *blank), y=self.state(state), v=v)

    def state(self, state: State) -> torch.Tensor:
        """Returns the steps' states [B, ...], which the next rows weigh as y."""
        return state.x if state.y is None else state.y

    def time(self, state: State) -> torch.Tensor:
        """Returns the model times of the next network calls, [B]; at the end those of the last."""
        dtype = time_dtype(state.x.dtype)
        if isinstance(state.row, int):
            time = self._times[state.row]
            return torch.full((len(state.x),), time, dtype=dtype, device=state.x.device)
        return self.table().times[state.row].to(dtype)

    def done(self, state: State) -> torch.Tensor | bool:
        """Returns whether the samples are at their plan's end: one answer, or [B] on the device."""
        if isinstance(state.row, int):
            return self.calls[state.row] is None
        return self.table().ended[state.row]

    def stage(self, state: State) -> torch.Tensor | int:
        """Returns the number of network calls that each sample has had."""
        if isinstance(state.row, int):
            return state.row - self.first[self._plan_of(state.row)]
        return self.table().words[state.row]

    def select(self, state: State, samples: torch.Tensor) -> State:
        """Returns the state of some samples, by index [n] or mask [B] on the state's device."""
        return self._each([self.separate(state)], lambda parts: parts[0][samples])

    def join(self, *states: State) -> State:
        """Returns one state of all the samples, in order: how requests enter a running batch."""
        if not states:
            raise ValueError("Stepper: 0 states, but at least 1 is needed to join")
        return self._each([self.separate(state) for state in states], torch.cat)

    def _each(self, states: list[State], joined: Callable) -> State:
        """Returns one state, every tensor of it made of those of the states."""
        fields = {}
        for name, parts in zip(State._fields, zip(*states, strict=True), strict=True):
            if isinstance(parts[0], tuple):
                fields[name] = tuple(map(joined, zip(*parts, strict=True)))
            else:
                fields[name] = None if parts[0] is None else joined(parts)
        state = State(**fields)
        # one tensor where a step would leave one: or a graph of the step would be made twice
        return state if Y in self.carried else state._replace(y=state.x)

    def _network_input(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.dtype is None else x.to(self.dtype)

    def table(self) -> Table:
        """Returns every stage of every plan as one table on the device, made once."""
        if self._table is None:
            self._table = make_table(
                self.calls,
                self.first,
                self._times,
                self.slots,
                self.carried,
                bool(self.limits),
                self.device,
            )
        return self._table
