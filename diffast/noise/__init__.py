"""Noise beside the kernels' own: Brownian paths and the forward process."""
