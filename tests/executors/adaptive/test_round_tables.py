"""The programs of rounds against numpy: the rows themselves, at every call of every method."""

from dataclasses import dataclass
from itertools import cycle

import numpy as np
import pytest
import torch
from adaptive_cases import METHODS

import diffast as df
from diffast.executors.adaptive import nodes as adaptive_nodes
from diffast.executors.adaptive import path, tables
from diffast.executors.adaptive import sample as adaptive
from diffast.model.prediction import PREDICTIONS
from diffast.ops.evaluate.reference import evaluate as reference
from diffast.ops.schema import CONTROLS, COUNTS
from diffast.plans.registers import Z1
from diffast.solvers.embedded import Step

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES = {
    "vp": df.schedules.vp_linear(),
    "cosine": df.schedules.vp_cosine(),
    "sub_vp": df.schedules.sub_vp(),
    "edm": df.schedules.edm(),
    "flow": df.schedules.flow(),
    "trig": df.schedules.trig(),
    "betas": df.schedules.from_betas(BETAS),
}
RUNS = {
    "": {},
    "clamp": {"clamp": (-1.0, 1.0)},
    "hook": {"on_x0": lambda x0, info: x0},
    "both": {"clamp": (-1.0, 1.0), "on_x0": lambda x0, info: x0},
}
COUNT = 8
# Where only pow, exp and log may differ, so that a sum of them that cancels may differ by more:
# terms of up to 4,000 cancel to 1, and numpy's functions for AVX-512 differ from the C library's by
# a unit in the last place, 4.5e-13 there.
CLOSE = {"rtol": 1e-13, "atol": 2e-12}


def prepared(method, schedule, predicts="x0", guidance=1.0, **options):
    """Returns a run of `COUNT` samples whose network is never called."""
    unconditional = {} if guidance == 1.0 else {"shift": torch.zeros(1)}
    conditions = {} if guidance == 1.0 else {"shift": torch.zeros(COUNT)}
    denoiser = df.Denoiser(
        lambda x, t, **given: x,
        schedule,
        predicts=predicts,
        guidance=guidance,
        conditions=conditions,
        unconditional=unconditional or None,
    )
    given = METHODS[method] | options
    return adaptive.prepare(denoiser, method.split(",")[0], (COUNT, 3), **given)


def place(run, seed):
    """Puts the samples of a run at steps and calls of their own, some with remembered points."""
    random, interval = np.random.default_rng(seed), run.interval
    lams = np.sort(random.uniform(max(interval.first_lam, -4.0), interval.last_lam, (2, COUNT)), 0)
    start, end = interval.positions(lams)
    control, counts = run.batch.control, run.batch.counts
    control[:, CONTROLS.index("at")], control[:, CONTROLS.index("to")] = start, end
    counts[:, COUNTS.index("stage")] = random.integers(0, run.solver.calls + 1, COUNT)
    slots = control[:, len(CONTROLS) :]
    slots[:] = np.inf
    if slots.size:
        slots[1:5, 0] = (0.5 * (start + end))[1:5]  # passed on the way, except where
        slots[3:7, 1] = (end + 0.1 * (end - start))[3:7]  # the next one is further away
        slots[5, 0] = end[5]  # or the step ends on it


def numpy_steps(run, call):
    """Returns the step of a call, and the guidance scale, in numpy."""
    interval, control, solver = run.interval, run.batch.control, run.solver
    start, end = (control[:, CONTROLS.index(name)] for name in ("at", "to"))
    found = interval.nodes(np.stack([start, end, solver.position(np, call, start, end)]))
    nodes = [type(found)(*(None if f is None else f[k] for f in found)) for k in range(3)]
    scale = run.denoiser.scales(nodes[2].time) if run.scale is None else run.scale
    return Step(np, *nodes), scale


def expected(run, table, rows):
    """Returns a table of one call's rows in numpy: weights and those of fresh normals."""
    weights, fresh = np.zeros((COUNT, table.height, table.width)), np.zeros((COUNT, table.height))
    columns = {name: k for k, name in enumerate(table.columns)}
    for r, row in enumerate(rows):
        for name, weight in row.items():
            if name == Z1:
                fresh[:, r] = weight
            else:  # the clamped row is the last column
                weights[:, r, columns.get(name, table.width - 1)] = weight
    return weights, fresh


