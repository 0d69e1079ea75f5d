"""Random calls of k-diffusion's samplers, each made by the original and by the drop-in.

    python bench/attack/k_diffusion_samplers.py --cases 3000 --out report.json

A case is a sampler with random sigmas, dtypes, options, model and callback. Both are called after
the same torch.manual_seed. Compared are the samples with their dtype, what the callback saw, what
the noise sampler was asked, and where torch's generator stands afterwards. A case is

- equal: all of that agrees;
- said: the drop-in raises an error of one sentence; counted by sentence;
- both refuse, or only the original does;
- nearer: the original's rounding in float32 or less shows, and the drop-in is nearer to what the
  original computes in float64 with the same noise;
- silent: anything else. There must be none.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import random
import re
import sys
import types
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from diffast.integrations import k_diffusion as ours
from diffast.integrations.handed_over import HandedOverWarning
from diffast.integrations.k_diffusion import handing

CHURN = ("euler", "heun", "dpm_2")
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
SDE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
SAMPLERS = (*CHURN, *ANCESTRAL, *SDE, "lms", "dpmpp_2m", "dpm_fast", "dpm_adaptive")
NEARER = "nearer"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Of the numbers' size: states are sums of some ten terms of rounded numbers.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-4,
    torch.float16: 0.06,
    torch.bfloat16: 0.4,
}


def original() -> types.ModuleType:
    """Returns k_diffusion.sampling without its package, which imports much for other ends."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("k-diffusion is not installed: pip install --no-deps k-diffusion")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    if importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        transforms = types.ModuleType("torchvision.transforms")
        transforms.functional = None
        sys.modules["torchvision.transforms"] = transforms
    return importlib.import_module("k_diffusion.sampling")


def sigmas_of(choose: random.Random) -> tuple[torch.Tensor, str]:
    """Returns noise levels and what is unusual about them."""
    steps = choose.choice((1, 1, 2, 3, 5, 8, 12))
    low, high = choose.choice(((0.05, 12.0), (0.03, 14.6), (0.3, 3.0), (0.002, 80.0)))
    levels = np.exp(np.linspace(np.log(high), np.log(low), steps))
    kind = choose.choices(
        ("zero", "above", "rising", "repeated", "zeros", "single", "unsorted", "starts at 0", "-"),
        (60, 15, 6, 4, 3, 2, 3, 2, 1),
    )[0]
    if kind == "above":
        levels = np.append(levels, 0.8 * low)
    elif kind == "rising":
        levels = np.append(0.8 * low, levels[::-1])
    elif kind == "repeated":
        levels = np.append(np.repeat(levels, 2), 0.0)
    elif kind == "zeros":
        levels = np.append(levels, (0.0, 0.0))
    elif kind == "single":
        levels = levels[:1]
    elif kind == "unsorted":
        levels = np.append(levels, 1.5 * levels[-1])
    elif kind == "starts at 0":
        levels = np.append(0.0, levels[::-1])
    elif kind == "-":
        levels = np.append(levels, -0.1)
    else:
        levels = np.append(levels, 0.0)
    dtype = choose.choices((torch.float32, torch.float64, torch.float16), (70, 20, 10))[0]
    return torch.tensor(levels, dtype=dtype), kind


def options_of(choose: random.Random, name: str) -> dict:
    """Returns options of a sampler, some of them outside of the published range."""
    if name in CHURN:
        churn = choose.choice((0.0, 0.0, 3.0, 40.0, 1e4, -1.0, 0.5))
        found = {"s_churn": churn} if choose.random() < 0.8 else {}
        if choose.random() < 0.4:
            found |= {
                "s_tmin": choose.choice((0.0, 0.2, 100.0)),
                "s_tmax": choose.choice((3.0, 50)),
            }
        if choose.random() < 0.3:
            found["s_noise"] = choose.choice((1.007, 0.0, -1.0))
        return found
    if name in (*ANCESTRAL, *SDE):
        found = {}
        if choose.random() < 0.7:
            found["eta"] = choose.choice((0.0, 0.3, 1.0, 1.0, 1.7, -0.5))
        if choose.random() < 0.3:
            found["s_noise"] = choose.choice((1.02, 0.0, -1.0))
        if name == "dpmpp_sde" and choose.random() < 0.3:
            found["r"] = choose.choice((0.3, 0.5, 0.9, 1.2))
        if name == "dpmpp_2m_sde" and choose.random() < 0.4:
            found["solver_type"] = choose.choice(("heun", "midpoint", "other"))
        return found
    if name == "lms":
        return {"order": choose.choice((1, 2, 3, 4, 5))} if choose.random() < 0.7 else {}
    if name == "dpm_fast":
        return {"eta": choose.choice((0.0, 0.5, 1.0))} if choose.random() < 0.4 else {}
    if name == "dpm_adaptive":
        found = {"order": choose.choice((2, 3))}
        if choose.random() < 0.3:
            found |= {"rtol": 0.01, "atol": 0.002}
        return found
    return {}


