"""The panels of a profile's picture: each draws one quantity and says what to do with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffast.thermo.record import Profile

# Colours that colour-blind people can tell apart (Okabe and Ito); line styles and markers differ
# as well.
BLUE, VERMILION, GREEN, ORANGE, GRAY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#7F7F7F"

AXIS = "noise level sigma / alpha (sampling runs to the right)"


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: what it says.
        draw: called with (axes, profile).
        advice: what to do with it, a sentence or two.
        shown: whether a profile has what it draws.
    """

    title: str
    draw: Callable[[Any, Profile], None]
    advice: str
    shown: Callable[[Profile], bool]


def _levels(axes: Any, profile: Profile) -> None:
    axes.set(xscale="log", xlabel=AXIS)
    axes.set_xlim(profile.rho[0] * 1.15, profile.rho[-1] / 1.15)  # noisy on the left
    axes.grid(visible=True, alpha=0.3)


def _marks(axes: Any, profile: Profile) -> None:
    """Draws the critical levels as vertical lines, one label for all of a kind."""
    for values, style, label in (
        (profile.critical_rho, "--", "decision at the centre"),
        (np.array([profile.collapse_rho]), ":", "memorised data would show below"),
    ):
        inside = values[np.isfinite(values)]
        inside = inside[(inside <= profile.rho[0]) & (inside >= profile.rho[-1])]
        for k, value in enumerate(inside):
            named = label if k == 0 else None
            axes.axvline(value, color=GRAY, linestyle=style, linewidth=1.2, label=named)


def _bars(axes: Any, x: Any, y: Any, se: Any, color: str, marker: str, label: str | None) -> None:
    axes.errorbar(
        x, y, yerr=np.nan_to_num(se), color=color, marker=marker, markersize=4, label=label
    )


def _mmse(axes: Any, profile: Profile) -> None:
    d = profile.d
    gaussian = profile.mmse_gaussian / d
    axes.plot(profile.rho, gaussian, color=GRAY, linestyle="--", label="Gaussian of the data")
    _bars(axes, profile.rho, profile.mmse / d, profile.mmse_se / d, BLUE, "o", "loss")
    good = profile.mmse_speed > 0
    _bars(
        axes,
        profile.rho[good],
        profile.mmse_speed[good] / d,
        profile.mmse_speed_se[good] / d,
        VERMILION,
        "x",
        "from the model's speed",
    )
    _levels(axes, profile)
    low = 0.5 * min(float(profile.mmse.min()), float(profile.mmse_gaussian.min())) / d
    axes.set(yscale="log", ylabel="mmse an element (squared data units)")
    axes.set_ylim(bottom=max(low, 1e-300))
    axes.legend()


def _ratio(axes: Any, profile: Profile) -> None:
    below = np.maximum(profile.mmse_gaussian, 1e-300)
    _bars(axes, profile.rho, profile.ratio, profile.mmse_se / below, BLUE, "o", None)
    axes.axhline(1.0, color=GRAY, linewidth=1)
    _levels(axes, profile)
    _marks(axes, profile)
    axes.set(ylabel="mmse / mmse of the Gaussian")
    axes.set_ylim(0.0, max(1.1, 1.05 * float(profile.ratio.max())))
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def _flow_error(axes: Any, profile: Profile) -> None:
    wrong, se = profile.speed_error
    _bars(axes, profile.rho, 100.0 * wrong, 100.0 * se, VERMILION, "o", "squared speed")
    known = profile.error_floor / np.maximum(profile.mmse, 1e-300)
    label = "squared error / loss, at least"
    axes.plot(profile.rho, 100.0 * known, color=BLUE, marker="s", markersize=3, label=label)
    axes.axhline(0.0, color=GRAY, linewidth=1)
    _levels(axes, profile)
    axes.set(ylabel="model against data (%)")
    axes.set_yscale("symlog", linthresh=1.0)
    top, most = axes.get_ylim()
    axes.set_ylim(top, most * 20.0)  # room for the legend
    axes.legend(loc="upper left", ncols=2)


def _entropy(axes: Any, profile: Profile) -> None:
    d = profile.d
    made, left = profile.entropy_rate / d, profile.mmse / profile.rho**2 / d
    axes.plot(profile.rho, made, color=BLUE, marker="o", markersize=4, label="entropy production")
    axes.plot(
        profile.rho,
        left,
        color=ORANGE,
        marker="^",
        markersize=4,
        label="information still missing: mmse / rho^2",
    )
    _levels(axes, profile)
    axes.set(ylabel="nats an element and nat of log-SNR")
    axes.set_ylim(0.0, 1.15 * max(1.0, float(made.max())))
    axes.legend()


