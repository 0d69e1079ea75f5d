"""Solvers for networks that were trained to need few steps."""
