"""`PlanScheduler`: a scheduler of diffusers that runs one plan, whatever scheduler it replaces."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin as SchedulerMixin  # pipelines look for it here
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput

from diffast.guidance.guide import Guide
from diffast.integrations.diffusers.classes import _WithEstimate
from diffast.integrations.diffusers.convention import Convention, check_same, convention_of
from diffast.integrations.diffusers.guidance_hook import GuidanceHook
from diffast.integrations.diffusers.guides import GuidedOutputs
from diffast.integrations.diffusers.live import setting
from diffast.integrations.diffusers.registry import NOISES, watch
from diffast.integrations.diffusers.run import Recipe
from diffast.integrations.diffusers.shared import clamp_of
from diffast.lowering.evaluations import branch_columns, gradients_of
from diffast.plans import Plan
from diffast.plans.file import from_record, to_record
from diffast.plans.initial import check_plain_start
from diffast.plans.registers import Y

# A flow's pipeline starts from noise of deviation 1; a plan may start from as little less.
_NEAR_ONE = 0.01
_threshold: Any = DDIMScheduler._threshold_sample  # dynamic thresholding, of any config
_OWN = "_diffast"  # where a config keeps the plan


class PlanScheduler(_WithEstimate):
    """A scheduler that runs a plan: its calls, its times, its weights, at its levels.

    The latents hold what the plan's registers hold: alpha x0 + sigma noise of the network's own
    schedule, also where the replaced scheduler keeps x0 + sigma noise. `timesteps` are the times
    that the plan tells the network; they may be other ones than those of the levels.

    The plan fixes the number of calls: `set_timesteps(n)` accepts that n alone, and no timesteps
    or sigmas of the caller's. `accelerate(pipe, plan=...)` makes one. It is saved and loaded with
    the pipeline, the plan included.

    Args:
        plan: what to run.
        noise: as for `DiffastScheduler`.
        planned_for: name of the scheduler class that is replaced.
        predicts: the network's prediction type.
        unit: timesteps a unit of model time.
        config: of the replaced scheduler.
        guides: guidance terms (`df.guidance`), whose gradients join every x0 estimate. They are
            given the latents and the plan's model times, and are not saved.

    Raises:
        ValueError: another noise; a plan that a drop-in cannot run, as one of two inputs a stage;
            a term that is taken through the network.
    """

    _options = ()
    _Output = DDIMSchedulerOutput

    def __init__(
        self,
        plan: Plan,
        noise: str = "generator",
        planned_for: str = "",
        predicts: str = "",
        unit: float = 1.0,
        config: Mapping[str, Any] | None = None,
        guides: Sequence[Guide] = (),
    ):
        """Makes the plan's calls; nothing of them is run."""
        if noise not in NOISES:
            raise ValueError(
                f"PlanScheduler: noise is {noise!r}, but 'generator' or 'counter' is needed"
            )
        self.plan, self.planned_for = plan, planned_for
        self.convention = Convention(plan.schedule, predicts, float(unit))
        own = {"plan": to_record(plan), "for": planned_for, "predicts": predicts, "unit": unit}
        # an underscore in front: other schedulers that are made from the config leave it out
        self.register_to_config(**{**(config or {}), "noise": noise, _OWN: own})
        self._counter = noise == "counter"
        self._begin_index = None
        self._hook: GuidanceHook | None = None
        self.num_inference_steps = None
        self._made, self.guides = True, tuple(guides)
        _check_plan(plan, self.convention)
        self._recipe_of_plan = self._make_recipe()
        self._lay_out(None)

    @classmethod
    def of(
        cls, scheduler: Any, plan: Plan, noise: str = "generator", guides: Sequence[Guide] = ()
    ) -> PlanScheduler:
        """Returns the scheduler of that plan in the place of another one.

        Args:
            scheduler: of diffusers, a drop-in, or a `PlanScheduler`.
            plan: for the network's schedule and prediction type.
            noise: as for `DiffastScheduler`.
            guides: guidance terms, see the class.

        Raises:
            ValueError: a plan for another schedule or prediction type, one that a drop-in cannot
                run, a scheduler whose network is not known.
        """
        if isinstance(scheduler, PlanScheduler):
            scheduler = scheduler.original()
        convention = convention_of(scheduler)
        check_same("accelerate", plan, convention)
        config = {
            name: value
            for name, value in scheduler.config.items()
            if not name.startswith("_") and name != "noise"
        }
        name = type(scheduler).__name__.removeprefix("Diffast")
        return cls(plan, noise, name, convention.predicts, convention.unit, config, guides)

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs=False, **kwargs):
        """Returns the scheduler of a saved config; see the class.

        Raises:
            ValueError: a config without a plan; a plan that was edited.
        """
        given = dict(config or {})
        own = given.get(_OWN)
        if not isinstance(own, Mapping) or not {"plan", "for", "predicts", "unit"} <= {*own}:
            raise ValueError(
                "PlanScheduler: the config has no plan: use accelerate(pipe, plan=...)"
            )
        plan = from_record(dict(own["plan"]), "PlanScheduler: plan of the config")
        kept = {name: value for name, value in given.items() if not name.startswith("_")}
        noise = kwargs.get("noise", kept.pop("noise", "generator"))
        made = cls(plan, noise, own["for"], own["predicts"], own["unit"], kept)
        return (made, {}) if return_unused_kwargs else made

    def original(self) -> Any:
        """Returns a scheduler of the class and configuration that this one replaced.

        Raises:
            ValueError: a class that is not one of diffusers'.
        """
        kind = getattr(diffusers, self.planned_for, None)
        if kind is None:
            raise ValueError(
                f"PlanScheduler: it replaced {self.planned_for!r}, but diffusers has no such "
                "class: set pipe.scheduler yourself"
            )
        kept = {name: value for name, value in self.config.items() if name != "noise"}
        return kind.from_config({n: v for n, v in kept.items() if not n.startswith("_")})

    # --- the run ----------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
    ) -> None:
        """Begins a run of the plan's calls.

        Args:
            num_inference_steps: has to be the plan's number of calls; None: that.
            device: of the timesteps.
            timesteps: None; a plan has its own.
            sigmas: None, or a list in even steps of the plan's length: some pipelines give one by
                default. Its values are not used.
            mu: a shift of the sigmas that some pipelines give. Not used.

        Raises:
            ValueError: another number of calls, timesteps, sigmas that are not in even steps.
        """
        if timesteps is not None:
            raise ValueError(
                f"timesteps are given, but the plan {self.plan.name} has times of its own: leave "
                "them out"
            )
        if sigmas is not None:
            given = np.asarray(sigmas, dtype=np.float64)
            even = np.linspace(given[0], given[-1], len(given)) if len(given) else given
            if not np.allclose(given, even, atol=1e-3):
                raise ValueError(
                    f"sigmas are given, but the plan {self.plan.name} has levels of its own: leave "
                    "them out"
                )
            num_inference_steps = len(given)
        calls = self.plan.nfe
        if num_inference_steps not in (None, calls):
            raise ValueError(
                f"num_inference_steps is {num_inference_steps}, but the plan {self.plan.name} "
                f"makes {calls} network calls: call the pipeline with num_inference_steps={calls}"
            )
        self._before_set_timesteps()
        self.num_inference_steps = calls
        self._lay_out(device)
        if self._hook is not None:
            self._hook.begin(self)

    def _lay_out(self, device) -> None:
        """Sets timesteps and sigmas anew, and forgets the last run."""
        told = self.plan.call_times * self.convention.unit
        whole = not self.convention.is_flow and bool((told == np.round(told)).all())
        self.timesteps = torch.tensor(told, dtype=torch.int64 if whole else torch.float32)
        alpha, sigma = self._states.T
        with np.errstate(divide="ignore"):
            self.sigmas = torch.from_numpy(sigma if self.convention.is_flow else sigma / alpha)
        self.sigmas = self.sigmas.float()
        self._begin_index = None
        self._after_set_timesteps(device)

    def _make_recipe(self) -> Recipe:
        plan, config = self.plan, self.config
        draws = np.any([plan.weights(row, "z1") != 0.0 for row in plan.rows], axis=0)
        clamp = hook = None
        if not self.convention.is_flow:
            clamp = clamp_of(config)
            if setting(config, "thresholding"):
                hook = functools.partial(_threshold, self)
        reads = self.convention.prediction
        return Recipe(
            replace(plan, guidance=None, made_for=None),  # the pipeline applies guidance
            GuidedOutputs(reads, plan, self.guides) if self.guides else reads,
            clamp,
            hook,
            tuple(draws.tolist()) if draws.any() else (),
            wide=self.convention.is_flow,
        )

    def _recipe(self, begin, options) -> Recipe:
        return self._recipe_of_plan

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        return_dict: bool = True,
        generator: Any = None,
        **options: Any,
    ):
        """Returns the next sample and the x0 estimate; see diffusers.

        Args:
            model_output: what the network (and guidance) gave, [B, ...].
            timestep: of `timesteps`.
            sample: the latents [B, ...].
            return_dict: whether an object is returned instead of a pair.
            generator: of a stochastic plan's noise.
            options: such as eta, which a plan has no place for: 0, False or None.

        Raises:
            ValueError: a step after the last one, a step out of turn, an option that is set.
        """
        for name, value in options.items():
            if isinstance(value, torch.Tensor) or value not in (0.0, None):
                raise ValueError(
                    f"{name} is {value!r}, but the plan {self.plan.name} has no such option: leave "
                    "it out"
                )
        if model_output.dim() > 1 and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the rest is a learned variance
        result = self._advance(model_output, timestep, sample, return_dict, generator)
        if self._hook is not None:
            self._hook.after(self)
        return result

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sets the call at which the run starts.

        Raises:
            ValueError: another one than the first, if the plan weighs what earlier calls returned.
        """
        self._check_begin(begin_index)
        self._begin_index = begin_index

    def _prepare(self, waits: bool = False) -> None:
        """Makes a run ready."""
        watch(self)
        self._run = self._compiled = None
        self._start(0, self._options)
        self._live = True

    def _look(self) -> None:
        """Sees to what was written: levels are the plan's, clipping is the scheduler's.

        Raises:
            ValueError: levels that were written, and any write between two steps.
        """
        written = self._changes()
        levels = written & {"timesteps", "sigmas", "num_inference_steps"}
        if levels:
            raise ValueError(
                f"the scheduler's {', '.join(sorted(levels))} was written, but the plan "
                f"{self.plan.name} has levels of its own: use accelerate(pipe) without a plan"
            )
        if self._run is not None and self._run.next != -1:
            raise ValueError(
                f"the scheduler's {', '.join(sorted(written))} was written between two steps of "
                f"the plan {self.plan.name}: write before the first step"
            )
        self._kept, at = None, self._step_index
        self._recipe_of_plan = self._make_recipe()
        self._prepare()
        self._step_index = at

    def _before_set_timesteps(self) -> None:
        """Sees to what was written since the last run."""
        if self._changes() - {"timesteps", "sigmas", "num_inference_steps"}:
            self._kept = None
            self._recipe_of_plan = self._make_recipe()

    def _ready(self, timestep, options: tuple, shape=None):
        if self._is_written():
            self._look()
        i, run = self._index(timestep), self._run
        if i is None:
            raise ValueError(self._too_many(self._step_index))
        if run is None or run.next != i:
            self._check_begin(i)
            if run is None or run.next != -1 or i == 0:
                run = self._start(0, options)
        return run, i

    def _hand_over(self, reason: str) -> None:
        """Refuses: no code but the plan's makes these steps.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{reason}, but a run of the plan {self.plan.name} goes on as it began: call "
            "set_timesteps first"
        )

    def _init_step_index(self, timestep) -> None:
        begin = self._begin_index
        self._step_index = self._position(timestep) if begin is None else begin

    def _dtypes(self, sample, output: torch.dtype) -> tuple:
        """Returns the dtypes of (next sample, x0 estimate, noise)."""
        wide = self._recipe_of_plan.wide
        dtype = output if wide else torch.promote_types(output, sample.dtype)
        return dtype, dtype, output

    def _check_begin(self, i: int) -> None:
        if i and self._remembers:
            raise ValueError(
                f"the run would start at call {i} of the plan {self.plan.name}, but its weights "
                "are for a run from the first call on: set strength=1, or use another scheduler "
                "for this pipeline"
            )

    # --- levels -----------------------------------------------------------------------------

    @functools.cached_property
    def _states(self) -> np.ndarray:
        """Returns (alpha, sigma) of the state before each call and after the last, [calls+1, 2]."""
        plan = self.plan
        start = [[float(plan.schedule.alpha(plan.start)), float(plan.schedule.sigma(plan.start))]]
        return np.concatenate([start, plan.levels[:, plan.rows.index("x")]])

    @property
    def _remembers(self) -> bool:
        """Returns whether a stage weighs more than its own input and output."""
        plan = self.plan
        return plan.history > 0 or Y in plan.rows

    @property
    def init_noise_sigma(self) -> float:
        """Returns the deviation of the plan's initial noise."""
        return 1.0 if self.convention.is_flow else self.plan.initial_scale

    @property
    def step_index(self) -> int | None:
        """Returns the index of the next call."""
        traced = self._compiled
        if traced is not None and traced.state is not None:
            return int(traced.state.row[0])
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Returns what `set_begin_index` set."""
        return self._begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Returns the sample: the network sees the state as it is."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Returns alpha x0 + sigma noise [B, ...] at the level of the state before each call.

        Args:
            original_samples: x0 [B, ...].
            noise: normals [B, ...].
            timesteps: [B] or [1], of `timesteps`.

        Raises:
            ValueError: a timestep that is not one of the plan's.
        """
        calls = [self._position(t) for t in timesteps.reshape(-1)]
        levels = torch.from_numpy(self._states[calls]).to(original_samples)
        alpha, sigma = (
            column.reshape(-1, *[1] * (original_samples.dim() - 1)) for column in levels.unbind(1)
        )
        return alpha * original_samples + sigma * noise

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """Returns `add_noise(sample, noise, timestep)`, as schedulers of flow matching name it."""
        return self.add_noise(sample, noise, timestep.reshape(-1))

    def get_velocity(self, *arguments: Any) -> torch.Tensor:
        """Refuses: a velocity is for training, which a plan is not."""
        raise ValueError("get_velocity is for training, but a plan is for sampling")

    def guide(self, pipe: Any) -> None:
        """Hands the plan's guidance scales to that pipeline, call by call.

        Raises:
            ValueError: a pipeline that takes one scale for all calls.
        """
        self._hook = GuidanceHook(weakref.ref(pipe), self.plan)

    def __repr__(self) -> str:
        """Returns one line: the config holds the whole plan."""
        return f"PlanScheduler({self.plan!r}, in the place of {self.planned_for})"

    def __len__(self) -> int:
        """Returns the number of calls."""
        return self.plan.nfe


