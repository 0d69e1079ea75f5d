"""One process of test_parallel_ranks.py: rank, world, file to meet at, task, where to save."""

import datetime
import sys

import torch
import torch.distributed as dist

import diffast as df

SCHEDULE = df.schedules.vp_linear()


def network(x, t):
    return torch.tanh(1.5 * x) * (0.4 + 0.5 * t.reshape(-1, 1))


def plan():
    return df.solvers.dpmpp_2m_sde(SCHEDULE, df.grids.uniform_time(SCHEDULE, 12))


def samples(denoise=network, **options):
    denoiser = df.Denoiser(denoise, SCHEDULE, predicts="epsilon")
    return df.sample_parallel(denoiser, plan(), (3, 7), seed=4, **options)


def main():
    rank, world, meeting, task, path = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=int(rank),
        world_size=int(world),
        timeout=datetime.timedelta(seconds=20),
    )
    calls = []

    def counted(x, t):
        calls.append(len(x))
        if task == "dies" and rank == "1" and len(calls) == 3:
            sys.exit(7)
        return network(x, t)

    size = None if task == "whole" else 4
    made = samples(counted, ranks=True, tol=1e-3, batch_size=size)
    torch.save({"x": made.x, "rows": sum(calls), "all": made.rows}, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
