"""Executors on a GPU: host time and kernels of a stage, a step, a round; whole runs.

    python -m gpu.measure_runs --device cuda

The network of the host's figures returns a tensor that is there already, so that what remains is
the executor's own. A stage's time is a difference of two runs of unlike length: what a run does
once drops out.
"""

import argparse
import functools
import sys
from collections.abc import Callable

import torch
from device_watch import launches

import diffast as df
from gpu.runner import Figures
from gpu.timing import interleaved, wall_seconds

SHAPE = (1, 4, 64, 64)
SHORT, LONG = 20, 60
VP = df.schedules.vp_linear()
NO_GRAPH = "this version has no GraphSampler"


def plan_of(name: str, steps: int):
    """Returns a plan on a grid of even times."""
    return df.solvers.get(name)(VP, df.grids.uniform_time(VP, steps))


def denoiser_of(output: torch.Tensor):
    """Returns a denoiser whose network costs nothing."""
    return df.Denoiser(lambda x, t: output, VP, predicts="epsilon")


class Runs:
    """Measures executors on one device.

    Args:
        device: where to.
        figures: what is kept.
    """

    def __init__(self, device: torch.device, figures: Figures):
        """Begins with a network's output."""
        self.device, self.figures = device, figures
        self.on_cuda = device.type == "cuda"
        self.rounds = 15 if self.on_cuda else 2
        self.output = torch.randn(SHAPE, device=device)
        self.why = "" if self.on_cuda else "tried out on the CPU"

    def target(self, name: str, value: float | None, sign: str, bound: float, why: str = ""):
        """Keeps a number that must be reached; on the CPU it is only shown."""
        self.figures.target(name, value, sign, bound, why or self.why)

    def per_stage(self, run: Callable[[int], object]) -> float:
        """Returns the seconds that one more stage of `run(stages)` costs."""
        times = [wall_seconds(lambda n=n: run(n), self.device, self.rounds) for n in (SHORT, LONG)]
        return (times[1].median - times[0].median) / (LONG - SHORT)

    def kernels(self, run: Callable[[int], object]) -> float:
        """Returns the kernels that one more stage of `run(stages)` launches."""
        counts = []
        for stages in (6, 16):
            run(stages)
            counts.append(len(launches(lambda n=stages: run(n), self.device)))
        return (counts[1] - counts[0]) / 10

    def stages(self) -> None:
        """`df.sample`: microseconds of the host and kernels a stage."""
        denoiser, x = denoiser_of(self.output), self.output
        for name in ("euler", "dpmpp_2m", "euler_ancestral"):
            plans = {n: plan_of(name, n) for n in (6, 16, SHORT, LONG)}

            def run(n, plans=plans):
                return df.sample(denoiser, plans[n], x=x, seed=3)

            seconds, kernels = self.per_stage(run), self.kernels(run)
            self.figures.add(f"sample {name}", **{"us": seconds * 1e6, "kernels": kernels})
            if name == "dpmpp_2m":
                self.target("one plan step, host us", seconds * 1e6, "<=", 12)
                self.target("one plan step, kernels", kernels, "<=", 1)

    def steps(self) -> None:
        """`df.Stepper`: a step of a batch at one stage, and at several."""
        plan = plan_of("dpmpp_2m", LONG)
        stepper = df.Stepper(plan, denoiser_of(self.output), device=self.device)
        for each in (False, True):
            begun, _, _ = stepper.start(self.output, seed=3, each=each)

            def run(n, begun=begun):
                state = begun
                for _ in range(n):
                    state, _, _ = stepper.step(state, self.output)

            label = "each" if each else "together"
            seconds, kernels = self.per_stage(run), self.kernels(run)
            self.figures.add(f"Stepper {label}", **{"us": seconds * 1e6, "kernels": kernels})

    def graphs(self) -> None:
        """`df.GraphSampler`: what a stage of a replay costs beyond the network."""
        name = "graph replay, us a stage beyond the network"
        if not hasattr(df, "GraphSampler"):
            self.target(name, None, "<=", 4, NO_GRAPH)
            return
        if not self.on_cuda:
            self.target(name, None, "<=", 4, "a graph is for CUDA devices")
            return
        samplers = {
            n: df.GraphSampler(
                denoiser_of(self.output), plan_of("dpmpp_2m", n), SHAPE, device=self.device
            )
            for n in (SHORT, LONG)
        }
        seconds = self.per_stage(lambda n: samplers[n](seed=4))
        self.figures.add("GraphSampler dpmpp_2m", us=seconds * 1e6)
        self.target(name, seconds * 1e6, "<=", 4)

    def adaptive(self) -> None:
        """`df.sample_adaptive`: host time and kernels of an attempt, beyond the network."""
        denoiser = denoiser_of(self.output)
        # The profiler is slow: kernels are counted in short runs, where the start drops out too.
        lengths = (1.0, 0.3, 0.1, 0.03, 0.01)  # of the longest step
        for name in ("pec", "ggf", "dpm_23", "dopri5") if self.on_cuda else ("pec", "dopri5"):

            def run(h_max, name=name):
                given = {"h_max": h_max, "rtol": 0.3, "throw": False}
                return df.sample_adaptive(denoiser, name, x=self.output, **given)

            few, calls = lengths[0], {lengths[0]: int(run(lengths[0]).nfe.max())}
            for many in lengths[1:]:
                calls[many] = int(run(many).nfe.max())
                if calls[many] >= calls[few] + 20:
                    break
            more, rounds = calls[many] - calls[few], 5 if self.on_cuda else 1
            counts, times = [], []
            for h_max in (few, many):
                work = functools.partial(run, h_max)
                counts.append(len(launches(work, self.device)))
                times.append(wall_seconds(work, self.device, rounds).median)
            kernels, seconds = (counts[1] - counts[0]) / more, (times[1] - times[0]) / more
            facts = {"us": seconds * 1e6, "kernels": kernels, "calls": calls[many]}
            self.figures.add(f"adaptive {name}", **facts)
            self.target(f"adaptive attempt, {name}, host us", seconds * 1e6, "<=", 60)
            self.target(f"adaptive attempt, {name}, kernels", kernels, "<=", 10)

    def parallel(self) -> None:
        """`df.sample_parallel`: milliseconds and kernels of a round, network included."""
        plan = plan_of("ddim", 40)
        denoiser = df.Denoiser(lambda x, t: 0.5 * x, VP, predicts="epsilon")
        for method in ("secant", "prior", "anderson"):

            def run(method=method):
                x = self.output
                return df.sample_parallel(denoiser, plan, x=x, method=method, tol=1e-3)

            rounds = run().rounds
            seconds = wall_seconds(run, self.device, 3 if self.on_cuda else 1).median / rounds
            kernels = len(launches(run, self.device)) / rounds
            facts = {"ms a round": seconds * 1e3, "kernels": kernels, "rounds": rounds}
            self.figures.add(f"parallel {method}", **facts)

    def digits(self) -> None:
        """64 images of the digit network, 20 steps of dpmpp_2m, by all that can run them."""
        from diffast.digits import load_unet

        unet = load_unet().to(self.device)
        batch, steps = (64, 20) if self.on_cuda else (2, 3)
        labels = torch.arange(batch, device=self.device) % 10
        schedule = df.schedules.edm()
        plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, steps))
        denoiser = df.Denoiser(unet, schedule, predicts="x0", conditions={"labels": labels})
        shape = (batch, 1, 28, 28)
        x = 80.0 * torch.randn(shape, device=self.device)
        runs = {"sequential": lambda _: df.sample(denoiser, plan, x=x)}
        if hasattr(df, "GraphSampler") and self.on_cuda:
            sampler = df.GraphSampler(denoiser, plan, shape, device=self.device)
            runs["graph"] = lambda _: sampler(x=x)
        loop = diffusers_loop(unet, steps, x, labels)
        if loop is not None:
            runs["diffusers"] = loop
        rounds = 9 if self.on_cuda else 2
        with torch.no_grad():
            times = interleaved(runs, rounds, self.device)
        facts = {f"{name} ms": times[name].median * 1e3 for name in runs}
        self.figures.add(f"digits, {batch} images, {steps} steps", **facts)
        base = "diffusers" if "diffusers" in times else "sequential"
        reason = NO_GRAPH if not hasattr(df, "GraphSampler") else ""
        value = times[base].median / times["graph"].median if "graph" in times else None
        name = "digits: graph executor, times faster than diffusers' loop"
        if base == "sequential" and value is not None:
            self.figures.add("digits, sequential over graph", ratio=value)
            value, reason = None, "diffusers is not installed here"
        self.target(name, value, ">=", 2, reason)


