"""The public names, for editors and type checkers; `__init__.py` loads them when asked for."""

from diffast import digits as digits
from diffast import grids as grids
from diffast import guidance as guidance
from diffast import integrations as integrations
from diffast import ops as ops
from diffast import schedules as schedules
from diffast import solvers as solvers
from diffast import tasks as tasks
from diffast import thermo as thermo
from diffast import tuning as tuning
from diffast.executors.adaptive.options import AdaptiveOptions as AdaptiveOptions
from diffast.executors.adaptive.sample import AdaptiveSamples as AdaptiveSamples
from diffast.executors.adaptive.sample import sample_adaptive as sample_adaptive
from diffast.executors.cuda_graph import GraphError as GraphError
from diffast.executors.graph_cache import graph_cache as graph_cache
from diffast.executors.graph_sampler import GraphSampler as GraphSampler
from diffast.executors.initial import initial_state as initial_state
from diffast.executors.metropolis import MetropolisSamples as MetropolisSamples
from diffast.executors.metropolis import sample_metropolis as sample_metropolis
from diffast.executors.parallel.rounds import Round as Round
from diffast.executors.parallel.sample import ParallelSamples as ParallelSamples
from diffast.executors.parallel.sample import sample_parallel as sample_parallel
from diffast.executors.particles.sample import ParticleSamples as ParticleSamples
from diffast.executors.particles.sample import sample_particles as sample_particles
from diffast.executors.results import FailedSamples as FailedSamples
from diffast.executors.results import Info as Info
from diffast.executors.results import NonFiniteError as NonFiniteError
from diffast.executors.results import Progress as Progress
from diffast.executors.results import Result as Result
from diffast.executors.results import Samples as Samples
from diffast.executors.results import StepLimitError as StepLimitError
from diffast.executors.sequential import sample as sample
from diffast.executors.stepwise import Stepper as Stepper
from diffast.integrations.handed_over import HandedOverWarning as HandedOverWarning
from diffast.model.denoiser import Denoiser as Denoiser
from diffast.model.learned_variance import LearnedVariance as LearnedVariance
from diffast.model.prediction import Prediction as Prediction
from diffast.noise.brownian import BrownianPath as BrownianPath
from diffast.noise.forward_process import add_noise as add_noise
from diffast.ops import backends as backends
from diffast.planning import plan as plan
from diffast.plans import Plan as Plan
from diffast.plans import unroll as unroll
from diffast.plans.overshoot import PlanWarning as PlanWarning
from diffast.solvers import correctors as correctors
from diffast.solvers import embedded as embedded
from diffast.solvers import embedded as pairs
from diffast.tuning.result import TuneResult as TuneResult
from diffast.tuning.tune import tune as tune

__version__: str
__all__ = [
    "AdaptiveOptions",
    "AdaptiveSamples",
    "BrownianPath",
    "Denoiser",
    "FailedSamples",
    "GraphError",
    "GraphSampler",
    "HandedOverWarning",
    "Info",
    "LearnedVariance",
    "MetropolisSamples",
    "NonFiniteError",
    "ParallelSamples",
    "ParticleSamples",
    "Plan",
    "PlanWarning",
    "Prediction",
    "Progress",
    "Result",
    "Round",
    "Samples",
    "StepLimitError",
    "Stepper",
    "TuneResult",
    "add_noise",
    "backends",
    "correctors",
    "digits",
    "embedded",
    "graph_cache",
    "grids",
    "guidance",
    "initial_state",
    "integrations",
    "ops",
    "pairs",
    "plan",
    "sample",
    "sample_adaptive",
    "sample_metropolis",
    "sample_parallel",
    "sample_particles",
    "schedules",
    "solvers",
    "tasks",
    "thermo",
    "tune",
    "tuning",
    "unroll",
]
