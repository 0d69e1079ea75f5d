"""Measures adaptive ODE methods against torchdiffeq: calls, error and wall time.

    python bench/measure_ode_pairs.py                     # a minute on one core

A velocity field of the plane is trained on the spot (CondOT path, eight Gaussians), wide enough
for a call on 2,000 samples to take about 2 ms on one core. Errors are rms distances to the end
points of dopri5 at tolerance 1e-9 in float64. Times are CPU times of the one thread, the best of
some runs; at equal error they come from lines through log(time) by log(error). Results:
bench/results/ode_pairs.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchdiffeq import odeint

import diffast as df

RESULTS = Path(__file__).parent / "results" / "ode_pairs.json"
TOLERANCES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
SAMPLES = 2000


class Velocity(nn.Module):
    """An MLP on (x, s), s from 0 (noise) to 1 (data)."""

    def __init__(self, width: int):
        """Makes three hidden layers."""
        super().__init__()
        sizes = [3, width, width, width, 2]
        layers: list[nn.Module] = []
        for before, after in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns the velocity [B, 2] at x [B, 2] and t [B]."""
        return self.layers(torch.cat([x, t.reshape(-1, 1)], 1))


def trained(width: int, iterations: int = 3000) -> Velocity:
    """Returns the field after Adam on the flow-matching loss."""
    torch.manual_seed(0)
    network, draw = Velocity(width), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        angle = torch.randint(0, 8, (256,), generator=draw) * torch.pi / 4
        data = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
        data += 0.1 * torch.randn(256, 2, generator=draw)
        noise, s = torch.randn(256, 2, generator=draw), torch.rand(256, 1, generator=draw)
        loss = ((network((1 - s) * noise + s * data, s) - (data - noise)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    return network.eval().requires_grad_(False)


def of_torchdiffeq(network: Velocity, x: torch.Tensor, tolerance: float, method: str) -> tuple:
    """Returns (samples, calls) of odeint."""
    calls = 0

    def field(s: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return network(x, s.expand(len(x)))

    with torch.inference_mode():
        ends = torch.tensor([0.0, 1.0], dtype=x.dtype)
        made = odeint(field, x, ends, rtol=tolerance, atol=tolerance, method=method)
    return made[-1], calls


def of_diffast(
    denoiser: df.Denoiser, x: torch.Tensor, tolerance: float, method: str, control: str
) -> tuple:
    """Returns (samples, calls) of df.sample_adaptive; calls are those of the slowest sample."""
    made = df.sample_adaptive(
        denoiser, method, x=x, rtol=tolerance, atol=tolerance, control=control
    )
    return made.x, made.rounds


def time_at(rows: list[dict], error: float, what: str) -> float:
    """Returns the time or calls at an error, from a line through neighbours in logarithms."""
    rows = sorted(rows, key=lambda row: row["error"])
    errors = np.log([row["error"] for row in rows])
    return float(np.exp(np.interp(np.log(error), errors, np.log([row[what] for row in rows]))))


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    network = trained(given.width)
    x = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(3))
    exact = Velocity(given.width).double()
    exact.load_state_dict(network.state_dict())
    ends, _ = of_torchdiffeq(exact, x.double(), 1e-9, "dopri5")
    denoiser = df.Denoiser.from_velocity(network)
    runs: dict[str, Callable] = {
        f"torchdiffeq {method}": lambda tol, m=method: of_torchdiffeq(network, x, tol, m)
        for method in ("dopri5", "bosh3")
    }
    for control in ("batch", "sample"):
        for method in ("dopri5", "tsit5", "bosh3"):
            runs[f"diffast {method}, {control}"] = lambda tol, m=method, c=control: of_diffast(
                denoiser, x, tol, m, c
            )
    table: dict[str, list[dict]] = {name: [] for name in runs}
    network(x, torch.zeros(SAMPLES))
    with torch.inference_mode():
        started = time.process_time()
        for _ in range(50):
            network(x, torch.zeros(SAMPLES))
        call = (time.process_time() - started) / 50
    for tolerance in TOLERANCES:
        times: dict[str, list[float]] = {name: [] for name in runs}
        found = {}
        for _ in range(given.repeats):  # in turn, so that another load of the machine hits all
            for name, run in runs.items():
                started = time.process_time()
                found[name] = run(tolerance)
                times[name].append(time.process_time() - started)
        for name, (samples, calls) in found.items():
            error = float((samples.double() - ends).square().mean().sqrt())
            row = {"tolerance": tolerance, "calls": calls, "error": error}
            table[name].append(row | {"ms": 1e3 * min(times[name])})
    ratios = {}
    peer = table["torchdiffeq dopri5"]
    for name, rows in table.items():
        low = max(min(row["error"] for row in r) for r in (peer, rows))
        high = min(max(row["error"] for row in r) for r in (peer, rows))
        errors = np.geomspace(low, high, 9)
        ratios[name] = {
            what: float(
                np.exp(
                    np.mean(
                        [np.log(time_at(rows, e, what) / time_at(peer, e, what)) for e in errors]
                    )
                )
            )
            for what in ("ms", "calls")
        }
        print(f"{name:24s} time {ratios[name]['ms']:.2f} calls {ratios[name]['calls']:.2f}")
        for row in rows:
            print(
                f"   {row['tolerance']:g}: {row['calls']} calls, error {row['error']:.3g}, "
                f"{row['ms']:.1f} ms"
            )
    body = {"call_ms": 1e3 * call, "samples": SAMPLES, "ratios": ratios, "runs": table}
    given.out.write_text(json.dumps(body, indent=1) + "\n")


if __name__ == "__main__":
    main()
