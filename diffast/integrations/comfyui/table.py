"""ComfyUI's samplers by name: the solver of each, and in what space it runs.

As in ComfyUI, a model whose model_sampling has class CONST is a flow model, x = (1 - sigma) x0 +
sigma eps. All others are x0 + sigma eps. A flow's equation is dx/dsigma = (x - x0) / sigma, as that
of x0 + sigma eps, so a method in steps of sigma or log sigma has one plan for both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diffast.plans import Plan
from diffast.solvers.compat import comfyui as single
from diffast.solvers.compat import comfyui_multistep as multistep

Build = Callable[..., Plan]


class Entry(NamedTuple):
    """What a name stands for.

    Args:
        solver: a builder, or its name in `df.solvers`.
        options: the builder's.
        flow: another builder, on `df.schedules.flow()`, for flow models.
        by_sigma: whether the plan is in steps of sigma on every model. If not, a flow model has
            a plan on `df.schedules.flow()`.
        nudged: whether ComfyUI's sampler of that name starts a flow model just below sigma = 1.
        takes: options that people may set, and what the builder calls them.
        noise_scale: whose s_noise model_sampling.noise_scale multiplies: "all", "flow", "none".
        branches: whether the unconditional estimate is weighed as well (CFG++).
        early: steps that read the estimate before the callback is called, so that the callback's
            writes into it change nothing: "none", "all", "but last".
        original: ComfyUI's name, "" for a sampler that ComfyUI has not.
        discard_penultimate: whether KSampler leaves out the last sigma above 0, as for ComfyUI's.
        needs: the least number of sigmas.
        twice: whether a step calls the network twice on its first level, and reports the first one.
        spare: how many normals ComfyUI draws and does not use after each one that it uses.
    """

    solver: str | Build
    options: Mapping[str, Any] = {}
    flow: str | Build | None = None
    by_sigma: bool = False
    nudged: bool = False
    takes: Mapping[str, str] = {}
    noise_scale: str = "none"
    branches: bool = False
    early: str = "none"
    original: str | None = None
    discard_penultimate: bool = False
    needs: int = 2
    twice: bool = False
    spare: int = 0

    @property
    def stochastic(self) -> bool:
        """Returns whether it takes eta and s_noise."""
        return "eta" in self.takes


_SDE: dict[str, Any] = {"eta": "eta", "s_noise": "s_noise"}
_ALL: dict[str, Any] = {"takes": _SDE, "noise_scale": "all"}
_FLOW: dict[str, Any] = {"takes": _SDE, "noise_scale": "flow"}
_SIGMA: dict[str, Any] = {"by_sigma": True}
_HEUN: dict[str, Any] = {"kind": "heun"}
_TWO_M: dict[str, Any] = {**_ALL, "nudged": True}
_INNER: dict[str, Any] = {**_SDE, "r": "r"}
_INNERS: dict[str, Any] = {**_SDE, "r_1": "r_1", "r_2": "r_2"}
_PHI: dict[str, Any] = {"solver_type": "kind"}
_PP: dict[str, Any] = {"branches": True}
_RES: dict[str, Any] = {"s_noise": "s_noise"}

SAMPLERS: dict[str, Entry] = {
    "euler": Entry("euler", **_SIGMA, early="all"),
    "ddim": Entry("euler", **_SIGMA, early="all"),
    "heun": Entry("heun", **_SIGMA, early="all"),
    "heunpp2": Entry(single.heunpp2, **_SIGMA, early="all"),
    "dpm_2": Entry("dpm_2", **_SIGMA, early="all", discard_penultimate=True),
    "lms": Entry("lms", **_SIGMA, early="but last", takes={"order": "order"}),
    "dpmpp_2m": Entry("dpmpp_2m", **_SIGMA),
    "res_multistep": Entry(multistep.res_multistep, **_SIGMA, takes=_RES, noise_scale="all"),
    "res_2s": Entry("res_2s", {"c2": 0.5}, **_SIGMA, takes={"c2": "c2"}),
    "ipndm": Entry("ipndm", **_SIGMA, takes={"max_order": "order"}),
    "ipndm_v": Entry("ipndm_v", {"form": "compat"}, **_SIGMA, takes={"max_order": "order"}),
    "deis": Entry(multistep.deis, **_SIGMA, takes={"max_order": "order"}),
    "gradient_estimation": Entry(
        "gradient_estimation", **_SIGMA, early="but last", takes={"ge_gamma": "gamma"}
    ),
    "uni_pc": Entry(
        multistep.uni_pc, {"variant": "bh1"}, **_SIGMA, discard_penultimate=True, needs=3
    ),
    "uni_pc_bh2": Entry(
        multistep.uni_pc, {"variant": "bh2"}, **_SIGMA, discard_penultimate=True, needs=3
    ),
    "exp_heun_2_x0": Entry(single.exp_heun_2_x0, nudged=True, takes=_PHI),
    "euler_ancestral": Entry("euler_ancestral", flow="flow_ancestral", **_FLOW),
    "dpm_2_ancestral": Entry(
        "dpm_2_ancestral", flow=single.flow_dpm_2_ancestral, **_FLOW, discard_penultimate=True
    ),
    "dpmpp_2s_ancestral": Entry("dpmpp_2s_ancestral", flow=single.flow_dpmpp_2s_ancestral, **_FLOW),
    "dpmpp_sde": Entry("dpmpp_sde", nudged=True, takes=_INNER, noise_scale="all"),
    "dpmpp_2m_sde": Entry("dpmpp_2m_sde", **_TWO_M),
    "dpmpp_2m_sde_heun": Entry("dpmpp_2m_sde", _HEUN, **_TWO_M),
    "dpmpp_3m_sde": Entry("dpmpp_3m_sde", **_TWO_M),
    "seeds_2": Entry("seeds_2", nudged=True, takes={**_INNER, **_PHI}, noise_scale="all"),
    "seeds_3": Entry("seeds_3", nudged=True, takes=_INNERS, noise_scale="all"),
    "exp_heun_2_x0_sde": Entry(
        single.exp_heun_2_x0,
        {"eta": 1.0},
        nudged=True,
        takes={**_SDE, **_PHI},
        noise_scale="all",
        spare=1,
    ),
    "res_multistep_ancestral": Entry(
        multistep.res_multistep, {"eta": 1.0}, **_SIGMA, takes=_SDE, noise_scale="all"
    ),
    "er_sde": Entry(
        multistep.er_sde,
        nudged=True,
        takes={"max_stage": "order", "s_noise": "s_noise"},
        noise_scale="all",
    ),
    "sa_solver": Entry(multistep.sa_solver, nudged=True, noise_scale="all"),
    "sa_solver_pece": Entry(
        multistep.sa_solver, {"pece": True}, nudged=True, noise_scale="all", twice=True
    ),
    "ddpm": Entry("ddpm", **_SIGMA),
    "lcm": Entry("lcm"),
    "euler_cfg_pp": Entry(single.euler_cfg_pp, **_PP),
    "euler_ancestral_cfg_pp": Entry(single.euler_cfg_pp, {"eta": 1.0}, **_PP, **_ALL),
    "dpmpp_2s_ancestral_cfg_pp": Entry(
        single.dpmpp_2s_ancestral_cfg_pp,
        flow=single.flow_dpmpp_2s_ancestral_cfg_pp,
        **_PP,
        **_ALL,
    ),
    "dpmpp_2m_cfg_pp": Entry(multistep.dpmpp_2m_cfg_pp, **_SIGMA, **_PP),
    "res_multistep_cfg_pp": Entry(
        multistep.res_multistep,
        {"cfg_pp": True},
        **_SIGMA,
        **_PP,
        takes=_RES,
        noise_scale="all",
    ),
    "res_multistep_ancestral_cfg_pp": Entry(
        multistep.res_multistep, {"cfg_pp": True, "eta": 1.0}, **_SIGMA, **_PP, **_ALL
    ),
    "gradient_estimation_cfg_pp": Entry(
        multistep.gradient_estimation_cfg_pp, **_SIGMA, **_PP, takes={"ge_gamma": "gamma"}
    ),
}

# The noise of the package is the same on every device, so these are one sampler.
for _name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde"):
    SAMPLERS[f"{_name}_gpu"] = SAMPLERS[_name]._replace(original=f"{_name}_gpu")

# Methods in the log-SNR of flow models, where ComfyUI's of that name take log sigma for it.
SAMPLERS |= {
    "dpmpp_2m_logsnr": Entry("dpmpp_2m", original=""),
    "res_multistep_logsnr": Entry("dpmpp_2m", _HEUN, original=""),
    "ddpm_logsnr": Entry("ddpm", original=""),
    "uni_pc_bh2_logsnr": Entry("unipc", {"variant": "bh2"}, original="", discard_penultimate=True),
}
