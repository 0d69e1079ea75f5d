"""Writes results/conditions.json: how far each rule's samples are from a known posterior.

    python bench/measure_conditions.py                   # some minutes on one core
    python bench/measure_conditions.py particles         # the rows of particles alone, anew

Data in 16 dimensions are normal with variances that fall as a power law, 6 random projections are
measured with noise, and the network is exact. So the posterior is known, and the distance of a
rule's samples is theirs alone: the 2-Wasserstein distance of two normal laws, of the samples' mean
and covariance and of the posterior's, as a share of the posterior's own size. Each rule has the
best scale of a small grid at each number of calls, which a user would have to search for. "exact"
is the network of the conditioned data, "none" is without a condition.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

import diffast as df

DIMENSION, SEEN, NOISE, SAMPLES = 16, 6, 0.1, 2048
CALLS = (5, 10, 20, 50, 100)
WRITTEN = Path(__file__).parent / "results" / "conditions.json"
SCHEDULE = df.schedules.vp_linear()
F64 = torch.float64
SCALES = (0.03, 0.1, 0.3, 1.0, 3.0)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """Returns normals of float64."""
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


BASIS = torch.linalg.qr(numbers(DIMENSION, DIMENSION, seed=1))[0]
VARIANCES = torch.arange(1, DIMENSION + 1, dtype=F64) ** -1.0
COVARIANCE = BASIS @ torch.diag(VARIANCES) @ BASIS.T
MEAN = 0.5 * numbers(DIMENSION, seed=2)
MATRIX = numbers(SEEN, DIMENSION, seed=3) / math.sqrt(DIMENSION)
TRUTH = MEAN + BASIS @ (VARIANCES.sqrt() * numbers(DIMENSION, seed=4))
Y = (MATRIX @ TRUTH + NOISE * numbers(SEEN, seed=5))[None]


def measure(x: torch.Tensor) -> torch.Tensor:
    """The measurement of samples."""
    return x @ MATRIX.T


def posterior() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and covariance of the data given y."""
    seen = MATRIX @ COVARIANCE @ MATRIX.T + NOISE**2 * torch.eye(SEEN, dtype=F64)
    gain = COVARIANCE @ MATRIX.T @ torch.linalg.inv(seen)
    return MEAN + gain @ (Y[0] - MATRIX @ MEAN), COVARIANCE - gain @ MATRIX @ COVARIANCE


def network(mean: torch.Tensor, covariance: torch.Tensor, schedule=SCHEDULE):
    """Returns E[x0 | x] of normal data."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0.0)

    def estimate(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, s = (float(level(np.array(float(t[0])))) for level in (schedule.alpha, schedule.sigma))
        gain = a * values / (a * a * values + s * s)
        return mean + ((x - a * mean) @ vectors * gain) @ vectors.T

    return estimate


def root(matrix: torch.Tensor) -> torch.Tensor:
    """Returns the square root of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T


def distance(x: torch.Tensor) -> float:
    """Returns the 2-Wasserstein distance to the posterior as a share of the posterior's size."""
    if not bool(x.isfinite().all()) or float(x.abs().max()) > 1e6:
        return math.inf
    mean, covariance = posterior()
    own = torch.cov(x.T)
    half = root(covariance)
    squared = (x.mean(0) - mean).square().sum()
    squared += torch.trace(own + covariance - 2 * root(half @ own @ half))
    return float((squared.clamp(min=0.0) / torch.trace(covariance)).sqrt())


def grid_of(calls: int) -> np.ndarray:
    """Returns the grid of all runs."""
    return df.grids.uniform_logsnr(SCHEDULE, calls)


def ode(calls: int):
    """Returns the plan of terms that are scores or change the estimate."""
    return df.solvers.dpmpp_2m(SCHEDULE, grid_of(calls))


def first_order(calls: int):
    """Returns DDIM."""
    return df.solvers.euler(SCHEDULE, grid_of(calls))


def ancestral(calls: int):
    """Returns DDPM's plan."""
    return df.solvers.ddim(SCHEDULE, grid_of(calls), eta=1.0)


def on_state(calls: int):
    """Returns the plan of DPS and MCG as published."""
    return df.solvers.on_state(ancestral(calls))


def on_state_tfg(calls: int):
    """Returns the plan of TFG."""
    return df.solvers.on_state(ancestral(calls), ["variance", "mean"])


def renoised(calls: int):
    """Returns the plan of DiffPIR."""
    return df.solvers.renoised(SCHEDULE, grid_of(calls), 0.3)


