"""Quantiles of the beta distribution against scipy, and against themselves."""

import warnings

import numpy as np
import pytest

from diffast.grids.beta_quantile import beta_quantile, incomplete_beta

stats = pytest.importorskip("scipy.stats")

P = np.concatenate([np.linspace(0, 1, 101), np.geomspace(1e-9, 0.4, 30)])
SHAPES = (0.1, 0.5, 0.6, 1.0, 1.7, 20.0)


@pytest.mark.parametrize("a", SHAPES)
@pytest.mark.parametrize("b", SHAPES)
def test_against_scipy(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's own root finder gives up on some of these
        want = stats.beta.ppf(P, a, b)
    np.testing.assert_allclose(beta_quantile(P, a, b), want, rtol=0, atol=1e-12)
    x = np.linspace(0, 1, 203)
    np.testing.assert_allclose(
        incomplete_beta(x, a, b), stats.beta.cdf(x, a, b), rtol=1e-11, atol=1e-14
    )


@pytest.mark.parametrize(("a", "b"), [(0.05, 300.0), (1e-3, 1.0), (2000.0, 3000.0), (1e5, 2.0)])
def test_extreme_shapes_invert_the_distribution(a, b):
    p = np.linspace(0.02, 0.98, 25)
    x = beta_quantile(p, a, b)
    assert (np.diff(x) >= -1e-15).all()
    below, above = np.maximum(x - 1e-12, 0.0), np.minimum(x + 1e-12, 1.0)
    assert (incomplete_beta(below, a, b) <= p).all()
    assert (incomplete_beta(above, a, b) >= p).all()


def test_ends_closed_forms_and_symmetry():
    assert beta_quantile([0.0, 1.0], 0.6, 0.6).tolist() == [0.0, 1.0]
    assert beta_quantile(0.5, 0.6, 0.6) == pytest.approx(0.5, abs=1e-15)
    p = np.linspace(0, 1, 33)
    np.testing.assert_allclose(beta_quantile(p, 1, 1), p, atol=1e-15)
    np.testing.assert_allclose(beta_quantile(p, 0.5, 1), p**2, atol=1e-15)
    np.testing.assert_allclose(beta_quantile(p, 1, 3), 1 - (1 - p) ** (1 / 3), atol=1e-15)
    arcsine = np.sin(0.5 * np.pi * p) ** 2
    np.testing.assert_allclose(beta_quantile(p, 0.5, 0.5), arcsine, atol=1e-15)
    np.testing.assert_allclose(
        beta_quantile(p, 0.6, 2), 1 - beta_quantile(1 - p, 2, 0.6), atol=1e-15
    )
