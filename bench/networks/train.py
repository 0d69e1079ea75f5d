"""Trains the networks of other libraries: `python -m bench.networks.train [name ...]`.

Each takes at most two minutes on one core. Weights go to bench/data/NAME.safetensors.
"""

from __future__ import annotations

import sys
import time

import torch
from safetensors.torch import save_file

from bench.networks.libraries import DATA, TRAINERS


def main() -> None:
    """Trains those that are named, or all."""
    DATA.mkdir(exist_ok=True)
    for name in sys.argv[1:] or list(TRAINERS):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        began = time.perf_counter()
        model = TRAINERS[name]()
        path = DATA / f"{name}.safetensors"
        kept = torch.float16 if name == "monai" else torch.float32  # 300 kB a file at most
        save_file({k: v.to(kept).contiguous() for k, v in model.state_dict().items()}, path)
        took = time.perf_counter() - began
        print(f"{name}: {took:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
