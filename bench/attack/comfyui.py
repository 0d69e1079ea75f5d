"""ComfyUI's samplers by random cases, each against its formula and, where installed, ComfyUI.

    python bench/attack/comfyui.py --cases 10000 --seed 0 --out bench/results/attack_comfyui.json

A case is a sampler, a kind of model, sigmas (of schedules, cut, random, rising, repeated, with NaN,
above the model's, none), a dtype, a batch, options, a callback (that reads, writes, raises), and
another model_sampling in the run before. Masks are in the model that a sampler is given, so they
are in tests/integrations/test_comfyui_real.py alone. The outcome is one of

    equal           the formula's numbers (float64, `tests/helpers/comfy_formulas.py`)
    handed over     ComfyUI's own function ran, with a warning, and its result came back
    sentence        a ValueError or FloatingPointError that begins with the sampler's name
    ComfyUI raised  an error of ComfyUI's own function, after a warning
    silent          another picture and no word
    traceback       any other error

"silent" and "traceback" are failures. With ComfyUI installed (a package with its `comfy`), each
case whose numbers that ComfyUI shares is also compared with ComfyUI's own function.
"""

import argparse
import json
import random
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import comfy_formulas  # noqa: E402
import comfy_real  # noqa: E402
import comfy_runs  # noqa: E402
import comfy_stand_in  # noqa: E402

KINDS = ("EPS", "V_PREDICTION", "EDM", "FLOW")
# As tests/integrations/test_comfyui_real.py has them: numbers that ComfyUI has changed since 2024.
CHANGED = {"dpmpp_2s_ancestral_cfg_pp"}
CHANGED_FLOW = {"dpm_2_ancestral", "euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_sde"}
CHANGED_FLOW |= {"dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde_gpu", "dpmpp_2m_sde_gpu"}
CHANGED_FLOW |= {"dpmpp_3m_sde_gpu"}
CHANGED_CLEAN = {"lms", "ipndm", "ipndm_v"}


FOLD = 5.0  # how many times the effect of one rounding is still rounding
ODD = ["rising", "equal", "nan"]
CALLBACKS = ("none", "read", "write", "write x", "write sigmas", "raise"), (8, 6, 3, 1, 1, 1)


class Interrupted(Exception):
    """What a callback raises to end a run."""


class Case:
    """One random case; `what` describes it."""

    def __init__(self, index, seed, names, real):
        """Draws the case of a number; the same in every run."""
        pick = random.Random(f"{seed}:{index}")
        self.name, self.real = pick.choice(names), real
        self.kind = pick.choice(KINDS if real else ("EPS", "FLOW"))
        self.flow = self.kind == "FLOW"
        self.dtype = pick.choice([torch.float32, torch.float32, torch.float64, torch.float16])
        self.rows = pick.choice([1, 1, 2, 3])
        self.sort, self.levels = _levels(pick, self.flow)
        self.sigma_dtype = pick.choice([torch.float32, torch.float32, torch.float64])
        self.options = _options(pick, self.name)
        self.callback = pick.choices(*CALLBACKS)[0]
        self.seed = pick.choice([0, 7, 2**63 + 5, 2**64 - 2])
        self.live = pick.random() < 0.2  # model_sampling changes before the second run
        self.what = {
            "index": index,
            "name": self.name,
            "kind": self.kind,
            "dtype": str(self.dtype),
            "sigmas": self.sort,
            "levels": self.levels,
            "options": {k: v for k, v in self.options.items()},
            "callback": self.callback,
            "rows": self.rows,
            "seed": self.seed,
        }


