"""Energies fitted to snapshots, and audits of samplers that were broken on purpose.

    pip install 'diffast[thermo]'
    python examples/jko_audit.py --out docs/pictures            2 to 4 minutes
    python examples/jko_audit.py --out docs/pictures --digits   with the digit network: 5 more

Writes thermo_jko.json and thermo_jko.png. docs/thermodynamics.md shows them. Parts that are not
measured again are kept from the JSON that is there.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch

import diffast as df

P = df.thermo.potentials
EDM = df.schedules.edm(0.05, 10.0)
# Colours that the colour-blind tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#555555"


# --- the time step: Gaussians of the Fokker-Planck equation, nothing sampled ---


def by_time_step() -> dict:
    """Returns the spring k = 1.3 and the temperature 0.4 as both schemes find them."""
    u = np.array([NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)])
    u /= np.sqrt(np.mean(u**2))
    spring = P.from_gradients(lambda x, t: x[:, :, None], 1, names=["k"])
    found = {}
    for tau in (0.2, 0.1, 0.05, 0.025):
        t = tau * np.arange(round(0.6 / tau) + 1)
        spread = np.sqrt(0.4 / 1.3 + (0.09 - 0.4 / 1.3) * np.exp(-2.6 * t))
        snapshots = [2.0 * np.exp(-1.3 * a) + s * u for a, s in zip(t, spread, strict=True)]
        options = {"potential": spring, "density": "gaussian", "groups": 0}
        found[tau] = {
            scheme: df.thermo.fit_jko(
                snapshots, t, scheme=scheme, form="least squares", **options
            ).theta.tolist()
            for scheme in ("implicit", "trapezoid")
        }
        print(tau, found[tau], flush=True)
    return found


# --- energies of particles: five snapshots ---


def walk(x, force, beta, tau, drawn, substeps=25):
    """Returns particles after a time tau, by small Euler-Maruyama steps."""
    h = tau / substeps
    for _ in range(substeps):
        x = x + h * force(x) + np.sqrt(2.0 * beta * h) * drawn.standard_normal(x.shape)
    return x


def wells(x):
    """Returns the force of V = x^4 / 4 - 0.75 x^2 in each element."""
    return 1.5 * x - x**3


def styblinski_tang(x):
    """Returns the force of V = (x^4 - 16 x^2 + 5 x) / 2 in each element."""
    return -0.5 * (4.0 * x**3 - 32.0 * x + 5.0)


def drawn_together(x):
    """Returns the force of V = |x|^2 / 2 and U = -2 exp(-|z|^2 / 0.98), a mean over the others."""
    apart = x[:, None] - x
    near = np.exp(-np.square(apart).sum(-1, keepdims=True) / 0.98)
    return -x - (2.0 / 0.49) * (apart * near).sum(1) / (len(x) - 1)


FIELDS = {  # force, temperature, tau, dimensions, start, potential, interaction
    "double well": (wells, 0.3, 0.05, 1, "normal", 4, None),
    "double wells, 2-D": (wells, 0.3, 0.05, 2, "normal", 4, None),
    "styblinski-tang, 2-D": (styblinski_tang, 2.0, 0.01, 2, "uniform", 4, None),
    "interaction, 2-D": (drawn_together, 0.2, 0.05, 2, "normal", 2, P.radial([[0.0, 0.0]], 0.7)),
}
WAYS = {  # how each row of the table is fitted
    "this": {},
    "published form": {"scheme": "implicit", "form": "least squares", "density": "gmm"},
    "its trapezoid": {"scheme": "trapezoid", "form": "least squares", "density": "gmm"},
}


def snapshots_of(name, count, seed):
    """Returns five snapshots of the same particles, in an order that does not tell who is who."""
    force, beta, tau, d, start, *_ = FIELDS[name]
    drawn = np.random.default_rng(seed)
    x = drawn.standard_normal((count, d)) if start == "normal" else drawn.uniform(-4, 4, (count, d))
    held = [x]
    for _ in range(4):
        held.append(walk(held[-1], force, beta, tau, drawn))
    return [drawn.permutation(x) for x in held]


def by_particles() -> list:
    """Returns medians of the force's relative error and of the temperature, and its deviation."""
    rows = []
    cases = [(name, 1000) for name in FIELDS if name != "interaction, 2-D"]
    cases += [("interaction, 2-D", 500)]
    cases += [("double well", count) for count in (100, 300, 4000)]
    for name, count in cases:
        force, beta, tau, _, _, degree, interaction = FIELDS[name]
        seeds = {"double well": 12, "interaction, 2-D": 6}.get(name, 4)
        known = {"this, temperature known": {"internal": beta}} if interaction else {}
        for way, options in (WAYS | known).items():
            errors, temperatures = [], []
            for seed in range(seeds):
                held = snapshots_of(name, count, seed)
                fit = df.thermo.fit_jko(
                    held,
                    tau=tau,
                    potential=degree,
                    interaction=interaction,
                    groups=0,
                    **options,
                )
                truth = [force(x) for x in held]
                gaps = [fit.drift(x, others=x) - f for x, f in zip(held, truth, strict=True)]
                errors.append(np.linalg.norm(np.concatenate(gaps)) / np.linalg.norm(truth))
                temperatures.append(fit.temperature().value)
            rows.append(
                {
                    "field": name,
                    "particles": count,
                    "way": way,
                    "force error": round(float(np.median(errors)), 3),
                    "temperature": round(float(np.median(temperatures)), 3),
                    "deviation": round(float(np.std(temperatures, ddof=1)), 3),
                    "true temperature": beta,
                }
            )
            print(rows[-1], flush=True)
    return rows


