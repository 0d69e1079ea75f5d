"""Networks in closed form that tuning is tested on: exact denoisers of mixtures of Gaussians."""

import torch

import diffast as df

CENTRES = torch.tensor([[3.0, 0.0], [-2.0, 2.0], [0.0, -3.0], [1.0, 2.5]])
WIDTH = 0.6


def exact_x0(schedule):
    """Returns the exact x0 estimate of the mixture, as network(x, t)."""

    def network(x, t):
        times = t.detach().double().numpy()
        alpha, sigma = (
            torch.tensor(level(times), dtype=x.dtype)[:, None]
            for level in (schedule.alpha, schedule.sigma)
        )
        shared = (alpha * WIDTH) ** 2 + sigma**2
        away = x[:, None] - alpha[..., None] * CENTRES.to(x.dtype)
        likely = torch.softmax(-away.square().sum(-1) / (2.0 * shared), dim=1)
        means = CENTRES + (alpha * WIDTH**2 / shared)[..., None] * away
        return (likely[..., None] * means).sum(1)

    return network


def denoiser(schedule=None, predicts="x0"):
    """Returns the exact denoiser with that prediction."""
    schedule = df.schedules.edm() if schedule is None else schedule
    x0 = exact_x0(schedule)
    asked = df.Prediction(schedule, predicts)

    def network(x, t):
        a, b = (torch.tensor(w, dtype=x.dtype)[:, None] for w in asked.affine(t.double().numpy()))
        return (x0(x, t) - a * x) / b

    return df.Denoiser(network, schedule, predicts=predicts)


class Labelled(torch.nn.Module):
    """A smooth network with a label, differentiable in its time, and parameters of its own."""

    def __init__(self, size=5, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.mix = torch.nn.Linear(size, size)
            self.labels = torch.nn.Embedding(4, size)

    def forward(self, x, t, labels):
        level = 1.0 / (1.0 + t[:, None] ** 2)
        return level * (0.9 * x + 0.3 * torch.tanh(self.mix(x) + self.labels(labels)))


def labelled(schedule=None, guidance=1.0, labels=(0, 1, 2, 3), size=5):
    """Returns a denoiser of `Labelled`, with four labels and a blank one."""
    schedule = df.schedules.edm() if schedule is None else schedule
    network = Labelled(size).requires_grad_(False)
    own, blank = {"labels": torch.tensor(labels)}, {"labels": torch.tensor([3])}
    return df.Denoiser(
        network,
        schedule,
        predicts="x0",
        conditions=own,
        unconditional=blank,
        guidance=guidance,
    )
