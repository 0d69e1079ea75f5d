"""Draws docs/pictures/gains.png from the stored measurements of bench/results.

    python examples/draw_gains.py --out gains.png

The left side shows the time of one scheduler step as a share of the time of diffusers' own
scheduler. The right side shows how many network calls a digit takes by different methods, and the
Frechet distance that each reaches.
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent.parent / "bench" / "results"
SHAPE, THREADS = "64x3x64x64", 1

# Case of bench_dropin, and its name in the picture.
STEPS = {
    "unipc_2": "UniPC-2",
    "dpmpp_3m": "DPM++ 3M",
    "deis_2": "DEIS-2",
    "dpmpp_2m": "DPM++ 2M",
    "sa_solver": "SA-Solver",
    "ddim": "DDIM",
    "euler": "Euler",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "flow_euler": "FlowMatchEuler",
}
# Method and options of adaptive_digits.jsonl, and the name in the picture.
CALLS = (
    ("pec", {"rtol": 0.4, "h_max": 0.8}, "pec of diffast,\nrtol 0.4, adaptive"),
    ("dpmpp_2m_sde", {"steps": 20}, "DPM++ 2M SDE,\n20 fixed steps"),
    ("pec", {"rtol": 0.1}, "pec of diffast,\nrtol 0.1, adaptive"),
    ("ggf", {"rtol": 0.5, "atol": 0.05}, "Gotta Go Fast,\nadaptive"),
)
# Colours that colour-blind people can tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"


def step_shares() -> dict[str, float]:
    """Returns the step's time as a share of diffusers' time in percent, by name."""
    results = json.loads((RESULTS / "dropin.json").read_text())["results"]
    shares = {r["case"]: r["of diffusers"] for r in results if r["threads"] == THREADS}
    named = {name: 100 * shares[f"{case}, {SHAPE}"] for case, name in STEPS.items()}
    return dict(sorted(named.items(), key=lambda pair: pair[1]))


def calls() -> dict[str, tuple[float, float]]:
    """Returns (network calls of a digit, Frechet distance) by name."""
    lines = (RESULTS / "adaptive_digits.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    found = {}
    for method, options, name in CALLS:
        (r,) = (r for r in records if (r["method"], r["options"]) == (method, options))
        found[name] = r["calls"], r["frechet"]
    return found


def draw(path: str) -> None:
    """Draws both sides."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    figure.suptitle(
        f"Measured on 2 CPU cores. Left: state [64, 3, 64, 64], {THREADS} thread. "
        "Right: 2,500 digits [28, 28]."
    )
    steps, network = figure.subplots(1, 2)
    shares = step_shares()
    steps.barh([*shares], [*shares.values()], color=BLUE)
    for place, share in enumerate(shares.values()):
        steps.text(share + 1.5, place, f"{share:.0f} %", va="center")
    steps.axvline(100, color="black", linestyle="--", linewidth=1)
    steps.text(98, 0, "diffusers = 100 %", ha="right", va="center")
    steps.set(title="Time of one scheduler step", xlim=(0, 108))
    steps.set_xlabel("share of the time of diffusers' step (percent)")
    found = calls()
    colors = [ORANGE if "pec" in name else GREEN for name in found]
    network.barh([*found], [count for count, _ in found.values()], color=colors)
    for place, (count, distance) in enumerate(found.values()):
        network.text(count + 0.8, place, f"{count:.0f} (distance {distance:.1f})", va="center")
    network.set(title="Network calls of one digit", xlim=(0, 80))
    network.set_xlabel("mean number of calls (Frechet distance)")
    for axes in (steps, network):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gains.png", help="picture to write")
    draw(parser.parse_args().out)
