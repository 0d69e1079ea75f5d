"""Particles against closed forms: normal data, a plan's own normal law, a normal likelihood."""

import math

import numpy as np
import pytest
import torch
from linear_gaussian import VP, network, numbers

import diffast as df
from diffast.executors.particles.resampling import normalised, systematic

F64 = torch.float64
GRID = df.grids.uniform_logsnr(VP, 12)
PLAN = df.solvers.ddim(VP, GRID, eta=1.0)
MEAN = numbers(3, seed=1)
COV = (lambda root: root @ root.T / 3)(numbers(3, 3, seed=2)) + 0.1 * torch.eye(3, dtype=F64)
ROW = torch.tensor([[1.0, -0.5, 0.3]], dtype=F64)
SEEN, NOISE = 1.2, 0.4
EXACT = network(MEAN, COV)


def levels(t):
    return float(VP.alpha(np.array(float(t)))), float(VP.sigma(np.array(float(t))))


def likelihood(x0, t):
    """log N(y | A x0, noise^2 + r^2), r the deviation of data of variance 1 given x."""
    a, s = levels(t[0])
    spread = NOISE**2 + (ROW.square().sum() * s * s / (a * a + s * s) if s > 1e-2 else 0.0)
    return -0.5 * (SEEN - x0.double() @ ROW[0]).square() / spread - 0.5 * np.log(
        2 * math.pi * spread
    )


def law():
    """Mean and covariance of what the plan makes of noise, with this network."""
    mean, cov = torch.zeros(3, dtype=F64), PLAN.initial_scale**2 * torch.eye(3, dtype=F64)
    for i, t in enumerate(PLAN.call_times):
        a, s = levels(t)
        gain = a * COV @ torch.linalg.inv(a * a * COV + s * s * torch.eye(3, dtype=F64))
        keep, new, noise = (float(PLAN.weights("x", c)[i]) for c in ("x", "d", "z1"))
        step = keep * torch.eye(3, dtype=F64) + new * gain
        mean = step @ mean + new * (MEAN - a * gain @ MEAN)
        cov = step @ cov @ step.T + noise**2 * torch.eye(3, dtype=F64)
    return mean, cov


def steered():
    """Mean, covariance and log-normaliser of that law times the likelihood."""
    mean, cov = law()
    var = float(ROW @ cov @ ROW.T) + NOISE**2
    gain = (cov @ ROW.T / var)[:, 0]
    residual = SEEN - float(ROW @ mean)
    log_z = -0.5 * residual**2 / var - 0.5 * math.log(2 * math.pi * var)
    return mean + gain * residual, cov - torch.outer(gain, gain) * var, log_z


def twist(scale=1.0):
    return df.guidance.loss(lambda x0, t: -likelihood(x0, t), scale)


def run(guides=(), samples=16, particles=256, plan=PLAN, reward=likelihood, **options):
    denoiser = df.Denoiser(EXACT, VP, "x0", guides=guides)
    options = {"shape": (samples, 3)} | options
    options = options | {"x": start(samples, particles)} if "x" not in options else options
    options.pop("shape")
    return df.sample_particles(denoiser, plan, reward=reward, particles=particles, **options)


def start(samples, particles, seed=0):
    """Initial noise of float64."""
    return PLAN.initial_scale * numbers(samples, particles, 3, seed=100 + seed)


def check_moments(made):
    """Weighted moments of all samples within five Monte Carlo errors, which the samples tell."""
    mean, cov, log_z = steered()

    def near(found, want):  # found [N, ...] of independent samples
        error = found.std(dim=0) / len(found) ** 0.5
        distance = (found.mean(dim=0) - want).abs()
        assert bool((distance < 5.0 * error + 1e-12).all()), (distance / error, error)
        return float(error.max())

    errors = near(made.mean(), mean)
    gap = made.x - mean
    second = torch.einsum("nk,nki,nkj->nij", made.weights, gap, gap)
    errors = max(errors, near(second, cov))
    near((made.log_normaliser - log_z).exp(), torch.ones((), dtype=F64))
    return errors


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_steering_by_a_reward_is_exact(potential):
    made = run(potential=potential)
    assert check_moments(made) < 0.1
    assert bool(made.resampled.any())


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_twisted_diffusion_is_exact_whatever_the_terms_do(scale):
    """The weights take out what the guidance terms change of the steps."""
    made = run([twist(scale)])
    assert check_moments(made) < 0.1
    # weaker towards the clean end, where the plan's fresh noise, which is to cover it, is small
    x0 = df.guidance.loss(
        lambda x0, t: -likelihood(x0, t), lambda t: 0.1 * levels(t)[1] ** 2, through="x0"
    )
    assert check_moments(run([x0, twist(0.5)])) < 0.1


