"""`combine_error` in Triton."""

IMPLEMENTATIONS = {}