def diffusers_loop(unet, steps: int, x: torch.Tensor, labels: torch.Tensor):
    """Returns diffusers' loop of the same run with its own scheduler, None without diffusers."""
    try:
        from diffusers import EDMDPMSolverMultistepScheduler as Scheduler
    except ImportError:
        return None
    levels = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    scheduler = Scheduler(**levels, prediction_type="epsilon")

    def run(_):
        scheduler.set_timesteps(steps, device=x.device)
        state = x
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i].to(x.device).expand(len(x))
            scaled = scheduler.scale_model_input(state, t)
            del scaled  # the digit network scales its input itself
            state = scheduler.step(unet(state, sigma, labels), t, state).prev_sample
        return state

    return run


PARTS = ("stages", "steps", "graphs", "adaptive", "parallel", "digits")


def main() -> int:
    """Runs the benchmark; returns its exit code: 1 if a part failed, after the others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = torch.device(parser.parse_args().device)
    figures, failed = Figures(), []
    figures.note(backend=df.backends()[device.type]["backend"])
    runs = Runs(device, figures)
    for part in PARTS:
        try:
            getattr(runs, part)()
        except Exception as error:  # the other parts still run, on a card that is soon gone
            failed.append(f"{part}: {type(error).__name__}: {error}")
            print(failed[-1], flush=True)
    figures.note(failed=failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