def test_good_terms_keep_more_particles():
    """Twisted steps lose few particles where rewards alone lose most: what TDS is for."""
    plan = df.solvers.ddim(VP, df.grids.uniform_logsnr(VP, 40), eta=1.0)

    def sharp(x0, t):  # the exact log p(y | x) of a rare and precise measurement
        a, s = levels(t[0])
        eye = torch.eye(3, dtype=F64)
        spread = s * s * COV @ torch.linalg.inv(a * a * COV + s * s * eye)
        var = 0.1**2 + float(ROW @ spread @ ROW.T)
        return -0.5 * (3.0 - x0 @ ROW[0]).square() / var - 0.5 * math.log(var)

    options = {"reward": sharp, "plan": plan, "threshold": 0.0, "samples": 4, "particles": 64}
    term = df.guidance.loss(lambda x0, t: -sharp(x0, t))
    alone, twisted = run(**options), run([term], **options)
    assert not bool(alone.resampled.any() | twisted.resampled.any())
    few, many = (float(made.effective[-1].mean()) for made in (alone, twisted))
    assert many > 10 * few


def test_weights_and_ancestors_are_consistent():
    made = run(samples=3, particles=8, threshold=1.0)
    torch.testing.assert_close(made.weights.sum(dim=1), torch.ones(3, dtype=F64))
    assert made.x.shape == (3, 8, 3)
    assert made.effective.shape == (len(PLAN.calls) + 1, 3)
    assert bool((made.effective >= 1 - 1e-9).all() & (made.effective <= 8 + 1e-9).all())
    assert bool(made.resampled.any(dim=0).all())
    assert 0 <= int(made.ancestors.min()) <= int(made.ancestors.max()) < 8
    assert len(made.x[0].unique(dim=0)) > 1  # copies part
    rewards = likelihood(made.x.reshape(-1, 3), torch.zeros(24)).view(3, 8)
    torch.testing.assert_close(made.reward, rewards)
    best = made.x[torch.arange(3), rewards.argmax(dim=1)]
    torch.testing.assert_close(made.best(), best)
    torch.testing.assert_close(made.mean(), (made.x * made.weights[:, :, None]).sum(dim=1))
    drawn = made.draw(seed=3)
    assert bool((made.x == drawn[:, None]).all(dim=2).any(dim=1).all())


def test_one_particle_is_plain_sampling():
    for plan in (PLAN, df.solvers.dpmpp_2m_sde(VP, GRID), df.solvers.churn(VP, GRID, s_churn=5.0)):
        x = plan.initial_scale * numbers(4, 1, 3, seed=5)
        made = run(plan=plan, x=x, particles=1, seed=3, ids=[5, 2, 9, 1])
        plain = df.sample(df.Denoiser(EXACT, VP, "x0"), plan, x=x[:, 0], seed=3, ids=[5, 2, 9, 1])
        torch.testing.assert_close(made.x[:, 0], plain.x, rtol=0, atol=1e-10)
        assert made.weights.tolist() == [[1.0]] * 4
    free = df.sample_particles(
        df.Denoiser(EXACT, VP, "x0"),
        PLAN,
        reward=likelihood,
        particles=2,
        shape=(3, 3),
        threshold=0.0,
    )
    plain = df.sample(df.Denoiser(EXACT, VP, "x0"), PLAN, shape=(3, 3))
    torch.testing.assert_close(free.x[:, 0], plain.x, rtol=0, atol=1e-4)


def test_what_a_solver_remembers_goes_with_the_particle():
    """With copies of one heavy particle the multistep run is that of the particle alone."""
    plan = df.solvers.dpmpp_2m_sde(VP, GRID, eta=1e-10)  # next to no noise: copies stay together
    x = plan.initial_scale * numbers(1, 4, 3, seed=7)
    favoured = []

    def reward(x0, t):
        """At the fifth call particle 2 alone counts, then all do."""
        favoured.append(len(favoured))
        made = torch.zeros(len(x0), dtype=F64)
        if len(favoured) == 5:
            made[[0, 1, 3]] = -1e3
        return made

    made = run(plan=plan, x=x, particles=4, reward=reward, potential="sum")
    assert made.ancestors.tolist() == [[2] * 4]
    alone = df.sample(df.Denoiser(EXACT, VP, "x0"), plan, x=x[:, 2]).x
    torch.testing.assert_close(made.x[0], alone.expand(4, 3), rtol=0, atol=1e-3)
    others = df.sample(df.Denoiser(EXACT, VP, "x0"), plan, x=x[:, 0]).x
    assert float((others - alone).abs().max()) > 0.1


