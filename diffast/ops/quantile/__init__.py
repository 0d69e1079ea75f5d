"""Quantiles of the magnitudes of a row that is never stored."""
