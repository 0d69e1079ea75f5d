"""`fit_jko`: potential, interaction and temperature of particles that were seen at a few times."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffast.thermo.estimate import warn_if_few
from diffast.thermo.jko.coupling import COUPLINGS
from diffast.thermo.jko.density import DENSITIES, Density, matching
from diffast.thermo.jko.equations import FORMS, SCHEMES, Model, equations, solve, summed
from diffast.thermo.jko.fitted import JKOFit
from diffast.thermo.jko.potentials import Features, polynomials
from diffast.thermo.jko.snapshots import Snapshots, snapshots_of

_WHO = "fit_jko"

# Above this condition number the unknowns are not told apart; 1e16 is the limit of float64.
MOST = 1e8
# So many deviations from 0, a mean is worth a word where unknowns cannot be told apart.
_FAR = 3.0


def fit_jko(
    snapshots: Sequence[Any],
    times: Any = None,
    *,
    tau: Any = None,
    scheme: str = "trapezoid",
    potential: Features | int | None = 4,
    interaction: Features | None = None,
    internal: bool | float | Sequence[Callable[[float], float]] = True,
    coupling: str = "auto",
    density: Density = "auto",
    form: str = "weak",
    ridge: float = 0.0,
    groups: int = 10,
) -> JKOFit:
    """Returns the energy and the temperature whose gradient flow the snapshots follow.

    The particles are taken to follow dx = -grad V(x, t) dt - grad (U * rho)(x) dt + sqrt(2 beta) dB
    with V, U and beta linear in unknown coefficients theta. Neighbouring snapshots are joined by
    optimal transport; theta then solves one small linear system. See `thermo/jko/equations.py`
    for the formulas, docs/thermodynamics.md for what was measured.

        features = df.thermo.potentials.polynomials(4)
        fit = df.thermo.fit_jko([x0, x1, x2], tau=0.1, potential=features)
        fit.temperature(), fit.drift(x), fit.sample(x0, 0.0, 0.5)

    Args:
        snapshots: K+1 arrays or tensors [n, ...] of samples; counts may differ.
        times: [K+1], rising.
        tau: in place of times: the time between two snapshots, a number or [K].
        scheme: "trapezoid", of second order in tau; "implicit", the JKO scheme itself, of first
            order for snapshots of a continuous process, and exact for one that takes JKO steps.
        potential: features of V (`df.thermo.potentials`); a number: polynomials of that degree;
            None: no potential.
        interaction: features of U, even functions of the difference of two particles.
        internal: True: the temperature is unknown; False: it is 0; a number: it is known; functions
            of the time: the temperature is an unknown sum of them.
        coupling: "auto": sorted for d = 1, else optimal transport by scipy; "given": sample i of
            all snapshots is the same particle (with "implicit" the temperature then comes out
            twice as large, see `thermo/jko/coupling.py`).
        density: how grad log rho is found. Features: score matching with the sum of their
            gradients. "auto": with polynomials, two degrees above those of V. "kde", "gmm" and
            "gaussian": of an estimated density. A function of points [n, d] and the time: what it
            returns.
        form: "weak", which takes grad log rho as a field to project on alone; "least squares", the
            published form, which takes it for the truth.
        ridge: added to the equations after each unknown is scaled to size 1. It makes theta smaller
            than it is; with it no condition number is refused.
        groups: of the standard errors, a jackknife that leaves out one group of samples at a time,
            at the cost of as many fits; 0: no errors.

    A `FewSamplesWarning` says that the temperature's standard error is above the temperature. Its
    value then means nothing, and may be far off: give more samples or more snapshots, the
    temperature where it is known, or form="least squares", which is too low but never far off.

    Raises:
        TypeError: times and tau together, or neither.
        ValueError: fewer than 2 snapshots; samples that are not finite or of another shape; times
            that do not rise; too few samples for the density or the groups; equations whose
            condition number is above 1e8, such as V quadratic, with an unknown temperature, on one
            pair of Gaussian snapshots; unknown options.
        ImportError: transport in more than one dimension without scipy.
    """
    given = snapshots_of(_WHO, snapshots, times, tau)
    for name, value, known in (
        ("scheme", scheme, SCHEMES),
        ("coupling", coupling, COUPLINGS),
        ("form", form, FORMS),
        ("density", density, ("auto", *DENSITIES)),
    ):
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{_WHO}: {name} = {value!r}, but it must be one of {known}")
    if isinstance(potential, int) and not isinstance(potential, bool):
        potential = polynomials(potential)
    model = _model(potential, interaction, internal)
    if not ridge >= 0:
        raise ValueError(f"{_WHO}: ridge = {ridge}, but it must be 0 or more")
    if groups and not 2 <= groups <= given.count // 2:
        raise ValueError(
            f"{_WHO}: groups = {groups}, but the smallest snapshot has {given.count} samples: "
            "2 groups or more of 2 samples or more are needed, or groups=0 for no standard errors"
        )
    if isinstance(density, str) and density == "auto":
        fewest = given.count - (-(-given.count // groups) if groups else 0)
        density = matching(fewest, given.d, getattr(potential, "degree", 4))
    names = model.names(given.d)
    options = coupling, scheme, form, density
    found = summed(equations(model, given, *options))
    theta, condition = solve(found, names, model.known, ridge)
    if not condition <= MOST and not ridge:
        raise ValueError(
            f"{_WHO}: the {len(names)} unknowns cannot be told apart on these {len(given.samples)} "
            f"snapshots: the condition number is {condition:.2g}, but {MOST:.0e} is the most. A "
            "quadratic potential and the temperature, for example, move one Gaussian in the same "
            f"way: give more snapshots, fewer features, or a ridge{_far(given)}"
        )
    covariance = np.full((len(theta),) * 2, np.nan)
    if groups:
        each = []
        for group in range(groups):
            fewer = summed(equations(model, given.without(group, groups), *options))
            each.append(solve(fewer, names, model.known, ridge)[0])
        covariance = jackknife(each)
    fit = JKOFit(
        model=model,
        names=names,
        theta=theta,
        covariance=covariance,
        condition=condition,
        residual=found.residual(theta),
        times=given.times,
        counts=tuple(map(len, given.samples)),
        shape=given.shape,
        last=given.samples[-1],
        scheme=scheme,
        form=form,
    )
    if groups and model.known is None and len(model.internal) == 1:
        # Where the data say little, the weak form's temperature may be anything.
        heat = fit.temperature()
        if heat.value < -3.0 * heat.error:
            warnings.warn(
                f"{_WHO}: the temperature is {heat}, but no process has a negative one: the "
                "features leave out what moves the samples",
                RuntimeWarning,
                stacklevel=2,
            )
        warn_if_few(_WHO, "the temperature", heat, share=1.0)
    return fit


def jackknife(each: list[np.ndarray]) -> np.ndarray:
    """Returns the covariance [J, J] of an estimate whose values without each group are given."""
    apart = np.array(each) - np.mean(each, 0)
    return (len(each) - 1) / len(each) * apart.T @ apart


def _model(potential: Any, interaction: Any, internal: Any) -> Model:
    for name, features in (("potential", potential), ("interaction", interaction)):
        if features is not None and not isinstance(features, Features):
            raise ValueError(
                f"{_WHO}: {name} is a {type(features).__name__}, but features of "
                "df.thermo.potentials are needed"
            )
    known = None
    if isinstance(internal, bool):
        functions = (_one,) if internal else ()
    elif isinstance(internal, (int, float)):
        known, functions = float(internal), (_one,)
        if not 0 <= known < float("inf"):
            raise ValueError(f"{_WHO}: internal = {internal}, but a temperature is 0 or more")
    else:
        functions = tuple(internal)
        if not functions or not all(callable(f) for f in functions):
            raise ValueError(f"{_WHO}: internal is neither True, False, a number nor functions")
    if potential is None and interaction is None and (not functions or known is not None):
        raise ValueError(f"{_WHO}: no potential, no interaction, no temperature: nothing to fit")
    return Model(potential, interaction, functions, known)


def _far(given: Snapshots) -> str:
    """Returns what to do where the samples lie far from 0, for a message."""
    whole = np.concatenate(given.samples)
    spread = float(whole.std(axis=0).max())
    apart = float(np.abs(whole.mean(axis=0)).max()) / max(spread, 1e-300)
    if apart < _FAR or spread == 0.0:
        return ""
    return (
        f". The samples lie {apart:.3g} deviations from 0, where powers of them are nearly the "
        "same: subtract their mean"
    )


def _one(t: float) -> float:
    return 1.0
