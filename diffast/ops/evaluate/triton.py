"""`evaluate` on devices that Triton serves: the reference runs there, an operation at a time."""

from diffast.ops.evaluate.reference import evaluate

IMPLEMENTATIONS = {"evaluate": evaluate}
