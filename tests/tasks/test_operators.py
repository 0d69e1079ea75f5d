"""Measurement operators: adjoints, pseudo-inverses and proximal steps against dense matrices."""

import pytest
import torch

import diffast as df
from diffast.tasks import (
    blur,
    colour,
    compose,
    gaussian_kernel,
    inpainting,
    opponent_basis,
    super_resolution,
)

SHAPE = (2, 3, 6, 4)


def some_mask(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.5


# an uneven kernel: a symmetric one would hide a transpose that is the forward
KERNEL = torch.tensor([[0.05, 0.2, 0.0], [0.1, 0.4, 0.1], [0.0, 0.05, 0.1]])
OPERATORS = {
    "inpainting": inpainting(some_mask(6, 4)),
    "inpainting of channels": inpainting(some_mask(2, 3, 6, 4)),
    "super_resolution": super_resolution(2),
    "blur": blur(KERNEL),
    "blur that loses frequencies": blur(torch.ones(1, 3) / 3, cutoff=0.2),
    "colour": colour(opponent_basis()),
    "grey": colour(opponent_basis()[0]),
    "inpainting in a basis": compose(colour(opponent_basis()), inpainting(some_mask(3, 6, 4))),
    "blur, then inpainting": compose(blur(KERNEL), inpainting(some_mask(6, 4))),
    "blur, then blocks": compose(blur(KERNEL), super_resolution(2)),
    "grey blocks": compose(colour(opponent_basis()[0]), super_resolution(2)),
}
each = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)


