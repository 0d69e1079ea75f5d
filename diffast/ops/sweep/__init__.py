"""Runs the stages of a plan on network outputs made beforehand."""
