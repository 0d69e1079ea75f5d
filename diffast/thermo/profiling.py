"""`df.thermo.profile`: what one sweep over noise levels says of a network and of its schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from diffast.executors.context import check_fits, check_plan, has_rows, progress_bar
from diffast.executors.initial import initial_state
from diffast.executors.sequential import sample
from diffast.model.denoiser import Denoiser
from diffast.planning import plan as plan_to_start_with
from diffast.plans import Plan
from diffast.plans.gaussian import Gaussian
from diffast.thermo.curve import Curve
from diffast.thermo.estimate import Estimate, warn_if_few
from diffast.thermo.local_part import LocalPart, collapse
from diffast.thermo.record import Profile
from diffast.thermo.samples_part import distances, most_samples, wrong_start
from diffast.thermo.speed import (
    action,
    angle,
    entropy_production,
    w2_length,
    w2_speed_squared,
)
from diffast.thermo.sweep import (
    Means,
    Sweep,
    check_rows,
    gaussian_of,
    state_dtype,
    sweep,
    taken,
)
from diffast.tuning.pilots import Pilots, pieces

# Network calls of a sample that stands for data, and of one that is compared with data, where the
# schedule has so many levels.
CALLS, CALLS_COMPARED = 18, 10
# Groups of samples that standard errors of integrals are taken over (jackknife).
GROUPS = 16
# What is measured besides the sweep.
PARTS = ("samples", "rotation", "decisions", "clones")
# Numbers of one batch of network calls, where `rows` is not given.
ELEMENTS = 1 << 18


def profile(
    denoiser: Denoiser,
    data: Any = None,
    shape: Sequence[int] | None = None,
    *,
    count: int | None = None,
    levels: int = 24,
    rows: int | None = None,
    seed: int = 0,
    measure: Sequence[str] = PARTS,
    local: int = 16,
    plan: Plan | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Profile:
    """Returns what limits a sampler of this network, measured in one sweep over noise levels.

        profile = df.thermo.profile(denoiser, data)
        print(profile)                       about ten lines
        profile.save("profile.html")         one page; .png: the picture, .json: the numbers

    At each of `levels` noise levels the network denoises the same samples with the same normals.
    Its loss is the mmse curve; from it follow speed, length, entropy production and action of the
    noising path (`diffast.thermo.speed`). The mean squared velocity of the model's own flow gives
    the mmse a second time. The difference of both is 0 for an exact network.

    Without data, samples are generated and take their place. The loss on them measures how
    consistent the network is with its own samples, not how close it is to data; `Profile.data` is
    then "generated".

    Conditions with a row for each sample need as many rows as there are data samples. Without data
    sample i has row i, counted around their end.

    Args:
        denoiser: the network, with its conditions and guidance; any schedule and prediction.
        data: samples [N, ...] in the network's unit, an array or a tensor; None: generated ones.
        shape: [B, ...] of the state, where there are no data; B samples are generated.
        count: how many samples the levels are measured on; None: B, or 256 of the data.
        levels: noise levels, even in log(sigma / alpha), at least 4.
        rows: most rows of one network call; None: so many that 262,144 numbers are in a batch.
        seed: of the normals, of which samples are taken, and of generated samples.
        measure: what is measured besides: "samples" (samples are generated and compared with the
            data), "rotation" (`nonconservativity`), "decisions" (`critical_levels`), "clones"
            (`clone_agreement`). (): the sweep alone.
        local: how many samples the last three look at.
        plan: what samples are generated with; None: `df.plan(denoiser, 18)`.
        dtype: of the states, torch.float32 or float64; None: the network's, where it is float64.
        device: where to run; None: where the network is.
        progress: whether to show a progress bar on stderr.

    Raises:
        TypeError: neither data nor a shape; a first argument that is no denoiser.
        ValueError: data that are not finite, of integers, or of another shape; fewer than 2
            samples; conditions with another number of rows; x0 estimates that are not finite, with
            the noise level.

    Warns:
        FewSamplesWarning: an estimate with a standard error above a fifth of it.
    """
    work = _Work(denoiser, data, shape, count, levels, rows, seed, plan, dtype, device)
    work.measured(measure, local)
    total = work.batches * levels + len(work.parts)
    with progress_bar(total, "profile", "level", progress) as bar:
        return work.run(bar.update)


class _Work:
    """The arguments, checked, and the steps of the measurement."""

    def __init__(
        self, denoiser, data, shape, count, levels, rows, seed, plan, dtype, device
    ):  # the arguments of `profile`
        if not isinstance(denoiser, Denoiser):
            raise TypeError(
                f"profile: the first argument is a {type(denoiser).__name__}, but a df.Denoiser "
                "is needed"
            )
        for name, value in (("levels", levels), ("count", count), ("rows", rows)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
                raise ValueError(f"profile: {name} = {value!r}, but it must be a whole number")
        if plan is not None:
            check_plan("profile", plan)
            check_fits("profile", plan, denoiser)
        if shape is not None:
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
            if len(shape) < 2:
                raise ValueError(
                    f"profile: shape = {list(shape)}, but [B, ...] of B samples is needed; numbers "
                    "are [B, 1]"
                )
        if levels < 4:
            raise ValueError(f"profile: levels = {levels}, but at least 4 are needed")
        if rows is not None and rows < 1:
            raise ValueError(f"profile: rows = {rows}, but at least 1 is needed")
        self.denoiser, self.levels, self.seed, self.plan = denoiser, levels, seed, plan
        self.device = denoiser.device() if device is None else torch.device(device)
        self.notes: list[str] = []
        self.rows_called = 0
        self.given = data is not None
        self.data = None if data is None else _checked(data, shape)
        if self.data is None and shape is None:
            raise TypeError("profile: neither data nor a shape [B, ...] of samples is given")
        self.dtype = state_dtype(denoiser, self.data, dtype)
        if self.data is not None:
            check_rows(denoiser, len(self.data))
            self.sample_shape = tuple(self.data.shape[1:])
            self.count = min(256 if count is None else count, len(self.data))
        else:
            assert shape is not None
            self.sample_shape = tuple(int(size) for size in shape[1:])
            self.count = int(shape[0]) if count is None else count
        if self.count < 2:
            raise ValueError(f"profile: {self.count} samples, but at least 2 are needed")
        elements = max(1, int(np.prod(self.sample_shape, dtype=np.int64)))
        self.rows = max(1, min(4096, ELEMENTS // elements)) if rows is None else rows
        self.batches = len(pieces(self.count, self.rows))

    def measured(self, parts: Sequence[str], local: int) -> None:
        """Settles what is measured besides the sweep."""
        self.parts = (parts,) if isinstance(parts, str) else tuple(parts or ())
        odd = [part for part in self.parts if part not in PARTS]
        if odd:
            raise ValueError(
                f"profile: measure holds {odd[0]!r}, but what can be measured is {', '.join(PARTS)}"
            )
        if local < 2:
            raise ValueError(f"profile: local = {local}, but at least 2 samples are needed")
        self.local = min(local, self.count)

    def run(self, done: Callable[[int], Any]) -> Profile:
        if self.data is None:
            self.places = torch.arange(self.count)
            self.known = self.generated(self.places)
        else:
            self.places = taken(self.data, self.count, self.seed)
            self.known = self.data[self.places]
        law = gaussian_of(self.known)
        if not float(law.spectrum.sum()) > 0.0:
            raise ValueError(
                f"profile: all {len(self.known)} samples of the data are equal, so that there is "
                "nothing to estimate"
            )
        found = sweep(
            self.denoiser,
            self.known,
            self.places,
            law,
            self.levels,
            self.count,
            rows=self.rows,
            seed=self.seed,
            dtype=self.dtype,
            device=self.device,
            done=done,
        )
        self.rows_called += len(found.times) * self.count
        self.remark(law, found)
        energies = self.known.double().flatten(1).square().sum(1).numpy()
        integrals = _integrals(found.rho, found.loss(), energies, self.denoiser.schedule, law.d)
        fields = integrals | self.sample_fields(law, integrals["c_2"].value, done)
        fields |= self.local_fields(found, done)
        total = len(self.known) if self.data is None else len(self.data)
        fields |= collapse(law.spectrum, total)
        made = self.record(law, found, energies, fields)
        _warn(made)
        return made

    def sample_fields(
        self, law: Gaussian, c_2: float, done: Callable[[int], Any]
    ) -> dict[str, Any]:
        """Returns what runs of the sampler say."""
        if "samples" not in self.parts:
            return {}
        done(1)
        places = self.places[: min(self.count, most_samples(law.d))]
        plan = self.plan or _default_plan(self.denoiser, CALLS_COMPARED)
        pilots = Pilots(self.denoiser, self.sample_shape, self.seed, self.device)
        try:
            fields, ends = wrong_start(
                pilots, plan, law, places, self.rows, self.dtype, c_2, self.notes
            )
        except ValueError as error:
            self.notes.append(f"eta and c_1 were not measured. {error}")
            return {}
        self.rows_called += 2 * plan.nfe * len(places)
        self.notes.append(
            f"eta and c_1 are those of {len(places)} runs of {plan.name} ({plan.nfe} calls)."
        )
        return fields | (distances(ends, self.known, self.seed) if self.given else {})

    def local_fields(self, found: Sweep, done: Callable[[int], Any]) -> dict[str, Any]:
        """Returns what single samples say."""
        pilots = Pilots(self.denoiser, self.sample_shape, self.seed, self.device)
        few = self.local
        part = LocalPart(pilots, self.known[:few], self.places[:few], found, self.dtype, self.notes)
        works = {
            "rotation": ("Non-conservativity", part.rotation),
            "decisions": ("Critical noise levels", part.decisions),
            "clones": ("Clone agreement", part.clones),
        }
        fields: dict[str, Any] = {}
        for name, (title, work) in works.items():
            if name in self.parts:
                fields |= part.tried(title, work)
                done(1)
        self.rows_called += part.rows
        return fields

    def generated(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns samples of these ids on the CPU, by the plan."""
        plan = self.plan or _default_plan(self.denoiser, CALLS)
        pilots = Pilots(self.denoiser, self.sample_shape, self.seed, self.device)
        made = []
        for part in pieces(len(ids), self.rows):
            own = ids[part]
            given: dict[str, Any] = {"shape": (len(own), *self.sample_shape)}
            if self.dtype == torch.float64:
                noise = {"seed": self.seed, "ids": own, "device": self.device}
                start = initial_state(pilots.rows(own), plan, given["shape"], **noise)
                given = {"x": start.double()}
            given |= {"ids": own, "seed": self.seed, "device": self.device}
            made.append(sample(pilots.rows(own), plan, **given).x.cpu())
            self.rows_called += plan.nfe * len(own)
        self.generated_by = plan
        return torch.cat(made)

    def remark(self, law: Gaussian, found: Sweep) -> None:
        """Notes what the numbers leave out."""
        say, schedule, denoiser = self.notes.append, self.denoiser.schedule, self.denoiser
        if not self.given:
            say(
                f"No data were given: {self.count} samples were generated by "
                f"{self.generated_by.name} ({self.generated_by.nfe} calls). The loss on them says "
                "how consistent the network is with itself, not how close it is to data."
            )
        if not np.isfinite(schedule.lam(schedule.t_start)):
            say(
                f"The schedule starts at noise alone. Levels are measured from sigma / alpha = "
                f"{found.rho[0]:.3g} down; above it the mmse is taken to be constant."
            )
        last = float(schedule.sigma(schedule.t_end))
        if last > 0.0:
            say(
                f"The schedule ends at sigma = {last:.3g}, not at data: speed, length and action "
                "leave out what is below."
            )
        if len(found.times) < self.levels:
            say(
                f"The network takes whole times: {len(found.times)} of {self.levels} levels are "
                "different ones."
            )
        if denoiser.guides or denoiser.rule is not None or _guided(denoiser, found.times):
            say(
                "The estimates are guided. A guided estimate is no mean of the data, so the "
                "difference of the mmse's forms holds the guidance too."
            )
        if any(has_rows(value) for value in denoiser.conditions.values()):
            say(
                "The network is told conditions. mmse is that of data with known conditions; the "
                "Gaussian's mmse is that of all data together, so the ratio is below 1 even at the "
                "highest noise."
            )
        if len(self.known) < 2 * law.d:
            say(
                f"{len(self.known)} samples of {law.d} elements: {law.variances.size} directions "
                "have a variance of their own, the others share one. The Gaussian's mmse at low "
                "noise is rough."
            )

    def record(
        self, law: Gaussian, found: Sweep, energies: np.ndarray, fields: dict[str, Any]
    ) -> Profile:
        """Returns the profile of a sweep."""
        schedule, times, rho, d = self.denoiser.schedule, found.times, found.rho, law.d
        energy = float(energies.mean())
        loss, speed = found.loss(), found.speed_form(schedule)
        gap = found.gap(schedule)
        floor, floor_se = found.error_floor(d)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        dalpha, dsigma = schedule.derivatives(times)
        mixing = dalpha - alpha * dsigma / sigma
        known = np.maximum(loss.value(), 0.0)
        rate = entropy_production(schedule, times, known, energy, d)
        # log-SNR: lam' = alpha' / alpha - sigma' / sigma
        per_lam = rate / np.abs(dalpha / alpha - dsigma / sigma)
        modelled = _integrals(rho, speed, energies, schedule, d, only=("c_2",))
        return Profile(
            data="given" if self.given else "generated",
            shape=self.sample_shape,
            count=self.count,
            seed=self.seed,
            schedule=repr(schedule),
            rows_called=self.rows_called,
            energy=energy,
            variances=law.variances.copy(),
            rest=law.rest,
            times=np.asarray(times, dtype=np.float64),
            alpha=np.asarray(alpha),
            sigma=np.asarray(sigma),
            rho=rho,
            mmse=loss.value(),
            mmse_se=loss.error(),
            mmse_speed=speed.value(),
            mmse_speed_se=speed.error(),
            model_error=gap.value(),
            model_error_se=gap.error(),
            error_floor=floor,
            error_floor_se=floor_se,
            mmse_gaussian=law.mmse(rho),
            model_speed=dalpha**2 * energy + d * dsigma**2 - mixing**2 * speed.value(),
            w2_speed=w2_speed_squared(schedule, times, known, energy, d),
            entropy_rate=per_lam,
            c_2_model=modelled["c_2"],
            notes=tuple(self.notes),
            **fields,
        )


