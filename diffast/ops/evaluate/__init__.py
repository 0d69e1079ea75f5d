"""Runs recorded straight-line programs of float64 numbers, one for each sample."""
