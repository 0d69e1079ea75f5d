"""Measures Langevin correctors: calls by dimension, mixtures with a wrong network or start.

    python examples/measure_correctors.py --out docs/pictures

Writes correctors_dimension.json and .png, correctors_mixture.json and .png. docs/correctors.md
shows them. The Gaussian study is deterministic: means and variances go through the plans' matrices.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import diffast as df
from diffast.solvers.correctors.exact_step import step

# --- evaluations by dimension: N(0, 1/2) in every dimension, L = 2 in OU time ---

VARIANCE, LIPSCHITZ, START, END = 0.5, 2.0, 6.0, 1e-3
DIMENSIONS = (16, 64, 256, 1024, 4096)
TARGET = 0.01  # KL of all dimensions together
BUILD = {"dpom": df.solvers.dpom, "dpum": df.solvers.dpum}
# The whole length of a visit in the units of the paper: 1/L and 1/sqrt(L).
LENGTH = 1.0
TRIG = df.schedules.trig()


def time_of(ou: float) -> float:
    """Returns the model time of an OU time, alpha = exp(-ou)."""
    return float(np.arccos(np.exp(-ou)))


def variance_of(plan: df.Plan) -> float:
    """Returns the variance of the sample, from N(0, 1), through the plan's own matrices."""
    names = ("x", "v") if "v" in plan.rows else ("x",)
    normals = [c for c in ("z1", "z2") if c in plan.columns]
    at = plan.columns.index
    covariance = np.eye(len(names))
    for time, matrix in zip(plan.times, plan.matrix, strict=True):
        alpha, sigma = plan.schedule.alpha(time), plan.schedule.sigma(time)
        pull = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        rows = matrix[[plan.rows.index(name) for name in names]]
        move = rows[:, [at(name) for name in names]]
        move[:, 0] += pull * rows[:, at("d")]
        noise = rows[:, [at(z) for z in normals]]
        covariance = move @ covariance @ move.T + noise @ noise.T
    return float(covariance[0, 0])


def divergence(name: str, inner: int, n: int) -> tuple[float, int]:
    """Returns the KL of one dimension of a plan, and its network calls."""
    grid = df.grids.ou_stages(
        TRIG, inner, lipschitz=LIPSCHITZ, start=time_of(START), end=time_of(END)
    )
    plan = BUILD[name](TRIG, grid, lipschitz=LIPSCHITZ, n=n, step=LENGTH / n)
    alpha, sigma = TRIG.alpha(plan.end), TRIG.sigma(plan.end)
    ratio = variance_of(plan) / (alpha**2 * VARIANCE + sigma**2)
    return 0.5 * (ratio - 1.0 - np.log(ratio)), plan.nfe


def by_dimension() -> dict:
    """Returns for both methods the fewest calls that reach the target, by dimension."""
    counts = [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256]
    found = {}
    for name in BUILD:
        table = {}
        for inner in counts:
            for n in counts:
                if 0.25 <= n / inner <= 16:
                    table[inner, n] = divergence(name, inner, n)
        calls = []
        for d in DIMENSIONS:
            calls.append(min(nfe for kl, nfe in table.values() if d * kl <= TARGET))
        slope = np.polyfit(np.log(DIMENSIONS), np.log(calls), 1)[0]
        found[name] = {"calls": calls, "slope": round(float(slope), 3)}
        print("marginal", name, found[name], flush=True)
    return found


def path_divergence(name: str, h: float, total: float) -> float:
    """Returns the KL of one visit's path from the exact dynamics, one dimension, at stationarity.

    Girsanov: the mean of |s(x_t) - s(x_kh)|^2 over the path, over 4 (overdamped) or 4 g. That is
    what the theorem bounds. Data of unit Lipschitz constant 1/VARIANCE.
    """
    node, weight = np.polynomial.legendre.leggauss(20)
    times, weights = 0.5 * h * (node + 1.0), 0.5 * h * weight
    if name == "dpom":
        moved = times**2 / VARIANCE + 2.0 * times
        rate = 0.25
    else:
        friction = 2.0 * np.sqrt(LIPSCHITZ)
        steps = [step(friction, float(t)) for t in times]
        moved = np.array([s.drift**2 + s.push**2 / VARIANCE + s.state_noise**2 for s in steps])
        rate = 0.25 / friction
    return rate * float(weights @ moved) / VARIANCE**2 * total / h


