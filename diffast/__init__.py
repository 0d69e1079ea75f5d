"""Fast, exact sampling for diffusion and flow models.

Example:
    import diffast as df

    schedule = df.schedules.vp_linear()
    plan = df.solvers.dpmpp_2m(schedule, df.grids.karras(schedule, 20))
    denoiser = df.Denoiser(network, schedule, predicts="epsilon")
    out = df.sample(denoiser, plan, shape=(16, 1, 28, 28), seed=0)
"""

from importlib import import_module
from typing import Any

from diffast._namespace import attributes

__version__ = "0.1.0"

# Where each public name lives. Loaded when first asked for: plans can be made without torch.
_HOMES = {
    "AdaptiveOptions": "diffast.executors.adaptive.options",
    "AdaptiveSamples": "diffast.executors.adaptive.sample",
    "BrownianPath": "diffast.noise.brownian",
    "Denoiser": "diffast.model.denoiser",
    "FailedSamples": "diffast.executors.results",
    "GraphError": "diffast.executors.cuda_graph",
    "GraphSampler": "diffast.executors.graph_sampler",
    "HandedOverWarning": "diffast.integrations.handed_over",
    "Info": "diffast.executors.results",
    "LearnedVariance": "diffast.model.learned_variance",
    "MetropolisSamples": "diffast.executors.metropolis",
    "NonFiniteError": "diffast.executors.results",
    "ParallelSamples": "diffast.executors.parallel.sample",
    "ParticleSamples": "diffast.executors.particles.sample",
    "Plan": "diffast.plans",
    "PlanWarning": "diffast.plans.overshoot",
    "Prediction": "diffast.model.prediction",
    "Progress": "diffast.executors.results",
    "Result": "diffast.executors.results",
    "Round": "diffast.executors.parallel.rounds",
    "Samples": "diffast.executors.results",
    "StepLimitError": "diffast.executors.results",
    "Stepper": "diffast.executors.stepwise",
    "TuneResult": "diffast.tuning.result",
    "add_noise": "diffast.noise.forward_process",
    "backends": "diffast.ops",
    "correctors": "diffast.solvers.correctors",
    "digits": "diffast.digits",
    "embedded": "diffast.solvers.embedded",
    "graph_cache": "diffast.executors.graph_cache",
    "grids": "diffast.grids",
    "guidance": "diffast.guidance",
    "initial_state": "diffast.executors.initial",
    "integrations": "diffast.integrations",
    "ops": "diffast.ops",
    "pairs": "diffast.solvers.embedded",  # the older name of `embedded`
    "plan": "diffast.planning",
    "sample": "diffast.executors.sequential",
    "sample_adaptive": "diffast.executors.adaptive.sample",
    "sample_metropolis": "diffast.executors.metropolis",
    "sample_parallel": "diffast.executors.parallel.sample",
    "sample_particles": "diffast.executors.particles.sample",
    "schedules": "diffast.schedules",
    "solvers": "diffast.solvers",
    "tasks": "diffast.tasks",
    "thermo": "diffast.thermo",
    "tune": "diffast.tuning.tune",
    "tuning": "diffast.tuning",
    "unroll": "diffast.plans",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]: __init__.pyi lists them


_unknown, __dir__ = attributes(__name__, __all__)


def __getattr__(name: str) -> Any:
    """Returns the public object of that name, or the module behind it."""
    if name not in _HOMES:
        return _unknown(name)
    module = import_module(_HOMES[name])
    value = vars(module).get(name, module)
    globals()[name] = value
    return value
