"""`accept` in Triton."""

IMPLEMENTATIONS = {}
