"""Where the digit network decides: critical noise levels, their directions, clone agreement.

    python examples/critical_digits.py measure --out critical.json
    python examples/critical_digits.py draw --measured critical.json --out critical.png

`measure` takes about three minutes of one core; it makes its digits itself, without data. `draw`
needs matplotlib. The picture is docs/pictures/thermo_critical.png.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffast as df
from diffast.digits import NULL_LABEL, load_judge, load_plan, load_unet

CENTRE, FINAL = (1.0, 30.0), (2.0, 10.0)  # ranges of noise levels
FOLLOWED = 8  # final digits that are followed upwards
CLONED = 48
LEVELS = np.geomspace(0.4, 16.0, 7)

# Colours that colour-blind people can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#777777"


def digits(label: int) -> df.Denoiser:
    """Returns the network for one label, the same for all rows."""
    labels = torch.full((1,), label)
    return df.Denoiser(load_unet(), df.schedules.edm(), "x0", conditions={"labels": labels})


def measure(seed: int = 0) -> dict[str, Any]:
    """Returns everything that is drawn."""
    unknown, judge = digits(NULL_LABEL), load_judge()

    def classes(x: torch.Tensor) -> torch.Tensor:
        return judge(x).argmax(1)

    made: dict[str, Any] = {"seconds": {}}
    samples = df.sample(unknown, load_plan(10), (400, 1, 28, 28), seed=seed).x
    spectrum = df.thermo.Gaussian.of(samples.numpy()).spectrum
    made["variance"] = float(spectrum[0])
    # 9,000 digits, the most that a network could tell apart
    made["collapse"] = df.thermo.collapse_time(spectrum, 9000).rho

    for name, label in (("any digit", NULL_LABEL), ("threes alone", 3)):
        begun = time.process_time()
        centre = df.thermo.critical_levels(
            digits(label), shape=(1, 1, 28, 28), low=CENTRE[0], high=CENTRE[1], count=20
        )
        made[name] = centre.to_dict() | {"peak": centre.peak, "says": str(centre)}
        criteria = df.thermo.centre_criteria(centre, 0, made["variance"])
        made[name]["criteria"] = {k: _finite(v) for k, v in criteria._asdict().items()}
        made["seconds"][f"centre, {name}"] = time.process_time() - begun

    begun = time.process_time()
    final = samples[:FOLLOWED]
    rising = df.thermo.critical_levels(unknown, final, low=FINAL[0], high=FINAL[1], count=9)
    made["final"] = rising.to_dict() | {"pictures": []}
    made["seconds"]["final digits"] = time.process_time() - begun
    made["final"]["digits"] = classes(final).tolist()
    made["final"]["before"] = classes(rising.states).tolist() if len(rising.levels) else []
    made["final"]["after"] = classes(rising.after).tolist() if len(rising.levels) else []
    for k in range(len(rising.levels)):
        parts = (rising.states[k], rising.directions[k], rising.after[k])
        made["final"]["pictures"].append([_picture(part) for part in parts])

    begun = time.process_time()
    clones = df.thermo.clone_agreement(
        unknown, samples[:CLONED], LEVELS, classes=classes, steps=56, seed=seed
    )
    made["clones"] = clones.to_dict()
    made["seconds"]["clones"] = time.process_time() - begun

    made["nonconservativity"] = []
    noise = torch.randn(FOLLOWED, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    begun = time.process_time()
    for level in np.geomspace(0.05, 20.0, 7):
        share = df.thermo.nonconservativity(unknown, final + level * noise, float(level))
        made["nonconservativity"].append([float(level), share.value, share.error, share.method])
    made["seconds"]["nonconservativity"] = time.process_time() - begun
    return made


def _finite(value: float | None) -> float | str | None:
    return "all levels" if value is not None and math.isinf(value) else value


def _picture(x: torch.Tensor) -> list:
    return [[round(v, 4) for v in row] for row in x[0].tolist()]


def draw(made: dict[str, Any], out: str) -> None:
    """Draws the four parts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.0, 0.95))
    slopes, agree = top.subplots(1, 2)
    _slopes(slopes, made)
    _agreement(agree, made["clones"])
    _pictures(bottom, made)
    figure.savefig(out, dpi=130)


