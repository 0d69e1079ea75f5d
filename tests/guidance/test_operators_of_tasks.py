"""The operators of df.tasks in guidance terms: closed forms against autograd and iterations."""

import pytest
import torch
from linear_gaussian import VP, numbers

import diffast as df

GRID = df.grids.uniform_logsnr(VP, 4)
EULER = df.solvers.euler(VP, GRID)
MASK = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.6
OPERATORS = {
    "inpainting": df.tasks.inpainting(MASK),
    "super_resolution": df.tasks.super_resolution(2),
    "blur": df.tasks.blur(df.tasks.gaussian_kernel(0.7, 3)),
    "colour": df.tasks.colour(df.tasks.opponent_basis()[:1]),
}


def network(x, t):
    """Smooth, so that its Jacobian is near the identity and not symmetric."""
    return 0.6 * torch.tanh(x) + 0.1 * x.roll(1, -1)


def run(term):
    denoiser = df.Denoiser(network, VP, "x0", guides=[term])
    return df.sample(denoiser, EULER, x=numbers(2, 3, 8, 8, seed=3)).x


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("noise", [0.2, 0.0])
def test_closed_forms_equal_iterations(name, noise):
    operator = OPERATORS[name]
    y = operator.forward(0.5 * numbers(2, 3, 8, 8, seed=4))

    def plain(x):
        return operator.forward(x)

    for make in (
        lambda a: df.guidance.pigdm(a, y, noise),
        lambda a: df.guidance.diffpir(a, y, noise),
        lambda a: df.guidance.dps(a, y, 0.1),
        lambda a: df.guidance.mpgd(a, y, 0.1),
        lambda a: df.guidance.mmps(a, y, max(noise, 0.1), iterations=2),
        lambda a: df.guidance.tmpd(a, y, max(noise, 0.1)),
    ):
        closed, by_torch = run(make(operator)), run(make(plain))
        scale = float(closed.abs().max())
        torch.testing.assert_close(by_torch, closed, rtol=0, atol=1e-6 * scale)


def test_a_measurement_without_noise_is_met():
    """The proximal step without noise ends on the measurement."""
    for operator in OPERATORS.values():
        y = operator.forward(0.5 * numbers(2, 3, 8, 8, seed=4))
        made = run(df.guidance.diffpir(operator, y))
        torch.testing.assert_close(operator.forward(made), y, rtol=0, atol=1e-9)


def test_sizes_that_disagree():
    y = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    for name, operator in OPERATORS.items():
        if name == "super_resolution":
            continue
        with pytest.raises(ValueError, match=r"y is \[1, 3, 4, 4\], but the operator makes"):
            run(df.guidance.mmps(operator, y, 0.1))
