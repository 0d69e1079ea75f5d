"""Drop-in schedulers against their originals: random settings, step counts, starts, dtypes, writes.

A case is a number. From it follow a class of diffusers, random options, a number of steps, where
the run starts, the dtypes of latents and output, arguments of `step`, and writes of other code to
the live scheduler: before and after the drop-in is made, after `set_timesteps`, between two steps.
The original and the drop-in are given the same samples and outputs at every step; their results are
compared step by step.

    python bench/fuzz_dropin.py --cases 10000 --out bench/results/fuzz_dropin.json
    python bench/fuzz_dropin.py --only 4711          # one case again, step by step

What a case can end as:

- equal: the same numbers, to the roundings of the dtypes, and the same dtypes;
- equal, handed over: likewise, and the original's own code did some of it;
- refused by both: the original raises, and so does the drop-in;
- mended: the original raises or gives values that are not finite, the drop-in answers;
- noted: another result that the documentation names (the sign of a third-order term);
- refused: the drop-in raises although the original answers;
- different: another result. Both of these are faults.
"""

from __future__ import annotations

import argparse
import collections
import copy
import inspect
import json
import random
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch

from diffast.integrations.diffusers import KINDS, DiffastScheduler

# Choices by option; the others are left at their defaults.
CHOICES: dict[str, list] = {
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction"],
    "timestep_spacing": ["leading", "linspace", "trailing"],
    "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"],
    "algorithm_type": [
        *("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        *("data_prediction", "noise_prediction"),
    ],
    "final_sigmas_type": ["zero", "sigma_min"],
    "variance_type": ["fixed_small", "fixed_large", "fixed_small_log"],
    "clip_sample_range": [0.5, 1.0, 2.0],
    "shift": [1.0, 3.0, 0.5],
    "scaler": [0.5, 2.0],
    "snr_shift_scale": [1.0, 3.0],
    "flow_shift": [1.0, 3.0],
    "steps_offset": [0, 1],
    "predictor_order": [1, 2, 3],
    "corrector_order": [1, 2, 3],
    "sigma_max": [80.0, 20.0],
    "sigma_data": [0.5, 1.0],
    "beta_end": [0.02, 0.012],
    "sample_max_value": [1.0, 2.0],
    "interpolation_type": ["linear", "log_linear"],
    "time_shift_type": ["exponential", "linear"],
    "base_shift": [0.5],
    "disable_corrector": [[], [0], [0, 1]],
    "original_inference_steps": [50],
    "shift_terminal": [None, 0.1],
    "s_noise": [1.0, 1.1],
    "eta": [0.0, 1.0],
}
SWITCHES = frozenset(
    (
        *("clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas"),
        *("use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "lower_order_final"),
        *("euler_at_final", "predict_x0", "rescale_betas_zero_snr", "set_alpha_to_one"),
        *("skip_prk_steps", "invert_sigmas", "stochastic_sampling", "rescale_sigmas"),
    )
)
ARGUMENTS: dict[str, list] = {"eta": [0.0, 0.5, 1.0], "s_churn": [0.0, 2.0], "order": [2, 4]}
ARGUMENTS["use_clipped_model_output"] = [True]
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30, 50)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MEMORY = (
    *("model_outputs", "lower_order_nums", "last_sample", "ets", "derivatives", "counter"),
    *("sample", "prev_derivative", "dt", "timestep_list", "this_order", "cur_sample"),
    "cur_model_output",
)


def options_of(kind: type, rng: random.Random) -> dict[str, Any]:
    """Returns random options of the original."""
    found: dict[str, Any] = {}
    known = inspect.signature(kind.__init__).parameters
    if "noise_sampler_seed" in known:  # otherwise its noise depends on torch's own generator
        found["noise_sampler_seed"] = rng.randrange(1 << 20)
    for name, parameter in known.items():
        if rng.random() > 0.25:
            continue
        if name in CHOICES:
            found[name] = rng.choice(CHOICES[name])
        elif name in SWITCHES and isinstance(parameter.default, (bool, type(None))):
            found[name] = rng.random() < 0.5
    return found


