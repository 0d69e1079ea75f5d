"""Non-conservativity: closed forms, exactness for gradient fields, every way to make a product."""

import numpy as np
import pytest
import torch

import diffast as df
from diffast.thermo.products import METHODS, Products

EDM = df.schedules.edm()
THREE = df.thermo.GaussianMixture(
    [1.0, 2.0, 1.0], [[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]], np.array([0.1, 0.2, 0.3])
)
X = THREE.sample(16, 1) + 0.7 * THREE.sample(16, 2)


class Linear(torch.nn.Module):
    """x0 = A x, with options that hide its derivative."""

    def __init__(self, a, hide=""):
        super().__init__()
        self.a, self.hide = torch.as_tensor(a, dtype=torch.float64), hide

    def forward(self, x, t):
        if self.hide == "detached":
            return x.detach() @ self.a.T + 0.0 * x
        if self.hide == "numpy":
            return torch.from_numpy(x.detach().numpy() @ self.a.numpy().T)
        return x @ self.a.T


def share_of(a):
    skew = 0.5 * (a - a.T)
    return float((skew**2).sum() / (a**2).sum())


def linear(a, hide=""):
    return df.Denoiser(Linear(a, hide), EDM, "x0")


A = np.random.default_rng(0).normal(size=(12, 12)) + 2.0 * np.eye(12)


def test_the_closed_form_of_a_linear_field():
    found = df.thermo.linear_field([[0.3, -2.0], [1.2, -0.5]], [[1.5, 0.4], [0.4, 0.6]])
    assert found.total == pytest.approx(3.885, abs=1e-12)
    assert found.excess == pytest.approx(0.276619, abs=5e-7)
    assert found.housekeeping == pytest.approx(3.60838, abs=5e-6)
    assert found.excess + found.housekeeping == pytest.approx(found.total, abs=1e-12)


def test_the_excess_is_the_speed_in_the_wasserstein_distance():
    a, s = np.array([[0.3, -2.0], [1.2, -0.5]]), np.array([[1.5, 0.4], [0.4, 0.6]])
    values, axes = np.linalg.eigh(s)
    root = axes @ np.diag(values**0.5) @ axes.T

    def speed_squared(dt):
        moved = (np.eye(2) + dt * a) @ s @ (np.eye(2) + dt * a).T
        cross = np.linalg.eigvalsh(root @ moved @ root)
        return (np.trace(s) + np.trace(moved) - 2.0 * np.sqrt(cross).sum()) / dt**2  # Bures

    both_ways = 0.5 * (speed_squared(1e-3) + speed_squared(-1e-3))  # the error is of order dt^2
    assert both_ways == pytest.approx(0.276622, abs=5e-6)
    assert both_ways == pytest.approx(df.thermo.linear_field(a, s).excess, rel=2e-5)


@pytest.mark.parametrize("schedule", [EDM, df.schedules.flow(), df.schedules.vp_linear()])
def test_an_exact_estimate_is_a_gradient_field(schedule):
    t = float(schedule.time(-0.3))
    x = X * float(schedule.alpha(t))
    found = df.thermo.nonconservativity(THREE.denoiser(schedule), x, t, probes=4)
    assert found.method == "jvp" and found.count == 16
    assert found.value < 1e-28
    pairs = df.thermo.nonconservativity(
        THREE.denoiser(schedule), x, t, probes=4, method="difference"
    )
    assert pairs.value < 1e-18


@pytest.mark.parametrize("shear", [0.0, 1.0, 8.0])
def test_the_share_of_a_matrix(shear):
    a = A + shear * np.triu(np.ones((12, 12)), 1)
    x = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = df.thermo.nonconservativity(linear(a), x, 1.0, probes=64)
    assert abs(found.value - share_of(a)) < 4.0 * found.error
    assert found.error < 0.05


def test_a_rotation_is_1_and_a_symmetric_matrix_is_0():
    x = torch.zeros(2, 12, dtype=torch.float64)
    assert df.thermo.nonconservativity(linear(A - A.T), x, 1.0).value == pytest.approx(1.0)
    assert df.thermo.nonconservativity(linear(A + A.T), x, 1.0).value < 1e-28


def test_a_scale_and_the_prediction_change_nothing():
    """The share of a network that predicts the noise is that of its x0 estimate."""
    t, b = 0.8, torch.as_tensor(A)
    x = torch.ones(3, 12, dtype=torch.float64)
    noise = df.Denoiser(lambda x, t: (x - x @ b.T) / 0.8, EDM, "epsilon")
    assert df.thermo.nonconservativity(noise, x, t).value == pytest.approx(
        df.thermo.nonconservativity(linear(A), x, t).value, rel=1e-10
    )


