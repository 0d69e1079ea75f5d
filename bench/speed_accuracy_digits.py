"""The speed-accuracy relation on the embedded digit network, and its paths in real solvers.

    python bench/speed_accuracy_digits.py --data mnist-10k.npz --out speed_accuracy_digits.json

1. The loss curve of the network, without labels, at 25 noise levels.
2. Runs from the right start N(0, 80^2) and from wrong ones, from the same normals: W1 along the
   path (sqrt(d) times the sliced one), so eta and c_1, and the squared velocity, so c_2.
   A run in sigma is that of every scalar schedule: its states are alpha x, and its times others.
3. RMSE at 5, 8 and 10 calls on grids that are even in the time of each path.

`examples/speed_accuracy.py` draws the result, bench/results/speed_accuracy_digits.json.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import diffast as df
from diffast.thermo import Gaussian, bound, distances
from diffast.thermo.estimate import mean_of

EDM = df.schedules.edm()
D, CALLS, SIGMA, DIRECTIONS = 784, 18, 80.0, 256


def denoiser() -> df.Denoiser:
    """Returns the digit network without labels."""
    network, labels = df.digits.load_unet(), torch.full((1,), df.digits.NULL_LABEL)

    def unlabelled(x, t):
        return network(x, t, labels.expand(len(x)))

    return df.Denoiser(unlabelled, EDM, "x0")


@torch.no_grad()
def loss_curve(images: torch.Tensor, count: int) -> dict:
    """Returns the loss summed over the elements, with its standard error, at noise levels."""
    levels, network = np.geomspace(0.005, 100.0, 25), denoiser().network
    drawn, found = torch.Generator().manual_seed(5), []
    for level in levels.tolist():
        y = images[torch.randperm(len(images), generator=drawn)[:count]]
        x = y + level * torch.randn(y.shape, generator=drawn)
        apart = torch.cat([network(part, torch.full((len(part),), level)) for part in x.split(100)])
        found.append(mean_of((apart - y).square().flatten(1).sum(1)))
        print(f"loss at {level:.3g}: {found[-1]}", flush=True)
    return {
        "rho": levels.tolist(),
        "mmse": [f.value for f in found],
        "error": [f.error for f in found],
        "count": count,
    }


def mmse_of(curve: dict):
    """Returns mmse(rho) between the measured levels: mmse / (E rho^2 / (c^2 + rho^2)) in lines."""
    levels, known = np.log(curve["rho"]), np.array(curve["mmse"])
    energy = curve["energy"]
    square = energy / D
    share = known * (square + np.exp(2 * levels)) / (energy * np.exp(2 * levels))

    def mmse(rho):
        rho = np.asarray(rho, dtype=np.float64)
        at = np.interp(np.log(rho), levels, np.minimum(share, 1.0))
        return at * energy * rho**2 / (square + rho**2)

    return mmse


def starts(images: torch.Tensor, count: int) -> dict:
    """Returns name -> (normals [N, D] of deviation 1, chi-square) of the right and wrong starts."""
    z = torch.randn(count, D, generator=torch.Generator().manual_seed(1))
    basis = torch.tensor(Gaussian.of(images[:3000].numpy(), rank=8).basis.copy()).float()
    squeezed = z - 0.2 * (z @ basis.T) @ basis

    def factor(s):
        return 1.0 / (s * math.sqrt(2.0 - s * s))

    return {
        "right": (z, 0.0),
        "mean moved by 1": (z + basis[0], math.e - 1.0),
        "8 directions at 0.8": (squeezed, factor(0.8) ** 8 - 1.0),
        "all elements at 0.98": (0.98 * z, factor(0.98) ** D - 1.0),
    }


def walk(z: torch.Tensor, batch: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns states [K, N, D], start and end included, and estimates [K - 1, N, D]."""
    made, plan = denoiser(), df.solvers.dpmpp_2m(EDM, df.grids.even(EDM, CALLS))
    states, estimates = [], []
    for part in z.split(batch):
        x, x0 = [SIGMA * part], []
        df.sample(
            made,
            plan,
            x=SIGMA * part.reshape(-1, 1, 28, 28),
            on_x0=lambda d, info, x0=x0: x0.append(d.flatten(1).clone()) or d,
            callback=lambda p, x=x: x.append(p.x.flatten(1).clone()),
        )
        states.append(torch.stack(x))
        estimates.append(torch.stack(x0))
    return torch.cat(states, 1), torch.cat(estimates, 1)


def own_action(schedule, states, estimates, levels) -> float:
    """Returns c_2 of the network's own flow on a scalar schedule, from the velocities of a run.

    dx/dt = alpha' X + alpha rho' (X - D) / rho, for the state X of the run in sigma. The integral
    is the trapezoidal rule over the calls; the last piece, below the last call, has its velocity.
    """
    rho = levels[:-1]
    t = schedule.time(-np.log(rho))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    dalpha, dsigma = schedule.derivatives(t)
    drho = (dsigma * alpha - sigma * dalpha) / alpha**2
    squares = []
    for k in range(len(rho)):
        x, apart = states[k].double(), states[k].double() - estimates[k].double()
        v = dalpha[k] * x + alpha[k] * drho[k] / rho[k] * apart
        squares.append(float(v.square().sum(1).mean()))
    t, squares = np.append(t, schedule.t_end), np.append(squares, squares[-1])
    area = torch.trapezoid(torch.tensor(squares), torch.tensor(t))
    return -float(area) * float(t[0] - t[-1])


