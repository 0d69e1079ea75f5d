"""Trains the three digit networks of ``diffast.digits`` on a CPU.

    python examples/train_mnist.py unet --data mnist-10k.npz --out runs/unet --minutes 80
    python examples/train_mnist.py classifier --data mnist-10k.npz --out runs/cls --minutes 8
    python examples/train_mnist.py judge --data mnist-10k.npz --out runs/judge --minutes 5

``--resume`` needs ``OUT/checkpoint.safetensors`` alone. ``OUT/log.json`` is the history.
``diffast.digits`` loads ``OUT/{unet,classifier,judge}.safetensors``: of the averaged weights at the
latest checkpoint, those with the lowest held-out loss.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffast.digits.unet import NULL_LABEL, DigitUNet, UNetConfig, parameter_count, scalings

# A longer step was stopped from outside (SIGSTOP, a sleeping laptop). Its time would lower the
# learning rate without any training, so it is not counted.
_LONGEST_STEP = 3.0


class TrainingError(Exception):
    """What went wrong, in one sentence for the person at the terminal."""


@dataclass(frozen=True)
class Digits:
    """Images in data units [-1, 1], [N, 1, 28, 28] float32, and their labels, [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.labels)


@dataclass(frozen=True)
class Recipe:
    """What differs among the three trainings.

    An average of power w remembers about the last 1/w of the run.
    """

    build: Callable[[Digits], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
    evaluate: Callable[[nn.Module, Digits], dict[str, float]]
    batch: int
    rate: float
    weight_decay: float
    averages: tuple[float, ...]


# --- data ---------------------------------------------------------------------------------------


def read_digits(path: Path, holdout: int) -> tuple[Digits, Digits]:
    """The training and the held-out digits of an npz file.

    Args:
        path: npz with ``images`` uint8 [N, 28, 28] (0 = background) and ``labels`` uint8 [N].
        holdout: how many at the end are kept apart.

    Raises:
        TrainingError: the file is missing, is no npz, or does not hold such arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("images", "labels") if key in archive}
    except FileNotFoundError:
        raise TrainingError(f"{path}: no such file") from None
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise TrainingError(f"{path}: not a readable npz file ({error})") from error
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise TrainingError(f"{path}: no array named {' or '.join(missing)}")
    images, labels = arrays["images"], arrays["labels"]
    for name, array in arrays.items():
        if array.dtype != np.uint8:
            raise TrainingError(f"{path}: {name} is {array.dtype}, not uint8")
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise TrainingError(f"{path}: images is {list(images.shape)}, not [N, 28, 28]")
    if labels.shape != images.shape[:1]:
        raise TrainingError(f"{path}: {len(images)} images but labels is {list(labels.shape)}")
    if labels.size and labels.max() > 9:
        raise TrainingError(f"{path}: label {labels.max()}, not 0..9")
    if not 0 < holdout < len(images):
        raise TrainingError(f"{path}: cannot hold out {holdout} of {len(images)} images")
    x = torch.from_numpy(images).float().div_(127.5).sub_(1.0)[:, None]
    y = torch.from_numpy(labels).long()
    return Digits(x[:-holdout], y[:-holdout]), Digits(x[-holdout:], y[-holdout:])


def draw_sigma(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels to train on, [count] float32.

    Nine in ten log-normal (ln sigma ~ N(-0.6, 1.3)), where a digit is decided; one in ten
    log-uniform over [0.002, 80], so that the ends a sampler visits are never unseen.
    """
    normal = torch.randn(count, generator=generator) * 1.3 - 0.6
    uniform = torch.rand(count, generator=generator)
    uniform = math.log(0.002) + uniform * math.log(80 / 0.002)
    tail = torch.rand(count, generator=generator) < 0.1
    return torch.where(tail, uniform, normal).clamp(math.log(0.002), math.log(80)).exp()


def fixed_sigma(count: int) -> Tensor:
    """The log-normal part of ``draw_sigma`` at its quantiles, shuffled, [count] float32."""
    at = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    sigma = (torch.special.ndtri(at) * 1.3 - 0.6).exp().float()
    return sigma[torch.randperm(count, generator=torch.Generator().manual_seed(1))]


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images turned, scaled, sheared and moved a little, [B, 1, 28, 28]."""
    n = len(images)
    turn, shear, dx, dy = (torch.rand(4, n, generator=generator) * 2 - 1) * torch.tensor(
        [[0.2], [0.15], [0.12], [0.12]]
    )
    scale = 1 + (torch.rand(n, generator=generator) * 2 - 1) * 0.12
    cos, sin = turn.cos() * scale, turn.sin() * scale
    maps = torch.stack([cos, shear - sin, dx, sin, cos, dy], dim=1).view(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    # grid_sample pads with 0, the background is -1.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


# --- the three recipes --------------------------------------------------------------------------


def unet_build(digits: Digits) -> nn.Module:
    """A fresh U-Net preconditioned for the mean and spread of these digits."""
    config = UNetConfig(
        sigma_data=round(digits.images.std().item(), 4),
        data_mean=round(digits.images.mean().item(), 4),
    )
    return DigitUNet(config).to(memory_format=torch.channels_last)


def _weighted_error(
    model: nn.Module, x0: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor
) -> Tensor:
    """lambda(sigma) |D - x0|^2 of each image, [B]; lambda = 1/c_out^2 (Karras et al. 2022)."""
    denoised = model(x0 + sigma[:, None, None, None] * noise, sigma, labels)
    c_out = scalings(sigma, model.config.sigma_data)[1]
    return (denoised - x0).square().mean(dim=(1, 2, 3)) / c_out.square()


def unet_loss(model: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The mean weighted denoising error of a batch, with label dropout."""
    sigma = draw_sigma(len(x0), generator)
    noise = torch.randn(x0.shape, generator=generator)
    drop = torch.rand(len(x0), generator=generator) < 0.12
    labels = torch.where(drop, NULL_LABEL, labels)
    return _weighted_error(model, x0, sigma, noise, labels).mean()


@torch.no_grad()
def unet_evaluate(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Held-out loss over fixed noise, also by sigma range and without labels."""
    generator = torch.Generator().manual_seed(0)
    sigma = fixed_sigma(len(digits))
    noise = torch.randn(digits.images.shape, generator=generator)
    null = torch.full_like(digits.labels, NULL_LABEL)

    def errors(labels: Tensor, rows: slice) -> Tensor:
        parts = zip(
            *(v[rows].split(125) for v in (digits.images, sigma, noise, labels)), strict=True
        )
        return torch.cat([_weighted_error(model, *part) for part in parts])

    error = errors(digits.labels, slice(None))
    result = {"loss": error.mean().item()}
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0), (1.0, 3.0), (3.0, math.inf)):
        result[f"sigma<{high:g}"] = error[(sigma >= low) & (sigma < high)].mean().item()
    result["null_250"] = errors(null, slice(250)).mean().item()
    return result


def classifier_build(digits: Digits) -> nn.Module:
    """A fresh noise-aware classifier preconditioned for these digits."""
    from diffast.digits.classifier import ClassifierConfig, NoisyDigitClassifier

    config = ClassifierConfig(
        sigma_data=round(digits.images.std().item(), 4),
        data_mean=round(digits.images.mean().item(), 4),
    )
    return NoisyDigitClassifier(config).to(memory_format=torch.channels_last)


def classifier_loss(
    model: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean cross-entropy of a batch of noisy digits."""
    sigma = draw_sigma(len(x0), generator)
    noise = torch.randn(x0.shape, generator=generator)
    logits = model(jitter(x0, generator) + sigma[:, None, None, None] * noise, sigma)
    return F.cross_entropy(logits, labels)


@torch.no_grad()
def classifier_evaluate(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Held-out cross-entropy over fixed noise, and accuracy at a few noise levels."""
    noise = torch.randn(digits.images.shape, generator=torch.Generator().manual_seed(0))

    def logits(sigma: Tensor) -> Tensor:
        return model(digits.images + sigma[:, None, None, None] * noise, sigma)

    result = {"loss": F.cross_entropy(logits(fixed_sigma(len(digits))), digits.labels).item()}
    for level in (0.02, 0.2, 0.5, 1.0, 2.0, 5.0):
        hit = logits(torch.full((len(digits),), level)).argmax(1) == digits.labels
        result[f"accuracy@{level:g}"] = hit.double().mean().item()
    return result


def judge_build(digits: Digits) -> nn.Module:
    """A fresh judge."""
    from diffast.digits.classifier import DigitJudge

    return DigitJudge().to(memory_format=torch.channels_last)


def judge_loss(model: nn.Module, x0: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The mean cross-entropy of a batch of clean digits, half of them moved about."""
    half = len(x0) // 2
    return F.cross_entropy(model(torch.cat([jitter(x0[:half], generator), x0[half:]])), labels)


@torch.no_grad()
def judge_evaluate(model: nn.Module, digits: Digits) -> dict[str, float]:
    """Held-out cross-entropy and accuracy."""
    logits = model(digits.images)
    hits = logits.argmax(1) == digits.labels
    return {
        "loss": F.cross_entropy(logits, digits.labels).item(),
        "accuracy": hits.double().mean().item(),
    }


RECIPES = {
    "unet": Recipe(unet_build, unet_loss, unet_evaluate, 64, 1e-3, 0.01, (4.0, 9.0, 20.0)),
    "classifier": Recipe(
        classifier_build, classifier_loss, classifier_evaluate, 64, 2e-3, 0.05, (9.0,)
    ),
    "judge": Recipe(judge_build, judge_loss, judge_evaluate, 64, 2e-3, 0.02, (9.0,)),
}


# --- the training loop --------------------------------------------------------------------------


def learning_rate(peak: float, step: int, done: float) -> float:
    """The learning rate: 300 steps of warm-up, then a cosine down to 0.5 % at ``done`` = 1."""
    warm = min(1.0, (step + 1) / 300)
    return peak * warm * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Replaces a safetensors file in one rename, so that a reader never sees half of one."""
    partial = path.with_name(path.name + ".partial")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, metadata)
    partial.chmod(0o644)  # safetensors makes it 0600
    os.replace(partial, path)


@dataclass
class Run:
    """Everything that changes while training; what a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    averages: list[list[Tensor]]
    step: int = 0
    images: int = 0
    seconds: float = 0.0
    log: list[dict] | None = None


def start(recipe: Recipe, train: Digits, seed: int) -> Run:
    """A run before its first step."""
    torch.manual_seed(seed)
    model = recipe.build(train)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.99), fused=True)
    copies = [[p.detach().clone() for p in model.parameters()] for _ in recipe.averages]
    return Run(model, optimizer, torch.Generator().manual_seed(seed), copies, log=[])


def save_checkpoint(run: Run, path: Path) -> None:
    """Writes all that ``load_checkpoint`` reads."""
    names = [name for name, _ in run.model.named_parameters()]
    tensors = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    for i, average in enumerate(run.averages):
        tensors |= {f"average{i}.{k}": v for k, v in zip(names, average, strict=True)}
    for name, p in run.model.named_parameters():
        for key, value in run.optimizer.state[p].items():
            tensors[f"adam.{key}.{name}"] = value
    tensors["rng.batches"] = run.generator.get_state()
    tensors["rng.torch"] = torch.get_rng_state()
    numbers = {k: getattr(run, k) for k in ("step", "images", "seconds", "log")}
    # channels_last convolutions are stored in the plain order, hence contiguous() on writing.
    write_atomically(path, tensors, {"run": json.dumps(numbers)})


def load_checkpoint(run: Run, path: Path) -> None:
    """Continues ``run`` where the checkpoint stopped.

    Raises:
        TrainingError: there is no checkpoint, or it is of another architecture.
    """
    try:
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        model = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        run.model.load_state_dict(model)
        for position, (name, p) in enumerate(run.model.named_parameters()):
            for i, average in enumerate(run.averages):
                average[position].copy_(tensors[f"average{i}.{name}"])
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"adam.{key}.{name}"]
                state[key] = torch.empty_like(p).copy_(value) if value.dim() else value
            run.optimizer.state[p] = state
        run.generator.set_state(tensors["rng.batches"])
        torch.set_rng_state(tensors["rng.torch"])
    except Exception as error:
        raise TrainingError(f"{path}: cannot resume ({error})") from error
    run.step, run.images = numbers["step"], numbers["images"]
    run.seconds, run.log = numbers["seconds"], numbers["log"]


