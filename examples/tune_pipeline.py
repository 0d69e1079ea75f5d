"""A plan made for the network of a diffusers pipeline, and the pipeline sampling with it.

    pip install diffusers transformers
    python examples/tune_pipeline.py

The pipeline has a tiny network with random weights, so that nothing is downloaded and all is done
in seconds. For your own write `pipe = DiffusionPipeline.from_pretrained(...)`, give `tune` a few of
your prompts, and leave out the small numbers: 32 noises and 12 iterations are the defaults.
"""

import tempfile
from pathlib import Path

import diffusers
import torch

from diffast.integrations.diffusers import accelerate, tune

CALLS = 5

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
scheduler = diffusers.DDPMScheduler(clip_sample=False)
pipe = diffusers.DDPMPipeline(network.eval(), scheduler)
pipe.set_progress_bar_config(disable=True)

# 2. A plan of so few network calls, made for this network. With prompts:
#    tune(pipe, ["a cat", "a house by the sea"], CALLS, options={"guidance_scale": 5.0})
result = tune(pipe, None, CALLS, samples=8, iterations=3, starts=1)
print(result)

# 3. It is a file, for this pipeline and for ComfyUI, k-diffusion and df.sample.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "five.json"
    result.save(path)

    # 4. The one line that puts it in. The plan fixes the number of steps.
    accelerate(pipe, plan=path)
images = pipe(
    generator=torch.Generator().manual_seed(7), num_inference_steps=CALLS, output_type="np"
).images
print(f"a picture of {CALLS} network calls: {images.shape}, finite: {bool((images >= 0).all())}")
