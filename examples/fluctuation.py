"""The fluctuation theorem at work: a run and its reverse, broken samplers found, likelihoods.

    python examples/fluctuation.py --out docs/pictures             figures and the picture
    python examples/fluctuation.py --out docs/pictures --digits    also the digit network

Writes thermo_fluctuation.json and .png; docs/thermodynamics.md shows them. Data in one dimension,
.5 N(-1, 1) + .5 N(1, 1), with alpha = exp(-t), sigma^2 = 1 - exp(-2 t) up to t = 1.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import diffast as df

BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
F64 = torch.float64
OU = df.schedules.vp_linear(2.0, 2.0)
TWO = df.thermo.GaussianMixture(None, [-1.0, 1.0], 1.0)
TOP = float(OU.alpha(1.0)), float(OU.sigma(1.0))
X = 0.7
STEPS = (3, 5, 10, 20, 50, 100)


def at_top(x: torch.Tensor) -> torch.Tensor:
    """Returns the log-density of the noised data at t = 1."""
    return TWO.log_density(x, *TOP)


def noised(count: int, seed: int) -> torch.Tensor:
    """Returns noised data at t = 1."""
    eps = torch.randn(count, 1, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return TOP[0] * TWO.sample(count, seed + 1) + TOP[1] * eps


# --- a run and its reverse -----------------------------------------------------------------------


def crooks(count: int = 100_000) -> dict:
    """Returns dS of runs of a plan, and of noising paths from the data, with their densities.

    dS = log p(path) - log q(path) for runs, p the plan's chain and q the noising from data. Crooks:
    the density of dS over runs is exp(dS) times that over noising paths, so the two cross at 0.
    """
    times = np.linspace(1.0, 0.1, 4)
    plan = df.solvers.ddpm(OU, df.grids.from_times(OU, times))
    denoiser, end = TWO.denoiser(OU), plan.levels[-1, -1].tolist()
    start = noised(count, 5)
    runs = df.thermo.fluctuation_test_of_plan(denoiser, plan, TWO, x=start, log_start=at_top)
    eps = torch.randn(count, 1, dtype=F64, generator=torch.Generator().manual_seed(9))
    x = end[0] * TWO.sample(count, 8) + end[1] * eps
    made = df.thermo.log_likelihood(
        *(denoiser, plan, x),
        paths=1,
        noising="schedule",
        log_start=at_top,
        warn=False,
        rows=count,
    )
    noising = made.log_weights[:, 0] - TWO.log_density(x, *end)
    edges = np.linspace(-2.5, 1.5, 49)
    shares = [np.histogram(v.numpy(), edges)[0] / count for v in (runs.values, noising)]
    enough = (shares[0] * count > 100) & (shares[1] * count > 100)
    middle = 0.5 * (edges[1:] + edges[:-1])
    ratio = np.log(shares[0][enough] / shares[1][enough])
    slope, offset = np.polyfit(middle[enough], ratio, 1, w=np.sqrt(count * shares[1][enough]))
    return {
        "runs": (shares[0] / np.diff(edges)).tolist(),
        "noising": (shares[1] / np.diff(edges)).tolist(),
        "edges": edges.tolist(),
        "middle": middle[enough].tolist(),
        "ratio": ratio.tolist(),
        "slope": float(slope),
        "offset": float(offset),
        "identity": runs.identity[:2],
        "entropy": runs.entropy[:2],
    }


# --- samplers that are broken on purpose ---------------------------------------------------------


def run(count, steps, dynamics, drift=1.0, noise=1.0, turned=False, seed=3):
    """Returns the states and times of an Euler-Maruyama sampler, with factors that break it."""
    times, drawn = np.linspace(1.0, 0.0, steps + 1), torch.Generator().manual_seed(seed)
    states = [noised(count, seed + 50)]
    for a, b in zip(times[:-1], times[1:], strict=True):
        h, t = a - b, 1.0 - a if turned else a
        force = sum(part(states[-1], t) for part in dynamics.drift.values())
        z = torch.randn(count, 1, dtype=F64, generator=drawn)
        scale = noise * math.sqrt(2.0 * dynamics.temperature(a) * h)
        states.append(states[-1] + drift * h * force + scale * z)
    return torch.stack(states), times


def broken(count: int = 50_000, steps: int = 50) -> dict:
    """Returns what the test says of samplers whose author means `sampling_dynamics`."""
    means = df.thermo.sampling_dynamics(OU, TWO.score)

    def halved(x: torch.Tensor, t: float) -> torch.Tensor:
        return 0.5 * means.drift["score"](x, t)

    half = df.thermo.Dynamics(means.drift | {"score": halved}, means.temperature)
    cases = {
        "right": (means, {}),
        "noise times $\\sqrt{2}$": (means, {"noise": math.sqrt(2.0)}),
        "noise over $\\sqrt{2}$": (means, {"noise": math.sqrt(0.5)}),
        "half the score": (half, {}),
        "half the drift": (means, {"drift": 0.5}),
        "time turned": (means, {"turned": True}),
    }
    found = {}
    for name, (dynamics, slips) in cases.items():
        x, times = run(count, steps, dynamics, **slips)
        test = df.thermo.fluctuation_test(x, times, *means, at_top, TWO)
        found[name] = {
            "identity": test.identity[:2],
            "verdict": test.verdict,
            "slips": list(test.slips),
        }
        print(f"{name}: {test}\n", flush=True)
    return found


# --- likelihoods ---------------------------------------------------------------------------------


def plan_of(steps: int) -> tuple[df.Plan, float]:
    """Returns the reverse steps with the forward step's variance, and the last one's deviation."""
    times = (np.arange(steps, -1, -1) / steps) ** 2
    plan = df.solvers.ddpm(OU, df.grids.from_times(OU, times), variance="large")
    return plan, math.sqrt(-math.expm1(-2.0 * times[-2]))


def by_steps(paths: int = 20_000) -> dict:
    """Returns log <W> and <log W> at one point by the number of steps."""
    x, found = torch.tensor([[X]], dtype=F64), {}
    for steps in STEPS:
        plan, last = plan_of(steps)
        made = df.thermo.log_likelihood(
            TWO.denoiser(OU), plan, x, paths=paths, observation_noise=last, log_start=at_top
        )
        found[steps] = [float(v) for v in (made.value, made.error, made.elbo, made.ess)]
        print(f"K = {steps}: {made}", flush=True)
    return found


def ode_likelihood(data: df.thermo.GaussianMixture, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Returns log-densities [N] by the probability-flow ODE and the trace of its Jacobian.

    dx/dt = -(x + score), d log p / dt = -trace, by the classical Runge-Kutta method from t = 0 to 1
    (Chen et al. 2018; Song et al. 2021).
    """

    def slope(x: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = math.exp(-t), math.sqrt(-math.expm1(-2.0 * t))
        spread = data.posterior_covariance(x, alpha, sigma or 1e-12)
        trace = alpha**2 * spread.diagonal(dim1=1, dim2=2).sum(1) - sigma**2 * data.d
        trace = trace / (sigma or 1e-12) ** 4  # of the score
        return -(x + data.score(x, alpha, sigma)), data.d + trace

    moved, h = torch.zeros(len(x), dtype=F64), (1.0 - 1e-5) / steps
    for k in range(steps):
        t, made = 1e-5 + k * h, []
        for share in (0.0, 0.5, 0.5, 1.0):
            at = x + share * h * made[-1][0] if made else x
            made.append(slope(at, t + share * h))
        weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        x = x + h * sum(w * v for w, (v, _) in zip(weights, made, strict=True))
        moved = moved - h * sum(w * r for w, (_, r) in zip(weights, made, strict=True))
    return data.log_density(x, math.exp(-1.0), math.sqrt(-math.expm1(-2.0))) + moved


def two_routes(count: int = 200) -> dict:
    """Returns mean errors of log-densities in one and two dimensions, of both routes.

    Against the data's own density: the plan's chain (log <W> of 200 paths, and its lower bound)
    and the ODE with the exact trace.
    """
    plane = df.thermo.GaussianMixture(
        [0.5, 0.3, 0.2], [[-1.0, 0.0], [1.0, 1.0], [1.0, -1.5]], [0.3, 0.5, 0.2]
    )
    found = {}
    for name, data in (("1-D", TWO), ("2-D", plane)):
        x = data.sample(count, 4)
        exact = data.log_density(x)

        def start(y: torch.Tensor, data: df.thermo.GaussianMixture = data) -> torch.Tensor:
            return data.log_density(y, *TOP)

        for calls in (8, 20, 40, 80):
            plan, last = plan_of(calls)
            made = df.thermo.log_likelihood(
                *(data.denoiser(OU), plan, x),
                paths=200,
                observation_noise=last,
                log_start=start,
                warn=False,
            )
            ode = ode_likelihood(data, x, calls // 4)
            rows = {"log <W>": made.value, "<log W>": made.elbo, "ODE": ode}
            found[f"{name}, {calls} calls"] = {
                key: float((value - exact).abs().mean()) for key, value in rows.items()
            } | {"ess": float(made.ess.median())}
            print(name, calls, found[f"{name}, {calls} calls"], flush=True)
    return found


def digits(count: int = 4, paths: int = 8) -> dict:
    """Returns the likelihood of generated digits under plans for the digit network."""
    schedule, labels = df.schedules.edm(), torch.arange(count)
    denoiser = df.Denoiser(df.digits.load_unet(), schedule, "x0", conditions={"labels": labels})
    x = df.sample(denoiser, calls=20, shape=(count, 1, 28, 28), seed=5).x
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    x, found = x + 0.1 * eps, {}
    for calls in (10, 20, 40, 80):
        grid = df.grids.karras(schedule, calls, sigma_min=0.1, sigma_max=80.0, to_zero=False)
        plan = df.solvers.ddpm(schedule, grid)
        made = df.thermo.log_likelihood(denoiser, plan, x, paths=paths, warn=False)
        found[calls] = {
            "log <W> a dimension": float(made.value.mean()) / made.d,
            "<log W> a dimension": float(made.elbo.mean()) / made.d,
            "gap, nats": float(made.gap.mean()),
            "error of <log W>, nats": float(made.elbo_error.mean()),
            "ess": float(made.ess.mean()),
            "paths": paths,
        }
        print(calls, found[calls], flush=True)
    return found


# --- the picture ---------------------------------------------------------------------------------


def picture(found: dict, path: Path) -> None:
    """Draws the figures."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    crook = found["crooks"]
    edges = np.array(crook["edges"])
    left.stairs(crook["runs"], edges, color=BLUE, linewidth=2, label="runs of the plan")
    left.stairs(
        crook["noising"], edges, color=ORANGE, linewidth=2, linestyle="--", label="noising paths"
    )
    left.axvline(0.0, color=GRAY, linewidth=1)
    left.set(
        xlabel="entropy dS of a path, nats",
        ylabel="density",
        title=f"A run and its reverse cross at 0\n<exp(-dS)> = {crook['identity'][0]:.4f} "
        f"$\\pm$ {crook['identity'][1]:.4f}",
    )
    left.legend(frameon=False, loc="upper left", fontsize=9)
    inset = left.inset_axes((0.08, 0.36, 0.3, 0.36))
    inset.plot(crook["middle"], crook["ratio"], "o", color=BLUE, markersize=3)
    ends = np.array([min(crook["middle"]), max(crook["middle"])])
    inset.plot(ends, ends, color=GRAY, linewidth=1)
    inset.set_title(f"log-ratio, slope {crook['slope']:.3f}", fontsize=8)
    inset.tick_params(labelsize=7)

    names = list(found["broken"])
    for row, name in enumerate(names):
        value, error = found["broken"][name]["identity"]
        fine = found["broken"][name]["verdict"] == "consistent"
        style = {"color": GREEN if fine else RED, "marker": "o" if fine else "X"}
        middle.errorbar(value, row, xerr=3 * error, markersize=8, capsize=3, **style)
        said = found["broken"][name]["verdict"]
        said += "" if fine or abs(value - 1.0) > 5 * error else ", by its steps"
        middle.annotate(said, (value, row), (0, 9), textcoords="offset points", ha="center")
    middle.axvline(1.0, color=GRAY, linewidth=1)
    middle.set_yticks(range(len(names)), names)
    middle.set_ylim(len(names) - 0.4, -0.8)
    middle.margins(x=0.18)
    middle.set(xlabel="<exp(-dS)>, three standard errors", title="Samplers broken on purpose")

    steps = [int(k) for k in found["steps"]]
    rows = np.array(list(found["steps"].values()))
    right.errorbar(
        *(steps, rows[:, 0]), yerr=3 * rows[:, 1], color=BLUE, marker="o", label="log <W>"
    )
    right.plot(steps, rows[:, 2], color=ORANGE, marker="s", linestyle="--", label="bound <log W>")
    right.fill_between(steps, rows[:, 2], rows[:, 0], color=BLUE, alpha=0.12, label="dissipation")
    exact = float(TWO.log_density([[X]]))
    right.axhline(exact, color=GRAY, linewidth=1, label="density of the data")
    right.set(
        xscale="log",
        xlabel="steps K",
        ylabel="nats",
        title=f"Log-likelihood of x = {X} under a plan",
    )
    right.set_xticks(steps, [str(k) for k in steps])
    right.minorticks_off()
    right.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--digits", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = options.out / "thermo_fluctuation.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    found |= {
        "crooks": crooks(),
        "broken": broken(),
        "steps": by_steps(),
        "routes": two_routes(),
    }
    if options.digits:
        found["digits"] = digits()
    path.write_text(json.dumps(found, indent=1) + "\n")
    picture(json.loads(path.read_text()), path.with_suffix(".png"))


if __name__ == "__main__":
    main()
