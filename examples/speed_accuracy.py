"""Draws the speed-accuracy relation eta <= c_1 <= c_2 on a line, in a plane and on digits.

    python examples/speed_accuracy.py --out docs/pictures --digits speed_accuracy_digits.json

Figures 6 and 7 of Ikeda, Uda, Okanohara and Ito 2025 (PRX 15, 031031), redone. The parameters of
their mixture are not published; ours is .5 N(-1, .09) + .5 N(1, .09). Their rotating protocol (99)
is redone as the drift -h x + g J x at the temperature T with h = 1.1 and T = .5, so its numbers are
ours too. Writes thermo_paths_1d.png, thermo_paths_2d.png, thermo_speed_accuracy.png and .json.
The digits are those of bench/speed_accuracy_digits.py; without `--digits` the last picture has
none. Needs matplotlib and scipy: diffast[thermo].
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import diffast as df
from diffast.thermo import bound, distances

# Blue, orange, green and purple that colour-blind readers tell apart (Okabe and Ito).
COLOURS = {"cosine": "#0072B2", "conditional OT": "#E69F00", "best scalar": "#009E73"}
COLOURS |= {"OT": "#CC79A7", "g = 0": "#56B4E9", "g = 3": "#D55E00", "g = 5": "#000000"}
TRIG, FLOW = df.schedules.trig(), df.schedules.flow()
SHARE = np.sin(np.linspace(0.0, 0.5 * math.pi, 101)) ** 2  # times over [0, 1], dense at the ends

# --- on a line ---

TWO = df.thermo.GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.09)
X = torch.linspace(-7.0, 7.0, 4001, dtype=torch.float64)


def normal_cdf(mean: float, deviation: float):
    """Returns the distribution function of N(mean, deviation^2)."""
    return lambda z: torch.special.ndtr((z - mean) / deviation)


def mixed(parts: list) -> object:
    """Returns sum of weight times function."""
    return lambda z: sum(weight * part(z) for weight, part in parts)


def flat(low: float, high: float):
    """Returns the distribution function of the uniform law."""
    return lambda z: ((z - low) / (high - low)).clamp(0.0, 1.0)


# Distribution functions of the reverse start, in place of N(0, 1).
STARTS = {
    "mean: N(.3, 1)": normal_cdf(0.3, 1.0),
    "variance: N(0, .8²)": normal_cdf(0.0, 0.8),
    "mixture: .5 N(±.5, .75)": mixed([(0.5, normal_cdf(s, 0.75**0.5)) for s in (-0.5, 0.5)]),
    "uniform: .8 N(0, 1) + .2 U(0, 2)": mixed([(0.8, normal_cdf(0.0, 1.0)), (0.2, flat(0.0, 2.0))]),
}


def quantiles(alpha: float, sigma: float) -> torch.Tensor:
    """Returns z(x) with Phi(z) = F_t(x) at the points X, without losing the upper tail."""
    spread = (alpha**2 * 0.09 + sigma**2) ** 0.5

    def below(x):
        return 0.5 * sum(torch.special.ndtr((x + s * alpha) / spread) for s in (-1.0, 1.0))

    return torch.where(X < 0, torch.special.ndtri(below(X)), -torch.special.ndtri(below(-X)))


def w1_of(z: torch.Tensor, x: torch.Tensor, start) -> float:
    """Returns W1 between the laws with quantiles z and what the start makes of them, at x."""
    gap = torch.where(z.abs() < 30.0, (start(z) - torch.special.ndtr(z)).abs(), 0.0)
    return float(torch.trapezoid(gap, x))


def on_a_line() -> list[dict]:
    """Returns a row for each start and path, exact to about 1e-5."""
    lam = np.linspace(-19.0, 19.0, 761)
    ratio = TWO.mmse(np.exp(-lam), points=101) * (1.0 + np.exp(2.0 * lam))

    def mmse(rho):
        at = -np.log(np.clip(rho, 1e-8, 1e8))
        return np.interp(at, lam, ratio) / (1.0 + np.exp(2.0 * at))

    law = (mmse, TWO.energy, 1)
    transport = df.thermo.MonotoneTransport(below, -4.0, 4.0)
    made = {"cosine": TRIG, "conditional OT": FLOW, "best scalar": df.thermo.best_scalar(*law)}
    rows = []
    wide = torch.linspace(-9.0, 9.0, 20001, dtype=torch.float64)
    for start, cdf in STARTS.items():
        density = np.gradient(cdf(wide).numpy(), wide.numpy())
        chi2 = distances.chi_square(
            lambda x, density=density: density,
            lambda x: np.exp(-0.5 * x**2) / math.sqrt(2 * math.pi),
            wide.numpy(),
        )
        for name, schedule in made.items():
            t = SHARE * schedule.t_start
            levels = zip(schedule.alpha(t), np.maximum(schedule.sigma(t), 1e-9), strict=True)
            curve = [w1_of(quantiles(max(a, 1e-9), s), X, cdf) for a, s in levels]
            report = bound.speed_accuracy_of_curve(
                SHARE, curve, chi2, df.thermo.action(schedule, *law)
            )
            rows.append({"path": name, "start": start, **report.to_dict(), "says": report.says()})
        z = wide[(wide.abs() < 7.0)]
        curve = [w1_of(z, s * z + (1.0 - s) * transport.map(z), cdf) for s in SHARE.tolist()]
        report = bound.speed_accuracy_of_curve(SHARE, curve, chi2, transport.action)
        rows.append({"path": "OT", "start": start, **report.to_dict(), "says": report.says()})
    return rows


def below(x: torch.Tensor) -> torch.Tensor:
    """Returns the distribution function of the data."""
    return 0.5 * (torch.special.ndtr((x - 1.0) / 0.3) + torch.special.ndtr((x + 1.0) / 0.3))


def draw_line(rows: list[dict], plt, path: Path) -> None:
    """Draws densities of the samples, and when the error changes."""
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.4))
    z = quantiles(1.0, 1e-9)
    data = TWO.log_density(X).exp()
    for (start, cdf), top, under in zip(STARTS.items(), *axes, strict=True):
        made = np.gradient(cdf(z).numpy(), X.numpy())
        top.fill_between(X, data, color="#bbbbbb", label="data")
        top.plot(X, made, color="#000000", lw=1.2, label="samples")
        wrong = np.gradient(cdf(X).numpy(), X.numpy())
        top.plot(X, wrong, color="#D55E00", lw=1.2, ls="--", label="reverse start")
        top.set(title=start, xlim=(-3, 3), xlabel="x")
        for row in (r for r in rows if r["start"] == start):
            rate = np.gradient(row["w1"], row["times"]) ** 2 / row["chi_square"]
            under.plot(row["times"], rate + 1e-12, color=COLOURS[row["path"]], label=row["path"])
        under.set(xlabel="share of the path (0: data)", yscale="log", ylim=(1e-5, 3))
    axes[0, 0].legend(fontsize=8)
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel(r"$v_{loss}^2 = (dW_1/dt)^2 / D_0$")
    axes[1, 3].legend(fontsize=8, loc="lower right")
    figure.suptitle(
        "One dimension: the samples depend on the start alone (top), the paths differ in when the "
        "error changes (bottom)"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


# --- in a plane ---

H, TEMPERATURE, COUNT, STEPS = 1.1, 0.5, 2000, 60


def swiss_roll() -> df.thermo.GaussianMixture:
    """Returns a spiral of 120 narrow normal laws with E|y|^2 = 2."""
    turn = 1.5 * math.pi * (1.0 + 2.0 * np.linspace(0.0, 1.0, 120))
    means = np.stack([turn * np.cos(turn), turn * np.sin(turn)], axis=1)
    means -= means.mean(0)
    means *= math.sqrt(1.995 / (means**2).sum(1).mean())
    return df.thermo.GaussianMixture(None, means, 0.0025)


class Rotating:
    """The reverse velocity of dx = (-h x + g J x) dt + sqrt(2 T) dB over unit duration.

    x_t is the data, scaled by exp(-h t) and turned by g t, plus noise of one variance. With a turn
    the velocity is no gradient: it costs entropy and moves nothing to another distance.
    """

    def __init__(self, data: df.thermo.GaussianMixture, g: float):
        """Keeps the data and the rate of the turn."""
        self.data, self.g = data, g

    def levels(self, t: float) -> tuple[float, float]:
        """Returns (alpha, sigma)."""
        return math.exp(-H * t), math.sqrt(TEMPERATURE / H * (1.0 - math.exp(-2.0 * H * t)))

    def turned(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """Returns x, turned by the angle g t."""
        c, s = math.cos(self.g * t), math.sin(self.g * t)
        return x @ torch.tensor([[c, -s], [s, c]], dtype=x.dtype)

    def nu(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """Returns the forward velocity f - T grad log p_t."""
        alpha, sigma = self.levels(max(t, 1e-6))
        score = self.data.score(self.turned(x, -t), alpha, sigma)
        drift = -H * x + self.g * x @ torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=x.dtype)
        return drift - TEMPERATURE * self.turned(score, t)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns dx/ds for `df.Denoiser.from_velocity`, s = 1 - t."""
        return -self.nu(x, 1.0 - float(t[0]))


