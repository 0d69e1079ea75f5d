"""Surrogate data with a given loss curve, and the plans that are chosen on them."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.surrogate import FAMILIES, HOWS, NORMAL, Curve, choose
from diffast.thermo.surrogate.laws import mmse_of, modes, sparse, uneven
from diffast.thermo.surrogate.nonnegative import nonnegative_least_squares
from diffast.thermo.surrogate.product import Product

RHO = np.geomspace(0.005, 60.0, 24)
SCHEDULES = {
    "edm": df.schedules.edm(0.005, 60.0),
    "vp": df.schedules.vp_linear(),
    "flow": df.schedules.flow(),
}


def mixture_profile(spectrum=True):
    """The loss curve of three kinds of coordinates, two modes of deviation .8 among them."""
    mmse = 5.0 * mmse_of(modes(0.15), 0.8, RHO) + 40.0 * mmse_of(NORMAL, 0.1, RHO)
    mmse = mmse + 2.0 * mmse_of(sparse(0.3, 0.1), 1.5, RHO)
    found = {"rho": RHO, "mmse": mmse, "d": 60}
    return found | ({"spectrum": [1.5**2] * 2 + [0.64] * 5 + [0.01] * 40} if spectrum else {})


PROFILE = mixture_profile()


def test_least_squares_meets_the_conditions_of_the_minimum():
    draw = np.random.default_rng(0)
    for _ in range(20):
        matrix, wanted = draw.random((12, 30)), draw.random(12) - 0.3
        w = nonnegative_least_squares(matrix, wanted)
        gradient = matrix.T @ (matrix @ w - wanted)
        assert (w >= 0.0).all() and w.any()
        assert abs(gradient[w > 0]).max() < 1e-9
        assert gradient.min() > -1e-9
    known = np.where(np.arange(6) % 2, 0.0, np.arange(6.0))
    matrix = draw.random((9, 6))
    assert nonnegative_least_squares(matrix, matrix @ known) == pytest.approx(known, abs=1e-10)
    with pytest.raises(ValueError, match="not finite"):
        nonnegative_least_squares(matrix, np.full(9, np.nan))
    with pytest.raises(ValueError, match=r"\[9, 6\], but \[8\]"):
        nonnegative_least_squares(matrix, np.ones(8))


@pytest.mark.parametrize("law", [NORMAL, modes(0.3), uneven(0.2, 0.1), sparse(0.1, 0.1)])
def test_laws_have_mean_0_and_variance_1_and_their_table_is_the_quadrature(law):
    weights, means, variances = (np.array(part) for part in law[1:])
    assert weights @ means == pytest.approx(0.0, abs=1e-12)
    assert weights @ (means**2 + variances) == pytest.approx(1.0)
    rho = np.array([2e-4, 0.07, 0.6, 3.0, 900.0])
    exact = df.thermo.GaussianMixture(*law[1:]).mmse(rho / 0.7) * 0.49
    assert mmse_of(law, 0.7, rho) == pytest.approx(exact, rel=4e-3)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_product_is_the_exact_denoiser_of_each_coordinate(schedule):
    laws, scales = (NORMAL, modes(0.3), sparse(0.3, 0.1)), (2.0, 0.5, 1.0)
    network = Product(laws, scales, schedule)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in np.linspace(schedule.t_start, schedule.t_min, 4):
        found = network(x, torch.full((6,), float(t), dtype=torch.float64))
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        for k, (law, c) in enumerate(zip(laws, scales, strict=True)):
            means, variances = c * np.array(law.means), c**2 * np.array(law.variances)
            exact = df.thermo.GaussianMixture(law.weights, means, variances)
            wanted = exact.x0(x[:, k], alpha, sigma)[:, 0]
            assert (found[:, k] - wanted).abs().max() < 1e-11 * (1.0 + wanted.abs().max())
    mixed = torch.linspace(float(schedule.t_start), float(schedule.t_min), 6).double()
    rows = torch.cat([network(x[[i]], mixed[[i]]) for i in range(6)])
    assert torch.allclose(network(x, mixed), rows, rtol=1e-13, atol=0)


def test_a_fit_meets_the_curve_and_says_how_well():
    made = df.thermo.Surrogate.fit(PROFILE)
    gap = made.mmse(RHO) / PROFILE["mmse"] - 1.0
    assert made.misfit == pytest.approx(float(np.sqrt(np.mean(gap**2))))
    assert made.worst[0] == pytest.approx(gap[np.abs(gap).argmax()])
    assert 1e-4 < made.misfit < 0.05
    alone = df.thermo.Surrogate.fit(PROFILE, [[NORMAL]])
    assert alone.misfit > 2 * made.misfit, "Gaussian coordinates cannot have the curve"
    assert {law.name for law in alone.laws} == {"normal"}
    assert "coordinates of deviation" in str(made) and "60 elements" in str(made)
    assert float(made.counts @ made.scales**2) == pytest.approx(PROFILE["mmse"][-1], rel=0.03)
    as_tuple = df.thermo.Surrogate.fit((RHO, PROFILE["mmse"], 60))
    assert as_tuple.mmse(RHO) == pytest.approx(made.mmse(RHO), rel=0.05)


def test_errors_on_gaussian_data_are_those_of_linear_algebra():
    """With one eigenvalue DDIM's error is a product of its steps' factors."""
    schedule, c = SCHEDULES["edm"], 0.5
    made = df.thermo.Surrogate.gaussian([c**2] * 3)
    assert made.counts.tolist() == [3.0] and made.scales[0] == pytest.approx(c)
    sigma = np.append(np.geomspace(60.0, 0.005, 8), 0.0)
    ratio = np.prod((c**2 + sigma[:-1] * sigma[1:]) / (c**2 + sigma[:-1] ** 2))
    # The teacher stops at sigma_min and takes the estimate there.
    exact = np.sqrt((c**2 + 0.005**2) / (c**2 + 60.0**2)) * c**2 / (c**2 + 0.005**2)
    plan = df.solvers.ddim(schedule, sigma)
    assert made.error(plan) == pytest.approx(1.0 - ratio / exact, rel=1e-4)
    joined = df.thermo.Surrogate.gaussian(np.geomspace(1e-3, 10.0, 500), parts=20)
    assert len(joined.laws) <= 20 and joined.counts.sum() == 500
    assert float(joined.counts @ joined.scales**2) == pytest.approx(
        np.geomspace(1e-3, 10, 500).sum()
    )


def test_a_surrogate_of_the_data_s_own_kind_predicts_a_plan_s_error():
    """Five coordinates of two modes, run as such, against the surrogate's error."""
    schedule, law = SCHEDULES["edm"], modes(0.15)
    made = df.thermo.Surrogate.fit((RHO, 5.0 * mmse_of(law, 0.8, RHO), 5), FAMILIES[:1])
    exact = df.thermo.Surrogate((law,), np.array([0.8]), np.array([5.0]), 5)
    for calls in (5, 8):
        plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, calls))
        assert made.error(plan) == pytest.approx(exact.error(plan), rel=0.15)


