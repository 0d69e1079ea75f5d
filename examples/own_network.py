"""A network of your own: wrap it, sample, with and without guidance, with and without a solver.

    python examples/own_network.py

The network is trained here in a few seconds on points of two classes, two crescents. It is
written as many are: it predicts the noise, looks its time up in a table (nn.Embedding), and has one
more label for "no class", which guidance needs.
"""

import numpy as np
import torch
from torch import nn

import diffast as df

NO_CLASS = 2
BETAS = np.linspace(1e-3, 0.2, 100)


def crescents(count):
    """Returns points [N, 2] and their classes [N]: an upper half circle and a lower one."""
    labels = torch.randint(2, (count,))
    angle, sign = torch.pi * torch.rand(count), 1.0 - 2.0 * labels
    points = torch.stack([angle.cos() * sign + labels - 0.5, angle.sin() * sign], 1)
    return points + 0.05 * torch.randn(count, 2), labels


# 1. The network, as you have it.
class Network(nn.Module):
    """Predicts the noise in x [B, 2] at training step t [B], int64."""

    def __init__(self, width=64):
        """Makes the layers."""
        super().__init__()
        self.time, self.label = nn.Embedding(len(BETAS), width), nn.Embedding(3, width)
        self.first, self.last = nn.Linear(2, width), nn.Linear(width, 2)
        self.middle = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, x, t, labels):
        """Returns the noise [B, 2]."""
        return self.last(self.middle(self.first(x) + self.time(t) + self.label(labels)))


# 2. Its training: add noise, predict the noise. One label in ten is left out.
torch.manual_seed(0)
network, kept = Network(), torch.from_numpy(np.cumprod(1 - BETAS)).float()
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(1000):
    x0, labels = crescents(256)
    labels[torch.rand(256) < 0.1] = NO_CLASS
    t, noise = torch.randint(len(BETAS), (256,)), torch.randn(256, 2)
    x = kept[t, None].sqrt() * x0 + (1 - kept[t, None]).sqrt() * noise
    loss = (network(x, t, labels) - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# 3. What it was trained with: the schedule, and what it predicts. Its times are table indices.
schedule = df.schedules.from_betas(BETAS)
labels = torch.arange(1000) % 2


def denoiser(guidance):
    """Returns the network with the guidance scale."""
    return df.Denoiser(
        network.eval(),
        schedule,
        predicts="epsilon",
        time_dtype=torch.long,
        conditions={"labels": labels},
        unconditional={"labels": torch.tensor([NO_CLASS])},
        guidance=guidance,
    )


# 4. Samples: in so many network calls by the plan that was measured best, and by a solver and a
# grid of one's own, here 20 steps at whole times.
own_plan = df.solvers.dpmpp_2m(schedule, df.grids.trailing(schedule, 20))
real, real_labels = crescents(1000)
for guidance in (1.0, 2.0):
    model = denoiser(guidance)
    runs = {
        "10 calls": df.sample(model, calls=10, shape=(1000, 2), seed=0),
        "own plan": df.sample(model, own_plan, (1000, 2), seed=0),
    }
    for name, out in runs.items():
        near = [torch.cdist(out.x[labels == k], real[real_labels == k]).amin(1) for k in (0, 1)]
        print(
            f"guidance {guidance:g}, {name}: {int(out.nfe[0])} network calls, median distance to "
            f"the nearest real point of the class {torch.cat(near).median():.3f}"
        )
