"""Langevin correctors: the numbers of their steps, and their law on Gaussian data, exactly."""

import numpy as np
import pytest
from gaussian_law import kl, law, level
from scipy.linalg import expm, solve_discrete_lyapunov

import diffast as df
from diffast.solvers.correctors import exact_step

C = df.correctors
VE, TRIG = df.schedules.edm(), df.schedules.trig()
ALL = {
    "overdamped": C.overdamped(),
    "leimkuhler_matthews": C.leimkuhler_matthews(),
    "underdamped": C.underdamped(),
    "baoab": C.baoab(),
    "snr": C.snr(),
}
each_corrector = pytest.mark.parametrize("corrector", ALL.values(), ids=ALL)


# --- the exact step -------------------------------------------------------------------------------


def van_loan(g, h):
    """(transition over (x, v), pull of the score, covariance), by one matrix exponential.

    Van Loan 1978: exp(h [[-A, Q], [0, A^T]]) holds exp(A h)^T and the integral of the noise.
    """
    a = np.array([[0.0, 1.0, 0.0], [0.0, -g, 1.0], [0.0, 0.0, 0.0]])  # (x, v, s), s held
    q = np.diag([0.0, 2.0 * g, 0.0])
    whole = expm(h * np.block([[-a, q], [np.zeros((3, 3)), a.T]]))
    move = whole[3:, 3:].T
    return move[:2, :2], move[:2, 2], (move @ whole[:3, 3:])[:2, :2]


def covariance(rows):
    """Covariance of the fresh noise of the rows of x and v."""
    noise = np.array([[row.get(z, 0.0) for z in ("z1", "z2")] for row in rows])
    return noise @ noise.T


@pytest.mark.parametrize("friction", [0.3, 2.0, 6.0])
@pytest.mark.parametrize("length", [0.003, 0.1, 0.4, 1.0])
def test_the_exact_step_is_van_loans(friction, length):
    move, push, noise = van_loan(friction, length)
    rows = exact_step.step(friction, length).rows()
    got = np.array([[row.get(c, 0.0) for c in ("x", "v")] for row in rows])
    np.testing.assert_allclose(got, move, rtol=1e-9)
    np.testing.assert_allclose([row["s"] for row in rows], push, rtol=1e-9)
    # relative to the noise: the matrix exponential itself has lost digits of the small entries
    size = np.sqrt(np.diag(noise))
    np.testing.assert_allclose(
        covariance(rows) / np.outer(size, size), noise / np.outer(size, size), atol=1e-9
    )
    first = exact_step.step(friction, length).first_rows()
    drawn = covariance(rows) + np.outer(move[:, 1], move[:, 1])  # and v ~ N(0, 1)
    np.testing.assert_allclose(covariance(first), drawn, rtol=1e-11)
    assert drawn[1, 1] == pytest.approx(1.0, rel=1e-12)


def test_the_figures_of_one_step():
    step = exact_step.step(2.0, 0.1)
    assert step.keep == pytest.approx(0.818731, abs=5e-7)
    assert step.drift == pytest.approx(0.0906346, abs=5e-8)
    assert step.push == pytest.approx(0.00468269, abs=5e-9)
    noise = covariance(step.rows())
    np.testing.assert_allclose(
        [noise[0, 0], noise[0, 1], noise[1, 1]], [0.00115074, 0.0164293, 0.32968], rtol=5e-6
    )


@pytest.mark.parametrize("length", [1e-3, 1e-5, 1e-7])
def test_small_steps_are_their_series(length):
    g, h = 1.7, length
    noise = covariance(exact_step.step(g, h).rows())
    series = 2 / 3 * g * h**3 * (1 - 0.75 * g * h), g * h**2 * (1 - g * h)
    np.testing.assert_allclose(noise[0], series, rtol=(g * h) ** 2 + 1e-13)


# --- stationary laws on N(0, 1): data 0 at sigma = 1 ----------------------------------------------


