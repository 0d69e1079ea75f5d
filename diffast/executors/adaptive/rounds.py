"""The adaptive executor's rounds: it binds the tensors of a trial program and calls the ops.

A round is one network call of every sample in the batch. First `combine_table` makes the network
inputs, then the network is called once, `combine_error` makes what follows from the answers and the
scaled errors, and `accept` decides for every sample and copies what was accepted.

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
from diffast.executors.adaptive.batch import Batch, on_host
from diffast.executors.adaptive.options import AdaptiveOptions
from diffast.executors.adaptive.time_variable import DeviceTimeVariable, TimeInterval
from diffast.executors.context import Place, blame, hooked, on_rows, put_initial, written
from diffast.executors.results import Info, Progress
from diffast.lowering.estimate import COND, UNCOND, X0, estimate_row
from diffast.lowering.trial_steps import NOISE, SettleTable, Stages, TrialProgram
from diffast.model.denoiser import Denoiser, time_dtype
from diffast.ops import schema
from diffast.ops.schema import CONTROLS, COUNTS, FAILED_FINITE, FINISHED, RUNNING
from diffast.solvers.embedded import Node, Step
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
        self.options, self.on_x0 = options, options.on_x0
        self.on_host = on_host(self.device)
        self.xp = np if self.on_host else torch
        self._prepare_guidance()
        self._prepare_rule()
        self._prepare_network_input()
        self.out = place.empty()
        held, passing, records = program.held, program.passing, self._begin()
        self.batch = Batch(place, held, passing, records, options.compact, self._take, self._moved)
        self._moved()
        self.trace = [] if options.trace else None
        self.rounds = 0

    # What is settled before the first call.

    def _prepare_guidance(self) -> None:
        """Settles the scale (None where it depends on the time), the branches, and the nodes."""
        if callable(self.denoiser.guidance):
            self.scale, self.branches = None, "both"
        else:
            self.scale = float(self.denoiser.scales(np.zeros(1))[0])
            self.branches = {0.0: "uncond", 1.0: "cond"}.get(self.scale, "both")
        self.device_table = None
        if not self.on_host:
            scales = self.denoiser.scales if self.scale is None else None
            self.device_table = DeviceTimeVariable(self.interval, self.device, scales)

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

    def _moved(self) -> None:
        """Prepares what goes with the samples that are in the batch now."""
        batch = self.batch
        self.sources = [batch.view[name] for name in self.program.sources]
        self.targets = [batch.view[name] for name in self.program.held]
        self.arguments = self.conditions
        if batch.size < self.shape[0]:
            rows = torch.from_numpy(batch.samples[: batch.size]).to(self.device)
            both = self.branches == "both"
            rows = torch.cat([rows, rows + self.shape[0]]) if both else rows
            self.arguments = on_rows(self.conditions, lambda value: value[rows])

    # The start: call 0, at the first model time.

    def start(self, x: torch.Tensor | None) -> None:
        """Puts the initial state in place and makes the first call."""
        schedule, view = self.denoiser.schedule, self.batch.view
        status, size = self.batch.now["status"], self.batch.size
        times = np.array([float(schedule.t_start)])
        y, d, sigma = view["y"], view["proposal0"], float(schedule.sigma(times)[0])
        put_initial(y, x, sigma, self.place)
        for tensor in (view["x"], *self._network_parts()):
            tensor.copy_(y)
        answers = self._ask(torch.from_numpy(times).to(self.device).expand(size))
        a, b = (float(weight[0]) for weight in self.denoiser.affine(times))
        scale = float(self.denoiser.scales(times)[0]) if self.scale is None else self.scale
        row, columns = estimate_row(a, b, scale), view | answers
        weights = [*row.values(), *([0.0] if self.limits else [])]
        xs = [columns[name] for name in row]
        try:
            ops.combine_out(xs, weights, [d], status, 0, [], 0, None, self.limits)
        except (RuntimeError, ValueError) as error:
            self._blame(error, answers)
            raise
        if self.on_x0 is not None:
            d.copy_(self._hooked(d, times.repeat(size), first=True))
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
            position = self.batch.control[:, 0]
            step = Step(self.xp, self._nodes(position)[0], None, None)
            path.draw_start(step, self.batch.now["streams"], view[NOISE], view[HELD])
        self.batch.now["counts"][:, 0] = torch.where(status >= 0, FAILED_FINITE, RUNNING)
        self.batch.poll(self.rounds)

    def _network_parts(self) -> tuple[torch.Tensor, ...]:
        """Returns the tensors, beside x, that the network inputs are written to."""
        if self.network_input is None:
            return ()
        size = self.batch.size
        return self.network_input[: (1 + (self.branches == "both")) * size].split(size)

    def _ask(self, times: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the network's answers by name, for what lies in its input tensor."""
        x, size, both = self.batch.view["x"], self.batch.size, self.branches == "both"
        times = times.to(time_dtype(self.dtype))
        if self.network_input is not None:
            x = self.network_input[: (1 + both) * size]
        before = x._version
        output = self.denoiser.call(x, torch.cat([times, times]) if both else times, self.arguments)
        if x._version != before:
            raise written("sample_adaptive", f" in round {self.rounds}")
        if both:
            return {COND: output[:size], UNCOND: output[size:]}
        return {COND if self.branches == "cond" else UNCOND: output}

    def _blame(self, error: Exception, answers: dict[str, torch.Tensor]) -> None:
        named = {"the network's output": next(iter(answers.values()))}
        blame(error, f"sample_adaptive: round {self.rounds}", self.batch.view["x"], named)

    # One round.

    def round(self) -> None:
        """Runs one network call of every sample in the batch, and what follows from it."""
        self.rounds += 1
        now, program = self.batch.now, self.program
        with np.errstate(all="ignore"):
            stages = self._stages()
            step, scale = self._step(stages)
            self._write_inputs(step, stages)
            times = step.call.time
            answers = self._ask(torch.from_numpy(times) if self.on_host else times)
            columns = self.batch.view | answers
            try:
                if self.on_x0 is not None:
                    self._write_estimate(step, scale, columns)
                self._settle(program.settle_table(step, stages, scale), columns)
            except (RuntimeError, ValueError) as error:
                self._blame(error, answers)
                raise
        if self.trace is not None:
            rows = self.batch.samples[: self.batch.size].copy()
            before = rows, now["control"].clone(), now["counts"].clone()
        told = self.rule, self.flags, program.moves, program.memory, self.sources
        kept = now["control"], now["counts"], now["streams"], self.targets
        ops.accept(now["norms"], now["status"], *told, *kept)
        if self.trace is not None:
            self.trace.append((*before, now["counts"].clone(), now["control"].clone()))
        self.batch.poll(self.rounds)

    def _stages(self) -> Stages:
        """Returns the calls that samples may be at, with masks where they may differ."""
        calls = self.solver.calls
        if self.solver.reuses_last_call:
            return [((self.rounds - 1) % calls + 1, None)]
        call = self.batch.counts[:, 1]
        return [(k, call == k) for k in range(calls + 1)]

    def _step(self, stages: Stages) -> tuple[Step, Any]:
        """Returns every sample's trial step, and the guidance scales at its call."""
        xp, solver, control = self.xp, self.solver, self.batch.control
        start, end = control[:, 0], control[:, 1]
        reach = solver.reach(xp, start, end)

        def place(call):
            part = solver.fractions[call - 1]
            return reach if part == 1.0 else start + part * (reach - start)

        call = place(stages[0][0]) if len(stages) == 1 else start
        for k, mask in stages[1:]:
            call = xp.where(mask, place(k), call)
        positions = [start, end] if call is end else [start, end, call]
        found, scales = self._nodes(xp.stack(positions))
        nodes = [Node(*(None if f is None else f[k] for f in found)) for k in (0, 1, -1)]
        scale = self.scale
        if scale is None:
            scale = self.denoiser.scales(nodes[-1].time) if self.on_host else scales[-1]
        return Step(xp, *nodes), scale

    def _nodes(self, positions) -> tuple[Node, torch.Tensor | None]:
        """Returns the nodes of positions and, on a device, the guidance scales there."""
        if self.on_host:
            return self.interval.nodes(positions), None
        return self.device_table.nodes_and_scales(positions)

    def _write_inputs(self, step: Step, stages: Stages) -> None:
        """Writes every sample's next network input, and its path's next value."""
        view, streams = self.batch.view, self.batch.now["streams"]
        if self.noise == "path":
            path.draw_step(step, streams, view[HELD], view[NOISE], view[NEW])
        outs = [view["x"], *self._network_parts()]
        table = self.program.input_table(step, stages, self._rejected(), len(outs))
        if self.noise == "bridge":
            outs.append(view[NEW])
        xs = [view[name] for name in table.columns]
        streams = None if table.noise is None else streams
        ops.combine_table_out(xs, table.weights, table.noise, streams, [], outs, None)

    def _rejected(self) -> dict[str, Any]:
        """Returns the positions of remembered points by name; on the host none if all are free."""
        first, control = len(CONTROLS), self.batch.control
        names = self.program.rejected
        if self.on_host and names and np.isinf(control[:, first:]).all():
            return {}
        return {name: control[:, first + k] for k, name in enumerate(names)}

    def _settle(self, settle: SettleTable, columns: dict[str, torch.Tensor]) -> None:
        """Writes the proposals and the scaled errors."""
        table, view, now = settle.table, self.batch.view, self.batch.now
        xs = [columns[name] for name in table.columns]
        rows = table.weights, table.noise, now["streams"]
        limits = self.limits if self.on_x0 is None else []
        error = settle.tolerance, *self.error_kind, settle.measured
        outs = [view[name] for name in self.program.proposals], now["norms"], now["status"]
        ops.combine_error_out(xs, *rows, limits, *error, *outs)

    def _write_estimate(self, step: Step, scale: Any, columns: dict[str, torch.Tensor]) -> None:
        """Makes the x0 estimate and lets the hook see it."""
        x0, table = self.batch.view[X0], self.program.estimate_table(step, scale)
        xs = [columns[name] for name in table.columns]
        ops.combine_table_out(xs, table.weights, None, None, self.limits, [x0], None)
        x0.copy_(self._hooked(x0, step.call.time))

    def _hooked(self, x0: torch.Tensor, times: Any, first: bool = False) -> torch.Tensor:
        now = self.batch.now
        times = torch.from_numpy(times) if self.on_host or isinstance(times, np.ndarray) else times
        # The first call is counted before it is made, the others after.
        calls = now["counts"][:, COUNTS.index("calls")] - int(first)
        info = Info(calls, times.to(self.device), now["streams"][:, 1].clone())
        return hooked("sample_adaptive", self.on_x0, x0, info)

    def progress(self) -> Progress:
        """Returns what the callback sees: the states of the samples in the batch."""
        time = self._nodes(self.batch.control[:, 0])[0].time
        time = torch.from_numpy(np.asarray(time)) if self.on_host else time
        return Progress(self.rounds, None, time, None, self.batch.view["y"])

    def stop(self) -> None:
        """Hands over the states of all samples that are still in the batch."""
        size = self.batch.size
        self._take(np.arange(size), np.full(size, RUNNING))

    def _take(self, done: np.ndarray, statuses: np.ndarray) -> None:
        """Writes the results of rows of the batch that leave it."""
        batch = self.batch
        to = torch.from_numpy(batch.samples[done]).to(self.device)
        start = torch.from_numpy(done).to(self.device)
        for name, final in self.final.items():
            final[to] = batch.now[name][start]
        x = batch.view["y"][start]
        if self.options.denoise:
            good = torch.from_numpy(statuses == FINISHED).to(self.device)
            row = _of_one(self.solver.estimate(self.interval.nodes(np.array([self.interval.end]))))
            xs = [x if name == "y" else batch.view[name][start] for name in row]
            (x0,) = ops.combine_host(xs, list(row.values()), [], 0, 0, None, [])
            x = torch.where(good.reshape(-1, *[1] * (x.dim() - 1)), x0, x)
        self.out[to] = x


def _of_one(row: dict[str, Any]) -> dict[str, float]:
    """Returns a row of one sample's weights as numbers."""
    return {name: float(np.asarray(weight).flat[0]) for name, weight in row.items()}