def evaluate_and_export(
    run: Run, recipe: Recipe, held: Digits, out: Path, kind: str, facts: dict
) -> dict:
    """Writes the best of the averages for ``diffast.digits``; returns every held-out result."""
    model, params = run.model.eval(), list(run.model.parameters())
    raw = [p.detach().clone() for p in params]
    results = {"raw": recipe.evaluate(model, held)}
    best, best_state = math.inf, None
    for power, average in zip(recipe.averages, run.averages, strict=True):
        with torch.no_grad():
            torch._foreach_copy_(params, average)
        result = results[f"ema{power:g}"] = recipe.evaluate(model, held)
        if result["loss"] < best:
            best = result["loss"]
            # float16 halves what the repository carries and moves the held-out loss by 1e-6.
            best_state = {k: v.half() for k, v in model.state_dict().items()}
            facts = facts | {"average": power, "held_out": result}
    with torch.no_grad():
        torch._foreach_copy_(params, raw)
    model.train()
    if best_state is not None:
        config = json.dumps(asdict(model.config))
        training = facts | {"images": run.images, "steps": run.step, "seconds": round(run.seconds)}
        metadata = {
            "kind": type(model).__name__,
            "config": config,
            "training": json.dumps(training),
        }
        write_atomically(out / f"{kind}.safetensors", best_state, metadata)
    return results


