"""One guided DDIM step of a network that predicts epsilon: by diffusers' own functions, and by ops.

The network's outputs are given: `cond` and `uncond` [B, ...]. A step reads them and the state, and
makes the next state. `their_steps` are the lines of a diffusers pipeline: a guider of
`diffusers.guiders`, then `DDIMScheduler.step`. `our_steps` are the ops that a rule needs: `gram` or
`quantile` for each sample's numbers, `evaluate` for the weights, `combine` for the step.
"""

from collections.abc import Callable

import numpy as np
import torch
from diffusers import DDIMScheduler, guiders
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer
from diffusers.utils import logging
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import diffast as df
from diffast import ops
from diffast.lowering.recorder import Recording
from diffast.ops.evaluate.encode import encode

SCALE, RESCALE = 7.5, 0.7
APG = {"eta": 0.5, "adaptive_projected_guidance_rescale": 15.0}
MOMENTUM, MAMBO = -0.5, 8.0
RATIO, MOST = 0.995, 100.0  # of dynamic thresholding
STEPS, PLACE = 20, 9
logging.set_verbosity_error()  # guiders say that they are experimental
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler(**options) -> DDIMScheduler:
    """Returns diffusers' DDIM over 20 steps."""
    made = DDIMScheduler(clip_sample=False, **LATENT, **options)
    made.set_timesteps(STEPS)
    return made


