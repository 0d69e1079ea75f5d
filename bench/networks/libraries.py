"""Small networks of other libraries: made and trained by those libraries' own code.

Each maker returns the network alone; each trainer returns it trained. `python -m
bench.networks.train` trains all of them and keeps the weights under bench/data/.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parents[1] / "data"
PICTURES = 12  # pixels of a side


def two_moons(count: int, generator: torch.Generator) -> torch.Tensor:
    """Returns points [count, 2] of two half circles with noise of deviation 0.05."""
    angle = torch.rand(count, generator=generator) * torch.pi
    side = (torch.rand(count, generator=generator) < 0.5).float()
    x = torch.cos(angle) * (1 - 2 * side) + side - 0.5
    y = torch.sin(angle) * (1 - 2 * side) + 0.5 * side - 0.25
    points = torch.stack([x, y], 1)
    return points + 0.05 * torch.randn(count, 2, generator=generator)


def checkerboard(count: int, generator: torch.Generator) -> torch.Tensor:
    """Returns points [count, 2] of a checkerboard on [-2, 2]^2."""
    x = torch.rand(count, generator=generator) * 4 - 2
    row = torch.randint(0, 2, (count,), generator=generator) * 2.0
    y = torch.rand(count, generator=generator) - row + torch.floor(x) % 2
    return torch.stack([x, y], 1)


def spirals(count: int, generator: torch.Generator) -> torch.Tensor:
    """Returns points [count, 2] of two spirals of radius 2, with noise of deviation 0.05."""
    along = torch.rand(count, generator=generator).sqrt() * 3 * torch.pi
    side = (torch.rand(count, generator=generator) < 0.5).float() * 2 - 1
    radius = 2 * along / (3 * torch.pi) * side
    points = torch.stack([radius * torch.cos(along), radius * torch.sin(along)], 1)
    return points + 0.05 * torch.randn(count, 2, generator=generator)


def rings(count: int, generator: torch.Generator) -> torch.Tensor:
    """Returns points [count, 2] of eight clusters of deviation 0.1 on a circle of radius 1.5."""
    which = torch.randint(0, 8, (count,), generator=generator) * (torch.pi / 4)
    centres = 1.5 * torch.stack([torch.cos(which), torch.sin(which)], 1)
    return centres + 0.1 * torch.randn(count, 2, generator=generator)


def pictures() -> torch.Tensor:
    """Returns the digits of MNIST in [-1, 1], [N, 1, PICTURES, PICTURES], by area."""
    found = [folder / "mnist-10k.npz" for folder in _SHARED]
    with np.load(next(path for path in found if path.exists())) as held:
        images = next(held[name] for name in held.files if held[name].ndim >= 3)
    x = torch.as_tensor(images).reshape(-1, 1, 28, 28).float() / 127.5 - 1
    return torch.nn.functional.interpolate(x, size=(PICTURES, PICTURES), mode="area")


_SHARED = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents]


def smalldiffusion() -> ModuleType:
    """Returns smalldiffusion; its data sets alone need torchvision, which is then left out."""
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.modules["torchvision"] = ModuleType("torchvision")
        sys.modules["torchvision"].transforms = _Transforms("transforms")  # pyright: ignore
    import smalldiffusion

    return smalldiffusion


class _Transforms(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def small_ve() -> torch.nn.Module:
    """Returns smalldiffusion's MLP: epsilon of (x, sigma), sigma [B, 1]."""
    return smalldiffusion().TimeInputMLP(hidden_dims=(16, 128, 128, 128, 16))


def train_small_ve() -> torch.nn.Module:
    """Returns it trained by smalldiffusion's loop on its Swissroll."""
    sd = smalldiffusion()
    model, schedule = small_ve(), sd.ScheduleLogLinear(N=200, sigma_min=0.005, sigma_max=10)
    data = sd.Swissroll(torch.pi / 2, 5 * torch.pi, 100)
    points = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.vals.repeat(8, 1)), batch_size=800, shuffle=True
    )
    batches = [x for (x,) in points]
    for _ in sd.training_loop(batches, model, schedule, epochs=9000):
        pass
    return model