def chain(corrector, n=3):
    """(transition, fresh noise) over (x, v) of a later call of a visit: d = 0, so s = -x."""
    rows = corrector.visit(1.0, 1.0, 1.0, n)[1]
    both = [rows["x"], rows.get("v", {})]
    return (
        np.array([[row.get(c, 0.0) for c in ("x", "v")] for row in both]),
        np.array([[row.get(z, 0.0) for z in ("z1", "z2")] for row in both]),
    )


def stationary(corrector):
    move, noise = chain(corrector)
    return solve_discrete_lyapunov(move, noise @ noise.T)[0, 0]


@pytest.mark.parametrize(
    ("h", "under", "over"),
    [(0.1, 1.02562, 1.05263), (0.4, 1.10958, 1.25), (0.8, 1.23708, 1.66667)],
)
def test_stationary_variances_to_five_digits(h, under, over):
    assert stationary(C.underdamped(h, friction=2.0)) == pytest.approx(under, abs=5.01e-6)
    assert stationary(C.overdamped(h)) == pytest.approx(over, abs=5.01e-6)
    assert stationary(C.overdamped(h)) == pytest.approx(1 / (1 - h / 2), rel=1e-12)


@pytest.mark.parametrize("h", [0.05, 0.4, 0.8, 1.2])
@pytest.mark.parametrize("friction", [0.5, 2.0, 6.0])
def test_baoab_and_leimkuhler_matthews_have_the_exact_variance(h, friction):
    assert stationary(C.baoab(h, friction=friction)) == pytest.approx(1.0, rel=1e-12)
    assert stationary(C.leimkuhler_matthews(h)) == pytest.approx(1.0, rel=1e-12)
    assert stationary(C.overdamped(h)) > 1.02


def test_songs_step_in_high_dimension():
    # 2 a r^2 sigma^2; and the published step of samples of noise, which has it for its mean
    x = C.snr(0.16).visit(2.0, 1.0, 2.0, 1)[0]["x"]
    assert x["d"] == pytest.approx(2 * 0.16**2, rel=1e-12)  # h / sigma^2
    assert x["z1"] == pytest.approx(np.sqrt(2 * 2 * 0.16**2 * 4.0), rel=1e-12)
    scaled = C.snr(0.16, scale=lambda t: t / 4).visit(2.0, 1.0, 2.0, 1)[0]["x"]
    assert scaled["d"] == pytest.approx(0.16**2, rel=1e-12)
    random = np.random.default_rng(0)
    for d, spread in ((64, 0.2), (4096, 0.03)):
        z, g = (random.normal(size=(200, d)) for _ in range(2))  # g: the score of N(0, 1)
        published = 2 * (0.16 * np.linalg.norm(z, axis=1) / np.linalg.norm(g, axis=1)) ** 2
        assert np.abs(published / (2 * 0.16**2) - 1).std() < spread
        assert abs(published.mean() / (2 * 0.16**2) - 1) < spread


# --- visits ---


@each_corrector
@pytest.mark.parametrize("schedule", [VE, TRIG, df.schedules.flow()], ids=str)
def test_visits_do_not_depend_on_the_scale_of_x(corrector, schedule):
    """x / alpha moves by the same numbers on every schedule, at one sigma / alpha."""
    t = float(schedule.time(-np.log(0.7)))
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    one = corrector.visit(t, alpha, sigma, 3)
    for rows, wanted in zip(one, corrector.visit(0.7, 1.0, 0.7, 3), strict=True):
        assert rows.keys() == wanted.keys()
        scales = {"x": alpha, "d": 1.0, "v": 1.0, "z1": 1.0, "z2": 1.0}
        for register, row in rows.items():
            for column, weight in row.items():
                scaled = weight * scales[column] / scales[register]
                assert scaled == pytest.approx(wanted[register][column], rel=1e-12)