@pytest.mark.parametrize(
    "schedule",
    [
        SCHEDULES["edm"],
        *(pytest.param(SCHEDULES[name], marks=pytest.mark.slow) for name in ("vp", "flow")),
    ],
)
def test_the_plan_of_a_profile_is_the_best_of_those_compared(schedule):
    made = df.thermo.Surrogate.fit(PROFILE)
    plan = df.thermo.plan_of_profile(PROFILE, schedule, 6, how="standard", surrogate=made)
    assert plan.nfe <= 6 and plan.start == float(schedule.t_start) and plan.made_for is None
    assert plan.name.startswith("of_profile(")
    error = made.error(plan)
    assert error <= made.error(df.plan(schedule, 6))
    few = df.thermo.plans_of_profile(PROFILE, schedule, 6, 3, surrogate=made)
    said = [value for value, _ in few]
    assert said == sorted(said) and said[0] <= error and len(few) == 3
    assert [made.error(own) for _, own in few] == said
    for build in (df.solvers.ddim, df.solvers.dpmpp_2m, df.solvers.unipc):
        assert error <= made.error(build(schedule, df.grids.even(schedule, 6)))


@pytest.mark.parametrize("name, count", [("flow", 1), ("edm", 2)])
def test_one_plan_of_two_names_is_listed_once(monkeypatch, name, count):
    # `even` is `uniform_flow`; `uniform_time` is the same grid on a flow alone
    schedule = SCHEDULES[name]
    grids = (df.grids.uniform_time, df.grids.uniform_flow, df.grids.even)
    plans = [df.solvers.unipc(schedule, grid(schedule, 6)) for grid in grids]
    ranked = [(0.1, str(k), plan) for k, plan in enumerate(plans)]
    monkeypatch.setattr(choose, "_ranked", lambda *given: (ranked, None, None))
    assert len(df.thermo.plans_of_profile(PROFILE, schedule, 6)) == count


@pytest.mark.slow
def test_plans_of_densities_and_of_the_spectrum():
    schedule, made = SCHEDULES["edm"], df.thermo.Surrogate.fit(PROFILE)
    errors = {}
    for how in ("gaussian", "density", "surrogate"):
        given = None if how == "gaussian" else made
        plan = df.thermo.plan_of_profile(PROFILE, schedule, 5, how=how, surrogate=given)
        errors[how] = made.error(plan)
        assert plan.nfe == 5
    assert errors["surrogate"] <= min(errors.values())


