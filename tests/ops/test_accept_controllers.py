"""The controllers of published methods, as rules of `accept`, by numbers worked out elsewhere."""

import itertools

import numpy as np
import pytest
import torch
from accept_cases import INF, NAN, flags, named, rule
from test_k_diffusion import theirs  # noqa: F401

from diffast import ops
from diffast.ops.accept import reference as reference_accept
from diffast.ops.schema import COUNTS, FAILED_CALLS, FAILED_STEP, FINISHED, RUNNING

BACKENDS = {"c++": ops.accept, "reference": reference_accept.accept}
each_backend = pytest.mark.parametrize("op", BACKENDS.values(), ids=BACKENDS)

# Jolicoeur-Martineau et al. 2021, algorithm 1: one formula after acceptance and rejection alike.
GGF = rule(
    safety=0.9,
    error_power=0.9,
    least=0,
    most=INF,
    reject_power=0.9,
    reject_least=0,
    reject_most=INF,
)
PEC = rule(
    threshold=2,
    safety=0.9,
    error_power=0.467,
    before_power=0.267,
    least=0.2,
    most=2,
    reject_safety=0.9,
    reject_power=0.667,
    reject_least=0.2,
    reject_most=0.9,
    error_floor=0.01,
    noise_floor=0.5,
    step_max=0.4,
)
UNLIMITED = [*PEC[:-2], INF, 0.0]
PEC_FLAGS = {"calm": 1, "balance": 1}


class Sample:
    """One sample, and what a backend makes of the errors it is told."""

    def __init__(self, op, numbers, at=0.0, to=0.1, end=1.0, slots=0, stage=1, **switches):
        self.op, self.rule, self.flags = op, numbers, flags(**switches)
        row = [at, to, end, NAN, NAN, NAN, *[INF] * slots]
        self.control = torch.tensor([row], dtype=torch.float64)
        self.counts = torch.zeros(1, len(COUNTS), dtype=torch.int64)
        self.counts[0, 1] = stage
        self.streams = torch.zeros(1, 3, dtype=torch.int64)
        self.planes = [torch.zeros(1, 1) for _ in range(slots + 1)]
        self.memory = list(range(slots + 1)) if slots else []

    def judge(self, error, noise=0.0, bad=-1):
        """Tells the backend the norms; returns the position, the next one, and the counts."""
        norms = torch.tensor([[error, noise]], dtype=torch.float64)
        planes = self.planes[:1], self.planes if self.memory else self.planes[1:]
        state = (self.control, self.counts, self.streams)
        numbers = (self.rule, self.flags, [], self.memory)
        self.op(norms, torch.tensor([bad]), *numbers, planes[0], *state, planes[1])
        return self.control[0, 0].item(), self.control[0, 1].item()

    def __getattr__(self, name):
        if name in COUNTS:
            return named(self.counts[0], COUNTS)[name]
        raise AttributeError(name)

    @property
    def slots(self):
        return self.control[0, 6:].tolist()


@each_backend
def test_ggf_by_hand(op):
    sample = Sample(op, GGF)
    # 0.09 * 0.25^-0.9 = 0.09 * 2^1.8
    assert sample.judge(0.25) == (0.1, pytest.approx(0.1 + 0.09 * 2**1.8, rel=1e-14))
    # 0.3134... * 0.9 * 4^-0.9: rejected, so the position stays
    at, to = sample.judge(4.0)
    assert (at, to) == (0.1, pytest.approx(0.1 + 0.081, rel=1e-14))
    # An error of exactly the threshold is accepted: 0.081 * 0.9
    assert sample.judge(1.0) == (
        pytest.approx(0.181, rel=1e-14),
        pytest.approx(0.181 + 0.0729, rel=1e-14),
    )
    # An error of nothing: the rest of the way at once, and the end to the bit.
    assert sample.judge(0.0)[1] == 1.0
    assert sample.judge(0.5)[0] == 1.0
    assert (sample.status, sample.calls) == (FINISHED, 5)
    assert (sample.accepted, sample.rejected, sample.forgotten) == (4, 1, 0)
    assert sample.streams.tolist() == [[0, 0, 5]]


@each_backend
def test_ggf_rejects_down_to_the_spacing_of_numbers(op):
    sample = Sample(op, GGF, at=0.5, to=0.6)
    # 0.1 * 0.9 * 10^-8.1, and then less than 0.5 has digits.
    assert sample.judge(1e9) == (0.5, pytest.approx(0.5 + 0.09 * 10**-8.1, abs=1e-16))
    assert sample.status == RUNNING
    assert sample.judge(1e9) == (0.5, 0.5)
    assert (sample.status, sample.rejected) == (FAILED_STEP, 2)


