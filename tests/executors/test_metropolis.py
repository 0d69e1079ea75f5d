"""`df.sample_metropolis`: the law of its chains is exact, whatever the step; failures; ids."""

import numpy as np
import pytest
import torch

import diffast as df

SCHEDULE = df.schedules.edm()
SIGMA, VARIANCE = 0.5, 0.3
TOTAL = VARIANCE + SIGMA**2
# One step that does nothing, then a chain at sigma = 0.5.
STILL = df.solvers.euler(SCHEDULE, [SIGMA * (1 + 1e-6), SIGMA])
LARGE = {"mala": 1.0, "ghmc": 2.0}  # in their units
UNADJUSTED = {"mala": "olmc", "ghmc": "ulmc"}
each_proposal = pytest.mark.parametrize("proposal", LARGE)


def network(x, t):
    """The x0 estimate of N(0, 0.3) data."""
    t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    return x * VARIANCE / (VARIANCE + t**2)


def energy(x, t):
    """-log p_t of the same, up to a constant."""
    return x.double().square().flatten(1).sum(1) / (2 * (VARIANCE + t.double() ** 2))


def gaussian(**options):
    return df.Denoiser(network, SCHEDULE, predicts="x0", **options)


def chains(proposal, x, denoiser=None, of=energy, n=8, **options):
    denoiser = denoiser or gaussian()
    options = {"step": LARGE[proposal], "where": [-1], "seed": 3} | options
    return df.sample_metropolis(denoiser, STILL, of, x=x, proposal=proposal, n=n, **options)


@each_proposal
def test_the_variance_is_exact_where_the_unadjusted_one_is_a_quarter_off(proposal):
    count = 60_000
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)) * TOTAL**0.5
    found = chains(proposal, x, n=12)
    variance = found.x.double().square().mean().item() / TOTAL
    error = np.sqrt(2 / (2 * count))
    assert abs(variance - 1) < 4 * error
    fourth = (found.x.double() ** 4).mean().item() / (3 * TOTAL**2)
    assert abs(fourth - 1) < 4 * np.sqrt(96 / 9 / (2 * count))
    text = f"{UNADJUSTED[proposal]}:n=12,step={LARGE[proposal]}"
    plain = df.solvers.predictor_corrector(STILL, text, where=[-1])
    off = df.sample(gaussian(), plain, x=x, seed=3).x.double().square().mean().item() / TOTAL
    assert off > 1.25
    assert found.nfe.tolist() == [1 + 12 + 1] * count
    assert found.acceptance.shape == (1, count)
    assert 0.3 < found.acceptance.mean().item() < 0.95  # many are refused


MEANS, WEIGHTS, WIDTH = torch.tensor([-0.9, 0.7]).double(), torch.tensor([0.3, 0.7]).double(), 0.2


def mixture_energy(x, t):
    total = WIDTH**2 + t.double()[:, None] ** 2
    gap = (x.double() - MEANS) ** 2 / (2 * total)
    return -torch.logsumexp(WEIGHTS.log() - gap - 0.5 * total.log(), 1)


def mixture_network(x, t):
    """Its x0 estimate."""
    x, sigma = x.double(), t.double()[:, None]
    total = WIDTH**2 + sigma**2
    share = torch.softmax(WEIGHTS.log() - (x - MEANS) ** 2 / (2 * total), 1)
    found = (share * (MEANS + WIDTH**2 / total * (x - MEANS))).sum(1, keepdim=True)
    return found.float()


def differentiated(x, t):
    """The same, x - sigma^2 times the gradient of the energy."""
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(mixture_energy(at, t).sum(), at)
    return x - (t.double()[:, None] ** 2 * slope).to(x.dtype)


def test_a_network_may_differentiate_its_energy():
    x = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
    runs = [
        chains("ghmc", x, df.Denoiser(f, SCHEDULE, predicts="x0"), mixture_energy, n=3).x
        for f in (differentiated, mixture_network)
    ]
    torch.testing.assert_close(*runs, rtol=1e-4, atol=1e-4)


@each_proposal
def test_a_mixtures_law_is_kept_also_with_a_wrong_score(proposal):
    count = 40_000
    random = np.random.default_rng(1)
    kind = random.random(count) < 0.7
    x = np.where(kind, 0.7, -0.9) + np.sqrt(WIDTH**2 + SIGMA**2) * random.normal(size=count)
    x = torch.from_numpy(x)[:, None].float()

    def wrong(x, t):
        return mixture_network(x, t) * 0.8 + 0.1

    denoiser = df.Denoiser(wrong, SCHEDULE, predicts="x0")
    found = chains(proposal, x, denoiser, mixture_energy, n=10)
    assert (found.x - x).abs().mean() > 0.3  # it has moved
    for power in (1, 2, 3):
        exact, got = (v.double() ** power for v in (x, found.x))
        error = np.sqrt((exact.var() + got.var()).item() / count)
        assert abs((exact.mean() - got.mean()).item()) < 4 * error, power
    text = f"{UNADJUSTED[proposal]}:n=10,step={LARGE[proposal]}"
    plain = df.solvers.predictor_corrector(STILL, text, where=[-1])
    off = df.sample(denoiser, plain, x=x, seed=3).x.double()
    gaps = [off**power - x.double() ** power for power in (1, 2, 3)]
    assert max(abs(gap.mean() / gap.std()).item() for gap in gaps) > 10 / np.sqrt(count)