def by_path() -> dict:
    """Returns the corrector's calls for which all visits' paths are within the target."""
    visits = round(LIPSCHITZ * START)
    found = {}
    for name, total in (("dpom", 1 / LIPSCHITZ), ("dpum", 1 / np.sqrt(LIPSCHITZ))):
        calls = []
        for d in DIMENSIONS:
            low, high = 1e-9, total
            for _ in range(60):
                h = np.sqrt(low * high)
                wrong = d * visits * path_divergence(name, h, total) > TARGET
                low, high = (low, h) if wrong else (h, high)
            calls.append(round(visits * total / low))
        slope = np.polyfit(np.log(DIMENSIONS), np.log(calls), 1)[0]
        found[name] = {"calls": calls, "slope": round(float(slope), 3)}
        print("path", name, found[name], flush=True)
    return found


# --- mixtures: W1 of the samples, at equal calls ---

MEANS, WEIGHTS, WIDTH = (-1.0, 1.0), (0.3, 0.7), 0.2
EDM = df.schedules.edm()
FIRST, LAST = 20.0, 0.02
# eight visits, with 48 calls and with 16
CORRECTED = {
    "ODE": None,
    "OLMC": "olmc",
    "ULMC": "ulmc",
    "BAOAB": "baoab",
    "few visits": "baoab",  # one or two, where the modes still meet
    "SDE": None,  # the solver with noise in its steps, all calls its own
}
# calls: (steps, calls of a visit, places), at sigma = 1.5 and 0.84, and at 1.26
FEW = {48: (24, 12, [9, 11]), 16: (10, 6, [4])}
WITH_NOISE = {"euler": "euler_ancestral", "dpmpp_2m": "dpmpp_2m_sde"}
SAMPLES = 20_000


class Mixture:
    """The x0 estimate of a mixture in one dimension; with a bias of eps above a level."""

    def __init__(self, bias: float, above: float):
        """Keeps the bias."""
        self.bias, self.above = bias, above

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns the x0 estimates [B, 1]."""
        sigma, at = t.double()[:, None], x.double()
        means, weights = torch.tensor(MEANS).double(), torch.tensor(WEIGHTS).double()
        total = WIDTH**2 + sigma**2
        share = torch.softmax(weights.log() - (at - means) ** 2 / (2 * total), 1)
        found = (share * (means + WIDTH**2 / total * (at - means))).sum(1, keepdim=True)
        wrong = (sigma > self.above).double() * self.bias
        return (found - sigma * wrong).to(x.dtype)


def w1(x: torch.Tensor) -> float:
    """Returns the Wasserstein-1 distance of the samples from the mixture at the last level."""
    random = np.random.default_rng(7)
    count = 8 * len(x)
    which = (random.random(count) < WEIGHTS[1]).astype(int)
    exact = np.array(MEANS)[which] + np.hypot(WIDTH, LAST) * random.normal(size=count)
    exact = np.sort(exact).reshape(-1, 8).mean(1)
    return float(np.abs(np.sort(x[:, 0].double().numpy()) - exact).mean())


def few_visits(solver: str, calls: int) -> df.Plan:
    """Returns a plan of so many calls with few and long visits."""
    steps, n, where = FEW[calls]
    plan = df.solvers.get(solver)(EDM, np.geomspace(FIRST, LAST, steps + 1))
    return df.solvers.predictor_corrector(plan, "baoab", n=n, where=where)


def mixture_plan(solver: str, corrector: str | None, calls: int) -> df.Plan:
    """Returns a plan of so many calls, half of them the corrector's, in 8 visits."""
    steps = calls if corrector is None else calls // 2
    sigma = np.geomspace(FIRST, LAST, steps + 1)
    plan = df.solvers.get(solver)(EDM, sigma)
    if corrector is None:
        return plan
    each = steps // 8
    return df.solvers.predictor_corrector(
        plan, corrector, n=each, where=range(each, steps + 1, each)
    )