def levels() -> tuple[float, float, float, float]:
    """Returns alpha and sigma before the step, and after it."""
    ddim = scheduler()
    t = int(ddim.timesteps[PLACE])
    products = ddim.alphas_cumprod.double()
    before, after = float(products[t]), float(products[t - 1000 // STEPS])
    return before**0.5, (1 - before) ** 0.5, after**0.5, (1 - after) ** 0.5


# diffusers


def _guider(name: str):
    """Returns the guider of a rule; None where there is no guidance."""
    plain = {"guidance_scale": SCALE}
    makers: dict[str, Callable] = {
        "none": lambda: None,
        "cfg": lambda: guiders.ClassifierFreeGuidance(**plain),
        "rescale": lambda: guiders.ClassifierFreeGuidance(guidance_rescale=RESCALE, **plain),
        "apg": lambda: guiders.AdaptiveProjectedGuidance(
            adaptive_projected_guidance_momentum=MOMENTUM, **APG, **plain
        ),
        "cfg_zero_star": lambda: guiders.ClassifierFreeZeroStarGuidance(zero_init_steps=0, **plain),
        "tcfg": lambda: guiders.TangentialClassifierFreeGuidance(**plain),
        "mambo": lambda: guiders.MagnitudeAwareGuidance(alpha=MAMBO, **plain),
        "dynamic_threshold": lambda: guiders.ClassifierFreeGuidance(**plain),
    }
    return makers[name]()


def their_step(name: str, x, cond, uncond, running=None) -> Callable[[], torch.Tensor]:
    """Returns a function that makes diffusers' guided step of a rule.

    Args:
        name: of RULES.
        x: the state.
        cond: the network's output with the condition.
        uncond: its output without one.
        running: APG's running average before the step.
    """
    guider = _guider(name)
    dynamic = {"thresholding": True, "dynamic_thresholding_ratio": RATIO, "sample_max_value": MOST}
    ddim = scheduler(**(dynamic if name == "dynamic_threshold" else {}))
    t = ddim.timesteps[PLACE]
    if guider is not None:
        guider.set_state(PLACE, STEPS, t)
    # torch 2.13 has no norm over three dimensions, which this guider asks for: it is given two.
    shape = x.flatten(2).shape if name == "mambo" else x.shape
    branches = [cond.view(shape), uncond.view(shape)]

    def step():
        output = cond
        if guider is not None:
            if name == "apg":
                guider.momentum_buffer = _buffer(running)
            output = guider.forward(*branches).pred.view(x.shape)
        return ddim.step(output, t, x, return_dict=False)[0]

    return step


def _buffer(running):
    buffer = MomentumBuffer(MOMENTUM)
    buffer.running_average = running
    return buffer


def their_run(name: str, x, outputs) -> Callable[[], torch.Tensor]:
    """Returns a function that makes 20 guided steps as a pipeline does.

    Args:
        name: of RULES but "none".
        x: the initial state.
        outputs: what the network returns for [x, x]: the unconditional half comes first.
    """
    dynamic = {"thresholding": True, "dynamic_thresholding_ratio": RATIO, "sample_max_value": MOST}
    ddim = scheduler(**(dynamic if name == "dynamic_threshold" else {}))
    shape = x.flatten(2).shape if name == "mambo" else x.shape

    def run():
        guider = _guider(name)
        if name == "apg":
            guider.momentum_buffer = MomentumBuffer(MOMENTUM)
        state = x
        for i, t in enumerate(ddim.timesteps):
            torch.cat([state] * 2)  # the network's input
            guider.set_state(i, STEPS, t)
            uncond, cond = outputs.chunk(2)
            output = guider.forward(cond.view(shape), uncond.view(shape)).pred.view(x.shape)
            state = ddim.step(output, t, state, return_dict=False)[0]
        return state

    return run


def our_run(name: str, x, outputs) -> Callable[[], torch.Tensor]:
    """Returns `df.sample` of the same 20 steps; conditional outputs come first."""
    made = df.guidance
    rules = {
        "cfg": made.cfg(SCALE),
        "rescale": made.rescale(RESCALE, SCALE),
        "apg": made.apg(
            SCALE,
            eta=APG["eta"],
            norm_threshold=APG["adaptive_projected_guidance_rescale"],
            momentum=MOMENTUM,
            base="uncond",
        ),
        "cfg_zero_star": made.cfg_zero_star(SCALE, zero_init_steps=0),
        "tcfg": made.tcfg(SCALE),
        "mambo": made.mambo(SCALE, alpha=MAMBO),
        "dynamic_threshold": made.dynamic_threshold(RATIO, MOST, SCALE),
    }
    ddim = scheduler()
    schedule = df.schedules.from_betas(ddim.betas.double().numpy())
    plan = df.solvers.ddim(schedule, [*ddim.timesteps.double().numpy(), -1.0])
    branch = {"y": torch.zeros(1, 1)}
    denoiser = df.Denoiser(
        lambda x, t, y: outputs,
        schedule,
        predicts="epsilon",
        conditions=branch,
        unconditional=branch,
        guidance=rules[name],
    )
    return lambda: df.sample(denoiser, plan, x=x).x


# Rules as the guided output's weights of (cond, uncond, running). `s` are the numbers of `gram`:
# <a, a>, <a, b>, <b, b> of its two rows, sum a, sum b. `n` is the number of elements of a sample.


def _cfg(s, n):
    return [SCALE, 1 - SCALE]


def _rescale(s, n):
    """Rows: cond, guided."""
    variance = [square - total * total / n for square, total in ((s[0], s[3]), (s[2], s[4]))]
    factor = RESCALE * np.sqrt(variance[0] / variance[1]) + (1 - RESCALE)
    return [factor * SCALE, factor * (1 - SCALE)]


def _apg(s, n):
    """Rows: the difference with its momentum, cond."""
    shrink = np.minimum(1.0, APG["adaptive_projected_guidance_rescale"] / np.sqrt(s[0]))
    along = shrink * s[1] / s[2] * (APG["eta"] - 1)  # of cond
    each = SCALE * shrink
    return [each + SCALE * along, 1 - each, each * MOMENTUM]


def _cfg_zero_star(s, n):
    """Rows: cond, uncond."""
    return [SCALE, (1 - SCALE) * s[1] / (s[2] + 1e-8)]


def _tcfg(s, n):
    """Rows: cond, uncond. The first right-singular direction is a cond + b uncond."""
    half = (s[0] - s[2]) / 2
    root = np.sqrt(half * half + s[1] * s[1])
    # The larger eigenvalue's vector, from the row that does not cancel.
    a = np.where(half > 0, half + root, s[1])
    b = np.where(half > 0, s[1], root - half)
    length = a * a * s[0] + 2.0 * a * b * s[1] + b * b * s[2]
    share = (a * s[1] + b * s[2]) / length * (1 - SCALE)
    return [SCALE + share * a, share * b]


def _mambo(s, n):
    """Rows: the difference, uncond."""
    scale = 1.0 + (SCALE - 1.0) * np.exp(-MAMBO * np.sqrt(s[0] / s[2]))
    return [scale, 1.0 - scale]


# By name: the rows of `gram` over (cond, uncond, running), whether their sums are needed, weights.
RULES = {
    "none": (None, False, lambda s, n: [1.0, 0.0]),
    "cfg": (None, False, _cfg),
    "rescale": (([1, 0], [SCALE, 1 - SCALE]), True, _rescale),
    "apg": (([1, -1, MOMENTUM], [1, 0, 0]), False, _apg),
    "cfg_zero_star": (([1, 0], [0, 1]), False, _cfg_zero_star),
    "tcfg": (([1, 0], [0, 1]), False, _tcfg),
    "mambo": (([1, -1], [0, 1]), False, _mambo),
    "dynamic_threshold": (None, False, _cfg),
}


class Program:
    """A recorded program of `evaluate`: numbers [B, columns] to weights [B, rows, columns]."""

    def __init__(self, inputs, outs, formula):
        """Records formula(columns) -> weights, flat, over recorded columns."""
        recording = Recording()
        columns = [recording.input(k) for k in range(inputs.shape[1])]
        made = [recording.apply("add", value, 0.0) for value in formula(columns)]
        stores = [(0, element, value.number) for element, value in enumerate(made)]
        code, constants, starts, registers = encode([(recording.instructions, stores)])
        edges, pieces = torch.zeros(2).double(), torch.zeros(1, 1, 4).double()
        edges[1] = 1.0
        outs = [outs.view(len(outs), -1)]
        self.call = (code, constants, starts, 0, inputs, None, 0, edges, pieces, registers, outs)

    def __call__(self):
        """Writes the weights."""
        ops.evaluate(*self.call)


def our_step(name: str, x, cond, uncond, running=None) -> Callable[[], torch.Tensor]:
    """Returns a function that makes the step by ops, into the same tensors at each call."""
    alpha, sigma, alpha_after, sigma_after = levels()
    keep = alpha_after / alpha
    move = sigma_after - keep * sigma
    rows, totals, weights_of = RULES[name]
    n = float(x[0].numel())
    if name == "dynamic_threshold":
        return _thresholded(x, cond, uncond, (alpha, sigma, alpha_after, sigma_after))
    outputs = [cond] if name == "none" else [cond, uncond]
    outputs += [running] if name == "apg" else []
    xs = [x, *outputs]
    outs = [torch.empty_like(x) for _ in range(1 + (name == "apg"))]
    if rows is None:
        shares = weights_of(None, n)[: len(outputs)]
        weights = [keep, *(move * share for share in shares)]

        def linear():
            ops.combine_out(xs, weights, outs)
            return outs[0]

        return linear
    samples, width = len(x), len(rows) * (len(rows) + 1) // 2 + totals * len(rows)
    table = torch.tensor([rows] * samples, dtype=torch.float64)
    sums = torch.empty(samples, width, dtype=torch.float64)
    weights = torch.empty(samples, len(outs), len(xs), dtype=torch.float64)

    def formula(s):
        made = [keep, *(share * move for share in weights_of(s, n))]
        return [*made, 0.0, 1.0, -1.0, MOMENTUM] if name == "apg" else made

    program = Program(sums, weights, formula)

    def step():
        ops.gram(outputs, table, sums)
        program()
        ops.combine_table_out(xs, weights, None, None, [], outs, None)
        return outs[0]

    return step


def _thresholded(x, cond, uncond, numbers):
    """Row 0 is x0 / s, clamped to [-1, 1]; the step weighs it, and the guided output."""
    alpha, sigma, alpha_after, sigma_after = numbers
    samples, xs = len(x), [x, cond, uncond]
    shares = _cfg(None, 0.0)
    x0 = [1.0 / alpha, *(-sigma / alpha * share for share in shares)]
    table = torch.tensor([[x0]] * samples, dtype=torch.float64)
    found = torch.empty(samples, 1, dtype=torch.float64)
    weights = torch.empty(samples, 2, 4, dtype=torch.float64)
    out = torch.empty_like(x)

    def formula(s):
        limit = np.minimum(np.maximum(s[0], 1.0), MOST)
        step = [0.0, *(sigma_after * share for share in shares)]
        return [*(weight / limit for weight in x0), 0.0, *step, alpha_after]

    program = Program(found, weights, formula)
    quantiles = found.view(-1)

    def step():
        ops.quantile(xs, table, RATIO, quantiles)
        program()
        ops.combine_table_out(xs, weights, None, None, [-1.0, 1.0], [out], None)
        return out

    return step


def our_bytes(name: str, x: torch.Tensor) -> int:
    """Returns how many bytes our step reads and writes, each tensor once an op."""
    tensors = {"none": 3, "cfg": 4, "apg": 3 + 6, "dynamic_threshold": 3 + 4}.get(name, 2 + 4)
    return tensors * x.numel() * x.element_size()


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that torch's ops read and write; a view moves none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        made = [t for t in tree_flatten(result)[0] if isinstance(t, torch.Tensor)]
        memory = {t.untyped_storage().data_ptr() for t in given}
        if any(t.untyped_storage().data_ptr() not in memory for t in made):
            self.bytes += sum(t.numel() * t.element_size() for t in (*given, *made))
        return result


def traffic_of(step: Callable[[], torch.Tensor]) -> int:
    """Returns how many bytes the torch ops of a step read and write."""
    with _Traffic() as traffic:
        step()
    return traffic.bytes