@pytest.mark.parametrize("hide", ["detached", "numpy"])
def test_a_network_that_hides_its_derivative_is_differenced(hide):
    x = torch.ones(6, 12, dtype=torch.float64)
    found = df.thermo.nonconservativity(linear(A, hide), x, 1.0, probes=24)
    assert found.method == "pairs of differences"
    assert abs(found.value - share_of(A)) < 5.0 * found.error + 0.02
    with pytest.raises(ValueError, match="probes is 1.*without a gradient.*at least 2"):
        df.thermo.nonconservativity(linear(A, hide), x, 1.0)


def test_a_network_without_any_derivative_refuses_jvp():
    x = torch.ones(2, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="no such derivative: .* away from a central"):
        df.thermo.nonconservativity(linear(A, "numpy"), x, 1.0, method="jvp")


def test_guidance_terms_are_differenced():
    pull = df.guidance.loss(lambda x0, t: x0.square().flatten(1).sum(1), scale=0.3)
    guided = df.Denoiser(Linear(A), EDM, "x0", guides=[pull])
    products = Products("test", guided)
    x, z = torch.ones(2, 12, dtype=torch.float64), torch.eye(12, dtype=torch.float64)[:2]
    found = products.forward(x, z, 1.0)
    by_hand = (guided.x0(x + 1e-4 * z, 1.0) - guided.x0(x - 1e-4 * z, 1.0)) / 2e-4
    assert products.method == "difference" and (found - by_hand).abs().max() < 1e-6
    with pytest.raises(ValueError, match="guidance terms"):
        Products("test", guided, "jvp")


def test_conditions_by_rows_and_guidance():
    net = df.digits.load_unet()
    den = df.Denoiser(
        net,
        EDM,
        "x0",
        conditions={"labels": torch.arange(2)},
        unconditional={"labels": torch.full((1,), 10)},
        guidance=2.0,
    )
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    found = df.thermo.nonconservativity(den, x, 1.0)
    assert found.method == "jvp" and 1e-4 < found.value < 0.5 and found.rows == 2 * (2 + 3 + 3)


def test_bad_input_is_one_sentence():
    x = torch.zeros(2, 12, dtype=torch.float64)
    with pytest.raises(ValueError, match="method is 'exact', but it must be one of"):
        df.thermo.nonconservativity(linear(A), x, 1.0, method="exact")
    with pytest.raises(ValueError, match="the Jacobian is 0"):
        df.thermo.nonconservativity(linear(0.0 * A), x, 1.0)
    with pytest.raises(ValueError, match=r"sigma = 0 at t = 0"):
        df.thermo.nonconservativity(linear(A), x, 0.0)
    broken = df.Denoiser(lambda x, t: x / (x[:, :1] - 1.0), EDM, "x0")
    with pytest.raises(ValueError, match=r"not finite in rows \[1\] of 2"):
        df.thermo.nonconservativity(broken, torch.tensor([[0.0, 1.0], [1.0, 1.0]]), 1.0)
    with pytest.raises(ValueError, match="the covariance has the eigenvalue"):
        df.thermo.linear_field(np.eye(2), np.diag([1.0, 0.0]))


class Square(torch.autograd.Function):
    """x^2 / 2 with a reverse derivative alone, which has one in turn."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


def test_a_network_without_a_forward_derivative_is_differentiated_twice():
    den = df.Denoiser(lambda x, t: Square.apply(x), EDM, "x0")
    products = Products("test", den)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    assert products.forward(x, torch.ones_like(x), 1.0).tolist() == [[1.0, 2.0]]
    assert products.method == "double backward"
    assert products.reverse(x, torch.ones_like(x), 1.0).tolist() == [[1.0, 2.0]]
    assert df.thermo.nonconservativity(den, x, 1.0, method="jvp").value == 0.0


def test_differences_and_derivatives_of_the_digit_network_agree():
    den = df.Denoiser(df.digits.load_unet(), EDM, "x0", conditions={"labels": torch.full((1,), 10)})
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2, 1, 28, 28, generator=generator)
    for level in (0.05, 1.0, 20.0):
        x = -0.7 + level * torch.randn(2, 1, 28, 28, generator=generator)
        one, other = (Products("test", den, how).forward(x, z, level) for how in METHODS[1:])
        assert (one - other).norm() < 5e-3 * one.norm()
