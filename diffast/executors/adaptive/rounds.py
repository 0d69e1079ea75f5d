"""The adaptive executor's loop.

A round is one fused row for every sample's own next model input, one network call, one pass for its
outcome and error, one decision a sample.

Samples are at stages and steps of their own; those that are done leave the batch. What is known of
a sample (position, step, stage, counts) is on the device and is not asked for there, but for an
occasional copy of the statuses that is not waited for.
"""

from __future__ import annotations

import numpy as np
import torch

from diffast import ops
from diffast.executors.adaptive.batch import Batch, on_host
from diffast.executors.adaptive.time_variable import Clock, DeviceClock
from diffast.lowering import trial_steps as attempts
from diffast.lowering.trial_steps import COND, NOISE, UNCOND, X0, Estimate, Noise
from diffast.model.denoiser import time_dtype
from diffast.ops.schema import (
    CONTROLS,
    COUNTS,
    ERROR_FORMS,
    ERROR_NORMS,
    FAILED_CALLS,
    FAILED_FINITE,
    FAILED_STEP,
    FINISHED,
    FLAGS,
    PATH_RANGE,
    RULE,
    RUNNING,
)
from diffast.solvers.embedded import Nodes, Pair
from diffast.solvers.embedded.bridge import HELD, NEW

STATUSES = {
    RUNNING: "running",
    FINISHED: "finished",
    FAILED_FINITE: "not finite",
    FAILED_STEP: "step too small",
    FAILED_CALLS: "too many calls",
}
PATH_DEPTH = 20
PATH_CELL = 2.0 * PATH_RANGE / 2.0**PATH_DEPTH  # between two nodes of a path, in log-SNR


