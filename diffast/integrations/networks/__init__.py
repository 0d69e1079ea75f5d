"""Denoisers of networks as other libraries keep them; no library is imported but by its object."""