@each_corrector
def test_the_last_call_of_a_visit_writes_no_momentum_and_draws_one_normal(corrector):
    for n in (1, 2, 4):
        visit = corrector.visit(1.0, 1.0, 1.0, n)
        assert len(visit) == n
        assert all("z2" not in rows["x"] or k + 1 < n for k, rows in enumerate(visit))
        assert "v" not in visit[-1]
        assert "v" not in visit[0]["x"]  # nothing is read that the plan would have to hold


def visited(corrector, n, sigma=1.0, mean=0.0, variance=0.0, start=None):
    """Mean and variance after one visit of n calls at sigma, through the plan's own matrices."""
    plan = df.solvers.euler(VE, [sigma * (1 + 1e-9), sigma])
    plan = df.solvers.predictor_corrector(plan, corrector, n=n)
    return law(plan, mean, variance, start)


@pytest.mark.parametrize("name", ["leimkuhler_matthews", "baoab"])
def test_a_long_visit_has_the_exact_variance(name):
    for variance in (0.0, 0.3, 2.0):
        _, got = visited(ALL[name], 300, variance=variance, start=(0.0, 5.0))
        # the last momentum is let go, and what a visit begins with is forgotten
        assert got == pytest.approx(1.0 + variance, rel=1e-6)
    _, got = visited(ALL["overdamped"], 300)
    assert got == pytest.approx(1 / (1 - 0.125), rel=1e-6)


def test_langevin_turns_distance_into_divergence():
    """Two points at a distance a: after a time T, KL = a^2 / (2 (exp(2 T) - 1)) (Dirac, OU)."""
    found = []
    for n in (100, 200):
        corrector = C.overdamped(length=0.2)
        (one, v), (two, _) = (visited(corrector, n, start=(m, 0.0)) for m in (0.0, 0.7))
        found.append((two - one) ** 2 / (2 * v))
    assert 2 * found[1] - found[0] == pytest.approx(0.498145, abs=2e-5)
    assert found[1] == pytest.approx(0.498145, abs=2e-3)


# --- the tables of robustness, exactly ---

CALLS = 6  # of the predictor and of the corrector in each of 8 stages


def eight_stages(ou, calls):
    """Eight stages on trig, even in log sigma from an OU time alpha = exp(-ou) to 0.001."""
    sigma = np.sqrt(-np.expm1(-2 * np.array([ou, 0.001])))
    return np.arcsin(np.geomspace(*sigma, 8 * calls + 1))


def corrected(corrector, ou, n=CALLS):
    plan = df.solvers.ddim(TRIG, eight_stages(ou, CALLS))
    return df.solvers.predictor_corrector(plan, corrector, n=n, where=range(CALLS, 49, CALLS))


@pytest.mark.parametrize(
    ("corrector", "n", "wanted", "digits"),
    [
        ("olmc", 6, 0.001072, 5e-7),
        ("ulmc", 6, 0.0001806, 5e-8),
        ("lm", 6, 0.00217, 5e-6),
        ("baoab", 5, 0.0000425, 5e-8),  # counted with the last half kick: six evaluations
        ("baoab", 6, 0.0000069, 5e-8),
    ],
)
def test_divergences_from_a_start_that_is_too_early(corrector, n, wanted, digits):
    """Data N(2, 1/4), started as N(0, 1) at OU time 1; 96 calls with the predictor's 48."""
    plan = corrected(corrector, 1.0, n)
    assert plan.nfe == 48 + 8 * n
    assert kl(plan, 2.0, 0.25, (0.0, 1.0)) == pytest.approx(wanted, abs=digits)


def test_the_divergence_of_the_ode_alone():
    plan = df.solvers.ddim(TRIG, eight_stages(1.0, 12))
    assert plan.nfe == 96
    assert kl(plan, 2.0, 0.25, (0.0, 1.0)) == pytest.approx(0.2958, abs=5e-5)


