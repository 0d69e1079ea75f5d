"""Measures grids that are made for a network: analytic problems, small trained networks, digits.

    python bench/measure_tuned_grids.py analytic          # seconds
    python bench/measure_tuned_grids.py networks digits   # minutes; digits: ten on one core

Results are written to bench/results/tuned_grids.json, a part at a time; other parts stay.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import diffast as df
from diffast.tuning import grids as measured

RESULTS = Path(__file__).parent / "results" / "tuned_grids.json"
Network = Callable[..., torch.Tensor]


def mixture(means: list[float], variance: float, weights: list[float] | None = None) -> Network:
    """Returns the x0 estimate of a Gaussian mixture on a line, x = x0 + sigma n."""
    centres = torch.tensor(means, dtype=torch.float64)
    share = torch.ones_like(centres) if weights is None else torch.tensor(weights).double()

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        noise = sigma.reshape(-1, 1) ** 2
        whole = variance + noise
        likely = torch.softmax(share.log() - (x - centres) ** 2 / (2 * whole), dim=1)
        return (likely * (variance * x + noise * centres) / whole).sum(1, keepdim=True)

    return network


def spectrum(size: int = 256, deviation: float = 0.5) -> Network:
    """Returns the x0 estimate of Gaussian data whose variances fall as k^-2."""
    variance = torch.arange(1, size + 1, dtype=torch.float64) ** -2
    variance *= deviation**2 / variance.mean()

    def network(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return variance * x / (variance + sigma.reshape(-1, 1) ** 2)

    return network


ANALYTIC = {
    "two modes": (mixture([-1.0, 1.0], 0.04), 1, 0.01, 40.0, 512),
    "five uneven peaks": (
        mixture([-2.0, -1.0, 0.0, 0.7, 2.0], 0.01, [0.1, 0.3, 0.2, 0.25, 0.15]),
        1,
        0.005,
        40.0,
        512,
    ),
    "spectrum": (spectrum(), 256, 0.002, 80.0, 64),
}
SOLVERS = ("ddim", "dpmpp_2m", "heun")


def analytic_errors(
    network: Network, size: int, least: float, most: float, rows: int
) -> tuple[dict[str, list[float]], int]:
    """Returns rms errors at 5, 10 and 20 steps by "solver, grid", and the pilot's calls; float64.

    Grids end at sigma_min, and so does the flow that samples are compared with.
    """
    schedule = df.schedules.edm(least, most)
    denoiser = df.Denoiser(network, schedule, predicts="x0")
    pilot = measured.Pilot(denoiser, (rows, size), dtype=torch.float64)
    draw, count = torch.Generator().manual_seed(5), 4096 if size == 1 else 512
    x = most * torch.randn(count, size, generator=draw, dtype=torch.float64)
    fine = df.solvers.dopri5(schedule, df.grids.karras(schedule, 200, to_zero=False))
    ends = df.sample(denoiser, fine, x=x).x

    def error(solver: str, times: np.ndarray) -> float:
        plan = df.solvers.get(solver)(schedule, times)
        gap = df.sample(denoiser, plan, x=x).x - ends
        return float(gap.square().mean().sqrt())

    lines = {}
    for solver in SOLVERS:
        for grid in ("karras", "uniform_logsnr", *measured.NAMES):
            lines[f"{solver}, {grid}"] = [
                error(
                    solver,
                    pilot.grid(grid, steps, to_zero=False)
                    if grid in measured.NAMES
                    else getattr(df.grids, grid)(schedule, steps, to_zero=False),
                )
                for steps in (5, 10, 20)
            ]
    return lines, pilot.calls


def analytic() -> dict:
    """Returns the errors on the analytic problems."""
    table = {}
    for name, problem in ANALYTIC.items():
        lines, calls = analytic_errors(*problem)
        table[name] = {"steps": [5, 10, 20], "calls": calls, "errors": lines}
    return table


class Field(nn.Module):
    """An MLP on points of the plane and a time."""

    def __init__(self, width: int = 128):
        """Makes three hidden layers."""
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(0.5, 6.0, 12))
        self.layers = nn.Sequential(
            nn.Linear(26, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: torch.Tensor, clock: torch.Tensor) -> torch.Tensor:
        """Returns [B, 2] of x [B, 2] and a clock [B]."""
        angle = clock.reshape(-1, 1) * self.frequencies
        return self.layers(torch.cat([x, angle.sin(), angle.cos()], dim=1))


class Preconditioned(Field):
    """The x0 estimate in EDM's preconditioning, for data of deviation 1."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Returns the x0 estimate [B, 2]."""
        sigma = sigma.reshape(-1, 1).to(x.dtype)
        whole = (1 + sigma**2).sqrt()
        return x / whole**2 + sigma / whole * super().forward(x / whole, 0.25 * sigma.log())


