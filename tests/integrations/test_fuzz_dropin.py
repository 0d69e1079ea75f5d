"""A share of the cases of bench/fuzz_dropin.py."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import fuzz_dropin as fuzz  # noqa: E402

KINDS = sorted(set(fuzz.KINDS) - {*fuzz.APART})
FAULTS = ("refused", "different")


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 400, 100))
def test_drop_ins_are_the_originals(first):
    fuzz.diffusers.utils.logging.set_verbosity(50)
    cases = [fuzz.Case(number, KINDS) for number in range(first, first + 100)]
    ended = [(case, *fuzz.outcome(case)) for case in cases]
    assert not [each for each in ended if each[1] in FAULTS]
    kinds = {each[1] for each in ended}
    assert {"equal", "equal, handed over"} <= kinds


def test_another_result_is_a_fault():
    class Halved(fuzz.Side):
        def __init__(self, case, ours):
            super().__init__(case, ours)
            self.ours = ours

        def step(self, output, t, x):
            seen, following, x0 = super().step(output, t, x)
            return seen, following * (0.5 if self.ours else 1.0), x0

    case = next(
        c for c in (fuzz.Case(n, KINDS) for n in range(99)) if fuzz.outcome(c)[0] == "equal"
    )
    plain, fuzz.Side = fuzz.Side, Halved
    try:
        assert fuzz.outcome(case)[0] == "different"
    finally:
        fuzz.Side = plain
