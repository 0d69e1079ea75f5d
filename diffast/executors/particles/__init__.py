"""Particles: several runs a sample, weighed by a reward and resampled on the way."""
