"""The specification of `sweep`: stages of a plan on network outputs that were made beforehand.

Everything is computed element by element. A job goes through `real` stages first, first + 1, ...,
which have network outputs, and then through `tail` more, which have none. Let p be the job's
current model input, a its anchor (p itself unless `parts`), h_1 .. h_E the remembered entries,
newest first, q = walk[job, k] the row of x of its stage k, and z the normals of (seed, ids[sample],
stage):

    columns = a, p (with `parts`), outputs[q], h_E .. h_1, the clamped x0 (with `clamp`), z
    row r   = sum over columns of weights[stage, r] * column + c (p - x[q])
    c       = changes[stage, r] slopes[q]
    rows      the x0 estimate, the entry (E > 0), the anchor (`parts`), the next p

Columns are summed as `combine` does, and the change is added last. x[q] is the point at which the
network was called, and slopes[q] how its output changes with p. Where p equals x[q], the change is
-0, which alters no number: the job then has the bits of a sequential run. The x0 estimate has
neither the column of the clamped x0 nor noise. With `clamp` the x0 estimate is clamped, after the
change was added, and is then a column of the other rows.

A tail stage has no outputs. Its x0 estimate comes from the line alpha d + sigma e, where d is the
last x0 estimate and e = (p - alpha d) / sigma the noise that p then held, and from p's distance to
it:

    x0  = d + gain (p - (alpha d + sigma e)),      clamped with `clamp`
    row = sum over (a, p (with `parts`), h_E .. h_1, x0, z) of tails[stage, r] * column

with line[stage] = (alpha, sigma, 1 / sigma or 0, gain). Before every stage p is written to
points[q] (with `write`). Stages with outputs set norms[job, k] to the sum of (p - x[q])^2. After
the last stage p, a, h_1 .. h_E, d and e are written to states[state_out]. Before that, without a
tail, norms[job, real] is set to the sum of (p - p')^2, where p' is the point that states[state_out]
held. All other norms are 0. Jobs run in any order: no job reads a row or a state that another job
writes, and no job has a row twice.
"""

import torch

from diffast.ops.combine.reference import clamp_to, normals, sum_columns
from diffast.ops.sweep.checks import Call, check_sweep

SAMPLE, FROM, STATE_IN, STATE_OUT, FIRST, REAL, TAIL, WRITE = range(8)


def sweep(*args):
    """Runs all jobs; writes into `points`, `states` and `norms`. See the top of this file."""
    call = _Sweep(*check_sweep(*args))
    if call.norms is not None:
        call.norms.zero_()
    if call.x.numel() > 0:
        for j, job in enumerate(call.jobs.tolist()):
            call.job(j, job, call.walk[j].tolist())


class _Sweep(Call):
    """One call; elements of a row are flat, [D]."""

    def number(self, value):
        """Returns numbers in the arithmetic type."""
        return value.to(self.x.dtype)

    def normals(self, sample, stage):
        ids = self.ids[sample : sample + 1]
        return [self.number(z[0]) for z in normals(self.seed, ids, stage, self.noises, self.x[:1])]

    def change(self, stage, r, q, delta):
        """Returns what is added to row r for the distance from where the network was called."""
        product = delta * self.number(self.changes[stage, r] * self.slopes[q])
        return torch.where(delta == 0, torch.full_like(product, -0.0), product)

    def sum(self, weights, columns):
        return sum_columns([self.number(w) for w in weights], columns)

    def real(self, place, stage, q, sample):
        """Does one stage with outputs; returns the new (p, a, entries) and the x0 estimate."""
        p, a, entries = place
        delta = p - self.x[q]
        column = [a, p] if self.parts else [p]
        column += [o[q].to(p.dtype) for o in self.outputs]
        column += entries[::-1]
        weights = self.weights[stage]
        x0 = self.sum(weights[0, : len(column)], column)
        if self.slopes is not None:
            x0 = x0 + self.change(stage, 0, q, delta)
        if self.clamp:
            x0 = clamp_to(x0, self.clamp)
            column.append(x0)
        column += self.normals(sample, stage)
        rows = []
        for r in range(1, weights.shape[0]):
            row = self.sum(weights[r], column)
            if self.slopes is not None:
                row = row + self.change(stage, r, q, delta)
            rows.append(row)
        return self.moved(rows, entries), x0

    def tail(self, place, stage, sample, along):
        """Does one stage without outputs; returns the new (p, a, entries)."""
        p, a, entries = place
        d, e = along
        alpha, sigma, _, gain = (self.number(value) for value in self.line[stage])
        x0 = d + gain * (p - (alpha * d + sigma * e))
        if self.clamp:
            x0 = clamp_to(x0, self.clamp)
        column = [a, p] if self.parts else [p]
        column += [*entries[::-1], x0, *self.normals(sample, stage)]
        return self.moved([self.sum(weights, column) for weights in self.tails[stage]], entries)

    def moved(self, rows, entries):
        if entries:
            entries = [rows[0], *entries[:-1]]
        point = rows[-1]
        return point, rows[-2] if self.parts else point, entries

    def job(self, j, job, rows):
        sample, first, real = job[SAMPLE], job[FIRST], job[REAL]
        place, along = self.start(job)
        for k in range(real):
            q, stage = rows[k], first + k
            if self.norms is not None:
                self.norms[j, k] = _squares(place[0] - self.x[q])
            p = place[0]
            place, x0 = self.real(place, stage, q, sample)
            if k == real - 1:
                alpha, _, inverse, _ = (self.number(value) for value in self.line[stage])
                along = (x0, (p - alpha * x0) * inverse)
            if job[WRITE]:
                self.points[q] = p
        for k in range(real, real + job[TAIL]):
            if job[WRITE]:
                self.points[rows[k]] = place[0]
            place = self.tail(place, first + k, sample, along)
        if job[STATE_OUT] >= 0:
            state = self.states[job[STATE_OUT]]
            if self.norms is not None and not job[TAIL]:
                self.norms[j, real] = _squares(place[0] - state[0])
            planes = [place[0], place[1], *place[2], *along]
            for plane, value in zip(state, planes, strict=True):
                plane.copy_(value)

    def start(self, job):
        """Returns where the job begins (p, a, entries), and the line (d, e)."""
        entries = self.states.shape[1] - 4
        if job[FROM] >= 0:
            p = self.x[job[FROM]].clone()
            nothing = torch.zeros_like(p)
            return (p, p, [nothing] * entries), (nothing, nothing)
        planes = [plane.clone() for plane in self.states[job[STATE_IN]]]
        p, a = planes[:2]
        return (p, a if self.parts else p, planes[2 : 2 + entries]), tuple(planes[-2:])


def _squares(value):
    wide = value.to(torch.float64)
    return (wide * wide).sum()


IMPLEMENTATIONS = {"sweep": sweep}
