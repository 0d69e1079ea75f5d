"""A diffusers pipeline, made faster by one line, with the same picture.

    pip install diffusers
    python examples/diffusers_pipeline.py

The pipeline has a tiny network with random weights, so that nothing is downloaded. For your own
write `pipe = DiffusionPipeline.from_pretrained(...)`; the line with `accelerate` is the same.
"""

import time

import diffusers
import torch

from diffast.integrations.diffusers import accelerate

STEPS = 30

# 1. A pipeline, as you have it.
torch.manual_seed(0)
network = diffusers.UNet2DModel(
    sample_size=16,
    block_out_channels=(8, 16),
    layers_per_block=1,
    norm_num_groups=4,
    down_block_types=("DownBlock2D",) * 2,
    up_block_types=("UpBlock2D",) * 2,
)
pipe = diffusers.DDPMPipeline(network.eval(), diffusers.DDPMScheduler())
pipe.set_progress_bar_config(disable=True)


def picture():
    """Returns the picture of seed 7, [1, 16, 16, 3], and the seconds it took."""
    begin = time.perf_counter()
    generator = torch.Generator().manual_seed(7)
    images = pipe(generator=generator, num_inference_steps=STEPS, output_type="np").images
    return images, time.perf_counter() - begin


# 2. Its picture with diffusers' own scheduler. The first run is to warm up.
picture()
theirs, their_seconds = picture()

# 3. The one line. It prints which scheduler took which one's place.
accelerate(pipe)

# 4. The same seed, the same noise, the same picture.
picture()
ours, our_seconds = picture()
print(
    f"{STEPS} steps: {their_seconds:.2f} s with diffusers' scheduler, {our_seconds:.2f} s with ours"
)
print(f"largest difference of a pixel in [0, 1]: {abs(ours - theirs).max():.1e}")