def _slopes(axes: Any, made: dict[str, Any]) -> None:
    for name, color, style in (("any digit", BLUE, "-"), ("threes alone", GREEN, "--")):
        curve = np.array([row[0] for row in made[name]["curve"]], dtype=float)
        axes.plot(
            made[name]["curve_levels"], curve, style, color=color, lw=2, label=f"centre, {name}"
        )
    final = made["final"]
    curve = np.array(final["curve"], dtype=float)
    for row in range(curve.shape[1]):
        label = "from final digits" if not row else None
        axes.plot(final["curve_levels"], curve[:, row], color=ORANGE, lw=0.9, label=label)
    axes.plot(
        final["levels"], final["eigenvalues"], "v", color=RED, ms=7, label="the maximum vanishes"
    )
    axes.axhline(1.0, color="black", lw=1, ls=":")
    axes.set(xscale="log", xlabel=r"noise level $\sigma$", ylabel="largest eigenvalue of dD/dx")
    axes.set(title="Slope of the x0 estimate at its fixed points", ylim=(0, None))
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _agreement(axes: Any, clones: dict[str, Any]) -> None:
    levels = clones["levels"]
    same, error = np.array([[v, e] for v, e, _ in clones["same"]]).T
    axes.errorbar(levels, same, error, fmt="o-", color=BLUE, capsize=3, label="same digit")
    axes.plot(
        levels, clones["correlation"], "s--", color=ORANGE, label="share of the variance settled"
    )
    axes.axhline(0.1, color=GREY, lw=1, ls=":")
    axes.text(levels[0], 0.12, "chance", color=GREY, fontsize=9)
    axes.set(xscale="log", xlabel=r"noise level $\sigma$", ylim=(-0.05, 1.05))
    axes.set_title("Two completions of one noised digit")
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _pictures(figure: Any, made: dict[str, Any]) -> None:
    """Draws, for as many vanishing maxima as fit, the maximum, what is decided, what follows."""
    final = made["final"]
    # One column for each decision, from high levels downwards; many digits share one.
    groups: dict[tuple, list[int]] = {}
    for k in np.argsort(final["levels"])[::-1]:
        level = round(20.0 * math.log(final["levels"][k]))
        groups.setdefault((level, final["before"][k], final["after"][k]), []).append(int(k))
    order = [*groups.values()][:8]
    grid = figure.subplots(3, max(len(order), 1), squeeze=False)
    titles = ("maximum\nbelow the level", "direction\nof the decision", "maximum\nabove it")
    for row, words in enumerate(titles):
        grid[row][0].set_ylabel(words, fontsize=9)
    for column, members in enumerate(order):
        k = members[0]
        state, direction, after = (np.array(p) for p in final["pictures"][k])
        size = np.abs(direction).max()
        grid[0][column].imshow(state, cmap="gray", vmin=-1, vmax=1)
        grid[1][column].imshow(direction, cmap="PuOr", vmin=-size, vmax=size)
        grid[2][column].imshow(after, cmap="gray", vmin=-1, vmax=1)
        words = f"$\\sigma$ = {final['levels'][k]:.2f}, {len(members)} of {len(final['digits'])}"
        words += f"\nread as {final['before'][k]}, then {final['after'][k]}"
        grid[0][column].set_title(words, fontsize=9)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("measure", "draw"))
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument("--measured", help="JSON that `measure` wrote, for draw")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        result = measure()
        Path(arguments.out).write_text(json.dumps(result) + "\n")
        print(result["any digit"]["says"])
        print({name: round(seconds, 1) for name, seconds in result["seconds"].items()})
    else:
        draw(json.loads(Path(arguments.measured).read_text()), arguments.out)
