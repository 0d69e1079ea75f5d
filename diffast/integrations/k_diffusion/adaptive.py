"""k-diffusion's `sample_dpm_adaptive` over the adaptive executor: each sample has its own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from diffast import schedules
from diffast.executors.adaptive.rounds import STATUSES
from diffast.executors.adaptive.sample import prepare
from diffast.integrations.k_diffusion.calls import check_state
from diffast.integrations.k_diffusion.handing import handed_over
from diffast.integrations.k_diffusion.noise_levels import ends_of, level_of
from diffast.model.denoiser import Denoiser
from diffast.model.input_watch import InputWatch, InputWritten
from diffast.model.outputs import tensor_of
from diffast.ops.schema import CONTROLS, COUNTS, FAILED_FINITE, FINISHED
from diffast.solvers import embedded
from diffast.solvers.embedded.controllers import factor

# Only a model with random outputs needs so many.
MOST_CALLS = 1_000_000
AT, TO, END, ERROR, BEFORE, BEFORE2 = (
    CONTROLS.index(name) for name in ("at", "to", "end", "error", "before", "before2")
)
STATUS, STAGE, ACCEPTED, REJECTED = (
    COUNTS.index(name) for name in ("status", "stage", "accepted", "rejected")
)


def sample_dpm_adaptive(
    model: Callable,
    x: torch.Tensor,
    sigma_min: float | torch.Tensor,
    sigma_max: float | torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    pcoeff: float = 0.0,
    icoeff: float = 1.0,
    dcoeff: float = 0.0,
    accept_safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
    noise_sampler: Callable | None = None,
    return_info: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, dict[str, int]]:
    """Returns samples of DPM-Solver-12 or -23 with adaptive steps.

    Every sample takes steps of its own, from its own error; k-diffusion takes one step for the
    whole batch, from the error of all of it. The model is called on the whole batch until the
    slowest sample is done, with another sigma for each sample.

    A batch of one takes k-diffusion's steps. After a rejected step the model is not asked again
    about the state, which is still the same, so there are fewer calls.

    Args:
        model: called as model(x, sigma [B], **extra_args); returns the x0 estimate.
        x: the initial state [B, ...] at sigma_max.
        sigma_min: noise level of the returned state, above 0.
        sigma_max: noise level of x.
        extra_args: passed to the model.
        callback: called with k-diffusion's dictionary after every round in which a trial step was
            decided. 'x' (a copy) and 'denoised' are of all samples, the numbers are those of the
            sample that is furthest behind. It may write into 'denoised', which no step reads
            then, but not into 'x'.
        disable: True for no progress bar; None: none where stderr is no terminal.
        order: 2 or 3.
        rtol: relative tolerance.
        atol: absolute tolerance.
        h_init: first step in log sigma.
        pcoeff: proportional coefficient of the step-size controller.
        icoeff: integral coefficient.
        dcoeff: differential coefficient.
        accept_safety: least factor on the step with which a trial step is accepted.
        eta: strength of the noise, 0 to 1.
        s_noise: factor on the noise.
        noise_sampler: with eta > 0 k-diffusion's own function runs. None: the noise is the
            package's own for each sample and trial step, with the seed extra_args["seed"], or a
            number from torch's generator.
        return_info: whether to return also the dictionary of 'steps', 'nfe', 'n_accept' and
            'n_reject', of the sample with the most trial steps. nfe is counted as k-diffusion does:
            `order` calls a trial step.

    Raises:
        ValueError: a number out of its range; a callback that writes into x.
        FloatingPointError: a value that is not finite.
        RuntimeError: a step that became too small, or a million calls.
    """
    given, name = dict(locals()), "sample_dpm_adaptive"
    check_state(name, x)
    low, high = (level_of(name, which, of, 0.0) for which, of in ends_of(sigma_min, sigma_max))
    if eta and noise_sampler is not None:
        why = (
            f"eta is {eta} and a noise_sampler is given, but samples have steps of their own "
            "here, which only the package's noise follows"
        )
        return handed_over(name, why, "noise", given)
    if low >= high:
        why = f"sigma_min = {low:g} is not below sigma_max = {high:g}"
        return handed_over(name, why, "sigmas", given)
    space = schedules.edm(low, high)
    end, step = float(space.lam(space.sigma_min)), abs(float(h_init))
    noise: Any = {"eta": eta, "s_noise": s_noise, "lam_end": end}
    if not 0.0 <= float(eta) <= 1.0:
        return handed_over(name, f"eta is {eta}, but it lies in [0, 1] here", "eta", given)
    solver = embedded.DPM(order, float(rtol), float(atol), step=step, **noise)
    order_of_error = 1.5 if eta else order
    solver.controller = embedded.pid(order_of_error, pcoeff, icoeff, dcoeff, accept_safety)
    extra_args = {} if extra_args is None else extra_args
    seed = extra_args.get("seed") if eta else 0
    seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    with tqdm(disable=disable) as bar, torch.no_grad():
        network = _Model(model, x.dtype, extra_args, callback is not None, bar)
        denoiser, state = Denoiser(network, space, predicts="x0"), x.detach().to(dtype)
        how: Any = {"denoise": False, "max_calls": MOST_CALLS, "compact": False}
        run = prepare(denoiser, solver, x=state, seed=seed, **how)
        _walk(run, state, network, callback, order)
    _check(run)
    out = run.out.to(network.dtype)
    return (out, _info(run.final["counts"].cpu().numpy(), order)) if return_info else out


def _walk(run, state, network, callback, order):
    """Runs all rounds; calls the callback after each round in which a trial step was decided."""
    if not run.batch.size:
        return
    steps, told = _Steps(run), 0
    network.run = run
    run.start(state)
    while run.batch.size:
        before = steps.record()
        run.round()
        decided = steps.follow(*before)
        if callback is not None and decided.any():
            info = _report(run, steps, network.denoised, told, state.dtype, order)
            shown = info["x"]
            callback(info)
            if not torch.equal(shown.nan_to_num(), run.batch.tensors["y"].nan_to_num()):
                raise ValueError(
                    f"sample_dpm_adaptive: the callback wrote into x after round {told + 1}, but "
                    "the next step was begun from the state before: give it a copy, or use "
                    "k-diffusion's own sample_dpm_adaptive"
                )
            told += 1


class _Steps:
    """Steps as k-diffusion counts them: a step that is cut short at the end counts uncut.

    If a step that was cut short is rejected, k-diffusion's next step is a part of the uncut step.
    It may be the same step again. The executor's next step is a part of the step that was tried.
    """

    def __init__(self, run):
        self.control, self.counts = (run.batch.records[name] for name in ("control", "counts"))
        self.rule = run.solver.controller
        self.control[:, BEFORE] = torch.nan  # errors before the first are those of the first
        self.h = torch.full_like(self.control[:, TO], run.solver.step)

    def record(self):
        """Returns what `follow` needs from before a round."""
        return self.control[:, BEFORE : BEFORE2 + 1].clone(), self._decisions()

    def follow(self, errors, decisions):
        """Sets the next steps after a round; returns whose trial step was decided, [B]."""
        decided = self._decisions() > decisions
        error = self.control[:, ERROR]
        before = torch.where(errors[:, 0].isnan(), error, errors[:, 0])
        before2 = torch.where(errors[:, 1].isnan(), before, errors[:, 1])
        wanted = factor(self.rule, error, before, before2)
        self.h = torch.where(decided, self.h * (1.0 + torch.atan(wanted - 1.0)), self.h)
        to = torch.minimum(self.control[:, AT] + self.h, self.control[:, END])
        self.control[:, TO] = torch.where(decided, to, self.control[:, TO])
        return decided

    def _decisions(self):
        return self.counts[:, ACCEPTED] + self.counts[:, REJECTED]


def _report(run, steps, denoised, number, dtype, order):
    """Returns the argument of k-diffusion's callback."""
    control, counts = (run.batch.records[name].cpu().numpy() for name in ("control", "counts"))
    decisions = counts[:, ACCEPTED] + counts[:, REJECTED]
    behind = np.lexsort((-decisions, control[:, AT]))[0]
    at, error = (
        torch.tensor(value, dtype=dtype, device=run.device)
        for value in (control[behind, AT], control[behind, ERROR] - steps.rule["error_eps"])
    )
    levels = {"sigma": at.neg().exp(), "sigma_hat": at.neg().exp(), "t": at, "t_up": at}
    tensors = {"x": run.batch.tensors["y"].clone(), "denoised": denoised.clone(), "error": error}
    counted = _info(counts[behind : behind + 1], order)
    return {"i": number, "h": float(steps.h[behind]), **levels, **tensors, **counted}