@pytest.mark.parametrize(
    ("corrector", "wanted"), [(None, -2.291), ("olmc", -0.305), ("ulmc", -0.146)]
)
def test_a_network_that_is_wrong_at_high_noise(corrector, wanted):
    """eps is too large by 0.3 in the first three of eight stages; the error of the mean."""
    calls = 12 if corrector is None else CALLS
    plan = df.solvers.ddim(TRIG, eight_stages(4.0, calls))
    if corrector is not None:
        plan = corrected(corrector, 4.0)
    third = eight_stages(4.0, 1)[3]
    # the visit at the end of the third stage belongs to it
    biased = np.arange(plan.stages) < np.flatnonzero(plan.times <= third * (1 - 1e-12))[0]
    after = 0 if corrector is None else CALLS
    biased[: np.flatnonzero(np.isclose(plan.times, third, rtol=1e-9))[0] + after] = True
    biased[np.flatnonzero(np.isclose(plan.times, third, rtol=1e-9))[0] + after :] = False
    mean, _ = law(plan, 2.0, 0.25, (0.0, 1.0), bias=0.3 * biased)
    assert mean - level(plan, plan.end, 2.0, 0.25)[0] == pytest.approx(wanted, abs=5e-4)


# --- names, texts, refusals ---


def test_texts():
    assert C.parse("ulmc") == (C.underdamped(), None, None, None)
    assert C.parse("olmc:n=2,step=0.3") == (C.overdamped(0.3), 2, None, None)
    assert C.parse(" baoab : step = 0.5 , friction=1 ") == (
        C.baoab(0.5, friction=1.0),
        None,
        None,
        None,
    )
    assert C.parse("lm:length=2") == (C.leimkuhler_matthews(length=2.0), None, None, None)
    assert C.parse("snr:r=0.2,n=0") == (C.snr(0.2), 0, None, None)
    assert C.parse("baoab:n=12,low=0.8,high=2") == (C.baoab(), 12, 0.8, 2.0)
    assert repr(C.parse("ulmc")[0]) == "underdamped(step=0.8, friction=2)"
    assert repr(C.overdamped(length=lambda t: t)) == "overdamped(length=f(t))"
    for name in C.parse.__globals__["CORRECTORS"]:
        assert C.get(name)().name == name


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: C.parse("olmcc"), r"corrector 'olmcc' is not known \(did you mean olmc"),
        (
            lambda: C.parse("olmc:stpe=1"),
            "'olmc:stpe=1': option 'stpe' is not known, but n, low, high, step",
        ),
        (lambda: C.parse("olmc:friction=1"), "option 'friction' is not known"),
        (lambda: C.parse("olmc:step=big"), "step = 'big', but it must be a number"),
        (lambda: C.parse("olmc:step"), "step = '', but it must be a number"),
        (lambda: C.parse("olmc:n=1.5"), "n = '1.5', but it must be a whole number"),
        (lambda: C.parse("olmc:n=-1"), "n = -1, but it must be a whole number, 0 or more"),
        (lambda: C.parse("olmc:n=1,n=2"), "n is given twice"),
        (
            lambda: C.parse("ulmc:step=-1"),
            "corrector 'ulmc:step=-1': underdamped: step = -1.0, but",
        ),
        (lambda: C.parse("ulmc:step=nan"), "underdamped: step = nan, but it must be a positive"),
        (lambda: C.overdamped(0.0), "overdamped: step = 0.0, but it must be a positive finite"),
        (lambda: C.overdamped("x"), "overdamped: step = 'x', but it must be a positive finite"),
        (lambda: C.baoab(friction=np.inf), "baoab: friction = inf, but it must be"),
        (lambda: C.snr(lambda t: t), "snr: r is a function, but it must be a number"),
        (
            lambda: C.overdamped(lambda t: -t).visit(2.0, 1.0, 2.0, 1),
            "overdamped: step = -2.0 at t = 2, but it must be positive and finite",
        ),
    ],
)
def test_refusals(make, facts):
    with pytest.raises(ValueError, match=facts):
        make()
