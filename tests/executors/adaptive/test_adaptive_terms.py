"""Guidance terms in adaptive runs: the same as a network that returns the guided estimate."""

import math

import numpy as np
import pytest
import torch

import diffast as df
from diffast.executors.terms import normals_of

SCHEDULES = {
    "vp": df.schedules.vp_linear(),
    "flow": df.schedules.flow(),
    "betas": df.schedules.from_betas(torch.linspace(1e-4, 0.02, 1000).tolist()),
}
SHAPE = (5, 6)
METHODS = ("pec", "ggf", "dpm_12", "bosh3")


def network(x, t):
    t = t.reshape(-1, 1) / (1000 if float(t.max()) > 2 else 1)
    return (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t)


def pull(x, t):
    return 0.5 - x


def far(x0, t):
    return (x0 - 0.3).square().sum(1)


def start(schedule):
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x * float(schedule.sigma(schedule.t_start))


def guided(schedule, kind, scale):
    """A network that returns the guided estimate itself, and the denoiser with the term."""

    def levels(t):
        return (torch.tensor(f(t.numpy())).reshape(-1, 1) for f in (schedule.alpha, schedule.sigma))

    def whole(x, t):
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            a, s = levels(t.clone())
            x0 = network(x, t.clone())
            if kind == "x":
                g = pull(x, t)
            else:
                inner = x0.detach().requires_grad_() if kind == "x0" else x0
                (g,) = torch.autograd.grad(-far(inner, t).sum(), inner if kind == "x0" else x)
            factor = 1.0 if kind == "x0" else torch.where(a > 0, s * s / a, 0.0)
            told = t.reshape(-1, 1) if callable(scale) else None
            own = (
                scale
                if told is None
                else torch.tensor([scale(float(v)) for v in t], dtype=torch.float64)[:, None]
            )
            return (x0 + own * factor * g).detach()

    term = df.guidance.gradient(pull, scale)
    if kind != "x":
        term = df.guidance.loss(far, scale, through=kind)
    return df.Denoiser(whole, schedule, "x0"), df.Denoiser(network, schedule, "x0", guides=[term])


@pytest.mark.parametrize("kind", ["x", "x0", "network"])
@pytest.mark.parametrize("method", METHODS)
def test_a_term_joins_every_estimate(method, kind):
    schedule = SCHEDULES["vp"]
    other, own = guided(schedule, kind, 0.2)
    want, got = (df.sample_adaptive(d, method, x=start(schedule), seed=3) for d in (other, own))
    np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-9)
    assert got.nfe.tolist() == want.nfe.tolist()
    assert len(set(got.nfe.tolist())) > 1 or method in (
        "bosh3",
        "dpm_12",
    )  # samples leave the batch


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["x", "network"])
def test_scales_that_depend_on_the_time(schedule, kind):
    schedule = SCHEDULES[schedule]
    other, own = guided(schedule, kind, lambda t: 0.2 * float(schedule.alpha(t)))
    for method in ("pec", "dopri5"):
        want, got = (df.sample_adaptive(d, method, x=start(schedule), seed=3) for d in (other, own))
        np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-8)


def test_with_guidance_clamp_and_hook():
    """Clamp and hook come before the gradients; two terms, one with a scale of its own."""
    schedule, seen = SCHEDULES["vp"], []

    def shifted(x, t, shift):
        return network(x, t) + shift

    def whole(x, t, shift):
        g = 0.2 * pull(x, t) + 0.1 * torch.sin(x)
        a, s = (torch.tensor(f(t.numpy())).reshape(-1, 1) for f in (schedule.alpha, schedule.sigma))
        weight = s * s / a
        x0 = network(x, t) + 1.7 * 0.3
        return 0.9 * x0.clamp(-0.4, 0.5) + weight * g

    def hook(x0, info):
        seen.append(len(x0))
        return 0.9 * x0

    shift = {"shift": torch.full((1, 6), 0.3)}, {"shift": torch.zeros(1, 6)}
    terms = [df.guidance.gradient(pull, 0.2), df.guidance.gradient(lambda x, t: torch.sin(x), 0.1)]
    own = df.Denoiser(
        shifted,
        schedule,
        "x0",
        conditions=shift[0],
        unconditional=shift[1],
        guidance=1.7,
        guides=terms,
    )
    other = df.Denoiser(whole, schedule, "x0", conditions=shift[0])
    want = df.sample_adaptive(other, "pec", x=start(schedule), seed=3)
    got = df.sample_adaptive(own, "pec", x=start(schedule), seed=3, clamp=(-0.4, 0.5), on_x0=hook)
    np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-9)
    assert len(seen) == got.rounds
    assert got.network_rows.tolist() == (2 * got.nfe).tolist()
    assert want.network_rows.tolist() == want.nfe.tolist()


