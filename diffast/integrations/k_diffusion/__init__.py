"""k-diffusion's samplers by their own names and signatures, each one a plan that `df.sample` runs.

Example, in place of k_diffusion.sampling:
    from diffast.integrations import k_diffusion as K
    x = K.sample_dpmpp_2m(model, x, K.get_sigmas_karras(20, 0.03, 14.6), extra_args=...)

`model(x, sigma, **extra_args)` returns the denoised x. The numbers are k-diffusion's to rounding.
Where k-diffusion draws torch.randn_like these samplers do so too, in the same order: the same
picture for the same seed. Deliberately different:

- `sample_dpmpp_sde`, `_2m_sde`, `_3m_sde` have by default the package's Brownian path in place of
  torchsde's: another picture. Its seed is extra_args["seed"] or, without it, a number from torch's
  generator.
- Churn draws nothing where s_churn is 0.
- `sample_dpm_adaptive` gives each sample of a batch steps of its own.
- sigmas must fall strictly; eta lies in [0, 1].
- x in float16 or bfloat16 is float32 between the steps.
- A value that is not finite raises FloatingPointError.
"""

from diffast.integrations.k_diffusion.adaptive import sample_dpm_adaptive as sample_dpm_adaptive
from diffast.integrations.k_diffusion.plans import get_sigmas_plan as get_sigmas_plan
from diffast.integrations.k_diffusion.plans import sample_plan as sample_plan
from diffast.integrations.k_diffusion.samplers import *  # noqa: F403
