"""The adaptive executor: every sample takes steps of its own size."""