def compare(run, remembered, made, told):
    """Checks what was written for each sample against the rows of the call that it is at."""
    program, traced = run.program, made.traced
    several = len(traced.programs) > 1
    at = run.batch.counts[:, COUNTS.index("stage")]
    names = {name: len(CONTROLS) + k for k, name in enumerate(program.rejected)}
    rejected = {n: run.batch.control[:, k] for n, k in names.items()} if remembered else {}
    numbers = {name: tensor.numpy() for name, tensor in made.now.items()}
    for call in range(run.solver.calls + 1) if several else [told]:
        here = at == call if several else np.full(COUNT, True)
        step, scale = numpy_steps(run, call)
        row, value = program.input_rows(step, call, rejected)
        estimate = program.estimate(step, scale)
        settle = program.settle_rows(step, call, estimate, {})
        wanted = {
            traced.inputs: [row] * run.tracer.copies + [value] * (run.noise == "bridge"),
            traced.settle: settle if traced.measured else settle[:-1],
        } | ({traced.estimate: [estimate]} if traced.estimate else {})
        for table, rows in wanted.items():
            weights, fresh = expected(run, table, rows)
            np.testing.assert_allclose(numbers[table.name][here], weights[here], **CLOSE)
            if table.noise:
                found = numbers[table.noise][here, :, 0]
                np.testing.assert_allclose(found, fresh[here], **CLOSE)
            else:
                assert not fresh.any()
        for times in made.told.numpy().reshape(-1, COUNT):
            np.testing.assert_allclose(times[here], step.call.time[here], **CLOSE)
        if call == run.solver.calls:
            for k, number in enumerate(run.solver.tolerance(step)):
                number = np.broadcast_to(number, COUNT)
                np.testing.assert_allclose(numbers["tolerance"][here, k], number[here], **CLOSE)
        if run.noise == "path":
            pair, weights = path.step_arguments(step)
            np.testing.assert_array_equal(numbers["nodes"][here], np.stack(pair, 1)[here])
            np.testing.assert_allclose(numbers["path"][here], np.stack(weights, 1)[here], **CLOSE)


def check(run, seed, backends=("op",), monkeypatch=None):
    """Checks the tables of all rounds of a period, without and with remembered points."""
    place(run, seed)
    with np.errstate(all="ignore"):
        for round_ in range(run.period):
            run.rounds = round_ + 1
            for remembered in (False, True) if run.program.rejected else (False,):
                if not remembered:
                    slots = run.batch.control[:, len(CONTROLS) :].copy()
                    run.batch.control[:, len(CONTROLS) :] = np.inf
                made = run._tables()
                assert remembered == any(
                    n in made.traced.inputs.columns for n in run.program.rejected
                )
                for backend in backends:
                    for tensor in (*made.now.values(), made.told):
                        tensor.zero_()
                    if backend == "reference":
                        monkeypatch.setattr(tables.ops, "evaluate", reference)
                    run._write_tables(made)
                    if monkeypatch is not None:
                        monkeypatch.undo()
                    compare(run, remembered, made, round_ + 1)
                if not remembered:
                    run.batch.control[:, len(CONTROLS) :] = slots


PAIRS = [(method, name) for method in METHODS for name in SCHEDULES]
CASES = [
    (method, schedule, predicts, how)
    for (method, schedule), predicts, how in zip(PAIRS, cycle(PREDICTIONS), cycle([*RUNS, ""]))
]


@pytest.mark.parametrize(("method", "schedule", "predicts", "how"), CASES)
def test_programs_write_the_rows(method, schedule, predicts, how):
    check(prepared(method, SCHEDULES[schedule], predicts, **RUNS[how]), seed=len(method))


@pytest.mark.parametrize("method", ["pec", "pec, path", "ggf", "dpm_23, noisy", "bosh3"])
def test_the_reference_writes_the_rows(method, monkeypatch):
    check(prepared(method, SCHEDULES["vp"], "v"), 1, ("op", "reference"), monkeypatch)


