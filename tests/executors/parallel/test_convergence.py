"""The convergence test by its numbers, without a network."""

import dataclasses

import numpy as np
import pytest

from diffast.executors.parallel.convergence import Convergence
from diffast.executors.parallel.windows import Windows

STAGES = 6
ANY = np.full(STAGES + 1, np.inf)
ONES = np.ones(STAGES + 1)
# Two windows: stages 1 .. 4 and 2 .. 3; what stands after the second window's end is not used.
CHANGE = np.array([[0.0, 0.1, 0.001, 0.2, 0.001], [0.0, 0.001, 0.002, np.nan, np.nan]])
BEFORE = np.array([[np.nan, 0.1, 0.002, 0.2], [np.nan, 0.01, np.nan, np.nan]])


def judge(changes=ANY, error=np.inf, rounds=(1, 1), change=CHANGE, **options):
    test = Convergence(changes, error, ONES, np.array([STAGES]), **options)
    settled, errors = test.test(
        *(np.array([1, 2]), np.array([4, 2]), change, BEFORE, ONES[:2], np.array(rounds))
    )
    return settled.tolist(), errors


def test_the_change_of_each_point_is_bounded():
    assert judge(np.full(STAGES + 1, 0.1))[0] == [3, 2]
    assert judge(np.full(STAGES + 1, 0.05))[0] == [1, 2]
    assert judge(np.where(np.arange(STAGES + 1) == 3, 0.0, 1.0))[0] == [2, 1]


def test_without_a_bound_the_whole_window_is_settled():
    assert judge()[0] == [4, 2]


def test_the_error_of_the_sample_is_bounded():
    settled, errors = judge(error=1e-2)
    # The change that arrived at the window's end counts for every stage of it.
    np.testing.assert_allclose(errors, [0.2, 0.002])
    assert settled == [1, 2]
    assert judge(error=0.007)[0] == [1, 2] and judge(error=0.001)[0] == [1, 1]


def test_a_change_that_is_not_finite_is_not_settled():
    change = CHANGE.copy()
    change[0, 2] = np.nan
    assert judge(change=change)[0] == [2, 2]


def test_windows_are_left_as_a_whole_or_after_so_many_rounds():
    bound = np.full(STAGES + 1, 0.1)
    assert judge(bound, whole=True)[0] == [0, 2]
    assert judge(bound, whole=True, most=3, rounds=(2, 2))[0] == [0, 2]
    assert judge(bound, whole=True, most=3, rounds=(3, 2))[0] == [4, 2]


def test_all_move_on_together():
    assert judge(np.full(STAGES + 1, 0.1), together=True)[0] == [2, 2]


def test_the_numbers_cannot_be_changed():
    test = Convergence(ANY, 0.1, ONES, np.array([STAGES]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        test.error = 0.2


def test_windows_do_not_cross_the_ends_of_blocks():
    windows = Windows(2, STAGES, STAGES, 12, np.array([4, STAGES]))
    assert windows.grow().tolist() == [4, 4]
    windows.advance(np.array([4, 1]))
    assert windows.grow().tolist() == [2, 0] and windows.start.tolist() == [4, 1]


def test_a_dropped_sample_gives_its_rows_to_the_others():
    windows = Windows(2, STAGES, STAGES, 6)
    assert windows.grow().tolist() == [3, 3]
    assert windows.drop(0).tolist() == [0, 1, 2]
    assert windows.running.tolist() == [1]
    assert windows.grow().tolist() == [0, 3]
    assert sorted(windows.rows[1].tolist()) == [0, 1, 2, 3, 4, 5]
