"""Plans that weigh the branches of guidance by themselves: CFG++ and Rectified-CFG++."""

import numpy as np
import pytest
import torch

import diffast as df

EDM = df.schedules.edm(0.02, 20.0)
SIGMAS = df.grids.karras(EDM, 5)
FLOW = df.schedules.flow()


def start():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def network(x, t, shift):
    t = t.reshape(-1, 1).to(x.dtype)
    return (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t) + shift.to(x.dtype)


def denoiser(schedule, guidance, predicts="x0"):
    conditions = {"shift": torch.full((1, 1), 0.4, dtype=torch.float64)}
    blank = {"shift": torch.full((1, 1), -0.2, dtype=torch.float64)}
    return df.Denoiser(
        network, schedule, predicts, conditions=conditions, unconditional=blank, guidance=guidance
    )


def branches(x, t):
    """Returns the outputs (cond, uncond)."""
    told = torch.full((len(x),), float(t), dtype=torch.float64)
    shifts = torch.tensor([0.4, -0.2], dtype=torch.float64)
    return network(x, told, shifts[0]), network(x, told, shifts[1])


def test_cfg_plus_plus_of_euler():
    """x' = d + sigma' (x - d_uncond) / sigma."""
    plan, w = df.solvers.cfg_plus_plus(df.solvers.euler(EDM, SIGMAS)), 0.6
    x = SIGMAS[0] * start()
    got = df.sample(denoiser(EDM, w), plan, x=x)
    for sigma, after in zip(SIGMAS[:-1], SIGMAS[1:], strict=True):
        cond, uncond = branches(x, sigma)
        x = uncond + w * (cond - uncond) + after * (x - uncond) / sigma
    np.testing.assert_allclose(got.x, x, rtol=0, atol=1e-11)
    assert got.nfe.tolist() == [5] * 3
    assert got.network_rows.tolist() == [10] * 3


def test_cfg_plus_plus_of_an_ancestral_method():
    """The same down to sigma_down, and fresh noise of deviation sigma_up."""
    plan, w = df.solvers.cfg_plus_plus(df.solvers.euler_ancestral(EDM, SIGMAS)), 0.6
    x = SIGMAS[0] * start()
    drawn = torch.randn(5, *x.shape, dtype=torch.float64)
    got = df.sample(denoiser(EDM, w), plan, x=x, noise=lambda i: drawn[i]).x
    for i, (sigma, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
        up = np.sqrt(after**2 * (sigma**2 - after**2)) / sigma
        down = np.sqrt(after**2 - up**2)
        cond, uncond = branches(x, sigma)
        x = uncond + w * (cond - uncond) + down * (x - uncond) / sigma + up * drawn[i]
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-11)


def test_cfg_plus_plus_of_two_step_data_prediction():
    """dpmpp_2m: the difference is that of the guided and the last unconditional estimate."""
    plan, w = df.solvers.cfg_plus_plus(df.solvers.dpmpp_2m(EDM, SIGMAS)), 0.6
    x, before = SIGMAS[0] * start(), None
    got = df.sample(denoiser(EDM, w), plan, x=x).x
    for i, (sigma, after) in enumerate(zip(SIGMAS[:-1], SIGMAS[1:], strict=True)):
        cond, uncond = branches(x, sigma)
        d, ratio = uncond + w * (cond - uncond), after / sigma
        x_next = d + ratio * (x - uncond)
        if before is not None and after > 0:
            r = np.log(SIGMAS[i - 1] / sigma) / np.log(sigma / after)
            x_next = x_next + (1 - ratio) / (2 * r) * (d - before)
        x, before = x_next, uncond
    np.testing.assert_allclose(got, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["euler", "ddpm", "dpmpp_2m", "dpmpp_3m", "dpmpp_2m_sde"])
def test_without_guidance_the_form_is_the_same_map(name):
    schedule = df.schedules.vp_linear()
    plan = df.solvers.get(name)(schedule, df.grids.uniform_logsnr(schedule, 6))
    own = df.solvers.cfg_plus_plus(plan)
    plain = df.Denoiser(lambda x, t: torch.tanh(x), schedule, "x0", unconditional={})
    got, want = (df.sample(plain, p, x=start()).x for p in (own, plan))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
    assert own.name == f"{plan.name}_cfg_plus_plus"