def model_of(kind: str):
    """Returns a smooth denoiser of that kind."""

    def plain(x, sigma, shift=0.0):
        assert sigma.shape == x.shape[:1]
        sigma = sigma.reshape(-1, *[1] * (x.dim() - 1))
        x = x - 0.1 * shift
        return 0.8 * torch.tanh(x / (0.9 + sigma**2)) + 0.1 * x / (1.0 + sigma**2) + 0.05 * shift

    def call(x, sigma, **arguments):
        if kind == "writes":
            x.mul_(0.9)
        if kind == "writes sigma":
            made = plain(x, sigma, **arguments)
            sigma.mul_(0.0)
            return made
        made = plain(x, sigma, **arguments)
        if kind == "random":
            return made + 0.01 * torch.rand_like(made)
        if kind in ("float32", "float64", "float16"):
            return made.to(getattr(torch, kind))
        return x if kind == "identity" else made

    return call


class Callback:
    """A callback of a kind; keeps what it saw."""

    def __init__(self, kind: str, arguments: dict | None):
        """Has seen nothing yet."""
        self.kind, self.arguments, self.seen = kind, arguments, []

    def __call__(self, info):
        """Keeps copies, then writes."""
        kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in info.items()}
        self.seen.append(kept)
        kind = self.kind
        if "x" in kind.split():
            info["x"].mul_(0.9).add_(0.05)
        if "denoised" in kind.split():
            info["denoised"].clamp_(-0.3, 0.3)
        if kind == "row":
            info["denoised"][:1] = 0.1
            info["x"][-1:] *= 0.5
        if kind == ".data":
            info["denoised"].data.mul_(0.5)
            info["x"].data.add_(0.1)
        if kind == "numpy" and info["x"].dtype != torch.bfloat16:
            info["x"].numpy()[...] *= 0.8
        if kind == "replaces":
            info["denoised"] = info["x"] = None
        if kind == "arguments" and self.arguments is not None:
            self.arguments["shift"] = 0.7


class Noise:
    """A noise sampler that keeps what it was asked."""

    def __init__(self, x, dtype, exact):
        """Was asked nothing yet."""
        self.x, self.dtype, self.exact, self.asked = x, dtype, exact, []

    def __call__(self, sigma, sigma_next):
        """Returns normals that depend on the number of the question."""
        self.asked.append((float(sigma), float(sigma_next)))
        generator = torch.Generator().manual_seed(len(self.asked))
        made = torch.randn(self.x.shape, dtype=torch.float64, generator=generator)
        return made.to(self.dtype).to(torch.float64 if self.exact else self.dtype)


def case_of(number: int) -> dict:
    """Returns the arguments of a case, which its number says."""
    choose = random.Random(number)
    name = choose.choice(SAMPLERS)
    dtype = choose.choices(FLOATS, (55, 25, 12, 8))[0]
    shape = choose.choice(((1, 2, 4), (3, 2, 4), (2, 6), (2,), (0, 3)))
    if name == "dpm_adaptive":
        shape = (1, *shape[1:])  # in a batch each sample has steps of its own, as documented
    levels, kind = sigmas_of(choose)
    generator = torch.Generator().manual_seed(number)
    start = float(levels.max()) if len(levels) else 1.0
    x = (torch.randn(shape, dtype=torch.float64, generator=generator) * max(start, 1.0)).to(dtype)
    callback = choose.choice(
        (None, None, "reads", "x", "denoised", "x denoised", "row", ".data", "numpy", "replaces")
        + ("arguments",)
    )
    models = ("plain", "random", "float32", "float64", "float16", "identity", "writes")
    model = choose.choices((*models, "writes sigma"), (60, 6, 8, 8, 8, 4, 3, 3))[0]
    arguments = choose.choice((None, {}, {"shift": 0.4}))
    noise = None
    if name in SDE or (name in ANCESTRAL and choose.random() < 0.5):
        noise = choose.choice((dtype, dtype, dtype, torch.float32, torch.float64))
    return {
        "name": name, "x": x, "sigmas": levels, "kind": kind, "callback": callback,
        "model": model, "arguments": arguments, "noise": noise,
        "options": options_of(choose, name), "calls": choose.choice((1, 2, 3, 5, 9)),
    }  # fmt: skip