def walk(field, x: torch.Tensor) -> list[torch.Tensor]:
    """Returns the states of a run along a velocity field, start and end included."""
    made = df.Denoiser.from_velocity(field)
    plan, kept = df.solvers.heun(FLOW, df.grids.uniform_time(FLOW, STEPS)), [x]
    df.sample(made, plan, x=x, callback=lambda p: kept.append(p.x.clone()))
    return [kept[0], *kept[1:-1:2], kept[-1]]  # two calls a step, one in the first and the last


def row_of(path, start, runs, times, chi2, c_2) -> dict:
    """Returns the report of two runs as a row."""
    report = bound.speed_accuracy(*runs, times, chi2, c_2)
    return {"path": path, "start": start, **report.to_dict(), "says": report.says()}


def in_a_plane() -> tuple[list[dict], dict]:
    """Returns a row for each path, and the samples made from the wrong start."""
    data, d = swiss_roll(), 2
    drawn = torch.Generator().manual_seed(4)
    z = torch.randn(COUNT, d, generator=drawn, dtype=torch.float64)
    rho = np.geomspace(1e-4, 1e4, 61)
    y = data.sample(400, 7)
    noise = torch.randn(y.shape, generator=drawn, dtype=torch.float64)
    known = []
    for level in rho.tolist():
        covariance = data.posterior_covariance(y + level * noise, 1.0, level)
        known.append(float(covariance.diagonal(dim1=1, dim2=2).sum(1).mean()))
    share = np.array(known) * (1.0 + rho**-2.0)

    def mmse(level):
        at = np.interp(np.log(level), np.log(rho), share)
        return at / (1.0 + np.asarray(level, dtype=np.float64) ** -2.0)

    law, start = (mmse, data.energy, d), "N(0, .9²)"
    one = df.thermo.GaussianMixture(None, [[0.0, 0.0]], 1.0)
    wrong = df.thermo.GaussianMixture(None, [[0.0, 0.0]], 0.81)
    chi2, rows, samples = distances.chi_square(wrong, one), [], {}
    made = {"cosine": TRIG, "conditional OT": FLOW, "best scalar": df.thermo.best_scalar(*law)}
    for name, schedule in made.items():
        plan = df.solvers.dpmpp_2m(schedule, df.grids.default(schedule, STEPS))
        runs = []
        for x in (z, 0.9 * z):
            kept = [x]
            df.sample(
                data.denoiser(schedule),
                plan,
                x=x,
                callback=lambda p, kept=kept: kept.append(p.x.clone()),
            )
            runs.append(kept)
        times = df.grids.default(schedule, STEPS)
        rows.append(row_of(name, start, runs, times, chi2, df.thermo.action(schedule, *law)))
        samples[name] = runs[1][-1]
    transport = df.thermo.SampledTransport(data.sample(1200, 9), width=0.05)
    runs = [walk(transport, x) for x in (z, 0.9 * z)]
    times = np.linspace(1.0, 0.0, STEPS + 1)
    rows.append(row_of("OT", start, runs, times, chi2, transport.action))
    samples["OT"] = runs[1][-1]
    for g in (0.0, 3.0, 5.0):
        field, alpha_sigma = Rotating(data, g), Rotating(data, g).levels(1.0)
        right = field.turned(alpha_sigma[0] * data.sample(COUNT, 11), 1.0) + alpha_sigma[1] * z
        grid = torch.cartesian_prod(*[torch.linspace(-5.0, 5.0, 251, dtype=torch.float64)] * 2)
        true = data.log_density(field.turned(grid, -1.0), *alpha_sigma)
        ratio = (wrong.log_density(grid).exp() - true.exp()) ** 2 / true.exp()
        chi = float(ratio.sum()) * 0.04**2
        runs = [walk(field, x) for x in (right, 0.9 * z)]
        cost = [
            float(field.nu(x, float(t)).square().sum(1).mean())
            for x, t in zip(runs[0], times, strict=True)
        ]
        action = -float(torch.trapezoid(torch.tensor(cost), torch.tensor(times)))
        rows.append(row_of(f"g = {g:g}", start, runs, times, chi, action))
        samples[f"g = {g:g}"] = runs[1][-1]
    samples["data"] = data.sample(COUNT, 3)
    return rows, samples