def train(args: argparse.Namespace) -> None:
    """Trains one network until its budget is spent.

    Raises:
        TrainingError: bad data, a bad checkpoint, or a loss that is no longer finite.
    """
    torch.set_num_threads(args.threads)
    recipe = RECIPES[args.kind]
    digits, held = read_digits(args.data, args.holdout)
    run = start(recipe, digits, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.safetensors"
    if args.resume:
        load_checkpoint(run, checkpoint)
    params = list(run.model.parameters())
    facts = {"seed": args.seed, "batch": recipe.batch, "rate": recipe.rate, "data": args.data.name}
    print(
        f"{args.kind}: {parameter_count(run.model):,} parameters, {run.model.config}, "
        f"{len(digits)} training and {len(held)} held-out images",
        flush=True,
    )

    def done() -> float:
        if args.images is not None:
            return run.images / args.images
        return run.seconds / (60 * args.minutes)

    total = torch.zeros(())
    next_print, last_print = run.step + args.every, (run.images, run.seconds)
    next_save = run.seconds + 60 * args.save_minutes
    while True:
        clock = time.perf_counter()
        finished = done() >= 1
        if finished or run.seconds >= next_save:
            results = evaluate_and_export(run, recipe, held, args.out, args.kind, facts)
            run.log.append({"images": run.images, "seconds": run.seconds, "held_out": results})
            save_checkpoint(run, checkpoint)
            (args.out / "log.json").write_text(json.dumps(run.log, indent=1))
            for name, result in results.items():
                print(f"  {name:10s}", *(f"{k}={v:.4f}" for k, v in result.items()), flush=True)
            next_save = run.seconds + 60 * args.save_minutes
        if finished:
            return

        rate = learning_rate(recipe.rate, run.step, done())
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randint(len(digits), (recipe.batch,), generator=run.generator)
        loss = recipe.loss(run.model, digits.images[rows], digits.labels[rows], run.generator)
        run.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(params, 1.0)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise TrainingError(
                f"step {run.step}: loss {loss.item()}, gradient norm {norm.item()}; the latest "
                f"checkpoint is kept, lower the rate and --resume"
            )
        run.optimizer.step()
        run.step += 1
        run.images += recipe.batch
        for power, average in zip(recipe.averages, run.averages, strict=True):
            # A power of the step instead of a fixed half-life: the initial weights die out at any
            # length of run (Karras et al. 2024, arXiv:2312.02696, eq. 2).
            weight = power / (power + 1 + run.step)
            torch._foreach_lerp_(average, [p.detach() for p in params], weight)

        total += loss.detach()
        run.seconds += min(time.perf_counter() - clock, _LONGEST_STEP)
        if run.step >= next_print:
            speed = (run.images - last_print[0]) / max(run.seconds - last_print[1], 1e-9)
            print(
                f"{done():6.1%}  step {run.step}  images {run.images}  "
                f"loss {total.item() / args.every:.4f}  rate {rate:.2e}  "
                f"{speed:.0f} images/s  {run.seconds / 60:.1f} min",
                flush=True,
            )
            total.zero_()
            next_print, last_print = run.step + args.every, (run.images, run.seconds)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(RECIPES), help="which network to train")
    parser.add_argument("--data", type=Path, required=True, help="npz of images and labels")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is written")
    parser.add_argument("--holdout", type=int, default=1000, help="images at the end kept apart")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="budget of time spent in training steps")
    budget.add_argument("--images", type=int, help="budget of training images")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from OUT's checkpoint")
    parser.add_argument("--every", type=int, default=200, help="steps between printed lines")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="between checkpoints")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 1 after an error that is printed in one line."""
    try:
        train(parse(argv))
    except TrainingError as error:
        print(f"train_mnist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
