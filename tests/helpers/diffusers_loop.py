"""A denoising loop around a scheduler, with a network that is a formula."""

import inspect

import torch


def network(x, t, learned=False):
    """A smooth function of input and time, mild enough that rounding stays rounding."""
    t = torch.as_tensor(t, dtype=torch.float32).to("cpu") / 1000
    mixed = x + 0.3 * x.roll(1, -1) - 0.2 * x.roll(1, 1)
    out = 0.8 * torch.tanh(mixed) * torch.cos(0.3 + t) + 0.1 * torch.sin(3 * t + x)
    out = out.to(x.dtype)
    return torch.cat([out, 0.5 + 0.4 * torch.tanh(out)], dim=1) if learned else out


def takes(method, name):
    return name in inspect.signature(method).parameters


def noisy(scheduler, shape, seed=0, dtype=torch.float32):
    """Initial latents as pipelines make them."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x * getattr(scheduler, "init_noise_sigma", 1.0)).to(dtype)


def step_options(case, scheduler, seed=1):
    """Keyword arguments of step: those of the case, and a generator where one is taken."""
    if not takes(scheduler.step, "generator"):
        return dict(case.stepping)
    if isinstance(seed, list):
        return {**case.stepping, "generator": [torch.Generator().manual_seed(s) for s in seed]}
    return {**case.stepping, "generator": torch.Generator().manual_seed(seed)}


def model_input(scheduler, x, t):
    """What the network reads; flow schedulers have no scale_model_input."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def walk(scheduler, case, x, timesteps=None, seed=1, touch=None):
    """Returns the latents after each step of a denoising loop.

    `touch`, if given, changes the latents and the network's output before each step.
    """
    options, states = step_options(case, scheduler, seed), []
    for t in scheduler.timesteps if timesteps is None else timesteps:
        x = touch(x) if touch else x
        out = network(model_input(scheduler, x, t), t, case.learned)
        out = touch(out) if touch else out
        x = scheduler.step(out, t, x, **options, return_dict=False)[0]
        states.append(x)
    return states


def run(scheduler, case, steps, shape=None, seed=1, touch=None):
    """set_timesteps, then the loop from pure noise."""
    scheduler.set_timesteps(steps, **case.timing)
    return walk(scheduler, case, noisy(scheduler, shape or case.shape), seed=seed, touch=touch)


def rounded_otherwise(seed):
    """A function that moves each number to one of its two neighbours in float32."""
    generator = torch.Generator().manual_seed(seed)

    def touch(x):
        up = torch.rand(x.shape, generator=generator) < 0.5
        return torch.nextafter(x, torch.where(up, torch.inf, -torch.inf))

    return touch


def uncertainty(case, steps):
    """How well float32 determines the latents of a run of the original, step by step, relatively.

    The larger part is how far they move when each number is rounded otherwise, eight times, for a
    step rounds often. To it comes the rounding of what a step takes off its latents: where the
    noise falls from thousands to one in a step, the last digits before it are the first behind.
    """
    exact = run(case.original(), case, steps)
    moved = [run(case.original(), case, steps, touch=rounded_otherwise(i)) for i in range(2)]
    before = noisy(case.original(), case.shape).abs().max().item()
    lost, found = 0.0, []
    for i, x in enumerate(exact):
        lost += 4 * 2**-24 * before
        before = x.abs().max().item()
        found.append(8 * max(difference(m[i], x) for m in moved) + lost / before)
    return found


def difference(got, want):
    """Largest difference over largest value; inf where either is not finite."""
    gap = (got.double() - want.double()).abs().max() / want.double().abs().max()
    return gap.item() if torch.isfinite(gap) else float("inf")
