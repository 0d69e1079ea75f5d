"""The parallel-in-time executor: all stages of a plan in a few rounds of network calls."""
