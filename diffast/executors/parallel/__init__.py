"""The parallel-in-time executor: all stages of a plan in a few rounds of network calls.

One engine (`rounds`) serves every method. A method is data (`methods`): which slope a sweep gives
the network, how many rounds are mixed (`mixing`), and how settled stages are told. Two rules tell
them: the size of the last change (`changes`, with the numbers of `convergence`), and a coupling
that keeps the plan's law (`coupling`).
"""