def _checked(data: Any, shape: Sequence[int] | None) -> torch.Tensor:
    """Returns the data as a tensor on the CPU."""
    found = torch.as_tensor(data).detach().cpu()
    if found.dim() < 1 or len(found) < 2:
        raise ValueError(
            f"profile: data of shape {list(found.shape)}, but at least 2 samples are needed"
        )
    if not found.is_floating_point():
        raise ValueError(
            f"profile: data is {found.dtype}, but floating-point numbers in the network's unit "
            "are needed (such as pixels from -1 to 1)"
        )
    found = found[:, None] if found.dim() == 1 else found
    if shape is not None and tuple(found.shape[1:]) != tuple(shape[1:]):
        raise ValueError(
            f"profile: data has samples of shape {list(found.shape[1:])}, but shape asks for "
            f"{list(shape[1:])}"
        )
    wrong = ~torch.isfinite(found.flatten(1)).all(1)
    if bool(wrong.any()):
        raise ValueError(
            f"profile: {int(wrong.sum())} of {len(found)} samples of the data are not finite"
        )
    return found


def _default_plan(denoiser: Denoiser, calls: int) -> Plan:
    """Returns the plan of so many calls; of fewer for a network of fewer whole times."""
    if denoiser.whole_times:
        ends = float(denoiser.schedule.t_start), float(denoiser.schedule.t_min)
        calls = min(calls, int(np.floor(max(ends)) - np.ceil(min(ends))) + 1)
    return plan_to_start_with(denoiser, calls)


