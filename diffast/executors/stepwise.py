"""The stepwise executor: a plan run one network call at a time, for loops that others own.

    state, x, t = stepper.start(noise)
    while not stepper.done(state):
        state, x, t = stepper.step(state, network(x, t))

Where plan or denoiser weigh gradients of guidance terms, a step takes them too:

    output = network(x, t) if stepper.needs(state).network else None
    gradients = stepper.gradients(state, output)
    state, x, t = stepper.step(state, output, gradients=gradients)

`step` is a pure function: the state is a tuple of tensors, and nothing else remembers anything.
Rows of a batch may stand at different stages, of different plans (`State.row` is then a tensor [B],
the weights a table on the device, and nothing is read from it): what a server needs to let samples
join and leave a running batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from diffast import _arguments as arguments
from diffast import ops
from diffast.executors import context
from diffast.executors.device import Readback, on_host, pinned
from diffast.executors.results import FINE, Info, Samples, check_finite
from diffast.executors.step_rules import StepRules
from diffast.executors.step_start import chosen_plans, first_slots, opened, openings_of
from diffast.executors.step_state import (
    OUTPUTS,
    SOURCES,
    State,
    check_gradients,
    check_normals,
    check_outputs,
    check_unchanged,
    each_of,
    outputs_of,
    rows_of,
)
from diffast.executors.step_terms import Needs, StepTerms
from diffast.executors.step_times import StepTimes
from diffast.executors.terms import gradients, terms_of, through
from diffast.guidance.rule import MOMENTUM
from diffast.lowering.program import Constraints, check_one_input, lower
from diffast.lowering.step_table import (
    AT_COND,
    AT_EXTRA,
    AT_NOISE,
    AT_TERM,
    AT_UNCOND,
    AT_X0,
    AT_Y,
    TERMS,
    StepCall,
    Table,
    make_table,
    numbered,
)
from diffast.model.input_watch import mark
from diffast.plans import Plan
from diffast.plans.registers import H, V, X, Y


class Stepper:
    """Plans ready to be stepped: tables, on the host and on the device. Holds no run's state.

    Args:
        plans: a plan, or pairs (plan, denoiser), any of which a sample may follow: their steps,
            solvers and guidance may differ.
        denoiser: for a single plan: what its network outputs mean (a `Denoiser`, or a
            `Prediction` where nothing calls the network from here).
        device: where the samples are.
        dtype: what the network wants its input in; None: the state's, which is float32 or float64.
        noise: where fresh noise comes from: "counter", or "given": the normals are handed to
            `step` as `z`.
        clamp: (low, high) for the x0 estimate, fused into the kernel.
        on_x0: called as `on_x0(x0, info)` with the estimate [B, ...] (after the clamp, if any) and
            an `Info`; what it returns is used instead. Costs one more kernel a stage.
        callback: refused: whoever calls `step` sees every stage.
        progress: refused, for the same reason.

    Raises:
        ValueError: no plans; a clamp out of order; another source of noise; given noise for a plan
            that draws two normals a stage; what `lower` raises.
    """

    def __init__(
        self,
        plans: Plan | Sequence[tuple[Plan, object]],
        denoiser=None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        noise: str = "counter",
        clamp: context.Clamp | None = None,
        on_x0: context.OnX0 | None = None,
        callback: None = None,
        progress: bool = False,
    ):
        """Multiplies the plans out; see the class."""
        loop = "the loop around `step` is yours: call it there"
        context.refuse("Stepper", callback=(callback, loop), progress=(progress, loop))
        self.given = isinstance(noise, str) and noise == "given"
        if not self.given:
            context.check_noise("Stepper", noise, SOURCES)
        if denoiser is not None:
            context.check_plan("Stepper", plans)
        pairs = [(plans, denoiser)] if isinstance(plans, Plan) else list(plans)
        if not pairs:
            raise ValueError("Stepper: 0 plans, but at least 1 is needed")
        self.pairs, self.plans = pairs, tuple(plan for plan, _ in pairs)
        arguments.floating("Stepper", "dtype", dtype)
        context.check_flags("Stepper", on_x0=on_x0)
        self.device, self.dtype = arguments.device("Stepper", device), dtype
        self.limits, self.on_x0 = context.limits_of("Stepper", clamp), on_x0
        # Where a term reads a clamped x0 estimate, a call of its own makes the estimate everywhere.
        reads = any(g.through == "x0" for _, read in pairs for g in terms_of(read))
        alone = on_x0 is not None or (bool(self.limits) and reads)
        how = Constraints(bool(self.limits), alone, given_noise=self.given)
        for plan, read in pairs:
            if read is None:
                raise ValueError("Stepper: a plan is given but no denoiser, and both are needed")
            if hasattr(read, "schedule"):  # weights given as numbers, as the drop-ins do, have none
                context.check_fits("Stepper", plan, read)
            check_one_input("Stepper", plan)
        self.programs = [lower(plan, read, how) for plan, read in pairs]
        self.rules = StepRules(self.programs, pairs, how, self.limits, self._put)
        self.slots = max(program.slots for program in self.programs)
        self.calls: list[StepCall | None] = []  # None: a plan's end
        self.first: list[int] = []  # each plan's first table row
        for program in self.programs:
            self.first.append(len(self.calls))
            self.calls += [*numbered(program), None]
        # Samples at different stages have guided estimates in a call of their own.
        self.alone = self.rules.reduces or any(c is not None and c.alone for c in self.calls)
        self.terms = StepTerms(pairs, self.calls, self.first)
        used = [{*c.columns, *c.x0_columns} for c in self.calls if c is not None]
        self.guided = self.rules.low or any(AT_UNCOND in columns for columns in used)
        self.extra = any(AT_EXTRA in columns for columns in used)
        self.draws = any(AT_NOISE in columns for columns in used)
        carried = self.rules.carried.union(*(program.carried for program in self.programs))
        self.carried = tuple(name for name in (Y, V, MOMENTUM) if name in carried)
        self.times = StepTimes(self.programs, self.plans, self._put)
        # Network calls of the plan before each row, and rows of their batches.
        self._before = self.terms.counts(self.programs)
        self._table = None

    def start(
        self,
        x: torch.Tensor,
        *,
        plan: int | Sequence[int] | torch.Tensor = 0,
        seed: int = 0,
        ids: Sequence[int] | torch.Tensor | None = None,
        z: torch.Tensor | None = None,
        each: bool = False,
    ) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Returns (state, first model inputs [B, ...], model times [B]).

        Args:
            x: initial states, alpha x0 + sigma eps at the plan's start, [B, ...], float32 or 64.
            plan: which plan to follow; several numbers, [B]: one a sample (then `each` is set).
            seed: any integer of 64 bits.
            ids: B integers of 64 bits that fix each sample's noise, default 0 .. B-1.
            z: normals [B, ...] for the noise before the first call, with noise="given".
            each: True: samples may stand at different stages from now on.

        Raises:
            ValueError: another dtype, an unknown plan, ids that do not count the samples.
        """
        arguments.no_fake_mode("Stepper")
        if on_host(arguments.state("Stepper", "x", x).device):
            check_finite("Stepper", x)
        if x.device.type != self.device.type:
            raise ValueError(f"Stepper: x is on {x.device} but the stepper is for {self.device}")
        batch = x.shape[0]
        ids = context.ids_of("Stepper", ids, batch, self.device)
        numbers, chosen = chosen_plans(plan, len(self.plans), batch)
        for number in sorted(chosen) if on_host(x.device) else ():
            own = self.plans[number]
            part = x if len(chosen) == 1 else x[numbers.cpu() == number]
            context.warn_of_spread("Stepper", own.schedule, own.start, part, own.initial)
        seed = context.seed_of("Stepper", seed)
        status = torch.full((batch,), FINE, dtype=torch.int64, device=self.device)
        x = x.contiguous()
        slots = first_slots(self.pairs, self.programs, chosen, x, self.slots)
        openings = openings_of(self.programs, numbers, chosen)
        if openings is not None:
            x = opened(x, self._put(openings), seed, ids, z, self.given)
        state = State(self.first[min(chosen)], x, None, None, slots, seed, ids, status)
        if each or numbers.dim():
            row = self._put(torch.tensor(self.first, device="cpu")[numbers.cpu()])
            state = self.separate(state)._replace(row=row.expand(batch).contiguous())
        return state, self._network_input(x), self.time(state)

    def needs(self, state: State) -> Needs:
        """Returns what the next step is made of: a network call, gradients of guidance terms.

        Samples that stand each at a stage of their own need what any stage of any plan does.
        """
        return self.terms.of(state.row)

    def gradients(
        self, state: State, output: Any = None, x: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Returns the gradients of the guidance terms of `needs(state).terms`, [B, ...] each.

        For terms of through="network" (`needs(state).graph`) the network is called with gradients
        enabled, on x = state.x.detach().requires_grad_().

        Args:
            state: from `start` or `step`.
            output: as for `step`.
            x: what the network was called on, where its graph is needed.

        Raises:
            ValueError: an output without a graph where one is needed; a gradient that is no tensor
                like the state.
        """
        needs, time = self.needs(state), self.time(state)
        if not needs.terms:
            return ()
        outputs = outputs_of(output)
        together, terms = isinstance(state.row, int), self.terms.terms
        x0 = pulled = None
        if through(terms, needs.terms, "x0"):
            plain = [o if o is None else o.detach() for o in outputs]
            fixed = self.rules.registers(state, plain)
            if together:
                x0 = self._estimate_together(state, fixed)
            else:
                x0 = self._estimate_each(state, fixed, self.table().words[state.row])
        if needs.graph:
            given = {AT_COND + k: o for k, o in enumerate(outputs) if o is not None}
            pulled = self.terms.pullback(state, x, given, self._put)
        where = f"Stepper: stage {self.stage(state)}" if together else "Stepper"
        point = self.terms.point(state, time, self.stage(state), self._put)
        found = gradients(where, terms, needs.terms, point, x0, pulled)
        if not together:
            found = self.terms.weighed(state.row, found, self._put)
        return tuple(found.values())

    def step(
        self,
        state: State,
        output: torch.Tensor | Sequence[torch.Tensor | None] | None,
        z: torch.Tensor | None = None,
        gradients: Sequence[torch.Tensor] = (),
    ) -> tuple[State, torch.Tensor, torch.Tensor]:
        """Returns (state, next model inputs [B, ...], their model times [B]) after one call.

        Nothing is read from the device. A sample at its plan's end stays as it is.

        Args:
            state: from `start` or `step`; not changed.
            output: what the network said of the model inputs, [B, ...]; with guidance, also by a
                rule, the pair (conditional, unconditional), or these and a third branch; None
                where `needs(state).network` is false.
            z: normals [B, ...], with noise="given".
            gradients: of the guidance terms `needs(state).terms`, in their order, [B, ...] each;
                the method `gradients` makes them.

        Raises:
            ValueError: an output of another shape; guidance without a pair; normals or gradients
                given or missing.
        """
        outputs, needs = outputs_of(output), self.needs(state)
        check_unchanged(state)
        check_outputs(state, outputs, needs, self.guided, self.extra)
        check_normals(state, z, self.given, self.draws)
        check_gradients(state, gradients, needs)
        if needs.graph:  # the graph was for the gradients alone
            outputs = [o if o is None else o.detach() for o in outputs]
        given: list[Any] = [*outputs, None, z, *[None] * len(TERMS)]
        for k, gradient in zip(needs.terms, gradients, strict=True):
            given[len(OUTPUTS) + AT_TERM - AT_X0 + k - 1] = gradient
        together = isinstance(state.row, int)
        try:
            tensors = self.rules.registers(state, given)
            state = (self._step_together if together else self._step_each)(state, tensors)
        except (RuntimeError, ValueError) as error:
            where = f"Stepper: stage {self.stage(state)}" if together else "Stepper"
            named = {**dict(zip(OUTPUTS, outputs, strict=True)), "z": z}
            context.blame(error, where, state.x, {k: t for k, t in named.items() if t is not None})
            raise
        return state, self._network_input(state.x), self.time(state)

    def _step_together(self, state: State, tensors: list) -> State:
        call = self.calls[state.row]
        if call is None:
            return state
        if tensors[AT_Y] is None:
            tensors[AT_Y] = state.x
        outs = [torch.empty_like(state.x) for _ in call.writes]
        status = state.status.clone()
        stage = state.row - self.first[self._plan_of(state.row)]
        if call.alone:
            tensors[AT_X0] = self._estimate_together(state, tensors)
        xs = [tensors[k] for k in call.columns]
        if self.rules.reductions[state.row] is not None and not call.alone:
            self.rules.combine(state, call, xs, tensors, outs, status, stage)
        else:
            limits = self.limits if call.clamped else []
            rest = (call.noise, state.seed, state.ids, limits)
            rest = rest if call.noise or limits else ()
            ops.combine_out(xs, call.weights, outs, status, stage, *rest)
        made = dict(zip(call.writes, outs, strict=True))
        slots = state.slots
        if H in made:
            slots = (*slots[: call.slot], made[H], *slots[call.slot + 1 :])
        y = made.get(Y, tensors[AT_Y] if Y in call.keeps else None)
        v = made.get(V, state.v if V in call.keeps else None)
        momentum = made.get(MOMENTUM, state.momentum)
        return State(state.row + 1, made[X], y, v, slots, state.seed, state.ids, status, momentum)

    def _estimate_together(self, state: State, tensors: list) -> torch.Tensor:
        """Returns the x0 estimate as the step takes it, where samples stand at one stage."""
        call, x0 = self.calls[state.row], torch.empty_like(state.x)
        xs, weights = [tensors[k].contiguous() for k in call.x0_columns], call.x0_weights
        if self.rules.reductions[state.row] is not None:
            self.rules.estimate(state, call, xs, tensors, x0)
        elif self.limits:
            ops.combine_out(xs, [*weights, 0.0], [x0], None, 0, [], 0, None, self.limits)
        else:
            ops.combine_out(xs, weights, [x0])
        return self._hooked(x0, self.stage(state), state)

    def _estimate_each(self, state: State, tensors: list, stage: torch.Tensor) -> torch.Tensor:
        """Returns the same, where samples stand each at a stage of their own."""
        table, x0 = self.table(), torch.empty_like(state.x)
        xs = [tensors[k].contiguous() for k in table.x0_columns]
        weights = table.x0[state.row]
        if self.limits:
            weights = torch.cat([weights, torch.zeros_like(weights[:, :, :1])], 2)
        ops.combine_table_out(xs, weights, None, None, self.limits, [x0], None)
        return self._hooked(x0, stage, state)

    def _hooked(self, x0: torch.Tensor, stage: int | torch.Tensor, state: State) -> torch.Tensor:
        if self.on_x0 is None:
            return x0
        info = Info(stage, self.time(state), state.ids)
        return context.hooked("Stepper", self.on_x0, x0, info).to(x0.dtype).contiguous()

    def _plan_of(self, row: int) -> int:
        return max(p for p, first in enumerate(self.first) if first <= row)

    def _step_each(self, state: State, tensors: list) -> State:
        table = self.table()
        row = state.row
        words = table.words[row]
        if self.alone:
            tensors[AT_X0] = self._estimate_each(state, tensors, words)
        xs = [tensors[k] for k in table.columns]
        streams = torch.stack([state.seed, state.ids, words], 1)
        weights, noise = table.weights[row], None if table.noise is None else table.noise[row]
        status = state.status.clone()
        limits = [] if self.alone else self.limits
        hidden = int(bool(limits))  # the clamped row 0 is not written
        outs = [torch.empty_like(state.x) for _ in range(weights.shape[1] - hidden)]
        for first in range(0, len(outs), ops.MAX_ROWS - hidden):
            last = first + ops.MAX_ROWS - hidden
            made, fresh = (rows_of(table, first, last, hidden) for table in (weights, noise))
            ops.combine_table_out(xs, made, fresh, streams, limits, outs[first:last], status)
        *slots, x = outs
        carried = {name: slots.pop() for name in reversed(self.carried)}
        y, v, momentum = carried.get(Y, x), carried.get(V), carried.get(MOMENTUM)
        following = table.following[row]
        return State(following, x, y, v, tuple(slots), state.seed, state.ids, status, momentum)

    def estimate(
        self, state: State, output: torch.Tensor | Sequence[torch.Tensor | None]
    ) -> torch.Tensor:
        """Returns the x0 estimate [B, ...] of an output, in plain torch and without terms."""
        outputs = outputs_of(output)
        check_outputs(state, outputs, self.needs(state), self.guided, self.extra)
        if self.rules.active:
            tensors = self.rules.registers(state, outputs)
            if not isinstance(state.row, int):
                return self._estimate_each(state, tensors, self.stage(state))
            ended = self.calls[state.row] is None
            return torch.zeros_like(state.x) if ended else self._estimate_together(state, tensors)
        table, tensors = self.table(), (self.state(state), state.v, state.x, *outputs)
        weights = table.x0[state.row].to(state.x.dtype)  # [B, 1, columns], [1, columns] together
        shape = (-1, *([1] * (state.x.dim() - 1)))
        x0 = sum(
            weights[..., 0, n].view(shape) * tensors[k] for n, k in enumerate(table.x0_columns)
        )
        x0 = x0.clamp(*self.limits) if self.limits else x0
        return self._hooked(x0, self.stage(state), state)

    def result(self, state: State, throw: bool = True) -> Samples:
        """Returns the samples of a state, those that failed as NaN; waits for the device.

        Args:
            state: from `start` or `step`.
            throw: whether failed samples raise; otherwise `status` says which failed.

        Raises:
            NonFiniteError: if samples are not finite; its `result` holds the others.
        """
        done, stage = self.done(state), self.stage(state)
        if isinstance(stage, torch.Tensor):
            nfe, rows = self.table().calls[state.row].unbind(1)
        else:
            nfe, rows = (torch.full_like(state.ids, n) for n in self._before[state.row])
        if isinstance(done, bool):
            completed, status = done, None
        else:
            both = torch.stack([state.status, done.to(torch.int64)])
            status, ended = Readback(self.device).take(both).reshape(2, -1)
            completed = bool(ended.all())
        result = Samples(state.x, nfe, state.status, completed, network_rows=rows)
        what = "the network's output or the state made of it is not finite at stage"
        return result.or_raise(
            "Stepper", state.ids, throw, lambda b, i: f"{what} {i}", status=status
        )

    def separate(self, state: State) -> State:
        """Returns the state as one whose samples may stand at different stages.

        Raises:
            ValueError: a guidance rule whose weights depend on the stage.
        """
        self.rules.check_each()
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
        y, momentum = self.state(state), state.momentum
        if MOMENTUM in self.carried and momentum is None:
            momentum = torch.zeros_like(state.x)
        slots = (*slots, *blank)
        return state._replace(row=row, seed=seed, slots=slots, y=y, v=v, momentum=momentum)

    def state(self, state: State) -> torch.Tensor:
        """Returns the steps' states [B, ...], which the next rows weigh as y."""
        return state.x if state.y is None else state.y

    def time(self, state: State) -> torch.Tensor:
        """Returns the model times of the next evaluations, [B]; at the end those of the last."""
        return self.times.of(state.row, state.x, self.table)

    def done(self, state: State) -> torch.Tensor | bool:
        """Returns whether the samples are at their plan's end: one answer, or [B] on the device."""
        if isinstance(state.row, int):
            return self.calls[state.row] is None
        return self.table().ended[state.row]

    def stage(self, state: State) -> torch.Tensor | int:
        """Returns how many evaluations each sample has had: network calls, gradients, or both."""
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
        state = each_of(states, joined)
        # one tensor where a step would leave one: or a graph of the step would be made twice
        return state if Y in self.carried else state._replace(y=state.x)

    def _network_input(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the model inputs, whose state the caller's network may write into."""
        mark(x)
        return x if self.dtype is None else x.to(self.dtype)

    def table(self) -> Table:
        """Returns every stage of every plan as one table on the device, made once."""
        if self._table is None:
            clamp = bool(self.limits) and not self.alone
            told = self.times.exact, self._before
            shape = self.slots, self.carried, clamp, self._put
            calls = self.rules.for_table(self.calls)
            self._table = make_table(calls, self.first, *told, *shape)
        return self._table

    def _put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the host on the device; nothing waits for the copy."""
        return pinned(tensor, self.device).to(self.device, non_blocking=True)