def held_out() -> dict:
    """Returns the distance of sampled dynamics to a snapshot that was not fitted, and a profile."""
    held = snapshots_of("double well", 2000, 9)
    shorter = [x[: 2000 - 200 * k] for k, x in enumerate(held)]  # counts differ
    fit = df.thermo.fit_jko(shorter, tau=0.05, potential=4)
    drawn = np.random.default_rng(99)
    start = drawn.standard_normal((4000, 1))
    truth = walk(start, wells, 0.3, 1.0, drawn, 500)
    other = walk(drawn.standard_normal((4000, 1)), wells, 0.3, 1.0, drawn, 500)
    made = fit.sample(torch.as_tensor(start), 0.0, 1.0, steps=200, seed=1).x.numpy()

    def w1(a, b):
        return float(np.abs(np.sort(a[:, 0]) - np.sort(b[:, 0])).mean())

    x = np.linspace(-2.2, 2.2, 89)
    value = fit.model.potential.value(x[:, None], 0.0)
    apart = value - fit.model.potential.value(np.array([[1.2]]), 0.0)
    error = np.sqrt(np.einsum("ij,jk,ik->i", apart, fit.covariance[:4, :4], apart))
    bins = np.linspace(-2.2, 2.2, 45)
    print(fit)
    return {
        "fit": fit.to_dict(),
        "w1 to the truth at t = 1": w1(made, truth),
        "w1 of two true runs": w1(other, truth),
        "w1 of the start": w1(start, truth),
        "x": x.tolist(),
        "potential": (apart @ fit.theta[:4]).tolist(),
        "error": error.tolist(),
        "made": np.histogram(made, bins, density=True)[0].tolist(),
        "truth": np.histogram(truth, bins, density=True)[0].tolist(),
    }


# --- audits ---


def louder(plan, factor):
    """Returns the plan with its noise times a factor."""
    return plan.with_weights({("x", "z1"): plan.weights("x", "z1") * factor}, check="x0")


def pushed(plan, factor):
    """Returns the plan with the score's share of each step times a factor."""
    alpha = plan.schedule.alpha(np.append(plan.times, plan.end))
    kept, x, d = alpha[1:] / alpha[:-1], plan.weights("x", "x"), plan.weights("x", "d")
    weights = {("x", "x"): kept + factor * (x - kept), ("x", "d"): factor * d}
    return plan.with_weights(weights, check="finite")


def late(plan, factor):
    """Returns the plan whose network is told noise levels times a factor."""
    return replace(plan, times=plan.times * factor)


def samplers(grid) -> dict:
    """Returns plans: sound ones, then ones that were broken on purpose."""
    plan = df.solvers.ddim(EDM, grid, eta=1.0)
    return {
        "ddim(eta=1), ddpm": plan,
        "dpmpp_2m_sde": df.solvers.dpmpp_2m_sde(EDM, grid),
        "seeds_2": df.solvers.seeds_2(EDM, grid),
        "noise x 1.1": louder(plan, 1.1),
        "sqrt(2) missing": louder(plan, 0.5**0.5),
        "score x 1.1": pushed(plan, 1.1),
        "told 1.1 sigma": late(plan, 1.1),
    }


MIXTURE = df.thermo.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], 0.05)