def _guided(denoiser: Denoiser, times: np.ndarray) -> bool:
    return bool((denoiser.scales(times) != 1.0).any())


def _integrals(
    rho: np.ndarray,
    mmse: Means,
    energies: np.ndarray,
    schedule: Any,
    d: int,
    only: Sequence[str] = ("angle", "w2_length", "c_2"),
) -> dict[str, Estimate]:
    """Returns numbers of the whole path; standard errors by a jackknife over groups of samples.

    Args:
        rho: levels [M].
        mmse: of these levels.
        energies: |y|^2 of all samples [N].
        schedule: of the path.
        d: elements of a sample.
        only: which numbers.
    """
    groups = min(GROUPS, mmse.own.shape[1])

    def numbers(values: np.ndarray, energy: float) -> list[float]:
        # the scale of the curve's interpolation: any size near that of the data will do
        curve = Curve(rho, values, float(np.sqrt(max(values.max(), 1e-300) / d)))
        formulas = {
            "angle": lambda: angle(curve, d, energy),
            "w2_length": lambda: w2_length(schedule, curve, energy, d),
            "c_2": lambda: action(schedule, curve, energy, d),
        }
        return [float(formulas[name]()) for name in only]

    whole = numbers(mmse.value(), float(energies.mean()))
    part = np.arange(len(energies)) % groups
    parts = np.array(
        [numbers(mmse.value(k, groups), float(energies[part != k].mean())) for k in range(groups)]
    )
    spread = np.square(parts - parts.mean(0)).sum(0)
    errors = np.sqrt((groups - 1) / groups * spread).tolist()
    count = mmse.own.shape[1]
    return {
        name: Estimate(value, error, count)
        for name, value, error in zip(only, whole, errors, strict=True)
    }


def _warn(made: Profile) -> None:
    """Warns of the worst level, where its mmse is not known to a fifth."""
    k = int(np.argmax(made.mmse_se / np.maximum(made.mmse, 1e-300)))
    level = Estimate(float(made.mmse[k]), float(made.mmse_se[k]), made.count)
    warn_if_few("profile", f"mmse at sigma / alpha = {made.rho[k]:.3g}", level)
