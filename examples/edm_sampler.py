"""EDM's `edm_sampler` by its own name and arguments: algorithm 2 of Karras et al. 2022.

    python examples/edm_sampler.py

In EDM's generate.py one import changes:

    from diffast.integrations.edm import edm_sampler

This program uses the digit network of diffast in place of EDM's pickled one.
"""

import torch

import diffast as df
from diffast.integrations.edm import edm_sampler


# 1. A network as EDM's are: net(x, sigma, class_labels), with its bounds and its rounding.
class Net:
    """The digit network behind EDM's interface."""

    sigma_min, sigma_max = 0.002, 80.0

    def __init__(self):
        """Loads the weights."""
        self.network, self.calls = df.digits.load_unet(), 0

    def round_sigma(self, sigma):
        """Returns the nearest noise level that the network knows: every one."""
        return torch.as_tensor(sigma)

    def __call__(self, x, sigma, class_labels=None):
        """Returns the denoised x [B, 1, 28, 28], float32 as EDM's networks do."""
        self.calls += 1
        return self.network(x.float(), sigma.float().expand(len(x)), labels=class_labels)


net = Net()
latents = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
labels = torch.arange(4)

# 2. The one call of generate.py.
images = edm_sampler(net, latents, labels, num_steps=18)
our_calls = net.calls

# 3. EDM's own loop, without churn, to compare with.
net.calls = 0
with torch.no_grad():
    steps = torch.arange(18, dtype=torch.float64) / 17
    t = (80.0 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80.0 ** (1 / 7))) ** 7
    t = torch.cat([t, torch.zeros(1, dtype=torch.float64)])
    x = latents.double() * t[0]
    for now, after in zip(t[:-1], t[1:], strict=True):
        slope = (x - net(x, now, labels).double()) / now
        euler = x + (after - now) * slope
        if after > 0:
            second = (euler - net(euler, after, labels).double()) / after
            euler = x + (after - now) * (slope + second) / 2
        x = euler

print(f"EDM's loop: {net.calls} network calls; edm_sampler of diffast: {our_calls}")
print(f"largest difference of a pixel in [-1, 1]: {(images - x).abs().max():.1e}")
