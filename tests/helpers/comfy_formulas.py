"""ComfyUI's samplers as formulas, in Python numbers and float64 tensors: what the plans must give.

`run(name, model, x, sigmas, normal, flow)` returns the sample. model(x, sigma) returns the guided
and the unconditional estimate; normal() the next N(0, 1). Sources: Karras et al. 2022 (algorithm
2), Lu et al. 2022 (DPM-Solver++), Zhang & Chen 2023 (DEIS), Zhao et al. 2023 (UniPC), Xue et al.
2023 (SA-Solver), Gonzalez et al. 2023 (SEEDS), Cui et al. 2023 (ER-SDE), Zhang et al. 2023
(iPNDM), Permenter & Yuan 2024 (gradient estimation), Chung et al. 2024 (CFG++), arXiv 2308.02157
(RES). What ComfyUI has of its own (levels of the flow's ancestral steps, weights of Heun++) is as
its samplers of 2026 have it.
"""

from math import exp, expm1, log, sqrt

import numpy as np
import torch
from comfy_formulas_logsnr import BY_LOGSNR
from comfy_levels import Space, flow_split, lagrange, split

PLUS = ("euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "dpmpp_2m_cfg_pp")
PLUS += ("res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp", "gradient_estimation_cfg_pp")


def euler(x, d, s, t):
    return x + (x - d) / s * (t - s)


def run(name, model, x, sigmas, normal, flow, **options):
    """See the module."""
    levels = [float(s) for s in sigmas]
    name = name.removesuffix("_gpu")
    if name in ("dpmpp_sde", "seeds_2", "seeds_3", "er_sde", "exp_heun_2_x0") or name.startswith(
        ("dpmpp_2m_sde", "dpmpp_3m_sde", "sa_solver", "exp_heun")
    ):
        if flow and levels[0] >= 1.0:
            levels[0] = options["below_one"]
        return BY_LOGSNR[name](model, x, levels, normal, Space(flow), options)
    if name in ONE_STEP:
        for i, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
            ahead = levels[i + 2] if i + 2 < len(levels) else None
            x = ONE_STEP[name](
                model, x, s, t, normal, flow, options, (levels[0], levels[-1], ahead)
            )
        return x
    return MULTISTEP[name](model, x, levels, normal, flow, options)


def _euler(model, x, s, t, normal, flow, options, ends):
    return euler(x, model(x, s)[0], s, t)


def _heun(model, x, s, t, normal, flow, options, ends):
    d = model(x, s)[0]
    first = (x - d) / s
    if t == 0.0:
        return d
    ahead = x + (t - s) * first
    return x + (t - s) * 0.5 * (first + (ahead - model(ahead, t)[0]) / t)


def _heunpp2(model, x, s, t, normal, flow, options, ends):
    start, last, after = ends
    first = (x - model(x, s)[0]) / s
    if t == last:
        return x + (t - s) * first
    ahead = x + (t - s) * first
    second = (ahead - model(ahead, t)[0]) / t
    if after == last:
        w = t / (2.0 * start)
        return x + (t - s) * ((1.0 - w) * first + w * second)
    further = ahead + (after - t) * second
    third = (further - model(further, after)[0]) / after
    w, v = t / (3.0 * start), after / (3.0 * start)
    return x + (t - s) * ((1.0 - w - v) * first + w * second + v * third)


def _dpm_2(model, x, s, t, normal, flow, options, ends):
    d = model(x, s)[0]
    if t == 0.0:
        return d
    m = sqrt(s * t)
    middle = euler(x, d, s, m)
    return x + (middle - model(middle, m)[0]) / m * (t - s)


def _res_2s(model, x, s, t, normal, flow, options, ends):
    d = model(x, s)[0]
    if t == 0.0:
        return d
    h, c = log(s / t), 0.5
    m = s * exp(-c * h)
    middle = exp(-c * h) * x - expm1(-c * h) * d
    late = model(middle, m)[0]
    phi1, phi2 = -expm1(-h) / h, (expm1(-h) + h) / h**2
    return exp(-h) * x + h * ((phi1 - phi2 / c) * d + phi2 / c * late)


def _euler_ancestral(model, x, s, t, normal, flow, options, ends):
    d, eta = model(x, s)[0], options.get("eta", 1.0)
    if t == 0.0:
        return d
    down, grow, up = (
        flow_split(s, t, eta) if flow else (split(s, t, eta)[0], 1.0, split(s, t, eta)[1])
    )
    return grow * euler(x, d, s, down) + up * normal()


def _dpm_2_ancestral(model, x, s, t, normal, flow, options, ends):
    d, eta = model(x, s)[0], options.get("eta", 1.0)
    if t == 0.0:
        return d
    down, grow, up = (
        flow_split(s, t, eta) if flow else (split(s, t, eta)[0], 1.0, split(s, t, eta)[1])
    )
    m = sqrt(s * down)
    middle = euler(x, d, s, m)
    return grow * (x + (middle - model(middle, m)[0]) / m * (down - s)) + up * normal()


def _dpmpp_2s_ancestral(model, x, s, t, normal, flow, options, ends, plus=False):
    d, u = model(x, s)
    eta = options.get("eta", 1.0)
    if t == 0.0:
        return d
    first = u if plus else d
    if flow:
        down, grow, up = flow_split(s, t, eta)
        space = Space(True)
        m = 0.9999 if s == 1.0 else space.sigma(0.5 * (space.lam(s) + space.lam(down)))
    else:
        (down, up), grow = split(s, t, eta), 1.0
        m = sqrt(s * down)
    middle = m / s * x + (1.0 - m / s) * first
    late = model(middle, m)[1 if plus else 0]
    x = grow * (down / s * x + (1.0 - down / s) * late) + up * normal()
    return x + Space(flow).alpha(t) * (d - u) if plus else x


def _dpmpp_2s_ancestral_cfg_pp(*given):
    return _dpmpp_2s_ancestral(*given, plus=True)


def _euler_ancestral_cfg_pp(model, x, s, t, normal, flow, options, ends, eta=None):
    d, u = model(x, s)
    eta = options.get("eta", 1.0) if eta is None else eta
    if t == 0.0:
        return d
    space = Space(flow)
    a, b = space.alpha(s), space.alpha(t)
    if a > 0.0:
        down, up = split(s / a, t / b, eta)
    else:  # the limit at infinite sigma / alpha
        down, up = sqrt(1.0 - eta**2) * t / b, eta * t / b
    return b * d + b * down * (x - a * u) / s + (b * up * normal() if eta else 0.0)


def _euler_cfg_pp(*given):
    return _euler_ancestral_cfg_pp(*given, eta=0.0)


def _ddpm(model, x, s, t, normal, flow, options, ends):
    d = model(x, s)[0]
    if t == 0.0:
        return d
    down, up = split(s, t, 1.0)
    return euler(x, d, s, down) + up * normal()


def _lcm(model, x, s, t, normal, flow, options, ends):
    d = model(x, s)[0]
    return d if t == 0.0 else Space(flow).alpha(t) * d + t * normal()


ONE_STEP = {
    "euler": _euler,
    "ddim": _euler,
    "heun": _heun,
    "heunpp2": _heunpp2,
    "dpm_2": _dpm_2,
    "res_2s": _res_2s,
    "euler_ancestral": _euler_ancestral,
    "dpm_2_ancestral": _dpm_2_ancestral,
    "dpmpp_2s_ancestral": _dpmpp_2s_ancestral,
    "dpmpp_2s_ancestral_cfg_pp": _dpmpp_2s_ancestral_cfg_pp,
    "euler_ancestral_cfg_pp": _euler_ancestral_cfg_pp,
    "euler_cfg_pp": _euler_cfg_pp,
    "ddpm": _ddpm,
    "lcm": _lcm,
}


def _slopes(rule, clean=True):
    """Returns the method x + rule(levels, i, number of slopes) . slopes, newest first."""

    def method(model, x, levels, normal, flow, options):
        slopes = []
        for i, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
            d = model(x, s)[0]
            slopes = [(x - d) / s, *slopes][:4]
            if t == 0.0:
                x = d
                continue
            weights = rule(levels, i)
            x = x + sum(w * slope for w, slope in zip(weights, slopes, strict=False))
        return x

    return method


def _lms(levels, i):
    return lagrange(levels[i - min(i, 3) : i + 1][::-1], levels[i], levels[i + 1])


def _ipndm(levels, i):
    rows = [[1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    return [w * (levels[i + 1] - levels[i]) for w in rows[min(i, 3)]]


def _ipndm_v(levels, i):
    """The published weights of orders 3 and 4, which are not those of Adams' method."""
    have = min(i, 3)
    if have < 2:
        return lagrange(levels[i - have : i + 1][::-1], levels[i], levels[i + 1])
    h, a, b = (levels[i + 1 - k] - levels[i - k] for k in range(3))
    one = (1 - h / (3 * (h + a)) * (h * (h + a)) / (a * (a + b))) / 2
    two = q = tail = 0.0
    if have == 3:
        c = levels[i - 2] - levels[i - 3]
        two = (1 - h / (3 * (h + a))) / 2 + (1 - h / (2 * (h + a))) * h / (6 * (h + a + b))
        two *= h * (h + a) * (h + a + b) / (a * (a + b) * (a + b + c))
        q = a * (a + b) / (b * (b + c))
        tail = 1 + b / c
    weights = [
        (2 + h / a) / 2 + one + two,
        -h / a / 2 - (1 + a / b) * one - (1 + a / b + q) * two,
        one * a / b + (a / b + q * tail) * two,
    ]
    if have == 3:
        weights.append(-two * q * a / b)
    return [w * h for w in weights]


def _deis(levels, i):
    low, high = log(0.002**2 + 1), log(80.0**2 + 1)
    slope = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    least = high - slope / 2

    def time(s):
        return (sqrt(least**2 + 2 * slope * log(s**2 + 1)) - least) / slope

    def speed(t):
        grown = np.expm1(slope * t**2 / 2 + least * t)
        return (slope * t + least) / 2 * (grown + 1) / np.sqrt(grown)

    if i == 0:
        return [levels[1] - levels[0]]
    nodes = [time(s) for s in levels[max(i - 2, 0) : i + 1][::-1]]
    start, end = time(levels[i]), time(levels[i + 1])
    # ComfyUI's sum over 10,000 points, both ends among them
    at = np.linspace(start, end, 10_000)
    w = speed(at) * (end - start) / 10_000
    rows = []
    for j, node in enumerate(nodes):
        others = [o for k, o in enumerate(nodes) if k != j]
        rows.append(float((w * np.prod([(at - o) / (node - o) for o in others], axis=0)).sum()))
    return rows


def _dpmpp_2m(model, x, levels, normal, flow, options, plus=False):
    old = None
    for i, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
        d, u = model(x, s)
        r = t / s
        change = 0.0
        if old is not None and t > 0.0:
            ratio = log(levels[i - 1] / s) / log(s / t)
            change = (1.0 - r) / (2.0 * ratio) * (d - old)
        x = d + r * (x - (u if plus else d)) + change
        old = u if plus else d
    return x


def _res_multistep(model, x, levels, normal, flow, options, eta=None, plus=False):
    eta = options.get("eta", 0.0) if eta is None else eta
    old, before = None, None
    for i, (s, t) in enumerate(zip(levels, levels[1:], strict=False)):
        d, u = model(x, s)
        down, up = split(s, t, eta)
        used = u if plus else d
        if down == 0.0 or old is None:
            x = d + down / s * (x - used)
        else:
            h = log(s / down)
            c = (-log(levels[i - 1]) + log(before)) / h
            phi1, phi2 = -expm1(-h) / h, (expm1(-h) + h) / h**2
            x = exp(-h) * (x + d - used) + h * ((phi1 - phi2 / c) * used + phi2 / c * old)
        if t > 0.0:
            x = x + up * normal() if eta else x
        old, before = used, down
    return x


def _gradient_estimation(model, x, levels, normal, flow, options, plus=False):
    old = None
    for s, t in zip(levels, levels[1:], strict=False):
        d, u = model(x, s)
        g = (x - (u if plus else d)) / s
        if t == 0.0:
            x = d
        else:
            x = d + t * g if plus else x + (t - s) * g
            if old is not None:
                x = x + (options.get("ge_gamma", 2.0) - 1.0) * (t - s) * (g - old)
        old = g
    return x


def _uni_pc(variant):
    def method(model, x, levels, normal, flow, options):
        levels = [*levels[:-1], levels[-1] or 0.001]
        steps = len(levels) - 1
        most = min(3, steps - 1)
        lam = [-log(s) for s in levels]
        seen = [model(x, levels[0])[0]]
        for k in range(1, steps + 1):
            order = k if k < most else min(most, steps + 1 - k)
            h = lam[k] - lam[k - 1]
            base = levels[k] / levels[k - 1] * x - expm1(-h) * seen[-1]
            big = h if variant == "bh1" else -expm1(-h)
            r = [(lam[k - 1 - j] - lam[k - 1]) / h for j in range(1, order)]
            slopes = [(seen[-1 - j] - seen[-1]) / r[j - 1] for j in range(1, order)]
            b, value = [], -expm1(-h) / h  # phi_1(-h), then phi_2 ...
            for j in range(1, order + 1):
                value = (1.0 / _factorial(j) - value) / h
                b.append(h * value * _factorial(j) / big)
            weights = [0.5] if order == 2 else _solve([r[: order - 1]], b[:-1]) if order > 2 else []
            ahead = base + big * sum(w * g for w, g in zip(weights, slopes, strict=True))
            if k == steps:
                x = ahead
                break
            new = model(ahead, levels[k])[0]
            weights = [0.5] if order == 1 else _solve([[*r, 1.0]], b)
            slopes = [*slopes, new - seen[-1]]
            x = base + big * sum(w * g for w, g in zip(weights, slopes, strict=True))
            seen = [*seen, new][-4:]
        return x / (1.0 - 0.001) if flow and options["clean"] else x

    return method


def _solve(nodes, b):
    matrix = np.vander(nodes[0], len(b), increasing=True).T
    return np.linalg.solve(matrix, np.array(b)).tolist()


def _factorial(k):
    return 1.0 if k < 2 else k * _factorial(k - 1)


MULTISTEP = {
    "lms": _slopes(_lms),
    "ipndm": _slopes(_ipndm),
    "ipndm_v": _slopes(_ipndm_v),
    "deis": _slopes(_deis),
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_cfg_pp": lambda *given: _dpmpp_2m(*given, plus=True),
    "res_multistep": lambda *given: _res_multistep(*given, eta=0.0),
    "res_multistep_ancestral": lambda *given: _res_multistep(
        *given[:-1], {"eta": 1.0, **given[-1]}
    ),
    "res_multistep_cfg_pp": lambda *given: _res_multistep(*given, eta=0.0, plus=True),
    "res_multistep_ancestral_cfg_pp": lambda *given: _res_multistep(
        *given[:-1], {"eta": 1.0, **given[-1]}, plus=True
    ),
    "gradient_estimation": _gradient_estimation,
    "gradient_estimation_cfg_pp": lambda *given: _gradient_estimation(*given, plus=True),
    "uni_pc": _uni_pc("bh1"),
    "uni_pc_bh2": _uni_pc("bh2"),
}


def as_generator(seed, shape, dtype=torch.float32):
    """Returns the normals of ComfyUI's default noise sampler on the CPU, one after another."""
    generator = torch.Generator().manual_seed(seed + 1)
    return lambda: torch.randn(shape, generator=generator, dtype=dtype).double()
