"""The Gaussian law that a plan may start from, in place of noise alone, and what it fills in.

At a noise level the data law N(mean, C) has states x = alpha mean + S z, S = (alpha^2 C +
sigma^2)^(1/2), and x0 estimates mean + alpha C S^-2 (x - alpha mean). For such data the exact flow
of the probability-flow ODE carries z along unchanged. A run that starts from this law with the
noise z therefore starts where the flow from the noise at the top would be, and it knows the
estimates that the flow would have had on its way. `Entry` says what a remembered entry is made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffast.plans.gaussian import Gaussian
from diffast.plans.registers import H, V, levels_of

if TYPE_CHECKING:
    from diffast.plans.places import Place
    from diffast.plans.plan import Plan


@dataclass(frozen=True, eq=False)
class StartLaw:
    """One Gaussian law of data or several, and how far the data are from them at each level.

    Args:
        laws: the law of all samples; or one for each value of a condition, in order.
        by: name of the condition whose whole number picks a sample's law; None: there is one law.
        rho: [M] noise levels sigma / alpha, falling, at which the distance is known; None: not
            measured.
        kl: [M] Kullback-Leibler divergences KL(p_rho || Gaussian at rho), nats.

    Raises:
        ValueError: no law, laws of different shapes, several laws without `by`; levels that do not
            fall, distances that fall with them.
    """

    laws: tuple[Gaussian, ...]
    by: str | None = None
    rho: np.ndarray | None = None
    kl: np.ndarray | None = None

    def __str__(self) -> str:
        """Returns how many laws there are, and the divergence at every fifth level."""
        pairs = () if self.rho is None or self.kl is None else zip(self.rho, self.kl, strict=True)
        said = ", ".join(f"{kl:.2g} at {rho:.3g}" for rho, kl in list(pairs)[::-5]) or "unknown"
        return f"StartLaw: laws {len(self.laws)}, by {self.by}, KL in nats at sigma/alpha: {said}"

    def __post_init__(self):
        """Checks that the parts fit."""
        laws = (self.laws,) if isinstance(self.laws, Gaussian) else tuple(self.laws)
        object.__setattr__(self, "laws", laws)
        wrong = [law for law in laws if not isinstance(law, Gaussian)]
        if wrong or not laws:
            what = f"one of laws is a {type(wrong[0]).__name__}" if wrong else "there is no law"
            raise ValueError(f"StartLaw: {what}, but df.thermo.Gaussian laws are needed")
        if self.by is not None and not isinstance(self.by, str):
            raise ValueError(
                f"StartLaw: by = {self.by!r}, but it must be the name of a condition, or None"
            )
        shapes = {law.shape or () for law in self.laws}
        if len(shapes) != 1:
            raise ValueError(f"StartLaw: laws of the shapes {sorted(shapes)}, but one is needed")
        if len(self.laws) > 1 and self.by is None:
            raise ValueError(
                f"StartLaw: {len(self.laws)} laws, but by is None: name the condition that picks "
                "each sample's law"
            )
        if (self.rho is None) != (self.kl is None):
            raise ValueError("StartLaw: rho and kl belong together, but one of them is missing")
        if self.rho is None:
            return
        rho, kl = (np.array(part, dtype=np.float64) for part in (self.rho, self.kl))
        falls = rho.ndim == 1 and rho.shape == kl.shape and rho.size and (np.diff(rho) < 0).all()
        if not (falls and (rho > 0).all() and (np.diff(kl) >= 0).all() and (kl >= 0).all()):
            raise ValueError(
                "StartLaw: rho must fall and kl must rise with it, [M] each and not negative"
            )
        for name, part in (("rho", rho), ("kl", kl)):
            part.flags.writeable = False
            object.__setattr__(self, name, part)

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one sample."""
        return self.laws[0].shape or ()

    def kl_at(self, rho: float) -> float:
        """Returns the divergence at a level: log-linear between those measured, inf below them.

        Raises:
            ValueError: nothing was measured.
        """
        if self.rho is None or self.kl is None:
            raise ValueError(
                "StartLaw: kl is asked for, but this law has no certificate: "
                "df.thermo.start_law(denoiser, data) measures one"
            )
        if rho < self.rho[-1] * (1 - 1e-9):
            return np.inf
        known, places = np.log(np.maximum(self.kl, np.finfo(np.float64).tiny)), np.log(self.rho)
        if rho <= self.rho[0]:
            return float(np.exp(np.interp(-np.log(rho), -places, known)))
        # Above the highest level it goes on as between the two highest: at least as rho^-2, which
        # is how the divergence of a wrong mean falls.
        power = 2.0
        if len(known) > 1:
            power = max(power, (known[1] - known[0]) / (places[0] - places[1]))
        return float(self.kl[0] * (self.rho[0] / rho) ** power)