def summary(found) -> dict:
    """Returns value and error of the three numbers, and the verdict."""
    numbers = {
        name: [float(e.value), float(e.error)]
        for name, e in (
            ("drift", found.drift),
            ("temperature", found.temperature),
            ("shift", found.shift),
        )
    }
    numbers["allowance"] = [float(a) for a in found.whole.allowance]
    return {**numbers, "sound": found.sound, "first": (found.findings or ["-"])[0]}


def audits() -> dict:
    """Returns audits of samplers of a mixture in 2-D, by pairs and by sets."""
    denoiser = MIXTURE.denoiser(EDM)
    grid = np.append(np.geomspace(10.0, 0.05, 61), 0.0)
    found = {}
    for name, plan in samplers(grid).items():
        found[name] = summary(df.thermo.audit(denoiser, plan, (1000, 2)))
        print(name, found[name], flush=True)
    pilot = df.thermo.audit(denoiser, samplers(grid)["ddim(eta=1), ddpm"], (1000, 2))
    needed = {what: pilot.samples_for(0.1, what) for what in ("temperature", "drift", "shift")}
    one = df.thermo.GaussianMixture([0.3, 0.7], [-1.0, 1.0], 0.05).denoiser(EDM)
    coarse = np.append(np.geomspace(4.0, 0.1, 61), 0.0)
    sets = {}
    for name, plan in samplers(coarse).items():
        if name == "seeds_2":
            continue
        sets[name] = summary(df.thermo.audit_marginals(one, plan, (4000, 1)))
        print("sets", name, sets[name], flush=True)
    return {"pairs": found, "sets": sets, "samples for 0.1": needed}


def alarms(runs: int = 300) -> dict:
    """Returns how often a sound sampler is called unsound at a level of 5 %."""
    denoiser = df.thermo.GaussianMixture([0.3, 0.7], [-1.0, 1.0], 0.05).denoiser(EDM)
    plan = df.solvers.ddim(EDM, np.append(np.geomspace(10.0, 0.05, 31), 0.0), eta=1.0)
    bad = [
        not df.thermo.audit(denoiser, plan, (100, 1), seed=seed, level=0.05).sound
        for seed in range(runs)
    ]
    print("false alarms", np.mean(bad), flush=True)
    return {"runs": runs, "level": 0.05, "rate": float(np.mean(bad))}


def digits(count: int = 100) -> dict:
    """Returns temperatures of a digit run along the leading principal component of the digits."""
    schedule = df.schedules.edm()
    labels = torch.arange(count) % 10
    denoiser = df.Denoiser(
        df.digits.load_unet(), schedule, predicts="x0", conditions={"labels": labels}
    )
    pictures = df.sample(denoiser, calls=10, shape=(count, 1, 28, 28)).x
    flat = (pictures - pictures.mean(0)).reshape(count, -1)
    leading = torch.linalg.svd(flat, full_matrices=False)[2][:1].reshape(1, 1, 28, 28)
    grid = np.append(np.geomspace(40.0, 0.05, 25), 0.0)
    plan = df.solvers.ddim(schedule, grid, eta=1.0)
    found = {"sigma": grid[:-1].tolist()}
    for name, one in (
        ("ddim(eta=1)", plan),
        ("noise x 1.1", louder(plan, 1.1)),
        ("sqrt(2) missing", louder(plan, 0.5**0.5)),
        ("dpmpp_2m_sde", df.solvers.dpmpp_2m_sde(schedule, grid)),
    ):
        audit = df.thermo.audit(denoiser, one, (count, 1, 28, 28), directions=leading)
        steps = [(float(s.value[1]), float(s.error[1])) for s in audit.steps]
        found[name] = summary(audit) | {"steps": steps}
        print("digits", name, summary(audit), flush=True)
    every = df.thermo.audit(denoiser, plan, (count, 1, 28, 28))
    found["ddim(eta=1), all elements"] = summary(every)
    return found


