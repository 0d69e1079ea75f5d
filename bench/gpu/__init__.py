"""The steps of bench/gpu_check.py, each a process of its own."""