@each_backend
def test_pec_by_hand(op):
    sample = Sample(op, PEC, to=0.1, **PEC_FLAGS)
    # Measured noise below 1/2 counts as 1/2: E = 0.25 / 0.5, E1 is E: 0.9 * 2^0.2
    first = 0.09 * 2**0.2
    assert sample.judge(0.25, 0.3) == (0.1, pytest.approx(0.1 + first, rel=1e-14))
    # E = 2 is accepted still; E1 = 1/2: 0.9 * 2^-0.467 * 2^-0.267
    second = first * 0.9 * 2**-0.734
    at, to = sample.judge(6.0, 3.0)
    assert (at, to) == (
        pytest.approx(0.1 + first, rel=1e-14),
        pytest.approx(at + second, rel=1e-12),
    )
    # E = 4: 0.9 * 4^-0.667
    third = second * 0.9 * 4**-0.667
    assert sample.judge(2.0) == (at, pytest.approx(at + third, rel=1e-12))
    # A small error right after a rejection: 0.9 * 8^0.467 * 2^0.267 > 1, so the step is kept.
    after, to = sample.judge(1 / 16)
    assert (after, to) == (
        pytest.approx(at + third, rel=1e-12),
        pytest.approx(at + 2 * third, rel=1e-12),
    )
    # And then it may grow, E1 = 1/8: 0.9 * 8^0.467 * 8^-0.267 = 0.9 * 8^0.2
    final, to = sample.judge(1 / 16)
    assert to - final == pytest.approx(third * 0.9 * 8**0.2, rel=1e-11)
    assert (sample.accepted, sample.rejected, sample.after_reject) == (4, 1, 0)


@each_backend
def test_pec_clips_floors_and_limits(op):
    # 0.2 <= factor <= 2, step_max 0.4: 0.1 -> 0.2 -> 0.4 -> 0.4
    sample = Sample(op, PEC, end=100.0, **PEC_FLAGS)
    steps = []
    for _ in range(3):
        at, to = sample.judge(0.0)
        steps.append(to - at)
    assert steps == pytest.approx([0.2, 0.4, 0.4], rel=1e-13)
    assert named(sample.control[0])["before"] == 0.01
    # E = 2 after E1 = 0.01: 0.9 * 2^-0.467 * 0.01^0.267 = 0.1904, clipped to 0.2
    at, to = sample.judge(1.0)
    assert to - at == pytest.approx(0.08, rel=1e-12)
    # E slightly above 2 loses a little, a huge one four fifths.
    assert sample.judge(1.0001)[1] - at == pytest.approx(0.08 * 0.9 * 2.0002**-0.667, rel=1e-11)
    before = sample.control[0, 1].item() - at
    assert sample.judge(1e6)[1] - at == pytest.approx(0.2 * before, rel=1e-11)


@each_backend
def test_pec_halves_the_last_two_steps(op):
    same = rule(safety=1, error_power=0)
    sample = Sample(op, same, to=0.3, end=1.0, balance=1)
    assert sample.judge(1.0) == (0.3, 0.6)  # 0.7 is left: more than twice 0.3
    assert sample.judge(1.0) == (0.6, pytest.approx(0.8, rel=1e-15))  # 0.4: less than twice
    at, to = sample.judge(1.0)
    assert (at, to) == (pytest.approx(0.8, rel=1e-15), 1.0)
    assert sample.judge(1.0)[0] == 1.0
    assert sample.status == FINISHED
    without = Sample(op, same, to=0.3, end=1.0)
    without.judge(1.0)
    assert without.judge(1.0) == (0.6, pytest.approx(0.9, rel=1e-15))


def pid_rule(p, i, d, order, safety=0.81, eps=1e-8):
    """Returns k-diffusion's controller as a rule: b1, -b2 and b3 are the powers of the errors."""
    return rule(
        threshold=safety,
        safety=1,
        error_power=(p + i + d) / order,
        before_power=(p + 2 * d) / order,
        before2_power=d / order,
        least=0,
        most=INF,
        error_eps=eps,
    )


COEFFICIENTS = ((0.0, 1.0, 0.0), (0.2, 0.5, 0.0), (0.3, 0.4, 0.1), (1.0, 1.0, 1.0), (0.4, 0.0, 0.0))