class Entry(NamedTuple):
    """A remembered entry along the flow: sum of states and x0 estimates at noise levels.

    Attributes:
        states: [n] weights of the states at the `Initial.levels`.
        estimates: [n] weights of the x0 estimates there.
    """

    states: np.ndarray
    estimates: np.ndarray


@dataclass(frozen=True, eq=False)
class Initial:
    """What a plan starts from: a Gaussian law, and the entries that it fills in.

    Args:
        law: the law of the data.
        levels: [n, 2] of (alpha, sigma) that the entries refer to.
        states: [m, n], entry by entry, the oldest first: weights of the flow's states.
        estimates: [m, n] weights of the x0 estimates.

    Raises:
        ValueError: for shapes that disagree, numbers that are not finite, levels without noise.
    """

    law: StartLaw
    levels: np.ndarray
    states: np.ndarray
    estimates: np.ndarray

    def __post_init__(self):
        """Converts and checks the numbers."""
        levels = np.array(self.levels, dtype=np.float64).reshape(-1, 2)
        shape = (-1, len(levels)) if len(levels) else (0, 0)
        states, estimates = (
            np.array(part, dtype=np.float64).reshape(shape)
            for part in (self.states, self.estimates)
        )
        if states.shape != estimates.shape:
            raise ValueError(
                f"Initial: weights of states are {list(states.shape)}, those of estimates "
                f"{list(estimates.shape)}"
            )
        if not all(np.isfinite(part).all() for part in (levels, states, estimates)):
            raise ValueError("Initial: a level or a weight is not finite")
        if not (levels[:, 1] > 0).all():
            raise ValueError("Initial: a level has sigma = 0, but the flow is followed at noise")
        for name, part in (("levels", levels), ("states", states), ("estimates", estimates)):
            part.flags.writeable = False
            object.__setattr__(self, name, part)

    @property
    def entries(self) -> int:
        """Returns how many entries there are before the first call."""
        return len(self.states)

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (x0 weights, noise weights) [m] of the entries on a path of known x0 and noise.

        That is what the plan's check needs: alpha x0 + sigma eps with x0 estimates equal to x0.
        """
        alpha, sigma = self.levels.T
        return self.states @ alpha + self.estimates.sum(axis=1), self.states @ sigma

    def gains(self, law: Gaussian, level: tuple[float, float]) -> list[tuple]:
        """Returns for each entry (offset, along the basis [r], along the rest).

        Entry = offset mean + G (x - alpha mean) with x the initial state at `level`; G has these
        eigenvalues.
        """
        own = deviations(law, level)
        found = []
        for states, estimates in zip(self.states, self.estimates, strict=True):
            offset, along = 0.0, np.zeros(len(law.variances) + 1)
            for (alpha, sigma), a, b in zip(self.levels, states, estimates, strict=True):
                there = deviations(law, (alpha, sigma))
                offset += a * alpha + b
                along = along + (a + b * alpha * _variances(law) / there**2) * there
            found.append((offset, (along / own)[:-1], (along / own)[-1]))
        return found


def _variances(law: Gaussian) -> np.ndarray:
    """Returns the variances along the basis, then that of the rest, [r + 1]."""
    return np.append(law.variances, law.rest)


def deviations(law: Gaussian, level: tuple[float, float]) -> np.ndarray:
    """Returns the deviations of states at (alpha, sigma): along the basis, then the rest."""
    alpha, sigma = level
    return np.sqrt(alpha**2 * _variances(law) + sigma**2)


def late_start(
    plan: Plan,
    law: Any,
    *,
    level: float | None = None,
    calls: int | None = None,
    kl: float | None = None,
) -> Plan:
    """See `Plan.late_start`."""
    from diffast.plans.places import places

    law = start_law_of(law)
    asked = {"level": level, "calls": calls, "kl": kl}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"late_start: {' and '.join(given)} are given, but one is enough")
    for name, value in given.items():
        _check_positive(name, value, whole=name == "calls")
    if plan.initial is not None:
        raise ValueError(f"late_start: {plan.name} starts from a Gaussian law already")
    found = [_start_of(plan)]
    if given:
        found = [place for place in places("late_start", plan) if place.level[1] > 0.0]
        found = [place for place in found if plan.called[place.before :].any()]
    if level is not None:
        kept = [p for p in found if _rho(p.level) <= level * (1 + 1e-9)]
        reason = f"level = {level:g}, but the lowest step starts at {_rho(found[-1].level):g}"
    elif calls is not None:
        left = {p.number: int(plan.called[p.before :].sum()) for p in found}
        kept = [p for p in found if 1 <= left[p.number] <= calls]
        reason = f"calls = {calls}, but no step leaves so few"
    elif kl is not None:
        passed = [p for p in found if law.kl_at(_rho(p.level)) <= kl]
        kept = passed[-1:]
        top = law.kl_at(_rho(found[0].level))
        reason = f"kl = {kl:g}, but the divergence is {top:.3g} at the plan's start already"
    else:
        kept, reason = found[:1], "the plan has no step at noise"
    if not kept:
        raise ValueError(f"late_start: {reason}")
    return _cut(plan, law, kept[0])


def _check_positive(name: str, value: Any, whole: bool) -> None:
    """Raises ValueError for what is no positive, finite number."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 < number < math.inf:
        raise ValueError(f"late_start: {name} = {value!r}, but it must be positive and finite")
    if whole and number != int(number):
        raise ValueError(f"late_start: {name} = {value!r}, but it must be a whole number")


