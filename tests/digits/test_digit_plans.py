"""Plans that were made for the embedded digit network."""

import pytest

import diffast as df
from diffast.model.fingerprint import fingerprint


def test_shipped_plans_are_for_the_shipped_network():
    unet = df.digits.load_unet()
    for path in df.digits.PLANS.glob("*.json"):
        calls, _, guidance = path.stem.partition("-guided")
        plan = df.digits.load_plan(int(calls), float(guidance or 1.0))
        assert plan.nfe == plan.made_for["calls"] == int(calls)
        assert plan.made_for["guidance"] == float(guidance or 1.0)
        assert plan.made_for["network"] == fingerprint(unet)
        assert plan.schedule == df.schedules.edm()


def test_a_plan_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="there is no plan 777, but"):
        df.digits.load_plan(777)