def draw_plane(rows: list[dict], samples: dict, plt, path: Path) -> None:
    """Draws the samples from the wrong start, and W1 along the paths."""
    names = ["data", "cosine", "best scalar", "OT", "g = 0", "g = 3", "g = 5"]
    figure, axes = plt.subplots(2, 4, figsize=(14, 7.6), layout="constrained")
    for name, ax in zip(names, axes.flat, strict=False):
        x = samples[name]
        ax.scatter(x[:, 0], x[:, 1], s=2, color=COLOURS.get(name, "#777777"), linewidths=0)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=[], yticks=[])
        row = next((r for r in rows if r["path"] == name), None)
        said = f"\n$\\eta$ = {row['eta'][0]:.2g}, bound {row['c_2']:.2g}" if row else ""
        ax.set_title(f"{name}{said}", fontsize=10)
    for row in rows:
        axes[1, 3].plot(row["times"], row["w1"], color=COLOURS[row["path"]], label=row["path"])
    axes[1, 3].set(xlabel="share of the path (0: data)", ylabel=r"$\sqrt{2}$ sliced $W_1$")
    axes[1, 3].legend(fontsize=7, loc="center", ncols=2)
    figure.suptitle("Swiss roll from the wrong start N(0, .9²): samples, eta and its bound")
    figure.savefig(path, dpi=80)
    plt.close(figure)