def test_a_chain_mends_what_the_steps_have_missed():
    grid = df.grids.karras(SCHEDULE, 6, sigma_max=5.0, sigma_min=0.1, to_zero=False)
    plan = df.solvers.euler(SCHEDULE, grid)
    shape, end = (20_000, 1), VARIANCE + 0.1**2
    plain = df.sample(gaussian(), plan, shape, seed=1).x.var().item() / end
    found = df.sample_metropolis(gaussian(), plan, energy, shape, n=6, step=1.0, seed=1)
    assert abs(plain - 1) > 0.15
    assert abs(found.x.var().item() / end - 1) < 0.5 * abs(plain - 1)
    assert found.times.tolist() == grid[1:].tolist()
    assert found.acceptance.shape == (6, 20_000)


@each_proposal
@pytest.mark.parametrize("build", [df.solvers.heun, df.solvers.euler_ancestral])
def test_samples_do_not_depend_on_the_batch(proposal, build):
    plan = build(SCHEDULE, df.grids.karras(SCHEDULE, 3))
    options = {"proposal": proposal, "n": 3, "seed": 5}
    ids = [7, 2, 9]
    all_ = df.sample_metropolis(gaussian(), plan, energy, (3, 4), ids=ids, **options)
    for b, number in enumerate(ids):
        one = df.sample_metropolis(gaussian(), plan, energy, (1, 4), ids=[number], **options)
        assert torch.equal(one.x[0], all_.x[b])
        assert torch.equal(one.acceptance[:, 0], all_.acceptance[:, b])
    other = df.sample_metropolis(
        gaussian(), plan, energy, (3, 4), ids=ids, **(options | {"seed": 6})
    )
    assert not torch.equal(other.x, all_.x)


def test_without_chains_it_is_sample():
    for build in (df.solvers.heun, df.solvers.euler_ancestral, df.solvers.rk4):
        plan = build(SCHEDULE, df.grids.karras(SCHEDULE, 4))
        x = df.sample_metropolis(gaussian(), plan, energy, (3, 4), where=[], seed=2).x
        assert torch.equal(x, df.sample(gaussian(), plan, (3, 4), seed=2).x)


def test_guidance_is_in_the_proposal_and_in_the_steps():
    def shifted(x, t, shift):
        return network(x, t) + shift.to(x.dtype)[:, None]

    def guided(scale):
        conditions = {"shift": torch.full((4,), 0.3)}
        return df.Denoiser(
            shifted, SCHEDULE, "x0", conditions=conditions,
            unconditional={"shift": torch.zeros(1)}, guidance=scale,
        )  # fmt: skip

    plan = df.solvers.heun(SCHEDULE, df.grids.karras(SCHEDULE, 3))
    runs = [
        df.sample_metropolis(guided(scale), plan, energy, (4, 5), n=2, seed=1, x=None)
        for scale in (1.0, 2.0, 0.0)
    ]
    doubled = df.Denoiser(
        lambda x, t: network(x, t) + 0.6, SCHEDULE, "x0"
    )  # the guided estimate, written out
    same = df.sample_metropolis(doubled, plan, energy, (4, 5), n=2, seed=1)
    torch.testing.assert_close(runs[1].x, same.x, rtol=1e-4, atol=1e-4)
    assert not torch.equal(runs[0].x, runs[2].x)


@each_proposal
def test_half_networks_wide_states_and_empty_batches(proposal):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.float64):
        for denoiser in (gaussian(), gaussian(dtype=torch.bfloat16)):
            found = chains(proposal, x.to(dtype), denoiser)
            assert found.x.dtype == dtype
            assert found.x.isfinite().all()
    wide = chains(proposal, x.double()).x
    torch.testing.assert_close(chains(proposal, x).x.double(), wide, rtol=1e-4, atol=1e-4)
    assert chains(proposal, x[:0]).x.shape == (0, 3)


# --- failures ---


def test_a_network_that_is_not_finite_at_the_start_of_a_chain_fails_its_sample_alone():
    calls = []

    def torn(x, t):
        calls.append(len(x))
        found = network(x, t)
        if len(calls) == 2:  # the first call is the step's
            found[1] = torch.nan
        return found

    words = r"1 of 3 samples failed: 1 \(id 1\): .* at the start of the chain at t = 0.5"
    with pytest.raises(df.NonFiniteError, match=words):
        chains("mala", torch.full((3, 2), 0.3), df.Denoiser(torn, SCHEDULE, predicts="x0"))


