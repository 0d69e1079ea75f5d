"""Solvers of the reverse SDE, and of the ODE with noise put back."""