# The last of their timesteps is where the last step ends.
ENDED = ("DDPMWuerstchenScheduler", "SCMScheduler")
# Their steps take other arguments than a loop of one output a step has.
APART = ("KarrasVeScheduler", "ScoreSdeVeScheduler", "ScoreSdeVpScheduler")


class Write:
    """One write of other code: a function of the scheduler, made from a case's random numbers."""

    def __init__(self, rng: random.Random, kind: type, running: bool):
        """Chooses it; running: between two steps."""
        kinds = ["config", "config", "scaled", "entry", "replaced", "cut", "numpy", "products"]
        kinds += ["shift", "item"]
        if running:
            kinds += ["read", "again", "skip", "rows", "rows", "none", "memory"]
        self.kind, self.u, self.pick = rng.choice(kinds), rng.random(), rng.randrange(1 << 30)
        self.options = options_of(kind, rng) or {"clip_sample": True}

    def __repr__(self) -> str:
        """Returns it in words."""
        return f"{self.kind}({self.options if self.kind in ('config', 'item') else self.u:})"

    def apply(self, scheduler: Any) -> int | None:
        """Writes to the scheduler; returns how many rows of the batch are kept, if fewer."""
        name = "sigmas" if isinstance(getattr(scheduler, "sigmas", None), torch.Tensor) else None
        levels = None if name is None else getattr(scheduler, name)
        if self.kind == "config":
            for option, value in self.options.items():
                setattr(scheduler.config, option, value)
        elif self.kind == "item":
            scheduler.register_to_config(**self.options)
        elif self.kind == "products" and hasattr(scheduler, "alphas_cumprod"):
            scheduler.alphas_cumprod = scheduler.alphas_cumprod ** (0.8 + 0.4 * self.u)
        elif self.kind == "shift" and hasattr(scheduler, "set_shift"):
            scheduler.set_shift(1.0 + 4.0 * self.u)
        elif self.kind == "cut" and self.u < 0.5:
            keep = max(1, len(scheduler.timesteps) - 1 - self.pick % 3)
            scheduler.timesteps = scheduler.timesteps[:keep]
        elif self.kind == "read":
            for attribute in MEMORY:
                getattr(scheduler, attribute, None)
        elif self.kind in ("again", "skip", "none"):
            if getattr(scheduler, "_step_index", None) is not None:
                moved = scheduler._step_index + (1 if self.kind == "skip" else -1)
                scheduler._step_index = None if self.kind == "none" else max(moved, 0)
        elif self.kind == "memory":
            for attribute in ("model_outputs", "ets", "derivatives"):
                kept = getattr(scheduler, attribute, None)
                if kept:
                    scaled = [None if each is None else each * 0.5 for each in kept]
                    setattr(scheduler, attribute, scaled)
        elif self.kind == "rows":
            return self._rows(scheduler)
        elif levels is not None and len(levels) > 2:
            i = self.pick % (len(levels) - 1)
            if self.kind == "scaled":
                levels *= 0.9 + 0.2 * self.u
            elif self.kind == "entry":
                levels[i] = levels[i] * (0.97 + 0.06 * self.u)
            elif self.kind == "replaced":
                scheduler.sigmas = levels * (0.9 + 0.2 * self.u)
            elif self.kind == "numpy":
                levels.numpy()[i] *= 0.98
        return None

    @staticmethod
    def _rows(scheduler: Any) -> int:
        """Leaves the first row of everything that is remembered."""
        for attribute in MEMORY:
            kept = getattr(scheduler, attribute, None)
            if isinstance(kept, torch.Tensor) and kept.dim() == 4:
                setattr(scheduler, attribute, kept[:1])
            elif isinstance(kept, list):
                parts = [
                    each[:1] if isinstance(each, torch.Tensor) and each.dim() == 4 else each
                    for each in kept
                ]
                setattr(scheduler, attribute, parts)
        return 1


