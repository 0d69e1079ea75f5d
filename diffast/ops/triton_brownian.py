"""`brownian` in Triton."""

IMPLEMENTATIONS = {}
