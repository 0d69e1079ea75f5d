"""A model as ComfyUI's samplers call it, with both branches, and the formula's sample for it."""

import types

import comfy_formulas
import torch

LEVELS = {
    False: {
        "full": [14.6, 9.0, 5.0, 2.5, 1.2, 0.5, 0.1, 0.0],
        "cut": [2.5, 1.2, 0.5, 0.1, 0.0],
        "open": [14.6, 9.0, 5.0, 2.5, 1.2, 0.5],
        "short": [14.6, 1.0, 0.0],
        "far": [500.0, 90.0, 14.6, 2.5, 0.5, 0.03, 0.0],
    },
    True: {
        "full": [1.0, 0.95, 0.8, 0.6, 0.4, 0.2, 0.07, 0.0],
        "cut": [0.8, 0.6, 0.4, 0.2, 0.07, 0.0],
        "open": [0.97, 0.8, 0.6, 0.4, 0.2, 0.07],
        "short": [1.0, 0.3, 0.0],
    },
}


class Model:
    """model(x, sigma, **extra_args) as KSAMPLER makes it; `calls` are the noise levels."""

    def __init__(self, model_sampling, seed=0):
        self.calls, self.extra = [], {}
        self.turn = 0.1 + 0.01 * seed
        inner = types.SimpleNamespace(model_sampling=model_sampling)
        patcher = types.SimpleNamespace(get_model_object=lambda name: model_sampling)
        self.inner_model = types.SimpleNamespace(inner_model=inner, model_patcher=patcher)

    def __call__(self, x, sigma, model_options=None, seed=None, denoise_mask=None):
        self.calls.append(float(sigma[0]))
        d, u = self.both(x, sigma)
        for listen in (model_options or {}).get("sampler_post_cfg_function", ()):
            d = listen({"denoised": d, "uncond_denoised": u})
        return d

    def both(self, x, sigma):
        """Returns the guided and the unconditional estimate."""
        at = torch.log(sigma.reshape(-1, *[1] * (x.dim() - 1)).double())
        wide = x.double()
        d = torch.tanh(0.7 * wide + 0.2 * wide.roll(1, -1) + self.turn * at)
        return d.to(x.dtype), (d + 0.3 * torch.sin(2.0 * wide)).to(x.dtype)


def formula(name, model, x, sigmas, normal, flow, **options):
    """Returns the formula's sample for a `Model`.

    `dtype` is that of the network's numbers, `first` a factor of the first guided estimate,
    `jitter` what rounding x does to the difference of x and an estimate, relative to x.
    """
    model_sampling = model.inner_model.inner_model.model_sampling
    levels = [float(s) for s in sigmas]
    own = {
        "below_one": float(model_sampling.percent_to_sigma(1e-4)),
        "interval": [float(model_sampling.percent_to_sigma(p)) for p in (0.2, 0.8)],
        "clean": levels[-1] == 0.0,
        **options,
    }

    jitter = own.pop("jitter", 0.0)
    dtype, factors = own.pop("dtype", torch.float64), [own.pop("first", 1.0)]

    def both(x, s):  # the network's numbers are those of its own dtype
        made = model.both(x.to(dtype), torch.full((len(x),), s, dtype=dtype))
        d, u = (each.double() for each in made)
        if jitter:
            d, u = (each + jitter * x.abs().max() * torch.randn_like(x) for each in (d, u))
        return d * (factors.pop() if factors else 1.0), u

    return comfy_formulas.run(name, both, x.double(), levels, normal, flow, **own)


def start(levels, rows=2, seed=0, dtype=torch.float64):
    """Returns an initial state at the first level."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((rows, 2, 4, 4), generator=generator, dtype=dtype) * max(levels[0], 0.1)


def relative(a, b):
    """Returns the largest difference over the largest number."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())