class Case:
    """What follows from a case's number."""

    def __init__(self, number: int, kinds: list[str]):
        """Draws it."""
        rng = random.Random(number)
        self.number, self.name = number, rng.choice(kinds)
        self.kind = KINDS[self.name]._original
        self.options = options_of(self.kind, rng)
        self.steps = rng.choice(STEPS)
        self.start = rng.choice([0, 0, 0, 0.3, 0.6])
        self.begins = rng.random() < 0.5  # set_begin_index, or by the timestep
        same = rng.random() < 0.6
        self.dtypes = (DTYPES[0],) * 2 if same else (rng.choice(DTYPES), rng.choice(DTYPES))
        self.without_set = rng.random() < 0.03
        self.twice = rng.random() < 0.2  # a second run on the same scheduler
        self.early = self._writes(rng, 0.15, False)
        self.late = self._writes(rng, 0.15, False)
        self.set = self._writes(rng, 0.2, False)
        self.running = {rng.randrange(6): w for w in self._writes(rng, 0.25, True)}
        self.arguments = self._arguments(rng)
        self.custom = rng.random() < 0.1
        self.seed = rng.randrange(1 << 30)

    def _writes(self, rng: random.Random, share: float, running: bool) -> list[Write]:
        return [Write(rng, self.kind, running)] if rng.random() < share else []

    def _arguments(self, rng: random.Random) -> dict[str, Any]:
        known, found = inspect.signature(self.kind.step).parameters, {}
        for name, values in ARGUMENTS.items():
            if name in known and rng.random() < 0.3:
                found[name] = rng.choice(values)
        return found

    def __repr__(self) -> str:
        """Returns it in words."""
        hidden = ("kind", "number", "name")
        shown = {k: v for k, v in vars(self).items() if k not in hidden and v not in ([], {})}
        return f"{self.number} {self.name} {shown}"


class Side:
    """One of the two schedulers of a case, and what it answers."""

    def __init__(self, case: Case, ours: bool):
        """Makes the scheduler."""
        self.case = case
        self.scheduler: Any = case.kind(**case.options)
        for write in case.early:
            write.apply(self.scheduler)
        if ours:
            self.scheduler = DiffastScheduler.from_scheduler(self.scheduler)
        for write in case.late:
            write.apply(self.scheduler)
        self.generator = torch.Generator().manual_seed(case.seed)
        self.estimate = self.back = None  # the last x0 estimate and timestep, where steps take them

    def set(self) -> None:
        """Begins a run."""
        case, more = self.case, {}
        if not case.without_set:
            if case.custom and hasattr(self.scheduler, "sigmas"):
                known = inspect.signature(case.kind.set_timesteps).parameters
                if "sigmas" in known:
                    more["sigmas"] = [1.0, 0.7, 0.5, 0.2] if case.seed % 2 else [1.0, 0.6, 0.6, 0.0]
            count = {} if more else {"num_inference_steps": case.steps}
            if case.name == "SCMScheduler":
                more["intermediate_timesteps"] = 1.3 if case.steps == 2 else None
            self.scheduler.set_timesteps(**count, **more)
        for write in case.set:
            write.apply(self.scheduler)

    def times(self) -> Any:
        """Returns the timesteps of the loop."""
        times = self.scheduler.timesteps
        if self.case.name in ENDED:
            times = times[:-1]
        start = int(self.case.start * len(times))
        if start and self.case.begins and hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(start)
        return times[start : start + 60]

    def apart(self) -> Side:
        """Returns a copy in float64."""
        made = copy.copy(self)
        made.scheduler = object.__new__(type(self.scheduler))
        for name, value in vars(self.scheduler).items():
            vars(made.scheduler)[name] = _wide(value)
        return made

    def with_noise(self, noises: list | None, made: list, output, t, x) -> tuple:
        """Returns `step`; its normals go to `made`, or are those given, in float64."""
        module = sys.modules[self.case.kind.__module__]
        draw = getattr(module, "randn_tensor", None)
        left = None if noises is None else [*noises]

        def drawn(*args, **kwargs):
            noise = draw(*args, **kwargs) if left is None else left.pop(0).double()
            made.append(noise)
            return noise

        if draw is not None:
            module.randn_tensor = drawn
        try:
            return self.step(output, t, x)
        finally:
            if draw is not None:
                module.randn_tensor = draw

    def step(self, output, t, x) -> tuple:
        """Returns (network's input, next sample, x0 estimate)."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        seen = x if scale is None else scale(x, t)
        more = dict(self.case.arguments)
        if "generator" in inspect.signature(self.case.kind.step).parameters:
            more["generator"] = self.generator
        if self.case.name == "RePaintScheduler":
            known = x.new_full(x.shape, 0.3)
            result = self.scheduler.step(output, t, x, known, (known > 0).to(x), **more)
        elif self.case.name == "CogVideoXDPMScheduler":
            before = None if self.estimate is None else self.estimate[: len(x)]
            made = self.scheduler.step(output, before, t, self.back, x, **more)
            self.estimate, self.back = made[1], int(t)
            return seen, *made
        elif self.case.name == "DDPMWuerstchenScheduler":
            result = self.scheduler.step(output, t.expand(len(x)).to(output.dtype), x, **more)
        elif self.case.name == "UnCLIPScheduler" and self.case.seed % 3:
            following = [u for u in self.scheduler.timesteps.tolist() if u < int(t)]
            more["prev_timestep"] = following[0] if following else None
            result = self.scheduler.step(output, t, x, **more)
        else:
            result = self.scheduler.step(output, t, x, **more)
        return seen, result.prev_sample, result.get("pred_original_sample")


def _wide(value: Any) -> Any:
    """Returns the value with tensors in float64."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.float64, copy=True)
    return [*map(_wide, value)] if isinstance(value, list) else copy.copy(value)