def by_setting() -> dict:
    """Returns W1 by solver, calls, setting and corrector; standard deviation over 3 seeds."""
    third = float(np.geomspace(FIRST, LAST, 9)[3])
    settings = {"exact": (0.0, 1.0), "biased": (0.3, 1.0), "start": (0.0, 0.5)}
    found: dict = {}
    for solver in ("euler", "dpmpp_2m"):
        for calls in (48, 16):
            for setting, (bias, spread) in settings.items():
                for name, corrector in CORRECTED.items():
                    chosen = WITH_NOISE[solver] if name == "SDE" else solver
                    plan = mixture_plan(chosen, corrector, calls)
                    if name == "few visits":
                        plan = few_visits(solver, calls)
                    denoiser = df.Denoiser(Mixture(bias, third), EDM, predicts="x0")
                    values = []
                    for seed in range(3):
                        x = df.ops.normal((SAMPLES, 1), seed=seed, scale=FIRST * spread)
                        values.append(w1(df.sample(denoiser, plan, x=x, seed=seed).x))
                    key = f"{solver} {calls} {setting} {name}"
                    found[key] = [round(float(np.mean(values)), 4), round(float(np.std(values)), 4)]
                    print(key, found[key], flush=True)
    return found


# --- pictures ---


def draw_dimension(data: dict, path: Path) -> None:
    """Draws calls by dimension, of the sample's law and of the path's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6))
    titles = {"marginal": "law of the sample (all calls)", "path": "law of the paths (corrector)"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for name, colour in (("dpom", "tab:orange"), ("dpum", "tab:blue")):
            row = data[kind][name]
            label = f"{name.upper()}: $d^{{{row['slope']:.2f}}}$"
            axis.loglog(DIMENSIONS, row["calls"], "o-", color=colour, label=label)
        first = data[kind]["dpum"]["calls"][0]
        root = first * np.sqrt(np.array(DIMENSIONS) / DIMENSIONS[0])
        axis.loglog(DIMENSIONS, root, ":", color="gray", label="$d^{1/2}$")
        axis.set(title=title, xlabel="dimension d", ylabel=f"network calls for KL = {TARGET}")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def draw_mixture(data: dict, path: Path) -> None:
    """Draws W1 by setting and corrector."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, calls in zip(axes, (48, 16), strict=True):
        for k, name in enumerate(CORRECTED):
            heights = [
                data[f"dpmpp_2m {calls} {s} {name}"][0] for s in ("exact", "biased", "start")
            ]
            axis.bar(np.arange(3) + 0.14 * k - 0.35, heights, 0.12, label=name)
        axis.set_xticks(range(3), ["exact", "biased network", "wrong start"])
        axis.set(title=f"dpmpp_2m, {calls} calls", yscale="log")
    axes[0].set_ylabel("W1 to the data's law")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("dimension", "mixture"))
    options = parser.parse_args()
    if options.only != "mixture":
        data = {"dimensions": DIMENSIONS, "target": TARGET}
        data |= {"marginal": by_dimension(), "path": by_path()}
        (options.out / "correctors_dimension.json").write_text(json.dumps(data, indent=1) + "\n")
        draw_dimension(data, options.out / "correctors_dimension.png")
    if options.only != "dimension":
        data = by_setting()
        (options.out / "correctors_mixture.json").write_text(json.dumps(data, indent=1) + "\n")
        draw_mixture(data, options.out / "correctors_mixture.png")


if __name__ == "__main__":
    main()
