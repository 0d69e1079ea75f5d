"""Lowering: plans and embedded solvers multiplied out for a network, as calls of ops."""