@each_backend
@pytest.mark.parametrize("coefficients", COEFFICIENTS, ids=str)
def test_k_diffusions_pid_controller(theirs, op, coefficients):  # noqa: F811
    """Its accept decisions and step sizes, over errors of all sizes, first rejections included."""
    rng = np.random.default_rng(int(10 * sum(coefficients)))
    decisions = []
    for order, eps, spread in itertools.product((1, 2, 3), (1e-8, 0.0, 0.5), (0.5, 3.0)):
        pid = theirs.PIDStepSizeController(0.05, *coefficients, order, 0.81, eps)
        numbers = pid_rule(*coefficients, order, eps=eps)
        sample = Sample(op, numbers, to=0.05, end=1e9, by_factor=1)
        for turn in range(40):
            error = float(np.exp(rng.normal(0.3 * (turn < 3), spread)))
            error = 0.0 if eps and rng.random() < 0.05 else error
            before = sample.control[0, 0].item()
            accepted, h = pid.propose_step(error), pid.h
            at, to = sample.judge(error)
            assert (at != before) == accepted, (order, eps, turn)
            decisions.append((turn == 0, accepted))
            if not 1e-6 < h < 1e6:
                break
            assert to - at == pytest.approx(h, rel=1e-9, abs=1e-15 * at), (order, eps, turn)
            # Positions grow and would take the digits of h: back to the start, as nothing else.
            sample.control[0, 0], sample.control[0, 1] = 0.0, h
    # Of the first attempt the integral part alone decides.
    needed = {*itertools.product((True, False), repeat=2)}
    assert {*decisions} == (needed if coefficients[1] else needed - {(True, False)})


@each_backend
def test_a_slot_remembers_and_is_freed(op):
    """Four rejections, each nearer; then no slot is free and the farthest point is forgotten."""
    halves = rule(reject_safety=0.5, reject_power=0, safety=1, error_power=0, most=INF)
    sample = Sample(op, halves, to=0.8, end=1.0, slots=4)
    for k in range(4):
        assert sample.judge(9.0) == (0.0, pytest.approx(0.8 / 2 ** (k + 1), rel=1e-15))
        assert sample.slots[: k + 1] == pytest.approx([0.8 / 2**j for j in range(k + 1)])
        assert sample.slots[k + 1 :] == [INF] * (3 - k)
    assert sample.judge(9.0) == (0.0, pytest.approx(0.025, rel=1e-15))
    assert (sample.forgotten, sample.accepted, sample.rejected) == (1, 0, 5)
    assert sample.slots == pytest.approx([0.05, 0.4, 0.2, 0.1])
    for _ in range(2):
        sample.judge(0.5)
    assert sample.control[0, 0] == pytest.approx(0.05)  # reaches the nearest: freed
    assert sample.slots == pytest.approx([INF, 0.4, 0.2, 0.1])
    assert sample.forgotten == 1


@each_backend
def test_a_rejection_at_a_remembered_point_or_beyond_all(op):
    keeps = rule(reject_safety=1, reject_power=0, reject_most=1, safety=1, error_power=0)
    sample = Sample(op, keeps, to=0.5, end=1.0, slots=2)
    for _ in range(3):  # the same step again, which has a slot
        assert sample.judge(9.0) == (0.0, 0.5)
    assert sample.slots == [0.5, INF]
    sample.control[0, 1] = 0.25
    sample.judge(9.0)
    assert sample.slots == [0.5, 0.25]
    sample.control[0, 1] = 0.75  # farther than all that is remembered: not worth a slot
    sample.judge(9.0)
    assert sample.slots == [0.5, 0.25]
    assert (sample.forgotten, sample.rejected) == (1, 5)


@each_backend
def test_limits_of_the_step(op):
    grows = rule(safety=8, error_power=0, most=INF, step_max=0.25, step_min=0.125)
    sample = Sample(op, grows, to=0.0625)
    assert sample.judge(1.0) == (0.0625, 0.3125)  # 0.5, but no more than 0.25
    shrinks = rule(safety=0.25, error_power=0, step_min=0.125)
    sample = Sample(op, shrinks, to=0.25)
    assert sample.judge(1.0) == (0.25, 0.375)  # 0.0625, but no less than 0.125
    assert sample.status == RUNNING
    assert sample.judge(9.0) == (0.25, 0.375)  # rejected below the least step
    assert (sample.status, sample.rejected) == (FAILED_STEP, 1)


