"""Likelihoods of plans against exact laws, transfer matrices and the published figures."""

import math
import warnings

import gaussian_law
import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.fluctuation.chain import Chain

OU = df.schedules.vp_linear(2.0, 2.0)  # alpha = exp(-t), sigma^2 = 1 - exp(-2 t), t to 1
TWO = df.thermo.GaussianMixture(None, [-1.0, 1.0], 1.0)
F64 = torch.float64


def ddpm_large(steps):
    """Reverse steps with the forward step's variance on a grid that is quadratic in the time."""
    times = (np.arange(steps, -1, -1) / steps) ** 2
    plan = df.solvers.ddpm(OU, df.grids.from_times(OU, times), variance="large")
    return plan, times


def likelihood(steps, x, paths, **options):
    plan, times = ddpm_large(steps)
    last = math.sqrt(-math.expm1(-2.0 * times[-2]))  # the last forward step's deviation

    def start(state):
        return TWO.log_density(state, float(OU.alpha(1.0)), float(OU.sigma(1.0)))

    return df.thermo.log_likelihood(
        TWO.denoiser(OU), plan, x, paths=paths, observation_noise=last, log_start=start, **options
    )


def transferred(steps, x):
    """The density at x of the same chain by a matrix product over a fine grid of states."""
    _, times = ddpm_large(steps)
    y = torch.linspace(-9, 9, 3001, dtype=F64)
    density = TWO.log_density(y[:, None], float(OU.alpha(1.0)), float(OU.sigma(1.0))).exp()
    for k in range(steps):
        a = math.exp(times[k + 1] - times[k])
        alpha, sigma = float(OU.alpha(times[k])), float(OU.sigma(times[k]))
        score = TWO.score(y[:, None], alpha, sigma)[:, 0]
        mean, beta = (y + (1.0 - a * a) * score) / a, 1.0 - a * a
        to = torch.tensor([x], dtype=F64) if k + 1 == steps else y
        kernel = (-0.5 * (to[:, None] - mean).square() / beta).exp()
        kernel = kernel / math.sqrt(2.0 * math.pi * beta)
        density = kernel @ density * (y[1] - y[0])
    return float(density[0].log())


# Reference figures of about 1e5 paths (five and a hundred steps): log <W>, <log W>.
@pytest.mark.parametrize(
    ("steps", "paths", "reference"),
    [
        (5, 40_000, (-1.3854, -1.4053)),
        pytest.param(100, 10_000, (-1.4337, -1.4350), marks=pytest.mark.slow),
    ],
)
def test_the_two_means_of_the_published_case(steps, paths, reference):
    made = likelihood(steps, torch.tensor([[0.7]], dtype=F64), paths, noising="schedule")
    assert abs(float(made.value) - transferred(steps, 0.7)) < 4 * float(made.error)
    # The reference's own error is that of 1e5 paths.
    own = math.sqrt(paths / 1e5)
    assert abs(float(made.value) - reference[0]) < 4 * math.hypot(1, own) * float(made.error)
    assert abs(float(made.elbo) - reference[1]) < 4 * math.hypot(1, own) * float(made.elbo_error)
    gap = reference[0] - reference[1]
    assert float(made.gap) == pytest.approx(gap, abs=3e-4)
    exact = float(TWO.log_density([[0.7]]))
    assert exact == pytest.approx(-1.43667, abs=5e-6)
    assert abs(float(made.value) - exact) < 0.4 / steps  # more steps, nearer to the data


def test_the_density_has_mass_one():
    x = torch.linspace(-8, 8, 161, dtype=F64)[:, None]
    made = likelihood(5, x, 200, warn=False)
    mass = float((made.value.exp() * 0.1).sum())
    error = float((made.value.exp() * made.error * 0.1).square().sum().sqrt())
    assert abs(mass - 1.0) < 4 * error
    assert error < 0.01


def grid(schedule, steps, to_zero=False):
    end = schedule.t_end if to_zero else float(schedule.time(3.0))
    lam = np.linspace(float(schedule.lam(schedule.t_start)), 3.0, steps + 1)
    times = schedule.time(lam)
    times[0], times[-1] = schedule.t_start, end
    return df.grids.from_times(schedule, times)