def images(seed=0, shape=SHAPE, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(operator):
    """A as a matrix [numbers of y, numbers of x], for the first sample of the batch."""
    numbers = SHAPE[1] * SHAPE[2] * SHAPE[3]
    columns = []
    for k in range(numbers):
        x = torch.zeros(SHAPE, dtype=torch.float64)
        x[0].view(-1)[k] = 1
        columns.append(operator.forward(x)[0].flatten())
    return torch.stack(columns, dim=1)


@each
def test_transpose_is_the_adjoint(operator):
    x = images()
    seen = operator.forward(x)
    y = images(1, seen.shape)
    back = operator.transpose(y)
    assert back.shape == x.shape
    torch.testing.assert_close((seen * y).sum(), (x * back).sum(), rtol=1e-12, atol=1e-12)


@each
def test_pseudo_inverse_is_moore_penrose(operator):
    seen = operator.forward(images())
    y = images(1, seen.shape)
    wanted = torch.linalg.pinv(dense(operator), rtol=1e-9) @ y[0].flatten()
    made = operator.pseudo_inverse(y)[0].flatten()
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    again = operator.forward(operator.pseudo_inverse(seen))
    torch.testing.assert_close(again, seen, rtol=1e-5, atol=1e-5)
    part = operator.project(images())
    torch.testing.assert_close(operator.project(part), part, rtol=1e-4, atol=1e-4)


@each
@pytest.mark.parametrize("weight", [0.0, 0.3, 40.0])
def test_prox_is_the_direct_solution(operator, weight):
    x = images()
    y = images(1, operator.forward(x).shape)
    matrix = dense(operator)
    left = weight * matrix.T @ matrix + torch.eye(matrix.shape[1], dtype=torch.float64)
    right = weight * matrix.T @ y[0].flatten() + x[0].flatten()
    wanted = torch.linalg.solve(left, right)
    made = operator.prox(x, y, weight)[0].flatten()
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
    each_sample = operator.prox(x, y, torch.tensor([weight, 2.0], dtype=torch.float64))
    torch.testing.assert_close(each_sample[0].flatten(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in OPERATORS if "then" not in n and n != "grey blocks"])
def test_an_infinite_weight_is_the_projection(name):
    operator, x = OPERATORS[name], images()
    y = operator.forward(images(2))
    projected = x + operator.pseudo_inverse(y - operator.forward(x))
    torch.testing.assert_close(operator.prox(x, y, float("inf")), projected)
    torch.testing.assert_close(operator.forward(projected), y)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_gradient_are_kept(operator, dtype):
    x = images(dtype=dtype).requires_grad_()
    y = operator.forward(x)
    assert y.dtype == operator.transpose(y).dtype == dtype
    if dtype == torch.float32:
        assert operator.prox(x, y, 1.0).dtype == dtype
        y.square().sum().backward()
        torch.testing.assert_close(x.grad, 2 * operator.transpose(y.detach()), rtol=1e-4, atol=1e-5)


def test_blur_is_a_circular_convolution():
    x = images()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular")
    kernel = KERNEL.double().flip(0, 1).expand(3, 1, 3, 3)
    wanted = torch.nn.functional.conv2d(padded, kernel, groups=3)
    torch.testing.assert_close(blur(KERNEL).forward(x), wanted)


def test_gaussian_kernel():
    kernel = gaussian_kernel(1.5)
    at = torch.arange(11, dtype=torch.float64) - 5
    assert kernel.shape == (11, 11)
    torch.testing.assert_close(kernel.sum(), torch.ones((), dtype=torch.float64))
    assert abs(float(kernel.sum(0) @ at.square()) / 1.5**2 - 1) < 0.02


WRONG = {
    "mask of the wrong size": (
        lambda: inpainting(some_mask(5, 4)).forward(images()),
        r"the mask is \[1, 1, 5, 4\], but the images are \[2, 3, 6, 4\]",
    ),
    "mask of three batches": (
        lambda: inpainting(some_mask(3, 1, 6, 4)).forward(images()),
        r"mask is \[3, 1, 6, 4\], but the images are \[2,",
    ),
    "soft mask": (lambda: inpainting(torch.full((6, 4), 0.5)), "holds 0.5, but it is 1 or 0"),
    "empty mask": (lambda: inpainting(torch.zeros(6, 4)), "0 everywhere"),
    "flat mask": (lambda: inpainting(torch.ones(6)), r"the mask is \[6\], but it must be \[H, W\]"),
    "factor": (lambda: super_resolution(4).forward(images()), "factor of 4 divides not both 6"),
    "factor 1": (lambda: super_resolution(1), "factor is 1, but"),
    "factor 2.0": (lambda: super_resolution(2.0), "factor is 2.0, but"),
    "even kernel": (lambda: blur(torch.ones(2, 2)), r"kernel is \[2, 2\], but .* odd"),
    "kernel of NaN": (lambda: blur(torch.full((1, 1), torch.nan)), "must be finite"),
    "large kernel": (lambda: blur(torch.ones(7, 7)).forward(images()), r"\[7, 7\], but the images"),
    "cutoff": (lambda: blur(KERNEL, cutoff=1.0), r"cutoff is 1.0, but it must lie in \[0, 1\)"),
    "deviation": (lambda: gaussian_kernel(0.0), "deviation is 0.0, but it must be positive"),
    "kernel size": (lambda: gaussian_kernel(1.0, 4), "size is 4, but it must be odd"),
    "basis": (
        lambda: colour([[1.0, 0, 0], [0.8, 0.6, 0]]),
        "rows 0 and 1 have the product 0.8, but it must be 0",
    ),
    "long basis": (lambda: colour([2.0, 0, 0]), "rows 0 and 0 have the product 4, but"),
    "basis of NaN": (lambda: colour([torch.nan, 0, 0]), "not orthonormal"),
    "basis of 4 rows": (lambda: colour(torch.ones(4, 3)), r"\[4, 3\], but it must be \[K, C\]"),
    "channels": (
        lambda: colour([1.0, 0.0]).forward(images()),
        r"basis is of 2 channels, but the images are \[2, 3, 6, 4\]",
    ),
    "coordinates": (
        lambda: colour([1.0, 0, 0]).transpose(images()),
        r"basis has 1 rows, but y is \[2, 3, 6, 4\]",
    ),
    "no image": (lambda: super_resolution(2).forward([1.0]), "x is a list, but a tensor"),
    "no batch": (lambda: blur(KERNEL).forward(images()[0]), r"x is \[3, 6, 4\], but images are"),
    "integers": (lambda: blur(KERNEL).forward(images().long()), "x is torch.int64, but"),
    "y of another dtype": (
        lambda: super_resolution(2).prox(images(), images(shape=(2, 3, 3, 2)).float(), 1.0),
        "x is torch.float64, but y is torch.float32",
    ),
    "y of another size": (
        lambda: super_resolution(2).prox(images(), images(), 1.0),
        r"y is \[2, 3, 6, 4\], but the measurement of x \[2, 3, 6, 4\] is \[2, 3, 3, 2\]",
    ),
    "y on another device": (
        lambda: blur(KERNEL).prox(images(), images().to("meta"), 1.0),
        "x is on cpu, but y is on meta",
    ),
    "mask on another device": (
        lambda: inpainting(some_mask(6, 4)).forward(images().to("meta")),
        "mask is on cpu, but the images are on meta",
    ),
    "negative weight": (
        lambda: inpainting(some_mask(6, 4)).prox(images(), images(), -1.0),
        "weight is -1.0, but it must be 0 or more",
    ),
    "weight of NaN": (
        lambda: inpainting(some_mask(6, 4)).prox(images(), images(), float("nan")),
        "weight is nan",
    ),
    "weights of other samples": (
        lambda: super_resolution(2).prox(images(), images(shape=(2, 3, 3, 2)), torch.ones(5)),
        r"weight is \[5\], but .* 2 samples",
    ),
    "nothing to compose": (lambda: compose(), "no operators are given"),
    "what is no operator": (lambda: compose(colour([1.0, 0, 0]), 3), "a int is given"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_is_refused_in_words(name):
    act, said = WRONG[name]
    with pytest.raises(ValueError, match=said):
        act()


def test_what_cannot_converge_says_so(monkeypatch):
    monkeypatch.setattr("diffast.tasks.composition._MOST_STEPS", 2)
    operator = OPERATORS["blur, then inpainting"]
    with pytest.raises(RuntimeError, match="did not converge in 2 steps"):
        operator.pseudo_inverse(operator.forward(images()))


def test_the_names_are_public():
    assert df.tasks.inpainting is inpainting