@pytest.mark.parametrize("name", ["heun", "deis", "unipc", "pec"])
def test_methods_without_that_form_are_refused(name):
    plan = df.solvers.get(name)(EDM, SIGMAS)
    with pytest.raises(ValueError, match="cfg_plus_plus: .* methods"):
        df.solvers.cfg_plus_plus(plan)


def test_rectified_cfg():
    """In velocities: a conditional half step, then v_c(x, t) + w(t) (v_c - v_u)(middle)."""
    grid = np.linspace(1.0, 0.0, 5)

    def weight(t):
        return 2.0 * (1.0 - t) ** 0.5 + 0.3

    plan = df.solvers.rectified_cfg(FLOW, grid, weight)
    x = start()
    got = df.sample(denoiser(FLOW, 1.0, "flow"), plan, x=x)
    sign = -1.0 if _velocity_is_down() else 1.0
    for t, after in zip(grid[:-1], grid[1:], strict=True):
        cond, _ = branches(x, t)
        middle = x + 0.5 * (after - t) * sign * cond
        high, low = branches(middle, 0.5 * (t + after))
        x = x + (after - t) * sign * (cond + weight(t) * (high - low))
    np.testing.assert_allclose(got.x, x, rtol=0, atol=1e-12)
    assert got.nfe.tolist() == [8] * 3
    assert got.network_rows.tolist() == [12] * 3  # 1 at t, 2 at the middle, 4 steps


def _velocity_is_down():
    """Returns whether "flow" is x0 - eps."""
    _, b = df.Denoiser(lambda x, t: x, FLOW, "flow").affine(np.array([0.5]))
    return bool(b[0] > 0)


def test_the_unconditional_branch_needs_conditions():
    plan = df.solvers.rectified_cfg(FLOW, np.linspace(1.0, 0.0, 3))
    plain = df.Denoiser(lambda x, t: x, FLOW, "flow")
    with pytest.raises(ValueError, match="no unconditional conditions"):
        df.sample(plain, plan, x=start())
    with pytest.raises(ValueError, match="rectified_cfg: scale is inf"):
        df.solvers.rectified_cfg(FLOW, np.linspace(1.0, 0.0, 3), np.inf)


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        ({"guides": [df.guidance.gradient(lambda x, t: -x)]}, {}, "1 guidance term"),
        ({"guidance": df.guidance.rescale(0.7, 3.0)}, {}, "cfg with guidance.rescale"),
        ({"guidance": df.guidance.apg(3.0)}, {}, "guidance.apg"),
        ({"guidance": df.guidance.dynamic_threshold(0.9, 2.0, 3.0)}, {}, "dynamic_threshold"),
        (
            {"guidance": df.guidance.perturbed(0.5, network=network)},
            {},
            "guidance.perturbed",
        ),
        ({}, {"clamp": (-0.1, 0.1)}, "a clamp or an on_x0"),
        ({}, {"on_x0": lambda x0, info: 0 * x0}, "a clamp or an on_x0"),
    ],
)
def test_nothing_that_joins_the_guided_estimate_is_left_out_in_silence(change, how, message):
    """Rectified-CFG++ weighs the branches alone, so such guidance would do nothing."""
    plan = df.solvers.rectified_cfg(FLOW, df.grids.uniform_flow(FLOW, 4))
    model = denoiser(FLOW, 1.0, "flow")
    model = df.Denoiser(**{**vars(model), **change})
    with pytest.raises(ValueError, match=message):
        df.sample(model, plan, x=start(), **how)


def test_autoguidance_of_rectified_cfg_takes_the_weak_network():
    """The plan has a scale of its own, but the branches are those of the rule."""
    plan = df.solvers.rectified_cfg(FLOW, df.grids.uniform_flow(FLOW, 4), 1.5)
    blank = {"shift": torch.full((1, 1), -0.2, dtype=torch.float64)}
    rule = df.guidance.autoguidance(network, 1.0, conditions=blank)
    model = denoiser(FLOW, 1.0, "flow")
    weak = df.Denoiser(**{**vars(model), "guidance": rule, "unconditional": None})
    got = df.sample(weak, plan, x=start()).x
    torch.testing.assert_close(got, df.sample(model, plan, x=start()).x, rtol=0, atol=1e-12)