FLOW, TRIG = df.schedules.flow(), df.schedules.trig()
VP, EDM = df.schedules.vp_linear(), df.schedules.edm(0.002, 20.0)
PLANS = {
    "ddpm": df.solvers.ddpm(VP, grid(VP, 6)),
    "ddpm, large": df.solvers.ddpm(VP, grid(VP, 6), variance="large"),
    "ddim": df.solvers.ddim(VP, grid(VP, 6), eta=0.6),
    "edm": df.solvers.euler_ancestral(EDM, grid(EDM, 6)),
    "2M": df.solvers.dpmpp_2m_sde(VP, grid(VP, 6)),
    "3M": df.solvers.dpmpp_3m_sde(EDM, grid(EDM, 6)),
    "two calls": df.solvers.dpmpp_sde(VP, grid(VP, 4)),
    "two calls, one noisy": df.solvers.dpmpp_2s_ancestral(VP, grid(VP, 4)),
    "seeds": df.solvers.seeds_2(VP, grid(VP, 4)),
    "er": df.solvers.er_sde(VP, grid(VP, 6)),
    "flow": df.solvers.ddim(FLOW, df.grids.from_times(FLOW, [1, 0.8, 0.6, 0.4, 0.2, 0.05]), eta=1),
    "trig": df.solvers.sa_solver(TRIG, df.grids.from_times(TRIG, [1.5, 1.2, 0.9, 0.5, 0.2, 0.05])),
    "churn": df.solvers.churn(EDM, grid(EDM, 5), s_churn=3.0, s_tmin=0.2, base="euler"),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("noising", ["plan", "schedule"])
def test_the_likelihood_is_that_of_the_exact_law_of_the_samples(name, noising):
    # Normal data: the samples of any plan are normal, with a law that the plan's matrices give.
    plan = PLANS[name]
    mean, variance = 0.4, 0.5
    data = df.thermo.GaussianMixture(None, [mean], variance)
    sigma = float(plan.schedule.sigma(plan.start))
    if name == "churn":
        m, v = silent_law(plan, data, sigma)
    else:
        m, v = gaussian_law.law(plan, mean, variance, start=(0.0, sigma**2))
    options = {}
    if Chain("test", plan).noisy[-1] != len(plan.calls) - 1:
        options["observation_noise"] = 0.1
        v += 0.01
    x = torch.tensor([[-0.5], [0.4], [1.5]], dtype=F64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", df.thermo.FewSamplesWarning)
        made = df.thermo.log_likelihood(
            data.denoiser(plan.schedule), plan, x, paths=4000, noising=noising, seed=1, **options
        )
    exact = -0.5 * (x[:, 0] - m) ** 2 / v - 0.5 * math.log(2.0 * math.pi * v)
    fine = made.ess > 100
    assert fine.any() or noising == "schedule"
    assert ((made.value - exact).abs() < 4.5 * made.error)[fine].all()
    assert (made.elbo < exact + 4 * made.elbo_error).all()


def test_noise_that_is_put_back_needs_the_plans_own_noising():
    base = df.grids.karras(EDM, 4, sigma_min=0.05, sigma_max=10.0, to_zero=False)
    plan = df.solvers.restart(EDM, base, [(0.3, 3.0, 2, 3)], base="euler")
    data = df.thermo.GaussianMixture(None, [0.4], 0.5)
    m, v = silent_law(plan, data, float(EDM.sigma(plan.start)))
    x = torch.tensor([[0.2]], dtype=F64)
    options = {"observation_noise": 0.2, "paths": 4000}
    with pytest.raises(ValueError, match=r"needs it to fall along a run: use noising=.plan."):
        df.thermo.log_likelihood(data.denoiser(EDM), plan, x, noising="schedule", **options)
    made = df.thermo.log_likelihood(data.denoiser(EDM), plan, x, **options)
    exact = -0.5 * (0.2 - m) ** 2 / (v + 0.04) - 0.5 * math.log(2 * math.pi * (v + 0.04))
    assert abs(float(made.value) - exact) < 4.5 * float(made.error) + 0.005


def silent_law(plan, data, sigma):
    """Mean and variance of samples, by a run of many of them."""
    x = sigma * torch.randn(400_000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    made = df.sample(data.denoiser(plan.schedule), plan, x=x).x
    return float(made.mean()), float(made.var())


@pytest.mark.parametrize(
    ("plan", "best"),
    [
        (df.solvers.ddpm(VP, grid(VP, 20)), "schedule"),
        (df.solvers.dpmpp_2m_sde(VP, grid(VP, 20)), "schedule"),
        (df.solvers.ddim(VP, grid(VP, 20), eta=0.5), "plan"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_noising_that_is_chosen_dissipates_less(plan, best):
    data = df.thermo.GaussianMixture(None, [-1.0, 1.0], 0.2)
    x, other = data.sample(50, 3), {"plan": "schedule", "schedule": "plan"}[best]
    chosen, left = (
        df.thermo.log_likelihood(data.denoiser(VP), plan, x, paths=100, noising=noising, warn=False)
        for noising in ("auto", other)
    )
    assert chosen.noising == best
    assert chosen.gap.mean() < 0.9 * left.gap.mean()


class Shifted(torch.nn.Module):
    """The estimate of normal data whose mean is the row's own condition."""

    def forward(self, x, t, mean):
        alpha, sigma = (torch.as_tensor(f(t.double().numpy())) for f in (VP.alpha, VP.sigma))
        gain = (alpha * 0.5 / (alpha**2 * 0.5 + sigma**2))[:, None].to(x.dtype)
        alpha = alpha[:, None].to(x.dtype)
        return mean + gain * (x - alpha * mean)


def test_conditions_go_by_rows():
    means = torch.tensor([[-1.0], [2.0]], dtype=F64)
    x = torch.tensor([[0.1], [0.1]], dtype=F64)
    many = df.Denoiser(Shifted(), VP, "x0", conditions={"mean": means})
    both = df.thermo.log_likelihood(many, PLANS["ddpm"], x, paths=200, rows=20, warn=False)
    whole = df.thermo.log_likelihood(many, PLANS["ddpm"], x, paths=200, warn=False)
    assert torch.allclose(both.log_weights, whole.log_weights, atol=1e-12)
    exact = [gaussian_law.law(PLANS["ddpm"], float(m), 0.5, start=(0.0, 1.0)) for m in means]
    for b, (m, v) in enumerate(exact):
        wanted = -0.5 * (0.1 - m) ** 2 / v - 0.5 * math.log(2 * math.pi * v)
        assert abs(float(both.value[b]) - wanted) < 4.5 * float(both.error[b])


def test_guidance_is_part_of_the_sampler():
    blank = {"mean": torch.zeros(1, 1, dtype=F64)}
    own = {"mean": torch.ones(1, 1, dtype=F64)}
    guided = df.Denoiser(Shifted(), VP, "x0", conditions=own, unconditional=blank, guidance=2.0)
    plan, x = PLANS["ddpm"], torch.tensor([[1.4]], dtype=F64)
    made = df.thermo.log_likelihood(guided, plan, x, paths=4000)
    drawn = torch.randn(200_000, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    run = df.sample(guided, plan, x=drawn).x
    exact = torch.distributions.Normal(run.mean(), run.std()).log_prob(x[0])
    assert abs(float(made.value - exact)) < 4.5 * float(made.error) + 0.01
    ruled = df.Denoiser(
        *(Shifted(), VP, "x0"),
        conditions=own,
        unconditional=blank,
        guidance=df.guidance.apg(2.0),
    )
    with pytest.raises(ValueError, match="guidance is a rule that reads the outputs"):
        df.thermo.log_likelihood(ruled, plan, x)


@pytest.mark.parametrize("build", [df.solvers.ddpm, df.solvers.dpmpp_2m_sde])
def test_plans_that_start_from_a_gaussian_law(build):
    # For data of this law every late start has the samples of the whole run.
    law = df.thermo.Gaussian([0.4, -0.2, 0.1], [[0.6, 0.8, 0.0]], [0.9], 0.5)
    covariance = 0.5 * np.eye(3) + 0.4 * np.outer(law.basis[0], law.basis[0])
    data = df.thermo.GaussianMixture(None, [law.mean], covariance[None])
    late = build(VP, grid(VP, 12)).late_start(law, calls=8)
    x = data.sample(3, 1)
    made = df.thermo.log_likelihood(data.denoiser(VP), late, x, paths=4000)
    run = df.sample(data.denoiser(VP), late, (100_000, 3)).x.double()
    at, spread = run.mean(0), run.T.cov()
    exact = torch.distributions.MultivariateNormal(at, spread).log_prob(x)
    assert ((made.value - exact).abs() < 4.5 * made.error + 0.01).all()
    assert late.nfe == 8


def test_a_last_step_without_noise_and_what_x_then_is():
    plan = df.solvers.ddpm(VP, grid(VP, 6, to_zero=True))
    data = df.thermo.GaussianMixture(None, [0.4], 0.5)
    x = torch.tensor([[0.2]], dtype=F64)
    at_level = df.thermo.log_likelihood(data.denoiser(VP), plan, x, paths=10, warn=False)
    assert at_level.observation_noise is None
    assert at_level.level == pytest.approx(tuple(plan.levels[-2, -1]))
    assert "density of alpha x0 + sigma eps at alpha = 0.98" in str(at_level)
    seen = df.thermo.log_likelihood(
        data.denoiser(VP), plan, x, paths=10, observation_noise=0.05, warn=False
    )
    assert seen.level == (1.0, 0.0)
    assert "the sample plus noise of deviation 0.05" in str(seen)


def test_bits_and_the_warning_for_few_paths():
    plan, data = PLANS["ddpm"], df.thermo.GaussianMixture(None, np.zeros((1, 40)), 0.5)
    x = data.sample(3, 1)
    noising = {"noising": "schedule"}
    loose = df.solvers.ddim(VP, grid(VP, 6), eta=0.5)
    with pytest.warns(
        df.thermo.FewSamplesWarning, match=r"for 3 of 3 x the 20 paths count as fewe"
    ):
        df.thermo.log_likelihood(data.denoiser(VP), loose, x, paths=20, **noising)
    made = df.thermo.log_likelihood(data.denoiser(VP), plan, x, paths=20, warn=False)
    bits = made.bits_per_dimension(2 / 255)
    assert torch.allclose(bits, -made.value / (40 * math.log(2)) - math.log2(2 / 255))
    assert (made.bits_per_dimension(bound=True) >= made.bits_per_dimension()).all()
    one = df.thermo.log_likelihood(data.denoiser(VP), plan, x, paths=1, warn=False)
    assert one.error.isnan().all()
    assert (one.ess == 1).all()


def test_float32_states_of_a_network_in_float32():
    data = df.thermo.GaussianMixture(None, [-1.0, 1.0], 0.2)
    wide = data.sample(5, 1)
    same = [
        df.thermo.log_likelihood(data.denoiser(VP), PLANS["2M"], x, paths=20, warn=False).value
        for x in (wide, wide.float())
    ]
    assert (same[0] - same[1]).abs().max() < 1e-3
    assert same[1].dtype == F64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": df.solvers.ddim(VP, grid(VP, 4))}, "draws no noise, so its steps are functions"),
        ({"x": torch.tensor([[float("nan")]])}, "1 of 1 x are not finite"),
        ({"x": torch.zeros(0, 1)}, "a tensor [N, ...] of N data is needed"),
        ({"x": [1.0]}, "x is list, but a tensor"),
        ({"paths": 0}, "paths = 0, but at least 1 path"),
        ({"paths": 2.5}, "paths = 2.5, but at least 1 path"),
        ({"noising": "own"}, "noising = 'own', but it must be one of"),
        ({"observation_noise": 0.1}, "draws noise, so its sample has a density already"),
        ({"observation_noise": 0.0}, "observation_noise = 0, but it must be positive"),
        ({"log_start": lambda x: x}, "log-densities at the start are"),
        (
            {"plan": df.solvers.dpum(VP, grid(VP, 3), n=2)},
            "takes a normal that x does not tell",
        ),
    ],
)
def test_refusals(change, message):
    data = df.thermo.GaussianMixture(None, [0.4], 0.5)
    call = {"plan": PLANS["ddpm"], "x": torch.zeros(1, 1, dtype=F64)} | change
    with pytest.raises(ValueError, match=".*") as error:
        df.thermo.log_likelihood(data.denoiser(VP), **call)
    assert message in str(error.value)
    assert str(error.value).startswith("log_likelihood: ")


def test_a_network_that_fails_is_said():
    broken = df.Denoiser(lambda x, t: x * float("nan"), VP, "x0")
    with pytest.raises(ValueError, match=r"the x0 estimate at t = 1 is not finite for 2 of 2"):
        df.thermo.log_likelihood(broken, PLANS["ddpm"], torch.zeros(1, 1), paths=2)