def _info(counts, order):
    """Returns k-diffusion's counts, of the sample with the most trial steps."""
    if not len(counts):
        return {"steps": 0, "nfe": 0, "n_accept": 0, "n_reject": 0}
    accepted, rejected = (counts[:, column].astype(int) for column in (ACCEPTED, REJECTED))
    most = int(np.argmax(accepted + rejected))
    accepted, rejected = int(accepted[most]), int(rejected[most])
    steps = accepted + rejected
    return {"steps": steps, "nfe": order * steps, "n_accept": accepted, "n_reject": rejected}


def _check(run):
    """Raises for samples that failed."""
    statuses = run.final["counts"][:, STATUS].cpu().numpy()
    failed = np.flatnonzero(statuses != FINISHED)
    if failed.size:
        first = int(statuses[failed[0]])
        error = FloatingPointError if first == FAILED_FINITE else RuntimeError
        raise error(f"sample_dpm_adaptive: sample {failed[0]}: {STATUSES[first]}")


class _Model:
    """The model as a network that keeps, if it is wanted, the estimate for each sample's state."""

    run: Any = None  # set when it is made: the run asks the network

    def __init__(self, model, dtype, extra_args, keeps, bar):
        self.model, self.dtype, self.extra_args = model, dtype, extra_args
        self.keeps, self.bar, self.denoised = keeps, bar, None

    def __call__(self, x, sigma):
        seen = x if x.dtype == self.dtype else x.to(self.dtype)
        watch = None if seen is x else InputWatch(seen)  # the run looks at its own
        before = watch and watch.look()
        made = self.model(seen, sigma.to(self.dtype, copy=True), **self.extra_args)
        if watch is not None and watch.look() != before:
            raise InputWritten("sample_dpm_adaptive")
        denoised = made if isinstance(made, torch.Tensor) else tensor_of(made, "x0")
        self.shown = self.dtype
        if denoised.dtype != self.dtype and denoised.is_floating_point():
            self.dtype = torch.promote_types(self.dtype, denoised.dtype)
        self.bar.update()
        if self.keeps:
            self._keep(denoised.to(self.dtype))
        return denoised

    def _keep(self, denoised):
        if self.denoised is None:
            self.denoised = denoised.clone()
            return
        stage = self.run.batch.records["counts"][:, STAGE]
        asked = (stage == 0).reshape(-1, *[1] * (denoised.dim() - 1))
        self.denoised = torch.where(asked, denoised, self.denoised)