def paths(mmse, energy: float) -> dict:
    """Returns name -> schedule."""
    return {
        "cosine": df.schedules.trig(),
        "conditional OT": df.schedules.flow(),
        "cosine, constant speed": df.thermo.retime(df.schedules.trig(), mmse, energy, D),
        "best scalar": df.thermo.best_scalar(mmse, energy, D),
    }


def relation(made: dict, mmse, energy: float, runs: dict, levels: np.ndarray) -> list[dict]:
    """Returns a row for each path and wrong start."""
    rows, (right, estimates, _) = [], runs["right"]
    for name, schedule in made.items():
        t = np.append(schedule.time(-np.log(levels[:-1])), schedule.t_end)
        alpha = schedule.alpha(t)
        loss_form = df.thermo.action(schedule, mmse, energy, D)
        own = own_action(schedule, right, estimates, levels)
        for start, (states, _, chi2) in runs.items():
            if start == "right":
                continue
            pair = [
                [float(a) * s for a, s in zip(alpha, which, strict=True)]
                for which in (right, states)
            ]
            report = bound.speed_accuracy(*pair, t, chi2, loss_form, DIRECTIONS)
            rows.append({"path": name, "start": start, **report.to_dict(), "c_2_own_flow": own})
            rows[-1]["says"] = report.says()
            print(name, "|", start, "|", report.says(), "| own flow", round(own, 2), flush=True)
    return rows


def transport(images: torch.Tensor, runs: dict, count: int) -> dict:
    """Returns what can be had of optimal transport in 784 dimensions."""
    law = Gaussian.of(images.flatten(1).numpy())
    field = df.thermo.GaussianTransport(law)
    y = images.flatten(1)[torch.randperm(len(images), generator=torch.Generator().manual_seed(2))]
    pairs = df.thermo.SampledTransport(y[:count])
    etas = {}
    for start, (states, _, chi2) in runs.items():
        if start == "right":
            continue
        ends = []
        for z in (runs["right"][0][0], states[0]):
            x = z.double() / SIGMA
            # the map is linear, so one step of the field from s = 0 is exact
            ends.append([x + field(x, t=0.0), x])
        report = bound.speed_accuracy(*ends, [0.0, 1.0], chi2, field.action, DIRECTIONS)
        etas[start] = report.to_dict()
        print("OT of the Gaussian law |", start, "|", report.says(), flush=True)
    return {"gelbrich": field.action, "assignment": pairs.action, "pairs": count, "gaussian": etas}


@torch.no_grad()
def solvers(made: dict, count: int) -> list[dict]:
    """Returns RMSE to a run of 80 calls on grids even in the time of each path."""
    network = denoiser()
    x = SIGMA * torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    fine = df.sample(network, df.solvers.heun(EDM, df.grids.karras(EDM, 40)), x=x).x
    grids = {f"{name}, even in time": schedule for name, schedule in made.items()}
    rows = []
    for calls in (5, 8, 10):
        tried = {"karras": df.grids.karras(EDM, calls), "even": df.grids.even(EDM, calls)}
        for name, schedule in grids.items():
            t = df.grids.uniform_time(schedule, calls)
            levels = np.exp(-schedule.lam(t))
            levels[0], levels[-1] = SIGMA, 0.0
            tried[name] = df.grids.from_sigmas(EDM, levels)
        for name, grid in tried.items():
            for solver in ("ddim", "dpmpp_2m"):
                plan = getattr(df.solvers, solver)(EDM, grid)
                got = df.sample(network, plan, x=x).x
                error = (got - fine).square().flatten(1).mean(1).sqrt()
                found = mean_of(error)
                rows.append({"calls": plan.nfe, "grid": name, "solver": solver})
                rows[-1] |= {"rmse": found.value, "error": found.error}
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="npz with images uint8 [N, 28, 28]"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=800, help="samples of each run")
    parser.add_argument("--loss", type=int, default=300, help="images at each noise level")
    parser.add_argument("--pairs", type=int, default=1500, help="pairs of the assignment")
    parser.add_argument("--solver-count", type=int, default=100)
    given = parser.parse_args()
    with np.load(given.data, allow_pickle=False) as file:
        images = torch.from_numpy(file["images"]).float()[:, None] / 127.5 - 1
    energy = float(images.double().square().sum() / len(images))
    curve = loss_curve(images, given.loss)
    curve["energy"] = energy
    found: dict = {"d": D, "curve": curve, "calls": CALLS, "count": given.count}

    def save():
        given.out.write_text(json.dumps(found, indent=1) + "\n")

    mmse = mmse_of(curve)
    made = paths(mmse, energy)
    found["angle"] = df.thermo.angle(mmse, D, energy)
    found["c_2"] = {name: df.thermo.action(s, mmse, energy, D) for name, s in made.items()}
    save()
    levels = df.grids.even(EDM, CALLS)
    runs = {}
    for start, (z, chi2) in starts(images, given.count).items():
        states, estimates = walk(z)
        runs[start] = (states, estimates, chi2)
        print("run", start, flush=True)
    found["rows"] = relation(made, mmse, energy, runs, levels)
    save()
    y = images.flatten(1)[: given.count]
    found["to_data"] = {
        name: math.sqrt(D) * distances.wasserstein1(states[-1], y, DIRECTIONS)
        for name, (states, _, _) in runs.items()
    }
    found["to_data"]["other images"] = math.sqrt(D) * distances.wasserstein1(
        images.flatten(1)[given.count : 2 * given.count], y, DIRECTIONS
    )
    found["transport"] = transport(images, runs, given.pairs)
    save()
    found["solvers"] = solvers(made, given.solver_count)
    save()


if __name__ == "__main__":
    main()
