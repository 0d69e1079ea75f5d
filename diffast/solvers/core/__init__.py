"""Engines of solver families: one-step and multistep rows, integrals, noise splits."""