def loss(x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The distance to what was measured, as minus a log-likelihood."""
    return 0.5 * ((measure(x0) - Y) / NOISE).square().sum(1)


G = df.guidance
# name -> (terms of a scale, plans, scales, backward passes a call)
RULES = {
    "mmps, 6 iterations": (lambda s: G.mmps(measure, Y, NOISE, iterations=6), ode, (1.0,), 7),
    "mmps, 3 iterations": (lambda s: G.mmps(measure, Y, NOISE), ode, (1.0,), 4),
    "mmps, 1 iteration": (lambda s: G.mmps(measure, Y, NOISE, iterations=1), ode, (1.0,), 2),
    "mmps, 1 iteration, first order": (
        lambda s: G.mmps(measure, Y, NOISE, iterations=1),
        first_order,
        (1.0,),
        2,
    ),
    "tmpd": (lambda s: G.tmpd(measure, Y, NOISE, s), ode, (0.3, 1.0), 2),
    "pigdm": (lambda s: G.pigdm(measure, Y, NOISE, spread=s), ode, (0.3, 0.5, 1.0), 1),
    "dps as a score": (lambda s: G.dps(measure, Y, s), ode, SCALES, 1),
    "dps as published": (lambda s: G.dps(measure, Y, s), on_state, SCALES, 1),
    "mcg, without projection": (lambda s: G.mcg(measure, Y, s), on_state, SCALES, 1),
    "lgd_mc": (lambda s: G.lgd_mc(loss, s, spread=0.3), ode, SCALES, 1),
    "tfg": (lambda s: G.tfg(loss, 0.1 * s, 0.01 * s), on_state_tfg, SCALES, 1),
    "mpgd": (lambda s: G.mpgd(measure, Y, s), ode, SCALES, 0),
    "diffpir": (lambda s: G.diffpir(measure, Y, NOISE, strength=s), renoised, (1.0, 7.0, 25.0), 0),
    "diffpir, no fresh noise": (
        lambda s: G.diffpir(measure, Y, NOISE, strength=s),
        ode,
        (1.0, 7.0, 25.0),
        0,
    ),
    "none": (lambda s: (), ode, (1.0,), 0),
}


def best(make, plans, scales, calls: int, x: torch.Tensor) -> tuple[float, float]:
    """Returns the least distance over the scales, and its scale."""
    found = []
    for scale in scales:
        denoiser = df.Denoiser(network(MEAN, COVARIANCE), SCHEDULE, "x0", guides=make(scale))
        made = df.sample(denoiser, plans(calls), x=x, throw=False)
        found.append((distance(made.x), scale))
    return min(found)


def particles(guided: bool, calls: int, count: int) -> float:
    """Returns the distance of weighted particles' draws, one of each sample."""
    values, vectors = torch.linalg.eigh(COVARIANCE)

    def reward(x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, s = (float(level(np.array(float(t[0])))) for level in (SCHEDULE.alpha, SCHEDULE.sigma))
        spread = (vectors * (s * s * values / (a * a * values + s * s))) @ vectors.T
        own = MATRIX @ spread @ MATRIX.T + NOISE**2 * torch.eye(SEEN, dtype=F64)
        residual = Y - measure(x0)
        return -0.5 * (residual @ torch.linalg.inv(own) * residual).sum(1)

    term = [G.loss(lambda x0, t: -reward(x0, t))] if guided else []
    denoiser = df.Denoiser(network(MEAN, COVARIANCE), SCHEDULE, "x0", guides=term)
    x = ancestral(calls).initial_scale * numbers(SAMPLES, count, DIMENSION, seed=8)
    made = df.sample_particles(denoiser, ancestral(calls), reward=reward, particles=count, x=x)
    return distance(made.draw())


def of_particles() -> dict[str, dict]:
    """Returns the rows of particles."""
    rows = {}
    for count in (4, 16):
        for guided in (False, True):
            name = f"{'TDS' if guided else 'FK steering'}, {count} particles"
            rows[name] = {
                str(n): {"distance": particles(guided, n, count), "backward": int(guided)}
                for n in CALLS
            }
            print(f"{name:32}", *(f"{row['distance']:8.3f}" for row in rows[name].values()))
    return rows


def main() -> None:
    """Measures and writes."""
    torch.set_num_threads(1)
    if sys.argv[1:] == ["particles"]:
        whole = json.loads(WRITTEN.read_text())
        whole["rules"] |= of_particles()
        WRITTEN.write_text(json.dumps(whole, indent=1))
        return
    x = numbers(SAMPLES, DIMENSION, seed=7)
    mean, covariance = posterior()
    rows = {}
    exact = df.Denoiser(network(mean, covariance), SCHEDULE, "x0")
    rows["exact"] = {str(n): {"distance": distance(df.sample(exact, ode(n), x=x).x)} for n in CALLS}
    for name, (make, plans, scales, backward) in RULES.items():
        rows[name] = {}
        for calls in CALLS:
            error, scale = best(make, plans, scales, calls, x)
            rows[name][str(calls)] = {"distance": error, "scale": scale, "backward": backward}
        print(f"{name:32}", *(f"{row['distance']:8.3f}" for row in rows[name].values()))
    rows |= of_particles()
    floor = distance(mean + numbers(SAMPLES, DIMENSION, seed=9) @ root(covariance))
    rows["draws of the posterior"] = {str(n): {"distance": floor} for n in CALLS}
    WRITTEN.write_text(json.dumps({"samples": SAMPLES, "noise": NOISE, "rules": rows}, indent=1))


if __name__ == "__main__":
    main()