class Backbone(torch.nn.Module):
    """An MLP of (x [B, 2], time [B]), as backbone of azula's denoisers."""

    def __init__(self, width: int = 128, depth: int = 3):
        """Makes the layers."""
        super().__init__()
        sizes = [2 + 16, *[width] * depth]
        layers = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [torch.nn.Linear(a, b), torch.nn.SiLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))
        self.register_buffer("waves", 0.25 * 1.5 ** torch.arange(8.0), persistent=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns [B, 2]."""
        angles = t.reshape(-1, 1).expand(len(x), 1) * self.waves
        return self.net(torch.cat([x, angles.sin(), angles.cos()], 1))


def azula_edm() -> torch.nn.Module:
    """Returns azula's KarrasDenoiser on the VE schedule of EDM, sigma 0.002 to 80."""
    from azula.denoise import KarrasDenoiser
    from azula.noise import VESchedule

    return KarrasDenoiser(Backbone(), VESchedule(0.002, 80.0))


def train_azula_edm() -> torch.nn.Module:
    """Returns it trained by azula's loss on two moons."""
    return _azula_trained(azula_edm(), two_moons)


def azula_vp() -> torch.nn.Module:
    """Returns azula's KarrasDenoiser on its VP schedule."""
    from azula.denoise import KarrasDenoiser
    from azula.noise import VPSchedule

    return KarrasDenoiser(Backbone(), VPSchedule())


def train_azula_vp() -> torch.nn.Module:
    """Returns it trained by azula's loss on eight clusters on a circle."""
    return _azula_trained(azula_vp(), rings)


def _azula_trained(model, points, steps: int = 8000) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = model.loss(points(512, generator), torch.rand(512, generator=generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return model


class Field(torch.nn.Module):
    """A velocity field (x [B, 2], t [B] from 0 to 1), as users of flow libraries write it."""

    def __init__(self, width: int = 128):
        """Makes the layers."""
        super().__init__()
        sizes = [3, width, width, width]
        layers = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [torch.nn.Linear(a, b), torch.nn.SiLU()]
        self.net = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Returns [B, 2]."""
        return self.net(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], 1))


def train_flow_matching() -> torch.nn.Module:
    """Returns a field trained by flow_matching's CondOT path on a checkerboard."""
    from flow_matching.path import AffineProbPath
    from flow_matching.path.scheduler import CondOTScheduler

    path, model = AffineProbPath(CondOTScheduler()), Field()
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8000):
        x1 = checkerboard(1024, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        sample = path.sample(t=torch.rand(len(x1), generator=generator), x_0=x0, x_1=x1)
        loss = (model(sample.x_t, sample.t) - sample.dx_t).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def train_torchcfm() -> torch.nn.Module:
    """Returns a field trained by torchcfm's independent coupling on two spirals."""
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher

    matcher, model = ConditionalFlowMatcher(sigma=0.0), Field()
    generator = torch.Generator().manual_seed(6)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8000):
        x1 = spirals(512, generator)
        x0 = torch.randn(x1.shape, generator=generator)
        t = torch.rand(len(x1), generator=generator)
        t, x, u = matcher.sample_location_and_conditional_flow(x0, x1, t=t)
        loss = (model(x, t) - u).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def monai_unet() -> torch.nn.Module:
    """Returns MONAI's diffusion U-Net for the pictures: epsilon of (x, timesteps)."""
    from monai.networks.nets import DiffusionModelUNet

    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=1,
        channels=(16, 24),
        attention_levels=(False, False),
        num_res_blocks=1,
        norm_num_groups=8,
    )


def train_monai() -> torch.nn.Module:
    """Returns it trained with MONAI's scheduler on the pictures."""
    from monai.networks.schedulers import DDPMScheduler

    noising = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    model, data = monai_unet(), pictures()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = 2200
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        x = data[torch.randint(0, len(data), (64,), generator=generator)]
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(0, 1000, (len(x),), generator=generator)
        noisy = noising.add_noise(original_samples=x, noise=noise, timesteps=t)
        loss = (model(noisy, t) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return model


MAKERS = {
    "smalldiffusion": small_ve,
    "azula": azula_edm,
    "azula_vp": azula_vp,
    "flow_matching": Field,
    "torchcfm": Field,
    "monai": monai_unet,
}
TRAINERS = {
    "smalldiffusion": train_small_ve,
    "azula": train_azula_edm,
    "azula_vp": train_azula_vp,
    "flow_matching": train_flow_matching,
    "torchcfm": train_torchcfm,
    "monai": train_monai,
}


def load(name: str) -> torch.nn.Module:
    """Returns the trained network of that name, in eval mode, weights from bench/data/.

    Args:
        name: a key of MAKERS.
    """
    from safetensors.torch import load_file

    model = MAKERS[name]()
    held = load_file(DATA / f"{name}.safetensors")
    model.load_state_dict({key: value.float() for key, value in held.items()})
    return model.eval().requires_grad_(False)
