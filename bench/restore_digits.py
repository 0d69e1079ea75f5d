"""Restored digits, by ours and by other libraries, at equal network calls.

    python bench/restore_digits.py --data mnist-10k.npz --who ours --out restore.jsonl
    python bench/restore_digits.py --data mnist-10k.npz --who azula deepinv --out restore.jsonl

The truth is held out from training. Measured are the class accuracy by the judge, the PSNR, and the
distance of the judge's features to those of the truth. azula 0.11 and deepinv 0.5 run the same
network on the same measurements. Options that a method has are tried over a few values, theirs as
ours; every value is a line of the file. A backward pass of the network is no call.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import diffast as df
from diffast.tasks import blur, gaussian_kernel, inpainting, super_resolution
from diffast.tasks import digits as tasks

NOISE = 0.05


def problems() -> dict[str, tuple]:
    """Name -> (operator, standard deviation of the noise)."""
    hole = torch.ones(28, 28, dtype=torch.bool)
    hole[8:20, 8:20] = False
    return {
        "inpaint": (inpainting(hole), 0.0),
        "super_resolve": (super_resolution(4), NOISE),
        "deblur": (blur(gaussian_kernel(2.0)), NOISE),
    }


def held_out(path: Path, count: int) -> tuple[Tensor, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["images"][-1000:][:count], file["labels"][-1000:][:count]
    return torch.from_numpy(images).float()[:, None] / 127.5 - 1, torch.from_numpy(labels).long()


def network(x: Tensor, sigma: Tensor) -> Tensor:
    """The x0 estimate of x0 + sigma eps, for the others; sigma [] or [B]."""
    null = torch.full((len(x),), df.digits.NULL_LABEL)
    sigma = torch.as_tensor(sigma, dtype=torch.float32).reshape(-1).expand(len(x))
    return tasks._network("unet")(x.float(), sigma, null).to(x.dtype)


# --- ours ---------------------------------------------------------------------------------------

OURS = {
    "pigdm": [{"spread": 0.62}, {"spread": 0.4}, {"spread": 0.62, "repeats": 2}],
    "dps": [{"scale": s} for s in (5.0, 10.0, 20.0)],
    "mcg": [{"scale": s} for s in (1.0, 2.0)],
    "mmps": [{}],
    "mpgd": [{}],
    "diffpir": [{"strength": s} for s in (1.0, 7.0)],
    "ddnm": [{}, {"repeats": 1}],
    "repaint": [{"repeats": r} for r in (1, 3, 5)],
}


def ours(method: str, options: dict, operator, y: Tensor, noise: float, calls: int) -> Tensor:
    made = tasks.denoiser(len(y))
    setup = df.tasks.restore(made, operator, y, method=method, calls=calls, noise=noise, **options)
    return setup.sample((len(y), 1, 28, 28), seed=1, throw=False).x


# --- azula --------------------------------------------------------------------------------------

AZULA = {
    "azula dps": [{"zeta": z} for z in (3.0, 10.0, 30.0, 100.0, 300.0)],
    "azula pgdm": [{"eta": 1.0}],
    "azula mmps": [{"iterations": 1}, {"iterations": 3}],
    "azula diffpir": [{"lmbda": k, "iterations": i} for k in (1.0, 10.0) for i in (1, 3)],
    "azula repaint": [{"iterations": 3}],
}


def azula(method: str, options: dict, operator, y: Tensor, noise: float, calls: int) -> Tensor:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.guidance.repaint import RePaintSampler
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Ours(Denoiser):
        schedule = VPSchedule()

        def forward(self, x_t, t, **kwargs):
            alpha, sigma = self.schedule(t)
            mean = network(x_t / alpha, sigma / alpha)
            return DiracPosterior(mean=mean)

    prior, how = Ours(), {"steps": calls, "silent": True}
    variance = max(noise, 0.01) ** 2
    name = method.split()[1]
    options = dict(options)
    if name == "dps":
        sampler = DPSSampler(prior, y, operator, **options, **how)
    elif name == "pgdm":
        sampler = PGDMSampler(prior, y, operator, operator.pseudo_inverse, **options, **how)
    elif name == "mmps":
        covariance = IsotropicCovariance(torch.tensor(variance))
        sampler = DDIMSampler(MMPSDenoiser(prior, y, operator, covariance, **options), 1.0, **how)
    elif name == "diffpir":
        guided = DiffPIRDenoiser(prior, y, operator, variance, **options)
        sampler = DDIMSampler(guided, 1.0, **how)
    else:
        how["steps"] = calls // options["iterations"]
        sampler = RePaintSampler(prior, y, operator.mask.expand_as(y), eta=1.0, **options, **how)
    torch.manual_seed(1)
    return sampler(sampler.init((len(y), 1, 28, 28))).detach()


# --- deepinv ------------------------------------------------------------------------------------

DEEPINV = {
    "deepinv dps": [{"weight": w} for w in (5.0, 20.0, 100.0, 300.0)],
    "deepinv diffpir": [
        {"lambda_": strength, "zeta": z} for strength, z in ((7.0, 0.3), (7.0, 1.0), (1.0, 1.0))
    ],
    "deepinv ddrm": [{}],
}


def deepinv(method: str, options: dict, operator, y: Tensor, noise: float, calls: int) -> Tensor:
    import deepinv as dinv

    class Ours(dinv.models.Denoiser):
        """Images in [0, 1], as deepinv has them."""

        def forward(self, x, sigma, **kwargs):
            return (network(2 * x - 1, 2 * torch.as_tensor(sigma)) + 1) / 2

    name, model = method.split()[1], Ours()
    gaussian = dinv.physics.GaussianNoise(max(noise, 0.01) / 2)
    kind, size = operator.name, (1, 28, 28)
    if kind == "inpainting":
        physics = dinv.physics.Inpainting(size, mask=operator.mask[0].float(), noise_model=gaussian)
        seen = (y + 1) / 2 * operator.mask
    elif kind == "blur":
        kernel = operator.kernel.float()[None, None]
        physics = dinv.physics.BlurFFT(size, filter=kernel, noise_model=gaussian)
        seen = (y + 1) / 2
    else:
        if name == "ddrm":
            raise ValueError(
                "DDRM wants the singular vectors, which are not at hand for block means"
            )
        physics = dinv.physics.LinearPhysics(
            A=lambda x, **rest: operator.forward(x),
            A_adjoint=lambda v, **rest: operator.transpose(v),
            noise_model=gaussian,
        )
        seen = (y + 1) / 2
    torch.manual_seed(1)
    if name == "dps":
        solver = dinv.sampling.DPS(model, num_steps=calls + 1, dtype=torch.float32, **options)
        return 2 * solver(seen, physics).float() - 1
    if name == "diffpir":
        data = dinv.optim.data_fidelity.L2()
        solver = dinv.sampling.DiffPIR(
            model, data, sigma=max(noise, 0.01) / 2, max_iter=calls, **options
        )
        return 2 * solver(seen, physics, x_init=operator.pseudo_inverse(seen)) - 1
    # noise levels of pixels in [0, 1], from 40 down, as dense as Karras et al. 2022 have them
    ramp = torch.linspace(0, 1, calls).double()
    sigmas = (40 ** (1 / 7) + ramp * (0.005 ** (1 / 7) - 40 ** (1 / 7))) ** 7
    return 2 * dinv.sampling.DDRM(model, sigmas=sigmas.numpy(), **options)(seen, physics) - 1


GROUPS: dict[str, tuple[dict, Callable]] = {
    "ours": (OURS, ours),
    "azula": (AZULA, azula),
    "deepinv": (DEEPINV, deepinv),
}


def measured(x: Tensor, truth: Tensor, labels: Tensor) -> dict[str, float]:
    judge = tasks._network("judge")
    fine = x.isfinite().all(dim=(1, 2, 3)) if x.dim() == 4 else x.isfinite()
    x = x.nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1)
    error = (x - truth).square().mean(dim=(1, 2, 3))
    distance = (judge.features(x) - judge.features(truth)).norm(dim=1)
    return {
        "accuracy": float((judge(x).argmax(1) == labels).double().mean()),
        "psnr": float((10 * (4 / error).log10()).mean()),
        "features": float(distance.mean()),
        "failed": int((~fine).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a file that lines are added to")
    parser.add_argument("--who", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--tasks", nargs="+", default=list(problems()), choices=list(problems()))
    parser.add_argument("--methods", nargs="+", help="default: all")
    parser.add_argument("--calls", nargs="+", type=int, default=[20, 60])
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    truth, labels = held_out(args.data, args.count)
    for task in args.tasks:
        operator, noise = problems()[task]
        fresh = torch.Generator().manual_seed(0)
        y = operator.forward(truth)
        y = y + noise * torch.randn(y.shape, generator=fresh)
        for who in args.who:
            methods, run = GROUPS[who]
            for method, values in methods.items():
                if args.methods and method not in args.methods:
                    continue
                for calls in args.calls:
                    for options in values:
                        begin = time.perf_counter()
                        line = {"task": task, "method": method, "calls": calls, "options": options}
                        try:
                            x = run(method, options, operator, y, noise, calls)
                            line |= measured(x, truth, labels)
                            line["seconds"] = round(time.perf_counter() - begin, 1)
                        except Exception as error:  # noqa: BLE001 - a method may not know the task
                            line["refused"] = " ".join(str(error).split())[:200]
                        print(json.dumps(line), flush=True)
                        with args.out.open("a") as file:
                            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