@pytest.mark.parametrize("guidance", [0.0, 2.0, lambda t: 1.0 + t], ids=["none", "two", "by time"])
@pytest.mark.parametrize("method", ["pec", "ggf", "dpm_12"])
def test_guidance(method, guidance):
    run = prepared(method, SCHEDULES["vp"], "epsilon", guidance)
    assert len(run.tracer.times) == (1 if guidance == 0.0 else 2)
    check(run, seed=4)


def test_programs_are_kept_by_all_that_they_depend_on():
    """Equal runs share programs; a run that differs in one option has programs of its own."""

    def key(method="ggf", schedule="vp", **options):
        return prepared(method, SCHEDULES[schedule], **options).tracer.key

    kinds = [
        {},
        {"method": "ggf, redrawn"},
        {"method": "euler_heun"},
        {"schedule": "edm"},
        {"rtol": 0.2},
        {"norm": "linf"},
        {"predicts": "v"},
        {"guidance": 2.0},
        {"guidance": lambda t: 1.0 + t},
        *({**how} for name, how in RUNS.items() if name),
    ]
    keys = [key(**kind) for kind in kinds]
    assert None not in keys and len(set(keys)) == len(keys)
    assert keys == [key(**kind) for kind in kinds]
    # The step-size rule is no part of the programs.
    assert key(r=0.5) == key()


def test_programs_of_what_may_change_are_not_kept():
    class Loose:
        """A schedule that is no dataclass."""

        def __init__(self, space):
            self.space = space

        def __getattr__(self, name):
            return getattr(self.space, name)

    run = prepared("pec", Loose(SCHEDULES["edm"]))
    assert run.tracer.key is None and isinstance(run.source, adaptive_nodes.RecordedNodes)
    check(run, seed=3)
    schedule = df.schedules.edm()
    assert prepared("pec", schedule).tracer.key is not None
    object.__setattr__(schedule, "extra", 1.0)  # which no comparison of schedules sees
    assert prepared("pec", schedule).tracer.key is None
    extended = type("Extended", (df.schedules.SigmaSpace,), {})(0.01, 50.0)
    assert prepared("pec", extended).tracer.key is None
    extended_solver = type("ExtendedSolver", (type(df.embedded.PEC()),), {})()
    denoiser = df.Denoiser(lambda x, t: x, SCHEDULES["vp"], predicts="x0")
    assert adaptive.prepare(denoiser, extended_solver, (COUNT, 3)).tracer.key is None
    solver = df.embedded.PEC()
    solver.extra = [1.0]
    assert adaptive.prepare(denoiser, solver, (COUNT, 3)).tracer.key is None


@pytest.mark.parametrize("slots", [False, True])
def test_a_frozen_schedule_of_the_callers_may_change(slots):
    """A frozen dataclass is asked anew in every run: its fields may be objects that change."""

    class Rates:
        most = 20.0

    @dataclass(frozen=True, slots=slots)
    class Own:
        rates: Rates
        t_min: float = 1e-3
        t_start, t_end, domain = 1.0, 0.0, (0.0, 1.0)

        def __getattr__(self, name):
            return getattr(df.schedules.vp_linear(0.1, self.rates.most), name)

    def sampled(schedule):
        denoiser = df.Denoiser(lambda x, t: 0.5 * x, schedule, predicts="x0")
        return df.sample_adaptive(denoiser, "pec", (COUNT, 3)).x

    rates, found = Rates(), []
    for rates.most in (20.0, 12.0):
        found.append(sampled(Own(rates)))
        assert torch.equal(found[-1], sampled(df.schedules.vp_linear(0.1, rates.most)))
    assert not torch.equal(*found)


@pytest.mark.parametrize("asked", [lambda h: (h > 0.5).all(), lambda h: h > 0.5, np.tanh])
def test_rows_of_the_callers_that_are_no_program_are_refused(asked):
    class Own(df.embedded.PEC):
        def tolerance(self, step):
            atol, rtol = super().tolerance(step)
            return atol, rtol * (2.0 if asked(step.h) else 1.0)

    denoiser = df.Denoiser(lambda x, t: 0.5 * x, SCHEDULES["vp"], predicts="x0")
    with pytest.raises(TypeError, match="the rows of pec cannot be made a program"):
        df.sample_adaptive(denoiser, Own(), (COUNT, 3))
