"""Every op once, at odd sizes, outputs guarded, the reference beside: a sanitizer's program.

    compute-sanitizer --tool memcheck python tests/gpu/sanitize.py --device cuda --sizes 1,7,1029

torch's allocator hands out parts of large blocks, so that a kernel may leave its tensor unseen: set
PYTORCH_NO_CUDA_MEMORY_CACHING=1, and every tensor is an allocation of its own.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[i]) for i in (2, 1)]
sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import torch  # noqa: E402
from op_calls import CALLS, check  # noqa: E402

from diffast import ops  # noqa: E402

GIB = 2**30


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Returns the bandwidth of torch.copy_ in GB/s, bytes read and written, of random numbers."""
    source = torch.randn(size // 4, device=device)
    target = torch.randn(size // 4, device=device)
    found = []
    for _ in range(10):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            target.copy_(source)
            end.record()
            end.synchronize()
            seconds = begin.elapsed_time(end) * 1e-3
        else:
            start = time.perf_counter()
            target.copy_(source)
            seconds = time.perf_counter() - start
        found.append(2 * size / seconds * 1e-9)
    return sorted(found)[len(found) // 2]


def main() -> None:
    """Runs the calls; raises at the first that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", default="1,3,7,131,1029", help="elements of a sample")
    parser.add_argument("--copy", action="store_true", help="measure a copy too")
    options = parser.parse_args()
    device, count = torch.device(options.device), 0
    backend = ops.backends()[device.type]
    print(f"{device}: {backend}")
    for k, size in enumerate(int(text) for text in options.sizes.split(",")):
        for call in CALLS:
            check(call, call.make(1 + k % 3, size, k), device, size, offset=k % 2)
            count += 1
    print(f"{count} calls are right")
    if options.copy:
        sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
        from gpu.runner import Figures

        size = GIB if device.type == "cuda" else 2**22
        figures = Figures()
        figures.note(backend=backend)
        figures.add("copy", bytes=2 * size, **{"GB/s": copy_bandwidth(device, size)})


if __name__ == "__main__":
    main()
