"""Learns plans for the embedded digit network with `df.tune`, and writes them as files.

    python bench/tune_digits.py --calls 5,6,8 --out diffast/digits/plans --work /tmp/tune_digits

A run that is killed goes on from its files in --work. Each plan is written as soon as it is there,
and a line of figures to <work>/digits.jsonl. The network is conditioned on a digit. There is no
guidance unless --guidance says so.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import diffast as df
from diffast.digits import NULL_LABEL, load_unet, plan_name


def digits_denoiser(guidance: float = 1.0, device: str = "cpu") -> df.Denoiser:
    """The embedded network; pilot i is to be a digit of class i modulo 10."""
    labels = {"labels": torch.arange(10)}
    blank = {"labels": torch.tensor([NULL_LABEL])}
    return df.Denoiser(
        load_unet().to(device),
        df.schedules.edm(),
        predicts="x0",
        conditions=labels,
        unconditional=blank if guidance != 1.0 else None,
        guidance=guidance,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", default="4,5,6,8,10")
    parser.add_argument("--out", type=Path, default=Path("diffast/digits/plans"))
    parser.add_argument("--work", type=Path, default=Path("/tmp/tune_digits"))
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--freedom", default="levels,weights,times,scale,start")
    parser.add_argument("--pilots", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--polish", type=int, default=0)
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", default="2")
    parser.add_argument("--start", type=Path, help="folder of plans to start from as well")
    parser.add_argument("--no-grids", action="store_true", help="no grids measured on the network")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.work.mkdir(parents=True, exist_ok=True)
    denoiser = digits_denoiser(arguments.guidance, arguments.device)
    for calls in map(int, arguments.calls.split(",")):
        freedom = arguments.freedom.split(",")
        kind = plan_name(calls, arguments.guidance)
        resume = arguments.work / f"{kind}-{'-'.join(freedom)}.json"
        begun = time.perf_counter()
        result = df.tune(
            denoiser,
            calls,
            (arguments.pilots, 1, 28, 28),
            freedom=freedom,
            held_out=arguments.held_out,
            batch=arguments.batch,
            iterations=arguments.iterations,
            starts=arguments.starts,
            polish=arguments.polish,
            rows=arguments.rows,
            seed=arguments.seed,
            compare=[float(n) for n in arguments.compare.split(",") if n],
            resume=resume,
            measured_grids=not arguments.no_grids,
            start=df.Plan.load(arguments.start / f"{kind}.json") if arguments.start else None,
        )
        result.save(arguments.out / f"{kind}.json")
        row = {
            "calls": calls,
            "guidance": arguments.guidance,
            "freedom": freedom,
            "error": result.error,
            "best_standard": result.best_standard._asdict(),
            "compared": [row._asdict() for row in result.table if row.calls > calls],
            "history": result.history,
            "seconds": time.perf_counter() - begun,
            "network_calls": result.network_calls,
            "threads": torch.get_num_threads(),
        }
        with (arguments.work / "digits.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(result, flush=True)


if __name__ == "__main__":
    main()
