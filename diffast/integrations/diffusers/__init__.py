"""diffusers: schedulers whose step is one fused kernel, with the same pictures.

    from diffast.integrations.diffusers import accelerate

    accelerate(pipe)          # replaces its schedulers, and says by what; undo=True puts them back

    accelerate(pipe, plan="eight.json")    # the same pipeline with a plan made for its network

or, for one scheduler, `DiffastScheduler.from_config(pipe.scheduler.config)`.
"""

from diffast.integrations.diffusers import classes as classes
from diffast.integrations.diffusers import classes_indexed as classes_indexed
from diffast.integrations.diffusers import classes_more as classes_more
from diffast.integrations.diffusers import classes_score as classes_score
from diffast.integrations.diffusers.accelerate import Report, accelerate, accelerated
from diffast.integrations.diffusers.guider import RuleGuider, guider
from diffast.integrations.diffusers.planned import PlanScheduler
from diffast.integrations.diffusers.scheduler import KINDS, DiffastScheduler
from diffast.integrations.diffusers.tuning import pipeline_denoiser, tune

globals().update({kind.__name__: kind for kind in KINDS.values()})

__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]: the drop-ins are made by name
    "KINDS",
    "DiffastScheduler",
    "PlanScheduler",
    "Report",
    "RuleGuider",
    "accelerate",
    "accelerated",
    "guider",
    "pipeline_denoiser",
    "tune",
    *sorted(kind.__name__ for kind in KINDS.values()),
]