def _start_of(plan: Plan) -> Place:
    """Returns the place at which the plan starts anyway."""
    from diffast.plans.places import Place

    alpha, sigma = levels_of(plan.schedule, plan.start).tolist()
    if sigma == 0.0:
        raise ValueError(f"late_start: {plan.name} starts at sigma = 0, but a law has noise added")
    return Place(0, 0, float(plan.start or 0.0), (alpha, sigma))


def check_plain_start(who: str, plan: Plan, instead: str) -> None:
    """Raises ValueError for a plan that starts from a Gaussian law.

    Args:
        who: the public function.
        plan: any plan.
        instead: what to do, the end of the message.
    """
    if plan.initial is not None:
        raise ValueError(f"{who}: {plan.name} starts from a Gaussian law of the data: {instead}")


def start_law_of(law: Any, who: str = "late_start") -> StartLaw:
    """Returns the law of a `Gaussian`, a `StartLaw`, or an object that has one as `.law`.

    ValueError for something else, in the name of `who`.
    """
    if isinstance(law, Gaussian):
        return StartLaw((law,))
    found = getattr(law, "law", law)
    if not isinstance(found, StartLaw):
        raise ValueError(
            f"{who}: law is a {type(law).__name__}, but a df.thermo.Gaussian or what "
            "df.thermo.start_law returns is needed"
        )
    return found


def _rho(level: tuple[float, float]) -> float:
    return float("inf") if level[0] == 0.0 else level[1] / level[0]


def _cut(plan: Plan, law: StartLaw, place: Any) -> Plan:
    """Returns the plan from a place on, which starts from the law."""
    first = place.before
    if not plan.called[first:].any():
        raise ValueError(f"late_start: no network call of {plan.name} is left after the cut")
    if V in plan.columns and first and plan.matrix[first, :, plan.columns.index(V)].any():
        lost = "a momentum of the steps before the cut, which a Gaussian law does not give"
        raise ValueError(f"late_start: {plan.name} reads {lost}")
    read = _entries_read(plan, first)
    made = np.flatnonzero(_makes(plan)[:first])
    recipes = _recipes(plan, made, first) if read else {}
    weights: list[Entry] = []
    for i in made[len(made) - read :].tolist() if read else []:
        recipe = recipes[i]
        if law.by is not None and plan.weights(H, "d_uncond")[i]:
            recipe = "d_uncond"
        if isinstance(recipe, str):
            raise ValueError(
                f"late_start: {plan.name} reads an entry of stage {i} after the cut, but the entry "
                f"weighs {recipe}, which a Gaussian law does not give"
            )
        weights.append(recipe)
    levels = _levels_before(plan)
    used = [i for i in range(first) if any(w.states[i] or w.estimates[i] for w in weights)]
    initial = Initial(
        law,
        np.array([levels["x"][i] for i in used]),
        np.array([[w.states[i] for i in used] for w in weights]),
        np.array([[w.estimates[i] for i in used] for w in weights]),
    )
    fields: dict[str, Any] = {"start": place.time, "made_for": None, "initial": initial}
    fields |= {name: getattr(plan, name)[first:] for name in ("times", "matrix", "levels", "spans")}
    for name in ("guidance", "gradients"):
        if getattr(plan, name) is not None:
            fields[name] = getattr(plan, name)[first:]
    gone = int(plan.called[:first, 0].sum())
    if plan.blocks is not None:
        later = plan.blocks[plan.blocks > gone] - gone
        fields["blocks"] = np.append(0, later)
    if place.scale != 1.0:
        fields |= _scaled(plan, fields, 1.0 / place.scale)
    shown = f"late_start({plan.name}, from {_rho(place.level):.4g})"
    left = int(plan.called[first:].any(axis=1).sum())  # steps of several calls may be no places
    fields |= {"steps": min(max(1, plan.steps - place.number), left), "name": shown}
    return replace(plan, **fields)


