"""Where in a run a timestep stands, found without reading from a device."""

from __future__ import annotations

from typing import Any

import torch

from diffast.executors.device import on_host

_LONGEST = 4096  # elements of a tensor that timesteps are looked up in


class Places:
    """The part of a drop-in that finds the index of a timestep."""

    timesteps: Any
    _positions: Any  # dict: timestep -> index
    _count: int
    _base: int  # address of `timesteps`
    _size: int  # bytes of one of them
    host: Any  # Host
    _foreign: Any = None  # (tensor of the caller's, its version, its numbers)

    def _place(self, timestep) -> int | None:
        """Returns the index into `timesteps` of one of them; None: it is not among them."""
        times = self.timesteps
        if isinstance(timestep, torch.Tensor):
            dtype = getattr(times, "dtype", None)  # other code may have made a list of it
            if timestep.dtype is dtype and timestep.device == times.device:
                # an element of `timesteps`, or of a slice of it, is a view: its place tells
                i, rest = divmod(timestep.data_ptr() - self._base, self._size)
                if not rest and 0 <= i < self._count and timestep.numel() == 1:
                    return i
            if timestep.numel() != 1:  # only the original knows what is meant
                return None
            timestep = self._number(timestep)
        try:
            return self._positions.get(float(timestep))
        except (TypeError, ValueError):
            return None

    def _position(self, timestep) -> int:
        """Returns the same; raises ValueError for another timestep."""
        i = self._place(timestep)
        if i is None:
            raise ValueError(
                f"{type(self).__name__}: timestep {timestep} but the timesteps set are "
                f"{', '.join(f'{t:g}' for t in list(self._positions)[:4])} ..."
            )
        return i

    def _stands_at(self, timestep, i: int) -> bool:
        """Returns whether that timestep is number i of `timesteps`."""
        if isinstance(timestep, torch.Tensor):
            if timestep.data_ptr() - self._base == i * self._size:
                return timestep.dtype is self.timesteps.dtype
            timestep = self._number(timestep)
        return float(timestep) == self.host.times[i]

    def _number(self, timestep: torch.Tensor) -> float:
        """Returns the number in a timestep that is not an element of `timesteps`.

        If it is an element of a tensor of the caller's, all of that tensor's numbers are read: a
        loop over it then waits for the device once, and not at every step. On the CPU there is
        nothing to wait for, and memory shared with numpy changes without a new version.
        """
        whole = timestep._base
        if whole is None or timestep.numel() != 1 or not whole.is_contiguous():
            return timestep.item()
        if whole.numel() > _LONGEST or timestep.dtype != whole.dtype or on_host(whole.device):
            return timestep.item()
        known = self._foreign
        if known is None or known[0] is not whole or known[1] != whole._version:
            known = self._foreign = (whole, whole._version, whole.reshape(-1).tolist())
        return known[2][timestep.storage_offset() - whole.storage_offset()]
