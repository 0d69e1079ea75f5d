"""The parts that the checks of every op are made of. Each op's own checks are in its folder."""

from typing import NamedTuple

import torch

# Four elements share a block of the counter, which has 32 bits for blocks.
MAX_DRAWN = 1 << 34
STATE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check(condition: bool, message: str) -> None:
    """Raises RuntimeError, as the compiled kernels do, unless the condition holds."""
    if not condition:
        raise RuntimeError(message)


def shape_text(t: torch.Tensor) -> str:
    """Returns the shape as `[2, 3]`."""
    return str(list(t.shape))


def dtype_text(t: torch.Tensor | torch.dtype) -> str:
    """Returns the dtype as `float32`."""
    return str(getattr(t, "dtype", t)).removeprefix("torch.")


def check_dense(op: str, name: str, t: torch.Tensor) -> None:
    """Refuses a tensor whose numbers do not lie one beside the other: sparse, nested, no memory."""
    kind = "nested" if t.is_nested else str(t.layout).removeprefix("torch.").removeprefix("_")
    check(
        not t.is_nested and t.layout == torch.strided,
        f"{op}: {name} is a {kind} tensor but a dense one is needed",
    )
    check(
        not t._is_zerotensor(),
        f"{op}: {name} is a zero tensor of forward-mode differentiation, which has no memory: "
        "give a clone",
    )


class Beside(NamedTuple):
    """Checks of an op's tensors against the tensor that the op compares all others with.

    Attributes:
        op: the op's name, which begins every message.
        first_name: how messages call the tensor.
        first: the tensor.
        does: what the kernel does with the memory that is checked.
    """

    op: str
    first_name: str
    first: torch.Tensor
    does: str = "reads"

    def place(self, name: str, t: torch.Tensor) -> None:
        """Refuses a tensor on another device, or one that is not contiguous."""
        check_dense(self.op, name, t)
        verb = "are" if self.first_name == "ids" else "is"
        check(
            t.device == self.first.device,
            f"{self.op}: {name} is on {t.device} but {self.first_name} {verb} on "
            f"{self.first.device}",
        )
        check(
            t.is_contiguous(),
            f"{self.op}: {name} of shape {shape_text(t)} is not contiguous but the kernel "
            f"{self.does} it in row-major order",
        )

    def numbers(self, name: str, t: torch.Tensor, dtype: torch.dtype, shape: list) -> None:
        """Refuses a small tensor (ids, status, a table) of another dtype, shape or place."""
        check(
            t.dtype == dtype and list(t.shape) == list(shape),
            f"{self.op}: {name} is {dtype_text(t)} {shape_text(t)} but {dtype_text(dtype)} "
            f"{list(shape)} is needed",
        )
        self.place(name, t)


def check_count(op: str, count: int, what: str, most: int) -> None:
    """Refuses more things of a kind than the op takes."""
    check(0 <= count <= most, f"{op}: {count} {what} but at most {most} are supported")


def check_dtype(op: str, name: str, t: torch.Tensor) -> None:
    """Refuses a tensor of a dtype that a state cannot have."""
    check(
        t.dtype in STATE_DTYPES,
        f"{op}: {name} has dtype {dtype_text(t)} but only float32, float16, bfloat16 and float64 "
        "are supported",
    )


def check_word(op: str, stage: int) -> None:
    """Refuses a counter word that uses the slot bits or more than 32 bits."""
    check(
        0 <= stage < 1 << 32 and stage >> 26 & 3 == 0,
        f"{op}: stage {stage} but bits 0 to 25 hold the stage, 28 to 31 the purpose",
    )


def check_drawn(op: str, t: torch.Tensor) -> None:
    """Refuses samples [samples, ...] of more elements than a counter of normals can tell apart."""
    elements = t.shape[1:].numel()
    check(
        elements <= MAX_DRAWN,
        f"{op}: a sample has {elements} elements but noise can be drawn for at most {MAX_DRAWN} "
        "(2^34)",
    )


def check_limits(op: str, clamp: list[float]) -> None:
    """Refuses a clamp that is neither empty nor an ordered pair."""
    if not clamp:
        return
    check(len(clamp) == 2, f"{op}: clamp has {len(clamp)} numbers but (low, high) is needed")
    check(clamp[0] <= clamp[1], f"{op}: clamp low {clamp[0]:g} but high {clamp[1]:g}")


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two contiguous tensors share memory; one without elements has none."""
    if not (a.numel() and b.numel()):
        return False
    start, begin = a.data_ptr(), b.data_ptr()
    end, stop = start + a.numel() * a.element_size(), begin + b.numel() * b.element_size()
    return begin < end and start < stop


def same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Returns whether two tensors of one shape begin at one address and have one dtype."""
    return a.data_ptr() == b.data_ptr() and a.dtype == b.dtype