class Run:
    """The tensors of one run and its rounds.

    Args:
        denoiser: the network and what it predicts.
        pair: the method.
        clock: positions of the pair's kind.
        noise: where the noise comes from.
        shape, device, dtype: of the state.
        ids: [B] int64 on the device.
        seed: folded.
        limits: clamp of the x0 estimate, or nothing.
        on_x0: hook on the x0 estimate, or None.
        rejects: whether attempts may be rejected.
        denoise: whether samples end as x0 estimates.
        step: first step, in units of the clock.
        most_calls: network calls after which a sample fails.
        compact: whether finished samples leave the batch.
        traced: whether steps are recorded.
    """

    def __init__(
        self,
        denoiser,
        pair: Pair,
        clock: Clock,
        noise: Noise,
        *,
        shape,
        device,
        dtype,
        ids,
        seed,
        limits,
        on_x0,
        rejects,
        denoise,
        step,
        most_calls,
        compact,
        traced,
    ):
        """Settles what the rounds need; no network call yet."""
        self.denoiser, self.pair, self.clock, self.noise = denoiser, pair, clock, noise
        self.shape, self.device, self.dtype = shape, device, dtype
        self.ids, self.seed, self.limits, self.on_x0 = ids, seed, limits, on_x0
        self.prediction = denoiser.prediction
        self.denoise = denoise
        self.on_host = on_host(device)
        self.xp = np if self.on_host else torch
        self.scale, self.halves = self._guidance()
        self.looked_up = clock if self.on_host else self._device_clock()
        self.order = attempts.order_of(pair, noise.slots)
        self.slots = attempts.slot_names(noise.slots)
        self._prepare_rule(rejects, most_calls)
        self._prepare_tensors(step, compact)
        self.trace = [] if traced else None
        self.rounds = 0

    # What is settled before the first call.

    def _guidance(self):
        """Returns the scale, a number or None where it depends on the time, and what is called."""
        if callable(self.denoiser.guidance):
            return None, "both"
        scale = float(self.denoiser.scales(np.zeros(1))[0])
        return scale, {0.0: "uncond", 1.0: "cond"}.get(scale, "both")

    def _device_clock(self):
        scales = self.denoiser.scales if self.scale is None else None
        return DeviceClock(self.clock, self.device, scales)

    def _prepare_rule(self, rejects: bool, most_calls: int) -> None:
        controller = dict(self.pair.controller)
        if not rejects:
            controller["always"] = 1
        controller |= {
            "last": self.pair.calls,
            "restart": 1 if self.pair.reuses else 0,
            "final": int(self.denoise),
            "most_calls": most_calls,
        }
        self.rule = [float(controller.get(name, 0.0)) for name in RULE]
        self.flags = [int(controller.get(name, 0)) for name in FLAGS]
        self.balance, self.step_max = controller.get("balance", 0), controller["step_max"]

    def _begin(self, step: float) -> dict:
        """Returns what `accept` keeps of each sample: all of them begin alike."""
        batch, clock = self.shape[0], self.clock
        step, rest = min(step, self.step_max), clock.end - clock.start
        if step >= rest:
            to = clock.end
        else:
            to = clock.start + (0.5 * rest if self.balance and rest < 2.0 * step else step)
        # Before the first attempt the error counts as 1; a PID rule takes the first one for it.
        before = np.nan if self.pair.controller["by_factor"] else 1.0
        start = {"at": clock.start, "to": to, "end": clock.end, "before": before}
        control = [start.get(name, np.nan) for name in CONTROLS] + [np.inf] * self.noise.slots
        first = {"status": RUNNING, "stage": 1, "calls": 1}
        counts = [first.get(name, 0) for name in COUNTS]

        def spread(numbers, dtype):
            row = torch.tensor(numbers, dtype=dtype, device=self.device)
            return row.expand(batch, -1).clone()

        streams = spread([self.seed, 0, 0], torch.int64)
        streams[:, 1] = self.ids
        control, counts = spread(control, torch.float64), spread(counts, torch.int64)
        self.final = {"control": torch.empty_like(control), "counts": torch.empty_like(counts)}
        return {"control": control, "counts": counts, "streams": streams}

    def _prepare_tensors(self, step: float, compact: bool) -> None:
        at = self.clock.nodes(np.array([self.clock.start]))
        to = self.clock.nodes(np.array([0.5 * (self.clock.start + self.clock.end)]))
        with np.errstate(all="ignore"):
            layout = attempts.layout_of(self.pair, Nodes(at, to, to))
        held = ["x", *self.pair.keeps, *self.pair.entries]
        held += [HELD, *self.slots] if self.noise.holds else []
        proposals = [f"proposal{k}" for k in range(layout.proposals)]
        sources = [*proposals, "point"] + ([NEW] if self.noise.holds else [])
        passing = list(sources)
        passing += [NOISE] if self.noise.kind == "path" else []
        passing += [X0] if self.on_x0 is not None else []
        moves = list(layout.moves)
        moves += [(self.pair.calls, NEW, HELD)] if self.noise.holds else []
        self.proposals, self.sources, self.targets = proposals, sources, held
        self.moves = [
            number
            for stage, source, target in moves
            for number in (stage, sources.index(source), held.index(target))
        ]
        self.memory = [sources.index(NEW), *map(held.index, self.slots)] if self.slots else []
        wanted = self.denoiser.dtype or self.dtype
        self.network_input = None
        if self.halves == "both" or wanted != self.dtype:
            rows = (2 if self.halves == "both" else 1) * self.shape[0]
            self.network_input = torch.empty(
                (rows, *self.shape[1:]), dtype=wanted, device=self.device
            )
        self.every = self.denoiser.arguments(self.shape[0], self.device, self.halves)
        self.out = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self.batch = Batch(
            self.shape,
            self.dtype,
            self.device,
            held=held,
            passing=passing,
            **self._begin(step),
            compact=compact,
            leave=self._take,
            moved=self._moved,
        )
        self._moved()

    def _moved(self) -> None:
        """Prepares what goes with the samples that are in the batch now."""
        batch = self.batch
        self.source_list = [batch.view[name] for name in self.sources]
        self.target_list = [batch.view[name] for name in self.targets]
        self.arguments = self.every
        if batch.size < self.shape[0]:
            rows = torch.from_numpy(batch.samples[: batch.size]).to(self.device)
            both = self.halves == "both"
            rows = torch.cat([rows, rows + self.shape[0]]) if both else rows
            self.arguments = {
                name: value[rows] if isinstance(value, torch.Tensor) and value.dim() else value
                for name, value in self.every.items()
            }

    # The start: one call at the first model time.

    def start(self, state: torch.Tensor | None) -> None:
        """Puts the initial state in place and makes the first call."""
        schedule, tensors, status = (
            self.denoiser.schedule,
            self.batch.view,
            self.batch.now["status"],
        )
        x, d, times = tensors["x"], tensors["proposal0"], np.array([float(schedule.t_start)])
        sigma = float(schedule.sigma(times)[0])
        if state is None:
            ops.normal_out(self.ids, self.seed, ops.INITIAL_NOISE, sigma, x)
        else:
            x.copy_(state)
        for part in self._network_parts():
            part.copy_(x)
        tensors["point"].copy_(x)
        outputs = self._ask(torch.from_numpy(times).to(self.device).expand(self.batch.size))
        a, b = (float(w[0]) for w in self.denoiser.affine(times))
        scale = float(self.denoiser.scales(times)[0]) if self.scale is None else self.scale
        row, columns = Estimate(a, b, scale, False).rows(), tensors | outputs
        xs, weights = [columns[name] for name in row], list(row.values())
        if self.limits:
            weights.append(0.0)
        ops.combine_out(xs, weights, [d], status, 0, [], 0, None, self.limits)
        if self.on_x0 is not None:
            d.copy_(self._hooked(d, times.repeat(self.batch.size)))
        node = self.clock.nodes(np.array([self.clock.start]))
        if self.clock.opens:  # from noise alone to the first position, see FIRST_LAM
            alpha, level = float(node.alpha[0]), float(node.sigma[0]) / sigma
            ops.combine_out([x, d], [level, alpha], [x], status)
        entry, held = _alone(self.pair.entry(np, node)), {"point": x, "d": d}
        xs = [held[name] for name in entry]
        ops.combine_out(xs, list(entry.values()), [tensors["e0"]], status)
        if self.pair.keeps:
            tensors["prev"].copy_(x)
        if self.noise.kind == "path":
            self._draw_path(None, self.looked_up.nodes(self.batch.control[:, 0]))
        failed = self.batch.now["status"] >= 0
        self.batch.now["counts"][:, 0] = torch.where(failed, FAILED_FINITE, RUNNING)
        self.batch.poll(self.rounds)

    def _network_parts(self) -> tuple:
        """Returns where the network reads the model input, if not from the state's tensor."""
        if self.network_input is None:
            return ()
        size = self.batch.size
        if self.halves != "both":
            return (self.network_input[:size],)
        return self.network_input[: 2 * size].split(size)

    def _ask(self, times: torch.Tensor) -> dict:
        """Returns the network's answers by name, for what lies in its input tensor."""
        x, size = self.batch.view["point"], self.batch.size
        times = times.to(time_dtype(self.dtype))
        both = self.halves == "both"
        if self.network_input is not None:
            x = self.network_input[: (1 + both) * size]
        output = self.denoiser.call(x, torch.cat([times, times]) if both else times, self.arguments)
        if both:
            return {COND: output[:size], UNCOND: output[size:]}
        return {COND if self.halves == "cond" else UNCOND: output}

    # One round.

    def round(self) -> None:
        """Runs one network call of every sample in the batch, and what follows from it."""
        self.rounds += 1
        now = self.batch.now
        with np.errstate(all="ignore"):
            nodes, scale, masks = self._nodes()
            self._point(nodes, masks)
            times = nodes.call.time
            outputs = self._ask(torch.from_numpy(times) if self.on_host else times)
            self._settle(nodes, scale, masks, outputs)
        if self.trace is not None:
            rows = self.batch.samples[: self.batch.size].copy()
            before = rows, now["control"].clone(), now["counts"].clone()
        ops.accept(
            now["norms"],
            now["status"],
            self.rule,
            self.flags,
            self.moves,
            self.memory,
            self.source_list,
            now["control"],
            now["counts"],
            now["streams"],
            self.target_list,
        )
        if self.trace is not None:
            self.trace.append((*before, now["counts"].clone(), now["control"].clone()))
        self.batch.poll(self.rounds)

    def _stages(self) -> list:
        """Returns (stage, mask or None) of the stages that samples may be at."""
        calls = self.pair.calls
        if self.pair.reuses:
            return [((self.rounds - 1) % calls + 1, None)]
        stage = self.batch.counts[:, 1]
        return [(k, stage == k) for k in range(calls + 1)]

    def _nodes(self):
        """Returns the nodes of every sample's attempt, the guidance scales there, the stages."""
        xp, pair, control = self.xp, self.pair, self.batch.control
        at, to = control[:, 0], control[:, 1]
        masks = self._stages()
        reach = pair.reach(xp, at, to)
        alone = len(masks) == 1
        fraction = pair.fractions[masks[0][0] - 1] if alone else None
        same = alone and fraction == 1.0 and reach is to
        positions = [at, to]
        if not same:
            if alone:
                call = reach if fraction == 1.0 else at + fraction * (reach - at)
            else:
                call = at
                for (_, mask), part in zip(masks[1:], pair.fractions, strict=True):
                    there = reach if part == 1.0 else at + part * (reach - at)
                    call = xp.where(mask, there, call)
            positions.append(call)
        stacked = np.stack(positions) if self.on_host else torch.stack(positions)
        if self.on_host:
            found, scales = self.clock.nodes(stacked), None
        else:
            found, scales = self.looked_up.nodes_and_scales(stacked)
        split = [type(found)(*(None if f is None else f[k] for f in found)) for k in (0, 1, -1)]
        nodes = Nodes(*split)
        scale = self.scale
        if scale is None:
            scale = self.denoiser.scales(nodes.call.time) if self.on_host else scales[-1]
        return nodes, scale, masks

    def _point(self, nodes, masks) -> None:
        """Writes every sample's next model input, and its path's next value."""
        noise, view = self.noise, self.batch.view
        slots = self._slots()
        if noise.kind == "path":
            self._draw_path(nodes.at, nodes.to)
        copies = self._network_parts()
        outs = [view["point"], *copies]
        parts = []
        for stage, mask in masks:
            point, value = attempts.point_rows(self.pair, self.xp, stage, nodes, noise, slots)
            rows = [point] * len(outs)
            parts.append((mask, [*rows, value] if noise.kind == "bridge" else rows))
        outs += [view[NEW]] if noise.kind == "bridge" else []
        table = attempts.assemble(self.xp, self.batch.size, parts, self.order, self.device)
        xs = [view[name] for name in table.columns]
        streams = None if table.noise is None else self.batch.now["streams"]
        ops.combine_table_out(xs, table.weights, table.noise, streams, [], outs, None)

    def _slots(self) -> dict:
        """Returns the positions of remembered points by name; on the host none if all are free."""
        first, control = len(CONTROLS), self.batch.control
        if self.on_host and self.slots and np.isinf(control[:, first:]).all():
            return {}
        return {name: control[:, first + k] for k, name in enumerate(self.slots)}

    def _draw_path(self, at, to) -> None:
        """Writes the path's values at the nodes nearest to `to` and the noise since `at`.

        With `at` None only the values, as those where the samples stand.
        """
        xp, view = self.xp, self.batch.view
        last, new = (None, view[HELD]) if at is None else (view[HELD], view[NEW])
        end = self._tree_nodes(to.lam)
        begin = 0.0 * end - 1.0 if at is None else self._tree_nodes(at.lam)
        # An attempt has at least one cell; what ends in its own has no length and no noise.
        end = xp.where(end > begin, end, begin + 1.0)
        weights = attempts.path_weights(xp, begin * PATH_CELL, end * PATH_CELL, self.device)
        nodes = attempts.numbers(
            xp, self.batch.size, 1, 2, {(0, 0): begin, (0, 1): end}, self.device
        )
        nodes = nodes[:, 0].to(torch.int64)
        streams = self.batch.now["streams"]
        ops.brownian_out(streams, nodes, weights, PATH_DEPTH, last, view[NOISE], new)

    def _tree_nodes(self, lam):
        """Returns the numbers of the tree's nodes nearest to log-SNRs, as float64."""
        xp, most = self.xp, 2.0**PATH_DEPTH - 1.0
        number = xp.round((lam + PATH_RANGE) / PATH_CELL)
        number = xp.where(number < 0.0, 0.0, number)
        return xp.where(number > most, most, number)

    def _settle(self, nodes, scale, masks, outputs) -> None:
        """Writes what may be moved and the scaled errors."""
        xp, pair, call = self.xp, self.pair, nodes.call
        a, b = self.prediction.weights(call.alpha, call.sigma, call.dalpha, call.dsigma)
        hooked, clamped = self.on_x0 is not None, bool(self.limits)
        estimate = Estimate(a, b, scale, hooked or clamped)
        columns = self.batch.view | outputs
        if hooked:
            self._estimate(estimate, columns, call)
        clamp = self.limits if clamped and not hooked else []
        form = ERROR_FORMS.index(pair.form)
        parts, noises = [], []
        for stage, mask in masks:
            made, rows, judged = attempts.settle_rows(
                pair, xp, stage, nodes, estimate, len(self.proposals)
            )
            *rows, noise = rows
            rows = [*made, *(rows if form else rows[:1])]
            parts.append((mask, [estimate.rows(), *rows] if clamp else rows))
            noises.append(noise)
        measured = any(noises)
        if measured:
            parts = [(mask, [*rows, n]) for (mask, rows), n in zip(parts, noises, strict=True)]
        last = X0 if clamp else None
        table = attempts.assemble(xp, self.batch.size, parts, self.order, self.device, last)
        ops.combine_error_out(
            [columns[name] for name in table.columns],
            table.weights,
            table.noise,
            self.batch.now["streams"],
            clamp,
            self._tolerance(judged),
            form,
            ERROR_NORMS.index(pair.norm),
            measured,
            [self.batch.view[name] for name in self.proposals],
            self.batch.now["norms"],
            self.batch.now["status"],
        )

    def _tolerance(self, judged) -> torch.Tensor:
        """Returns [B, 2] of (atol, rtol); where nothing is judged yet any will do."""
        cells = {(0, 0): judged.atol, (0, 1): judged.rtol} if judged else {(0, 0): 1.0}
        return attempts.numbers(self.xp, self.batch.size, 1, 2, cells, self.device)[:, 0]

    def _estimate(self, estimate, columns, call) -> None:
        """Makes the x0 estimate and lets the hook see it."""
        row = estimate.rows()
        table = attempts.assemble(
            self.xp, self.batch.size, [(None, [row])], self.order, self.device
        )
        x0 = self.batch.view[X0]
        xs = [columns[name] for name in table.columns]
        if self.limits:
            weights = torch.cat([table.weights, torch.zeros_like(table.weights[:, :, :1])], dim=2)
            ops.combine_table_out(xs, weights, None, None, self.limits, [x0], None)
        else:
            ops.combine_table_out(xs, table.weights, None, None, [], [x0], None)
        x0.copy_(self._hooked(x0, call.time))

    def _hooked(self, x0: torch.Tensor, times) -> torch.Tensor:
        changed = self.on_x0(x0, times)
        if not isinstance(changed, torch.Tensor) or changed.shape != x0.shape:
            got = (
                list(changed.shape) if isinstance(changed, torch.Tensor) else type(changed).__name__
            )
            raise ValueError(
                f"sample_adaptive: on_x0 was given {list(x0.shape)} but returned {got}"
            )
        return changed

    def _take(self, done: np.ndarray, statuses: np.ndarray) -> None:
        """Writes the results of rows of the batch that leave it."""
        batch = self.batch
        to = torch.from_numpy(batch.samples[done]).to(self.device)
        start = torch.from_numpy(done).to(self.device)
        for name, final in self.final.items():
            final[to] = batch.now[name][start]
        x = batch.view["x"][start]
        if self.denoise:
            good = torch.from_numpy(statuses == FINISHED).to(self.device)
            node = self.clock.nodes(np.array([self.clock.end]))
            row = _alone(self.pair.estimate(np, node))
            xs = [x if name == "x" else batch.view[name][start] for name in row]
            (x0,) = ops.combine_host(xs, list(row.values()), [], 0, 0, None, [])
            x = torch.where(good.reshape(-1, *[1] * (x.dim() - 1)), x0, x)
        self.out[to] = x


def _alone(row: dict) -> dict:
    """Returns a row of one sample's weights as numbers."""
    return {name: float(np.asarray(weight).flat[0]) for name, weight in row.items()}