def moons(count: int, draw: torch.Generator) -> torch.Tensor:
    """Returns points of two half circles, standardised."""
    angle = torch.rand(count, generator=draw) * torch.pi
    upper = torch.rand(count, generator=draw) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + 0.05 * torch.randn(count, 2, generator=draw)
    return (points - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5])


def trained(kind: str, iterations: int = 4000) -> df.Denoiser:
    """Returns a network of the plane after `iterations` steps of Adam: "edm" or "flow"."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    network = Preconditioned() if kind == "edm" else Field()
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        x0, noise = moons(512, draw), torch.randn(512, 2, generator=draw)
        if kind == "edm":
            sigma = (-1.2 + 1.6 * torch.randn(512, 1, generator=draw)).exp()
            weight = (1 + sigma**2) / sigma**2
            loss = (weight * (network(x0 + sigma * noise, sigma) - x0) ** 2).mean()
        else:
            t = torch.rand(512, 1, generator=draw)
            loss = ((network((1 - t) * x0 + t * noise, 4 * t) - (noise - x0)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    network.eval().requires_grad_(False)
    if kind == "edm":
        return df.Denoiser(network, df.schedules.edm(0.01, 40.0), predicts="x0")
    return df.Denoiser(lambda x, t: network(x, 4 * t), df.schedules.flow(), predicts="flow")


def digits() -> df.Denoiser:
    """Returns the embedded digit network, labels 0 to 9 in turn."""
    labels = torch.arange(640) % 10
    unet = df.digits.load_unet().requires_grad_(False)
    return df.Denoiser(unet, df.schedules.edm(), predicts="x0", conditions={"labels": labels})


def compared(
    name: str, denoiser: df.Denoiser, rows: int, held: int, shape: tuple, evaluations: int
) -> dict:
    """Returns the errors of solvers and grids at 5, 8 and 10 calls, and of the polished best."""

    def of_rows(count: int) -> df.Denoiser:
        own = {key: value[:count] for key, value in denoiser.conditions.items()}
        return replace(denoiser, conditions=own)

    started = time.perf_counter()
    pilot = measured.Pilot(of_rows(rows), (rows, *shape))
    held_out = measured.HeldOut(denoiser, (held, *shape), rows=max(held, 64))
    result: dict = {"teacher": held_out.accuracy, "calls": {}}
    for calls in (5, 8, 10):
        lines = measured.rank(denoiser, pilot, calls, held_out=held_out)
        table = {line.name: line.error for line in lines}
        for line in lines[:1]:
            better = measured.polish(of_rows(rows), pilot, line, evaluations=evaluations)
            table[better.name] = held_out.error(better.plan)
        result["calls"][calls] = table
        best = next(line for line in lines if line.grid not in measured.NAMES)
        print(f"{name}, {calls} calls: {lines[0]}; standard {best}; polished {table[better.name]}")
    return result | {"pilot": pilot.calls, "seconds": time.perf_counter() - started}


def networks() -> dict:
    """Returns the comparison on two networks of the plane."""
    return {
        f"{kind}, two moons": compared(kind, trained(kind), 64, 1024, (2,), 300)
        for kind in ("edm", "flow")
    }


def digit_network() -> dict:
    """Returns the comparison on the digits; 96 held-out noises."""
    return compared("digits", digits(), 24, 96, (1, 28, 28), 60)


PARTS = {"analytic": analytic, "networks": networks, "digits": digit_network}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    for part in given.parts:
        made = PARTS[part]()
        known = json.loads(given.out.read_text()) if given.out.exists() else {}
        given.out.parent.mkdir(exist_ok=True)
        given.out.write_text(json.dumps(known | {part: made}, indent=1) + "\n")


if __name__ == "__main__":
    main()
