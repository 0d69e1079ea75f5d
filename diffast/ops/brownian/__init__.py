"""Increments of one fixed Brownian path per sample."""