def _levels(pick, flow):
    """Returns (what they are, the sigmas)."""
    top = 1.0 if flow else pick.choice([14.6146, 80.0, 157.4])
    low = pick.choice([0.002, 0.03, 0.1]) * (0.3 if flow else 1.0)
    count = pick.choice([1, 2, 3, 4, 5, 8, 13])
    share = [i / max(count, 1) for i in range(count)]
    schedules = {
        "karras": [(top ** (1 / 7) + s * (low ** (1 / 7) - top ** (1 / 7))) ** 7 for s in share],
        "exponential": [top * (low / top) ** s for s in share],
        "even": [top + s * (low - top) for s in share],
        "shifted": [3.0 * (1.0 - s) * top / (1.0 + 2.0 * (1.0 - s)) for s in share],
        "random": sorted((top * pick.random() ** 2 + low for _ in range(count)), reverse=True),
    }
    name = pick.choice(sorted(schedules))
    levels = [*schedules[name], 0.0]
    if flow and name == "random":
        levels = [min(level, 1.0 - 1e-3 * i) for i, level in enumerate(levels[:-1])] + [0.0]
    change = pick.choice([""] * 8 + ["cut", "open", "above", "far"] * 2 + ODD)
    if change == "cut":
        levels = levels[len(levels) // 2 :]
    elif change == "open":
        levels = levels[:-1]
    elif change == "rising":
        levels = levels[::-1]
    elif change == "equal" and len(levels) > 2:
        levels[1] = levels[0]
    elif change == "nan":
        levels[pick.randrange(len(levels))] = pick.choice([float("nan"), float("inf"), -0.5])
    elif change == "above":
        levels[0] *= 1.0000001
    elif change == "far":
        levels[0] *= 5.0
    if pick.random() < 0.02:
        change, levels = "none", []
    return f"{name} {change}".strip(), levels


def _options(pick, name):
    """Returns options of ComfyUI's samplers, right ones for the name and wrong ones."""
    chance = pick.random()
    if chance < 0.6:
        return {}
    noisy = ("ancestral" in name or "sde" in name or "seeds" in name) and name != "er_sde"
    if noisy and chance < 0.9:
        return {"eta": pick.choice([0.0, 0.3, 1.0, 1.0, 1.5, -1.0])}
    if chance < 0.93:
        return {"s_churn": 0.0}
    return pick.choice([{"s_noise": 0.5}, {"s_churn": 3.0}, {"order": 2}, {"unknown": 1}])


class Bench:
    """Runs cases in one ComfyUI."""

    seed = 0  # of the case that runs

    def __init__(self, real):
        """Loads ComfyUI, or its stand-in, with the package in it."""
        self.real = real
        if real:
            self.comfy = comfy_real.load()
            self.space = {k: _space(self.comfy, k) for k in KINDS}
            _without_a_tree()
        else:
            for name, module in comfy_stand_in.make_comfy().items():
                sys.modules[name] = module
            self.space = {"EPS": comfy_stand_in.Eps(), "FLOW": comfy_stand_in.Const()}
        from diffast.integrations.comfyui import originals, samplers

        self.samplers, self.originals = samplers, originals
        self.own = originals.original_of
        originals.original_of = self._watched
        self.handed, self.result, self.raised = 0, None, None

    def _watched(self, name):
        """ComfyUI's own function, Euler's steps where there is none; counts its runs."""
        function = self.own(name) if self.real else _euler
        if function is None:
            return None

        def run(*given, **options):
            self.handed += 1
            try:
                self.result = function(*given, **options)
            except Exception as error:
                self.raised = error
                raise
            return self.result

        return run

    def outcome(self, case):
        """Returns (outcome, more about it)."""
        model_sampling, Bench.seed = self.space[case.kind], case.seed
        model = comfy_runs.Model(model_sampling, case.seed % 3)
        sigmas = torch.tensor(case.levels, dtype=case.sigma_dtype)
        finite = [level for level in case.levels if level == level and abs(level) < 1e4]
        x = comfy_runs.start([max(finite, default=1.0)], case.rows, 1, torch.float64)
        x = x.to(case.dtype)
        kept = x.clone()
        if case.live and self.real and not case.flow:  # another range, between two runs
            other = self.space["EDM" if case.kind == "EPS" else "EPS"]
            model.inner_model.inner_model.model_sampling = other
            self._run(case, model, x, sigmas, None)
            model.inner_model.inner_model.model_sampling = model_sampling
        self.handed, self.result, self.raised = 0, None, None
        given = sigmas.clone()
        status, made = self._run(case, model, x, given, _callback(case, given))
        if not torch.equal(x, kept) and not (self.handed and case.callback == "write x"):
            return "silent", "it wrote into the caller's x"
        if status != "made":
            return status, made
        if len(case.levels) < 2:
            return ("equal", "no step") if made is x else ("silent", "a change without a step")
        if self.handed:
            same = torch.equal(made, self.result)
            return ("handed over", made) if same else ("silent", "not ComfyUI's own result")
        if case.callback in ("write", "write x", "write sigmas"):
            return self._written(case, model, x, sigmas, made)
        return self._compared(case, model, x, sigmas, made)

    def _run(self, case, model, x, sigmas, callback):
        function = self.samplers.sampler(case.name, "torch")
        extra_args = {"model_options": {}, "seed": case.seed}
        title = f"sample_diffast_{case.name}"
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                made = function(model, x, sigmas, extra_args, callback, True, **case.options)
            except Interrupted:
                return "ended by the callback", ""
            except (ValueError, FloatingPointError) as error:
                words = str(error)
                good = words.startswith((title, "sample_dpm")) and "\n" not in words.strip()
                return ("sentence" if good else "traceback"), words[:300]
            except Exception as error:
                if error is self.raised:
                    return "ComfyUI raised", f"{type(error).__name__}: {error}"[:300]
                return "traceback", f"{type(error).__name__}: {error}"[:300]
        told = [w for w in said if w.category.__name__ == "HandedOverWarning"]
        if bool(told) != bool(self.handed):
            return "silent", "handed over without a word"
        if not made.isfinite().all():
            return "silent", "inf or nan"
        return "made", made

    def _written(self, case, model, x, sigmas, made):
        """A callback that wrote into the estimate: against the same run without that callback."""
        table = self.samplers.SAMPLERS
        if case.name not in table:  # sigmas are read at the start, as in ComfyUI
            return self._compared(case, model, x, sigmas, made)
        if case.callback != "write":
            return "silent", "writes without a word"
        early, last = table[case.name].early, len(case.levels) == 2 and case.levels[-1] == 0.0
        ignored = early == "all" or (early == "but last" and not last)
        return self._compared(case, model, x, sigmas, made, 1.0 if ignored else 0.7)

    def _compared(self, case, model, x, sigmas, made, written=1.0):
        """Compares with the formula whose first estimate is scaled by `written`."""
        options = {k: v for k, v in case.options.items() if k in ("eta", "s_noise")}
        low = {torch.float16: 5e-2, torch.float32: 2e-4, torch.float64: 1e-7}[case.dtype]
        errors = []
        entry = self.samplers.SAMPLERS.get(case.name)
        told = options.get("s_noise", 1.0) == 1.0 and "order" not in case.options
        if entry is not None and entry.original != "" and told:
            normal = comfy_formulas.as_generator(case.seed, x.shape, case.dtype)
            at = sigmas.tolist()
            if case.flow and 1.0 < at[0] < 1.00001:
                at[0] = 1.0
            moved = model.inner_model.inner_model.model_sampling.percent_to_sigma(1e-4)
            options["below_one"] = float(torch.tensor(float(moved), dtype=sigmas.dtype))
            options |= {"dtype": case.dtype, "first": written}
            wanted = comfy_runs.formula(case.name, model, x, at, normal, case.flow, **options)
            errors.append(comfy_runs.relative(made, wanted))
        if self.real and written == 1.0 and self._shares(case):
            own = self._own_result(case, model, x, sigmas)
            if own is not None and own.isfinite().all():
                errors.append(comfy_runs.relative(made, own))
        if not errors:
            return "equal", "not compared"
        # ComfyUI computes in the dtype of the sigmas, and uni_pc's weights there lose digits.
        loses = case.name.startswith("uni_pc") and case.dtype != torch.float64 and self.real
        limit = max(low, 5e-2 if loses else 0.0)
        limit = max(limit, 1e-4 if case.name == "dpm_fast" else 0.0)  # times in float32 there
        limit = max(limit, 1e-5 if case.name == "deis" and self.real else 0.0)  # betas in float32
        limit = max(limit, 1e-5 if "above" in case.sort else 0.0)  # 1.0000001 may be 1
        worst = max(errors)
        if limit <= worst < 0.5 and case.dtype != torch.float64:  # large weights cancel
            limit = max(limit, FOLD * self._rounding(case, model, x, sigmas, written))
        return ("equal", worst) if worst < limit else ("silent", f"{worst:.2e}")

    def _rounding(self, case, model, x, sigmas, written):
        """Returns what the dtype's precision, in x and in the network, changes of the sample."""
        made = []
        for nudge in (0.0, torch.finfo(case.dtype).eps):
            normal = comfy_formulas.as_generator(case.seed, x.shape, case.dtype)
            moved = x.double() * (1.0 + nudge * torch.randn(x.shape, dtype=torch.float64))
            options = {"eta": case.options["eta"]} if "eta" in case.options else {}
            options |= {
                "jitter": nudge,
                "first": written,
                "dtype": case.dtype if nudge else torch.float64,
            }
            at = [min(s, 1.0) for s in sigmas.tolist()] if case.flow else sigmas.tolist()
            made.append(
                comfy_runs.formula(case.name, model, moved, at, normal, case.flow, **options)
            )
        return comfy_runs.relative(*made)

    def _shares(self, case):
        """Returns whether this ComfyUI has the sampler with today's numbers, in this precision."""
        if case.dtype == torch.float16 or case.sigma_dtype != torch.float64 or case.rows > 1:
            return False
        changed = CHANGED | (CHANGED_FLOW if case.flow else set())
        changed |= CHANGED_CLEAN if case.levels[-1] == 0.0 else set()
        return case.name in self.comfy.samplers.SAMPLER_NAMES and case.name not in changed

    def _own_result(self, case, model, x, sigmas):
        extra_args = {"model_options": {}, "seed": case.seed}
        try:
            function = self.own(case.name)
            own = function(
                model,
                x.clone(),
                sigmas.clone(),
                extra_args=extra_args,
                callback=None if case.name in self.samplers.SAMPLERS else _callback(case, sigmas),
                disable=True,
                **case.options,
            )
        except TypeError:
            return None
        scaled = case.flow and case.name.startswith("uni_pc") and case.levels[-1] == 0.0
        return own / 0.999 if scaled else own


def _without_a_tree():
    """Gives ComfyUI's SDE samplers its default noise: torchsde's tree takes seconds a step."""
    from comfy.k_diffusion import sampling

    def plain(x, *_, seed=None, **__):
        make = comfy_formulas.as_generator(Bench.seed, x.shape, x.dtype)
        return lambda sigma, following: make().to(x.dtype)

    sampling.BrownianTreeNoiseSampler = plain
    sampling.default_noise_sampler = plain  # of 2024, it knows no seed


def _space(comfy, kind):
    return comfy_real.model_of(comfy, kind).get_model_object("model_sampling")


def _euler(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
    for i in range(len(sigmas) - 1):
        d = model(x, sigmas[i].expand(len(x)).to(x.dtype), **extra_args)
        x = x + (x - d) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


def _callback(case, sigmas):
    if case.callback == "none":
        return None

    def call(info):
        if case.callback == "raise" and info["i"] == 1:
            raise Interrupted
        if case.callback == "write" and info["i"] == 0:
            info["denoised"].mul_(0.7)
        if case.callback == "write x":
            info["x"].mul_(0.7)
        if case.callback == "write sigmas":
            sigmas.mul_(0.9)

    return call


def main():
    """Runs the cases, prints the counts and what failed, and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", type=int, help="run this case alone and say all about it")
    parser.add_argument("--stand-in", action="store_true", help="even where ComfyUI is installed")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sys.argv = sys.argv[:1]  # ComfyUI reads it
    torch.set_num_threads(1)
    real = comfy_real.found() and not options.stand_in
    bench = Bench(real)
    names = list(bench.samplers.NAMES)
    counts, failed, said, start = Counter(), [], Counter(), time.time()
    whole = range(options.cases) if options.one is None else [options.one]
    for index in whole:
        case = Case(index, options.seed, names, real)
        outcome, more = bench.outcome(case)
        counts[outcome] += 1
        if outcome == "sentence":
            said[re.sub(r"[-+.0-9e]*[0-9]", "#", more.partition(":")[2])[:90]] += 1
        if options.one is not None or outcome in ("silent", "traceback"):
            failed.append({**case.what, "outcome": outcome, "more": str(more)[:300]})
    report = {
        "what": "ComfyUI's samplers, random cases",
        "comfyui": "notcomfy 0.1.0 (November 2024)" if real else "a stand-in",
        "cases": len(whole),
        "seed": options.seed,
        "seconds": round(time.time() - start, 1),
        "torch": torch.__version__,
        "outcomes": dict(sorted(counts.items())),
        "samplers": len(names),
        "sentences": dict(said.most_common(40)),
        "failed": failed,
    }
    print(json.dumps(report, indent=1, default=str))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    raise SystemExit(bool(counts["silent"] + counts["traceback"]))


if __name__ == "__main__":
    main()
