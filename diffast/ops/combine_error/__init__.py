"""The rows of `combine` and the scaled norm of an error row."""
