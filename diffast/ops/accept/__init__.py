"""Accepts or rejects the trial step of every sample and chooses the next one."""
