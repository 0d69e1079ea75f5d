"""The pair (previous sample, x0 estimate), whose estimate is made when it is read."""

from __future__ import annotations

_item = tuple.__getitem__


class Pair(tuple):
    """A tuple of two tensors [B, ...]; the second is computed when it is first read.

    Pipelines take the first only; the estimate would cost as much as the step. It is made of the
    tensors that the step was given: look at it before those are written over.
    """

    __slots__ = ()

    def __new__(cls, sample, seen):
        """Returns the pair of a step; seen: its run, and what that makes the estimate of."""
        return tuple.__new__(cls, (sample, seen))

    def _estimate(self):
        _, (run, *step) = tuple.__iter__(self)
        return run.x0(*step)

    def __reduce__(self):
        """Returns how to copy it: as a plain pair."""
        return tuple, ([*self],)

    def __len__(self):
        """Returns 2."""
        return 2

    def __iter__(self):
        """Yields the sample, then the x0 estimate."""
        yield _item(self, 0)
        yield self._estimate()

    def __getitem__(self, index):
        """Returns one of the two, or a slice of them."""
        if index == 0:
            return _item(self, 0)
        return (_item(self, 0), self._estimate())[index]
