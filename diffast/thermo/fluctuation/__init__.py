"""The fluctuation theorem as tools: tests of SDE code, likelihoods of plans, free energies."""
