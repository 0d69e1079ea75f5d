"""The tensors of a pipeline that the original remembers without a copy.

Some schedulers keep the very tensor that a step was given, and read it in the next one. Where the
pipeline has written to it in between (`latents[:, :, i] = scheduler.step(...)`), they read what was
written. Fused steps keep numbers of their own, so they have to notice.
"""

from __future__ import annotations

from typing import Any

import torch

from diffast.lowering.step_table import AT_Y, StepCall
from diffast.plans.registers import Y


def held_after(call: StepCall) -> bool | None:
    """Returns whether the original remembers the sample that this call was given.

    None: it forgets what it remembered; False: it goes on remembering that of an earlier call.
    """
    starts = AT_Y not in call.columns
    if Y in call.writes:
        return starts or None
    return starts if Y in call.keeps else None


class Holder:
    """The part of a run that watches the sample of an earlier step.

    Attributes:
        holds: `held_after` of each stage; empty: the original keeps no such tensor.
        held: the sample [B, ...] that it keeps now; None: none.
        version: of that tensor; None: it has none.
    """

    holds: list[bool | None]
    held: torch.Tensor | None = None
    version: Any = None

    def hold(self, i: int, sample: torch.Tensor) -> None:
        """Takes the sample down that stage i was given, where the original does."""
        held = self.holds[i]
        if held is None:
            self.held = None
        elif held:
            self.held = sample
            self.version = None if sample.is_inference() else sample._version

    def is_overwritten(self, sample: torch.Tensor) -> bool:
        """Returns whether the tensor held was written to since.

        A tensor of the inference mode does not say so: then it is whether the next sample lies in
        the same memory.
        """
        held: Any = self.held
        if self.version is not None:
            return held._version != self.version
        return held.untyped_storage().data_ptr() == sample.untyped_storage().data_ptr()

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy starts with: its tensors count their writes anew."""
        own = dict(self.__dict__)
        if self.held is not None and self.version is not None:
            own["version"] = -1 if self.is_overwritten(self.held) else "anew"
        return own

    def __setstate__(self, own: dict[str, Any]) -> None:
        """Goes on from there."""
        self.__dict__.update(own)
        if self.version == "anew":
            self.version = own["held"]._version  # its own
