"""Noising paths of least action: scalar schedules at constant W2 speed, and optimal transport."""