# --- all of it ---


def draw_all(parts: dict, plt, path: Path) -> None:
    """Draws eta, c_1 and c_2 of every path, on one axis an example."""
    figure, axes = plt.subplots(
        1, len(parts), figsize=(5.2 * len(parts), 4.6), layout="constrained"
    )
    for (title, rows), ax in zip(parts.items(), np.atleast_1d(axes), strict=True):
        for place, row in enumerate(rows):
            three = [max(row["eta"][0], 1e-9), row["c_1"][0], row["c_2"]]
            ax.plot(three, [place] * 3, color="#999999", lw=1, zorder=1)
            for number, mark, colour, label in zip(
                three,
                "os^",
                ("#0072B2", "#E69F00", "#000000"),
                (r"$\eta$", "$c_1$", "$c_2$"),
                strict=True,
            ):
                ax.scatter(
                    number,
                    place,
                    marker=mark,
                    color=colour,
                    s=45,
                    zorder=2,
                    label=label if place == 0 else None,
                )
            ax.annotate(
                f"x{row['c_2'] / three[0]:.3g}",
                (row["c_2"], place),
                xytext=(7, -3),
                textcoords="offset points",
                fontsize=8,
            )
        ax.set(xscale="log", title=title, ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(range(len(rows)), [row["path"] for row in rows], fontsize=8)
        low, high = ax.get_xlim()
        ax.set_xlim(low, high * 12)
        ax.set_xlabel("squared W1 change over $D_0$, and its bounds")
    handles = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    figure.suptitle(r"$\eta \leq c_1 \leq c_2$: what the error did, and what was allowed (factor)")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def table(parts: dict) -> str:
    """Returns the rows as a table."""
    lines = ["| example | path | eta | c_1 | c_2 | c_2 / eta |", "|---|---|---:|---:|---:|---:|"]
    for title, rows in parts.items():
        for row in rows:
            eta, c_1 = (
                f"{row[k][0]:.4g} ± {row[k][1]:.1g}" if row[k][1] else f"{row[k][0]:.4g}"
                for k in ("eta", "c_1")
            )
            far = row["c_2"] / max(row["eta"][0], 1e-12)
            lines.append(
                f"| {title} | {row['path']} | {eta} | {c_1} | {row['c_2']:.4g} | {far:.3g} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Computes, draws and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--digits", type=Path, help="what bench/speed_accuracy_digits.py wrote")
    given = parser.parse_args()
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    line = on_a_line()
    draw_line(line, plt, given.out / "thermo_paths_1d.png")
    plane, samples = in_a_plane()
    draw_plane(plane, samples, plt, given.out / "thermo_paths_2d.png")
    first = next(iter(STARTS))
    parts = {
        "1-D mixture, moved mean": [row for row in line if row["start"] == first],
        "Swiss roll, N(0, .9²)": plane,
    }
    found = {"line": line, "plane": plane}
    if given.digits:
        digits = json.loads(given.digits.read_text())
        found["digits"] = digits["rows"]
        moved = [row for row in digits["rows"] if row["start"] == "mean moved by 1"]
        normal = digits["transport"]["gaussian"]["mean moved by 1"]
        moved.append({"path": "OT, Gaussian law", **normal})
        parts["28x28 digits, moved mean"] = moved
    draw_all(parts, plt, given.out / "thermo_speed_accuracy.png")
    for rows in (line, plane):
        for row in rows:
            keep = slice(None, None, 10)
            row["times"], row["w1"] = (np.round(row[k][keep], 6).tolist() for k in ("times", "w1"))
    (given.out / "thermo_speed_accuracy.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(parts))
    for row in [*line, *plane]:
        print(f"{row['path']}, {row['start']}: {row['says']}")


if __name__ == "__main__":
    main()