def test_samples_do_not_depend_on_the_batch():
    shift = numbers(3, 1, seed=8)

    def shifted(x, t, shift):
        return EXACT(x, t) + shift

    def made(order):
        denoiser = df.Denoiser(
            shifted, VP, "x0", conditions={"shift": shift[order]}, guides=[twist(0.5)]
        )
        x = start(3, 6)[order]
        return df.sample_particles(
            denoiser, PLAN, reward=likelihood, particles=6, x=x, ids=[[7, 1, 4][k] for k in order]
        )

    whole, turned, one = made([0, 1, 2]), made([2, 0, 1]), made([1])
    torch.testing.assert_close(turned.x, whole.x[[2, 0, 1]], rtol=0, atol=1e-9)
    torch.testing.assert_close(one.x[0], whole.x[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(one.log_normaliser[0], whole.log_normaliser[1])


def test_a_measurement_of_each_sample():
    """Terms find the rows of their sample's particles."""
    y = torch.tensor([[1.0], [-2.0]], dtype=F64)
    term = df.guidance.pigdm(lambda x: x @ ROW.T, y, NOISE)
    denoiser = df.Denoiser(EXACT, VP, "x0", guides=[term])

    def reward(x0, t):
        own = y.repeat_interleave(5, dim=0)[-len(x0) :]
        return -0.5 * ((own - x0 @ ROW.T) / NOISE).square()[:, 0]

    x = start(2, 5)
    both = df.sample_particles(denoiser, PLAN, reward=reward, particles=5, x=x)
    alone = df.Denoiser(
        EXACT, VP, "x0", guides=[df.guidance.pigdm(lambda x: x @ ROW.T, y[1:], NOISE)]
    )
    one = df.sample_particles(alone, PLAN, reward=reward, particles=5, x=x[1:], ids=[1])
    torch.testing.assert_close(both.x[1], one.x[0], rtol=0, atol=1e-9)


def test_a_particle_that_fails_is_replaced():
    def broken(x, t):
        made = EXACT(x, t)
        bad = torch.zeros_like(made)
        if not seen:
            bad[[1, 6, 7, 8]] = math.nan
        seen.append(1)
        return made + bad

    seen = []
    denoiser = df.Denoiser(broken, VP, "x0")
    options = {"reward": likelihood, "particles": 3, "x": start(3, 3), "threshold": 1.0}
    with pytest.raises(df.NonFiniteError, match="all 3 particles of 1 of 3 samples failed: 2"):
        df.sample_particles(denoiser, PLAN, **options)
    seen = []
    made = df.sample_particles(denoiser, PLAN, throw=False, **options)
    assert made.fine.tolist() == [True, True, False]
    assert bool(made.x[:2].isfinite().all())
    assert made.status[2].tolist() == [0, 0, 0]
    assert bool(made.x[2].isnan().all())


def test_a_reward_may_rule_out():
    made = run(reward=lambda x0, t: torch.where(x0[:, 0] > 0, 0.0, -torch.inf).double(), samples=4)
    kept = made.weights > 0
    assert bool((made.x[..., 0][kept] > 0).all())
    mean, cov = law()
    share = 0.5 * math.erfc(-float(mean[0]) / math.sqrt(2 * float(cov[0, 0])))
    assert float(made.log_normaliser.exp().mean()) == pytest.approx(share, rel=0.2)


def test_two_particles_are_resampled_too():
    """The bound lies between one effective particle and all of them, whatever their number."""
    made = run(samples=8, particles=2)
    low = made.effective[:-1] < 1.5
    assert bool(low.any())
    assert bool((low == made.resampled).all())


def test_calls_in_place_of_a_plan():
    denoiser = df.Denoiser(EXACT, VP, "x0")
    plan = df.plan(denoiser, 8, stochastic=True)
    x = plan.initial_scale * numbers(2, 3, 3, seed=2)
    options = {"reward": likelihood, "particles": 3, "x": x}
    made = df.sample_particles(denoiser, calls=8, **options)
    torch.testing.assert_close(made.x, df.sample_particles(denoiser, plan, **options).x)
    with pytest.raises(TypeError, match="sample_particles: neither plan nor calls is given"):
        df.sample_particles(denoiser, **options)


def test_guidance_of_two_branches():
    """A rule of the outputs is taken at every estimate; one that remembers calls is refused."""

    def shifted(x, t, shift):
        return EXACT(x, t) + shift

    def made(guidance):
        denoiser = df.Denoiser(
            *(shifted, VP, "x0"),
            conditions={"shift": torch.full((1, 1), 0.2, dtype=F64)},
            unconditional={"shift": torch.zeros(1, 1, dtype=F64)},
            guidance=guidance,
        )
        return df.sample_particles(denoiser, PLAN, reward=likelihood, particles=3, x=start(2, 3))

    direct = df.Denoiser(lambda x, t: EXACT(x, t) + 0.5, VP, "x0")
    want = df.sample_particles(direct, PLAN, reward=likelihood, particles=3, x=start(2, 3))
    torch.testing.assert_close(made(2.5).x, want.x, rtol=0, atol=1e-9)
    assert bool(made(df.guidance.rescale(0.7, 2.5)).x.isfinite().all())
    with pytest.raises(
        ValueError, match="guidance is guidance.apg, which depends on the number of the ca"
    ):
        made(df.guidance.apg(2.5, momentum=-0.5))


def test_systematic_resampling():
    """Every particle gets its share of copies, rounded up or down, and keeps its slot."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(200, 9, generator=generator, dtype=F64) ** 4
    weights /= weights.sum(dim=1, keepdim=True)
    u = torch.rand(200, generator=generator, dtype=F64)
    taken = systematic(weights, u)
    copies = torch.stack([(taken == k).sum(dim=1) for k in range(9)], dim=1)
    assert bool(((copies - 9 * weights).abs() < 1 + 1e-9).all())
    own = torch.arange(9).expand_as(taken)
    assert bool((taken == own)[copies > 0].all())
    even = systematic(torch.full((1, 4), 0.25, dtype=F64), torch.tensor([0.3], dtype=F64))
    assert even.tolist() == [[0, 1, 2, 3]]
    assert normalised(torch.full((1, 3), -math.inf)).tolist() == [[pytest.approx(1 / 3)] * 3]


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"plan": df.solvers.euler(VP, GRID)}, "draws no fresh noise, so that copies"),
        (
            {"plan": df.solvers.dpmpp_2m_sde(VP, GRID), "guides": [twist()]},
            "the denoiser has guidance terms, and plan .* remembers more than the state",
        ),
        ({"reward": 3}, "reward is 3 but must be a function"),
        ({"reward": lambda x0, t: x0}, r"48 particles but the reward returned \[48, 3\]"),
        ({"reward": lambda x0, t: x0[:, 0] * math.nan}, "network call 0 is nan for sample 0, part"),
        ({"reward": lambda x0, t: x0[:, 0] * 0 + math.inf}, "is inf for sample 0, particle 0"),
        ({"particles": 0}, "particles is 0 but must be a whole number from 1"),
        ({"particles": 2, "x": start(4, 3)}, "K = 2 particles is needed"),
        ({"potential": "product"}, "potential is 'product' but must be one of difference, max"),
        ({"threshold": 2.0}, r"threshold is 2.0 but must lie in \[0, 1\]"),
        ({"scale": math.inf}, "scale is inf but must be finite"),
        ({"until": -1.0}, "until is -1.0 but must be 0 or more"),
        ({"plan": df.solvers.on_state(PLAN)}, "weighs gradients itself, but particles' plans may"),
    ],
)
def test_what_is_refused(options, facts):
    with pytest.raises(ValueError, match=f"sample_particles: .*{facts}"):
        run(**({"samples": 16, "particles": 3} | options))


def test_samples_of_one_number_each():
    """A state [B] is as good as [B, 1]."""
    schedule = df.schedules.vp_linear()
    plan = df.solvers.ddim(schedule, df.grids.karras(schedule, 4), eta=1.0)
    guides = [df.guidance.gradient(lambda x, t: 0.1 - 0.1 * x)]
    flat = df.Denoiser(lambda x, t: 0.5 * x, schedule, "epsilon", guides=guides)
    options = {"seed": 3, "particles": 3}
    got = df.sample_particles(flat, plan, reward=lambda x, t: -(x**2), shape=(2,), **options)
    want = df.sample_particles(
        flat, plan, reward=lambda x, t: -(x[:, 0] ** 2), shape=(2, 1), **options
    )
    torch.testing.assert_close(got.x, want.x[..., 0], rtol=0, atol=0)
    torch.testing.assert_close(got.weights, want.weights, rtol=0, atol=0)
