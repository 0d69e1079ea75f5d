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

from diffast import attempts, ops
from diffast.attempts import COND, NOISE, UNCOND, X0, Estimate, Noise
from diffast.clock import Clock, DeviceClock
from diffast.denoiser import time_dtype
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
    RULE,
    RUNNING,
)
from diffast.solvers.pairs import Nodes, Pair
from diffast.solvers.pairs.bridge import HELD, NEW

STATUSES = {
    RUNNING: "running",
    FINISHED: "finished",
    FAILED_FINITE: "not finite",
    FAILED_STEP: "step too small",
    FAILED_CALLS: "too many calls",
}
# On a device the statuses are copied to the host once in so many rounds.
POLL = 4


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
        self.denoise, self.compact = denoise, compact
        self.on_host = device.type == "cpu"
        self.xp = np if self.on_host else torch
        self.scale, self.halves = self._guidance()
        self.looked_up = clock if self.on_host else self._device_clock()
        self.order = attempts.order_of(pair, noise.slots)
        self.slots = attempts.slot_names(noise.slots)
        self._prepare_rule(rejects, most_calls)
        self._prepare_state(step)
        self._prepare_tensors()
        self.trace = [] if traced else None
        self.rounds, self.waiting = 0, None

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

    def _prepare_state(self, step: float) -> None:
        """Makes what `accept` keeps of each sample: all of them begin alike."""
        batch, clock = self.shape[0], self.clock
        step, rest = min(step, self.step_max), clock.end - clock.start
        if step >= rest:
            to = clock.end
        else:
            to = clock.start + (0.5 * rest if self.balance and rest < 2.0 * step else step)
        control = [clock.start, to, clock.end, np.nan, 1.0, np.nan]
        assert len(control) == len(CONTROLS)
        control += [np.inf] * self.noise.slots
        counts = [RUNNING, 1, 1] + [0] * (len(COUNTS) - 3)

        def spread(numbers, dtype):
            row = torch.tensor(numbers, dtype=dtype, device=self.device)
            return row.expand(batch, -1).clone()

        self.control = spread(control, torch.float64)
        self.counts = spread(counts, torch.int64)
        self.streams = spread([self.seed, 0, 0], torch.int64)
        self.streams[:, 1] = self.ids
        self.status = torch.full((batch,), -1, dtype=torch.int64, device=self.device)
        self.norms = torch.zeros((batch, 2), dtype=torch.float64, device=self.device)
        self.rows = np.arange(batch)  # which sample each row of the batch is
        self.final = {
            "control": torch.empty_like(self.control),
            "counts": torch.empty_like(self.counts),
        }

    def _prepare_tensors(self) -> None:
        at = self.clock.nodes(np.array([self.clock.start]))
        to = self.clock.nodes(np.array([0.5 * (self.clock.start + self.clock.end)]))
        layout = attempts.layout_of(self.pair, Nodes(at, to, to))
        held = ["x", *self.pair.keeps, *self.pair.entries]
        held += [HELD, *self.slots] if self.noise.holds else []
        passing = ["point", *(f"proposal{k}" for k in range(layout.proposals))]
        passing += [NEW] if self.noise.holds else []
        passing += [NOISE] if self.noise.kind == "path" else []
        passing += [X0] if self.on_x0 is not None else []
        self.held, self.proposals = held, layout.proposals
        self.tensors = {name: self._new() for name in held + passing}
        for name in held:
            self.tensors[name].zero_()
        self.out = self._new()
        sources = [f"proposal{k}" for k in range(layout.proposals)] + ["point"]
        sources += [NEW] if self.noise.holds else []
        targets = [name for name in held]
        moves = list(layout.moves)
        moves += [(self.pair.calls, NEW, HELD)] if self.noise.holds else []
        self.sources, self.targets = sources, targets
        self.moves = [
            number
            for stage, source, target in moves
            for number in (stage, sources.index(source), targets.index(target))
        ]
        self.memory = [sources.index(NEW), *map(targets.index, self.slots)] if self.slots else []
        wanted = self.denoiser.dtype or self.dtype
        self.network_input = None
        if self.halves == "both" or wanted != self.dtype:
            rows = (2 if self.halves == "both" else 1) * self.shape[0]
            self.network_input = torch.empty(
                (rows, *self.shape[1:]), dtype=wanted, device=self.device
            )
        self.every = self.denoiser.arguments(self.shape[0], self.device, self.halves)
        self._look(self.shape[0])

    def _new(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=self.device)

    def _look(self, batch: int) -> None:
        """Makes the views of the first rows that the rounds work on."""
        self.batch = batch
        self.view = {name: tensor[:batch] for name, tensor in self.tensors.items()}
        names = ("control", "counts", "streams", "status", "norms")
        self.now = {name: getattr(self, name)[:batch] for name in names}
        if self.on_host:
            self.arrays = {name: self.now[name].numpy() for name in ("control", "counts")}
        else:
            self.arrays = {name: self.now[name] for name in ("control", "counts")}
        self.source_list = [self.view[name] for name in self.sources]
        self.target_list = [self.view[name] for name in self.targets]
        self.arguments = self.every
        if batch < self.shape[0]:
            index = torch.from_numpy(self.rows[:batch]).to(self.device)
            doubled = torch.cat([index, index + self.shape[0]])
            which = doubled if self.halves == "both" else index
            self.arguments = {
                name: value[which] if isinstance(value, torch.Tensor) and value.dim() else value
                for name, value in self.every.items()
            }

    # The start: one call at the first model time.

    def start(self, state: torch.Tensor | None) -> None:
        """Puts the initial state in place and makes the first call."""
        schedule, x = self.denoiser.schedule, self.tensors["x"]
        time = float(schedule.t_start)
        sigma = float(schedule.sigma(time))
        if state is None:
            ops.normal_out(self.ids, self.seed, ops.INITIAL_NOISE, sigma, x)
        else:
            x.copy_(state)
        node = self.clock.nodes(np.array([self.clock.start]))
        times = np.array([time])
        a, b = self.denoiser.affine(times)
        scale = float(self.denoiser.scales(times)[0]) if self.scale is None else self.scale
        outputs = self._call(x, torch.full((self.batch,), time, device=self.device))
        columns = {"point": x} | outputs
        estimate = Estimate(float(a[0]), float(b[0]), scale, False).rows()
        d = self.tensors["proposal0"]
        self._combine_first(columns, estimate, d, self.limits)
        if self.on_x0 is not None:
            d.copy_(self._hooked(d, times))
        if self.clock.opens:  # from noise alone to the first position, see FIRST_LAM
            alpha, level = float(node.alpha[0]), float(node.sigma[0]) / sigma
            ops.combine_out([x, d], [level, alpha], [x], self.now["status"])
        entry = {n: float(np.asarray(w).flat[0]) for n, w in self.pair.entry(np, node).items()}
        held = {"point": x, "d": d}
        first = self.tensors["e0"]
        ops.combine_out([held[n] for n in entry], list(entry.values()), [first], self.now["status"])
        failed = self.now["status"] >= 0
        self.now["counts"][:, 0] = torch.where(failed, FAILED_FINITE, RUNNING)
        if self.pair.keeps:
            self.tensors["prev"].copy_(x)
        if self.on_host:
            self.leave()

    def _combine_first(self, columns, row, out, limits) -> None:
        names = list(row)
        xs, weights = [columns[n] for n in names], [row[n] for n in names]
        status = self.now["status"]
        if limits:
            ops.combine_out(xs, [*weights, 0.0], [out], status, 0, [], 0, None, limits)
        else:
            ops.combine_out(xs, weights, [out], status)

    def _call(self, x: torch.Tensor, times: torch.Tensor) -> dict:
        """Returns the network's answers for model inputs that are not in its input tensor yet."""
        if self.network_input is not None:
            for part in self._network_parts():
                part.copy_(x)
        return self._ask(times)

    def _network_parts(self) -> tuple:
        if self.network_input is None:
            return ()
        if self.halves != "both":
            return (self.network_input[: self.batch],)
        return self.network_input[: 2 * self.batch].split(self.batch)

    def _ask(self, times: torch.Tensor) -> dict:
        """Returns the network's answers by name, for what lies in its input tensor."""
        x = self.view["point"] if self.rounds else self.view["x"]
        times = times.to(time_dtype(self.dtype))
        if self.network_input is not None:
            both = self.halves == "both"
            x = self.network_input[: (1 + both) * self.batch]
            times = torch.cat([times, times]) if both else times
        output = self.denoiser.call(x, times, self.arguments)
        if self.halves == "both":
            return {COND: output[: self.batch], UNCOND: output[self.batch :]}
        return {COND if self.halves == "cond" else UNCOND: output}

    # One round.

    def round(self) -> None:
        """Runs one network call of every sample in the batch, and what follows from it."""
        self.rounds += 1
        with np.errstate(all="ignore"):
            nodes, scale, masks = self._nodes()
            self._point(nodes, masks)
            times = nodes.call.time
            times = torch.from_numpy(times) if self.on_host else times
            outputs = self._ask(times)
            self._settle(nodes, scale, masks, outputs)
        if self.trace is not None:
            before = self._record()
        ops.accept(
            self.now["norms"],
            self.now["status"],
            self.rule,
            self.flags,
            self.moves,
            self.memory,
            self.source_list,
            self.now["control"],
            self.now["counts"],
            self.now["streams"],
            self.target_list,
        )
        if self.trace is not None:
            self.trace.append((*before, self.now["counts"].clone(), self.now["control"].clone()))
        self._poll()

    def _stages(self) -> list:
        """Returns (stage, mask or None) of the stages that samples may be at."""
        calls = self.pair.calls
        if self.pair.reuses:
            return [((self.rounds - 1) % calls + 1, None)]
        stage = self.arrays["counts"][:, 1]
        return [(k, stage == k) for k in range(calls + 1)]

    def _nodes(self):
        """Returns the nodes of every sample's attempt, the guidance scales there, the stages."""
        xp, pair, control = self.xp, self.pair, self.arrays["control"]
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
        noise, view = self.noise, self.view
        slots = self._slots()
        if noise.kind == "path":
            self._draw_path(nodes)
        copies = self._network_parts()
        outs = [view["point"], *copies]
        parts = []
        for stage, mask in masks:
            point, value = attempts.point_rows(self.pair, self.xp, stage, nodes, noise, slots)
            rows = [point] * len(outs)
            parts.append((mask, [*rows, value] if noise.kind == "bridge" else rows))
        outs += [view[NEW]] if noise.kind == "bridge" else []
        table = attempts.assemble(self.xp, self.batch, parts, self.order, self.device)
        xs = [view[name] for name in table.columns]
        streams = None if table.noise is None else self.now["streams"]
        ops.combine_table_out(xs, table.weights, table.noise, streams, [], outs, None)

    def _slots(self) -> dict:
        """Returns the positions of remembered points by name; on the host none if all are free."""
        first, control = len(CONTROLS), self.arrays["control"]
        if self.on_host and self.slots and np.isinf(control[:, first:]).all():
            return {}
        return {name: control[:, first + k] for k, name in enumerate(self.slots)}

    def _draw_path(self, nodes) -> None:
        raise NotImplementedError

    def _settle(self, nodes, scale, masks, outputs) -> None:
        """Writes what may be moved and the scaled errors."""
        xp, pair, call = self.xp, self.pair, nodes.call
        a, b = self.prediction.weights(call.alpha, call.sigma, call.dalpha, call.dsigma)
        hooked, clamped = self.on_x0 is not None, bool(self.limits)
        estimate = Estimate(a, b, scale, hooked or clamped)
        columns = self.view | outputs
        if hooked:
            self._estimate(estimate, columns, call)
        clamp = self.limits if clamped and not hooked else []
        form = ERROR_FORMS.index(pair.form)
        parts, noises = [], []
        for stage, mask in masks:
            made, error, before, after, noise = attempts.settle_rows(
                pair, xp, stage, nodes, estimate, self.proposals
            )
            rows = [*made, error, before, after] if form else [*made, error]
            parts.append((mask, [estimate.rows(), *rows] if clamp else rows))
            noises.append(noise)
        measured = any(noises)
        if measured:
            parts = [(mask, [*rows, n]) for (mask, rows), n in zip(parts, noises, strict=True)]
        last = X0 if clamp else None
        table = attempts.assemble(xp, self.batch, parts, self.order, self.device, last)
        ops.combine_error_out(
            [columns[name] for name in table.columns],
            table.weights,
            table.noise,
            self.now["streams"],
            clamp,
            self._tolerance(nodes),
            form,
            ERROR_NORMS.index(pair.norm),
            measured,
            [self.view[f"proposal{k}"] for k in range(self.proposals)],
            self.now["norms"],
            self.now["status"],
        )

    def _tolerance(self, nodes) -> torch.Tensor:
        judged = self.pair.judge(self.xp, nodes)
        cells = {(0, 0): judged.atol, (0, 1): judged.rtol}
        return attempts.numbers(self.xp, self.batch, 1, 2, cells, self.device)[:, 0]

    def _estimate(self, estimate, columns, call) -> None:
        """Makes the x0 estimate and lets the hook see it."""
        row = estimate.rows()
        table = attempts.assemble(self.xp, self.batch, [(None, [row])], self.order, self.device)
        x0 = self.view[X0]
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

    def _record(self):
        counts = self.now["counts"]
        rows = self.rows[: self.batch].copy()
        return rows, self.now["control"].clone(), counts.clone()

    # Who leaves the batch.

    def _poll(self) -> None:
        if self.on_host:
            if self.arrays["counts"][:, 0].any():
                self.leave()
            return
        if self.waiting is not None:
            statuses, event = self.waiting
            if event.query():
                self.waiting = None
                self._retire(statuses.numpy())
        elif self.rounds % POLL == 0:
            statuses = torch.empty(self.batch, dtype=torch.int64, pin_memory=True)
            statuses.copy_(self.now["counts"][:, 0], non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.waiting = statuses, event

    def leave(self) -> None:
        """Lets all samples leave that are done, waiting for the device."""
        self._retire(self.now["counts"][:, 0].cpu().numpy())

    def _retire(self, statuses: np.ndarray) -> None:
        """Takes out the results of samples that are done, and puts running ones in their rows."""
        done = np.flatnonzero(statuses != RUNNING)
        if done.size == 0 or (not self.compact and done.size < self.batch):
            return
        self._take(done, statuses[done])
        left = self.batch - done.size
        holes = done[done < left]
        movers = np.setdiff1d(np.arange(left, self.batch), done)
        if holes.size:
            to, start = (torch.from_numpy(i).to(self.device) for i in (holes, movers))
            tensors = [self.tensors[name] for name in self.held]
            for tensor in (*tensors, self.control, self.counts, self.streams):
                tensor[to] = tensor[start]
            self.rows[holes] = self.rows[movers]
        self.status.fill_(-1)
        self._look(left)

    def _take(self, done: np.ndarray, statuses: np.ndarray) -> None:
        """Writes the results of rows of the batch."""
        to = torch.from_numpy(self.rows[done]).to(self.device)
        start = torch.from_numpy(done).to(self.device)
        self.final["control"][to] = self.control[start]
        self.final["counts"][to] = self.counts[start]
        good = torch.from_numpy(statuses == FINISHED).to(self.device)
        x = self.view["x"][start]
        if self.denoise:
            node = self.clock.nodes(np.array([self.clock.end]))
            row = self.pair.estimate(np, node)
            row = {name: float(np.asarray(weight).flat[0]) for name, weight in row.items()}
            xs = [x if name == "x" else self.view[name][start] for name in row]
            (x0,) = ops.combine_host(xs, list(row.values()), [], 0, 0, None, [])
            x = torch.where(good.reshape(-1, *[1] * (x.dim() - 1)), x0, x)
        self.out[to] = x
