"""The adaptive executor's rounds: it binds the tensors of a trial program and calls the ops.

A round is one network call of every sample in the batch. First `evaluate` computes all weights of
the round, and `combine_table` makes the network inputs. Then the network is called once.
`combine_error` makes what follows from the answers and the scaled errors, and `accept` decides for
every sample and copies what was accepted.

Samples are at steps and calls of their own; those that are done leave the batch. What is known of a
sample (position, step, call, counts) is on the device. It is not asked for there, but for an
occasional copy of the statuses that is not waited for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffast import ops
from diffast.executors.adaptive import path
from diffast.executors.adaptive.batch import Batch
from diffast.executors.adaptive.nodes import (
    AT,
    STAGE,
    TO,
    HostNodes,
    node_source,
    on_device,
    time_of,
)
from diffast.executors.adaptive.options import AdaptiveOptions
from diffast.executors.adaptive.round_terms import RoundTerms
from diffast.executors.adaptive.tables import RoundTables
from diffast.executors.adaptive.time_variable import TimeInterval
from diffast.executors.context import Place, blame, hooked, on_rows, put_initial
from diffast.executors.device import on_host
from diffast.executors.results import Info, Progress
from diffast.lowering.estimate import COND, UNCOND, X0, estimate_row
from diffast.lowering.traced_steps import Table, Tracer
from diffast.lowering.trial_steps import NOISE, TrialProgram
from diffast.model.denoiser import Denoiser
from diffast.model.input_watch import InputWatch, InputWritten
from diffast.model.times import ends_of, time_dtype
from diffast.ops import schema
from diffast.ops.evaluate.encode import encode
from diffast.ops.schema import CONTROLS, COUNTS, FAILED_FINITE, FINISHED, RUNNING
from diffast.solvers.embedded import Step
from diffast.solvers.embedded.bridge import HELD, NEW

STATUSES = {
    RUNNING: "running",
    FINISHED: "finished",
    FAILED_FINITE: "not finite",
    schema.FAILED_STEP: "step too small",
    schema.FAILED_CALLS: "too many calls",
}


class AdaptiveRun:
    """The tensors of one run and its rounds.

    The program's controller is the run's; the interval has positions of the method's kind.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        program: TrialProgram,
        interval: TimeInterval,
        place: Place,
        options: AdaptiveOptions,
    ):
        """Settles what the rounds need; no network call yet."""
        self.denoiser, self.program, self.interval, self.place = denoiser, program, interval, place
        self.solver, self.noise = program.solver, program.noise.kind
        self.shape, self.dtype, self.device, self.ids, self.seed, self.limits = place
        self.options: AdaptiveOptions = options
        self.on_x0: Any = options.on_x0
        self.on_host = on_host(self.device)
        self.terms = RoundTerms(denoiser) if denoiser.guides else None
        self.time_dtype = time_dtype(self.dtype)
        self.time_ends = ends_of(denoiser.schedule, self.time_dtype)
        self.owner: torch.Tensor | None = None  # the sample of each row, once some have left
        self._prepare_guidance()
        self._prepare_rule()
        self._prepare_network_input()
        self._prepare_tables()
        self.out = place.empty()
        held, passing, records = program.held, program.passing, self._begin()
        self.batch = Batch(place, held, passing, records, options.compact, self._take, self._moved)
        self._moved()
        self.watch: InputWatch | None = None
        self.trace = [] if options.trace else None
        self.rounds = 0

    # What is settled before the first call.

    def _prepare_guidance(self) -> None:
        """Settles the scale (None where it depends on the time) and the branches."""
        if callable(self.denoiser.guidance):
            self.scale, self.branches = None, "both"
        else:
            self.scale = float(self.denoiser.scales(np.zeros(1))[0])
            self.branches = {0.0: "uncond", 1.0: "cond"}.get(self.scale, "both")
        # Of each sample, in the network's batches.
        self.rows_a_call = getattr(self.denoiser.network, "branches", 1)
        self.rows_a_call *= 1 + (self.branches == "both")

    def _prepare_rule(self) -> None:
        solver, options = self.solver, self.options
        rule = solver.controller | {
            "always": int(not options.reject),
            "last": solver.calls,
            "restart": int(solver.reuses_last_call),
            "final": int(options.denoise),
            "most_calls": int(options.max_calls),
        }
        self.rule = [float(rule[name]) for name in schema.RULE]
        self.flags = [int(rule[name]) for name in schema.FLAGS]
        form, norm = solver.error_form, solver.error_norm
        self.error_kind = schema.ERROR_FORMS.index(form), schema.ERROR_NORMS.index(norm)

    def _prepare_network_input(self) -> None:
        """Makes the tensor that the network reads, where it cannot read the program's x."""
        wanted, both = self.denoiser.dtype or self.dtype, self.branches == "both"
        self.network_input = None
        if both or wanted != self.dtype:
            self.network_input = self.place.empty((1 + both) * self.shape[0], wanted)
        self.conditions = self.denoiser.arguments(self.shape[0], self.device, self.branches)

    def _prepare_tables(self) -> None:
        """Settles what the weights of all rounds are computed from, and by which programs."""
        program, solver, control = self.program, self.solver, len(CONTROLS)
        columns = {"start": AT, "end": TO}
        columns |= {name: control + k for k, name in enumerate(program.rejected)}
        control += len(program.rejected)
        scales = [self.denoiser.scales] if self.scale is None else []
        scales += [] if self.terms is None else self.terms.scales
        self.source = node_source(self.interval, solver, control, scales, self.on_host)
        self.node_table = on_device(self.source, self.device)
        times = ("time", "time of uncond") if self.branches == "both" else ("time",)
        copies = 1 + (0 if self.network_input is None else len(times))
        path_arguments = path.step_arguments if self.noise == "path" else None
        self.tracer = Tracer(
            program, self.source, self.scale, columns, times, copies, path_arguments
        )
        self.tables: dict[tuple[int, bool], RoundTables] = {}
        self.inputs = None
        if isinstance(self.source, HostNodes):
            shape = self.shape[0], self.source.columns
            self.inputs = torch.zeros(shape, dtype=torch.float64, device="cpu")

    def _begin(self) -> dict[str, torch.Tensor]:
        """Returns what `accept` keeps of each sample: all of them begin alike."""
        interval, rule, step = self.interval, self.solver.controller, self.options.h_init
        step = min(self.solver.step if step is None else step, rule["step_max"])
        end, rest = interval.end, interval.end - interval.start
        if step < rest:
            half = rule["balance"] and rest < 2.0 * step
            end = interval.start + (0.5 * rest if half else step)
        # Before the first trial step the error counts as 1; a PID rule takes the first one for it.
        before = np.nan if rule["by_factor"] else 1.0
        start = {"at": interval.start, "to": end, "end": interval.end, "before": before}
        control = [start.get(name, np.nan) for name in CONTROLS]
        control += [np.inf] * self.program.noise.rejected
        first = {"status": RUNNING, "stage": 1, "calls": 1}
        counts = [first.get(name, 0) for name in COUNTS]

        def spread(numbers, dtype):
            row = torch.tensor(numbers, dtype=dtype, device=self.device)
            return row.expand(self.shape[0], -1).clone()

        streams = spread([self.seed, 0, 0], torch.int64)
        streams[:, 1] = self.ids
        control, counts = spread(control, torch.float64), spread(counts, torch.int64)
        self.final = {"control": torch.empty_like(control), "counts": torch.empty_like(counts)}
        return {"control": control, "counts": counts, "streams": streams}

    def _moved(self, samples: torch.Tensor | None = None) -> None:
        """Prepares what goes with the samples [size] that are in the batch now; None: all."""
        batch = self.batch
        self.sources = [batch.view[name] for name in self.program.sources]
        self.targets = [batch.view[name] for name in self.program.held]
        for tables in self.tables.values():
            tables.look(batch.size)
        self.arguments, self.owner = self.conditions, None
        if samples is not None:
            both = self.branches == "both"
            with torch.inference_mode(False):  # autograd may save them
                self.owner = samples.clone()
                rows = torch.cat([samples, samples + self.shape[0]]) if both else samples.clone()
                self.arguments = on_rows(self.conditions, lambda value: value[rows])

    # The start: call 0, at the first model time.

    def start(self, x: torch.Tensor | None) -> None:
        """Puts the initial state in place and makes the first call."""
        if not self.on_host:  # in a round nothing is sent to a device
            for turn in range(self.period):
                self._tables_of(turn, bool(self.program.rejected))
        schedule, view = self.denoiser.schedule, self.batch.view
        status, size = self.batch.now["status"], self.batch.size
        times = np.array([float(schedule.t_start)])
        y, d, sigma = view["y"], view["proposal0"], float(schedule.sigma(times)[0])
        put_initial(y, x, sigma, self.place)
        for tensor in (view["x"], *self._network_parts()):
            tensor.copy_(y)
        count = (1 + (self.branches == "both")) * size
        answers, leaf = self._ask(torch.from_numpy(times).to(self.device).expand(count))
        a, b = (float(weight[0]) for weight in self.denoiser.affine(times))
        scale = float(self.denoiser.scales(times)[0]) if self.scale is None else self.scale
        row = estimate_row(a, b, scale)
        pulled = self._pulled(leaf, answers, row)
        columns = view | answers
        weights = [*row.values(), *([0.0] if self.limits else [])]
        xs = [columns[name] for name in row]
        try:
            ops.combine_out(xs, weights, [d], status, 0, [], 0, None, self.limits)
        except (RuntimeError, ValueError) as error:
            self._blame(error, answers)
            raise
        if self.on_x0 is not None:
            told = torch.from_numpy(times.repeat(size)).to(self.device)
            d.copy_(self._hooked(d, told, first=True))
        if self.terms is not None:
            gradients, weights = self.terms.at_start(self, times, d, pulled)
            if gradients:
                ops.combine_out([d, *gradients], [1.0, *weights], [d], status)
        node = self.interval.nodes(np.array([self.interval.start]))
        if self.interval.opens:  # from noise alone to the first position by Euler's step
            alpha, keep = float(node.alpha[0]), float(node.sigma[0]) / sigma
            ops.combine_out([y, d], [keep, alpha], [y], status)
        for name, row in self.solver.rows_after(Step(np, node, None, node), 0).items():
            row, columns = _of_one(row), {"x": y, "d": d}
            xs = [columns[column] for column in row]
            ops.combine_out(xs, list(row.values()), [view[name]], status)
        for name in self.solver.carried:
            view[name].copy_(y)
        if self.noise == "path":
            path.draw_start(node, self.batch.now["streams"], view[NOISE], view[HELD])
        self.batch.now["counts"][:, 0] = torch.where(status >= 0, FAILED_FINITE, RUNNING)
        self.batch.poll(self.rounds)

    def _network_parts(self) -> tuple[torch.Tensor, ...]:
        """Returns the tensors, beside x, that the network inputs are written to."""
        if self.network_input is None:
            return ()
        size = self.batch.size
        return self.network_input[: (1 + (self.branches == "both")) * size].split(size)

    def _ask(self, times: torch.Tensor) -> tuple[dict[str, torch.Tensor], Any]:
        """Returns the network's answers by name, for what lies in its input tensor.

        The times are [size], or [2 size] for both branches. Where a guidance term is taken through
        the network, the answers have a graph from x, which is returned too.
        """
        x, size, both = self.batch.view["x"], self.batch.size, self.branches == "both"
        # A copy: the tables are written anew in the next round, and a network may keep its times.
        times, leaf = times.to(self.time_dtype, copy=True), None
        if self.time_ends is not None:
            times.clamp_(*self.time_ends)
        if self.network_input is not None:
            x = self.network_input[: (1 + both) * size]
        if self.terms is not None and self.terms.graph:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = self.batch.view["x"].clone().requires_grad_()
                rows = torch.cat([leaf] * (1 + both)).to(x.dtype)
                output = self.denoiser.call(rows, times.clone(), self.arguments)
                parts = (output[:size], output[size:])[: 1 + both]  # here, with their graph
        else:
            if self.watch is None or self.watch.shape != x.shape:  # always the same memory
                self.watch = InputWatch(x)
            try:
                output = self.denoiser.call(x, times, self.arguments, watch=self.watch)
            except InputWritten:
                raise InputWritten("sample_adaptive", f" in round {self.rounds}") from None
            parts = (output[:size], output[size:])[: 1 + both]
        names = (COND, UNCOND) if both else (COND if self.branches == "cond" else UNCOND,)
        return dict(zip(names, parts, strict=True)), leaf

    def _pulled(self, leaf: Any, answers: dict[str, torch.Tensor], weights: Any) -> Any:
        """Returns the x0 estimate as a function of the leaf, if there is one."""
        if leaf is None:
            return None
        assert self.terms is not None  # they are why there is a leaf
        pulled = self.terms.pullback(leaf, answers, weights)
        answers.update({name: answer.detach() for name, answer in answers.items()})
        return pulled

    def _blame(self, error: Exception, answers: dict[str, torch.Tensor]) -> None:
        named = {"the network's output": next(iter(answers.values()))}
        blame(error, f"sample_adaptive: round {self.rounds}", self.batch.view["x"], named)

    # One round.

    def round(self) -> int:
        """Runs one network call of every sample in the batch, and what follows; returns 1."""
        now = self.batch.now
        if self.trace is not None:
            rows = self.batch.samples[: self.batch.size].copy()
            before = rows, now["control"].clone(), now["counts"].clone()
        self.work()
        if self.trace is not None:
            self.trace.append((*before, now["counts"].clone(), now["control"].clone()))
        self.batch.poll(self.rounds)
        return 1

    @property
    def period(self) -> int:
        """Returns after how many rounds `work` does the same again, on tensors alone.

        Samples of a solver that reuses its last call all stand at one call, which the number of
        the round tells; the others may stand at any.
        """
        return self.solver.calls if self.solver.reuses_last_call else 1

    def work(self) -> None:
        """Runs a round's network call and ops, and lets no sample leave.

        On a device nothing is read from it and nothing is sent to it, and the tensors are the same
        in every round with `compact=False`: `period` rounds can be captured and replayed.
        """
        self.rounds += 1
        tables = self._tables()
        self._write_tables(tables)
        self._write_inputs(tables)
        answers, leaf = self._ask(tables.told)
        weights = None if leaf is None or self.terms is None else self.terms.weights(tables)
        pulled = self._pulled(leaf, answers, weights)
        columns = self.batch.view | answers
        try:
            if tables.traced.estimate is not None:
                self._write_estimate(tables, tables.traced.estimate, columns)
            if self.terms is not None:
                columns |= self.terms.in_round(self, tables, pulled)
            self._settle(tables, columns)
        except (RuntimeError, ValueError) as error:
            self._blame(error, answers)
            raise
        program, now = self.program, self.batch.now
        told = self.rule, self.flags, program.moves, program.memory, self.sources
        kept = now["control"], now["counts"], now["streams"], self.targets
        ops.accept(now["norms"], now["status"], *told, *kept)

    def _tables(self) -> RoundTables:
        """Returns the tables of the calls that samples may stand at in this round."""
        remembered = bool(self.program.rejected)
        if remembered and self.on_host:  # no columns for points that nobody remembers
            remembered = not np.isinf(self.batch.control[:, len(CONTROLS) :]).all()
        return self._tables_of((self.rounds - 1) % self.period, remembered)

    def _tables_of(self, turn: int, remembered: bool) -> RoundTables:
        """Returns the tables of a round of the period; they are made once."""
        found = self.tables.get((turn, remembered))
        if found is None:
            solver = self.solver
            calls = (turn + 1,) if solver.reuses_last_call else range(solver.calls + 1)
            found = RoundTables(self.tracer, calls, remembered, self.place, self.node_table)
            found.look(self.batch.size)
            self.tables[turn, remembered] = found
        return found

    def _write_tables(self, tables: RoundTables) -> None:
        """Computes all weights of the round."""
        batch = self.batch
        inputs = batch.now["control"]
        if self.inputs is not None and isinstance(self.source, HostNodes):
            inputs = self.inputs[: batch.size]
            stages = batch.counts[:, STAGE] if len(tables.calls) > 1 else tables.calls[0]
            with np.errstate(all="ignore"):
                self.source.write(inputs.numpy(), batch.control, stages)
        tables.write(inputs, batch.now["counts"])

    def _write_inputs(self, tables: RoundTables) -> None:
        """Writes every sample's next network input, and its path's next value."""
        view, streams = self.batch.view, self.batch.now["streams"]
        if self.noise == "path":
            nodes, weights = tables.now["nodes"], tables.now["path"]
            drawn = view[NOISE], view[NEW]
            ops.brownian_out(streams, nodes, weights, path.PATH_DEPTH, view[HELD], *drawn)
        outs = [view["x"], *self._network_parts()]
        if self.noise == "bridge":
            outs.append(view[NEW])
        table = tables.traced.inputs
        weights, fresh = tables.weights(table)
        xs = [view[name] for name in table.columns]
        streams = None if fresh is None else streams
        ops.combine_table_out(xs, weights, fresh, streams, [], outs, None)

    def _settle(self, tables: RoundTables, columns: dict[str, torch.Tensor]) -> None:
        """Writes the proposals and the scaled errors."""
        traced, view, now = tables.traced, self.batch.view, self.batch.now
        xs = [columns[name] for name in traced.settle.columns]
        rows = *tables.weights(traced.settle), now["streams"]
        limits = self.limits if self.program.fused else []
        error = tables.now["tolerance"], *self.error_kind, traced.measured
        outs = [view[name] for name in self.program.proposals], now["norms"], now["status"]
        ops.combine_error_out(xs, *rows, limits, *error, *outs)

    def _write_estimate(
        self, tables: RoundTables, table: Table, columns: dict[str, torch.Tensor]
    ) -> None:
        """Makes the x0 estimate and lets the hook see it."""
        x0 = self.batch.view[X0]
        xs = [columns[name] for name in table.columns]
        weights = tables.weights(table)[0]
        ops.combine_table_out(xs, weights, None, None, self.limits, [x0], None)
        if self.on_x0 is not None:
            x0.copy_(self._hooked(x0, tables.told[: self.batch.size].clone()))

    def _hooked(self, x0: torch.Tensor, times: torch.Tensor, first: bool = False) -> torch.Tensor:
        now = self.batch.now
        # The first call is counted before it is made, the others after.
        calls = now["counts"][:, COUNTS.index("calls")] - int(first)
        info = Info(calls, times, now["streams"][:, 1].clone())
        return hooked("sample_adaptive", self.on_x0, x0, info)

    def progress(self) -> Progress:
        """Returns what the callback sees: the states of the samples in the batch."""
        return Progress(self.rounds, None, self._time(), None, self.batch.view["y"])

    def _time(self) -> torch.Tensor:
        """Returns the model times [size] at which samples stand."""
        if self.on_host or isinstance(self.source, HostNodes):
            return torch.from_numpy(np.asarray(self.interval.nodes(self.batch.control[:, AT]).time))
        code, constants, starts, registers = encode([time_of(self.source)]).to(self.device)
        control = self.batch.now["control"]
        time = control.new_zeros(len(control))
        known = code, constants, starts, 0, control, None, 0, *self.node_table, registers
        ops.evaluate(*known, [time])
        return time

    def stop(self) -> None:
        """Hands over the states of all samples that are still in the batch."""
        size = self.batch.size
        self.batch.remove(np.arange(size), np.zeros(size, dtype=bool))

    def _take(self, rows: torch.Tensor, samples: torch.Tensor, finished: torch.Tensor) -> None:
        """Writes the results of rows of the batch that leave it."""
        batch = self.batch
        for name, final in self.final.items():
            final[samples] = batch.now[name][rows]
        x = batch.view["y"][rows]
        if self.options.denoise:
            node = self.interval.nodes(np.array([self.interval.end]))
            row = _of_one(self.solver.estimate(node))
            xs = [x if name == "y" else batch.view[name][rows] for name in row]
            (x0,) = ops.combine_host(xs, list(row.values()), [], 0, 0, None, [])
            x = torch.where(finished.reshape(-1, *[1] * (x.dim() - 1)), x0, x)
        self.out[samples] = x


def _of_one(row: dict[str, Any]) -> dict[str, float]:
    """Returns a row of one sample's weights as numbers."""
    return {name: float(np.asarray(weight).flat[0]) for name, weight in row.items()}
