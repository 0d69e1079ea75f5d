"""Docstrings that are completed: diffast/_docs.py."""

import inspect
import re

import pytest

import diffast as df
from diffast._docs import documented

COMPLETED = [*df.solvers.SOLVERS.values(), df.grids.karras, df.grids.beta]


@pytest.mark.parametrize("function", COMPLETED, ids=lambda function: function.__name__)
def test_every_argument_is_described_once_and_in_order(function):
    args = function.__doc__.partition("\nArgs:\n")[2].partition("\n\nRaises:\n")[0]
    described = re.findall(r"^ {4}(\w+): \S", args, re.M)
    assert described == list(inspect.signature(function).parameters)


def test_what_the_docstring_says_comes_first():
    def function(a, b):
        """Returns nothing.

        Args:
            b: its own
                words.
        """

    documented({"a": "common.", "b": "unused."}, "ValueError: never.")(function)
    wanted = "    a: common.\n    b: its own\n        words.\n\nRaises:\n    ValueError: never.\n"
    assert function.__doc__ == "Returns nothing.\n\nArgs:\n" + wanted


def _two(a, b):
    """Returns nothing."""


def test_an_argument_that_nothing_is_said_about_is_an_error():
    with pytest.raises(KeyError, match="b"):
        documented({"a": "common."}, "")(_two)