def tolerance(dtypes: tuple) -> float:
    """Returns by what share of the largest value two results may differ."""
    eps = max(torch.finfo(d).eps for d in dtypes)
    return 3e-4 if eps < 1e-6 else 8 * eps


def outcome(case: Case, loud: bool = False) -> tuple[str, str]:
    """Returns (what the case ends as, why)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ended = _compare(case, loud)
    handed = any("'s own code " in str(each.message) for each in said)
    if ended[0] == "equal" and handed:
        return "equal, handed over", ""
    return ended


def _try(action):
    try:
        return action(), None
    except Exception as error:
        return None, error


def _compare(case: Case, loud: bool) -> tuple[str, str]:
    theirs, wrong = _try(lambda: Side(case, False))
    if wrong is not None:
        return "refused by both", ""
    ours, refused = _try(lambda: Side(case, True))
    if refused is not None:
        return _refusal("from_scheduler", refused)
    drawn = torch.Generator().manual_seed(case.seed)
    for _ in range(1 + case.twice):
        ended = _run(case, theirs, ours, drawn, loud)
        if ended[0] != "equal":
            return ended
    return ended


def _run(case, theirs, ours, drawn, loud) -> tuple[str, str]:
    _, wrong = _try(theirs.set)
    _, refused = _try(ours.set)
    if wrong is not None:
        return ("refused by both" if refused is not None else "mended"), ""
    doubt = None if refused is None else _refusal("set_timesteps", refused)
    kept, (sample, output) = 2, case.dtypes
    scale = float(getattr(theirs.scheduler, "init_noise_sigma", 1.0))
    x = (torch.randn(2, 3, 4, 4, generator=drawn) * scale).to(sample)
    times, wrong = _try(theirs.times)
    if wrong is not None:
        return "refused by both", ""
    mine = None if doubt else _try(ours.times)[0]
    for k, t in enumerate(times):
        if k in case.running:
            write = case.running[k]
            rows, wrong = _try(lambda write=write: write.apply(theirs.scheduler))
            if not doubt:
                _, refused = _try(lambda write=write: write.apply(ours.scheduler))
                if wrong is None and refused is not None:
                    return _refusal(f"write before step {k}", refused)
            if wrong is not None:
                return "refused by both", ""
            kept = rows or kept
            x = x[:kept]
        made = torch.randn(kept, 3, 4, 4, generator=drawn).to(output)
        apart, noises = theirs.apart(), []
        wanted, wrong = _try(
            lambda made=made, t=t, x=x, n=noises: theirs.with_noise(None, n, made, t, x)
        )
        exact, _ = _try(
            lambda made=made, t=t, x=x, n=noises, a=apart: a.with_noise(
                n, [], made.double(), t, x.double()
            )
        )
        if wrong is not None or not bool(torch.isfinite(wanted[1]).all()):
            return ("refused by both" if doubt else "mended"), ""
        if not doubt:
            u = mine[k]
            found, refused = _try(lambda made=made, u=u, x=x: ours.step(made, u, x))
            if refused is not None:
                doubt = _refusal(f"step {k}", refused)
            else:
                exact = exact or (None, None, None)
                for what, one, other, best in zip(
                    ("input", "sample", "x0"), found, wanted, exact, strict=True
                ):
                    if other is None or not bool(torch.isfinite(other).all()):
                        continue
                    missed = _missed(one, other, best, case)
                    if loud:
                        print(f"  step {k} {what}: {missed}")
                    if missed:
                        return _different(case, f"{what} of step {k}: {missed}")
        x = wanted[1].to(sample)
    return doubt or ("equal", "")


def _missed(found, wanted, exact, case) -> str:
    if found.dtype != wanted.dtype:
        return f"{found.dtype} in place of {wanted.dtype}"
    if found.shape != wanted.shape:
        return f"{list(found.shape)} in place of {list(wanted.shape)}"
    far = (found.double() - wanted.double()).abs().max() / (wanted.double().abs().max() + 1e-9)
    if far <= tolerance((*case.dtypes, wanted.dtype)):
        return ""
    if exact is not None:  # the original's own roundings are larger
        ours, theirs = ((each.double() - exact).abs().max() for each in (found, wanted))
        if ours <= 1.5 * theirs:
            return ""
    return f"{float(far):.2g}"


def _refusal(where: str, error: Exception) -> tuple[str, str]:
    return "refused", f"{where}: {type(error).__name__}: {error}"


def _different(case: Case, why: str) -> tuple[str, str]:
    # the sign of one term of third-order SDE steps, which the report of `accelerate` names
    config = [case.options, *(w.options for w in (*case.early, *case.late, *case.set))]
    third = any(c.get("solver_order") == 3 for c in config)
    if third and any(c.get("algorithm_type") == "sde-dpmsolver++" for c in config):
        return "noted", why
    return "different", why


def main() -> None:
    """Runs the cases and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="classes of diffusers; all that have a drop-in")
    parser.add_argument("--only", type=int, help="one case, step by step")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity(50)
    kinds = sorted(set(given.kinds or KINDS) - {*APART})
    if given.only is not None:
        case = Case(given.only, kinds)
        print(case)
        print(outcome(case, loud=True))
        return
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    faults = []
    for number in range(given.first, given.first + given.cases):
        case = Case(number, kinds)
        ended, why = outcome(case)
        counts[case.name][ended] += 1
        if ended in ("refused", "different"):
            faults.append({"case": number, "class": case.name, "ended": ended, "why": why})
            print(f"{case!r}\n    {ended}: {why}", flush=True)
    total = sum(counts.values(), collections.Counter())
    report = {
        "cases": given.cases,
        "first": given.first,
        "diffusers": diffusers.__version__,
        "total": dict(total),
        "classes": {name: dict(counts[name]) for name in sorted(counts)},
        "faults": faults,
    }
    print(json.dumps(report["total"]))
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