def draw(found: dict, path: Path) -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 8.4), constrained_layout=True)
    steps, fit, digit = found["time step"], found["held out"], found.get("digits")
    taus = sorted(map(float, steps))
    rows = {float(tau): row for tau, row in steps.items()}
    for scheme, colour, mark in (("implicit", RED, "o"), ("trapezoid", BLUE, "s")):
        for j, (name, truth, style) in enumerate((("k", 1.3, "-"), ("temperature", 0.4, "--"))):
            gap = [abs(rows[tau][scheme][j] / truth - 1.0) for tau in taus]
            axes[0, 0].loglog(
                taus, gap, style, marker=mark, color=colour, label=f"{scheme}, {name}"
            )
    axes[0, 0].set(
        title="Bias in the time between snapshots (exact Gaussians)",
        xlabel="time between snapshots",
        ylabel="relative error",
    )
    axes[0, 0].set_xticks(taus, [f"{tau:g}" for tau in taus])
    axes[0, 0].minorticks_off()
    axes[0, 0].legend(frameon=False)

    x, value, error = (np.array(fit[k]) for k in ("x", "potential", "error"))
    truth = x**4 / 4 - 0.75 * x**2 - (1.2**4 / 4 - 0.75 * 1.2**2)
    axes[0, 1].fill_between(x, value - 2 * error, value + 2 * error, color=BLUE, alpha=0.25, lw=0)
    axes[0, 1].plot(x, value, color=BLUE, label="fitted V, 2 standard errors")
    axes[0, 1].plot(x, truth, color="black", ls="--", label="true V")
    bins = np.linspace(-2.2, 2.2, 45)
    axes[0, 1].stairs(fit["truth"], bins, color=GREY, fill=True, alpha=0.3, label="true, t = 1")
    axes[0, 1].stairs(fit["made"], bins, color=ORANGE, lw=2, label="df.sample of the fit, t = 1")
    axes[0, 1].set(
        title="Five snapshots up to t = 0.2, 1,200 to 2,000 particles",
        xlabel="x",
        ylabel="V, density",
        ylim=(-0.5, 2.0),
    )
    axes[0, 1].legend(frameon=False, loc="upper center")

    pairs = found["audits"]["pairs"]
    at = np.arange(len(pairs))[::-1]
    for k, (what, colour, mark) in enumerate(
        (("temperature", RED, "o"), ("drift", BLUE, "s"), ("shift", GREEN, "^"))
    ):
        value, error = np.array([row[what] for row in pairs.values()]).T
        value = value + (what == "shift")
        axes[1, 0].errorbar(
            value, at + 0.2 - 0.2 * k, xerr=3 * error, fmt=mark, color=colour, capsize=3,
            label="1 + shift" if what == "shift" else what,
        )  # fmt: skip
    axes[1, 0].axvline(1.0, color="black", lw=0.8)
    named = [f"{name}: {'sound' if row['sound'] else 'FOUND'}" for name, row in pairs.items()]
    axes[1, 0].set_yticks(at, named)
    axes[1, 0].set(
        title="Audits of a mixture: 1,000 samples, 60 steps, 3 errors",
        xlabel="measured over designed",
        xlim=(0.4, 1.65),
    )
    axes[1, 0].legend(frameon=False, loc="upper right")

    if digit:
        styles = (("ddim(eta=1)", BLUE, "o"), ("noise x 1.1", ORANGE, "s"))
        for name, colour, mark in (*styles, ("sqrt(2) missing", RED, "^")):
            value, error = np.array(digit[name]["steps"]).T
            total, spread = digit[name]["temperature"]
            axes[1, 1].errorbar(
                digit["sigma"][1 : len(value) + 1], value, yerr=error, fmt=mark, color=colour,
                capsize=2, ms=4, label=f"{name}: {total:.3f} +- {spread:.3f}",
            )  # fmt: skip
            axes[1, 1].axhline(total, color=colour, lw=1)
        axes[1, 1].axhline(1.0, color="black", lw=0.8)
        axes[1, 1].set(
            xscale="log",
            title="Digits: noise along the leading component, 100 samples",
            xlabel="sigma at the end of the step",
            ylabel="temperature over designed",
            ylim=(0.1, 2.2),
        )
        axes[1, 1].invert_xaxis()
        axes[1, 1].legend(frameon=False)
    figure.savefig(path, dpi=110)


PARTS = {
    "time step": by_time_step,
    "held out": held_out,
    "audits": audits,
    "alarms": alarms,
    "particles": by_particles,
}


def main() -> None:
    """Measures, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--digits", action="store_true", help="measure the digit network as well")
    parser.add_argument("--only", nargs="*", choices=[*PARTS, "none"], help="parts to measure")
    chosen = parser.parse_args()
    store = chosen.out / "thermo_jko.json"
    found = json.loads(store.read_text()) if store.is_file() else {}
    for name, part in PARTS.items():
        if chosen.only is None or name in chosen.only:
            found[name] = part()
            store.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.digits:
        found["digits"] = digits()
    store.write_text(json.dumps(found, indent=1) + "\n")
    if {*PARTS} <= {*found}:
        draw(found, chosen.out / "thermo_jko.png")


if __name__ == "__main__":
    main()