def test_a_refused_proposal_leaves_no_trace_of_its_nan():
    def torn(x, t):
        found = energy(x, t)
        return torch.where(found > 1.5, torch.full_like(found, torch.nan), found)

    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * 0.2
    found = chains("mala", x, of=torn, n=20)
    assert found.x.isfinite().all()
    assert (energy(found.x, torch.full((2000,), SIGMA)) <= 1.5).all()
    assert found.acceptance.min() > 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_energy_that_is_not_finite_at_the_start_fails_its_sample_alone(bad):
    def energy_of(x, t):
        found = energy(x, t)
        return torch.where(torch.arange(len(x)) == 1, torch.full_like(found, bad), found)

    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    words = r"1 of 3 samples failed: 1 \(id 1\): the energy or .* start of the chain at t = 0.5"
    with pytest.raises(df.NonFiniteError, match=words) as caught:
        chains("mala", x, of=energy_of)
    result = caught.value.result
    assert result.status.tolist() == [-1, 0, -1]
    assert result.x.isfinite().all(1).tolist() == [True, False, True]
    fine = chains("mala", x, of=energy_of, throw=False)
    assert fine.fine.tolist() == [True, False, True]


def test_an_energy_of_minus_infinity_is_not_taken():
    def hole(x, t):
        return torch.where(
            x[:, 0] > 0.3, torch.full_like(x[:, 0], -torch.inf).double(), energy(x, t)
        )

    x = torch.full((500, 1), 0.1)
    assert (chains("mala", x, of=hole).x <= 0.3).all()


MULTI = df.solvers.dpmpp_2m(SCHEDULE, df.grids.karras(SCHEDULE, 4))


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (
            lambda x: chains("mala", x, of=lambda x, t: x),
            r"energy returned \[3, 2\] of torch.float32",
        ),
        (lambda x: chains("mala", x, of=lambda x, t: 1.0), "energy returned a float, but a number"),
        (lambda x: chains("mala", x, of=lambda x, t: x[:2, 0]), r"returned \[2\] of"),
        (lambda x: chains("mala", x, n=0), "n is 0 but must be a whole number from 1"),
        (lambda x: chains("mala", x, step=-1.0), "step at t = 0.5 is -1.0 but must be above 0"),
        (lambda x: chains("ghmc", x, friction=lambda t: np.nan), "friction at t = 0.5 is nan"),
        (lambda x: chains("mala", x, where=[3]), "where has 3, but .* has the places 0 to 1"),
        (
            lambda x: df.sample_metropolis(gaussian(), STILL, energy, x=x, proposal="hmc"),
            "proposal is 'hmc' but must be one of mala, ghmc",
        ),
        (
            lambda x: df.sample_metropolis(gaussian(), df.digits.load_plan(8), energy, x=x),
            r"tuned.* has x at 0.\d+ times the schedule's level at t = .* take a plan of",
        ),
        (
            lambda x: df.sample_metropolis(gaussian(), MULTI, energy, x=x),
            r"dpmpp_2m.* reads the entry of stage 0 after the chain at t = .* belongs to the path",
        ),
        (
            lambda x: chains("mala", x, gaussian(guides=[df.guidance.gradient(lambda x, t: -x)])),
            "the denoiser has 1 guidance term",
        ),
        (
            lambda x: chains("mala", x, gaussian(guidance=df.guidance.autoguidance(network, 2.0))),
            "guidance is guidance.autoguidance, which needs",
        ),
        (
            lambda x: df.sample_metropolis(
                gaussian(guides=[df.guidance.gradient(lambda x, t: -x)]),
                df.solvers.stsp(SCHEDULE, df.grids.karras(SCHEDULE, 4)),
                energy,
                x=x,
            ),
            "stsp.* weighs the gradients g1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:sample_metropolis. x has root mean square")
def test_refusals(call, facts):
    with pytest.raises(ValueError, match=facts):
        call(torch.zeros(3, 2))


def test_the_launches_of_a_step(monkeypatch):
    """As the module says: four kernels over the state; those over [B] numbers are counted too."""
    counted = []
    names = ("combine_out", "gram", "evaluate", "normal_out")
    for name in names:
        real = getattr(df.ops, name)

        def spy(*args, real=real, name=name):
            counted.append(name)
            return real(*args)

        monkeypatch.setattr(df.ops, name, spy)

    def ops_of(n):
        counted.clear()
        chains("ghmc", torch.zeros(3, 2), n=n)
        return list(counted)

    one, four = ops_of(1), ops_of(4)
    each = ["combine_out", "combine_out", "gram", "evaluate"]
    assert sorted(four) == sorted(one + 3 * each)
