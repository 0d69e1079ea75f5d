"""A ComfyUI custom-node package. Importing it inside ComfyUI registers everything.

To install it, make `custom_nodes/diffast/__init__.py` with this one line:

    from diffast.integrations.comfyui import *

KSampler's lists then offer samplers and schedulers called `diffast_...`, and there are four nodes
that return a SAMPLER for SamplerCustom and SamplerCustomAdvanced; that of a plan also returns its
SIGMAS. The node "diffast guidance" patches a MODEL with a guidance rule. See docs/integrations.md.
"""

from diffast.integrations.comfyui.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from diffast.integrations.comfyui.register import register

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

register()
