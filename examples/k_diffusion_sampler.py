"""k-diffusion's samplers by their own names: another import, the same calls, the same picture.

    python examples/k_diffusion_sampler.py

The model is the digit network of diffast, with the interface of `k_diffusion.external`:
`model(x, sigma, **extra_args)` returns the denoised x.
"""

import torch

import diffast as df
from diffast.integrations import k_diffusion as K  # in place of k_diffusion.sampling

# 1. A model, and how many calls it gets.
network = df.digits.load_unet()
calls = 0


def model(x, sigma, labels):
    """Returns the denoised x [B, 1, 28, 28] at noise levels sigma [B]."""
    global calls
    calls += 1
    return network(x, sigma, labels=labels)


# 2. Noise levels and the initial noise, as always.
torch.manual_seed(0)
sigmas = K.get_sigmas_karras(20, 0.002, 80.0)
x = torch.randn(4, 1, 28, 28) * sigmas[0]
extra_args = {"labels": torch.arange(4)}


# 3. The loop of k_diffusion.sampling.sample_dpmpp_2m, written out to compare with.
@torch.no_grad()
def their_dpmpp_2m(model, x, sigmas, extra_args):
    """Returns the samples [B, ...] by k-diffusion's own arithmetic."""
    old = None
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones([len(x)]), **extra_args)
        t, t_next = -sigmas[i].log(), -sigmas[i + 1].log()
        h = t_next - t
        slope = denoised
        if old is not None and sigmas[i + 1] > 0:
            r = (t - -sigmas[i - 1].log()) / h
            slope = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
        x = (sigmas[i + 1] / sigmas[i]) * x - (-h).expm1() * slope
        old = denoised
    return x


# 4. Both, from the same noise.
theirs, their_calls = their_dpmpp_2m(model, x, sigmas, extra_args=extra_args), calls
ours = K.sample_dpmpp_2m(model, x, sigmas, extra_args=extra_args, disable=True)
print(f"network calls: {their_calls} with k-diffusion's loop, {calls - their_calls} with diffast")
print(f"largest difference of a pixel in [-1, 1]: {(ours - theirs).abs().max():.1e}")
