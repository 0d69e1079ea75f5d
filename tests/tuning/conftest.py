"""Fewer candidates: most tests are not about what is measured before learning."""

import pytest

from diffast.tuning import candidates


@pytest.fixture(autouse=True)
def few_candidates(request, monkeypatch):
    if "all_candidates" in request.fixturenames:
        return
    solvers = {name: candidates.SOLVERS[name] for name in ("ddim", "dpmpp_2m", "adams(2)")}
    grids = {name: candidates.GRIDS[name] for name in ("karras", "uniform_flow")}
    monkeypatch.setattr(candidates, "SOLVERS", solvers)
    monkeypatch.setattr(candidates, "GRIDS", grids)


@pytest.fixture
def all_candidates():
    """Asks for all of them."""