@each_backend
def test_the_end_is_reached_exactly_whatever_the_numbers(op):
    rng = np.random.default_rng(1)
    for _ in range(200):
        start, end = np.sort(rng.normal(size=2) * 10.0 ** rng.integers(-6, 6, size=2))
        first = start + (end - start) / 3
        sample = Sample(op, UNLIMITED, at=start, to=first, end=end, **PEC_FLAGS)
        while sample.status == RUNNING:
            at, to = sample.control[0, :2].tolist()
            sample.judge(20 * ((to - at) / (end - start)) ** 1.5 * rng.exponential())
        assert (sample.status, sample.control[0, 0].item()) == (FINISHED, end)
        assert sample.accepted > 1


@each_backend
def test_stages_walk_and_the_last_call_counts(op):
    """Stage 0 comes once (restart 1) or before every attempt (restart 0), last of all if final."""
    for restart, final, wanted in (
        (1, 0, [0, 1, 2, 1, 2]),
        (0, 0, [0, 1, 2, 0, 1, 2]),
        (0, 1, [0, 1, 2, 0, 1, 2, 0]),
        (1, 1, [0, 1, 2, 1, 2]),
    ):
        for most, status in ((len(wanted), FINISHED), (len(wanted) - 1, FAILED_CALLS)):
            switches = {"last": 2, "restart": restart, "final": final, "most_calls": most}
            numbers = rule(safety=1, error_power=0)
            sample = Sample(op, numbers, to=0.5, stage=0, **switches)
            stages = []
            while sample.status == RUNNING:
                stages.append(sample.stage)
                sample.judge(1.0)
            assert stages == wanted[:most]
            assert sample.status == status
            assert sample.calls == most


@each_backend
def test_a_sample_that_starts_at_its_end(op):
    sample = Sample(op, GGF, at=1.0, to=1.0, end=1.0, stage=0)
    sample.judge(NAN)  # nothing is judged at stage 0
    assert (sample.status, sample.calls, sample.accepted) == (FINISHED, 1, 0)
    sample = Sample(op, GGF, at=1.0, to=1.0, end=1.0)
    sample.judge(0.0)
    assert (sample.status, sample.accepted) == (FINISHED, 1)
    sample = Sample(op, GGF, at=1.0, to=1.0, end=1.0)
    sample.judge(2.0)  # no smaller step leads anywhere
    assert sample.status == FAILED_STEP


@each_backend
@pytest.mark.parametrize(
    ("error", "noise"), ((NAN, 0), (INF, 0), (-1.0, 0), (1.0, NAN), (1.0, INF), (INF, INF))
)
def test_norms_that_are_no_numbers_fail_the_sample(op, error, noise):
    for switches in ({}, {"always": 1}, {"by_factor": 1}):
        sample = Sample(op, GGF, **switches)
        assert sample.judge(error, noise) == (0.0, 0.1)
        assert (sample.status, sample.calls, sample.accepted) == (2, 1, 0)
        assert sample.streams.tolist() == [[0, 0, 0]]


@each_backend
def test_a_sum_that_was_not_finite_fails_the_sample_at_any_stage(op):
    for stage in (0, 1, 2):
        sample = Sample(op, GGF, last=2, stage=stage)
        sample.judge(0.5, bad=0)
        assert (sample.status, sample.stage) == (2, stage)


@each_backend
def test_zero_errors_and_powers_of_nothing(op):
    """0^0 is 1, 0^-p infinite; an error of 0 after one of 0 lengthens as much as it may."""
    both = rule(error_power=0.5, before_power=0.5, most=3)
    sample = Sample(op, both, end=1e6)
    assert sample.judge(0.0)[1] == pytest.approx(0.1 + 0.3)
    at, to = sample.judge(0.0)
    assert to - at == pytest.approx(0.9)
    # After an error of 0 without a floor any other one shortens as much as it may.
    at, to = sample.judge(1.0)
    assert to - at == pytest.approx(0.18)
    sample = Sample(op, rule(error_power=0, most=3, safety=2))
    assert sample.judge(0.0)[1] == pytest.approx(0.3)
    assert named(sample.control[0])["before2"] == 0


@each_backend
def test_ties_and_an_end_that_is_no_number(op):
    # A factor of exactly the threshold is accepted.
    sample = Sample(op, rule(safety=1), by_factor=1)
    assert sample.judge(1.0)[0] == 0.1
    assert Sample(op, rule(safety=1, threshold=1.0001), by_factor=1).judge(1.0)[0] == 0.0
    same = rule(safety=1, error_power=0)
    # Nothing leads to an end that is NaN, and nothing beyond the end.
    for end in (NAN, -1.0):
        sample = Sample(op, same, to=0.25, end=end)
        sample.judge(1.0)
        assert sample.status == FAILED_STEP