def test_terms_know_whose_row_it_is():
    """A condition with a row a sample, while samples leave the batch; and the samples' normals."""
    schedule, targets = SCHEDULES["vp"], torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]

    def towards(at):
        noise = at.normals(2)
        assert noise.shape == at.x.shape
        return at.own("towards", "targets", targets) - at.x

    own = df.Denoiser(network, schedule, "x0", guides=[df.guidance.Guide(towards, 0.3)])
    whole = df.sample_adaptive(own, "pec", x=start(schedule), seed=3)
    assert len(set(whole.nfe.tolist())) > 1
    for b in range(5):
        one = df.guidance.gradient(lambda x, t, b=b: targets[b] - x, 0.3)
        alone = df.Denoiser(network, schedule, "x0", guides=[one])
        x = start(schedule)[b : b + 1]
        got = df.sample_adaptive(alone, "pec", x=x, seed=3, ids=[b]).x
        np.testing.assert_allclose(whole.x[b : b + 1], got, rtol=0, atol=1e-9)


def test_normals_are_those_of_a_fixed_grid():
    seen = []
    term = df.guidance.Guide(lambda at: seen.append((at, at.normals(3))) or at.x)
    denoiser = df.Denoiser(network, SCHEDULES["vp"], "x0", guides=[term])
    plan = df.solvers.euler(SCHEDULES["vp"], df.grids.uniform_logsnr(SCHEDULES["vp"], 2))
    df.sample(denoiser, plan, x=start(SCHEDULES["vp"]), seed=9, ids=[4, 2, 7, 1, 0])
    for at, normals in seen:
        assert torch.equal(normals_of(at, 9)(3), normals)
        assert torch.equal(normals_of(at._replace(stage=at.ids * 0 + at.stage), 9)(3), normals)


def test_a_gradient_counts_only_where_it_is_weighed():
    """Samples at other times weigh it by 0, and a zero times NaN would spread."""
    schedule = SCHEDULES["vp"]

    def broken(x, t):
        return torch.where(t.reshape(-1, 1) < 0.5, math.nan, pull(x, t))

    def whole(x, t):
        return torch.where(t.reshape(-1, 1) < 0.5, 0.0, pull(x, t))

    scales = (lambda t: 0.2 * (t >= 0.5)), 0.2
    got, want = (
        df.sample_adaptive(
            df.Denoiser(network, schedule, "x0", guides=[df.guidance.gradient(f, scale)]),
            "pec",
            x=start(schedule),
            seed=3,
        )
        for f, scale in zip((broken, whole), scales, strict=True)
    )
    np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["x", "x0"])
def test_shared_steps(kind):
    schedule = SCHEDULES["vp"]
    other, own = guided(schedule, kind, 0.2)
    h = {"control": "batch", "h_init": 0.05}
    want, got = (df.sample_adaptive(d, "bosh3", x=start(schedule), **h) for d in (other, own))
    np.testing.assert_allclose(got.x, want.x, rtol=0, atol=1e-9)
    _, through = guided(schedule, "network", 0.2)
    with pytest.raises(ValueError, match="control is 'batch', but guidance term guidance.loss is"):
        df.sample_adaptive(through, "bosh3", x=start(schedule), control="batch")


def test_a_gradient_that_is_not_finite_fails_its_sample_alone():
    def broken(x, t):
        bad = (torch.arange(len(x)) == 2) & (t < 0.5)
        return torch.where(bad[:, None], math.nan, pull(x, t))

    schedule = SCHEDULES["vp"]
    denoiser = df.Denoiser(network, schedule, "x0", guides=[df.guidance.gradient(broken)])
    with pytest.raises(df.NonFiniteError):
        df.sample_adaptive(denoiser, "bosh3", x=start(schedule))
    wrong = df.Denoiser(network, schedule, "x0", guides=[df.guidance.gradient(lambda x, t: x[:1])])
    with pytest.raises(
        ValueError, match=r"sample_adaptive: round 0: the gradient of guidance term"
    ):
        df.sample_adaptive(wrong, "pec", x=start(schedule))


@pytest.mark.parametrize("scale", [1.0, 1.6, 0.0])
def test_a_gradient_through_both_branches(scale):
    """The same as a network that returns the guided output of one call."""
    schedule = SCHEDULES["vp"]
    x = start(schedule)

    def shifted(x, t, shift):
        return network(x, t) + shift * torch.cos(x)

    def whole(x, t):
        cond, uncond = shifted(x, t, 0.3), shifted(x, t, -0.2)
        return uncond + scale * (cond - uncond)

    guides = [df.guidance.loss(far, 0.1)]
    own = {"shift": torch.full((1, 1), 0.3, dtype=torch.float64)}
    blank = {"shift": torch.full((1, 1), -0.2, dtype=torch.float64)}
    both = df.Denoiser(
        shifted,
        schedule,
        "x0",
        conditions=own,
        unconditional=blank,
        guidance=scale,
        guides=guides,
    )
    one = df.Denoiser(whole, schedule, "x0", guides=guides)
    got, want = (df.sample_adaptive(d, "bosh3", x=x).x for d in (both, one))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