def outcome(module: types.ModuleType, case: dict) -> dict:
    """Returns what one of the two modules does with a case."""
    arguments = None if case["arguments"] is None else dict(case["arguments"])
    told = None if case["callback"] is None else Callback(case["callback"], arguments)
    x, name = case["x"].clone(), case["name"]
    noise = None if case["noise"] is None else Noise(x, case["noise"], "exact" in case)
    how = {"extra_args": arguments, "callback": told, "disable": True, **case["options"]}
    if noise is not None:
        how["noise_sampler"] = noise
    sigmas = case["sigmas"].clone()
    given = (sigmas,)
    if name in ("dpm_fast", "dpm_adaptive"):
        positive = [float(s) for s in sigmas.double() if s > 0]
        ends = (min(positive), max(positive) * 1.5) if case["kind"] != "rising" else (3.0, 0.5)
        given = (*ends, case["calls"]) if name == "dpm_fast" else ends
    torch.manual_seed(5)
    try:
        made = getattr(module, f"sample_{name}")(model_of(case["model"]), x, *given, **how)
    except Exception as error:
        return {"error": error}
    return {
        "x": made, "asked": noise.asked if noise else [], "told": told.seen if told else [],
        "generator": torch.get_rng_state(),
    }  # fmt: skip


def difference(theirs: types.ModuleType, got: dict, wanted: dict, case: dict) -> str:
    """Returns the first thing that differs, or "" if nothing does."""
    mine, their = got["x"], wanted["x"]
    if not their.numel():  # an empty batch calls nothing here
        return "" if mine.shape == their.shape else f"samples are {list(mine.shape)}"
    if mine.dtype != their.dtype or mine.shape != their.shape:
        return f"samples are {mine.dtype} {list(mine.shape)}, not {their.dtype} {list(their.shape)}"
    kinds = [case["x"].dtype, mine.dtype, case["sigmas"].dtype, case["noise"] or mine.dtype]
    if case["model"] in ("float32", "float64", "float16"):
        kinds.append(getattr(torch, case["model"]))
    tolerance = max(TOLERANCE[kind] for kind in kinds)
    if case["x"].dtype in (torch.float16, torch.bfloat16):  # a state's last digit, at its largest
        tolerance = max(tolerance, 4.0 * torch.finfo(mine.dtype).eps * float(case["x"].abs().max()))
    if case["name"] == "dpm_adaptive":
        tolerance = max(tolerance, 0.02)  # of trial steps that float32 decides
    if case["name"] == "dpm_fast":
        tolerance = max(tolerance, TOLERANCE[torch.float32])  # of the original's times
    if case["name"] in ANCESTRAL:  # sigma_down is the root of a difference of squares
        levels = [float(level) for level in case["sigmas"].double()]
        steps = zip(levels, levels[1:], strict=False)
        ratio = max((a / b for a, b in steps if b > 0.0), default=1.0)
        tolerance = max(tolerance, torch.finfo(mine.dtype).eps * min(ratio, 1e5) ** 2)
    if case["model"] == "random":
        tolerance = max(tolerance, 1e-3)  # these have no exact run to judge by
    gap = _gap(mine, their)
    if not gap <= tolerance:
        exact = exact_of(theirs, case)
        own, others = (_gap(x, exact["x"]) if exact else np.inf for x in (mine, their))
        if not own <= max(tolerance, others):
            return f"samples differ by {gap:.2g}"
        return NEARER  # the original's rounding, by which a branch may be another one, too
    if case["name"] == "dpm_adaptive":
        return ""
    if len(got["told"]) != len(wanted["told"]):
        return f"the callback was called {len(got['told'])} times, not {len(wanted['told'])}"
    for a, b in zip(got["told"], wanted["told"], strict=True):
        if set(a) != set(b):
            return f"the callback saw {sorted(a)}, not {sorted(b)}"
        for key in ("x", "denoised"):
            if a[key].dtype != b[key].dtype:
                return f"the callback's {key} is {a[key].dtype}, not {b[key].dtype}"
            if not (gap := _gap(a[key], b[key])) <= 2.0 * tolerance and not _is_near(
                exact_of(theirs, case), a, b, key, tolerance
            ):
                return f"the callback's {key} differs by {gap:.2g}"
    asked = [len(side["asked"]) for side in (got, wanted)]
    if asked[0] != asked[1]:
        return f"the noise sampler was asked {asked[0]} times, not {asked[1]}"
    if asked[0] and not np.allclose(got["asked"], wanted["asked"], rtol=10 * tolerance):
        return "the noise sampler was asked for other levels"
    if not torch.equal(got["generator"], wanted["generator"]):
        return "torch's generator stands elsewhere afterwards"
    return ""