def _bound(axes: Any, profile: Profile) -> None:
    names = {
        "eta": profile.eta,
        "c_1": profile.c_1,
        "c_2": profile.c_2,
        "c_2, model": profile.c_2_model,
        "c_2, even": profile.c_2_constant,
    }
    shown = {name: e for name, e in names.items() if np.isfinite(e.value) and e.value > 0.0}
    places = np.arange(len(shown))[::-1]
    values = [e.value for e in shown.values()]
    colors = [VERMILION if "c_2" not in name else BLUE for name in shown]
    errors = np.nan_to_num([e.error for e in shown.values()])
    axes.barh(places, values, xerr=errors, color=colors, height=0.6)
    axes.set_yticks(places, list(shown))
    for place, estimate in zip(places, shown.values(), strict=True):
        end = (estimate.value + np.nan_to_num(estimate.error)) * 1.25
        axes.text(end, place, f"{estimate.value:.3g}", va="center", fontsize=8)
    axes.set(xscale="log", xlabel="squared data units (summed over the elements)")
    axes.set_xlim(min(values) / 10.0, max(values) * 20.0)
    axes.grid(visible=True, axis="x", alpha=0.3)


def _rotation(axes: Any, profile: Profile) -> None:
    _bars(
        axes,
        profile.local_rho,
        100.0 * profile.nonconservativity,
        100.0 * profile.nonconservativity_se,
        GREEN,
        "o",
        None,
    )
    _levels(axes, profile)
    axes.set(ylabel="antisymmetric share of the Jacobian (%)")
    axes.set_ylim(bottom=0.0)


def _decisions(axes: Any, profile: Profile) -> None:
    rho, se = profile.clone_rho, profile.clone_agreement_se
    if rho.size:
        label = "agreement of two completions"
        _bars(axes, rho, profile.clone_agreement, se, BLUE, "o", label)
    merging = np.sort(profile.merging_rho[np.isfinite(profile.merging_rho)])
    if merging.size:
        label = "mode of a sample ends"
        mark = {"marker": "^", "s": 40, "zorder": 3}
        axes.scatter(merging, np.zeros_like(merging), color=GREEN, label=label, **mark)
    _levels(axes, profile)
    _marks(axes, profile)
    axes.set(ylabel="share settled")
    axes.set_ylim(-0.05, 1.05)
    axes.legend()


def _speed(axes: Any, profile: Profile) -> None:
    axes.plot(profile.times, np.sqrt(profile.w2_speed), color=BLUE, marker="o", markersize=4)
    axes.set(xlabel="model time (sampling runs to the left)", ylabel="W2 speed (data units / time)")
    axes.grid(visible=True, alpha=0.3)
    axes.set_ylim(bottom=0.0)
    spread = float(profile.times.max() / max(profile.times.min(), 1e-300))
    if spread > 1e3:
        axes.set(xscale="log")


def _always(profile: Profile) -> bool:
    return True


PANELS = (
    Panel(
        "What is not known yet at each noise level",
        _mmse,
        "Put steps where this curve falls. Both forms agree for an exact network. Where the "
        "curve from the model's speed is missing it is below 0: see the panel on the model's flow.",
        _always,
    ),
    Panel(
        "Where the data stop looking Gaussian",
        _ratio,
        "Where the ratio still has its left-hand value, the data look Gaussian: a late start from "
        "their mean and covariance loses little there. Spend calls where the ratio falls.",
        _always,
    ),
    Panel(
        "How wrong the model's own flow is",
        _flow_error,
        "0 is an exact network. Where the speed differs by more than its error bar, more steps do "
        "not help: try an earlier end, or train these levels longer. The lower curve is what the "
        "squared error of the x0 estimate is at least.",
        _always,
    ),
    Panel(
        "Where entropy is produced, where information is left",
        _entropy,
        "On the left nearly all that happens is noise spreading: large steps are enough. What is "
        "missing at the lowest level is added by the last step alone; where that is much, end at "
        "a lower level.",
        _always,
    ),
    Panel(
        "How fast the noising path moves",
        _speed,
        "An uneven speed costs: the same path at constant speed has the smallest c_2. It does not "
        "say where a solver errs.",
        _always,
    ),
    Panel(
        "The speed-accuracy bound: eta <= c_1 <= c_2",
        _bound,
        "Two runs, one from a start moved by one deviation of the noise: eta is the squared change "
        "of the W1 between them, divided by the chi-square of the starts, c_1 the same added up "
        "along the run, c_2 the most that the path allows; even: the same path at constant speed. "
        "The bound is one-sided: a large c_2 is no forecast of an error.",
        _always,
    ),
    Panel(
        "Rotation in the network: it should be a gradient",
        _rotation,
        "The exact x0 estimate has a symmetric Jacobian: 0 %. Without structure it is 50 %. A "
        "rotating part costs accuracy and moves no probability; train longer where it is large.",
        lambda profile: profile.local_rho.size > 0,
    ),
    Panel(
        "What is decided at which noise level",
        _decisions,
        "Where two completions of one noised sample agree, the sample is settled. Start an edit "
        "(image to image) to the left of the rise to change the sample, to the right to keep it.",
        lambda profile: profile.clone_rho.size > 0 or profile.merging_rho.size > 0,
    ),
)
