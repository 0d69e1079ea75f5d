"""`Denoiser`: a user's network, and how its output gives the x0 estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from diffast.guidance.guide import Guide
from diffast.guidance.rule import BRANCHES, Rule, RuleAt, branch_names, rule_name
from diffast.model import network_errors
from diffast.model.branches import branch_of, groups_of, rules_at, settled
from diffast.model.guidance import arguments_of, scales_at
from diffast.model.input_watch import InputWatch, InputWritten, versions_of
from diffast.model.inspection import guided_estimate
from diffast.model.options import check_options, terms_of
from diffast.model.outputs import check_plain, output_complaint, tensor_of
from diffast.model.prediction import MISSING, check_predicts
from diffast.model.prediction import Prediction as Prediction
from diffast.model.probe import Probe, probe
from diffast.model.sigma_model import SigmaModel
from diffast.model.times import check_time_dtype, check_whole, given_times
from diffast.model.times import time_dtype as time_dtype
from diffast.model.velocity import Velocity, prediction_of
from diffast.schedules import edm, flow

_DENSE, _ROWS = torch.strided, torch.contiguous_format
# Formats of a network's input and output, and how many dimensions x then has; 0: any number.
FORMATS = {torch.contiguous_format: 0, torch.channels_last: 4, torch.channels_last_3d: 5}


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network, what it predicts, its conditions and its guidance.

    The network is called as `network(x, t, **conditions)` with x [B, ...] and t [B], the
    schedule's model time. It returns one tensor shaped as x, or a tuple, a dict or an object that
    holds one (see `diffast.model.outputs.tensor_of`). With guidance it is called once a stage on 2B
    rows, conditional ones first.

    Args:
        network: the callable; a torch module should be in eval mode.
        schedule: the noise schedule it was trained for (`df.schedules`).
        predicts: "x0", "epsilon", "v", "flow", "score" or "reverse_flow" (see `from_velocity`).
        conditions: named extra arguments. A tensor whose first axis is the batch is one row a
            sample; anything else is passed on as it is.
        unconditional: the same names, for the unconditional branch of classifier-free
            guidance (tensors [B, ...] or [1, ...], repeated). Needed unless guidance is 1
            throughout.
        guidance: scale w of x0 = x0_uncond + w (x0_cond - x0_uncond), or a function of the model
            time that returns it, or a rule (`df.guidance`). Stages where it is 1 (or 0) call the
            network on B rows only.
        dtype: what dtype the network wants x in; None: the state's.
        time_dtype: what dtype the network wants t in; None: float32, float64 if the state is. An
            integer dtype (torch.long) is for networks that index a table with the time. Then every
            time of the plan has to be a whole number, as the indices of
            `df.schedules.from_betas` are.
        round_times: whether fractional times are allowed with an integer time_dtype. The network is
            then told the nearest whole number; the step is still made for the true time.
        memory_format: how x and the output lie in memory: torch.channels_last (x of 4 dimensions)
            or torch.channels_last_3d (of 5) for a network that computes in this format. `df.sample`
            then keeps its states so for plans without fresh noise, and nothing is transposed in a
            stage; the samples have this format too. Other runs call the network on contiguous
            tensors and copy its output. The numbers are the same.

        guides: guidance terms (`df.guidance`), whose gradients join every x0 estimate. Splitting
            solvers give them sub-steps of their own.

    Raises:
        TypeError: if predicts is missing.
        ValueError: for an unknown prediction type, a time_dtype that no network takes, or
            conditions and guidance that disagree.
    """

    network: Callable[..., Any]
    schedule: Any
    predicts: str = MISSING
    _: KW_ONLY
    conditions: Mapping[str, Any] = field(default_factory=dict)
    unconditional: Mapping[str, Any] | None = None
    guidance: float | Callable[[float], float] | Rule = 1.0
    dtype: torch.dtype | None = None
    time_dtype: torch.dtype | None = None
    round_times: bool = False
    memory_format: torch.memory_format = torch.contiguous_format
    guides: Sequence[Guide] = ()
    _called: ClassVar[bool] = False  # of a denoiser: whether an input was compared in full

    def __post_init__(self) -> None:
        """Checks the arguments before the first call."""
        check_predicts("Denoiser", self.predicts)
        check_options(self, FORMATS)
        object.__setattr__(self, "guidance", settled(self.guidance, self.schedule))
        check_time_dtype(self.time_dtype, self.round_times)
        object.__setattr__(self, "guides", terms_of(self.guides))

    @classmethod
    def from_velocity(
        cls,
        velocity: Callable[..., Any],
        schedule: Any = None,
        *,
        times: tuple[float, float] | None = None,
        time_scale: float = 1.0,
        call: str = "x=, t=",
        time_shape: str = "batch",
        conditions: Mapping[str, Any] | None = None,
        unconditional: Mapping[str, Any] | None = None,
        guidance: float | Callable[[float], float] | Rule = 1.0,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
        guides: Sequence[Guide] = (),
    ) -> Denoiser:
        """Returns a denoiser of a velocity field dx/ds, s from 0 (noise) to 1 (data) by default.

        This is the convention of flow_matching's ODESolver and of torchdiffeq's users:
        dx/ds = velocity(x=x, t=s, **conditions). With the model time t = 1 - s, velocity is -dx/dt.
        The sign is part of the step's weights, so it costs no pass over the output.

            from_velocity(net, call="t, x", time_shape="scalar")     torchdiffeq, torchcfm
            from_velocity(net, times=(1, 0), time_scale=1000)        told 1000 t, dx/dt, t 1 to 0
            from_velocity(net, df.schedules.trig(), times=(pi/2, 0)) TrigFlow

        Plans without fresh noise solve the field's own differential equation, whatever path it was
        trained on: with the default schedule they read x0 as x + (1 - s) dx/ds, where the straight
        line along the velocity ends, and every step is exact for a field that is constant along
        it. The schedule of the true path matters for plans with fresh noise, for `df.add_noise`,
        and for methods that take x0 for the mean of the data.

        Args:
            velocity: the field.
            schedule: of the path x = alpha x0 + sigma eps; default `df.schedules.flow()`, where the
                field is x0 - eps. Any other path: `df.schedules.from_functions`.
            times: s where the data are all noise, and s at the data; dx/ds is the velocity. None:
                (0, 1). s is linear in the schedule's time.
            time_scale: factor of the time that the field is told, where it is not s itself.
            call: how the field is called: "x=, t=" by keyword, "x, t" or "t, x" by position; the
                conditions are keywords.
            time_shape: what the time is: "batch" [B], "column" [B, 1], "scalar" [], "one" [1]. The
                last two hold one time for all samples, so `df.sample_adaptive` and
                `df.sample_parallel` refuse them.
            conditions: as for `Denoiser`.
            unconditional: as for `Denoiser`.
            guidance: as for `Denoiser`.
            dtype: as for `Denoiser`.
            time_dtype: as for `Denoiser`.
            guides: as for `Denoiser`.

        Raises:
            ValueError: for options that are not these; a schedule whose time does not run from 1 to
                0 where no times are given; what `Denoiser` raises.
        """
        schedule = flow() if schedule is None else schedule
        if not callable(velocity):
            raise ValueError(
                f"Denoiser: velocity is a {type(velocity).__name__} but must be callable"
            )
        times, predicts, factor = prediction_of(schedule, times)
        return cls(
            Velocity(velocity, schedule, times, time_scale, call, time_shape, factor),
            schedule,
            predicts,
            conditions={} if conditions is None else conditions,
            unconditional=unconditional,
            guidance=guidance,
            dtype=dtype,
            time_dtype=time_dtype,
            guides=guides,
        )

    @classmethod
    def from_sigma_model(
        cls,
        network: Callable[..., Any],
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        *,
        predicts: str = MISSING,
        scaled_input: bool = False,
        sigma_data: float = 1.0,
        level: str | Callable[[torch.Tensor], torch.Tensor] = "sigma",
        conditions: Mapping[str, Any] | None = None,
        unconditional: Mapping[str, Any] | None = None,
        guidance: float | Callable[[float], float] | Rule = 1.0,
        dtype: torch.dtype | None = None,
        time_dtype: torch.dtype | None = None,
        guides: Sequence[Guide] = (),
    ) -> Denoiser:
        """Returns a denoiser of a network of x = x0 + sigma eps and the noise level sigma.

            from_sigma_model(model, predicts="x0")                   k-diffusion's wrappers, EDM
            from_sigma_model(model, predicts="epsilon", scaled_input=True)      smalldiffusion
            from_sigma_model(inner, predicts="edm", scaled_input=True, sigma_data=0.5,
                             level="log(sigma)/4")                   EDM's network without wrapper

        The schedule is `df.schedules.edm(sigma_min, sigma_max)`.

        Args:
            network: called as network(c_in x, level, **conditions), level [B].
            sigma_min: least noise level of a network call.
            sigma_max: noise level at which sampling starts.
            predicts: "x0"; "epsilon"; "v" (v-diffusion); "edm": F of x0 = c_skip x + c_out F
                (Karras et al. 2022, table 1), the negative of "v".
            scaled_input: whether c_in is 1 / sqrt(sigma^2 + sigma_data^2); otherwise it is 1.
            sigma_data: spread of the data, in c_in, c_skip and c_out.
            level: what the network is told: "sigma", "log(sigma)", "log(sigma)/4", "2/pi
                atan(sigma)", or a function of sigma [B].
            conditions: as for `Denoiser`.
            unconditional: as for `Denoiser`.
            guidance: as for `Denoiser`.
            dtype: as for `Denoiser`.
            time_dtype: what dtype the network wants the level in.
            guides: as for `Denoiser`.

        Raises:
            TypeError: if predicts is missing.
            ValueError: for options that are not these; what `Denoiser` raises.
        """
        if not predicts:
            check_predicts("Denoiser", predicts)
        model = SigmaModel(network, predicts, sigma_data, scaled_input, level, dtype, time_dtype)
        return cls(
            model,
            edm(sigma_min, sigma_max),
            model.predicts,
            conditions={} if conditions is None else conditions,
            unconditional=unconditional,
            guidance=guidance,
            guides=guides,
        )

    def probe(
        self,
        shape: Sequence[int] | None = None,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        warn: bool = True,
    ) -> Probe:
        """Returns whether the network's answers agree with this denoiser; warns where they do not.

        18 network calls: 12 make samples in first-order steps, 6 denoise these samples again. A
        wrong sign, prediction type or time is told by errors above those of a linear guess. Where
        there is doubt the other conventions are tried as well, at 18 calls each (270 in all), and
        the answer names those that fit. Data that are Gaussian and isotropic fit many conventions;
        the probe is then silent. `df.sample` never calls it by itself.

        Guidance and guides are left out.

        Fields that are no denoiser of their schedule's path fail the probe too: an untrained
        network, a distilled one, a velocity of another path that only deterministic plans run.

        Args:
            shape: [B, ...] of the state. More rows are taken, up to 2,048 numbers in all, where no
                condition has a row for each sample.
            seed: of the noise.
            device: where to run; default: the network's.
            warn: whether to warn; the answer is returned in any case.

        Raises:
            ValueError: no shape; what the network's call raises.
        """
        if shape is None:
            raise ValueError("Denoiser: probe needs the shape [B, ...] of the state")
        return probe(self, shape, seed, device, warn)

    def affine(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (a, b) with x0 = a x + b output at each model time, [S] float64 each.

        Raises:
            ValueError: where the prediction does not determine x0 (epsilon or score at alpha = 0);
                for a fractional time where the network wants integers.
        """
        if self.whole_times and self.time_dtype is not None:
            check_whole(np.asarray(times, dtype=np.float64), self.time_dtype)
        return self.prediction.affine(times)

    @property
    def whole_times(self) -> bool:
        """Returns whether every time of a plan has to be a whole number, see `time_dtype`."""
        wanted = self.time_dtype
        return wanted is not None and not wanted.is_floating_point and not self.round_times

    @property
    def prediction(self) -> Prediction:
        """Returns what the network's output says of x0."""
        return Prediction(self.schedule, self.predicts)

    @property
    def rule(self) -> Rule | None:
        """Returns the guidance rule; None where guidance is a scale."""
        return self.guidance if isinstance(self.guidance, Rule) else None

    def scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the guidance scale at each model time, [S] float64.

        Raises:
            ValueError: if a scale is not finite, or asks for unconditional calls that no
                conditions were given for; where guidance is a rule, which is more than a scale.
        """
        guidance = self.guidance
        if isinstance(guidance, Rule):
            guidance = float(guidance)  # raises
        return scales_at(guidance, times, self.unconditional is not None)

    def rules_at(self, times: np.ndarray, planned: np.ndarray | None = None) -> list[RuleAt] | None:
        """Returns the guidance rule at each model time; None where guidance is a scale.

        Args:
            times: [S] of network calls, in order.
            planned: [S] scales that a plan gives in place of the rule's.

        Raises:
            ValueError: as `scales`.
        """
        if not isinstance(self.guidance, Rule):
            return None
        has_blank = self.unconditional is not None
        return rules_at(self.guidance, self.schedule, times, planned, has_blank)

    def planned_scales(self, scales: np.ndarray) -> np.ndarray:
        """Returns the guidance scales that a plan gives in place of `guidance`, [S] float64.

        Raises:
            ValueError: if one is not 1 and there are no unconditional conditions.
        """
        if self.unconditional is None and (scales != 1.0).any():
            raise ValueError(
                f"Denoiser: the plan gives a guidance scale of {scales[scales != 1.0][0]:g}, but "
                "there are no unconditional conditions"
            )
        return scales

    def weights_at(self, time: float) -> list[float]:
        """Returns the weights of the branches' outputs at one model time: cond, uncond, extra.

        Raises:
            ValueError: for a rule whose weights are functions of the outputs.
        """
        rules = self.rules_at(np.array([time]))
        if rules is None:
            scale = float(self.scales(np.array([time]))[0])
            return [scale, 1.0 - scale, 0.0]
        if rules[0].reduces or rules[0].low:
            raise ValueError(
                "Denoiser: a guidance term is taken through the network, but "
                f"{rule_name(rules[0].rule)} has weights that depend on the outputs: use a "
                "linear rule, or through='x0'"
            )
        weights = dict(rules[0].weights or ())
        return [weights.get(name, 0.0) for name in BRANCHES]

    def gradient_scales(self, times: np.ndarray) -> np.ndarray:
        """Returns the scales of the guidance terms, [terms, S] float64.

        Raises:
            ValueError: if a scale is not finite.
        """
        return np.array([term.scales(times) for term in self.guides]).reshape(-1, len(times))

    def gradient_weights(self, times: np.ndarray) -> np.ndarray:
        """Returns the weights of the terms' gradients in the x0 estimate, [terms, S] float64.

        Raises:
            ValueError: if a scale is not finite.
        """
        found = [term.weights(self.schedule, times) for term in self.guides]
        return np.array(found).reshape(-1, len(times))

    def device(self) -> torch.device:
        """Returns where the network's parameters are; the CPU if it has none."""
        first = network_errors.first_parameter(self.network)
        return torch.device("cpu") if first is None else first.device

    def branch(self, name: str) -> tuple[Any, Mapping[str, Any]]:
        """Returns the network and the conditions of a branch: "cond", "uncond" or "extra"."""
        return branch_of(name, self.rule, self.network, self.conditions, self.unconditional)

    @property
    def networks(self) -> list[Any]:
        """Returns the networks of all branches, the denoiser's first."""
        own = {} if self.rule is None else self.rule.branches
        found = (branch.network for branch in own.values())
        return [self.network, *(network for network in found if network is not None)]

    def groups(self, branches: str) -> list[tuple[Any, str]]:
        """Returns (network, branches) of the calls that a stage on these branches is made of.

        Branches of one network are one batched call.
        """
        return groups_of(branches, lambda name: self.branch(name)[0])

    def arguments(self, batch: int, device: torch.device, branch: str) -> dict[str, Any]:
        """Returns the conditions for one kind of call, made once a run.

        Args:
            batch: number of samples B.
            device: where the state is.
            branch: the cfg branch: "cond" or "uncond" for B rows, "both" for 2B rows, conditional
                first; or names joined by +.

        Raises:
            ValueError: for a tensor whose first axis is neither the batch nor 1, a condition
                that is no tensor and differs between the branches, or branches of several networks.
        """
        names = branch_names(branch)
        if len(self.groups(branch)) > 1:
            raise ValueError(
                f"Denoiser: {' and '.join(names)} are branches with networks of their own, but one "
                "batched call was asked for: df.sample calls one after the other"
            )
        return arguments_of([self.branch(name)[1] for name in names], batch, device)

    def call(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        arguments: Mapping[str, Any],
        memory_format: torch.memory_format = torch.contiguous_format,
        network: Callable[..., Any] | None = None,
        watch: InputWatch | None = None,
    ) -> torch.Tensor:
        """Returns the network's raw output, in that format, shaped as x [B, ...].

        An error of the network passes through, unless an option of `Denoiser` would have prevented
        it. Then a ValueError names the option; the network's own error is its cause.

        Args:
            x: the network's input [B, ...].
            t: model times [B].
            arguments: from `arguments`.
            memory_format: how the output has to lie; it is copied if it does not.
            network: that of a branch with one of its own; None: the denoiser's.
            watch: of x, or of the tensor that x is a part of; None: one is made.

        Raises:
            InputWritten: a ValueError, if the network changed x.
            ValueError: if the network returns something else; as above.
        """
        if self.time_dtype is not None:
            t = given_times(t, self.time_dtype, self.round_times, self.schedule)
        network = self.network if network is None else network
        watch, whole = InputWatch(x) if watch is None else watch, not self._called
        before = watch.look(whole)
        versions = versions_of(arguments) if arguments else None
        try:
            output = network(x, t, **arguments)
        except network_errors.RAISED as error:
            clearer = network_errors.explanation(error, network, x, t)
            if clearer is None:
                raise
            raise ValueError(clearer) from error
        if watch.look(whole) != before:
            raise InputWritten
        if versions is not None and versions_of(arguments) != versions:
            raise InputWritten(what="conditions")
        if whole:
            object.__setattr__(self, "_called", True)
        if not isinstance(output, torch.Tensor):
            output = tensor_of(output, self.predicts)
        if output.shape != x.shape or not output.is_floating_point():
            raise ValueError(output_complaint(x, output))
        if type(output) is not torch.Tensor or output.layout is not _DENSE:
            check_plain(x, output)
        if memory_format is _ROWS and output.is_contiguous():
            return output  # half of what `contiguous` takes
        return output.contiguous(memory_format=memory_format)

    def x0(self, x: torch.Tensor, t: float) -> torch.Tensor:
        """Returns the guided x0 estimate [B, ...] at one model time, in plain torch."""
        return guided_estimate(self, x, t)