def exact_of(theirs: types.ModuleType, case: dict) -> dict | None:
    """Returns what the original does in float64 with the same noise; None for random models."""
    if case["model"] == "random":
        return None
    wide = case | {"x": case["x"].double(), "sigmas": case["sigmas"].double(), "exact": True}
    first = case["x"].dtype
    kinds = [first, case["sigmas"].dtype]
    if case["model"] in ("float32", "float64", "float16"):
        kinds.append(getattr(torch, case["model"]))
    later = first
    for kind in kinds[1:] if case["name"] in CHURN else ():
        later = torch.promote_types(later, kind)  # churn draws in the dtype that x has
    drawn, own = [], torch.randn_like

    def randn_like(x):
        drawn.append(1)
        return torch.randn(x.shape, dtype=first if len(drawn) == 1 else later).double()

    torch.randn_like = randn_like
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = outcome(theirs, wide)
    finally:
        torch.randn_like = own
        torch.set_default_dtype(before)
    return None if "error" in found else found


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    if not a.numel():
        return 0.0
    a, b = a.double(), b.double()
    if not bool((a.isfinite() == b.isfinite()).all()):
        return float("inf")
    scale = max(float(b.nan_to_num().abs().max()), 1.0)
    return float((a - b).nan_to_num().abs().max()) / scale


def _is_near(exact: dict | None, a: dict, b: dict, key: str, tolerance: float) -> bool:
    """Returns whether the drop-in is as near to the exact run as the original is."""
    if exact is None:
        return False
    wanted = next(info[key] for info in exact["told"] if info["i"] == a["i"])
    return _gap(a[key], wanted) <= max(2.0 * tolerance, _gap(b[key], wanted))


def verdict(theirs: types.ModuleType, number: int) -> tuple[str, str]:
    """Returns (class, details) of a case."""
    case = case_of(number)
    handing._said.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = outcome(ours, case)
    handed = any(issubclass(w.category, HandedOverWarning) for w in caught)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = outcome(theirs, case)
    here, there = got.get("error"), wanted.get("error")
    if here is not None:
        said = isinstance(here, (ValueError, FloatingPointError)) and "\n" not in str(here)
        if there is not None:
            return "both refuse", f"{type(there).__name__}"
        if not said:
            return "crash", f"{type(here).__name__}: {here}"
        finite = bool(wanted["x"].isfinite().all())
        text = re.sub(r"-?\d[\d.e+-]*", "#", str(here))
        return ("said" if finite else "said, not finite there"), text[:200]
    if there is not None:
        return "only the original refuses", f"{type(there).__name__}: {there}"[:120]
    why = difference(theirs, got, wanted, case)
    if why == NEARER:
        return "nearer to the original in float64", ""
    if why:
        return "silent", why
    return ("equal, handed over" if handed else "equal"), ""


def main() -> int:
    """Runs the cases; returns 1 if one differs in silence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    theirs, counts, details, silent = original(), Counter(), Counter(), []
    for number in range(given.first, given.first + given.cases):
        kind, why = verdict(theirs, number)
        counts[kind] += 1
        details[f"{kind}: {why}"] += bool(why)
        if kind in ("silent", "crash"):
            silent.append({"case": number, "class": kind, "what": why})
            case = case_of(number)
            shown = {k: v for k, v in case.items() if k not in ("x", "sigmas")}
            shown |= {"x": str(case["x"].dtype), "sigmas": str(case["sigmas"].tolist())[:90]}
            print(number, kind, why, shown, file=sys.stderr)
    report = {
        "cases": given.cases, "first": given.first, "torch": torch.__version__,
        "classes": dict(counts.most_common()), "silent": silent,
        "sentences": {text: n for text, n in details.most_common() if n},
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
