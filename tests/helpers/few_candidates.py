"""Fewer standard plans for `df.tune` to measure: for tests of what is around it."""

from diffast.tuning import candidates


def few(monkeypatch):
    solvers = {name: candidates.SOLVERS[name] for name in ("dpmpp_2m", "adams(2)")}
    grids = {name: candidates.GRIDS[name] for name in ("karras", "uniform_flow")}
    monkeypatch.setattr(candidates, "SOLVERS", solvers)
    monkeypatch.setattr(candidates, "GRIDS", grids)
