"""Grids measured on a network: `Pilot` measures, `rank` compares, `polish` refines."""