def _scaled(plan: Plan, fields: dict[str, Any], factor: float) -> dict[str, Any]:
    """Returns the fields with a silent stage in front that multiplies the state by a factor."""
    x, y = (plan.rows.index(n) if n in plan.rows else None for n in ("x", "y"))
    stage = np.zeros((1, len(plan.rows), len(plan.columns)))
    level = np.full((1, len(plan.rows), 2), np.nan)
    for r in (x, y):
        if r is not None:
            stage[0, r, plan.columns.index("x")] = factor
            level[0, r] = levels_of(plan.schedule, fields["start"]) * factor
    for name in ("guidance", "times", "gradients"):
        if fields.get(name) is not None:
            front = np.full_like(fields[name][:1], np.nan)
            fields[name] = np.concatenate([front, fields[name]])
    return {
        "times": fields["times"],
        **{n: fields[n] for n in ("guidance", "gradients") if n in fields},
        "matrix": np.concatenate([stage, fields["matrix"]]),
        "levels": np.concatenate([level, fields["levels"]]),
        "spans": np.concatenate([[[fields["start"], fields["start"]]], fields["spans"]]),
    }


def _makes(plan: Plan) -> np.ndarray:
    """Returns whether each stage makes an entry, [S]."""
    return np.any(plan.matrix[:, 0], axis=1) & (H in plan.rows)


def _entries_read(plan: Plan, first: int) -> int:
    """Returns how many of the newest entries made before a stage are read from it on."""
    before = int(_makes(plan)[:first].sum())
    ages = [(int(c[1:]), k) for k, c in enumerate(plan.columns) if c[0] == "h" and c != "h0"]
    read, made = 0, before
    for i in range(first, plan.stages):
        used = plan.matrix[i].any(axis=0)
        oldest = max([age - (made - before) for age, k in ages if used[k]], default=0)
        read = max(read, min(oldest, before))
        made += int(_makes(plan)[i])
    return read


def _levels_before(plan: Plan) -> dict[str, np.ndarray]:
    """Returns [S, 2] levels of x and y when each stage begins."""
    start = levels_of(plan.schedule, plan.start)
    return {
        name: np.vstack([start, plan.levels[:-1, plan.rows.index(name)]])
        for name in ("x", "y")
        if name in plan.rows
    }


def _recipes(plan: Plan, made: np.ndarray, first: int) -> dict[int, Entry | str]:
    """Returns what each entry before a stage is made of; a column's name where it cannot be told.

    States are weighed by the stage at whose beginning x stood there: those of y stand at the level
    of an x of some stage before.
    """
    levels, found = _levels_before(plan), {}
    for number, i in enumerate(made.tolist()):
        states, estimates, bad = np.zeros(first), np.zeros(first), ""
        for column, weight in zip(plan.columns, plan.matrix[i, 0].tolist(), strict=True):
            if weight == 0.0:
                continue
            if column == "x":
                states[i] += weight
            elif column == "y":
                same = np.flatnonzero((levels["x"][: i + 1] == levels["y"][i]).all(axis=1))
                if len(same):
                    states[same[-1]] += weight
                else:
                    bad = column
            elif column in ("d", "d_raw", "d_cond", "d_uncond"):
                estimates[i] += weight
            elif column[0] == "h":
                older = found[int(made[number - int(column[1:])])]
                if isinstance(older, str):
                    bad = older
                else:
                    states, estimates = (
                        states + weight * older.states,
                        estimates + weight * older.estimates,
                    )
            else:
                bad = column
        found[i] = bad or Entry(states, estimates)
    return found


def arrays_of(initial: Initial) -> list[np.ndarray]:
    """Returns all arrays that a run depends on."""
    laws = [np.append(_variances(law), law.mean) for law in initial.law.laws]
    bases = [law.basis for law in initial.law.laws]
    return [*laws, *bases, initial.levels, initial.states, initial.estimates]
