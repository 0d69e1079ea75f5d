"""Runs of every kind, a watch over what they do, and a network that does nothing."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import diffast as df
from diffast import ops
from diffast.plans.registers import Stages

VP = df.schedules.vp_linear()
GRID = df.grids.uniform_logsnr(VP, 5)
SHAPE = (3, 2, 5)
IDS = [7, -3, 2**40]
SHIFT = torch.linspace(-1, 1, 30).reshape(SHAPE)


def network(x, t, shift=None):
    t = t.reshape(-1, *[1] * (x.dim() - 1)).to(x.dtype)
    x = (0.8 * x + 0.1 - t) / (1 + 0.3 * x * x + t * t)
    return x if shift is None else x + shift.to(x.dtype)


def pull(x, t):
    """The gradient of a guidance term."""
    return (0.5 - x) * (1 + t.reshape(-1, 1, 1))


def denoiser_of(guidance=1.0, shift=None, kind=df.Denoiser, **options):
    if shift is not None:
        options["conditions"] = {"shift": shift}
        options["unconditional"] = {"shift": torch.zeros(1, *SHAPE[1:])}
    options = {"predicts": "x0", "guidance": guidance} | options
    return kind(network, options.pop("schedule", VP), **options)


def ddim(start, end):
    """Weights (keep, new) of a step without noise."""
    keep = float(VP.sigma(np.array(end)) / VP.sigma(np.array(start)))
    return keep, float(VP.alpha(np.array(end)) - VP.alpha(np.array(start)) * keep)


def twin():
    """A plan that calls the network on x and x2 at once."""
    middle = float(VP.time(0.5 * (VP.lam(GRID[0]) + VP.lam(GRID[1]))))
    keep, new = ddim(GRID[0], GRID[1])
    stages = Stages(VP, GRID[0])
    to = dict(zip("yd", ddim(GRID[0], middle), strict=True))
    stages.add(GRID[0], GRID[1], {"y": keep, "d": new}, y="keep", x2=to, x2_at=middle)
    stages.add((GRID[1], middle), GRID[1], {"y": keep, "d": 0.3 * new, "d2": 0.7 * new})
    stages.add(GRID[1], GRID[2], dict(zip("xd", ddim(GRID[1], GRID[2]), strict=True)))
    return stages.plan("twin", 2)


def pulled():
    """Euler with a multiple of the gradient added after each step."""
    stages = Stages(VP, GRID[0])
    for start, end in zip(GRID[:-1], GRID[1:], strict=True):
        keep, new = ddim(start, end)
        stages.add(start, end, {"x": keep, "d": new, "g1": 0.1 * end})
    return stages.plan("pulled", len(GRID) - 1)


def solved(name, **options):
    return df.solvers.get(name)(VP, GRID, **options)


EDM = df.schedules.edm()
CHURN = df.solvers.churn(EDM, df.grids.karras(EDM, 5), s_churn=20.0)


def given():
    """Normals by stage, the same for every run: as `noise=` of another program would be."""
    return lambda stage: ops.normal(SHAPE, seed=99, stage=stage + 1)


GUIDED = {"guidance": 2.5, "shift": SHIFT}
# name: (plan, options of the denoiser, options of the run)
KINDS = {
    "one-step": (solved("euler"), {}, {}),
    "multistep": (solved("dpmpp_3m"), {}, {}),
    "two calls a step": (solved("heun"), {}, {}),
    "noise": (solved("ddim", eta=1.0), {}, {}),
    "conditions": (solved("dpmpp_2m"), {"shift": SHIFT}, {}),
    "clamp": (solved("dpmpp_2m"), {}, {"clamp": (-0.4, 0.3)}),
    "clamp and guidance": (solved("dpmpp_2m_sde"), GUIDED, {"clamp": (-0.4, 0.3)}),
    "guidance": (solved("heun"), GUIDED, {}),
    "guidance on an interval": (
        solved("dpmpp_2m"),
        {**GUIDED, "guidance": lambda t: 3.0 if 0.2 < t < 0.8 else 1.0},
        {},
    ),
    "half network": (solved("dpmpp_2m"), {"dtype": torch.bfloat16}, {}),
    "half and guidance": (solved("euler_ancestral"), {**GUIDED, "dtype": torch.float16}, {}),
    "epsilon": (solved("ddim", eta=0.5), {"predicts": "epsilon"}, {}),
    "float64": (solved("dpmpp_2m_sde"), {}, {"dtype": torch.float64}),
    "path": (solved("euler_ancestral"), {}, {"noise": "path"}),
    "given": (solved("euler_ancestral"), {}, {"noise": given()}),
    "churn": (CHURN, {"schedule": EDM}, {}),
    "given churn": (CHURN, {"schedule": EDM}, {"noise": given()}),
    "hook": (
        solved("heun"),
        {},
        {"on_x0": lambda x0, info: x0.clamp(-0.3, 0.3) + 1e-3 * info.stage},
    ),
    "hook and clamp": (solved("ddpm"), GUIDED, {"on_x0": lambda x0, _: 0.9 * x0, "clamp": (-1, 1)}),
    "two inputs": (twin(), GUIDED, {}),
    "two inputs, clamp": (twin(), {}, {"clamp": (-0.2, 0.2)}),
    "two normals": (solved("seeds_2"), {}, {}),
    "corrector": (df.solvers.predictor_corrector(solved("dpmpp_2m"), "ulmc:n=2"), GUIDED, {}),
    "corrector, clamp": (
        df.solvers.predictor_corrector(solved("heun"), "lm:n=2"),
        {},
        {"clamp": (-0.4, 0.3)},
    ),
    "gradients": (pulled(), {"guides": [df.guidance.gradient(pull)]}, {}),
}


class Watch(TorchDispatchMode):
    """What a run does: ops that would read from a device, ops that launch, storage made."""

    READS = ("_local_scalar_dense", "_to_copy", "nonzero", "item", "equal", "is_nonzero")
    VIEWS = ("view", "slice", "split", "select", "expand", "reshape", "Version", "alias", "detach")

    def __init__(self):
        super().__init__()
        self.reads, self.launches, self.made = [], [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = str(func)
        if any(word in name for word in self.READS):
            self.reads.append(name)
        if not any(word in name for word in self.VIEWS):
            self.launches.append(name)
            if "_" not in name and not name.startswith("diffast"):
                self.made.append(name)
        return out


# As the network, with nothing but one launch: it writes into a tensor of its own.
class Still:
    def __init__(self, shape, dtype=torch.float32):
        self.out = torch.zeros(shape, dtype=dtype)

    def __call__(self, x, t, shift=None):
        return self.out[: len(x)]