def _check_plan(plan: Plan, convention: Convention) -> None:
    """Refuses what no pipeline can run."""
    check_plain_start("step", plan, "a pipeline draws its own noise; use df.sample")
    if plan.called.shape[1] > 1:
        raise ValueError(
            f"the plan {plan.name} calls the network on {plan.called.shape[1]} inputs at once, but "
            "a pipeline calls its network on one: tune without 'directions', or use df.sample"
        )
    if gradients_of(plan):
        raise ValueError(
            f"the plan {plan.name} weighs gradients of guidance terms by itself, but a pipeline "
            "takes a step a network call: use df.sample"
        )
    alone = branch_columns(plan)
    if alone:
        raise ValueError(
            f"the plan {plan.name} weighs {', '.join(alone)}, the x0 estimate of one branch alone, "
            "but a pipeline hands its scheduler the guided output: use df.sample with "
            "pipeline_denoiser"
        )
    if len(plan.calls) != plan.stages:
        raise ValueError(
            f"the plan {plan.name} has {plan.stages} stages and {len(plan.calls)} network calls, "
            "but a pipeline takes a step a call: use df.sample"
        )
    if convention.is_flow and abs(plan.initial_scale - 1.0) > _NEAR_ONE:
        raise ValueError(
            f"the plan {plan.name} starts at sigma = {plan.initial_scale:g}, but a flow's pipeline "
            "starts from noise of deviation 1"
        )