@pytest.mark.slow
def test_learning_on_the_surrogate_is_better_there():
    schedule, made = SCHEDULES["edm"], df.thermo.Surrogate.fit(PROFILE)
    chosen, learned = (
        df.thermo.plan_of_profile(PROFILE, schedule, 5, how=how, surrogate=made)
        for how in ("surrogate", "learned")
    )
    assert made.error(learned) < 0.8 * made.error(chosen)
    assert learned.made_for is None


def test_a_network_of_whole_times_gets_whole_times():
    schedule = df.schedules.from_betas(np.linspace(1e-4, 0.02, 1000))
    denoiser = df.Denoiser(lambda x, t: x, schedule, predicts="epsilon", time_dtype=torch.long)
    plan = df.thermo.plan_of_profile(PROFILE, denoiser, 5, how="density")
    assert (plan.call_times == np.round(plan.call_times)).all()


def test_the_network_s_own_error_is_seen_and_followed():
    """An epsilon that is off by .02 is off by 3 in x0 at rho = 150: more than the data vary."""
    schedule = SCHEDULES["vp"]
    rho = np.geomspace(0.006, 150.0, 24)
    mmse = 2.0 * mmse_of(modes(0.3), 1.0, rho)
    wrong = {"rho": rho, "mmse": mmse + 2 * (0.02 * rho) ** 2, "d": 2, "spectrum": [1.0, 1.0]}
    curve = Curve.of(wrong)
    assert curve.mmse[-1] <= 2.0, "no estimate needs more loss than the variance"
    assert curve.own_error[-1] == pytest.approx(0.02 * 150.0, rel=0.02)
    assert not curve.own_error[rho < 10].any()
    made, exact = (df.thermo.Surrogate.fit(p) for p in (wrong, wrong | {"mmse": mmse}))
    assert exact.own_error is None
    # Where alpha is nearly 0 this makes a thin layer, which grids in the flow's time miss.
    plan = df.solvers.unipc(schedule, df.grids.even(schedule, 5))
    assert made.error(plan) > 2.0 * exact.error(plan)
    denoiser = made.denoiser(schedule)
    x = torch.randn(2000, len(made.laws), generator=torch.Generator().manual_seed(0)).double()
    off = denoiser.network(x, torch.full((2000,), float(schedule.t_start)).double())
    assert float((off**2).mean().sqrt()) == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rho": RHO[:3], "mmse": PROFILE["mmse"][:3]}, "3 levels and 3 values"),
        ({"rho": RHO[:9]}, "9 levels and 24 values"),
        ({"mmse": np.where(RHO > 1, np.nan, PROFILE["mmse"])}, "values of the loss are not finite"),
        ({"rho": RHO - 0.01}, "levels rho are not finite and above 0"),
        ({"d": 0}, "d = 0"),
        ({"spectrum": [1.0, -1.0]}, "the spectrum has values"),
    ],
)
def test_bad_profiles_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        df.thermo.Surrogate.fit(PROFILE | change)


def test_other_refusals():
    with pytest.raises(TypeError, match="a dict has no 'mmse'"):
        df.thermo.Surrogate.fit({"rho": RHO, "d": 2})
    with pytest.raises(ValueError, match=f"how = 'best', but {', '.join(HOWS)}"):
        df.thermo.plan_of_profile(PROFILE, SCHEDULES["edm"], 5, how="best")
    with pytest.raises(ValueError, match="needs the spectrum"):
        df.thermo.plan_of_profile(mixture_profile(False), SCHEDULES["edm"], 5, how="gaussian")
    with pytest.raises(ValueError, match="calls = 0"):
        df.thermo.plan_of_profile(PROFILE, SCHEDULES["edm"], 0)
    with pytest.raises(ValueError, match="first = 0"):
        df.thermo.plans_of_profile(PROFILE, SCHEDULES["edm"], 5, 0)
    with pytest.raises(ValueError, match="no value above 0"):
        df.thermo.Surrogate.gaussian([0.0, 0.0])
    with pytest.raises(TypeError, match="schedule"):
        df.thermo.plan_of_profile(PROFILE, "edm", 5)


def test_guided_denoisers_are_refused():
    schedule = df.schedules.edm()
    shift = {"shift": torch.zeros(1)}
    guided = df.Denoiser(
        lambda x, t, shift: x,
        schedule,
        "x0",
        conditions=shift,
        unconditional=shift,
        guidance=2.0,
    )
    profile = (np.geomspace(80.0, 0.01, 12), np.geomspace(1.0, 1e-4, 12), 1)
    for chosen in (df.thermo.plan_of_profile, df.thermo.plans_of_profile):
        with pytest.raises(ValueError, match="the denoiser is guided"):
            chosen(profile, guided, 5)
