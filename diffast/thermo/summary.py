"""A profile in words: about ten lines."""

from __future__ import annotations

import math

import numpy as np

from diffast.thermo.estimate import Estimate
from diffast.thermo.record import Profile


def summary(profile: Profile) -> list[str]:
    """Returns the lines."""
    lines = [
        f"{profile.count} {profile.data} samples of {profile.d} elements, {profile.rho.size} noise "
        f"levels sigma / alpha from {profile.rho[0]:.3g} to {profile.rho[-1]:.3g}, "
        f"{profile.rows_called:,} rows of network calls.",
        _half(profile),
        _gaussian(profile),
        _error(profile),
        _path(profile),
    ]
    lines += [*_bound(profile), *_rotation(profile), *_decisions(profile), *_clones(profile)]
    if math.isfinite(profile.collapse_rho):
        lines.append(
            f"Collapse: a network that had learned its data by heart would show it below sigma / "
            f"alpha = {profile.collapse_rho:.3g}."
        )
    return lines


def _level(profile: Profile, values: np.ndarray, wanted: float) -> float:
    """Returns the level at which values that fall along the run pass `wanted`."""
    below = np.flatnonzero(values < wanted)
    if not below.size or below[0] == 0:
        return math.nan
    k = int(below[0])
    share = (values[k - 1] - wanted) / (values[k - 1] - values[k])
    return float(np.exp(np.log(profile.rho[k - 1]) * (1 - share) + np.log(profile.rho[k]) * share))


def _half(profile: Profile) -> str:
    top = float(profile.mmse[0])
    ends = [_level(profile, profile.mmse, share * top) for share in (0.9, 0.5, 0.1)]
    if not np.isfinite(ends).all():
        return f"mmse: {top:.4g} at the highest noise, {profile.mmse[-1]:.4g} at the lowest."
    return (
        f"mmse: {top:.4g} at the highest noise; the network knows half of it at sigma / alpha = "
        f"{ends[1]:.3g}, and four fifths are gained between {ends[0]:.3g} and {ends[2]:.3g}."
    )


def _gaussian(profile: Profile) -> str:
    # the same normals serve all levels, so that the shape of the ratio is sharper than its size
    apart = np.abs(profile.ratio / profile.ratio[0] - 1.0)
    start = _level(profile, -apart, -0.01)
    if not math.isfinite(start):
        return "Gaussian: the mmse stays within 1 % of that of Gaussian data at all levels."
    least = float(profile.ratio.min())
    return (
        f"Gaussian: above sigma / alpha = {start:.3g} the data look Gaussian to the network "
        f"within 1 %; below, its mmse falls to {least:.2g} of a Gaussian's."
    )


def _error(profile: Profile) -> str:
    wrong, se = profile.speed_error
    sure = np.abs(wrong) > 3.0 * se
    if not sure.any():
        return "Model error: none found; the model's speed equals the data's within 3 errors."
    k = int(np.argmax(np.where(sure, np.abs(wrong), 0.0)))
    more = "faster" if wrong[k] > 0 else "slower"
    return (
        f"Model error: its flow has another speed than the data's path at {int(sure.sum())} of "
        f"{sure.size} levels, most at sigma / alpha = {profile.rho[k]:.3g}: it is {more} there, "
        f"{100 * wrong[k]:+.2g} +- {100 * se[k]:.1g} % in the squared speed."
    )


def _path(profile: Profile) -> str:
    length = profile.w2_length.value
    return (
        f"Path: W2 length {profile.w2_length}, c_2 = {profile.c_2}; at constant speed it would be "
        f"{length**2:.4g} ({100 * length**2 / profile.c_2.value:.3g} % of it). Angle Psi = "
        f"{profile.angle} of at most 1.571."
    )


def _known(estimate: Estimate) -> bool:
    return math.isfinite(estimate.value)


def _bound(profile: Profile) -> list[str]:
    lines = []
    if _known(profile.eta):
        far = profile.c_2.value > 10.0 * profile.eta.value
        far = "the bound is far from the error" if far else "the bound is near the error"
        lines.append(
            f"Speed-accuracy, for a start moved by one deviation of the noise: eta = {profile.eta} "
            f"<= c_1 = {profile.c_1} <= c_2 = {profile.c_2}; {far}."
        )
    if _known(profile.w1_end):
        lines.append(
            f"Samples: W1 to the data {profile.w1_end}; between as many data {profile.w1_floor}."
        )
    return lines


def _rotation(profile: Profile) -> list[str]:
    if not profile.local_rho.size:
        return []
    k = int(np.argmax(profile.nonconservativity))
    return [
        f"Rotation: at most {100 * profile.nonconservativity[k]:.2g} +- "
        f"{100 * profile.nonconservativity_se[k]:.1g} % of the Jacobian is antisymmetric, at "
        f"sigma / alpha = {profile.local_rho[k]:.3g}."
    ]


def _decisions(profile: Profile) -> list[str]:
    found = profile.critical_rho
    merging = profile.merging_rho[np.isfinite(profile.merging_rho)]
    if not found.size and not merging.size:
        return []
    text = "Decisions: " + (
        f"the centre splits or ends at sigma / alpha = {', '.join(f'{v:.3g}' for v in found[:3])}"
        if found.size
        else "the centre never splits"
    )
    if merging.size:
        text += f"; modes of samples appear at {np.median(merging):.3g} (median)"
    return [text + "."]


def _clones(profile: Profile) -> list[str]:
    if not profile.clone_rho.size:
        return []
    order = np.argsort(profile.clone_rho)
    level = np.interp(0.5, profile.clone_agreement[order][::-1], profile.clone_rho[order][::-1])
    return [
        f"Clones: two completions share half of their variance from sigma / alpha = {level:.3g}."
    ]
