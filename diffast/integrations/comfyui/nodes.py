"""ComfyUI nodes that return a SAMPLER with its options set, one of them with its SIGMAS.

The attributes and the class methods' names are ComfyUI's interface.
"""

from __future__ import annotations

from diffast.integrations.comfyui.guidance import cfg_function
from diffast.integrations.comfyui.plans import PlanOfModel, find_plan, plan_sampler
from diffast.integrations.comfyui.samplers import NAMES, NOISES, churn_sampler, sampler
from diffast.integrations.comfyui.table import SAMPLERS

_STOCHASTIC = [name for name, entry in SAMPLERS.items() if entry.stochastic]
_OTHERS = [name for name in NAMES if name not in _STOCHASTIC]


def _number(default, low, high, step=0.01):
    limits = {"default": default, "min": low, "max": high, "step": step, "round": False}
    return ("FLOAT", limits)


class _SamplerNode:
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "make"
    CATEGORY = "sampling/custom_sampling/samplers"

    inputs: dict

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """Returns what the node asks for."""
        return {"required": dict(cls.inputs)}

    def _wrapped(self, function):
        from comfy.samplers import KSAMPLER  # pyright: ignore[reportMissingImports]: ComfyUI's own

        return (KSAMPLER(function),)


class DiffastSampler(_SamplerNode):
    """A sampler without eta; "noise" matters to those that draw some: er_sde, sa_solver, lcm ..."""

    inputs = {"sampler_name": (_OTHERS,), "noise": (list(NOISES),)}

    def make(self, sampler_name, noise):
        """Returns (KSAMPLER,)."""
        return self._wrapped(sampler(sampler_name, noise))


class DiffastStochasticSampler(_SamplerNode):
    """A sampler with fresh noise: eta = 0 for none to 1 for all of it."""

    inputs = {
        "sampler_name": (_STOCHASTIC,),
        "eta": _number(1.0, 0.0, 1.0),
        "s_noise": _number(1.0, 0.0, 100.0),
        "noise": (list(NOISES),),
    }

    def make(self, sampler_name, eta, s_noise, noise):
        """Returns (KSAMPLER,)."""
        return self._wrapped(sampler(sampler_name, noise, eta=eta, s_noise=s_noise))


class DiffastChurnSampler(_SamplerNode):
    """Karras et al. 2022, algorithm 2: noise is added before each step between the two sigmas."""

    inputs = {
        "base": (["heun", "euler", "dpm_2"],),
        "s_churn": _number(40.0, 0.0, 1000.0),
        "s_tmin": _number(0.0, 0.0, 1000.0),
        "s_tmax": _number(1000.0, 0.0, 1000.0),
        "s_noise": _number(1.0, 0.0, 100.0, 0.001),
        "noise": (list(NOISES),),
    }

    def make(self, base, s_churn, s_tmin, s_tmax, s_noise, noise):
        """Returns (KSAMPLER,)."""
        options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        return self._wrapped(churn_sampler(base, noise, **options))


class DiffastPlan(_SamplerNode):
    """A plan made for a network: its sampler and its sigmas, which belong together."""

    RETURN_TYPES = ("SAMPLER", "SIGMAS")
    inputs = {"plan": ("STRING", {"default": "plan.json"}), "noise": (list(NOISES),)}

    def make(self, plan, noise):
        """Returns (KSAMPLER, SIGMAS) of a plan file."""
        prepared = PlanOfModel(find_plan(plan))
        return (*self._wrapped(plan_sampler(prepared, noise)), prepared.sigmas)


class DiffastGuidance:
    """A guidance rule in place of the sampler's classifier-free guidance: apg:eta=0.5, tcfg, ..."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "advanced/guidance"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        """Returns what the node asks for."""
        return {"required": {"model": ("MODEL",), "rule": ("STRING", {"default": "apg:eta=0.5"})}}

    def make(self, model, rule):
        """Returns (the patched MODEL,)."""
        patched = model.clone()
        patched.set_model_sampler_cfg_function(cfg_function(rule))
        return (patched,)


_NODES = {
    "diffast sampler": DiffastSampler,
    "diffast stochastic sampler": DiffastStochasticSampler,
    "diffast churn sampler": DiffastChurnSampler,
    "diffast plan": DiffastPlan,
    "diffast guidance": DiffastGuidance,
}
NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES.values()}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: shown for shown, node in _NODES.items()}
