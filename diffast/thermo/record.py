"""`Profile`: what was measured on a network, as numbers, text and a JSON file."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from diffast._files import load_json, shortened
from diffast.thermo.curve import Curve
from diffast.thermo.estimate import Estimate

FORMAT, VERSION = "diffast profile", 1

# Fields with a number for each level.
_BY_LEVEL = ("times", "alpha", "sigma", "mmse", "mmse_se", "mmse_speed", "mmse_speed_se")
_BY_LEVEL += ("model_error", "model_error_se", "error_floor", "error_floor_se", "mmse_gaussian")
_BY_LEVEL += ("model_speed", "w2_speed", "entropy_rate")

_NONE = Estimate(math.nan, math.nan, 0)


def _empty() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True, eq=False)
class Profile:
    """What `df.thermo.profile` measured; see docs/thermodynamics.md.

    Levels run from noisy to clean. "Summed" means over the d elements of a sample. Names that end
    in `_se` are standard errors. What was not measured is an empty array, or an `Estimate` whose
    value is NaN.

    Attributes:
        data: "given", or "generated" where the samples were the network's own.
        shape: of one sample.
        count: samples that the levels were measured on.
        seed: of the normals.
        schedule: the noise schedule in words.
        rows_called: rows of network calls in all. A guided call of both branches is one.
        energy: E|y|^2 of the data, summed.
        variances: the largest eigenvalues of the data's covariance [r], falling.
        rest: the variance along all other directions.
        times: model times [M].
        alpha: signal levels [M].
        sigma: noise levels [M].
        rho: sigma / alpha [M].
        mmse: the loss E|y - D|^2, summed [M].
        mmse_se: [M].
        mmse_speed: the mmse that the mean squared velocity of the model's flow stands for [M].
        mmse_speed_se: [M].
        model_error: mmse - mmse_speed [M]: 0 for an exact network.
        model_error_se: [M], of the difference; samples are shared, so it is the smaller one.
        error_floor: what the network's own squared error E|D - E[y|x]|^2 is at least, summed [M].
        error_floor_se: [M].
        mmse_gaussian: of Gaussian data with the data's covariance [M], the best linear estimate's.
        model_speed: E|v|^2 of the model's flow, squared data units per squared model time [M].
        w2_speed: v_2^2 of the noising path from the loss, same unit [M].
        entropy_rate: entropy production of the noising path, nats per nat of log-SNR [M].
        angle: Psi, radians, from data (0) to noise (pi / 2 at most).
        w2_length: W2 length of the schedule's path, data units.
        c_2: integral of v_2^2 over the path of unit duration, from the loss.
        c_2_model: the same from the model's speed.
        chi_square: D_0 of the wrong start that `eta` and `c_1` are measured with.
        eta: (change of W1 between two runs, one from the wrong start)^2 / D_0.
        c_1: the same along the run, integral of (dW1/dt)^2 / D_0: between eta and c_2.
        w1_end: W1 between generated samples and data: exact for d = 1, else sqrt(d) times sliced.
        w1_floor: W1 between as many samples of the data: what `w1_end` is without any error.
        local_rho: levels [K] of `nonconservativity`.
        nonconservativity: share of the x0 estimate's Jacobian that is antisymmetric [K], 0 to 1.
        nonconservativity_se: [K].
        critical_rho: levels at which the centre of the data splits or ends: a decision begins.
        peak_rho: level of the largest eigenvalue of the x0 estimate's Jacobian along the centre.
        peak_eigenvalue: that eigenvalue; 1 and more: a decision.
        merging_rho: levels at which the mode that a sample lies in disappears, one a sample.
        clone_rho: levels [L] of `clone_agreement`.
        clone_agreement: correlation of two samples drawn from one noised sample [L].
        clone_agreement_se: [L].
        collapse_rho: level below which a network that memorises its training set can be told.
        notes: sentences on what was left out or replaced.
    """

    data: str
    shape: tuple[int, ...]
    count: int
    seed: int
    schedule: str
    rows_called: int
    energy: float
    variances: np.ndarray
    rest: float
    times: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    rho: np.ndarray
    mmse: np.ndarray
    mmse_se: np.ndarray
    mmse_speed: np.ndarray
    mmse_speed_se: np.ndarray
    model_error: np.ndarray
    model_error_se: np.ndarray
    error_floor: np.ndarray
    error_floor_se: np.ndarray
    mmse_gaussian: np.ndarray
    model_speed: np.ndarray
    w2_speed: np.ndarray
    entropy_rate: np.ndarray
    angle: Estimate = _NONE
    w2_length: Estimate = _NONE
    c_2: Estimate = _NONE
    c_2_model: Estimate = _NONE
    chi_square: Estimate = _NONE
    w1_end: Estimate = _NONE
    w1_floor: Estimate = _NONE
    eta: Estimate = _NONE
    c_1: Estimate = _NONE
    local_rho: np.ndarray = field(default_factory=_empty)
    nonconservativity: np.ndarray = field(default_factory=_empty)
    nonconservativity_se: np.ndarray = field(default_factory=_empty)
    critical_rho: np.ndarray = field(default_factory=_empty)
    peak_rho: float = math.nan
    peak_eigenvalue: float = math.nan
    merging_rho: np.ndarray = field(default_factory=_empty)
    clone_rho: np.ndarray = field(default_factory=_empty)
    clone_agreement: np.ndarray = field(default_factory=_empty)
    clone_agreement_se: np.ndarray = field(default_factory=_empty)
    collapse_rho: float = math.nan
    notes: tuple[str, ...] = ()

    @property
    def d(self) -> int:
        """Returns the number of elements of one sample."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def levels(self) -> np.ndarray:
        """Returns `rho`, the noise levels sigma / alpha [M]."""
        return self.rho

    @property
    def spectrum(self) -> np.ndarray:
        """Returns the d eigenvalues of the data's covariance, [d]."""
        return np.append(self.variances, np.full(self.d - self.variances.size, self.rest))

    @property
    def deviation(self) -> float:
        """Returns the root mean square of the data about their mean, an element."""
        return math.sqrt(max(float(self.spectrum.sum()) / self.d, 1e-300))

    @property
    def ratio(self) -> np.ndarray:
        """Returns mmse / mmse_gaussian [M]: 1 where the data look Gaussian, less below."""
        return self.mmse / np.maximum(self.mmse_gaussian, 1e-300)

    @property
    def speed_error(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (E|v|^2 - v_2^2) / E|v|^2 of the model's flow [M], and its standard error [M].

        0 for an exact network. Along the schedule's own path. NaN where the mean squared speed is
        not positive, as an estimate from few samples may be.
        """
        gap = self.model_speed - self.w2_speed
        share = gap / np.where(self.model_error == 0.0, 1.0, self.model_error)
        size = np.where(self.model_speed > 0.0, self.model_speed, np.nan)
        return gap / size, np.abs(share) * self.model_error_se / size

    @property
    def c_2_constant(self) -> Estimate:
        """Returns the c_2 of the same path at constant speed: its squared W2 length."""
        length, error, count = self.w2_length
        return Estimate(length**2, 2.0 * length * error, count)

    @property
    def c_2_preserving(self) -> Estimate:
        """Returns the c_2 of the path that keeps E|x|^2, at constant speed: E|y|^2 Psi^2.

        A variance-preserving path whose noise is as large as the data.
        """
        psi, error, count = self.angle
        return Estimate(self.energy * psi**2, 2.0 * self.energy * psi * error, count)

    def mmse_at(self, rho: Any) -> np.ndarray:
        """Returns the mmse (loss form) at levels rho = sigma / alpha of any shape, summed.

        A monotone cubic between the levels; proportional to rho^2 below and constant above, as
        `Curve`.

        Raises:
            ValueError: a level that is negative or NaN.
        """
        levels = np.asarray(rho, dtype=np.float64)
        if not (levels >= 0.0).all():
            wrong = levels[~(levels >= 0.0)].ravel()[0]
            raise ValueError(f"Profile: rho = {wrong:g}, but a noise level is 0 or more")
        return self._curve(levels)

    @cached_property
    def _curve(self) -> Curve:
        return Curve(self.rho, self.mmse, self.deviation)

    def to_dict(self) -> dict:
        """Returns the profile as JSON can hold it: NaN is null, infinity is "inf"."""
        made: dict[str, Any] = {"format": FORMAT, "version": VERSION}
        for one in fields(self):
            value = getattr(self, one.name)
            value = value.tolist() if isinstance(value, np.ndarray) else value
            made[one.name] = _to_json(value)
        return made

    @classmethod
    def from_dict(cls, record: Any) -> Profile:
        """Returns the profile of a dict; the inverse of `to_dict`.

        Raises:
            ValueError: something else than a profile of this version, or with other fields.
        """
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"Profile: no {FORMAT!r} is in this file")
        if record.get("version") != VERSION:
            raise ValueError(
                f"Profile: the file has version {record.get('version')}, but this package reads "
                f"{VERSION}"
            )
        given = {k: v for k, v in record.items() if k not in ("format", "version")}
        known = {one.name: one.type for one in fields(cls)}
        if given.keys() != known.keys():
            odd = sorted(given.keys() ^ known.keys())
            raise ValueError(f"Profile: the fields {', '.join(odd)} are missing or too many")
        try:
            made = cls(**{name: _from_json(v, str(known[name])) for name, v in given.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"Profile: a field has another form ({error})") from None
        for name in _BY_LEVEL:
            if len(getattr(made, name)) != len(made.rho):
                raise ValueError(
                    f"Profile: {name} has {len(getattr(made, name))} numbers, but there are "
                    f"{len(made.rho)} levels"
                )
        return made

    def save(self, path: str | PathLike) -> None:
        """Writes a .json (the numbers), .png (the picture) or .html (the page) file.

        Raises:
            ValueError: another ending; a folder that is not there.
            ImportError: matplotlib is not installed, for .png and .html.
        """
        path = Path(path)
        check_path(path)
        if path.suffix == ".json":
            data = (json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n").encode()
        else:
            from diffast.thermo import page

            data = page.png(self) if path.suffix == ".png" else page.html(self).encode()
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | PathLike) -> Profile:
        """Returns the profile of a .json file, equal to the last bit.

        Raises:
            ValueError: a file that holds no profile.
            FileNotFoundError: there is no such file.
        """
        try:
            record = load_json(path)
        except ValueError as error:
            raise ValueError(f"Profile: {path} is no JSON file ({error})") from None
        try:
            return cls.from_dict(record)
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            reason = shortened(error).removeprefix("Profile: ")
            raise ValueError(f"Profile: {path}: {reason}") from None

    def summary(self) -> str:
        """Returns about ten lines of text: what limits a sampler of this network."""
        from diffast.thermo.summary import summary

        return "\n".join(summary(self))

    def __str__(self) -> str:
        """Returns the summary."""
        return self.summary()


def check_path(path: Path) -> None:
    """Raises ValueError for a file that no profile is written to."""
    if path.suffix not in (".json", ".png", ".html"):
        raise ValueError(f"Profile: {path} must end in .json, .png or .html")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"Profile: there is no folder {path.absolute().parent}")


def _to_json(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _from_json(value: Any, kind: str) -> Any:
    def number(part: Any) -> float:
        return math.nan if part is None else float(part)

    if kind == "np.ndarray":
        return np.array([number(part) for part in value], dtype=np.float64)
    if kind == "Estimate":
        found, error, count = value
        return Estimate(number(found), number(error), int(count))
    if kind.startswith("tuple"):
        return tuple(str(part) if "str" in kind else int(part) for part in value)
    return {"float": number, "int": int, "str": str}[kind](value)
