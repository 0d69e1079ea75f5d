"""The sampler's own time in two built checkouts, in turns: drop-in steps, runs, adaptive rounds.

    python bench/two_trees.py OLD_TREE [NEW_TREE] [--pairs 6] [--rounds 5] [--only CASES]

A process per checkout measures the cases of bench_dropin.py, bench_sampler.py and bench_adaptive.py
when its turn comes, so that what else the machine does hits both. Where tensors lie in memory
changes the time of large ones by a tenth, for as long as a process lives: several pairs of
processes are started, each with some memory of random size in front. Printed: microseconds of a
step in both, and median and quartiles of the ratios new / old over pairs and rounds.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parent


held = []  # memory in front of a case's tensors


ADAPTIVE = ("pec", "ggf", "euler_heun", "dpm_12", "dpm_23", "bosh3", "dopri5")


def adaptive_cases():
    """Returns {name: (function, rounds in it)} of started adaptive runs."""
    import bench_adaptive
    import numpy as np
    import torch

    import diffast as df

    torch.set_num_threads(1)
    found = {}
    betas = df.schedules.from_betas(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for shape_name, shape in bench_adaptive.SHAPES.items():
        for method in ADAPTIVE:
            run = bench_adaptive.prepared(method, shape, torch.randn(shape) * 0.1)
            found[f"adaptive {method} {shape_name}"] = run.round, 1
    shape = bench_adaptive.SHAPES["1x4x64x64"]
    for method in ("pec", "dpm_12"):  # a schedule whose formulas cannot be recorded
        run = bench_adaptive.prepared(method, shape, torch.randn(shape) * 0.1, schedule=betas)
        found[f"adaptive {method} 1x4x64x64 from_betas"] = run.round, 1
    return found


def cases(only):
    """Returns {name: (function, steps in it)}, made with the diffast on this process's path."""
    if only == "adaptive":
        return adaptive_cases()
    import bench_dropin
    import bench_sampler
    import torch

    import diffast as df
    from diffast.integrations.diffusers import DiffastScheduler

    torch.set_num_threads(1)
    held.clear()
    del [torch.empty(7 << 20) for _ in range(2)][:]
    found, padding = {}, random.Random(os.getpid())
    for shape_name, shape in bench_dropin.SHAPES.items():
        for name in bench_dropin.CASES if only != "sampler" else ():
            held.append(torch.empty(64 * padding.randrange(1 << 14), dtype=torch.uint8))
            x, output = torch.randn(shape), torch.randn(shape)
            scheduler = DiffastScheduler.from_scheduler(
                bench_dropin.original(name), noise="counter"
            )
            one = bench_dropin.stepping(scheduler, x, output)
            run = bench_dropin._run(one)
            found[f"dropin {name} {shape_name}"] = (run, bench_dropin.STEPS)
        for solver in ("euler", "dpmpp_2m", "euler_ancestral") if only != "dropin" else ():
            schedule = bench_sampler.SCHEDULE
            plan = df.solvers.get(solver)(schedule, df.grids.trailing(schedule, 20))
            held.append(torch.empty(64 * padding.randrange(1 << 14), dtype=torch.uint8))
            output = torch.randn(shape)
            denoiser = df.Denoiser(lambda x, t, y=output: y, schedule, predicts="epsilon")

            def run(denoiser=denoiser, plan=plan, shape=shape):
                return df.sample(denoiser, plan, shape=shape)

            found[f"sample {solver} {shape_name}"] = (run, 20)
    return found


def work(only):
    """Answers each line, a case's name, with the microseconds of a step."""
    import torch

    with torch.inference_mode(only != "dropin"), torch.no_grad():
        made = cases(only)
        print(json.dumps(list(made)), flush=True)
        for line in sys.stdin:
            run, steps = made[line.strip()]
            begin, count = time.perf_counter(), 0
            while count < 3 or time.perf_counter() - begin < 0.05:
                run()
                count += 1
            print((time.perf_counter() - begin) / count / steps * 1e6, flush=True)


def start(tree, only):
    environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{BENCH}"}
    command = [sys.executable, __file__, tree, "--worker", "--only", only]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, cwd=tree, **pipes)
    return process, json.loads(process.stdout.readline())


def ask(process, name):
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default=str(BENCH.parent))
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("dropin", "sampler", "adaptive"), default="dropin")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.only)
    import numpy as np

    trees = [str(Path(tree).resolve()) for tree in (options.old, options.new)]
    found = {}
    for _ in range(options.pairs):
        both = [start(tree, options.only) for tree in trees]
        for name in both[0][1]:
            turns = [[ask(process, name) for process, _ in both] for _ in range(options.rounds + 1)]
            found.setdefault(name, []).extend(turns[1:])
        for process, _ in both:
            process.stdin.close()
            process.wait()
    for name, turns in found.items():
        times = np.array(turns)
        low, ratio, high = np.quantile(times[:, 1] / times[:, 0], (0.25, 0.5, 0.75))
        old, new = np.median(times, axis=0)
        print(f"{name:40} {old:9.1f} {new:9.1f} us  {ratio:.2f} ({low:.2f} to {high:.2f})")
    return None


if __name__ == "__main__":
    main()
